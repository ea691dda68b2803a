"""One-dimensional integrals of peaked functions, batched: exact values of Funnel and ManyWell."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def nodes_of_integral(
    log_integrand: Callable[[Tensor], Tensor],
    low: Tensor,
    high: Tensor,
    *,
    nodes: int = 129,
    drop: float = 40.0,
) -> tuple[Tensor, Tensor]:
    """Nodes and log-weights of a trapezoid rule for ∫ exp(f(x)) dx, one integral per batch entry.

    Two passes: a coarse grid on [low, high] finds where f is within `drop` of its maximum, a
    second grid covers that. The trapezoid rule converges exponentially for smooth integrands
    that vanish at both ends.

    Args:
        log_integrand: f, maps nodes of shape (..., nodes) to the same shape.
        low: left ends, any shape (...).
        high: right ends, same shape; the peaks must lie between.
        nodes: grid points of each pass.
        drop: how far below its maximum f is neglected.

    Returns:
        The nodes x_j, shape (..., nodes), and f(x_j) + log h, so that the logsumexp over the last
        axis is the log integral and a softmax gives posterior weights.
    """
    ramp = torch.linspace(0, 1, nodes, dtype=low.dtype, device=low.device)
    x = low.unsqueeze(-1) + (high - low).unsqueeze(-1) * ramp
    f = log_integrand(x)
    keep = f > f.max(-1, keepdim=True).values - drop
    spacing = (high - low) / (nodes - 1)
    first = torch.where(keep, x, torch.inf).min(-1).values - spacing
    last = torch.where(keep, x, -torch.inf).max(-1).values + spacing
    x = first.unsqueeze(-1) + (last - first).unsqueeze(-1) * ramp
    log_step = ((last - first) / (nodes - 1)).log().unsqueeze(-1)
    return x, log_integrand(x) + log_step


def normal_log_density(x: Tensor, mean: Tensor, variance: Tensor | float) -> Tensor:
    """Log N(x; mean, variance), elementwise."""
    variance = torch.as_tensor(variance, dtype=x.dtype, device=x.device)
    return -0.5 * ((x - mean).square() / variance + (2 * math.pi * variance).log())
