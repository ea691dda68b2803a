"""The training loop: updates until a budget is used up, with what is done after each of them.

:class:`Loop` shows a bar, turns the first Ctrl-C into an orderly end and calls callbacks;
:class:`Recording` and :class:`Checkpoints` are two that every training has.
"""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from types import FrameType
from typing import Any, Protocol, Self

from torch import Tensor
from tqdm import tqdm

from vgs_rl.training import parallel
from vgs_rl.training.config import BudgetConfig
from vgs_rl.training.folder import RunFolder

PATIENCE = 3.0  # seconds in which what is asked to end may end by itself

Scalars = Mapping[str, Tensor]
Callback = Callable[[Scalars], bool | None]
"""Called after an update with what it logs; False ends the training."""


@dataclass(kw_only=True)
class Counters:
    """What training has used so far (validation is not counted, and its time is)."""

    updates: int = 0
    env_steps: int = 0
    energy_evaluations: int = 0
    seconds: float = 0.0


class Learner(Protocol):
    """What a loop trains."""

    counters: Counters

    def update(self) -> Scalars:
        """One update, which counts itself; returns scalars to log."""


class Loop:
    """Updates until a budget is used up, Ctrl-C is pressed or a callback returns False.

    A context: within it the first Ctrl-C is a flag (:func:`interruptible`), and the bar is shown.
    Ranks that train together have one budget, the first one's clock, and stop after one update.

    Attributes:
        interrupted: whether Ctrl-C has been pressed, in this process.
        shown: what the bar says, by name.

    Args:
        learner: what is trained; the loop keeps its counters' seconds.
        budget: when to stop.
        progress_bar: whether to show one.
    """

    def __init__(
        self, learner: Learner, budget: BudgetConfig, *, progress_bar: bool = True
    ) -> None:
        self.learner, self.budget = learner, budget
        self.shown: dict[str, str] = {}
        self._progress_bar = progress_bar and parallel.is_first()
        self._pressed = False  # on any rank
        self._began = time.perf_counter() - learner.counters.seconds

    def __enter__(self) -> Self:
        total = self.budget.updates
        with ExitStack() as stack:
            self.interrupted: Callable[[], bool] = stack.enter_context(interruptible())
            self._bar = stack.enter_context(
                tqdm(
                    total=total or 100,
                    initial=self.learner.counters.updates if total else 0,
                    unit="update" if total else "%",
                    disable=not self._progress_bar,
                    dynamic_ncols=True,
                    smoothing=0.05,
                    mininterval=0.2 if sys.stderr.isatty() else 15.0,  # a log file wants few lines
                )
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def fraction(self) -> float:
        """Fraction of the budget used, in [0, 1]."""
        return self.budget.fraction(asdict(self.learner.counters))

    def tick(self) -> None:
        """Brings the counters' seconds up to date; with several ranks the next update does."""
        if parallel.world_size() == 1:
            self.learner.counters.seconds = time.perf_counter() - self._began

    def _agree(self, before: Counters) -> None:
        """After an update: what all ranks have used, and whether any has been interrupted."""
        if parallel.world_size() == 1:
            self.tick()
            return
        now, seconds = self.learner.counters, time.perf_counter() - self._began
        steps, energies, seconds, pressed = parallel.totals(
            now.env_steps - before.env_steps,
            now.energy_evaluations - before.energy_evaluations,
            seconds if parallel.is_first() else 0.0,
            self.interrupted(),
        )
        now.env_steps = before.env_steps + round(steps)
        now.energy_evaluations = before.energy_evaluations + round(energies)
        now.seconds, self._pressed = seconds, pressed > 0

    def _stops(self) -> bool:
        return self.interrupted() if parallel.world_size() == 1 else self._pressed

    def run(
        self,
        callbacks: Sequence[Callback],
        *,
        on_progress: Callable[[float], None] = lambda fraction: None,
    ) -> bool:
        """Updates until the end.

        Args:
            callbacks: called in their order after every update, all of them.
            on_progress: told the fraction of the budget used, before every update and at the end.

        Returns:
            Whether the budget was used up.
        """
        while True:
            fraction = self.fraction()
            on_progress(fraction)
            if fraction >= 1.0:
                return True
            before = replace(self.learner.counters)
            scalars = self.learner.update()
            self._agree(before)
            goes_on = [callback(scalars) is not False for callback in callbacks]
            self._bar.set_postfix(self.shown, refresh=False)
            total = self.budget.updates
            self._bar.update(1 if total else int(100 * self.fraction()) - self._bar.n)
            if not all(goes_on) or self._stops():
                return False


class Recording:
    """Writes the scalars of every `every`-th update, means over the ranks, with the counters.

    Args:
        folder: where to; None writes nothing.
        learner: whose counters are written.
        every: updates between records.
        show: told what is written, for the bar.
    """

    def __init__(
        self,
        folder: RunFolder | None,
        learner: Learner,
        every: int,
        show: Callable[[dict[str, float]], None],
    ) -> None:
        self.folder, self.learner, self.every, self.show = folder, learner, every, show

    def __call__(self, scalars: Scalars) -> None:
        """After an update."""
        if self.learner.counters.updates % self.every == 0:
            values = parallel.means({name: float(value) for name, value in scalars.items()})
            if self.folder is not None:
                self.folder.record(values, **asdict(self.learner.counters))
            self.show(values)


class Checkpoints:
    """Saves the last checkpoint when it was long ago.

    Args:
        folder: where to; None saves nothing.
        state: what is saved. Where the first rank has a folder, all ranks make it.
        seconds: most seconds between two.
        clock: by which they are counted, the same for all ranks.
    """

    def __init__(
        self,
        folder: RunFolder | None,
        state: Callable[[], dict[str, Any]],
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self.state, self.seconds, self.clock = folder, state, seconds, clock
        self._saves = parallel.from_first(folder is not None)
        self._saved_at = clock()

    def __call__(self, scalars: Scalars) -> None:
        """After an update."""
        if self.clock() - self._saved_at > self.seconds:
            self.save()

    def save(self) -> None:
        """The last checkpoint, with records up to it."""
        if self.folder is not None:
            self.folder.flush()
        if self._saves:
            state = self.state()
            if self.folder is not None:
                self.folder.save("last", state)
        self._saved_at = self.clock()


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C, SIGTERM or SIGHUP into a flag, read between updates.

    The second one is a KeyboardInterrupt, and so is the first one where nobody has read the flag
    after :data:`PATIENCE` seconds: whatever takes that long is cut off. A SIGHUP that is ignored
    (``nohup``) stays ignored.
    """
    pressed, waiting = False, threading.Timer(PATIENCE, press_ctrl_c)
    waiting.daemon = True

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True
        waiting.start()

    def heard() -> bool:
        if pressed:
            waiting.cancel()
        return pressed

    with handling(on_signal):
        try:
            yield heard
        finally:
            waiting.cancel()


def press_ctrl_c() -> None:
    """From another thread: SIGINT for the main one."""
    if hasattr(signal, "pthread_kill"):  # which ends a sleep, too
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:
        _thread.interrupt_main()


@contextmanager
def handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Calls a handler at Ctrl-C, SIGTERM and SIGHUP; outside the main thread it does nothing."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    hang_up = getattr(signal, "SIGHUP", None)  # not on Windows
    if hang_up is not None and signal.getsignal(hang_up) is not signal.SIG_IGN:
        numbers.append(hang_up)
    previous = {}
    try:
        for number in numbers:
            previous[number] = signal.signal(number, handler)
    except ValueError:  # not the main thread, which alone gets signals
        pass
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)


def interrupt(number: int, frame: FrameType | None) -> None:
    """A handler that raises KeyboardInterrupt, as Python's own does at Ctrl-C alone."""
    raise KeyboardInterrupt
