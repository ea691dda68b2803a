"""MCMC as its users call it: a target, a number of chains, a number of steps.

The classes that they derive from take a budget of energy evaluations, which comparisons need.
"""

from __future__ import annotations

from typing import Any

from vgs_rl.checks import count_of
from vgs_rl.registry import energy_of
from vgs_rl.samplers.annealed import AnnealedSMC
from vgs_rl.samplers.langevin import HMCSampler, ULASampler
from vgs_rl.samplers.mala import MALASampler
from vgs_rl.samplers.tempering import ParallelTempering as _ParallelTempering


class MALA(MALASampler):
    """The Metropolis-adjusted Langevin algorithm; step sizes adapt in the first half.

    Args:
        target: an id (`GMM9`), an energy, or a function (B, D) -> (B,) with `dim`.
        num_chains: chains side by side.
        num_steps: steps of each; the second half gives the samples.
        dim: D of a function's states.
        **options: of :class:`~vgs_rl.samplers.mala.MALASampler`: `scale` of the initial states,
            `temperature`, `max_drift`, `device`.

    Example:
        >>> import vgs_rl
        >>> vgs_rl.MALA("GMM9", num_chains=50, num_steps=20, scale=5.0).sample(100).x.shape
        torch.Size([100, 2])
    """

    def __init__(
        self,
        target: Any,
        *,
        num_chains: int = 1_000,
        num_steps: int = 1_000,
        dim: int | None = None,
        **options: Any,
    ) -> None:
        energy, budget = _energy_and_budget(target, dim, num_chains, num_steps, 1)
        super().__init__(energy, budget, chains=num_chains, **options)


class ULA(ULASampler):
    """The unadjusted Langevin algorithm: biased by its step size.

    Args:
        target: an id (`GMM9`), an energy, or a function (B, D) -> (B,) with `dim`.
        num_chains: chains side by side.
        num_steps: steps of each; the second half gives the samples.
        dim: D of a function's states.
        **options: of :class:`~vgs_rl.samplers.langevin.ULASampler`: `scale`, `step_size`,
            `acceptance`, `temperature`, `device`.
    """

    def __init__(
        self,
        target: Any,
        *,
        num_chains: int = 1_000,
        num_steps: int = 1_000,
        dim: int | None = None,
        **options: Any,
    ) -> None:
        energy, budget = _energy_and_budget(target, dim, num_chains, num_steps, 1)
        super().__init__(energy, budget, chains=num_chains, **options)


class HMC(HMCSampler):
    """Hamiltonian Monte Carlo; step sizes adapt in the first quarter.

    Args:
        target: an id (`GMM9`), an energy, or a function (B, D) -> (B,) with `dim`.
        num_chains: chains side by side.
        num_steps: trajectories of each; the second half gives the samples.
        leapfrog_steps: steps of a trajectory.
        dim: D of a function's states.
        **options: of :class:`~vgs_rl.samplers.langevin.HMCSampler`: `scale`, `temperature`,
            `device`.
    """

    def __init__(
        self,
        target: Any,
        *,
        num_chains: int = 500,
        num_steps: int = 200,
        leapfrog_steps: int = 8,
        dim: int | None = None,
        **options: Any,
    ) -> None:
        steps = count_of("leapfrog_steps", leapfrog_steps)
        energy, budget = _energy_and_budget(target, dim, num_chains, num_steps, steps)
        super().__init__(
            energy, budget, chains=num_chains, leapfrog_steps=leapfrog_steps, **options
        )


class ParallelTempering(_ParallelTempering):
    """Parallel tempering: chains at rising temperatures swap states.

    Args:
        target: an id (`GMM9`), an energy, or a function (B, D) -> (B,) with `dim`.
        num_chains: chains side by side.
        num_steps: sweeps of each; the second half gives the samples.
        replicas: temperatures of each chain.
        leapfrog_steps: steps of a trajectory.
        dim: D of a function's states.
        **options: of :class:`~vgs_rl.samplers.tempering.ParallelTempering`: `hottest`, `scale`,
            `temperature`, `device`.
    """

    def __init__(
        self,
        target: Any,
        *,
        num_chains: int = 100,
        num_steps: int = 200,
        replicas: int = 8,
        leapfrog_steps: int = 5,
        dim: int | None = None,
        **options: Any,
    ) -> None:
        replicas = count_of("replicas", replicas)
        steps = count_of("leapfrog_steps", leapfrog_steps)
        energy, budget = _energy_and_budget(target, dim, num_chains, num_steps, steps)
        super().__init__(
            energy,
            budget * replicas,
            chains=num_chains,
            replicas=replicas,
            leapfrog_steps=leapfrog_steps,
            **options,
        )


class AIS(AnnealedSMC):
    """Annealed importance sampling: log-weights unbiased for Z.

    Args:
        target: an id (`GMM9`), an energy, or a function (B, D) -> (B,) with `dim`.
        num_steps: annealing steps.
        dim: D of a function's states.
        **options: of :class:`~vgs_rl.samplers.annealed.AnnealedSMC`: `scale`, `moves`,
            `temperature`, `pilot`, `device`, `seed`.
    """

    def __init__(
        self, target: Any, *, num_steps: int = 100, dim: int | None = None, **options: Any
    ) -> None:
        super().__init__(energy_of(target, dim), num_steps, **options)


class SMC(AnnealedSMC):
    """Annealed sequential Monte Carlo: as :class:`AIS`, with resampling on the way.

    Args:
        target: an id (`GMM9`), an energy, or a function (B, D) -> (B,) with `dim`.
        num_steps: annealing steps.
        threshold: effective sample size, as a fraction, below which particles are resampled.
        dim: D of a function's states.
        **options: as of :class:`AIS`.
    """

    def __init__(
        self,
        target: Any,
        *,
        num_steps: int = 100,
        threshold: float = 0.5,
        dim: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(energy_of(target, dim), num_steps, threshold=threshold, **options)


def _energy_and_budget(
    target: Any, dim: int | None, chains: int, steps: int, gradients: int
) -> tuple[Any, int]:
    """The energy, and the evaluations that its chains use for so many steps and their start."""
    energy = energy_of(target, dim)
    chains, steps = count_of("num_chains", chains), count_of("num_steps", steps)
    return energy, chains * energy.gradient_evaluations * (1 + gradients * steps)
