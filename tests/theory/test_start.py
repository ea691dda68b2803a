import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal

from vgs_rl import (
    MDPConfig,
    SamplingMDP,
    ScheduleConfig,
    StartConfig,
)
from vgs_rl.agents import (
    LogVarianceConfig,
    PISConfig,
    TrajectoryBalanceConfig,
    ValueGradientConfig,
    oracle_sampler,
)
from vgs_rl.envs import GaussianMixture, ManyWell
from vgs_rl.geometry import CentreOfMassFree, Euclidean
from vgs_rl.starts import MixtureStart, ProductStart, make_start


def known_product() -> ProductStart:
    start = ProductStart(Euclidean(3), 2, 1.0)
    start.weights.copy_(torch.tensor([[0.3, 0.7], [0.5, 0.5], [0.1, 0.9]]))
    start.means.copy_(torch.tensor([[-3.0, 2.0], [-1.0, 4.0], [5.0, 0.0]]))
    start.variances.copy_(torch.tensor([[0.5, 1.5], [0.2, 1.0], [0.3, 0.6]]))
    return start


def test_product_start_is_the_product_of_its_coordinates_mixtures() -> None:
    start = known_product()
    exact = MixtureSameFamily(
        Categorical(start.weights), Normal(start.means, start.variances.sqrt())
    )
    x = start.sample(20_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(start.log_prob(x), exact.log_prob(x).sum(-1), atol=1e-4, rtol=1e-4)
    error = 4.5 * exact.variance.sqrt() / math.sqrt(len(x))
    assert ((x.mean(0) - exact.mean).abs() < error).all()
    torch.testing.assert_close(x.var(0), exact.variance, rtol=0.05, atol=0)
    correlation = torch.corrcoef(x.T) - torch.eye(3)
    assert correlation.abs().max() < 4.5 / math.sqrt(len(x))


def test_fitting_recovers_every_coordinates_mixture() -> None:
    known = known_product()
    x = known.sample(10_000, torch.Generator().manual_seed(0))
    start = ProductStart(Euclidean(3), 2, 1.0)
    start.fit(x, torch.Generator().manual_seed(1))
    assert float(start.log_prob(x).mean()) >= float(known.log_prob(x).mean()) - 2e-3
    order, truth = start.means.argsort(dim=1), known.means.argsort(dim=1)
    for name, tolerance in (("weights", 0.03), ("means", 0.1), ("variances", 0.12)):
        fitted, expected = getattr(start, name).gather(1, order), getattr(known, name)
        torch.testing.assert_close(fitted, expected.gather(1, truth), atol=tolerance, rtol=0)


def test_no_component_of_a_product_collapses() -> None:
    start = ProductStart(Euclidean(2), 3, 1.0)
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    x[:250, 0] = 1.25  # an atom: its component would get variance 0
    start.fit(x, torch.Generator())
    assert (start.variances >= 0.99e-4 * x.var(0).unsqueeze(-1)).all()
    assert torch.isfinite(start.log_prob(x)).all()


def test_product_start_suits_independent_wells() -> None:
    elbos = {}
    for kind in ("gaussian", "product"):
        config = MDPConfig(
            chain="ve",
            num_steps=8,
            schedule=ScheduleConfig(kind="geometric", first=0.2, last=0.01),
            start=StartConfig(kind=kind, components=4),  # type: ignore[arg-type]
        )
        mdp = SamplingMDP(ManyWell(6), config)
        log_weight = oracle_sampler(mdp, n_fit=4000).sample(2000, 1).log_weight
        assert log_weight is not None
        elbos[kind] = float(log_weight.mean()) - float(mdp.energy.log_z or 0.0)
    assert elbos["gaussian"] + 1.0 < elbos["product"] < 0.1


def test_product_start_refuses_a_projected_geometry() -> None:
    with pytest.raises(ValueError, match="'product' needs a Euclidean geometry"):
        make_start(StartConfig(kind="product"), CentreOfMassFree(4, 3))


def test_a_distant_narrow_component_keeps_its_density_in_single_precision():
    start = MixtureStart(Euclidean(2), components=1, scale=0.01)
    start.means.fill_(600.0)
    generator = torch.Generator().manual_seed(0)
    x = start.sample(1000, generator)
    exact = torch.distributions.Normal(600.0, 0.01).log_prob(x.double()).sum(-1)
    torch.testing.assert_close(start.log_prob(x).double(), exact, atol=0.05, rtol=0)


def test_no_component_of_a_fit_is_narrower_than_the_noise():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 2, generator=generator)
    x[0] = 300.0  # an outlier that a component would collapse onto
    start = MixtureStart(Euclidean(2), components=4, scale=1.0, noise=0.5)
    start.fit(x, generator)
    assert float(start.variances.min()) >= 0.5


@pytest.mark.parametrize("kind", ["gaussian", "mixture", "product"])
def test_widening_multiplies_every_standard_deviation(kind: str) -> None:
    start = make_start(StartConfig(kind=kind, scale=2.0, components=3), Euclidean(2))  # type: ignore[arg-type]
    start.widen(1.5)
    x = start.sample(50_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(x.std(0), torch.full((2,), 3.0), rtol=0.02, atol=0)


# --- a start that follows the agent's prior_std --------------------------------------------------


def gaussian(std: float) -> GaussianMixture:
    return GaussianMixture(torch.zeros(1, 2), torch.full((1, 2), std**2))


SCHEDULES = {"vp": ScheduleConfig(), "ve": ScheduleConfig(total_noise=4.0)}


@pytest.mark.parametrize("std", [0.03, 1.0, 10.0, 1000.0])
@pytest.mark.parametrize("chain", ["vp", "ve"])
@pytest.mark.parametrize("kind", ["gaussian", "mixture", "product"])
def test_an_untrained_sampler_is_the_exact_one_of_its_prior(
    std: float, chain: str, kind: str
) -> None:
    config = MDPConfig(
        chain=chain,  # type: ignore[arg-type]
        num_steps=12,
        schedule=SCHEDULES[chain],
        start=StartConfig(kind=kind),  # type: ignore[arg-type]
    )
    agent = ValueGradientConfig(prior_std=std).build(SamplingMDP(gaussian(std), config))
    samples = agent.sampler().sample(4000, 1)
    assert float(samples.x.std()) == pytest.approx(std, rel=0.05)
    assert samples.log_weight is not None
    torch.testing.assert_close(samples.log_weight, torch.zeros(4000), rtol=0, atol=2e-3)


def test_a_start_scale_that_is_given_stays_whatever_the_prior() -> None:
    mdp = SamplingMDP(gaussian(1.0), MDPConfig(num_steps=4, start=StartConfig(scale=1.7)))
    ValueGradientConfig(prior_std=50.0).build(mdp)
    assert float(mdp.start.scale.detach()) == pytest.approx(1.7)  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("kind", [PISConfig, TrajectoryBalanceConfig, LogVarianceConfig])
def test_the_start_of_agents_that_learn_the_control_follows_their_prior(kind: type) -> None:
    mdp = SamplingMDP(gaussian(1.0), MDPConfig(num_steps=4))
    assert float(mdp.start.scale.detach()) == pytest.approx(1.0)  # type: ignore[union-attr, arg-type]
    kind(prior_std=7.0).build(mdp)
    variance = float(mdp.chain.S[0]) + 49 / float(mdp.chain.A[0]) ** 2
    assert float(mdp.start.scale.detach()) == pytest.approx(math.sqrt(variance))  # type: ignore[union-attr, arg-type]
