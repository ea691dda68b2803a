"""A certificate of a given width: draws more paths until the bounds of log Z are that close."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import count

import numpy as np
import torch
from torch import Tensor

from vgs_rl.checks import count_of, seed_of
from vgs_rl.energy import Energy, Split
from vgs_rl.evaluation.certificate import Certificate, Premise, certificate
from vgs_rl.evaluation.confidence import check_confidence
from vgs_rl.evaluation.evaluate import METRIC_ORDER
from vgs_rl.evaluation.path_metrics import certificate_metrics
from vgs_rl.evaluation.report import Report
from vgs_rl.samplers.base import Sampler

LIMIT = 1_000_000  # forward paths at most


@torch.no_grad()
def certify(
    sampler: Sampler,
    energy: Energy,
    width: float,
    *,
    n: int = 20_000,
    limit: int = LIMIT,
    seed: int = 0,
    confidence: float = 0.95,
    split: Split = "test",
) -> Certificate:
    """Doubles the paths until `log_z_high` - `log_z_low` ≤ `width`, or no more are to be had.

    There are n paths at first, and as many backward paths from exact samples of the target, or from
    its shipped reference until that is used up. Look k takes the share 1/(k (k + 1)) of the error
    1 - `confidence`. So the bounds of all looks hold at once, and the last may be chosen by what
    they say (union bound).

    It stops without the width where `limit` is reached, where the bounds contradict each other, and
    where a reference that is used up keeps `log_z_high` further than `width` above the estimate.

    Args:
        sampler: what draws, with weights of independent paths and reverse weights.
        energy: its target.
        width: what is asked for [nats].
        n: paths of the first look.
        limit: most forward paths.
        seed: of all draws; none is shared with :func:`vgs_rl.evaluate` at the same seed.
        confidence: least probability, in (0, 1), with which the bounds that are returned hold.
        split: which shipped samples.

    Raises:
        ValueError: if :func:`require_backward_paths` refuses, paths are not independent, or a
            number is out of its range.
    """
    n, limit, seed = count_of("n", n, least=2), count_of("limit", limit, least=2), seed_of(seed)
    check_confidence(confidence)
    if not 0 < width < math.inf:
        raise ValueError(f"width must be a number above 0, got {width}")
    require_backward_paths(sampler, energy, split)
    states = np.random.SeedSequence([seed, 1]).generate_state(3, np.uint64)
    draw, exact, backwards = (
        torch.Generator(sampler.device).manual_seed(int(state >> np.uint64(1))) for state in states
    )
    source = _Source(energy, split, exact)
    forward = backward = torch.empty(0, device=sampler.device, dtype=torch.float64)
    for look in count(1):
        more = min(max(n, len(forward)), limit - len(forward))
        samples = sampler.sample(more, draw)
        if samples.log_weight is None or not samples.independent:
            raise ValueError(f"a certificate needs independent paths, got {type(sampler).__name__}")
        forward = torch.cat([forward, samples.log_weight.double()])
        x = source.draw(more)
        if len(x):
            log_weight = sampler.reverse_log_weight(x.to(samples.x), backwards)
            backward = torch.cat([backward, log_weight.double()])
        error = (1 - confidence) / (look * (look + 1))
        proven = certificate(forward, backward, premise=source.premise, confidence=1 - error)
        if proven.width <= width or len(forward) >= limit:
            break
        assert proven.log_z_high is not None
        if source.used_up and proven.log_z_high - proven.log_z >= width:
            break  # further forward paths would not lower it
    return replace(proven, confidence=confidence)


def require_backward_paths(sampler: Sampler, energy: Energy, split: Split = "test") -> None:
    """Refuses what has no upper bound of log Z.

    Raises:
        ValueError: if the sampler's temperature is not 1, it has no reverse weights, or the target
            has neither an exact sampler nor reference samples.
    """
    if sampler.temperature != 1.0:
        raise ValueError(f"log_z_high needs temperature 1, got {sampler.temperature}")
    if not sampler.has_reverse_weights:
        raise ValueError(f"log_z_high needs reverse weights, and {type(sampler).__name__} has none")
    if not energy.can_sample:
        try:
            energy.reference(split)
        except NotImplementedError:
            name = type(energy).__name__
            raise ValueError(
                f"log_z_high needs samples of the target, and {name} has neither an exact sampler "
                "nor a reference"
            ) from None


def hold(report: Report, proven: Certificate, width: float) -> None:
    """Puts a certificate into a report in place of its own, with a note if it is too wide.

    Args:
        report: of the same sampler.
        proven: what :func:`certify` returned.
        width: what was asked for [nats].
    """
    known = {name: each for name, each in report.metrics.items() if name != "tv_bound"}
    known |= certificate_metrics(proven, report.details["log_z"])
    report.metrics = {name: known[name] for name in METRIC_ORDER if name in known}
    report.details["certificate"] = proven.as_dict()
    if proven.width <= width:
        return
    why = f"{proven.n:,} forward and {proven.n_backward:,} backward paths were drawn"
    note = f"log_z_high - log_z_low is {proven.width:.4f}, above the {width:g} asked for: {why}"
    report.details.setdefault("notes", []).append(note)


class _Source:
    """Samples of the target, each of them drawn once."""

    premise: Premise

    def __init__(self, energy: Energy, split: Split, generator: torch.Generator) -> None:
        self.energy, self.generator = energy, generator
        self.premise = "exact samples" if energy.can_sample else "reference samples (MCMC)"
        self._left: Tensor | None = None
        if not energy.can_sample:
            x = energy.reference(split).to(generator.device)
            self._left = x[torch.randperm(len(x), generator=generator, device=x.device)]

    @property
    def used_up(self) -> bool:
        """Whether there are no more."""
        return self._left is not None and len(self._left) == 0

    def draw(self, n: int) -> Tensor:
        """The next n, or what is left of them."""
        if self._left is None:
            return self.energy.sample(n, self.generator)
        x, self._left = self._left[:n], self._left[n:]
        return x
