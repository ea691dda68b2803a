"""A film of the chain: states move down the value landscape from noise to the target."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from torch import Tensor

from vgs_rl.checks import require_at_least, require_positive
from vgs_rl.files.checkpoint import write_atomically
from vgs_rl.mdp import SamplingMDP
from vgs_rl.plots.panels import INK, LANDSCAPE, SAMPLER, STYLE, Array, View, above_minimum, array
from vgs_rl.transitions import Policy
from vgs_rl.weights import live_elbo

Value = Callable[[Tensor, int], Tensor]
"""V_t of states (B, 2) at step t < T, shape (B,)."""


@dataclass(kw_only=True)
class FilmConfig:
    """How the film looks.

    Args:
        states: paths that are shown.
        frames_per_step: frames for each step of the chain; between steps paths are smooth curves.
        seconds: length of the motion.
        pause: seconds that the last frame stays.
        pixels: width of the picture.
        colours: size of the palette, at most 256; fewer make a smaller file.
        grid: points of the landscape on each side.
        reach: nats above its minimum at which the landscape's colours end.
        tail: steps of the chain that the tails show.
        elbo_paths: paths that the ELBO in the title is estimated from.
    """

    states: int = 300
    frames_per_step: int = 3
    seconds: float = 5.0
    pause: float = 2.5
    pixels: int = 480
    colours: int = 64
    grid: int = 141
    reach: float = 14.0
    tail: float = 1.0
    elbo_paths: int = 20_000

    def __post_init__(self) -> None:
        counts = ("states", "frames_per_step", "elbo_paths")
        require_at_least("film", 1, **{name: getattr(self, name) for name in counts})
        require_at_least("film", 2, grid=self.grid)
        require_at_least("film", 64, pixels=self.pixels)
        lengths = ("seconds", "pause", "reach", "tail")
        require_positive("film", **{name: getattr(self, name) for name in lengths})
        if not 8 <= self.colours <= 256:
            raise ValueError(f"film.colours must be in 8 to 256, got {self.colours}")


def write_film(
    path: Path | str,
    mdp: SamplingMDP,
    policy: Policy,
    value: Value,
    generator: torch.Generator,
    *,
    title: str = "",
    config: FilmConfig | None = None,
) -> None:
    """Writes a GIF that repeats for ever, whole or not at all.

    The picture shows A_t x_t, the states in the target's own scale, so that modes do not move while
    the chain undoes the noise. Between t = T - 1 and T the landscape becomes the energy itself, and
    on the last frames its contours appear.

    Args:
        path: the file, with the suffix .gif.
        mdp: the chain; its count of energy evaluations is left as it was.
        policy: the control.
        value: the landscape.
        generator: source of all noise, on the MDP's device.
        title: name of the target.
        config: how the film looks.

    Raises:
        ValueError: if the path has another suffix, or the target is not one of two flat dimensions.
        OSError: if the file cannot be written.
    """
    path, config = Path(path), config or FilmConfig()
    if path.suffix != ".gif":
        raise ValueError(f"path must end with .gif, got {path}")
    if mdp.effective_dim != 2 or mdp.dim != 2:
        raise ValueError(f"a film needs a target on the plane, got {mdp.dim} coordinates")
    frames = list(_frames(mdp, policy, value, generator, title, config))
    write_atomically(path, lambda file: _write_gif(file, frames, config))


def _write_gif(file: BinaryIO, frames: list[Array], config: FilmConfig) -> None:
    """All frames (rows, columns, 3) with one palette; the last one stays."""
    from PIL import Image

    # The palette of a few frames from all over the film: flat colours then stay what they are.
    some = np.concatenate(frames[:: max(1, len(frames) // 6)] + frames[-1:])
    palette = Image.fromarray(some).quantize(config.colours, dither=Image.Dither.NONE)
    images = [
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame in frames
    ]
    durations = [max(20, round(1000 * config.seconds / len(frames)))] * len(frames)
    durations[-1] += round(1000 * config.pause)
    images[0].save(
        file,
        format="GIF",
        save_all=True,
        append_images=images[1:],
        duration=durations,
        loop=0,
        optimize=False,
    )


@torch.no_grad()
def _frames(
    mdp: SamplingMDP,
    policy: Policy,
    value: Value,
    generator: torch.Generator,
    title: str,
    config: FilmConfig,
) -> Iterator[Array]:
    """Pictures of shape (rows, columns, 3), 8 bits each."""
    from scipy.interpolate import PchipInterpolator

    steps = mdp.num_steps
    with mdp.uncounted():
        elbo = float(live_elbo(mdp.rollout(policy, config.elbo_paths, generator).log_weight))
        states = mdp.rollout(policy, config.states, generator, keep_states=True).states
        assert states is not None
        scaled = states * mdp.chain.A.view(-1, 1, 1)
        view = View.around(scaled.flatten(0, 1))
        landscapes = _landscapes(mdp, value, view, config)
    curve = PchipInterpolator(np.arange(steps + 1), array(scaled.flatten(1)).reshape(steps + 1, -1))

    def places(t: Array) -> Array:
        return np.asarray(curve(t)).reshape(len(t), config.states, 2)

    times = np.linspace(0.0, steps, config.frames_per_step * steps + 1)
    fading = [*np.zeros(len(times)), 0.25, 0.5, 0.75, 1.0]
    for time, contours in zip([*times, *[float(steps)] * 4], fading, strict=True):
        t = min(int(time), steps - 1)
        landscape = landscapes[t] + (time - t) * (landscapes[t + 1] - landscapes[t])
        tails = places(np.linspace(max(0.0, time - config.tail), time, 9))
        with rc_context(STYLE):
            figure, axes = _page(config.pixels)
            _draw_landscape(axes, landscape, view, config.reach, float(contours))
            _draw_states(axes, tails, view)
            _write_title(axes, title, time, steps, elbo, mdp.energy.log_z)
            canvas: Any = FigureCanvasAgg(figure)
            canvas.draw()
        yield np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _landscapes(mdp: SamplingMDP, value: Value, view: View, config: FilmConfig) -> list[Array]:
    """V_t above its minimum for t = 0 to T, where V_T = E, each of shape (grid, grid)."""
    grid, shape = view.grid(config.grid, mdp.device, mdp.dtype), (config.grid, config.grid)
    heights = [value(grid / mdp.chain.A[t], t) for t in range(mdp.num_steps)]
    heights.append(mdp.energy(grid) / mdp.temperature)
    above = [np.nan_to_num(above_minimum(each), nan=np.inf).reshape(shape) for each in heights]
    return [np.minimum(each, 10 * config.reach) for each in above]


def _page(pixels: int) -> tuple[Figure, Axes]:
    """A picture without frame and ticks, with a line of text above."""
    inches, head = 4.0, 0.3
    figure = Figure(figsize=(inches, inches + head), dpi=pixels / inches, facecolor="white")
    axes = figure.add_axes((0.0, 0.0, 1.0, inches / (inches + head)))
    axes.set_axis_off()
    return figure, axes


def _draw_landscape(axes: Axes, heights: Array, view: View, reach: float, contours: float) -> None:
    """Heights (grid, grid), dark where the value is least; contours of the target fade in."""
    columns, rows = (np.linspace(*side, len(heights)) for side in (view.x, view.y))
    levels = reach * np.linspace(0.0, 1.0, 15) ** 1.4
    axes.contourf(columns, rows, heights, levels, cmap=LANDSCAPE, extend="max", antialiased=False)
    if contours > 0:
        rings = [0.5, 2.0, 4.5]  # nats: one, two and three standard deviations of a Gaussian
        axes.contour(columns, rows, heights, rings, colors=[INK], linewidths=0.8, alpha=contours)
    axes.set(xlim=view.x, ylim=view.y)


def _draw_states(axes: Axes, tails: Array, view: View) -> None:
    """States at the end of their tails (points, n, 2), which fade out backwards."""
    pieces = np.stack([tails[:-1], tails[1:]], axis=2)  # (points - 1, n, 2, 2)
    fade = np.linspace(0.05, 0.9, len(pieces))
    colours = np.repeat([to_rgba(SAMPLER, alpha) for alpha in fade], tails.shape[1], axis=0)
    segments: Any = pieces.reshape(-1, 2, 2)
    axes.add_collection(LineCollection(segments, colors=colours, linewidths=1.1), autolim=False)
    axes.plot(*tails[-1].T, "o", ms=3.4, color=SAMPLER, mec="white", mew=0.35)
    axes.set(xlim=view.x, ylim=view.y)


def _write_title(
    axes: Axes, title: str, time: float, steps: int, elbo: float, log_z: float | None
) -> None:
    """Target and step on the left, the ELBO on the right."""
    step = f"$t = {int(time + 1e-9)}$ of {steps}"
    left = f"{title}    {step}" if title else step
    right = f"ELBO ${elbo:.2f}$"
    if log_z is not None:
        right += f" $\\leq$ log Z ${log_z:.2f}$"
    for place, side, text in ((0.02, "left", left), (0.98, "right", right)):
        axes.text(
            *(place, 1.02),
            text,
            transform=axes.transAxes,
            ha=side,
            va="bottom",
            color=INK,
            fontsize=10,
        )
