"""Pictures of a sampler: chain, energies, value landscape, learning curves, and all in one.

Every function returns a ``matplotlib.figure.Figure`` made without pyplot, so that nothing global
changes and nothing has to be closed; :func:`save_figure` writes it. Colours are Okabe and Ito's,
which colour-blind readers can tell apart: the sampler is vermilion, what is exact is blue-grey.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from vgs_rl.checkpoint import write_atomically
from vgs_rl.energy import Energy
from vgs_rl.mdp import Policy, SamplingMDP

Array = NDArray[np.float64]
Limits = tuple[float, float]

SAMPLER, EXACT, INK, FAINT = "#D55E00", "#8DA3B4", "#22303C", "#5B6B78"
ACCENTS = (SAMPLER, "#0072B2", "#009E73", "#CC79A7")
DENSITY = LinearSegmentedColormap.from_list("density", ["#FFFFFF", "#DCE6EE", "#9DB7CB", "#5E86A6"])
LANDSCAPE = LinearSegmentedColormap.from_list(
    "landscape", ["#12395B", "#3F7CAC", "#A9CCE3", "#F7FBFE"]
)

STYLE: dict[str, Any] = {
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
    "savefig.dpi": 160,
}

# What a learning-curve panel shows: its label, its tags, and whether the y-axis is logarithmic.
PANELS: tuple[tuple[str, tuple[tuple[str, str], ...], bool], ...] = (
    ("loss", (("train/loss", ""),), True),
    (
        "bounds of log Z  [nats]",
        (("eval/elbo", "ELBO"), ("eval/eubo", "EUBO"), ("eval/log_z", "estimate")),
        False,
    ),
    ("path-ESS", (("eval/path_ess", ""),), False),
    ("TVD-E", (("eval/tvd_energy", ""),), True),
)
X_LABELS = {
    "env_steps": "environment steps",
    "energy_evaluations": "energy evaluations",
    "seconds": "training time  [s]",
    "updates": "gradient updates",
}


def save_figure(figure: Figure, path: Path | str, *, dpi: int = 160) -> None:
    """Writes a picture, whole or not at all; the suffix says which format (png, pdf, svg).

    Raises:
        ValueError: if the path has no suffix.
    """
    path = Path(path)
    if not path.suffix:
        raise ValueError(f"path must have a suffix such as .png, got {path}")
    kind = path.suffix.removeprefix(".")
    write_atomically(path, lambda file: figure.savefig(file, format=kind, dpi=dpi))


@torch.no_grad()
def plot_chain(
    mdp: SamplingMDP,
    policy: Policy,
    n: int,
    generator: torch.Generator,
    panels: int = 5,
    energy: Energy | None = None,
) -> Figure:
    """States of n episodes at `panels` times from t = 0 to T, over the density they should have.

    Two coordinates are shown, the first two. In two dimensions the density is exp(-V_t) where the
    exact values are known; else it is a histogram of exact samples, noised to step t. Where
    neither exists, only the last panel of a two-dimensional target has a background, exp(-E/tau).

    Args:
        mdp: the chain; its count of energy evaluations is left as it was.
        policy: the control.
        n: number of episodes.
        generator: source of all noise, on the MDP's device.
        panels: number of times shown, at least 2.
        energy: the target; the MDP's by default.
    """
    times = _times(mdp, panels)
    with rc_context(STYLE), _uncounted(mdp):
        figure = Figure(figsize=(2.15 * len(times) + 0.3, 2.75), layout="constrained")
        axes = list(figure.subplots(1, len(times), squeeze=False)[0])
        _draw_chain(axes, times, mdp, policy, n, generator, energy or mdp.energy)
        _chain_legend(figure, "outside lower center")
    return figure


def plot_energy_histogram(energies: Tensor, reference_energies: Tensor, bins: int = 80) -> Figure:
    """Energies of samples, shape (n,), against those of exact samples, shape (m,)."""
    with rc_context(STYLE):
        figure = Figure(figsize=(3.6, 2.7), layout="constrained")
        _draw_energies(figure.subplots(), energies, reference_energies, bins)
    return figure


@torch.no_grad()
def plot_value(
    value_fn: Callable[[Tensor], Tensor],
    drift_fn: Callable[[Tensor], Tensor],
    t: int,
    limits: Limits | tuple[Limits, Limits],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Figure:
    """Landscape of a value at step t with the drift as arrows, in two dimensions.

    Dark is low: where the value is least, states are wanted most. Arrows show the direction of
    the control; their length is cut off at its 80th percentile.

    Args:
        value_fn: V_t, maps states (B, 2) to (B,).
        drift_fn: u_t, maps states (B, 2) to (B, 2).
        t: the step, for the title.
        limits: the range of both coordinates, or one range for each.
        device: where the functions want their states.
        dtype: their floating type.
    """
    view = _View.of(limits)
    with rc_context(STYLE):
        figure = Figure(figsize=(3.5, 2.9), layout="constrained")
        axes = figure.subplots()
        _draw_value(axes, value_fn, drift_fn, t, view, device, dtype)
    return figure


def plot_learning_curves(
    records: Sequence[Mapping[str, Any]], x: str = "env_steps", *, log_z: float | None = None
) -> Figure:
    """Loss, bounds, path-ESS and TVD-E over training, as far as they were recorded.

    Args:
        records: lines of a run's ``metrics.jsonl``; keys are counters and tags.
        x: the counter on the horizontal axis: env_steps, energy_evaluations, seconds or updates.
        log_z: the exact log Z, drawn as a line between the bounds.

    Raises:
        ValueError: if `x` is not a known counter.
    """
    if x not in X_LABELS:
        raise ValueError(f"x must be one of {', '.join(X_LABELS)}, got {x!r}")
    panels = [p for p in PANELS if any(len(_series(records, x, tag)[0]) for tag, _ in p[1])]
    with rc_context(STYLE):
        figure = Figure(figsize=(2.9 * max(len(panels), 1), 2.5), layout="constrained")
        if not panels:
            axes = figure.subplots()
            axes.set(xlabel=X_LABELS[x], title="nothing recorded yet")
            return figure
        for axes, panel in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            _draw_curves(axes, records, x, panel, log_z)
    return figure


@torch.no_grad()
def hero(
    mdp: SamplingMDP,
    policy: Policy,
    generator: torch.Generator,
    *,
    value: Callable[[Tensor, int], Tensor] | None = None,
    records: Sequence[Mapping[str, Any]] = (),
    x: str = "env_steps",
    n: int = 2_000,
    n_energy: int = 20_000,
    panels: int = 5,
    value_step: int | None = None,
    title: str | None = None,
) -> Figure:
    """Everything in one picture: the chain above; energies, value landscape and learning below.

    What a target does not admit is left out: energies need exact samples, the landscape two
    dimensions and a value, learning curves recorded bounds.

    Args:
        mdp: the chain.
        policy: the control.
        generator: source of all noise, on the MDP's device.
        value: V(x, t), learned; the exact one by default, where it is known.
        records: lines of the run's ``metrics.jsonl``.
        x: the counter of the learning curve's axis.
        n: states drawn in each panel of the chain.
        n_energy: samples of the energy histogram, and as many exact ones.
        panels: times shown.
        value_step: the step of the landscape; the middle one by default.
        title: written above everything.
    """
    energy, step = mdp.energy, mdp.num_steps // 2 if value_step is None else value_step
    if value is None and energy.has_value:
        value = lambda x, t: energy.value(x, t, mdp.chain)  # noqa: E731
    bounds = next(panel for panel in PANELS if panel[1][0][0] == "eval/elbo")
    below: list[Callable[[Axes], None]] = []
    if energy.can_sample:
        below.append(
            lambda axes: _draw_energies(axes, *_two_energies(mdp, policy, n_energy, generator))
        )
    if value is not None and mdp.dim == 2:
        landscape = value
        below.append(
            lambda axes: _draw_value(
                axes,
                lambda z: landscape(z, step),
                lambda z: policy(z, step),
                step,
                _View.around(_exact_or_drawn(mdp, policy, generator, step)),
                mdp.device,
                mdp.dtype,
            )
        )
    if len(_series(records, x, "eval/elbo")[0]):
        below.append(lambda axes: _draw_curves(axes, records, x, bounds, energy.log_z))
    times = _times(mdp, panels)
    with rc_context(STYLE), _uncounted(mdp):
        height = 5.4 if below else 2.8
        figure = Figure(figsize=(2.05 * len(times) + 0.3, height), layout="constrained")
        rows = figure.subfigures(2, 1, height_ratios=(1.0, 1.12)) if below else [figure]
        chain_axes = list(rows[0].subplots(1, len(times), squeeze=False)[0])
        _draw_chain(chain_axes, times, mdp, policy, n, generator, energy)
        _chain_legend(rows[0], "outside lower center")
        if below:
            for axes, draw in zip(
                rows[1].subplots(1, len(below), squeeze=False)[0], below, strict=True
            ):
                draw(axes)
        if title is not None:
            figure.suptitle(title, fontsize=11.5, fontweight="bold", x=0.012, ha="left")
    return figure


# --- what is drawn on one set of axes --------------------------------------------------------------


def _draw_chain(
    axes: Sequence[Axes],
    times: Sequence[int],
    mdp: SamplingMDP,
    policy: Policy,
    n: int,
    generator: torch.Generator,
    energy: Energy,
) -> None:
    states = mdp.rollout(policy, n, generator, keep_states=True).states
    assert states is not None
    exact = energy.sample(20_000, generator).to(states) if energy.can_sample else None
    view = _View.around(states[-1] if exact is None else exact)
    for panel, t in zip(axes, times, strict=True):
        image = _background(mdp, energy, t, view, exact, generator)
        if image is not None:
            panel.imshow(
                image,
                extent=(*view.x, *view.y),
                origin="lower",
                cmap=DENSITY,
                vmin=0.0,
                interpolation="bilinear",
                aspect="auto",
            )
        points = _array(states[t, :, :2])
        panel.plot(points[:, 0], points[:, 1], ".", ms=1.6, mew=0, color=SAMPLER, alpha=0.55)
        last = " = T" if t == mdp.num_steps else ""
        panel.set(xlim=view.x, ylim=view.y, title=f"$t = {t}{last}$")
        panel.set_box_aspect(1)
        for spine in panel.spines.values():
            spine.set_visible(True)
        panel.xaxis.set_major_locator(MaxNLocator(3, integer=True, symmetric=False))
        panel.yaxis.set_major_locator(MaxNLocator(3, integer=True, symmetric=False))
        panel.set_xlabel("$x_1$", labelpad=1)
        if panel is axes[0]:
            panel.set_ylabel("$x_2$", labelpad=1)
        else:
            panel.tick_params(labelleft=False)


def _background(
    mdp: SamplingMDP,
    energy: Energy,
    t: int,
    view: _View,
    exact: Tensor | None,
    generator: torch.Generator,
) -> Array | None:
    """Square root of the density on a grid, shape (rows, columns): tails stay visible."""
    known = energy.has_value and mdp.temperature == 1.0
    if mdp.dim == 2 and (known or t == mdp.num_steps):
        grid, shape = view.grid(160, mdp.device, mdp.dtype)
        values = energy.value(grid, t, mdp.chain) if known else energy.energy(grid)
        log_density = -_array(values).reshape(shape) / mdp.temperature
        return np.asarray(np.exp(0.5 * (log_density - log_density.max())))
    if exact is None or mdp.temperature != 1.0:
        return None
    noised = _array(mdp.noised_marginal(exact, t, generator)[0][:, :2])
    counts = np.histogram2d(noised[:, 1], noised[:, 0], bins=64, range=(view.y, view.x))[0]
    return np.asarray(np.sqrt(_smooth(_smooth(counts).T).T))


def _draw_energies(axes: Axes, energies: Tensor, reference: Tensor, bins: int = 80) -> None:
    drawn, exact = _array(energies), _array(reference)
    exact = exact[np.isfinite(exact)]
    low, high = np.quantile(exact, (0.0, 0.999))
    edges = np.linspace(low - 0.03 * (high - low), high + 0.12 * (high - low), bins + 1)
    width = edges[1] - edges[0]
    heights = [np.histogram(e, edges)[0] / (len(e) * width) for e in (exact, drawn)]
    axes.stairs(heights[0], edges, fill=True, color=EXACT, alpha=0.55, lw=0, label="exact samples")
    axes.stairs(heights[1], edges, color=SAMPLER, lw=1.3, label="sampler")
    beyond = 1.0 - np.mean((drawn >= edges[0]) & (drawn <= edges[-1]))
    if beyond >= 5e-3:
        axes.text(
            0.98,
            0.62,
            f"{beyond:.1%} of the\nsampler beyond",
            transform=axes.transAxes,
            ha="right",
            va="top",
            fontsize=7.5,
            color=SAMPLER,
        )
    axes.set(xlabel="energy $E(x)$  [nats]", ylabel="density", xlim=(edges[0], edges[-1]))
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.legend(loc="upper right", handlelength=1.3)


def _draw_value(
    axes: Axes,
    value_fn: Callable[[Tensor], Tensor],
    drift_fn: Callable[[Tensor], Tensor],
    t: int,
    view: _View,
    device: torch.device | str,
    dtype: torch.dtype,
) -> None:
    grid, shape = view.grid(121, device, dtype)
    values = _array(value_fn(grid)).reshape(shape)
    values = values - np.nanmin(values)
    # Levels widen with height: the basins matter more than the slopes around them.
    top = float(np.nanquantile(values, 0.98)) or 1.0
    levels = top * np.linspace(0.0, 1.0, 13) ** 1.6
    columns, rows = (_array(grid[:, i]).reshape(shape) for i in (0, 1))
    filled = axes.contourf(columns, rows, values, levels, cmap=LANDSCAPE, extend="max")
    axes.contour(columns, rows, values, levels, colors="white", linewidths=0.4, alpha=0.7)
    places, _ = view.grid(17, device, dtype, inset=0.04)
    drift, places_at = _array(drift_fn(places)), _array(places)
    length = np.linalg.norm(drift, axis=1, keepdims=True)
    longest = max(float(np.nanquantile(length, 0.8)), 1e-12)
    arrows = drift / np.maximum(length, 1e-12) * np.minimum(length / longest, 1.0)
    axes.quiver(
        *places_at.T,
        *arrows.T,
        color=SAMPLER,
        angles="xy",
        scale=19,
        width=0.0048,
        headwidth=4,
        headlength=4.5,
        headaxislength=4,
    )
    bar = axes.figure.colorbar(filled, ax=axes, pad=0.02, aspect=24, ticks=MaxNLocator(5))
    bar.set_label("$V_t(x) - \\min V_t$  [nats]")
    bar.outline.set_visible(False)
    axes.set(xlabel="$x_1$", ylabel="$x_2$", xlim=view.x, ylim=view.y)
    axes.set_title(f"value and drift at $t = {t}$")
    axes.set_box_aspect(1)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(4))


def _draw_curves(
    axes: Axes,
    records: Sequence[Mapping[str, Any]],
    x: str,
    panel: tuple[str, tuple[tuple[str, str], ...], bool],
    log_z: float | None,
) -> None:
    label, tags, logarithmic = panel
    settled: list[Array] = []
    for (tag, name), colour in zip(tags, ACCENTS, strict=False):
        steps, values = _series(records, x, tag)
        if not len(steps):
            continue
        dense = len(steps) > 60
        axes.plot(
            steps,
            values,
            color=colour,
            lw=0.7 if dense else 1.5,
            alpha=0.3 if dense else 1.0,
            label=None if dense else name,
        )
        if dense:
            axes.plot(
                steps, _running_mean(values, len(values) // 25), color=colour, lw=1.5, label=name
            )
        settled.append(values[len(values) // 8 :])
        floor = _series(records, x, f"{tag}_floor")[1]
        if len(floor):
            axes.axhline(floor[-1], color=FAINT, lw=1.0, ls=(0, (4, 2)), label="floor")
    everything = np.concatenate(settled)
    if "eval/elbo" in dict(tags) and log_z is not None:
        axes.axhline(log_z, color=FAINT, lw=1.0, ls=(0, (4, 2)), label="exact $\\log Z$")
        everything = np.append(everything, log_z)
    if logarithmic and everything.min() > 0 and everything.max() > 5 * everything.min():
        axes.set_yscale("log")
    elif len(everything) > 1:
        # The first steps of an untrained sampler would flatten all the rest.
        low, high = everything.min(), everything.max()
        axes.set_ylim(low - 0.06 * (high - low) - 1e-9, high + 0.06 * (high - low) + 1e-9)
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set(xlabel=X_LABELS[x], ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(axis="y", color=INK, alpha=0.08, lw=0.6)
    if any(handle.get_label() for handle in axes.get_legend_handles_labels()[0]):
        axes.legend(loc="best", handlelength=1.6)


def _chain_legend(figure: Figure | SubFigure, place: str) -> None:
    handles = [
        Line2D([], [], marker="o", ls="", ms=3.5, color=SAMPLER, label="sampler"),
        Patch(facecolor=DENSITY(0.8), label="exact density at step $t$"),
    ]
    figure.legend(handles=handles, loc=place, ncols=2, handlelength=1.2, borderpad=0.1)


# --- data ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _View:
    """The rectangle that is shown."""

    x: Limits
    y: Limits

    @classmethod
    def of(cls, limits: Limits | tuple[Limits, Limits]) -> _View:
        first, second = limits
        if isinstance(first, tuple) and isinstance(second, tuple):
            return cls(first, second)
        assert not isinstance(first, tuple) and not isinstance(second, tuple)
        return cls((float(first), float(second)), (float(first), float(second)))

    @classmethod
    def around(cls, states: Tensor) -> _View:
        """Where the first two coordinates of states (B, D) are, without the last half percent."""
        points = _array(states[:, :2])
        points = points[np.isfinite(points).all(axis=1)]
        if not len(points):
            return cls((-1.0, 1.0), (-1.0, 1.0))
        low, high = np.quantile(points, (0.0025, 0.9975), axis=0)
        margin = 0.12 * (high - low) + 1e-6
        low, high = low - margin, high + margin
        # Equal scales on both axes, unless they would hide one of them.
        if 0.5 < (high - low)[0] / (high - low)[1] < 2.0:
            low, high = np.full(2, low.min()), np.full(2, high.max())
        return cls((float(low[0]), float(high[0])), (float(low[1]), float(high[1])))

    def grid(
        self, n: int, device: torch.device | str, dtype: torch.dtype, *, inset: float = 0.0
    ) -> tuple[Tensor, tuple[int, int]]:
        """States of shape (n², 2), row by row from below, and the shape (n, n) of the grid."""
        sides = []
        for low, high in (self.x, self.y):
            edge = inset * (high - low)
            sides.append(torch.linspace(low + edge, high - edge, n, dtype=torch.float64))
        rows, columns = torch.meshgrid(sides[1], sides[0], indexing="ij")
        grid = torch.stack([columns, rows], dim=-1).reshape(-1, 2)
        return grid.to(device, dtype), (n, n)


def _times(mdp: SamplingMDP, panels: int) -> list[int]:
    if panels < 2:
        raise ValueError(f"panels must be at least 2, got {panels}")
    return sorted({round(i * mdp.num_steps / (panels - 1)) for i in range(panels)})


def _two_energies(
    mdp: SamplingMDP, policy: Policy, n: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    exact = mdp.energy.sample(n, generator).to(mdp.dtype)
    return mdp.rollout(policy, n, generator).energy, mdp.energy.energy(exact)


def _exact_or_drawn(mdp: SamplingMDP, policy: Policy, generator: torch.Generator, t: int) -> Tensor:
    """States at step t: exactly noised ones where there are exact samples, else the chain's."""
    if mdp.energy.can_sample:
        x = mdp.energy.sample(4_000, generator).to(mdp.dtype)
        return mdp.noised_marginal(x, t, generator)[0]
    states = mdp.rollout(policy, 1_000, generator, keep_states=True).states
    assert states is not None
    return states[t]


def _series(records: Sequence[Mapping[str, Any]], x: str, tag: str) -> tuple[Array, Array]:
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


def _smooth(rows: Array) -> Array:
    """Binomial smoothing along the last axis."""
    kernel = np.array([1.0, 4.0, 6.0, 4.0, 1.0]) / 16.0
    return np.apply_along_axis(lambda row: np.convolve(row, kernel, mode="same"), -1, rows)


def _array(x: Tensor) -> Array:
    return x.detach().double().cpu().numpy()


@contextmanager
def _uncounted(mdp: SamplingMDP) -> Iterator[None]:
    """A picture costs nothing of the training's budget."""
    before = mdp.energy_evaluations
    try:
        yield
    finally:
        mdp.energy_evaluations = before
