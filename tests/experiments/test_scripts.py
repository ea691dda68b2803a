"""The commands, run as a user runs them: in other folders, a process each where it matters."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
import yaml
from commands import ROOT, call, load, run, run_until_ctrl_c, without_pictures

import vgs_rl
from vgs_rl.envs.configured import tuned_config
from vgs_rl.experiments.run import load_run
from vgs_rl.samplers.base import Samples

TINY = [
    "--agent.network.init_args.width=16",
    "--agent.network.init_args.depth=2",
    "--agent.objective.batch_size=128",
    "--agent.objective.refresh_every=10",
    "--agent.objective.refresh_size=128",
    "--agent.objective.first_size=256",
    "--agent.objective.start_size=256",
    "--evaluation.n_samples=400",
    "--evaluation.validation_samples=100",
    "--evaluation.validate_every=20",
    "--evaluation.log_every=10",
    "--progress=false",
    "--device=cpu",
]


def guides_block(language: str, containing: str) -> str:
    blocks = re.findall(
        rf"```{language}\n(.*?)```", (ROOT / "docs/guides/energy.md").read_text(), re.DOTALL
    )
    block = next(block for block in blocks if containing in block)
    return block


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which GMM9 was trained for a moment."""
    folder = tmp_path_factory.mktemp("trained")
    config = ROOT / "configs" / "gmm9.yaml"
    options = ["--config", config, *TINY, "--budget.updates=40", "--ceiling=true"]
    out, _ = call("train", *options, folder=folder)
    assert "oracle posterior" in out and "oracle bellman" in out and "ideal" in out
    assert "summary.png" in out
    return folder


def test_training_fills_the_run_folder(trained: Path) -> None:
    path = trained / "runs/GMM9/vgs/0"
    report = json.loads((path / "report.json").read_text())
    assert {"target", "agent", "seed", "n_samples", "train_seconds"} < report.keys()
    assert {"env_steps", "energy_evaluations", "metrics"} < report.keys()
    assert report["target"] == "GMM9" and report["agent"] == "vgs" and report["seed"] == 0
    names = {"tvd_energy", "sinkhorn", "std_error", "mode_weight_error"}
    names |= {"log_z_error", "log_z_low", "log_z_high", "tv_bound", "elbo", "eubo", "gap"}
    names |= {"ess", "largest_weight", "k_hat", "path_ess"}
    assert report["metrics"].keys() == names
    assert all({"value", "ideal", "n"} < metric.keys() for metric in report["metrics"].values())
    pictures = {"chain", "value", "energy", "learning_curves", "summary"}
    assert {p.stem for p in (path / "figures").glob("*.png")} == pictures
    assert {p.stem for p in (path / "checkpoints").glob("*.pt")} == {"best", "last"}
    config = yaml.safe_load((path / "config.yaml").read_text())
    assert config["env"] == "GMM9" and "resume" not in config and "config" not in config
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [line["updates"] for line in lines if "train/loss" in line] == [10, 20, 30, 40]
    assert lines[0]["updates"] == lines[0]["energy_evaluations"] == lines[0]["env_steps"] == 0
    assert all(line["energy_evaluations"] > 0 and line["env_steps"] > 0 for line in lines[1:])


def test_an_exported_sampler_draws_the_same_samples(trained: Path, tmp_path: Path) -> None:
    path = trained / "runs/GMM9/vgs/0"
    file = tmp_path / "mine.pt"
    call("evaluate", path, "--n=100", "--export", file, folder=tmp_path)
    sampler = vgs_rl.load_sampler(file)
    agent = load_run(path)
    expected = agent.sampler().sample(100, 5)
    drawn = sampler.sample(100, 5)
    torch.testing.assert_close(drawn.x, expected.x)
    torch.testing.assert_close(drawn.log_weight, expected.log_weight)
    assert file.stat().st_size < (path / "checkpoints/best.pt").stat().st_size / 2
    out, _ = call("evaluate", "--pretrained", file, "--json", "-", folder=tmp_path)
    (again,) = json.loads(out)
    report = json.loads((path / "report.json").read_text())
    assert again["metrics"] == report["metrics"]
    assert again["train_seconds"] == report["train_seconds"]


@pytest.mark.slow  # torch traces every step; what a program draws is a law of samplers
def test_an_exported_program_runs(trained: Path, tmp_path: Path) -> None:
    path = trained / "runs/GMM9/vgs/0"
    program = tmp_path / "mine.pt2"
    call("evaluate", path, "--n=100", "--export", program, folder=tmp_path)
    steps = load_run(path).mdp.num_steps
    x, log_weight = torch.export.load(program).module()(
        torch.rand(7, 2), torch.randn(steps + 1, 7, 2)
    )
    assert x.shape == (7, 2) and log_weight.isfinite().all()


def test_a_sampler_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(FileNotFoundError, match="no trained sampler 'GMM10'"):
        vgs_rl.load_sampler("GMM10")


def test_a_run_keeps_the_samples_that_were_evaluated(trained: Path) -> None:
    path = trained / "runs/GMM9/vgs/0"
    samples = Samples.load(path / "samples.pt")
    report = json.loads((path / "report.json").read_text())
    assert samples.x.shape == (report["n_samples"], 2) and samples.log_weight is not None
    elbo = report["metrics"]["elbo"]["value"]
    assert float(samples.log_weight.double().mean()) == pytest.approx(elbo)


def test_a_drift_that_cannot_be_compiled_is_refused(trained: Path, tmp_path: Path) -> None:
    path = trained / "runs/GMM9/vgs/0"
    _, err = call("evaluate", path, "--compiled", "true", folder=tmp_path, status=2)
    assert "compiling is for networks of particle systems (ClusterNetwork), got" in err


def test_tensorboard_has_scalars_histograms_pictures_and_hyper_parameters(trained: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained / "runs/GMM9/vgs/0"))
    events.Reload()
    tags = events.Tags()
    groups = {tag.split("/")[0] for tag in tags["scalars"]}
    groups -= {"eval_by_energies", "eval_by_milliseconds"}
    assert groups == {"train", "rollout", "eval", "time", "report"}
    assert {"train/loss", "eval/elbo", "report/tvd_energy", "time/seconds"} < set(tags["scalars"])
    assert {"figures/chain", "figures/value", "figures/energy"} < set(tags["images"])
    assert "eval/energy" in tags["histograms"]
    plugins = events.summary_metadata
    assert any(m.plugin_data.plugin_name == "hparams" for m in plugins.values())


def test_evaluate_reproduces_the_report(trained: Path) -> None:
    out, _ = run("evaluate.py", "runs/GMM9/vgs/0", "--json", "-", folder=trained)
    (again,) = json.loads(out)
    report = json.loads((trained / "runs/GMM9/vgs/0/report.json").read_text())
    for name, metric in report["metrics"].items():
        assert again["metrics"][name]["value"] == pytest.approx(metric["value"], rel=1e-6), name
    out, _ = call("evaluate", "runs/GMM9/vgs/0", "--resample", "true", folder=trained)
    assert "tvd_energy" in out


def test_the_guides_example_registers_an_energy_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_rings.py").write_text(guides_block("python", "# my_rings.py"))
    (tmp_path / "rings.yaml").write_text(guides_block("yaml", "# rings.yaml"))
    commands = guides_block("bash", "my_rings:me/Rings-v0").splitlines()
    words = [shlex.split(command, comments=True) for command in commands]
    checked, made, by_id, by_path, judged = words
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_rings", raising=False)
    for python, _, code in (checked, made):
        assert python == "python"
        exec(code, {})
    options = [*TINY, "--budget.updates=30"]
    assert by_id[:2] == by_path[:2] == ["vgs-rl", "train"]
    assert judged[:2] == ["vgs-rl", "evaluate"]
    with without_pictures():
        call("train", *by_id[2:], *options, folder=tmp_path)
        call("train", *by_path[2:], *options, folder=tmp_path)
        call("evaluate", *judged[2:], "--n=50", folder=tmp_path)
    reports = [json.loads(p.read_text()) for p in tmp_path.glob("runs/Rings/vgs/*/report.json")]
    assert sorted(report["seed"] for report in reports) == [0, 1]
    names = {"log_z", "log_z_low", "elbo", "ess", "largest_weight", "k_hat", "path_ess"}
    assert all(names == report["metrics"].keys() for report in reports)


@pytest.mark.slow  # tests of kills say the same
def test_ctrl_c_then_resume_gives_the_same_run_bit_for_bit(tmp_path: Path) -> None:
    common = ["--config", ROOT / "configs/gmm9.yaml", *TINY, "--budget.updates=400"]
    common += ["--evaluation.figures_every=0"]
    metrics = tmp_path / "stopped/GMM9/vgs/0/metrics.jsonl"
    options = [*common, "--output=stopped"]
    out = run_until_ctrl_c("train.py", *options, folder=tmp_path, metrics=metrics)
    assert "--resume" in out
    stopped_at = torch.load(tmp_path / "stopped/GMM9/vgs/0/checkpoints/last.pt", weights_only=True)[
        "state"
    ]["counters"]["updates"]
    assert 0 < stopped_at < 400
    with without_pictures():
        call("train", "--resume", "stopped/GMM9/vgs/0", "--progress=false", folder=tmp_path)
        call("train", *common, "--output=whole", folder=tmp_path)

    def records(name: str) -> list[dict[str, object]]:
        lines = (tmp_path / name / "GMM9/vgs/0/metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(s).items() if k != "seconds"} for s in lines]

    assert records("stopped") == records("whole")
    one, other = (
        json.loads((tmp_path / name / "GMM9/vgs/0/report.json").read_text())["metrics"]
        for name in ("stopped", "whole")
    )
    assert one == other


CONSTANT = ["--mdp.schedule.kind=constant"]
BAD = [
    (["--config", "{root}/configs/gmm9.yaml", "--agent.foo=1"], "there is no option --agent.foo"),
    (["--config", "unknown.yaml"], "unknown.yaml: sheep is no field of RunConfig"),
    (["--config", "missing.yaml"], "missing.yaml"),
    (["--mdp.num_steps=few"], "mdp.num_steps must be a whole number, got 'few'"),
    (["--mdp.num_steps=0"], "num_steps must be at least 1, got 0"),
    (["--env=Gaussian", *CONSTANT, "--mdp.schedule.first=1.5"], "s_t must be below 1"),
    ([*CONSTANT, "--mdp.schedule.first=0.1"], "schedule.total_noise must be left out for kind"),
    (["--mdp.schedule.first=0.1"], "schedule.first must be left out for kind 'auto'"),
    (["--env=GMM8"], "did you mean GMM9"),
    (["--env=no_such_module:Thing"], "no_such_module"),
    (["--env=bad_energies:Column"], "Column.energy must return shape (B,) = (64,), got (64, 1)"),
    (["--env=bad_energies:Broken"], "Broken.energy failed on states of shape (64, 2)"),
    (["--env=bad_energies:NotOne"], "NotOne must be a subclass of vgs_rl.Energy, or a function"),
    (["--env=GMM9", "--env_args.size=3"], "env_args of vgs_rl/GMM9-v0"),
    (["--agent.lr=-1"], "agent.lr must be a positive number, got -1"),
    (["--agent.drift=sideways"], "sideways"),
    (["--budget.updates=0"], "budget.updates must be a positive number, got 0"),
    (["--device=tpu9"], "device 'tpu9' is not available here"),
    (["--output=a_file"], "run folder a_file/GMM9/vgs/0 cannot be written to"),
    (["--resume=nowhere"], "nothing to go on with"),
]

ENERGIES = """
import torch, vgs_rl
class Column(vgs_rl.Energy):
    dim = 2
    def energy(self, x): return x.square().sum(-1, keepdim=True)
class Broken(vgs_rl.Energy):
    dim = 2
    def energy(self, x): return self.no_such_thing
def NotOne(): return torch.nn.Linear(2, 1)
"""


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_gets_one_clear_error_and_leaves_no_files(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "bad_energies.py").write_text(ENERGIES)
    (tmp_path / "unknown.yaml").write_text("env: GMM9\nsheep: 3\n")
    (tmp_path / "a_file").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "bad_energies", raising=False)
    before = sorted(p for p in tmp_path.rglob("*") if "__pycache__" not in p.parts)
    status = load("commands.train").main([a.replace("{root}", str(ROOT)) for a in arguments])
    error = capsys.readouterr().err
    assert status == 2
    assert message in error, error
    assert error.startswith("error: ") and error.count("error:") == 1 and "Traceback" not in error
    assert before == sorted(p for p in tmp_path.rglob("*") if "__pycache__" not in p.parts)


def test_an_existing_run_is_not_overwritten_unasked(trained: Path) -> None:
    config = ROOT / "configs/gmm9.yaml"
    _, error = call("train", "--config", config, *TINY, folder=trained, status=2)
    assert "is not empty" in error and "--resume" in error and "--overwrite" in error


@pytest.mark.parametrize("damage", ["truncated", "foreign", "pickle"])
def test_a_damaged_or_foreign_checkpoint_is_refused(damage: str, trained: Path) -> None:
    path = trained / "runs/GMM9/vgs/0/checkpoints/best.pt"
    good = path.read_bytes()
    marker = trained / "executed"
    try:
        if damage == "truncated":
            path.write_bytes(good[: len(good) // 2])
        elif damage == "foreign":
            torch.save({"weights": torch.zeros(3)}, path)
        else:  # an object whose unpickling would run code
            torch.save(Bomb(str(marker)), path)
        _, error = call("evaluate", "runs/GMM9/vgs/0", folder=trained, status=2)
        assert "best.pt" in error and error.count("\n") == 1
        assert not marker.exists()
    finally:
        path.write_bytes(good)


class Bomb:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


def test_training_with_defaults_says_where_the_settings_of_the_target_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tuned_config("GMM9") == "gmm9" and tuned_config("vgs_rl/DW4-v0") == "dw4"
    assert tuned_config("FourGauss") == "gmm4"
    assert tuned_config("Gaussian") is None
    options = ["--env=GMM9", *TINY, "--budget.updates=1", f"--output={tmp_path}"]
    with without_pictures():
        assert load("commands.train").main(options) == 0
    out = capsys.readouterr().out
    assert "note: the agent has defaults; its settings for GMM9 are in the" in out
    assert "configuration gmm9: vgs-rl train gmm9" in out
