"""The comparison command, on sizes that take seconds, and its parts."""

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny as tiny_config
import torch
import yaml
from commands import ROOT, call, load, run, run_until_ctrl_c, without_pictures

from vgs_rl import (
    MDPConfig,
    SamplingMDP,
    ScheduleConfig,
    StartConfig,
)
from vgs_rl.agents.base import Agent
from vgs_rl.envs import FourGauss
from vgs_rl.evaluation.evaluate import Metric, Report
from vgs_rl.experiments.baselines import BASELINES, UNCONTROLLED, Baseline, run_baseline
from vgs_rl.samplers.base import Samples
from vgs_rl.training.config import BudgetConfig, EvaluationConfig
from vgs_rl.training.folder import RunFolder

compare_jobs, compare_report = load("comparison.jobs"), load("comparison.report")
pictures = load("comparison.pictures")
make_jobs, parse_budget = compare_jobs.make_jobs, compare_jobs.parse_budget
check_jobs, run_job = compare_jobs.check_jobs, load("comparison.worker").run_job
CompareError = compare_jobs.CompareError

TINY = (
    tiny_config.TINY
    + """\
evaluation: {n_samples: 400, validation_samples: 100, validate_every: 10, figures_every: 0}
"""
)


def small_mdp() -> SamplingMDP:
    schedule = ScheduleConfig(kind="auto", total_noise=0.9)
    config = MDPConfig(num_steps=5, schedule=schedule, start=StartConfig(scale=1.3))
    return SamplingMDP(FourGauss(), config)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


def test_a_comparison_runs_reports_failures_and_repeats_nothing_finished(tiny: Path) -> None:
    page = tiny / "page.md"
    page.write_text("above\n<!-- compare:begin -->\nstale\n<!-- compare:end -->\nbelow\n")
    options = ["--env=tiny.yaml", "--agents=vgs,tb", "--budget=energies=6000"]
    options += ["--device=cpu", "--jobs=2", "--markdown=page.md", "--figures=docs"]
    in_the_way = tiny / "runs/compare/energies=6000/FourGauss/tb"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("a file")
    out, error = call("compare", *options, folder=tiny, status=1)
    assert "failed: FourGauss/tb/0: OSError" in error and "Traceback" not in out + error
    for part in ("| *ideal* |", "| uncontrolled |", "| vgs |", "Failed:"):
        assert part in out
    root = tiny / "runs/compare/energies=6000"
    text = page.read_text()
    assert text.startswith("above\n") and text.endswith("below\n") and "stale" not in text
    assert "](docs/compare-fourgauss-learning.png)" in text
    content = json.loads((root / "table.json").read_text())
    agents = {"uncontrolled", "vgs"}
    assert {report["agent"] for report in content["reports"]} == agents
    assert list(content["failed"]) == ["FourGauss/tb/0"]
    assert content["summary"]["FourGauss"]["vgs"]["elbo"]["standard_error"] is None
    for report in content["reports"]:
        used = report["energy_evaluations"]
        assert used == 0 if report["agent"] == "uncontrolled" else 4_000 < used < 9_000
    for name in ("learning", "samples"):
        assert (root / f"FourGauss-{name}.png").stat().st_size > 10_000
        assert (tiny / f"docs/compare-fourgauss-{name}.png").is_file()
    for agent in agents:
        curves_have_shared_tags(root / "FourGauss" / agent / "0")

    stamp = {file: file.stat().st_mtime_ns for file in root.glob("FourGauss/*/0/report.json")}
    assert len(stamp) == 2
    options[1] = "--agents=vgs"
    with without_pictures():
        out, _ = call("compare", *options, folder=tiny)
    assert "2 finished before" in out and "Failed" not in out
    assert stamp == {file: file.stat().st_mtime_ns for file in stamp}


@pytest.mark.slow  # tests of kills say the same of one command
def test_ctrl_c_reaches_the_runs_and_they_go_on_to_the_numbers_of_an_undisturbed_run(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--env=tiny.yaml", "--agents=vgs", "--budget=updates=400", "--device=cpu"]
    folder = Path("runs/compare/updates=400/FourGauss/vgs/0")
    run_until_ctrl_c("compare.py", *options, folder=tiny, metrics=tiny / folder / "metrics.jsonl")
    monkeypatch.chdir(tiny)
    stopped = torch.load(folder / "checkpoints/last.pt", weights_only=True)["state"]["counters"]
    assert 0 < stopped["updates"] < 400 and not (folder / "report.json").exists()
    assert "trust" not in yaml.safe_load((folder / "config.yaml").read_text())

    def job(root: str) -> Any:
        return make_jobs(["tiny.yaml"], ["vgs"], [0], {"updates": 400}, Path(root), device="cpu")[1]

    with without_pictures():
        assert run_job(job("runs/compare/updates=400"))  # what the same command does
        assert f"going on in {folder} at update {stopped['updates']}" in capsys.readouterr().err
        assert run_job(job("undisturbed"))
    reports = [
        Report.load(job(root).folder / "report.json") for root in (folder.parents[2], "undisturbed")
    ]
    assert reports[0].metrics["elbo"] == reports[1].metrics["elbo"]


def test_a_stopped_run_of_a_users_energy_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_own_ring.py").write_text(RINGS)
    monkeypatch.syspath_prepend(tmp_path)
    jobs = make_jobs(["my_own_ring:Ring"], ["pis"], [0], {"updates": 6}, tmp_path, device="cpu")
    update = Agent.update

    def interrupted(agent: Agent) -> dict[str, torch.Tensor]:
        scalars = update(agent)
        if agent.counters.updates == 4:
            signal.raise_signal(signal.SIGINT)
        return scalars

    with monkeypatch.context() as patch:
        patch.setattr(Agent, "update", interrupted)
        assert not run_job(jobs[1])
    with without_pictures():
        assert run_job(jobs[1]) and jobs[1].finished
    assert "at update 4" in capsys.readouterr().err


def curves_have_shared_tags(folder: Path) -> None:
    """Trainings and baselines alike, over three counters, and in the HParams view."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    shared = {"eval/elbo", "eval/tvd_energy", "eval/path_ess", "time/energy_evaluations"}
    shared |= {"eval_by_energies/elbo", "eval_by_milliseconds/tvd_energy"}
    assert shared <= set(events.Tags()["scalars"])
    assert any(tag.startswith("_hparams_") for tag in events.summary_metadata)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [r for r in map(json.loads, lines) if "eval/elbo" in r]
    steps = [event.step for event in events.Scalars("eval_by_energies/elbo")]
    assert steps == [r["energy_evaluations"] for r in records]


@pytest.mark.parametrize("name", [name for name in BASELINES if name != UNCONTROLLED])
def test_a_baseline_spends_its_budget_and_has_a_curve(name: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", "env: FourGauss\n")
    baseline = Baseline(name=name, mdp=small_mdp(), n=400, scale=2.0, seed=1)
    evaluation = EvaluationConfig(n_samples=400, validation_samples=200)
    report, samples = run_baseline(
        baseline,
        BudgetConfig(energy_evaluations=60_000),
        evaluation,
        folder,
        target_name="FourGauss",
    )
    folder.close()
    assert samples.x.shape == (400, 2)
    assert 50_000 <= report.energy_evaluations <= 60_000
    assert report.env_steps == report.energy_evaluations
    assert report.agent == name and report.seed == 1 and report.train_seconds > 0
    used = [record["energy_evaluations"] for record in folder.records]
    assert len(used) > 1 and used == sorted(used) and used[-1] == report.energy_evaluations
    assert ("elbo" in report.metrics) == (name == "ais")  # particles of SMC interact
    assert ("log_z_error" in report.metrics) == (name in ("ais", "smc"))
    assert report.metrics["tvd_energy"].value < 0.6
    assert (tmp_path / "run/report.json").is_file()


def test_a_budget_of_seconds_is_used_and_not_exceeded(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", "env: FourGauss\n")
    baseline = Baseline(name="mala", mdp=small_mdp(), n=400, scale=2.0)
    report, _ = run_baseline(
        baseline, BudgetConfig(seconds=0.5), EvaluationConfig(), folder, target_name="FourGauss"
    )
    folder.close()
    assert 0.1 < report.train_seconds < 1.0


def test_the_uncontrolled_chain_costs_nothing_and_has_both_bounds(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", "env: FourGauss\n")
    report, _ = run_baseline(
        Baseline(name=UNCONTROLLED, mdp=small_mdp(), n=400, scale=2.0),
        BudgetConfig(seconds=1),
        EvaluationConfig(n_samples=400),
        folder,
        target_name="FourGauss",
    )
    folder.close()
    assert report.energy_evaluations == 0 and report.train_seconds == 0
    assert report.metrics["elbo"].value < 0 < report.metrics["eubo"].value


def test_too_small_a_budget_is_refused_by_name(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", "env: FourGauss\n")
    for budget, message in (
        (BudgetConfig(energy_evaluations=500), "ais needs 4400 energy evaluations for 400"),
        (BudgetConfig(updates=5), "ais needs a budget of env_steps, energy_evaluations or seconds"),
    ):
        with pytest.raises(ValueError, match=message):
            run_baseline(
                Baseline(name="ais", mdp=small_mdp(), n=400, scale=2.0),
                budget,
                EvaluationConfig(),
                folder,
                target_name="FourGauss",
            )
    folder.close()
    with pytest.raises(ValueError, match="baseline must be one of uncontrolled, ula"):
        Baseline(name="gibbs", mdp=small_mdp(), n=10, scale=1.0)


# --- settings ------------------------------------------------------------------------------------


def test_all_agents_share_the_shipped_mdp_and_vgs_keeps_its_agent_section(tmp_path: Path) -> None:
    budget = parse_budget("steps=2e6")
    jobs = make_jobs(["GMM9"], ["vgs", "tb", "sb3-ppo", "mala"], [0, 1], budget, tmp_path)
    assert [job.name for job in jobs[:5]] == [
        f"GMM9/{name}/0" for name in ("uncontrolled", "vgs", "tb", "sb3-ppo", "mala")
    ]
    assert len(jobs) == 10
    shipped = yaml.safe_load((ROOT / "configs/gmm9.yaml").read_text())
    by_name = {job.agent: job for job in jobs[:5]}
    assert all(job.settings["mdp"] == shipped["mdp"] for job in jobs)
    budgets = [job.config.budget for job in jobs]  # and no other limit, a default one
    assert all(each == BudgetConfig(env_steps=2_000_000) for each in budgets)
    assert by_name["vgs"].settings["agent"] == shipped["agent"]
    assert by_name["tb"].settings["agent"]["init_args"]["prior_std"] == 5.0
    assert by_name["mala"].scale == 5.0 and by_name["mala"].baseline
    ppo = by_name["sb3-ppo"].settings["agent"]
    assert ppo["class_path"].endswith("SB3Config") and ppo["init_args"]["algorithm"] == "PPO"
    assert by_name["sb3-ppo"].requires == ("stable_baselines3", "sb3")
    assert jobs[1].settings is not jobs[6].settings


def test_variants_are_runs_of_their_own(tmp_path: Path) -> None:
    jobs = make_jobs(["GMM9"], ["tb", "tb-plain"], [0], parse_budget("seconds=5"), tmp_path)
    by_name = {job.agent: job for job in jobs}
    assert by_name["tb-plain"].settings["agent"]["init_args"]["energy_term"] is False
    assert by_name["tb-plain"].folder == tmp_path / "variants/tb-plain/GMM9/tb/0"
    assert by_name["tb-plain"].settings["evaluation"]["validate_every"] == 25
    assert by_name["tb"].folder == tmp_path / "GMM9/tb/0"


def drawn(folder: Path, num_steps: int = 2, agent: str = "mala") -> Any:
    """A job that draws 20 states of a normal density, with another chain where T differs."""
    (folder / "normal.yaml").write_text(
        "env: vgs_rl.envs:Gaussian\nenv_args: {mean: [1.0], covariance: [0.5]}\n"
        f"mdp: {{num_steps: {num_steps}}}\nevaluation: {{n_samples: 20, validation_samples: 20}}\n"
    )
    budget, env = parse_budget("energies=2000"), str(folder / "normal.yaml")
    jobs = make_jobs([env], [agent], [0], budget, folder / "runs", device="cpu")
    return jobs[-1]


def test_a_report_is_of_the_settings_in_it(tmp_path: Path) -> None:
    job = drawn(tmp_path)
    assert not job.finished and run_job(job) and job.finished
    longer = drawn(tmp_path, num_steps=4)
    assert longer.folder == job.folder and longer.identity != job.identity
    assert not longer.finished and compare_report.collect([longer]) == {}
    assert drawn(tmp_path).finished  # and no file was changed by asking
    assert run_job(longer) and longer.finished and not job.finished


@pytest.mark.parametrize("agent", ["mala", "vgs"])
def test_a_run_that_lost_a_file_is_finished_by_the_next_call(
    agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # They take seconds.
    monkeypatch.setattr("vgs_rl.experiments.evaluation.final_figures", lambda *_: {})
    job = drawn(tmp_path, agent=agent)
    if agent == "vgs":
        text = (tmp_path / "normal.yaml").read_text() + VGS
        (tmp_path / "vgs.yaml").write_text(text)
        env, budget = str(tmp_path / "vgs.yaml"), parse_budget("updates=2")
        job = make_jobs([env], ["vgs"], [0], budget, tmp_path / "runs", device="cpu")[-1]
    assert run_job(job)
    metrics, x = job.report().metrics, Samples.load(job.folder / "samples.pt").x
    (job.folder / "samples.pt").unlink()
    assert not job.finished and run_job(job) and job.finished
    assert torch.equal(Samples.load(job.folder / "samples.pt").x, x)
    assert job.report().metrics == metrics
    for damaged in ("report.json", "metrics.jsonl"):
        text = (job.folder / damaged).read_text()
        (job.folder / damaged).write_text(text[: len(text) // 2])
    assert 0.0 <= job.fraction() <= 1.0
    assert not job.finished and run_job(job) and job.report().metrics == metrics


VGS = """
agent:
  class_path: ValueGradientConfig
  init_args:
    network: {class_path: MLPNetwork, init_args: {width: 8, depth: 1}}
    objective:
      class_path: GradientMatching
      init_args: {batch_size: 8, refresh_size: 16, first_size: 16, start_size: 16}
"""


def test_a_device_that_is_not_here_is_an_error_and_no_row_of_the_cpu(tmp_path: Path) -> None:
    assert drawn(tmp_path).config.device == "cpu"  # what `auto` would be is in the identity
    with pytest.raises(ValueError, match="device 'xpu' is not available here"):
        make_jobs(["GMM9"], ["tb"], [0], parse_budget("seconds=5"), tmp_path, device="xpu")


def test_two_runs_that_would_be_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CompareError, match="two runs would be GMM9/uncontrolled/0"):
        make_jobs(["GMM9", "vgs_rl/GMM9-v0"], [], [0], parse_budget("seconds=5"), tmp_path)


def test_everything_is_checked_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(agent: str, budget: str) -> None:
        check_jobs(make_jobs(["FourGauss"], [agent], [0], parse_budget(budget), tmp_path))

    check("mala", "energies=100")
    for agent, budget, message in (
        ("ais", "energies=500", "ais on FourGauss: ais needs .* energy evaluations for"),
        ("smc", "seconds=9,steps=500", "smc on FourGauss: smc needs .* energy evaluations for"),
        ("mala", "updates=5", "mala on FourGauss: mala needs a budget of env_steps"),
    ):
        with pytest.raises(CompareError, match=message):
            check(agent, budget)
    (job,) = make_jobs(["GMM9"], ["sb3-ppo"], [0], parse_budget("seconds=5"), tmp_path)[1:]
    missing = compare_jobs.replace(job, requires=("no_such_library", "sb3"))
    with pytest.raises(CompareError, match=r"pip install 'vgs-rl\[sb3\]'"):
        check_jobs([missing])
    (tmp_path / "typo.yaml").write_text("env: FourGauss\nevaluation: {n_sample: 4}\n")
    with pytest.raises(ValueError, match="n_sample"):
        make_jobs([str(tmp_path / "typo.yaml")], [], [0], parse_budget("seconds=5"), tmp_path)
    compare = load("commands.compare")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("no folder")
    assert compare.main(["--env=FourGauss", "--agents=mala", "--budget=energies=100"]) == 2


def test_a_users_module_is_compared_in_processes_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "my_rings.py").write_text(RINGS)
    options = ["--env=my_rings:Ring,my_rings:me/Slope-v0", "--agents=uncontrolled"]
    options += ["--budget=seconds=1", "--device=cpu"]
    out, error = run("compare.py", *options, folder=tmp_path, status=1)
    assert "failed: Slope/uncontrolled/0: ArithmeticError: the slope gave way" in error
    assert "| uncontrolled |" in out and "- Slope/uncontrolled/0: ArithmeticError" in out
    content = json.loads((tmp_path / "runs/compare/seconds=1/table.json").read_text())
    assert [report["target"] for report in content["reports"]] == ["Ring"]
    assert "Traceback" not in out + error


RINGS = """
import torch, vgs_rl

class Ring(vgs_rl.Energy):
    dim = 1
    def energy(self, x):
        return (x[:, 0].abs() - 2.0) ** 2

class Slope(vgs_rl.Energy):
    dim = 1
    def energy(self, x):
        if len(x) > 200:
            raise ArithmeticError("the slope gave way")
        return x[:, 0] ** 2

vgs_rl.register("me/Slope-v0", energy=Slope)
"""


@pytest.mark.parametrize(
    ("agent", "message"),
    [("dqn", "nothing is known by 'dqn'"), ("jax-ppo", "nothing is known by 'jax-ppo'")],
)
def test_unknown_names_are_refused(agent: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(CompareError, match=message):
        make_jobs(["GMM9"], [agent], [0], parse_budget("seconds=5"), tmp_path)


def test_budgets_are_parsed_and_named() -> None:
    assert parse_budget("steps=2e6,seconds=60") == {"env_steps": 2_000_000, "seconds": 60.0}
    assert compare_jobs.budget_name(parse_budget("energies=100000")) == "energies=100000"
    for text, message in (
        ("hours=3", "must read steps=NUMBER"),
        ("steps", "must read steps=NUMBER"),
        ("steps=many", "steps must be a whole number, got 'many'"),
        ("seconds=-1", "seconds must be a positive number, got -1"),
        ("updates=2.5", "updates must be a whole number, got 2.5"),
        ("steps=1,steps=2", "steps is given twice"),
    ):
        with pytest.raises(CompareError, match=message):
            parse_budget(text)


# --- tables --------------------------------------------------------------------------------------


def report(agent: str, elbo: float, tvd: float | None, seed: int = 0) -> Report:
    metrics = {"elbo": Metric(value=elbo, ideal=0.0, n=10)}
    if tvd is not None:
        metrics["tvd_energy"] = Metric(value=tvd, ideal=0.03, n=10)
    return Report(
        target="GMM9",
        agent=agent,
        seed=seed,
        n_samples=10,
        train_seconds=1.0,
        env_steps=100,
        energy_evaluations=10,
        metrics=metrics,
        details={"sampling_energy_evaluations": 30},
    )


def test_tables_have_means_with_standard_errors_beside_ideals() -> None:
    results = {"vgs": [report("vgs", -0.1, 0.04), report("vgs", -0.3, 0.06, seed=1)]}
    ideal, row = compare_report.table(results)
    assert ideal["tvd_energy"] == "0.0300" and ideal["elbo"] == "0.0000"
    assert row["elbo"] == "-0.2000 ± 0.1000" and row["tvd_energy"] == "0.0500 ± 0.0100"
    assert row["seeds"] == 2 and row["energies per sample"] == "3"
    mean, error = compare_report.mean_and_error([2.0])
    assert mean == 2.0 and math.isnan(error)


def test_a_row_evaluated_on_other_samples_shows_its_own_ideal() -> None:
    few = report("pis", 163.1543, 0.15)
    few.metrics["tvd_energy"].ideal = 0.143
    results = {"vgs": [report("vgs", 163.1621, 0.04)], "pis": [few]}
    _, vgs, pis = compare_report.table(results)
    assert vgs["tvd_energy"] == "0.0400" and pis["tvd_energy"] == "0.1500 (0.1430)"
    assert vgs["elbo"] == "163.1621" and pis["elbo"] == "163.1543"  # the gap is seen
    text = compare_report.as_markdown({"GMM9": results}, "one seed", {})
    assert "In brackets: a sampler's own ideal" in text


def test_where_the_value_gradient_is_beaten_the_findings_say_so() -> None:
    results = {
        "uncontrolled": [report("uncontrolled", -10.0, 0.9)],
        "vgs": [report("vgs", -0.2, 0.05)],
        "vgs-frugal": [report("vgs-frugal", -0.1, 0.02)],
        "pis": [report("pis", -3.0, 0.4)],
        "tb": [report("tb", -11.0, float("nan"))],
        "mala": [report("mala", float("nan"), 0.03)],
    }
    sentences = compare_report.findings(results)
    assert any("does **not** beat mala (0.0300)" in sentence for sentence in sentences)
    assert "vgs (elbo -0.2000) beats every other row" in sentences  # its own variant apart
    assert "vgs-frugal (tvd_energy 0.0200) beats every other row" in sentences
    assert "no better than the uncontrolled chain's ELBO: tb" in sentences
    text = compare_report.as_markdown({"GMM9": results}, "steps=2e6", {"GMM9/a/0": "no"})
    assert "| mala |" in text and "- GMM9/a/0: no" in text


def test_curves_of_divergent_runs_can_be_drawn(tmp_path: Path) -> None:
    jobs = make_jobs(["GMM9"], ["tb", "vgs"], [0], parse_budget("seconds=5"), tmp_path)
    for job, elbo in zip(jobs, (-1e9, None, -0.5), strict=True):
        job.folder.mkdir(parents=True)
        counters = {"updates": 0, "env_steps": 10, "energy_evaluations": 5, "seconds": 0.5}
        lines = [{**counters, "eval/elbo": elbo, "eval/tvd_energy": 0.5}]
        lines += [{**counters, "env_steps": 20, "seconds": 1.0, "eval/elbo": elbo}]
        (job.folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    for log_z in (0.0, None):
        figure = pictures.plot_learning(jobs, log_z, 0.03)
        figure.savefig(tmp_path / "curves.png")
    assert jobs[0].fraction() == pytest.approx(0.2)


def test_final_samples_of_every_kind_can_be_drawn(tmp_path: Path) -> None:
    from vgs_rl.energy import Particles

    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    energies = {"exact": x[:, 0], "vgs": x[:, 0].clone().fill_(torch.inf)}
    for states, symmetry in ((x, None), (x, Particles(4, 2)), (x[:, :1], None), (x[:1, :1], None)):
        sets = {"exact": states, "vgs": states[:1]}
        figure = pictures.plot_samples(sets, energies, symmetry, "exact")
        figure.savefig(tmp_path / "samples.png")
        assert [axes.get_title() for axes in figure.axes][1] == "vgs\nmedian E inf"
        assert bool(figure.axes[0].patches) == (symmetry is not None or states.shape[1] == 1)


def test_a_comparison_is_never_lost_to_a_picture(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    compare, job = load("commands.compare"), drawn(tmp_path)
    root = tmp_path / "runs/energies=2000"
    for each in make_jobs(
        [str(tmp_path / "normal.yaml")], ["mala"], [0], parse_budget("energies=2000"), root
    ):
        run_job(each)
    samples = root / "Gaussian/mala/0/samples.pt"
    samples.write_bytes(samples.read_bytes()[:100])

    def fail(*_: object) -> None:
        raise OverflowError("no axis is so long")

    monkeypatch.setattr(pictures, "plot_learning", fail)
    options = [f"--env={tmp_path}/normal.yaml", "--agents=mala", "--budget=energies=2000"]
    assert compare.main([*options, f"--output={tmp_path}/runs"]) == 0
    out = capsys.readouterr().out
    assert "2 finished before" in out and "| mala |" in out and "samples.png" in out
    assert (root / "table.md").is_file() and job.agent == "mala"
    warnings = [record.getMessage() for record in caplog.records]
    assert any("learning.png: OverflowError: no axis is so long" in each for each in warnings)
    assert any(f"{samples}: ValueError" in each for each in warnings)
    assert not (root / "Gaussian-learning.png").exists()


def test_samplers_that_were_evaluated_elsewhere_have_rows_in_the_tables(tmp_path: Path) -> None:
    jobs = make_jobs(["GMM9"], ["vgs"], range(1), {"updates": 5}, tmp_path)
    file = tmp_path / "cleanrl.json"
    made = Report(
        target="GMM9",
        agent="cleanrl-ppo",
        seed=0,
        n_samples=100,
        train_seconds=1.0,
        env_steps=2,
        energy_evaluations=3,
        metrics={"elbo": Metric(value=-1.5, ideal=0.0, n=100)},
    )
    made.save(file)
    ours = Report.from_json(made.as_json().replace("cleanrl-ppo", "vgs"))
    (read,) = compare_report.read_reports(str(file), jobs)
    assert read == made
    rows = compare_report.table({"vgs": [ours], "cleanrl-ppo": [read]})
    assert [row["agent"] for row in rows] == ["*ideal*", "vgs", "cleanrl-ppo"]
    assert rows[2]["elbo"].startswith("-1.5") and rows[2]["env steps"] == "2"

    def refused(change: tuple[str, str], message: str) -> None:
        file.write_text(made.as_json().replace(*change))
        with pytest.raises(CompareError, match=message):
            compare_report.read_reports(str(file), jobs)

    refused(("GMM9", "GMM25"), "is of the target 'GMM25', compared are GMM9")
    refused(("cleanrl-ppo", "vgs"), "calls its agent 'vgs'; a row needs its own name")
    refused(("{", "["), "--reports .*cleanrl.json")
    with pytest.raises(CompareError, match="--reports missing.json"):
        compare_report.read_reports("missing.json", jobs)
