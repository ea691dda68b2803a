"""MCMC as its users call it: a target, a number of chains, a number of steps.

The classes that they derive from take a budget of energy evaluations, which comparisons need.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from vgs_rl.checks import count_of
from vgs_rl.conditional.energy import require_one
from vgs_rl.registry import energy_of
from vgs_rl.samplers.mcmc.annealed import AnnealedSMC
from vgs_rl.samplers.mcmc.langevin import HMCSampler, ULASampler
from vgs_rl.samplers.mcmc.mala import MALASampler
from vgs_rl.samplers.mcmc.tempering import ParallelTempering as TemperingSampler


class Chains:
    """The constructor of MCMC samplers.

    Args:
        target: an id (`GMM9`), an energy, or a function (B, D) -> (B,) with `dim`.
        num_chains: chains side by side.
        num_steps: steps of each; the second half gives the samples.
        dim: D of a function's states.
        **options: of the class that takes a budget, such as `scale` of the initial states,
            `temperature` and `device`.

    Attributes:
        defaults: of the options that a step's cost depends on: `leapfrog_steps`, and `replicas` of
            every chain.

    Raises:
        ValueError: if an argument does not fit, naming it and what was expected.
        TypeError: if `target` is none of these.
    """

    defaults: ClassVar[Mapping[str, int]] = {}

    def __init__(
        self,
        target: Any,
        *,
        num_chains: int = 200,
        num_steps: int = 500,
        dim: int | None = None,
        **options: Any,
    ) -> None:
        energy = energy_of(target, dim)
        require_one(energy, f"{type(self).__name__} draws from")
        chains, steps = count_of("num_chains", num_chains), count_of("num_steps", num_steps)
        counts = {n: count_of(n, options.pop(n, value)) for n, value in self.defaults.items()}
        gradients = 1 + counts.get("leapfrog_steps", 1) * steps  # the first is at the start
        copies = chains * counts.get("replicas", 1)
        budget = copies * gradients * energy.gradient_evaluations
        super().__init__(energy, budget, chains=chains, **counts, **options)  # type: ignore[call-arg]


class MALA(Chains, MALASampler):
    """The Metropolis-adjusted Langevin algorithm; constructed as :class:`Chains`.

    Step sizes adapt in the first half. Options are those of
    :class:`~vgs_rl.samplers.mcmc.mala.MALASampler`.

    Example:
        >>> import vgs_rl
        >>> vgs_rl.MALA("GMM9", num_chains=50, num_steps=20, scale=5.0).sample(100).x.shape
        torch.Size([100, 2])
    """


class ULA(Chains, ULASampler):
    """The unadjusted Langevin algorithm, biased by its step size; constructed as :class:`Chains`.

    Options are those of :class:`~vgs_rl.samplers.mcmc.langevin.ULASampler`, such as `step_size`.
    """


class HMC(Chains, HMCSampler):
    """Hamiltonian Monte Carlo; constructed as :class:`Chains`, a step is a trajectory.

    Step sizes adapt in the first quarter. Options are those of
    :class:`~vgs_rl.samplers.mcmc.langevin.HMCSampler`, such as `leapfrog_steps`.
    """

    defaults = {"leapfrog_steps": 8}


class ParallelTempering(Chains, TemperingSampler):
    """Parallel tempering: chains at rising temperatures swap states; constructed as `Chains`.

    A step is a sweep over all temperatures. Options are those of
    :class:`~vgs_rl.samplers.mcmc.tempering.ParallelTempering`, such as `replicas`, `hottest` and
    `leapfrog_steps`.
    """

    defaults = {"leapfrog_steps": 5, "replicas": 8}


class AIS(AnnealedSMC):
    """Annealed importance sampling: log-weights unbiased for Z.

    Args:
        target: an id (`GMM9`), an energy, or a function (B, D) -> (B,) with `dim`.
        num_steps: annealing steps.
        dim: D of a function's states.
        **options: of :class:`~vgs_rl.samplers.mcmc.annealed.AnnealedSMC`, such as `scale`.
    """

    def __init__(
        self, target: Any, *, num_steps: int = 100, dim: int | None = None, **options: Any
    ) -> None:
        energy = energy_of(target, dim)
        require_one(energy, f"{type(self).__name__} draws from")
        super().__init__(energy, num_steps, **options)


class SMC(AIS):
    """Annealed sequential Monte Carlo: :class:`AIS` with resampling on the way.

    Args:
        target: as of :class:`AIS`.
        threshold: effective sample size, as a fraction, below which particles are resampled.
        **options: as of :class:`AIS`.
    """

    def __init__(self, target: Any, *, threshold: float = 0.5, **options: Any) -> None:
        super().__init__(target, threshold=threshold, **options)
