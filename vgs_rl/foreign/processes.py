"""Slow work shared by processes that stay: they start at first need and end with their owner."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, current_process, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import Any

NAME = "vgs_rl pool"
# Read by the libraries of a process when it imports them.
THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
PATIENCE = 2.0  # seconds for an idle process to end by itself


class ProcessEnded(RuntimeError):
    """A process ended while it worked.

    Attributes:
        part: index of what it worked on.
    """

    def __init__(self, status: str, part: int) -> None:
        super().__init__(status)
        self.part = part


@dataclass
class _Worker:
    """A process of the process `owner`, and the line to it; `part` is what it works on."""

    process: BaseProcess
    line: Connection
    owner: int
    ready: bool = False
    part: int | None = None


class ProcessPool:
    """Processes that do the same work on many parts.

    Each is a fresh interpreter with one thread for its numerical libraries. They start at the
    first call of :meth:`map` and stay. They end with the pool, with this process, and where
    anything interrupts a call, as Ctrl-C does; the next call then starts others. Copies of a pool
    within this process are the pool itself. Where this process may have no children, since it is
    a daemon itself, it does the work alone.

    Args:
        work: a function of a part, which does not raise; it is pickled.
        processes: how many.
        name: what people call the work.

    Raises:
        ValueError: if the work cannot be pickled.
    """

    def __init__(self, work: Callable[[Any], Any], processes: int, name: str) -> None:
        self.work, self.processes, self.name = work, processes, name
        try:
            self._content = pickle.dumps(work)
        except Exception as error:
            raise ValueError(
                f"{name} cannot be sent to another process ({type(error).__name__}: {error}): with "
                "processes= it must be a function at the top of a module, no lambda and no inner "
                "function, or an object that can be pickled"
            ) from error
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        weakref.finalize(self, _end, self._workers, PATIENCE)

    def __deepcopy__(self, memo: dict[int, Any]) -> ProcessPool:
        return self

    def __reduce__(self) -> tuple[type[ProcessPool], tuple[Any, ...]]:
        return ProcessPool, (self.work, self.processes, self.name)

    def map(self, parts: Sequence[Any], last: Callable[[Any], bool]) -> list[Any]:
        """The results of the parts, in order, up to the first that is the last one wanted.

        Raises:
            ProcessEnded: if a process ends while it works.
            ValueError: if another process cannot load the work.
            RuntimeError: if no process can start.
        """
        with self._lock:
            if current_process().daemon:
                return self._alone(parts, last)
            try:
                self._start()
                return self._shared(parts, last)
            except BaseException:  # Ctrl-C, too: what they work on is wanted by nobody
                self.close()
                raise

    def close(self) -> None:
        """Ends the processes, whatever they do; the next call starts others."""
        _end(self._workers, 0.0)

    def _alone(self, parts: Sequence[Any], last: Callable[[Any], bool]) -> list[Any]:
        """The work in this process, which may have no children."""
        if current_process().name == NAME:
            raise RuntimeError(
                "a process of a pool was about to start a pool: a script that uses processes= "
                "does its work under 'if __name__ == \"__main__\":'"
            )
        warnings.warn(
            f"{self.name} runs in this process alone, which may have no others", stacklevel=2
        )
        results: list[Any] = []
        for part in parts:
            results.append(self.work(part))
            if last(results[-1]):
                break
        return results

    def _start(self) -> None:
        """Starts the processes, if there are none of this process."""
        if any(worker.owner == os.getpid() for worker in self._workers):
            return
        self._workers.clear()  # in a fork: they are of the process that was forked
        context = get_context("spawn")
        with _one_thread_each():
            for _ in range(self.processes):
                ours, its = context.Pipe()
                process = context.Process(
                    target=_serve, args=(its, self._content), daemon=True, name=NAME
                )
                process.start()
                its.close()
                self._workers.append(_Worker(process, ours, os.getpid()))

    def _shared(self, parts: Sequence[Any], last: Callable[[Any], bool]) -> list[Any]:
        """Parts go out in order, each to the first process that is free."""
        results: dict[int, Any] = {}
        wanted, sent = len(parts), 0
        while len(results) < min(wanted, sent) or sent < wanted:
            for worker in self._workers:
                if worker.ready and worker.part is None and sent < wanted:
                    with suppress(OSError):  # of one that has ended, which is heard below
                        worker.line.send(parts[sent])
                    worker.part, sent = sent, sent + 1
            waiting = [w for w in self._workers if not w.ready or w.part is not None]
            heard = connection.wait([worker.line for worker in waiting])
            for worker in (worker for worker in waiting if worker.line in heard):
                part, result = worker.part, self._received(worker)
                if part is not None:
                    results[part] = result
                    if last(result):
                        wanted = min(wanted, sent)  # all before it are on their way
        inorder = [results[part] for part in range(wanted)]
        ends = [part for part, result in enumerate(inorder) if last(result)]
        return inorder[: ends[0] + 1] if ends else inorder

    def _received(self, worker: _Worker) -> Any:
        """What a process says: that it is ready, why it is not, or a result."""
        try:
            message = worker.line.recv()
        except (EOFError, OSError):
            worker.process.join(PATIENCE)
            status = _status(worker.process.exitcode)
            if worker.part is not None:
                raise ProcessEnded(status, worker.part) from None
            raise RuntimeError(
                f"a process for {self.name} ended ({status}) while it started: what it printed "
                "says why; a script that uses processes= is a file and does its work under "
                "'if __name__ == \"__main__\":'"
            ) from None
        if worker.ready:
            worker.part = None
            return message
        if message is not None:
            raise ValueError(
                f"{self.name} cannot be loaded in another process ({message}): with processes= "
                "it must stand in a module that can be imported, not in a notebook or a prompt"
            )
        worker.ready = True
        return None


def _end(workers: list[_Worker], patience: float) -> None:
    """Ends the processes that belong to this one; those that are idle may end by themselves."""
    mine = [worker for worker in workers if worker.owner == os.getpid()]
    workers.clear()
    for worker in mine:
        if patience and worker.ready and worker.part is None:
            with suppress(OSError):
                worker.line.send(None)
            continue
        if hasattr(os, "killpg"):  # and the programs that it has started
            with suppress(OSError):
                os.killpg(worker.process.pid or 0, signal.SIGKILL)
        worker.process.kill()
    for worker in mine:
        worker.process.join(patience or None)
        worker.process.kill()
        worker.line.close()


def _status(exitcode: int | None) -> str:
    """How a process ended, in words."""
    if exitcode is not None and exitcode < 0:
        return f"by {signal.Signals(-exitcode).name}"
    return f"exit status {exitcode}"


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes that start within get one thread for their numerical libraries."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# --- in the process -------------------------------------------------------------------------------


def _serve(line: Connection, content: bytes) -> None:
    """Does one part after the other, until the line says None or has no other end."""
    if hasattr(os, "setpgrp"):  # Ctrl-C at the terminal is the owner's
        os.setpgrp()
    inbox: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_listen, args=(line, inbox), daemon=True).start()
    try:
        work = pickle.loads(content)
    except Exception as error:
        line.send(f"{type(error).__name__}: {error}")
        return
    line.send(None)
    for part in iter(inbox.get, None):
        line.send(work(part))


def _listen(line: Connection, inbox: SimpleQueue[Any]) -> None:
    """Passes parts on; ends the process, and the programs that it has started, with its owner."""
    try:
        while True:
            inbox.put(line.recv())
    except (EOFError, OSError):
        if hasattr(os, "killpg"):
            os.killpg(0, signal.SIGKILL)
        os._exit(1)
