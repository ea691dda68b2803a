"""Tianshou's view of a Gymnasium vector environment; needs the extra `tianshou`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from tianshou.env import BaseVectorEnv

from vgs_rl.agents.rl.adapter import EpisodeStatistics, VectorAdapter

Array = NDArray[Any]


class TianshouVectorEnv(BaseVectorEnv):
    """A DISABLED vector environment as tianshou's: one batched step, no loop over environments.

    Collect whole steps (`n_step`), or a multiple of `num_envs` episodes: every step is one of all
    rows. Actions beyond the bound are clipped, and counted in ``adapter.statistics``.

    Args:
        env: the environment, such as ``gymnasium.make_vec("vgs_rl/GMM9-v0", num_envs=256,
            autoreset_mode="DISABLED")``.
        reward_scale: factor on every reward.
        statistics: where to gather metrics of episodes and actions.
    """

    is_async = False
    is_closed = False

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        *,
        reward_scale: float = 1.0,
        statistics: EpisodeStatistics | None = None,
    ) -> None:
        # The base class would make a worker per environment.
        self.adapter = VectorAdapter(env, AutoresetMode.DISABLED, reward_scale, statistics)
        self.env = env
        self.env_num = env.num_envs
        self._seed: int | None = None
        self._no_infos = np.empty(self.env_num, object)
        self._no_infos.fill({})

    def reset(
        self, env_id: int | Sequence[int] | Array | None = None, **options: Any
    ) -> tuple[Array, Array]:
        """Resets all rows or those of `env_id`; returns their observations and empty infos."""
        seed, self._seed = options.get("seed", self._seed), None
        if env_id is None:
            return self.adapter.reset(seed=seed), self._no_infos.copy()
        rows = np.atleast_1d(np.asarray(env_id))
        mask = np.zeros(self.env_num, np.bool_)
        mask[rows] = True
        return self.adapter.reset(mask, seed)[rows], self._no_infos[rows]

    def step(
        self, action: Array | None, id: int | Sequence[int] | Array | None = None
    ) -> tuple[Array, Array, Array, Array, Array]:
        """Steps all rows; `id` must be all of them, in order."""
        if action is None:
            raise ValueError("action must be an array, got None")
        if id is not None and not np.array_equal(id, np.arange(self.env_num)):
            raise ValueError(
                "every step must be one of all environments: collect n_step, or a multiple of "
                f"{self.env_num} episodes"
            )
        observations, rewards, terminated, truncated, _ = self.adapter.step(np.asarray(action))
        return observations, rewards, terminated, truncated, self._no_infos.copy()

    def get_env_attr(self, key: str, id: int | Sequence[int] | Array | None = None) -> list[Any]:
        """An attribute of a single environment, once per row."""
        count = self.env_num if id is None else np.size(id)
        single = f"single_{key}" if key in ("action_space", "observation_space") else key
        return [getattr(self.env, single)] * count

    def set_env_attr(
        self, key: str, value: Any, id: int | Sequence[int] | Array | None = None
    ) -> None:
        """Sets an attribute of the environment, which all rows share."""
        setattr(self.env, key, value)

    def seed(self, seed: int | Sequence[int] | None = None) -> list[list[int] | None]:
        """Seeds the generator that all rows share, at the next reset."""
        self._seed = seed if seed is None or isinstance(seed, int) else seed[0]
        return [None if self._seed is None else [self._seed]] * self.env_num

    def close(self) -> None:
        """Closes the environment."""
        self.env.close()
        self.is_closed = True
