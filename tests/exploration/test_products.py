"""Coordinates that are independent of all others are standard normal after quadrature."""

import math

import pytest
import torch
from test_coordinates import check_map
from torch import Tensor

from vgs_rl import Energy, FunctionEnergy
from vgs_rl.agents.automatic.survey import survey
from vgs_rl.envs import (
    GMM9,
    BreastCancer,
    FortyModes,
    Funnel,
    Gaussian,
    ManyWell,
    Phi4,
    StudentMixture,
    StudentT,
)
from vgs_rl.exploration import Clock, MappedEnergy, Quantiles, independent, load_coordinates
from vgs_rl.samplers.mcmc.kernels import FiniteEnergy

WELLS = slice(2, 6)


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_wells(x: Tensor) -> Tensor:
    """Four double wells of several depths and tilts beside a banana."""
    banana = 0.5 * x[:, 0].square() + 2 * (x[:, 1] - x[:, 0].square()).square()
    tilt, depth = x.new_tensor([-1.0, -0.3, 0.3, 1.0]), x.new_tensor([0.5, 1.0, 2.0, 3.0])
    y = x[:, WELLS]
    return banana + (depth * (y.square() - 3).square() + tilt * y).sum(-1)


def students(x: Tensor) -> Tensor:
    """Independent Student t of three degrees of freedom and four scales."""
    return 2 * (x / x.new_tensor([0.01, 0.1, 1.0, 100.0])).square().div(3).log1p().sum(-1)


def gumbels(x: Tensor) -> Tensor:
    return (x + (-x).exp()).sum(-1)


def off(energy: Energy, found: Quantiles, z: Tensor) -> Tensor:
    """E of z less |z|²/2 in the mapped coordinates, and less the same where these are 0."""
    plain = z.index_fill(1, found.index, 0.0)
    levels = []
    for each in (z, plain):
        x, log_det = found.with_log_det(each)
        levels.append(energy(x) - log_det)
    return levels[0] - levels[1] - 0.5 * z[:, found.index].square().sum(-1)


def found_in(energy: Energy, seed: int) -> Quantiles | None:
    found = independent(FiniteEnergy(energy, dtype=torch.float64), energy.dim, source(seed))
    assert found is None or isinstance(found, Quantiles)
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("energy", "mapped"),
    [
        (GMM9(), [0, 1]),
        (ManyWell(32), list(range(0, 32, 2))),
        (FunctionEnergy(some_wells, 6), [2, 3, 4, 5]),
        (FunctionEnergy(students, 4), [0, 1, 2, 3]),
        (FunctionEnergy(gumbels, 3), [0, 1, 2]),
        (StudentT(1, 2.0), [0]),
    ],
)
def test_what_is_independent_is_normal_there(energy: Energy, mapped: list[int], seed: int) -> None:
    found = found_in(energy, seed)
    assert found is not None
    assert found.index.tolist() == mapped
    z = torch.randn(500, energy.dim, generator=source(seed + 1), dtype=torch.float64)
    assert float(off(energy, found, z).abs().max()) < 2e-3 * energy.dim


@pytest.mark.parametrize("energy", [ManyWell(32), FunctionEnergy(some_wells, 6)])
def test_gradients_there_are_those_of_a_normal_nearly_everywhere(energy: Energy) -> None:
    found = found_in(energy, 0)
    assert found is not None
    mapped = MappedEnergy(energy, found, dtype=torch.float64)
    z = torch.randn(2000, energy.dim, generator=source(1), dtype=torch.float64)
    off = (mapped.with_gradient(z)[1] - z)[:, found.index].abs()
    assert float(off.flatten().quantile(0.999)) < 0.5


def test_a_barrier_of_hundreds_of_nats_keeps_both_wells_in_their_shares() -> None:
    def energy(x: Tensor) -> Tensor:
        return (30 * (x.square() - 4).square() + x / 2).sum(-1)

    found = found_in(FunctionEnergy(energy, 2), 0)
    assert found is not None
    z = torch.randn(40_000, 2, generator=source(), dtype=torch.float64)
    share = (found.to_x(z) > 0).double().mean(0)
    expected = 1 / (1 + math.exp(2.0))
    assert float((share - expected).abs().max()) < 5 * math.sqrt(0.25 / 40_000)


@pytest.mark.parametrize(
    "energy",
    [
        Phi4(),
        FortyModes(),
        StudentMixture(50),  # where all descents end in one mode, only far states show the others
        Funnel(),
        StudentT(10, 2.0),
        BreastCancer(),
        Gaussian(torch.zeros(3), torch.diag(torch.tensor([1e-6, 1.0, 1e6]))),
        FunctionEnergy(lambda x: x.new_zeros(len(x)), 2),
    ],
)
def test_other_targets_stay_as_they_are(energy: Energy) -> None:
    for seed in range(3):
        assert found_in(energy, seed) is None


def test_wells_that_end_far_out_are_still_independent() -> None:
    """Of E = +inf from |x| = 20 on: far states, which show other modes, say nothing there."""

    def energy(x: Tensor) -> Tensor:
        inside = x.abs().amax(-1) < 20
        return torch.where(inside, (x.square() - 3).square().sum(-1), torch.inf)

    found = found_in(FunctionEnergy(energy, 4), 0)
    assert found is not None and found.index.tolist() == [0, 1, 2, 3]


def test_a_coordinate_without_an_integral_leaves_the_others_theirs() -> None:
    """Of 1 / (1 + |x|) and a double well, whose shares nothing but the quadrature knows."""

    def energy(x: Tensor) -> Tensor:
        return x[:, 0].abs().log1p() + (x[:, 1].square() - 3).square() + x[:, 1] / 2

    found = found_in(FunctionEnergy(energy, 2), 0)
    assert found is not None
    assert found.index.tolist() == [1]


def test_a_survey_of_a_product_ends_in_a_standard_normal() -> None:
    energy = ManyWell(64)
    found = survey(energy, source(), clock=Clock(), seconds=20, tell=lambda _: None)
    assert found.unit is not None and found.marginals
    z = torch.randn(200, 64, generator=source(1), dtype=torch.float64)
    level = found.energy(z) - 0.5 * z.square().sum(-1)
    assert float(level.std()) < 0.02
    assert energy.log_z is not None
    constant = 32 * math.log(2 * math.pi)
    assert float(-level.mean()) + constant == pytest.approx(energy.log_z, abs=0.02)


def table() -> dict[str, Tensor]:
    z = torch.tensor([[-2.0, -0.5, 0.1, 3.0], [-1.0, 0.0, 0.2, 1.5]], dtype=torch.float64)
    x = torch.tensor([[-9.0, -2.0, 4.0, 5.0], [0.0, 0.1, 7.0, 8.0]], dtype=torch.float64)
    return {"z": z, "x": x, "log_slope": (x - z).sin()}


def test_quantiles_are_a_map_within_their_knots_and_beyond() -> None:
    quantiles = Quantiles(3, torch.tensor([2, 0]), **table())
    z = 3 * torch.randn(200, 3, generator=source(), dtype=torch.float64)
    check_map(quantiles, z)
    torch.testing.assert_close(quantiles.to_x(z)[:, 1], z[:, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": torch.tensor([0, 0])}, "index must have shape"),
        ({"index": torch.tensor([0, 3])}, "index must be from 0 to 2"),
        ({"index": torch.tensor([0])}, r"z must have shape \(1, K\), got \(2, 4\)"),
        ({"x": torch.zeros(2, 4)}, "z and x must rise"),
        ({"x": torch.zeros(2, 3)}, r"x must have shape \(2, K\), got \(2, 3\)"),
        ({"log_slope": torch.full((2, 4), math.nan)}, "log_slope must be finite"),
        ({"z": [1.0]}, "coordinates.z must be a Tensor, got a list"),
    ],
)
def test_tables_that_are_none_are_refused(change: dict[str, object], message: str) -> None:
    state = {"kind": "quantiles", "dim": 3, "index": torch.tensor([2, 0]), **table(), **change}
    with pytest.raises(ValueError, match=message):
        load_coordinates(state)


def test_normal_coordinates_cost_one_look_each() -> None:
    target = FunctionEnergy(lambda x: (0.5 * (x - 2) ** 2 * torch.linspace(1, 9, 40)).sum(-1), 40)
    energy = FiniteEnergy(target, dtype=torch.float64)
    assert independent(energy, 40, source()) is None
    assert energy.evaluations < 40 * 400


def test_a_far_well_beside_a_parabola_is_not_overlooked() -> None:
    """Where walks have ended in it, however far it is."""
    near = FunctionEnergy(
        lambda x: (
            -torch.logaddexp(-0.5 * x.square().sum(-1), -0.5 * ((x - 40.0) / 2).square().sum(-1))
        ),
        1,
    )
    found = independent(FiniteEnergy(near, dtype=torch.float64), 1, source())
    assert found is not None


@pytest.mark.parametrize("constant", [0.0, 1e6])
def test_what_e_has_everywhere_does_not_hide_a_bend(constant: float) -> None:
    def quartic(x: Tensor) -> Tensor:
        return constant + (0.5 * x.square() + 0.05 * x**4).sum(-1)

    energy = FiniteEnergy(FunctionEnergy(quartic, 2), dtype=torch.float64)
    found = independent(energy, 2, source())
    assert isinstance(found, Quantiles) and found.index.tolist() == [0, 1]
