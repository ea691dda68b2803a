"""Confidence bounds of means that hold at every sample size, by betting.

A gambler stakes the share κ of the capital on each of n independent numbers X ≥ 0 at the price m.
The capital K = Π (1 - κ + κ X_i / m) has E[K] ≤ 1 wherever E[X] ≤ m. By Markov's inequality K
reaches 1/δ with a probability of at most δ then. So the m at which K = 1/δ is a lower bound of E[X]
at level 1 - δ. No moment but the mean has to exist, and X needs no upper limit: a large X adds only
its logarithm to log K. Heavy tails make the bound loose and never wrong.

The bets are those of Waudby-Smith and Ramdas (JRSS-B 86, 2024), whose numbers lie in [0, 1]. Here
nothing is truncated, since truncated numbers earn less at the same stake. The stake is chosen on a
first part of the numbers, on which nothing is bet. Everything is computed from logarithms.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vgs_rl.weights import cleaned, refuse_infinite

FIRST_PART = 0.2  # of the numbers, which choose the stake
LARGEST_STAKE = 0.9  # a number that is 0 leaves a tenth of the capital
SMALLEST_STAKE = 2.0**-8  # in units of the best one for a standard deviation that is the mean
STEPS = 200  # of Newton's method at most; ten are usual


def log_mean_low(log_value: Tensor, confidence: float = 0.95) -> float:
    """A lower confidence bound of log E[X] for independent X ≥ 0 of any law, from log X.

    The bound is below the log of the mean of the last four fifths of the numbers, which are those
    that are bet on. A constant added to all logarithms is added to the bound.

    Args:
        log_value: log X, shape (n,); NaN and -inf are X = 0.
        confidence: least probability, in (0, 1), with which the bound holds.

    Returns:
        The bound; -inf where every number that is bet on is 0.

    Raises:
        ValueError: if n is below 2, a logarithm is +inf, or `confidence` is not in (0, 1).
    """
    check_confidence(confidence)
    if log_value.ndim != 1 or len(log_value) < 2:
        raise ValueError(f"log_value must have shape (n,), n ≥ 2, got {tuple(log_value.shape)}")
    refuse_infinite(log_value)
    log_value = cleaned(log_value.detach()).double()
    count = max(1, int(FIRST_PART * len(log_value)))
    first, rest = log_value[:count], log_value[count:]
    growth = -math.log1p(-confidence) / len(rest)
    stake = _best_stake(first, growth)
    return float(_log_price(rest, stake.unsqueeze(0), growth))


def mean_interval(value: Tensor, confidence: float = 0.95) -> tuple[float, float]:
    """A confidence interval of E[Y] for independent Y in [0, 1] of any law.

    Each end holds with a probability of at least (1 + confidence) / 2.

    Args:
        value: Y, shape (n,).
        confidence: least probability, in (0, 1), with which both ends hold.

    Raises:
        ValueError: if n is below 2, a value is not in [0, 1], or `confidence` is not in (0, 1).
    """
    check_confidence(confidence)
    value = value.detach().double()
    if outside := int((~((value >= 0) & (value <= 1))).sum()):
        raise ValueError(f"value must be in [0, 1], got {outside:,} of {value.numel():,} outside")
    each = 0.5 * (1 + confidence)
    low, high = (log_mean_low(log, each) for log in (value.log(), torch.log1p(-value)))
    return math.exp(low), -math.expm1(high)


def check_confidence(confidence: float) -> None:
    """Raises a ValueError if it is not in (0, 1)."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")


def _best_stake(first: Tensor, growth: float) -> Tensor:
    """The stake of the highest bound, were the numbers that are bet on as these; a scalar."""
    usual = math.sqrt(2 * growth)  # the best one where the standard deviation of X is E[X]
    least = SMALLEST_STAKE * usual
    count = 1 + max(0, math.ceil(math.log2(LARGEST_STAKE / least)))
    candidates = [min(least * 2.0**i, LARGEST_STAKE) for i in range(count)]
    stakes = torch.tensor(candidates, dtype=first.dtype, device=first.device)
    if not bool(torch.isfinite(first).any()):  # as if one number more had been above 0
        return first.new_tensor(min(usual / math.sqrt(len(first)), LARGEST_STAKE))
    return stakes[_log_price(first, stakes, growth).argmax()]


def _log_price(log_value: Tensor, stake: Tensor, growth: float) -> Tensor:
    """The log of the price at which the mean growth of log K is `growth`, shape (k,).

    The mean growth falls with the log of the price and is convex in it. So Newton's method, begun
    below the root, rises to it and never passes it: wherever it stops, the price is a bound.

    Args:
        log_value: shape (n,).
        stake: candidates in (0, 1), shape (k,).
        growth: log(1/δ) / n.
    """
    n, most = len(log_value), log_value.max()
    if not bool(torch.isfinite(most)):
        return torch.full_like(stake, -torch.inf)
    kept, staked = torch.log1p(-stake).unsqueeze(-1), stake.log().unsqueeze(-1)  # (k, 1)
    # What the largest number alone would earn, were all others 0.
    price = most + staked[:, 0] + (n - 1) * kept[:, 0] - n * growth
    for _ in range(STEPS):
        won = staked + log_value - price.unsqueeze(-1)  # (k, n)
        excess = torch.logaddexp(kept, won).mean(-1) - growth
        slope = torch.sigmoid(won - kept).mean(-1)
        step = (excess / slope).clamp_min(0.0)
        price = price + step
        if bool((step <= 1e-9 * (1 + price.abs())).all()):
            break
    return price
