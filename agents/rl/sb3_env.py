"""Stable-Baselines3's view of a Gymnasium vector environment; needs the extra `sb3`."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.noise import VectorizedActionNoise
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from vgs_rl.agents.rl.adapter import EpisodeStatistics, VectorAdapter, terminal_metrics
from vgs_rl.envs.vector import SamplingVectorEnv

Array = NDArray[Any]


class SB3VecEnv(VecEnv):
    """A SAME_STEP vector environment as a VecEnv: one batched step, no loop over environments.

    SB3 wants one info dict per environment: on most steps all share an empty one; where an episode
    ends each holds `terminal_observation`, `TimeLimit.truncated` and the environment's own metrics
    (made by C loops). Actions beyond the bound are clipped, and counted in ``adapter.statistics``.

    Args:
        env: the environment, such as ``gymnasium.make_vec("vgs_rl/GMM9-v0", num_envs=256)``.
        reward_scale: factor on every reward.
        statistics: where to gather metrics of episodes and actions.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        *,
        reward_scale: float = 1.0,
        statistics: EpisodeStatistics | None = None,
    ) -> None:
        self.adapter = VectorAdapter(env, AutoresetMode.SAME_STEP, reward_scale, statistics)
        self.env = env  # before VecEnv's constructor, which asks for an attribute
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self.metadata = env.metadata
        self._no_infos: list[dict[str, Any]] = [{}] * env.num_envs

    def reset(self) -> Array:
        """Resets every environment; seeds are shared: the first one seeds all rows."""
        observations = self.adapter.reset(seed=self._seeds[0])
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: Array) -> None:
        """Takes the actions of the next step."""
        self._actions = actions

    def step_wait(self) -> tuple[Array, Array, Array, list[dict[str, Any]]]:
        """Steps; returns observations, rewards, dones, infos."""
        observations, rewards, terminated, truncated, infos = self.adapter.step(self._actions)
        dones = terminated | truncated
        if not dones.any():
            return observations, rewards, dones, self._no_infos
        columns = {"terminal_observation": infos["final_obs"]}
        columns["TimeLimit.truncated"] = (truncated & ~terminated).tolist()
        columns |= {name: values.tolist() for name, values in terminal_metrics(infos).items()}
        rows = map(dict, map(zip, repeat(tuple(columns)), zip(*columns.values(), strict=True)))
        if dones.all():
            return observations, rewards, dones, list(rows)
        kept = np.array(self._no_infos, dtype=object)
        kept[dones] = np.array(list(rows), dtype=object)[dones]
        return observations, rewards, dones, kept.tolist()

    def get_images(self) -> tuple[Array, ...]:
        """One frame of all rows, or what another environment renders."""
        inner: Any = self.env.unwrapped
        if isinstance(inner, SamplingVectorEnv):
            frame = inner.picture()
            return () if frame is None else (frame,)
        frames: Any = self.env.render()
        return tuple(frames or ())

    def close(self) -> None:
        """Closes the environment."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        """The environment's attribute, once per row."""
        return [getattr(self.env, attr_name)] * self._count(indices)

    def set_attr(
        self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None
    ) -> None:
        """Sets an attribute of the environment, which all rows share."""
        setattr(self.env, attr_name, value)

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: int | Iterable[int] | None = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        """Calls a method of the environment once; its result, once per row."""
        result = getattr(self.env, method_name)(*method_args, **method_kwargs)
        return [result] * self._count(indices)

    def env_is_wrapped(
        self, wrapper_class: type, indices: int | Iterable[int] | None = None
    ) -> list[bool]:
        """No row is wrapped by itself."""
        return [False] * self._count(indices)

    def _count(self, indices: int | Iterable[int] | None) -> int:
        if indices is None:
            return int(self.num_envs)
        return 1 if isinstance(indices, int) else len(list(indices))


class EntropyRolloutBuffer(RolloutBuffer):
    """A rollout buffer that adds the policy's entropy to the rewards: r - coefficient log pi(v).

    Its policy gradient is that of return plus coefficient times entropy along the whole path,
    which SB3's own `ent_coef`, a bonus at the visited states only, is not.

    Args:
        coefficient: temperature times the reward scale.
    """

    def __init__(self, *args: Any, coefficient: float, **options: Any) -> None:
        self.coefficient = coefficient
        super().__init__(*args, **options)

    def add(
        self,
        obs: Array,
        action: Array,
        reward: Array,
        episode_start: Array,
        value: Tensor,
        log_prob: Tensor,
    ) -> None:
        """Adds one step of every environment."""
        reward = reward - self.coefficient * log_prob.cpu().numpy()
        super().add(obs, action, reward, episode_start, value, log_prob)


class BatchedNormalNoise(VectorizedActionNoise):
    """Independent Gaussian action noise of all environments in one draw; SB3's own loops.

    Args:
        sigma: standard deviation, in units of the scaled action.
        shape: (num_envs, D).
    """

    def __init__(self, sigma: float, shape: tuple[int, int]) -> None:
        self.sigma, self.shape = sigma, shape

    def __call__(self) -> Array:
        """Noise from NumPy's global generator, float32."""
        return np.random.normal(0.0, self.sigma, self.shape).astype(np.float32)  # noqa: NPY002

    def reset(self, indices: Iterable[int] | None = None) -> None:
        """Does nothing: the noise has no memory."""
