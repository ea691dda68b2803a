"""Frames of states on their way, for films: drawn pixel by pixel over a background made once.

One coordinate     a histogram (one state: a mark with its trail) over the density
two                states over the density, with the contours of V_t where a value is known
more               two coordinates over the same of exact, shipped or training states: the first
                   two, or the principal ones of the data that a learned energy has
particles          the cluster itself
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from vgs_rl.energy import Particles
from vgs_rl.evaluation.particles import positions
from vgs_rl.mdp import SamplingMDP
from vgs_rl.plots import panels as draw
from vgs_rl.plots.panels import View
from vgs_rl.plots.particles import LIGHT, particle_radius, reference_states

Array = NDArray[Any]
Frame = NDArray[np.uint8]
Value = Callable[[Tensor, int], Tensor]

SIDE, HEADER = 480, 28  # pixels; multiples of 4, as video codecs want them
GRID = 96  # points along an axis where density and value are evaluated
CONTOURS = 10.0  # standard deviations, up to which contours of V_t are drawn
CLUSTERS = 16  # at most, in one frame
SAMPLER, VALUE = (np.array(to_rgb(c)) * 255 for c in (draw.SAMPLER, draw.ACCENTS[1]))
WHITE = np.full(3, 255.0)


class Renderer:
    """Draws the states of one MDP: always frames of shape (SIDE, SIDE, 3).

    Energies that it needs are not counted. A learned energy's background follows its training.

    Args:
        mdp: the MDP.
        value: V(x, t) of states (B, D), shape (B,), whose contours (in one dimension whose
            density) are drawn; by default the exact values, where they are known.
    """

    def __init__(self, mdp: SamplingMDP, value: Value | None = None) -> None:
        self.mdp, self.value = mdp, value
        self._scene: Scene | None = None
        self._made_of: list[tuple[int, int]] = []

    def picture(self, x: Tensor, t: int | Array) -> Frame:
        """All states (B, D), at step t or one step each, in one frame."""
        scene, step = self._at(t)
        frame = _headed(self.mdp, t)
        frame[HEADER:] = scene.drawn(scene.shown(x), step)
        return frame

    def pictures(self, x: Tensor, t: int | Array) -> tuple[Frame, ...]:
        """A frame for each state: the state itself before all others.

        With more states the frames are smaller, so that their mosaic stays in bounds.
        """
        n, (scene, step) = len(x), self._at(t)
        frame, shown = _headed(self.mdp, t), scene.shown(x)
        everything = scene.drawn(shown, step)
        shrink = min(5, math.ceil(math.sqrt(n)))
        frames = []
        for i in range(n):
            frame[HEADER:] = scene.marked(everything, shown, i) if n > 1 else everything
            frames.append(_shrunk(frame, shrink))
        return tuple(frames)

    def _at(self, t: int | Array) -> tuple[Scene, int]:
        """The scene, made anew if the energy has changed since, and the step it shows."""
        mdp, made_of = self.mdp, [(0, id(self.value))]
        if mdp.dim <= 2:  # else nothing but states is shown
            tensors = [*mdp.energy.parameters(), *mdp.energy.buffers()]
            made_of += [(tensor._version, id(tensor)) for tensor in tensors]
        if self._scene is None or made_of != self._made_of:
            with mdp.uncounted(), torch.no_grad():
                self._scene = _make_scene(mdp, self.value)
            self._made_of = made_of
        return self._scene, int(np.max(t))


def _make_scene(mdp: SamplingMDP, value: Value | None) -> Scene:
    if mdp.energy.symmetry is not None:
        return Clusters(mdp, mdp.energy.symmetry)
    return Line(mdp, value) if mdp.dim == 1 else Plane(mdp, value)


class Scene(ABC):
    """What lies below the header, shape (SIDE - HEADER, SIDE, 3)."""

    @abstractmethod
    def shown(self, x: Tensor) -> Array:
        """What is drawn of states (B, D)."""

    @abstractmethod
    def drawn(self, shown: Array, t: int) -> Frame:
        """All of them at step t, in a new array."""

    @abstractmethod
    def marked(self, drawn: Frame, shown: Array, i: int) -> Frame:
        """A copy with the i-th in front."""


class Panel(Scene):
    """Axes with a background, and states as points on them.

    Attributes:
        base: the picture without states.
        box: left, top, right and bottom pixel of the axes.
        view: the ranges of both coordinates.
    """

    def __init__(self, mdp: SamplingMDP, value: Value | None, view: View, labels: Any) -> None:
        self.mdp, self.value, self.view = mdp, value, view
        self.known = value is not None or (mdp.energy.has_value and mdp.temperature == 1.0)
        self._last = mdp.num_steps  # the next frame begins a way
        self._place: Array = np.zeros(2)  # the last one that was drawn
        self._way: Array
        self._stops: Array
        with rc_context(draw.STYLE):
            figure = Figure(figsize=(SIDE / 100, (SIDE - HEADER) / 100), dpi=100)
            axes = figure.add_axes((0.135, 0.105, 0.84, 0.87))
            axes.set(xlim=view.x, ylim=view.y, xlabel=labels[0], ylabel=labels[1])
            if not labels[1]:
                axes.set_yticks([])
            self.background(axes)
            self.base = _pixels(figure)
            corners = axes.transData.transform([(view.x[0], view.y[1]), (view.x[1], view.y[0])])
        height = SIDE - HEADER
        (left, top), (right, bottom) = np.rint(corners).astype(int).tolist()
        self.box = left, height - top, right, height - bottom

    @abstractmethod
    def background(self, axes: Any) -> None:
        """Draws what stays."""

    def values(self, grid: Tensor, t: int) -> Array:
        """V_t on states (B, D), shape (B,)."""
        with self.mdp.uncounted(), torch.no_grad():
            if self.value is not None:
                return draw.array(self.value(grid, t))
            return draw.array(self.mdp.energy.value(grid, t, self.mdp.chain))

    def pixels(self, points: Array) -> Array:
        """Columns and rows of points (B, 2), float; those out of view are far out."""
        left, top, right, bottom = self.box
        (x_low, x_high), (y_low, y_high) = self.view.x, self.view.y
        column = left + (points[:, 0] - x_low) / (x_high - x_low) * (right - left)
        row = bottom - (points[:, 1] - y_low) / (y_high - y_low) * (bottom - top)
        placed = np.stack([column, row], axis=-1)
        inside: Array = np.nan_to_num(placed, nan=-1e6, posinf=1e6, neginf=-1e6)
        return inside.clip(-1e6, 1e6)

    def follow(self, frame: Frame, point: Array, t: int) -> None:
        """Draws one state's way since its start, as far as frames were asked for."""
        (place,) = self.pixels(point[None])
        if t <= self._last or t == 0:
            self._way, self._stops, before = self._nowhere(), self._nowhere(), place
        else:
            before = self._place
        steps = np.linspace(0.0, 1.0, min(1000, int(np.abs(place - before).max()) + 2))[:, None]
        self._stamp(self._way, before + steps * (place - before), 0.8)
        self._stamp(self._stops, before[None], 2.2)
        self._last, self._place = t, place
        self._paint(frame, self._way, SAMPLER, 0.55)
        self._paint(frame, self._stops, SAMPLER)
        self.dots(frame, place[None], 6.5)

    def dots(self, frame: Frame, places: Array, radius: float, *, rim: bool = True) -> None:
        """Discs at pixels (B, 2), of which only what is in the box is drawn."""
        if rim:
            self._paint(frame, self._stamp(self._nowhere(), places, radius + 1.5), WHITE)
        self._paint(frame, self._stamp(self._nowhere(), places, radius), SAMPLER)

    def curve(self, frame: Frame, points: Array, colour: Array) -> None:
        """A line through points (B, 2)."""
        places = self.pixels(points)
        lengths = np.abs(np.diff(places, axis=0)).max(-1).astype(np.int64) + 1
        start, end = (np.repeat(p, lengths, axis=0) for p in (places[:-1], places[1:]))
        done = (np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths)) / (
            np.repeat(lengths, lengths)
        )
        along = start + done[:, None] * (end - start)
        self._paint(frame, self._stamp(self._nowhere(), along, 1.2), colour)

    def _nowhere(self) -> Array:
        left, top, right, bottom = self.box
        return np.zeros((bottom - top, right - left), np.bool_)

    def _stamp(self, mask: Array, places: Array, radius: float) -> Array:
        """Sets a mask of the box where discs at pixels (B, 2) are, and returns it."""
        side = np.arange(-int(radius), int(radius) + 1)
        offsets = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
        offsets = offsets[np.square(offsets).sum(-1) <= radius**2]
        at = np.rint(places).astype(np.int64)[:, None] - self.box[:2] + offsets  # (B, K, 2)
        at = at.reshape(-1, 2)
        at = at[((at >= 0) & (at < mask.shape[::-1])).all(-1)]
        mask[at[:, 1], at[:, 0]] = True
        return mask

    def _paint(self, frame: Frame, mask: Array, colour: Array, alpha: float = 1.0) -> None:
        left, top, right, bottom = self.box
        box = frame[top:bottom, left:right]
        box[mask] = (alpha * colour + (1 - alpha) * box[mask]).astype(np.uint8)


class Plane(Panel):
    """Two coordinates of states."""

    def __init__(self, mdp: SamplingMDP, value: Value | None) -> None:
        generator = mdp.generator(0)
        data = mdp.energy.data
        self.exact = reference_states(mdp, generator) if data is None else data
        self.origin = torch.zeros(mdp.dim, device=mdp.device, dtype=mdp.dtype)
        self.axes_of_view = torch.eye(mdp.dim, device=mdp.device, dtype=mdp.dtype)[:, :2]
        labels = ("$x_1$", "$x_2$")
        if data is not None and mdp.dim > 2:
            data = data.to(mdp.device, mdp.dtype)
            self.origin = data.mean(0)
            self.axes_of_view = torch.linalg.svd(data - self.origin, full_matrices=False)[2][:2].T
            labels = ("principal component 1", "principal component 2")
        start = mdp.start.sample(1000, generator)
        noise = mdp.noise_at(start, generator) if mdp.geometry.linear else torch.zeros_like(start)
        seen = [start, mdp.chain.A[0] * (start + mdp.chain.S[0].sqrt() * noise)]
        if self.exact is not None:
            seen = [start, *[self.exact[:1000].to(start)] * 2]
        self.grid: Tensor | None = None
        self._contours: dict[int, Array] = {}
        view = View.around(torch.from_numpy(self.shown(torch.cat(seen))))
        super().__init__(mdp, value, view, labels)

    def background(self, axes: Any) -> None:
        """The density, or where exact, shipped or training states are."""
        mdp, density = self.mdp, None
        if mdp.dim == 2:
            self.grid = self.view.grid(GRID, mdp.device, mdp.dtype)
            density = draw.density_at(mdp, mdp.energy, mdp.num_steps, self.grid)
        if density is not None:
            image = np.sqrt(density).reshape(GRID, GRID)
        elif self.exact is not None:
            points = self.shown(self.exact)
            image = np.sqrt(
                np.histogram2d(points[:, 1], points[:, 0], 56, (self.view.y, self.view.x))[0]
            )
        else:
            return
        extent = (*self.view.x, *self.view.y)
        axes.imshow(
            image,
            extent=extent,
            origin="lower",
            cmap=draw.DENSITY,
            aspect="auto",
            interpolation="bilinear",
            vmin=0.0,
            vmax=1.15 * float(image.max()) or 1.0,
        )

    def shown(self, x: Tensor) -> Array:
        """The two coordinates, shape (B, 2)."""
        x = x.detach().to(self.origin)
        return draw.array((x - self.origin) @ self.axes_of_view)

    def drawn(self, shown: Array, t: int) -> Frame:
        """States as dots, the fewer the larger, before the contours."""
        frame = self.base.copy()
        if self.grid is not None and self.known:
            self._paint(frame, self._lines(t), VALUE, 0.45)
        if len(shown) == 1:
            self.follow(frame, shown[0], t)
        else:
            radius = 4.0 if len(shown) <= 64 else 2.3 if len(shown) <= 1024 else 1.0
            self.dots(frame, self.pixels(shown), radius, rim=len(shown) <= 256)
        return frame

    def marked(self, drawn: Frame, shown: Array, i: int) -> Frame:
        """A copy in which the i-th state is large."""
        frame = drawn.copy()
        self.dots(frame, self.pixels(shown[i : i + 1]), 9.0)
        return frame

    def _lines(self, t: int) -> Array:
        """Pixels of the box where V_t passes from one whole standard deviation to the next."""
        if t in self._contours and self.value is None:
            return self._contours[t]
        assert self.grid is not None
        values = self.values(self.grid, t).reshape(GRID, GRID)[::-1]
        finite = values[np.isfinite(values)]
        low = finite.min() if len(finite) else 0.0
        levels = np.sqrt(2 * np.nan_to_num(values - low, nan=np.inf).clip(0.0, CONTOURS**2 / 2))
        left, top, right, bottom = self.box
        size = (bottom - top, right - left)
        fine = nn.functional.interpolate(
            torch.from_numpy(levels.copy())[None, None],
            size=size,
            mode="bilinear",
            align_corners=True,
        )
        band = fine[0, 0].numpy().astype(np.int64)
        lines = np.zeros(size, np.bool_)
        lines[1:] |= band[1:] != band[:-1]
        lines[:, 1:] |= band[:, 1:] != band[:, :-1]
        self._contours[t] = lines
        return lines


class Line(Panel):
    """States of one dimension as a histogram."""

    def __init__(self, mdp: SamplingMDP, value: Value | None) -> None:
        generator = mdp.generator(0)
        start = mdp.start.sample(2000, generator)
        wide = mdp.chain.A[0] * (start + mdp.chain.S[0].sqrt() * mdp.noise_at(start, generator))
        seen = draw.array(torch.cat([start, wide]))[:, 0]
        x = (float(seen.min()), float(seen.max()))
        points, density = self._density(mdp, x)
        if density is not None:  # where there is something to see, and the start
            shown = np.append(
                points[density > 1e-4 * density.max()], np.quantile(seen[:2000], 0.01)
            )
            shown = np.append(shown, np.quantile(seen[:2000], 0.99))
            margin = 0.1 * float(np.ptp(shown)) + 1e-6
            x = (float(shown.min()) - margin, float(shown.max()) + margin)
        self.points, self.density = self._density(mdp, x)
        self.states = torch.from_numpy(self.points)[:, None].to(mdp.device, mdp.dtype)
        top = 1.0 if self.density is None else 1.5 * float(self.density.max())
        super().__init__(mdp, value, View(x, (0.0, top)), ("$x$", ""))

    def _density(self, mdp: SamplingMDP, x: tuple[float, float]) -> tuple[Array, Array | None]:
        """Points of a range, and the target's density there."""
        self.points = np.linspace(*x, 1000)
        states = torch.from_numpy(self.points)[:, None].to(mdp.device, mdp.dtype)
        density = draw.density_at(mdp, mdp.energy, mdp.num_steps, states)
        return self.points, None if density is None else self._normalised(density)

    def _normalised(self, density: Array) -> Array:
        return np.asarray(
            density / np.maximum(density.sum() * (self.points[1] - self.points[0]), 1e-300)
        )

    def background(self, axes: Any) -> None:
        """The density."""
        if self.density is not None:
            axes.fill_between(self.points, self.density, color="#BBD0DF", lw=0)
            axes.plot(self.points, self.density, color="#5E88A8", lw=1.2)

    def shown(self, x: Tensor) -> Array:
        """The coordinate, shape (B,)."""
        return draw.array(x)[:, 0]

    def drawn(self, shown: Array, t: int) -> Frame:
        """A histogram as steps, or one mark, and the density exp(-V_t) that step t should have."""
        frame = self.base.copy()
        if self.known:
            values = self.values(self.states, t)
            finite = values[np.isfinite(values)]
            low = finite.min() if len(finite) else 0.0
            should = self._normalised(np.exp(low - np.nan_to_num(values, nan=np.inf)))
            self.curve(frame, self._below(self.points, should), VALUE)
        if len(shown) == 1:
            height = 0.02 * self.view.y[1]
            self.follow(frame, np.array([shown[0], height * (1 + t)]), t)
        else:
            bins = max(8, min(80, int(2 * len(shown) ** (1 / 3)) * 4))
            counts, edges = np.histogram(shown, bins=bins, range=self.view.x)
            heights = counts / (len(shown) * (edges[1] - edges[0]))
            steps = self._below(np.repeat(edges, 2)[1:-1], np.repeat(heights, 2))
            self.curve(frame, steps, SAMPLER)
        return frame

    def _below(self, x: Array, y: Array) -> Array:
        """Points (B, 2), none above the view."""
        return np.stack([x, np.minimum(y, self.view.y[1])], axis=-1)

    def marked(self, drawn: Frame, shown: Array, i: int) -> Frame:
        """A copy with a dot where the i-th state is."""
        frame = drawn.copy()
        self.dots(frame, self.pixels(np.array([[shown[i], 0.02 * self.view.y[1]]])), 9.0)
        return frame


class Clusters(Scene):
    """Particles as spheres in light; of more than two dimensions the third is depth."""

    def __init__(self, mdp: SamplingMDP, symmetry: Particles) -> None:
        generator = mdp.generator(0)
        self.symmetry = symmetry
        start = mdp.start.sample(500, generator)
        exact = reference_states(mdp, generator)
        seen = start if exact is None else exact[:500]
        self.radius = particle_radius(seen, symmetry)
        places = torch.cat([positions(z, symmetry)[..., :2].flatten() for z in (start, seen)])
        self.limit = 1.1 * (float(places.abs().quantile(0.995)) + self.radius)
        self._sprites: dict[int, tuple[Array, Array]] = {}

    def shown(self, x: Tensor) -> Array:
        """Centred positions, shape (B, n, d)."""
        return draw.array(positions(x, self.symmetry).flatten(1)).reshape(len(x), *self.symmetry)

    def drawn(self, shown: Array, t: int) -> Frame:
        """The first sixteen clusters at most, on a square lattice."""
        k = math.ceil(math.sqrt(min(len(shown), CLUSTERS)))
        frame = np.full((SIDE - HEADER, SIDE, 3), 255, np.uint8)
        side = (SIDE - HEADER) // k
        left = (SIDE - k * side) // 2
        for i, cluster in enumerate(shown[: k * k]):
            down, across = side * (i // k), left + side * (i % k)
            self._draw(frame[down : down + side, across : across + side], cluster)
        return frame

    def marked(self, drawn: Frame, shown: Array, i: int) -> Frame:
        """The i-th cluster alone."""
        return self.drawn(shown[i : i + 1], 0)

    def _draw(self, box: Frame, cluster: Array) -> None:
        side = len(box)
        scale = side / (2 * self.limit)
        cluster = cluster[np.isfinite(cluster).all(-1)]
        depth = cluster[:, 2] if cluster.shape[1] > 2 else np.zeros(len(cluster))
        heights = cluster[:, 1] if cluster.shape[1] > 1 else np.zeros(len(cluster))
        near = max(float(np.abs(depth).max(initial=0.0)), 1e-6)
        colour, opacity = self._sprite(max(2, round(self.radius * scale)))
        half = len(opacity) // 2
        for i in np.argsort(depth):
            column = round(float(np.clip(side / 2 + scale * cluster[i, 0], -1e6, 1e6))) - half
            row = round(float(np.clip(side / 2 - scale * heights[i], -1e6, 1e6))) - half
            rows = slice(max(row, 0), max(0, min(row + len(opacity), side)))
            columns = slice(max(column, 0), max(0, min(column + len(opacity), side)))
            if rows.start >= rows.stop or columns.start >= columns.stop:
                continue
            part = np.s_[
                rows.start - row : rows.stop - row, columns.start - column : columns.stop - column
            ]
            fade = 0.25 * (1.0 - depth[i] / near) if near > 1e-6 else 0.0
            ball = colour[part] * (1 - fade) + 255.0 * fade
            below = box[rows, columns]
            cover = opacity[part]
            box[rows, columns] = (cover * ball + (1 - cover) * below).astype(np.uint8)

    def _sprite(self, radius: int) -> tuple[Array, Array]:
        """Colour (s, s, 3) and opacity (s, s, 1) of one sphere with this radius in pixels."""
        if radius not in self._sprites:
            offsets = np.arange(-radius - 1, radius + 2) / radius
            across, up = np.meshgrid(offsets, -offsets)
            distance = np.sqrt(across**2 + up**2)
            height = np.sqrt(np.clip(1.0 - distance**2, 0.0, None))
            light = LIGHT / np.linalg.norm(LIGHT)
            halfway = light + [0.0, 0.0, 1.0]
            normal = np.stack([across, up, height], axis=-1)
            diffuse = np.clip(normal @ light, 0.0, None)[..., None]
            gloss = np.clip(normal @ halfway / np.linalg.norm(halfway), 0.0, None)[..., None] ** 40
            colour = np.clip(SAMPLER / 255 * (0.42 + 0.62 * diffuse) + 0.4 * gloss, 0, 1) * 255
            opacity = np.clip((1.0 - distance) * radius + 0.5, 0.0, 1.0)[..., None]
            self._sprites[radius] = colour, opacity
        return self._sprites[radius]


def _headed(mdp: SamplingMDP, t: int | Array) -> Frame:
    """A new frame with its header: target, step, and how far that is."""
    first, last = int(np.min(t)), int(np.max(t))
    step = f"{last}" if first == last else f"{first} to {last}"
    frame = np.full((SIDE, SIDE, 3), 255, np.uint8)
    frame[:HEADER] = _text(type(mdp.energy).__name__, SIDE)
    written = [_text(letter, 8) for letter in f"t = {step} of {mdp.num_steps} "]
    frame[:HEADER, SIDE - 8 * len(written) :] = np.concatenate(written, axis=1)
    frame[HEADER - 3 : HEADER, : round(SIDE * last / mdp.num_steps)] = SAMPLER.astype(np.uint8)
    return frame


@lru_cache(maxsize=64)
def _text(text: str, width: int) -> Frame:
    """A name, or a single letter of one width, in a strip of the header's height."""
    figure = Figure(figsize=(width / 100, HEADER / 100), dpi=100)
    style: dict[str, Any] = {"va": "center", "fontsize": 9.5, "color": draw.INK}
    if len(text) == 1:
        figure.text(0.5, 0.5, text, ha="center", family="monospace", **style)
    else:
        figure.text(8 / width, 0.5, text, fontweight="bold", **style)
    return _pixels(figure)


def _pixels(figure: Figure) -> Frame:
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _shrunk(frame: Frame, factor: int) -> Frame:
    """A copy, smaller by a whole factor; its sides stay even."""
    if factor == 1:
        return frame.copy()
    side = 2 * (SIDE // factor // 2)
    cut = frame[: side * factor, : side * factor]
    blocks = cut.reshape(side, factor, side, factor, 3)
    return np.asarray(blocks.mean(axis=(1, 3)).astype(np.uint8))
