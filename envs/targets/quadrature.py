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


def log_z_of_four_in_the_plane(
    pair_energy: Callable[[Tensor], Tensor],
    *,
    reach: float,
    distances: int = 80,
    step: float = 0.12,
) -> float | None:
    """Log ∫ exp(-Σ_{i<j} u(r_ij)) over four particles in the plane whose mean is the origin.

    Seen from the first particle, with the second at distance r along an axis, the integral is
    ∫ 2 pi r e^{-u(r)} ∫∫ f(y) f(z) e^{-u(|y - z|)} dy dz dr with f(y) = e^{-u(|y|) - u(|y - r|)}.
    The inner one is a convolution, by FFT. Positions seen from a particle have 4 times the volume
    of those around the mean: the Gram determinant of the map is 1/4 in each of two dimensions.

    Args:
        pair_energy: u of distances of any shape, float64; it must be large at `reach`.
        reach: distance beyond which e^{-u} is nothing.
        distances: nodes of r.
        step: of the grid in the plane.

    Returns:
        The logarithm; None if rounding may change it by 1e-6, as where not all pairs can be near
        the minimum of u at once and it is deep: the integrand is then 0 to double precision.
    """
    least = float(pair_energy(torch.linspace(1e-3, reach, 4_096, dtype=torch.float64)).min())

    def factor(x: Tensor, y: Tensor) -> Tensor:
        return (least - pair_energy((x.square() + y.square()).sqrt())).exp()

    half = math.ceil(reach / step)
    axis = torch.arange(-half, half + 1, dtype=torch.float64) * step
    n = len(axis)
    x, y = torch.meshgrid(axis, axis, indexing="ij")
    own = factor(x, y)
    lags = torch.fft.fftfreq(2 * n, 1 / (2 * n), dtype=torch.float64) * step
    kernel = torch.fft.rfft2(factor(*torch.meshgrid(lags, lags, indexing="ij")))
    nodes = (torch.arange(distances, dtype=torch.float64) + 0.5) * (reach / distances)
    outer = 2 * math.pi * nodes * factor(nodes, torch.zeros_like(nodes))
    total = rounding = 0.0
    for r, weight in zip(nodes.tolist(), outer.tolist(), strict=True):
        f = own * factor(x - r, y)
        spread = torch.fft.irfft2(torch.fft.rfft2(f, s=(2 * n, 2 * n)) * kernel, s=(2 * n, 2 * n))
        total += weight * float((f * spread[:n, :n]).sum())
        rounding += weight * float(f.square().sum())
    # The convolution's error is at most about eps ||f||_2 sum(kernel), in the Euclidean norm.
    rounding *= torch.finfo(torch.float64).eps * float(kernel[0, 0].real)
    if not total > 1e6 * rounding:
        return None
    volume = step**4 * (reach / distances)
    return math.log(total * volume) - 6 * least - math.log(4.0)


def normal_log_density(x: Tensor, mean: Tensor, variance: Tensor | float) -> Tensor:
    """Log N(x; mean, variance), elementwise."""
    variance = torch.as_tensor(variance, dtype=x.dtype, device=x.device)
    return -0.5 * ((x - mean).square() / variance + (2 * math.pi * variance).log())
