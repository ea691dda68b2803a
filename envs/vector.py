"""A batch of samples as a Gymnasium vector environment; its terms are those of `sampling`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from vgs_rl.conditional.energy import ConditionalEnergy
from vgs_rl.energy import Energy
from vgs_rl.envs.episodes import Episodes, NoEpisode, Outcome
from vgs_rl.envs.face import (
    RENDER,
    Face,
    condition_in,
    make_action_space,
    make_mdp,
    parse_render_mode,
    weight_key,
)
from vgs_rl.envs.observation import DEFAULT_FEATURES, Feature, Observation
from vgs_rl.mdp import MDPConfig, SamplingMDP

if TYPE_CHECKING:
    pass

Array = NDArray[Any]


class SamplingVectorEnv(Face, VectorEnv[Array, Array, Array]):
    """A batch of samples on their way from pi_0 to the target: one batched step, never a loop.

    All noise comes from one generator, so rows are independent, but the numbers of a row depend
    on the number of rows. With one row they are those of :class:`SamplingEnv`, but for rounding.

    How rows are reset is Gymnasium's default, NEXT_STEP, unless `autoreset_mode` says otherwise.

    Infos: in every autoreset mode `log_weight` and `energy`, float64 arrays of shape (num_envs,),
    with the masks `_log_weight` and `_energy` of the episodes that ended in this step. In
    SAME_STEP mode `final_obs`, shaped like the observations, holds those before the reset and
    `final_info` the same metrics again, both with masks.

    Attributes:
        mdp: the MDP underneath, shared with whoever fits its start or noise scales.

    Args:
        target: name of a target, resolved by :func:`vgs_rl.find`, an :class:`Energy`, or a
            ready-made :class:`SamplingMDP`, which is then shared and takes no further arguments.
        num_envs: number of rows.
        energy_args: keyword arguments that replace those registered for the name.
        mdp: chain, schedule, start and temperature; those registered for the name by default.
        num_steps: T, in place of the one in `mdp`.
        max_episode_steps: None or T; Gymnasium passes it.
        action_bound: declared bound of the action space, by default :func:`default_action_bound`'s.
            Actions beyond it are not clipped.
        noise: whether the MDP adds its own noise; without it the action is the whole push, and a
            stochastic policy is the sampling kernel (head of this module).
        features: what is observed, and in which order; see :class:`Observation`.
        autoreset_mode: Gymnasium's AutoresetMode, or its name. NEXT_STEP resets a row in the step
            after the one that ends it (ignoring its action), SAME_STEP in that step itself,
            DISABLED leaves it to the caller: ``reset(options={"reset_mask": mask})``.
        config: a shipped configuration (`gmm9`) or the path of a YAML file, whose `mdp` and
            `env_args` replace those registered for the name.
        device: where the MDP's tensors live.
        render_mode: None, or `rgb_array` for :meth:`render`.

    Raises:
        ValueError: on impossible values, naming the argument.
        TypeError: if `target` is neither a name nor an energy.

    Example:
        >>> import gymnasium, vgs_rl.envs
        >>> envs = gymnasium.make_vec("vgs_rl/GMM9-v0", num_envs=4)
        >>> observations, infos = envs.reset(seed=0)
        >>> observations.shape
        (4, 3)
    """

    def __init__(
        self,
        target: str | Energy | ConditionalEnergy | SamplingMDP,
        *,
        num_envs: int = 1,
        energy_args: dict[str, Any] | None = None,
        mdp: MDPConfig | None = None,
        num_steps: int | None = None,
        max_episode_steps: int | None = None,
        action_bound: float | None = None,
        noise: bool = True,
        features: Sequence[Feature] = DEFAULT_FEATURES,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        config: str | Path | None = None,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        self.render_mode = parse_render_mode(render_mode)
        self.num_envs = num_envs
        self.metadata = RENDER
        self.set_autoreset_mode(autoreset_mode)
        self.mdp = make_mdp(target, energy_args, mdp, num_steps, max_episode_steps, config, device)
        observed = Observation(self.mdp, features)
        self.single_observation_space = observed.space
        self.single_action_space = make_action_space(self.mdp, action_bound)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._episodes = Episodes(self.mdp, num_envs, observed, noise=noise)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Draws x_0 of all rows, or of those in ``options["reset_mask"]``.

        Args:
            seed: seeds the generator that all rows share; the same seed gives the same numbers.
            options: may hold `reset_mask`, a boolean array of shape (num_envs,), some entry True;
                and `condition`, a value of the parameters of a conditional energy for all rows that
                are reset, which by default is drawn for each.

        Returns:
            The observations of all rows, and {}.

        Raises:
            TypeError: if the mask is not a boolean NumPy array.
            ValueError: if it has a wrong shape or no True entry, or the condition is out of range.
        """
        condition = condition_in(self.mdp, options)
        # Read, never popped: outer wrappers read it too.
        mask = (options or {}).get("reset_mask")
        if mask is not None:
            self._require_mask(mask)
        super().reset(seed=seed)
        self._episodes.seed(self.np_random, seed is not None)
        self._episodes.reset(mask, condition)
        return self._episodes.observation(), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """One transition of every row.

        Args:
            actions: u_t, shape (num_envs, D).

        Returns:
            Observations (num_envs, D + 1); rewards, float64, terminated and truncated (never),
            each of shape (num_envs,); infos as the class describes them.

        Raises:
            ValueError: on actions of wrong shape or not finite, and on NaN energies.
            NoEpisode: before the first reset, and in DISABLED mode if some episode has ended.
        """
        episodes = self._episodes
        control = episodes.control(actions, "actions", (self.num_envs, self.mdp.geometry.moving))
        if episodes.any_at(-1):
            raise NoEpisode("step needs a reset first: some environments were never reset")
        going: Array | None = None
        if episodes.any_at(self.mdp.num_steps):
            ended = episodes.at(self.mdp.num_steps)
            if self.autoreset_mode is not AutoresetMode.NEXT_STEP:
                raise NoEpisode(
                    f"{int(ended.sum())} of {self.num_envs} episodes have ended; reset them with "
                    "reset(options={'reset_mask': mask}) before the next step"
                )
            episodes.reset(ended)
            going = ~ended
        if going is not None and not going.any():
            nothing = np.zeros(self.num_envs, np.bool_)
            outcome = Outcome(np.zeros(self.num_envs), nothing, None, None)
        else:
            outcome = episodes.step(control, going)
        observation = episodes.observation()
        key = weight_key(episodes)
        infos = _terminal_infos(outcome, key)
        if infos:
            self._finished(episodes.x, outcome.ended)
        if infos and self.autoreset_mode is AutoresetMode.SAME_STEP:
            infos["final_obs"], infos["_final_obs"] = observation, outcome.ended.copy()
            infos["final_info"], infos["_final_info"] = (
                _terminal_infos(outcome, key),
                outcome.ended.copy(),
            )
            episodes.reset(outcome.ended)
            observation = episodes.observation()
        truncated = np.zeros(self.num_envs, np.bool_)
        return observation, outcome.reward, outcome.ended, truncated, infos

    def render(self) -> tuple[Array, ...] | None:
        """A frame for each row, uint8, (480, 480, 3) or smaller: the row before all others."""
        renderer = self._drawn_by()
        return None if renderer is None else renderer.pictures(*self._now)

    def picture(self) -> Array | None:
        """All rows in one frame, uint8, shape (480, 480, 3); see `envs/render.py`."""
        renderer = self._drawn_by()
        return None if renderer is None else renderer.picture(*self._now)

    def _finished(self, x: Tensor, ended: Array) -> None:
        """Called with all states (n, D) where some episodes ended, for subclasses."""

    def set_autoreset_mode(self, mode: AutoresetMode | str) -> None:
        """Changes how rows are reset from now on; wrappers may have read the mode already."""
        self.autoreset_mode = _parse_mode(mode)
        self.metadata = self.metadata | {"autoreset_mode": self.autoreset_mode}

    @property
    def is_default(self) -> bool:
        """Whether the MDP's own noise is on and the observation is (x, t/T)."""
        return self._episodes.noise and self._episodes.observed.is_default

    def state_dict(self) -> dict[str, Any]:
        """The episodes in flight and the generator: everything the next step depends on."""
        return self._episodes.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`; no reset is needed."""
        self._episodes.load_state_dict(state)

    def _require_mask(self, mask: object) -> None:
        name = "options['reset_mask']"
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
            kind = mask.dtype if isinstance(mask, np.ndarray) else type(mask).__name__
            raise TypeError(f"{name} must be a boolean NumPy array, got {kind}")
        if mask.shape != (self.num_envs,):
            raise ValueError(f"{name} must have shape ({self.num_envs},), got {mask.shape}")
        if not mask.any():
            raise ValueError(f"{name} must have at least one True entry, got none")


def _terminal_infos(outcome: Outcome, key: str) -> dict[str, Any]:
    """The metrics of episodes that ended, in new arrays, each with its mask."""
    if outcome.energy is None or outcome.log_weight is None:
        return {}
    return {
        key: outcome.log_weight.copy(),
        f"_{key}": outcome.ended.copy(),
        "energy": outcome.energy.copy(),
        "_energy": outcome.ended.copy(),
    }


def _parse_mode(mode: AutoresetMode | str) -> AutoresetMode:
    if isinstance(mode, AutoresetMode):
        return mode
    for member in AutoresetMode:
        if mode in (member.name, member.value):
            return member
    names = ", ".join(member.name for member in AutoresetMode)
    raise ValueError(f"autoreset_mode must be one of {names}, got {mode!r}")
