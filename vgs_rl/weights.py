"""Importance weights: estimates, bounds and resampling from log-weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def log_z_estimate(log_weight: Tensor) -> Tensor:
    """Log of the mean weight, a scalar: its exponential is an unbiased estimate of Z."""
    return torch.logsumexp(log_weight, 0) - math.log(len(log_weight))


def effective_sample_size(log_weight: Tensor) -> Tensor:
    """(Σ w)² / (n Σ w²), a scalar in (0, 1]."""
    return torch.exp(2 * torch.logsumexp(log_weight, 0) - torch.logsumexp(2 * log_weight, 0)) / len(
        log_weight
    )


def temper(log_weight: Tensor, least: float) -> Tensor:
    """Normalised weights w^beta with the largest beta ≤ 1 whose effective sample size ≥ `least`.

    Args:
        log_weight: shape (n,); non-finite entries get weight 0.
        least: effective sample size to keep, as a fraction in [0, 1].

    Returns:
        Weights that sum to 1, shape (n,).
    """
    log_weight = torch.where(torch.isfinite(log_weight), log_weight, -torch.inf)
    peak = log_weight.max()
    if not bool(torch.isfinite(peak)):
        return torch.full_like(log_weight, 1.0 / len(log_weight))
    centred = log_weight - peak
    low, high = centred.new_zeros(()), centred.new_ones(())
    beta = high.clone()
    for _ in range(30):  # bisection on tensors: no host round trip
        scaled = torch.where(torch.isfinite(centred), beta * centred, -torch.inf)
        enough = effective_sample_size(scaled) >= least
        low, high = torch.where(enough, beta, low), torch.where(enough, high, beta)
        beta = torch.where(enough & (beta >= 1.0), beta, 0.5 * (low + high))
    return torch.softmax(torch.where(torch.isfinite(centred), low * centred, -torch.inf), 0)


def systematic_resample(log_weight: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Indices of n draws, each row i expected n w_i / Σ w times, with one uniform number.

    Systematic resampling (Kitagawa 1996): unbiased, with less variance than multinomial draws.

    Args:
        log_weight: shape (m,).
        n: number of draws.
        generator: source of the uniform number.
    """
    weights = torch.softmax(log_weight.double(), 0)
    edges = weights.cumsum(0)
    offset = torch.rand((), generator=generator, device=log_weight.device, dtype=torch.float64)
    points = (torch.arange(n, device=log_weight.device) + offset) / n * edges[-1]
    return torch.searchsorted(edges, points).clamp_max(len(weights) - 1)
