"""What a policy sees of a state: the same numbers in the environments and when sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from vgs_rl.mdp import SamplingMDP

Feature = Literal["x", "t", "energy", "score"]
DEFAULT_FEATURES: tuple[Feature, ...] = ("x", "t")


class Observation:
    """Features of (x, t), in the order in which they are asked for.

    `x` is the state, (B, D), followed by the values of an energy's parameters if it has some; `t`
    is t/T, (B, 1); `energy` is asinh(E(x)/tau), (B, 1), linear near 0 and logarithmic far out;
    `score` is -∇E(x)/tau shrunk to a norm below 10 √D, (B, D). Each observation with `energy` or
    `score` evaluates E once per state, and the MDP counts it.

    Args:
        mdp: the MDP whose states are seen.
        features: which features, in which order.

    Raises:
        ValueError: on an unknown or repeated feature, and if there is none.
    """

    def __init__(self, mdp: SamplingMDP, features: Sequence[Feature] = DEFAULT_FEATURES) -> None:
        known = get_args(Feature)
        if not features or len(set(features)) < len(features) or not set(features) <= set(known):
            raise ValueError(
                f"features must be some of {', '.join(known)}, each once, got {tuple(features)}"
            )
        self.mdp, self.features = mdp, tuple(features)
        self.is_default = self.features == DEFAULT_FEATURES

    @property
    def space(self) -> spaces.Box:
        """The space of one observation, float32."""
        low, high = list[float](), list[float]()
        moving, conditions = self.mdp.geometry.moving, self.mdp.conditions
        for feature in self.features:
            size = moving if feature in ("x", "score") else 1
            low += [0.0 if feature == "t" else -math.inf] * size
            high += [1.0 if feature == "t" else math.inf] * size
            if feature == "x" and conditions is not None:
                low += np.nextafter(conditions.low.float().numpy(), -np.inf).tolist()
                high += np.nextafter(conditions.high.float().numpy(), np.inf).tolist()
        return spaces.Box(np.array(low, np.float32), np.array(high, np.float32))

    def __call__(self, x: Tensor, t: int | Tensor) -> Tensor:
        """The observations of states x (B, D) at step t, one for all or one per row, (B, F)."""
        mdp, columns = self.mdp, {"x": x}
        if "t" in self.features:
            time = torch.as_tensor(t, device=x.device, dtype=torch.float64) / mdp.num_steps
            columns["t"] = time.to(x.dtype).expand(len(x)).unsqueeze(-1)
        if "score" in self.features:
            energy, gradient = mdp.evaluate_gradient(x)
            # Clamped, so that the squares in its norm are finite.
            moving = mdp.geometry.moving
            score = (-gradient[:, :moving] / mdp.temperature).clamp(-1e15, 1e15)
            size = score.norm(dim=-1, keepdim=True) / (10 * math.sqrt(moving))
            columns["score"] = score / (1 + size)
        elif "energy" in self.features:
            energy = mdp.evaluate_energy(x)
        if "energy" in self.features:
            columns["energy"] = _asinh(energy / mdp.temperature).unsqueeze(-1)
        return torch.cat([columns[feature] for feature in self.features], -1)


def _asinh(values: Tensor) -> Tensor:
    """Finite for infinite values, too."""
    return values.clamp_max(torch.finfo(values.dtype).max).asinh()
