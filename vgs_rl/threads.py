"""Work in torch's threads, with a way back to the thread that asked for it.

An object of a foreign library often belongs to one thread, or keeps what it computes with. So
threads that need it ask the thread that waits for them, which calls it, one call at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
Job = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...], bool]

_local = threading.local()
_COUNTING = threading.Lock()


class Unwanted(RuntimeError):
    """Nobody waits any more for what a thread computes."""


class _Caller:
    """The thread that waits: it serves what the others ask for, until it is closed.

    Attributes:
        waits: whether it waits still.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self.waits, self._lock = True, threading.Lock()

    def ask(self, function: Callable[..., Result], arguments: tuple[Any, ...]) -> Result:
        """From another thread: the result of a call in the waiting one."""
        future: Future[Result] = Future()
        with self._lock:
            if not self.waits:
                raise Unwanted("the calling thread has stopped waiting")
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
            self.waits = False
        while not self._jobs.empty():
            job = self._jobs.get()
            if job is not None:
                job[0].set_exception(Unwanted("the calling thread has stopped waiting"))


def in_callers_thread(function: Callable[..., Result], *arguments: Any) -> Result:
    """`function` of the arguments, called in the thread that called :func:`map_in_threads`.

    Anywhere else it is an ordinary call.
    """
    caller: _Caller | None = getattr(_local, "caller", None)
    return function(*arguments) if caller is None else caller.ask(function, arguments)


class EvaluationCount:
    """States at which an energy was evaluated, by all threads and by all copies that share it.

    Attributes:
        total: so far.
    """

    def __init__(self) -> None:
        self.total = 0

    def add(self, evaluations: int) -> None:
        """Counts more of them, here and in this thread's own count."""
        with _COUNTING:
            self.total += evaluations
        count_here(evaluations)

    @contextmanager
    def unmoved(self) -> Iterator[Callable[[], int]]:
        """Nothing inside moves the count; says what was used so far."""
        before = self.total
        try:
            yield lambda: self.total - before
        finally:
            self.total = before


def count_here(evaluations: int) -> None:
    """Adds to this thread's number of energy evaluations."""
    _local.evaluations = counted_here() + evaluations


def counted_here() -> int:
    """Energy evaluations that this thread has asked for, of all MDPs together."""
    count: int = getattr(_local, "evaluations", 0)
    return count


def leave_if_unwanted() -> None:
    """Ends the work of a thread of :func:`map_in_threads` for which nobody waits, as after Ctrl-C.

    Long work asks this between its steps, else the thread that was interrupted would wait for it.

    Raises:
        Unwanted: there; anywhere else nothing happens.
    """
    caller: _Caller | None = getattr(_local, "caller", None)
    if caller is not None and not caller.waits:
        raise Unwanted("the calling thread has stopped waiting")


def map_in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], *, alone: bool = False
) -> Generator[Result, None, None]:
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
