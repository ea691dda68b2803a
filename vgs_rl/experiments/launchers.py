"""Where runs and chunks of samples are computed: in processes of this machine, or on Ray.

A launcher runs jobs and maps a function over items. The numbers do not depend on which one does.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import sys
import tarfile
import traceback
from argparse import Namespace
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from vgs_rl.checks import one_line, require_module
from vgs_rl.experiments.cli import Mistake, Parser, one_of, whole
from vgs_rl.experiments.jobs import Job, run_all
from vgs_rl.samplers.base import ChainSampler, Sampler, Samples, chunk_seeds
from vgs_rl.training.loop import interruptible

Item = TypeVar("Item")
Result = TypeVar("Result")


class FolderJob(Job, Protocol):
    """A job whose result is a folder."""

    @property
    def folder(self) -> Path:
        """What it writes, besides its log."""


J = TypeVar("J", bound=FolderJob)


class Launcher(Protocol):
    """What computes."""

    def run(
        self, jobs: Sequence[J], work: Callable[[J], bool], *, progress_bar: bool = True
    ) -> dict[str, str]:
        """Runs what is not finished; arguments and result are :func:`run_all`'s."""

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`function` of every item, in order."""

    def describe(self) -> str:
        """In a few words, for people."""


@dataclass(frozen=True, kw_only=True)
class LocalLauncher:
    """Processes of this machine.

    Args:
        processes: that run at a time.
        threads: of each.
    """

    processes: int = 1
    threads: int = 1

    def run(
        self, jobs: Sequence[J], work: Callable[[J], bool], *, progress_bar: bool = True
    ) -> dict[str, str]:
        """See :meth:`Launcher.run`."""
        return run_all(
            jobs,
            work,
            processes=self.processes,
            threads=self.threads,
            progress_bar=progress_bar,
        )

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """See :meth:`Launcher.map`."""
        return map(function, items)

    def describe(self) -> str:
        """See :meth:`Launcher.describe`."""
        return f"{self.processes} at a time"


@dataclass(frozen=True, kw_only=True)
class RayLauncher:
    """Tasks of a Ray cluster, whose machines have this package and the modules of your targets.

    What a run writes is sent back, so the machines need no common disk. Where they have one, a run
    that is repeated on another machine goes on from its checkpoint.

    Args:
        address: of the cluster, such as `auto` or `ray://host:10001`; None is the one that
            `RAY_ADDRESS` or a `ray start` of this machine names, or a new one of this machine.
        threads: cores of a task, and its threads.
        gpus: of a task; a fraction shares one.
        retries: times that a task is started again whose worker was lost.
    """

    address: str | None = None
    threads: int = 1
    gpus: float = 0.0
    retries: int = 3

    def run(
        self, jobs: Sequence[J], work: Callable[[J], bool], *, progress_bar: bool = True
    ) -> dict[str, str]:
        """See :meth:`Launcher.run`.

        Raises:
            KeyboardInterrupt: after Ctrl-C or SIGTERM, when the runs have been told to stop.
        """
        ray = self._connected()
        task = self._task(ray, functools.partial(_do, work))
        waiting = [job for job in jobs if not job.finished]
        failed, running = dict[str, str](), dict[Any, J]()
        bar = tqdm(
            total=len(jobs),
            initial=len(jobs) - len(waiting),
            unit="run",
            disable=not progress_bar,
            dynamic_ncols=True,
            mininterval=0.2 if sys.stderr.isatty() else 15.0,
        )
        with bar, interruptible() as interrupted:
            while not interrupted():
                for job in [job for job in waiting if job.ready]:
                    waiting.remove(job)
                    running[task(job)] = job
                if not running:
                    break
                for reference in ray.wait(list(running), timeout=0.5)[0]:
                    job = running.pop(reference)
                    if why := self._outcome(ray, reference, job):
                        failed[job.name] = why
                        tqdm.write(f"failed: {job.name}: {why}", sys.stderr)
                    bar.update(1)
            if interrupted():
                for reference in running:
                    ray.cancel(reference)
                ray.wait(list(running), num_returns=len(running), timeout=60)
                raise KeyboardInterrupt
        return failed | {job.name: "it waited for a run that failed" for job in waiting}

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """See :meth:`Launcher.map`."""
        ray = self._connected()
        task = self._task(ray, function)
        for reference in [task(item) for item in items]:
            yield ray.get(reference)

    def describe(self) -> str:
        """See :meth:`Launcher.describe`."""
        gpus = f" and {self.gpus:g} GPUs" if self.gpus else ""
        return f"on Ray, {self.threads} cores{gpus} each"

    def _connected(self) -> Any:
        require_module("--launcher ray", "ray", "ray")
        ray = importlib.import_module("ray")
        if not ray.is_initialized():
            try:
                ray.init(address=self.address, log_to_driver=False, logging_level="warning")
            except ConnectionError as error:
                raise ValueError(f"--address {self.address}: no Ray cluster: {error}") from error
        return ray

    def _task(self, ray: Any, function: Callable[[Item], Result]) -> Callable[[Item], Any]:
        """Starts a task of `function`, which is sent once."""
        remote = ray.remote(_call).options(
            num_cpus=self.threads, num_gpus=self.gpus, max_retries=self.retries
        )
        sent, threads = ray.put(function), self.threads
        return lambda item: remote.remote(sent, item, threads)

    def _outcome(self, ray: Any, reference: Any, job: FolderJob) -> str:
        """What went wrong with a job that has come to its end, in one line, or nothing."""
        try:
            why, log, folder = ray.get(reference)
        except ray.exceptions.RayError as error:  # after as many retries as there may be
            return f"its worker was lost {self.retries + 1} times: {one_line(error)}"
        job.log.parent.mkdir(parents=True, exist_ok=True)
        job.log.write_text(log, encoding="utf-8")
        if not why and not job.finished:  # no common disk
            unpack(folder, job.folder)
        if why or not job.finished:
            return f"{why or 'it ended without a report'} ({job.log})"
        return ""


def add_launcher_options(parser: Parser) -> None:
    """Adds what a command has that can run on Ray, but for what its tasks need."""
    add = parser.add_argument
    where = "local, or ray: a Ray cluster (extra ray)"
    add("--launcher", type=one_of("local", "ray"), default="local", help=where)
    address = "of the Ray cluster; by default RAY_ADDRESS, or this machine"
    add("--address", default=None, help=address)
    again = "times that Ray starts a task again whose worker was lost; 3 by default"
    add("--retries", type=whole(0), default=None, help=again)


def launcher_of(options: Namespace, default: int = 1) -> Launcher:
    """The launcher of a command line.

    Args:
        options: of :func:`add_launcher_options`, and `jobs`, `threads` and `gpus` where the command
            has them.
        default: processes of the local launcher where `jobs` is not given.

    Raises:
        Mistake: if an option is of the other launcher.
        ModuleNotFoundError: if Ray is not installed, naming the extra.
    """
    on_ray = options.launcher == "ray"
    for name in ("jobs",) if on_ray else ("address", "retries", "gpus"):
        if getattr(options, name, None) is not None:
            other = "local" if on_ray else "ray"
            raise Mistake(f"--{name} is for --launcher {other}, got --launcher {options.launcher}")
    threads = getattr(options, "threads", 1)
    if not on_ray:
        return LocalLauncher(processes=getattr(options, "jobs", None) or default, threads=threads)
    require_module("--launcher ray", "ray", "ray")
    return RayLauncher(
        address=options.address,
        threads=threads,
        gpus=getattr(options, "gpus", None) or 0.0,
        retries=3 if options.retries is None else options.retries,
    )


class SpreadSampler(Sampler):
    """Draws the chunks of a chain's sampler by a launcher: the same numbers as by itself.

    Args:
        sampler: on the CPU, where every chunk has its own generator.
        launcher: what draws them.

    Raises:
        ValueError: if the sampler is another one, or on another device.
    """

    def __init__(self, sampler: Sampler, launcher: Launcher) -> None:
        if not isinstance(sampler, ChainSampler) or sampler.device.type != "cpu":
            raise ValueError(
                f"a launcher draws chunks of a ChainSampler on the CPU, got {sampler!r}"
            )
        self.sampler, self.launcher = sampler, launcher
        self.device, self.temperature = sampler.device, sampler.temperature
        self.has_weights, self.chunk_size = sampler.has_weights, sampler.chunk_size

    def _draw(self, n: int, generator: torch.Generator) -> Samples:
        return self.sampler._draw(n, generator)

    def _draw_chunks(
        self, sizes: list[int], generator: torch.Generator, first: int, state: Tensor | None
    ) -> Generator[Samples, None, None]:
        if len(sizes) == 1:
            yield from super()._draw_chunks(sizes, generator, first, state)
            return
        chunks = zip(sizes, chunk_seeds(len(sizes), generator), strict=True)
        with self.sampler.mdp.uncounted():
            yield from self.launcher.map(self.sampler.draw_chunk, chunks)


# --- on a worker ----------------------------------------------------------------------------------


def _call(function: Callable[[Item], Result], item: Item, threads: int) -> Result:
    torch.set_num_threads(threads)
    return function(item)


def _do(work: Callable[[J], bool], job: J) -> tuple[str, str, bytes]:
    """Does a job; returns what went wrong, or nothing, what it printed, and its folder."""
    log, why = io.StringIO(), ""
    with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        try:
            why = "" if work(job) else "it was interrupted"
        except KeyboardInterrupt:
            why = "it was interrupted"
        except Exception as error:
            traceback.print_exc()
            why = f"{type(error).__name__}: {one_line(error)}"
    return why, log.getvalue(), b"" if why else pack(job.folder)


def pack(folder: Path) -> bytes:
    """A folder's files as an archive."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        tar.add(folder, arcname=".")
    return archive.getvalue()


def unpack(archive: bytes, folder: Path) -> None:
    """Writes what :func:`pack` has packed, `report.json` last: with it, a run is finished."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        members = sorted(tar.getmembers(), key=lambda each: each.name.endswith("report.json"))
        tar.extractall(folder, members=members, filter="data")
