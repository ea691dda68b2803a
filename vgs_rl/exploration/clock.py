"""Time that may be used, and a record of what it decided, so that a run repeats without it."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

from vgs_rl.samplers.mcmc.kernels import FiniteEnergy

T = TypeVar("T")
USUAL = 102_400  # evaluations of one island's walks, where an energy is fast
BATCH, PROBED = 512, 0.25  # states at most, and seconds, of a batch whose time is measured


class Deadline:
    """Says when a loop has to end: asked once a turn, it answers True from some turn on.

    Args:
        late: whether the time is up.
        turns: at which turn it ends, whatever the time says.
        note: told the turn at which it ends.
    """

    def __init__(
        self, late: Callable[[], bool], turns: int | None, note: Callable[[int], None]
    ) -> None:
        self._late, self._turns, self._note = late, turns, note
        self.asked, self.over = 0, False

    def __call__(self) -> bool:
        """Whether the loop has to end."""
        self.asked += 1
        if not self.over and (self._late() if self._turns is None else self.asked >= self._turns):
            self.end()
        return self.over

    def end(self) -> None:
        """It is over with the turn that asked last, such as after Ctrl-C."""
        if not self.over:
            self.over = True
            self._note(self.asked)


class Clock:
    """What may take some seconds, and what these decided.

    All that depends on the time is asked here. What was answered is kept by name and in its order,
    as JSON holds it. A clock that is given these answers repeats them, and the time does not
    matter: the run that asks is the same run on the same machine, however busy that is.

    Args:
        seconds: how long it may take, about.
        decisions: those of an earlier run, to be repeated.

    Attributes:
        seconds: see there.
        decisions: by name, in their order: answers, and of loops the turn that ended them, or None
            where it was not the time.

    Example:
        >>> clock = Clock(60.0)
        >>> clock.decide("updates", lambda: 200)
        200
        >>> Clock(1.0, clock.decisions).decide("updates", lambda: 3)
        200
    """

    def __init__(
        self, seconds: float = math.inf, decisions: Mapping[str, list[Any]] | None = None
    ) -> None:
        self.seconds, self._began = seconds, time.monotonic()
        self.decisions: dict[str, list[Any]] = {}
        self._given = None if decisions is None else copy.deepcopy(dict(decisions))

    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began

    def left(self) -> float:
        """Seconds that are left, at least 1."""
        return max(self.seconds - self.elapsed(), 1.0)

    def decide(self, name: str, answer: Callable[[], T]) -> T:
        """The answer to a question that depends on the time.

        Args:
            name: of the question.
            answer: gives it: a number or a truth value.

        Raises:
            ValueError: if the earlier run has not asked it as often.
        """
        value: T = answer() if self._given is None else self._next(name)
        self.decisions.setdefault(name, []).append(value)
        return value

    def late(self, until: float) -> bool:
        """Whether more than `until` seconds have passed since the clock began."""
        return self.decide("late", lambda: self.elapsed() > until)

    def deadline(self, name: str, until: float) -> Deadline:
        """When a loop has to end.

        Args:
            name: of the loop's turns.
            until: seconds since the clock began.

        Raises:
            ValueError: if the earlier run has not run it as often.
        """
        entries = self.decisions.setdefault(name, [])
        turns: int | None = None if self._given is None else self._next(name)
        at = len(entries)
        entries.append(None)

        def note(turn: int) -> None:
            entries[at] = turn

        repeats = self._given is not None
        return Deadline(lambda: not repeats and self.elapsed() > until, turns, note)

    def _next(self, name: str) -> Any:
        assert self._given is not None
        if not self._given.get(name):
            raise ValueError(
                f"effort.{name} has too few entries: this run goes another way than the one that "
                "is repeated. It is of another target, seed, version or machine"
            )
        return self._given[name].pop(0)


def affordable_effort(
    energy: FiniteEnergy, dim: int, seconds: float, device: torch.device | str
) -> float:
    """How many times the usual search an energy allows for: below 1 where it is slow.

    At 1, the walks of one island, some 100,000 evaluations, take a tenth of the time. What is
    evaluated to measure that is not counted: how much it is depends on the time.

    Args:
        energy: E/tau.
        dim: D.
        seconds: how long the exploration may take.
        device: where states live.
    """
    if seconds == math.inf:
        return math.inf
    cost, n, counted = math.inf, 8, energy.evaluations
    for _ in range(4):  # what else the machine does slows some of them
        x = torch.zeros(n, dim, dtype=torch.float64, device=device)
        now = time.monotonic()
        energy(x)[0].cpu()  # waits for what is still under way
        taken = time.monotonic() - now
        cost = min(cost, taken / n)
        # Where it is vectorised, a batch as large as a walk's costs less for each state.
        if 4 * taken < PROBED:
            n = min(4 * n, BATCH)
    energy.evaluations = counted
    return 0.1 * seconds / (cost * USUAL)
