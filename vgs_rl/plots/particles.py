"""Pictures of particle systems: clusters, their pair distances, and a run's summary.

The figures of :mod:`vgs_rl.plots.plots` show two coordinates, which say little where particles can
be turned and relabelled. These show whole configurations and what the symmetry leaves alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Patch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from vgs_rl.energy import Energy, Particles, Split
from vgs_rl.evaluation.particles import pair_distances, positions
from vgs_rl.mdp import SamplingMDP
from vgs_rl.plots import panels as draw
from vgs_rl.plots.curves import BOUNDS, Records, draw_curves, series
from vgs_rl.plots.panels import Array
from vgs_rl.plots.plots import check_counter, plot_chain, times_of
from vgs_rl.transitions import Policy

EXACT_CLUSTERS = 5_000  # at most, behind a sampler's histograms
CHAIN_DISTANCES = 100_000  # pair distances, about, behind each histogram of a chain
PIXELS = 220  # side of a rendered cluster; it is computed at twice that
LIGHT = np.array([-0.42, 0.55, 0.72])  # towards the light, from the left above the reader


def plot_episodes(mdp: SamplingMDP, policy: Policy, n: int, generator: torch.Generator) -> Figure:
    """The chain of n episodes over the density, or of particles as clusters."""
    if mdp.energy.symmetry is not None:
        return plot_cluster_chain(mdp, policy, generator)
    return plot_chain(mdp, policy, n, generator)


@torch.no_grad()
def plot_cluster_chain(
    mdp: SamplingMDP,
    policy: Policy,
    generator: torch.Generator,
    n: int | None = None,
    panels: int = 6,
    *,
    split: Split = "validation",
) -> Figure:
    """One episode's cluster at `panels` times, above the pair distances of all n episodes.

    The distances stand before those of exact or shipped samples noised to the same step, where
    the target has either.

    Args:
        mdp: the chain of a particle target; its count of energy evaluations is left as it was.
        policy: the control.
        generator: source of all noise, on the MDP's device.
        n: number of episodes; by default as many as the histograms need.
        panels: number of times shown, at least 2.
        split: which shipped samples.

    Raises:
        ValueError: if `panels` is below 2 or the target has no particle symmetry.
    """
    times = times_of(mdp, panels)
    _symmetry(mdp.energy)
    reference = reference_states(mdp, generator, split)
    with rc_context(draw.STYLE), mdp.uncounted():
        figure = Figure(figsize=(1.85 * len(times) + 0.4, 4.1), layout="constrained")
        handles = _draw_chain(figure, times, mdp, policy, n, generator, reference)
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def plot_pair_distances(
    x: Tensor,
    reference: Tensor | None,
    symmetry: Particles,
    bins: int = 100,
    label: str = "reference samples",
) -> Figure:
    """Pair distances of samples, shape (n, D), against those of the reference, shape (m, D)."""
    with rc_context(draw.STYLE):
        figure = Figure(figsize=(3.7, 2.7), layout="constrained")
        axes = figure.subplots()
        sets = [_distances(z, symmetry) for z in (x, reference) if z is not None]
        _draw_distances(axes, sets[0], sets[1] if len(sets) > 1 else None, bins, label)
        axes.legend(loc="best", handlelength=1.3)
    return figure


@torch.no_grad()
def cluster_summary(
    mdp: SamplingMDP,
    policy: Policy,
    x: Tensor,
    generator: torch.Generator,
    *,
    records: Records = (),
    counter: str = "env_steps",
    n: int | None = None,
    panels: int = 6,
    split: Split = "validation",
    title: str | None = None,
) -> Figure:
    """Everything in one picture: the chain as clusters; below, energies, distances and learning.

    What a target does not admit is left out: energies are compared only with exact or shipped
    samples, and learning curves need recorded bounds.

    Args:
        mdp: the chain of a particle target; its count of energy evaluations is left as it was.
        policy: the control.
        x: samples of the histograms at the end, shape (m, D).
        generator: source of all noise, on the MDP's device.
        records: lines of the run's ``metrics.jsonl``.
        counter: horizontal axis of the learning curve.
        n: episodes behind the distances of the chain; by default as many as those need.
        panels: times shown.
        split: which shipped samples.
        title: written above everything.

    Raises:
        ValueError: if `panels` is below 2, `counter` is none, or the target has no symmetry.
    """
    check_counter(counter)
    energy, times, symmetry = mdp.energy, times_of(mdp, panels), _symmetry(mdp.energy)
    reference = reference_states(mdp, generator, split)
    label = reference_label(energy)
    below: list[Callable[[Axes], None]] = []
    if reference is not None:
        energies = energy(x), energy(reference)
        below.append(lambda axes: draw.draw_energies(axes, *energies, label=label))
    below.append(
        lambda axes: _draw_distances(
            axes,
            _distances(x, symmetry),
            None if reference is None else _distances(reference, symmetry),
            100,
            label,
        )
    )
    if len(series(records, counter, "eval/elbo")[0]):
        log_z = energy.log_z if mdp.temperature == 1.0 else None
        below.append(lambda axes: draw_curves(axes, records, counter, BOUNDS, log_z))

    with rc_context(draw.STYLE), mdp.uncounted():
        figure = Figure(figsize=(1.85 * len(times) + 0.4, 6.5), layout="constrained")
        rows: Any = figure.subfigures(2, 1, height_ratios=(1.35, 1.0))
        handles = _draw_chain(rows[0], times, mdp, policy, n, generator, reference)
        axes = rows[1].subplots(1, len(below), squeeze=False)[0]
        for panel, draw_panel in zip(axes, below, strict=True):
            draw_panel(panel)
        figure.suptitle(title or " ", fontsize=11.5, fontweight="bold", x=0.012, ha="left")
        figure.legend(handles=handles, loc="upper right", ncols=2, borderaxespad=0.3)
    return figure


def reference_states(
    mdp: SamplingMDP, generator: torch.Generator, split: Split = "validation"
) -> Tensor | None:
    """Exact or shipped samples of a chain's target at tau = 1, in its dtype, or None."""
    energy = mdp.energy
    if mdp.temperature != 1.0:
        return None
    if energy.can_sample:
        return energy.sample(EXACT_CLUSTERS, generator).to(mdp.device, mdp.dtype)
    try:
        shipped = energy.reference(split)
    except NotImplementedError:
        return None
    step = max(1, len(shipped) // EXACT_CLUSTERS)
    return shipped[::step][:EXACT_CLUSTERS].to(mdp.device, mdp.dtype)


def reference_label(energy: Energy) -> str:
    """What the reference is called in legends."""
    return "exact samples" if energy.can_sample else "reference samples"


def draw_cluster(axes: Axes, particles: Array, radius: float, limit: float) -> None:
    """Particles of shape (n, d) as discs, or as spheres in light, in a square of ± limit.

    Of more than two dimensions the third is depth: nearer spheres hide farther ones, which fade.
    """
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=[], yticks=[])
    axes.set_box_aspect(1)
    for spine in axes.spines.values():
        spine.set_visible(False)
    particles = particles[np.isfinite(particles).all(axis=1)]
    if particles.shape[1] <= 2:
        for centre in particles:
            height = centre[1] if len(centre) > 1 else 0.0
            axes.add_patch(Circle((centre[0], height), radius, fc=draw.SAMPLER, ec="white", lw=0.8))
        return
    image = _rendered(particles[:, :3] / limit, radius / limit)
    axes.imshow(image, extent=(-limit, limit, -limit, limit), origin="lower")


def _rendered(centres: Array, radius: float) -> Array:
    """RGBA image, shape (PIXELS, PIXELS, 4), of spheres in the square ± 1, seen from z = ∞."""
    side = 2 * PIXELS
    grid = (np.arange(side) + 0.5) / PIXELS - 1.0
    image, depth = np.zeros((side, side, 4)), np.full((side, side), -np.inf)
    base, near = (
        np.array(to_rgb(draw.SAMPLER)),
        max(float(np.abs(centres[:, 2]).max(initial=0)), 1e-6),
    )
    light = LIGHT / np.linalg.norm(LIGHT)
    halfway = (light + [0.0, 0.0, 1.0]) / np.linalg.norm(light + [0.0, 0.0, 1.0])
    for x, y, z in centres:
        columns, rows = (np.flatnonzero(np.abs(grid - c) < radius) for c in (x, y))
        window = np.ix_(rows, columns)
        across, up = np.meshgrid((grid[columns] - x) / radius, (grid[rows] - y) / radius)
        height = np.sqrt(np.clip(1.0 - across**2 - up**2, 0.0, None))
        seen = (height > 0) & (z + radius * height > depth[window])
        normal = np.stack([across, up, height], axis=-1)[seen]
        diffuse = np.clip(normal @ light, 0.0, None)[:, None]
        gloss = np.clip(normal @ halfway, 0.0, None)[:, None] ** 40
        colour = base * (0.42 + 0.62 * diffuse) + 0.4 * gloss
        fade = 0.25 * (1.0 - z / near)  # none in front, half at the back
        shaded = np.column_stack([np.clip(colour, 0, 1) * (1 - fade) + fade, np.ones(len(colour))])
        image[window] = np.where(seen[..., None], _scattered(shaded, seen), image[window])
        depth[window] = np.where(seen, z + radius * height, depth[window])
    # Averages of 2 x 2 pixels smooth the outlines; colours count by their opacity.
    blocks = image.reshape(PIXELS, 2, PIXELS, 2, 4)
    opacity = blocks[..., 3:].mean(axis=(1, 3))
    colours = (blocks[..., :3] * blocks[..., 3:]).mean(axis=(1, 3)) / np.maximum(opacity, 1e-9)
    return np.concatenate([colours, opacity], axis=-1)


def _scattered(values: Array, mask: Any) -> Array:
    """Rows of `values` where the mask is set, zeros elsewhere."""
    full = np.zeros((*mask.shape, values.shape[1]))
    full[mask] = values
    return full


def _draw_chain(
    figure: Any,
    times: Sequence[int],
    mdp: SamplingMDP,
    policy: Policy,
    n: int | None,
    generator: torch.Generator,
    reference: Tensor | None,
) -> list[Any]:
    """Clusters above pair distances on a (sub)figure; returns what a legend should name."""
    symmetry = _symmetry(mdp.energy)
    particles = symmetry.n_particles
    n = n or min(500, max(1, 2 * CHAIN_DISTANCES // (particles * (particles - 1))))
    states = mdp.rollout(policy, n, generator, keep_states=True).states
    assert states is not None
    shown = draw.array(positions(torch.stack([states[t][0] for t in times]), symmetry))
    radius = particle_radius(reference if reference is not None else states[-1], symmetry)
    across = shown[..., :2]
    finite = across[np.isfinite(across)]
    limit = 1.08 * (float(np.abs(finite).max(initial=0.0)) + radius) or 1.0
    axes = figure.subplots(2, len(times), squeeze=False, gridspec_kw={"height_ratios": (1.25, 1)})
    label = f"{reference_label(mdp.energy)}, noised to step $t$"
    for column, t in enumerate(times):
        draw_cluster(axes[0, column], shown[column], radius, limit)
        axes[0, column].set_title(f"$t = {t}{' = T' if t == mdp.num_steps else ''}$")
        noised = None
        if reference is not None:
            noised = _distances(mdp.noised_marginal(reference, t, generator)[0], symmetry)
        _draw_distances(axes[1, column], _distances(states[t], symmetry), noised, 60, label)
        axes[1, column].set(xlabel="$r_{ij}$", ylabel="")
        axes[1, column].set_yticks([])
        axes[1, column].spines["left"].set_visible(False)
    handles: list[Any] = [Line2D([], [], color=draw.SAMPLER, lw=1.3, label="sampler")]
    if reference is not None:
        handles.append(Patch(facecolor=draw.EXACT, alpha=0.55, label=label))
    return handles


def _draw_distances(
    axes: Axes, distances: Tensor, reference: Tensor | None, bins: int, label: str
) -> None:
    """Histogram of pair distances, shape (n,), over those of the reference, if there is one."""
    sets = [each for each in (reference, distances) if each is not None]
    edges = draw.edges_over(*sets, bins=bins, most=0.9995, below=0.06, above=0.06)
    edges = np.linspace(max(0.0, edges[0]), edges[-1], bins + 1)
    draw.draw_histograms(axes, distances, reference, edges, label)
    axes.set(xlabel="pair distance $r_{ij}$", ylabel="density")
    axes.xaxis.set_major_locator(MaxNLocator(4))


def _distances(x: Tensor, symmetry: Particles) -> Tensor:
    return pair_distances(x, symmetry).flatten()


def particle_radius(x: Tensor, symmetry: Particles) -> float:
    """Of drawn particles: just below half of the median distance of nearest neighbours."""
    particles = positions(x[:200], symmetry)
    distances = torch.cdist(particles, particles)
    distances.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
    nearest = distances.amin(dim=-1)
    nearest = nearest[torch.isfinite(nearest)]
    return 0.46 * float(nearest.median()) if len(nearest) else 0.5


def _symmetry(energy: Energy) -> Particles:
    if energy.symmetry is None:
        raise ValueError(f"{type(energy).__name__} has no particle symmetry")
    return energy.symmetry
