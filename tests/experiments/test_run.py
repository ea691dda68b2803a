import json
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

import vgs_rl
from vgs_rl import Energy, MDPConfig
from vgs_rl.agents import (
    GradientMatching,
    MLPNetwork,
    ValueGradientAgent,
    ValueGradientConfig,
)
from vgs_rl.experiments.config import RunConfig
from vgs_rl.experiments.run import train
from vgs_rl.files.checkpoint import load_checkpoint, save_checkpoint, write_atomically, write_text
from vgs_rl.training.config import BudgetConfig, EvaluationConfig, resolve_device
from vgs_rl.training.folder import RunFolder

COUNTERS = {"env_steps": 10, "energy_evaluations": 5, "seconds": 0.1}


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    state = {"a": torch.arange(3.0), "b": {"c": [1, 2.5, "x", None, True]}}
    save_checkpoint(tmp_path / "c.pt", state)
    loaded = load_checkpoint(tmp_path / "c.pt")
    assert torch.equal(loaded["a"], state["a"]) and loaded["b"] == state["b"]  # type: ignore[arg-type]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def fail(file: object) -> None:
        file.write(b"half of the n")  # type: ignore[attr-defined]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_another_version_and_a_missing_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    with pytest.raises(FileNotFoundError, match=r"c\.pt does not exist"):
        load_checkpoint(path)
    torch.save({"format": "vgs_rl checkpoint", "version": 99, "state": {}}, path)
    with pytest.raises(ValueError, match="has version 99"):
        load_checkpoint(path)


def test_records_are_strict_json_with_every_counter(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a/b", "env: GMM9\n")
    folder.record({"train/loss": float("nan"), "eval/elbo": -1.0}, updates=3, **COUNTERS)
    folder.close()
    (line,) = (tmp_path / "a/b/metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {"updates": 3, **COUNTERS, "train/loss": None, "eval/elbo": -1.0}
    assert (tmp_path / "a/b/config.yaml").read_text() == "env: GMM9\n"


def test_resuming_drops_what_was_recorded_after_the_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", "x: 1\n")
    for updates in (1, 2, 3):
        folder.record({"train/loss": 0.5}, updates=updates, **COUNTERS)
    folder.close()
    with open(tmp_path / "run/metrics.jsonl", "a") as file:
        file.write('{"updates": 4, "env_st')  # a crash cut this line short
    with pytest.raises(FileExistsError, match="is not empty"):
        RunFolder(tmp_path / "run", "x: 1\n")
    folder = RunFolder(tmp_path / "run", "x: 1\n", resume_at=2)
    folder.close()
    assert [record["updates"] for record in folder.records] == [1, 2]
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["updates"] for line in lines] == [1, 2]


def test_a_folder_that_cannot_be_made_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written to"):
        RunFolder(tmp_path / "file/run", "x: 1\n")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_histograms_take_values_of_every_size(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = RunFolder(tmp_path / "run", "x: 1\n")
    values = {"large": [1e30, 3e38], "mixed": [-1e300, 1.0, torch.inf], "none": [torch.nan]}
    for name, each in values.items():
        folder.histogram(name, torch.tensor(each, dtype=torch.float64), 0)
    folder.close()
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert set(events.Tags()["histograms"]) == {"large", "mixed"}
    (large,) = events.Histograms("large")
    assert large.histogram_value.num == 2 and large.histogram_value.max == 9e19


def test_a_picture_that_fails_leaves_the_others_and_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> Figure:
        raise RuntimeError("no ink")

    folder = RunFolder(tmp_path / "run", "x: 1\n")
    folder.draw(lambda: {"bad": fail, "good": Figure}, 0, keep=True)
    folder.draw(lambda: {"all": fail()}, 0)  # type: ignore[dict-item]
    folder.record({"eval/elbo": 1.0}, updates=1, **COUNTERS)
    folder.close()
    assert [file.name for file in (tmp_path / "run/figures").iterdir()] == ["good.png"]
    assert [record.getMessage() for record in caplog.records] == [
        "warning: no picture bad: RuntimeError: no ink",
        "warning: no picture of this run: RuntimeError: no ink",
    ]


def test_budget_and_evaluation_refuse_impossible_values_by_name() -> None:
    with pytest.raises(ValueError, match="budget needs at least one of"):
        BudgetConfig()
    with pytest.raises(ValueError, match=r"budget\.seconds must be a positive number, got -1"):
        BudgetConfig(seconds=-1)
    with pytest.raises(ValueError, match=r"evaluation\.log_every must be at least 1, got 0"):
        EvaluationConfig(log_every=0)


def test_device_names_are_resolved_or_refused() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve_device("auto").type == expected
    assert resolve_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="device 'gpu' is not available here"):
        resolve_device("gpu")


class Steep(Energy):
    """One dimension; most states have energies that no histogram of TensorBoard can hold."""

    dim = 1

    def energy(self, x: Tensor) -> Tensor:
        return torch.where(x[:, 0] < 2.0, 0.5 * x[:, 0] ** 2, 1e30)


def test_a_run_in_one_dimension_and_one_step_has_its_pictures_and_loses_nothing_to_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> Figure:
        raise FloatingPointError("the summary is too wide")

    monkeypatch.setattr("vgs_rl.experiments.evaluation.plot_summary", fail)
    vgs_rl.register("tests/Steep-v0", energy=Steep)
    objective = GradientMatching(batch_size=16, refresh_size=32, first_size=32, start_size=32)
    network = MLPNetwork(width=8, depth=1)
    config = RunConfig(
        env="tests/Steep-v0",
        mdp=MDPConfig(num_steps=1),
        agent=ValueGradientConfig(network=network, objective=objective),
        budget=BudgetConfig(updates=2),
        evaluation=EvaluationConfig(
            n_samples=64, validation_samples=64, validate_every=1, figures_every=1
        ),
        output=tmp_path,
    )
    assert train(config, progress_bar=False) is not None
    folder = tmp_path / "Steep/vgs/0"
    assert (folder / "report.json").is_file() and (folder / "samples.pt").is_file()
    drawn = {file.stem for file in (folder / "figures").glob("*.png")}
    assert drawn == {"chain", "value", "learning_curves"}
    assert [record.getMessage() for record in caplog.records] == [
        "warning: no picture summary: FloatingPointError: the summary is too wide"
    ]


@pytest.mark.parametrize(
    ("budget", "why"),
    [
        (BudgetConfig(seconds=1e-9), "the budget ended before the first update, so the untrained"),
        (BudgetConfig(updates=1), "no validation had a weight above 0, so the last"),
    ],
)
def test_a_run_without_a_best_agent_says_why(
    budget: BudgetConfig,
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ValueGradientAgent, "_merit", lambda *_: -float("inf"))
    monkeypatch.setattr("vgs_rl.experiments.run.finish", lambda *_, **__: None)  # no pictures
    objective = GradientMatching(batch_size=16, refresh_size=32, first_size=32, start_size=32)
    config = RunConfig(
        env="FourGauss",
        mdp=MDPConfig(num_steps=2),
        agent=ValueGradientConfig(network=MLPNetwork(width=8, depth=1), objective=objective),
        budget=budget,
        evaluation=EvaluationConfig(n_samples=64, validation_samples=64),
        output=tmp_path,
    )
    train(config, progress_bar=False)
    note = f"note: {tmp_path / 'FourGauss/vgs/0'}: {why} agent is evaluated"
    assert note in capsys.readouterr().err
