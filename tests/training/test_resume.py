"""Run folders over their life: begun, stopped, killed, gone on with, finished, shared."""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import ROOT, load, without_pictures

from vgs_rl.agents import (
    GradientMatching,
    MLPNetwork,
    ValueGradientConfig,
)
from vgs_rl.agents.base import Agent
from vgs_rl.chain import ScheduleConfig
from vgs_rl.energy import Energy
from vgs_rl.evaluation.report import Report
from vgs_rl.experiments import run as runs
from vgs_rl.experiments.config import RunConfig
from vgs_rl.experiments.evaluation import evaluate_agent, evaluate_smc
from vgs_rl.experiments.run import build, load_run, open_run, train
from vgs_rl.files import checkpoint
from vgs_rl.files.checkpoint import load_checkpoint
from vgs_rl.files.lock import FolderInUse, FolderLock
from vgs_rl.mdp import MDPConfig
from vgs_rl.registry import register
from vgs_rl.samplers.base import Sampler, Samples
from vgs_rl.samplers.oracle import oracle_sampler
from vgs_rl.training.config import BudgetConfig, ConfigError, EvaluationConfig
from vgs_rl.training.folder import RunFolder
from vgs_rl.training.identity import digest, identity_of, settings_of
from vgs_rl.training.loop import interruptible
from vgs_rl.training.resume import require_same_run

QUIET: dict[str, Any] = {"progress_bar": False}


class Holes(Energy):
    """A standard normal that is infinite (or minus infinite, or NaN) in one corner."""

    dim = 2
    thread_safe = True

    def __init__(self, value: float = math.inf, above: float = 0.5) -> None:
        super().__init__()
        self.hole, self.above = value, above

    def energy(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x[:, 0] > self.above, self.hole, 0.5 * x.square().sum(-1))


register("test/Holes-v0", energy=Holes)


def tiny(output: Path, **changes: Any) -> RunConfig:
    objective = GradientMatching(
        batch_size=32, refresh_every=1, refresh_size=32, first_size=64, start_size=64
    )
    config = RunConfig(
        env="GMM9",
        mdp=MDPConfig(num_steps=3),
        agent=ValueGradientConfig(objective=objective, network=MLPNetwork(width=8, depth=1)),
        budget=BudgetConfig(updates=6),
        evaluation=EvaluationConfig(
            n_samples=64, validation_samples=32, validate_every=3, log_every=2, figures_every=0
        ),
        device="cpu",
        output=output,
    )
    return replace(config, **changes)


def command_line(config: RunConfig) -> list[str]:
    objective, network = config.agent.objective, config.agent.network  # type: ignore[attr-defined]
    return [
        f"--env={config.env}",
        f"--output={config.output}",
        f"--mdp.num_steps={config.mdp.num_steps}",
        f"--agent.network.width={network.width}",
        f"--agent.network.depth={network.depth}",
        *(
            f"--agent.objective.{name}={getattr(objective, name)}"
            for name in ("batch_size", "refresh_every", "refresh_size", "first_size", "start_size")
        ),
        *(
            f"--evaluation.{name}={getattr(config.evaluation, name)}"
            for name in ("n_samples", "validation_samples", "validate_every", "log_every")
        ),
        "--evaluation.figures_every=0",
        f"--budget.updates={config.budget.updates}",
        "--device=cpu",
        "--progress=false",
    ]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take longer than everything else here."""
    monkeypatch.setattr("vgs_rl.experiments.evaluation.final_figures", lambda *_: {})
    monkeypatch.setattr(sys, "path", list(sys.path))


def command(*arguments: object) -> int:
    status: int = load("commands.train").main([str(each) for each in arguments])
    return status


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run of six updates, which nobody changes."""
    config = tiny(tmp_path_factory.mktemp("original") / "out")
    with without_pictures():
        assert command(*command_line(config)) == 0
    return config.output


@pytest.fixture
def finished(original: Path, tmp_path: Path) -> Path:
    """The folder of a copy of that run, as if it had been made there."""
    output = shutil.copytree(original, tmp_path / "out")
    folder = tiny(output).folder
    file = folder / "config.yaml"
    file.write_text(file.read_text().replace(str(original), str(output)))
    return folder


def records(path: Path) -> list[dict[str, Any]]:
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def report(path: Path) -> Report:
    return Report.load(path / "report.json")


def evaluated(path: Path) -> dict[str, float]:
    """What evaluate.py finds."""
    config, agent = open_run(path)
    again = evaluate_agent(config, agent)
    return {name: metric.value for name, metric in again.metrics.items()}


def values(found: Report) -> dict[str, float]:
    return {name: metric.value for name, metric in found.metrics.items()}


# --- identity ------------------------------------------------------------------------------------


def test_a_digest_depends_on_what_defines_a_run_and_on_nothing_else(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    assert digest(identity_of(config)) == digest(
        identity_of(
            tiny(
                tmp_path / "elsewhere",
                budget=BudgetConfig(seconds=3),
                device="auto",
                evaluation=EvaluationConfig(),
                agent=replace(config.agent, lr=0.1, final_lr=1.0, warmup=7),  # type: ignore[type-var]
            )
        )
    )
    for change in (
        {"env": "GMM25"},
        {"env_args": {"scale": 2.0}},
        {"seed": 1},
        {"mdp": MDPConfig(num_steps=3, temperature=2.0)},
        {"mdp": MDPConfig(num_steps=3, schedule=ScheduleConfig(total_noise=0.8))},
        {"agent": replace(config.agent, ema=0.9)},  # type: ignore[type-var]
        {"agent": replace(config.agent, network=MLPNetwork(width=16, depth=1))},  # type: ignore[type-var]
    ):
        assert digest(identity_of(config)) != digest(identity_of(replace(config, **change)))


def test_settings_are_named_and_numbers_written_differently_are_the_same() -> None:
    one, other = RunConfig(env_args={"a": 2, "b": [1.0]}), RunConfig(env_args={"b": [1], "a": 2.0})
    assert digest(settings_of(one)) == digest(settings_of(other))
    assert settings_of(one)["agent.objective"] == "GradientMatching"
    assert settings_of(one)["agent.lr"] == 2e-3


# --- what a resumed run may change ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--env=GMM25"], "env: the run has GMM9, got GMM25"),
        (["--seed=3"], "seed: the run has 0, got 3"),
        (["--mdp.num_steps=4"], "mdp.num_steps: the run has 3, got 4"),
        (["--mdp.temperature=2"], "mdp.temperature: the run has 1, got 2"),
        (["--mdp.schedule.total_noise=0.7"], "mdp.schedule.total_noise: the run has 0.8, got 0.7"),
        (["--agent.network.width=9"], "agent.network.width: the run has 8, got 9"),
        (["--agent.objective.batch_size=33"], "agent.objective.batch_size: the run has 32, got 33"),
        (["--agent.ema=0.5"], "agent.ema: the run has 0.995, got 0.5"),
        (["--agent=PISConfig"], "agent: the run has ValueGradientConfig, got PISConfig"),
        (["--output=elsewhere"], "output: the run lies in"),
        (["--overwrite=true"], "--overwrite true starts a run, and --resume goes on: give one"),
        (["--agent.lr=0.1"], "agent.lr: no effect on a finished run; give a longer budget"),
        (["--budget.updates=4"], "must be above what the finished run used, updates=6; got upd"),
    ],
)
def test_resume_refuses_by_name_what_defines_the_run_and_writes_nothing(
    change: list[str], message: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    assert command("--resume", finished, *change) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1, error
    assert before == {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "change",
    [
        ["--budget.updates=9"],
        ["--budget.updates=8", "--agent.lr=0.5", "--agent.final_lr=1", "--agent.warmup=0"],
        ["--evaluation.n_samples=80", "--evaluation.seed=5"],
        ["--evaluation.validate_every=2", "--budget.updates=8"],
        ["--device=auto"],
    ],
    ids=" ".join,
)
def test_after_any_accepted_resume_evaluate_repeats_the_report(
    change: list[str], finished: Path
) -> None:
    assert command("--resume", finished, "--progress=false", *change) == 0
    assert evaluated(finished) == pytest.approx(values(report(finished)), nan_ok=True)
    saved = runs.saved_config(finished)
    for option in change:  # and a later plain --resume has them, too
        name, _, value = option.removeprefix("--").partition("=")
        assert f"{settings_of(saved)[name]}" == value
    found = report(finished)
    assert found.details["identity"] == digest(identity_of(saved))
    assert found.details["updates"] == saved.budget.updates
    if "--agent.lr=0.5" in change:
        rates = {r["updates"]: r.get("train/learning_rate") for r in records(finished)[:-1]}
        assert rates[8] == pytest.approx(0.5)


def test_a_longer_run_is_the_same_whether_it_was_resumed_or_not(tmp_path: Path) -> None:
    """With a constant learning rate, which does not depend on the budget."""
    parts, whole = (command_line(tiny(tmp_path / name)) for name in ("parts", "whole"))
    assert command(*parts, "--agent.final_lr=1") == 0
    folders = [tmp_path / name / "GMM9/vgs/0" for name in ("parts", "whole")]
    assert command("--resume", folders[0], "--budget.updates=9", "--progress=false") == 0
    assert command(*whole, "--agent.final_lr=1", "--budget.updates=9") == 0
    assert values(report(folders[0])) == values(report(folders[1]))
    assert records(folders[0]) == records(folders[1])


def test_options_of_a_resumed_run_are_those_of_its_own_agent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [o for o in command_line(tiny(tmp_path)) if not o.startswith("--agent")]
    tb = ["--agent=TrajectoryBalanceConfig", "--agent.width=8", "--agent.batch_size=16"]
    assert command(*options, *tb) == 0
    path = tmp_path / "GMM9/tb/0"
    assert command("--resume", path, "--progress=false", "--agent.batch_size=8") == 2
    assert "agent.batch_size: the run has 16, got 8" in capsys.readouterr().err
    change = ["--agent.log_z_lr=0.7", "--budget.updates=8"]
    assert command("--resume", path, "--progress=false", *change) == 0
    assert settings_of(runs.saved_config(path))["agent.log_z_lr"] == 0.7
    assert evaluated(path) == pytest.approx(values(report(path)), nan_ok=True)


def test_a_checkpoint_of_another_configuration_is_refused_by_name(finished: Path) -> None:
    file = finished / "config.yaml"
    text = file.read_text()
    file.write_text(text[: text.index("agent:")])  # cut short, and still a configuration
    with pytest.raises(ValueError, match="the checkpoint has 8, got"):
        load_run(finished)
    with pytest.raises(ValueError, match=r"best\.pt is not of this configuration: .*width"):
        load_run(finished)


def test_detectors_and_other_configurations_are_compared_alike(tmp_path: Path) -> None:
    was = tiny(tmp_path)
    require_same_run(was, replace(was, budget=BudgetConfig(seconds=1), device="cuda"), tmp_path)
    with pytest.raises(ConfigError, match=r"seed: the run has 0, got 1.*start a new run"):
        require_same_run(was, replace(was, seed=1), tmp_path)


# --- a finished run ------------------------------------------------------------------------------


def test_resuming_a_finished_run_adds_nothing_and_says_how_to_go_on(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    assert command("--resume", finished) == 0
    shown = capsys.readouterr()
    assert "is finished" in shown.err and "--budget.updates 12" in shown.err
    assert "elbo" in shown.out
    assert before == {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", ["report.json", "metrics.jsonl", "samples.pt"])
def test_a_truncated_file_is_made_again_or_left_alone(name: str, finished: Path) -> None:
    expected = values(report(finished))
    file = finished / name
    file.write_bytes(file.read_bytes()[:-20])
    if name == "report.json":
        with pytest.raises(ValueError, match=r"report\.json is damaged or no report"):
            report(finished)
    assert command("--resume", finished, "--progress=false") == 0
    assert values(report(finished)) == expected
    assert command("--resume", finished, "--budget.updates=7", "--progress=false") == 0
    updates = [record["updates"] for record in records(finished)]
    assert updates == sorted(updates) and updates[-1] == 7


def test_a_damaged_configuration_or_checkpoint_is_one_line(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.yaml", "checkpoints/last.pt"):
        file = finished / name
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2] + b": [\n")
        assert command("--resume", finished) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and file.name in error and "Traceback" not in error
        file.write_bytes(whole)


# --- stopped and killed --------------------------------------------------------------------------


class Killed(BaseException):
    """What nothing catches."""


def killed(self: Agent) -> dict[str, torch.Tensor]:
    raise Killed


def test_every_run_can_go_on_from_its_first_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(tmp_path / "out")
    with monkeypatch.context() as patch:  # before the first update
        patch.setattr(Agent, "update", killed)
        with pytest.raises(Killed):
            command(*command_line(config))
    state = load_checkpoint(config.folder / "checkpoints/last.pt")
    assert state["counters"]["updates"] == 0
    assert command(*command_line(config)) == 2  # the plain command says what to do
    assert f"go on with --resume {config.folder}" in capsys.readouterr().err
    (config.folder / "checkpoints/last.pt").unlink()  # and before that checkpoint
    assert command("--resume", config.folder, "--progress=false") == 0
    assert "no checkpoint yet: it starts from the beginning" in capsys.readouterr().err
    first = values(report(config.folder))
    assert [r["updates"] for r in records(config.folder)] == [0, 2, 3, 4, 6, 6]
    assert command(*command_line(replace(config, output=tmp_path / "other"))) == 0
    assert values(report(tmp_path / "other/GMM9/vgs/0")) == first


def test_checkpoints_come_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(tmp_path)
    config.evaluation = replace(config.evaluation, save_seconds=0.0, validate_every=100)
    _, agent = build(config)
    saved = []
    with RunFolder(config.folder, "x: 1\n") as folder:
        monkeypatch.setattr(
            folder, "save", lambda name, state: saved.append(state["counters"]["updates"])
        )
        agent.learn(BudgetConfig(updates=3), evaluation=config.evaluation, folder=folder, **QUIET)
    assert sorted(set(saved)) == [0, 1, 2, 3]


@pytest.fixture
def terminal() -> Iterator[None]:
    """SIGHUP as a terminal has it, also where the tests themselves run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_training_at_a_checkpoint(
    number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, update = tiny(tmp_path / "out"), Agent.update

    def send(self: Agent) -> dict[str, torch.Tensor]:
        if self.counters.updates == 3:
            signal.raise_signal(getattr(signal, number))
        return update(self)

    with monkeypatch.context() as patch:
        patch.setattr(Agent, "update", send)
        assert command(*command_line(config)) == 130
    assert f"--resume {config.folder}" in capsys.readouterr().out
    state = load_checkpoint(config.folder / "checkpoints/last.pt")
    assert state["counters"]["updates"] == 4
    assert command("--resume", config.folder, "--progress=false") == 0
    whole = tiny(tmp_path / "whole")
    assert command(*command_line(whole)) == 0
    assert values(report(config.folder)) == values(report(whole.folder))
    assert records(config.folder) == records(whole.folder)


@pytest.mark.parametrize("moment", ["evaluating", "second signal"])
def test_a_signal_elsewhere_ends_without_a_traceback(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def press(*_: object, **__: object) -> None:
        for _each in range(1 if moment == "evaluating" else 2):
            signal.raise_signal(signal.SIGTERM)

    config = tiny(tmp_path)
    if moment == "evaluating":
        monkeypatch.setattr("vgs_rl.agents.usage.evaluate", press)
    else:
        monkeypatch.setattr(Agent, "update", press)
    assert command(*command_line(config)) == 130
    assert f"stopped; go on with: vgs-rl train --resume {config.folder}" in capsys.readouterr().out
    assert not (config.folder / ".lock").exists()


def test_interruptible_works_outside_the_main_thread_and_restores_handlers() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with interruptible() as pressed:
        assert not pressed()
        signal.raise_signal(signal.SIGTERM)
        assert pressed()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    found = []

    def elsewhere() -> None:
        with interruptible() as flag:
            found.append(flag())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [False]


# --- the folder ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stray", ["checkpoints", ".DS_Store", "checkpoints/.last.pt.ab12cd_9"])
def test_a_folder_without_a_visible_file_is_not_a_run(stray: str, tmp_path: Path) -> None:
    config = tiny(tmp_path)
    path = config.folder / stray
    if stray == "checkpoints":
        path.mkdir(parents=True)
    else:
        path.parent.mkdir(parents=True)
        path.write_text("")
    assert command(*command_line(config)) == 0
    assert (config.folder / ".DS_Store").exists() == (stray == ".DS_Store")
    assert not list(config.folder.rglob(".last.pt.*"))


def test_a_folder_of_something_else_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(tmp_path)
    config.folder.mkdir(parents=True)
    (config.folder / "thesis.txt").write_text("years of work")
    for options in ([], ["--overwrite=true"]):
        assert command(*command_line(config), *options) == 2
        assert "it has no config.yaml): choose another --output" in capsys.readouterr().err
    assert [p.name for p in config.folder.iterdir()] == ["thesis.txt"]


def test_overwriting_leaves_nothing_of_the_earlier_run(finished: Path) -> None:
    (finished / "old.txt").write_text("")
    config = tiny(finished.parents[2], budget=BudgetConfig(updates=2))
    assert command(*command_line(config), "--overwrite=true") == 0
    assert not (finished / "old.txt").exists()
    assert report(finished).details["updates"] == 2


def test_a_folder_in_use_is_refused_and_left_alone(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    config = tiny(finished.parents[2])
    with FolderLock(finished):
        for options in (
            ["--resume", str(finished), "--budget.updates=9"],
            [*command_line(config), "--overwrite=true"],
        ):
            assert command(*options) == 2
            error = capsys.readouterr().err
            assert f"in use by process {os.getpid()}" in error and error.count("\n") == 1
    assert before == {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    with FolderLock(finished):  # and it is free again
        pass


def test_a_lock_ends_with_its_process_and_with_nothing_else(tmp_path: Path) -> None:
    code = "import sys, pathlib; from vgs_rl.files.lock import FolderLock; lock = FolderLock("
    code += "pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(FolderInUse, match=f"process {holder.pid} on "):
        FolderLock(tmp_path)
    holder.kill()
    holder.communicate()
    assert (tmp_path / ".lock").exists()  # a stale file does not lock
    FolderLock(tmp_path).release()
    assert not (tmp_path / ".lock").exists()


def test_a_full_disk_is_one_line_and_the_checkpoint_stays(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "checkpoints/last.pt").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    assert command("--resume", finished, "--budget.updates=9", "--progress=false") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and error.endswith("No space left on device")
    assert (finished / "checkpoints/last.pt").read_bytes() == before
    assert not list(finished.rglob(".*"))


def test_a_folder_deleted_in_use_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, update = tiny(tmp_path), Agent.update

    def lose(self: Agent) -> dict[str, torch.Tensor]:
        shutil.rmtree(config.folder, ignore_errors=True)
        return update(self)

    monkeypatch.setattr(Agent, "update", lose)
    assert command(*command_line(config)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "is gone" in error and error.count("\n") == 1


# --- what validation chooses ---------------------------------------------------------------------


def test_an_energy_infinite_here_and_there_does_not_end_the_choice(tmp_path: Path) -> None:
    config = tiny(tmp_path, env="test/Holes-v0")
    train(config, **QUIET)
    assert (config.folder / "checkpoints/best.pt").is_file()
    validated = [record for record in records(config.folder) if "eval/elbo" in record]
    assert all(math.isfinite(record["eval/elbo"]) for record in validated)
    assert any(record.get("eval/dead_paths", 0) > 0 for record in validated)
    state = load_checkpoint(config.folder / "checkpoints/best.pt")
    best = max(record["eval/elbo"] for record in validated if record["updates"] > 0)
    assert state["best_elbo"] == pytest.approx(best)


def test_where_no_validation_has_a_weight_the_last_agent_is_taken_and_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(tmp_path)
    monkeypatch.setattr("vgs_rl.agents.base.live_elbo", lambda w: torch.tensor(-math.inf))
    assert command(*command_line(config)) == 0
    assert "the last agent is evaluated" in capsys.readouterr().err
    assert not (config.folder / "checkpoints/best.pt").exists()
    assert report(config.folder).details["checkpoint"] == "last"
    assert evaluated(config.folder) == pytest.approx(values(report(config.folder)), nan_ok=True)
    assert "has no checkpoint best: last is taken" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="no checkpoint best yet"):
        load_run(config.folder, "best")


def test_an_energy_of_minus_infinity_is_an_error_that_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Minus infinity would be best for ever."""

    def drawn(self: Sampler, n: int, seed: int) -> Samples:
        log_weight = torch.zeros(n)
        log_weight[:3] = math.inf
        return Samples(x=torch.zeros(n, 2), log_weight=log_weight, energy_evaluations=n)

    monkeypatch.setattr(Sampler, "sample", drawn)
    config = tiny(tmp_path)
    assert command(*command_line(config)) == 2
    error = capsys.readouterr().err
    assert "log_weight must not be +inf, got 3 of 32 at update 0: the energy is -inf" in error
    assert not (config.folder / "checkpoints/best.pt").exists()


# --- counters and curves -------------------------------------------------------------------------


def test_no_evaluation_moves_a_training_counter(tmp_path: Path) -> None:
    often, never = tiny(tmp_path / "a"), tiny(tmp_path / "b")
    often.evaluation = replace(often.evaluation, validate_every=1)
    never.evaluation = replace(never.evaluation, validate_every=1000)
    reports = [train(config, **QUIET) for config in (often, never)]
    assert reports[0] is not None and reports[1] is not None
    assert reports[0].energy_evaluations == reports[1].energy_evaluations > 0
    assert reports[0].env_steps == reports[1].env_steps > 0
    config, agent = often, build(often)[1]
    agent.update()
    used = agent.counters.energy_evaluations, agent.counters.env_steps
    evaluate_agent(config, agent)
    evaluate_agent(config, agent, sampler=oracle_sampler(agent.mdp, "posterior"))
    evaluate_smc(config, agent)
    agent.sampler().sample(100, 0)
    assert (agent.counters.energy_evaluations, agent.counters.env_steps) == used
    before = agent.mdp.energy_evaluations
    agent.update()
    assert agent.counters.energy_evaluations - used[0] == agent.mdp.energy_evaluations - before


def test_curves_begin_at_zero_have_one_point_a_step_and_appear_while_training(
    finished: Path,
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):
        events = EventAccumulator(str(finished))
        events.Reload()
        scalars = events.Tags()["scalars"]
        for tag in scalars:
            steps = [point.step for point in events.Scalars(tag)]
            if tag.startswith(("eval/", "report/")):
                assert len(steps) == len(set(steps)), tag
            if tag.startswith("eval"):
                assert steps[0] == 0 or "milliseconds" in tag, tag
        assert {"eval/elbo", "eval_by_energies/elbo", "eval_by_milliseconds/elbo"} < set(scalars)
        assert {"report/elbo", "report/tvd_energy"} < set(scalars)
        counts = [
            len(events.Scalars(f"eval{by}/elbo")) for by in ("", "_by_energies", "_by_milliseconds")
        ]
        assert len(set(counts)) == 1
        validated = [record for record in records(finished) if "eval/elbo" in record]
        assert counts[0] == len(validated)
        # Again after a resume, which purges by steps.
        assert command("--resume", finished, "--budget.updates=9", "--progress=false") == 0


def test_hyper_parameters_are_one_entry_a_run_and_no_experiment(finished: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = ["--budget.updates=9", "--agent.lr=0.25", "--progress=false"]
    assert command("--resume", finished, *options) == 0
    events = EventAccumulator(str(finished))
    events.Reload()
    tags = {tag for tag in events.summary_metadata if tag.startswith("_hparams_")}
    assert tags == {"_hparams_/session_start_info", "_hparams_/session_end_info"}
    assert not list(finished.parents[2].glob("*tfevents*"))
    from tensorboard.plugins.hparams import metadata

    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    settings = metadata.parse_session_start_info_plugin_data(content).hparams
    assert settings["agent.lr"].number_value == 0.25 and settings["env"].string_value == "GMM9"
