"""TVD-E while a run is under way: the only metric without weights that curves can share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vgs_rl.energy import Energy
from vgs_rl.evaluation.metrics import total_variation
from vgs_rl.weights import dead_paths, effective_share, live_elbo, log_mean_weight


class EnergyProgress:
    """Compares energies with those of exact samples, or of the shipped validation samples.

    Small draws have a high ideal, √(bins / (pi n)): the numbers are for curves against each other
    at equal n, not for tables. Nothing is counted, and no choice is made by them.

    Args:
        energy: the target.
        temperature: tau; exact samples apply at 1 only.
        n: exact samples drawn.
        generator: their source, on the samples' device.
    """

    def __init__(
        self,
        energy: Energy,
        generator: torch.Generator,
        *,
        temperature: float = 1.0,
        n: int = 20_000,
    ) -> None:
        self.reference: Tensor | None = None
        if temperature != 1.0:
            return
        if energy.can_sample:
            self.reference = energy(energy.sample(n, generator))
            return
        try:
            states = energy.reference("validation")
        except NotImplementedError:
            return
        self.reference = energy(states[:n].to(generator.device))

    def metrics(
        self, energies: Tensor, log_weight: Tensor | None, *, independent: bool = True
    ) -> Mapping[str, float]:
        """What validation records: `eval/` metrics of energies (n,) and log-weights (n,).

        Where paths have weight 0, `eval/elbo` is that of the sampler which throws them away
        (:func:`vgs_rl.weights.live_elbo`), and `eval/dead_paths` says how many they are.
        Log-weights that are not `independent` give log Z alone.
        """
        metrics: dict[str, float] = {}
        if log_weight is not None:
            log_weight = log_weight.double()
            metrics["eval/log_z"] = float(log_mean_weight(log_weight))
            if dead := dead_paths(log_weight):
                metrics["eval/dead_paths"] = dead
        if log_weight is not None and independent:
            metrics["eval/elbo"] = float(live_elbo(log_weight))
            metrics["eval/path_ess"] = float(effective_share(log_weight))
        if self.reference is not None:
            metrics["eval/tvd_energy"] = float(total_variation(energies, self.reference))
        return metrics
