"""Runs that a launcher starts, against the same runs as processes of their own."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any, Literal

from torch.multiprocessing.spawn import spawn

from vgs_rl.checks import require_module
from vgs_rl.experiments.comparison.jobs import Job, make_jobs
from vgs_rl.experiments.comparison.worker import run_job
from vgs_rl.experiments.launchers import LocalLauncher, RayLauncher

LauncherName = Literal["local", "ray"]


def require_launchers(names: tuple[LauncherName, ...]) -> None:
    """Refuses a launcher whose library is not installed.

    Raises:
        ModuleNotFoundError: naming the extra.
    """
    if "ray" in names:
        require_module("launchers ray", "ray", "ray")


def run_part(number: int, jobs: list[Job]) -> None:
    """What one of several processes does: one run, by itself."""
    run_job(jobs[number])


def launcher_cost(name: LauncherName, config: str, updates: int, runs: int) -> dict[str, Any]:
    """How long runs of a comparison take on a launcher, one thread each, and by themselves.

    Either way each has a process of its own that has to import everything. A cluster is there
    before the time is taken.

    Args:
        name: of the launcher.
        config: name of a configuration, trained with seeds from 0 on.
        updates: of each run.
        runs: that go on side by side.
    """
    with tempfile.TemporaryDirectory() as folder:

        def made(place: str) -> list[Job]:
            jobs = make_jobs(
                [config], ["vgs"], range(runs), {"updates": updates}, Path(folder) / place
            )
            return [job for job in jobs if job.agent == "vgs"]

        begin = time.perf_counter()
        spawn(run_part, (made("apart"),), nprocs=runs)
        apart = time.perf_counter() - begin
        launcher = LocalLauncher(processes=runs) if name == "local" else RayLauncher()
        list(launcher.map(abs, [0]))
        jobs, begin = made("together"), time.perf_counter()
        failed = launcher.run(jobs, run_job, progress_bar=False)
        together = time.perf_counter() - begin
    if failed:
        raise RuntimeError(f"launchers {name}: {failed}")
    return {
        "launcher": name,
        "from": config,
        "runs": runs,
        "updates": updates,
        "seconds": together,
        "apart_seconds": apart,
        "efficiency": apart / together,
    }
