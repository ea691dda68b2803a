"""Pictures of error budgets: the parts of the path gap, stacked over the chain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vgs_rl.evaluation.budget.result import PARTS, ErrorBudget, PartName
from vgs_rl.plots import panels as draw

COLOURS: dict[PartName, str] = {
    "start": draw.EXACT,
    "discretisation": draw.ACCENTS[1],
    "learning": draw.SAMPLER,
    "noise scale": draw.ACCENTS[3],
}


def plot_budget(budget: ErrorBudget) -> Figure:
    """The parts at the start and at every step, stacked, and their sums beside the measured gap."""
    with rc_context(draw.STYLE):
        figure = Figure(figsize=(6.6, 2.9), layout="constrained")
        steps, sums = figure.subplots(1, 2, width_ratios=(3.2, 1))
        _draw_steps(steps, budget)
        _draw_sums(sums, [budget], ["sum"])
        sums.axhline(budget.gap.value, color=draw.INK, lw=1.0, ls="--", label="measured gap")
        sums.set_ylim(bottom=min(0.0, sums.get_ylim()[0]))
        sums.set_ylabel("nats")
        figure.suptitle(f"{budget.target}, T = {budget.num_steps}", fontsize=10)
        handles, labels = sums.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5)
    return figure


def plot_budgets(budgets: Sequence[ErrorBudget]) -> Figure:
    """Sums of the parts against T, a panel for each target, with the measured gaps."""
    targets = list(dict.fromkeys(budget.target for budget in budgets))
    with rc_context(draw.STYLE):
        figure = Figure(figsize=(max(5.0, 2.3 * len(targets) + 0.4), 2.7), layout="constrained")
        panels = figure.subplots(1, len(targets), squeeze=False)[0]
        for axes, target in zip(panels, targets, strict=True):
            own = [budget for budget in budgets if budget.target == target]
            _draw_sums(axes, own, [str(budget.num_steps) for budget in own])
            axes.errorbar(
                range(len(own)),
                [budget.gap.value for budget in own],
                [2 * budget.gap.error for budget in own],
                fmt="o",
                color=draw.INK,
                ms=4,
                lw=1.0,
                label="measured gap",
            )
            axes.set(title=target, xlabel="steps $T$")
        panels[0].set_ylabel("EUBO − log Z  [nats]")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5)
    return figure


def _draw_steps(axes: Axes, budget: ErrorBudget) -> None:
    """Bars for the start, left of step 0, and for each step; parts below 0 hang from the axis."""
    steps = np.arange(-1.0, budget.num_steps)
    steps[0] -= 0.05 * budget.num_steps
    above, below = np.zeros(len(steps)), np.zeros(len(steps))
    for name in PARTS:
        part = budget.parts[name]
        heights = np.zeros(len(steps))
        if part.per_step:
            heights[1:] = part.per_step
        else:
            heights[0] = part.value
        bottom = np.where(heights < 0, below, above)
        axes.bar(steps, heights, bottom=bottom, width=0.85, color=COLOURS[name], lw=0)
        above += np.maximum(heights, 0)
        below += np.minimum(heights, 0)
    axes.axvline(0.5 * steps[0] - 0.25, color="0.8", lw=0.8)
    ticks = sorted({*range(0, budget.num_steps, max(1, budget.num_steps // 8))})
    axes.set_xticks([steps[0], *ticks], ["start", *map(str, ticks)])
    axes.set(xlabel="step $t$", ylabel="part of the gap  [nats]")


def _draw_sums(axes: Axes, budgets: Sequence[ErrorBudget], labels: Sequence[str]) -> None:
    """A stacked bar for each budget."""
    bottom = np.zeros(len(budgets))
    for name in PARTS:
        heights = np.array([budget.parts[name].value for budget in budgets])
        axes.bar(
            range(len(budgets)), heights, bottom=bottom, width=0.6, color=COLOURS[name], label=name
        )
        bottom = bottom + heights
    axes.set_xticks(range(len(budgets)), labels)
    axes.set_xlim(-0.7, len(budgets) - 0.3)
