"""Stable-Baselines3's PPO, A2C, SAC, TD3 and DDPG as agents; needs the extra `sb3`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from vgs_rl.agents.rl.adapter import VectorAdapter
from vgs_rl.agents.rl.base import (
    DETERMINISTIC,
    SQUASHED,
    LibraryAgent,
    LibraryConfig,
    require_library,
)
from vgs_rl.envs.observation import Feature
from vgs_rl.envs.vector import SamplingVectorEnv
from vgs_rl.files.restore import check_like, check_optimizer
from vgs_rl.mdp import SamplingMDP
from vgs_rl.transitions import Policy


@dataclass(kw_only=True)
class SB3Config(LibraryConfig):
    """An algorithm of Stable-Baselines3."""

    library: ClassVar[str] = "sb3"

    def build(self, mdp: SamplingMDP, *, seed: int = 0) -> SB3Agent:
        """The untrained agent."""
        return SB3Agent(mdp, self, seed=seed)


class SB3Agent(LibraryAgent):
    """A Stable-Baselines3 model in our training loop: one rollout and one `train` per update.

    A checkpoint holds networks, optimisers, replay buffer, episodes in flight and all random
    states, so that resumed training goes on bit for bit on the CPU.

    Attributes:
        model: the Stable-Baselines3 model; ``model.save`` writes its own format.
    """

    saved: ClassVar[tuple[str, ...]] = ("randomness", "statistics", "library")

    def _setup(self) -> None:
        require_library("stable_baselines3", "sb3")
        from stable_baselines3.common.logger import Logger

        with self.randomness.active():
            self.model = self._make_model()
            self.model.set_logger(Logger(None, []))
            # The budget is ours: the total, which only schedules read, has no meaning here.
            _, self._callback = self.model._setup_learn(1)
        self.library = _ModelState(self.model)

    def _make_model(self) -> Any:
        import stable_baselines3

        from vgs_rl.agents.rl.sb3_env import SB3VecEnv

        config = self.config
        env = SamplingVectorEnv(
            self.mdp,
            num_envs=config.num_envs,
            action_bound=config.bound,
            noise=config.policy_noise == "environment",
            features=config.features,
            autoreset_mode="SAME_STEP",
        )
        vec_env = SB3VecEnv(env, reward_scale=config.reward_scale, statistics=self.statistics)
        network = {"net_arch": list(config.hidden)}
        options: dict[str, Any] = {
            "learning_rate": config.lr,
            "gamma": config.gamma,
            "seed": self.seed,
            "device": self.mdp.device,
        }
        if config.algorithm in SQUASHED:
            options |= self._off_policy_options() | {"policy_kwargs": network}
        else:
            network["log_std_init"] = math.log(config.std)  # type: ignore[assignment]
            options |= self._on_policy_options() | {"policy_kwargs": network}
        options |= config.options
        model = getattr(stable_baselines3, config.algorithm)("MlpPolicy", vec_env, **options)
        if config.algorithm in SQUASHED:
            _start_small(model.actor, config.std / config.bound)
            if config.algorithm in DETERMINISTIC:
                model.actor_target.load_state_dict(model.actor.state_dict())
        return model

    def _on_policy_options(self) -> dict[str, Any]:
        from vgs_rl.agents.rl.sb3_env import EntropyRolloutBuffer

        config = self.config
        options: dict[str, Any] = {
            "n_steps": self.mdp.num_steps * config.episodes,
            "gae_lambda": config.gae_lambda,
            "ent_coef": config.ent_coef,
        }
        if config.algorithm == "PPO":
            options |= {"batch_size": config.batch_size, "n_epochs": config.epochs}
            options["clip_range"] = config.clip_range
        if config.policy_noise == "policy":
            options["rollout_buffer_class"] = EntropyRolloutBuffer
            coefficient = config.entropy_coefficient(self.mdp)
            options["rollout_buffer_kwargs"] = {"coefficient": coefficient}
        return options

    def _off_policy_options(self) -> dict[str, Any]:
        from vgs_rl.agents.rl.sb3_env import BatchedNormalNoise

        config = self.config
        options: dict[str, Any] = {
            "buffer_size": config.buffer_size,
            "learning_starts": config.learning_starts,
            "batch_size": config.batch_size,
            "tau": config.polyak,
            "train_freq": 1,
            "gradient_steps": config.gradient_steps,
        }
        if config.algorithm in DETERMINISTIC:
            shape = (config.num_envs, self.mdp.dim)
            options["action_noise"] = BatchedNormalNoise(config.std / config.bound, shape)
        elif config.policy_noise == "policy":
            options["ent_coef"] = config.entropy_coefficient(self.mdp)
        return options

    def _train_step(self) -> dict[str, Tensor]:
        model = self.model
        steps = model.num_timesteps
        with self.randomness.active():
            if self.config.algorithm in SQUASHED:
                self._collect_and_train_off_policy()
            else:
                model.collect_rollouts(
                    model.env, self._callback, model.rollout_buffer, model.n_steps
                )
                model._current_progress_remaining = 1.0 - self.progress
                model.train()
        self.counters.env_steps += model.num_timesteps - steps
        return self._scalars() | self.rollout_scalars()

    def _collect_and_train_off_policy(self) -> None:
        model = self.model
        model.collect_rollouts(
            model.env,
            train_freq=model.train_freq,
            action_noise=model.action_noise,
            callback=self._callback,
            learning_starts=model.learning_starts,
            replay_buffer=model.replay_buffer,
        )
        model._current_progress_remaining = 1.0 - self.progress
        if model.num_timesteps > model.learning_starts:
            model.train(batch_size=model.batch_size, gradient_steps=model.gradient_steps)

    def _scalars(self) -> dict[str, Tensor]:
        """What the library has recorded since the last call."""
        logger = self.model.logger
        scalars = {name: torch.tensor(float(v)) for name, v in logger.name_to_value.items()}
        logger.dump()
        if "train/loss" not in scalars and "train/critic_loss" in scalars:
            scalars["train/loss"] = scalars["train/critic_loss"]
        return scalars

    def policy(self) -> Policy:
        """See :meth:`LibraryAgent.policy`."""
        return sb3_policy(self.model, self.mdp)


def _start_small(actor: Any, std: float) -> None:
    """Makes an untrained squashed actor almost zero, with standard deviation `std` before tanh.

    So every algorithm starts from the uncontrolled chain, as PPO's small last layer does.
    """
    mean = actor.mu if isinstance(actor.mu, torch.nn.Linear) else actor.mu[-2]
    with torch.no_grad():
        for layer in (mean, getattr(actor, "log_std", None)):
            if layer is not None:
                layer.weight.mul_(0.01)
                layer.bias.zero_()
        if hasattr(actor, "log_std"):
            actor.log_std.bias.fill_(math.log(std))


def sb3_policy(
    model: Any,
    mdp: SamplingMDP,
    *,
    env: Any = None,
    features: tuple[Feature, ...] | None = None,
    kernel: bool | None = None,
) -> Policy:
    """A model's policy as the MDP takes it, for :class:`~vgs_rl.ChainSampler`.

    With the MDP's noise on it is the control that ``model.predict(…, deterministic=True)`` makes
    the environment apply, wrappers included.

    Args:
        model: a model of Stable-Baselines3 or its contributions, trained on this MDP's
            environment.
        mdp: the MDP.
        env: the environment that it was trained in; the model's own by default. A model that was
            loaded without one is taken to act in the plain environment, with a warning.
        features: what the environment lets it observe; read off the environment where there is one.
        kernel: whether the environment's noise is off, so that the policy is the kernel; read off
            likewise.

    Raises:
        ValueError: if the policy has a memory or discrete actions, if a wrapper is not known here,
            naming it, or if the policy is the kernel and has no density of a known form.
    """
    from vgs_rl.agents.rl.sb3_policy import policy_of

    return policy_of(model, mdp, env, features, kernel)


REPLAY_ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


class _ModelState:
    """What a checkpoint holds of a model: tensors and numbers, no pickled objects."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @property
    def _adapter(self) -> VectorAdapter:
        adapter: VectorAdapter = self.model.env.adapter
        return adapter

    def state_dict(self) -> dict[str, Any]:
        model = self.model
        names = model._get_torch_save_params()[1]
        state = {
            "parameters": model.get_parameters(),
            "variables": {name: getattr(model, name).detach().clone() for name in names},
            "counts": [model.num_timesteps, model._n_updates, model._episode_num],
            "observations": torch.from_numpy(model._last_obs.copy()),
            "episode_starts": torch.from_numpy(model._last_episode_starts.copy()),
            "environment": self._adapter.state_dict(),
        }
        if hasattr(model, "replay_buffer"):
            buffer = model.replay_buffer
            arrays = {name: getattr(buffer, name)[: buffer.size()] for name in REPLAY_ARRAYS}
            state["replay"] = {name: torch.from_numpy(a.copy()) for name, a in arrays.items()}
            state["replay_at"] = [buffer.pos, buffer.full]
        return state

    def _check(self, state: dict[str, Any]) -> None:
        """Raises a ValueError unless the state fits the model; the library checks little of it."""
        model, own = self.model, self.state_dict()
        moving = ("parameters", "environment", "replay", "replay_at")
        check_like(state, own | {key: None for key in moving if key in own})
        for name, mine in own["parameters"].items():
            part = reduce(getattr, name.split("."), model)
            if isinstance(part, Optimizer):
                check_optimizer(part, state["parameters"].get(name), f"parameters.{name}")
            else:
                check_like(state["parameters"].get(name), mine, f"parameters.{name}")
        for name in REPLAY_ARRAYS if "replay" in own else ():
            rows, buffer = state["replay"][name], getattr(model.replay_buffer, name)
            check_like(rows, torch.from_numpy(buffer[: len(rows)]), f"replay.{name}")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        model = self.model
        self._check(state)
        model.set_parameters(state["parameters"], device=model.device)
        for name, value in state["variables"].items():
            getattr(model, name).data.copy_(value)
        model.num_timesteps, model._n_updates, model._episode_num = state["counts"]
        model._last_obs = state["observations"].cpu().numpy().copy()
        model._last_episode_starts = state["episode_starts"].cpu().numpy().copy()
        self._adapter.load_state_dict(state["environment"])
        if "replay" in state:
            buffer = model.replay_buffer
            for name, array in state["replay"].items():
                getattr(buffer, name)[: len(array)] = array.cpu().numpy()
            buffer.pos, buffer.full = state["replay_at"]
