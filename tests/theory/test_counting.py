"""Counters hold exactly as many energy evaluations as states were handed to the energy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vgs_rl import (
    ChainSampler,
    Energy,
    MDPConfig,
    SamplingMDP,
)
from vgs_rl.agents import (
    TD0,
    AnnealedSMC,
    GradientMatching,
    HMCSampler,
    LogVarianceConfig,
    MALASampler,
    ParallelTempering,
    PISConfig,
    SoftBellman,
    TrajectoryBalanceConfig,
    TwistedSMC,
    ULASampler,
    ValueGradientConfig,
)
from vgs_rl.envs import SamplingVectorEnv
from vgs_rl.samplers.base import Sampler

pytestmark = pytest.mark.filterwarnings("ignore:.*hides its gradient")


class Counting(Energy):
    """Counts the states that :meth:`energy` sees."""

    dim = 2
    seen = 0

    def energy(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return 0.5 * x.square().sum(-1)


class WithGradient(Counting):
    """Counts the states that either method sees."""

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.energy(x), x


class Engine(Counting):
    """Autograd sees nothing of it, so that differences are taken."""

    def energy(self, x: Tensor) -> Tensor:
        return super().energy(x.detach())


KINDS = [Counting, WithGradient, Engine]
MATCHING: dict[str, Any] = {
    "batch_size": 32,
    "refresh_size": 32,
    "start_size": 32,
    "refresh_every": 2,
    "first_size": 64,
    "capacity": 64,
}
AGENTS = {
    "weighted": ValueGradientConfig(objective=GradientMatching(**MATCHING)),
    "wide": ValueGradientConfig(objective=GradientMatching(**MATCHING, first_range=3.0)),
    "refined": ValueGradientConfig(
        objective=GradientMatching(
            **MATCHING, refine_steps=2, first_refine_steps=3, first_anneal_steps=3,
            posterior_steps=2,
        )
    ),
    "bellman": ValueGradientConfig(objective=GradientMatching(**MATCHING), drift="bellman"),
    "td": ValueGradientConfig(objective=TD0(batch_size=16), drift="bellman"),
    "soft": ValueGradientConfig(objective=SoftBellman(batch_size=16, draws=3)),
    "pis": PISConfig(batch_size=16, width=8),
    "pis without": PISConfig(batch_size=16, width=8, energy_term=False),
    "tb": TrajectoryBalanceConfig(batch_size=16, width=8),
    "logvar": LogVarianceConfig(batch_size=16, width=8),
}  # fmt: skip


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_training_counts_the_states_that_an_energy_sees(kind: type[Counting], name: str) -> None:
    energy = kind()
    mdp = SamplingMDP(energy, MDPConfig(num_steps=3))
    agent = AGENTS[name].build(mdp, seed=0)
    energy.seen = 0  # what is asked before any work starts is not counted
    for _ in range(4):
        agent.update()
    assert agent.counters.energy_evaluations == mdp.energy_evaluations == energy.seen > 0
    energy.seen = 0
    samples = agent.sampler().sample(3000)
    assert samples.energy_evaluations == energy.seen >= 3000


SAMPLERS: dict[str, Callable[[Energy], Sampler]] = {
    "mala": lambda energy: MALASampler(energy, 2_000, chains=10),
    "ula": lambda energy: ULASampler(energy, 2_000, chains=10),
    "ula, given": lambda energy: ULASampler(energy, 2_000, chains=10, step_size=0.1),
    "hmc": lambda energy: HMCSampler(energy, 4_000, chains=10, leapfrog_steps=3),
    "pt": lambda energy: ParallelTempering(energy, 9_000, chains=5, replicas=3),
    "ais": lambda energy: AnnealedSMC(energy, 4, pilot=10),
    "annealed smc": lambda energy: AnnealedSMC(energy, 4, pilot=10, threshold=0.9),
    "chain": lambda energy: ChainSampler(SamplingMDP(energy), lambda x, t: 0 * x),
}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("kind", KINDS)
def test_samplers_count_the_states_that_an_energy_sees(kind: type[Counting], name: str) -> None:
    energy = kind()
    sampler = SAMPLERS[name](energy)
    energy.seen = 0
    assert sampler.sample(30).energy_evaluations == energy.seen > 0


@pytest.mark.parametrize("kind", KINDS)
def test_twisted_smc_counts_the_states_that_an_energy_sees(kind: type[Counting]) -> None:
    energy = kind()
    agent = AGENTS["bellman"].build(SamplingMDP(energy, MDPConfig(num_steps=3)), seed=0)
    assert isinstance(agent.sampler(), ChainSampler)
    energy.seen = 0  # the pilot belongs to the first draw
    sampler = TwistedSMC(agent.mdp, agent.policy, pilot=10)  # type: ignore[attr-defined]
    assert sampler.sample(30).energy_evaluations == energy.seen > 0


@pytest.mark.parametrize("features", [("x", "t"), ("x", "t", "energy"), ("x", "t", "score")])
def test_environments_count_the_states_that_an_energy_sees(features: tuple[str, ...]) -> None:
    energy = WithGradient()
    env = SamplingVectorEnv(energy, num_envs=4, num_steps=3, features=features)
    energy.seen = env.mdp.energy_evaluations = 0
    env.reset(seed=0)
    for _ in range(7):
        env.step(torch.zeros(4, 2).numpy())
    assert env.mdp.energy_evaluations == energy.seen > 0
