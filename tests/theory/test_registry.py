import contextlib
import os
import subprocess
import sys

import gymnasium
import pytest
import torch

import vgs_rl
import vgs_rl.envs
from vgs_rl import (
    Energy,
    MDPConfig,
    find,
    register,
    registered,
)
from vgs_rl.envs.configured import tuned_config
from vgs_rl.experiments.config import run_config
from vgs_rl.files.shipped import CONFIGS, shipped_configs
from vgs_rl.registry import default_mdp
from vgs_rl.training.config import read_yaml


class Bowl(Energy):
    def __init__(self, dim: int = 2, stiffness: float = 1.0) -> None:
        super().__init__()
        self.dim, self.stiffness = dim, stiffness

    def energy(self, x):
        return 0.5 * self.stiffness * x.square().sum(-1)


@pytest.mark.parametrize("name", ["vgs_rl/GMM9-v0", "GMM9", "vgs_rl.envs:vgs_rl/GMM9-v0"])
def test_a_target_is_found_by_id_short_name_and_module(name):
    target = find(name)
    assert target.id == "vgs_rl/GMM9-v0" and target.name == "GMM9"
    assert isinstance(target.make_energy(), vgs_rl.envs.GMM9)


@pytest.fixture
def registry(monkeypatch):
    """The registered targets; what the test registers is gone afterwards."""
    monkeypatch.setattr(vgs_rl.registry, "_targets", dict(vgs_rl.registry._targets))
    before = dict(gymnasium.registry)
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(before)


def test_a_users_target_takes_over_no_short_name(registry):
    register("me/GMM9-v0", energy=Bowl)
    register("me/Cup-v0", energy=Bowl)
    register("you/Cup-v0", energy=Bowl)
    for name in ("GMM9", "vgs_rl/GMM9", "vgs_rl/GMM9-v0"):
        assert isinstance(find(name).make_energy(), vgs_rl.envs.GMM9)
    assert isinstance(find("me/GMM9").make_energy(), Bowl)
    with pytest.raises(ValueError, match="'Cup' stands for several targets.* me/Cup-v0, you/Cup-v"):
        find("Cup")
    assert find("you/Cup").id == "you/Cup-v0"


def test_a_name_without_version_means_the_highest(registry):
    for version in (2, 10, 9):
        register(f"me/Cup-v{version}", energy=Bowl, energy_args={"dim": version})
    assert find("Cup").id == find("me/Cup").id == "me/Cup-v10"
    assert find("me/Cup-v2").make_energy().dim == 2
    with pytest.raises(ValueError, match="no target is named 'me/Cup-v3'"):
        find("me/Cup-v3")


def run_python(code, **environment):
    """What a fresh interpreter prints."""
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_the_package_alone_registers_every_target_without_a_warning():
    code = (
        "import vgs_rl as v, gymnasium; print(v.find('GMM9').id, gymnasium.spec('vgs_rl/LJ13-v0'))"
    )
    assert run_python(code).startswith("vgs_rl/GMM9-v0 EnvSpec(id='vgs_rl/LJ13-v0'")


def test_an_id_that_names_the_package_needs_no_import():
    code = (
        "import gymnasium; e = gymnasium.make('vgs_rl:vgs_rl/GMM9-v0'); "
        "print(e.reset(seed=0)[0].shape, e.spec.id)"
    )
    assert run_python(code) == "(3,) vgs_rl/GMM9-v0"


def test_a_class_is_found_by_its_import_path():
    target = find("vgs_rl.envs:Funnel")
    assert target.name == "Funnel"
    assert target.make_energy(dim=3).dim == 3


def test_a_module_that_registers_when_imported_is_found(tmp_path, monkeypatch):
    (tmp_path / "my_bowls.py").write_text(
        "import vgs_rl, vgs_rl.envs\n"
        "vgs_rl.register('me/Wide-v3', energy=vgs_rl.envs.Funnel, energy_args={'dim': 4})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert find("my_bowls:me/Wide-v3").make_energy().dim == 4
    assert find("my_bowls:Wide").name == "Wide"
    assert gymnasium.make("my_bowls:me/Wide-v3").observation_space.shape == (5,)


def test_a_near_miss_is_suggested():
    with pytest.raises(ValueError, match="no target is named 'GMM8'; did you mean .*GMM9"):
        find("GMM8")
    with pytest.raises(ValueError, match="registered: .*vgs_rl/GMM9-v0"):
        find("zzzzzz")
    with pytest.raises(ModuleNotFoundError):
        find("no_such_module_here:Thing")


def test_registering_again_replaces():
    register("test/Bowl-v0", energy=Bowl, energy_args={"dim": 2})
    register("test/Bowl-v0", energy=Bowl, energy_args={"dim": 3}, mdp=MDPConfig(num_steps=4))
    assert find("Bowl").make_energy().dim == 3
    assert registered().count("test/Bowl-v0") == 1
    envs = gymnasium.make_vec("test/Bowl-v0", num_envs=2)
    assert envs.observation_space.shape == (2, 4)
    assert envs.unwrapped.mdp.num_steps == 4


@pytest.mark.parametrize("id", ["Bowl", "Bowl-v0", "me/Bowl"])
def test_bad_ids_are_refused(id):
    with pytest.raises(ValueError, match="id must read 'namespace/Name-v0'"):
        register(id, energy=Bowl)


def test_bad_energies_and_arguments_are_refused_by_name():
    with pytest.raises(TypeError, match="energy must be an Energy class or a function, got 3"):
        register("test/Bowl-v1", energy=3)
    with pytest.raises(ValueError, match="env_args of vgs_rl/GMM9-v0: .*'dimension'"):
        find("GMM9").make_energy(dimension=3)
    target = register("test/NotAnEnergy-v0", energy=lambda: torch.nn.Linear(2, 1))
    with pytest.raises(TypeError, match=r"test/NotAnEnergy-v0 must make a vgs_rl.Energy, got Lin"):
        target.make_energy()


def test_default_mdp_is_a_copy():
    mdp = default_mdp("GMM9")
    mdp.schedule.total_noise = 0.5
    assert find("GMM9").mdp.schedule.total_noise == 0.8


def test_every_registered_id_has_string_entry_points():
    for id in registered():
        assert gymnasium.spec(id).to_json()


TUNED = [name for name in shipped_configs("run") if "/" not in name and name != "dw4_short"]


@pytest.mark.parametrize("name", TUNED)
def test_an_id_and_its_shipped_configuration_are_one_chain(name):
    config = run_config(read_yaml(CONFIGS / f"{name}.yaml"))
    target = find(config.env)
    assert target.mdp == config.mdp and tuned_config(config.env) == name
    with contextlib.closing(gymnasium.make(target.id)) as env:
        assert env.unwrapped.mdp.config == config.mdp


@pytest.mark.usefixtures("registry")
def test_a_registration_takes_its_chain_from_a_configuration(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("mdp: {num_steps: 7, schedule: {kind: auto, total_noise: 0.5}}\n")
    target = register("tests/FromFile-v0", energy=Bowl, mdp=file)
    assert target.mdp.num_steps == 7 and target.mdp.schedule.total_noise == 0.5
    file.write_text("mdp: {num_steps: 0}\n")
    target = register("tests/FromFile-v0", energy=Bowl, mdp=file)
    with pytest.raises(ValueError, match=rf"mdp of {file}: num_steps must be at least 1, got 0"):
        _ = target.mdp
    assert register("tests/FromFile-v0", energy=Bowl, mdp=str(file)).config == file
    with pytest.raises(FileNotFoundError, match=r"mdp: there is no configuration .*missing\.yaml"):
        register("tests/FromFile-v0", energy=Bowl, mdp=tmp_path / "missing.yaml")
    with pytest.raises(TypeError, match="mdp must be an MDPConfig or the path .*, got 7"):
        register("tests/FromFile-v0", energy=Bowl, mdp=7)
