"""MCMC on the target itself: the baseline that every table shows next to learned samplers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vgs_rl.checks import count_of, require_positive, seed_of, whole
from vgs_rl.energy import Energy
from vgs_rl.samplers.base import Sampler, Samples, pilot_generator
from vgs_rl.samplers.mcmc.kernels import (
    Boltzmann,
    FiniteEnergy,
    acceptance_rate,
    metropolis_langevin,
)


class MALAKernel:
    """Metropolis-adjusted Langevin steps on exp(-E/tau), with one step size for all chains.

    The step size follows the acceptance rate towards `acceptance` during adaptation. Every step
    evaluates E and ∇E once per chain. Reference: Roberts and Tweedie, Bernoulli 2 (1996).

    Args:
        energy: the target.
        x: initial states, shape (B, D), in the energy's geometry.
        temperature: tau.
        step_size: initial variance of a proposal per coordinate.
        acceptance: acceptance rate that adaptation aims at.
        max_drift: bound of the norm of ∇E/tau in proposals (a truncated drift, as in MALTA); the
            acceptance test keeps the target exact. None: no bound.
    """

    def __init__(
        self,
        energy: Energy,
        x: Tensor,
        *,
        temperature: float = 1.0,
        step_size: float | Tensor = 0.1,
        acceptance: float = 0.6,
        max_drift: float | None = None,
    ) -> None:
        energy.geometry.require_linear("MALA")
        self.target_rate = acceptance
        self.energy = FiniteEnergy(energy, temperature)
        self.density = Boltzmann(self.energy, max_drift)
        self.step_size = torch.as_tensor(step_size, device=x.device, dtype=x.dtype)
        self.now = self.density(x)

    @property
    def x(self) -> Tensor:
        """Current states, shape (B, D)."""
        return self.now.x

    @property
    def energy_evaluations(self) -> int:
        """States at which E and ∇E have been evaluated."""
        return self.energy.evaluations

    @torch.no_grad()
    def step(self, generator: torch.Generator, *, adapt: bool, downhill: bool = False) -> Tensor:
        """One step of every chain; returns the acceptance rate, a scalar.

        Args:
            generator: source of randomness.
            adapt: whether the step size follows the acceptance rate.
            downhill: also accept every step that lowers the energy. Not exact, for a burn-in's
                beginning: where forces are steep, a chain would otherwise never leave.
        """
        self.now, log_ratio = metropolis_langevin(
            self.density, self.now, self.step_size, generator, downhill=downhill
        )
        rate = acceptance_rate(log_ratio)
        if adapt:
            self.step_size = self.step_size * torch.exp(0.5 * (rate - self.target_rate))
        return rate


class MALASampler(Sampler):
    """MALA alone, with a given number of energy evaluations for all samples together.

    Chains start from N(0, scale² I); the step size adapts in the first half, which is thrown away
    (its own first half also takes every step downhill); samples are states of the second half,
    evenly spaced over time. So a chain that does not mix shows it: nothing is weighted.

    Args:
        energy: the target.
        energy_evaluations: budget of one call of ``sample``, at least two per chain.
        chains: number of parallel chains, at most n.
        scale: standard deviation of the initial states.
        temperature: tau.
        max_drift: bound of the norm of ∇E/tau in proposals; None leaves it.
        device: where the chains run.
    """

    has_weights = False

    def __init__(
        self,
        energy: Energy,
        energy_evaluations: int,
        *,
        chains: int = 1_000,
        scale: float = 1.0,
        temperature: float = 1.0,
        max_drift: float | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        chains = count_of("chains", chains)
        energy_evaluations = whole("energy_evaluations", energy_evaluations)
        require_positive("MALASampler", scale=scale, temperature=temperature)
        if energy_evaluations < 3 * chains:
            raise ValueError(
                f"energy_evaluations must be at least 3 x chains = {3 * chains}, "
                f"got {energy_evaluations}"
            )
        self.energy, self.budget, self.chains = energy, energy_evaluations, chains
        self.scale, self.temperature, self.device = scale, temperature, torch.device(device)
        self.max_drift = max_drift
        self.chunk_size = 2**62  # one call is one run: its budget is not split

    def _draw(self, n: int, generator: torch.Generator) -> Samples:
        chains = min(self.chains, n)
        x = torch.randn(chains, self.energy.dim, generator=generator, device=self.device)
        kernel = MALAKernel(
            self.energy,
            self.energy.geometry.project(x) * self.scale,
            temperature=self.temperature,
            step_size=0.1 * self.scale**2,
            max_drift=self.max_drift,
        )
        steps = evaluations_each(self.energy, self.budget, chains, least=3) - 1
        burn_in = steps // 2
        for k in range(burn_in):
            kernel.step(generator, adapt=True, downhill=k < burn_in // 2)
        x = spaced_states(
            lambda: kernel.step(generator, adapt=False),
            lambda: kernel.x,
            steps - burn_in,
            -(-n // chains),
        )[:n]
        return Samples(x=x, log_weight=None, energy_evaluations=kernel.energy_evaluations)


def evaluations_each(energy: Energy, budget: int, chains: int, *, least: int) -> int:
    """How often each of the chains may evaluate E and ∇E within a budget of energy evaluations.

    Raises:
        ValueError: if it is less than `least`; where differences stand in for ∇E, one counts
            2 D + 1 times, which is known once E has been evaluated.
    """
    each = budget // (chains * energy.gradient_evaluations)
    if each < least:
        raise ValueError(
            f"energy_evaluations must be at least {least} x chains x "
            f"{energy.gradient_evaluations} per gradient of {type(energy).__name__} "
            f"= {least * chains * energy.gradient_evaluations}, got {budget}"
        )
    return each


def spaced_states(
    step: Callable[[], object], states: Callable[[], Tensor], steps: int, wanted: int
) -> Tensor:
    """Runs chains for `steps` steps and keeps `wanted` states of each, evenly spaced over time.

    Args:
        step: moves all chains once.
        states: their current states, shape (C, D).
        steps: number of steps; where it is below `wanted`, states repeat.
        wanted: states to keep of each chain.

    Returns:
        All states of the first chain, then of the second …, shape (C · wanted, D).
    """
    kept, done = [], 0
    for k in range(1, wanted + 1):
        until = steps * k // wanted
        for _ in range(until - done):
            step()
        done = until
        kept.append(states())
    return torch.stack(kept, 1).flatten(0, 1)


class RefinedSampler(Sampler):
    """Another sampler's states, each moved by a few MALA steps: no weights remain.

    The step size is adapted on the sampler's first draws, which are thrown away.

    Args:
        sampler: what draws the states.
        energy: its target.
        steps: MALA steps of each state.
        pilot: states and steps of the adaptation.
        seed: seed of the adaptation, which shares no states with any draw.
    """

    has_weights = False

    def __init__(
        self,
        sampler: Sampler,
        energy: Energy,
        steps: int,
        *,
        pilot: int = 200,
        seed: int = 0,
    ) -> None:
        self.sampler, self.energy, self.steps = sampler, energy, count_of("steps", steps)
        self.temperature, self.device = sampler.temperature, sampler.device
        self.pilot, self.seed = count_of("pilot", pilot), seed_of(seed)
        self.step_size: Tensor | None = None

    def _kernel(self, x: Tensor, step_size: float | Tensor) -> MALAKernel:
        return MALAKernel(
            self.energy, x, temperature=self.temperature, step_size=step_size, max_drift=100.0
        )

    def _draw(self, n: int, generator: torch.Generator) -> Samples:
        used = 0
        if self.step_size is None:
            own = pilot_generator(self.device, self.seed)
            drawn = self.sampler.sample(self.pilot, own)
            kernel = self._kernel(drawn.x, 1e-3)
            for _ in range(self.pilot):
                kernel.step(own, adapt=True)
            self.step_size = kernel.step_size
            used = drawn.energy_evaluations + kernel.energy_evaluations
        drawn = self.sampler.sample(n, generator)
        kernel = self._kernel(drawn.x, self.step_size)
        for _ in range(self.steps):
            kernel.step(generator, adapt=False)
        used += drawn.energy_evaluations + kernel.energy_evaluations
        return Samples(x=kernel.x, log_weight=None, energy_evaluations=used)
