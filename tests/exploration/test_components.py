"""Components with tails of their own: a mixture of Student-t is one standard normal."""

import math
from dataclasses import replace

import pytest
import torch
from test_coordinates import check_pull_back, generator, normal, saved_and_loaded
from torch import Tensor

from vgs_rl import FunctionEnergy
from vgs_rl.agents.automatic.design import design_of_components
from vgs_rl.envs import FortyModes, StudentMixture
from vgs_rl.exploration import (
    Components,
    MappedEnergy,
    fit_components,
    fitted_reference,
    load_coordinates,
)
from vgs_rl.exploration.reference import MixtureReference, StudentReference
from vgs_rl.starts import Mixture, StudentComponents, fit_students

KINDS = ("product", "diagonal", "tied", "full")


def students(kind: str, dim: int = 3) -> StudentComponents:
    """Four unequal components, close enough to overlap."""
    source = generator()
    means = 4 * torch.randn(4, dim, generator=source, dtype=torch.float64)
    roots = torch.randn(4, dim, dim, generator=source, dtype=torch.float64)
    full = roots @ roots.mT + torch.eye(dim, dtype=torch.float64)
    covariances = {
        "product": full.diagonal(dim1=1, dim2=2),
        "diagonal": full.diagonal(dim1=1, dim2=2),
        "tied": full[:1],
        "full": full,
    }[kind]
    weights = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    nu = torch.linspace(1.0, 5.0, dim) if kind == "product" else torch.tensor(2.5)
    scales = Mixture(weights=weights, means=means, covariances=covariances)
    return StudentComponents(scales=scales, nu=nu.double())


def target_of(mixture: StudentComponents) -> FunctionEnergy:
    return FunctionEnergy(lambda x: -mixture.log_prob(x), mixture.scales.means.shape[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 3])
def test_a_mixture_of_students_is_one_standard_normal(kind: str, dim: int) -> None:
    mixture = students(kind, dim)
    z = torch.cat([normal(500, dim), 4 * normal(500, dim)])
    energy = MappedEnergy(target_of(mixture), Components(mixture))
    expected = 0.5 * z.square().sum(-1) + 0.5 * dim * math.log(2 * math.pi)
    value, slope = energy.with_gradient(z)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(slope, z, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_its_densities_are_those_of_scipy(kind: str) -> None:
    from scipy import stats

    mixture, x = students(kind), 3 * normal(20, 3)
    weights, means, spread = (
        getattr(mixture.scales, name) for name in ("weights", "means", "covariances")
    )
    found = torch.zeros(20, dtype=torch.float64)
    for k, (weight, mean) in enumerate(zip(weights, means, strict=True)):
        each = spread[min(k, len(spread) - 1)]
        if kind == "product":
            parts = stats.t.logpdf(x, mixture.nu, mean, each.sqrt()).sum(-1)
        else:
            shape = torch.diag(each) if each.ndim == 1 else each
            law = stats.multivariate_t(mean.numpy(), shape.numpy(), float(mixture.nu))
            parts = law.logpdf(x.numpy())
        found += weight * torch.as_tensor(parts).exp()
    torch.testing.assert_close(mixture.log_prob(x), found.log(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_every_x_has_its_z_with_the_shares_of_components(kind: str) -> None:
    """So samples of the mixture are standard normal in z, also in the coordinate that is cut."""
    components = Components(students(kind))
    z = normal(20_000, 3)
    x = components.to_x(z)
    again = components.to_z(x, generator())
    torch.testing.assert_close(components.to_x(again), x, rtol=1e-8, atol=1e-8)
    moved = (again - z).abs().amax(-1) > 1e-6
    assert 0.01 < float(moved.double().mean()) < 0.9  # where components overlap
    ordered, _ = again.sort(0)
    at = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    gap = (torch.special.ndtr(ordered) - at.unsqueeze(-1)).abs().amax(0)
    assert float(gap.max()) < 1.95 / math.sqrt(20_000)  # Kolmogorov and Smirnov, 1 in 1,000
    with pytest.raises(ValueError, match="give a generator to choose one"):
        components.to_z(x)


@pytest.mark.parametrize("kind", KINDS)
def test_any_other_target_keeps_its_integral(kind: str) -> None:
    def energy(x: Tensor) -> Tensor:
        return 0.5 * (x - 1).square().sum(-1) + x.sin().sum(-1)

    at = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    step = float(at[1] - at[0])
    one = math.log(float((-0.5 * (at - 1).square() - at.sin()).exp().sum()) * step)
    z = normal(200_000, 3)
    level = MappedEnergy(FunctionEnergy(energy, 3), Components(students(kind)))(z)
    log_weight = -level + 0.5 * z.square().sum(-1) + 1.5 * math.log(2 * math.pi)
    found = float(torch.logsumexp(log_weight, 0)) - math.log(len(z))
    weight = log_weight.softmax(0)
    error = math.sqrt(float((weight - 1 / len(z)).square().sum()))
    assert abs(found - 3 * one) < 4 * error < 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_come_back_and_states_load(kind: str) -> None:
    components, z = Components(students(kind)), normal(50, 3)
    check_pull_back(components, z)
    restored = saved_and_loaded(components)
    torch.testing.assert_close(restored.to_x(z), components.to_x(z), rtol=0, atol=0)
    torch.testing.assert_close(restored.with_log_det(z)[1], components.with_log_det(z)[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": torch.tensor([0.5, 0.5])}, "covariances must have one of"),
        ({"weights": torch.tensor([0.5, 0.5, 0.0, 0.0])}, "weights must be above 0"),
        ({"means": torch.full((4, 3), math.nan)}, "must be finite"),
        ({"means": torch.zeros(4)}, "means must have shape"),
        ({"covariances": torch.ones(2, 3)}, "covariances must have one of"),
        ({"nu": torch.zeros(3)}, "nu must be|out of range|at least"),
        ({"nu": "heavy"}, "nu must be a Tensor, got a str"),
    ],
)
def test_states_that_are_none_are_refused(change: dict[str, object], message: str) -> None:
    state = {**Components(students("product")).state_dict(), **change}
    with pytest.raises(ValueError, match=message):
        load_coordinates(state)


@pytest.mark.parametrize("kind", KINDS)
def test_em_finds_them_from_a_mixture_of_gaussians(kind: str) -> None:
    """As likely as the truth is, for states that it has not seen."""
    truth = students(kind)
    apart = replace(truth.scales, means=4 * truth.scales.means)
    truth = replace(truth, scales=apart, nu=torch.full_like(truth.nu, 3.0))
    x = Components(truth).to_x(normal(8_000, 3))
    fitted, held = x[:4_000], x[4_000:]
    begin = apart if kind != "product" else replace(apart, covariances=4 * apart.covariances)
    found = fit_students(fitted, begin, radial=kind != "product")
    gap = float((truth.log_prob(held) - found.log_prob(held)).mean())
    assert abs(gap) < 0.03
    torch.testing.assert_close(found.nu, truth.nu, atol=1.0, rtol=0.5)


def test_known_degrees_of_freedom_stay() -> None:
    truth = students("product")
    x = Components(truth).to_x(normal(2_000, 3))
    found = fit_students(x, truth.scales, radial=False, nu=truth.nu)
    assert found.nu.equal(truth.nu)
    assert float(found.log_prob(x).mean()) >= float(truth.log_prob(x).mean()) - 1e-3


def test_they_are_taken_only_where_tails_show_them() -> None:
    heavy, light = StudentMixture(20, degrees=3.0), FortyModes(10)
    x = heavy.sample(4_000, generator()).double()
    found = fit_components(x, generator(), modes=heavy.locations)
    assert found is not None and not found.students.radial
    z = normal(4_000, 20)
    level = MappedEnergy(heavy, found)(z) - 0.5 * z.square().sum(-1)
    assert float(level.std()) < 0.5
    reference = fitted_reference(x, torch.zeros(4_000), generator(), heavy.locations)
    assert isinstance(reference, StudentReference)
    y = light.sample(4_000, generator()).double()
    assert fit_components(y, generator()) is None
    assert design_of_components(y, generator()) is None
    assert isinstance(fitted_reference(y, torch.zeros(4_000), generator()), MixtureReference)


def test_a_reference_of_students_is_its_density() -> None:
    mixture = students("full")
    reference = StudentReference(Components(mixture))
    x = reference.sample(500, generator())
    level, slope = reference.level(x)
    torch.testing.assert_close(level, -mixture.log_prob(x))
    assert reference.labels(x).equal(mixture.log_components(x).argmax(-1))
    step = 1e-5 * normal(500, 3)
    rise = reference.level(x + step)[0] - reference.level(x - step)[0]
    torch.testing.assert_close(rise, 2 * (slope * step).sum(-1), rtol=1e-4, atol=1e-9)
