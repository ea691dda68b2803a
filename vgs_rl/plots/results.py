"""Pictures of what a user holds, samples and a report, and of what its bounds are worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor

from vgs_rl.evaluation.report import Report
from vgs_rl.plots import panels as draw

SHOWN = 5_000  # states in a picture


def plot_states(x: Tensor, log_weight: Tensor | None = None) -> Figure:
    """Samples in their first two coordinates, areas by weight; of one dimension a histogram.

    Args:
        x: states, shape (n, D).
        log_weight: shape (n,), or None for equal weights.
    """
    figure = Figure(figsize=(3.6, 3.2), layout="constrained")
    axes = figure.subplots()
    states = x[:SHOWN].detach().double().cpu().numpy()
    share = np.ones(len(states))
    if log_weight is not None:
        logs = log_weight[:SHOWN].detach().double().cpu().numpy()
        top = logs.max() if np.isfinite(logs.max()) else 0.0
        share = np.exp(np.where(np.isfinite(logs), logs - top, -np.inf))
        share *= len(share) / max(share.sum(), 1e-300)
    if states.shape[1] == 1:
        axes.hist(states[:, 0], bins=60, weights=share, color=draw.SAMPLER, density=True)
        axes.set_xlabel("$x$")
        axes.set_ylabel("density")
        return figure
    axes.scatter(
        states[:, 0], states[:, 1], s=4 * np.minimum(share, 25), c=draw.SAMPLER, alpha=0.5, lw=0
    )
    axes.set_xlabel("$x_1$")
    axes.set_ylabel("$x_2$")
    if states.shape[1] > 2:
        axes.set_title(f"2 of {states.shape[1]} coordinates", fontsize=9)
    return figure


def plot_report(report: Report) -> Figure:
    """Each metric of a report against its ideal, on a logarithmic axis."""
    shown = {
        name: (metric.value, metric.ideal)
        for name, metric in report.metrics.items()
        if metric.ideal is not None and metric.ideal > 0 and math.isfinite(metric.value)
    }
    figure = Figure(figsize=(4.6, 0.8 + 0.26 * max(1, len(shown))), layout="constrained")
    axes = figure.subplots()
    rows = range(len(shown), 0, -1)
    for row, (value, ideal) in zip(rows, shown.values(), strict=True):
        axes.plot([abs(ideal), max(abs(value), 1e-12)], [row, row], color="0.8", zorder=0)
        axes.plot(abs(ideal), row, "|", color="0.3", ms=9, label="ideal" if row == 1 else None)
        axes.plot(
            max(abs(value), 1e-12),
            row,
            "o",
            color=draw.SAMPLER,
            ms=4,
            label=report.agent or "sampler" if row == 1 else None,
        )
    axes.set_yticks(list(rows), list(shown))
    axes.set_xscale("log")
    if shown:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    axes.set_title(f"{report.target}, {report.n_samples:,} samples", fontsize=9)
    return figure


@dataclass(frozen=True, kw_only=True)
class CoveragePoint:
    """Intervals of log Z for one law of weights; widths and estimates are medians.

    Attributes:
        name: of the law.
        k_hat: tail index of w.
        ess: effective share of all weights.
        usual: share of the usual intervals that hold log Z.
        usual_width: their width [nats].
        proven: share of the proven intervals that hold log Z.
        below: log Z minus their lower end [nats].
        above: their upper end minus log Z [nats].
    """

    name: str
    k_hat: float
    ess: float
    usual: float
    usual_width: float
    proven: float
    below: float
    above: float


def plot_coverage(points: Sequence[CoveragePoint], *, confidence: float) -> Figure:
    """How often intervals of log Z hold, and how wide they are, against k-hat of the weights.

    Args:
        points: one for each law; the name is shown where k-hat is below 0.5 although the usual
            interval fails. Widths far below those of proven intervals are left out.
        confidence: the level that the intervals claim, a dashed line.
    """
    k_hat = [point.k_hat for point in points]
    panels = (
        ("share that holds $\\log Z$", [p.usual for p in points], [p.proven for p in points]),
        (
            "width  [nats]",
            [p.usual_width for p in points],
            [p.below + p.above for p in points],
        ),
    )
    with rc_context(draw.STYLE):
        figure = Figure(figsize=(6.6, 2.9), layout="constrained")
        for axes, (title, usual, proven) in zip(figure.subplots(1, 2), panels, strict=True):
            axes.plot(k_hat, usual, "o", color=draw.ACCENTS[1], ms=4, label="usual interval")
            axes.plot(k_hat, proven, "s", color=draw.SAMPLER, ms=4, label="proven interval")
            axes.axvline(0.7, color="0.8", lw=0.8, zorder=0)
            axes.set(xlabel="$\\hat k$ of the weights, median", title=title)
        first, second = figure.axes
        first.axhline(confidence, color="0.5", lw=0.8, ls="--", zorder=0)
        first.set_ylim(0, 1.05)
        for point in points:
            if point.usual < 0.6 and point.k_hat < 0.5:  # k-hat does not see why
                first.annotate(
                    point.name,
                    (point.k_hat, point.usual),
                    xytext=(5, -3),
                    textcoords="offset points",
                )
        second.set_yscale("log")
        second.set_ylim(bottom=0.3 * min(point.below + point.above for point in points))
        handles, labels = first.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure
