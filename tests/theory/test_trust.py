"""What a file names is imported with the user's word alone; nothing of it runs before."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
import yaml
from commands import load

import vgs_rl
from vgs_rl import Energy
from vgs_rl.agents import (
    MLPNetwork,
    ValueGradientConfig,
)
from vgs_rl.evaluation.evaluate import Report
from vgs_rl.experiments.config import RunConfig, config_of, parse_run, run_config
from vgs_rl.experiments.pretrained import FOLDER, export_sampler, load_pretrained
from vgs_rl.experiments.run import build, load_run
from vgs_rl.files.checkpoint import load_checkpoint, save_checkpoint
from vgs_rl.names import names_in
from vgs_rl.trust import admit_typed

MARKER = "it_ran"
WRITES = f"open({MARKER!r}, 'w').close()\n"
EVIL = WRITES + (
    "import dataclasses, torch, vgs_rl\n"
    "from vgs_rl.agents import ValueGradientConfig, MLPNetwork, GradientMatching, NoNegatives\n"
    "from vgs_rl.ebm.energies import MLPEnergyConfig\n"
    "class Energy(vgs_rl.Energy):\n"
    "    dim = 2\n"
    "    def energy(self, x): return x.square().sum(-1)\n"
    "class Agent(ValueGradientConfig): pass\n"
    "class Network(MLPNetwork): pass\n"
    "class Rule(GradientMatching): pass\n"
    "class LearnedEnergy(MLPEnergyConfig): pass\n"
    "class Negatives(NoNegatives): pass\n"
    "class Net(torch.nn.Linear): pass\n"
    "def function(): open('it_was_called', 'w').close()\n"
    "def annotated() -> Energy: return Energy()\n"
)

# What a file may try: its content, the field that the refusal names, and the name.
RUN_FILES: list[tuple[dict[str, Any], str, str]] = [
    ({"env": "os:system", "env_args": {"command": f"touch {MARKER}"}}, "env", "os:system"),
    ({"env": "subprocess:getoutput", "env_args": {"cmd": "x"}}, "env", "subprocess:getoutput"),
    ({"env": "builtins:exec"}, "env", "builtins:exec"),
    ({"env": "evil:Energy"}, "env", "evil:Energy"),
    ({"env": "evil:me/Rings-v0"}, "env", "evil:me/Rings-v0"),
    ({"agent": "evil.Agent"}, "agent", "evil.Agent"),
    ({"agent": {"class_path": "posix.system"}}, "agent.class_path", "posix.system"),
    ({"agent": {"class_path": "evil.Agent"}}, "agent.class_path", "evil.Agent"),
    (
        {"agent": {"class_path": "ValueGradientConfig", "init_args": {"objective": "evil.Rule"}}},
        "agent.init_args.objective",
        "evil.Rule",
    ),
    (
        {"agent": {"init_args": {"network": {"class_path": "evil.Network"}}}},
        "agent.init_args.network.class_path",
        "evil.Network",
    ),
    (
        {"agent": {"objective": {"class_path": "evil.Rule"}}},
        "agent.objective.class_path",
        "evil.Rule",
    ),
    ({"agent": "{class_path: evil.Agent}"}, "agent.class_path", "evil.Agent"),
    ({"agent.class_path": "evil.Agent"}, "agent.class_path", "evil.Agent"),
    (
        {"env_args": {"a": [{"class_path": "evil.Agent", "init_args": {}}]}},
        "env_args.a[0].class_path",
        "evil.Agent",
    ),
    ({"env_args": {"a": "{class_path: evil.Agent}"}}, "env_args.a.class_path", "evil.Agent"),
]
EBM_FILES: list[tuple[dict[str, Any], str, str]] = [
    ({"ebm": {"energy": "evil.LearnedEnergy"}}, "ebm.energy", "evil.LearnedEnergy"),
    (
        {"ebm": {"negatives": {"class_path": "evil.Negatives"}}},
        "ebm.negatives.class_path",
        "evil.Negatives",
    ),
    (
        {
            "ebm": {
                "energy": {
                    "class_path": "ModuleEnergyConfig",
                    "init_args": {"class_path": "evil.Net"},
                }
            }
        },
        "ebm.energy.init_args.class_path",
        "evil.Net",
    ),
    ({"comparison": {"autoencoder": "evil.LearnedEnergy"}}, "comparison.autoencoder", "evil."),
    ({"data": {"class_path": "evil.Data"}}, "data.class_path", "evil.Data"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, in which a module lies that tells when it is imported."""
    (tmp_path / "evil.py").write_text(EVIL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield tmp_path
    sys.modules.pop("evil", None)


def refused(status: int, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that was refused."""
    error = capsys.readouterr().err
    assert status == 2 and error.count("\n") == 1 and error.startswith("error: "), error
    assert not Path(MARKER).exists() and "evil" not in sys.modules
    return error


def write_both(folder: Path, content: dict[str, Any]) -> None:
    """The same configuration as a file and as that of a run folder."""
    (folder / "run").mkdir()
    for file in (folder / "my.yaml", folder / "run" / "config.yaml"):
        file.write_text(yaml.safe_dump(content))


@pytest.mark.parametrize(("content", "field", "name"), RUN_FILES)
def test_a_file_cannot_name_foreign_code(
    content: dict[str, Any],
    field: str,
    name: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_both(folder, {"env": "GMM9", **content})
    commands = {
        "train": [["--config", "my.yaml"], ["--resume", "run"]],
        "evaluate": [["run"]],
        "compare": [["--env", "my.yaml", "--output", "out"]],
    }
    for script, lines in commands.items():
        for arguments in lines:
            error = refused(load(f"commands.{script}").main(arguments), capsys)
            assert f"{field} names '{name}" in error and "--trust true" in error
            assert "my.yaml" in error or "run/config.yaml" in error
    with pytest.raises(ValueError, match=r"trust=True"):
        load_run(folder / "run")
    assert sorted(p.name for p in folder.iterdir() if p.name != "__pycache__") == [
        "evil.py",
        "my.yaml",
        "run",
    ]


@pytest.mark.parametrize(("content", "field", "name"), EBM_FILES)
def test_a_detectors_file_cannot_name_foreign_code(
    content: dict[str, Any],
    field: str,
    name: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_both(folder, {"ebm": {}, **content})
    for script, arguments in (
        ("train_ebm", ["--config", "my.yaml"]),
        ("train_ebm", ["--resume", "run"]),
        ("evaluate", ["run"]),
    ):
        error = refused(load(f"commands.{script}").main(arguments), capsys)
        assert f"{field} names '{name}" in error and "--trust true" in error


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small exported sampler of GMM9."""
    path = tmp_path_factory.mktemp("exported")
    file = path / "config.yaml"
    agent = ValueGradientConfig(network=MLPNetwork(width=8, depth=2))
    file.write_text(
        "agent: {class_path: ValueGradientConfig, init_args: {network: {class_path: MLPNetwork, "
        "init_args: {width: 8, depth: 2}}}}\nmdp: {num_steps: 3}\n"
    )
    text = config_of(parse_run(["--config", str(file), "--device", "cpu"])).to_yaml()
    config = RunConfig(mdp=vgs_rl.MDPConfig(num_steps=3), agent=agent, device="cpu")
    _, trained = build(config)
    report = Report.from_json(load_checkpoint(FOLDER / "DW4.pt", kind="sampler")["report"])
    export_sampler(text, trained, report, path / "mine.pt")
    return path / "mine.pt"


def changed(exported: Path, to: Path, **content: Any) -> Path:
    """An exported sampler with another configuration, and a digest that is right."""
    state = load_checkpoint(exported, kind="sampler")
    config = {**yaml.safe_load(state["config"]), **content}
    save_checkpoint(to, state | {"config": yaml.safe_dump(config)}, kind="sampler")
    return to


def test_an_environments_configuration_cannot_name_foreign_code(folder: Path) -> None:
    file = folder / "my.yaml"
    file.write_text("env: evil:Energy\nmdp: {num_steps: 3}\n")
    with pytest.raises(ValueError, match="my.yaml: env names 'evil:Energy'.*--trust true"):
        gymnasium.make_vec("vgs_rl/GMM9-v0", num_envs=2, config=file)
    assert not Path(MARKER).exists()


def test_an_exported_sampler_loads(exported: Path) -> None:
    assert vgs_rl.load_sampler(exported, "cpu").sample(3).x.shape == (3, 2)


@pytest.mark.parametrize(("content", "field", "name"), RUN_FILES)
def test_an_exported_sampler_cannot_name_foreign_code(
    content: dict[str, Any],
    field: str,
    name: str,
    exported: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = changed(exported, folder / "bad.pt", **content)
    with pytest.raises(ValueError, match="--trust true") as caught:
        vgs_rl.load_sampler(file)
    assert str(file) in str(caught.value) and f"{field} names '{name}" in str(caught.value)
    error = refused(load("commands.evaluate").main(["--pretrained", str(file)]), capsys)
    assert f"{field} names '{name}" in error


def test_with_the_users_word_names_are_announced_and_work(
    exported: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = changed(exported, folder / "mine.pt", env="evil:Energy", env_args={})
    assert vgs_rl.load_sampler(file, "cpu", trust=True).sample(3).x.shape == (3, 2)
    assert Path(MARKER).exists()
    error = capsys.readouterr().err
    assert error == (f"trusting {file}: env imports evil:Energy from {folder / 'evil.py'}\n")


def test_compare_passes_the_users_word_on(folder: Path) -> None:
    (folder / "my.yaml").write_text("env: evil:Energy\n")
    make_jobs, root = load("comparison.jobs").make_jobs, folder / "out"
    (job,) = make_jobs(["my.yaml"], [], [0], {"updates": 1}, root, trust=True)
    assert job.trust is True
    (job,) = make_jobs(["evil:Energy"], [], [0], {"updates": 1}, root)
    assert job.trust == {"evil:Energy"}


@pytest.mark.parametrize("name", ["os:system", "evil:function", "evil:torch", "evil:Net"])
@pytest.mark.parametrize("typed", [True, False])
def test_what_is_no_energy_is_never_called(
    name: str, typed: bool, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "my.yaml").write_text(f"env: {name}\nenv_args: {{command: touch {MARKER}}}\n")
    arguments = ["--env", name] if typed else ["--config", "my.yaml", "--trust", "true"]
    assert load("commands.train").main(arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert f"{name} must be a subclass of vgs_rl.Energy, or a function annotated" in error
    assert not Path("it_was_called").exists() and not Path("runs").exists()


def test_a_function_that_promises_an_energy_is_one(folder: Path) -> None:
    assert vgs_rl.find("evil:annotated").make_energy().dim == 2
    assert run_config({"env": "evil:annotated"}, source="a.yaml", trust=True).env


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vgs_rl.envs:os", "no target is named 'os'"),
        ("vgs_rl.files.checkpoint:os", "must be a subclass of vgs_rl.Energy"),
        ("vgs_rl.registry:find", "must be a subclass of vgs_rl.Energy"),
        ("vgs_rl.files.checkpoint:save_checkpoint", "must be a subclass of vgs_rl.Energy"),
        (
            "vgs_rl.files.checkpoint.os:system",
            "vgs_rl.files.checkpoint.os, which cannot be imported",
        ),
    ],
)
def test_the_package_lends_no_other_names(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_config({"env": name}, source="a.yaml")


@pytest.mark.parametrize(
    "path",
    [
        "vgs_rl.files.checkpoint.os",
        "vgs_rl.training.config.ArgumentParser",
        "vgs_rl.experiments.run.build",
    ],
)
def test_a_class_path_within_the_package_names_what_its_field_expects(path: str) -> None:
    with pytest.raises(ValueError, match=rf"a.yaml: agent.class_path: {path} must be a subclass"):
        run_config({"agent": {"class_path": path}}, source="a.yaml")


def test_what_is_typed_is_trusted_by_that_name_alone(folder: Path) -> None:
    schema = RunConfig
    assert admit_typed(["--env", "evil:Energy"], schema) == {"evil:Energy"}
    assert admit_typed(["--agent.objective=evil.Rule", "--config", "a.b"], schema) == {"evil.Rule"}
    assert admit_typed(["--trust", "true"], schema) is True
    assert admit_typed(["--trust=true", "--trust=false"], schema) == frozenset()
    with pytest.raises(match="'evil:annotated'"):
        run_config({"env": "evil:annotated"}, source="a.yaml", trust=frozenset({"evil:Energy"}))


def test_a_file_cannot_trust_itself(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "my.yaml").write_text("trust: true\nenv: evil:Energy\n")
    assert "evil:Energy" in refused(load("commands.train").main(["--config", "my.yaml"]), capsys)
    (folder / "my.yaml").write_text("trust: true\n")
    assert "trust is no field" in refused(
        load("commands.train").main(["--config", "my.yaml"]), capsys
    )


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def f(:\n", "SyntaxError: invalid syntax (broken.py, line 1)"),
        ("\nimport no_such_thing\n", "ModuleNotFoundError: No module named 'no_such_thing'"),
        ("x = 1 / 0\n", "ZeroDivisionError: division by zero (broken.py, line 1)"),
        ("raise SystemExit(3)\n", "SystemExit: 3 (broken.py, line 1)"),
    ],
)
def test_a_module_that_fails_is_one_line(
    source: str, reason: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.py").write_text(source)
    (folder / "my.yaml").write_text("agent: broken.Agent\n")
    for arguments in (
        ["--env", "broken:Rings"],
        ["--agent", "broken.Agent"],
        ["--config", "my.yaml", "--trust=true"],
    ):
        assert load("commands.train").main(arguments) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and "broken" in error and reason in error, error


def test_a_sampler_of_a_users_energy_says_elsewhere_what_it_needs(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = changed(exported, tmp_path / "mine.pt", env="my_rings:Rings")
    with pytest.raises(ValueError, match="'my_rings:Rings'.*code of my_rings.*trust=True"):
        vgs_rl.load_sampler(file)
    with pytest.raises(ValueError, match=r"mine.pt: env needs the module my_rings, which cannot"):
        vgs_rl.load_sampler(file, trust=True)
    file = changed(exported, tmp_path / "mine.pt", env="nobody/Rings-v0")
    with pytest.raises(ValueError, match=r"mine.pt: env: no target .* import the module that"):
        vgs_rl.load_sampler(file)


def test_the_current_folder_shadows_nothing(tmp_path: Path) -> None:
    (tmp_path / "yaml.py").write_text(WRITES)
    (tmp_path / "scipy.py").write_text(WRITES)
    (tmp_path / "my.yaml").write_text("env: yaml:Energy\n")
    script = Path(__file__).parents[2] / "scripts/train.py"
    command = [sys.executable, str(script), "--config", "my.yaml", "--trust=true"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and not (tmp_path / MARKER).exists(), done.stderr
    assert "yaml" in done.stderr and "no target is named 'Energy'" in done.stderr


def test_a_file_that_asks_for_too_much_memory_is_refused(exported: Path, tmp_path: Path) -> None:
    network = {"class_path": "MLPNetwork", "init_args": {"width": 30_000, "depth": 3}}
    agent = {"class_path": "ValueGradientConfig", "init_args": {"network": network}}
    file = changed(exported, tmp_path / "huge.pt", agent=agent)
    with pytest.raises(ValueError, match=r"huge.pt does not fit.*bytes are asked for"):
        load_pretrained(file, "cpu")
    network["init_args"] = {"width": 16, "depth": 2}
    file = changed(exported, tmp_path / "other.pt", agent=agent)
    with pytest.raises(ValueError, match=r"other.pt does not fit.*must have shape"):
        load_pretrained(file, "cpu")


def test_other_files_given_as_samplers_are_called_what_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tmp_path / "best.pt", {"counters": {}})
    (tmp_path / "notes.txt").write_text("hello\n")
    (tmp_path / "empty.pt").write_bytes(b"")
    for name, message in {
        "best.pt": "holds no sampler, but a checkpoint of a training; load_run and evaluate.py",
        "notes.txt": "is a text file",
        "empty.pt": "is empty",
        ".": "is a folder, not a file; load_run and evaluate.py take run folders",
    }.items():
        assert load("commands.evaluate").main(["--pretrained", str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error


def test_values_that_contain_themselves_are_walked_once() -> None:
    loop: dict[str, Any] = {"class_path": "a.B"}
    loop["init_args"] = {"objective": loop, "x": [loop, loop]}
    names = {name.text for name in names_in({"agent": loop}, RunConfig)}
    assert names == {"a.B"}


class Large(Energy):
    """A normal density that keeps more memory than its file has."""

    dim = 2

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(30_000_000))

    def energy(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * x.square().sum(-1)


def test_a_users_energy_takes_what_memory_it_takes(exported: Path, tmp_path: Path) -> None:
    """The bound is for what a file describes, and a registered energy is the user's own."""
    vgs_rl.register("large/Large-v0", energy=Large)
    mine = changed(exported, tmp_path / "large.pt", env="large/Large-v0")
    assert vgs_rl.load_sampler(mine, "cpu").sample(3).x.shape == (3, 2)
