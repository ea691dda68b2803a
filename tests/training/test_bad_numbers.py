"""Energies that are no numbers: training and sampling stay defined, or say what is wrong."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vgs_rl.agents import GradientMatching, MLPNetwork, ValueGradientConfig
from vgs_rl.energy import Energy
from vgs_rl.envs import SamplingVectorEnv
from vgs_rl.evaluation.evaluate import evaluate
from vgs_rl.mdp import MDPConfig, SamplingMDP
from vgs_rl.samplers.base import ChainSampler

Field = Callable[[torch.Tensor], torch.Tensor]


def normal(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x.square().sum(-1)


def on_a_part(value: float) -> Field:
    """A standard normal but for a corner, where E is `value`."""
    return lambda x: torch.where(x[:, 0] > 0.3, value, normal(x))


FIELDS: dict[str, Field] = {
    "nan on a part": on_a_part(math.nan),
    "infinite on a part": on_a_part(math.inf),
    "huge on a part": on_a_part(3e38),
    "very low on a part": on_a_part(-1e30),
    "steep": lambda x: 1e12 * normal(x),
    "overflows": lambda x: (50 * x).pow(30).sum(-1) + normal(x),
    "jumps": lambda x: normal(x) + 40.0 * (x[:, 0] > 0).to(x),
    "flat": lambda x: (x - x.detach()).sum(-1),
    "a plateau": lambda x: normal(x).clamp_max(0.1) + 0.0 * normal(x),
    "an infinite slope": lambda x: x.abs().sqrt().sum(-1) + normal(x),
    "no slope": lambda x: (4 * normal(x)).round(),
}


class Given(Energy):
    """One of the fields."""

    thread_safe = True

    def __init__(self, name: str, dim: int) -> None:
        super().__init__()
        self.field, self.dim = FIELDS[name], dim

    def energy(self, x: torch.Tensor) -> torch.Tensor:
        return self.field(x)


class Stateful(Energy):
    """Another energy at every call."""

    dim = 2

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def energy(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return normal(x) * (1 + self.calls % 3)


class Raises(Energy):
    """Fails at one state of some batch."""

    dim = 2

    def __init__(self, at: int) -> None:
        super().__init__()
        self.calls, self.at = 0, at

    def energy(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.at:
            raise ZeroDivisionError("in the middle of a batch")
        return normal(x)


def agent_of(energy: Energy, steps: int, batch: int = 16) -> Any:
    objective = GradientMatching(
        batch_size=batch, refresh_every=1, refresh_size=32, first_size=64, start_size=32
    )
    network = MLPNetwork(width=8, depth=1)
    config = ValueGradientConfig(objective=objective, network=network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return config.build(SamplingMDP(energy, MDPConfig(num_steps=steps)), seed=0)


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(list(FIELDS)),
    dim=st.sampled_from([1, 2, 40]),
    steps=st.sampled_from([1, 2, 30]),
)
def test_an_agent_of_any_energy_keeps_finite_parameters_and_known_weights(
    name: str, dim: int, steps: int
) -> None:
    """Or there is one line that says what the energy is not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            agent = agent_of(Given(name, dim), steps)
            agent.learn(updates=2, progress_bar=False)
            samples = agent.sample(64)
        except ValueError as error:
            assert "energy" in str(error).lower() and "\n" not in str(error)
            return
        for parameter in agent.network.parameters():
            assert bool(parameter.isfinite().all())
        assert bool(agent.mdp.rho.isfinite().all())
        assert samples.x.shape == (64, dim) and bool(samples.x.isfinite().all())
        assert samples.log_weight is not None
        assert not bool(samples.log_weight.isnan().any())
        try:
            report = evaluate(agent.sampler(), agent.energy, 64)
        except ValueError as error:  # as where no path has a weight, or one has all of it
            assert "weight" in str(error) and "\n" not in str(error)
            return
        assert "elbo" in report.metrics and report.as_json()


@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from(list(FIELDS)),
    dim=st.sampled_from([1, 3, 300]),
    num_envs=st.sampled_from([1, 2, 5_000]),
    scale=st.sampled_from([0.0, 1.0, 4.0]),
)
def test_environments_of_any_energy_have_finite_observations_and_rewards(
    name: str, dim: int, num_envs: int, scale: float
) -> None:
    """Or the step says that the energy is not a number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            mdp = SamplingMDP(Given(name, dim), MDPConfig(num_steps=2))
        except ValueError as error:
            assert "energy" in str(error).lower() and "\n" not in str(error)
            return
        envs = SamplingVectorEnv(mdp, num_envs=num_envs)
        observations, _ = envs.reset(seed=0)
        low, high = envs.action_space.low, envs.action_space.high
        for _ in range(3):
            actions = np.clip(scale * np.ones_like(low), low, high)
            try:
                observations, rewards, *_ = envs.step(actions)
            except ValueError as error:
                assert name == "nan on a part" and "energy returned NaN on" in str(error)
                return
            assert np.isfinite(observations).all() and np.isfinite(rewards).all()
            assert rewards.shape == (num_envs,)


def test_a_stateful_energy_is_learned_as_it_comes() -> None:
    agent = agent_of(Stateful(), 3)
    agent.learn(updates=5, progress_bar=False)
    assert bool(agent.sample(100).x.isfinite().all())


@pytest.mark.parametrize("at", [6, 9])
def test_an_energy_that_raises_ends_the_call_and_nothing_else(at: int) -> None:
    """The error is the energy's own, and the same agent goes on."""
    agent = agent_of(Raises(at), 3)
    with pytest.raises(ZeroDivisionError, match="in the middle of a batch"):
        for _ in range(10):
            agent.learn(updates=agent.counters.updates + 1, progress_bar=False)
            agent.sampler().sample(64, 0)
    agent.energy.at = -1
    agent.learn(updates=agent.counters.updates + 2, progress_bar=False)
    assert all(bool(each.isfinite().all()) for each in agent.network.parameters())


def test_of_a_batch_with_one_bad_row_the_other_rows_are_as_without_it() -> None:
    mdp = SamplingMDP(Given("nan on a part", 2), MDPConfig(num_steps=2))
    chain = ChainSampler(mdp, lambda x, t: torch.zeros_like(x))
    samples = chain.sample(2_000, 0)
    assert samples.log_weight is not None
    dead = samples.x[:, 0] > 0.3
    assert bool(torch.isneginf(samples.log_weight[dead]).all())
    assert bool(samples.log_weight[~dead].isfinite().all())
