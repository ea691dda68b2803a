"""A Stable-Baselines3 model's policy as the MDP takes it, through whatever wraps its environment.

Between a model and the MDP may lie wrappers that change what the policy sees and what is done with
its actions. They are read off the model's environment, from the outermost inwards; one that is not
known here is refused by name, since leaving it out would evaluate another policy. Needs the extra
`sb3`.
"""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import wrappers
from gymnasium.spaces import Box
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import vector
from stable_baselines3.common import vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from vgs_rl.agents.rl.base import kernel_policy
from vgs_rl.agents.rl.sb3_env import SB3VecEnv
from vgs_rl.envs.observation import DEFAULT_FEATURES, Feature, Observation
from vgs_rl.envs.sampling import SamplingEnv
from vgs_rl.envs.vector import SamplingVectorEnv
from vgs_rl.mdp import SamplingMDP
from vgs_rl.samplers.stochastic import Parameters
from vgs_rl.transitions import Policy

Stage = Callable[[Tensor], Tensor]

# Wrappers that leave observations and actions as they are.
TRANSPARENT = (
    vec_env.VecMonitor,
    vec_env.VecCheckNan,
    vec_env.VecVideoRecorder,
    Monitor,
    wrappers.OrderEnforcing,
    wrappers.PassiveEnvChecker,
    wrappers.TimeLimit,
    wrappers.Autoreset,
    wrappers.RecordEpisodeStatistics,
    wrappers.RecordVideo,
    wrappers.RenderCollection,
    wrappers.HumanRendering,
    wrappers.ClipReward,
    wrappers.TransformReward,
    wrappers.NormalizeReward,
    vector.RecordEpisodeStatistics,
    vector.RecordVideo,
    vector.HumanRendering,
    vector.DictInfoToList,
    vector.ClipReward,
    vector.TransformReward,
    vector.NormalizeReward,
)


@dataclass(kw_only=True)
class Interface:
    """What lies between a model and the MDP.

    Attributes:
        observe: what is done to an observation, the innermost wrapper first.
        act: what is done to an action, the outermost wrapper first.
        features: what the environment lets its policy observe.
        kernel: whether the MDP's noise is off, so that the policy is the kernel.
    """

    observe: list[Stage] = field(default_factory=list)
    act: list[Stage] = field(default_factory=list)
    features: tuple[Feature, ...] = DEFAULT_FEATURES
    kernel: bool = False


def interface(env: Any, mdp: SamplingMDP) -> Interface:
    """Reads the wrappers of an environment.

    Args:
        env: a VecEnv, or a Gymnasium environment.
        mdp: what its innermost environment has to act in.

    Raises:
        ValueError: if a wrapper is not known, naming it, or the innermost environment has another
            MDP.
    """
    found = Interface()
    while True:
        if isinstance(env, vec_env.VecNormalize):
            if env.norm_obs:
                found.observe.insert(0, _standardised(env.obs_rms, env.epsilon, env.clip_obs))
            env = env.venv
        elif isinstance(env, TRANSPARENT):
            env = env.venv if isinstance(env, vec_env.VecEnvWrapper) else env.env
        elif isinstance(env, SB3VecEnv):
            env = env.env
        elif isinstance(env, vec_env.DummyVecEnv | SyncVectorEnv):
            for other in env.envs[1:]:
                if _names(other) != _names(env.envs[0]):
                    raise ValueError(
                        f"environments must be wrapped alike, got {_names(env.envs[0])} and "
                        f"{_names(other)}"
                    )
            env = env.envs[0]
        elif isinstance(env, vec_env.SubprocVecEnv):
            return _of_processes(env, found, mdp)
        elif isinstance(env, vector.NormalizeObservation):
            found.observe.insert(0, _standardised(env.obs_rms, env.epsilon, None))
            env = env.env
        elif isinstance(env, wrappers.RescaleAction | vector.RescaleAction):
            found.act.append(_rescaled(_actions(env), _actions(env.env)))
            env = env.env
        elif isinstance(env, wrappers.ClipAction | vector.ClipAction):
            found.act.append(_clipped(_actions(env.env)))
            env = env.env
        elif isinstance(env, SamplingEnv | SamplingVectorEnv):
            _require_same(env.mdp, mdp)
            found.features, found.kernel = env.features, not env.noise
            return found
        else:
            raise _unknown(type(env).__name__)


def _unknown(name: str) -> ValueError:
    return ValueError(
        f"the model's environment has the wrapper {name}, which changes what its policy sees or "
        "does in a way that is not known here; known are VecNormalize, NormalizeObservation of "
        "vector environments, RescaleAction, ClipAction, monitors and reward wrappers"
    )


def _names(env: gymnasium.Env[Any, Any]) -> list[str]:
    names = [type(env).__name__]
    while isinstance(env, gymnasium.Wrapper):
        env = env.env
        names.append(type(env).__name__)
    return names


def _of_processes(env: Any, found: Interface, mdp: SamplingMDP) -> Interface:
    """The same from the specification of environments in other processes."""
    spec = env.get_attr("spec", 0)[0]
    known = {kind.__name__ for kind in TRANSPARENT}
    for wrapper in () if spec is None else spec.additional_wrappers:
        if wrapper.name not in known:
            raise _unknown(f"{wrapper.name} in another process")
    if spec is None or "target" not in spec.kwargs:
        raise ValueError("environments in other processes must be of a registered id of vgs_rl")
    _require_same(env.get_attr("mdp", 0)[0], mdp)
    found.features = tuple(spec.kwargs.get("features", DEFAULT_FEATURES))
    found.kernel = not spec.kwargs.get("noise", True)
    return found


def _require_same(own: SamplingMDP, mdp: SamplingMDP) -> None:
    if own is mdp:
        return
    ours, theirs = (f"{type(m.energy).__name__}, D = {m.dim}, {m.config}" for m in (mdp, own))
    if ours != theirs:
        raise ValueError(f"the model's environment has another MDP: {theirs}, mdp has {ours}")


def _actions(env: Any) -> Box:
    single = isinstance(env, gymnasium.vector.VectorEnv)
    space: Any = env.single_action_space if single else env.action_space
    box: Box = space
    return box


def _standardised(statistics: Any, epsilon: float, clip: float | None) -> Stage:
    """(x - mean) / std of running statistics as they are now; they follow later training."""

    def stage(x: Tensor) -> Tensor:
        mean = torch.as_tensor(statistics.mean).to(x)
        std = torch.as_tensor(np.sqrt(statistics.var + epsilon)).to(x)
        x = (x - mean) / std
        return x if clip is None else x.clamp(-clip, clip)

    return stage


def _rescaled(outer: Box, inner: Box) -> Stage:
    low, high = torch.from_numpy(inner.low), torch.from_numpy(inner.high)
    least, most = torch.from_numpy(outer.low), torch.from_numpy(outer.high)
    slope = (high - low) / (most - least)

    def stage(action: Tensor) -> Tensor:
        return low.to(action) + (action - least.to(action)) * slope.to(action)

    return stage


def _clipped(box: Box) -> Stage:
    low, high = torch.from_numpy(box.low), torch.from_numpy(box.high)
    return lambda action: action.clamp(low.to(action), high.to(action))


class PredictedControl:
    """The control that `model.predict(…, deterministic=True)` makes the environment apply.

    Args:
        model: a model with a policy that has no memory.
        mdp: the MDP.
        between: what lies between them.
    """

    def __init__(self, model: Any, mdp: SamplingMDP, between: Interface) -> None:
        self.model, self.between = model, between
        self.observed = Observation(mdp, between.features)
        self._alone = threading.Lock()  # a policy keeps its distribution in itself
        space = model.action_space
        self._low, self._high = torch.from_numpy(space.low), torch.from_numpy(space.high)

    def __call__(self, x: Tensor, t: int) -> Tensor:
        """u_t(x), shape (B, D)."""
        observation = self.observed(x, t).float()
        for stage in self.between.observe:
            observation = stage(observation)
        policy = self.model.policy
        policy.set_training_mode(False)
        action = self._action(observation.float())
        low, high = self._low.to(action), self._high.to(action)
        if policy.squash_output:
            action = low + 0.5 * (action + 1.0) * (high - low)
        else:
            action = action.clamp(low, high)
        for stage in self.between.act:
            action = stage(action)
        return action.to(x.dtype)

    def _action(self, observation: Tensor) -> Tensor:
        """The policy's own deterministic action, before bounds, shape (B, D)."""
        policy = self.model.policy
        if type(policy)._predict is ActorCriticPolicy._predict:
            # Without its distribution, which would be kept in the policy: threads may sample.
            features = policy.extract_features(observation, policy.pi_features_extractor)
            mean: Tensor = policy.action_net(policy.mlp_extractor.forward_actor(features))
            return mean.tanh() if policy.squash_output else mean
        with self._alone:
            action: Tensor = policy._predict(observation, deterministic=True)
        return action


def kernel_parameters(model: Any, mdp: SamplingMDP, between: Interface) -> Parameters:
    """Mean and log standard deviation of a policy's draw before squashing, as tensors."""
    observed = Observation(mdp, between.features)

    def parameters(x: Tensor, t: int) -> tuple[Tensor, Tensor]:
        observation = observed(x, t).float()
        for stage in between.observe:
            observation = stage(observation)
        observation = observation.float()
        policy = model.policy
        if isinstance(policy, ActorCriticPolicy):
            features = policy.extract_features(observation, policy.pi_features_extractor)
            mean = policy.action_net(policy.mlp_extractor.forward_actor(features))
            log_std = policy.log_std.expand_as(mean)
        else:
            mean, log_std, _ = policy.actor.get_action_dist_params(observation)
        return mean.to(x.dtype), log_std.to(x.dtype)

    return parameters


def policy_of(
    model: Any,
    mdp: SamplingMDP,
    env: Any,
    features: tuple[Feature, ...] | None,
    kernel: bool | None,
) -> Policy:
    """See :func:`vgs_rl.agents.rl.sb3.sb3_policy`."""
    policy = model.policy
    if "lstm_states" in inspect.signature(policy._predict).parameters:
        raise ValueError(
            f"{type(model).__name__} has a recurrent policy, whose action depends on earlier "
            "states; a policy of the MDP sees x and t alone"
        )
    if not isinstance(model.action_space, Box):
        raise ValueError(f"actions must be a bounded Box, got {model.action_space}")
    env = env if env is not None else model.get_env()
    if env is None:
        warnings.warn(
            "the model has no environment: it is taken to act in the plain one, without "
            "VecNormalize, RescaleAction or other wrappers; give env= to have them read",
            stacklevel=3,
        )
        between = Interface()
    else:
        between = interface(env, mdp)
    between.features = between.features if features is None else tuple(features)
    between.kernel = between.kernel if kernel is None else kernel
    size = Observation(mdp, between.features).space.shape
    if model.observation_space.shape != size:
        raise ValueError(
            f"the model observes {model.observation_space.shape}, features {between.features} of "
            f"this MDP have {size}"
        )
    if not between.kernel:
        return PredictedControl(model, mdp, between)
    return _kernel(model, mdp, between)


def _kernel(model: Any, mdp: SamplingMDP, between: Interface) -> Policy:
    name = type(model).__name__
    if getattr(model, "use_sde", False):
        raise ValueError(f"{name} with use_sde cannot be the kernel: its noise is not drawn anew")
    squashed = hasattr(model.policy, "actor")
    if squashed and not hasattr(model.policy.actor, "get_action_dist_params"):
        raise ValueError(f"{name} cannot be the kernel: its policy has no density")
    if not squashed and not isinstance(model.policy, ActorCriticPolicy):
        raise ValueError(f"{name} cannot be the kernel: its policy has no density known here")
    if between.act:
        raise ValueError(
            f"{name} under RescaleAction or ClipAction cannot be the kernel; give the environment "
            "its action_bound instead"
        )
    bound = float(model.action_space.high[0])
    parameters = kernel_parameters(model, mdp, between)
    return kernel_policy(parameters, bound, squashed=squashed)
