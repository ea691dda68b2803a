"""Time and memory against environments, D, T and ranks."""

from __future__ import annotations

import os
import resource
import socket
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.multiprocessing.spawn import spawn

from vgs_rl import MDPConfig, SamplingMDP
from vgs_rl.agents import ValueGradientConfig
from vgs_rl.envs.targets.gaussian import Gaussian
from vgs_rl.experiments.benchmarks.speed import env_cost
from vgs_rl.experiments.config import named_config
from vgs_rl.experiments.run import build
from vgs_rl.experiments.tables import (
    machine,
    print_machine,
    print_table,
    require_outputs,
    write_json,
)
from vgs_rl.training import parallel
from vgs_rl.training.config import EvaluationConfig

UNWATCHED = EvaluationConfig(validation_samples=2, validate_every=10**9)


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
    return {**row, "ns_per_coordinate": 1e9 * cost / (n * dim * num_steps), "peak_gib": _peak()}


def _peak() -> float:
    """Largest memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux


def train_part(
    rank: int, ranks: int, together: bool, name: str, updates: int, port: int, folder: Path
) -> None:
    """What one of several processes does: trains a rank's part, with the others or by itself."""
    torch.set_num_threads(1)
    if together:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
        os.environ.update({k: str(v) for k, v in place.items()}, MASTER_ADDR="127.0.0.1")
    config = replace(named_config(name), device="cpu")
    assert isinstance(config.agent, ValueGradientConfig)
    if not together:
        objective = config.agent.objective
        parts = {each: max(1, getattr(objective, each) // ranks) for each in objective.divided}
        if "start_size" in parts:  # particles show every step to their network
            parts["start_size"] = max(parts["start_size"], config.mdp.num_steps)
        config.agent.objective = replace(objective, **parts)
    with parallel.joined("cpu"):
        agent = build(config)[1]
        agent.learn(updates=1, evaluation=UNWATCHED, progress_bar=False)
        begin, before = time.perf_counter(), parallel.sent()
        agent.learn(updates=1 + updates, evaluation=UNWATCHED, progress_bar=False)
        seconds = time.perf_counter() - begin
        found = {"seconds": seconds, "bytes": parallel.sent() - before, "peak_gib": _peak()}
    torch.save(found, folder / f"{rank}.pt")


def _parts(ranks: int, together: bool, name: str, updates: int, count: int) -> list[dict[str, Any]]:
    """What `count` processes of :func:`train_part` measured, side by side."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        spawn(train_part, (ranks, together, name, updates, port, Path(folder)), nprocs=count)
        return [torch.load(Path(folder) / f"{i}.pt") for i in range(count)]


def rank_cost(name: str, ranks: int, updates: int) -> dict[str, Any]:
    """Ranks that train together against as many processes that do a rank's work by themselves."""
    apart = _parts(ranks, False, name, updates, ranks)
    joined = _parts(ranks, True, name, updates, ranks)
    free = sum(updates / each["seconds"] for each in apart) / ranks
    speed = updates / max(each["seconds"] for each in joined)
    return {
        "ranks": ranks,
        "updates_per_s": speed,
        "apart_per_s": free,
        "efficiency": speed / free,
        "kib_per_update": joined[0]["bytes"] / updates / 2**10,
        "peak_gib": max(each["peak_gib"] for each in joined),
    }


def scaling(
    num_envs: tuple[int, ...] = (100, 1_000, 10_000, 100_000, 1_000_000),
    dims: tuple[int, ...] = (2, 20, 200, 1_000, 5_000),
    num_steps: tuple[int, ...] = (5, 20, 100, 1_000),
    ranks: tuple[int, ...] = (1, 2),
    parts: tuple[int, ...] = (1, 4, 16, 64, 256, 1_024),
    name: str = "dw4",
    updates: int = 100,
    repeats: int = 3,
    threads: int = 1,
    json: Path | None = None,
) -> None:
    """Time and memory against environments, D, T and ranks.

    Ranks are compared with as many processes that do a rank's work side by side and do not talk:
    what the machine allows. `parts` are ranks whose work one process does alone: the time of an
    update that no number of further ranks makes shorter. The volume is what a rank brings to an
    update's meetings, refreshes included.

    Args:
        num_envs: batch sizes of the environment.
        dims: D of a Gaussian, 256 samples of T = 20.
        num_steps: T, 256 samples of D = 20.
        ranks: processes that train together, one thread each.
        parts: numbers of ranks whose part one process trains.
        name: name of a file in configs/, which the ranks train.
        updates: of each measurement.
        repeats: measurements of each other time; medians.
        threads: torch's threads in what is no training.
        json: also write everything to this file.
    """
    require_outputs(json)
    torch.set_num_threads(threads)
    size = machine(threads)
    print_machine(size)
    tables: dict[str, list[dict[str, Any]]] = {
        "T": [chain_cost(256, 20, steps, repeats) for steps in num_steps],
        "D": [chain_cost(256, dim, 20, repeats) for dim in dims],
        "environments": [
            {**env_cost("vgs_rl/GMM9-v0", n, repeats, "cpu"), "peak_gib": _peak()} for n in num_envs
        ],
        "ranks": [rank_cost(name, count, updates) for count in ranks],
        "parts": [
            {"ranks": n, "ms_per_update": 1e3 * part["seconds"] / updates}
            for n in parts
            for part in _parts(n, False, name, updates, 1)
        ],
    }
    for title, rows in tables.items():
        print_table(f"Against {title}", rows)
    write_json({"machine": size, **tables}, json)
