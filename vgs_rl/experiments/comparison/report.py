"""What a comparison found: tables over seeds beside ideals, findings in words, pictures."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator
from torch import Tensor

from vgs_rl.energy import Particles
from vgs_rl.evaluation.evaluate import Report
from vgs_rl.evaluation.particles import pair_distances
from vgs_rl.evaluation.report import OWN_IDEALS, format_value, own_ideal
from vgs_rl.experiments.baselines import BASELINES
from vgs_rl.experiments.comparison.jobs import CompareError, Job
from vgs_rl.experiments.tables import Table, format_cell, markdown_table
from vgs_rl.plots import panels as draw

# The figures shown, and whether more is better.
FIGURES = {
    "elbo": True,
    "gap": False,
    "tvd_energy": False,
    "tvd_distance": False,
    "w2_energy": False,
    "mode_weight_error": False,
    "std_error": False,
    "log_z_error": False,
    "ess": True,
}
EVALUATED = ("elbo", "tvd_energy")  # what agents are ranked by, in words
COUNTERS = ("energy_evaluations", "seconds", "env_steps")
# Okabe and Ito's colours without the sampler's own, which is the value-gradient agent's.
COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")

Results = Mapping[str, Mapping[str, Sequence[Report]]]
"""Reports over seeds by target and agent."""


def read_reports(files: str, jobs: Sequence[Job]) -> list[Report]:
    """Reports of samplers that were evaluated elsewhere, from files with commas between.

    Raises:
        CompareError: if one cannot be read, is of a target that is not compared, or has the name of
            a run.
    """
    reports = []
    for file in filter(None, files.split(",")):
        try:
            report = Report.load(Path(file))
        except (OSError, ValueError) as error:
            raise CompareError(f"--reports {file}: {error}") from error
        targets = list(dict.fromkeys(job.env for job in jobs))
        if report.target not in targets:
            raise CompareError(
                f"--reports {file} is of the target {report.target!r}, compared are "
                f"{', '.join(targets)}"
            )
        if not report.agent or report.agent in {job.agent for job in jobs}:
            raise CompareError(
                f"--reports {file} calls its agent {report.agent!r}; a row needs a name of its own"
            )
        reports.append(report)
    return reports


def collect(jobs: Sequence[Job], others: Sequence[Report] = ()) -> Results:
    """The reports of all finished runs, and of samplers that were evaluated elsewhere."""
    found: dict[str, dict[str, list[Report]]] = {}
    for job in jobs:
        report = job.report()
        if report is not None:
            found.setdefault(job.env, {}).setdefault(job.agent, []).append(report)
    for report in others:
        if report.target in found:
            found[report.target].setdefault(report.agent, []).append(report)
    return found


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error over seeds; the error of a single one is NaN."""
    n = len(values)
    error = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return float(np.mean(values)), error


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    return format_value(*mean_and_error(values))


def values_of(reports: Sequence[Report], name: str) -> list[float]:
    """One figure over seeds."""
    return [report.metrics[name].value for report in reports if name in report.metrics]


def table(results: Mapping[str, Sequence[Report]]) -> Table:
    """One row an agent, the ideal first, with an agent's own behind it; then costs."""
    everything = [report for reports in results.values() for report in reports]
    names = [name for name in FIGURES if any(name in report.metrics for report in everything)]
    found = {name: [r.metrics[name] for r in everything if name in r.metrics] for name in names}
    ideals = {
        name: next((figure for figure in figures if figure.ideal is not None), None)
        for name, figures in found.items()
    }
    costs = ("seeds", "seconds", "env steps", "energies", "energies per sample")
    rows: Table = [
        {
            "agent": "*ideal*",
            **{name: f.ideal_text() if f is not None else "" for name, f in ideals.items()},
            **dict.fromkeys(costs, ""),
        }
    ]
    for agent, reports in results.items():
        per_sample = [
            report.details.get("sampling_energy_evaluations", 0) / report.n_samples
            for report in reports
        ]
        cost = (
            len(reports),
            format_cell(float(np.mean([r.train_seconds for r in reports]))),
            format_cell(float(np.mean([r.env_steps for r in reports]))),
            format_cell(float(np.mean([r.energy_evaluations for r in reports]))),
            format_cell(float(np.mean(per_sample))),
        )
        figures = {
            name: _cell(values_of(reports, name))
            + own_ideal(reports[0].metrics.get(name), ideals[name])
            for name in names
        }
        rows.append({"agent": agent, **figures, **dict(zip(costs, cost, strict=True))})
    return rows


def findings(results: Mapping[str, Sequence[Report]]) -> list[str]:
    """Sentences: whom value-gradient agents do not beat, who does not learn anything."""
    sentences = []
    means = {
        agent: {
            name: mean_and_error(values)[0]
            for name in EVALUATED
            if (values := values_of(reports, name))
        }
        for agent, reports in results.items()
    }
    ours = [agent for agent in means if agent.partition("-")[0] == "vgs"]
    for agent, name in itertools.product(ours, EVALUATED):
        if name not in means[agent]:
            continue
        own, sign = means[agent][name], 1.0 if FIGURES[name] else -1.0
        # A figure that is not finite belongs to a sampler that diverged: beaten.
        finite = {a: m[name] for a, m in means.items() if math.isfinite(m.get(name, math.nan))}
        others = {a: value for a, value in finite.items() if a not in ours}
        ahead = {a: value for a, value in others.items() if not sign * own > sign * value}
        listed = ", ".join(f"{other} ({format_value(value)})" for other, value in ahead.items())
        what = f"{name} {format_value(own)}"
        if ahead:
            sentences.append(f"{agent} ({what}) does **not** beat {listed}")
        elif others:
            sentences.append(f"{agent} ({what}) beats every other row")
    start = means.get("uncontrolled", {}).get("elbo")
    learned = {
        agent: mean["elbo"]
        for agent, mean in means.items()
        if agent not in BASELINES and "elbo" in mean
    }
    if start is not None and learned:
        worse = [agent for agent, elbo in learned.items() if not elbo > start]
        sentences.append(
            f"no better than the uncontrolled chain's ELBO: {', '.join(worse)}"
            if worse
            else "every agent improves on the uncontrolled chain's ELBO"
        )
    return sentences


def as_markdown(results: Results, title: str, failed: Mapping[str, str]) -> str:
    """Tables and findings of all targets."""
    parts = []
    for env, agents in results.items():
        first = next(iter(agents.values()))[0]
        parts.append(f"**{env}, {title}, {first.n_samples:,} samples**")
        rows = table(agents)
        parts.append(markdown_table(rows))
        if any(str(row[name]).endswith(")") for row in rows[1:] for name in FIGURES if name in row):
            parts.append(f"{OWN_IDEALS[0].upper()}{OWN_IDEALS[1:]}.")
        parts.append("\n".join(f"- {sentence}" for sentence in findings(agents)))
    if failed:
        parts.append("Failed:")
        parts.append("\n".join(f"- {name}: {why}" for name, why in failed.items()))
    return "\n\n".join(parts)


def as_json(results: Results, failed: Mapping[str, str]) -> dict[str, Any]:
    """Means, errors, ideals and all reports."""
    summary = {
        env: {
            agent: {
                name: dict(zip(("mean", "standard_error"), _finite(values), strict=True))
                for name in FIGURES
                if (values := values_of(reports, name))
            }
            for agent, reports in agents.items()
        }
        for env, agents in results.items()
    }
    reports = [
        json.loads(report.as_json())
        for agents in results.values()
        for reports in agents.values()
        for report in reports
    ]
    return {
        "summary": summary,
        "findings": {env: findings(agents) for env, agents in results.items()},
        "failed": dict(failed),
        "reports": reports,
    }


def _finite(values: Sequence[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in mean_and_error(values)]


# --- pictures ------------------------------------------------------------------------------------


def style_of(agents: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and line of each agent: vgs has its own colour, what learns nothing is dashed."""
    styles = {"vgs": (draw.SAMPLER, "-"), "uncontrolled": (draw.FAINT, ":")}
    learned = [a for a in agents if a not in BASELINES and a != "vgs"]
    drawn = [a for a in agents if a in BASELINES and a != "uncontrolled"]
    for names, line in ((learned, "-"), (drawn, "--")):
        for i, name in enumerate(names):
            styles[name] = (COLOURS[i % len(COLOURS)], line)
    return styles


def plot_learning(jobs: Sequence[Job], log_z: float | None, ideal: float | None) -> Figure:
    """ELBO (its gap, where log Z is known) and TVD-E over every counter, a line an agent.

    Lines are means over seeds of curves interpolated between records, bands their standard errors.
    The thin line below is the ideal.
    """
    agents = list(dict.fromkeys(job.agent for job in jobs))
    styles = style_of(agents)
    records = {
        agent: [_records(job.folder) for job in jobs if job.agent == agent] for agent in agents
    }
    gap = "ELBO  [nats]" if log_z is None else "$\\log Z$ - ELBO  [nats]"
    with rc_context(draw.STYLE):
        figure = Figure(figsize=(9.6, 5.6), layout="constrained")
        grid = figure.subplots(2, len(COUNTERS), sharex="col", sharey="row", squeeze=False)
        for row, (tag, label) in enumerate((("eval/elbo", gap), ("eval/tvd_energy", "TVD-E"))):
            for axes, counter in zip(grid[row], COUNTERS, strict=True):
                ends = []
                for agent in agents:
                    ends += _draw_agent(axes, records[agent], counter, tag, log_z, styles[agent])
                if tag == "eval/tvd_energy" and ideal is not None:
                    axes.axhline(ideal, color=draw.INK, lw=0.7)
                _scale(axes, logarithmic=tag != "eval/elbo" or log_z is not None, ends=ends)
                axes.set_xlabel(draw.X_LABELS[counter])
            grid[row][0].set_ylabel(label)
        handles = [
            draw_line(agent, *styles[agent]) for agent in agents if records[agent] or agent == "vgs"
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(7, len(handles)))
    return figure


def draw_line(label: str, colour: str, line: str) -> Any:
    """An entry of a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, ls=line, lw=1.6, label=label)


def _draw_agent(
    axes: Axes,
    runs: Sequence[Sequence[dict[str, Any]]],
    counter: str,
    tag: str,
    log_z: float | None,
    style: tuple[str, str],
) -> list[float]:
    """One agent's line and band; returns where its line ends."""
    colour, line = style
    curves = [draw.series(run, counter, tag) for run in runs]
    curves = [(x, y) for x, y in curves if len(x)]
    if not curves:
        return []
    if tag == "eval/elbo" and log_z is not None:
        curves = [(x, np.maximum(log_z - y, 1e-3)) for x, y in curves]
    if len(curves[0][0]) == 1:  # no cost, or no curve: a line across
        height = float(np.mean([y[-1] for _, y in curves]))
        axes.axhline(height, color=colour, ls=line, lw=1.1)
        return [height]
    low, high = (f(x[i] for x, _ in curves) for f, i in ((max, 0), (min, -1)))
    at = np.linspace(low, max(high, low), 100)
    values = np.stack([np.interp(at, x, y) for x, y in curves])
    mean = values.mean(0)
    axes.plot(at, mean, color=colour, ls=line, lw=1.4)
    if len(curves) > 1:
        error = values.std(0, ddof=1) / math.sqrt(len(curves))
        axes.fill_between(at, mean - error, mean + error, color=colour, alpha=0.18, lw=0)
    return [float(mean[-1])]


def _scale(axes: Axes, *, logarithmic: bool, ends: Sequence[float]) -> None:
    if logarithmic:
        axes.set_yscale("log")
        if ends:  # the first is the uncontrolled chain's: what is far above it has diverged
            axes.set_ylim(top=min(axes.get_ylim()[1], 3.0 * max(ends[0], float(np.median(ends)))))
        low, high = axes.get_ylim()
        wide = high > 500 * low
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    elif ends:  # what diverges, or never began, would flatten all the rest
        best = max(ends)
        reach = max(5.0, 3.0 * (best - float(np.median(ends))))
        axes.set_ylim(best - reach, best + 0.1 * reach)
    if axes.get_xlim()[1] > 0:
        axes.set_xscale("symlog", linthresh=max(1e-3 * axes.get_xlim()[1], 1e-2))
        axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(axis="y", color=draw.INK, alpha=0.08, lw=0.6)


def _records(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; those that a crash cut short are left out."""
    file, records = folder / "metrics.jsonl", []
    for line in file.read_bytes().splitlines() if file.is_file() else []:
        with suppress(ValueError):
            records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict)]


def plot_samples(
    samples: Mapping[str, Tensor],
    energies: Mapping[str, Tensor],
    symmetry: Particles | None,
    exact: str,
) -> Figure:
    """Final samples, a panel each: x, two coordinates, or pair distances of particles.

    Args:
        samples: tensors (n, D) by name; the reference is `exact`.
        energies: their energies, shape (n,), by the same names.
        symmetry: the target's particle symmetry, or None.
        exact: name of the reference among them.
    """
    if not samples:
        raise ValueError("there are no samples to draw")
    names = list(samples)
    columns = min(5, len(names))
    rows = -(-len(names) // columns)
    reference = samples.get(exact)
    with rc_context(draw.STYLE):
        figure = Figure(figsize=(2.1 * columns + 0.3, 2.3 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        some = reference if reference is not None else samples[names[-1]]
        view = draw.View.around(some)
        for axes, name in zip(grid.flat, names, strict=False):
            x, truth = samples[name], None if name == exact else reference
            if symmetry is not None:
                _draw_numbers(axes, pair_distances, (x, truth, some), symmetry)
                axes.set_xlabel("pair distance")
            elif x.shape[1] == 1:
                _draw_numbers(axes, lambda z, _: z, (x, truth, some), symmetry)
                axes.set_xlabel("$x$")
            else:
                draw.draw_states(axes, x, None, view)
            median = float(energies[name].double().nanmedian())
            axes.set_title(f"{name}\nmedian E {format_cell(median)}")
            axes.xaxis.set_major_locator(MaxNLocator(4))
        for axes in list(grid.flat)[len(names) :]:
            axes.set_axis_off()
    return figure


def _draw_numbers(
    axes: Axes,
    number: Callable[[Tensor, Any], Tensor],
    sets: tuple[Tensor, Tensor | None, Tensor],
    symmetry: Particles | None,
) -> None:
    """Histogram of numbers of samples over those of a reference, over the range of a third set."""
    drawn, truth, some = (None if x is None else number(x, symmetry).flatten() for x in sets)
    assert drawn is not None and some is not None
    edges = draw.edges_over(some, drawn, bins=80, most=1.0, below=0.0, above=0.1)
    draw.draw_histograms(axes, drawn, truth, edges, "reference")
