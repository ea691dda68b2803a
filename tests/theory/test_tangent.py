"""Controls of a user need not be tangent: the MDP takes of them what is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from springs import Springs
from test_sphere import VonMisesFisher
from torch import Tensor

from vgs_rl import (
    ChainSampler,
    Energy,
    MDPConfig,
    SamplingMDP,
    ScheduleConfig,
    StartConfig,
)
from vgs_rl.agents import PISConfig
from vgs_rl.envs import SamplingVectorEnv
from vgs_rl.transitions import State

LOG_Z = {"springs": 2 * math.log(2 * math.pi), "sphere": VonMisesFisher(1.0).log_z}


def make(space: str, num_steps: int = 4) -> SamplingMDP:
    energy: Energy = Springs() if space == "springs" else VonMisesFisher(1.0)
    start = StartConfig(kind="gaussian" if space == "springs" else "uniform")
    schedule = ScheduleConfig(kind="constant", first=0.05)
    config = MDPConfig(chain="ve", num_steps=num_steps, schedule=schedule, start=start)
    return SamplingMDP(energy, config, dtype=torch.float64)


def askew(x: Tensor, t: int) -> Tensor:
    """A control with a large part that points out of either space."""
    return 0.5 - 0.2 * x + 0.02 * t * x.flip(-1)


def weights(log_weight: Tensor | None, space: str) -> Tensor:
    assert log_weight is not None
    return (log_weight - LOG_Z[space]).exp()


def by_steps(mdp: SamplingMDP, n: int) -> Tensor:
    generator = mdp.generator(0)
    state = mdp.reset(n, generator)
    log_weight = mdp.initial_log_weight(state.x)
    for t in range(mdp.num_steps):
        step = mdp.step(State(state.x, t), askew(state.x, t), generator)
        state, log_weight = step.state, log_weight + step.log_ratio
    return log_weight


def by_environment(mdp: SamplingMDP, n: int) -> Tensor:
    env = SamplingVectorEnv(mdp, num_envs=n)
    observations, _ = env.reset(seed=0)
    for t in range(mdp.num_steps):
        control = askew(torch.as_tensor(observations[:, : mdp.dim]), t)
        observations, *_, infos = env.step(control.numpy().astype(np.float32))
    return torch.as_tensor(infos["log_weight"])


WAYS: dict[str, Callable[[SamplingMDP, int], Tensor | None]] = {
    "rollout": lambda mdp, n: mdp.rollout(askew, n, mdp.generator(0)).log_weight,
    "sampler": lambda mdp, n: ChainSampler(mdp, askew).sample(n, 0).log_weight,
    "step": by_steps,
    "environment": by_environment,
}


@pytest.mark.parametrize("space", LOG_Z)
@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_weights_of_a_control_that_is_not_tangent_are_unbiased(way: str, space: str) -> None:
    n = 20_000
    w = weights(WAYS[way](make(space), n), space)
    assert len(w) == n
    assert abs(float(w.mean()) - 1) < 4.5 * float(w.std()) / math.sqrt(n)
    assert float(w.std()) < 3  # so that the mean says something


@pytest.mark.parametrize("space", LOG_Z)
@torch.no_grad()
def test_what_is_not_tangent_changes_nothing(space: str) -> None:
    mdp = make(space)

    def tangent(x: Tensor, t: int) -> Tensor:
        return mdp.geometry.tangent(askew(x, t), x)

    exact = mdp.energy.sample(50, mdp.generator(1)).double()
    results: list[Any] = []
    for policy in (askew, tangent):
        rollout = mdp.rollout(policy, 50, mdp.generator(0))
        reverse = mdp.reverse_log_weight(policy, exact, mdp.generator(2))
        mdp.rho.fill_(1.0)
        mdp.fit_noise_scale(policy, exact, mdp.generator(3))
        results.append((rollout.x, rollout.cost, rollout.log_weight, reverse, mdp.rho.clone()))
        mdp.rho.fill_(1.0)
    for got, right in zip(*results, strict=True):
        torch.testing.assert_close(got, right)
    gap = mdp.geometry.project(results[0][0]) - results[0][0]
    assert float(gap.abs().max()) < 1e-12  # states stay in the space


@pytest.mark.parametrize("space", LOG_Z)
def test_gradients_of_the_cost_flow_back_through_the_tangent_part(space: str) -> None:
    mdp = make(space, 2)
    gain = torch.full((), 0.3, dtype=torch.float64, requires_grad=True)

    def cost(gain: Tensor) -> Tensor:
        return mdp.rollout(lambda x, t: gain * askew(x, t), 20, mdp.generator(0)).cost.mean()

    (slope,) = torch.autograd.grad(cost(gain), gain)
    with torch.no_grad():
        difference = (cost(gain + 1e-6) - cost(gain - 1e-6)) / 2e-6
    torch.testing.assert_close(slope, difference, rtol=1e-5, atol=1e-8)
    agent = PISConfig(batch_size=8, width=8).build(make(space, 2), seed=0)
    assert bool(agent.update()["train/gradient_norm"].isfinite())
