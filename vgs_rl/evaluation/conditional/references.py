"""Samples of a conditional energy where there are no exact ones: by parallel tempering."""

from __future__ import annotations

import torch
from torch import Tensor

from vgs_rl.checks import count_of
from vgs_rl.conditional.conditions import ConditionLike
from vgs_rl.conditional.energy import JointEnergy
from vgs_rl.samplers.mcmc.tempering import ParallelTempering

EVALUATIONS = 2_000  # of parallel tempering, for each state


class MCMCReferences:
    """Draws states of parallel tempering at a value of the parameters.

    They are what an upper bound of log Z rests on, nearly independent samples of the target as far
    as parallel tempering has converged.

    Args:
        energy: of rows.
        count: states of each value, at least 2.
        seed: of every draw.
        device: where the energy is.

    Raises:
        ValueError: if count is below 2.
    """

    def __init__(
        self, energy: JointEnergy, count: int, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        self.energy, self.seed, self.device = energy, seed, device
        self.count = count_of("references", count, least=2)

    def __call__(self, condition: ConditionLike, n: int) -> Tensor:
        """At most n states, shape (m, D).

        Args:
            condition: the value.
            n: how many at most.
        """
        target = self.energy.conditional.at(condition)
        budget = EVALUATIONS * self.count
        sampler = ParallelTempering(target, budget, scale=2.0, device=self.device)
        return sampler.sample(min(self.count, n), self.seed).x
