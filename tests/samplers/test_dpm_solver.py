"""Few calls of a chain's own network: samples of the target, without weights."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import vgs_rl
from vgs_rl import VGS, Chain, ChainSampler, DPMSolver, MDPConfig, SamplingMDP, ScheduleConfig
from vgs_rl.envs import GMM9, FourGauss, Gaussian
from vgs_rl.samplers.dpm_solver import solver_steps
from vgs_rl.samplers.oracle import ExactSampler, oracle_sampler
from vgs_rl.samplers.stochastic import GaussianKernel
from vgs_rl.starts import StartConfig

STD = 0.6


def gaussian(kind: str, steps: int = 300) -> ChainSampler:
    """A chain of N(0, STD² I) with the exact control, noise and start, in float64."""
    schedule = ScheduleConfig(total_noise=0.95 if kind == "vp" else 4.0)
    chain = Chain.build(schedule, kind, steps)  # type: ignore[arg-type]
    spread = chain.S + STD**2 / chain.A.square()
    config = MDPConfig(
        chain=kind,  # type: ignore[arg-type]
        num_steps=steps,
        schedule=schedule,
        start=StartConfig(scale=math.sqrt(float(spread[0]))),
    )
    mdp = SamplingMDP(Gaussian(covariance=[STD**2, STD**2]), config, dtype=torch.float64)
    mdp.noise_scale_of_gaussian(STD)

    def control(x: Tensor, t: int) -> Tensor:
        return -chain.s[t] * x / spread[t]

    return ChainSampler(mdp, control)


@pytest.mark.parametrize("kind", ["vp", "ve"])
@pytest.mark.parametrize("noise", [0.0, 0.25, 1.0])
def test_a_gaussian_has_its_width_in_few_calls(kind: str, noise: float) -> None:
    x = DPMSolver(gaussian(kind), 40, noise=noise).sample(40_000, 0).x
    torch.testing.assert_close(x.std(0), torch.full((2,), STD).to(x), rtol=0.015, atol=0)


@pytest.mark.parametrize("kind", ["vp", "ve"])
def test_twice_the_calls_are_a_third_of_the_error_at_most(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = gaussian(kind, 3_000)
    monkeypatch.setattr(chain.mdp, "noise", lambda n, _: torch.zeros(n, 2, dtype=torch.float64))
    monkeypatch.setattr(chain.mdp.start, "sample", lambda n, _: torch.ones(n, 2).double())
    y = (chain.mdp.chain.A * chain.mdp.chain.S.sqrt()).square() + STD**2  # the variance of y_t
    exact = float(chain.mdp.chain.A[0] * (y[-2] / y[0]).sqrt() * STD**2 / y[-2])
    generator = torch.Generator()

    def error(calls: int) -> float:
        x = DPMSolver(chain, calls, noise=0.0)._episodes(1, generator).x
        return abs(float(x[0, 0]) - exact)

    assert error(50) < error(25) / 3 < error(12) / 9


def test_modes_have_their_shares_in_a_tenth_of_the_calls() -> None:
    mdp = SamplingMDP(GMM9(), MDPConfig(chain="vp", num_steps=120))
    few = DPMSolver(oracle_sampler(mdp, n_fit=5_000), 12)
    energy, x = GMM9(), few.sample(9_000, 0).x
    exact = energy.sample(9_000, torch.Generator().manual_seed(1))
    assert energy.mode_indicators(x).float().mean(0).sub(1 / 9).abs().max() < 0.02
    torch.testing.assert_close(energy(x).mean(), energy(exact).mean(), rtol=0, atol=0.1)


def test_particles_keep_their_centre_and_threads_give_the_same_numbers() -> None:
    few = DPMSolver(vgs_rl.load_sampler("DW4", "cpu"), 4)
    few.chunk_size = 8
    x = few.sample(20, 3).x
    assert x.unflatten(-1, (4, 2)).mean(1).abs().max() < 1e-5
    assert torch.equal(few.sample(20, 3).x, x) and not torch.equal(few.sample(20, 4).x, x)
    assert few.sample(20, 3).log_weight is None and "no weights" in repr(few)


def test_parameters_stay_and_one_value_is_drawn_at() -> None:
    agent = VGS("GMM9", temperature=(0.5, 2.0), seed=0)
    few = DPMSolver(agent.sampler(), 4)
    rows = few.sample(50, 0).x
    assert rows.shape == (50, 3) and bool(((rows[:, 2] >= 0.5) & (rows[:, 2] <= 2.0)).all())
    at = few.at({"temperature": 0.7})
    assert isinstance(at, DPMSolver) and at.calls == 4 and at.noise == few.noise
    assert few.sample(50, 0, condition={"temperature": 0.7}).x.shape == (50, 2)


@settings(deadline=None)
@given(st.integers(2, 60), st.data())
def test_steps_rise_from_the_first_to_the_last(num_steps: int, data: st.DataObject) -> None:
    calls = data.draw(st.integers(2, num_steps))
    kind = data.draw(st.sampled_from(["vp", "ve"]))
    chain = Chain.build(ScheduleConfig(total_noise=0.9), kind, num_steps)
    steps = solver_steps(chain, calls)
    assert len(steps) == calls and steps[0] == 0 and steps[-1] == num_steps - 1
    assert all(a < b for a, b in itertools.pairwise(steps))


def test_what_has_no_few_calls_is_refused_in_one_line(tmp_path: Path) -> None:
    mdp = SamplingMDP(FourGauss(), MDPConfig(num_steps=4))
    chain = ChainSampler(mdp, lambda x, t: -x)
    for calls, message in {5: "at most 4, the steps of the chain, got 5", 1: "at least 2"}.items():
        with pytest.raises(ValueError, match=f"calls must be {message}"):
            DPMSolver(chain, calls)
    for noise in (2.0, math.nan, "much"):
        with pytest.raises(ValueError, match=r"noise must be in \[0, 1\], got"):
            DPMSolver(chain, 3, noise=noise)  # type: ignore[arg-type]
    kernel = GaussianKernel(lambda x, t: (x, torch.zeros_like(x)))
    with pytest.raises(ValueError, match="whose policy is a control, got GaussianKernel"):
        DPMSolver(ChainSampler(mdp, kernel), 3)
    with pytest.raises(ValueError, match="of a trained chain, got ExactSampler"):
        DPMSolver(ExactSampler(FourGauss()), 3)
    few = DPMSolver(chain, 3)
    with pytest.raises(ValueError, match="cannot be exported"):
        few.export(tmp_path / "few.pt2")
    with pytest.raises(ValueError, match="resample needs log-weights"):
        few.sample(2, 0, resample=True)
