"""Adaptive tempered sequential Monte Carlo with preconditioned Hamiltonian moves.

Densities γ_β ∝ reference^(1-β) exp(-β E) lead from a reference (β = 0) to the target (β = 1). The
next β is the largest that keeps an effective sample size of one half. Particles are resampled
there and move by Hamiltonian trajectories, until their levels have forgotten where they were. Each
half moves in coordinates that the other half's covariance whitens. Reference: Del Moral, Doucet and
Jasra, JRSS B 68 (2006). Adaptation makes the estimate of log Z consistent, not unbiased (Beskos et
al., 2016).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vgs_rl.exploration.coordinates.affine import AffineMap
from vgs_rl.exploration.reference import Reference
from vgs_rl.samplers.mcmc.kernels import FiniteEnergy, Point, acceptance_rate, hamiltonian
from vgs_rl.weights import (
    effective_sample_size,
    log_mean_weight,
    log_z_estimate,
    systematic_resample,
)

SHORTEST = 0.03  # of a trajectory's step, in units of the adapted one
FIRST_STEP, LEAPFROG_STEPS = 0.5, 5  # of a trajectory, in whitened coordinates
MOST_MOVES = 15  # trajectories at a level
FORGOTTEN = 0.2  # correlation of levels, before and after, at which moves are enough


@dataclass(frozen=True, kw_only=True)
class Island:
    """What one run of tempered SMC found.

    Attributes:
        x: particles, shape (n, D), float64.
        log_weight: their log-weights, shape (n,), with mean Z; equal where the run is complete.
        energy: E/tau there, shape (n,).
        gradient: its gradient, shape (n, D).
        levels: number of temperatures.
        acceptance: mean acceptance rate of trajectories.
        memory: largest correlation, over levels, of particles' levels before and after the moves.
        ancestors: share of the first particles that have descendants.
        complete: whether β reached 1.
    """

    x: Tensor
    log_weight: Tensor
    energy: Tensor
    gradient: Tensor
    levels: int
    acceptance: float
    memory: float
    ancestors: float
    complete: bool

    @property
    def log_z(self) -> float:
        """Log of the mean weight, the estimate of log Z; -inf where every weight is 0."""
        return float(log_mean_weight(self.log_weight))


class Tempered:
    """γ_β as a density of u, x = coordinates(u)."""

    def __init__(
        self, energy: FiniteEnergy, reference: Reference, beta: float, coordinates: AffineMap
    ) -> None:
        self.energy, self.reference, self.beta = energy, reference, beta
        self.geometry, self.coordinates = energy.geometry, coordinates

    def __call__(self, x: Tensor) -> Point:
        """See :class:`~vgs_rl.samplers.mcmc.kernels.Density`."""
        u, x = x, self.coordinates.to_x(x)
        return self._point(u, x, *self.energy(x))

    def at(self, x: Tensor, energy: Tensor, gradient: Tensor) -> Point:
        """The point where E/tau and its gradient at x (B, D) are known."""
        return self._point(self.coordinates.to_z(x), x, energy, gradient)

    def _point(self, u: Tensor, x: Tensor, energy: Tensor, gradient: Tensor) -> Point:
        level, slope = energy, gradient
        if self.beta < 1:  # the target itself may be where the reference's density is 0
            wide, wide_slope = self.reference.level(x)
            level = (1 - self.beta) * wide + self.beta * energy
            slope = (1 - self.beta) * wide_slope + self.beta * gradient
        slope = self.coordinates.gradient(slope)
        return Point(u, level.nan_to_num(torch.inf), slope, energy, gradient)


def tempered_smc(
    energy: FiniteEnergy,
    reference: Reference,
    n: int,
    generator: torch.Generator,
    *,
    leapfrog_steps: int = LEAPFROG_STEPS,
    most_moves: int = MOST_MOVES,
    forgotten: float = FORGOTTEN,
    most_levels: int = 400,
    stop: Callable[[], bool] = lambda: False,
) -> Island:
    """Runs tempered SMC from a reference to exp(-E/tau).

    Args:
        energy: the target.
        reference: where it starts.
        n: particles.
        generator: source of randomness.
        leapfrog_steps: of each trajectory.
        most_moves: trajectories at a level, at most.
        forgotten: correlation of levels, before and after, at which moves are enough.
        most_levels: temperatures, at most.
        stop: asked before each trajectory; True ends the run, incomplete unless β is 1 by then.
    """
    x = reference.sample(n, generator)
    e, gradient = energy(x)
    beta, log_z, step, levels = 0.0, 0.0, FIRST_STEP, 0
    rates, memories = [], [0.0]
    ancestor = torch.arange(n, device=x.device)
    while beta < 1.0 and levels < most_levels and not stop():
        ratio = reference.level(x)[0] - e
        rise = _next_rise(ratio, 1.0 - beta)
        beta = 1.0 if rise >= 1.0 - beta else beta + rise
        increment = rise * ratio
        log_z += float(log_z_estimate(increment))
        chosen = systematic_resample(increment, n, generator)
        x, e, gradient, ancestor = x[chosen], e[chosen], gradient[chosen], ancestor[chosen]
        x, e, gradient, step, rate, memory = _moved(
            energy,
            reference,
            beta,
            (x, e, gradient),
            generator,
            step,
            leapfrog_steps,
            most_moves,
            forgotten,
            stop,
        )
        rates += rate
        memories.append(memory)
        levels += 1
    rest = torch.zeros_like(e) if beta >= 1.0 else (1.0 - beta) * (reference.level(x)[0] - e)
    return Island(
        x=x,
        log_weight=log_z + rest,
        energy=e,
        gradient=gradient,
        levels=levels,
        acceptance=sum(rates) / max(len(rates), 1),
        memory=max(memories),
        ancestors=len(ancestor.unique()) / n,
        complete=beta >= 1.0,
    )


def moved(
    energy: FiniteEnergy, reference: Reference, x: Tensor, generator: torch.Generator
) -> Tensor:
    """States of exp(-E/tau), moved until they have forgotten where in their modes they were.

    What was fitted to states fits these too well to be judged by them. Moved ones are as new, but
    for the modes' shares.

    Args:
        energy: the target.
        reference: whose modes shape the moves.
        x: states, shape (B, D), B at least 2.
        generator: source of randomness.

    Returns:
        Shape (B, D).
    """
    at = (x, *energy(x))
    return _moved(
        energy, reference, 1.0, at, generator, FIRST_STEP, LEAPFROG_STEPS, MOST_MOVES, FORGOTTEN
    )[0]


def _moved(
    energy: FiniteEnergy,
    reference: Reference,
    beta: float,
    at: tuple[Tensor, Tensor, Tensor],
    generator: torch.Generator,
    step: float,
    leapfrog_steps: int,
    most_moves: int,
    forgotten: float,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Tensor, Tensor, Tensor, float, list[float], float]:
    """States, E and ∇E of γ_β after moves, the step, rates of acceptance and what is remembered."""
    x, e, gradient = at
    n, rates, memory = len(x), [], 1.0
    # Each half is whitened by the other: particles that shaped their own moves would bias them.
    halves = [slice(0, n // 2), slice(n // 2, n)]
    densities = [
        Tempered(energy, reference, beta, _whitening(reference, x[other]))
        for other in reversed(halves)
    ]
    points = [
        density.at(x[half], e[half], gradient[half])
        for density, half in zip(densities, halves, strict=True)
    ]
    before = torch.cat([point.level for point in points])
    for move in range(most_moves):
        if move and stop():
            break
        ratios, short = [], move % 3 == 2
        for i, density in enumerate(densities):
            # Every third trajectory is shorter, by a factor of its own: for narrow places.
            h = step * _shortening(points[i].level, generator) if short else step
            points[i], log_ratio = hamiltonian(density, points[i], h, leapfrog_steps, generator)
            ratios.append(log_ratio)
        if short:
            continue
        rate = float(acceptance_rate(torch.cat(ratios)))
        step *= math.exp(rate - 0.7)
        rates.append(rate)
        memory = _correlation(before, torch.cat([point.level for point in points]))
        if memory < forgotten and rate > 0.4:
            break
    x = torch.cat([each.coordinates.to_x(p.x) for each, p in zip(densities, points, strict=True)])
    e = torch.cat([point.energy for point in points])
    gradient = torch.cat([point.gradient for point in points])
    return x, e, gradient, step, rates, memory


def _shortening(level: Tensor, generator: torch.Generator) -> Tensor:
    """Factors between SHORTEST and 1, log-uniform, shape (B, 1)."""
    uniform = torch.empty_like(level).uniform_(generator=generator)
    return (math.log(SHORTEST) * uniform).exp().unsqueeze(-1)


def _whitening(reference: Reference, x: Tensor) -> AffineMap:
    """The map that whitens states (n, D) within the reference's modes."""
    labels = reference.labels(x)
    modes = int(labels.max()) + 1
    if modes == 1:
        return AffineMap.whitening(x)
    count = torch.bincount(labels, minlength=modes).clamp_min(1).unsqueeze(-1)
    sums = torch.zeros(modes, x.shape[1], dtype=x.dtype, device=x.device).index_add_(0, labels, x)
    within = x - (sums / count)[labels]
    alone = (count == 1).squeeze(-1)[labels]  # its distance to itself says nothing
    return AffineMap.whitening(x.mean(0) + (within if bool(alone.all()) else within[~alone]))


def _next_rise(ratio: Tensor, most: float) -> float:
    """The largest rise of β, at most `most`, that keeps half of the particles effective."""

    def enough(rise: float) -> bool:
        return bool(effective_sample_size(rise * ratio) >= 0.5)

    if enough(most):
        return most
    low, high = 0.0, most
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if enough(middle) else (low, middle)
    return max(low, 1e-12)


def _correlation(a: Tensor, b: Tensor) -> float:
    finite = a.isfinite() & b.isfinite()
    a, b = a[finite], b[finite]
    a, b = a - a.mean(), b - b.mean()
    norm = (a.square().sum() * b.square().sum()).sqrt()
    return float((a * b).sum() / norm) if float(norm) > 0 else 0.0
