"""Gymnasium's view of the sampling MDP: NumPy in, NumPy out; all arithmetic is in `SamplingMDP`.

observation  (x_t, t/T), float32, shape (D + 1,); E and its score by `features`
action       the control u_t in units of the step's own noise, float32, shape (D,); the space's
             bound is what the target's own paths need (`default_action_bound`)
reward       minus the cost of the step; on the last step minus E(x_T) as well, of which only the
             logarithm grows beyond 10^6 tau (`rewarded_energy`): finite for every action
terminated   at step T, always; nothing is ever truncated

On the last step of an episode the info holds `energy`, E(x_T), and `log_weight`,
`log w = -log pi_0(x_0) + Σ_t log-ratio_t`: E[w] = Z exactly, whatever the actions were (THEORY).

With `noise=False` the action is the push v_t, x_{t+1} = a_t x_t + sigma_t v_t, and a stochastic
policy is the sampling kernel. The reward is -tau (½‖v_t‖² + ½ D log 2π - D log a_t), so that
maximum-entropy RL with entropy coefficient tau and discount 1 maximises tau (ELBO - H(pi_0)):
exactly KL minimisation. The info then holds `log_path` in place of `log_weight`, which lacks what
the environment cannot know: log w = log_path - Σ_t log pi(v_t | x_t, t). Where the start has no
density, as at noised data, the info holds `log_path` too: it lacks -log pi_0(x_0), for good.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers import TimeLimit
from numpy.typing import NDArray
from torch import Tensor

from vgs_rl.energy import Energy
from vgs_rl.envs.episodes import Episodes, NoEpisode, Outcome
from vgs_rl.envs.observation import DEFAULT_FEATURES, Feature, Observation
from vgs_rl.mdp import MDPConfig, SamplingMDP
from vgs_rl.registry import find

if TYPE_CHECKING:
    from vgs_rl.envs.render import Renderer, Value

Array = NDArray[Any]

RENDER: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}


def _make_mdp(
    target: str | Energy | SamplingMDP,
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
            raise ValueError("config needs the name of a target, and no mdp beside it")
        from vgs_rl.envs.configured import configured  # jsonargparse takes a while

        arguments, mdp = configured(target, config)
        energy_args = arguments | (energy_args or {})
    if isinstance(target, SamplingMDP):
        if energy_args or mdp or num_steps or max_episode_steps:
            raise ValueError("a ready-made SamplingMDP takes no energy_args, mdp or num_steps")
        return target
    if isinstance(target, Energy):
        if energy_args:
            raise ValueError(
                f"energy_args need a target's name, got {energy_args} for a ready-made "
                f"{type(target).__name__}"
            )
        energy, settings = target, mdp or MDPConfig()
    elif isinstance(target, str):
        found = find(target)
        energy, settings = found.make_energy(**(energy_args or {})), mdp or found.mdp
    else:
        raise TypeError(f"target must be a name or a vgs_rl.Energy, got {type(target).__name__}")
    settings = copy.deepcopy(settings)
    if num_steps is not None:
        settings = replace(settings, num_steps=num_steps)
    _require_length(max_episode_steps, settings.num_steps)
    return SamplingMDP(energy, settings, device=device)


def _require_length(max_episode_steps: int | None, num_steps: int) -> None:
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
    entries = mdp.num_steps * mdp.dim
    return math.ceil(10 * math.sqrt(2 * math.log(200 * entries))) / 10


def _make_action_space(mdp: SamplingMDP, action_bound: float | None) -> spaces.Box:
    """Action space of one environment."""
    if action_bound is None:
        action_bound = default_action_bound(mdp)
    if not (math.isfinite(action_bound) and action_bound > 0):
        raise ValueError(f"action_bound must be a positive, finite number, got {action_bound}")
    bound = float(action_bound)
    return spaces.Box(-bound, bound, (mdp.dim,), np.float32)


def _parse_render_mode(render_mode: str | None) -> str | None:
    if render_mode not in (None, *RENDER["render_modes"]):
        raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
    return render_mode


class _Face:
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


class SamplingEnv(_Face, gymnasium.Env[Array, Array]):
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
        target: str | Energy | SamplingMDP,
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
        self.render_mode = _parse_render_mode(render_mode)
        self.mdp = _make_mdp(target, energy_args, mdp, num_steps, max_episode_steps, config, device)
        observed = Observation(self.mdp, features)
        self.observation_space = observed.space
        self.action_space = _make_action_space(self.mdp, action_bound)
        self._episodes = Episodes(self.mdp, 1, observed, noise=noise)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Draws x_0; the same seed gives the same numbers. Returns the observation and {}."""
        if self._episodes.generator is None:
            self._require_whole_episodes()
        super().reset(seed=seed)
        self._episodes.seed(self.np_random, seed is not None)
        self._episodes.reset()
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
        control = self._episodes.control(action, "action", (self.mdp.dim,))
        if self._episodes.t in (-1, self.mdp.num_steps):
            raise NoEpisode("step needs a reset first: no episode has begun, or it has ended")
        outcome = self._episodes.step(control)
        info: dict[str, Any] = {}
        if outcome.energy is not None and outcome.log_weight is not None:
            info[_weight_key(self._episodes)] = outcome.log_weight[0]
            info["energy"] = outcome.energy[0]
            self._finished(self._episodes.x, outcome.ended)
        reward, ended = float(outcome.reward[0]), bool(outcome.ended[0])
        return self._episodes.observation()[0], reward, ended, False, info

    def _require_whole_episodes(self) -> None:
        """Refuses a TimeLimit of another length around this environment.

        `gymnasium.make` puts it there for `max_episode_steps`, which it keeps to itself: nothing
        but the call that comes through the wrapper tells the environment of it.
        """
        frame = inspect.currentframe()
        while frame is not None:
            caller = frame.f_locals.get("self")
            if isinstance(caller, TimeLimit) and caller.unwrapped is self:
                _require_length(caller._max_episode_steps, self.mdp.num_steps)
            frame = frame.f_back

    def render(self) -> Array | None:
        """The state over the target's density, uint8, shape (480, 480, 3); see `envs/render.py`."""
        renderer = self._drawn_by()
        return None if renderer is None else renderer.picture(*self._now)

    def _finished(self, x: Tensor, ended: Array) -> None:
        """Called with the state (1, D) at an episode's end, for subclasses."""


class SamplingVectorEnv(_Face, VectorEnv[Array, Array, Array]):
    """A batch of samples on their way from pi_0 to the target: one batched step, never a loop.

    All noise comes from one generator, so rows are independent, but the numbers of a row depend
    on the number of rows. With one row they are those of :class:`SamplingEnv`.

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
        target: str | Energy | SamplingMDP,
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
        self.render_mode = _parse_render_mode(render_mode)
        self.num_envs = num_envs
        self.metadata = RENDER
        self.set_autoreset_mode(autoreset_mode)
        self.mdp = _make_mdp(target, energy_args, mdp, num_steps, max_episode_steps, config, device)
        observed = Observation(self.mdp, features)
        self.single_observation_space = observed.space
        self.single_action_space = _make_action_space(self.mdp, action_bound)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._episodes = Episodes(self.mdp, num_envs, observed, noise=noise)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Draws x_0 of all rows, or of those in ``options["reset_mask"]``.

        Args:
            seed: seeds the generator that all rows share; the same seed gives the same numbers.
            options: may hold `reset_mask`, a boolean array of shape (num_envs,), some entry True.

        Returns:
            The observations of all rows, and {}.

        Raises:
            TypeError: if the mask is not a boolean NumPy array.
            ValueError: if it has a wrong shape or no True entry.
        """
        # Read, never popped: outer wrappers read it too.
        mask = (options or {}).get("reset_mask")
        if mask is not None:
            self._require_mask(mask)
        super().reset(seed=seed)
        self._episodes.seed(self.np_random, seed is not None)
        self._episodes.reset(mask)
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
        control = episodes.control(actions, "actions", (self.num_envs, self.mdp.dim))
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
        key = _weight_key(episodes)
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


def _weight_key(episodes: Episodes) -> str:
    """Where the policy's or the start's density is lacking, what is left is no weight."""
    complete = episodes.noise and episodes.mdp.start.has_density
    return "log_weight" if complete else "log_path"


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
