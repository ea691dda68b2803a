"""Sweeps: what they search is checked first, they prune, they go on, and the best is a file."""

from pathlib import Path
from typing import Any

import pytest
from commands import call, without_pictures
from tiny import TINY

from vgs_rl.experiments import sweep as sweeps
from vgs_rl.experiments.config import RunConfig, named_config
from vgs_rl.experiments.sweep import Dimension, Sweep, read_space
from vgs_rl.training.config import ConfigError

optuna = pytest.importorskip("optuna")

SPACE = """
agent.lr: {low: 1e-4, high: 1e-2, log: true}
agent.network.width: [8, 16]
agent.warmup: {low: 0, high: 4, step: 2}
"""
SMALL = ("--budget.updates=6", "--evaluation.validate_every=2", "--evaluation.n_samples=50")
SMALL += ("--evaluation.validation_samples=50",)


def tiny_sweep(folder: Path, **settings: Any) -> Sweep:
    for name, text in (("tiny.yaml", TINY), ("space.yaml", SPACE)):
        (folder / name).write_text(text)
    arguments = ["--config", str(folder / "tiny.yaml"), *SMALL]
    space = read_space(folder / "space.yaml")
    return Sweep(arguments=arguments, space=space, folder=folder / "sweep", trials=2, **settings)


def test_a_sweep_ends_goes_on_and_leaves_the_best_configuration(tmp_path: Path) -> None:
    tiny_sweep(tmp_path)
    words = ("tiny.yaml", "--space", "space.yaml", *SMALL, "--progress", "false")
    with without_pictures():
        out, _ = call("sweep", *words, "--trials", 2, folder=tmp_path)
        assert out.count(": validation ELBO") == 2
        out, _ = call("sweep", *words, "--trials", 3, folder=tmp_path)
    assert "trial 2:" in out and "trial 1:" not in out
    folder = tmp_path / "runs" / "sweep" / "space"
    assert len(list((folder / "trials").glob("*/FourGauss/vgs/0/report.json"))) == 3
    best = named_config(str(folder / "best.yaml"))
    assert isinstance(best, RunConfig) and best.budget.updates == 6
    first = (folder / "table.md").read_text().splitlines()[2]
    assert f"{best.agent.lr:.3g}" in first  # type: ignore[attr-defined]


def test_a_trial_that_was_cut_off_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, seen = tiny_sweep(tmp_path), list[Any]()
    train = sweeps.train

    def cut(config: RunConfig, **options: Any) -> Any:
        seen.append((config.folder, options.get("resume")))
        if len(seen) == 1:
            options["callback"] = lambda agent: agent.counters.updates < 3  # as Ctrl-C does
        return train(config, **options)

    monkeypatch.setattr(sweeps, "train", cut)
    with without_pictures():
        with pytest.raises(KeyboardInterrupt):
            sweep.run(progress_bar=False, tell=lambda line: None)
        table = sweep.run(progress_bar=False, tell=lambda line: None)
    assert seen[0] == (seen[1][0], None)
    assert seen[1][1] == seen[0][0]
    assert [row["state"] for row in table] == ["complete"] * 2


def test_a_trial_below_the_median_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = tiny_sweep(tmp_path, startup=1)
    monkeypatch.setattr(optuna.trial.Trial, "should_prune", lambda trial: trial.number == 1)
    with without_pictures():
        table = sweep.run(progress_bar=False, tell=lambda line: None)
    assert [row["state"] for row in table] == ["complete", "pruned"]
    assert len(list((tmp_path / "sweep").glob("trials/*/*/*/*/report.json"))) == 1


def test_another_sweep_needs_another_folder(tmp_path: Path) -> None:
    sweep = tiny_sweep(tmp_path)
    sweep._study()
    other = Sweep(
        arguments=sweep.arguments,
        space={"agent.lr": Dimension(name="agent.lr", choices=(1e-3, 2e-3))},
        folder=sweep.folder,
        trials=2,
    )
    with pytest.raises(ConfigError, match="holds a sweep of other settings or another space"):
        other.run()


REFUSALS = {
    "agent.lr: 3": "agent.lr: must be a list of values, or low and high",
    "agent.lr: {low: 1, high: 2, size: 3}": "agent.lr: must be a list of values, or low and high",
    "agent.lr: {low: 2, high: 1}": "agent.lr: low must be below high, got 2 and 1",
    "agent.lr: {low: x, high: 1}": "agent.lr.low: must be a number, got 'x'",
    "agent.lr: {low: 0, high: 1, log: true}": "agent.lr: log needs low above 0 and no step",
    "agent.rate: [1, 2]": "--space: agent.rate = 1",
    "agent.lr: {low: -1.0, high: 1.0}": "--space: agent.lr = -1.0",
    "{}": "names no setting to search",
}


@pytest.mark.parametrize("text", REFUSALS)
def test_a_space_is_checked_before_any_work(tmp_path: Path, text: str) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "space.yaml").write_text(text)
    words = ("tiny.yaml", "--space", "space.yaml", *SMALL)
    _, error = call("sweep", *words, folder=tmp_path, status=2)
    assert REFUSALS[text] in error
    assert not (tmp_path / "runs").exists()
