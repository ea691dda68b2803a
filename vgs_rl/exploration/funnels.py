"""Coordinates that undo a funnel, from Hessians at a few states: before anything is explored."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vgs_rl.exploration.coordinates.affine import AffineMap, Rotation
from vgs_rl.exploration.coordinates.base import Composed, Coordinates
from vgs_rl.exploration.coordinates.location_scale import MOST_LOG, ROOT, LocationScale
from vgs_rl.exploration.modes import Function, hessian_at, settled_hessian
from vgs_rl.exploration.reference import GRID, descend
from vgs_rl.samplers.mcmc.kernels import FiniteEnergy

LEAST, MOST = 5, 128  # dimensions
POINTS = 6  # states whose Hessians are compared with that of a first
ORIGINS = 4  # first states that are tried
EXACT = 1e-4  # of a norm, where differences of gradients count as 0
SLOPE = 0.05  # of a log-scale in standard deviations of what it depends on, that is worth it
CHECKED = 64  # states at which the result is held against the energy


def common_scale(energy: FiniteEnergy, dim: int, generator: torch.Generator) -> Coordinates | None:
    """Coordinates in which all but the first are standard normal, if one of them scales all.

    In a funnel, E = f(v) + ½ e^{-a v} |y|² with (v, y) = B x + m and any regular B, Hessians at two
    states differ by a factor and a matrix of rank two. So factors and row spaces of a few
    differences say, to the digits of a finite difference, what v is and how fast it scales. The
    states of an exploration know it only where they are, and in a skewed funnel these end early.

    Args:
        energy: E/tau.
        dim: D.
        generator: source of randomness.

    Returns:
        None where E is no such function, a state at which it is not being enough to say so, or
        where D is below 5, from which on a rank of two stands out, or above 128.
    """
    if not LEAST <= dim <= MOST:
        return None
    for origin in origins(energy, dim, generator):
        found = _from(energy, origin, generator)
        if found is not None:
            return found
    return None


def origins(energy: FiniteEnergy, dim: int, generator: torch.Generator) -> Tensor:
    """A few states (B, D) downhill of random ones, the lowest first; none where E is not finite."""
    device = generator.device
    shape = (len(GRID), dim)
    normal = torch.randn(shape, generator=generator, dtype=torch.float64, device=device)
    ends, heights = descend(energy, GRID.to(device).unsqueeze(-1) * normal, steps=20)
    order = heights.argsort()[: int(heights.isfinite().sum())]
    ranks = torch.linspace(0, 0.75, ORIGINS) * len(order)
    return ends[order[ranks.long().to(device)]] if len(order) else ends[:0]


def _from(energy: FiniteEnergy, origin: Tensor, generator: torch.Generator) -> Coordinates | None:
    """The same, from Hessians around one state (D,)."""
    dim = len(origin)
    frame = _unit_curvature(energy, origin)
    if frame is None:
        return None
    along = _in(energy, origin, frame)
    shape = (POINTS, dim)
    z = torch.randn(shape, generator=generator, dtype=torch.float64, device=origin.device)
    z = torch.cat([torch.zeros_like(z[:1]), 0.5 * z])
    hessians = hessian_at(along, z, torch.full_like(z, 1e-3))
    if not bool(hessians.isfinite().all()):
        return None
    first, others = hessians[0], hessians[1:]
    solved, info = torch.linalg.solve_ex(first.expand_as(others), others)
    if bool(info.any()):
        return None
    ratios = torch.linalg.eigvals(solved).real.median(-1).values
    sizes, rows = torch.linalg.svd(others - ratios[:, None, None] * first)[1:]
    scale = others.flatten(1).norm(dim=1)
    if bool((ratios <= 0).any()) or bool((sizes[:, 2] > EXACT * scale).any()):
        return None
    # v's gradient lies in all of the row spaces.
    shared, vectors = torch.linalg.eigh((rows[:, :2].mT @ rows[:, :2]).mean(0))
    normal, logs = vectors[:, -1], ratios.log()
    heights = z[1:] @ normal
    rate = -float(heights @ logs / heights.square().sum())
    off = (logs + rate * heights).abs().max()
    if float(shared[-1]) < 1 - EXACT or float(shared[-2]) > 0.99 or float(off) > 1e-3:
        return None
    centre, factor = origin, frame
    for _ in range(3):  # where the first states are far out, the next place has more digits
        placed = _placed(along, first, normal, rate)
        if placed is None:
            return None
        shift, axes, slope = placed
        centre, factor = centre + factor @ shift, factor @ axes
        along = _in(energy, centre, factor)
        first = torch.eye(dim, dtype=z.dtype, device=z.device)
        normal, rate = first[0], 2 * slope
    return _checked(energy, centre, factor, slope, generator)


def _in(energy: FiniteEnergy, centre: Tensor, factor: Tensor) -> Function:
    """E and its gradient as functions of z, where x = m + L z."""

    def along(z: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = energy(centre + z @ factor.T)
        return value, slope @ factor

    return along


def _unit_curvature(energy: FiniteEnergy, x: Tensor) -> Tensor | None:
    """A matrix (D, D) in whose coordinates around x the Hessian has eigenvalues 1 and -1."""
    hessian, zero = settled_hessian(energy, x), torch.zeros_like(x).unsqueeze(0)
    frame = torch.eye(len(x), dtype=x.dtype, device=x.device)
    for again in range(3):
        if again:
            hessian = hessian_at(_in(energy, x, frame), zero, torch.full_like(zero, 1e-3))[0]
        if not bool(hessian.isfinite().all()):
            return None
        width, axes = torch.linalg.eigh(hessian)
        largest = width.abs().max()
        if not float(largest) > 0:
            return None
        frame = frame @ (axes * width.abs().clamp_min(1e-12 * largest).rsqrt())
    return frame


def _placed(
    along: Function, hessian: Tensor, normal: Tensor, rate: float
) -> tuple[Tensor, Tensor, float] | None:
    """Centre (D,), axes (D, D) and slope of the log-scale, v's standard deviation being the unit.

    Args:
        along: E and its gradient.
        hessian: at 0, shape (D, D).
        normal: v's gradient, of length 1, shape (D,).
        rate: a, by which the log-curvature of y falls with v.
    """
    dim = len(normal)
    basis = torch.linalg.qr(torch.cat([normal.unsqueeze(1), torch.eye(dim).to(normal)], 1))[0]
    across = basis[:, 1:]
    curvature = across.T @ hessian @ across
    lower, info = torch.linalg.cholesky_ex(curvature)
    if int(info) or abs(rate) < 1e-6:
        return None
    root = torch.linalg.inv(lower).T

    def middle(v: float) -> Tensor:
        """The least E at one v."""
        z = v * normal
        for _ in range(3):
            slope = along(z.unsqueeze(0))[1][0]
            step = torch.linalg.solve(curvature, across.T @ slope)
            z = z - across @ step * math.exp(rate * v)
        return z

    middles = torch.stack([middle(0.0), middle(1 / rate)])
    axis = (middles[1] - middles[0]) * rate
    # Along the axis the log density of v is -E - ½ log det of y's curvature, up to a constant.
    v = torch.linspace(-60, 60, 481, dtype=torch.float64, device=normal.device) / rate
    level = along(middles[0] + v.unsqueeze(1) * axis)[0] - 0.5 * (dim - 1) * rate * v
    least = int(level.nan_to_num(torch.inf).argmin())
    near = level[max(least - 1, 0) : least + 2]
    if len(near) < 3 or not bool(near.isfinite().all()):
        return None
    width = float(v[1] - v[0])
    bend, tilt = float(near[0] - 2 * near[1] + near[2]), float(near[2] - near[0])
    if not bend > 0:
        return None
    std, at = abs(width) * bend**-0.5, float(v[least]) - 0.5 * width * tilt / bend
    wide = across @ root * math.exp(0.5 * rate * at)
    centre = middles[0] + at * axis
    return centre, torch.cat([std * axis.unsqueeze(1), wide], 1), 0.5 * rate * std


def _checked(
    energy: FiniteEnergy, centre: Tensor, factor: Tensor, slope: float, generator: torch.Generator
) -> Coordinates | None:
    """The coordinates, if E is |z|²/2 in all but the first of them."""
    dim = len(centre)
    if not SLOPE < abs(slope) < MOST_LOG or not bool(factor.isfinite().all()):
        return None
    affine = affine_frame(centre, factor)
    parents = torch.tensor([ROOT] + [0] * (dim - 1), device=centre.device)
    log_scale = torch.zeros(dim, 3, dtype=torch.float64, device=centre.device)
    log_scale[1:, 1] = slope
    found = Composed(affine, LocationScale(parents, torch.zeros_like(log_scale), log_scale))
    shape = (CHECKED, dim)
    z = torch.randn(shape, generator=generator, dtype=torch.float64, device=centre.device)
    plain = torch.nn.functional.pad(z[:, :1], (0, dim - 1))
    both = torch.cat([z, plain])
    x, log_det = found.with_log_det(both)
    level = (energy(x)[0] - log_det).view(2, -1)
    off = (level[0] - level[1] - 0.5 * z[:, 1:].square().sum(-1)).abs().max()
    return found if float(off) < 1e-3 * dim else None


def affine_frame(centre: Tensor, factor: Tensor) -> Coordinates:
    """X = m + L z with any regular L (D, D), as a rotation before a triangular map."""
    turn, lower = torch.linalg.qr(factor.T)
    sign = lower.diagonal().sign()
    return Composed(AffineMap(centre, (lower * sign.unsqueeze(1)).T), Rotation((turn * sign).T))
