"""Importance weights: estimates, bounds, diagnostics and resampling from log-weights.

One convention holds for every log-weight of the package. NaN and -inf are weight 0: the state is
outside the target, or its energy is not known. +inf, and a set without any finite log-weight, are
errors: no estimate follows from them. Functions that say "checked" raise a ValueError then, which
on a GPU waits for it. The others are for training: they stay on the device, and give the limits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def cleaned(log_weight: Tensor) -> Tensor:
    """Log-weights with NaN as -inf, which is weight 0; +inf stays. On the device."""
    return torch.where(log_weight.isnan(), -torch.inf, log_weight)


def checked(log_weight: Tensor) -> Tensor:
    """The same, for use in estimates.

    Args:
        log_weight: shape (n,).

    Raises:
        ValueError: if one is +inf, or none is finite; says how many.
    """
    refuse_infinite(log_weight)
    log_weight = cleaned(log_weight.detach())
    if not bool(torch.isfinite(log_weight).any()):
        raise ValueError(f"log_weight must hold a finite value, got none of {len(log_weight):,}")
    return log_weight


def refuse_infinite(log_weight: Tensor) -> None:
    """Raises a ValueError if a log-weight is +inf; says how many, of shape (n,)."""
    if infinite := int(torch.isposinf(log_weight).sum()):
        raise ValueError(
            f"log_weight must not be +inf, got {infinite:,} of {len(log_weight):,}: "
            "the energy is -inf there"
        )


def dead_paths(log_weight: Tensor) -> int:
    """How many weights are 0: log-weights that are NaN or -inf."""
    return int(torch.isneginf(cleaned(log_weight)).sum())


def log_mean_weight(log_weight: Tensor) -> Tensor:
    """Log of the mean weight, a scalar on the device; -inf where every weight is 0."""
    return torch.logsumexp(cleaned(log_weight), 0) - math.log(len(log_weight))


def log_z_estimate(log_weight: Tensor) -> Tensor:
    """Log of the mean weight, checked: its exponential is an unbiased estimate of Z."""
    return log_mean_weight(checked(log_weight))


def effective_share(log_weight: Tensor) -> Tensor:
    """(Σ w)² / (n Σ w²), a scalar in [0, 1] on the device; 0 where every weight is 0."""
    log_weight = cleaned(log_weight)
    log_share = 2 * torch.logsumexp(log_weight, 0) - torch.logsumexp(2 * log_weight, 0)
    return torch.exp(log_share).nan_to_num(0.0) / len(log_weight)


def effective_sample_size(log_weight: Tensor) -> Tensor:
    """(Σ w)² / (n Σ w²), a scalar in (0, 1], checked."""
    return effective_share(checked(log_weight))


def live_elbo(log_weight: Tensor) -> Tensor:
    """The ELBO of the sampler that throws dead paths away and draws again, on the device.

    E[log w] is -inf as soon as one path in a million has weight 0. The sampler that draws again
    until w > 0 has the weights w P(w > 0), whose mean is Z too. So the mean of log w over the paths
    that live, plus the log of their share, is a lower bound of log Z. Without dead paths it is the
    ELBO. It is -inf where every weight is 0.
    """
    log_weight = cleaned(log_weight)
    live = ~torch.isneginf(log_weight)
    count = live.sum().to(log_weight.dtype)
    mean = torch.where(live, log_weight, 0.0).sum() / count
    return torch.where(count > 0, mean + (count / len(log_weight)).log(), -torch.inf)


def largest_weight(log_weight: Tensor) -> Tensor:
    """The share of the largest weight in the sum of all, a scalar in [1/n, 1], checked."""
    log_weight = checked(log_weight)
    return torch.exp(log_weight.max() - torch.logsumexp(log_weight, 0))


def pareto_k(log_weight: Tensor) -> float:
    """The tail index k̂ of the weights: moments of order below 1/k̂ exist (PSIS), checked.

    A generalised Pareto distribution is fitted to how far the min(n/5, 3√n) largest weights exceed
    the next one (Zhang, Stephens, Technometrics 51, 2009), with the weak prior of Vehtari et al.
    (JMLR 25, 2024). It judges the weights that were drawn: a mode that no path visits is not seen.

    Returns:
        k̂; 0 for a tail of equal weights, +inf where fewer than five weights hold all of the tail,
        NaN where n is below 25.

    Args:
        log_weight: of independent paths, shape (n,).
    """
    log_weight = checked(log_weight).double()
    n = len(log_weight)
    tail = math.ceil(min(0.2 * n, 3 * math.sqrt(n)))
    if n < 25:
        return math.nan
    largest = torch.exp(log_weight - log_weight.max()).topk(tail + 1).values.flip(0)
    excess = largest[1:] - largest[0]
    excess = excess[excess > 0]
    if len(excess) < 5:
        return math.inf if len(excess) else 0.0
    return _pareto_shape(excess)


def _pareto_shape(excess: Tensor) -> float:
    """Shape k of a generalised Pareto distribution, from M rising numbers above 0, shape (M,)."""
    m = len(excess)
    grid = 30 + math.isqrt(m)
    j = torch.arange(1, grid + 1, dtype=excess.dtype, device=excess.device)
    quartile = excess[int(m / 4 + 0.5) - 1]
    b = 1 / excess[-1] + (1 - (grid / (j - 0.5)).sqrt()) / (3 * quartile)
    k = torch.log1p(-b.unsqueeze(-1) * excess).mean(-1)
    profile = m * ((-b / k).log() - k - 1)  # log-likelihood of each b at its best k
    posterior = torch.softmax(profile.nan_to_num(-torch.inf), 0)
    best = (b * posterior).sum()
    shape = float(torch.log1p(-best * excess).mean())
    return (m * shape + 5) / (m + 10)  # the prior: ten observations of k = 0.5


def reliable_k(n: int) -> float:
    """The largest k̂ at which n weights give a standard error (Vehtari et al., 2024)."""
    return min(1 - 1 / math.log10(n), 0.7) if n > 1 else -math.inf


def log_z_standard_error(log_weight: Tensor) -> float | None:
    """Standard error of :func:`log_z_estimate` to first order, or None where it means nothing.

    It means nothing where k̂ is above :func:`reliable_k` or unknown, or one weight holds more than a
    tenth of all: too few weights decide the mean, and the error as they show it is too small.

    Args:
        log_weight: of independent paths, shape (n,).
    """
    k = pareto_k(log_weight)
    if not k <= reliable_k(len(log_weight)) or float(largest_weight(log_weight)) > 0.1:
        return None  # NaN is not below either
    share = float(effective_share(log_weight.double()))
    return math.sqrt(max(1 / share - 1, 0.0) / len(log_weight))


def temper(log_weight: Tensor, least: float) -> Tensor:
    """Normalised weights w^beta with the largest beta ≤ 1 whose effective sample size ≥ `least`.

    Args:
        log_weight: shape (n,), checked; what has weight 0 keeps it.
        least: effective sample size to keep, as a fraction in [0, 1].

    Returns:
        Weights that sum to 1, shape (n,).
    """
    log_weight = checked(log_weight)
    centred = log_weight - log_weight.max()
    finite = torch.isfinite(centred)
    low, high = centred.new_zeros(()), centred.new_ones(())
    beta = high.clone()
    for _ in range(30):  # bisection on tensors: no host round trip
        scaled = torch.where(finite, beta * centred, -torch.inf)
        enough = effective_share(scaled) >= least
        low, high = torch.where(enough, beta, low), torch.where(enough, high, beta)
        beta = torch.where(enough & (beta >= 1.0), beta, 0.5 * (low + high))
    return torch.softmax(torch.where(finite, low * centred, -torch.inf), 0)


def systematic_resample(log_weight: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Indices of n draws, each row i expected n w_i / Σ w times, with one uniform number.

    Systematic resampling (Kitagawa 1996): unbiased, with less variance than multinomial draws.

    Args:
        log_weight: shape (m,), checked; a row of weight 0 is never drawn.
        n: number of draws.
        generator: source of the uniform number.
    """
    edges = torch.softmax(checked(log_weight).double(), 0).cumsum(0)
    offset = torch.rand((), generator=generator, device=log_weight.device, dtype=torch.float64)
    points = (torch.arange(n, device=log_weight.device) + offset) / n * edges[-1]
    return rows_at(edges, points)


def rows_at(edges: Tensor, points: Tensor) -> Tensor:
    """The rows whose share of [0, Σ w) the points lie in; none of weight 0.

    Args:
        edges: cumulated weights, shape (m,).
        points: in [0, Σ w], shape (n,).
    """
    last = torch.searchsorted(edges, edges[-1])  # rounding may lift a point to the very end
    return torch.minimum(torch.searchsorted(edges, points, right=True), last)
