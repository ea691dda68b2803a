"""Runs side by side, a process each: they end with their parent, and a failure is one run's own."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from tqdm import tqdm

from vgs_rl.checks import one_line
from vgs_rl.training.config import BudgetConfig
from vgs_rl.training.loop import PATIENCE, handling, interrupt, interruptible, press_ctrl_c

STOP, END = "stop", "end"  # what the parent says to a process, besides jobs
PARENT_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG
MARGIN = 1.0  # seconds to write a checkpoint, after those in which a run ends by itself


class Job(Protocol):
    """What is run."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def log(self) -> Path:
        """What it prints."""

    @property
    def ready(self) -> bool:
        """Whether it can start."""

    @property
    def finished(self) -> bool:
        """Whether it needs not be run again."""

    def fraction(self) -> float:
        """How much of it is done, in [0, 1]."""


J = TypeVar("J", bound=Job)


@dataclass
class _Child(Generic[J]):
    """A process and the line to it; `job` is None when it has come to its end."""

    job: J | None
    process: BaseProcess
    line: Connection

    def say(self, word: Any) -> None:
        """Sends it a job, STOP or END; one that has just ended hears nothing."""
        with suppress(OSError):
            self.line.send(word)


def run_all(
    jobs: Sequence[J],
    work: Callable[[J], bool],
    *,
    processes: int,
    threads: int = 1,
    reuse: bool = False,
    progress_bar: bool = True,
) -> dict[str, str]:
    """Runs what is not finished; a failure stops nothing but itself.

    Args:
        jobs: all of them, in the order in which they start.
        work: one job, in its process; whether it came to its end. It is pickled.
        processes: how many run at a time.
        threads: of each process.
        reuse: whether a process that has done a job takes the next one, if one is ready; else
            every job finds the same fresh process.
        progress_bar: whether to show one.

    Returns:
        What went wrong, by the names of the jobs.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when the runs have ended at a checkpoint. One
            that does not within seconds is killed, and goes on from an earlier one. A second
            Ctrl-C does not wait at all.
    """
    waiting = [job for job in jobs if not job.finished]
    done, failed = len(jobs) - len(waiting), dict[str, str]()
    # Read by OpenMP when a child imports torch: every run has the same threads for itself.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    children: list[_Child[J]] = []
    bar = tqdm(
        total=len(jobs),
        disable=not progress_bar,
        dynamic_ncols=True,
        bar_format="{percentage:3.0f}% |{bar:20}| {elapsed}<{remaining} {postfix}",
        mininterval=0.2 if sys.stderr.isatty() else 15.0,
    )
    with bar, interruptible() as interrupted:
        try:
            while not interrupted():
                ready = [job for job in waiting if job.ready]
                idle = [child for child in children if child.job is None]
                for job in ready[: processes - len(children) + len(idle)]:
                    waiting.remove(job)
                    _prepare_log(job)
                    if idle:
                        idle[-1].job = job
                        idle.pop().say(job)
                    else:
                        children.append(_start(job, work))
                for child in idle:
                    _end(child)
                    children.remove(child)
                if not children:  # all done, or what the others wait for has failed
                    break
                ends = [end for child in children for end in (child.line, child.process.sentinel)]
                connection.wait(ends, timeout=0.2)
                for child in list(children):
                    running = child.job
                    assert running is not None
                    if not (child.line.poll() or not child.process.is_alive()):
                        continue
                    done += 1
                    child.job = None
                    if why := _failure(running, child):
                        failed[running.name] = why
                        tqdm.write(f"failed: {running.name}: {why}", sys.stderr)
                    if why or not reuse:
                        _end(child)
                        children.remove(child)
                _show(bar, done, len(jobs), [child.job for child in children if child.job])
            if interrupted():
                for child in children:
                    child.say(STOP)
                    child.say(END)
                deadline = time.monotonic() + PATIENCE + MARGIN
                for child in children:  # one that does not hear it in time is killed below
                    child.process.join(max(0.0, deadline - time.monotonic()))
                raise KeyboardInterrupt
        finally:
            for child in children:
                child.process.kill()
                child.process.join()
    return failed | {job.name: "it waited for a run that failed" for job in waiting}


def fraction(folder: Path, budget: BudgetConfig) -> float:
    """How much of its budget a run has used, by the last record in its folder."""
    with suppress(OSError, ValueError, IndexError, KeyError, TypeError):
        file = folder / "metrics.jsonl"
        with open(file, "rb") as lines:
            lines.seek(max(0, file.stat().st_size - 4096))
            return budget.fraction(json.loads(lines.read().splitlines()[-1]))
    return 0.0


def _show(bar: Any, done: int, total: int, running: Sequence[Job]) -> None:
    fractions = {job.name: job.fraction() for job in running}
    bar.n = done + sum(fractions.values())
    now = ", ".join(f"{name} {100 * share:.0f}%" for name, share in fractions.items())
    bar.set_postfix_str(f"{done}/{total} runs; {now}", refresh=False)
    bar.update(0)


def _prepare_log(job: Job) -> None:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    job.log.write_bytes(b"")


def _start(job: J, work: Callable[[J], bool]) -> _Child[J]:
    context = get_context("spawn")
    ours, its = context.Pipe()
    process = context.Process(target=_run, args=(job, work, its), daemon=True, name=job.name)
    process.start()
    its.close()
    return _Child(job, process, ours)


def _end(child: _Child[J]) -> None:
    child.say(END)
    child.process.join()
    child.line.close()


def _failure(job: J, child: _Child[J]) -> str | None:
    """What went wrong with a job that has come to its end, in one line; None if nothing did."""
    try:
        why = str(child.line.recv())
    except (OSError, EOFError):  # the process died without a word
        child.process.join()
        code = child.process.exitcode or 0
        by = f"it was ended by {signal.Signals(-code).name}" if code < 0 else ""
        why = by or _last_line(job.log)
    if why or not job.finished:
        return f"{why or 'it ended without a report'} ({job.log})"
    return None


def _last_line(log: Path) -> str:
    text = ""
    with suppress(OSError):
        text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "its process ended"


# --- in the child ---------------------------------------------------------------------------------


def _run(first: J, work: Callable[[J], bool], line: Connection) -> None:
    """What a process does: job after job, whatever one prints in its own file."""
    _end_with_parent()
    if hasattr(os, "setpgrp"):  # Ctrl-C at the terminal is the parent's, which passes it on, once
        os.setpgrp()
    inbox: SimpleQueue[Any] = SimpleQueue()
    inbox.put(first)
    with handling(interrupt):  # a shell's background job ignores Ctrl-C
        threading.Thread(target=_listen, args=(line, inbox), daemon=True).start()
        with suppress(KeyboardInterrupt):
            for job in iter(inbox.get, END):
                line.send(_outcome(job, work))


def _outcome(job: J, work: Callable[[J], bool]) -> str:
    """Does a job; returns what went wrong, or nothing."""
    log = os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    try:
        return "" if work(job) else "it was interrupted"
    except KeyboardInterrupt:
        return "it was interrupted"
    except Exception as error:
        with suppress(OSError):  # on a full disk the log stays empty
            traceback.print_exc()
            sys.stderr.flush()
        return f"{type(error).__name__}: {one_line(error)}"


def _listen(line: Connection, inbox: SimpleQueue[Any]) -> None:
    """Passes jobs on, and STOP as Ctrl-C; ends the process where the parent has ended."""
    try:
        while True:
            word = line.recv()
            if word != STOP:
                inbox.put(word)
            else:
                press_ctrl_c()
    except (EOFError, OSError):
        os._exit(1)


def _end_with_parent() -> None:
    """On Linux the system ends the process with its parent, whatever the process is doing."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
