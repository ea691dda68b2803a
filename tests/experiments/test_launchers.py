"""Launchers: the same runs and the same numbers, here or on a cluster."""

import importlib.util
import json
import os
import pickle
import shutil
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commands import call

from vgs_rl.experiments.config import named_config
from vgs_rl.experiments.launchers import LocalLauncher, RayLauncher, SpreadSampler, pack, unpack
from vgs_rl.experiments.run import build
from vgs_rl.samplers.mcmc.mala import MALASampler


class Lost(Exception):
    """What Ray raises when a worker has died as often as it may."""


class FakeRay:
    """A cluster of one process that has another disk, whose tasks travel as pickles.

    Attributes:
        lost: names of jobs whose workers die.
        elsewhere: whether what a task writes is on a disk that the caller does not see.
    """

    exceptions = SimpleNamespace(RayError=Lost)

    def __init__(self) -> None:
        self.lost: set[str] = set()
        self.elsewhere = False
        self.options: dict[str, Any] = {}
        self.started: dict[str, Any] = {}

    def is_initialized(self) -> bool:
        return bool(self.started)

    def init(self, **options: Any) -> None:
        self.started = options

    def put(self, value: Any) -> bytes:
        return pickle.dumps(value)

    def remote(self, function: Any) -> Any:
        def options(**given: Any) -> Any:
            self.options = given
            return SimpleNamespace(remote=lambda *arguments: (function, pickle.dumps(arguments)))

        return SimpleNamespace(options=options)

    def wait(self, references: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        return references[-1:], references[:-1]

    def get(self, reference: Any) -> Any:
        function, packed = reference
        sent, item, threads = pickle.loads(packed)
        if getattr(item, "name", None) in self.lost:
            raise Lost("the worker died")
        result = function(pickle.loads(sent), item, threads)
        if self.elsewhere:
            shutil.rmtree(item.folder)
        return result


@dataclass(frozen=True)
class Writing:
    """A job that writes a number."""

    name: str
    root: Path

    @property
    def folder(self) -> Path:
        return self.root / self.name

    @property
    def log(self) -> Path:
        return self.root / "jobs" / f"{self.name}.log"

    @property
    def ready(self) -> bool:
        return True

    @property
    def finished(self) -> bool:
        return (self.folder / "deep" / "report.json").is_file()

    def fraction(self) -> float:
        return 0.0


def write(job: Writing) -> bool:
    print(f"{job.name} at work")
    if job.name == "bad":
        raise ValueError("a bad\njob")
    (job.folder / "deep").mkdir(parents=True)
    (job.folder / "deep" / "report.json").write_text(job.name)
    return True


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)  # type: ignore[arg-type]
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: name == "ray" or found(name, *rest)
    )
    return fake


@pytest.mark.parametrize("elsewhere", [False, True])
def test_runs_on_ray_leave_the_same_folders_and_fail_by_themselves(
    ray: FakeRay, tmp_path: Path, elsewhere: bool
) -> None:
    ray.elsewhere, ray.lost = elsewhere, {"lost"}
    jobs = [Writing(name, tmp_path) for name in ("a", "lost", "b")]
    launcher = RayLauncher(address="ray://head:10001", threads=3, gpus=0.5, retries=2)
    failed = launcher.run(jobs, write, progress_bar=False)
    assert failed == {"lost": "its worker was lost 3 times: the worker died"}
    for name in ("a", "b"):
        assert (tmp_path / name / "deep" / "report.json").read_text() == name
        assert (tmp_path / "jobs" / f"{name}.log").read_text() == f"{name} at work\n"
    assert ray.started["address"] == "ray://head:10001"
    assert ray.options == {"num_cpus": 3, "num_gpus": 0.5, "max_retries": 2}


def test_a_job_that_raises_on_ray_is_one_line_and_its_log_the_rest(
    ray: FakeRay, tmp_path: Path
) -> None:
    jobs = [Writing(name, tmp_path) for name in ("bad", "good")]
    failed = RayLauncher().run(jobs, write, progress_bar=False)
    assert failed == {"bad": f"ValueError: a bad job ({tmp_path / 'jobs' / 'bad.log'})"}
    assert "Traceback" in (tmp_path / "jobs" / "bad.log").read_text()
    assert RayLauncher().run(jobs[1:], write, progress_bar=False) == {}  # finished before


@pytest.mark.parametrize("resample", [False, True])
def test_chunks_drawn_anywhere_are_the_same_numbers(ray: FakeRay, resample: bool) -> None:
    sampler = build(named_config("gmm9"))[1].sampler()
    sampler.chunk_size = 40
    here = sampler.sample(100, 5, resample=resample)
    for launcher in (RayLauncher(), LocalLauncher()):
        spread = SpreadSampler(sampler, launcher).sample(100, 5, resample=resample)
        assert torch.equal(here.x, spread.x)
        assert here.log_weight is not None and spread.log_weight is not None
        assert torch.equal(here.log_weight, spread.log_weight)
        assert here.energy_evaluations == spread.energy_evaluations
        assert sampler.mdp.energy_evaluations == 0


def test_only_chains_are_spread() -> None:
    energy = build(named_config("gmm9"))[1].energy
    with pytest.raises(ValueError, match="chunks of a ChainSampler on the CPU, got MALASampler"):
        SpreadSampler(MALASampler(energy, 10_000), LocalLauncher())


def test_a_folder_travels_whole_and_its_report_last(tmp_path: Path) -> None:
    (tmp_path / "one" / "figures").mkdir(parents=True)
    (tmp_path / "one" / "report.json").write_text("{}")
    (tmp_path / "one" / "figures" / "x.png").write_bytes(b"\x00\x01")
    unpack(pack(tmp_path / "one"), tmp_path / "two")
    assert (tmp_path / "two" / "report.json").read_text() == "{}"
    assert (tmp_path / "two" / "figures" / "x.png").read_bytes() == b"\x00\x01"


REFUSALS = [
    (("--launcher", "ray", "--jobs", "2"), "--jobs is for --launcher local, got --launcher ray"),
    (("--address", "auto"), "--address is for --launcher ray, got --launcher local"),
    (("--retries", "0"), "--retries is for --launcher ray, got --launcher local"),
    (("--launcher", "slurm"), "--launcher: must be one of local, ray, got 'slurm'"),
]


@pytest.mark.parametrize(("options", "message"), REFUSALS)
def test_settings_of_the_other_launcher_are_refused(
    tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    _, error = call("compare", "GMM9", "--agents", "mala", *options, folder=tmp_path, status=2)
    assert message in error
    assert not list(tmp_path.iterdir())


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "ray" else found(name, *rest),
    )
    _, error = call("sample", "LJ13", "--launcher", "ray", folder=tmp_path, status=2)
    assert "pip install 'vgs-rl[ray]'" in error


@pytest.mark.slow
def test_a_comparison_on_a_cluster_is_the_local_one(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    options = ["FourGauss", "--agents", "pis,mala", "--budget", "energies=6e3", "--output"]
    tables = []
    try:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        for launcher in ("local", "ray"):
            call("compare", *options, launcher, "--launcher", launcher, folder=tmp_path)
            (table,) = (tmp_path / launcher).glob("*/table.json")
            tables.append(json.loads(table.read_text())["summary"])  # no times are in it
            assert not Path(launcher).exists()  # where the cluster was started
    finally:
        ray.shutdown()
    assert tables[0] == tables[1] and tables[0]["FourGauss"]["pis"]


def outlast(job: Writing) -> bool:
    """Ends where it is tried again; at first it waits for its machine's end."""
    tries = job.root / f"{job.name}.tries"
    with tries.open("a") as file:
        print(os.environ["RAY_NODE"], file=file)
    if len(tries.read_text().split()) == 1 and job.name == "waits":
        time.sleep(300)
    return write(job)


@pytest.mark.slow
def test_a_run_of_a_machine_that_is_lost_is_done_on_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines of a cluster are two nodes here, each with its own workers and store."""
    ray = pytest.importorskip("ray")
    cluster_of = pytest.importorskip("ray.cluster_utils").Cluster
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # workers know this module
    cluster = cluster_of(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = {}
    for name in ("first", "second"):
        monkeypatch.setenv("RAY_NODE", name)
        nodes[name] = cluster.add_node(num_cpus=1)
    tries = tmp_path / "waits.tries"
    jobs = [Writing(name, tmp_path) for name in ("waits", "after")]

    def lose() -> None:
        while not (tries.exists() and tries.read_text()):
            time.sleep(0.1)
        cluster.remove_node(nodes[tries.read_text().strip()], allow_graceful=False)

    try:
        ray.init(address=cluster.address, log_to_driver=False)
        other = threading.Thread(target=lose)
        other.start()
        assert RayLauncher(retries=2).run(jobs, outlast, progress_bar=False) == {}
        other.join()
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert all(job.finished for job in jobs)
    assert sorted(tries.read_text().split()) == ["first", "second"]
