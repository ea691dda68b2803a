"""What the single and the vector environment share: their MDP, spaces, rendering and infos."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from vgs_rl.conditional.conditions import ConditionLike
from vgs_rl.conditional.energy import ConditionalEnergy, as_energy
from vgs_rl.energy import Energy
from vgs_rl.envs.episodes import Episodes, NoEpisode
from vgs_rl.envs.observation import Feature
from vgs_rl.mdp import MDPConfig, SamplingMDP
from vgs_rl.registry import find

if TYPE_CHECKING:
    from vgs_rl.envs.frames import Value
    from vgs_rl.envs.render import Renderer

Array = NDArray[Any]

RENDER: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}


def make_mdp(
    target: str | Energy | ConditionalEnergy | SamplingMDP,
    energy_args: dict[str, Any] | None,
    mdp: MDPConfig | None,
    num_steps: int | None,
    max_episode_steps: int | None,
    config: str | Path | None,
    device: torch.device | str,
) -> SamplingMDP:
    """The MDP that the constructor arguments of both environments describe."""
    if config is not None:
        if not isinstance(target, str) or mdp is not None:
            raise ValueError("config needs the name of a target, and no mdp with it")
        from vgs_rl.envs.configured import configured  # jsonargparse takes a while

        arguments, mdp = configured(target, config)
        energy_args = arguments | (energy_args or {})
    if isinstance(target, SamplingMDP):
        if energy_args or mdp or num_steps or max_episode_steps:
            raise ValueError("a ready-made SamplingMDP takes no energy_args, mdp or num_steps")
        return target
    if isinstance(target, Energy | ConditionalEnergy):
        if energy_args:
            raise ValueError(
                f"energy_args need a target's name, got {energy_args} for a ready-made "
                f"{type(target).__name__}"
            )
        energy: Energy = as_energy(target)
        settings = mdp or MDPConfig()
    elif isinstance(target, str):
        found = find(target)
        energy, settings = found.make_energy(**(energy_args or {})), mdp or found.mdp
    else:
        raise TypeError(f"target must be a name or a vgs_rl.Energy, got {type(target).__name__}")
    settings = copy.deepcopy(settings)
    if num_steps is not None:
        settings = replace(settings, num_steps=num_steps)
    require_length(max_episode_steps, settings.num_steps)
    return SamplingMDP(energy, settings, device=device)


def require_length(max_episode_steps: int | None, num_steps: int) -> None:
    """Refuses another length than T = `num_steps`, which every episode has."""
    if max_episode_steps not in (None, num_steps):
        raise ValueError(
            f"max_episode_steps must be None or num_steps = {num_steps}, got {max_episode_steps}; "
            "every episode has exactly num_steps steps, of which num_steps= sets the number"
        )


def default_action_bound(mdp: SamplingMDP) -> float:
    """The bound b within which the optimal control stays on the target's own paths: 3.3 to 5.5.

    On paths drawn back from the target by the noising kernel, each entry of the push v_t is
    standard normal (the projection of one, where the space has fewer dimensions), whatever the
    target and the schedule are. The KL-optimal control is its conditional mean, E[v_t | x_t]; so
    P(|u| > b) ≤ 2 exp(-b²/2) for each of the T D entries of a path (Jensen, Chernoff). The bound,
    rounded up to a tenth, is one that at most a hundredth of all paths exceed in any entry:
    b = √(2 log(200 T D)). It holds for the push itself, the action where `noise` is off, as well.
    """
    entries = mdp.num_steps * mdp.geometry.moving
    return math.ceil(10 * math.sqrt(2 * math.log(200 * entries))) / 10


def make_action_space(mdp: SamplingMDP, action_bound: float | None) -> spaces.Box:
    """Action space of one environment."""
    if action_bound is None:
        action_bound = default_action_bound(mdp)
    if not (math.isfinite(action_bound) and action_bound > 0):
        raise ValueError(f"action_bound must be a positive, finite number, got {action_bound}")
    bound = float(action_bound)
    return spaces.Box(-bound, bound, (mdp.geometry.moving,), np.float32)


def parse_render_mode(render_mode: str | None) -> str | None:
    """Refuses a mode that the environments do not have."""
    if render_mode not in (None, *RENDER["render_modes"]):
        raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
    return render_mode


class Face:
    """What both environments share: what is observed, and how states are drawn.

    Attributes:
        value: V(x, t) for states (B, D), shape (B,), whose contours are drawn; by default the
            exact values, where they are known.
    """

    mdp: SamplingMDP
    render_mode: str | None
    value: Value | None = None
    _episodes: Episodes
    _renderer: Renderer | None = None

    @property
    def features(self) -> tuple[Feature, ...]:
        """What is observed, in its order."""
        return self._episodes.observed.features

    @property
    def noise(self) -> bool:
        """Whether the MDP adds its own noise."""
        return self._episodes.noise

    @property
    def _now(self) -> tuple[Tensor, int | Array]:
        return self._episodes.x, self._episodes.t

    def _drawn_by(self) -> Renderer | None:
        """The renderer, or None with Gymnasium's warning where no render_mode was chosen."""
        if self.render_mode is None:
            gymnasium.logger.warn(
                "render does nothing: make the environment with render_mode='rgb_array'"
            )
            return None
        if self._episodes.any_at(-1):
            raise NoEpisode("render needs a reset first: no episode has begun")
        if self._renderer is None:
            from vgs_rl.envs.render import Renderer  # matplotlib, which steps do without

            self._renderer = Renderer(self.mdp)
        self._renderer.value = self.value
        return self._renderer


def condition_in(mdp: SamplingMDP, options: dict[str, Any] | None) -> Tensor | None:
    """The value of the parameters that ``options["condition"]`` of a reset asks for, shape (C,).

    Raises:
        ValueError: if the energy has no parameters, or it is out of their range.
    """
    condition: ConditionLike | None = (options or {}).get("condition")
    return None if condition is None else mdp.condition_of(condition)


def weight_key(episodes: Episodes) -> str:
    """Where the policy's or the start's density is lacking, what is left is no weight."""
    complete = episodes.noise and episodes.mdp.start.has_density
    return "log_weight" if complete else "log_path"
