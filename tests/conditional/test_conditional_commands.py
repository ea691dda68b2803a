"""The commands with a range of temperatures: train, evaluate, resume."""

import json
from pathlib import Path

import pytest
import torch

from vgs_rl import VGS, MDPConfig
from vgs_rl.conditional import JointEnergy
from vgs_rl.envs import ManyWell
from vgs_rl.evaluation.conditional.references import MCMCReferences
from vgs_rl.experiments.commands import evaluate, train
from vgs_rl.experiments.run import load_run
from vgs_rl.training.config import EvaluationConfig

QUICK = ["--mdp.num_steps", "4", "--budget.updates", "4", "--evaluation.n_samples", "200"]
QUICK += ["--evaluation.validation_samples", "100", "--device", "cpu", "--progress", "false"]
SIZES = ["batch_size", "refresh_size", "first_size", "start_size"]
QUICK += [each for size in SIZES for each in (f"--agent.objective.{size}", "128")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs")
    options = ["--mdp.temperature", "[0.5, 2.0]", "--output", str(output), *QUICK]
    assert train.main(["gmm9", *options]) == 0
    return output / "GMM9" / "vgs" / "0"


def test_a_run_of_a_range_of_temperatures_is_evaluated_at_one(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert json.loads((run / "report.json").read_text())["details"]["condition"] == {
        "temperature": 1.0
    }
    assert load_run(run).mdp.config.temperature == (0.5, 2.0)
    file = tmp_path / "report.json"
    options = ["--temperature", "0.7", "--curve", "3", "--n", "100", "--json", str(file)]
    assert evaluate.main([str(run), *options]) == 0
    assert "all bounds hold at once" in capsys.readouterr().out
    (report,) = json.loads(file.read_text())
    assert report["target"] == "GMM9, temperature 0.7"
    rows = json.loads((run / "log_z.json").read_text())
    assert [row["temperature"] for row in rows] == pytest.approx([0.5, 1.0, 2.0])
    curve = load_run(run).log_z_curve(3, n=100, seed=EvaluationConfig().seed)
    assert [row["log_z"] for row in rows] == curve.log_z  # of as many samples as are asked for
    assert (run / "figures" / "log_z.png").is_file()


def test_states_of_parallel_tempering_bound_log_z_from_above() -> None:
    """Where there are no samples of the target, and those that there are stay."""
    agent = VGS(ManyWell(2), mdp=MDPConfig(num_steps=2, temperature=(0.8, 1.2)), device="cpu")
    energy = agent.energy
    assert isinstance(energy, JointEnergy)
    states = MCMCReferences(energy, 64, seed=0)
    x = states({"temperature": 0.8}, 50)
    assert x.shape == (50, 2) and torch.equal(x, states({"temperature": 0.8}, 50))
    assert len(states({"temperature": 0.8}, 1_000)) == 64
    with pytest.raises(ValueError, match="references must be"):
        MCMCReferences(energy, 1, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperature", "3"], "temperature must be in [0.5, 2], got 3"),
        (["--condition", "kappa=1"], "condition must name temperature, got kappa"),
        (["--condition", "hot"], "--condition must be NAME=VALUE, got 'hot'"),
        (["--references", "9"], "--references are for --curve, which is not asked for"),
        (["--smc", "true"], "--smc is for one energy, got one with parameters"),
        (["--budget", "true"], "--budget is for one energy, got one with parameters"),
    ],
)
def test_a_temperature_that_cannot_be_is_one_line(
    run: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([str(run), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_range_that_is_none_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--mdp.temperature", "[2.0, 0.5]", "--output", str(tmp_path)]
    assert train.main(["gmm9", *options]) == 2
    assert "must be a range of two ascending numbers above 0" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
