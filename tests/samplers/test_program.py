"""A sampler exported to PyTorch's own format is the sampler, and needs nothing of this package."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import ks_2samp
from torch import Tensor

from vgs_rl import (
    PIS,
    VGS,
    ChainSampler,
    Energy,
    MDPConfig,
    SamplingMDP,
    ScheduleConfig,
    StartConfig,
)
from vgs_rl.agents import TD0
from vgs_rl.envs import DW4, GMM9, ManyWell32
from vgs_rl.geometry import Euclidean, Sphere
from vgs_rl.networks.config import ClusterNetwork
from vgs_rl.starts import make_start
from vgs_rl.transitions import State

NEEDED = "check_guards"  # a loop can be traced since then
if NEEDED not in inspect.signature(torch.export.ExportedProgram.module).parameters:
    pytest.skip("this PyTorch is too old to export a loop", allow_module_level=True)

ELSEWHERE = """
import sys, torch
sys.modules["vgs_rl"] = None  # an import of it fails
program = torch.export.load(sys.argv[1]).module()
uniform, normal = torch.load(sys.argv[2])
torch.save(program(uniform, normal), sys.argv[3])
"""


def numbers(mdp: SamplingMDP, n: int) -> tuple[Tensor, Tensor]:
    generator = mdp.generator(7)
    uniform = torch.rand(n, mdp.dim, generator=generator)
    return uniform, torch.randn(mdp.num_steps + 1, n, mdp.dim, generator=generator)


def replayed(sampler: ChainSampler, uniform: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
    """The chain by the MDP's own steps on the same numbers."""
    mdp = sampler.mdp
    x = mdp.start.of_noise(uniform, mdp.geometry.project(normal[0]))
    log_weight = -mdp.start.log_prob(x)
    for t in range(mdp.num_steps):
        eps = mdp.geometry.tangent(normal[t + 1], x)
        step = mdp.transition(State(x, t), mdp.control(sampler.policy, x, t), eps)
        x, log_weight = step.state.x, log_weight + step.log_ratio
    return x, log_weight - mdp.energy(x) / mdp.temperature


class OnSphere(Energy):
    geometry = Sphere(3)
    dim = 3

    def energy(self, x: Tensor) -> Tensor:
        return 2.0 * x[:, 0]


class InNumPy(Energy):
    dim = 2

    def energy(self, x: Tensor) -> Tensor:
        return torch.from_numpy((x.numpy() ** 2).sum(-1))


VP = {"chain": "vp", "num_steps": 3}
VE = {"chain": "ve", "num_steps": 3, "schedule": ScheduleConfig(total_noise=1.0)}
CHAINS: dict[str, tuple[type[Energy], dict[str, Any], StartConfig, dict[str, Any]]] = {
    "mixture": (GMM9, VP, StartConfig(kind="mixture", components=3), {}),
    "bellman": (GMM9, VP, StartConfig(), {"drift": "bellman"}),
    "product": (ManyWell32, VE, StartConfig(kind="product", components=3), {}),
    "sphere": (OnSphere, VE, StartConfig(kind="uniform"), {"objective": TD0()}),
    "particles": (DW4, VE, StartConfig(), {"network": ClusterNetwork(width=8, pooled=8)}),
}


@pytest.mark.parametrize(  # the exporter takes most of a minute for some of them
    "name", ["mixture", *(pytest.param(name, marks=pytest.mark.slow) for name in [*CHAINS][1:])]
)
def test_a_program_is_the_chain_and_needs_nothing_of_this_package(
    name: str, tmp_path: Path
) -> None:
    energy, chain, start, settings = CHAINS[name]
    agent = VGS(energy(), mdp=MDPConfig(**chain, start=start), seed=1, **settings)
    sampler = agent.sampler()
    generator = agent.mdp.generator(2)
    with torch.no_grad():
        for parameter in agent.average.parameters():  # which learns nothing here
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise, alpha=0.1)
    sampler.export(tmp_path / "sampler.pt2")
    uniform, normal = numbers(agent.mdp, 100)
    if name == "mixture":
        torch.save((uniform, normal), tmp_path / "numbers.pt")
        files = [str(tmp_path / file) for file in ("sampler.pt2", "numbers.pt", "result.pt")]
        subprocess.run([sys.executable, "-c", ELSEWHERE, *files], check=True)
        x, log_weight = torch.load(tmp_path / "result.pt")
    else:
        x, log_weight = torch.export.load(tmp_path / "sampler.pt2").module()(uniform, normal)
    with torch.no_grad():
        expected = replayed(sampler, uniform, normal)
    torch.testing.assert_close(x, expected[0])
    torch.testing.assert_close(log_weight, expected[1])


@pytest.mark.slow
def test_an_energy_outside_of_torch_is_exported_without_weights_alone(tmp_path: Path) -> None:
    sampler = VGS(InNumPy(), mdp=MDPConfig(num_steps=2)).sampler()
    with pytest.raises(ValueError, match="InNumPy cannot be exported with its energy; weights="):
        sampler.export(tmp_path / "sampler.pt2")
    assert list(tmp_path.iterdir()) == []
    sampler.export(tmp_path / "sampler.pt2", weights=False)
    uniform, normal = numbers(sampler.mdp, 5)
    (x,) = torch.export.load(tmp_path / "sampler.pt2").module()(uniform, normal)
    torch.testing.assert_close(x, replayed(sampler, uniform, normal)[0])


@pytest.mark.slow
def test_path_agents_are_exported_too(tmp_path: Path) -> None:
    sampler = PIS("GMM9", mdp=MDPConfig(num_steps=2), seed=0).sampler()
    sampler.export(tmp_path / "sampler.pt2")
    uniform, normal = numbers(sampler.mdp, 10)
    x, log_weight = torch.export.load(tmp_path / "sampler.pt2").module()(uniform, normal)
    with torch.no_grad():
        expected = replayed(sampler, uniform, normal)
    torch.testing.assert_close((x, log_weight), expected)


def test_a_policy_that_takes_numbers_alone_is_named(tmp_path: Path) -> None:
    sampler = ChainSampler(
        SamplingMDP(GMM9(), MDPConfig(num_steps=2)), lambda x, t: -x if t > 0 else x
    )
    with pytest.raises(ValueError, match="GMM9 cannot be exported with its policy: RuntimeError"):
        sampler.export(tmp_path / "sampler.pt2")


def test_noise_of_another_size_cannot_be_exported(tmp_path: Path) -> None:
    sampler = ChainSampler(SamplingMDP(GMM9()), lambda x, t: -x, noise_scale=0.9)
    with pytest.raises(ValueError, match=r"noise_scale must be 1 in an export, got 0\.9"):
        sampler.export(tmp_path / "sampler.pt2")


@pytest.mark.parametrize("kind", ["gaussian", "mixture", "product"])
def test_a_start_of_given_numbers_is_the_start(kind: Any) -> None:
    """Each coordinate of both has one distribution: Kolmogorov-Smirnov at 1e-3."""
    generator = torch.Generator().manual_seed(0)
    start = make_start(StartConfig(kind=kind, components=3), Euclidean(2), scale=1.5)
    data = torch.randn(5_000, 2, generator=generator)
    data[:1_500] = 0.3 * data[:1_500] + torch.tensor([4.0, -3.0])
    start.fit(data, generator)
    with torch.no_grad():
        drawn = start.sample(20_000, generator)
        uniform = torch.rand(20_000, 2, generator=generator)
        made = start.of_noise(uniform, torch.randn(20_000, 2, generator=generator))
        for ours, theirs in ((made, drawn), (start.log_prob(made), start.log_prob(drawn))):
            for i in range(1 if ours.ndim == 1 else 2):
                pair = (ours, theirs) if ours.ndim == 1 else (ours[:, i], theirs[:, i])
                assert ks_2samp(*(each.numpy() for each in pair)).pvalue > 1e-3
