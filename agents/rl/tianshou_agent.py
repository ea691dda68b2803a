"""Tianshou 2's PPO, A2C, SAC, TD3 and DDPG as agents; needs the extra `tianshou`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor, nn

from vgs_rl.agents.rl.base import (
    DETERMINISTIC,
    SQUASHED,
    LibraryAgent,
    LibraryConfig,
    kernel_policy,
    require_library,
)
from vgs_rl.envs.observation import DEFAULT_FEATURES, Feature, Observation
from vgs_rl.envs.vector import SamplingVectorEnv
from vgs_rl.files.restore import check_like, check_optimizer
from vgs_rl.mdp import SamplingMDP
from vgs_rl.transitions import Policy


@dataclass(kw_only=True)
class TianshouConfig(LibraryConfig):
    """An algorithm of tianshou 2, with networks and defaults as in :class:`SB3Config`."""

    library: ClassVar[str] = "tianshou"

    def build(self, mdp: SamplingMDP, *, seed: int = 0) -> TianshouAgent:
        """The untrained agent."""
        return TianshouAgent(mdp, self, seed=seed)


class TianshouAgent(LibraryAgent):
    """A tianshou algorithm in our training loop: one collection and its updates at a time.

    Tianshou's trainer is not used, so its full-buffer scan for NaN and its progress bars are not
    either. A checkpoint holds networks, optimisers, replay buffer, episodes in flight and all
    random states, so that resumed training goes on bit for bit on the CPU.

    Attributes:
        algorithm: the tianshou algorithm; its ``state_dict()`` is what should be saved of it.
        collector: the tianshou collector, on our environment.
    """

    saved: ClassVar[tuple[str, ...]] = ("randomness", "statistics", "library")

    def _setup(self) -> None:
        require_library("tianshou", "tianshou")
        with self.randomness.active():
            self.algorithm = self._make_algorithm()
            self.algorithm.to(self.mdp.device)
            self.collector = self._make_collector()
            self.collector.reset(gym_reset_kwargs={"seed": self.seed})
            self.collector.env.env.single_action_space.seed(self.seed)
        self.library = _AlgorithmState(self)

    @property
    def _steps(self) -> int:
        """Steps of every environment in an update."""
        on_policy = self.config.algorithm not in SQUASHED
        return self.mdp.num_steps * self.config.episodes if on_policy else 1

    def _make_collector(self) -> Any:
        from tianshou.data import Collector, VectorReplayBuffer

        from vgs_rl.agents.rl.tianshou_env import TianshouVectorEnv

        config = self.config
        env = SamplingVectorEnv(
            self.mdp,
            num_envs=config.num_envs,
            action_bound=config.bound,
            noise=config.policy_noise == "environment",
            features=config.features,
            autoreset_mode="DISABLED",
        )
        wrapped = TianshouVectorEnv(
            env, reward_scale=config.reward_scale, statistics=self.statistics
        )
        on_policy = config.algorithm not in SQUASHED
        size = self._steps * config.num_envs if on_policy else config.buffer_size
        buffer = VectorReplayBuffer(size, config.num_envs)
        for part in (buffer, *buffer.buffers):  # each has a separate stream, seeded by 42
            part._random_state = np.random
        coefficient = config.entropy_coefficient(self.mdp)
        return Collector(
            self.algorithm,
            wrapped,
            buffer,
            exploration_noise=config.algorithm in DETERMINISTIC,
            on_step_hook=_EntropyReward(coefficient) if coefficient and on_policy else None,
        )

    def _make_algorithm(self) -> Any:
        from vgs_rl.agents.rl import tianshou_networks

        actions = SamplingVectorEnv(self.mdp, action_bound=self.config.bound).single_action_space
        assert isinstance(actions, Box)
        return tianshou_networks.make_algorithm(
            self.config,
            actions,
            self.observed.space.shape[0],
            entropy_coefficient=self.config.entropy_coefficient(self.mdp),
        )

    def _train_step(self) -> dict[str, Tensor]:
        from tianshou.utils.torch_utils import policy_within_training_step

        config, collector = self.config, self.collector
        random = config.algorithm in SQUASHED and self.counters.env_steps < config.learning_starts
        steps = self._steps * config.num_envs
        with self.randomness.active(), policy_within_training_step(self.algorithm.policy):
            collector.collect(n_step=steps, random=random)
            self.counters.env_steps += steps
            stats = None
            if config.algorithm not in SQUASHED:
                epochs = config.epochs if config.algorithm == "PPO" else 1
                size = config.batch_size if config.algorithm == "PPO" else None
                stats = self.algorithm.update(
                    buffer=collector.buffer, batch_size=size, repeat=epochs
                )
                collector.reset_buffer(keep_statistics=True)
            elif self.counters.env_steps > config.learning_starts:
                for _ in range(config.gradient_steps):
                    stats = self.algorithm.update(collector.buffer, config.batch_size)
        return self._scalars(stats) | self.rollout_scalars()

    def _scalars(self, stats: Any) -> dict[str, Tensor]:
        values = {} if stats is None else stats.get_loss_stats_dict()
        scalars = {f"train/{name}": torch.tensor(float(v)) for name, v in values.items()}
        if "train/loss" not in scalars and "train/critic1_loss" in scalars:
            scalars["train/loss"] = scalars["train/critic1_loss"]
        return scalars

    def policy(self) -> Policy:
        """See :meth:`LibraryAgent.policy`."""
        return tianshou_policy(
            self.algorithm.policy,
            self.mdp,
            features=self.config.features,
            kernel=self.config.policy_noise == "policy",
        )


class _EntropyReward:
    """Collector hook: rewards r - coefficient log pi(v); see SB3's `EntropyRolloutBuffer`."""

    def __init__(self, coefficient: float) -> None:
        self.coefficient = coefficient

    def __call__(self, action_batch: Any, rollout_batch: Any) -> None:
        actions = torch.as_tensor(action_batch.act, device=action_batch.dist.mean.device)
        log_density = action_batch.dist.log_prob(actions).detach().cpu().numpy()
        rollout_batch.rew = rollout_batch.rew - self.coefficient * log_density


class TianshouControl:
    """The control that a tianshou policy's deterministic action makes the environment apply.

    Args:
        policy: a continuous policy whose actor has no memory.
        mdp: the MDP.
        features: what the environment lets it observe.
        standardise: what is done to observations on their way.
    """

    def __init__(
        self,
        policy: Any,
        mdp: SamplingMDP,
        features: tuple[Feature, ...],
        standardise: Callable[[Tensor], Tensor],
    ) -> None:
        self.policy, self.standardise = policy, standardise
        self.observed = Observation(mdp, features)
        self.squashed = _is_squashed(policy)
        self._low = torch.from_numpy(policy.action_space.low)
        self._high = torch.from_numpy(policy.action_space.high)

    def __call__(self, x: Tensor, t: int) -> Tensor:
        """u_t(x), shape (B, D): the policy's mean through tianshou's bounding and scaling."""
        policy = self.policy
        output, _ = policy.actor(self.standardise(self.observed(x, t).float()))
        action: Tensor = output[0] if isinstance(output, tuple) else output
        if self.squashed or policy.action_bound_method == "tanh":
            action = action.tanh()
        elif policy.action_bound_method == "clip":
            action = action.clamp(-1.0, 1.0)
        low, high = self._low.to(action), self._high.to(action)
        if policy.action_scaling:
            action = low + (high - low) * (action + 1.0) / 2.0
        return action.clamp(low, high).to(x.dtype)


def _is_squashed(policy: Any) -> bool:
    """Whether it draws tanh(z) itself, as SAC and REDQ do."""
    from tianshou.algorithm.modelfree.redq import REDQPolicy
    from tianshou.algorithm.modelfree.sac import SACPolicy

    return isinstance(policy, SACPolicy | REDQPolicy)


def tianshou_policy(
    policy: Any,
    mdp: SamplingMDP,
    *,
    env: Any = None,
    features: tuple[Feature, ...] = DEFAULT_FEATURES,
    kernel: bool = False,
) -> Policy:
    """A tianshou policy as the MDP takes it, for :class:`~vgs_rl.ChainSampler`.

    Args:
        policy: a continuous policy of tianshou, with any action bounding and its own scaling.
        mdp: the MDP.
        env: the vector environment that it was trained in, if a wrapper is around it: a policy does
            not know its environment.
        features: what the environment let it observe.
        kernel: whether the environment's noise was off, so that the policy is the kernel.

    Raises:
        ValueError: if a wrapper is not `VectorEnvNormObs`, naming it, or the policy is to be the
            kernel and its actions are bounded or scaled in another way than SAC's.
    """
    standardise = _standardiser(env)
    if not kernel:
        return TianshouControl(policy, mdp, features, standardise)
    squashed = _is_squashed(policy)
    if not squashed and (policy.action_scaling or policy.action_bound_method is not None):
        raise ValueError(
            "a policy that is the kernel must have action_scaling False and action_bound_method "
            f"None, got {policy.action_scaling} and {policy.action_bound_method!r}"
        )
    observed = Observation(mdp, features)

    def parameters(x: Tensor, t: int) -> tuple[Tensor, Tensor]:
        (mean, std), _ = policy.actor(standardise(observed(x, t).float()))
        return mean.to(x.dtype), std.log().to(x.dtype)

    return kernel_policy(parameters, float(policy.action_space.high[0]), squashed=squashed)


def _standardiser(env: Any) -> Callable[[Tensor], Tensor]:
    """What a wrapper does to observations, by its statistics as they are at each call."""
    from tianshou.env import VectorEnvNormObs

    from vgs_rl.agents.rl.tianshou_env import TianshouVectorEnv

    if env is None or isinstance(env, TianshouVectorEnv):
        return lambda observation: observation
    if not (isinstance(env, VectorEnvNormObs) and isinstance(env.venv, TianshouVectorEnv)):
        raise ValueError(
            f"the policy's environment has the wrapper {type(env).__name__}, which is not known "
            "here; known is VectorEnvNormObs around a TianshouVectorEnv"
        )

    def standardise(observation: Tensor) -> Tensor:
        statistics = env.get_obs_rms()
        mean = torch.as_tensor(statistics.mean).to(observation)
        std = torch.as_tensor(np.sqrt(statistics.var + statistics.eps)).to(observation)
        bound = statistics.clip_max or math.inf
        return ((observation - mean) / std).clamp(-bound, bound)

    return standardise


REPLAY_KEYS = ("obs", "obs_next", "act", "rew", "terminated", "truncated", "done")
PART_FIELDS = ("_insertion_idx", "_size", "_ep_return", "_ep_len", "_ep_start_idx")


class _AlgorithmState:
    """What a checkpoint holds of algorithm, collector and buffer: tensors and numbers."""

    def __init__(self, agent: TianshouAgent) -> None:
        self.algorithm, self.collector = agent.algorithm, agent.collector
        self.on_policy = agent.config.algorithm not in SQUASHED

    def state_dict(self) -> dict[str, Any]:
        algorithm, collector = self.algorithm, self.collector
        state = {
            "algorithm": dict(algorithm.state_dict()),
            "observations": torch.from_numpy(collector._pre_collect_obs_RO.copy()),
            "environment": collector.env.adapter.state_dict(),
        }
        alpha = getattr(algorithm, "alpha", None)
        if isinstance(alpha, nn.Module):  # its optimiser is not among the algorithm's own
            state["alpha_optimizer"] = algorithm.alpha._optim.state_dict()
        if hasattr(algorithm, "_cnt"):  # TD3's delay
            state["count"] = [algorithm._cnt, algorithm._last]
        if not self.on_policy and len(collector.buffer):
            state |= self._replay()
        return state

    def _replay(self) -> dict[str, Any]:
        buffer = self.collector.buffer
        parts = [[getattr(part, name) for name in PART_FIELDS] for part in buffer.buffers]
        return {
            "replay": {key: torch.from_numpy(buffer._meta[key].copy()) for key in REPLAY_KEYS},
            "parts": torch.tensor(np.array(parts, dtype=np.float64)),
            "last": torch.from_numpy(buffer.last_index.copy()),
            "lengths": torch.from_numpy(buffer._lengths.copy()),
        }

    def _check(self, state: dict[str, Any]) -> None:
        """Raises a ValueError unless the state fits; the library checks little of it."""
        algorithm, own = self.algorithm, self.state_dict()
        check_like(state["algorithm"], own["algorithm"] | {"_optimizers": []}, "algorithm")
        check_like(state["observations"], own["observations"], "observations")
        optimizers = [each._optim for each in algorithm._optimizers]
        states = list(state["algorithm"]["_optimizers"])
        if "alpha_optimizer" in own:
            optimizers.append(algorithm.alpha._optim)
            states.append(state["alpha_optimizer"])
        for i, (optimizer, each) in enumerate(zip(optimizers, states, strict=True)):
            check_optimizer(optimizer, each, f"optimizer {i}")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        algorithm, collector = self.algorithm, self.collector
        self._check(state)
        algorithm.load_state_dict(dict(state["algorithm"]))
        collector._pre_collect_obs_RO = state["observations"].cpu().numpy().copy()
        collector.env.adapter.load_state_dict(state["environment"])
        if "alpha_optimizer" in state:
            algorithm.alpha._optim.load_state_dict(state["alpha_optimizer"])
        if "count" in state:
            algorithm._cnt, algorithm._last = state["count"]
        if "replay" in state:
            self._load_replay(state)

    def _load_replay(self, state: dict[str, Any]) -> None:
        from tianshou.data import Batch

        buffer = self.collector.buffer
        arrays = {key: value.cpu().numpy().copy() for key, value in state["replay"].items()}
        buffer.set_batch(Batch(arrays, info=Batch(), policy=Batch()))
        buffer.last_index = state["last"].cpu().numpy().copy()
        buffer._lengths = state["lengths"].cpu().numpy().copy()
        for part, row in zip(buffer.buffers, state["parts"].tolist(), strict=True):
            for name, value in zip(PART_FIELDS, row, strict=True):
                setattr(part, name, value if name == "_ep_return" else int(value))
            part.last_index = np.array([(part._insertion_idx - 1) % part.maxsize])
