"""Modes of an energy: where descents end, polished by Newton's method, with their local widths."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vgs_rl.exploration.coordinates.affine import AffineMap
from vgs_rl.exploration.reference import descend
from vgs_rl.samplers.mcmc.kernels import FiniteEnergy

MOST_MODES = 64  # more of them are no description of a density any more
MOST_PRODUCTS = 12_800  # modes times dimensions: so many gradients are taken for Hessians
MOST_CUBES = 20_000_000_000  # modes times D³: so long eigenvalues of Hessians take
ONE_BY_ONE = 128  # dimensions above which a walk's end costs a Hessian only if no known mode's is
ROUNDS = 4
HESSIANS = 40  # along the way to a minimum
FAILURES = 3  # searches that come to no minimum, after which no more are made
HALVES = 12  # of a Newton step, that are tried
FLAT = 0.1  # nats by which E may fall still at a minimum
SAME = 1e-2  # squared widths a dimension, between states of one mode
TO_A_MODE = 40  # steps downhill, in a mode's coordinates


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

    def at(self, index: Tensor) -> Modes:
        """Those at an index, shape (N,)."""
        return Modes(
            x=self.x[index], covariance=self.covariance[index], log_mass=self.log_mass[index]
        )


def find_modes(
    energy: FiniteEnergy,
    ends: Tensor,
    heights: Tensor,
    scale: Tensor,
    known: Modes | None = None,
) -> Modes | None:
    """The modes among the ends of descents.

    Args:
        energy: E/tau.
        ends: where descents ended, shape (B, D).
        heights: E/tau there, shape (B,).
        scale: rough width of the region they lie in, per coordinate, shape (D,).
        known: modes found before, whose Hessians need not be taken again. Those where no descent
            ended are not among the result.

    Returns:
        None where there is none with a positive definite Hessian, or too many to name.
    """
    dim = ends.shape[1]
    most = min(MOST_MODES, MOST_PRODUCTS // dim, MOST_CUBES // dim**3)
    low = heights <= heights.min() + 5.0 * dim + 20.0
    x = _spread_out(ends[low], heights[low], scale, 2 * most)
    if most < 1 or not len(x):
        return None
    if dim <= ONE_BY_ONE:
        parts = _polished(energy, x, 1e-5 * scale.expand_as(x))
    else:
        parts = _one_by_one(energy, x, scale, known, most)
    if not parts:
        return None
    found = joined_modes(parts)
    if len(found) > most:  # of so many that walks find, they are a sample, however few are heavy
        return None
    return found.at((found.log_mass > found.log_mass.max() - 30.0).nonzero().flatten())


def _polished(energy: FiniteEnergy, x: Tensor, step: Tensor) -> list[Modes]:
    """The minima to which Newton's method leads from states (B, D), none or one set of them."""
    dim = x.shape[1]
    for _ in range(ROUNDS):
        hessian = hessian_at(energy, x, step)
        step = local_step(hessian, step)
        x = newton(energy, x, hessian)
    hessian = hessian_at(energy, x, step)
    value, _ = energy(x)
    width, axes = torch.linalg.eigh(hessian)
    keep = decrements(energy, x, hessian) < FLAT
    x, value, width, axes = x[keep], value[keep], width[keep], axes[keep]
    if not len(x):
        return []
    log_mass = 0.5 * dim * math.log(2 * math.pi) - 0.5 * width.log().sum(-1) - value
    return [Modes(x=x, covariance=(axes / width.unsqueeze(1)) @ axes.mT, log_mass=log_mass)]


def _one_by_one(
    energy: FiniteEnergy, x: Tensor, scale: Tensor, known: Modes | None, most: int
) -> list[Modes]:
    """The minima to which states (B, D) lead, with one search for each of them.

    States that follow the gradient in coordinates of a mode's unit curvature, and come to it, need
    no Hessian of their own.
    """
    found: list[Modes] = []
    for index in range(0 if known is None else len(known)):
        assert known is not None
        mode = known.at(torch.tensor([index], device=x.device))
        here = _leads_to(energy, x, mode)
        found += [mode] if bool(here.any()) else []
        x = x[~here]
    failed = 0
    while len(x) and len(found) <= most and failed < FAILURES:
        reached = minimum(energy, x[0], 1e-5 * scale)
        x = x[1:]
        if reached is None:
            failed += 1
            continue
        found.append(reached)
        x = x[~_leads_to(energy, x, reached)]
    return found


def _leads_to(energy: FiniteEnergy, x: Tensor, mode: Modes) -> Tensor:
    """Whether states (B, D) come to a mode in its own coordinates, shape (B,)."""
    factor, info = torch.linalg.cholesky_ex(mode.covariance[0])
    if int(info) or not len(x):
        return torch.zeros(len(x), dtype=torch.bool, device=x.device)
    coordinates = AffineMap(mode.x[0], factor)

    def along(z: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = energy(coordinates.to_x(z))
        return value, coordinates.gradient(slope)

    z, _ = descend(along, coordinates.to_z(x), steps=TO_A_MODE)
    return z.square().sum(-1) < SAME * x.shape[1]


def minimum(
    energy: FiniteEnergy, x: Tensor, step: Tensor, stop: Callable[[], bool] = lambda: False
) -> Modes | None:
    """The minimum to which Newton's method leads from one state.

    Args:
        energy: E/tau.
        x: the state, shape (D,).
        step: of the differences, at first, shape (D,).
        stop: asked before each Hessian; True ends it without a minimum.

    Returns:
        None where it comes to none.
    """
    dim, at, step = len(x), x.unsqueeze(0), step.unsqueeze(0)
    halves = 0.5 ** torch.arange(HALVES, dtype=x.dtype, device=x.device).unsqueeze(-1)
    for _ in range(HESSIANS):
        if stop():
            return None
        hessian = hessian_at(energy, at, step)
        suited = local_step(hessian, step)
        settled = bool((suited < 10 * step).all())  # a Hessian of tiny steps has few digits
        step = suited
        value, slope = energy(at)
        factor, info = torch.linalg.cholesky_ex(hessian[0].nan_to_num(0.0, 0.0, 0.0))
        if int(info):  # uphill directions are followed downhill
            width, axes = eigen(hessian)
            width = width[0].abs()
            width = torch.maximum(width, 1e-10 * width.max()).clamp_min(1e-300)
            move = axes[0] @ ((slope[0] @ axes[0]) / width)
        else:
            move = torch.cholesky_solve(slope.T, factor)[:, 0]
            if settled and bool(slope[0] @ move < FLAT / 10) and bool(value.isfinite()):
                log_det = 2 * factor.diagonal().log().sum()
                log_mass = 0.5 * dim * math.log(2 * math.pi) - 0.5 * log_det - value
                return Modes(
                    x=at, covariance=torch.cholesky_inverse(factor)[None], log_mass=log_mass
                )
        tried = at - halves * move
        heights, _ = energy(tried)
        if not float(heights.min()) <= float(value):
            return None
        at = tried[heights.argmin()].unsqueeze(0)
    return None


def joined_modes(parts: Sequence[Modes]) -> Modes:
    """The modes of several searches, each once."""
    x = torch.cat([part.x for part in parts])
    covariance = torch.cat([part.covariance for part in parts])
    log_mass = torch.cat([part.log_mass for part in parts])
    joined = Modes(x=x, covariance=covariance, log_mass=log_mass)
    return joined.at(_distinct(x, torch.linalg.inv(covariance), log_mass))


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
            if float(squares.min()) < SAME * x.shape[1]:
                continue
        chosen.append(i)
    return torch.tensor(chosen, device=x.device)
