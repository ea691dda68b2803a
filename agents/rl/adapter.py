"""What the adapters of a Gymnasium vector environment to RL libraries share; no library here."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from vgs_rl.envs.vector import SamplingVectorEnv

Array = NDArray[Any]


class EpisodeStatistics:
    """Metrics of training episodes and actions, gathered in whole arrays."""

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}
        self._clear()

    def _clear(self) -> None:
        self._actions = self._clipped = self._episodes = 0
        self._sums: dict[str, float] = {}

    def add_actions(self, clipped: int, total: int) -> None:
        """Counts action entries, and those of them at the bound or beyond."""
        self._clipped += clipped
        self._actions += total

    def add_episodes(self, n: int, **sums: float) -> None:
        """Counts n episodes that ended, with sums of metrics over them."""
        self._episodes += n
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def pop(self, reward_scale: float = 1.0) -> dict[str, float]:
        """Means since the last call (of episodes, since the last call that had some).

        They are `return` (unscaled), `energy`, `elbo` and `clipped_fraction`.

        `elbo` is that of the exploring policy; it is missing where the MDP's noise is off, since
        the policy's density is not the environment's to know.
        """
        metrics = {name: total / self._episodes for name, total in self._sums.items()}
        if "return" in metrics:
            metrics["return"] /= reward_scale
        if self._actions:
            metrics["clipped_fraction"] = self._clipped / self._actions
        self._clear()
        self.latest |= metrics
        return self.latest.copy()

    def state_dict(self) -> dict[str, Any]:
        """Counts, sums and the latest means."""
        counts = [self._actions, self._clipped, self._episodes]
        return {"counts": counts, "sums": self._sums.copy(), "latest": self.latest.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        self._actions, self._clipped, self._episodes = state["counts"]
        self._sums, self.latest = dict(state["sums"]), dict(state["latest"])


def terminal_metrics(infos: dict[str, Any]) -> dict[str, Array]:
    """The metrics of the episodes that ended, by name, each of shape (num_envs,).

    Gymnasium's own SyncVectorEnv and AsyncVectorEnv have them in `final_info` alone.
    """
    names = ("energy", "log_weight", "log_path")
    found = infos if "energy" in infos else infos.get("final_info", {})
    return {name: found[name] for name in names if name in found}


class VectorAdapter:
    """Steps a vector environment for a library: actions clipped, rewards scaled, all in arrays.

    Args:
        env: a Gymnasium vector environment with a bounded Box as action space. One of ours in the
            default mode, NEXT_STEP, is put into the library's mode, unless a wrapper around it has
            read its mode already.
        mode: the autoreset mode that the library needs.
        reward_scale: factor on every reward.
        statistics: where to gather metrics of episodes and actions.

    Raises:
        ValueError: if the environment resets in another way, or its actions are not a bounded Box.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        mode: AutoresetMode,
        reward_scale: float = 1.0,
        statistics: EpisodeStatistics | None = None,
    ) -> None:
        if isinstance(env, SamplingVectorEnv) and env.autoreset_mode is AutoresetMode.NEXT_STEP:
            env.set_autoreset_mode(mode)
        found = env.metadata.get("autoreset_mode")
        if found is not mode:
            raise ValueError(
                f"autoreset_mode must be {mode.name}, got {getattr(found, 'name', found)}; make "
                f"the environment with autoreset_mode={mode.name!r}"
            )
        if not (isinstance(env.single_action_space, Box) and env.single_action_space.is_bounded()):
            raise ValueError(f"actions must be a bounded Box, got {env.single_action_space}")
        self.env, self.reward_scale = env, reward_scale
        self.statistics = statistics or EpisodeStatistics()
        self.low, self.high = env.single_action_space.low, env.single_action_space.high
        self._returns = np.zeros(env.num_envs)

    def reset(self, mask: Array | None = None, seed: int | None = None) -> Array:
        """Resets all rows, or those of a mask; returns the observations of all."""
        options = None if mask is None else {"reset_mask": mask}
        observations: Array
        observations, _ = self.env.reset(seed=seed, options=options)
        self._returns[slice(None) if mask is None else mask] = 0.0
        return observations

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """One step of every row, as Gymnasium's, with float32 rewards in a separate array."""
        clipped = np.clip(actions, self.low, self.high)
        at_bound = int(np.count_nonzero((actions <= self.low) | (actions >= self.high)))
        self.statistics.add_actions(at_bound, actions.size)
        observations, rewards, terminated, truncated, infos = self.env.step(clipped)
        rewards = (rewards * self.reward_scale).astype(np.float32)
        self._returns += rewards
        ended = terminated | truncated
        if ended.any():
            self._gather(ended, infos)
        return observations, rewards, terminated, truncated, infos

    def _gather(self, ended: Array, infos: dict[str, Any]) -> None:
        sums = {"return": float(self._returns[ended].sum())}
        metrics = terminal_metrics(infos)
        for key, name in (("energy", "energy"), ("log_weight", "elbo")):
            if key in metrics:
                sums[name] = float(metrics[key][ended].sum())
        self.statistics.add_episodes(int(ended.sum()), **sums)
        self._returns[ended] = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The environment's state, the returns so far, and the source of random actions."""
        env: Any = self.env.unwrapped
        random = env.single_action_space.np_random.bit_generator.state
        return {
            "env": env.state_dict(),
            "returns": self._returns.tolist(),
            "action_space": json.dumps(random),  # its integers have 128 bits
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        env: Any = self.env.unwrapped
        env.load_state_dict(state["env"])  # refuses one of another number of rows
        self._returns = np.array(state["returns"])
        random = json.loads(state["action_space"])
        env.single_action_space.np_random.bit_generator.state = random
