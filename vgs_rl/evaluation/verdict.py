"""A verdict on weighted samples: what may be believed, and for which reasons."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vgs_rl.weights import (
    dead_paths,
    effective_share,
    largest_weight,
    live_elbo,
    log_z_estimate,
    pareto_k,
    reliable_k,
)

Word = Literal["trust", "use the weights", "do not use"]

AGREE = 0.1  # nats between estimates of log Z that are called equal, besides their errors
MOVED = 0.15  # standard deviations between means that are called equal, besides their errors
ENOUGH = 0.3  # effective share above which samples serve without their weights
FINITE = 0.5  # k-hat above which weights have no variance
LEAST = 200.0  # effective samples below which nothing is believed


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What may be believed of weighted samples.

    Attributes:
        word: `trust`: weighted averages are right, and the samples are close to the target by
            themselves; `use the weights`: weighted averages are right; `do not use`: neither is
            known.
        reasons: a sentence each.
    """

    word: Word
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return f"verdict: {self.word}"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Numbers about weighted samples and about particles of an independent exploration.

    Attributes:
        log_z: log mean weight.
        log_z_error: its standard error, as the weights show it.
        elbo: mean of log w.
        ess: effective share of all samples.
        effective: effective number of samples.
        k_hat: tail index of the weights.
        reliable: the largest k_hat at which the weights can be believed.
        largest: share of the largest weight.
        dead: share of samples of weight 0.
        eubo: mean of log w on paths drawn backwards from the particles.
        k_backward: tail index of 1/w there.
        explored_log_z: exploration's estimate.
        explored_spread: difference between its islands.
        moved: largest distance between the weighted mean and the particles' mean, in standard
            deviations.
        moved_error: standard error of that.
        doubts: exploration's own.
    """

    log_z: float
    log_z_error: float
    elbo: float
    ess: float
    effective: float
    k_hat: float
    reliable: float
    largest: float
    dead: float
    eubo: float
    k_backward: float
    explored_log_z: float
    explored_spread: float
    moved: float
    moved_error: float
    doubts: tuple[str, ...]

    @classmethod
    def of(
        cls,
        x: Tensor,
        log_weight: Tensor,
        *,
        particles: Tensor,
        backward: Tensor,
        explored_log_z: float,
        explored_spread: float,
        doubts: tuple[str, ...],
    ) -> Evidence:
        """The evidence of samples x (n, D) and particles (m, D).

        Args:
            x: samples.
            log_weight: their log-weights, shape (n,).
            particles: of an independent exploration, equally weighted.
            backward: log w of paths drawn backwards from the particles, shape (m,).
            explored_log_z: exploration's log Z.
            explored_spread: difference between its islands.
            doubts: exploration's own.
        """
        share = float(effective_share(log_weight.double()))
        effective = share * len(x)
        weight = torch.softmax(log_weight.double(), 0)
        mean = weight @ x
        std = (weight @ (x - mean).square()).sqrt().clamp_min(1e-300)
        moved = float(((particles.mean(0) - mean).abs() / std).max())
        # The largest of D standard normal numbers is about √(2 log 2 D).
        spread = math.sqrt(2 * math.log(2 * x.shape[1]) + 1)
        few = 1 / max(effective, 1.0) + 4 / len(particles)  # particles are no independent draws
        return cls(
            log_z=float(log_z_estimate(log_weight)),
            log_z_error=math.sqrt(max(1 / max(share, 1e-12) - 1, 0.0) / len(x)),
            elbo=float(live_elbo(log_weight)),
            ess=share,
            effective=effective,
            k_hat=pareto_k(log_weight),
            reliable=reliable_k(len(x)),
            largest=float(largest_weight(log_weight)),
            dead=dead_paths(log_weight) / len(x),
            eubo=float(backward.double().mean()),
            k_backward=pareto_k(-backward),
            explored_log_z=explored_log_z,
            explored_spread=explored_spread,
            moved=moved,
            moved_error=spread * math.sqrt(few),
            doubts=doubts,
        )

    def rows(self) -> Iterator[tuple[str, str]]:
        """Names and values, as a table shows them."""
        yield "log Z", f"{self.log_z:.4f} ± {self.log_z_error:.4f}"
        yield (
            "log Z, exploration",
            f"{self.explored_log_z:.3f} (islands {self.explored_spread:.3f} apart)",
        )
        yield "ELBO, EUBO", f"{self.elbo:.3f}, {self.eubo:.3f} (on exploration's particles)"
        yield "ESS of all", f"{self.ess:.3f}"
        yield "k-hat, of 1/w", f"{self.k_hat:.2f}, {self.k_backward:.2f}"
        yield "largest weight", f"{self.largest:.4f}"


def judge_evidence(evidence: Evidence) -> Verdict:
    """The verdict: samples are believed where weights are tame and exploration agrees with them.

    What no path and no particle has seen, no number here can show.
    """
    against = list(evidence.doubts)
    if not evidence.k_hat <= evidence.reliable:
        against.append(
            f"the weights' tail is too heavy: k-hat {evidence.k_hat:.2f} above "
            f"{evidence.reliable:.2f}; train longer"
        )
    if evidence.effective < LEAST:
        against.append(
            f"{evidence.effective:.0f} effective samples are fewer than {LEAST:.0f}; draw more, or "
            "train longer"
        )
    gap = abs(evidence.log_z - evidence.explored_log_z)
    allowed = AGREE + 3 * evidence.log_z_error + min(evidence.explored_spread, 0.3)
    if not gap <= allowed:
        against.append(
            f"log Z of the weights and of exploration differ by {gap:.2f}, more than {allowed:.2f}"
        )
    if not evidence.eubo >= evidence.log_z - allowed:
        against.append("paths drawn backwards from exploration's particles contradict log Z")
    if not evidence.k_backward <= 0.7:
        against.append(
            "exploration's particles lie where the sampler hardly goes: k-hat of 1/w is "
            f"{evidence.k_backward:.2f}"
        )
    if not evidence.moved <= MOVED + 3 * evidence.moved_error:
        against.append(
            f"weighted samples and exploration have means {evidence.moved:.2f} standard "
            "deviations apart"
        )
    if evidence.dead > 0.5:
        against.append(f"{evidence.dead:.0%} of the samples have weight 0")
    if against:
        return Verdict(word="do not use", reasons=tuple(against))
    weak = []
    if evidence.ess < ENOUGH:
        weak.append(f"the samples alone are off: their effective share is {evidence.ess:.2f}")
    if evidence.k_hat > FINITE:
        weak.append(f"the weights have hardly a variance: k-hat is {evidence.k_hat:.2f}")
    if gap > AGREE:
        weak.append(f"log Z of the weights and of exploration differ by {gap:.2f}")
    if weak:
        return Verdict(word="use the weights", reasons=tuple(weak))
    return Verdict(
        word="trust", reasons=("weights, exploration and backward paths agree with each other",)
    )
