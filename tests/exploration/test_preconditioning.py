"""Badly scaled targets get coordinates of unit curvature; others keep theirs."""

import math

import pytest
import torch

from vgs_rl import FunctionEnergy
from vgs_rl.envs import GMM9, ManyWell
from vgs_rl.exploration import AffineMap, MappedEnergy, preconditioner
from vgs_rl.exploration.preconditioning import unit_mode
from vgs_rl.samplers.mcmc.kernels import FiniteEnergy


def source() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("power", [2, 4])
def test_of_a_skewed_bowl_it_is_the_inverse_root_of_the_hessian(power: int) -> None:
    """Also where the bowl is quartic far out, so that Newton's method takes many steps."""
    root = torch.tensor([[1e-3, 0.0, 0.0], [0.4, 1.0, 0.0], [300.0, 2.0, 1e3]]).double()
    inverse = torch.linalg.inv(root)

    def energy(x: torch.Tensor) -> torch.Tensor:
        u = (x - 50.0) @ inverse.to(x).T
        return 0.5 * u.square().sum(-1) + 0.1 * u.abs().pow(power).sum(-1)

    found = preconditioner(
        FiniteEnergy(FunctionEnergy(energy, 3), dtype=torch.float64), 3, source()
    )
    assert isinstance(found, AffineMap)
    curvature = 1.2 if power == 2 else 1.0
    expected = root @ root.T / curvature
    scale = expected.diagonal().sqrt()
    gap = (found.factor @ found.factor.T - expected) / (scale[:, None] * scale)
    assert float(gap.abs().max()) < 0.05  # it ends within a tenth of a nat of the minimum
    assert float((inverse @ (found.shift - 50.0)).abs().max()) < 0.5


def test_wells_of_all_widths_are_found_through_a_rotation() -> None:
    target = ManyWell(8)
    axes, _ = torch.linalg.qr(torch.randn(8, 8, generator=source()).double())
    factor = axes * torch.logspace(-2, 2, 8, dtype=torch.float64)
    inverse = torch.linalg.inv(factor)
    skewed = FunctionEnergy(lambda x: target(x @ inverse.to(x).T), 8)
    found = preconditioner(FiniteEnergy(skewed, dtype=torch.float64), 8, source())
    assert found is not None
    one = torch.eye(8, dtype=torch.float64)
    linear = (found.to_x(one) - found.to_x(torch.zeros_like(one))).T
    widths = torch.linalg.svdvals(inverse @ linear)
    assert float(widths.max() / widths.min()) < 6  # wells are five times narrower than normals


@pytest.mark.parametrize("condition", [1.0, 1e4])
def test_a_product_gets_its_own_axes(condition: float) -> None:
    target = ManyWell(12)
    axes, _ = torch.linalg.qr(torch.randn(12, 12, generator=source()).double())
    half = 0.5 * math.log10(condition)
    factor = axes * torch.logspace(-half, half, 12, dtype=torch.float64)
    inverse = torch.linalg.inv(factor @ axes)
    skewed = FunctionEnergy(lambda x: target(x @ inverse.to(x).T), 12)
    found = preconditioner(FiniteEnergy(skewed, dtype=torch.float64), 12, source())
    assert found is not None
    # The energy is a sum of functions of one coordinate each: its mixed differences are 0.
    z = torch.randn(1, 12, generator=source(), dtype=torch.float64)
    one = torch.eye(12, dtype=torch.float64)
    both = (one.unsqueeze(0) + one.unsqueeze(1)).view(-1, 12)
    at = (skewed(found.to_x(z + step)) for step in (both, one, torch.zeros_like(one)))
    sums, singles, nothing = at
    mixed = sums.view(12, 12) - singles - singles.unsqueeze(1) + nothing[0]
    mixed.fill_diagonal_(0.0)
    assert float(mixed.abs().max()) < 1e-4 * float(singles.std())


@pytest.mark.parametrize(
    "energy",
    [
        GMM9(),
        FunctionEnergy(lambda x: x.sum(-1), 3),
        FunctionEnergy(lambda x: x.square().sum(-1), 1),
    ],
    ids=["round modes", "a slope", "one dimension"],
)
def test_where_it_does_not_pay_there_is_none(energy: FunctionEnergy) -> None:
    finite = FiniteEnergy(energy, dtype=torch.float64)
    assert preconditioner(finite, energy.dim, source()) is None
    assert math.isfinite(float(finite(torch.zeros(1, energy.dim).double())[0]))


def test_of_300_dimensions_it_is_that_of_one_minimum() -> None:
    """And the mode at 0 in its coordinates has the mass of the Gaussian."""
    dim = 300
    axes = torch.linalg.qr(torch.randn(dim, dim, generator=source(), dtype=torch.float64))[0]
    width = torch.logspace(-1, 1, dim, dtype=torch.float64)
    precision = (axes / width.square()) @ axes.T
    target = FunctionEnergy(lambda x: 0.5 * (((x - 3) @ precision.to(x)) * (x - 3)).sum(-1), dim)
    found = preconditioner(FiniteEnergy(target, dtype=torch.float64), dim, source())
    assert isinstance(found, AffineMap)
    covariance = found.factor @ found.factor.T
    torch.testing.assert_close(covariance @ precision, torch.eye(dim).double(), atol=1e-4, rtol=0)
    mapped = MappedEnergy(target, found, dtype=torch.float64)
    mode = unit_mode(FiniteEnergy(mapped, dtype=torch.float64), "cpu")
    truth = 0.5 * dim * math.log(2 * math.pi) + float(width.log().sum())
    assert float(mode.log_mass) == pytest.approx(truth, abs=0.1)


def test_a_round_bowl_of_300_dimensions_keeps_its_coordinates() -> None:
    target = FunctionEnergy(lambda x: 0.5 * x.square().sum(-1), 300)
    finite = FiniteEnergy(target, dtype=torch.float64)
    assert preconditioner(finite, 300, source()) is None
    assert preconditioner(finite, 300, source(), lambda: True) is None
