"""What a student sees of its teacher: states, resampled by their weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vgs_rl.files.restore import check_like, check_rows
from vgs_rl.samplers.base import Sampler
from vgs_rl.weights import effective_sample_size, log_mean_weight, systematic_resample

HELD_SHARE = 0.1


class TeacherStates:
    """Target states to learn from, and states held out for validation.

    Attributes:
        x: states to learn from, shape (n, D); none at first.
        held: states that were drawn apart, shape (m, D).
        weighted: whether weights have made them states of the target, and not of the teacher.
        ess: of the teacher's weights, as a share; 1 without weights.
        energy_evaluations: what drawing them has cost.

    Args:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.x, self.held = torch.zeros(0, dim), torch.zeros(0, dim)
        self.weighted, self.ess, self.energy_evaluations = True, 1.0, 0

    @classmethod
    @torch.no_grad()
    def draw(cls, teacher: Sampler, n: int, seed: int) -> TeacherStates:
        """Draws n states and, apart from them, a tenth as many to hold out.

        Weights above √n times their mean are truncated to that (Ionides, *Truncated importance
        sampling*, 2008): no state is seen by the student over and over.

        Args:
            teacher: any sampler.
            n: states to learn from.
            seed: of the draw.

        Raises:
            ValueError: if a weight is infinite, or every weight is 0.
        """
        generator = torch.Generator(teacher.device).manual_seed(seed)
        drawn = teacher.sample(n + max(1, round(HELD_SHARE * n)), generator)
        states = cls(drawn.x.shape[1])
        states.energy_evaluations = drawn.energy_evaluations
        if drawn.log_weight is None:
            states.weighted, states.x, states.held = False, drawn.x[:n], drawn.x[n:]
            return states
        states.ess = float(effective_sample_size(drawn.log_weight))
        parts = []
        most = log_mean_weight(drawn.log_weight) + 0.5 * math.log(n)
        truncated = drawn.log_weight.clamp_max(float(most))
        for rows in (slice(0, n), slice(n, None)):
            x, log_weight = drawn.x[rows], truncated[rows]
            chosen = systematic_resample(log_weight, len(x), generator)
            mixed = torch.randperm(len(x), generator=generator, device=x.device)
            parts.append(x[chosen[mixed]])
        states.x, states.held = parts
        return states

    def of_type(self, dtype: torch.dtype) -> TeacherStates:
        """The same states in a floating type: a teacher may draw in another than its student."""
        states = copy.copy(self)
        states.x, states.held = self.x.to(dtype), self.held.to(dtype)
        return states

    def batch(self, n: int, generator: torch.Generator) -> Tensor:
        """N random states to learn from, shape (n, D)."""
        rows = torch.randint(len(self.x), (n,), generator=generator, device=self.x.device)
        return self.x[rows]

    def state_dict(self) -> dict[str, Any]:
        """The states and where they are from."""
        return {
            "x": self.x,
            "held": self.held,
            "weighted": self.weighted,
            "ess": self.ess,
            "energy_evaluations": self.energy_evaluations,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores :meth:`state_dict`.

        Raises:
            ValueError: if the state is none, or of other dimensions.
        """
        open_shapes = {"x": torch.zeros(0), "held": torch.zeros(0)}
        check_like(state, {**self.state_dict(), **open_shapes}, "teacher")
        for name in ("x", "held"):
            check_rows({name: state[name]}, {name: 2}, "teacher", width=self.dim)
            setattr(self, name, state[name].clone())
        self.weighted, self.ess = state["weighted"], float(state["ess"])
        self.energy_evaluations = int(state["energy_evaluations"])
