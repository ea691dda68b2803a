"""Value gradients on particle systems: refined buffers, posterior-averaged targets, symmetry."""

from pathlib import Path

import pytest
import torch

from vgs_rl import (
    MDPConfig,
    SamplingMDP,
    ScheduleConfig,
    StartConfig,
)
from vgs_rl.agents import (
    ClusterNetwork,
    GradientMatching,
    ValueGradientAgent,
    ValueGradientConfig,
)
from vgs_rl.envs.targets.particles import DW4
from vgs_rl.experiments.config import config_of, parse_run
from vgs_rl.experiments.run import build
from vgs_rl.training.config import BudgetConfig, EvaluationConfig

CONFIGS = Path(__file__).parents[2] / "configs"


def make_agent(seed: int = 0) -> ValueGradientAgent:
    schedule = ScheduleConfig(kind="geometric", first=1.0, last=0.005)
    start = StartConfig(kind="gaussian", scale=2.5)
    config = MDPConfig(chain="ve", num_steps=12, schedule=schedule, start=start)
    objective = GradientMatching(
        batch_size=240,
        refresh_every=40,
        refresh_size=64,
        capacity=512,
        least_ess=0.02,
        refine_steps=10,
        first_refine_steps=300,
        posterior_steps=3,
        start_every=1,
        start_size=480,
    )
    network = ClusterNetwork(near=1.0, reach=8.0, radial=8, width=16, knots=4)
    agent = ValueGradientConfig(
        objective=objective, network=network, prior_std=2.0, lr=8e-3, ema=0.97
    )
    return agent.build(SamplingMDP(DW4(), config), seed=seed)


def elbo(agent: ValueGradientAgent) -> float:
    log_weight = agent.sampler().sample(1000, 7).log_weight
    assert log_weight is not None
    return float(log_weight.mean())


QUIET = {"evaluation": EvaluationConfig(validation_samples=64), "progress_bar": False}


def test_learning_raises_the_elbo_and_leaves_the_centre_of_mass() -> None:
    agent = make_agent()
    agent.learn(BudgetConfig(updates=1), **QUIET)  # type: ignore[arg-type]
    before = elbo(agent)
    agent.learn(BudgetConfig(updates=100), **QUIET)  # type: ignore[arg-type]
    assert elbo(agent) > before + 0.5
    x = agent.sampler().sample(50, 1).x
    torch.testing.assert_close(x.view(50, 4, 2).mean(1), torch.zeros(50, 2), atol=1e-5, rtol=0)
    used = agent.counters.energy_evaluations
    # 512 states and 300 MALA steps at first, and what an update needs on 480 for the mixture; then
    # two refreshes; in every update the energies of its states and three MALA steps.
    at_first = 512 * 301 + 480 * (1 + 3)
    refreshes = 2 * (64 + 512 * 11)
    assert used == at_first + refreshes + 100 * (1 + 3) * 240


def test_states_that_cannot_show_every_step_are_refused() -> None:
    config = ValueGradientConfig(
        objective=GradientMatching(start_size=11), network=ClusterNetwork()
    )
    with pytest.raises(ValueError, match=r"start_size must be at least mdp.num_steps 12 .* got 11"):
        config.build(make_agent().mdp)


def test_resuming_goes_on_bit_for_bit() -> None:
    straight, stopped, resumed = make_agent(), make_agent(), make_agent(seed=5)
    budget = BudgetConfig(updates=30)
    straight.learn(budget, **QUIET)  # type: ignore[arg-type]
    stopped.learn(budget, callback=lambda agent: agent.counters.updates < 22, **QUIET)  # type: ignore[arg-type]
    resumed.load_state_dict(stopped.state_dict())
    resumed.learn(budget, **QUIET)  # type: ignore[arg-type]
    for name, value in straight.average.state_dict().items():
        assert torch.equal(value, resumed.average.state_dict()[name]), name


def test_the_shipped_particle_configurations_build() -> None:
    for name in ("dw4", "lj13", "paper/dw4", "paper/lj13"):
        target, agent = build(config_of(parse_run(["--config", str(CONFIGS / f"{name}.yaml")])))
        assert agent.mdp.energy.symmetry is not None
        assert target.name.lower() == Path(name).name
