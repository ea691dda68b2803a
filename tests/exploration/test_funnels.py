"""A funnel is undone from Hessians, however it was turned and stretched, and nothing else is."""

import math

import pytest
import torch
from torch import Tensor

from vgs_rl import Energy, FunctionEnergy
from vgs_rl.envs import FortyModes, Funnel, Gaussian, ManyWell, StudentT
from vgs_rl.exploration import AffineMap, MappedEnergy, common_scale
from vgs_rl.samplers.mcmc.kernels import FiniteEnergy


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def placed(energy: Energy, condition: float, seed: int) -> MappedEnergy:
    """The energy under a random affine map."""
    dim = energy.dim
    left = torch.linalg.qr(torch.randn(dim, dim, generator=source(seed)).double())[0]
    half = 0.5 * math.log10(condition)
    widths = torch.logspace(-half, half, dim, dtype=torch.float64)
    root = torch.linalg.cholesky(left @ torch.diag(widths.square()) @ left.T)
    shift = 100 * torch.randn(dim, generator=source(seed)).double()
    return MappedEnergy(energy, AffineMap(shift, root), dtype=torch.float64)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("condition", [1.0, 1e4])
@pytest.mark.parametrize(("dim", "variance"), [(5, 1.0), (10, 9.0), (40, 16.0)])
def test_a_funnel_is_a_standard_normal_there(
    dim: int, variance: float, condition: float, seed: int
) -> None:
    energy = placed(Funnel(dim, variance), condition, seed)
    found = common_scale(FiniteEnergy(energy, dtype=torch.float64), dim, source())
    assert found is not None
    z = torch.randn(200, dim, generator=source(), dtype=torch.float64)
    x, log_det = found.with_log_det(z)
    gap = energy(x) - log_det - 0.5 * z.square().sum(-1)
    # Log Z is 0, and that of the map as well as of the normal is exact.
    assert float((gap - 0.5 * dim * math.log(2 * math.pi)).abs().max()) < 1e-2


def test_what_sets_the_scale_need_not_be_gaussian() -> None:
    def energy(x: Tensor) -> Tensor:
        v, y = x[:, 1] + x[:, 2], torch.cat([x[:, :1], x[:, 2:]], 1)
        return v.abs().pow(3) + 0.5 * (-v).exp() * y.square().sum(-1) + 2.5 * v

    finite = FiniteEnergy(FunctionEnergy(energy, 6), dtype=torch.float64)
    found = common_scale(finite, 6, source())
    assert found is not None
    z = torch.randn(100, 6, generator=source(), dtype=torch.float64)
    flat = torch.nn.functional.pad(z[:, :1], (0, 5))
    levels = [finite(found.to_x(each))[0] - found.with_log_det(each)[1] for each in (z, flat)]
    torch.testing.assert_close(
        levels[0] - levels[1], 0.5 * z[:, 1:].square().sum(-1), atol=1e-2, rtol=1e-3
    )


def two_scales(x: Tensor) -> Tensor:
    scales = torch.stack([x[:, 0], x[:, 1]], 1).repeat_interleave(3, 1)
    rest = 0.5 * (x[:, 2:].square() * (-scales).exp() + scales).sum(-1)
    return rest + 0.5 * x[:, :2].square().sum(-1)


def another_width(x: Tensor) -> Tensor:
    return Funnel(8)(x[:, :8]) + 0.5 * x[:, 8].square() + 0.1 * x[:, 8] * x[:, 0]


@pytest.mark.parametrize(
    "energy",
    [
        Gaussian(torch.zeros(8), torch.arange(1.0, 9.0)),
        StudentT(10),
        ManyWell(8),
        FortyModes(10),
        FunctionEnergy(two_scales, 8),
        FunctionEnergy(another_width, 9),
        FunctionEnergy(lambda x: x.sum(-1), 6),
        FunctionEnergy(lambda x: 0.0 * x.sum(-1), 6),
        FunctionEnergy(lambda x: torch.full_like(x[:, 0], torch.inf), 6),
        FunctionEnergy(lambda x: x[:, :2].square().sum(-1), 6),
        FunctionEnergy(lambda x: Funnel(6)(x) + 0.1 * (8 * x).cos().sum(-1), 6),
        Funnel(4),
    ],
    ids=[
        "a Gaussian",
        "heavy tails",
        "wells",
        "modes",
        "two scales",
        "one without the scale",
        "a slope",
        "nothing",
        "nowhere finite",
        "flat directions",
        "a rough funnel",
        "too few dimensions",
    ],
)
def test_what_is_no_funnel_of_one_scale_keeps_its_coordinates(energy: Energy) -> None:
    finite = FiniteEnergy(energy, dtype=torch.float64)
    assert common_scale(finite, energy.dim, source()) is None
