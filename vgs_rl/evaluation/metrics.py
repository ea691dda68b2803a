"""Distances between samples and a reference: pure, deterministic functions on tensors.

None of them means much alone: each depends on sample counts, bins or regularisation, so
:func:`vgs_rl.evaluation.evaluate.evaluate` puts the ideal next to each, the same metric for
an equally large set of exact samples. Estimates that come from log-weights (log Z, ELBO, EUBO) are
in :mod:`vgs_rl.weights`; only the path-ESS, which needs batches, is here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vgs_rl.weights import cleaned, effective_share

# Marginal error (2-norm) at which Sinkhorn iterations stop, relative to the norm of the marginal.
SINKHORN_TOLERANCE = 4e-3
SINKHORN_ITERATIONS = 100


def total_variation(values: Tensor, reference: Tensor, bins: int = 200) -> Tensor:
    """Total variation distance between two histograms of numbers, a scalar in [0, 1].

    TVD = ½ Σ_b |h_b - h'_b| over `bins` equal bins between the least and the largest finite
    reference value, and two overflow bins for what lies below and above; the h_b of each set sum
    to 1. Values of +∞ and NaN count as above, -∞ as below. Of energies this is the TVD-E of
    arXiv:2502.13280 with one difference: the published code drops mass outside the reference
    range, which rewards a sampler for leaving it; here such mass counts in full.

    The expected value for two exact sets of n independent numbers is not 0 but up to
    √(bins / (pi n)): compare only at equal n and bins.

    Args:
        values: energies or distances of the samples, shape (n,).
        reference: those of the reference, shape (m,).
        bins: number of equal bins.

    Raises:
        ValueError: on empty or non-vector input, no finite reference value, or bins below 1.
    """
    _check_vectors(values, reference)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    reference = reference.detach().double()
    finite = reference[torch.isfinite(reference)]
    if len(finite) == 0:
        raise ValueError(f"reference must hold a finite value, got {len(reference)} none")
    low, high = finite.min(), finite.max()
    histograms = [
        _histogram(each.detach().double().to(reference.device), low, high, bins)
        for each in (values, reference)
    ]
    return 0.5 * (histograms[0] - histograms[1]).abs().sum()


def published_total_variation(
    values: Tensor,
    reference: Tensor,
    bins: int = 200,
    limits: tuple[float, float] = (-100.0, 100.0),
) -> Tensor:
    """TVD-E and TVD-D of particle systems as in the code of arXiv:2502.13280, a scalar in [0, 1].

    Equal bins over a fixed range; what lies outside is dropped and each histogram renormalised,
    so that the metric sees neither mass outside nor anything finer than a bin, 1 by default: all
    distances of LJ-13 fall into a handful. Where fewer than 60 % of the samples are inside, or
    none of the reference, the distance is 1; there the published code returns 1e10 or fails.

    Args:
        values: energies or distances of the samples, shape (n,).
        reference: those of the reference, shape (m,).
        bins: number of equal bins.
        limits: the range.
    """
    _check_vectors(values, reference)
    low, high = (reference.new_tensor(limit, dtype=torch.float64) for limit in limits)
    inside = [
        _histogram(each.detach().double().to(reference.device), low, high, bins)[1:-1]
        for each in (values, reference)
    ]
    shares = [float(h.sum()) for h in inside]
    if shares[0] < 0.6 or shares[1] == 0:
        return reference.new_ones((), dtype=torch.float64)
    return 0.5 * (inside[0] / shares[0] - inside[1] / shares[1]).abs().sum()


def _check_vectors(values: Tensor, reference: Tensor) -> None:
    for name, each in (("values", values), ("reference", reference)):
        if each.ndim != 1 or len(each) == 0:
            raise ValueError(f"{name} must have shape (n,) with n ≥ 1, got {tuple(each.shape)}")


def _histogram(values: Tensor, low: Tensor, high: Tensor, bins: int) -> Tensor:
    """Shares in [below, bins …, above], shape (bins + 2,)."""
    position = (values - low) / (high - low).clamp_min(torch.finfo(values.dtype).tiny)
    inside = (position * bins).clamp(0, bins - 1) + 1  # the right end belongs to the last bin
    index = torch.where(values < low, 0.0, inside)
    index = torch.where((values > high) | values.isnan(), bins + 1.0, index)
    counts = torch.bincount(index.long(), minlength=bins + 2)
    return counts.double() / len(values)


def sinkhorn(
    x: Tensor,
    y: Tensor,
    n: int = 2_000,
    relative_reg: float = 0.05,
    reg: float | None = None,
) -> Tensor:
    """Debiased entropic W2² between samples x and reference y, a scalar in squared length.

    The Sinkhorn divergence of Feydy et al. (arXiv:1810.08278) with cost c = ‖x - y‖²:
    S(x, y) = OT(x, y) - ½ OT(x, x) - ½ OT(y, y), where
    OT(x, y) = min_P Σ P c + reg · KL(P ‖ uniform x uniform), taken from its dual potentials.
    It is 0 for identical sets, and exactly ‖shift‖² between a set and its translate; published
    entropic costs without the debiasing are not on its scale.

    Solved by POT's log-domain iterations to a relative marginal error of 4e-3, at most 100
    iterations; what these leave below 0 is cut off. Memory is a few n x n matrices (16 to 32 MB
    each at n = 2,000), however long x is.

    Args:
        x: samples, shape (N, D).
        y: reference, shape (M, D).
        n: at most this many rows of each set are used, evenly spaced over it.
        relative_reg: the regularisation as a fraction of the mean cost of the reference against
            itself, so that it does not depend on the samples under judgement.
        reg: the regularisation itself, in squared length; replaces `relative_reg`.

    Returns:
        The divergence; +∞ if a row in use is not finite.

    Raises:
        ValueError: on wrong shapes, n below 1, or a regularisation that is not positive.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not len(x) or not len(y):
        raise ValueError(
            f"x and y must have shapes (N, D) and (M, D), got {tuple(x.shape)}, {tuple(y.shape)}"
        )
    if reg is None:
        reg = sinkhorn_regularisation(y, n, relative_reg)
    return SinkhornSet(x, n, reg).divergence(SinkhornSet(y.to(x.device), n, reg))


class SinkhornSet:
    """A set of states with its entropic cost against itself, for :func:`sinkhorn` with several.

    Args:
        x: states, shape (N, D).
        n: at most this many rows are used, evenly spaced over x.
        reg: the regularisation, in squared length.

    Raises:
        ValueError: if reg is not a positive number.
    """

    def __init__(self, x: Tensor, n: int, reg: float) -> None:
        if not (math.isfinite(reg) and reg > 0):
            raise ValueError(f"reg must be a positive number, got {reg}")
        self.x, self.reg = evenly_spaced_rows(x, n).detach().double(), reg
        cost = _squared_distances(self.x, self.x).div_(reg)
        self.finite = bool(torch.isfinite(cost).all())
        if self.finite:
            self.value, self.u, self.v = _entropic_cost(cost, None)

    def divergence(self, reference: SinkhornSet) -> Tensor:
        """See :func:`sinkhorn`; a scalar."""
        cost = _squared_distances(self.x, reference.x.to(self.x)).div_(self.reg)
        if not (self.finite and reference.finite and bool(torch.isfinite(cost).all())):
            return self.x.new_full((), math.inf)
        # The potentials of each set against itself are near those of one against the other.
        value, _, _ = _entropic_cost(cost, (self.u, reference.v))
        return (self.reg * (value - 0.5 * (self.value + reference.value))).clamp_min(0.0)


def _entropic_cost(
    cost: Tensor, start: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """OT of uniform marginals at unit regularisation, and both log scalings."""
    import ot  # a second of import time, needed here only

    # An exponent of up to 1e5 keeps two digits in float32, which is three times as fast.
    dtype = torch.float32 if float(cost.max()) < 1e5 else torch.float64
    cost = cost.to(dtype)
    rows, columns = (cost.new_full((k,), 1.0 / k) for k in cost.shape)
    if start is not None:
        start = (start[0].to(dtype), start[1].to(dtype))
    _, log = ot.bregman.sinkhorn_log(
        rows,
        columns,
        cost,
        1.0,
        numItermax=SINKHORN_ITERATIONS,
        stopThr=SINKHORN_TOLERANCE / math.sqrt(cost.shape[1]),
        warn=False,
        log=True,
        warmstart=start,
    )
    u, v = log["log_u"], log["log_v"]
    value = (u - rows.log()).double().mean() + (v - columns.log()).double().mean()
    return value, u, v


def sinkhorn_regularisation(y: Tensor, n: int = 2_000, relative_reg: float = 0.05) -> float:
    """`relative_reg` times the mean of ‖y_i - y_j‖² over at most n rows of y, shape (M, D).

    Equals 2 · relative_reg times the summed coordinate variances; 1 stands in for a single point.
    """
    if not relative_reg > 0:
        raise ValueError(f"relative_reg must be a positive number, got {relative_reg}")
    rows = evenly_spaced_rows(y, n).detach().double()
    mean_cost = 2.0 * float(rows.var(dim=0, correction=0).sum())
    return relative_reg * (mean_cost if mean_cost > 0 else 1.0)


def evenly_spaced_rows(x: Tensor, n: int) -> Tensor:
    """At most n rows of x, evenly spaced: the same share of every part of an ordered set."""
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if len(x) <= n:
        return x
    return x[torch.arange(n, device=x.device) * len(x) // n]


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """‖x_i - y_j‖², shape (N, M); direct differences, since ‖x‖² - 2xy + ‖y‖² cancels."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square_()


def wasserstein(x: Tensor, y: Tensor) -> Tensor:
    """2-Wasserstein distance between two equally large sets of points, a scalar.

    W2² = min over pairings π of (1/n) Σ_i ‖x_i - y_π(i)‖², exactly: between uniform weights on
    equally many points some optimal plan is a pairing, so linear assignment finds it.
    The distance of two exact sets is far from 0 in high dimensions: compare at equal n only.

    Args:
        x: samples, shape (n, D).
        y: reference, shape (n, D).

    Returns:
        The distance; +∞ if a row is not finite.

    Raises:
        ValueError: on wrong shapes.
    """
    if x.ndim != 2 or x.shape != y.shape or not len(x):
        raise ValueError(
            f"x and y must have the same shape (n, D), got {tuple(x.shape)}, {tuple(y.shape)}"
        )
    x, y = x.detach().double(), y.detach().double()
    return assignment_distance(_squared_distances(x, y.to(x.device)))


def assignment_distance(cost: Tensor) -> Tensor:
    """√ of the least mean cost over all pairings of rows with columns, a scalar.

    Args:
        cost: squared distances, shape (n, n).

    Returns:
        The distance; +∞ if a cost is not finite.
    """
    if not bool(torch.isfinite(cost).all()):
        return cost.new_full((), math.inf)
    from scipy.optimize import linear_sum_assignment  # a third of a second of import time

    rows, columns = linear_sum_assignment(cost.cpu().numpy())
    return cost[rows, columns].mean().sqrt()


def wasserstein_1d(values: Tensor, reference: Tensor) -> Tensor:
    """2-Wasserstein distance between two equally large sets of numbers, a scalar.

    The root mean squared difference of equal quantiles. Squares make it heavy-tailed: one sample
    of energy 10⁶ among 2,000 moves it by 2·10⁴, and one of infinite energy makes it infinite.

    Args:
        values: energies or distances of the samples, shape (n,).
        reference: those of the reference, shape (n,).

    Returns:
        The distance; +∞ if a value is not finite.

    Raises:
        ValueError: on wrong shapes.
    """
    _check_vectors(values, reference)
    if len(values) != len(reference):
        raise ValueError(f"both must be equally long, got {len(values)} and {len(reference)}")
    pairs = [each.detach().double().sort().values for each in (values, reference)]
    difference = pairs[0] - pairs[1].to(pairs[0].device)
    if not bool(torch.isfinite(difference).all()):
        return difference.new_full((), math.inf)
    return difference.square().mean().sqrt()


def std_error(x: Tensor, y: Tensor) -> Tensor:
    """(1/D) Σ_i |std(x_i) - std(y_i)|, a scalar: the std error of arXiv:2502.13280.

    Standard deviations are per coordinate, over all rows, with Bessel's correction, in float64.

    Args:
        x: samples, shape (N, D), N ≥ 2.
        y: reference, shape (M, D), M ≥ 2.

    Returns:
        The error; NaN if a sample is not finite.

    Raises:
        ValueError: on wrong shapes.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or len(x) < 2 or len(y) < 2:
        raise ValueError(
            "x and y must have shapes (N, D) and (M, D) with at least 2 rows, "
            f"got {tuple(x.shape)}, {tuple(y.shape)}"
        )
    return (x.double().std(dim=0) - y.double().std(dim=0).to(x.device)).abs().mean()


def mode_weight_error(indicators: Tensor, probabilities: Tensor) -> Tensor:
    """max_m |mean_i h_m(x_i) - p_m|, a scalar: how far the heaviest mistake in mode mass goes.

    Args:
        indicators: h(x), shape (n, M), see :meth:`vgs_rl.Energy.mode_indicators`.
        probabilities: exact means p of h under the target, shape (M,).

    Raises:
        ValueError: if the shapes do not fit.
    """
    if indicators.ndim != 2 or not len(indicators) or probabilities.shape != indicators.shape[1:]:
        raise ValueError(
            "indicators and probabilities must have shapes (n, M) and (M,), "
            f"got {tuple(indicators.shape)}, {tuple(probabilities.shape)}"
        )
    means = indicators.double().mean(dim=0)
    return (means - probabilities.to(means)).abs().max()


def path_ess(log_weight: Tensor, batches: int = 10, batch_size: int = 2_000) -> Tensor:
    """Median over batches of (Σ w)² / (n Σ w²), a scalar in [0, 1].

    The estimate is heavy-tailed: one path of huge weight ruins a whole set, and the same sampler
    gave 0.74 and 0.04 on two sets. The median over independent batches is repeatable; it also
    depends on the batch size, falling with it for a sampler that misses mass.

    Args:
        log_weight: log w of independent paths, shape (n,); NaN and -inf are weight 0.
        batches: number of batches to use at most.
        batch_size: paths in each; all n form one batch where there are fewer.
    """
    if batches < 1 or batch_size < 1:
        raise ValueError(
            f"batches and batch_size must be at least 1, got {batches} and {batch_size}"
        )
    values = torch.stack([effective_share(b) for b in _batched(log_weight, batch_size)])
    return values[:batches].quantile(0.5)


def _batched(log_weight: Tensor, batch_size: int) -> Tensor:
    """Whole batches, shape (k, batch_size), in float64."""
    log_weight = cleaned(log_weight.detach().double())
    size = min(batch_size, len(log_weight))
    whole = len(log_weight) // size
    return log_weight[: whole * size].view(whole, size)
