"""A picture of verdicts: how far each result is off, and what was said of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vgs_rl.plots import panels as draw

COLOURS = {
    "trust": "#009E73",
    "use the weights": "#0072B2",
    "do not use": draw.SAMPLER,
    "failed": draw.FAINT,
}
ERRORS, SHARES = (1e-4, 1e2), (1e-4, 1.0)  # what is drawn; beyond it, the edge


def plot_verdicts(rows: Sequence[Mapping[str, Any]], *, right: float = 0.1) -> Figure:
    """|Δ log Z| and ESS by target, a dot for each seed, coloured by verdict.

    Dots of wrong results are hollow. What is beyond an axis is a triangle at its edge, and what is
    not known is not drawn.

    Args:
        rows: with `target`, `verdict`, `right`, `log Z - truth` and `ESS of all`.
        right: largest |Δ log Z| of a right result, drawn as a line.

    Raises:
        ValueError: if there are no rows.
    """
    if not rows:
        raise ValueError("rows must have at least one result, got none")
    names = list(dict.fromkeys(str(row["target"]) for row in rows))
    with rc_context(draw.STYLE):
        figure = Figure(figsize=(7.2, 1.2 + 0.21 * len(names)), layout="constrained")
        errors, shares = figure.subplots(1, 2, sharey=True)
        for row in rows:
            y = names.index(str(row["target"]))
            colour = COLOURS[str(row["verdict"])]
            inside = "white" if row["right"] is False else colour
            for axes, value, limits in (
                (errors, abs(row["log Z - truth"]), ERRORS),
                (shares, row["ESS of all"], SHARES),
            ):
                _draw(axes, value, y, limits, colour=colour, inside=inside)
        errors.axvline(right, color=draw.EXACT, lw=0.9, zorder=0)
        errors.set(yticks=range(len(names)), yticklabels=names, xlabel="|Δ log Z|  [nats]")
        errors.set_ylim(len(names) - 0.5, -0.5)
        shares.set_xlabel("ESS of all samples")
        for axes, limits in ((errors, ERRORS), (shares, SHARES)):
            axes.set(xscale="log", xlim=(0.7 * limits[0], 1.4 * limits[1]))
            axes.grid(axis="y", color="0.93", lw=0.6)
            axes.set_axisbelow(True)
        figure.legend(handles=_legend(rows), loc="outside upper center", ncols=5)
    return figure


def _draw(
    axes: Axes, value: float, y: int, limits: tuple[float, float], *, colour: str, inside: str
) -> None:
    if math.isnan(value):
        return
    low, high = limits
    marker = "<" if value < low else ">" if value > high else "o"
    x = min(max(value, low), high)
    axes.plot(x, y, marker, ms=4.5, mec=colour, mfc=inside, mew=1.1)


def _legend(rows: Sequence[Mapping[str, Any]]) -> list[Line2D]:
    def entry(label: str, colour: str, inside: str) -> Line2D:
        return Line2D([], [], ls="", marker="o", ms=4.5, mec=colour, mfc=inside, label=label)

    said = {row["verdict"] for row in rows}
    entries = [entry(word, colour, colour) for word, colour in COLOURS.items() if word in said]
    return [*entries, entry("wrong", draw.INK, "white")]
