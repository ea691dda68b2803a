"""Frames of states on their way, for films: drawn pixel by pixel over a background made once.

One coordinate     a histogram (one state: a mark with its trail) over the density
two                states over the density, with the contours of V_t where a value is known
more               two coordinates over the same of exact, shipped or training states: the first
                   two, or the principal ones of the data that a learned energy has
particles          the cluster itself
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from vgs_rl.envs.frames import HEADER, Array, Frame, Scene, Value, headed, shrunk
from vgs_rl.envs.scenes import scene_of
from vgs_rl.mdp import SamplingMDP


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
        frame = headed(self.mdp, t)
        frame[HEADER:] = scene.drawn(scene.shown(x), step)
        return frame

    def pictures(self, x: Tensor, t: int | Array) -> tuple[Frame, ...]:
        """A frame for each state: the state itself before all others.

        With more states the frames are smaller, so that their mosaic stays in bounds.
        """
        n, (scene, step) = len(x), self._at(t)
        frame, shown = headed(self.mdp, t), scene.shown(x)
        everything = scene.drawn(shown, step)
        shrink = min(5, math.ceil(math.sqrt(n)))
        frames = []
        for i in range(n):
            frame[HEADER:] = scene.marked(everything, shown, i) if n > 1 else everything
            frames.append(shrunk(frame, shrink))
        return tuple(frames)

    def _at(self, t: int | Array) -> tuple[Scene, int]:
        """The scene, made again if the energy has changed since, and the step it shows."""
        mdp, made_of = self.mdp, [(0, id(self.value))]
        if mdp.dim <= 2:  # else nothing but states is shown
            tensors = [*mdp.energy.parameters(), *mdp.energy.buffers()]
            made_of += [(tensor._version, id(tensor)) for tensor in tensors]
        if self._scene is None or made_of != self._made_of:
            with mdp.uncounted(), torch.no_grad():
                self._scene = scene_of(mdp, self.value)
            self._made_of = made_of
        return self._scene, int(np.max(t))
