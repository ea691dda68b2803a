"""The MCMC core: densities that are evaluated, points of chains, and steps that leave them alone.

A density maps states to points, `density(x) -> Point`. A step maps points to points:
`metropolis_langevin(density, now, h, generator)`. MALA, annealing, the persistent buffers of
gradient matching and its averages over posteriors move by that one. HMC, tempering and exploration
move by `hamiltonian`.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from vgs_rl.energy import Energy
from vgs_rl.geometry import Geometry

JITTER = 0.2  # of a trajectory's step, around what was adapted


class Point(NamedTuple):
    """States of B chains, and what a density says of them.

    Attributes:
        x: states, shape (B, D).
        level: minus the log density up to a constant, shape (B,); +inf is never accepted.
        slope: the gradient of `level` that proposals follow, shape (B, D).
        energy: E in the density's units, shape (B,).
        gradient: its gradient, shape (B, D).
    """

    x: Tensor
    level: Tensor
    slope: Tensor
    energy: Tensor
    gradient: Tensor

    def rows(self, index: Tensor) -> Point:
        """The rows of an index, shape (B,)."""
        return Point(*(part[index] for part in self))

    def where(self, chosen: Tensor, other: Point) -> Point:
        """These rows where `chosen` (B,), else the other's."""
        column = chosen.unsqueeze(-1)
        pairs = zip(self, other, strict=True)
        return Point(*(torch.where(chosen if a.ndim == 1 else column, a, b) for a, b in pairs))


class Density(Protocol):
    """What a step needs of a target."""

    geometry: Geometry

    def __call__(self, x: Tensor) -> Point:
        """States (B, D) with level and slope."""


class FiniteEnergy:
    """E/tau and its gradient; where either is not finite, E is +inf and the gradient 0.

    Attributes:
        evaluations: states at which they have been evaluated.

    Args:
        energy: the target.
        temperature: tau.
        keep_infinite_weights: whether E = -inf stays, a weight of +inf, which is an error to tell.
        dtype: in which E is evaluated; that of the states if None.
    """

    def __init__(
        self,
        energy: Energy,
        temperature: float = 1.0,
        *,
        keep_infinite_weights: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.energy, self.temperature = energy, temperature
        self.geometry: Geometry = energy.geometry
        self.keep_infinite_weights = keep_infinite_weights
        self.dtype = dtype
        self.evaluations = 0

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """E/tau, shape (B,), and what of its gradient is tangent at x, shape (B, D).

        Raises:
            ValueError: if E raises anything, naming E and how far out the states are.
        """
        given = x if self.dtype is None else x.to(self.dtype)
        try:
            energy, gradient = (part.to(x.dtype) for part in self.energy.with_gradient(given))
        except ValueError:
            raise
        except Exception as error:  # of a user's code
            raise ValueError(
                f"{type(self.energy).__name__}.energy failed on states with coordinates up to "
                f"{float(x.abs().max()):.3g}: {type(error).__name__}: {error}"
            ) from error
        self.evaluations += len(x) * self.energy.gradient_evaluations
        finite = torch.isfinite(energy) & torch.isfinite(gradient).all(-1)
        usable = finite | torch.isneginf(energy) if self.keep_infinite_weights else finite
        energy = torch.where(usable, energy, torch.inf)
        gradient = self.geometry.tangent(torch.where(finite.unsqueeze(-1), gradient, 0.0), x)
        return energy / self.temperature, gradient / self.temperature


class Boltzmann:
    """The density exp(-E/tau), with a bound on the gradient that proposals follow.

    Args:
        energy: E/tau.
        max_drift: bound of the norm of ∇E/tau in proposals (a truncated drift, as in MALTA); the
            acceptance test keeps the target exact. None: no bound.
    """

    def __init__(self, energy: FiniteEnergy, max_drift: float | None = None) -> None:
        self.energy, self.max_drift = energy, max_drift
        self.geometry = energy.geometry

    def __call__(self, x: Tensor) -> Point:
        """See :class:`Density`."""
        energy, gradient = self.energy(x)
        return Point(x, energy, truncated(gradient, self.max_drift), energy, gradient)


def truncated(gradient: Tensor, bound: float | None) -> Tensor:
    """The gradient (B, D), shortened to a norm of at most `bound`."""
    if bound is None:
        return gradient
    norm: Tensor = gradient.norm(dim=-1, keepdim=True)
    return gradient * (bound / norm).clamp_max(1.0)


def metropolis_langevin(
    density: Density,
    now: Point,
    step_size: Tensor,
    generator: torch.Generator,
    *,
    downhill: bool = False,
) -> tuple[Point, Tensor]:
    """One step of the Metropolis-adjusted Langevin algorithm, on a linear space.

    Reference: Roberts and Tweedie, Bernoulli 2 (1996).

    Args:
        density: the target.
        now: where the chains are.
        step_size: variance of a proposal per coordinate, a scalar or of shape (B, 1).
        generator: source of randomness.
        downhill: also accept every step that lowers the level, which is not exact.

    Returns:
        Where they go, and the log of each acceptance ratio, -inf where there is none; (B,).
    """
    x, h = now.x, step_size
    z = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    z = density.geometry.tangent(z, x)
    new = density(x - 0.5 * h * now.slope + h.sqrt() * z)
    back = x - new.x + 0.5 * h * new.slope
    backward = back.square().sum(-1) / (2 * h.squeeze(-1) if h.ndim else 2 * h)
    log_ratio = now.level - new.level + 0.5 * z.square().sum(-1) - backward
    log_ratio = log_ratio.nan_to_num(-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    uniform = torch.rand(len(x), generator=generator, device=x.device, dtype=x.dtype)
    accepted = uniform.log() < log_ratio
    if downhill:
        accepted = accepted | (new.level < now.level)
    return new.where(accepted, now), log_ratio


def acceptance_rate(log_ratio: Tensor) -> Tensor:
    """The mean probability of acceptance, a scalar, from log ratios (B,)."""
    return log_ratio.exp().clamp_max(1.0).mean()


def hamiltonian(
    density: Density,
    now: Point,
    step_size: float | Tensor,
    leapfrog_steps: int,
    generator: torch.Generator,
    *,
    downhill: bool = False,
) -> tuple[Point, Tensor]:
    """One Hamiltonian trajectory of every chain, on a linear space (Neal, arXiv:1206.1901).

    Args:
        density: the target.
        now: where the chains are.
        step_size: of the leapfrog scheme, one or of shape (B, 1); each chain's varies by a fifth
            around it, so that no trajectory is periodic.
        leapfrog_steps: of the trajectory.
        generator: source of randomness.
        downhill: as in :func:`metropolis_langevin`.

    Returns:
        As :func:`metropolis_langevin`.
    """
    momentum = torch.empty_like(now.x).normal_(generator=generator)
    momentum = density.geometry.tangent(momentum, now.x)
    uniform = torch.empty_like(now.level).uniform_(generator=generator)
    h = step_size * (1 + JITTER * (2 * uniform - 1)).unsqueeze(-1)
    start = now.level + 0.5 * momentum.square().sum(-1)
    new, momentum = now, momentum - 0.5 * h * now.slope
    for k in range(leapfrog_steps):
        new = density(new.x + h * momentum)
        momentum = momentum - (0.5 if k == leapfrog_steps - 1 else 1.0) * h * new.slope
    log_ratio = start - (new.level + 0.5 * momentum.square().sum(-1))
    log_ratio = log_ratio.nan_to_num(-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    uniform = torch.empty_like(now.level).uniform_(generator=generator)
    accepted = uniform.log() < log_ratio
    if downhill:
        accepted = accepted | (new.level < now.level)
    return new.where(accepted, now), log_ratio
