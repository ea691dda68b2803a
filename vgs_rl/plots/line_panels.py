"""What one set of axes shows of a target in one dimension: densities and values over x."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from vgs_rl.energy import Energy
from vgs_rl.mdp import SamplingMDP
from vgs_rl.plots import panels as draw
from vgs_rl.plots.panels import Array, Limits

BINS = 40
CELLS = 300  # of a density that is known at every point


def density_line(
    mdp: SamplingMDP,
    energy: Energy,
    t: int,
    limits: Limits,
    exact: Tensor | None,
    generator: torch.Generator,
) -> tuple[Array, Array] | None:
    """Density that states at step t should have within the limits: edges and heights, or None.

    From the exact values, or the energy at t = T; else a histogram of exact states of shape
    (n, 1), noised to step t.
    """
    edges = np.linspace(*limits, CELLS + 1)
    centres = torch.as_tensor(0.5 * (edges[1:] + edges[:-1])).unsqueeze(1)
    density = draw.density_at(mdp, energy, t, centres.to(mdp.device, mdp.dtype))
    if density is None:
        if exact is None:
            return None
        edges = np.linspace(*limits, BINS + 1)
        density = np.histogram(draw.array(mdp.noised(exact, t, generator)[:, 0]), edges)[0]
    area = float(density.sum() * (edges[1] - edges[0]))
    return edges, density / (area or 1.0)


def draw_states(
    axes: Axes, states: Tensor, density: tuple[Array, Array] | None, limits: Limits
) -> None:
    """Histogram of states of shape (B, 1) over a density, which is normalised within the limits."""
    x, edges = draw.array(states[:, 0]), np.linspace(*limits, BINS + 1)
    heights = np.histogram(x, edges)[0] / (max(1, len(x)) * (edges[1] - edges[0]))
    if density is not None:
        axes.stairs(density[1], density[0], fill=True, color=draw.EXACT, alpha=0.55, lw=0)
    axes.stairs(heights, edges, color=draw.SAMPLER, lw=1.3)
    draw.note_beyond(axes, x, edges)
    axes.set(xlim=limits, ylim=(0, None), yticks=[])
    axes.set_xlabel("$x$", labelpad=1)
    axes.xaxis.set_major_locator(MaxNLocator(4))


def draw_value(
    axes: Axes,
    value_fn: Callable[[Tensor], Tensor],
    drift_fn: Callable[[Tensor], Tensor],
    t: int,
    limits: Limits,
    device: torch.device | str,
    dtype: torch.dtype,
) -> None:
    """V_t and, on its own axis, the drift; both functions take states (B, 1)."""
    grid = torch.linspace(*limits, CELLS, dtype=torch.float64).unsqueeze(1)
    x, states = draw.array(grid[:, 0]), grid.to(device, dtype)
    axes.plot(x, draw.above_minimum(value_fn(states)), color=draw.INK, lw=1.4)
    axes.set(xlabel="$x$", ylabel="$V_t - \\min V_t$  [nats]", xlim=limits, ylim=(0, None))
    axes.set_title(f"value and drift, $t = {t}$")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    other = axes.twinx()
    other.plot(x, draw.array(drift_fn(states)[:, 0]), color=draw.SAMPLER, lw=1.2)
    other.set_ylabel("drift $u_t$", color=draw.SAMPLER)
    other.tick_params(axis="y", colors=draw.SAMPLER)
    other.spines["right"].set_visible(True)
    other.axhline(0.0, color=draw.SAMPLER, lw=0.6, alpha=0.4)
