"""Exploration: islands of tempered SMC from a reference that what they find checks."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from vgs_rl.energy import Energy
from vgs_rl.exploration.reference import GaussianReference, Reference, find_reference
from vgs_rl.exploration.tempered import Island, tempered_smc
from vgs_rl.samplers.kernels import FiniteEnergy

ROUNDS = 6
AGREE = 0.3  # nats between islands' log Z


@dataclass(frozen=True, kw_only=True)
class Exploration:
    """What an exploration found.

    Attributes:
        islands: independent runs, all from `reference`.
        reference: where they started.
        evaluations: states at which E and ∇E were evaluated.
        rounds: how often it began again, with a moved reference or with more particles.
        doubts: why it should not be believed, a sentence each.
    """

    islands: tuple[Island, ...]
    reference: Reference
    evaluations: int
    rounds: int
    doubts: tuple[str, ...]

    @property
    def x(self) -> Tensor:
        """All particles, shape (n, D), float64."""
        return torch.cat([island.x for island in self.islands])

    @property
    def gradient(self) -> Tensor:
        """∇E/tau at the particles, shape (n, D)."""
        return torch.cat([island.gradient for island in self.islands])

    @property
    def log_weight(self) -> Tensor:
        """Log-weights of the particles with mean Z, shape (n,)."""
        return torch.cat([island.log_weight for island in self.islands])

    @property
    def log_z(self) -> float:
        """Log of the islands' mean estimate of Z."""
        values = torch.tensor([island.log_z for island in self.islands], dtype=torch.float64)
        return float(torch.logsumexp(values, 0)) - math.log(len(values))

    @property
    def spread(self) -> float:
        """Largest difference of the islands' log Z."""
        values = [island.log_z for island in self.islands]
        return max(values) - min(values)


def explore(
    energy: Energy,
    generator: torch.Generator,
    *,
    reference: Reference | None = None,
    temperature: float = 1.0,
    n: int = 1024,
    seconds: float = math.inf,
    dtype: torch.dtype | None = None,
) -> Exploration:
    """Finds where exp(-E/tau) has its mass.

    Two islands run from one reference. A found reference that turns out to be narrow, or in the
    wrong place, moves. Islands that disagree are run again with four times as many particles.

    Args:
        energy: the target, on R^D.
        generator: source of randomness.
        reference: where to begin; found if None.
        temperature: tau.
        n: particles of an island at first.
        seconds: about how long it may take.
        dtype: in which the energy is evaluated; float64 if None.

    Raises:
        ValueError: if the energy is finite nowhere that was looked.
    """
    began = time.monotonic()
    finite = FiniteEnergy(energy, temperature, dtype=dtype)
    given = reference is not None
    current = find_reference(finite, int(energy.dim), generator) if reference is None else reference

    def late(share: float = 1.0) -> bool:
        return time.monotonic() - began > share * seconds

    def island(left: int) -> Island:
        """One of `left` islands that share the time that is left."""
        now = time.monotonic()
        until = now + (began + seconds - now) / left
        return tempered_smc(finite, current, n, generator, stop=lambda: time.monotonic() > until)

    islands: tuple[Island, ...] = ()
    rounds = 0
    while rounds < ROUNDS:
        rounds += 1
        runs = tuple(island(left) for left in (2, 1))
        if not islands or all(run.complete for run in runs):
            islands = runs
        if late(0.4):
            break
        if not given and isinstance(current, GaussianReference):
            moved = _moved(current, torch.cat([run.x for run in runs]))
            if moved is not None:
                current = moved
                continue
        if not _doubts(islands):
            break
        n *= 4
    return Exploration(
        islands=islands,
        reference=current,
        evaluations=finite.evaluations,
        rounds=rounds,
        doubts=tuple(_doubts(islands)),
    )


def _moved(reference: GaussianReference, x: Tensor) -> GaussianReference | None:
    """A reference that holds particles which its predecessor had at its edge, or None."""
    mean, std = x.mean(0), x.std(0)
    outside = (std > 0.6 * reference.std) | ((mean - reference.mean).abs() > 1.5 * reference.std)
    if not bool(outside.any()):
        return None
    width = torch.maximum(reference.std, 3.0 * std)
    return GaussianReference(torch.where(outside, mean, reference.mean), width)


def _doubts(islands: tuple[Island, ...]) -> list[str]:
    found = []
    if not all(island.complete for island in islands):
        found.append("exploration did not reach the target in its time")
    values = [island.log_z for island in islands]
    if not max(values) - min(values) <= AGREE:
        found.append(
            "two independent explorations disagree about log Z: "
            + " and ".join(f"{value:.2f}" for value in values)
        )
    if max(island.memory for island in islands) > 0.5:
        found.append("exploration's moves did not forget where they began")
    gap = share_gap(islands[0].x, islands[-1].x)
    if gap > 0.1:
        found.append(f"two independent explorations disagree about a region's share by {gap:.0%}")
    return found


def share_gap(a: Tensor, b: Tensor, clusters: int = 8) -> float:
    """Largest difference between the shares that two sets of states have in clusters of both."""
    from sklearn.cluster import KMeans

    both = torch.cat([a, b])
    both = (both - both.mean(0)) / both.std(0).clamp_min(1e-300)
    labels = torch.as_tensor(
        KMeans(clusters, n_init=3, random_state=0).fit_predict(both.cpu().numpy())
    ).long()
    shares = [
        torch.bincount(part, minlength=clusters) / len(part)
        for part in (labels[: len(a)], labels[len(a) :])
    ]
    return float((shares[0] - shares[1]).abs().max())
