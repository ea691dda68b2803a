"""Detectors trained as energy-based models: choice by validation, resuming, tables, metrics."""

import contextlib
import json
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import ROOT, call, load, run, run_until_ctrl_c, without_pictures

from vgs_rl.agents import (
    EBMConfig,
    EBMTrainer,
    LangevinNegatives,
    NoNegatives,
)
from vgs_rl.agents.ebm.detector import DetectorTraining, WatchConfig, chosen_by, load_energy
from vgs_rl.ebm.contrastive import ContrastiveConfig
from vgs_rl.ebm.energies import AutoencoderEnergy, AutoencoderEnergyConfig
from vgs_rl.envs import anomaly
from vgs_rl.evaluation.detection import LabelledFeatures
from vgs_rl.evaluation.report import Metric, Report
from vgs_rl.files.checkpoint import load_checkpoint
from vgs_rl.files.lock import FolderLock
from vgs_rl.plots.detection import plot_detector_curves, plot_projection, plot_scores
from vgs_rl.training.config import BudgetConfig
from vgs_rl.training.folder import RunFolder

TINY = [
    "--data.held_out=[3,5]",
    "--ebm.energy.hidden=[16]",
    "--ebm.energy.latent=4",
    "--ebm.pretrain_steps=5",
    "--ebm.warmup=1",
    "--ebm.learner.batch_size=32",
    "--ebm.negatives.agent.network.width=16",
    "--ebm.negatives.agent.objective.batch_size=16",
    "--watch.validate_every=4",
    "--watch.save_every=4",
    "--watch.log_every=2",
    "--watch.figures_every=1",
    "--progress=false",
    "--device=cpu",
]


SHIPPED = ["--config", ROOT / "configs/ebm_digits.yaml"]
ITS_OWN_LOSS = ["--comparison.autoencoder=null", "--comparison.plain_updates=null"]
DIGITS = [*SHIPPED, "--ebm.energy=AutoencoderEnergyConfig", *TINY, *ITS_OWN_LOSS]
SHORT = [*DIGITS, "--budget.updates=4", "--watch.figures_every=0"]


@contextlib.contextmanager
def pictures_of(path):
    """One run of an experiment draws: the pictures of all take longer than everything else."""
    draw = RunFolder.draw

    def draw_one(folder, *arguments, **options):
        if folder.path.as_posix().endswith(path):
            draw(folder, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "draw", draw_one)
        yield


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A folder in which two digits and all methods were run for a moment, with two seeds."""
    folder = tmp_path_factory.mktemp("compared")
    options = ["--budget.updates=8", "--compare=true", "--seeds=2", "--jobs=1"]
    with pictures_of("3/vgs/0"):
        out, _ = call("train_ebm", *DIGITS, *options, folder=folder)
    assert "auroc_image by class" in out and "table.md" in out
    return folder / "runs/digits"


METHODS = ["vgs", "langevin", "langevin-persistent", "plain"]
CLASSICAL = ["isolation_forest", "one_class_svm", "local_outlier_factor"]


def test_the_table_has_every_method_and_seed(compared):
    content = json.loads((compared / "table.json").read_text())
    assert [row["method"] for row in content["rows"]] == METHODS + CLASSICAL
    assert all(row["seeds"] == 2 and "±" in row["auroc_image"] for row in content["rows"])
    for entry in content["reports"]:
        metric = entry["metrics"]["auroc_image"]
        assert set(metric["classes"]) == {"3", "5"}
        assert metric["value"] == pytest.approx(np.mean(list(metric["classes"].values())))
    assert "| local_outlier_factor |" in (compared / "table.md").read_text()


def test_langevin_gets_as_many_energy_evaluations_and_the_plain_autoencoder_as_many_steps(compared):
    for part in ("3", "5"):
        reports = {
            method: Report.from_json((compared / part / method / "0/report.json").read_text())
            for method in METHODS
        }
        own = reports["vgs"]
        batch = 3 * 32  # one update's data and negatives, and at most one more step of the walk
        for method in METHODS[1:3]:
            other = reports[method]
            assert own.energy_evaluations <= other.energy_evaluations
            assert other.energy_evaluations < own.energy_evaluations + 8 * batch
        assert reports["plain"].details["updates"] == own.details["updates"] + 5


def test_the_plain_autoencoder_may_be_another_energy_than_the_detectors(tmp_path):
    options = [each for each in TINY if "energy" not in each and "pretrain" not in each]
    options += ["--ebm.energy.prototypes=40", "--comparison.autoencoder.hidden=[16]"]
    options += ["--comparison.plain_updates=7", "--comparison.methods=[plain]", "--compare=true"]
    with without_pictures():
        call("train_ebm", *SHIPPED, *options, "--budget.updates=4", "--jobs=1", folder=tmp_path)
    root = tmp_path / "runs/digits/3"
    assert "PrototypeEnergyConfig" in (root / "vgs/0/config.yaml").read_text()
    plain = yaml.safe_load((root / "plain/0/config.yaml").read_text())["ebm"]["energy"]
    assert plain["class_path"].endswith("AutoencoderEnergyConfig")
    assert plain["init_args"]["hidden"] == [16] and plain["init_args"]["latent"] == 32
    assert Report.from_json((root / "plain/0/report.json").read_text()).details["updates"] == 7


def test_a_run_folder_holds_records_pictures_and_the_best_checkpoint(compared):
    path = compared / "3/vgs/0"
    names = {"energies", "projection", "learning_curves"}
    assert {p.stem for p in (path / "figures").glob("*.png")} == names
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    validated = [line for line in lines if "eval/validation" in line]
    assert [line["updates"] for line in validated] == [0, 4, 8]
    validated = validated[1:]  # the untrained energy is seen, and does not compete
    for name in ("normal", "anomalies", "negatives"):
        assert all(f"eval/energy_{name}" in line for line in validated)
    best = torch.load(path / "checkpoints/best.pt", weights_only=True)["state"]
    assert best["validation"] == max(line["eval/validation"] for line in validated)
    report = Report.from_json((path / "report.json").read_text())
    assert report.details["validation"] == best["validation"]
    assert report.target == "digits-3" and report.agent == "vgs"


def test_tensorboard_has_energies_auroc_and_pictures(compared):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(compared / "3/vgs/0"))
    events.Reload()
    tags = events.Tags()
    assert {"eval/auroc_image", "eval/energy_negatives", "train/energy_data"} <= set(
        tags["scalars"]
    )
    assert {"figures/energies", "figures/projection"} <= set(tags["images"])


def test_evaluate_reproduces_the_reports_of_several_detectors(compared):
    runs = ["digits/3/vgs/0", "digits/5/langevin/1"]
    out, _ = call("evaluate", *runs, "--json", "-", folder=compared.parent)
    for path, again in zip(runs, json.loads(out), strict=True):
        report = json.loads((compared.parent / path / "report.json").read_text())
        assert again["metrics"] == report["metrics"]
        assert again["train_seconds"] == report["train_seconds"]
    out, _ = call("evaluate", runs[0], "--split=validation", folder=compared.parent)
    best = torch.load(compared / "3/vgs/0/checkpoints/best.pt", weights_only=True)["state"]
    assert f"{best['validation']:.4f}" in out
    _, error = call("evaluate", runs[0], "--split=train", folder=compared.parent, status=2)
    assert "--split: must be one of test, validation, got 'train'" in error
    _, error = call("evaluate", runs[0], "--smc=true", folder=compared.parent, status=2)
    assert "--smc is for samplers, got a detector" in error


def test_an_existing_experiment_is_not_overwritten_unasked(compared):
    _, error = call("train_ebm", *DIGITS, folder=compared.parent.parent, status=2)
    assert "is not empty" in error and "--resume" in error and "--overwrite" in error


def reports_in(folder):
    found = {}
    for path in sorted(folder.rglob("report.json")):
        content = json.loads(path.read_text())
        metrics, evaluations = content["metrics"], content["energy_evaluations"]
        found[str(path.relative_to(folder))] = (metrics, evaluations, content["details"])
    return found


@pytest.mark.slow  # three processes that import everything
def test_processes_side_by_side_give_the_reports_of_one(done, tmp_path):
    out, _ = run("train_ebm.py", *SHORT, "--jobs=2", folder=tmp_path)
    assert "2 trainings into runs/digits" in out and "auroc_image by class" in out
    found = reports_in(tmp_path / "runs/digits")
    assert found.keys() == {"3/vgs/0/report.json", "5/vgs/0/report.json"}
    assert found["3/vgs/0/report.json"] == reports_in(done)["3/vgs/0/report.json"]


@pytest.mark.slow  # minutes on a slow machine: two processes at a time, three times over
@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_then_resume_gives_the_same_experiment_bit_for_bit(jobs, tmp_path):
    options = [*DIGITS, "--budget.updates=120", "--watch.figures_every=0", f"--jobs={jobs}"]
    metrics = tmp_path / "stopped/digits/3/vgs/0/metrics.jsonl"
    stopped = [*options, "--output=stopped"]
    out = run_until_ctrl_c("train_ebm.py", *stopped, folder=tmp_path, metrics=metrics)
    assert "--resume stopped/digits" in out
    assert len(reports_in(tmp_path / "stopped")) < 2
    resume = ["--resume", "stopped/digits", "--progress=false", f"--jobs={jobs}"]
    call("train_ebm", *resume, folder=tmp_path)
    call("train_ebm", *options, "--output=whole", folder=tmp_path)
    stopped, whole = reports_in(tmp_path / "stopped"), reports_in(tmp_path / "whole")
    assert len(whole) == 2 and stopped == whole


def test_a_run_that_fails_is_named_and_the_others_are_in_the_table(tmp_path, monkeypatch, capsys):
    jobs = load("detectors.jobs")

    def run_job(config, job, *, progress_bar):
        if job.part == "3":
            raise OSError(28, "No space left on device")
        job.folder.mkdir(parents=True)
        metric = Metric(value=0.5, ideal=1.0, n=1, details={"classes": {job.part: 0.5}})
        report = Report(
            target=job.part,
            agent=job.method,
            seed=job.seed,
            n_samples=1,
            train_seconds=0.0,
            env_steps=0,
            energy_evaluations=0,
            metrics={"auroc_image": metric},
        )
        report.save(job.folder / "report.json")
        return True

    monkeypatch.setattr(jobs, "run_job", run_job)
    monkeypatch.chdir(tmp_path)
    config = jobs.DetectorConfig(data=anomaly.DigitsSource(held_out=(3, 5)), seeds=2)
    made = jobs.make_jobs(config)
    failed = jobs.run_all(config, made, 1, bar=False)
    reason = "[Errno 28] No space left on device"
    assert failed == {"3/vgs/0": reason, "3/vgs/1": reason}
    assert [job.finished for job in made] == [False, True, False, True]
    file = made[1].folder / "report.json"
    file.write_text(file.read_text()[:40])
    assert not made[1].finished and made[1].report() is None
    assert f"failed: 3/vgs/0: {reason}" in capsys.readouterr().err


def command(*arguments):
    """train_ebm.py in this process, without pictures; its exit status."""
    with pytest.MonkeyPatch.context() as patch, without_pictures():
        patch.setattr(sys, "path", list(sys.path))
        return load("commands.train_ebm").main(
            [*map(str, arguments), "--jobs=1", "--progress=false"]
        )


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of a finished experiment of one digit, which nobody changes."""
    output = tmp_path_factory.mktemp("done") / "runs"
    assert command(*SHORT, "--part=3", f"--output={output}") == 0
    return output / "digits"


@pytest.fixture
def experiment(done, tmp_path):
    """A copy of it that may be changed, as if it had been made there."""
    root = shutil.copytree(done, tmp_path / "runs/digits")
    for file in root.rglob("config.yaml"):
        file.write_text(file.read_text().replace(str(done.parent), str(root.parent)))
    return root


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--seed=1"], "seed: the run has 0, got 1"),
        (["--part=5"], "part: the run has 3, got 5"),
        (["--ebm.learner.gamma=2"], "ebm.learner.gamma: the run has 1, got 2"),
        (["--ebm.energy.latent=5"], "ebm.energy.latent: the run has 4, got 5"),
        (["--ebm.negatives.agent.ema=0.5"], "ebm.negatives.agent.ema: the run has "),
        (["--ebm.pretrain_lr=0.5"], "ebm.pretrain_lr: the run has "),
        (["--data.held_out=[3]"], "data.held_out: the run has [3, 5], got [3]"),
        (["--watch.choose_by=mean"], "watch.choose_by: the run has image, got mean"),
        (["--output=elsewhere"], "output: the run lies in "),
        (["--ebm.learner.lr=0.5"], "ebm.learner.lr: no effect on a finished run; give a longer"),
        (["--budget.updates=2"], "budget must be above what the finished run used, updates=4"),
        (["--overwrite=true"], "--overwrite true starts an experiment, and --resume goes on"),
    ],
)
def test_resume_refuses_by_name_what_defines_an_experiment(change, message, done, capsys):
    before = {p: p.read_bytes() for p in done.rglob("*") if p.is_file()}
    assert command("--resume", done, *change) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1, error
    assert before == {p: p.read_bytes() for p in done.rglob("*") if p.is_file()}


def test_resume_honours_budget_learning_rates_and_seeds_and_writes_them_back(experiment, capsys):
    changes = ["--budget.updates=8", "--ebm.learner.lr=0.5", "--ebm.negatives.agent.lr=0.25"]
    assert command("--resume", experiment, *changes, "--seeds=2") == 0, capsys.readouterr().err
    runs = [experiment / "3/vgs/0", experiment / "3/vgs/1"]
    for path in (experiment, *runs):
        saved = yaml.safe_load((path / "config.yaml").read_text())
        assert saved["budget"]["updates"] == 8 and saved["ebm"]["learner"]["lr"] == 0.5
        assert saved["ebm"]["negatives"]["init_args"]["agent"]["init_args"]["lr"] == 0.25
    for path in runs:
        report = Report.load(path / "report.json")
        assert report.details["updates"] == 8
        (again,) = load("detectors.report").evaluate_runs([path]).values()
        assert again.metrics == report.metrics
    lines = [json.loads(line) for line in (runs[0] / "metrics.jsonl").read_text().splitlines()]
    rates = {r["updates"]: r["train/ebm_learning_rate"] for r in lines if "train/ebm_loss" in r}
    assert rates[4] < 0.5 and rates[8] == 0.5
    updates = [line["updates"] for line in lines]
    assert updates == sorted(updates)
    before = (runs[0] / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert command("--resume", experiment) == 0  # nothing is left to do
    assert "2 trainings into" in (shown := capsys.readouterr().out) and "2 finished" in shown
    assert (runs[0] / "metrics.jsonl").read_bytes() == before


def test_an_experiment_in_use_is_refused(done, capsys):
    again = [*DIGITS, "--part=3", f"--output={done.parent}", "--overwrite=true"]
    for folder in (done, done / "3/vgs/0"):
        with FolderLock(folder):
            assert command(*again) == 2
            assert "is in use by process" in capsys.readouterr().err
    assert (done / "3/vgs/0/report.json").is_file()


def test_a_damaged_report_is_made_again(experiment, capsys):
    file = experiment / "3/vgs/0/report.json"
    metrics = Report.load(file).metrics
    file.write_text(file.read_text()[:-40])
    assert command("--resume", experiment) == 0
    assert "report.json is damaged: it is made again" in capsys.readouterr().err
    assert Report.load(file).metrics == metrics


def test_a_signal_while_pretraining_keeps_the_checkpoint_of_the_beginning(tmp_path, monkeypatch):
    data = anomaly.load_digits(3)
    config = small(pretrain_steps=10)

    def training(resume):
        trainer = EBMTrainer(data.rows, config)
        watch = WatchConfig(validate_every=2, figures_every=0)
        path = tmp_path / "run"
        training = DetectorTraining(trainer, data, watch, path=path, yaml="x: 1\n", resume=resume)
        run = {"target": "x", "seed": 0, "progress_bar": False}
        return trainer, training.run(BudgetConfig(updates=2), **run)

    monkeypatch.setattr(RunFolder, "draw", lambda *_, **__: None)
    with monkeypatch.context() as patch:
        loss, steps = AutoencoderEnergy.pretraining_loss, []

        def press(self, x):
            steps.append(1)
            if len(steps) == 3:
                signal.raise_signal(signal.SIGTERM)
            return loss(self, x)

        patch.setattr(AutoencoderEnergy, "pretraining_loss", press)
        trainer, report = training(False)
    assert report is None and trainer.counters.updates == 0 and len(steps) == 3
    assert not load_checkpoint(tmp_path / "run/checkpoints/last.pt")["prepared"]
    trainer, report = training(True)
    whole = EBMTrainer(data.rows, config)
    whole.learn(BudgetConfig(updates=2), progress_bar=False)
    assert report is not None and torch.equal(trainer.score(data.test.x), whole.score(data.test.x))


BAD = [
    (["--data.held_out=[10]"], "data.held_out must be digits from 0 to 9, got 10"),
    (["--part=7"], "part must be one of 3, 5, got '7'"),
    (["--seeds=0"], "experiment.seeds must be at least 1, got 0"),
    (["--watch.validate_every=0"], "watch.validate_every must be at least 1, got 0"),
    (["--watch.choose_by=test"], "test"),
    (["--comparison.step_size=-1"], "comparison.step_size must be a positive number, got -1"),
    (["--data=MVTecSource", "--data.folder=nowhere"], "MVTec-AD is not at nowhere"),
    (["--ebm.energy.latents=3"], "latents"),
    (["--device=tpu9"], "device 'tpu9' is not available here"),
    (["--output=a_file"], "experiment folder a_file/digits cannot be written to"),
    (["--resume=nowhere"], "nothing to go on with"),
    (
        ["--ebm.energy=MLPEnergyConfig", "--compare=true"],
        "comparison.autoencoder must be given for the method `plain`: MLPEnergyConfig",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_gets_one_clear_error_and_leaves_no_files(
    arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").write_text("")
    digits = [str(each) for each in DIGITS]
    if arguments[0].startswith("--data=MVTec"):
        digits = [each for each in digits if "held_out" not in each]
    assert load("commands.train_ebm").main([*digits, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["a_file"]


# --- one training ---------------------------------------------------------------------------------


def toy_grids(images):
    """Unit-norm grids (N, 14, 14, 4) of mean, its complement, local contrast and a constant."""
    x = images.float() / 255
    x = x if x.ndim == 3 else x.mean(-1)
    mean = torch.nn.functional.adaptive_avg_pool2d(x[:, None], 14)
    square = torch.nn.functional.adaptive_avg_pool2d(x[:, None].square(), 14)
    parts = [mean, 1 - mean, (square - mean.square()).clamp_min(0).sqrt(), torch.ones_like(mean)]
    return anomaly.unit(torch.cat(parts, 1).permute(0, 2, 3, 1))


def small(negatives=None, **options):
    return EBMConfig(
        energy=AutoencoderEnergyConfig(hidden=(16,), latent=2),
        on_sphere=True,
        negatives=negatives or LangevinNegatives(steps=2),
        learner=ContrastiveConfig(batch_size=32),
        **options,
    )


def test_grids_are_evaluated_by_images_and_pixels_with_heat_maps(tmp_path):
    pytest.importorskip("skimage", reason="textures need the extra anomaly")
    crops = anomaly.TextureConfig(train=6, validation=4, test=4, defective=8)
    data = anomaly.load_texture("brick", crops, features=toy_grids)
    trainer = EBMTrainer(data.rows, small())
    watch = WatchConfig(validate_every=2, figures_every=0, choose_by="mean")
    training = DetectorTraining(trainer, data, watch, path=tmp_path / "run", yaml="")
    report = training.run(BudgetConfig(updates=4), target="brick", seed=0, progress_bar=False)
    assert set(report.metrics) == {"auroc_image", "auroc_pixel"}
    assert (tmp_path / "run/figures/heat_maps.png").is_file()
    records = training.folder.records
    both = [r for r in records if "eval/auroc_pixel" in r]
    assert all(
        r["eval/validation"] == 0.5 * (r["eval/auroc_pixel"] + r["eval/auroc_image"]) for r in both
    )


def test_the_test_split_does_not_choose(tmp_path):
    data = anomaly.load_digits(3)
    turned = replace(data.test, labels=~data.test.labels)
    energies = []
    for name, test in (("as it is", data.test), ("turned", turned)):
        trainer = EBMTrainer(data.rows, small())
        training = DetectorTraining(
            trainer,
            replace(data, test=test),
            WatchConfig(validate_every=1, figures_every=0),
            path=tmp_path / name,
            yaml="",
        )
        with without_pictures():
            report = training.run(BudgetConfig(updates=4), target="x", seed=0, progress_bar=False)
        energies.append((trainer.energy.state_dict(), report.metrics["auroc_image"].value))
    (one, value), (other, opposite) = energies
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert value == pytest.approx(1 - opposite)


def test_the_evaluated_energy_is_the_best_validated_one(tmp_path):
    data = anomaly.load_digits(3)
    trainer = EBMTrainer(data.rows, small())
    watch = WatchConfig(validate_every=1, figures_every=0)
    training = DetectorTraining(trainer, data, watch, path=tmp_path / "run", yaml="")
    with without_pictures():
        training.run(BudgetConfig(updates=6), target="x", seed=0, progress_bar=False)
    other = EBMTrainer(data.rows, small())
    assert load_energy(tmp_path / "run", other)["validation"] == training.best
    x = data.test.x
    assert torch.equal(other.score(x), trainer.score(x))
    load_energy(tmp_path / "run", other, "last")
    assert training.best == max(training._validated())
    wrong = EBMTrainer(data.rows, replace(small(), energy=AutoencoderEnergyConfig(hidden=(8,))))
    with pytest.raises(ValueError, match="best.pt does not fit this configuration"):
        load_energy(tmp_path / "run", wrong)


def test_without_negatives_the_energy_learns_its_own_loss_alone():
    data = anomaly.load_digits(3).rows
    trainer = EBMTrainer(data, small(NoNegatives()))
    x = data[:200]
    before = float(trainer.energy.pretraining_loss(x).detach())
    trainer.learn(BudgetConfig(updates=50), progress_bar=False)
    assert float(trainer.energy.pretraining_loss(x).detach()) < before
    assert trainer.counters.energy_evaluations == 50 * 32 and trainer.counters.env_steps == 0
    assert not len(trainer.negatives.draw(5)) and not len(trainer.drawn)
    again = EBMTrainer(data, small(NoNegatives()))
    again.learn(BudgetConfig(updates=20), progress_bar=False)
    third = EBMTrainer(data, small(NoNegatives()))
    third.load_state_dict(again.state_dict())
    third.learn(BudgetConfig(updates=50), progress_bar=False)
    assert torch.equal(third.score(x), trainer.score(x))


def test_what_chooses_is_images_pixels_or_their_mean():
    metrics = {
        "auroc_image": Metric(value=0.5, ideal=1.0, n=1),
        "auroc_pixel": Metric(value=1.0, ideal=1.0, n=1),
    }
    assert [chosen_by(c, metrics) for c in ("image", "pixel", "mean")] == [0.5, 1.0, 0.75]
    del metrics["auroc_pixel"]
    assert chosen_by("pixel", metrics) == 0.5


def test_pictures_take_any_kinds_and_refuse_what_has_no_plane():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(20, 5, generator=generator)
    plot_scores({"data": torch.randn(50, generator=generator), "anomalies": torch.zeros(3)})
    figure = plot_projection({"data": rows, "negatives": rows + 1})
    assert [line.get_label() for line in figure.axes[0].lines] == ["data", "negatives"]
    plot_detector_curves([{"updates": 1, "eval/auroc_image": 0.5}])
    plot_projection({"data": rows[:, :1], "negatives": rows[:, 1:2]})  # one feature
    plot_scores({"data": torch.full((4,), 1e30), "negatives": torch.full((4,), torch.nan)})
    with pytest.raises(ValueError, match="clouds must begin with rows"):
        plot_projection({"data": rows[:1]})


def test_sources_name_their_parts_and_refuse_what_they_do_not_have(tmp_path):
    assert anomaly.DigitsSource(held_out=(3, 1)).parts == ("3", "1")
    assert anomaly.TexturesSource().parts == anomaly.TEXTURES
    assert anomaly.TexturesSource(joint=True).parts == ("brick+grass+gravel",)
    assert anomaly.MVTecSource().parts == ("all",)
    assert anomaly.MVTecSource(joint=False, classes=("tile",)).parts == ("tile",)
    with pytest.raises(ValueError, match=r"data.joint must be true where data.classes is left out"):
        anomaly.MVTecSource(joint=False)
    assert isinstance(anomaly.DigitsSource().load("3", 0).test, LabelledFeatures)
    with pytest.raises(FileNotFoundError, match="MVTec-AD is not at"):
        anomaly.MVTecSource(folder=tmp_path).load("all", 0)


# --- MVTec-AD -------------------------------------------------------------------------------------


@pytest.fixture
def mvtec_folder(tmp_path):
    """Two small classes in MVTec-AD's layout."""
    from PIL import Image

    source = np.random.default_rng(0)
    for name in ("bottle", "tile"):
        for place, count in {"train/good": 6, "test/good": 2, "test/crack": 2}.items():
            folder = tmp_path / "mvtec" / name / place
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = source.integers(0, 255, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:03}.png")
        folder = tmp_path / "mvtec" / name / "ground_truth/crack"
        folder.mkdir(parents=True)
        mask = np.zeros((40, 40), dtype=np.uint8)
        mask[:20, :10] = 255
        for i in range(2):
            Image.fromarray(mask).save(folder / f"{i:03}_mask.png")
    return tmp_path / "mvtec"


def test_the_whole_mvtec_pipeline_runs_from_pictures_to_the_table(
    mvtec_folder, monkeypatch, capsys
):
    from vgs_rl.envs.anomaly import mvtec

    monkeypatch.setattr(mvtec, "b4_grids", lambda: toy_grids)  # its weights would be downloaded
    monkeypatch.chdir(mvtec_folder.parent)
    config = [f"--config={ROOT / 'configs/mvtec.yaml'}", "--data.folder=mvtec", "--compare=true"]
    shared = [each for each in TINY if "held_out" not in each]
    options = ["--budget.updates=4", "--watch.figures_every=0", "--jobs=1"]
    with pictures_of("all/vgs/0"):
        status = load("commands.train_ebm").main([*config, *shared, *options])
    assert status == 0, capsys.readouterr().err
    assert "auroc_pixel by class" in capsys.readouterr().out
    content = json.loads(Path("runs/mvtec/table.json").read_text())
    assert [row["method"] for row in content["rows"]] == METHODS + CLASSICAL
    for entry in content["reports"]:
        for name in ("auroc_image", "auroc_pixel"):
            assert set(entry["metrics"][name]["classes"]) == {"bottle", "tile"}
    assert Path("runs/mvtec/all/vgs/0/figures/heat_maps.png").is_file()
