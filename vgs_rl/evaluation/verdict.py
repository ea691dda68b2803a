"""A verdict on weighted samples: what may be believed, and for which reasons."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor

from vgs_rl.energy import Energy
from vgs_rl.evaluation.certificate import Certificate, certificate
from vgs_rl.exploration import share_gap
from vgs_rl.weights import dead_paths, live_elbo

Word = Literal["trust", "use the weights", "do not use"]

AGREE = 0.1  # nats between estimates of log Z that are called equal, besides their errors
MOVED = 0.15  # standard deviations between means that are called equal, besides their errors
SHARE = 0.05  # of a region, that is called equal, besides its error
CORRELATED = 4.0  # particles say as much as one independent state
ENOUGH = 0.3  # effective share above which samples serve without their weights
FINITE = 0.5  # k-hat above which weights have no variance
LEAST = 200.0  # effective samples below which nothing is believed
MOST = 10_000  # samples that are looked at
TAIL = 0.1  # weight of a tail
ERRORS = 5.0  # standard errors of the identity that are no chance, over all coordinates
WORTH = 0.02  # by which it is off where that matters
LAST = 20  # one in so many samples of a tail is looked at: the furthest ones
REACH = 0.05  # of a tail: how far beyond these E is evaluated
JUMP = 1.0  # nats from what the gradient says: there the target itself ends
WALLS = 0.3  # share of these samples that stand before a jump


class Verdict(str):
    """What may be believed of weighted samples, in a word or three.

    `trust`: weighted averages are right, and the samples are close to the target by themselves;
    `use the weights`: weighted averages are right; `do not use`: neither is known.

    Attributes:
        reasons: a sentence each.
    """

    reasons: tuple[str, ...]

    def __new__(cls, word: Word, reasons: tuple[str, ...] = ()) -> Self:
        """The word is the string."""
        verdict = super().__new__(cls, word)
        verdict.reasons = reasons
        return verdict


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Numbers about weighted samples and about particles of an independent exploration.

    Attributes:
        certificate: what their weights prove, with paths drawn backwards from the particles.
        elbo: mean of log w.
        eubo: mean of log w on the backward paths.
        dead: share of samples of weight 0.
        explored_log_z: exploration's estimate.
        explored_spread: difference between its islands.
        moved: largest distance between the weighted mean and the particles' mean, in standard
            deviations.
        moved_error: standard error of that.
        shares: largest difference between regions' shares in weighted samples and in particles, as
            :func:`~vgs_rl.exploration.agreement.share_gap` finds it.
        shares_error: what chance makes of it once in 1,000.
        drift: by what MCMC moves change the samples' mean energy [nats], as
            :func:`~vgs_rl.exploration.agreement.energy_drift` finds it, or None where E is slow.
        drift_error: what chance makes of that once in 16,000.
        doubts: exploration's own.
        cautions: why samples may be wrong without a sign of it, a sentence each.
        notes: what else the sampler has to say, a sentence each.
    """

    certificate: Certificate
    elbo: float
    eubo: float
    dead: float
    explored_log_z: float
    explored_spread: float
    moved: float
    moved_error: float
    shares: float
    shares_error: float
    drift: float | None
    drift_error: float
    doubts: tuple[str, ...]
    cautions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

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
        drift: tuple[float, float] | None,
        doubts: tuple[str, ...],
        cautions: tuple[str, ...] = (),
        notes: tuple[str, ...] = (),
    ) -> Evidence:
        """The evidence of samples x (n, D) and particles (m, D).

        Args:
            x: samples.
            log_weight: their log-weights, shape (n,).
            particles: of an independent exploration, equally weighted.
            backward: log w of paths drawn backwards from the particles, shape (m,).
            explored_log_z: exploration's log Z.
            explored_spread: difference between its islands.
            drift: what MCMC changes the mean energy by, and what chance may; None if not known.
            doubts: exploration's own.
            cautions: why samples may be wrong without a sign of it.
            notes: what else the sampler has to say.
        """
        proven = certificate(log_weight, backward, premise="explored particles (SMC)")
        weight = torch.softmax(log_weight.double(), 0)
        mean = weight @ x
        std = (weight @ (x - mean).square()).sqrt().clamp_min(1e-300)
        moved = float(((particles.mean(0) - mean).abs() / std).max())
        # The largest of D standard normal numbers is about √(2 log 2 D).
        spread = math.sqrt(2 * math.log(2 * x.shape[1]) + 1)
        few = 1 / max(proven.ess * len(x), 1.0) + CORRELATED / len(particles)
        shares, shares_error = share_gap(x, particles, log_weight, correlated=CORRELATED)
        return cls(
            certificate=proven,
            elbo=float(live_elbo(log_weight)),
            eubo=float(backward.double().mean()),
            dead=dead_paths(log_weight) / len(x),
            explored_log_z=explored_log_z,
            explored_spread=explored_spread,
            moved=moved,
            moved_error=spread * math.sqrt(few),
            shares=shares,
            shares_error=shares_error,
            drift=None if drift is None else drift[0],
            drift_error=math.inf if drift is None else drift[1],
            doubts=doubts,
            cautions=cautions,
            notes=notes,
        )

    @property
    def effective(self) -> float:
        """Effective number of samples."""
        return self.certificate.ess * self.certificate.n

    def rows(self) -> Iterator[tuple[str, str]]:
        """Names and values, as a table shows them."""
        yield (
            "log Z, exploration",
            f"{self.explored_log_z:.4f} (islands {self.explored_spread:.4f} apart)",
        )
        yield "ELBO, EUBO", f"{self.elbo:.4f}, {self.eubo:.4f} (on exploration's particles)"
        yield (
            "shares of regions",
            f"{self.shares:.3f} apart (chance: {self.shares_error:.3f}; to exploration's)",
        )
        if self.drift is not None:
            yield (
                "mean energy after MCMC",
                f"{self.drift:+.3f} (chance: {self.drift_error:.3f})",
            )
        yield from self.certificate.rows()

    def as_dict(self) -> dict[str, Any]:
        """All numbers, for strict JSON: what is not finite is None."""
        own = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in vars(self).items()
            if name != "certificate"
        }
        for name in ("doubts", "cautions", "notes"):
            own[name] = list(getattr(self, name))
        return {**own, "certificate": self.certificate.as_dict()}


def judge_evidence(evidence: Evidence) -> Verdict:
    """The verdict: samples are believed where weights are tame and exploration agrees with them.

    What no path and no particle has seen, no number here can show.
    """
    against, proven = list(evidence.doubts), evidence.certificate
    if not proven.reliable:
        against.append(
            f"the weights' tail is too heavy: k-hat {proven.k_hat:.2f} above "
            f"{proven.k_limit:.2f}; give it more seconds"
        )
    if evidence.effective < LEAST:
        against.append(
            f"{evidence.effective:.0f} effective samples are fewer than {LEAST:.0f}; draw more, or "
            "give it more seconds"
        )
    below = 0.0 if proven.log_z_high is None else proven.log_z - proven.log_z_high
    if proven.contradicts and below > AGREE:  # SMC's particles are not quite independent samples
        against.append("exploration's particles are not of the target that the weights show")
    gap = abs(proven.log_z - evidence.explored_log_z)
    spread = min(evidence.explored_spread, 0.3)
    allowed = AGREE + 3 * (proven.log_z_error or 0.0) + spread
    if not gap <= allowed:
        against.append(
            f"log Z of the weights and of exploration differ by {gap:.2f}, more than {allowed:.2f}"
        )
    if not evidence.eubo >= proven.log_z - allowed:
        against.append("paths drawn backwards from exploration's particles contradict log Z")
    if proven.k_hat_backward is None or not proven.k_hat_backward <= 0.7:
        against.append(
            "exploration's particles lie where the sampler hardly goes: k-hat of 1/w is "
            f"{proven.k_hat_backward or math.nan:.2f}"
        )
    if not evidence.moved <= MOVED + 3 * evidence.moved_error:
        against.append(
            f"weighted samples and exploration have means {evidence.moved:.2f} standard "
            "deviations apart"
        )
    if not evidence.shares <= SHARE + evidence.shares_error + 0.25 * spread:
        against.append(
            f"a region's share is {evidence.shares:.2f} larger or smaller in the samples than in "
            "exploration's particles"
        )
    if evidence.drift is not None and not abs(evidence.drift) <= evidence.drift_error:
        against.append(
            f"MCMC moves change the samples' mean energy by {evidence.drift:.2f} nats, more than "
            f"{evidence.drift_error:.2f}"
        )
    if evidence.dead > 0.5:
        against.append(f"{evidence.dead:.0%} of the samples have weight 0")
    notes = list(evidence.notes)
    if 0 < evidence.dead <= 0.5:
        notes.append(f"{evidence.dead:.2%} of the samples have weight 0: E is not finite there")
    if below > 0:
        notes.append(
            f"the upper bound of log Z is {below:.2g} below its estimate: "
            "exploration's particles are nearly, not exactly, independent samples of the target"
        )
    if against:
        return Verdict("do not use", reasons=(*against, *notes))
    weak = list(evidence.cautions)
    if proven.ess < ENOUGH:
        weak.append(f"the samples alone are off: their effective share is {proven.ess:.2f}")
    if proven.k_hat > FINITE:
        weak.append(f"the weights have hardly a variance: k-hat is {proven.k_hat:.2f}")
    if gap > AGREE:
        weak.append(f"log Z of the weights and of exploration differ by {gap:.2f}")
    if weak:
        return Verdict("use the weights", reasons=(*weak, *notes))
    agreed = "weights, exploration and backward paths agree with each other"
    return Verdict("trust", reasons=(agreed, *notes))


@torch.no_grad()
def early_ends(
    x: Tensor,
    log_weight: Tensor,
    energy: Energy,
    temperature: float,
    dtype: torch.dtype = torch.float64,
) -> list[str]:
    """Coordinates along which samples end too early, a sentence each.

    E_p[f'(x_k) - f(x_k) ∂_k E / tau] = 0 for f(v) = max(q - v, 0), where q is the quantile of a
    tenth (Stein, 1972). Where samples lack what lies beyond some edge, the rest is the target's
    density there times f: a share of the tail. Weights do not show it, since no sample has them.
    Where E jumps the target ends itself, and nothing is said.

    Args:
        x: samples, shape (n, D), float64.
        log_weight: their log-weights, shape (n,).
        energy: E, on R^D.
        temperature: tau.
        dtype: in which E is evaluated.
    """
    x, log_weight = x[:MOST], log_weight[:MOST].double()
    slope = energy.with_gradient(x.to(dtype))[1].double() / temperature
    fine = slope.isfinite().all(-1) & log_weight.isfinite()
    x, slope = x[fine], slope[fine]
    if not len(x):
        return []
    weight = torch.softmax(log_weight[fine], 0).unsqueeze(1)
    found = []
    for side, sign in (("lower", 1.0), ("upper", -1.0)):
        v, push = sign * x, sign * slope
        order = v.argsort(0)
        reached = weight[:, 0][order].cumsum(0)
        at = (reached < TAIL).sum(0, keepdim=True).clamp_max(len(v) - 1)
        quantile = v.gather(0, order.gather(0, at))
        beyond = (quantile - v).clamp_min(0.0)
        terms = -(v < quantile).double() - beyond * push
        rest = (weight * terms).sum(0)
        error = (weight * (terms - rest)).square().sum(0).sqrt()
        off = (rest.abs() > ERRORS * error) & (rest.abs() > WORTH)
        for k in off.nonzero().flatten().tolist():
            tail = order[: int((v[:, k] < quantile[0, k]).sum()), k]
            last = tail[: 1 + len(tail) // LAST]
            step = torch.zeros_like(x[last])
            step[:, k] = -sign * beyond[:, k].max()  # a tail's length: there the target may end
            near, far = REACH * step, energy((x[last] + step).to(dtype))
            after, before = (energy(each.to(dtype)).double() for each in (x[last] + near, x[last]))
            gap = ((after - before) / temperature - (near * slope[last]).sum(-1)).abs()
            gap = torch.where(far.isfinite(), gap, torch.inf)
            if float((gap < JUMP).double().mean()) > 1 - WALLS:
                found.append(
                    f"samples end too early in the {side} tail of coordinate {k}: Stein's identity "
                    f"is off by {float(rest[k]):.2f} ± {float(error[k]):.2f} there; give it more "
                    "seconds, or coordinates that depend on each other less"
                )
    return found
