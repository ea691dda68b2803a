"""Modes of an energy: where descents end, polished by Newton's method, with their local widths.

Coordinates of unit curvature come from Hessians at a few of them: badly scaled targets need these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vgs_rl.exploration.coordinates.affine import AffineMap, Rotation
from vgs_rl.exploration.coordinates.base import Composed, Coordinates
from vgs_rl.exploration.reference import GRID, descend
from vgs_rl.samplers.kernels import FiniteEnergy

MOST_MODES = 64  # more of them are no description of a density any more
MOST_PRODUCTS = 12_800  # modes times dimensions: so many gradients are taken for Hessians
MOST_CUBES = 8_000_000_000  # modes times D³: so long eigenvalues of Hessians take
ROUNDS = 4
POINTS = 8  # minima that are looked for to precondition a target
HESSIANS = 40  # along the way to each
MOST_DIMENSIONS = 256  # up to which Hessians are taken for that
COMMUTE = 1e-4  # off the diagonal, in norms of a Hessian, where it counts as diagonal
WORTH = 30.0  # ratio of widths from which on it pays


Function = Callable[[Tensor], tuple[Tensor, Tensor]]  # E and ∇E at x (B, D)


@dataclass(frozen=True, kw_only=True)
class Modes:
    """Local minima of E/tau that are known.

    Attributes:
        x: shape (M, D), float64.
        covariance: inverse Hessians there, shape (M, D, D).
        log_mass: logs of their masses in Laplace's approximation, shape (M,).
    """

    x: Tensor
    covariance: Tensor
    log_mass: Tensor

    def __len__(self) -> int:
        return len(self.x)


def find_modes(energy: FiniteEnergy, ends: Tensor, heights: Tensor, scale: Tensor) -> Modes | None:
    """The modes among the ends of descents.

    Args:
        energy: E/tau.
        ends: where descents ended, shape (B, D).
        heights: E/tau there, shape (B,).
        scale: rough width of the region they lie in, per coordinate, shape (D,).

    Returns:
        None where there is none with a positive definite Hessian, or too many to name.
    """
    dim = ends.shape[1]
    most = min(MOST_MODES, MOST_PRODUCTS // dim, MOST_CUBES // dim**3)
    low = heights <= heights.min() + 5.0 * dim + 20.0
    x = _spread_out(ends[low], heights[low], scale, 2 * most)
    if most < 1 or not len(x):
        return None
    step = 1e-5 * scale.expand_as(x)
    for _ in range(ROUNDS):
        hessian = hessian_at(energy, x, step)
        step = local_step(hessian, step)
        x = newton(energy, x, hessian)
    hessian = hessian_at(energy, x, step)
    value, _ = energy(x)
    width, axes = torch.linalg.eigh(hessian)
    keep = decrements(energy, x, hessian) < 0.1
    x, value, width, axes = x[keep], value[keep], width[keep], axes[keep]
    if not len(x):
        return None
    log_mass = 0.5 * dim * math.log(2 * math.pi) - 0.5 * width.log().sum(-1) - value
    chosen = _distinct(x, hessian[keep], log_mass)
    if len(chosen) > most:  # of so many that walks find, they are a sample, however few are heavy
        return None
    chosen = chosen[log_mass[chosen] > log_mass.max() - 30.0]
    spread = (axes[chosen] / width[chosen].unsqueeze(1)) @ axes[chosen].mT
    return Modes(x=x[chosen], covariance=spread, log_mass=log_mass[chosen])


def joined_modes(parts: Sequence[Modes]) -> Modes:
    """The modes of several searches, each once."""
    x = torch.cat([part.x for part in parts])
    covariance = torch.cat([part.covariance for part in parts])
    log_mass = torch.cat([part.log_mass for part in parts])
    chosen = _distinct(x, torch.linalg.inv(covariance), log_mass)
    return Modes(x=x[chosen], covariance=covariance[chosen], log_mass=log_mass[chosen])


def _spread_out(x: Tensor, heights: Tensor, scale: Tensor, most: int) -> Tensor:
    """At most so many of the states, each far from those before it: the lowest comes first."""
    z = x / scale
    chosen = [int(heights.argmin())]
    apart = (z - z[chosen[0]]).norm(dim=-1)
    while len(chosen) < min(most, len(x)):
        furthest = int(apart.argmax())
        if float(apart[furthest]) < 1e-6:
            break
        chosen.append(furthest)
        apart = torch.minimum(apart, (z - z[furthest]).norm(dim=-1))
    return x[chosen]


def hessian_at(energy: Function, x: Tensor, step: Tensor) -> Tensor:
    """Hessians at x (B, D) by central differences of the gradient, symmetric: (B, D, D)."""
    batch, dim = x.shape
    shifts = torch.diag_embed(step)  # (B, D, D): one row for each coordinate
    up = energy((x.unsqueeze(1) + shifts).view(-1, dim))[1].view(batch, dim, dim)
    down = energy((x.unsqueeze(1) - shifts).view(-1, dim))[1].view(batch, dim, dim)
    hessian = (up - down) / (2 * step).unsqueeze(-1)
    return 0.5 * (hessian + hessian.mT)


def eigen(hessian: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (B, D) and axes (B, D, D) of symmetric matrices, what is not finite being 0.

    Where the numbers of a matrix are too far apart for LAPACK, they are those of its diagonal.
    """
    hessian = hessian.nan_to_num(0.0, 0.0, 0.0)
    try:
        width, axes = torch.linalg.eigh(hessian)
        return width, axes
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        if len(hessian) == 1:
            return hessian.diagonal(dim1=1, dim2=2), torch.eye(hessian.shape[1]).to(hessian)[None]
    parts = [eigen(each) for each in hessian.split(1)]
    return torch.cat([width for width, _ in parts]), torch.cat([axes for _, axes in parts])


def decrements(energy: FiniteEnergy, x: Tensor, hessian: Tensor) -> Tensor:
    """Newton's decrement at x (B, D), by how much E may fall still, shape (B,).

    It is infinite where E is not finite or the Hessian (B, D, D) is not positive definite.
    """
    value, slope = energy(x)
    width, axes = eigen(hessian)
    along = torch.einsum("bi,bij->bj", slope, axes)
    decrement = (along.square() / width.abs().clamp_min(1e-300)).sum(-1)
    return torch.where((width > 0).all(-1) & value.isfinite(), decrement, torch.inf)


def local_step(hessian: Tensor, step: Tensor) -> Tensor:
    """A hundredth of the local width per coordinate, where it is known."""
    curvature = hessian.diagonal(dim1=1, dim2=2)
    wanted = 1e-2 * curvature.clamp_min(1e-300).rsqrt()
    return torch.where(curvature > 0, wanted.clamp(1e-3 * step, 1e3 * step), step)


def settled_hessian(energy: Function, x: Tensor) -> Tensor:
    """The Hessian (D, D) at one state x (D,), by steps that suit it."""
    at = x.unsqueeze(0)
    step = 1e-5 * at.abs().mean().clamp_min(1e-8).expand_as(at)
    hessian = hessian_at(energy, at, step)
    for _ in range(3):
        step = local_step(hessian, step)
        hessian = hessian_at(energy, at, step)
    return hessian[0]


def newton(energy: Function, x: Tensor, hessian: Tensor) -> Tensor:
    """A few damped Newton steps with one Hessian; uphill directions are followed downhill."""
    width, axes = eigen(hessian)
    width = width.abs()
    width = torch.maximum(width, 1e-10 * width.amax(-1, keepdim=True)).clamp_min(1e-300)
    value, slope = energy(x)
    damping = torch.ones_like(value).unsqueeze(-1)
    for _ in range(6):
        along = torch.einsum("bi,bij->bj", slope, axes) / width
        proposal = x - damping * torch.einsum("bj,bij->bi", along, axes)
        new_value, new_slope = energy(proposal)
        better = (new_value <= value).unsqueeze(-1)
        x, slope = torch.where(better, proposal, x), torch.where(better, new_slope, slope)
        value = torch.where(better.squeeze(-1), new_value, value)
        damping = torch.where(better, (2 * damping).clamp_max(1.0), 0.25 * damping)
    return x


def _distinct(x: Tensor, hessian: Tensor, log_mass: Tensor) -> Tensor:
    """Indices of states that are not the same mode, the heaviest of each."""
    order = log_mass.argsort(descending=True)
    chosen: list[int] = []
    for i in order.tolist():
        gap = x[i] - x[chosen]
        if chosen:
            squares = torch.einsum("ci,cij,cj->c", gap, hessian[chosen], gap)
            if float(squares.min()) < 1e-2 * x.shape[1]:
                continue
        chosen.append(i)
    return torch.tensor(chosen, device=x.device)


def preconditioner(
    energy: FiniteEnergy, dim: int, generator: torch.Generator
) -> Coordinates | None:
    """A map in whose coordinates the mean inverse Hessian at the lowest minima is the identity.

    Walks downhill from states of all sizes are too slow where widths differ by orders of
    magnitude, and so is tempering from a round density. Newton's method is not. A density that is a
    product along other axes gets coordinates along those.

    Args:
        energy: E/tau.
        dim: D.
        generator: source of randomness.

    Returns:
        None where the widths are within a factor of 30 and no product is found, D is above 256, or
        no minimum was found.
    """
    if dim < 2 or dim > MOST_DIMENSIONS:
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
    if int(info):
        return None
    found = AffineMap(x[flat].mean(0), factor)
    product = along_product(energy, found, x[flat], generator)
    if product is not None:
        return product
    return found if float((width[-1] / width[0]).sqrt()) > WORTH else None


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
        flat = decrements(energy, x, hessian) < 0.1
        if bool(flat.all()):
            break
    return x, hessian, flat
