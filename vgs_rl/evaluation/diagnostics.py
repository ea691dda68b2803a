"""Whether MCMC chains have converged: split R-hat and effective sample size of an observable."""

from __future__ import annotations

import torch
from torch import Tensor


def _split(draws: Tensor) -> Tensor:
    """Each chain's two halves as separate chains, float64, shape (2 M, N // 2)."""
    if draws.ndim != 2 or draws.shape[1] < 4:
        raise ValueError(
            f"draws must have shape (chains, draws), at least 4 of them, got {tuple(draws.shape)}"
        )
    half = draws.shape[1] // 2
    return torch.cat([draws[:, :half], draws[:, -half:]]).double()


def split_r_hat(draws: Tensor) -> float:
    """Split R-hat of Gelman et al. (Bayesian Data Analysis, 3rd edition, 2013): 1 is converged.

    Args:
        draws: one observable of every chain over time, shape (chains, draws).
    """
    chains = _split(draws)
    n = chains.shape[1]
    within = chains.var(1).mean()
    between = chains.mean(1).var()
    return float(((n - 1) / n + between / within).sqrt())


def effective_draws(draws: Tensor) -> float:
    """Number of independent draws that would give the mean the same error.

    Autocorrelations of all split chains together, summed by Geyer's initial monotone sequence, so
    that chains which disagree count as correlated (Vehtari et al., arXiv:1903.08008, without the
    rank normalisation).

    Args:
        draws: one observable of every chain over time, shape (chains, draws).
    """
    chains = _split(draws)
    m, n = chains.shape
    centred = chains - chains.mean(1, keepdim=True)
    spectrum = torch.fft.rfft(centred, n=2 * n)
    covariance = torch.fft.irfft(spectrum.abs().square(), n=2 * n)[:, :n].mean(0) / n
    within = covariance[0] * n / (n - 1)
    total = (n - 1) / n * within + chains.mean(1).var()
    correlation = 1 - (within - covariance) / total
    correlation[0] = 1.0
    pairs = correlation[: n - n % 2].view(-1, 2).sum(1)
    negative = (pairs <= 0).nonzero()
    pairs = pairs[: int(negative[0])] if len(negative) else pairs
    time = -1 + 2 * torch.cummin(pairs, 0).values.sum()
    return float(m * n / time.clamp_min(1 / (m * n)))
