"""Coordinates of unit curvature, from Hessians at a few minima: what badly scaled targets need."""

from __future__ import annotations

import torch
from torch import Tensor

from vgs_rl.exploration.affine import AffineMap
from vgs_rl.exploration.modes import decrements, hessian_at, local_step, newton
from vgs_rl.exploration.reference import GRID, descend
from vgs_rl.samplers.kernels import FiniteEnergy

POINTS = 8  # minima that are looked for
ROUNDS = 40  # Hessians along the way to each
MOST = 128  # dimensions up to which Hessians are taken
WORTH = 30.0  # ratio of widths from which on it pays


def preconditioner(energy: FiniteEnergy, dim: int, generator: torch.Generator) -> AffineMap | None:
    """A map in whose coordinates the mean inverse Hessian at the lowest minima is the identity.

    Walks downhill from states of all sizes are too slow where widths differ by orders of
    magnitude, and so is tempering from a round density. Newton's method is not.

    Args:
        energy: E/tau.
        dim: D.
        generator: source of randomness.

    Returns:
        None where the widths are within a factor of 30, D is above 128, or no minimum was found.
    """
    if dim < 2 or dim > MOST:
        return None
    device = generator.device
    shape = (4 * len(GRID), dim)
    normal = torch.randn(shape, generator=generator, dtype=torch.float64, device=device)
    starts = GRID.to(device).repeat_interleave(4).unsqueeze(-1) * normal
    ends, heights = descend(energy, starts, steps=50)
    if not bool(heights.isfinite().any()):
        return None
    x = ends[heights.argsort()[:POINTS]]
    x, hessian, flat = _minima(energy, x)
    if not bool(flat.any()):
        return None
    covariance = torch.linalg.inv(hessian[flat]).mean(0)
    width = torch.linalg.eigvalsh(covariance)
    factor, info = torch.linalg.cholesky_ex(covariance)
    if int(info) or not float((width[-1] / width[0]).sqrt()) > WORTH:
        return None
    return AffineMap(x[flat].mean(0), factor)


def _minima(energy: FiniteEnergy, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where Newton's method leads, the Hessians there, and which rows are minima."""
    step = 1e-5 * x.abs().mean(-1, keepdim=True).clamp_min(1e-8).expand_as(x)
    flat = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    hessian = hessian_at(energy, x, step)
    for _ in range(ROUNDS):
        step = local_step(hessian, step)
        x = newton(energy, x, hessian)
        hessian = hessian_at(energy, x, step)
        flat = decrements(energy, x, hessian) < 0.1
        if bool(flat.all()):
            break
    return x, hessian, flat
