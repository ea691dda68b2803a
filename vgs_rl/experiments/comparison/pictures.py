"""The pictures of a comparison: learning curves and final samples, agents over each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator
from torch import Tensor

from vgs_rl.energy import Energy, Particles
from vgs_rl.evaluation.metrics import evenly_spaced_rows
from vgs_rl.evaluation.particles import pair_distances
from vgs_rl.evaluation.progress import EnergyProgress
from vgs_rl.experiments.baselines import BASELINES
from vgs_rl.experiments.comparison.jobs import (
    Job,
)
from vgs_rl.experiments.tables import format_cell
from vgs_rl.plots import panels as draw
from vgs_rl.plots.curves import X_LABELS, series
from vgs_rl.plots.plots import save_figure, try_picture
from vgs_rl.registry import find
from vgs_rl.samplers.base import Samples
from vgs_rl.training.config import EvaluationConfig
from vgs_rl.training.folder import read_records

COUNTERS = ("energy_evaluations", "seconds", "env_steps")
# Okabe and Ito's colours without the sampler's own, which is the value-gradient agent's.
COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
EXACT = "exact"
SHOWN = 2_000  # samples in the pictures


def draw_comparison(env: str, jobs: Sequence[Job], root: Path) -> list[Path]:
    """Learning curves and final samples of one target, as far as they can be drawn."""
    mine = [job for job in jobs if job.env == env and job.finished]
    config = mine[0].config
    draw = {"learning": _draw_learning, "samples": _draw_samples}
    paths = []
    for what, make in draw.items():
        path = root / f"{env}-{what}.png"
        path.unlink(missing_ok=True)  # an earlier comparison's

        def write(make: Callable[..., Figure] = make, path: Path = path) -> None:
            energy = find(config.env).make_energy(**config.env_args)
            save_figure(make(energy, mine), path)

        try_picture(str(path), write)
        paths.append(path)
    return [path for path in paths if path.is_file()]


def _draw_learning(energy: Energy, jobs: Sequence[Job]) -> Figure:
    config = jobs[0].config
    if config.mdp.temperature != 1.0:  # what is known is known at 1
        return plot_learning(jobs, None, None)
    return plot_learning(jobs, energy.log_z, curve_ideal(energy, config.evaluation))


def _states(file: Path) -> Tensor:
    return Samples.load(file).x


@torch.no_grad()
def _draw_samples(energy: Energy, jobs: Sequence[Job]) -> Figure:
    """The samples of each agent's first seed; a file that cannot be read is left out, by name."""
    exact = exact_states(energy) if jobs[0].config.mdp.temperature == 1.0 else None
    samples = {} if exact is None else {EXACT: exact}
    for job in jobs:
        if job.agent not in samples:
            file = job.folder / "samples.pt"
            found = try_picture(f"of {file}", partial(_states, file))
            if found is not None:
                samples[job.agent] = evenly_spaced_rows(found, SHOWN).float()
    energies = {name: energy(x) for name, x in samples.items()}
    return plot_samples(samples, energies, energy.symmetry, EXACT)


def curve_ideal(energy: Energy, evaluation: EvaluationConfig) -> float | None:
    """TVD-E of as many exact samples against what curves are measured with, where there are any."""
    if not energy.can_sample:
        return None
    # The runs' own reference: its outermost energy sets the width of the bins, so also the ideal.
    progress = EnergyProgress(energy, torch.Generator().manual_seed(evaluation.seed + 5))
    generator, n = torch.Generator().manual_seed(0), evaluation.validation_samples
    draws = (energy(energy.sample(n, generator)) for _ in range(8))
    return float(np.mean([progress.metrics(e, None)["eval/tvd_energy"] for e in draws]))


def exact_states(energy: Energy) -> Tensor | None:
    """Exact or reference samples for the pictures, shape (n, D), or None."""
    if energy.can_sample:
        return energy.sample(SHOWN, torch.Generator().manual_seed(0)).float()
    try:
        return energy.reference("validation")[:SHOWN].float()
    except NotImplementedError:
        return None


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
        agent: [read_records(job.folder) for job in jobs if job.agent == agent] for agent in agents
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
                axes.set_xlabel(X_LABELS[counter])
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
    curves = [series(run, counter, tag) for run in runs]
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
