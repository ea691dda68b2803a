"""Parallel tempering: chains at rising temperatures swap states, the coldest ones are the samples.

Replica k of a chain targets exp(-E/tau_k), tau_0 < tau_1 < …. Each sweep is one Hamiltonian
trajectory of every replica, then an attempt to swap neighbours k and k + 1, accepted with
probability min(1, exp((1/tau_k - 1/tau_{k+1}) (E_k - E_{k+1}))). The product of all densities is
invariant (Geyer, 1991; Neal, arXiv:1206.1901 for the trajectories).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vgs_rl.checks import count_of, require_positive, whole
from vgs_rl.energy import Energy
from vgs_rl.files.restore import check_like
from vgs_rl.samplers.base import Sampler, Samples
from vgs_rl.samplers.mcmc.kernels import FiniteEnergy, Point, hamiltonian
from vgs_rl.samplers.mcmc.mala import evaluations_each, spaced_states


def geometric_ladder(count: int, hottest: float, coldest: float = 1.0) -> Tensor:
    """Temperatures from `coldest` to `hottest` in equal ratios, float64, shape (count,)."""
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if not 0 < coldest <= hottest:
        raise ValueError(f"hottest must be at least coldest = {coldest}, got {hottest}")
    exponents = torch.linspace(0, 1, count, dtype=torch.float64)
    return coldest * (hottest / coldest) ** exponents


# What a kernel's sweeps change.
_STATE = [*("x", "value", "gradient", "step_size", "accepted", "swapped", "round_trips", "sweeps")]
_STATE += ["_from_hot", "_parity"]


class _Replicas:
    """exp(-E/tau_b) for row b: the density of all replicas of all chains."""

    def __init__(self, energy: FiniteEnergy, temperatures: Tensor) -> None:
        self.energy, self.temperatures, self.geometry = energy, temperatures, energy.geometry

    def __call__(self, x: Tensor) -> Point:
        return self.at(x, *self.energy(x))

    def at(self, x: Tensor, energy: Tensor, gradient: Tensor) -> Point:
        """The point at x (B, D), where E (B,) and its gradient (B, D) are known."""
        slope = gradient / self.temperatures.unsqueeze(-1)
        return Point(x, energy / self.temperatures, slope, energy, gradient)


class TemperingKernel:
    """C chains of K replicas, all moved as one batch.

    While asked to adapt, step sizes, one per temperature, follow the acceptance rate towards
    `acceptance`, and trajectories that lower the energy are accepted whatever their error, so that
    no start is too steep to leave; only sweeps that do not adapt leave the density invariant. A
    state whose energy is not finite is never accepted.

    Attributes:
        x: states, shape (K, C, D).
        value: E of the states, shape (K, C).
        step_size: leapfrog step per temperature, shape (K,).
        accepted: summed acceptance probabilities of trajectories, shape (K,), since `sweeps` was 0.
        swapped: the same of swaps between k and k + 1, shape (K - 1,), attempted every other sweep.
        sweeps: number of sweeps since the last :meth:`reset_counts`.
        round_trips: times that a state went from the coldest to the hottest and back.

    Args:
        energy: the target.
        x: initial states, shape (K, C, D), in the energy's geometry.
        temperatures: tau_0 < … < tau_{K-1}, shape (K,).
        leapfrog_steps: steps of a trajectory; each evaluates ∇E once.
        step_size: initial leapfrog step at tau = 1.
        acceptance: acceptance rate that adaptation aims at.
    """

    def __init__(
        self,
        energy: Energy,
        x: Tensor,
        temperatures: Tensor,
        *,
        leapfrog_steps: int = 5,
        step_size: float = 0.1,
        acceptance: float = 0.75,
    ) -> None:
        if x.ndim != 3 or len(x) != len(temperatures):
            raise ValueError(
                f"x must have shape ({len(temperatures)}, C, {energy.dim}), got {tuple(x.shape)}"
            )
        if leapfrog_steps < 1:
            raise ValueError(f"leapfrog_steps must be at least 1, got {leapfrog_steps}")
        energy.geometry.require_linear("parallel tempering")
        self.energy = FiniteEnergy(energy)
        self.leapfrog_steps, self.acceptance = leapfrog_steps, acceptance
        self.temperatures = temperatures.to(x)
        self.step_size = step_size * self.temperatures.sqrt()
        self.x = x
        self.value, self.gradient = self._evaluate(x)
        self._from_hot = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        self._parity = 0
        self.reset_counts()

    def reset_counts(self) -> None:
        """Forgets the rates so far, as at the end of burn-in."""
        count = len(self.temperatures)
        self.accepted, self.swapped = self.x.new_zeros(count), self.x.new_zeros(count - 1)
        self.round_trips = torch.zeros((), dtype=torch.long, device=self.x.device)
        self.sweeps = 0

    def _evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """E, shape (K, C), infinite where anything is not finite, and its gradient (K, C, D)."""
        energy, gradient = self.energy(x.flatten(0, 1))
        return energy.unflatten(0, x.shape[:2]), gradient.unflatten(0, x.shape[:2])

    @property
    def energy_evaluations(self) -> int:
        """States at which E and ∇E have been evaluated."""
        return self.energy.evaluations

    @torch.no_grad()
    def sweep(self, generator: torch.Generator, *, adapt: bool) -> None:
        """One trajectory of every replica, then one round of swaps."""
        rate = self._move(generator, downhill=adapt)  # (K,)
        self._swap(generator)
        self.accepted += rate
        self.sweeps += 1
        if adapt:
            self.step_size = self.step_size * torch.exp(0.5 * (rate - self.acceptance))

    def _move(self, generator: torch.Generator, *, downhill: bool) -> Tensor:
        """One trajectory of every replica; returns the acceptance rates, shape (K,)."""
        count, chains = self.value.shape
        density = _Replicas(self.energy, self.temperatures.repeat_interleave(chains))
        now = density.at(self.x.flatten(0, 1), self.value.flatten(), self.gradient.flatten(0, 1))
        step_size = self.step_size.repeat_interleave(chains).unsqueeze(-1)
        new, log_ratio = hamiltonian(
            density, now, step_size, self.leapfrog_steps, generator, downhill=downhill
        )
        self.x, self.value, self.gradient = (
            part.unflatten(0, (count, chains)) for part in (new.x, new.energy, new.gradient)
        )
        return log_ratio.view(count, chains).clamp_max(0.0).exp().mean(1)

    def _swap(self, generator: torch.Generator) -> None:
        """Neighbours (0, 1), (2, 3), … and (1, 2), (3, 4), … in turns."""
        if len(self.x) == 1:
            return
        low = torch.arange(self._parity, len(self.x) - 1, 2, device=self.x.device)
        self._parity = 1 - self._parity
        beta = 1 / self.temperatures
        gap = self.value[low] - self.value[low + 1]
        log_ratio = ((beta[low] - beta[low + 1])[:, None] * gap).nan_to_num(0.0)
        swap = self._rand(gap.shape, generator).log() < log_ratio  # (pairs, C)
        self.swapped[low] += log_ratio.clamp_max(0.0).exp().mean(1)
        for state in (self.x, self.gradient, self.value, self._from_hot):
            cold, hot = state[low], state[low + 1]
            choose = swap.unsqueeze(-1) if state.ndim == 3 else swap
            state[low] = torch.where(choose, hot, cold)
            state[low + 1] = torch.where(choose, cold, hot)
        self.round_trips += self._from_hot[0].sum()
        self._from_hot[0] = False
        self._from_hot[-1] = True

    def state_dict(self) -> dict[str, Any]:
        """States, step sizes and counts: what a kernel of the same target goes on from."""
        state = {name: getattr(self, name) for name in _STATE}
        copied = {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}
        return copied | {"energy_evaluations": self.energy.evaluations}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores :meth:`state_dict`.

        Raises:
            ValueError: if it is of other chains.
        """
        check_like(state, self.state_dict(), "kernel")
        for name in _STATE:
            value = state[name]
            setattr(self, name, value.clone() if isinstance(value, Tensor) else value)
        self.energy.evaluations = state["energy_evaluations"]

    def acceptance_rates(self) -> Tensor:
        """Mean acceptance of trajectories at each temperature, shape (K,)."""
        return self.accepted / max(self.sweeps, 1)

    def swap_rates(self) -> Tensor:
        """Mean acceptance of swaps between k and k + 1, shape (K - 1,)."""
        return 2 * self.swapped / max(self.sweeps, 1)

    def _rand(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        x = self.x
        return torch.rand(shape, generator=generator, device=x.device, dtype=x.dtype)


class ParallelTempering(Sampler):
    """Parallel tempering alone, with a given number of energy evaluations for all samples.

    Replicas start from N(0, scale² I); step sizes adapt in the first quarter, the first half is
    thrown away; samples are the coldest states of the second half, evenly spaced over time.
    Nothing is weighted.

    Args:
        energy: the target.
        energy_evaluations: budget of one call of ``sample``, over all chains and temperatures.
        chains: number of independent chains, at most n.
        replicas: number of temperatures K of each chain.
        hottest: the highest temperature in units of the lowest.
        leapfrog_steps: steps of a trajectory.
        scale: standard deviation of the initial states.
        temperature: tau of the samples.
        device: where the chains run.
    """

    has_weights = False

    def __init__(
        self,
        energy: Energy,
        energy_evaluations: int,
        *,
        chains: int = 100,
        replicas: int = 8,
        hottest: float = 10.0,
        leapfrog_steps: int = 5,
        scale: float = 1.0,
        temperature: float = 1.0,
        device: torch.device | str = "cpu",
    ) -> None:
        chains, replicas = count_of("chains", chains), count_of("replicas", replicas)
        leapfrog_steps = count_of("leapfrog_steps", leapfrog_steps)
        energy_evaluations = whole("energy_evaluations", energy_evaluations)
        require_positive(type(self).__name__, scale=scale, temperature=temperature)
        if not (math.isfinite(hottest) and hottest >= 1):
            raise ValueError(f"hottest must be at least 1, got {hottest}")
        self.temperatures = geometric_ladder(replicas, hottest * temperature, temperature)
        least = chains * replicas * (1 + 2 * leapfrog_steps)
        if energy_evaluations < least:
            raise ValueError(
                "energy_evaluations must be at least chains x replicas x (1 + 2 leapfrog_steps) "
                f"= {least}, got {energy_evaluations}"
            )
        self.energy, self.budget, self.chains = energy, energy_evaluations, chains
        self.leapfrog_steps, self.scale = leapfrog_steps, scale
        self.temperature, self.device = temperature, torch.device(device)
        self.chunk_size = 2**62  # one call is one run: its budget is not split

    def _draw(self, n: int, generator: torch.Generator) -> Samples:
        chains, replicas = min(self.chains, n), len(self.temperatures)
        x = torch.randn(replicas, chains, self.energy.dim, generator=generator, device=self.device)
        kernel = TemperingKernel(
            self.energy,
            self.energy.geometry.project(x) * self.scale,
            self.temperatures,
            leapfrog_steps=self.leapfrog_steps,
            step_size=0.1 * self.scale,
        )
        each = evaluations_each(
            self.energy, self.budget, chains * replicas, least=1 + 2 * self.leapfrog_steps
        )
        sweeps = (each - 1) // self.leapfrog_steps
        burn_in = sweeps // 2
        for sweep in range(burn_in):
            kernel.sweep(generator, adapt=sweep < burn_in // 2)
        x = spaced_states(
            lambda: kernel.sweep(generator, adapt=False),
            lambda: kernel.x[0],
            sweeps - burn_in,
            -(-n // chains),
        )[:n]
        return Samples(x=x, log_weight=None, energy_evaluations=kernel.energy_evaluations)
