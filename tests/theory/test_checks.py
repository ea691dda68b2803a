"""Counts, seeds and paths: numbers of any library are taken, everything else is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vgs_rl import (
    MDPConfig,
    Samples,
    SamplingMDP,
    ScheduleConfig,
    StartConfig,
    load_sampler,
)
from vgs_rl.agents import (
    AnnealedSMC,
    HMCSampler,
    MALASampler,
    ParallelTempering,
    RefinedSampler,
    ULASampler,
    ValueGradientConfig,
)
from vgs_rl.agents.ebm.classical import OutlierConfig
from vgs_rl.checks import count_of, path_of, seed_of, whole
from vgs_rl.envs import GMM9, check_energy
from vgs_rl.evaluation.evaluate import evaluate
from vgs_rl.evaluation.report import Report
from vgs_rl.experiments.config import RunConfig
from vgs_rl.experiments.run import load_run
from vgs_rl.samplers.twisted import TwistedSMC
from vgs_rl.training.config import BudgetConfig, EvaluationConfig

MDP = SamplingMDP(GMM9(), MDPConfig(num_steps=3))
AGENT = ValueGradientConfig().build(MDP)
ENERGY = MDP.energy
SAMPLER = AGENT.sampler()


@pytest.mark.parametrize("value", [7, 7.0, np.int64(7), np.int32(7), np.float32(7), np.uint8(7)])
def test_a_whole_number_of_any_library_is_an_int(value: Any) -> None:
    assert whole("n", value) == 7 and type(whole("n", value)) is int


@pytest.mark.parametrize("value", [True, 7.5, "7", None, np.True_, float("nan"), float("inf"), [7]])
def test_what_is_no_whole_number_is_refused_by_name_and_value(value: Any) -> None:
    with pytest.raises(ValueError, match="^n must be a whole number, got "):
        whole("n", value)


def test_a_count_a_seed_and_a_path_say_what_they_must_be() -> None:
    with pytest.raises(ValueError, match="^chains must be at least 1, got 0$"):
        count_of("chains", 0)
    with pytest.raises(ValueError, match="^seed must be at least 0, got -1$"):
        seed_of(-1)
    with pytest.raises(ValueError, match=r"^seed must be below 2\*\*63, got 9223372036854775808$"):
        seed_of(2**63)
    assert seed_of(2**63 - 1) == 2**63 - 1 and path_of("a.pt") == Path("a.pt")
    for value in (3, "", None):
        with pytest.raises(ValueError, match="^path must be a path, got "):
            path_of(value)


REFUSED: list[tuple[str, Callable[[], Any]]] = [
    ("n must be at least 1, got 0", lambda: SAMPLER.sample(0)),
    ("n must be at least 1, got -5", lambda: SAMPLER.sample(-5)),
    ("n must be a whole number, got 2.5", lambda: SAMPLER.sample(2.5)),  # type: ignore[arg-type]
    ("n must be a whole number, got True", lambda: SAMPLER.sample(True)),
    ("seed must be a whole number, got True", lambda: SAMPLER.sample(3, True)),
    ("seed must be at least 0, got -1", lambda: SAMPLER.sample(3, -1)),
    ("oversample must be at least 1, got 0", lambda: SAMPLER.sample(3, oversample=0)),
    ("generator must be a torch.Generator or a seed, got None", lambda: SAMPLER.sample(3, None)),  # type: ignore[arg-type]
    ("n must be at least 2, got 1", lambda: evaluate(SAMPLER, ENERGY, 1)),
    ("batch_size must be at least 1, got 0", lambda: evaluate(SAMPLER, ENERGY, 9, batch_size=0)),
    ("batches must be at least 1, got 0", lambda: evaluate(SAMPLER, ENERGY, 9, batches=0)),
    ("seed must be at least 0, got -1", lambda: evaluate(SAMPLER, ENERGY, 9, seed=-1)),
    ("seed must be at least 0, got -1", lambda: ValueGradientConfig().build(MDP, seed=-1)),
    ("seed must be a whole number, got 1.5", lambda: MDP.generator(1.5)),  # type: ignore[arg-type]
    ("seed must be at least 0, got -2", lambda: check_energy(GMM9(), seed=-2)),
    ("chains must be at least 1, got 0", lambda: MALASampler(ENERGY, 99, chains=0)),
    ("chains must be a whole number, got 1.5", lambda: ULASampler(ENERGY, 99, chains=1.5)),  # type: ignore[arg-type]
    ("energy_evaluations must be a whole number", lambda: MALASampler(ENERGY, "99")),  # type: ignore[arg-type]
    ("replicas must be at least 1", lambda: ParallelTempering(ENERGY, 99, replicas=0)),
    ("leapfrog_steps must be at least 1", lambda: HMCSampler(ENERGY, 99, leapfrog_steps=0)),
    ("steps must be at least 1, got 0", lambda: AnnealedSMC(ENERGY, 0)),
    ("steps must be at least 1, got 0", lambda: RefinedSampler(SAMPLER, ENERGY, 0)),
    ("pilot must be 0 or at least 2, got 1", lambda: TwistedSMC(MDP, AGENT.policy, pilot=1)),
    ("mdp.num_steps must be a whole number, got 2.5", lambda: MDPConfig(num_steps=2.5)),  # type: ignore[arg-type]
    ("mdp.num_steps must be a whole number, got '3'", lambda: MDPConfig(num_steps="3")),  # type: ignore[arg-type]
    ("mdp.chain must be one of vp, ve, got 'vq'", lambda: MDPConfig(chain="vq")),  # type: ignore[arg-type]
    ("schedule.total_noise must be a number", lambda: ScheduleConfig(total_noise="x")),  # type: ignore[arg-type]
    ("start.components must be a whole", lambda: StartConfig(components=1.5)),  # type: ignore[arg-type]
    ("agent.warmup must be a whole", lambda: ValueGradientConfig(warmup=1.5)),  # type: ignore[arg-type]
    ("agent.lr must be a number, got 'x'", lambda: ValueGradientConfig(lr="x")),  # type: ignore[arg-type]
    ("budget.updates must be a whole number, got 2.5", lambda: BudgetConfig(updates=2.5)),  # type: ignore[arg-type]
    ("evaluation.n_samples must be at least 1", lambda: EvaluationConfig(n_samples=0)),
    ("mdp must be a MDPConfig, got 3", lambda: RunConfig(mdp=3)),  # type: ignore[arg-type]
    ("budget must be a BudgetConfig, got null", lambda: RunConfig(budget=None)),  # type: ignore[arg-type]
    ("seed must be a whole number, got True", lambda: RunConfig(seed=True)),
    ("outliers.trees must be a whole number, got 'x'", lambda: OutlierConfig(trees="x")),  # type: ignore[arg-type]
    ("path must be a path, got 3", lambda: SAMPLER.sample(2).save(3)),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("message", "call"), REFUSED, ids=[f"{m}" for m, _ in REFUSED])
def test_python_calls_are_refused_by_name_value_and_what_was_expected(
    message: str, call: Callable[[], Any]
) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_resampling_without_weights_is_refused_before_anything_is_drawn() -> None:
    class Untouched(MALASampler):
        def _draw(self, n: int, generator: torch.Generator) -> Samples:
            raise AssertionError("it drew")

    sampler = Untouched(ENERGY, 99, chains=3)
    for call in (
        lambda: sampler.sample(5, resample=True),
        lambda: evaluate(sampler, ENERGY, 5, resample=True),
    ):
        with pytest.raises(ValueError, match="resample needs log-weights, and Untouched has none"):
            call()


def test_seeds_and_counts_of_numpy_draw_the_same_samples() -> None:
    one, other = SAMPLER.sample(5, 3).x, SAMPLER.sample(np.int64(5), np.int64(3)).x  # type: ignore[arg-type]
    assert torch.equal(one, other)
    agents = [ValueGradientConfig().build(MDP, seed=seed) for seed in (7, np.int64(7))]  # type: ignore[arg-type]
    assert torch.equal(*(agent.sampler().sample(3).x for agent in agents))


def test_configurations_made_in_python_hold_plain_numbers() -> None:
    config = RunConfig(
        mdp=MDPConfig(num_steps=3.0),  # type: ignore[arg-type]
        agent=ValueGradientConfig(warmup=np.int32(3), lr=np.float32(0.5)),  # type: ignore[arg-type]
        budget=BudgetConfig(updates=4e1),  # type: ignore[arg-type]
        seed=np.int64(3),  # type: ignore[arg-type]
        output="runs",  # type: ignore[arg-type]
    )
    agent: Any = config.agent
    assert (config.mdp.num_steps, agent.warmup, config.budget.updates, config.seed) == (3, 3, 40, 3)
    types = [type(v) for v in (config.mdp.num_steps, agent.warmup, config.budget.updates)]
    assert types == [int] * 3 and type(agent.lr) is float and config.output == Path("runs")


def test_paths_may_be_texts(tmp_path: Path) -> None:
    samples = SAMPLER.sample(3)
    samples.save(str(tmp_path / "s.pt"))
    assert torch.equal(Samples.load(str(tmp_path / "s.pt")).x, samples.x)
    report = evaluate(SAMPLER, ENERGY, 20)
    report.save(str(tmp_path / "r.json"))
    assert Report.load(str(tmp_path / "r.json")) == report
    with pytest.raises(FileNotFoundError, match="nowhere is not a run folder"):
        load_run(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="no trained sampler"):
        load_sampler(str(tmp_path / "nowhere.pt"))
