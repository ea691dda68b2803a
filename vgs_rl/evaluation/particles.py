"""Particle configurations: their symmetry, pair distances, and distances that respect the symmetry.

States are flattened (n, d) arrays, as everywhere. How samples are evaluated by these metrics is in
:mod:`vgs_rl.evaluation.particle_metrics`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from vgs_rl.energy import Particles
from vgs_rl.evaluation.metrics import assignment_distance

PAIRS = 8_192  # pairs of configurations that are aligned at once: their arrays fit a cache
VALUES = 1_000_000  # distances that are computed at once
ENUMERATED = 4  # up to this many particles all n! permutations are tried
ALTERNATIONS = 30  # at most; two or three are typical


def positions(x: Tensor, symmetry: Particles) -> Tensor:
    """Centred positions, shape (B, n, d), in float64, of states of shape (B, D).

    Raises:
        ValueError: if D is not n d.
    """
    n, d = symmetry
    if x.ndim != 2 or x.shape[1] != n * d:
        raise ValueError(f"x must have shape (B, {n * d}), got {tuple(x.shape)}")
    particles: Tensor = x.detach().double().unflatten(-1, (n, d))
    return particles - particles.mean(dim=1, keepdim=True)


def pair_distances(x: Tensor, symmetry: Particles) -> Tensor:
    """‖x_i - x_j‖ of all i < j, shape (B, n (n - 1) / 2), in float64, of states (B, D)."""
    particles = positions(x, symmetry)
    i, j = torch.triu_indices(symmetry.n_particles, symmetry.n_particles, 1, device=x.device)
    rows = max(1, VALUES // len(i))
    return torch.cat([(part[:, i] - part[:, j]).norm(dim=-1) for part in particles.split(rows)])


def transformed(x: Tensor, symmetry: Particles, generator: torch.Generator) -> Tensor:
    """Centred states, each turned, perhaps reflected, and relabelled at random; shape (B, D).

    Uniformly, by the Haar measure of O(d) and over all permutations: exact samples that have not
    been mixed over the symmetry become samples as a perfectly symmetric sampler draws them.

    Args:
        x: states, shape (B, D).
        symmetry: n and d.
        generator: source of randomness, on any device.
    """
    n, d = symmetry
    particles = positions(x, symmetry)
    shape, device = (len(x), d, d), generator.device
    gauss = torch.randn(shape, generator=generator, device=device, dtype=torch.float64)
    q, r = torch.linalg.qr(gauss)
    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)  # without the signs not uniform
    keys = torch.rand(len(x), n, generator=generator, device=device, dtype=torch.float64)
    order = keys.argsort(dim=1).to(x.device)
    return _reordered(particles @ q.to(x.device), order).flatten(1).to(x.dtype)


def geometric_wasserstein(x: Tensor, y: Tensor, symmetry: Particles, starts: int = 1) -> Tensor:
    """2-Wasserstein distance between sets of configurations up to symmetry, a scalar.

    The distance of equivariant optimal transport (Klein, Krämer and Noé, arXiv:2306.15030):
    two configurations are as far apart as the nearest of their translated, turned, reflected and
    relabelled images, see :func:`geometric_cost`; the best pairing of samples is exact.

    Args:
        x: samples, shape (N, D).
        y: reference, shape (N, D).
        symmetry: n and d.
        starts: see :func:`geometric_cost`.

    Returns:
        The distance, that of :func:`geometric_cost`'s upper bounds; +∞ if a row is not finite.
    """
    return _distance(x, y, symmetry, lambda a, b: geometric_cost(a, b, starts))


def published_geometric_wasserstein(x: Tensor, y: Tensor, symmetry: Particles) -> Tensor:
    """The geometric W2 of published tables, which is an upper bound of the one above, a scalar.

    As in the code of iDEM (arXiv:2402.06121), which Adjoint Sampling (2504.11713) and ASBS
    (2506.22565) use: one linear assignment of particles by their distances (not squared) in the
    orientations that the samples happen to have, then one alignment in O(d). It therefore depends
    on these orientations and does not vanish between turned copies.
    """
    return _distance(x, y, symmetry, published_geometric_cost)


def geometric_cost(x: Tensor, y: Tensor, starts: int = 1) -> Tensor:
    """Least Σ_k ‖x_ik - R y_jπ(k)‖² over R in O(d) and permutations π, shape (N, M).

    Exact for up to 4 particles, by trying every permutation. For more it is an upper bound, a
    local minimum: π by linear assignment and R by orthogonal Procrustes alternate until π stays,
    which never raises the cost. The first π matches particles by their sorted distances to all
    others, which neither R nor π changes: so the bound is invariant, and 0 between images of one
    configuration. Further starts are fixed orthogonal matrices, and tighten it.

    Args:
        x: centred positions, shape (N, n, d).
        y: centred positions, shape (M, n, d).
        starts: local minimisations per pair, of which the least counts; unused where exact.

    Raises:
        ValueError: if `starts` is below 1.
    """
    if starts < 1:
        raise ValueError(f"starts must be at least 1, got {starts}")
    if x.shape[1] <= ENUMERATED:
        return _enumerated_cost(x, y)
    sorted_x, sorted_y = (torch.cdist(z, z).sort(dim=-1).values for z in (x, y))
    turns = torch.randn(
        starts - 1, *(x.shape[2],) * 2, generator=torch.Generator().manual_seed(0), dtype=x.dtype
    )
    turns = torch.linalg.qr(turns).Q.to(x.device)
    rows = []
    for i in _blocks(len(x), len(y)):
        a, b = _all_pairs(x[i], y)
        first = _assigned(-torch.cdist(*_all_pairs(sorted_x[i], sorted_y)).square())
        overlap = _alternated(a, b, first)
        for turn in turns:
            order = _assigned(a @ turn @ b.transpose(1, 2))
            overlap = torch.maximum(overlap, _alternated(a, b, order))
        rows.append(overlap.view(-1, len(y)))
    return _cost(x, y, torch.cat(rows))


def published_geometric_cost(x: Tensor, y: Tensor) -> Tensor:
    """See :func:`published_geometric_wasserstein`; shapes as in :func:`geometric_cost`."""
    rows = []
    for i in _blocks(len(x), len(y)):
        a, b = _all_pairs(x[i], y)
        order = _assigned(-torch.cdist(a, b))
        overlap = _nuclear_norm(a.transpose(1, 2) @ _reordered(b, order))
        rows.append(overlap.view(-1, len(y)))
    return _cost(x, y, torch.cat(rows))


def _distance(
    x: Tensor, y: Tensor, symmetry: Particles, cost: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    a, b = positions(x, symmetry), positions(y, symmetry).to(x.device)
    if not bool(torch.isfinite(a).all() & torch.isfinite(b).all()):
        return a.new_full((), math.inf)
    return assignment_distance(cost(a, b))


def _cost(x: Tensor, y: Tensor, overlap: Tensor) -> Tensor:
    """‖x_i‖² + ‖y_j‖² - 2 overlap, shape (N, M); rounding may leave a zero just below 0."""
    squares = [z.square().sum(dim=(1, 2)) for z in (x, y)]
    return (squares[0][:, None] + squares[1] - 2 * overlap).clamp_min(0.0)


def _enumerated_cost(x: Tensor, y: Tensor) -> Tensor:
    overlap = x.new_full((len(x), len(y)), -math.inf)
    for order in permutations(range(x.shape[1])):
        for i in _blocks(len(x), len(y)):
            a, b = _all_pairs(x[i], y[:, order])
            found = _nuclear_norm(a.transpose(1, 2) @ b).view(-1, len(y))
            overlap[i] = torch.maximum(overlap[i], found)
    return _cost(x, y, overlap)


def _alternated(a: Tensor, b: Tensor, order: Tensor) -> Tensor:
    """Largest overlap tr(Rᵀ aᵀ b_π), shape (P,), that alternation finds from π = order (P, n).

    Pairs whose permutation has settled leave the batch.
    """
    u, s, v = torch.linalg.svd(a.transpose(1, 2) @ _reordered(b, order))
    best: Tensor = s.sum(dim=-1)
    active = torch.arange(len(a), device=a.device)
    for _ in range(ALTERNATIONS):
        aligned = b @ (u @ v).transpose(1, 2)
        proposed = _assigned(a @ aligned.transpose(1, 2))
        moved = (proposed != order).any(dim=1)
        if not bool(moved.any()):
            break
        active, a, b, order = active[moved], a[moved], b[moved], proposed[moved]
        u, s, v = torch.linalg.svd(a.transpose(1, 2) @ _reordered(b, order))
        best[active] = s.sum(dim=-1)
    return best


def _assigned(score: Tensor) -> Tensor:
    """The permutation π with the largest Σ_k score[k, π(k)], of each (n, n) matrix; (P, n)."""
    from scipy.optimize import linear_sum_assignment  # a third of a second of import time

    orders = [linear_sum_assignment(each, maximize=True)[1] for each in score.cpu().numpy()]
    return torch.tensor(np.array(orders), device=score.device)


def _reordered(particles: Tensor, order: Tensor) -> Tensor:
    """Rows of each (n, d) array in the given order; shapes (P, n, d) and (P, n)."""
    return particles.gather(1, order.unsqueeze(-1).expand_as(particles))


def _nuclear_norm(h: Tensor) -> Tensor:
    """Sum of singular values, max over R in O(d) of tr(Rᵀ h), of each (d, d) matrix."""
    if h.shape[-1] == 2:  # (s_1 + s_2)² = s_1² + s_2² + 2 s_1 s_2
        determinant = h[..., 0, 0] * h[..., 1, 1] - h[..., 0, 1] * h[..., 1, 0]
        return (h.square().sum(dim=(-2, -1)) + 2 * determinant.abs()).sqrt()
    norms: Tensor = torch.linalg.svdvals(h).sum(dim=-1)
    return norms


def _blocks(n: int, m: int) -> Iterator[slice]:
    """Slices of n rows such that each with all m columns makes at most PAIRS pairs."""
    size = max(1, PAIRS // m)
    return (slice(i, i + size) for i in range(0, n, size))


def _all_pairs(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both of every pair, row by row: shapes (N M, ...) twice."""
    return x.repeat_interleave(len(y), dim=0), y.repeat(len(x), *(1,) * (y.ndim - 1))
