"""Pictures of a sampler: chain, energies, value landscape, learning curves, and all in one.

Every function returns a ``matplotlib.figure.Figure`` made without pyplot, so that nothing global
changes and nothing has to be closed; :func:`save_figure` writes it.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from torch import Tensor

from vgs_rl.checks import one_line
from vgs_rl.energy import Energy
from vgs_rl.files.checkpoint import write_atomically
from vgs_rl.mdp import SamplingMDP
from vgs_rl.plots import line_panels
from vgs_rl.plots import panels as draw
from vgs_rl.plots.curves import BOUNDS, CURVES, X_LABELS, Records, draw_curves, series
from vgs_rl.plots.panels import Limits, View
from vgs_rl.transitions import Policy

T = TypeVar("T")
Drawing = Callable[[], Figure]
"""A picture that is drawn when it is called."""

logger = logging.getLogger(__name__)


def try_picture(name: str, work: Callable[[], T]) -> T | None:
    """Does what draws or writes a picture, for no picture is worth a run, a report or a table.

    An exception becomes one warning of the logger of this module, with the traceback at its level
    DEBUG. Ctrl-C passes.

    Args:
        name: of the picture, for the warning.
        work: what may fail.

    Returns:
        What `work` returns, or None.
    """
    try:
        return work()
    except Exception as error:
        reason = one_line(error)
        logger.warning("warning: no picture %s: %s: %s", name, type(error).__name__, reason)
        logger.debug("picture %s", name, exc_info=True)
        return None


def save_figure(figure: Figure, path: Path | str, *, dpi: int = 160) -> None:
    """Writes a picture, whole or not at all; the suffix says which format (png, pdf, svg).

    Raises:
        ValueError: if the path has no suffix, or one that matplotlib does not know.
    """
    path = Path(path)
    if not path.suffix:
        raise ValueError(f"path must have a suffix such as .png, got {path}")
    kind = path.suffix.removeprefix(".")
    write_atomically(path, lambda file: figure.savefig(file, format=kind, dpi=dpi))


def rendered(figure: Figure, *, dpi: int = 100) -> bytes:
    """A picture as a PNG file holds it."""
    figure.savefig(png := io.BytesIO(), format="png", dpi=dpi)
    return png.getvalue()


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

    Two coordinates are shown, the first two. In up to two dimensions the density is exp(-V_t)
    where the exact values are known; else it is a histogram of exact samples, noised to step t.
    Where neither exists, only the last panel has a background, exp(-E/tau). In two dimensions
    backgrounds show the square root of the density, so that tails are visible; in one dimension
    states and density are histograms over x.

    Args:
        mdp: the chain; its count of energy evaluations is left as it was.
        policy: the control.
        n: number of episodes.
        generator: source of all noise, on the MDP's device.
        panels: number of times shown, at least 2.
        energy: the target; the MDP's by default.

    Raises:
        ValueError: if `panels` is below 2.
    """
    times = times_of(mdp, panels)
    with rc_context(draw.STYLE), mdp.uncounted():
        figure = Figure(figsize=(2.15 * len(times) + 0.3, 2.75), layout="constrained")
        handles = _draw_chain(figure, times, mdp, policy, n, generator, energy or mdp.energy)
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def plot_energy_histogram(
    energies: Tensor, reference_energies: Tensor, bins: int = 80, label: str = "exact samples"
) -> Figure:
    """Energies of samples, shape (n,), against those of exact samples, shape (m,)."""
    with rc_context(draw.STYLE):
        figure = Figure(figsize=(3.7, 2.7), layout="constrained")
        draw.draw_energies(figure.subplots(), energies, reference_energies, bins, label)
    return figure


@torch.no_grad()
def plot_value(
    value_fn: Callable[[Tensor], Tensor],
    drift_fn: Callable[[Tensor], Tensor],
    t: int,
    limits: Limits | tuple[Limits, Limits],
    *,
    dim: int = 2,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Figure:
    """Landscape of a value at step t with the drift as arrows; in one dimension, both over x.

    Dark is low: where the value is least, states are wanted most. Arrows point along the control;
    long ones are shortened.

    Args:
        value_fn: V_t, maps states (B, D) to (B,).
        drift_fn: u_t, maps states (B, D) to (B, D).
        t: the step, for the title.
        limits: the range of both coordinates, or one range for each.
        dim: D, 1 or 2.
        device: where the functions want their states.
        dtype: their floating type.
    """
    with rc_context(draw.STYLE):
        figure = Figure(figsize=(3.6, 2.9), layout="constrained")
        _draw_value(figure.subplots(), value_fn, drift_fn, t, View.of(limits), dim, device, dtype)
    return figure


def plot_learning_curves(
    records: Records, x: str = "env_steps", *, log_z: float | None = None
) -> Figure:
    """Loss, bounds of log Z, path-ESS and TVD-E over training, as far as they were recorded.

    Args:
        records: lines of a run's ``metrics.jsonl``: counters, and values by their tags.
        x: the counter on the horizontal axis: env_steps, energy_evaluations, seconds or updates.
        log_z: the exact log Z, drawn as a line between the bounds.

    Raises:
        ValueError: if `x` is not one of these.
    """
    check_counter(x)
    shown = [
        curves
        for curves in CURVES
        if any(len(series(records, x, tag)[0]) for tag, _ in curves.tags)
    ]
    with rc_context(draw.STYLE):
        figure = Figure(figsize=(2.95 * max(len(shown), 1), 2.5), layout="constrained")
        axes = figure.subplots(1, max(len(shown), 1), squeeze=False)[0]
        for panel, curves in zip(axes, shown, strict=False):
            draw_curves(panel, records, x, curves, log_z)
        if not shown:
            axes[0].set(xlabel=X_LABELS[x], title="nothing recorded yet")
    return figure


@torch.no_grad()
def plot_summary(
    mdp: SamplingMDP,
    policy: Policy,
    generator: torch.Generator,
    *,
    value: Callable[[Tensor, int], Tensor] | None = None,
    records: Records = (),
    x: str = "env_steps",
    n: int = 2_000,
    n_energy: int = 20_000,
    panels: int = 5,
    value_step: int | None = None,
    title: str | None = None,
) -> Figure:
    """Everything in one picture: the chain above; energies, value landscape and learning below.

    What a target does not admit is left out: energies need exact samples, the landscape at most
    two dimensions and a value, learning curves recorded bounds.

    Args:
        mdp: the chain; its count of energy evaluations is left as it was.
        policy: the control.
        generator: source of all noise, on the MDP's device.
        value: V(x, t), learned; the exact one by default, where it is known.
        records: lines of the run's ``metrics.jsonl``.
        x: the counter of the learning curve's axis.
        n: states drawn in each panel of the chain.
        n_energy: samples of the energy histogram, and as many exact ones.
        panels: times shown.
        value_step: the step of the landscape, below T; two thirds of the way by default.
        title: written above everything.

    Raises:
        ValueError: if `panels` is below 2 or `x` is no counter.
    """
    check_counter(x)
    energy, times = mdp.energy, times_of(mdp, panels)
    step = value_step
    if step is None:
        step = min(round(2 * mdp.num_steps / 3), mdp.num_steps - 1)
    landscape = value
    exact_applies = mdp.temperature == 1.0
    if landscape is None and energy.has_value and exact_applies:
        landscape = lambda z, t: energy.value(z, t, mdp.chain)  # noqa: E731

    below: list[tuple[float, Callable[[Axes], None]]] = []  # relative width, and what to draw
    if energy.can_sample and exact_applies:
        drawn, exact = _energies(mdp, policy, n_energy, generator)
        below.append((1.25, lambda axes: draw.draw_energies(axes, drawn, exact)))
    if landscape is not None and has_landscape(mdp):
        value_at, view = landscape, View.around(_states_at(mdp, policy, generator, step))

        def draw_landscape(axes: Axes) -> None:
            _draw_value(
                axes,
                lambda z: value_at(z, step),
                lambda z: policy(z, step),
                step,
                view,
                mdp.dim,
                mdp.device,
                mdp.dtype,
            )

        below.append((1.1, draw_landscape))
    if len(series(records, x, "eval/elbo")[0]):
        log_z = energy.log_z if exact_applies else None
        below.append((1.25, lambda axes: draw_curves(axes, records, x, BOUNDS, log_z)))

    with rc_context(draw.STYLE), mdp.uncounted():
        width, height = max(2.05 * len(times), 3.2 * len(below)) + 0.3, 5.5 if below else 2.8
        figure = Figure(figsize=(width, height), layout="constrained")
        rows: Any = figure.subfigures(2, 1, height_ratios=(1.0, 1.15)) if below else [figure]
        handles = _draw_chain(rows[0], times, mdp, policy, n, generator, energy)
        if below:
            if len(below) == 1:  # a single panel stands in the middle, as wide as others are
                below = [(1.0, Axes.set_axis_off), *below, (1.0, Axes.set_axis_off)]
            ratios = [ratio for ratio, _ in below]
            room = {"width_ratios": ratios, "wspace": 0.12}  # for the landscape's colour bar
            axes = rows[1].subplots(1, len(below), squeeze=False, gridspec_kw=room)[0]
            for panel, (_, draw_panel) in zip(axes, below, strict=True):
                draw_panel(panel)
        figure.suptitle(title or " ", fontsize=11.5, fontweight="bold", x=0.012, ha="left")
        figure.legend(handles=handles, loc="upper right", ncols=2, borderaxespad=0.3)
    return figure


def _draw_chain(
    figure: Any,
    times: Sequence[int],
    mdp: SamplingMDP,
    policy: Policy,
    n: int,
    generator: torch.Generator,
    energy: Energy,
) -> list[Any]:
    """One row of panels on a figure or sub-figure; returns what a legend should name."""
    states = mdp.rollout(policy, n, generator, keep_states=True).states
    assert states is not None
    exact = None
    if energy.can_sample and mdp.temperature == 1.0:
        exact = energy.sample(draw.EXACT_STATES, generator).to(states)
    view = View.around(states[-1] if exact is None else exact)
    axes = figure.subplots(1, len(times), squeeze=False)[0]
    known = False
    for panel, t in zip(axes, times, strict=True):
        if mdp.dim == 1:
            line = line_panels.density_line(mdp, energy, t, view.x, exact, generator)
            line_panels.draw_states(panel, states[t], line, view.x)
            known = known or line is not None
        else:
            image = draw.density_image(mdp, energy, t, view, exact, generator)
            draw.draw_states(panel, states[t], image, view)
            known = known or image is not None
        panel.set_title(f"$t = {t}{' = T' if t == mdp.num_steps else ''}$")
        if panel is not axes[0]:
            panel.tick_params(labelleft=False)
    axes[0].set_ylabel("density" if mdp.dim == 1 else "$x_2$", labelpad=1)
    mark = {"lw": 1.3} if mdp.dim == 1 else {"marker": "o", "ls": "", "ms": 3.5}
    handles: list[Any] = [Line2D([], [], color=draw.SAMPLER, label="sampler", **mark)]
    if known:
        colour = draw.EXACT if mdp.dim == 1 else draw.DENSITY(0.75)
        handles.append(Patch(facecolor=colour, label="exact density at step $t$"))
    return handles


def has_landscape(mdp: SamplingMDP) -> bool:
    """Whether a value can be drawn over all states: in up to two dimensions of R^D."""
    return mdp.dim <= 2 and mdp.geometry.effective_dim == mdp.dim


def _draw_value(
    axes: Axes,
    value_fn: Callable[[Tensor], Tensor],
    drift_fn: Callable[[Tensor], Tensor],
    t: int,
    view: View,
    dim: int,
    device: torch.device | str,
    dtype: torch.dtype,
) -> None:
    if dim == 1:
        line_panels.draw_value(axes, value_fn, drift_fn, t, view.x, device, dtype)
    else:
        draw.draw_value(axes, value_fn, drift_fn, t, view, device, dtype)


def times_of(mdp: SamplingMDP, panels: int) -> list[int]:
    """At most `panels` steps from 0 to T, evenly spread."""
    if panels < 2:
        raise ValueError(f"panels must be at least 2, got {panels}")
    return sorted({round(i * mdp.num_steps / (panels - 1)) for i in range(panels)})


def check_counter(x: str) -> None:
    """Refuses what is no counter of a run's records."""
    if x not in X_LABELS:
        raise ValueError(f"x must be one of {', '.join(X_LABELS)}, got {x!r}")


def _energies(
    mdp: SamplingMDP, policy: Policy, n: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Energies of n samples of the chain and of n exact ones."""
    exact = mdp.energy.sample(n, generator).to(mdp.dtype)
    with mdp.uncounted():
        return mdp.rollout(policy, n, generator).energy, mdp.energy(exact)


def _states_at(mdp: SamplingMDP, policy: Policy, generator: torch.Generator, t: int) -> Tensor:
    """States at step t: exactly noised ones where there are exact samples, else the chain's."""
    if mdp.energy.can_sample and mdp.temperature == 1.0:
        x = mdp.energy.sample(4_000, generator).to(mdp.dtype)
        return mdp.noised(x, t, generator)
    with mdp.uncounted():
        states = mdp.rollout(policy, 1_000, generator, keep_states=True).states
    assert states is not None
    return states[t]
