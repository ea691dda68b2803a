"""A frame of a film as pixels: its size, its header, and axes on which states are points."""

from __future__ import annotations

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
from torch import Tensor

from vgs_rl.mdp import SamplingMDP
from vgs_rl.plots import panels as draw
from vgs_rl.plots.panels import View

Array = NDArray[Any]
Frame = NDArray[np.uint8]
SIDE, HEADER = 480, 28  # pixels; multiples of 4, as video codecs want them
SAMPLER, VALUE = (np.array(to_rgb(c)) * 255 for c in (draw.SAMPLER, draw.ACCENTS[1]))
DPI = 100
WHITE = np.full(3, 255.0)


def headed(mdp: SamplingMDP, t: int | Array) -> Frame:
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
    figure = Figure(figsize=inches(width, HEADER), dpi=DPI)
    style: dict[str, Any] = {"va": "center", "fontsize": 9.5, "color": draw.INK}
    if len(text) == 1:
        figure.text(0.5, 0.5, text, ha="center", family="monospace", **style)
    else:
        figure.text(8 / width, 0.5, text, fontweight="bold", **style)
    return pixels(figure)


def inches(width: int, height: int) -> tuple[float, float]:
    """A figure's size for so many pixels: a little more, since matplotlib 3.8 rounds it down."""
    return (width + 0.25) / DPI, (height + 0.25) / DPI


def pixels(figure: Figure) -> Frame:
    """A figure, drawn, in a new array."""
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def shrunk(frame: Frame, factor: int) -> Frame:
    """A copy, smaller by a whole factor; its sides stay even."""
    if factor == 1:
        return frame.copy()
    side = 2 * (SIDE // factor // 2)
    cut = frame[: side * factor, : side * factor]
    blocks = cut.reshape(side, factor, side, factor, 3)
    return np.asarray(blocks.mean(axis=(1, 3)).astype(np.uint8))


Value = Callable[[Tensor, int], Tensor]


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
            figure = Figure(figsize=inches(SIDE, SIDE - HEADER), dpi=DPI)
            axes = figure.add_axes((0.135, 0.105, 0.84, 0.87))
            axes.set(xlim=view.x, ylim=view.y, xlabel=labels[0], ylabel=labels[1])
            if not labels[1]:
                axes.set_yticks([])
            self.background(axes)
            self.base = pixels(figure)
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
