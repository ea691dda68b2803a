"""Gymnasium's view of the sampling MDP: NumPy in, NumPy out; all arithmetic is in `SamplingMDP`.

observation  (x_t, t/T), float32, shape (D + 1,); E and its score by `features`
action       the control u_t in units of the step's own noise, float32, shape (D,); the space's
             bound is what the target's own paths need (`default_action_bound`)
reward       minus the cost of the step; on the last step minus E(x_T) as well, of which only the
             logarithm grows beyond 10^6 tau (`rewarded_energy`): finite for every action
terminated   at step T, always; nothing is ever truncated

On the last step of an episode the info holds `energy`, E(x_T), and `log_weight`,
`log w = -log pi_0(x_0) + Σ_t log-ratio_t`: E[w] = Z exactly, whatever the actions were
(docs/theory.md#weights).

With `noise=False` the action is the push v_t, x_{t+1} = a_t x_t + sigma_t v_t, and a stochastic
policy is the sampling kernel. The reward is -tau (½‖v_t‖² + ½ D log 2π - D log a_t), so that
maximum-entropy RL with entropy coefficient tau and discount 1 maximises tau (ELBO - H(pi_0)):
exactly KL minimisation. The info then holds `log_path` in place of `log_weight`, which lacks what
the environment cannot know: log w = log_path - Σ_t log pi(v_t | x_t, t). Where the start has no
density, as at noised data, the info holds `log_path` too: it lacks -log pi_0(x_0), for good.

With parameters c (:class:`vgs_rl.ConditionalEnergy`, or a range of temperatures) the MDP is a
contextual one: x is the row (x, c), so that c is part of the observation, drawn at the reset or
chosen by ``reset(options={"condition": c})``. The action stays of shape (D,).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.wrappers import TimeLimit
from numpy.typing import NDArray
from torch import Tensor

from vgs_rl.conditional.energy import ConditionalEnergy
from vgs_rl.energy import Energy
from vgs_rl.envs.episodes import Episodes, NoEpisode
from vgs_rl.envs.face import (
    RENDER,
    Face,
    condition_in,
    make_action_space,
    make_mdp,
    parse_render_mode,
    require_length,
    weight_key,
)
from vgs_rl.envs.observation import DEFAULT_FEATURES, Feature, Observation
from vgs_rl.mdp import MDPConfig, SamplingMDP

Array = NDArray[Any]


class SamplingEnv(Face, gymnasium.Env[Array, Array]):
    """One sample on its way from pi_0 to the target.

    Observation, action, reward and info are described at the head of this module. For training
    use :class:`SamplingVectorEnv`, whose step costs the same for thousands of samples.

    Attributes:
        mdp: the MDP underneath, shared with whoever fits its start or noise scales.

    Args:
        target: name of a target, resolved by :func:`vgs_rl.find`, an :class:`Energy`, or a
            ready-made :class:`SamplingMDP`, which is then shared and takes no further arguments.
        energy_args: keyword arguments that replace those registered for the name.
        mdp: chain, schedule, start and temperature; those registered for the name by default.
        num_steps: T, in place of the one in `mdp`.
        max_episode_steps: None or T; Gymnasium passes it.
        action_bound: declared bound of the action space, by default :func:`default_action_bound`'s.
            Actions beyond it are not clipped.
        noise: whether the MDP adds its own noise; without it the action is the whole push, and a
            stochastic policy is the sampling kernel (head of this module).
        features: what is observed, and in which order; see :class:`Observation`.
        config: a shipped configuration (`gmm9`) or the path of a YAML file, whose `mdp` and
            `env_args` replace those registered for the name.
        device: where the MDP's tensors live.
        render_mode: None, or `rgb_array` for :meth:`render`.

    Raises:
        ValueError: on impossible values, naming the argument.
        TypeError: if `target` is neither a name nor an energy.

    Example:
        >>> import gymnasium, vgs_rl.envs
        >>> env = gymnasium.make("vgs_rl/GMM9-v0")
        >>> observation, info = env.reset(seed=0)
        >>> observation.shape, env.action_space.shape
        ((3,), (2,))
    """

    metadata: dict[str, Any] = RENDER

    def __init__(
        self,
        target: str | Energy | ConditionalEnergy | SamplingMDP,
        *,
        energy_args: dict[str, Any] | None = None,
        mdp: MDPConfig | None = None,
        num_steps: int | None = None,
        max_episode_steps: int | None = None,
        action_bound: float | None = None,
        noise: bool = True,
        features: Sequence[Feature] = DEFAULT_FEATURES,
        config: str | Path | None = None,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ) -> None:
        self.render_mode = parse_render_mode(render_mode)
        self.mdp = make_mdp(target, energy_args, mdp, num_steps, max_episode_steps, config, device)
        observed = Observation(self.mdp, features)
        self.observation_space = observed.space
        self.action_space = make_action_space(self.mdp, action_bound)
        self._episodes = Episodes(self.mdp, 1, observed, noise=noise)
        self._shape, self._last = (self.mdp.geometry.moving,), self.mdp.num_steps

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Draws x_0; the same seed gives the same numbers.

        Args:
            seed: see there.
            options: may hold `condition`, a value of the parameters of a conditional energy; by
                default it is drawn. It is part of the observation, and stays.

        Returns:
            The observation and {}.

        Raises:
            ValueError: if the condition is out of range, or the energy has no parameters.
        """
        condition = condition_in(self.mdp, options)
        if self._episodes.generator is None:
            self._require_whole_episodes()
        super().reset(seed=seed)
        self._episodes.seed(self.np_random, seed is not None)
        self._episodes.reset(condition=condition)
        return self._episodes.observation()[0], {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """One transition.

        Args:
            action: u_t, shape (D,).

        Returns:
            Observation, reward, terminated, False, and on the last step the NumPy scalars
            `log_weight` and `energy`.

        Raises:
            ValueError: on an action of wrong shape or not finite, and on a NaN energy.
            NoEpisode: before the first reset and after the end of the episode.
        """
        episodes = self._episodes
        array = episodes.checked(action, "action", self._shape)
        if episodes.t in (-1, self._last):
            raise NoEpisode("step needs a reset first: no episode has begun, or it has ended")
        if episodes.alone:
            reward, energy = episodes.step_alone(array)
        else:
            outcome = episodes.step(episodes.control(action, "action", self._shape))
            reward = float(outcome.reward[0])
            energy = None if outcome.energy is None else torch.from_numpy(outcome.energy)
        info: dict[str, Any] = {}
        if energy is not None:
            info[weight_key(episodes)] = np.float64(episodes.log_weight[0])
            info["energy"] = np.float64(energy[0])
            self._finished(episodes.x, np.array([True]))
        return episodes.observation()[0], reward, energy is not None, False, info

    def _require_whole_episodes(self) -> None:
        """Refuses a TimeLimit of another length around this environment.

        `gymnasium.make` puts it there for `max_episode_steps`, which it keeps to itself: nothing
        but the call that comes through the wrapper tells the environment of it.
        """
        frame = inspect.currentframe()
        while frame is not None:
            caller = frame.f_locals.get("self")
            if isinstance(caller, TimeLimit) and caller.unwrapped is self:
                require_length(caller._max_episode_steps, self.mdp.num_steps)
            frame = frame.f_back

    def render(self) -> Array | None:
        """The state over the target's density, uint8, shape (480, 480, 3); see `envs/render.py`."""
        renderer = self._drawn_by()
        return None if renderer is None else renderer.picture(*self._now)

    def _finished(self, x: Tensor, ended: Array) -> None:
        """Called with the state (1, D) at an episode's end, for subclasses."""
