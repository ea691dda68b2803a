"""Work in torch's threads: how many, and a way back to the thread that asked for it.

Threads that share one operation wait for each other at its end. Where another process has taken a
core, the one that lost it makes all wait until it has one again, at every operation. One thread
then is many times faster than all. So long loops measure which it is (:func:`measured`), unless
`OMP_NUM_THREADS` gives the number.

An object of a foreign library often belongs to one thread, or keeps what it computes with. So
threads that need it ask the thread that waits for them, which calls it, one call at a time.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
Job = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...], bool]

TRIALS, PERIOD = 6, 60  # steps that are measured, of so many
CLEARLY = 3.0  # times slower

_local = threading.local()


class _Caller:
    """The thread that waits: it serves what the others ask for, until it is closed."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._open, self._lock = True, threading.Lock()

    def ask(self, function: Callable[..., Result], arguments: tuple[Any, ...]) -> Result:
        """From another thread: the result of a call in the waiting one."""
        future: Future[Result] = Future()
        with self._lock:
            if not self._open:
                raise RuntimeError("the calling thread has stopped waiting")
            self._jobs.put((future, function, arguments, torch.is_grad_enabled()))
        return future.result()

    def wait_for(self, future: Future[Result]) -> Result:
        """Serves until `future` is done; returns its result."""
        future.add_done_callback(lambda _: self._jobs.put(None))
        while not future.done():
            job = self._jobs.get()
            if job is not None:
                self._serve(*job)
        return future.result()

    def _serve(
        self,
        future: Future[Any],
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        grad_enabled: bool,
    ) -> None:
        try:
            with torch.set_grad_enabled(grad_enabled):  # which is a thread's own
                future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)
            if not isinstance(error, Exception):  # Ctrl-C is this thread's own
                raise

    def close(self) -> None:
        """Refuses what is asked from now on, and what still waits."""
        with self._lock:
            self._open = False
        while not self._jobs.empty():
            job = self._jobs.get()
            if job is not None:
                job[0].set_exception(RuntimeError("the calling thread has stopped waiting"))


def measured(
    steps: Iterable[Item],
    device: torch.device,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Item]:
    """The items, for a loop of alike steps that torch's threads share on a CPU, or one does alone.

    Which is faster is measured: the first steps are done in turns, then the faster way is kept, and
    tried against the other one again now and then, since a machine gets busy and quiet. What comes
    out does not depend on it. With one thread, on another device, or where `OMP_NUM_THREADS` is
    set, nothing is changed.

    Args:
        steps: what the loop is over.
        device: where its tensors are.
        clock: seconds.
    """
    threads = torch.get_num_threads()
    if threads == 1 or device.type != "cpu" or "OMP_NUM_THREADS" in os.environ:
        yield from steps
        return
    times = {1: 0.0, threads: 0.0}
    chosen: int | None = None
    try:
        for number, step in enumerate(steps):
            place = number % PERIOD
            if place == 0:
                times, chosen = dict.fromkeys(times, 0.0), None
            used = chosen or (1 if place % 2 == 0 else threads)
            torch.set_num_threads(used)
            began = clock()
            yield step
            times[used] += clock() - began
            less, more = sorted(times.values())
            # A pair of steps is enough where one of them took far longer.
            if chosen is None and place % 2 and (place >= TRIALS - 1 or more > CLEARLY * less):
                chosen = min(times, key=lambda count: times[count])
    finally:
        torch.set_num_threads(threads)


def in_callers_thread(function: Callable[..., Result], *arguments: Any) -> Result:
    """`function` of the arguments, called in the thread that called :func:`map_in_threads`.

    Anywhere else it is an ordinary call.
    """
    caller: _Caller | None = getattr(_local, "caller", None)
    return function(*arguments) if caller is None else caller.ask(function, arguments)


def map_in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], *, alone: bool = False
) -> Iterator[Result]:
    """`function` of every item, in order, by as many threads as torch has.

    Every call has one of torch's threads, so that no number depends on how many there are.

    Args:
        function: what to call.
        items: its arguments.
        alone: call it in this thread, one item after the other.
    """
    threads = torch.get_num_threads()
    with _one_torch_thread():
        if alone:
            yield from map(function, items)
            return
        caller = _Caller()

        def begin() -> None:
            _local.caller = caller
            torch.set_num_threads(1)

        with ThreadPoolExecutor(threads, initializer=begin) as pool:
            futures = [pool.submit(function, item) for item in items]
            try:
                for future in futures:
                    yield caller.wait_for(future)
            finally:
                for future in futures:
                    future.cancel()
                caller.close()


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
