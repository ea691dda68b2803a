"""Commands that are killed at random moments, and then called again until they are done."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killable import Command
from tiny import TINY

from vgs_rl.evaluation.report import Report
from vgs_rl.samplers.base import Samples

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
RUN = "runs/FourGauss/vgs/0"
TRAIN = Command(
    "train",
    (
        "tiny.yaml",
        "--budget.updates=40",
        "--evaluation.n_samples=4100",
        "--evaluation.validation_samples=200",
        "--evaluation.validate_every=10",
        "--evaluation.log_every=5",
        "--evaluation.save_seconds=0.05",
        "--progress=false",
        "--device=cpu",
    ),
    begun=f"{RUN}/config.yaml",
    again=("train", f"--resume={RUN}", "--progress=false"),
)
SAMPLE = Command("sample", (f"../made/{RUN}", "--n=60000", "--output=x.npz", "--device=cpu"))
EVALUATE = Command("evaluate", (RUN, "--n=8000", "--json=report.json", "--device=cpu"))
REFERENCE = Command(
    "make_reference",
    ("--target=DW4", "--out=dw4.npz", "--burn_in=20", "--draws=10", "--thin=2")
    + ("--validation_chains=4", "--test_chains=6"),
)
STUDENT = "runs/FourGauss/distilled-2/0"
DISTILL = Command(
    "distill",
    (f"../made/{RUN}", "--steps=2", "--states=4100", "--updates=30", "--progress=false"),
    begun=f"{STUDENT}/checkpoints/last.pt",
    again=("train", f"--resume={STUDENT}", "--progress=false"),
)
COMPARE = Command(
    "compare",
    ("tiny.yaml", "--agents=vgs,mala", "--budget=updates=30,energies=10000", "--device=cpu"),
)
DETECTOR = Command(
    "train_ebm",
    ("ebm_digits", "--data.held_out=[3]", "--ebm.energy=AutoencoderEnergyConfig")
    + ("--ebm.energy.hidden=[16]", "--ebm.energy.latent=4", "--ebm.pretrain_steps=5")
    + ("--ebm.negatives.agent.network.width=16", "--ebm.negatives.agent.objective.batch_size=16")
    + ("--ebm.warmup=1", "--ebm.learner.batch_size=32", "--budget.updates=30", "--jobs=1")
    + ("--watch.save_seconds=0.1", "--watch.figures_every=0", "--progress=false", "--device=cpu")
    + ("--comparison.autoencoder=null", "--comparison.plain_updates=null"),
    begun="runs/digits/config.yaml",
    again=("train_ebm", "--resume=runs/digits", "--jobs=1", "--progress=false"),
)


def metrics(file: Path) -> dict[str, Any]:
    return {name: metric.value for name, metric in Report.load(file).metrics.items()}


def of_run(folder: Path, run: str) -> dict[str, Any]:
    """What a run folder holds that does not depend on the time."""
    samples = Samples.load(folder / run / "samples.pt")
    lines = (folder / run / "metrics.jsonl").read_text().splitlines()
    records = [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]
    assert not list((folder / run).rglob(".*"))
    assert samples.log_weight is not None
    return {
        "metrics": metrics(folder / run / "report.json"),
        "x": samples.x.numpy(),
        "log_weight": samples.log_weight.numpy(),
        "evaluations": samples.energy_evaluations,
        "records": records,
    }


def of_arrays(folder: Path, name: str) -> dict[str, Any]:
    assert not list(folder.glob(".*"))
    with np.load(folder / name) as file:
        return {key: file[key] for key in file if key not in ("provenance", "diagnostics")}


def of_evaluation(folder: Path) -> dict[str, Any]:
    (report,) = json.loads((folder / "report.json").read_text())
    assert not list((folder / RUN).glob(".*"))
    return {"metrics": report["metrics"]}


def of_comparison(folder: Path) -> dict[str, Any]:
    (root,) = (folder / "runs/compare").iterdir()
    for agent in ("vgs", "mala", "uncontrolled"):
        assert list((root / "FourGauss" / agent / "0").glob("*.axes"))
    files = sorted(root.glob("FourGauss/*/0/report.json"))
    assert len(files) == 3 and (root / "table.json").is_file()
    return {str(file.relative_to(folder)): metrics(file) for file in files}


def of_detectors(folder: Path) -> dict[str, Any]:
    files = sorted(folder.glob("runs/digits/*/*/0/report.json"))
    assert files and (folder / "runs/digits/table.json").is_file()
    return {str(file.relative_to(folder)): metrics(file) for file in files}


RESULTS: dict[str, tuple[Command, Callable[[Path], dict[str, Any]]]] = {
    "train": (TRAIN, lambda folder: of_run(folder, RUN)),
    "sample": (SAMPLE, lambda folder: of_arrays(folder, "x.npz")),
    "evaluate": (EVALUATE, of_evaluation),
    "make-reference": (REFERENCE, lambda folder: of_arrays(folder, "dw4.npz")),
    "distill": (DISTILL, lambda folder: of_run(folder, STUDENT)),
    "compare": (COMPARE, of_comparison),
    "train-ebm": (DETECTOR, of_detectors),
}


class Undisturbed:
    """Each command once, without a kill: its results, and how long it takes."""

    def __init__(self, root: Path) -> None:
        self.root, self.known = root, dict[str, tuple[dict[str, Any], float]]()
        (root / "made").mkdir()
        (root / "made/tiny.yaml").write_text(TINY)
        self.of("train")

    def folder(self, name: str, label: str) -> Path:
        """Where a command is called; an evaluation has its own copy of the run."""
        folder = self.root / label
        folder.mkdir(exist_ok=True)
        (folder / "tiny.yaml").write_text(TINY)
        if name == "evaluate":
            import shutil

            shutil.copytree(self.root / "made/runs", folder / "runs")
        return folder

    def of(self, name: str) -> tuple[dict[str, Any], float]:
        if name not in self.known:
            command, results = RESULTS[name]
            folder = self.root / "made" if name == "train" else self.folder(name, f"whole-{name}")
            began = time.monotonic()
            command.finish(folder)
            self.known[name] = results(folder), time.monotonic() - began
        return self.known[name]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(tmp_path_factory.mktemp("kills"))


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other, equal_nan=True)
    return bool(one == other) or (one != one and other != other)


def killed_and_called_again(
    undisturbed: Undisturbed, name: str, kills: list[tuple[signal.Signals, float]], label: str
) -> None:
    """Kills after shares of the time that the command takes; the numbers are as without."""
    expected, seconds = undisturbed.of(name)
    command, results = RESULTS[name]
    folder = undisturbed.folder(name, label)
    for number, share in kills:
        command.kill(folder, number, share * seconds)
    command.finish(folder)
    assert same(results(folder), expected)


@pytest.mark.parametrize(
    ("name", "kills"),
    [
        ("train", [(signal.SIGKILL, 0.5), (signal.SIGTERM, 0.3)]),
        ("sample", [(signal.SIGKILL, 0.5), (signal.SIGINT, 0.4)]),
        ("make-reference", [(signal.SIGKILL, 0.6)]),
    ],
)
def test_a_command_that_is_killed_goes_on_to_the_numbers_of_an_undisturbed_one(
    name: str, kills: list[tuple[signal.Signals, float]], undisturbed: Undisturbed
) -> None:
    killed_and_called_again(undisturbed, name, kills, f"killed-{name}")


@pytest.mark.slow  # fifty kills
@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("seed", range(4))
def test_kills_at_random_moments_change_no_number(
    name: str, seed: int, undisturbed: Undisturbed
) -> None:
    moments = random.Random(f"{name} {seed}")
    kills = [(moments.choice(SIGNALS), moments.random()) for _ in range(2)]
    killed_and_called_again(undisturbed, name, kills, f"random-{name}-{seed}")
