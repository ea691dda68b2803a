"""Exploration: islands of tempered SMC from a reference that knows the modes found so far."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vgs_rl.energy import Energy
from vgs_rl.exploration.agreement import share_gap
from vgs_rl.exploration.clock import Clock, affordable_effort
from vgs_rl.exploration.coordinates.affine import MOST_FULL
from vgs_rl.exploration.modes import ONE_BY_ONE, Modes, find_modes, joined_modes
from vgs_rl.exploration.reference import (
    DESCENTS,
    GaussianReference,
    JoinedReference,
    MixtureReference,
    Reference,
    descend,
    find_reference,
    fitted_reference,
)
from vgs_rl.exploration.tempered import Island, tempered_smc
from vgs_rl.samplers.mcmc.kernels import FiniteEnergy
from vgs_rl.starts.em import Mixture

ROUNDS = 10
MOVES = 2  # of a wide reference at whose edge particles pile up
AGREE = 0.3  # nats between islands' log Z
SETTLED = 0.1  # nats between the log Z of one round and the next
MOST, FEWEST = 16_384, 128  # particles of an island
WALKS = 512  # descents from random starts, for each island
WIDTHS = (0.5, 1.0, 2.0, 4.0)  # of these starts, in those of the wide reference
SEARCHING = 0.2  # effort from which on modes are searched for
UNKNOWN = 0.02  # share of a mode above which it must not be missing


@dataclass(frozen=True, kw_only=True)
class Exploration:
    """What an exploration found.

    Attributes:
        islands: independent runs.
        reference: the wide density where they started.
        modes: local minima that descents found, or None where they are none or too many.
        evaluations: states at which E and ∇E were evaluated.
        rounds: how often it began again, from what it had found.
        doubts: why it should not be believed, a sentence each.
    """

    islands: tuple[Island, ...]
    reference: Reference
    modes: Modes | None
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
        return _log_z(self.islands)

    def summary(self) -> dict[str, Any]:
        """What it cost and found, as JSON holds it."""
        return {
            "rounds": self.rounds,
            "particles": len(self.islands[0].x),
            "evaluations": self.evaluations,
            "levels": [island.levels for island in self.islands],
            "log_z": [island.log_z for island in self.islands],
            "doubts": list(self.doubts),
        }

    @property
    def complete(self) -> bool:
        """Whether every island reached the target."""
        return all(island.complete for island in self.islands)

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
    clock: Clock | None = None,
    dtype: torch.dtype | None = None,
    tell: Callable[[str], None] = lambda message: None,
    enough: Callable[[Tensor, Tensor], bool] = lambda x, log_weight: False,
    modes: Modes | None = None,
) -> Exploration:
    """Finds where exp(-E/tau) has its mass.

    First two islands run independently: each walks downhill from random starts, takes the modes
    where its walks end into its reference, and tempers from there to the target. A wide reference
    at whose edge particles pile up moves. Then two islands start from a mixture that is fitted to
    all particles found; they are the result. They run again, with twice as many particles, until
    they agree with each other and with the round before.

    Args:
        energy: the target, on R^D.
        generator: source of randomness.
        reference: where to begin; found if None.
        temperature: tau.
        n: particles of an island at first.
        seconds: about how long it may take.
        clock: keeps what the time decided, or repeats it.
        dtype: in which the energy is evaluated; float64 if None.
        tell: told in words what happens.
        enough: asked once, with the first particles (n, D) and their log-weights; True ends it
            there.
        modes: that are known before, and begun with where there is no time to search for any.

    Raises:
        ValueError: if the energy is finite nowhere that was looked.
    """
    finite = FiniteEnergy(energy, temperature, dtype=dtype)
    explorer = _Explorer(finite, int(energy.dim), generator, n, seconds, clock or Clock(), tell)
    explorer.known = modes
    return explorer.run(reference, enough)


def explore_again(
    energy: Energy,
    generator: torch.Generator,
    before: Exploration,
    reference: Reference,
    *,
    temperature: float = 1.0,
    seconds: float = math.inf,
    clock: Clock | None = None,
    dtype: torch.dtype | None = None,
    tell: Callable[[str], None] = lambda message: None,
) -> Exploration:
    """Two new islands, which start around what a sampler has found.

    Args:
        energy: the target, on R^D.
        generator: source of randomness.
        before: an earlier exploration.
        reference: where they start.
        temperature: tau.
        seconds: about how long it may take.
        clock: keeps what the time decided, or repeats it.
        dtype: in which the energy is evaluated; float64 if None.
        tell: told in words what happens.
    """
    finite = FiniteEnergy(energy, temperature, dtype=dtype)
    n = min(2 * len(before.islands[0].x), MOST)
    explorer = _Explorer(finite, int(energy.dim), generator, n, seconds, clock or Clock(), tell)
    tell("exploring again, from the samples")
    runs = explorer.islands([reference, reference], 1.0)
    return Exploration(
        islands=runs,
        reference=before.reference,
        modes=before.modes,
        evaluations=before.evaluations + finite.evaluations,
        rounds=before.rounds + 1,
        doubts=tuple(_doubts(runs)),
    )


class _Explorer:
    """One exploration: its clock, its source of randomness and what it has found."""

    def __init__(
        self,
        energy: FiniteEnergy,
        dim: int,
        generator: torch.Generator,
        n: int,
        seconds: float,
        clock: Clock,
        tell: Callable[[str], None],
    ) -> None:
        self.energy, self.dim, self.generator, self.n = energy, dim, generator, n
        self.clock, self.began, self.seconds, self.tell = clock, clock.elapsed(), seconds, tell
        self.found: list[Modes | None] = []
        self.known: Modes | None = None

    def late(self, share: float = 1.0) -> bool:
        return self.clock.late(self.began + share * self.seconds)

    def run(self, given: Reference | None, enough: Callable[[Tensor, Tensor], bool]) -> Exploration:
        of = (self.energy, self.dim, self.seconds, self.generator.device)
        allowed = self.clock.decide("search", lambda: min(affordable_effort(*of), 10.0))
        effort = min(1.0, allowed)
        # In many dimensions tempering takes many levels.
        most = 4 * effort if self.dim <= ONE_BY_ONE else 0.25 * allowed
        self.n = max(FEWEST, round(self.n * min(1.0, most)))
        wide = given
        if wide is None:
            wide = find_reference(self.energy, self.dim, self.generator, effort=effort)
        runs: tuple[Island, ...] = ()
        rounds = 0
        while rounds < ROUNDS:
            rounds += 1
            self.tell(f"exploring, round {rounds}")
            self.found = []
            for _ in range(2):
                self.found.append(self._modes(wide, effort))
            runs = self.islands([_around(wide, modes) for modes in self.found], 0.4)
            if given is None and isinstance(wide, GaussianReference):
                moved = _moved(wide, torch.cat([run.x for run in runs]))
                if moved is not None and rounds <= MOVES and not self.late(0.2):
                    wide = moved
                    continue
            break
        complete = all(run.complete for run in runs)
        self.n *= 2 if complete else 1
        ended = enough(*_joined(runs))
        while rounds < ROUNDS and not ended and not self.late(0.4 if complete else 0.7):
            rounds += 1
            modes = self._all_modes()
            at = None if modes is None else modes.x
            known = fitted_reference(*_joined(runs), self.generator, at)
            self.tell(f"exploring, round {rounds}, {known}")
            if effort == 1.0:
                self.n = max(self.n, 64 * known.known)
            reference = JoinedReference(known, wide, 0.8)
            new = self.islands([reference, reference], 1.0)
            if not all(run.complete for run in new) and all(run.complete for run in runs):
                break
            change = abs(_log_z(new) - _log_z(runs))
            runs = new
            if not _doubts(runs) and change < SETTLED:
                break
            self.n = min(2 * self.n, MOST)
        doubts = _doubts(runs)
        if not ended:
            doubts += self._unknown(wide, runs, effort)
        return Exploration(
            islands=runs,
            reference=wide,
            modes=self._all_modes(),
            evaluations=self.energy.evaluations,
            rounds=rounds,
            doubts=tuple(doubts),
        )

    def islands(self, references: list[Reference], share: float) -> tuple[Island, ...]:
        """Islands that share the time until `share` of all of it."""
        runs = []
        for left, reference in zip(range(len(references), 0, -1), references, strict=True):
            now = self.clock.elapsed()
            until = now + (self.began + share * self.seconds - now) / left
            stop = self.clock.deadline("trajectories", until)
            runs.append(tempered_smc(self.energy, reference, self.n, self.generator, stop=stop))
        return tuple(runs)

    def _modes(self, wide: Reference, effort: float) -> Modes | None:
        """Modes where walks from random starts end."""
        if effort < SEARCHING:
            return self.known
        starts = starts_of_walks(wide, max(16, round(WALKS * effort)), self.generator)
        ends, heights = descend(self.energy, starts, steps=max(20, round(DESCENTS * effort**0.5)))
        scale = starts.std(0).clamp_min(1e-300)
        ended = bool(heights.isfinite().any())
        known = self._all_modes()  # each search names only those where its own walks end
        return find_modes(self.energy, ends, heights, scale, known) if ended else None

    def _all_modes(self) -> Modes | None:
        """All modes that either island knows."""
        known = [modes for modes in (self.known, *self.found) if modes is not None]
        return joined_modes(known) if known else None

    def _unknown(self, wide: Reference, runs: tuple[Island, ...], effort: float) -> list[str]:
        """Whether new walks end in a mode of some mass where no particle is."""
        modes = None if self.late() else self._modes(wide, effort)
        if modes is None or modes is self.known:
            return []
        x = torch.cat([run.x for run in runs])
        log_z = max(run.log_z for run in runs)
        share = (modes.log_mass - log_z).exp()
        precision = torch.linalg.inv(modes.covariance)
        for k in (share > UNKNOWN).nonzero().flatten().tolist():
            gap = x - modes.x[k]
            squares = torch.einsum("bi,ij,bj->b", gap, precision[k], gap)
            if float(squares.min()) > 2 * self.dim + 20:
                return [
                    f"a mode with a share of about {min(float(share[k]), 1):.0%} has no particle"
                ]
        return []


def starts_of_walks(wide: Reference, n: int, generator: torch.Generator) -> Tensor:
    """States around a reference's middle, of half its width to four times it, shape (n, D).

    A walk downhill ends in the mode that is nearest. Of many modes, one width reaches only some.
    """
    x = wide.sample(n, generator)
    factors = torch.tensor(WIDTHS, dtype=x.dtype, device=x.device)
    middle = x.mean(0)
    return middle + factors.repeat(n)[:n].unsqueeze(-1) * (x - middle)


def _joined(islands: tuple[Island, ...]) -> tuple[Tensor, Tensor]:
    """Particles of all islands, and their log-weights."""
    x = torch.cat([island.x for island in islands])
    return x, torch.cat([island.log_weight for island in islands])


def _log_z(islands: tuple[Island, ...]) -> float:
    """Log of the mean of the islands' estimates of Z."""
    values = torch.tensor([island.log_z for island in islands], dtype=torch.float64)
    return float(torch.logsumexp(values, 0)) - math.log(len(values))


def _around(wide: Reference, modes: Modes | None) -> Reference:
    """A wide reference with Gaussians around the modes."""
    if modes is None:
        return wide
    weights = torch.softmax(0.5 * modes.log_mass, 0)
    weights = 0.5 * weights + 0.5 / len(weights)
    dim, covariances = modes.x.shape[1], modes.covariance
    if (
        dim > MOST_FULL
    ):  # coordinates hardly depend on each other by then, where one Hessian was taken
        covariances = covariances.diagonal(dim1=1, dim2=2)
    known = Mixture(weights=weights, means=modes.x, covariances=covariances)
    # What is wide is far above all else in many dimensions, and ends with the first level.
    share = 0.5 if dim <= ONE_BY_ONE else 0.8
    return JoinedReference(MixtureReference(known, 1 + min(0.3, 3 / dim**0.5)), wide, share)


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
    # Few levels are steps of plain importance sampling: there is little to forget.
    if any(island.memory > 0.5 and island.levels > 3 for island in islands):
        found.append("exploration's moves did not forget where they began")
    gap, _ = share_gap(islands[0].x, islands[-1].x, clusters=(8,))
    if gap > 0.1:
        found.append(f"two independent explorations disagree about a region's share by {gap:.0%}")
    return found
