"""What the agents of every RL library share: configuration, random state, statistics, sampler."""

from __future__ import annotations

import copy
import random
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from vgs_rl.agents.base import Agent, AgentConfig
from vgs_rl.agents.rl.adapter import EpisodeStatistics
from vgs_rl.checks import require_at_least, require_module, require_positive
from vgs_rl.envs.observation import DEFAULT_FEATURES, Feature, Observation
from vgs_rl.fields import settle
from vgs_rl.mdp import SamplingMDP
from vgs_rl.plots.particles import plot_episodes
from vgs_rl.plots.plots import Drawing
from vgs_rl.samplers.base import ChainSampler
from vgs_rl.samplers.stochastic import GaussianKernel, Parameters, SquashedGaussianKernel
from vgs_rl.transitions import KernelPolicy, Policy

PolicyNoise = Literal["environment", "policy"]
DETERMINISTIC = ("TD3", "DDPG")
SQUASHED = ("SAC", "TD3", "DDPG")


def require_library(module: str, extra: str) -> None:
    """Raises a ModuleNotFoundError that names the extra, unless the library is installed."""
    require_module("this agent", module, extra)


@dataclass(kw_only=True)
class LibraryConfig(AgentConfig):
    """What the agents of RL libraries have in common.

    An update is one iteration of the library's own loop. On-policy: `episodes` whole episodes of
    every environment, then `epochs` passes over them. Off-policy: one step of every environment,
    then `gradient_steps` gradient steps from the replay buffer.

    Args:
        algorithm: `PPO`, `A2C`, `SAC`, `TD3` or `DDPG`.
        policy_noise: `environment`: the MDP keeps its noise and the policy is evaluated by its
            mean. `policy`: the MDP's noise is off, the policy is the kernel, and training
            maximises return plus tau times entropy, which is minus the KL divergence. Either way
            log-weights are exact; `agents/stochastic.py` has the formulas.
        num_envs: environments that are stepped together.
        gamma: discount; 1 is the MDP's own.
        reward_scale: factor on rewards (and on the entropy coefficient of `policy`).
        action_bound: bound b of the action space, in units of the step's noise; by default 10
            where actions are clipped (PPO, A2C) and 5 where they are scaled (SAC, TD3, DDPG).
        features: what the policy observes: `x`, `t`, `energy`, `score`. The latter two cost an
            energy evaluation per step, in training and in sampling.
        initial_std: standard deviation of the untrained policy in units of the step's noise; by
            default 1 for `policy`, so that training starts from the uncontrolled chain, and 0.4
            for `environment`. TD3 and DDPG explore with it throughout, by default 0.5.
        hidden: widths of the hidden layers.
        lr: Adam's learning rate.
        batch_size: transitions of a minibatch.
        episodes: PPO, A2C: episodes of each environment in an update.
        epochs: PPO: passes over them.
        gae_lambda: PPO, A2C: lambda of generalised advantage estimation.
        clip_range: PPO: how far the ratio of policies may leave 1.
        ent_coef: PPO, A2C with noise `environment`: weight of the entropy bonus.
        buffer_size: off-policy: transitions that the replay buffer holds.
        gradient_steps: off-policy: gradient steps per step of all environments.
        learning_starts: off-policy: transitions with uniformly random actions at the start.
        polyak: off-policy: rate at which target networks follow.
        options: further keyword arguments of the library's own class, over ours.
    """

    library: ClassVar[str]

    algorithm: Literal["PPO", "A2C", "SAC", "TD3", "DDPG"] = "PPO"
    policy_noise: PolicyNoise = "environment"
    num_envs: int = 256
    gamma: float = 1.0
    reward_scale: float = 1.0
    action_bound: float | None = None
    features: tuple[Feature, ...] = DEFAULT_FEATURES
    initial_std: float | None = None
    hidden: tuple[int, ...] = (64, 64)
    lr: float = 1e-3
    batch_size: int = 512
    episodes: int = 1
    epochs: int = 10
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    ent_coef: float = 0.0
    buffer_size: int = 100_000
    gradient_steps: int = 8
    learning_starts: int = 0
    polyak: float = 0.005
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:  # type: ignore[override]
        """Such as `sb3-ppo`, and `sb3-ppo-kernel` where the policy is the kernel."""
        suffix = "-kernel" if self.policy_noise == "policy" else ""
        return f"{self.library}-{self.algorithm.lower()}{suffix}"

    def __post_init__(self) -> None:
        settle(self, "agent")
        require_positive("agent", reward_scale=self.reward_scale, lr=self.lr)
        for name in ("num_envs", "batch_size", "episodes", "epochs", "gradient_steps"):
            require_at_least("agent", 1, **{name: getattr(self, name)})
        if self.algorithm in SQUASHED:
            require_at_least("agent", self.num_envs, buffer_size=self.buffer_size)
        require_at_least("agent", 0, learning_starts=self.learning_starts, ent_coef=self.ent_coef)
        for name in ("action_bound", "initial_std"):
            if getattr(self, name) is not None:
                require_positive("agent", **{name: getattr(self, name)})
        for name in ("gamma", "gae_lambda", "polyak"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"agent.{name} must be in [0, 1], got {getattr(self, name)}")
        if self.policy_noise == "policy":
            if self.algorithm in DETERMINISTIC:
                raise ValueError(
                    f"agent.policy_noise must be 'environment' for {self.algorithm}: a "
                    "deterministic policy cannot be the kernel"
                )
            if self.ent_coef:
                raise ValueError(
                    "agent.ent_coef must be left out for policy_noise 'policy', where it is the "
                    f"temperature, got {self.ent_coef}"
                )

    @property
    def bound(self) -> float:
        """The action bound b."""
        return self.action_bound or (5.0 if self.algorithm in SQUASHED else 10.0)

    @property
    def std(self) -> float:
        """The untrained policy's standard deviation."""
        default = 0.5 if self.algorithm in DETERMINISTIC else 0.4
        return self.initial_std or (1.0 if self.policy_noise == "policy" else default)

    def entropy_coefficient(self, mdp: SamplingMDP) -> float:
        """Tau in units of the scaled reward, where the policy is the kernel; else 0."""
        return mdp.temperature * self.reward_scale if self.policy_noise == "policy" else 0.0


class LibraryAgent(Agent):
    """An RL library's algorithm in our training loop.

    A subclass sets up the library's objects on ``self.mdp`` and reads the policy out; sampling
    never goes through the library's own loops. The start pi_0 and the noise scales stay as they
    are configured.

    Attributes:
        config: the configuration.
        observed: what the policy sees.
        randomness: the random states that the library draws from; the user's stay untouched.
        statistics: of training episodes, filled by the environment's adapter.
    """

    IN_VAIN = "had a loss that was not finite; the library made them nevertheless"

    config: LibraryConfig

    def __init__(self, mdp: SamplingMDP, config: LibraryConfig, *, seed: int = 0) -> None:
        self.config = settle(
            copy.deepcopy(config), "agent"
        )  # libraries write into options they are given
        if config.policy_noise == "policy" and mdp.effective_dim != mdp.dim:
            raise ValueError(
                "agent.policy_noise 'policy' needs a Euclidean geometry; this one has "
                f"{mdp.effective_dim} of {mdp.dim} dimensions"
            )
        self.observed = Observation(mdp, config.features)
        self.randomness = LibraryRandomness(seed, mdp.device)
        self.statistics = EpisodeStatistics()
        super().__init__(mdp, seed=seed)

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle and copy: a new agent that takes over the state, as a resumed run does.

        What a library keeps besides its state (loggers, graphs, modules) cannot be copied.
        """
        state = {"progress": self.progress, "agent": self.state_dict()}
        return _anew, (type(self), self.mdp, self.config, self.seed), state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.progress = state["progress"]
        self.load_state_dict(state["agent"])

    def update(self) -> dict[str, Tensor]:
        """See :meth:`Agent.update`; updates with a loss that is not finite are counted."""
        scalars = super().update()
        losses = [value for name, value in scalars.items() if "loss" in name]
        if losses:
            self.tally.count(torch.stack(losses).sum().to(self.mdp.device))
        return scalars | {"train/skipped_updates": self.tally.skipped}

    @abstractmethod
    def policy(self) -> Policy:
        """The current policy as the MDP takes it; it follows later training."""

    def sampler(self) -> ChainSampler:
        """See :meth:`Agent.sampler`."""
        return ChainSampler(self.mdp, self.policy())

    def figures(self, generator: torch.Generator) -> dict[str, Drawing]:
        """The chain over the density (of particles: as clusters)."""
        return {"chain": lambda: plot_episodes(self.mdp, self.policy(), 1000, generator)}

    def rollout_scalars(self) -> dict[str, Tensor]:
        """Scalars of the training episodes since the last call, to log."""
        values = self.statistics.pop(self.config.reward_scale)
        return {f"rollout/{name}": torch.tensor(value) for name, value in values.items()}


def _anew(
    kind: type[LibraryAgent], mdp: SamplingMDP, config: LibraryConfig, seed: int
) -> LibraryAgent:
    return kind(mdp, config, seed=seed)


def kernel_policy(parameters: Parameters, bound: float, *, squashed: bool) -> KernelPolicy:
    """A library's policy as the kernel itself, with the MDP's noise off.

    Args:
        parameters: maps (x, t) to mean and log standard deviation before squashing.
        bound: the action bound b.
        squashed: whether actions are b tanh(z), or z itself.
    """
    return SquashedGaussianKernel(parameters, bound) if squashed else GaussianKernel(parameters)


class LibraryRandomness:
    """Global separate random states, swapped in around a library's code.

    RL libraries draw from the global generators of torch, NumPy and Python. Inside
    :meth:`active` these continue the agent's own streams; outside, the user's are as they were.

    Args:
        seed: seeds all streams.
        device: the device whose generator is one of them, besides the CPU's.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        outer = self._capture()
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002  the libraries use the global one
        random.seed(seed)
        self._state = self._capture()
        self._restore(outer)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Swaps the agent's states in, and the user's back."""
        outer = self._capture()
        self._restore(self._state)
        try:
            yield
        finally:
            self._state = self._capture()
            self._restore(outer)

    def _capture(self) -> dict[str, Any]:
        state = {
            "torch": torch.get_rng_state(),
            "numpy": np.random.get_state(),  # noqa: NPY002
            "python": random.getstate(),
        }
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def _restore(self, state: dict[str, Any]) -> None:
        torch.set_rng_state(state["torch"])
        np.random.set_state(state["numpy"])  # noqa: NPY002
        random.setstate(state["python"])
        if "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], self.device)

    def state_dict(self) -> dict[str, Any]:
        """The streams' states as tensors and numbers."""
        name, keys, *rest = self._state["numpy"]
        version, words, gauss = self._state["python"]
        return self._state | {
            "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
            "python": [version, torch.tensor(words), gauss],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        name, keys, *rest = state["numpy"]
        version, words, gauss = state["python"]
        loaded: dict[str, Any] = {
            key: state[key].cpu() for key in ("torch", "cuda") if key in state
        }
        loaded["numpy"] = (name, keys.cpu().numpy().astype(np.uint32), *rest)
        loaded["python"] = (version, tuple(words.tolist()), gauss)
        self._state = loaded
