"""What one set of axes shows: the parts that :mod:`vgs_rl.plots.plots` composes.

Colours are Okabe and Ito's, which colour-blind readers can tell apart: the sampler is vermilion
everywhere, what is exact is blue-grey.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from vgs_rl.energy import Energy
from vgs_rl.mdp import SamplingMDP

Array = NDArray[np.float64]
Limits = tuple[float, float]

SAMPLER, EXACT, INK, FAINT = "#D55E00", "#8DA3B4", "#22303C", "#5B6B78"
ACCENTS = (SAMPLER, "#0072B2", "#009E73", "#CC79A7")
DENSITY = LinearSegmentedColormap.from_list(
    "density", ["#FFFFFF", "#E4ECF2", "#BBD0DF", "#86A9C3", "#5E88A8"]
)
LANDSCAPE = LinearSegmentedColormap.from_list(
    "landscape", ["#12395B", "#2F6690", "#6BA0C8", "#B5D3E7", "#F7FBFE"]
)
EXACT_STATES = 40_000  # behind a chain's states where the density itself is not known

# Matplotlib settings of every picture; only ever used inside rc_context.
STYLE: Any = {
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.0,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "figure.dpi": 160,
}


@dataclass(frozen=True)
class View:
    """The rectangle of the first two coordinates that is shown."""

    x: Limits
    y: Limits

    @classmethod
    def of(cls, limits: Limits | tuple[Limits, Limits]) -> View:
        """One range for both coordinates, or one for each."""
        first, second = limits
        if isinstance(first, tuple) and isinstance(second, tuple):
            return cls(first, second)
        both = (float(cast(float, first)), float(cast(float, second)))
        return cls(both, both)

    @classmethod
    def around(cls, states: Tensor) -> View:
        """Where states of shape (B, D) are, without the outermost hundredth on each side."""
        points = array(states[:, :2])
        points = points[np.isfinite(points).all(axis=1)]
        (left, right), (bottom, top) = limits_of(points[:, 0]), limits_of(points[:, -1])
        # Equal scales on both axes, unless they would hide one of them.
        if 0.4 < (right - left) / (top - bottom) < 2.5:
            left = bottom = min(left, bottom)
            right = top = max(right, top)
        return cls((left, right), (bottom, top))

    def grid(
        self, n: int, device: torch.device | str, dtype: torch.dtype, *, inset: float = 0.0
    ) -> Tensor:
        """States of shape (n², 2), row by row from below; `inset` is the margin as a fraction."""
        sides = []
        for low, high in (self.x, self.y):
            edge = inset * (high - low)
            sides.append(torch.linspace(low + edge, high - edge, n, dtype=torch.float64))
        rows, columns = torch.meshgrid(sides[1], sides[0], indexing="ij")
        return torch.stack([columns, rows], dim=-1).reshape(-1, 2).to(device, dtype)


def limits_of(values: Array) -> Limits:
    """Where numbers of shape (n,) are, without the outermost hundredth on each side."""
    values = values[np.isfinite(values)]
    if not len(values):
        return -1.0, 1.0
    low, high = np.quantile(values, (0.01, 0.99))
    margin = 0.15 * (high - low) + 1e-6
    if high - low <= 1e-6 * abs(high):  # all the same, or one alone
        margin = 0.5 * max(1.0, abs(high))
    return float(low - margin), float(high + margin)


# --- the chain -----------------------------------------------------------------------------------


def draw_states(axes: Axes, states: Tensor, background: Array | None, view: View) -> None:
    """States of shape (B, D), as dots over a density image of shape (rows, columns)."""
    if background is not None:
        axes.imshow(
            background,
            extent=(*view.x, *view.y),
            origin="lower",
            cmap=DENSITY,
            vmin=0.0,
            interpolation="bicubic",
            aspect="auto",
        )
    points = array(states[:, :2])
    size = 2.1 if len(points) > 50 else 5.0
    axes.plot(*points.T, ".", ms=size, mew=0, color=SAMPLER, alpha=0.5, rasterized=True)
    axes.set(xlim=view.x, ylim=view.y)
    axes.set_xlabel("$x_1$", labelpad=1)
    axes.set_box_aspect(1)
    for spine in axes.spines.values():
        spine.set_visible(True)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))


def density_image(
    mdp: SamplingMDP,
    energy: Energy,
    t: int,
    view: View,
    exact: Tensor | None,
    generator: torch.Generator,
) -> Array | None:
    """Square root of the density that states at step t should have: tails stay visible.

    In two dimensions from the exact values, or the energy at t = T; else a histogram of exact
    states of shape (B, D), noised to step t; None where none of these is known.
    """
    if mdp.dim == 2:
        density = density_at(mdp, energy, t, view.grid(160, mdp.device, mdp.dtype))
        if density is not None:
            return np.sqrt(density).reshape(160, 160)
    if exact is None:
        return None
    noised = array(mdp.noised(exact, t, generator)[:, :2])
    counts = np.histogram2d(noised[:, 1], noised[:, 0], bins=56, range=(view.y, view.x))[0]
    return np.asarray(np.sqrt(_smooth(_smooth(counts).T).T))


def density_at(mdp: SamplingMDP, energy: Energy, t: int, grid: Tensor) -> Array | None:
    """Density that step t should have at states (B, D), relative to the largest; (B,) or None.

    From the exact values, or from the energy at t = T. A density on a subset of R^D (a sphere)
    is not known here, and one that is nowhere finite is none.
    """
    known = energy.has_value and mdp.temperature == 1.0
    if mdp.geometry.effective_dim < mdp.dim or not (known or t == mdp.num_steps):
        return None
    values = array(energy.value(grid, t, mdp.chain) if known else energy(grid))
    finite = values[np.isfinite(values)]
    if not len(finite):
        return None
    values = np.nan_to_num(values, nan=np.inf, posinf=np.inf, neginf=finite.min())
    return np.asarray(np.exp((finite.min() - values) / mdp.temperature))


# --- energies, value, learning -------------------------------------------------------------------


def draw_energies(
    axes: Axes,
    energies: Tensor,
    reference: Tensor,
    bins: int = 80,
    label: str = "exact samples",
) -> None:
    """Histogram of energies, shape (n,), over that of exact ones, shape (m,)."""
    edges = edges_over(reference, energies, bins=bins)
    draw_histograms(axes, energies, reference, edges, label)
    axes.set(xlabel="energy $E(x)$  [nats]", ylabel="density")
    axes.legend(loc="upper right", handlelength=1.3)


def edges_over(
    *values: Tensor, bins: int, most: float = 0.999, below: float = 0.03, above: float = 0.12
) -> Array:
    """Edges of a histogram over the first set that has finite numbers, shape (bins + 1,).

    Args:
        values: sets of shape (n,).
        bins: number of bins.
        most: the quantile of the set at which its range ends.
        below: margin below, as a fraction of the range.
        above: margin above.
    """
    sets = [each[np.isfinite(each)] for each in map(array, values)]
    low, high = next((np.quantile(each, (0.0, most)) for each in sets if len(each)), (0.0, 1.0))
    reach = high - low
    if reach <= 1e-6 * max(1.0, abs(low)):  # all the same, or one alone
        reach = max(1.0, abs(low))
    return np.linspace(low - below * reach, high + above * reach, bins + 1)


def draw_histograms(
    axes: Axes, values: Tensor, reference: Tensor | None, edges: Array, label: str
) -> None:
    """Histogram of samples' numbers, shape (n,), over that of exact ones, shape (m,), if any."""
    width = edges[1] - edges[0]
    drawn = array(values)
    if reference is not None:
        exact = array(reference)
        exact = exact[np.isfinite(exact)]
        heights = np.histogram(exact, edges)[0] / (max(1, len(exact)) * width)
        axes.stairs(heights, edges, fill=True, color=EXACT, alpha=0.55, lw=0, label=label)
    heights = np.histogram(drawn, edges)[0] / (max(1, len(drawn)) * width)
    axes.stairs(heights, edges, color=SAMPLER, lw=1.3, label="sampler")
    note_beyond(axes, drawn, edges)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(4))


def note_beyond(axes: Axes, drawn: Array, edges: Array) -> None:
    """Says how much of the sampler's numbers, shape (n,), a histogram does not show."""
    within = np.count_nonzero((drawn >= edges[0]) & (drawn <= edges[-1]))
    beyond = 1.0 - within / max(1, len(drawn))
    if beyond >= 5e-3:
        text = f"{100 * beyond:.1f} % of the sampler\nbeyond this range"
        axes.text(
            *(0.98, 0.68),
            text,
            transform=axes.transAxes,
            ha="right",
            va="top",
            fontsize=7.5,
            color=SAMPLER,
        )


def draw_value(
    axes: Axes,
    value_fn: Callable[[Tensor], Tensor],
    drift_fn: Callable[[Tensor], Tensor],
    t: int,
    view: View,
    device: torch.device | str,
    dtype: torch.dtype,
) -> None:
    """Landscape of V_t with the drift as arrows; both functions take states (B, 2)."""
    n, arrows = 121, 14
    grid = view.grid(n, device, dtype)
    columns, rows = (array(grid[:, i]).reshape(n, n) for i in (0, 1))
    values = above_minimum(value_fn(grid)).reshape(n, n)
    if np.isnan(values).all():
        axes.set_title(f"$V_t$ is nowhere finite, $t = {t}$")
        return
    # Levels widen with height: the basins matter more than the slopes around them.
    top = float(np.nanquantile(values, 0.97)) or 1.0
    levels = top * np.linspace(0.0, 1.0, 14) ** 1.5
    filled = axes.contourf(columns, rows, values, levels, cmap=LANDSCAPE, extend="max")
    axes.contour(columns, rows, values, levels, colors="white", linewidths=0.35, alpha=0.6)
    places = view.grid(arrows, device, dtype, inset=0.5 / arrows)
    drift = np.nan_to_num(array(drift_fn(places)), nan=0.0, posinf=0.0, neginf=0.0)
    length = np.linalg.norm(drift, axis=1, keepdims=True)
    longest = max(float(np.quantile(length, 0.7)), 1e-12)
    drift = drift / np.maximum(length, 1e-12) * np.minimum(length / longest, 1.0) ** 0.7
    axes.quiver(
        *array(places).T,
        *drift.T,
        color=SAMPLER,
        angles="xy",
        pivot="mid",
        scale=1.15 * arrows,
        width=0.0055,
        headwidth=3.8,
        headlength=4.2,
        headaxislength=3.8,
        minlength=0.0,
    )
    bar = axes.figure.colorbar(
        filled, ax=axes, pad=0.02, aspect=24, spacing="proportional", ticks=MaxNLocator(5)
    )
    cast(Any, bar.outline).set_visible(False)
    axes.set(xlabel="$x_1$", ylabel="$x_2$", xlim=view.x, ylim=view.y)
    axes.set_title(f"$V_t - \\min V_t$  [nats] and drift, $t = {t}$")
    axes.set_box_aspect(1)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))


# --- data ----------------------------------------------------------------------------------------


def above_minimum(values: Tensor) -> Array:
    """Values above the least finite one; NaN where they are not finite."""
    heights = array(values)
    heights = np.where(np.isfinite(heights), heights, np.nan)
    return np.asarray(heights - np.fmin.reduce(heights))


def array(x: Tensor) -> Array:
    """A float64 NumPy copy, from any device."""
    return np.asarray(x.detach().double().cpu().numpy())


def _smooth(rows: Array) -> Array:
    """Binomial smoothing along the last axis, its ends repeated."""
    kernel = np.array([1.0, 8.0, 28.0, 56.0, 70.0, 56.0, 28.0, 8.0, 1.0]) / 256.0
    padded = np.pad(rows, ((0, 0), (4, 4)), mode="edge")
    return np.apply_along_axis(lambda row: np.convolve(row, kernel, mode="valid"), -1, padded)
