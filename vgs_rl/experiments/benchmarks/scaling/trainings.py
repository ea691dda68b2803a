"""Training against ranks and updates, and what the measurements say of many machines."""

from __future__ import annotations

import math
import os
import socket
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import spawn

from vgs_rl.agents import GradientMatching, MLPNetwork, ValueGradientConfig
from vgs_rl.agents.base import Agent
from vgs_rl.experiments.benchmarks.scaling.draws import peak
from vgs_rl.experiments.config import named_config
from vgs_rl.experiments.run import build, train
from vgs_rl.training import parallel
from vgs_rl.training.config import BudgetConfig, EvaluationConfig

# Small updates: what is measured is what a training keeps, not what it computes.
SMALL = ValueGradientConfig(
    network=MLPNetwork(width=16, depth=2),
    objective=GradientMatching(
        batch_size=64, refresh_size=64, first_size=256, start_size=64, capacity=1_024
    ),
)
UNWATCHED = EvaluationConfig(validation_samples=2, validate_every=10**9)


def require_trainable(name: str, ranks: Sequence[int]) -> None:
    """Refuses a configuration whose training cannot be divided among the ranks.

    Raises:
        ValueError: naming the configuration, or the setting and the number of ranks.
    """
    agent = named_config(name).agent
    if not isinstance(agent, ValueGradientConfig):
        raise ValueError(
            f"name must be a configuration of vgs, got {name}, which is of {agent.name}"
        )
    for count in ranks:
        for each in agent.objective.divided:
            if (size := getattr(agent.objective, each)) % count:
                raise ValueError(f"ranks must divide {each} of {name}, {size}, got {count}")


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
        begin, before, met = time.perf_counter(), parallel.sent(), parallel.meetings()
        agent.learn(updates=1 + updates, evaluation=UNWATCHED, progress_bar=False)
        seconds = time.perf_counter() - begin
        found = {"seconds": seconds, "bytes": parallel.sent() - before, "peak_gib": peak()}
        found["meetings"] = parallel.meetings() - met
    torch.save(found, folder / f"{rank}.pt")


def parts_of(
    ranks: int, together: bool, name: str, updates: int, count: int
) -> list[dict[str, Any]]:
    """What `count` processes of :func:`train_part` measured, side by side."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        spawn(train_part, (ranks, together, name, updates, port, Path(folder)), nprocs=count)
        return [torch.load(Path(folder) / f"{i}.pt") for i in range(count)]


def rank_cost(name: str, ranks: int, updates: int) -> dict[str, Any]:
    """Ranks that train together against as many processes that do a rank's work by themselves."""
    apart = parts_of(ranks, False, name, updates, ranks)
    joined = parts_of(ranks, True, name, updates, ranks)
    free = sum(updates / each["seconds"] for each in apart) / ranks
    speed = updates / max(each["seconds"] for each in joined)
    return {
        "ranks": ranks,
        "updates_per_s": speed,
        "apart_per_s": free,
        "efficiency": speed / free,
        "kib_per_update": joined[0]["bytes"] / updates / 2**10,
        "meetings_per_update": joined[0]["meetings"] / updates,
        "peak_gib": max(each["peak_gib"] for each in joined),
    }


def train_long(rank: int, name: str, marks: tuple[int, ...], folder: Path) -> None:
    """What one process does: trains on, records its memory and its files at numbers of updates."""
    torch.set_num_threads(1)
    config = replace(named_config(name), device="cpu", output=folder / "runs")
    config.budget = BudgetConfig(updates=max(marks))
    config.agent = SMALL
    rows: list[dict[str, Any]] = []
    begin = time.perf_counter()

    def record(agent: Agent) -> None:
        if agent.counters.updates in marks:
            files = [file for file in config.folder.rglob("*") if file.is_file()]
            logs = [file for file in files if "tfevents" in file.name or file.suffix == ".jsonl"]
            row = {"updates": agent.counters.updates, "seconds": time.perf_counter() - begin}
            row |= {"peak_mib": 2**10 * peak()}
            for title, those in (("log_mib", logs), ("folder_mib", files)):
                row[title] = sum(file.stat().st_size for file in those) / 2**20
            rows.append(row)

    train(config, progress_bar=False, callback=record)
    torch.save(rows, folder / "rows.pt")


def long_cost(name: str, marks: tuple[int, ...]) -> list[dict[str, Any]]:
    """Memory and log files of one training of small updates, as it goes on."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(train_long, (name, marks, Path(folder)), nprocs=1)
        return list(torch.load(Path(folder) / "rows.pt"))


def extrapolated(
    parts: Sequence[dict[str, Any]],
    kib_per_update: float,
    meetings_per_update: float,
    bandwidth: float,
    latency: float,
) -> list[dict[str, Any]]:
    """What an update of N ranks would take: a rank's part, and its meetings.

    A ring sends the volume twice, whatever N. A meeting waits for 2 log2 N messages, up a tree and
    down. Waiting for the slowest rank is left out, so the truth is slower.

    Args:
        parts: rows with `ranks` and `ms_per_update`, the first of one rank.
        kib_per_update: what a rank brings to the meetings of an update.
        meetings_per_update: how many they are.
        bandwidth: of a rank's connection, in GB/s.
        latency: of a message, in microseconds.

    Returns:
        Rows: `efficiency_same_batch`, where the ranks share the batch of one, and
        `efficiency_same_part`, where the batch grows with the ranks.
    """
    rows = []
    alone = parts[0]["ms_per_update"]
    for part in parts:
        n, compute = part["ranks"], part["ms_per_update"]
        exchange = 0.0
        if n > 1:
            exchange = 2 * kib_per_update * 2**10 / (bandwidth * 1e6)
            exchange += meetings_per_update * 2 * math.log2(n) * latency / 1e3
        rows.append(
            {
                "ranks": n,
                "part_ms": compute,
                "exchange_ms": exchange,
                "speedup_same_batch": alone / (compute + exchange),
                "efficiency_same_batch": alone / (compute + exchange) / n,
                "efficiency_same_part": alone / (alone + exchange),
            }
        )
    return rows
