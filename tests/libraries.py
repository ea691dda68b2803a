"""What the tests of the RL libraries' agents share: laws that hold for each of them."""

# ruff: noqa: NPY002  the libraries draw from NumPy's global generator

import copy
import math
import random
import re
from pathlib import Path

import numpy as np
import torch

from vgs_rl import (
    MDPConfig,
    SamplingMDP,
    ScheduleConfig,
    StartConfig,
)
from vgs_rl.envs import Gaussian, GaussianMixture
from vgs_rl.training.config import BudgetConfig, EvaluationConfig
from vgs_rl.training.folder import RunFolder

QUIET = {"progress_bar": False}
ROOT = Path(__file__).parent.parent


def small_mdp(energy=None, num_steps=4, scale=1.6):
    schedule = ScheduleConfig(kind="auto", total_noise=0.8)
    config = MDPConfig(num_steps=num_steps, schedule=schedule, start=StartConfig(scale=scale))
    return SamplingMDP(energy or Gaussian((0.5, -0.3), (0.8, 1.1)), config)


def small_config(kind, algorithm="PPO", **options):
    options = {"num_envs": 16, "batch_size": 32, "epochs": 2, "hidden": (16, 16)} | options
    options = {"buffer_size": 2000, "gradient_steps": 2} | options
    return kind(algorithm=algorithm, **options)


def small_agent(kind, algorithm="PPO", mdp=None, seed=3, **options):
    return small_config(kind, algorithm, **options).build(mdp or small_mdp(), seed=seed)


def check_weights_are_unbiased(kind, algorithm, policy_noise):
    """E[w] = Z untrained and slightly trained, on targets with known Z."""
    two_modes = GaussianMixture(torch.tensor([[1.2, 0.0], [-1.2, 0.5]]), torch.full((2, 2), 0.5))
    for energy in (Gaussian((0.5, -0.3), (0.8, 1.1)), two_modes):
        mdp = small_mdp(energy)
        agent = small_agent(kind, algorithm, mdp, policy_noise=policy_noise, lr=1e-3)
        for updates in (0, 5):
            if updates:
                agent.learn(BudgetConfig(updates=updates), **QUIET)
            log_weight = agent.sampler().sample(20_000, 5).log_weight.double()
            weights = (log_weight - (energy.log_z or 0.0)).exp()
            error = float(weights.std()) / math.sqrt(len(weights))
            assert error < 0.1
            assert abs(float(weights.mean()) - 1) < 4.5 * error, (type(energy).__name__, updates)


def flatten(state, prefix=""):
    if isinstance(state, dict):
        return {k: v for key, s in state.items() for k, v in flatten(s, f"{prefix}.{key}").items()}
    if isinstance(state, (list, tuple)):
        return {k: v for i, s in enumerate(state) for k, v in flatten(s, f"{prefix}.{i}").items()}
    return {prefix: state}


def expect_equal_states(one, other):
    one, other = flatten(one), flatten(other)
    assert one.keys() == other.keys()
    for key, value in one.items():
        if key == ".counters.seconds":
            continue
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other[key]), key
        else:
            assert value == other[key] or (value != value and other[key] != other[key]), key


def check_resume_is_bit_identical(kind, algorithm, tmp_path, stop=5, updates=11, **options):
    """A run stopped, saved, loaded into a new agent and gone on with equals one that never was."""
    evaluation = EvaluationConfig(
        validation_samples=50, validate_every=4, log_every=1, figures_every=0
    )
    budget = BudgetConfig(updates=updates)

    def make(name, resume_at=None):
        agent = small_agent(kind, algorithm, **options)
        return agent, RunFolder(tmp_path / name, "x: 1\n", resume_at=resume_at)

    whole, folder = make("whole")
    assert whole.learn(budget, evaluation=evaluation, folder=folder, **QUIET).finished
    expected = [{k: v for k, v in r.items() if k != "seconds"} for r in folder.records]
    folder.close()
    first, folder = make("parts")
    stopper = lambda agent: agent.counters.updates < stop  # noqa: E731
    assert not first.learn(
        budget, evaluation=evaluation, folder=folder, callback=stopper, **QUIET
    ).finished
    folder.close()
    random.seed(9)
    np.random.seed(9)
    torch.manual_seed(9)  # the user's random states play no part
    second, folder = make("parts", resume_at=stop)
    second.load_state_dict(folder.load("last"))  # read with weights_only=True
    assert second.learn(budget, evaluation=evaluation, folder=folder, **QUIET).finished
    records = [{k: v for k, v in r.items() if k != "seconds"} for r in folder.records]
    folder.close()
    expect_equal_states(whole.state_dict(), second.state_dict())
    assert records == expected


def check_the_users_random_states_stay_untouched(kind, algorithm):
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    first = small_agent(kind, algorithm)
    first.learn(BudgetConfig(updates=3), **QUIET)
    after = random.getstate(), np.random.get_state()[1], torch.get_rng_state()
    assert before[0] == after[0] and (before[1] == after[1]).all()
    assert torch.equal(before[2], after[2])
    torch.manual_seed(7)
    second = small_agent(kind, algorithm)
    second.learn(BudgetConfig(updates=3), **QUIET)
    expect_equal_states(copy.deepcopy(first.state_dict()), second.state_dict())


def check_counters(kind, algorithm, steps_per_update, features=("x", "t"), per_state=0):
    """Environment steps and energy evaluations are exact."""
    agent = small_agent(kind, algorithm, features=features)
    T, n = agent.mdp.num_steps, 16
    agent.learn(BudgetConfig(updates=8), **QUIET)
    steps = 8 * steps_per_update
    assert agent.counters.env_steps == steps * n
    # An evaluation per ended episode, and in observations (one more where a row is reset); the
    # very first observations were made with the agent, before training.
    observed = steps + steps // T if per_state else 0
    assert agent.counters.energy_evaluations == n * (steps // T + observed * per_state)


def run_guides_snippet(text):
    """Runs the guide's Python block that has this text in it, with smaller numbers."""
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/guides/agent.md").read_text(), re.DOTALL
    )
    found = [block for block in blocks if text in block]
    assert len(found) == 1, f"the guide must have one Python block with {text}"
    (code,) = found
    for name, number in (("100_000", "5_120"), ("20_000", "500")):
        code = code.replace(name, number)
    exec(compile(code, "agent.md", "exec"), {})
