"""Commands in processes that tests kill: forks of one that has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

NAMES = ("train", "sample", "evaluate", "distill", "make_reference", "compare", "train_ebm")
LIMIT = 300.0  # seconds of one command
PROMPT = 15.0  # seconds to answer a signal: five, on a machine that does other things as well


def forks() -> Any:
    """Makes processes whose imports are done."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"vgs_rl.experiments.commands.{name}" for name in NAMES])
    return context


def work(name: str, arguments: list[str], folder: str, line: Connection) -> None:
    """What a process does: one command, which keeps everything that it can keep."""
    import torch

    from vgs_rl.evaluation import evaluate
    from vgs_rl.experiments.cli import module_of
    from vgs_rl.files.unfinished import Unfinished
    from vgs_rl.training.folder import RunFolder

    os.chdir(folder)
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    Unfinished.seconds = 0.0
    RunFolder.draw = lambda *_, **__: None  # type: ignore[method-assign]
    evaluate.SINKHORN_SAMPLES = 100  # seconds of each evaluation
    main = module_of(name).main
    line.send("ready")
    sys.exit(main(arguments))


@dataclass(frozen=True)
class Command:
    """A command line and what goes on with it after a kill.

    Attributes:
        name: of the command.
        arguments: its options.
        begun: where this file exists, `again` goes on; else the same command does.
        again: name and options of what goes on.
    """

    name: str
    arguments: tuple[str, ...]
    begun: str | None = None
    again: tuple[str, ...] = ()

    def begin(self, folder: Path) -> Any:
        """Starts it in a folder, going on with what is there; returns its process."""
        name, arguments = self.name, list(self.arguments)
        if self.begun is not None and (folder / self.begun).is_file():
            name, *arguments = self.again
        context = forks()
        ours, its = context.Pipe()
        process = context.Process(target=work, args=(name, arguments, str(folder), its))
        process.start()
        its.close()
        assert ours.poll(LIMIT) and ours.recv() == "ready"
        return process

    def finish(self, folder: Path) -> None:
        """Runs it to its end."""
        process = self.begin(folder)
        process.join(LIMIT)
        log = (folder / "log.txt").read_text()
        assert process.exitcode == 0, log

    def kill(self, folder: Path, number: signal.Signals, after: float) -> None:
        """Runs it and sends a signal after some seconds; what can answer it does so in time."""
        process = self.begin(folder)
        process.join(after)
        if process.exitcode is not None:
            return  # it was faster
        os.kill(process.pid, number)
        sent = time.monotonic()
        process.join(LIMIT)
        seconds = time.monotonic() - sent
        assert seconds < PROMPT, f"{number.name} was answered after {seconds:.1f} s"
        expected = {-number} if number == signal.SIGKILL else {130, 0}
        assert process.exitcode in expected, (folder / "log.txt").read_text()
