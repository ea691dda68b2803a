"""What a user types first: agents and samplers of any target, their files, their printed forms."""

import json
import math
import subprocess
import sys
from pathlib import Path

import gymnasium
import pytest
import torch

import vgs_rl
from vgs_rl import (
    HMC,
    MALA,
    PIS,
    VGS,
    FunctionEnergy,
    MDPConfig,
    SamplingMDP,
    TrajectoryBalance,
)
from vgs_rl.agents import MLPNetwork, ValueGradientConfig

SMALL = {"network": MLPNetwork(width=8, depth=1)}


def ring(x: torch.Tensor) -> torch.Tensor:
    return 5.0 * (x.norm(dim=-1) - 3.0) ** 2


class Ring(vgs_rl.Energy):
    dim = 2

    def energy(self, x: torch.Tensor) -> torch.Tensor:
        return ring(x)


def targets() -> dict[str, tuple[object, dict[str, object]]]:
    env = gymnasium.make("vgs_rl/FourGauss-v0")
    return {
        "id": ("FourGauss", {}),
        "energy": (Ring(), {}),
        "function": (ring, {"dim": 2}),
        "mdp": (SamplingMDP(Ring()), {}),
        "environment": (env, {}),
        "vector environment": (gymnasium.make_vec("vgs_rl/FourGauss-v0", num_envs=2), {}),
    }


@pytest.mark.parametrize("kind", list(targets()))
@pytest.mark.parametrize("agent_type", [VGS, PIS, TrajectoryBalance])
def test_an_agent_takes_a_target_in_any_form(kind: str, agent_type: type) -> None:
    target, options = targets()[kind]
    agent = agent_type(target, seed=1, device="cpu", lr=1e-3, **options)
    assert agent.config.lr == 1e-3 and agent.mdp.dim == 2
    assert agent.sample(8).x.shape == (8, 2)


def test_an_id_comes_with_its_shipped_chain_and_settings() -> None:
    agent = VGS("GMM9", device="cpu")
    assert agent.mdp.config.schedule.total_noise == 0.8 and agent.config.prior_std == 5.0
    assert VGS("GMM9", device="cpu", prior_std=4.0).config.prior_std == 4.0
    assert VGS("GMM9", ValueGradientConfig(**SMALL), device="cpu").config.prior_std == 1.0


def test_learning_counts_totals_and_returns_the_agent() -> None:
    agent = VGS(Ring(), device="cpu", **SMALL)
    assert agent.learn(updates=2, progress_bar=False) is agent and agent.finished
    agent.learn(updates=3, progress_bar=False)
    assert (
        agent.counters.updates == 3 and repr(agent) == "ValueGradientAgent(Ring, seed=0, 3 updates)"
    )
    with pytest.raises(ValueError, match="budget needs at least one of updates"):
        agent.learn()


def test_an_evaluation_says_whose_it_is() -> None:
    report = PIS("FourGauss", device="cpu", seed=3).evaluate(200)
    assert (report.target, report.agent, report.seed, report.n_samples) == (
        "FourGauss",
        "pis",
        3,
        200,
    )
    assert "elbo" in str(report) and "<table" in report._repr_html_()


@pytest.mark.parametrize(
    ("kind", "library", "settings", "name"),
    [
        ("SB3Config", "stable_baselines3", {"algorithm": "SAC"}, "sb3-sac"),
        ("SB3Config", "stable_baselines3", {"policy_noise": "policy"}, "sb3-ppo-kernel"),
        ("TianshouConfig", "tianshou", {}, "tianshou-ppo"),
    ],
)
def test_a_report_of_a_librarys_agent_names_its_algorithm(
    kind: str, library: str, settings: dict[str, str], name: str
) -> None:
    pytest.importorskip(library)
    config = getattr(vgs_rl.agents, kind)(num_envs=4, batch_size=4, hidden=[8], **settings)
    report = config.build(SamplingMDP(Ring(), MDPConfig(num_steps=2))).evaluate(20)
    assert json.loads(report.as_json())["agent"] == report.agent == name


@pytest.mark.parametrize("agent_type", [VGS, PIS, TrajectoryBalance])
def test_a_saved_agent_draws_the_same_numbers_and_trains_on(
    agent_type: type, tmp_path: Path
) -> None:
    agent = agent_type("FourGauss", seed=2, device="cpu").learn(updates=2, progress_bar=False)
    agent.save(tmp_path / "sub/agent.pt")
    again = agent_type.load(tmp_path / "sub/agent.pt", device="cpu")
    assert again.config == agent.config and again.target_name == "FourGauss"
    assert torch.equal(again.sample(50, 7).x, agent.sample(50, 7).x)
    for each in (agent, again):
        each.learn(updates=4, progress_bar=False)
    assert torch.equal(again.sample(50, 7).x, agent.sample(50, 7).x)


def test_a_file_without_its_energy_asks_for_it(tmp_path: Path) -> None:
    agent = VGS(ring, dim=2, device="cpu", **SMALL)
    agent.save(tmp_path / "ring.pt")
    with pytest.raises(ValueError, match="energy must be given, ring was handed over as an object"):
        VGS.load(tmp_path / "ring.pt")
    again = VGS.load(tmp_path / "ring.pt", ring, dim=2, device="cpu")
    assert torch.equal(again.sample(9).x, agent.sample(9).x)
    with pytest.raises(ValueError, match="must hold a PISAgent, got a ValueGradientAgent"):
        PIS.load(tmp_path / "ring.pt", ring, dim=2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VGS("GMM8"), "no target is named 'GMM8'; did you mean"),
        (lambda: VGS(ring), "dim must be given with a function"),
        (lambda: VGS(Ring(), dim=3), "dim must be 2, which the energy has, got 3"),
        (lambda: VGS("GMM9", learning_rate=1.0), "learning_rate is no setting of ValueGradientCo"),
        (lambda: VGS("GMM9", lrr=1.0), "did you mean lr"),
        (lambda: VGS("GMM9", lr=-1.0), "agent.lr must be"),
        (lambda: VGS(SamplingMDP(Ring()), dim=2), "dim must be left out where an MDP is given"),
        (lambda: VGS("GMM9", device="tpu"), "device 'tpu' is not available"),
        (lambda: MALA(ring), "dim must be given with a function"),
        (lambda: MALA("GMM9", num_steps=0), "num_steps must be"),
        (lambda: FunctionEnergy(ring, 0), "dim must be"),
    ],
)
def test_a_mistake_names_the_argument(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_what_is_no_target_is_refused() -> None:
    with pytest.raises(TypeError, match="target must be an id, an Energy, a function"):
        VGS(3.0)


def test_mcmc_takes_chains_and_steps() -> None:
    samples = MALA(ring, dim=2, num_chains=50, num_steps=40, scale=3.0).sample(200, 1)
    assert samples.x.shape == (200, 2) and samples.energy_evaluations <= 50 * 41
    assert abs(float(samples.x.norm(dim=-1).mean()) - 3.0) < 0.3
    assert HMC("FourGauss", num_chains=10, num_steps=12).sample(20).energy_evaluations <= 10 * 97
    for kind in (vgs_rl.AIS, vgs_rl.SMC):
        weighted = kind(Ring(), num_steps=5, scale=3.0, pilot=20).sample(64)
        assert weighted.log_weight is not None and weighted.log_weight.isfinite().all()


def test_a_pictures_method_returns_a_figure() -> None:
    agent = VGS("FourGauss", device="cpu")
    assert agent.plot().axes and agent.sample(50).plot().axes and agent.evaluate(100).plot().axes


def test_heavy_libraries_are_imported_when_they_are_needed() -> None:
    code = (
        "import sys, vgs_rl; heavy = ['matplotlib', 'sklearn', 'ot', 'jsonargparse', 'tensorboard',"
        " 'scipy']; print([m for m in heavy if m in sys.modules]); vgs_rl.VGS"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    for name in vgs_rl.__all__:
        assert getattr(vgs_rl, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = vgs_rl.Nothing


def test_samples_are_written_for_other_programs(tmp_path: Path) -> None:
    import numpy as np

    samples = VGS("FourGauss", device="cpu").sample(20)
    assert repr(samples) == "Samples(20 of 2 dimensions, weighted, ESS " + f"{samples.ess:.1%})"
    samples.to_npz(tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as content:
        assert content["x"].shape == (20, 2) and content["log_weight"].shape == (20,)
    clusters = vgs_rl.Samples(x=torch.zeros(2, 6), log_weight=None, energy_evaluations=0)
    clusters.to_xyz(tmp_path / "x.xyz", n_particles=3)
    lines = (tmp_path / "x.xyz").read_text().splitlines()
    assert len(lines) == 2 * 5 and lines[0] == "3" and lines[2].split() == ["Ar", "0", "0", "0"]
    with pytest.raises(ValueError, match="n_particles must divide 6 dimensions into"):
        clusters.to_xyz(tmp_path / "y.xyz", n_particles=4)
    assert math.isfinite(samples.ess) and json.dumps(samples.ess)


def test_arviz_sees_draws_and_weights() -> None:
    pytest.importorskip("arviz_base")
    tree = VGS("FourGauss", device="cpu").sample(30).to_arviz()
    assert tree["posterior"]["x"].shape == (1, 30, 2)
    assert tree["sample_stats"]["log_weight"].shape == (1, 30)
