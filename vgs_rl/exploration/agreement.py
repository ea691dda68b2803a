"""Whether two sets of states agree, and whether MCMC leaves states where they are."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from vgs_rl.exploration.reference import Reference
from vgs_rl.exploration.tempered import moved
from vgs_rl.samplers.mcmc.kernels import FiniteEnergy
from vgs_rl.weights import effective_sample_size, systematic_resample

CLUSTERS = (2, 4, 8)  # large regions, and small ones
CLUSTERED = 4_096  # states of each set, in which regions are found
CHANCE = 1e-3  # of calling shares different that are equal
MOVED = 1_024  # states that MCMC moves
ERRORS = 4.0  # standard errors, once in 16,000, that a mean energy may change by


def share_gap(
    a: Tensor,
    b: Tensor,
    log_weight: Tensor | None = None,
    *,
    correlated: float = 1.0,
    clusters: tuple[int, ...] = CLUSTERS,
) -> tuple[float, float]:
    """How much of a region's share two sets of states differ by, and by how much they may.

    Regions are clusters of both sets. Of sets of one law the first number exceeds the second once
    in 1,000 times (Bonferroni's bound over the regions, and the normal law).

    Args:
        a: states, shape (n, D).
        b: equally weighted states, shape (m, D).
        log_weight: of a, shape (n,); equal if None.
        correlated: how many states of b say as much as one independent state.
        clusters: numbers of regions that both sets together are cut into.
    """
    from sklearn.cluster import KMeans

    weight = torch.full_like(a[:, 0], 1 / len(a))
    if log_weight is not None:
        weight = torch.softmax(log_weight.to(a), 0)
    known = a.isfinite().all(-1) & (weight > 0)
    a, weight = a[known], weight[known]
    generator = torch.Generator(a.device).manual_seed(0)
    few = [
        a[systematic_resample(weight.log(), min(len(a), CLUSTERED), generator)],
        b[torch.randperm(len(b), generator=generator, device=b.device)[:CLUSTERED]],
    ]
    both = torch.cat(few)
    middle, std = both.mean(0), both.std(0).clamp_min(1e-300)
    seen, *rows = (((x - middle) / std).cpu().numpy() for x in (both, a, b))
    searches = [KMeans(k, n_init=3, random_state=0).fit(seen) for k in clusters]

    def regions(x: np.ndarray) -> Tensor:
        """1 where a row (n, D) is within a region, shape (n, ΣK)."""
        found = (torch.from_numpy(search.predict(x)).long() for search in searches)
        parts = map(torch.nn.functional.one_hot, found, clusters)
        return torch.cat([*parts], 1).to(weight)

    inside, others = map(regions, rows)
    ours, theirs = weight @ inside, others.mean(0)
    variance = weight.square() @ (inside - ours).square()
    variance = variance + correlated * theirs * (1 - theirs) / len(b)
    chance = torch.tensor(0.5 * CHANCE / len(ours), dtype=torch.float64)
    allowed = -torch.special.ndtri(chance).to(variance) * variance.sqrt()
    gap = (ours - theirs).abs()
    worst = int((gap - allowed).argmax())
    return float(gap[worst]), float(allowed[worst])


def energy_drift(
    energy: FiniteEnergy,
    reference: Reference,
    x: Tensor,
    log_weight: Tensor,
    generator: torch.Generator,
) -> tuple[float, float]:
    """What MCMC changes the mean energy of weighted states by [nats], and what chance may.

    Moves leave states of the target as they are. The second number is 4 standard errors.

    Args:
        energy: E/tau.
        reference: whose modes shape the moves.
        x: states, shape (n, D), float64.
        log_weight: of the states, shape (n,).
        generator: source of randomness.
    """
    rows = systematic_resample(log_weight, min(len(x), MOVED), generator)
    before = energy(x[rows])[0]
    after = energy(moved(energy, reference, x[rows], generator))[0]
    change = after - before
    size = min(float(effective_sample_size(log_weight)) * len(x), float(len(rows)))
    error = math.sqrt(float(before.var() + after.var()) / size)
    return float(change.mean()), ERRORS * error
