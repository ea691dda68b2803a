"""Processes that take one job after another, so that each pays for its imports once."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

Stop = Callable[[], bool]


class Workers:
    """Processes that run jobs, one at a time each, with the cores shared among them.

    Attributes:
        count: of processes.

    Args:
        run: called in a child as `run(job, stop)`; its exceptions are printed there.
        count: of processes.
    """

    def __init__(self, run: Callable[[Any, Stop], object], count: int) -> None:
        context = multiprocessing.get_context("spawn")
        # Read by OpenMP when a child imports torch.
        os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // count))
        self.count, self._stopping = count, context.Event()
        self._jobs: Any = context.Queue()
        self._done: Any = context.Queue()
        arguments = (run, self._jobs, self._done, self._stopping)
        self._processes = [
            context.Process(target=_work, args=arguments, daemon=True) for _ in range(count)
        ]

    def __enter__(self) -> Workers:
        """Starts them."""
        for process in self._processes:
            process.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Lets them end."""
        for _process in self._processes:
            self._jobs.put(None)
        for process in self._processes:
            process.join(timeout=120)

    def give(self, job: Any) -> None:
        """Lets the next free process run it."""
        self._jobs.put(job)

    def finished(self, patience: float = 0.2) -> list[Any]:
        """Jobs that have come to an end meanwhile, well or not.

        Raises:
            RuntimeError: if a process has died.
        """
        with suppress(queue.Empty):
            return [self._done.get(timeout=patience)]
        dead = [process.exitcode for process in self._processes if not process.is_alive()]
        if dead:
            raise RuntimeError(f"a process died (exit {dead[0]}); --resume goes on")
        return []

    def stop(self) -> None:
        """Asks every run to stop where it is."""
        self._stopping.set()


def _work(run: Callable[[Any, Stop], object], jobs: Any, done: Any, stopping: Any) -> None:
    """What a child process does; Ctrl-C is the parent's, which asks to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while (job := jobs.get()) is not None and not stopping.is_set():
        try:
            run(job, stopping.is_set)
        except Exception:
            traceback.print_exc()
            sys.stderr.flush()
        done.put(job)
