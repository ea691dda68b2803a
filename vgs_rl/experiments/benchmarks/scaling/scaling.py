"""The command: every table, and the page that they go into."""

from __future__ import annotations

from pathlib import Path

import torch

from vgs_rl.checks import require_at_least, require_positive
from vgs_rl.experiments.benchmarks.scaling.draws import chain_cost, peak, thread_cost
from vgs_rl.experiments.benchmarks.scaling.launched import (
    LauncherName,
    launcher_cost,
    require_launchers,
)
from vgs_rl.experiments.benchmarks.scaling.trainings import (
    extrapolated,
    long_cost,
    parts_of,
    rank_cost,
    require_trainable,
)
from vgs_rl.experiments.benchmarks.speed import env_cost
from vgs_rl.experiments.cli import Mistake
from vgs_rl.experiments.tables import (
    Table,
    machine,
    markdown_table,
    print_machine,
    print_table,
    require_outputs,
    write_json,
    write_section,
)

TITLES = {
    "steps": "Against T",
    "dims": "Against D",
    "environments": "Against environments",
    "threads": "Against threads",
    "ranks": "Against ranks",
    "launchers": "Launchers",
    "many": "Many ranks, extrapolated",
    "updates": "Against updates",
}


def scaling(
    num_envs: tuple[int, ...] = (100, 1_000, 10_000, 100_000, 1_000_000),
    dims: tuple[int, ...] = (2, 20, 200, 1_000, 5_000),
    num_steps: tuple[int, ...] = (5, 20, 100, 1_000),
    sampling_threads: tuple[int, ...] = (1, 2),
    busy: int = 2,
    draws: int = 4_000,
    ranks: tuple[int, ...] = (1, 2),
    parts: tuple[int, ...] = (1, 4, 16, 64, 256, 1_024),
    bandwidth: float = 10.0,
    latency: float = 10.0,
    name: str = "dw4",
    updates: int = 100,
    long_updates: tuple[int, ...] = (1_000, 10_000, 30_000, 100_000),
    launchers: tuple[LauncherName, ...] = ("local",),
    launched: int = 1_500,
    repeats: int = 3,
    json: Path | None = None,
    markdown: Path | None = None,
) -> None:
    """Time and memory against environments, D, T, threads, ranks and updates.

    Ranks are compared with as many processes that do a rank's work side by side and do not talk,
    threads with processes that draw side by side, and two runs that a launcher starts with two
    processes that each do one: what the machine allows. `parts` are ranks
    whose work one process does alone: the time of an update that no number of further ranks makes
    shorter. The volume is what a rank brings to an update's meetings, refreshes included. Against
    updates, one training of GMM9 by a small network goes on with all of its logs; memory is the
    largest so far.

    Args:
        num_envs: batch sizes of the environment.
        dims: D of a Gaussian, 256 samples of T = 20.
        num_steps: T, 256 samples of D = 20.
        sampling_threads: of one process that draws.
        busy: processes that keep a core busy each while it draws again.
        draws: samples that it draws.
        ranks: processes that train together, one thread each.
        parts: numbers of ranks whose part one process trains; the first has to be 1.
        bandwidth: assumed of a connection between ranks, in GB/s, for the extrapolation.
        latency: assumed of a message, in microseconds.
        name: name of a file in configs/, which ranks train and threads draw from.
        updates: of each measurement of ranks and parts.
        launchers: what starts two trainings of GMM9; ray needs the extra.
        launched: updates of each of them.
        long_updates: when one training of small updates is looked at.
        repeats: measurements of each other time; medians.
        json: also write everything to this file.
        markdown: also write the tables to this file, each between its lines
            `<!-- scaling-TABLE:begin -->` and `<!-- scaling-TABLE:end -->`.
    """
    require_outputs(json, markdown=markdown, sections=[f"scaling-{title}" for title in TITLES])
    lists = {"num_envs": num_envs, "dims": dims, "num_steps": num_steps, "ranks": ranks}
    lists |= {"sampling_threads": sampling_threads, "parts": parts, "long_updates": long_updates}
    for field, numbers in lists.items():
        require_at_least("scaling", 1, **{field: min(numbers, default=0)})
    require_at_least("scaling", 1, draws=draws, updates=updates, repeats=repeats, launched=launched)
    require_at_least("scaling", 0, busy=busy)
    require_positive("scaling", bandwidth=bandwidth, latency=latency)
    if parts[0] != 1:
        raise Mistake(f"parts must begin with 1, which the others are compared with, got {parts}")
    require_trainable(name, ranks)
    require_launchers(launchers)
    torch.set_num_threads(1)
    size = machine(1)
    print_machine(size)
    tables: dict[str, Table] = {}

    def show(title: str, rows: Table) -> None:
        tables[title] = rows
        print_table(TITLES[title], rows)

    show("steps", [chain_cost(256, 20, steps, repeats) for steps in num_steps])
    show("dims", [chain_cost(256, dim, 20, repeats) for dim in dims])
    costs = [(env_cost("vgs_rl/GMM9-v0", n, repeats, "cpu"), peak()) for n in num_envs]
    show("environments", [{**cost, "peak_gib": gib} for cost, gib in costs])
    show("threads", [thread_cost(name, draws, n, busy, repeats) for n in sampling_threads])
    show("ranks", [rank_cost(name, count, updates) for count in ranks])
    show("launchers", [launcher_cost(each, "gmm9", launched, 2) for each in launchers])
    alone = [
        {"ranks": n, "ms_per_update": 1e3 * part["seconds"] / updates}
        for n in parts
        for part in parts_of(n, False, name, updates, 1)
    ]
    most = tables["ranks"][-1]
    volume, meetings = most["kib_per_update"], most["meetings_per_update"]
    show("many", extrapolated(alone, volume, meetings, bandwidth, latency))
    show("updates", long_cost("gmm9", long_updates))
    if markdown is not None:
        for title, rows in tables.items():
            text = f"**{TITLES[title]}**\n\n{markdown_table(rows)}"
            write_section(markdown, f"scaling-{title}", text)
    write_json({"machine": size, **tables}, json)
