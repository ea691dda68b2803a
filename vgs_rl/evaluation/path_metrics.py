"""Metrics of a report that come from log-weights: bounds, log Z, and whether to believe them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vgs_rl.evaluation.certificate import Certificate, Premise
from vgs_rl.evaluation.metrics import path_ess
from vgs_rl.evaluation.report import Metric
from vgs_rl.weights import (
    cleaned,
    dead_paths,
    effective_share,
    largest_weight,
    live_elbo,
    log_mean_weight,
    log_z_standard_error,
    pareto_k,
    refuse_infinite,
    reliable_k,
)


def log_z_metrics(
    log_weight: Tensor, log_z: float | None, *, independent: bool
) -> dict[str, Metric]:
    """``log_z``, or ``log_z_error`` where log Z is known, with a standard error if there is one.

    Args:
        log_weight: shape (n,).
        log_z: the truth, or None.
        independent: whether the weights are of independent paths.

    Raises:
        ValueError: if a log-weight is +inf.
    """
    n = len(log_weight)
    refuse_infinite(log_weight)
    log_weight = log_weight.double()
    estimate = float(log_mean_weight(log_weight))
    error = None
    if not independent:
        doubt = "no standard error: the particles interact"
    elif not math.isfinite(estimate):
        doubt = "every path has weight 0"
    else:
        error = log_z_standard_error(log_weight)
        doubt = "no standard error: too few paths carry the weight, see k_hat"
    details = {"log_z_estimate": estimate, "standard_error": error}
    if log_z is None:
        note = "log mean weight" if error is not None else f"log mean weight, {doubt}"
        return {"log_z": Metric(value=estimate, ideal=None, n=n, note=note, details=details)}
    note = f"log Z = {log_z:.4f}" + ("" if error is not None else f", {doubt}")
    details["log_z"] = log_z
    value = abs(estimate - log_z)
    return {"log_z_error": Metric(value=value, ideal=0.0, n=n, note=note, details=details)}


def path_metrics(
    log_weight: Tensor, log_z: float | None, batches: int, batch_size: int
) -> dict[str, Metric]:
    """Metrics of the log-weights of independent paths, but for log Z.

    Args:
        log_weight: shape (n,).
        log_z: the truth, or None.
        batches: batches of the path-ESS, at most as many as n allows.
        batch_size: paths in each.

    Returns:
        ``elbo``, ``ess`` and ``path_ess``; ``elbo_live`` where paths have weight 0;
        ``largest_weight`` and ``k_hat`` unless all have.
    """
    log_weight = cleaned(log_weight.double())
    n, dead = len(log_weight), dead_paths(log_weight)
    size = min(batch_size, n)
    used = min(batches, n // size)
    ess = float(effective_share(log_weight))
    metrics = {
        "elbo": _bound(log_weight, log_z, "at most log Z"),
        "ess": Metric(value=ess, ideal=1.0, n=n, note="of all paths: (Σw)² / (n Σw²)"),
        "path_ess": Metric(
            value=float(path_ess(log_weight, batches, batch_size)),
            ideal=1.0,
            n=used * size,
            note=f"median of {used} x {size:,}",
            details={"batches": used, "batch_size": size},
        ),
    }
    metrics["elbo"].details["log_z_estimate"] = float(log_mean_weight(log_weight))
    if dead:
        metrics["elbo"].note += f"; {dead:,} paths have weight 0"
        live = log_weight[torch.isfinite(log_weight)]
        metrics["elbo_live"] = Metric(
            value=float(live_elbo(log_weight)),
            ideal=log_z,
            n=len(live),
            note=f"of the sampler that throws the {dead:,} paths of weight 0 away",
            details={"dead_paths": dead, "standard_error": _standard_error(live)},
        )
    if dead == n:
        return metrics
    k, most = pareto_k(log_weight), reliable_k(n)
    if k <= most:
        verdict = "weights can be believed"
    else:
        verdict = "too few paths" if math.isnan(k) else "ess and log Z cannot be believed"
        metrics["ess"].note += ", not to be believed: see k_hat"
    metrics["largest_weight"] = Metric(
        value=float(largest_weight(log_weight)), ideal=1 / n, n=n, note="its share in the sum"
    )
    metrics["k_hat"] = Metric(
        value=k,
        ideal=None,
        n=n,
        note=f"{verdict} (limit {most:.2f}); modes that no path visits are not seen",
        details={"limit": most},
    )
    return metrics


def upper_metrics(
    log_weight: Tensor, log_z: float | None, elbo: Metric, premise: Premise
) -> dict[str, Metric]:
    """The EUBO from paths drawn backwards, and its gap to the ELBO.

    +inf is a true value here: states of the target that the sampler cannot reach. An energy that is
    not finite at its own samples leaves the EUBO unknown.

    Args:
        log_weight: of the backward paths, shape (m,).
        log_z: the truth, or None.
        elbo: the ELBO's metric.
        premise: what the backward paths were drawn from.
    """
    log_weight = log_weight.double()
    eubo = _bound(log_weight, log_z, "at least log Z")
    if unknown := int((log_weight.isnan() | torch.isneginf(log_weight)).sum()):
        eubo.value, eubo.details["standard_error"] = math.nan, None
        eubo.note = f"unknown: {unknown:,} of {premise} have no finite energy or drift"
    elif unreached := int(torch.isposinf(log_weight).sum()):
        eubo.note += f"; {unreached:,} of {premise} cannot be reached"
    errors = (elbo.details["standard_error"], eubo.details["standard_error"])
    error = None if None in errors else math.hypot(*errors)
    gap = Metric(
        value=eubo.value - elbo.value,
        ideal=0.0,
        n=min(eubo.n, elbo.n),
        note="EUBO - ELBO [nats], an estimate",
        details={"standard_error": error},
    )
    for metric in (eubo, gap):
        metric.details["premise"] = premise
    return {"eubo": eubo, "gap": gap}


def certificate_metrics(proven: Certificate, log_z: float | None) -> dict[str, Metric]:
    """``log_z_low``; with backward paths also ``log_z_high`` and ``tv_bound``.

    Args:
        proven: the certificate.
        log_z: the truth, or None.
    """
    level = f"holds with {100 * proven.confidence:g} %"
    details: dict[str, Any] = {"confidence": proven.confidence}
    metrics = {
        "log_z_low": Metric(
            value=proven.log_z_low,
            ideal=log_z,
            n=proven.n,
            note=f"at most log Z, {level}",
            details=dict(details),
        )
    }
    if proven.log_z_high is None:
        return metrics
    details |= {"premise": proven.premise, "k_hat_backward": proven.as_dict()["k_hat_backward"]}
    metrics["log_z_high"] = Metric(
        value=proven.log_z_high,
        ideal=log_z,
        n=proven.n_backward,
        note=f"at least log Z, {level}",
        details=dict(details),
    )
    if proven.contradicts:
        metrics["log_z_high"].note = f"below log_z_low: {proven.premise} are not of this target"
    if proven.tv_bound is not None:
        metrics["tv_bound"] = Metric(
            value=proven.tv_bound,
            ideal=0.0,
            n=min(proven.n, proven.n_backward),
            note=f"at least the total variation from the target, {level}",
            details=dict(details),
        )
    return metrics


def _bound(log_weight: Tensor, log_z: float | None, note: str) -> Metric:
    """A mean log-weight: a bound of log Z, tight where it equals it."""
    details = {"standard_error": _standard_error(log_weight)}
    value = float(log_weight.mean())
    return Metric(value=value, ideal=log_z, n=len(log_weight), note=note, details=details)


def _standard_error(values: Tensor) -> float | None:
    """That of the mean of independent numbers, or None where it is unknown."""
    if len(values) < 2 or not bool(torch.isfinite(values).all()):
        return None
    return float(values.double().std()) / math.sqrt(len(values))
