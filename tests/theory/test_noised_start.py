"""A mixture of the target, noised in closed form, is start and value of one chain."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from vgs_rl import FunctionEnergy, MDPConfig, SamplingMDP
from vgs_rl.chain import Chain, ScheduleConfig
from vgs_rl.geometry import Euclidean
from vgs_rl.networks.policies import ValueGradientPolicy
from vgs_rl.starts import (
    Mixture,
    NoisedMixtureStart,
    NoisedProductStart,
    ProductMixture,
    StartConfig,
    choose_mixture,
    fit_mixture,
    fit_product,
)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Torch's own distributions draw from the global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


CHAIN = Chain.build(ScheduleConfig(kind="auto", total_noise=0.7), "vp", 5)


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixture(kind: str) -> Mixture:
    """Three components in two dimensions."""
    means = torch.tensor([[0.0, 0.0], [4.0, 1.0], [-3.0, 5.0]], dtype=torch.float64)
    covariances = torch.tensor([[0.5, 2.0], [1.0, 0.2], [0.3, 0.3]], dtype=torch.float64)
    if kind == "tied":
        covariances = torch.tensor([[[1.0, 0.6], [0.6, 0.8]]], dtype=torch.float64)
    if kind == "full":
        covariances = torch.diag_embed(covariances)
        covariances[0, 0, 1] = covariances[0, 1, 0] = 0.7
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    return Mixture(weights=weights, means=means, covariances=covariances)


def expected(mixture: Mixture, A: float, S: float) -> MixtureSameFamily:
    """The same mixture noised, from torch's own distributions."""
    covariances = mixture.covariances
    if covariances.ndim == 2:
        covariances = torch.diag_embed(covariances)
    noised = covariances / A**2 + S * torch.eye(2, dtype=torch.float64)
    components = MultivariateNormal(mixture.means / A, noised.expand(3, 2, 2))
    return MixtureSameFamily(Categorical(mixture.weights), components)


def start_of(mixture: Mixture) -> NoisedMixtureStart:
    full = mixture.kind != "diagonal"
    start = NoisedMixtureStart(Euclidean(2), CHAIN, 3, full=full, dtype=torch.float64)
    start.become(mixture)
    return start


@pytest.mark.parametrize("kind", ["diagonal", "tied", "full"])
def test_the_value_is_that_of_the_noised_mixture_at_every_step(kind: str) -> None:
    known, start = mixture(kind), start_of(mixture(kind))
    x = 4 * torch.randn(50, 2, generator=source(), dtype=torch.float64)
    steps = torch.arange(50) % 6
    for t in range(6):
        density = expected(known, float(CHAIN.A[t]), float(CHAIN.S[t]))
        value = -density.log_prob(x)
        torch.testing.assert_close(start.value(x, t), value)
        torch.testing.assert_close(start.value(x, steps)[steps == t], value[steps == t])
    torch.testing.assert_close(start.log_prob(x), -start.value(x, 0))
    leaf = x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(start.value(leaf, steps).sum(), leaf)
    torch.testing.assert_close(start.value_gradient(x, steps), slope)


@pytest.mark.parametrize("kind", ["diagonal", "tied", "full"])
def test_the_start_draws_from_its_density(kind: str) -> None:
    known, start = mixture(kind), start_of(mixture(kind))
    density = expected(known, float(CHAIN.A[0]), float(CHAIN.S[0]))
    x = start.sample(100_000, source())
    noise = torch.rand(100_000, 2, generator=source(1), dtype=torch.float64)
    normal = torch.randn(100_000, 2, generator=source(2), dtype=torch.float64)
    for drawn in (x, start.of_noise(noise, normal)):
        torch.testing.assert_close(drawn.mean(0), density.mean, atol=0.02, rtol=0)
        torch.testing.assert_close(drawn.var(0), density.variance, atol=0.05, rtol=0)
    start.widen(2.0)
    wide = start.sample(100_000, source())
    assert float(start.log_prob(wide).mean()) < float(-start.value(x, 0).mean())


def test_a_product_is_the_mixture_of_all_its_combinations() -> None:
    weights = torch.tensor([[0.3, 0.7], [0.6, 0.4]], dtype=torch.float64)
    means = torch.tensor([[-1.0, 2.0], [0.0, 3.0]], dtype=torch.float64)
    variances = torch.tensor([[0.5, 0.2], [1.0, 0.1]], dtype=torch.float64)
    product = NoisedProductStart(Euclidean(2), CHAIN, 2, dtype=torch.float64)
    product.become(ProductMixture(weights=weights, means=means, variances=variances))
    pairs = [(i, j) for i in (0, 1) for j in (0, 1)]
    whole = NoisedMixtureStart(Euclidean(2), CHAIN, 4, full=False, dtype=torch.float64)
    rows: dict[str, Any] = {
        "weights": torch.stack([weights[0, i] * weights[1, j] for i, j in pairs]),
        "means": torch.stack([torch.stack([means[0, i], means[1, j]]) for i, j in pairs]),
        "covariances": torch.stack(
            [torch.stack([variances[0, i], variances[1, j]]) for i, j in pairs]
        ),
    }
    whole.become(Mixture(**rows))
    x = 3 * torch.randn(40, 2, generator=source(), dtype=torch.float64)
    t = torch.arange(40) % 6
    torch.testing.assert_close(product.value(x, t), whole.value(x, t))
    torch.testing.assert_close(product.value_gradient(x, t), whole.value_gradient(x, t))
    torch.testing.assert_close(product.log_prob(x), whole.log_prob(x))
    drawn = product.sample(100_000, source())
    torch.testing.assert_close(
        drawn.mean(0), whole.sample(100_000, source()).mean(0), atol=0.02, rtol=0
    )


@pytest.mark.parametrize("spread", [0.0, 0.7])
def test_variances_of_few_states_are_as_alike_as_states_say(spread: float) -> None:
    """Of 40 components with 50 states each; with a variance of its own each would cost a nat."""
    generator = source()
    means = 10 * torch.randn(40, 50, generator=generator, dtype=torch.float64)
    width = (spread * torch.randn(40, 50, generator=generator, dtype=torch.float64)).exp()

    def draw() -> Tensor:
        which = torch.randint(40, (2000,), generator=generator)
        normal = torch.randn(2000, 50, generator=generator, dtype=torch.float64)
        return means[which] + width[which] * normal

    fitted = fit_mixture(draw(), 40, generator, kind="diagonal", begin=means)
    truth = Mixture(
        weights=torch.full((40,), 1 / 40).double(), means=means, covariances=width.square()
    )
    x = draw()
    lost = float((truth.log_prob(x) - fitted.log_prob(x)).mean())
    assert lost < (1.8 if spread else 0.8)


@pytest.mark.parametrize("kind", ["diagonal", "full"])
def test_a_chain_from_the_targets_own_mixture_needs_no_learning(kind: str) -> None:
    """Its value is exact, so that weights lack what finite steps lose alone."""
    known = mixture(kind)
    density = expected(known, 1.0, 0.0)
    energy = FunctionEnergy(lambda x: -density.log_prob(x.double()).to(x), 2)
    covariance: Any = "diagonal" if kind == "diagonal" else "full"
    config = MDPConfig(
        chain="vp",
        num_steps=20,
        schedule=ScheduleConfig(kind="auto", total_noise=0.3),
        start=StartConfig(kind="noised", components=3, covariance=covariance),
    )
    mdp = SamplingMDP(energy, config)
    assert isinstance(mdp.start, NoisedMixtureStart)
    mdp.start.become(known)

    class Known:
        def value(self, x: Tensor, t: int | Tensor) -> Tensor:
            return mdp.start.value(x, t)  # type: ignore[no-any-return, operator]

        def gradient(self, x: Tensor, t: int | Tensor) -> Tensor:
            return mdp.start.value_gradient(x, t)  # type: ignore[no-any-return, operator]

    policy = ValueGradientPolicy(mdp, Known(), "posterior")
    exact = density.sample((4_000,)).float()
    mdp.fit_noise_scale(policy, exact, source())
    log_weight = mdp.rollout(policy, 4_000, source()).log_weight.double()
    ess = float(log_weight.exp().mean() ** 2 / log_weight.exp().square().mean())
    assert ess > 0.8
    assert float(log_weight.exp().mean().log()) == pytest.approx(0.0, abs=0.03)


@pytest.mark.parametrize("kind", ["diagonal", "tied", "full"])
def test_em_finds_the_mixture_that_states_come_from(kind: str) -> None:
    known = mixture(kind)
    x = expected(known, 1.0, 0.0).sample((20_000,))
    found = fit_mixture(x, 3, source(), kind=kind)  # type: ignore[arg-type]
    order = torch.cdist(known.means, found.means).argmin(-1)
    torch.testing.assert_close(found.means[order], known.means, atol=0.1, rtol=0)
    torch.testing.assert_close(found.weights[order], known.weights, atol=0.02, rtol=0)
    rows = order if kind != "tied" else slice(None)
    torch.testing.assert_close(found.covariances[rows], known.covariances, atol=0.15, rtol=0)
    at = x[:200]
    torch.testing.assert_close(
        known.log_prob(at), expected(known, 1.0, 0.0).log_prob(at), atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize("kind", ["diagonal", "tied", "full"])
def test_draws_of_a_mixture_have_its_moments(kind: str) -> None:
    known = mixture(kind)
    x, density = known.sample(100_000, source()), expected(known, 1.0, 0.0)
    torch.testing.assert_close(x.mean(0), density.mean, atol=0.05, rtol=0)
    # At its own draws the mean log density is minus the entropy, as at those of torch.
    levels = known.log_prob(x).mean(), density.log_prob(density.sample((100_000,))).mean()
    torch.testing.assert_close(*levels, atol=0.03, rtol=0)


def test_weighted_states_count_by_their_weights() -> None:
    x = torch.randn(40_000, 1, generator=source(), dtype=torch.float64)
    log_weight = 0.5 * x[:, 0]  # tilts N(0, 1) to N(1/2, 1)
    found = fit_mixture(x, 1, source(), log_weight=log_weight, kind="diagonal")
    assert float(found.means) == pytest.approx(0.5, abs=0.03)
    assert float(found.covariances) == pytest.approx(1.0, abs=0.05)
    product = fit_product(x, 1, log_weight)
    assert float(product.means) == pytest.approx(0.5, abs=0.03)


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(8, 40),
    dim=st.integers(1, 30),
    components=st.integers(1, 8),
    kind=st.sampled_from(["diagonal", "tied", "full"]),
    same=st.booleans(),
)
def test_few_states_give_no_singular_component(
    n: int, dim: int, components: int, kind: Any, same: bool
) -> None:
    x = torch.randn(n, dim, generator=source(n), dtype=torch.float64)
    if same:
        x[: n // 2] = x[0]
    found = fit_mixture(x, components, source(), kind=kind)
    assert bool(found.log_prob(x).isfinite().all())
    assert float(found.weights.sum()) == pytest.approx(1.0)


def test_held_out_states_choose_number_and_kind() -> None:
    for kind in ("diagonal", "tied"):
        x = expected(mixture(kind), 1.0, 0.0).sample((6_000,))
        found = choose_mixture(x, source(), modes=mixture(kind).means)
        truth = float(expected(mixture(kind), 1.0, 0.0).log_prob(x).mean())
        assert float(found.log_prob(x).mean()) == pytest.approx(truth, abs=0.03)
    normal = torch.randn(3_000, 20, generator=source(), dtype=torch.float64)
    assert len(choose_mixture(normal, source()).means) == 1


def test_a_diagonal_start_refuses_full_covariances() -> None:
    start = NoisedMixtureStart(Euclidean(2), CHAIN, 3, full=False)
    with pytest.raises(ValueError, match="a diagonal start cannot take over a tied mixture"):
        start.become(mixture("tied"))
    assert math.isfinite(float(start.log_prob(torch.zeros(1, 2))))
