"""Tianshou 2's PPO, A2C, SAC, TD3 and DDPG as agents; needs the extra `tianshou`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor, nn

from vgs_rl.agents.library import (
    DETERMINISTIC,
    SQUASHED,
    LibraryAgent,
    LibraryConfig,
    make_policy,
    require_library,
)
from vgs_rl.agents.stochastic import Parameters
from vgs_rl.envs.gym import SamplingVectorEnv
from vgs_rl.envs.observation import DEFAULT_FEATURES, Feature, Observation
from vgs_rl.mdp import Policy, SamplingMDP


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

        from vgs_rl.agents.tianshou_env import TianshouVectorEnv

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
        for part in (buffer, *buffer.buffers):  # each has a stream of its own, seeded by 42
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
        from vgs_rl.agents import tianshou_networks

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

    def parameters(self, x: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """See :meth:`LibraryAgent.parameters`."""
        return tianshou_parameters(self.algorithm.policy, self.observed)(x, t)


class _EntropyReward:
    """Collector hook: rewards r - coefficient log pi(v); see SB3's `EntropyRolloutBuffer`."""

    def __init__(self, coefficient: float) -> None:
        self.coefficient = coefficient

    def __call__(self, action_batch: Any, rollout_batch: Any) -> None:
        actions = torch.as_tensor(action_batch.act, device=action_batch.dist.mean.device)
        log_density = action_batch.dist.log_prob(actions).detach().cpu().numpy()
        rollout_batch.rew = rollout_batch.rew - self.coefficient * log_density


def tianshou_parameters(policy: Any, observed: Observation) -> Parameters:
    """Mean and log standard deviation of a tianshou policy before squashing, as tensors.

    TD3 and DDPG have no standard deviation: its logarithm is -inf.

    Args:
        policy: a tianshou policy whose actor is a continuous one of tianshou's.
        observed: what it sees.
    """

    def parameters(x: Tensor, t: int) -> tuple[Tensor, Tensor]:
        actor, observation = policy.actor, observed(x, t).float()
        if isinstance(policy.action_bound_method, str) and policy.action_scaling:  # TD3, DDPG
            hidden, _ = actor.preprocess(observation)
            mean = actor.last(hidden)  # without its tanh
            log_std = torch.full_like(mean, -torch.inf)
        else:
            (mean, std), _ = actor(observation)
            log_std = std.log()
        return mean.to(x.dtype), log_std.to(x.dtype)

    return parameters


def tianshou_policy(
    policy: Any,
    mdp: SamplingMDP,
    *,
    features: tuple[Feature, ...] = DEFAULT_FEATURES,
    kernel: bool = False,
) -> Policy:
    """A tianshou policy as the MDP takes it, for :class:`~vgs_rl.ChainSampler`.

    Args:
        policy: of PPO or A2C with an unbounded actor and neither action scaling nor bounding, or
            of SAC, TD3 or DDPG with action scaling.
        mdp: the MDP.
        features: what the environment let it observe.
        kernel: whether the environment's noise was off, so that the policy is the kernel.
    """
    parameters = tianshou_parameters(policy, Observation(mdp, features))
    bound = float(policy.action_space.high[0])
    return make_policy(mdp, parameters, bound, squashed=policy.action_scaling, kernel=kernel)


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

    def load_state_dict(self, state: dict[str, Any]) -> None:
        algorithm, collector = self.algorithm, self.collector
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
