"""What log-weights prove: bounds of log Z and of the total variation (docs/certificate.md).

Two identities hold for every sampler with log-weights. E_q[w] = Z over its own paths q, and
E_p[1/w] = 1/Z over paths p that are drawn backwards from samples of the target. Both variables are
non-negative, so each has a lower confidence bound that assumes nothing about its law
(:mod:`vgs_rl.evaluation.confidence`). They bound log Z from below and from above. The upper bound
needs the samples of the target: forward paths alone cannot rule out a mode that they never visit.

The total variation between the samples and the target is at most that between the paths, and
TV = E_q[(1 - w/Z)₊] = E_p[(1 - Z/w)₊]. The first form rises with Z and takes the upper bound of
log Z. The second falls with Z and takes the lower one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vgs_rl.evaluation.confidence import check_confidence, log_mean_low
from vgs_rl.weights import (
    cleaned,
    effective_share,
    largest_weight,
    log_mean_weight,
    log_z_standard_error,
    pareto_k,
    refuse_infinite,
    reliable_k,
)

Premise = Literal["exact samples", "reference samples (MCMC)", "explored particles (SMC)"]
PREMISES: tuple[Premise, ...] = (
    "exact samples",
    "reference samples (MCMC)",
    "explored particles (SMC)",
)


@dataclass(frozen=True, kw_only=True, repr=False)
class Certificate:
    """What log-weights prove about log Z and about the sampler, and what they suggest.

    `log_z_low`, `log_z_high` and `tv_bound` are proven: all of them hold at once with a probability
    of at least `confidence`, the last two under `premise`. All other numbers are estimates.

    Attributes:
        n: forward paths.
        n_backward: backward paths; 0 without them.
        confidence: least probability with which all bounds hold at once.
        premise: what the backward paths were drawn from, which is taken to be independent samples
            of the target; None without them.
        log_z: log mean weight of the forward paths.
        log_z_error: its standard error to first order, or None where that means nothing.
        log_z_low: lower bound of log Z [nats], without any premise; -inf if no weight is above 0.
        log_z_high: upper bound of log Z [nats], or None without backward paths.
        tv_bound: upper bound, in [0, 1], of the total variation between samples and target, or None
            without backward paths or where the bounds of log Z contradict each other.
        k_hat: tail index of w; NaN where n is below 25. It does not see modes that no path visits.
        k_limit: the largest `k_hat` at which ESS and `log_z_error` mean something.
        k_hat_backward: tail index of 1/w on the backward paths, or None without them.
        ess: effective share of all n paths, in [0, 1].
        largest_weight: share of the largest weight in the sum of all; NaN if all are 0.
        sample_size: exp(EUBO - log Z), about as many paths as importance sampling needs (Chatterjee
            and Diaconis, Ann. Appl. Probab. 28, 2018), or None without backward paths.
    """

    n: int
    n_backward: int
    confidence: float
    premise: Premise | None
    log_z: float
    log_z_error: float | None
    log_z_low: float
    log_z_high: float | None
    tv_bound: float | None
    k_hat: float
    k_limit: float
    k_hat_backward: float | None
    ess: float
    largest_weight: float
    sample_size: float | None

    @property
    def width(self) -> float:
        """`log_z_high` - `log_z_low` [nats]; +inf without an upper bound."""
        return math.inf if self.log_z_high is None else self.log_z_high - self.log_z_low

    @property
    def contradicts(self) -> bool:
        """Whether the bounds of log Z exclude each other, which refutes the premise."""
        return self.width < 0

    @property
    def reliable(self) -> bool:
        """Whether the tail of w is light enough for ESS and standard error to mean something."""
        return self.k_hat <= self.k_limit

    def rows(self) -> Iterator[tuple[str, str]]:
        """Names and values, as a table shows them."""
        level = f"{100 * self.confidence:g} %"
        source = f"from {self.premise}" if self.premise else "no samples of the target"
        yield "log Z, at least", f"{self.log_z_low:.4f} ({level}, no premise)"
        if self.log_z_high is None:
            yield "log Z, at most", f"not known: {source}"
        else:
            yield "log Z, at most", f"{self.log_z_high:.4f} ({level}, {source})"
        if self.tv_bound is not None:
            yield "total variation, at most", f"{self.tv_bound:.4f} ({level}, {source})"
        if self.contradicts:
            yield "premise", f"refuted: {self.premise} are not of this target"
        error = "no standard error" if self.log_z_error is None else f"± {self.log_z_error:.4f}"
        yield "log Z, estimate", f"{self.log_z:.4f}, {error}"
        verdict = "" if self.reliable else f", above {self.k_limit:.2f}: ESS is not reliable"
        yield "k-hat of w", f"{self.k_hat:.2f}{verdict}"
        if self.k_hat_backward is not None:
            yield "k-hat of 1/w", f"{self.k_hat_backward:.2f}"
        yield "ESS of all", f"{self.ess:.3f}"
        yield "largest weight", f"{self.largest_weight:.4f}"
        if self.sample_size is not None:
            yield "sample size, exp(EUBO - log Z)", f"{self.sample_size:,.3g}"
        yield "paths", f"{self.n:,} forward, {self.n_backward:,} backward"

    def as_dict(self) -> dict[str, Any]:
        """All fields, for strict JSON: numbers that are not finite are None."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }

    def __repr__(self) -> str:
        rows = list(self.rows())
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)


def certificate(
    log_weight: Tensor,
    backward: Tensor | None = None,
    *,
    premise: Premise | None = None,
    confidence: float = 0.95,
) -> Certificate:
    """Bounds of log Z and of the total variation that hold for weights of any law.

    With backward paths four bounds share the error 1 - `confidence` equally: two of log Z and the
    two forms of the total variation. Without them the lower bound has all of it.

    Args:
        log_weight: log w of independent forward paths, shape (n,); NaN and -inf are w = 0.
        backward: log w of paths drawn backwards from independent samples of the target, shape (m,),
            as :meth:`vgs_rl.Sampler.reverse_log_weight` returns them, or None. +inf is a state that
            the sampler cannot reach. NaN and -inf, which say that energy or drift are not finite
            there, loosen the bounds in the same way.
        premise: what the backward paths were drawn from; needed with them.
        confidence: least probability, in (0, 1), with which all bounds hold at once.

    Raises:
        ValueError: if n or m is below 2, a forward log-weight is +inf, or `premise` or `confidence`
            is not one of its values.
    """
    check_confidence(confidence)
    if (backward is not None or premise is not None) and premise not in PREMISES:
        raise ValueError(f"premise must be one of {', '.join(PREMISES)}, got {premise!r}")
    _check_shape("log_weight", log_weight)
    refuse_infinite(log_weight)
    log_weight = cleaned(log_weight.detach()).double()
    log_z = float(log_mean_weight(log_weight))
    some = math.isfinite(log_z)
    bounds = _Bounds(log_z_low=log_mean_low(log_weight, confidence))
    k_hat_backward = sample_size = None
    if backward is not None:
        _check_shape("backward", backward)
        backward = backward.detach().double()
        unknown = backward.isnan() | torch.isneginf(backward)
        bounds = _bounds(log_weight, backward.masked_fill(unknown, torch.inf), confidence)
        known = not bool(unknown.any())
        reached = bool(torch.isfinite(backward).any())
        k_hat_backward = (
            pareto_k(-backward.masked_fill(unknown, torch.inf)) if reached else math.nan
        )
        sample_size = float((backward.mean() - log_z).exp()) if known else math.nan
    return Certificate(
        n=len(log_weight),
        n_backward=0 if backward is None else len(backward),
        confidence=confidence,
        premise=None if backward is None else premise,
        log_z=log_z,
        log_z_error=log_z_standard_error(log_weight) if some else None,
        log_z_low=bounds.log_z_low,
        log_z_high=bounds.log_z_high,
        tv_bound=bounds.tv,
        k_hat=pareto_k(log_weight) if some else math.nan,
        k_limit=reliable_k(len(log_weight)),
        k_hat_backward=k_hat_backward,
        ess=float(effective_share(log_weight)),
        largest_weight=float(largest_weight(log_weight)) if some else math.nan,
        sample_size=sample_size,
    )


@dataclass(frozen=True, kw_only=True)
class _Bounds:
    log_z_low: float
    log_z_high: float | None = None
    tv: float | None = None


def _bounds(log_weight: Tensor, backward: Tensor, confidence: float) -> _Bounds:
    """Four bounds that hold at once: each takes a quarter of the error (union bound)."""
    each = 1 - (1 - confidence) / 4
    low = log_mean_low(log_weight, each)
    high = -log_mean_low(-backward, each)
    if high < low:
        return _Bounds(log_z_low=low, log_z_high=high)
    # (1 - r)₊ = 1 - min(1, r), so a lower bound of E[min(1, r)] is an upper one of TV.
    overlaps = (
        log_mean_low((log_weight - high).clamp_max(0.0), each),  # r = w / Z over q
        log_mean_low((low - backward).clamp_max(0.0), each),  # r = Z / w over p
    )
    return _Bounds(log_z_low=low, log_z_high=high, tv=-math.expm1(max(overlaps)))


def _check_shape(name: str, log_weight: Tensor) -> None:
    if log_weight.ndim != 1 or len(log_weight) < 2:
        raise ValueError(f"{name} must have shape (n,), n ≥ 2, got {tuple(log_weight.shape)}")
