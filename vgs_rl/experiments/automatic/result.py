"""What a sample without settings comes with: the samples, and what may be believed of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vgs_rl.agents.value_gradient.agent import ValueGradientAgent
from vgs_rl.checks import seed_of
from vgs_rl.evaluation.verdict import Evidence, Verdict
from vgs_rl.experiments.tables import write_json
from vgs_rl.exploration import Exploration, MappedEnergy
from vgs_rl.samplers.base import Sampler, Samples
from vgs_rl.weights import systematic_resample


class LogZ(NamedTuple):
    """An estimate of log Z.

    Attributes:
        value: log of the mean weight.
        low: below log Z with 95 %, whatever the weights' law.
        high: above log Z with 95 %, if exploration's particles are samples of the target; +inf if
            nothing follows from them.
    """

    value: float
    low: float
    high: float


class MappedSampler(Sampler):
    """A sampler of z whose samples are handed out as x; log-weights are the same.

    Args:
        sampler: of z.
        to_x: the map.
    """

    def __init__(self, sampler: Sampler, to_x: Callable[[Tensor], Tensor]) -> None:
        self.sampler, self.to_x = sampler, to_x
        self.device, self.temperature = sampler.device, sampler.temperature
        self.has_weights, self.chunk_size = sampler.has_weights, 2**62

    def _draw(self, n: int, generator: torch.Generator) -> Samples:
        drawn = self.sampler.sample(n, generator)
        return replace(drawn, x=self.to_x(drawn.x))


@dataclass(kw_only=True)
class Result:
    """What :func:`sample` returns; printing it shows the verdict first.

    Attributes:
        samples: x (n, D) in the user's coordinates with log-weights (n,).
        verdict: what may be believed, and why.
        evidence: the numbers behind it.
        agent: the trained agent, which lives in the coordinates of `energy`.
        energy: the target in these coordinates.
        exploration: what was found before learning.
        sampler: draws more, in the user's coordinates.
        settings: what was asked and what was chosen, as JSON holds it.
        seconds: wall-clock time.
    """

    samples: Samples
    verdict: Verdict
    evidence: Evidence
    agent: ValueGradientAgent
    energy: MappedEnergy
    exploration: Exploration
    sampler: Sampler
    settings: dict[str, Any]
    seconds: float

    @property
    def x(self) -> Tensor:
        """Samples, shape (n, D)."""
        return self.samples.x

    @property
    def log_weight(self) -> Tensor:
        """Their log-weights, shape (n,), with mean weight Z."""
        assert self.samples.log_weight is not None
        return self.samples.log_weight

    @property
    def log_z(self) -> LogZ:
        """Log of the mean weight, with an interval."""
        proven = self.evidence.certificate
        high = math.inf if proven.log_z_high is None else proven.log_z_high
        return LogZ(proven.log_z, proven.log_z_low, high)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the verdict is what it is, a sentence each."""
        return self.verdict.reasons

    @property
    def report(self) -> dict[str, Any]:
        """Verdict, evidence and settings, as JSON holds them."""
        return {
            "verdict": str(self.verdict),
            "reasons": list(self.reasons),
            "evidence": self.evidence.as_dict(),
            "settings": self.settings,
            "seconds": round(self.seconds, 1),
        }

    def resampled(self, n: int, seed: int = 0) -> Tensor:
        """N of the samples by their weights, shape (n, D), with duplicates."""
        generator = torch.Generator(self.x.device).manual_seed(seed_of(seed))
        return self.x[systematic_resample(self.log_weight, n, generator)]

    def save(self, path: Path | str) -> None:
        """Writes NumPy's archive, `x` and `log_weight`, and beside it the report as JSON.

        Args:
            path: of the archive, ending in `.npz`; the report ends in `.json` instead.
        """
        self.samples.to_npz(path)
        self.save_report(Path(path).with_suffix(".json"))

    def save_report(self, path: Path | str) -> None:
        """Writes the report as JSON."""
        write_json(self.report, Path(path))

    def __repr__(self) -> str:
        rows = [f"verdict: {self.verdict}", *(f"  {reason}" for reason in self.reasons)]
        rows += [f"{name:32}{value}" for name, value in self.evidence.rows()]
        rows.append(f"{'seconds':32}{self.seconds:.0f}")
        return "\n".join(rows)
