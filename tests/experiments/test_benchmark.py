"""The benchmark command, on sizes that take seconds."""

import functools
import importlib
import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import tiny as tiny_config
import torch
from commands import ROOT, call, load, run, without_pictures

from vgs_rl import MDPConfig, SamplingMDP
from vgs_rl.envs import FourGauss
from vgs_rl.evaluation.evaluate import Report
from vgs_rl.experiments.cli import Mistake
from vgs_rl.experiments.config import RunConfig

TINY = (
    tiny_config.TINY
    + """\
budget: {updates: 30}
evaluation: {n_samples: 200, validation_samples: 100, validate_every: 10, figures_every: 0}
device: cpu
"""
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


def test_quality_trains_once_and_writes_table_and_reports(folder: Path) -> None:
    readme = folder / "page.md"
    readme.write_text("above\n<!-- quality:begin -->\nstale\n<!-- quality:end -->\nbelow\n")
    options = ["--configs=[tiny.yaml]", "--seeds=[0]", "--json=out.json", "--markdown=page.md"]
    options += ["--agents=[pis]"]
    with without_pictures():
        first, _ = call("benchmark", "quality", *options, folder=folder)
    for column in ("vgs", "ideal", "resampled", "twisted SMC", "MALA alone", "oracle", "pis"):
        assert column in first
    assert "training vgs on FourGauss" in first
    again, _ = call("benchmark", "quality", *options, folder=folder)
    assert "training" not in again.replace("train_seconds", "")
    text = readme.read_text()
    assert text.startswith("above\n") and text.endswith("below\n") and "stale" not in text
    assert "| tvd_energy |" in text
    reports = json.loads((folder / "out.json").read_text())["reports"]
    agents = [report["agent"] for report in reports]
    assert len(reports) == 6 and {"mala", "oracle posterior", "pis"} < set(agents)
    mala = reports[agents.index("mala")]
    own = reports[0]
    assert mala["energy_evaluations"] == own["energy_evaluations"] + own["n_samples"]


def test_quality_evaluates_shipped_samplers_without_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = load("benchmarks.runs")
    monkeypatch.setattr(runs, "load_pretrained", functools.cache(runs.load_pretrained))
    options = ["--pretrained=true", "--configs=[dw4]", "--n=40", "--markdown=page.md"]
    beside = ["resampled", "+ MALA", "low noise"]
    first, _ = call("benchmark", "quality", *options, f"--extra={beside}", folder=folder)
    again, _ = call("benchmark", "quality", *options, f"--extra={beside}", folder=folder)
    assert "evaluating DW4" in first and "evaluating" not in again
    assert "training" not in first.replace("train_seconds", "")
    text = (folder / "page.md").read_text()
    assert (
        "**dw4, 40 samples, seed 0; in brackets: a sampler's own ideal, where it differs**" in text
    )
    assert "median of" not in text.split("| tvd_energy |")[0] and "range" not in text
    (tvd,) = (line for line in text.splitlines() if line.startswith("| tvd_energy |"))
    assert tvd.count("(") == 3  # evaluated on 4 samples, whose ideal is another
    assert f"| {' | '.join(beside)} |" in text
    reports = folder / "runs/benchmark/dw4/pretrained_40"
    own, quiet = (
        json.loads((reports / f"{name}.json").read_text())
        for name in ("report", "report_low_noise")
    )
    assert own["seed"] == 0 and own["train_seconds"] > 60 and "elbo" in own["metrics"]
    assert quiet["n_samples"] == 4 and "elbo" not in quiet["metrics"]


def test_mala_alone_is_evaluated_at_the_runs_temperature() -> None:
    benchmark = load("benchmarks.runs")
    mdp = SamplingMDP(FourGauss(), MDPConfig(num_steps=3, temperature=2.0))
    config = RunConfig(env="FourGauss", mdp=mdp.config, device="cpu")
    agent = config.agent.build(mdp)
    report = Report(
        target="FourGauss",
        agent="vgs",
        seed=0,
        n_samples=60,
        train_seconds=1.0,
        env_steps=0,
        energy_evaluations=2_000,
        metrics={},
    )
    run = benchmark.TrainedRun(report=report, folder=Path(), load=lambda: (config, agent))
    mala = benchmark.mala(run)
    assert mala.details["temperature"] == 2.0
    assert not mala.metrics  # neither exact samples nor mode weights apply, and it has no weights


WRITING = [
    (name, option)
    for name, run_it in load("commands.benchmark").COMMANDS.items()
    for option in ("json", "markdown", "figure", "picture")
    if option in inspect.signature(run_it).parameters
]


@pytest.mark.parametrize(("name", "option"), WRITING)
def test_what_cannot_be_written_is_refused_before_the_work(
    name: str, option: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def works(*_: object, **__: object) -> None:
        raise AssertionError("it has begun")

    monkeypatch.setattr(SamplingMDP, "__init__", works)
    (folder / "place").mkdir()
    _, err = call("benchmark", name, f"--{option}=place", folder=folder, status=2)
    assert "error: must be a file to write, got 'place'" in err


def test_no_option_hides_that_of_a_file_of_options() -> None:
    for name, run_it in load("commands.benchmark").COMMANDS.items():
        assert "config" not in inspect.signature(run_it).parameters, name


def test_what_quality_cannot_judge_is_refused(folder: Path) -> None:
    _, err = call("benchmark", "quality", "--n=40", folder=folder, status=2)
    assert "error: n and compiled are for --pretrained true" in err
    options = ["--pretrained=true", "--configs=[gmm9]"]
    _, err = call("benchmark", "quality", *options, folder=folder, status=2)
    assert "error: no sampler is shipped for GMM9; there are DW4, LJ13, LJ55" in err


@pytest.mark.slow
def test_steps_draws_both_drifts_beside_their_ceilings(folder: Path) -> None:
    options = ["--name=tiny.yaml", "--num_steps=[3,6]", "--figure=steps.png", "--json=s.json"]
    run("benchmark.py", "steps", *options, folder=folder)
    assert (folder / "steps.png").stat().st_size > 10_000
    rows = json.loads((folder / "s.json").read_text())["rows"]
    assert {(row["curve"], row["T"]) for row in rows} == {
        (f"{kind}, {drift}", t)
        for kind in ("learned", "exact")
        for drift in ("posterior", "bellman")
        for t in (3, 6)
    }


@pytest.mark.slow
def test_speed_benchmarks_print_what_was_compared(folder: Path) -> None:
    out, _ = run("benchmark.py", "env", "--num_envs=64", "--repeats=1", folder=folder)
    assert "ratio" in out and "vgs_rl/ManyWell32-v0" in out
    options = ["--name=tiny.yaml", "--n=500", "--repeats=1", "--published_width=16"]
    out, _ = run("benchmark.py", "sampling", *options, folder=folder)
    assert "samples_per_s" in out and "peak memory" in out


def test_kernels_transfers_and_python_share_the_time(folder: Path) -> None:
    options = ["--name=tiny.yaml", "--updates=3", "--n=50", "--json=out.json"]
    out, _ = call("benchmark", "device", *options, folder=folder)
    assert "Python and waiting" in out
    rows = json.loads((folder / "out.json").read_text())["rows"]
    assert [row["work"] for row in rows] == ["3 updates", "50 samples"]
    for row in rows:
        shares = [row[name] for name in ("kernels", "transfers", "Python and waiting")]
        assert min(shares) >= 0 and max(shares) <= 1 and row["kernels"] > 0
        assert sum(shares) == pytest.approx(1.0) or row["Python and waiting"] == 0.0


@pytest.mark.slow
def test_ebm_benchmarks_compare_updates_and_count_what_guards_did(folder: Path) -> None:
    config = (
        (ROOT / "configs/ebm_digits.yaml").read_text().replace("prototypes: 1024", "prototypes: 16")
    )
    (folder / "small.yaml").write_text(config)
    options = ["--name=small.yaml", "--dim=20", "--rows=32", "--updates=2", "--json=out.json"]
    run("benchmark.py", "ebm", *options, folder=folder)
    rows = json.loads((folder / "out.json").read_text())["rows"]
    assert [row["negatives"] for row in rows] == ["vgs", "langevin", "langevin-persistent"]
    most = max(row["evaluations"] for row in rows)
    assert min(row["evaluations"] for row in rows) > 0.7 * most
    run(
        "benchmark.py",
        "stability",
        "--name=small.yaml",
        "--updates=12",
        "--json=out.json",
        folder=folder,
    )
    rows = json.loads((folder / "out.json").read_text())["rows"]
    rates = [row["learning rate"] for row in rows]
    assert rates == pytest.approx([rates[1] / 10, rates[1], 10 * rates[1]])
    assert all(row["finite"] == "True" and row["updates"] == 12 for row in rows)


@pytest.mark.slow
def test_the_shares_of_a_librarys_time_add_up(folder: Path) -> None:
    pytest.importorskip("stable_baselines3")
    pytest.importorskip("tianshou")
    options = ["--num_envs=32", "--updates=1", "--json=out.json"]
    out, _ = run("benchmark.py", "libraries", *options, folder=folder)
    assert "32 environments" in out
    rows = json.loads((folder / "out.json").read_text())["rows"]
    assert [row["library"] for row in rows] == ["sb3", "tianshou"]
    for row in rows:
        parts = ("environment", "adapter", "loops", "collecting", "learning")
        shares = [float(row[part].rstrip("%")) for part in parts]
        assert sum(shares) == pytest.approx(100, abs=0.3) and min(shares) >= 0
        assert shares[0] > 0 and shares[4] > 0 and row["steps_per_s"] > 0


def test_intervals_of_log_z_are_counted_and_drawn(folder: Path) -> None:
    page = folder / "page.md"
    page.write_text("<!-- certificate:begin -->\n<!-- certificate:end -->\n")
    options = ["--n=200", "--repeats=3", "--json=out.json", "--markdown=page.md"]
    out, _ = call("benchmark", "certificate", *options, "--figure=c.png", folder=folder)
    assert "3 intervals from 200 weights each" in out and (folder / "c.png").is_file()
    rows = {row["name"]: row for row in json.loads((folder / "out.json").read_text())["rows"]}
    assert {"uniform", "Pareto 1.1", "hidden mode"} < set(rows)
    assert all(row["below"] > 0 and row["above"] > 0 for row in rows.values())
    assert rows["hidden mode"]["usual"] == 0.0 and rows["hidden mode"]["proven"] == 1.0
    assert "| hidden mode |" in page.read_text()


def test_intervals_of_a_trained_sampler_are_counted(folder: Path) -> None:
    call("train", "tiny.yaml", "--output=runs", "--budget.updates=3", folder=folder)
    (run_folder,) = {path.parent for path in (folder / "runs").rglob("config.yaml")}
    options = ["--n=100", "--repeats=2", "--paths=100", "--json=out.json", "--figure=c.png"]
    out, _ = call("benchmark", "certificate", f"--runs=[{run_folder}]", *options, folder=folder)
    assert "2 intervals from 100 weights each, of runs 100" in out
    rows = json.loads((folder / "out.json").read_text())["rows"]
    (row,) = [row for row in rows if row["name"].startswith("trained ")]
    assert row["proven"] == 1.0 and row["below"] > 0 and row["above"] > 0


def test_a_run_at_another_temperature_has_no_known_log_z_to_be_held_against(folder: Path) -> None:
    options = ["--output=runs", "--budget.updates=1", "--mdp.temperature=0.5"]
    call("train", "tiny.yaml", *options, folder=folder)
    (run_folder,) = {path.parent for path in (folder / "runs").rglob("config.yaml")}
    with pytest.raises(Mistake, match="temperature 1 and no parameters, got"):
        load("benchmarks.certificate").trained(run_folder)


@pytest.mark.parametrize("name", ["uniform", "lognormal 1", "Pareto 3", "hidden mode"])
def test_the_laws_of_the_benchmark_have_log_z_zero_on_either_side(name: str) -> None:
    law = load("benchmarks.certificate").LAWS[name]
    generator = torch.Generator().manual_seed(0)
    n = 400_000
    for value in (law.forward(n, generator).exp(), (-law.backward(n, generator)).exp()):
        assert abs(value.mean() - 1) < 5 * value.std() / n**0.5


def test_budget_trains_splits_and_buys(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("vgs_rl.evaluation.budget.tightness")
    monkeypatch.setattr(module, "TARGETS", {"Gaussian": module.TARGETS["Gaussian"]})
    page = folder / "page.md"
    marks = "<!-- {0}:begin -->\n<!-- {0}:end -->\n"
    page.write_text("".join(marks.format(name) for name in ("budget", "gains", "tightness")))
    options = ["--configs=[tiny.yaml]", "--num_steps=[2]", "--updates=5", "--n=200"]
    options += ["--paths=500", "--exact=500"]
    options += ["--markdown=page.md", "--json=out.json", "--figure=parts.png"]
    shown, _ = call("benchmark", "budget", *options, folder=folder)
    assert "Buy more steps: T = 4 instead of 2" in shown and (folder / "parts.png").is_file()
    text = page.read_text()
    assert "| FourGauss | 2 |" in text and "| Gaussian | 2 |" in text
    found = json.loads((folder / "out.json").read_text())
    assert found["budgets"][0]["num_steps"] == 2 and len(found["tightness"]) == 1


def test_distill_shows_teacher_and_students_and_reads_what_is_done(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load("benchmarks.students"), "DRAWS", 200)
    options = ["--configs=[tiny.yaml]", "--steps=[2]", "--updates=4", "--states=200"]
    options += ["--solver=[3]"]
    options += ["--figure=d.png", "--markdown=d.md", "--json=d.json"]
    with without_pictures():
        first, _ = call("benchmark", "distill", *options, folder=folder)
        assert "distilling FourGauss to 2 calls" in first
        again, _ = call("benchmark", "distill", *options, folder=folder)
    assert "distilling" not in again
    rows = json.loads((folder / "d.json").read_text())["rows"]
    assert [(row["sampler"], row["calls"], row["updates"]) for row in rows] == [
        ("teacher", 5, 30),
        ("student", 2, 4),
        ("DPM-Solver", 3, 30),
    ]
    assert all(0 < row["ESS"] <= 1 for row in rows[:2]) and np.isnan(rows[2]["ESS"])
    assert all(row["samples/s"] > 0 and "W2-E" not in row for row in rows)
    assert "| FourGauss | student | 2 |" in (folder / "d.md").read_text()
