"""Modes are found with their widths, and each once."""

import math

import pytest
import torch

from vgs_rl import FunctionEnergy
from vgs_rl.envs import GMM9, FortyModes, Gaussian, ManyWell
from vgs_rl.exploration import (
    GaussianReference,
    JoinedReference,
    MixtureReference,
    find_modes,
    find_reference,
)
from vgs_rl.exploration import modes as modes_module
from vgs_rl.exploration.islands import starts_of_walks
from vgs_rl.exploration.modes import Modes, joined_modes, minimum
from vgs_rl.exploration.reference import descend
from vgs_rl.samplers.mcmc.kernels import FiniteEnergy
from vgs_rl.starts import Mixture


def source() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def walks(energy: FiniteEnergy, dim: int, std: float) -> tuple[torch.Tensor, torch.Tensor]:
    starts = std * torch.randn(400, dim, generator=source(), dtype=torch.float64)
    return descend(energy, starts)


def test_every_mode_of_a_mixture_is_found_once_with_its_mass() -> None:
    target = GMM9()
    energy = FiniteEnergy(target, dtype=torch.float64)
    found = find_modes(energy, *walks(energy, 2, 8.0), torch.full((2,), 8.0).double())
    assert found is not None and len(found) == 9
    means = target.means.double()
    near = torch.cdist(found.x, means)
    assert float(near.min(-1).values.max()) < 0.1
    assert sorted(near.argmin(-1).tolist()) == list(range(9))
    assert target.mode_probabilities is not None
    share = target.mode_probabilities[near.argmin(-1)]
    torch.testing.assert_close(found.log_mass.exp(), share, atol=0.03, rtol=0)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_modes_covariance_is_that_of_its_gaussian(scale: float) -> None:
    matrix = scale * torch.tensor([[1.0, 0.0], [0.9, 0.1]], dtype=torch.float64)
    precision = torch.linalg.inv(matrix @ matrix.T)
    target = FunctionEnergy(lambda x: 0.5 * ((x @ precision.to(x)) * x).sum(-1), 2)
    energy = FiniteEnergy(target, dtype=torch.float64)
    found = find_modes(energy, *walks(energy, 2, 3 * scale), torch.full((2,), 3 * scale).double())
    assert found is not None and len(found) == 1
    torch.testing.assert_close(found.covariance[0] / scale**2, matrix @ matrix.T / scale**2)
    truth = math.log(2 * math.pi) + float(matrix.logdet())
    assert float(found.log_mass) == pytest.approx(truth, abs=1e-6)


def test_a_slope_without_end_has_no_mode() -> None:
    energy = FiniteEnergy(FunctionEnergy(lambda x: x.sum(-1), 3), dtype=torch.float64)
    ends, heights = walks(energy, 3, 1.0)
    assert find_modes(energy, ends, heights, torch.ones(3).double()) is None


def test_a_reference_around_modes_is_normalised_and_drawn_from() -> None:
    wide = GaussianReference(torch.zeros(2), torch.full((2,), 6.0))
    full = torch.tensor([[[0.5, 0.3], [0.3, 0.4]], [[1.0, -0.2], [-0.2, 0.3]]]).double()
    means = torch.tensor([[3.0, 0.0], [-4.0, 2.0]]).double()
    known = Mixture(weights=torch.tensor([0.3, 0.7]).double(), means=means, covariances=full)
    reference = JoinedReference(MixtureReference(known, 1.3), wide, 0.6)
    axis = torch.linspace(-40, 40, 1_601, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    density = (-reference.level(grid)[0]).exp()
    cell = float(axis[1] - axis[0]) ** 2
    assert float(density.sum()) * cell == pytest.approx(1.0, abs=1e-4)
    drawn = reference.sample(100_000, source())
    mean = (density.unsqueeze(-1) * grid).sum(0) * cell
    torch.testing.assert_close(drawn.mean(0), mean, atol=0.05, rtol=0)
    x = drawn[:50].clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(reference.level(x)[0].sum(), x)
    torch.testing.assert_close(reference.level(drawn[:50])[1], slope)
    assert reference.labels(means).tolist() == [0, 1]


def test_the_mean_of_a_gaussian_is_its_only_mode() -> None:
    target = Gaussian()
    energy = FiniteEnergy(target, dtype=torch.float64)
    dim = target.dim
    found = find_modes(energy, *walks(energy, dim, 5.0), torch.full((dim,), 5.0).double())
    assert found is not None and len(found) == 1


def test_two_searches_together_know_each_mode_once() -> None:
    energy = FiniteEnergy(GMM9(), dtype=torch.float64)
    found = find_modes(energy, *walks(energy, 2, 8.0), torch.full((2,), 8.0).double())
    assert found is not None
    first, last = (
        Modes(x=found.x[rows], covariance=found.covariance[rows], log_mass=found.log_mass[rows])
        for rows in (slice(0, 7), slice(3, 9))
    )
    both = joined_modes([first, last])
    assert len(both) == 9
    torch.testing.assert_close(both.x, found.x)


def test_walks_of_several_widths_end_in_every_one_of_many_modes() -> None:
    target, generator = FortyModes(50), source()
    energy = FiniteEnergy(target, dtype=torch.float64)
    wide = find_reference(energy, 50, generator)

    def reached(starts: torch.Tensor) -> int:
        ends, _heights = descend(energy, starts)
        return len(torch.cdist(ends, target.means.double()).argmin(-1).unique())

    assert reached(wide.sample(512, generator)) < 40
    assert reached(starts_of_walks(wide, 512, generator)) == 40


def test_of_too_many_modes_none_is_named() -> None:
    """Those within 30 nats of the lowest that walks found may be one, of 2^64."""
    energy, generator = FiniteEnergy(ManyWell(128), dtype=torch.float64), source()
    wide = find_reference(energy, 128, generator)
    starts = starts_of_walks(wide, 512, generator)
    assert find_modes(energy, *descend(energy, starts), starts.std(0)) is None


def skewed_pair(dim: int) -> tuple[FiniteEnergy, torch.Tensor]:
    """Two Gaussians of one skewed covariance, 12 widths apart, and their places."""
    normal = torch.randn(dim, dim, generator=source(), dtype=torch.float64)
    axes = torch.linalg.qr(normal)[0]
    width = torch.logspace(-0.5, 0.5, dim, dtype=torch.float64)
    precision = (axes / width.square()) @ axes.T
    places = torch.stack([-6 * width[0] * axes[:, 0], 6 * width[0] * axes[:, 0]])

    def level(x: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        gap = x - place.to(x)
        return 0.5 * ((gap @ precision.to(x)) * gap).sum(-1)

    target = FunctionEnergy(
        lambda x: -torch.logaddexp(-level(x, places[0]) - 1.0, -level(x, places[1])), dim
    )
    return FiniteEnergy(target, dtype=torch.float64), places


def test_modes_are_the_same_where_each_is_searched_for_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dim, (energy, places) = 12, skewed_pair(12)
    scale = torch.full((dim,), 8.0).double()
    ends = walks(energy, dim, 8.0)
    together = find_modes(energy, *ends, scale)
    monkeypatch.setattr(modes_module, "ONE_BY_ONE", 1)
    alone = find_modes(energy, *ends, scale)
    assert together is not None and alone is not None and len(alone) == 2
    # Each ends within a tenth of a nat of the minimum.
    torch.testing.assert_close(alone.x, together.x, atol=0.1, rtol=0)
    torch.testing.assert_close(alone.covariance, together.covariance, atol=1e-3, rtol=0)
    torch.testing.assert_close(alone.log_mass, together.log_mass, atol=0.1, rtol=0)
    assert float(torch.cdist(alone.x, places).min(1).values.max()) < 0.1


def test_in_many_dimensions_a_mode_costs_few_hessians_and_a_known_one_none() -> None:
    dim, (energy, _) = 160, skewed_pair(160)
    scale = torch.full((dim,), 8.0).double()
    ends = walks(energy, dim, 8.0)
    before = energy.evaluations
    found = find_modes(energy, *ends, scale)
    assert found is not None and len(found) == 2
    hessians = (energy.evaluations - before) / (2 * dim)
    before = energy.evaluations
    again = find_modes(energy, *ends, scale, found)
    assert again is not None
    torch.testing.assert_close(again.x, found.x)
    assert (energy.evaluations - before) / (2 * dim) < hessians - 3


def test_a_known_mode_where_no_walk_ends_is_not_named() -> None:
    dim, (energy, places) = 160, skewed_pair(160)
    scale = torch.full((dim,), 8.0).double()
    known = find_modes(energy, *walks(energy, dim, 8.0), scale)
    assert known is not None and len(known) == 2
    near = places[0] + 0.1 * torch.randn(20, dim, generator=source(), dtype=torch.float64)
    found = find_modes(energy, *descend(energy, near), scale, known)
    assert found is not None and len(found) == 1
    assert float((found.x[0] - places[0]).norm()) < 1e-2


def test_a_minimum_is_found_over_a_saddle_and_not_where_there_is_none() -> None:
    wells = FunctionEnergy(lambda x: (x.square() - 1).square().sum(-1), 3)
    energy = FiniteEnergy(wells, dtype=torch.float64)
    step = torch.full((3,), 1e-5).double()
    found = minimum(energy, torch.tensor([0.1, -0.2, 0.3]).double(), step)
    assert found is not None
    torch.testing.assert_close(found.x[0], torch.tensor([1.0, -1, 1]).double(), atol=0.05, rtol=0)
    slope = FiniteEnergy(FunctionEnergy(lambda x: x.sum(-1), 3), dtype=torch.float64)
    assert minimum(slope, torch.zeros(3).double(), step) is None
    assert minimum(energy, torch.ones(3).double(), step, stop=lambda: True) is None


def test_where_newton_leads_nowhere_few_hessians_are_taken() -> None:
    """Above 128 dimensions, where each is dear."""
    dim = 130
    slope = FiniteEnergy(FunctionEnergy(lambda x: x.sum(-1), dim), dtype=torch.float64)
    ends, heights = walks(slope, dim, 1.0)
    before = slope.evaluations
    assert find_modes(slope, ends, heights, torch.ones(dim).double()) is None
    assert slope.evaluations - before < 3 * 41 * (2 * dim + 20)


def test_a_mode_is_no_less_exact_for_a_start_at_0() -> None:
    """The first differences there are so small that their Hessian has few digits."""
    energy = FiniteEnergy(
        FunctionEnergy(lambda x: 0.5 * x.square().sum(-1) + 1e5, 4), dtype=torch.float64
    )
    found = minimum(energy, torch.zeros(4).double(), torch.full((4,), 1e-13).double())
    assert found is not None
    torch.testing.assert_close(found.covariance[0], torch.eye(4).double(), atol=1e-6, rtol=0)
