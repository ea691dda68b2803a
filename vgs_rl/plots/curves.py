"""Curves: which learning curves there are and how records become lines; metrics against T."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

from vgs_rl.plots.panels import ACCENTS, FAINT, INK, STYLE, Array

Records = Sequence[Mapping[str, Any]]


X_LABELS = {
    "env_steps": "environment steps",
    "energy_evaluations": "energy evaluations",
    "seconds": "training time  [s]",
    "updates": "gradient updates",
}


STEP_TITLES = {
    "elbo": "ELBO  [nats]",
    "path_ess": "path-ESS",
    "ess": "ESS of all samples",
    "tvd_energy": "TVD-E",
}


@dataclass(frozen=True)
class Curves:
    """A panel of learning curves: its label, its tags with their names, and its scale."""

    label: str
    tags: tuple[tuple[str, str], ...]
    logarithmic: bool = False


BOUNDS = Curves(
    "$\\log Z$ and its bounds  [nats]",
    (("eval/elbo", "ELBO"), ("eval/eubo", "EUBO"), ("eval/log_z", "$\\log Z$ estimate")),
)


CURVES = (
    Curves("loss", (("train/loss", "loss"),), logarithmic=True),
    BOUNDS,
    Curves("path-ESS", (("eval/path_ess", "path-ESS"),)),
    Curves("TVD-E", (("eval/tvd_energy", "TVD-E"),), logarithmic=True),
)


def draw_curves(
    axes: Axes, records: Records, x: str, curves: Curves, log_z: float | None = None
) -> None:
    """Learning curves; dense ones are faint with their running mean in full colour."""
    drawn: list[Array] = []
    for (tag, name), colour in zip(curves.tags, ACCENTS, strict=False):
        steps, values = series(records, x, tag)
        if not len(steps):
            continue
        drawn.append(values)
        if len(steps) > 60:
            axes.plot(steps, values, color=colour, lw=0.7, alpha=0.3)
            values = _running_mean(values, len(values) // 50)
        mark = "o" if len(steps) == 1 else ""
        axes.plot(steps, values, color=colour, lw=1.5, marker=mark, ms=4, label=name)
        ideal = series(records, x, f"{tag}_ideal")[1]
        if len(ideal):
            _exact_line(axes, float(ideal[-1]), "ideal")
    if curves is BOUNDS and log_z is not None:
        _exact_line(axes, log_z, "exact $\\log Z$")
        drawn.append(np.array([log_z]))
    _set_scale(axes, drawn, curves.logarithmic)
    axes.set(xlabel=X_LABELS[x], ylabel=curves.label)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(axis="y", color=INK, alpha=0.08, lw=0.6)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(loc="best", handlelength=1.6)


def _exact_line(axes: Axes, height: float, label: str) -> None:
    axes.axhline(height, color=FAINT, lw=1.0, ls=(0, (4, 2)), label=label)


def _set_scale(axes: Axes, drawn: Sequence[Array], logarithmic: bool) -> None:
    """Logarithmic where that helps; else cuts off first steps that would flatten all the rest."""
    everything = np.concatenate(drawn)
    if logarithmic and everything.min() > 0 and everything.max() > 4 * everything.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        return
    settled = np.concatenate([values[len(values) // 8 :] for values in drawn])
    low, high = settled.min(), settled.max()
    if np.ptp(everything) > 4 * (high - low) > 0:
        axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    axes.yaxis.set_major_locator(MaxNLocator(5))


def series(records: Records, x: str, tag: str) -> tuple[Array, Array]:
    """Counter and value of every record that has both, finite."""
    pairs = [(r[x], r[tag]) for r in records if r.get(x) is not None and r.get(tag) is not None]
    points = np.asarray(pairs, dtype=np.float64).reshape(-1, 2)
    points = points[np.isfinite(points).all(axis=1)]
    return points[:, 0], points[:, 1]


def _running_mean(values: Array, half: int) -> Array:
    """Mean over 2 half + 1 neighbours, fewer at the ends."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return np.asarray((total[high] - total[low]) / (high - low))


def plot_steps(curves: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]) -> Figure:
    """Figures against the number of steps T, one panel a figure, one line a curve.

    Args:
        curves: by curve name, by figure name, points (T, value). Names that start with `exact`
            are dashed; curves whose names end alike share a colour.
    """
    names = list(dict.fromkeys(name for figures in curves.values() for name in figures))
    ends = list(dict.fromkeys(curve.rpartition(", ")[2] for curve in curves))
    with rc_context(STYLE):
        figure = Figure(figsize=(3.1 * len(names), 2.9), layout="constrained")
        panels = figure.subplots(1, len(names), squeeze=False)[0]
        for axes, name in zip(panels, names, strict=True):
            for curve, figures in curves.items():
                axes.plot(
                    [t for t, _ in figures[name]],
                    [value for _, value in figures[name]],
                    color=ACCENTS[ends.index(curve.rpartition(", ")[2])],
                    linestyle="--" if curve.startswith("exact") else "-",
                    marker="o",
                    markersize=3.5,
                    label=curve,
                )
            ticks = sorted({t for figures in curves.values() for t, _ in figures[name]})
            axes.set_xscale("log")
            axes.set_xticks(ticks, [str(t) for t in ticks])
            axes.set_xticks([], minor=True)
            axes.set(xlabel="steps $T$", title=STEP_TITLES.get(name, name))
            if name == "elbo":
                axes.set_yscale("symlog", linthresh=0.1)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(curves))
    return figure
