"""Sampling against size and threads, alone and on a busy machine."""

from __future__ import annotations

import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import multiprocessing
from torch.multiprocessing.spawn import spawn

from vgs_rl import MDPConfig, SamplingMDP
from vgs_rl.agents import ValueGradientConfig
from vgs_rl.envs.targets.gaussian import Gaussian
from vgs_rl.experiments.config import named_config
from vgs_rl.experiments.run import build


def peak() -> float:
    """Largest memory of this process so far, in GiB."""
    status = Path("/proc/self/status")  # of this program; getrusage counts its parent's, too
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
        return int(lines["VmHWM"].split()[0]) / 2**20  # KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def chain_cost(n: int, dim: int, num_steps: int, repeats: int) -> dict[str, Any]:
    """Time and memory of drawing n samples of a Gaussian with an untrained network, all at once."""
    energy = Gaussian(torch.zeros(dim), torch.ones(dim))
    agent = ValueGradientConfig().build(SamplingMDP(energy, MDPConfig(num_steps=num_steps)))
    sampler, seconds = agent.sampler(), []
    sampler.chunk_size = n
    for _ in range(repeats):
        begin = time.perf_counter()
        sampler.sample(n, 0)
        seconds.append(time.perf_counter() - begin)
    cost = float(np.median(seconds))
    row = {"n": n, "D": dim, "T": num_steps, "seconds": cost}
    return {**row, "ns_per_coordinate": 1e9 * cost / (n * dim * num_steps), "peak_gib": peak()}


def draw_part(
    number: int,
    drawing: int,
    name: str,
    n: int,
    threads: int,
    repeats: int,
    start: Any,
    folder: str,
) -> None:
    """What one of several processes does: draws, or keeps a core busy until the others have."""
    torch.set_num_threads(threads)
    if number < drawing:
        sampler = build(replace(named_config(name), device="cpu"))[1].sampler()
        sampler.sample(2, 0)
    start.wait()
    if number >= drawing:
        while len(list(Path(folder).iterdir())) < drawing:
            for _ in range(1_000_000):
                pass
        return
    begin = time.perf_counter()
    for _ in range(repeats):
        sampler.sample(n, 0)
    rate = repeats * n / (time.perf_counter() - begin)
    torch.save(rate, Path(folder) / f"{number}.pt")


def _rates(drawing: int, busy: int, name: str, n: int, threads: int, repeats: int) -> list[float]:
    """Samples per second of each process that draws, side by side with those that are busy."""
    start = multiprocessing.get_context("spawn").Barrier(drawing + busy)
    with tempfile.TemporaryDirectory() as folder:
        arguments = (drawing, name, n, threads, repeats, start, folder)
        spawn(draw_part, arguments, nprocs=drawing + busy)
        return [float(torch.load(Path(folder) / f"{i}.pt")) for i in range(drawing)]


def thread_cost(name: str, n: int, threads: int, busy: int, repeats: int) -> dict[str, Any]:
    """Samples per second of one process, against processes of one thread and a busy machine.

    Args:
        name: of a configuration, whose untrained chain is drawn from.
        n: samples of a draw.
        threads: of the process; as many processes of one thread each draw as well.
        busy: processes that keep a core busy.
        repeats: draws.

    Returns:
        A row: rates, `efficiency` against the processes of one thread together, and how many times
        longer a sample takes when the machine is busy.
    """
    apart = sum(_rates(threads, 0, name, n, 1, repeats))
    (together,) = _rates(1, 0, name, n, threads, repeats)
    (beside,) = _rates(1, busy, name, n, threads, repeats)
    return {
        "threads": threads,
        "samples_per_s": together,
        "apart_per_s": apart,
        "efficiency": together / apart,
        "busy": busy,
        "busy_per_s": beside,
        "slowdown": together / beside,
    }
