"""Coordinates of unit curvature, from Hessians at a few minima: badly scaled targets need these."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vgs_rl.exploration.coordinates.affine import AffineMap, Rotation
from vgs_rl.exploration.coordinates.base import Composed, Coordinates
from vgs_rl.exploration.modes import (
    FLAT,
    HESSIANS,
    Modes,
    decrements,
    hessian_at,
    local_step,
    minimum,
    newton,
)
from vgs_rl.exploration.reference import GRID, descend
from vgs_rl.samplers.mcmc.kernels import FiniteEnergy

POINTS = 8  # minima that are looked for
MOST_OF_SEVERAL = 256  # dimensions up to which Hessians at several are taken
MOST_OF_ONE = 2048  # and up to which one is
COMMUTE = 1e-4  # off the diagonal, in norms of a Hessian, where it counts as diagonal
WORTH = 30.0  # ratio of widths from which on it pays


def preconditioner(
    energy: FiniteEnergy,
    dim: int,
    generator: torch.Generator,
    stop: Callable[[], bool] | None = None,
) -> Coordinates | None:
    """A map in whose coordinates the mean inverse Hessian at the lowest minima is the identity.

    Walks downhill from states of all sizes are too slow where widths differ by orders of
    magnitude, and so is tempering from a round density. Newton's method is not. A density that is a
    product along other axes gets coordinates along those. Above 256 dimensions it is the Hessian at
    one minimum.

    Args:
        energy: E/tau.
        dim: D.
        generator: source of randomness.
        stop: asked before each Hessian above 256 dimensions, if given; True ends it without a map.

    Returns:
        None where the widths are within a factor of 30 and no product is found, D is above 2,048,
        or no minimum was found.
    """
    if dim < 2 or dim > MOST_OF_ONE:
        return None
    device, few = generator.device, 4 if dim <= MOST_OF_SEVERAL else 1
    shape = (few * len(GRID), dim)
    normal = torch.randn(shape, generator=generator, dtype=torch.float64, device=device)
    starts = GRID.to(device).repeat_interleave(few).unsqueeze(-1) * normal
    ends, heights = descend(energy, starts, steps=50)
    if not bool(heights.isfinite().any()):
        return None
    x = ends[heights.argsort()[:POINTS]]
    if dim > MOST_OF_SEVERAL:
        return _of_one(energy, x[0], stop or (lambda: False))
    x, hessian, flat = _minima(energy, x)
    if not bool(flat.any()):
        return None
    covariance = torch.linalg.inv(hessian[flat]).mean(0)
    width = torch.linalg.eigvalsh(covariance)
    factor, info = torch.linalg.cholesky_ex(covariance)
    if int(info):
        return None
    found = AffineMap(x[flat].mean(0), factor)
    product = along_product(energy, found, x[flat], generator)
    if product is not None:
        return product
    return found if float((width[-1] / width[0]).sqrt()) > WORTH else None


def _of_one(energy: FiniteEnergy, x: Tensor, stop: Callable[[], bool]) -> Coordinates | None:
    """Coordinates of unit curvature at the minimum to which one state (D,) leads."""
    step = 1e-5 * x.abs().mean().clamp_min(1e-8).expand_as(x)
    mode = minimum(energy, x, step, stop)
    if mode is None:
        return None
    std = mode.covariance[0].diagonal().sqrt()
    correlation = mode.covariance[0] / (std * std.unsqueeze(-1))
    if float(correlation.fill_diagonal_(0.0).abs().max()) > COMMUTE:
        factor, info = torch.linalg.cholesky_ex(mode.covariance[0])
        return None if int(info) else AffineMap(mode.x[0], factor)
    return AffineMap(mode.x[0], std) if float(std.max() / std.min()) > WORTH else None


def unit_mode(energy: FiniteEnergy, device: torch.device | str) -> Modes:
    """The mode at 0 of an energy in coordinates of unit curvature there.

    Args:
        energy: E/tau in these coordinates.
        device: where states live.
    """
    dim = energy.energy.dim
    x = torch.zeros(1, dim, dtype=torch.float64, device=device)
    log_mass = 0.5 * dim * math.log(2 * math.pi) - energy(x)[0]
    return Modes(x=x, covariance=torch.eye(dim).to(x).unsqueeze(0), log_mass=log_mass)


def along_product(
    energy: FiniteEnergy, coordinates: AffineMap, minima: Tensor, generator: torch.Generator
) -> Coordinates | None:
    """Coordinates along which exp(-E/tau) is a product, if there are any.

    The Hessians of E = Σ_i e_i(b_i · x) are Bᵀ D(x) B, with a diagonal D. So they commute in
    coordinates where the mean of the inverses of some is the identity: one rotation makes all of
    them diagonal. It is found from a sum of a few at random states, and held against others.

    Args:
        energy: E/tau.
        coordinates: in which the widths of the target are near 1.
        minima: some minima, shape (M, D).
        generator: source of randomness.

    Returns:
        None where Hessians do not commute, or are diagonal in x or z without a rotation.
    """

    def hessians(at: AffineMap, z: Tensor) -> Tensor:
        def along(z: Tensor) -> tuple[Tensor, Tensor]:
            value, slope = energy(at.to_x(z))
            return value, at.gradient(slope)

        return hessian_at(along, z, torch.full_like(z, 1e-3))

    # Differences are exact to more digits in these coordinates than in those of x.
    inverses, singular = torch.linalg.inv_ex(hessians(coordinates, coordinates.to_z(minima)))
    root, info = torch.linalg.cholesky_ex(inverses.mean(0))
    if bool(singular.any()) or int(info):
        return None
    exact = AffineMap(coordinates.shift, coordinates.factor @ root)
    shape, device = (2 * POINTS, minima.shape[1]), minima.device
    z = torch.randn(shape, generator=generator, dtype=torch.float64, device=device)
    found = hessians(exact, z)
    sizes = found.flatten(1).norm(dim=1)
    if not bool((sizes.isfinite() & (sizes > 0)).all()):
        return None
    found = found / sizes.view(-1, 1, 1)
    if _mixed(found) < COMMUTE:
        return None
    share = torch.rand(POINTS, generator=generator, dtype=torch.float64, device=device)
    axes = torch.linalg.eigh(torch.tensordot(share, found[:POINTS], dims=1))[1]
    if _mixed(axes.T @ found[POINTS:] @ axes) > COMMUTE:
        return None
    return Composed(exact, Rotation(axes))


def _mixed(matrices: Tensor) -> float:
    """Largest entry off the diagonal of matrices (B, D, D)."""
    diagonal = torch.diag_embed(matrices.diagonal(dim1=1, dim2=2))
    return float((matrices - diagonal).abs().max())


def _minima(energy: FiniteEnergy, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where Newton's method leads, the Hessians there, and which rows are minima."""
    step = 1e-5 * x.abs().mean(-1, keepdim=True).clamp_min(1e-8).expand_as(x)
    flat = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    hessian = hessian_at(energy, x, step)
    for _ in range(HESSIANS):
        step = local_step(hessian, step)
        x = newton(energy, x, hessian)
        hessian = hessian_at(energy, x, step)
        flat = decrements(energy, x, hessian) < FLAT
        if bool(flat.all()):
            break
    return x, hessian, flat
