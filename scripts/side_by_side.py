"""Runs side by side, a process each: they end with their parent, and a failure is one run's own."""

from __future__ import annotations

import _thread
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
from typing import Any, Generic, Protocol, TypeVar

from tqdm import tqdm

from vgs_rl.agents.base import handling, interrupt, interruptible
from vgs_rl.config import BudgetConfig

STOPPED = 130  # exit status of a run that was interrupted
PARENT_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


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
    job: J
    process: BaseProcess
    line: Connection


def run_all(
    jobs: Sequence[J],
    work: Callable[[J], bool],
    *,
    processes: int,
    threads: int = 1,
    progress_bar: bool = True,
) -> dict[str, str]:
    """Runs what is not finished; a failure stops nothing but itself.

    Args:
        jobs: all of them, in the order in which they start.
        work: one job, in its process; whether it came to its end. It is pickled.
        processes: how many run at a time.
        threads: of each process.
        progress_bar: whether to show one.

    Returns:
        What went wrong, by the names of the jobs.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when the runs have written their checkpoints;
            a second one does not wait for them.
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
                for job in ready[: processes - len(children)]:
                    waiting.remove(job)
                    children.append(_start(job, work))
                if not children:  # all done, or what the others wait for has failed
                    break
                connection.wait([child.process.sentinel for child in children], timeout=0.2)
                for child in [each for each in children if not each.process.is_alive()]:
                    children.remove(child)
                    done += 1
                    if why := _failure(child):
                        failed[child.job.name] = why
                        tqdm.write(f"failed: {child.job.name}: {why}", sys.stderr)
                _show(bar, done, len(jobs), [child.job for child in children])
            if interrupted():
                for child in children:
                    with suppress(OSError):  # it has just ended
                        child.line.send("stop")
                for child in children:
                    child.process.join()
                raise KeyboardInterrupt
        finally:
            for child in children:
                child.process.kill()
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


def _start(job: J, work: Callable[[J], bool]) -> _Child[J]:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    job.log.write_bytes(b"")
    context = get_context("spawn")
    ours, its = context.Pipe()
    process = context.Process(target=_run, args=(job, work, its), daemon=True, name=job.name)
    process.start()
    its.close()
    return _Child(job, process, ours)


def _failure(child: _Child[J]) -> str | None:
    """What went wrong with a run that has ended, in one line; None if nothing did."""
    code, why = child.process.exitcode or 0, ""
    with suppress(OSError, EOFError):
        if child.line.poll():
            why = child.line.recv()
    child.line.close()
    if code == 0 and child.job.finished:
        return None
    if code < 0:
        why = f"it was ended by {signal.Signals(-code).name}"
    elif code == STOPPED:
        why = "it was interrupted"
    return f"{why or _last_line(child.job.log)} (exit {code}; {child.job.log})"


def _last_line(log: Path) -> str:
    text = ""
    with suppress(OSError):
        text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it ended without a report"


# --- in the child ---------------------------------------------------------------------------------


def _run(job: J, work: Callable[[J], bool], line: Connection) -> None:
    """What a process does: one run, whatever it prints in its own file."""
    _end_with_parent()
    if hasattr(os, "setpgrp"):  # Ctrl-C at the terminal is the parent's, which passes it on, once
        os.setpgrp()
    threading.Thread(target=_listen, args=(line,), daemon=True).start()
    log = os.open(job.log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    try:
        with handling(interrupt):  # a shell's background job ignores Ctrl-C
            finished = work(job)
    except KeyboardInterrupt:
        finished = False
    except Exception as error:
        # On a full disk the log stays empty: the reason goes to the parent itself.
        line.send(" ".join(f"{type(error).__name__}: {error}".split()))
        with suppress(OSError):
            traceback.print_exc()
            sys.stderr.flush()
        raise SystemExit(1) from None
    raise SystemExit(0 if finished else STOPPED)


def _listen(line: Connection) -> None:
    """Passes the parent's word on as Ctrl-C; ends the process where the parent has ended."""
    try:
        while True:
            line.recv()
            if hasattr(signal, "pthread_kill"):  # which ends a sleep, too
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            else:
                _thread.interrupt_main()
    except (EOFError, OSError):
        time.sleep(1)  # one that is ending anyway, by its own way
        os._exit(1)


def _end_with_parent() -> None:
    """On Linux the system ends the process with its parent, whatever the process is doing."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
