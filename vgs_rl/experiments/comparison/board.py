"""A comparison in TensorBoard: charts in which agents overlay, settings, table, samples over time.

All of it is in the comparison's own folder, and is written again by every call of the command:

events.out.tfevents.0.layout     Custom Scalars: one chart a metric, on each of three x-axes
events.out.tfevents.1.board      HParams' columns, the table as text, samples as images
<target>/ideal/                  the run "ideal": what perfect samplers score, as horizontal lines
<target>/<agent>/<seed>/         the entry of each run in HParams is written in place of its own
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vgs_rl.energy import Energy
from vgs_rl.evaluation.metrics import evenly_spaced_rows
from vgs_rl.evaluation.report import Report
from vgs_rl.experiments.comparison.jobs import Job
from vgs_rl.experiments.comparison.pictures import (
    EXACT,
    curve_ideal,
    exact_states,
    plot_samples,
)
from vgs_rl.experiments.comparison.report import FIGURES
from vgs_rl.plots.plots import rendered, try_picture
from vgs_rl.registry import find
from vgs_rl.samplers.base import Samples
from vgs_rl.training import events
from vgs_rl.training.folder import IDEAL, read_records, write_ideal_run
from vgs_rl.training.identity import differing, settings_of
from vgs_rl.training.states import ROWS, load_states

LAYOUT, BOARD = "events.out.tfevents.0.layout", "events.out.tfevents.1.board"
CHARTS = {"ELBO": "elbo", "TVD-E": "tvd_energy", "path-ESS": "path_ess", "log Z": "log_z"}
AXES = {
    "over environment steps": "eval",
    "over energy evaluations": "eval_by_energies",
    "over milliseconds": "eval_by_milliseconds",
}
PERCENT = (0, 2, 5, 10, 25, 50, 100)  # of the budget: the steps of images
DPI = 80  # of images: a few hundred states need no more


def write_layout(root: Path, metrics: Sequence[str] = tuple(CHARTS.values())) -> None:
    """Lays out the Custom Scalars view; it needs no run yet, so that runs can be watched in it.

    Args:
        root: folder of the comparison.
        metrics: names of those that have a chart.
    """
    charts = {title: name for title, name in CHARTS.items() if name in metrics}
    categories = {
        title: {label: f"{group}/{name}" for label, name in charts.items()}
        for title, group in AXES.items()
    }
    events.write_summaries(root / LAYOUT, [(0, events.layout(categories))])


def write_board(root: Path, jobs: Sequence[Job], table: str) -> None:
    """Writes all that TensorBoard shows of a comparison besides the runs' own curves.

    Args:
        root: folder of the comparison.
        jobs: its runs; those that did not finish have no entry.
        table: the comparison's table in Markdown.

    Raises:
        OSError: if the folder cannot be written to.
    """
    done = [(job, report) for job in jobs if (report := job.report()) is not None]
    by_target: dict[str, list[tuple[Job, Report]]] = {}
    for job, report in done:
        by_target.setdefault(job.env, []).append((job, report))
    curves = set[str]()
    summaries = [(0, _write_hyper_parameters(done)), (0, events.markdown("comparison", table))]
    for env, runs in by_target.items():
        config = runs[0][0].config
        energy = find(config.env).make_energy(**config.env_args)
        curves |= _write_ideals(root / env / IDEAL, runs, energy)
        mine = [job for job, _ in runs]
        found = try_picture(f"samples/{env}", partial(_images, env, mine, energy))
        summaries += found or []
    write_layout(root, [name for name in CHARTS.values() if name in curves])
    events.write_summaries(root / BOARD, summaries)


# --- hyper-parameters ----------------------------------------------------------------------------


def hyper_parameters(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """What HParams says of each run: agent, target, seed, and the settings that tell runs apart."""
    settings = [_settings(job) for job in jobs]
    names = differing(settings)
    return [
        {"agent": job.agent, "target": job.env, "seed": job.seed}
        | {name: each[name] for name in names if name in each}
        for job, each in zip(jobs, settings, strict=True)
    ]


def _settings(job: Job) -> dict[str, Any]:
    """What a run does: not who it is, nor how it is watched; a baseline has no agent's settings."""
    settings = {
        name: value
        for name, value in settings_of(job.config).items()
        if name not in ("agent", "env", "seed", "output")
        and not name.startswith("evaluation.")
        and not (job.baseline and name.startswith("agent."))
    }
    return settings | {"scale": job.scale} if job.baseline else settings


def _write_hyper_parameters(done: Sequence[tuple[Job, Report]]) -> Any:
    """Every run's entry; returns the summary that describes the columns."""
    runs = hyper_parameters([job for job, _ in done])
    for (job, _), settings in zip(done, runs, strict=True):
        events.write_session(job.folder, settings, finished=True)
    names = list(dict.fromkeys(name for settings in runs for name in settings))
    columns = {name: [each[name] for each in runs if name in each] for name in names}
    found = list(dict.fromkeys(name for _, report in done for name in report.metrics))
    ordered = [name for name in FIGURES if name in found]
    ordered += [name for name in found if name not in ordered]
    return events.experiment(columns, [f"report/{name}" for name in ordered])


# --- ideals --------------------------------------------------------------------------------------


def _write_ideals(
    folder: Path,
    runs: Sequence[tuple[Job, Report]],
    energy: Energy,
) -> set[str]:
    """The run "ideal" of one target; returns the metrics that its runs have curves of."""
    config = runs[0][0].config
    ideals: dict[str, float] = {}
    for _, report in runs:
        ideals = report.ideals() | ideals
    height = curve_ideal(energy, config.evaluation) if config.mdp.temperature == 1.0 else None
    if height is not None:
        ideals["eval/tvd_energy"] = height
    records = [record for job, _ in runs for record in read_records(job.folder)]
    tags = {tag for record in records for tag in record}
    curves = {tag.removeprefix("eval/") for tag in tags if tag.startswith("eval/")}
    kept = {
        tag: ideal
        for tag, ideal in ideals.items()
        if not tag.startswith("eval/") or tag.removeprefix("eval/") in curves
    }
    write_ideal_run(
        folder,
        kept,
        env_steps=max((record["env_steps"] for record in records), default=0),
        energy_evaluations=max((record["energy_evaluations"] for record in records), default=0),
        seconds=max((record["seconds"] for record in records), default=0.0),
    )
    for job, _ in runs:  # trainings with an own output folder have written theirs there
        other = job.folder.parents[1] / IDEAL
        if other != folder:
            (other / events.IDEALS).unlink(missing_ok=True)
    return curves


# --- samples over time ---------------------------------------------------------------------------


@torch.no_grad()
def _images(env: str, jobs: Sequence[Job], energy: Energy) -> list[tuple[int, Any]]:
    """Samples of each agent's first seed after shares of the budget, in percent, as images."""
    first: dict[str, Job] = {}
    for job in jobs:
        first.setdefault(job.agent, job)
    moments = {agent: list(_moments(job)) for agent, job in first.items()}
    reference = exact_states(energy) if jobs[0].config.mdp.temperature == 1.0 else None
    images = []
    for percent in PERCENT:
        samples = {} if reference is None else {EXACT: evenly_spaced_rows(reference, ROWS)}
        for agent, found in moments.items():
            reached = [x for fraction, x in found if 100 * fraction <= percent]
            if reached:
                samples[agent] = reached[-1]
        if samples:
            energies = {name: energy(x) for name, x in samples.items()}
            figure = plot_samples(samples, energies, energy.symmetry, EXACT)
            png = rendered(figure, dpi=DPI)
            images.append((percent, events.picture(f"samples/{env}", png)))
    return images


def _moments(job: Job) -> Iterator[tuple[float, Tensor]]:
    """Share of the budget and states (n, D), in their order; the last are the final samples."""
    budget = job.config.budget
    for each in load_states(job.folder):
        yield budget.fraction(each.counters), each.x
    final = Samples.load(job.folder / "samples.pt").x
    yield 1.0, evenly_spaced_rows(final, ROWS).float()
