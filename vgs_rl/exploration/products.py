"""Coordinates that are independent of all others: their marginal densities by quadrature."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from vgs_rl.exploration.coordinates.base import Coordinates
from vgs_rl.exploration.coordinates.quantiles import Quantiles
from vgs_rl.exploration.funnels import origins
from vgs_rl.exploration.modes import Function, settled_hessian
from vgs_rl.samplers.mcmc.kernels import FiniteEnergy

MOST = 512  # dimensions
PAIRS = 12  # states at which a gradient's component is compared with that at others
SHIFT = 1.5  # in widths, of these states around where descents ended
FAR = 100.0  # in widths, of more of them, where other modes may be
TURNED = 1e-3  # of the longest component of a far gradient: turned axes are nearly right
SAME = 1e-2  # of its size, by which that component may differ
BATCH = 4_000_000  # numbers of a batch
NEAR, REACH = 1e-3, 1e8  # in widths, of the first look along a coordinate
PARABOLA = 1e-6  # of E, by which it may differ from one
LOOKS, ADDED = 14, 16  # more of them, and the places of each
BEYOND = 1e-3  # of the mass, about, that may lie where the look does not reach
DEPTH = 30.0  # nats below the highest density, where knots end
TURN = 8.0  # nats, that a standard deviation counts as much as
KNOTS, NODES = 2049, 2  # of a spline, so many that gradients are right, and of the quadrature
WORTH = 0.05  # of a log-slope within 4 standard deviations that is not Gaussian
CHECKED = 64  # states at which the result is held against the energy
EXACT = 1e-3  # nats a dimension, there


def independent(energy: FiniteEnergy, dim: int, generator: torch.Generator) -> Coordinates | None:
    """Coordinates in which those that are independent of all others are standard normal.

    Of E = e(x_i) + f(all others) the derivative by x_i is the same wherever the others are. Where
    that holds, E along x_i is the marginal density but for a constant, and one-dimensional
    quadrature gives its quantiles, in however many wells its mass is.

    Args:
        energy: E/tau.
        dim: D.
        generator: source of randomness.

    Returns:
        None where no coordinate is independent, where all that are have normal densities or tails
        beyond reach, or where D is above 512.
    """
    if not 1 <= dim <= MOST:
        return None
    starts = origins(energy, dim, generator)
    if not len(starts):
        return None
    width = settled_hessian(energy, starts[0]).diagonal().abs().clamp_min(1e-300).rsqrt()
    if not bool((width.isfinite() & (width > 0) & (width < 1e100)).all()):
        return None
    index = _alone(energy, starts, width, generator)
    if not len(index):
        return None
    x = _first_look(starts, width, index)
    height = _along(energy, starts[0], index, x)
    u = (x - starts[0, index].unsqueeze(1)) / width[index].unsqueeze(1)
    bent = ~_are_parabolas(u, height)
    index = index[bent]
    if not len(index):
        return None
    z, x, log_slope, usable = _tables(energy, starts[0], index, x[bent], height[bent])
    middle = torch.where(z.abs() < 4, log_slope, torch.nan)
    level = middle.nanmean(-1, keepdim=True)
    bent = (middle - level).abs().nan_to_num(0.0).amax(-1) > WORTH
    bent &= usable
    if not bool(bent.any()):
        return None
    found = Quantiles(dim, index[bent], z[bent], x[bent], log_slope[bent])
    return found if _holds(energy, found, starts[0], width, generator) else None


def _alone(energy: Function, starts: Tensor, width: Tensor, generator: torch.Generator) -> Tensor:
    """The coordinates by which the derivative of E is the same at other values of the others."""
    dim, device = len(width), width.device
    rows = torch.arange(4 * PAIRS, device=device) % len(starts)
    shape = (4 * PAIRS, dim)
    normal = torch.randn(shape, generator=generator, dtype=torch.float64, device=device)
    far = torch.logspace(math.log10(SHIFT), math.log10(FAR), 2 * PAIRS, dtype=torch.float64)
    shift = torch.cat([torch.full_like(far, SHIFT), far]).to(device).unsqueeze(1)
    states = starts[rows] + shift * width * normal
    order = torch.randperm(2 * PAIRS, generator=generator, device=device)
    order = torch.cat([order, order + 2 * PAIRS]).view(2, 2, PAIRS)
    here, there = (states[part.flatten()] for part in order.unbind(1))
    one = torch.eye(dim, dtype=torch.bool, device=device)
    # In row i of (D, D) coordinate i is that of the second state, and all others of the first.
    found = [energy(torch.where(one, b, a)) for a, b in zip(here, there, strict=True)]
    mixed = torch.stack([slopes.diagonal() for _, slopes in found]) * width
    within = torch.stack([heights.isfinite() for heights, _ in found])
    (first_height, first), (second_height, second) = energy(here), energy(there)
    within &= (first_height.isfinite() & second_height.isfinite()).unsqueeze(1)
    first, second = first * width, second * width
    off, size = (mixed - second).abs(), torch.maximum(mixed.abs(), second.abs())
    near = size[:PAIRS].amax(0).clamp_min(1e-300)
    same = (off[:PAIRS].amax(0) <= SAME * near) & near.isfinite()
    longest = torch.maximum(first.abs(), second.abs()).amax(1, keepdim=True)
    allowed = (SAME * size + TURNED * longest)[PAIRS:]
    off = torch.where(within, off, 0.0)[PAIRS:]  # E may end there
    return (same & (off <= allowed).all(0)).nonzero().flatten()


def _tables(
    energy: Function, centre: Tensor, index: Tensor, x: Tensor, height: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Knots z, x there and log dx/dz there of coordinates (N,), all (N, K), and which are usable.

    They begin from places x and heights there, both (N, M), all other coordinates being those of
    the centre (D,).

    Those are not whose knots do not rise, or whose tails have too much mass where the look ends.
    """

    def level(at: Tensor) -> Tensor:
        """-E at places (N, M) of each coordinate, all others being those of the centre."""
        return _along(energy, centre, index, at)

    for _ in range(LOOKS):
        travel = _travel(x, height)
        most = travel.topk(ADDED, dim=1).indices
        added = 0.5 * (x.gather(1, most) + x.gather(1, most + 1))
        x, order = torch.cat([x, added], 1).sort(1)
        height = torch.cat([height, level(added)], 1).gather(1, order)
    travel = _travel(x, height)
    path = torch.nn.functional.pad(travel.cumsum(1), (1, 0))
    x = _evenly(x, path, KNOTS)
    height = level(x)
    rule = np.polynomial.legendre.leggauss(NODES)
    nodes, weights = (torch.from_numpy(part).to(x) for part in rule)
    half = 0.5 * x.diff(dim=1)
    between = (x[:, :-1] + half).unsqueeze(-1) + half.unsqueeze(-1) * nodes
    inner = level(between.flatten(1)).view_as(between)
    top = torch.maximum(height.amax(1), inner.flatten(1).amax(1)).view(-1, 1)
    height = (height - top).clamp_min(-DEPTH)
    inner = (inner - top.unsqueeze(-1)).clamp_min(-DEPTH)
    mass = (inner.exp() * weights).sum(-1) * half
    mass = torch.cat([mass[:, :1], mass, mass[:, -1:]], 1)
    z, total = _quantiles(mass), mass.sum(1, keepdim=True)
    log_slope = -0.5 * z.square() - 0.5 * math.log(2 * math.pi) - height + total.log()
    usable = (z.isfinite() & log_slope.isfinite()).all(1) & (x.diff(dim=1) > 0).all(1)
    ends = torch.stack([x[:, 0], x[:, -1]], 1) - centre[index].unsqueeze(1)
    beyond = ends.abs() * height[:, [0, -1]].exp() / total  # of 1 / x^(1 + a), a times the mass
    usable &= (z.diff(dim=1) > 0).all(1) & (beyond < BEYOND).all(1)
    return z, x, log_slope, usable


def _first_look(starts: Tensor, width: Tensor, index: Tensor) -> Tensor:
    """Places of coordinates (N,), near and far from the first state and around all, (N, M)."""
    centre, scale = starts[0, index].unsqueeze(1), width[index].unsqueeze(1)
    ladder = torch.logspace(math.log10(NEAR), math.log10(REACH), 88, dtype=torch.float64)
    ladder = torch.cat([ladder, torch.linspace(0.25, 8, 32, dtype=torch.float64)]).to(centre)
    ladder = torch.cat([-ladder, ladder.new_zeros(1), ladder])
    ends = starts[:, index].T.unsqueeze(-1) + scale.unsqueeze(1) * ladder.new_tensor([-1, 0, 1])
    return torch.cat([centre + scale * ladder, ends.flatten(1)], 1).sort(1).values


def _are_parabolas(u: Tensor, height: Tensor) -> Tensor:
    """Whether heights (N, M) at places (N, M) in widths are parabolas, near and far, shape (N,).

    What E has in all places counts for nothing: only what it rises by says how exact it has to be.
    """
    height = height - height.gather(1, u.abs().argmin(1, keepdim=True))
    near = (u.abs() <= 8.0).to(u).unsqueeze(-1)
    powers = torch.stack([torch.ones_like(u), u, u.square()], -1)
    finite = height.nan_to_num(0.0, 0.0, 0.0).unsqueeze(-1)
    fitted = (powers @ torch.linalg.lstsq(near * powers, near * finite).solution)[..., 0]
    same: Tensor = (height - fitted).abs() <= PARABOLA * (1 + fitted.abs())
    return same.all(1)


def _along(energy: Function, centre: Tensor, index: Tensor, at: Tensor) -> Tensor:
    """-E at places (N, M) of coordinates (N,), the others being those of a state (D,)."""
    n, m = at.shape
    rows = max(BATCH // len(centre), 1)
    which = index.repeat_interleave(m)
    parts = []
    for some, place in zip(which.split(rows), at.flatten().split(rows), strict=True):
        states = centre.expand(len(some), -1).scatter(1, some.unsqueeze(1), place.unsqueeze(1))
        parts.append(-energy(states)[0])
    return torch.cat(parts).view(n, m)


def _travel(x: Tensor, height: Tensor) -> Tensor:
    """How much happens between places (N, M) at heights (N, M): nats and quantiles, (N, M - 1)."""
    height = (height - height.amax(1, keepdim=True)).clamp_min(-2 * DEPTH)
    top = torch.maximum(height[:, 1:], height[:, :-1])
    mass = x.diff(dim=1) * 0.5 * (height.exp()[:, 1:] + height.exp()[:, :-1])
    z = _quantiles(torch.nn.functional.pad(mass, (1, 1)))
    return torch.where(top > -DEPTH, height.diff(dim=1).abs().clamp_max(DEPTH) + TURN * z.diff(), 0)


def _quantiles(mass: Tensor) -> Tensor:
    """Of a standard normal, between intervals (N, M + 1) of these masses: shape (N, M)."""
    below, above = mass.cumsum(1)[:, :-1], mass.flip(1).cumsum(1).flip(1)[:, 1:]
    total = mass.sum(1, keepdim=True)
    share = (torch.minimum(below, above) / total).clamp(1e-300, 0.5)
    z = torch.special.ndtri(share)
    return torch.where(below < above, z, -z)


def _evenly(x: Tensor, path: Tensor, n: int) -> Tensor:
    """Places (N, n) between places (N, M), evenly along a path (N, M)."""
    at = torch.linspace(0, 1, n, dtype=x.dtype, device=x.device) * path[:, -1:]
    left = torch.searchsorted(path, at) - 1
    left[:, :1] = torch.searchsorted(path, at[:, :1].contiguous(), right=True) - 1
    left = left.clamp(0, path.shape[1] - 2)
    start, end = path.gather(1, left), path.gather(1, left + 1)
    share = ((at - start) / (end - start).clamp_min(1e-300)).clamp(0, 1)
    return x.gather(1, left) + share * (x.gather(1, left + 1) - x.gather(1, left))


def _holds(
    energy: Function,
    found: Quantiles,
    centre: Tensor,
    width: Tensor,
    generator: torch.Generator,
) -> bool:
    """Whether E is |z|²/2 in the mapped coordinates, wherever the others are."""
    dim = len(centre)
    shape = (CHECKED, dim)
    normal = torch.randn(shape, generator=generator, dtype=torch.float64, device=centre.device)
    mapped = torch.zeros(dim, dtype=torch.bool, device=centre.device)
    mapped[found.index] = True
    z = torch.where(mapped, normal, centre + SHIFT * width * normal)
    plain = torch.where(mapped, 0.0, z)
    x, log_det = found.with_log_det(torch.cat([z, plain]))
    level = (energy(x)[0] - log_det).view(2, -1)
    off = level[0] - level[1] - 0.5 * torch.where(mapped, z, 0.0).square().sum(-1)
    return bool(off.abs().nan_to_num(math.inf).max() < EXACT * dim)
