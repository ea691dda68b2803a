"""Run folders under faults: long work that is interrupted, full disks, stale locks, early kills."""

from __future__ import annotations

import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_resume import Killed, command, command_line, no_pictures, original, report, tiny, values

from vgs_rl.agents.base import Agent
from vgs_rl.agents.distilled.agent import DistilledConfig
from vgs_rl.evaluation.report import Metric, Report
from vgs_rl.experiments import jobs
from vgs_rl.experiments.run import train
from vgs_rl.files.checkpoint import load_checkpoint
from vgs_rl.files.lock import FolderLock
from vgs_rl.samplers.base import Sampler
from vgs_rl.training import loop
from vgs_rl.training.config import BudgetConfig, ConfigError
from vgs_rl.training.folder import RunFolder, read_records
from vgs_rl.training.states import is_kept

__all__ = ["no_pictures", "original"]


# --- signals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("update", signal.SIGTERM),
        ("validation", signal.SIGINT),
        ("pictures", signal.SIGTERM),
        ("samples", signal.SIGINT),
    ],
)
def test_long_work_is_cut_off_and_the_last_checkpoint_goes_on(
    moment: str,
    number: signal.Signals,
    original: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(loop, "PATIENCE", 0.1)
    config = tiny(tmp_path / "out")
    config.evaluation = replace(config.evaluation, figures_every=1)
    owner, name = {
        "update": (Agent, "update"),
        "validation": (Agent, "_validate"),
        "pictures": (RunFolder, "draw"),
        "samples": (Sampler, "sample"),
    }[moment]
    work, sent = getattr(owner, name), list[float]()

    def long(self: Any, *arguments: Any, **options: Any) -> Any:
        trained = self.counters.updates if isinstance(self, Agent) else 4
        if trained > 3 or (moment == "validation" and trained == 3):
            sent.append(time.monotonic())
            signal.raise_signal(number)
            time.sleep(60)
        return work(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, long)
        assert command(*command_line(config), "--evaluation.figures_every=1") == 130
    assert time.monotonic() - sent[0] < 30.0
    shown = capsys.readouterr()
    assert f"go on with: vgs-rl train --resume {config.folder}" in shown.out
    assert "Traceback" not in shown.err
    assert command("--resume", config.folder, "--progress=false") == 0
    assert values(report(config.folder)) == values(report(tiny(original).folder))


def test_who_hears_the_signal_has_all_the_time_for_its_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "PATIENCE", 0.05)
    with loop.interruptible() as pressed:
        signal.raise_signal(signal.SIGTERM)
        assert pressed()
        time.sleep(0.15)
    with pytest.raises(KeyboardInterrupt), loop.interruptible():
        signal.raise_signal(signal.SIGTERM)
        time.sleep(60.0)


def test_the_patience_with_what_takes_long_is_below_five_seconds() -> None:
    assert loop.PATIENCE + jobs.MARGIN < 5.0


# --- kills ---------------------------------------------------------------------------------------


def test_a_run_has_a_checkpoint_before_its_first_validation(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise Killed

    config, whole = tiny(tmp_path / "out"), tiny(original)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "keep_states", killed)  # what a validation does after its record
        with pytest.raises(Killed):
            command(*command_line(config))
    state = load_checkpoint(config.folder / "checkpoints/last.pt")
    assert state["counters"]["updates"] == 0
    assert command("--resume", config.folder, "--progress=false") == 0
    assert values(report(config.folder)) == values(report(whole.folder))
    counts = [len(read_records(each.folder)) for each in (config, whole)]
    assert counts[0] == counts[1]


def test_a_student_without_its_teachers_states_is_not_trained(tmp_path: Path) -> None:
    config = replace(tiny(tmp_path), agent=DistilledConfig(components=2))
    RunFolder(config.folder, config.to_yaml()).close()
    with pytest.raises(ConfigError, match="its teacher's states: start it again, with --overwrite"):
        train(config, resume=config.folder, progress_bar=False)


def test_with_its_report_a_run_has_all_its_curves(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    metric = Metric(value=1.0, ideal=None, n=3)
    made = Report(
        target="x",
        agent="y",
        seed=0,
        n_samples=3,
        train_seconds=0.0,
        env_steps=0,
        energy_evaluations=0,
        metrics={"elbo": metric},
    )
    with RunFolder(tmp_path, "x: 1\n") as folder:
        folder.record({"eval/elbo": 1.0}, updates=1, env_steps=1, energy_evaluations=1, seconds=1)
        made.to_tensorboard(folder.writer, 1)
        folder.finish(made)
        found = EventAccumulator(str(tmp_path))
        found.Reload()  # what is there if the process is killed now
        assert {"report/elbo", "eval_by_energies/elbo"} < set(found.Tags()["scalars"])
    assert Report.load(tmp_path / "report.json") == made


def test_a_lock_left_by_a_process_that_was_killed_is_taken_over_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".lock").write_text("process 7 on some-machine, in a long line of text\n")
    with FolderLock(tmp_path):
        said = capsys.readouterr().err
        assert said.startswith(f"note: {tmp_path} was in use by process 7 on some-machine")
        assert (tmp_path / ".lock").read_text().count("\n") == 1
    FolderLock(tmp_path).release()
    assert capsys.readouterr().err == ""


# --- full disks ----------------------------------------------------------------------------------


def full_disk(_: object, *arguments: Any, **options: Any) -> Any:
    """Opens a file for which there is no space."""
    return open("/dev/full", *arguments, **options)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
@pytest.mark.parametrize("file", ["metrics.jsonl", "events.out.tfevents"])
def test_a_full_disk_names_the_file_and_leaves_the_checkpoint(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(tmp_path / "out", budget=BudgetConfig(updates=3))
    assert command(*command_line(config)) == 0
    last = config.folder / "checkpoints/last.pt"
    before, longer = last.read_bytes(), ["--progress=false", "--budget.updates=6"]
    place = "vgs_rl.training.folder" if file == "metrics.jsonl" else "vgs_rl.training.events"
    with monkeypatch.context() as patch:
        patch.setattr(f"{place}.open", full_disk, raising=False)
        capsys.readouterr()
        assert command("--resume", config.folder, *longer) == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert f"{config.folder / file}" in said and "cannot be written: No space" in said
    assert last.read_bytes() == before and not list(config.folder.glob(".*"))
    assert command("--resume", config.folder, *longer) == 0


# --- records and event files ---------------------------------------------------------------------


def test_lines_that_are_no_records_are_left_out(tmp_path: Path) -> None:
    good = '{"updates": 1, "env_steps": 2, "energy_evaluations": 3, "seconds": 0.5, "eval/elbo": 1}'
    bad = [
        good.replace("1,", '"1",', 1),
        good.replace(": 3", ": null"),
        good.replace(": 1}", ": [1]}"),
        good.replace("0.5", "1e999"),
        good[:-4],
        "[" * 100_000,
        "7",
        "\xff",
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join([good, *bad, good.replace("1}", "null}")]))
    assert [record["eval/elbo"] for record in read_records(tmp_path)] == [1, None]


def test_of_long_runs_ever_fewer_pictures_are_kept() -> None:
    counts = [sum(map(is_kept, range(n))) for n in (16, 100, 1_000, 10_000)]
    assert counts[0] == 16 and counts[-1] < 120
    assert counts[3] - counts[2] < 1.5 * (counts[2] - counts[1])


@pytest.mark.slow  # a hundred thousand updates
def test_memory_does_not_grow_with_updates_and_event_files_hardly(tmp_path: Path) -> None:
    import resource

    sizes: dict[int, tuple[float, float]] = {}
    config = tiny(tmp_path)
    config.evaluation = replace(
        config.evaluation, validate_every=250, log_every=50, figures_every=4
    )
    from vgs_rl.experiments.run import build

    _, agent = build(config)

    def memory() -> float:
        if sys.platform == "linux":
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            return pages * resource.getpagesize() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

    with RunFolder(config.folder, config.to_yaml()) as folder:

        def look(trained: Agent) -> None:
            if trained.counters.updates in (10_000, 100_000):
                files = config.folder.glob("events*")
                written = sum(file.stat().st_size for file in files) / 2**20
                sizes[trained.counters.updates] = memory(), written

        agent.learn(
            BudgetConfig(updates=100_000),
            evaluation=config.evaluation,
            folder=folder,
            progress_bar=False,
            callback=look,
        )
    (before, little), (after, much) = sizes[10_000], sizes[100_000]
    assert after < 1.01 * before, f"{before:.0f} to {after:.0f} MiB"
    assert much < 10 * little, f"{little:.1f} to {much:.1f} MiB of events"
