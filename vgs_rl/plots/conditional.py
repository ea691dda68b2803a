"""Pictures of conditional energies: log Z as a curve over a parameter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vgs_rl.evaluation.conditional.curve import LogZCurve
from vgs_rl.plots import panels as draw


def plot_log_z(curve: LogZCurve) -> Figure:
    """Log Z with its bounds, and next to it the widths of both around the estimate."""
    with rc_context(draw.STYLE):
        figure = Figure(figsize=(6.6, 2.7), layout="constrained")
        level, around = figure.subplots(1, 2)
        draw_log_z(level, curve)
        draw_log_z(around, curve, less_estimate=True)
        around.set_ylabel("less the estimate  [nats]")
        handles, labels = level.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def draw_log_z(axes: Axes, curve: LogZCurve, *, less_estimate: bool = False) -> None:
    """One curve along its first parameter.

    Args:
        axes: where.
        curve: log Z at some values.
        less_estimate: whether bounds and exact values are shown less the estimate.
    """
    order = np.argsort([condition[0] for condition in curve.conditions])
    at = np.array([condition[0] for condition in curve.conditions])[order]

    def column(values: list[float | None]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        numbers = np.array([math.nan if each is None else each for each in values], np.float64)
        return numbers[order] - (estimate if less_estimate else 0.0)

    estimate = np.array(curve.log_z, np.float64)[order]
    low = column([each.log_z_low for each in curve.certificates])
    high = column([each.log_z_high for each in curve.certificates])
    level = f"{100 * curve.confidence:g} %"
    known = np.isfinite(high)
    if (known[1:] & known[:-1]).any():
        axes.fill_between(at, low, high, color=draw.SAMPLER, alpha=0.25, lw=0, label=level)
    elif known.any():  # no band to see
        axes.plot(at, high, color=draw.SAMPLER, ls="", marker="_", ms=8, label="upper bound")
    axes.plot(at, low, color=draw.SAMPLER, lw=0.8, ls=":", label="lower bound")
    axes.plot(at, column(list(curve.log_z)), color=draw.SAMPLER, lw=1.3, label="estimate")
    if any(each is not None for each in curve.exact):
        style: dict[str, Any] = {"color": draw.INK, "ls": "", "marker": "x", "ms": 4.5}
        axes.plot(at, column(list(curve.exact)), label="exact", **style)
    axes.set(xlabel=curve.names[0], ylabel="log Z  [nats]")


def plot_range(curve: LogZCurve, alone: Sequence[float]) -> Figure:
    """ELBO gaps of one sampler of a range and of samplers of one value each, and log Z.

    Args:
        curve: of the sampler of the range, with exact values of log Z.
        alone: ELBO of the others, in the curve's order.
    """
    at = [condition[0] for condition in curve.conditions]
    exact = np.array([math.nan if z is None else z for z in curve.exact])
    with rc_context(draw.STYLE):
        figure = Figure(figsize=(6.6, 2.7), layout="constrained")
        gaps, bounds = figure.subplots(1, 2)
        gaps.plot(at, exact - curve.elbos, "o-", color=draw.SAMPLER, ms=4, label="one for all")
        gaps.plot(at, exact - alone, "s", color=draw.ACCENTS[1], ms=5, label="one for each")
        gaps.set(xlabel=curve.names[0], ylabel="log Z − ELBO  [nats]", ylim=(0, None))
        draw_log_z(bounds, curve, less_estimate=True)
        bounds.set_ylabel("log Z less the estimate  [nats]")
        parts = [axes.get_legend_handles_labels() for axes in (gaps, bounds)]
        handles, labels = ([*a, *b] for a, b in zip(*parts, strict=True))
        figure.legend(handles, labels, loc="outside lower center", ncols=6)
    return figure
