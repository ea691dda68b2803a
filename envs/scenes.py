"""What a frame shows of a target: two coordinates, a histogram of one, or clusters of particles."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vgs_rl.energy import Particles
from vgs_rl.envs.frames import HEADER, SAMPLER, SIDE, VALUE, Array, Frame, Panel, Scene, Value
from vgs_rl.evaluation.particles import positions
from vgs_rl.mdp import SamplingMDP
from vgs_rl.plots import panels as draw
from vgs_rl.plots.panels import View
from vgs_rl.plots.particles import LIGHT, particle_radius, reference_states

GRID = 96  # points along an axis where density and value are evaluated
CONTOURS = 10.0  # standard deviations, up to which contours of V_t are drawn
CLUSTERS = 16  # at most, in one frame


def scene_of(mdp: SamplingMDP, value: Value | None) -> Scene:
    """The scene that shows most of this target."""
    if mdp.energy.symmetry is not None:
        return Clusters(mdp, mdp.energy.symmetry)
    return Line(mdp, value) if mdp.dim == 1 else Plane(mdp, value)


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
