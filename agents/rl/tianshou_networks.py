"""Tianshou's algorithms with the networks and defaults that Stable-Baselines3 gives its own."""

from __future__ import annotations

import math
from typing import Any

import torch
from gymnasium.spaces import Box
from tianshou.algorithm import A2C, DDPG, PPO, SAC, TD3
from tianshou.algorithm.modelfree.ddpg import ContinuousDeterministicPolicy
from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
from tianshou.algorithm.modelfree.sac import AutoAlpha, SACPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.exploration import GaussianNoise
from tianshou.utils.net.common import Net
from tianshou.utils.net.continuous import (
    ContinuousActorDeterministic,
    ContinuousActorProbabilistic,
    ContinuousCritic,
)
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from vgs_rl.agents.rl.base import LibraryConfig

# What SB3's PPO does besides the paper, so that equal configurations mean equal algorithms.
ADAM_EPS, MAX_GRAD_NORM, VF_COEF = 1e-5, 0.5, 0.5


def make_algorithm(
    config: LibraryConfig, actions: Box, observation_size: int, *, entropy_coefficient: float = 0.0
) -> Any:
    """The untrained algorithm of a configuration.

    Args:
        config: names the algorithm.
        actions: the action space of one environment.
        observation_size: entries of one observation.
        entropy_coefficient: of SAC; 0 learns it.
    """
    if config.algorithm in ("PPO", "A2C"):
        return _actor_critic(config, actions, observation_size)
    return _off_policy(config, actions, observation_size, entropy_coefficient)


def _actor_critic(config: LibraryConfig, actions: Box, size: int) -> PPO | A2C:
    actor = ContinuousActorProbabilistic(
        preprocess_net=_net(config, size, nn.Tanh), action_shape=actions.shape, unbounded=True
    )
    critic = ContinuousCritic(preprocess_net=_net(config, size, nn.Tanh))
    for module in (actor, critic):
        _orthogonal(module, math.sqrt(2))
    _orthogonal(actor.mu, 0.01)
    _orthogonal(critic.last, 1.0)
    nn.init.constant_(actor.sigma_param, math.log(config.std))
    policy = ProbabilisticActorPolicy(
        actor=actor,
        dist_fn=_normal,
        action_space=actions,
        action_scaling=False,
        action_bound_method=None,  # the adapter clips, as SB3 does: the stored action is not
    )
    options: dict[str, Any] = {
        "policy": policy,
        "critic": critic,
        "optim": AdamOptimizerFactory(lr=config.lr, eps=ADAM_EPS),
        "vf_coef": VF_COEF,
        "ent_coef": config.ent_coef,
        "max_grad_norm": MAX_GRAD_NORM,
        "gae_lambda": config.gae_lambda,
        "gamma": config.gamma,
        "max_batchsize": 65_536,
    }
    if config.algorithm == "A2C":
        return A2C(**options | config.options)
    return PPO(**options | {"eps_clip": config.clip_range} | config.options)


def _off_policy(
    config: LibraryConfig, actions: Box, size: int, entropy_coefficient: float
) -> SAC | TD3 | DDPG:
    optim = AdamOptimizerFactory(lr=config.lr)
    options: dict[str, Any] = {
        "policy_optim": optim,
        "critic": _critic(config, actions, size),
        "critic_optim": optim,
        "tau": config.polyak,
        "gamma": config.gamma,
    }
    if config.algorithm != "DDPG":
        options["critic2"] = _critic(config, actions, size)
    std = config.std / config.bound
    net = _net(config, size, nn.ReLU)
    if config.algorithm == "SAC":
        actor = ContinuousActorProbabilistic(
            preprocess_net=net, action_shape=actions.shape, unbounded=True, conditioned_sigma=True
        )
        _shrink(actor.mu)
        _shrink(actor.sigma, offset=math.log(std))
        options["policy"] = SACPolicy(actor=actor, action_space=actions)
        learned = AutoAlpha(-float(actions.shape[0]), 0.0, optim)
        options["alpha"] = entropy_coefficient or learned
        return SAC(**options | config.options)
    deterministic = ContinuousActorDeterministic(preprocess_net=net, action_shape=actions.shape)
    _shrink(deterministic.last)
    options["policy"] = ContinuousDeterministicPolicy(
        actor=deterministic, exploration_noise=GaussianNoise(sigma=std), action_space=actions
    )
    algorithm = TD3 if config.algorithm == "TD3" else DDPG
    return algorithm(**options | config.options)


def _net(config: LibraryConfig, size: int, activation: type[nn.Module], **options: Any) -> Net:
    return Net(
        state_shape=(size,), hidden_sizes=list(config.hidden), activation=activation, **options
    )


def _critic(config: LibraryConfig, actions: Box, size: int) -> ContinuousCritic:
    net = _net(config, size, nn.ReLU, action_shape=actions.shape, concat=True)
    return ContinuousCritic(preprocess_net=net)


def _normal(parameters: tuple[Tensor, Tensor]) -> Distribution:
    return Independent(Normal(*parameters), 1)


def _layers(module: nn.Module) -> list[nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


def _orthogonal(module: nn.Module, gain: float) -> None:
    for layer in _layers(module):
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)


@torch.no_grad()
def _shrink(module: nn.Module, offset: float = 0.0) -> None:
    """Makes an untrained last layer almost constant: the uncontrolled chain."""
    (layer,) = _layers(module)
    layer.weight.mul_(0.01)
    layer.bias.fill_(offset)
