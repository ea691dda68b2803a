"""Coordinates of hierarchical models, from Hessians: before anything is explored."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vgs_rl.exploration.coordinates.base import Composed, Coordinates
from vgs_rl.exploration.coordinates.location_scale import SplineLocationScale
from vgs_rl.exploration.funnels import affine_frame, origins
from vgs_rl.exploration.modes import Function, hessian_at, newton, settled_hessian
from vgs_rl.samplers.mcmc.kernels import FiniteEnergy

MOST = 128  # dimensions
SHIFT = 0.5  # in widths, of the states that are compared
OWN = 0.3  # of the change by one coordinate, what all others may change at most
REACH = 1e5  # in widths, of the first look along the coordinate
LOOKS = 12  # along it, each nearer than the last
COARSE, KNOTS = 65, 129  # places of a look, and of the splines
DEPTH = 25.0  # nats by which the marginal density has fallen where the knots end
MIDDLE = 12.0  # and up to which what is not Gaussian counts
WHERE = 8.0  # and between which places axes are sought that the widths have in common
HESSIANS = 8  # of Newton's method at a place
STEP = 0.3  # of a local width, between the gradients of a Hessian
CONVERGED = 1e-2  # Newton's decrement
ACROSS = 0.5  # correlation that is left along axes in common
WORTH, WORTH_EXACT = 1.0, 0.05  # of a log-scale, or of a width, that makes a funnel or a bend
CHECKED = 64  # states at which the result is held against the energy
NEAR, FAR = 3.0, 8.0  # nats, and squared widths, that make another mode
EXACT, CLOSE = 1e-3, 0.03  # nats a dimension, in the median of these states


class _Given(NamedTuple):
    """All other coordinates at places of one: where E is least there, and how wide it is.

    Attributes:
        u: states in widths of the origin, ordered by the one coordinate, shape (K, D).
        precision: the Hessians, with 1 for the one coordinate, shape (K, D, D).
        level: log of the coordinate's marginal density by Laplace, up to a constant, shape (K,).
    """

    u: Tensor
    precision: Tensor
    level: Tensor


def given_one(energy: FiniteEnergy, dim: int, generator: torch.Generator) -> Coordinates | None:
    """Coordinates in which all but one are nearly standard normal, given that one.

    In a hierarchical model the scale of some effects is unknown itself: where it is small, they are
    all nearly equal, in a neck that particles of an exploration do not enter. Hessians enter it.
    The scale is found as the one coordinate that changes the curvature of all others by far more
    than these do; along it lie, place by place, the least E of all others, their widths, and the
    marginal density by Laplace's approximation. Splines join them. If E is a square in all others,
    as in a regression with unknown noise, all this is exact.

    Args:
        energy: E/tau.
        dim: D.
        generator: source of randomness.

    Returns:
        None where there is no such coordinate, where E is a square in all, where another mode is in
        sight, or where D is 1 or above 128.
    """
    if not 2 <= dim <= MOST:
        return None
    starts = origins(energy, dim, generator)
    for origin in starts:
        curvature = settled_hessian(energy, origin).diagonal()
        width = curvature.abs().clamp_min(1e-300).rsqrt()
        if not bool(width.isfinite().all() & (width > 0).all()):
            continue

        def in_widths(
            u: Tensor, origin: Tensor = origin, width: Tensor = width
        ) -> tuple[Tensor, Tensor]:
            value, slope = energy(origin + u * width)
            return value, slope * width

        for i in _candidates(in_widths, dim, generator):
            found = _along(in_widths, i, origin, width, generator)
            if found is not None and _one_mode(energy, found, starts):
                return found
    return None


def _candidates(energy: Function, dim: int, generator: torch.Generator) -> list[int]:
    """Coordinates that change the curvature of all others, as one direction shows it, the most."""
    shape, device = (2, dim), generator.device
    normal = torch.randn(shape, generator=generator, dtype=torch.float64, device=device)
    direction, shift = SHIFT * normal
    one = torch.eye(dim, dtype=torch.bool, device=device)
    directions = torch.where(one, 0.0, direction)  # row i leaves out coordinate i

    def curvature(u: Tensor) -> Tensor:
        """The Hessians at u (D, D) times the directions."""
        return torch.where(one, 0.0, energy(u + directions)[1] - energy(u - directions)[1])

    here = curvature(torch.zeros_like(directions))
    own = (curvature(torch.where(one, shift.sign(), 0.0)) - here).norm(dim=-1)
    others = (curvature(torch.where(one, 0.0, shift)) - here).norm(dim=-1)
    ratio = torch.where(own > 0, others / own, torch.inf).nan_to_num(torch.inf)
    order = ratio.argsort()[:2].tolist()
    return [i for i in order if float(ratio[i]) < OWN]


def _along(
    energy: Function, i: int, origin: Tensor, width: Tensor, generator: torch.Generator
) -> Coordinates | None:
    """The coordinates given coordinate i, in widths of a state (D,)."""
    dim = len(origin)
    ladder = torch.linspace(-1, 1, COARSE, dtype=torch.float64, device=origin.device)
    given = _given(energy, i, origin.new_zeros(COARSE, dim), REACH ** ladder.abs() * ladder)
    for _ in range(LOOKS):
        ends = None if given is None else _ends(given, i)
        if given is None or ends is None:
            return None
        if int((given.level > -DEPTH).sum()) > COARSE // 2:
            break
        path = given.u[:, i].contiguous()
        given = _given(energy, i, *_between(given.u, path, ends[0], ends[1], COARSE, i))
    else:
        return None
    for _ in range(2):  # knots where means and widths change
        others = [j for j in range(dim) if j != i]
        spread = given.precision.diagonal(dim1=1, dim2=2)[:, others].rsqrt()
        travel = spread.log().diff(dim=0).abs().amax(-1)
        travel = travel + (given.u[:, others].diff(dim=0).abs() / spread[1:]).amax(-1).log1p()
        travel = travel + given.level.diff().abs() / DEPTH + 4 / len(travel)
        path = torch.cat([travel.new_zeros(1), travel.cumsum(0)])
        given = _given(energy, i, *_between(given.u, path, 0.0, float(path[-1]), KNOTS, i))
        if given is None or len(given.u) < COARSE:
            return None
    axes = _axes(given, others)
    if axes is None:
        return None
    v, level = given.u[:, i], given.level
    mean = torch.linalg.solve(axes, given.u[:, others].T).T
    precision = given.precision[:, others][:, :, others]
    log_width = -0.5 * (axes * (precision @ axes)).sum(1).log()
    mass = level.exp() * torch.gradient(v)[0]
    mass = mass / mass.sum()
    middle = float(mass @ v)
    std = float((mass @ (v - middle).square()).sqrt())
    rest = mass @ mean
    factor = torch.zeros(dim, dim, dtype=v.dtype, device=v.device)
    factor[i, 0] = std
    factor[others, 1:] = axes
    centre = torch.zeros_like(origin)
    centre[i], centre[others] = middle, axes @ rest
    tables = torch.cat([factor.flatten(), centre, mean.flatten(), log_width.flatten()])
    if not bool(tables.isfinite().all()) or not std > 0:
        return None
    found = Composed(
        affine_frame(origin + width * centre, width.unsqueeze(1) * factor),
        SplineLocationScale((v - middle) / std, mean - rest, log_width),
    )
    off = _off(energy, found, origin, width, generator)
    exact = float(off.median()) < EXACT * dim
    inside = level > -MIDDLE
    funnel = float((log_width[inside].amax(0) - log_width[inside].amin(0)).max())
    bend = (mean - _line(v, mean, mass)) * (-log_width).exp()
    if exact:
        worth = max(funnel, float(bend[inside].abs().max())) > WORTH_EXACT
    else:
        worth = funnel > WORTH and float(off.median()) < CLOSE * dim
    return found if worth else None


def _between(
    u: Tensor, path: Tensor, low: float, high: float, n: int, i: int
) -> tuple[Tensor, Tensor]:
    """States (n, D) between states (K, D), evenly along a path (K,), and their coordinate i."""
    at = torch.linspace(low, high, n, dtype=u.dtype, device=u.device)
    left = (torch.searchsorted(path, at, right=True) - 1).clamp(0, len(path) - 2)
    share = ((at - path[left]) / (path[left + 1] - path[left])).clamp(0, 1).unsqueeze(-1)
    between = u[left] + share * (u[left + 1] - u[left])
    return between, between[:, i].clone()


def _given(energy: Function, i: int, u: Tensor, v: Tensor) -> _Given | None:
    """What is least at places v (K,), from states (K, D), around the densest, as far as it goes."""

    def held(u: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = energy(u)
        return value, slope.index_fill(1, u.new_tensor([i], dtype=torch.long), 0.0)

    def hessians(u: Tensor, step: Tensor) -> Tensor:
        found = hessian_at(held, u, step)
        found[:, i], found[:, :, i] = 0.0, 0.0
        found[:, i, i] = 1.0
        return found

    u = u.clone()
    u[:, i] = v
    step = torch.full_like(u, STEP)
    for turn in range(HESSIANS):
        precision = hessians(u, step)
        value, slope = held(u)
        root, info = torch.linalg.cholesky_ex(precision.nan_to_num(0.0, 0.0, 0.0))
        along = torch.linalg.solve_triangular(root, slope.unsqueeze(-1), upper=False)
        done = (info == 0) & (along.square().sum((1, 2)) < CONVERGED)
        if turn and bool(done.all()):
            break
        straight = u - torch.linalg.solve_triangular(root.mT, along, upper=True).squeeze(-1)
        downhill = (info == 0) & (held(straight)[0] <= value)
        u = torch.where(downhill.unsqueeze(-1), straight, newton(held, u, precision))
        curvature = precision.diagonal(dim1=1, dim2=2)
        wanted = STEP * curvature.clamp_min(1e-300).rsqrt()
        step = torch.where(curvature > 0, wanted, step).nan_to_num(STEP).clamp(1e-300, 1e300)
    level = -value - root.diagonal(dim1=1, dim2=2).log().sum(-1)
    usable = done & level.isfinite()
    if not bool(usable.any()):
        return None
    best = int(torch.where(usable, level, -torch.inf).argmax())
    holes = (~usable).nonzero().flatten()
    low = int(holes[holes < best].max()) + 1 if bool((holes < best).any()) else 0
    high = int(holes[holes > best].min()) if bool((holes > best).any()) else len(v)
    return _Given(u[low:high], precision[low:high], level[low:high] - level[best])


def _ends(given: _Given, i: int) -> tuple[float, float] | None:
    """The places between which the marginal density has its mass, or None if it ends elsewhere."""
    if len(given.u) < 3:
        return None
    high = (given.level > -DEPTH).nonzero().flatten()
    first, last = int(high[0]) - 1, int(high[-1]) + 1
    if (first < 0 and given.level[0] > -MIDDLE) or (
        last >= len(given.u) and given.level[-1] > -MIDDLE
    ):
        return None
    first, last = max(first, 0), min(last, len(given.u) - 1)
    return float(given.u[first, i]), float(given.u[last, i])


def _axes(given: _Given, others: list[int]) -> Tensor | None:
    """Columns (D - 1, D - 1) along which the precisions are nearly diagonal, if there are any."""
    precision = given.precision[:, others][:, :, others]
    dense = (given.level > -WHERE).nonzero().flatten()
    a, b = int(dense[0]), int(dense[-1])
    root, info = torch.linalg.cholesky_ex(precision[a])
    if int(info):
        return None
    inverse = torch.linalg.inv(root)
    axes = inverse.T @ torch.linalg.eigh(inverse @ precision[b] @ inverse.T)[1]
    inside = axes.T @ precision[dense] @ axes
    size = inside.diagonal(dim1=1, dim2=2)
    if not bool((axes.T @ precision @ axes).diagonal(dim1=1, dim2=2).gt(0).all()):
        return None
    across = inside / (size.unsqueeze(1) * size.unsqueeze(2)).sqrt()
    return axes if float((across - torch.eye(len(axes)).to(across)).abs().max()) < ACROSS else None


def _line(v: Tensor, y: Tensor, mass: Tensor) -> Tensor:
    """The weighted linear regression of y (K, C) on v (K,), at v."""
    gap = v - mass @ v
    slope = (mass * gap) @ y / (mass @ gap.square())
    return mass @ y + gap.unsqueeze(-1) * slope


def _off(
    energy: Function,
    coordinates: Coordinates,
    origin: Tensor,
    width: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """How far E is from |z|²/2 in all but the first coordinate at random states, shape (64,)."""
    shape = (CHECKED, len(origin))
    z = torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device)
    plain = torch.nn.functional.pad(z[:, :1], (0, len(origin) - 1))
    x, log_det = coordinates.with_log_det(torch.cat([z, plain]))
    level = (energy((x - origin) / width)[0] - log_det).view(2, -1)
    return (level[0] - level[1] - 0.5 * z[:, 1:].square().sum(-1)).abs().nan_to_num(math.inf)


def _one_mode(energy: FiniteEnergy, coordinates: Coordinates, x: Tensor) -> bool:
    """Whether no state (B, D) downhill is as dense as the middle though far from it."""
    z = coordinates.to_z(x)
    placed, log_det = coordinates.with_log_det(torch.cat([z, torch.zeros_like(z[:1])]))
    level = (energy(placed)[0] - log_det).nan_to_num(math.inf)
    dim = z.shape[1]
    dense = level[:-1] - level[-1] < 0.5 * dim + NEAR
    far = z[:, 1:].square().sum(-1).nan_to_num(math.inf) > 4 * (dim + FAR)
    return not bool((dense & far).any())
