"""What is proven holds: log Z and total variation of samplers whose truth is known."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from springs import ShippedSprings, Springs
from torch import Tensor

from vgs_rl import VGS, Certificate, ChainSampler, MDPConfig, Samples, SamplingMDP, certificate
from vgs_rl.envs import GMM9, FourGauss
from vgs_rl.evaluation.certify import certify, hold
from vgs_rl.evaluation.evaluate import evaluate
from vgs_rl.samplers.oracle import ExactSampler, oracle_sampler

REPEATS = 50
# Of 50 joint statements at level 0.95, more than 8 fail with a probability below 0.001.
FAILURES = 8
LOG_Z = 7.0


def log_normal(x: Tensor, mean: float, std: float) -> Tensor:
    return -0.5 * ((x - mean) / std).square() - math.log(std * math.sqrt(2 * math.pi))


class Line:
    """Draws from N(0, 1) for the target N(mean, std²), times exp(LOG_Z)."""

    def __init__(self, mean: float, std: float) -> None:
        self.mean, self.std = mean, std

    def log_weight(self, x: Tensor) -> Tensor:
        return LOG_Z + log_normal(x, self.mean, self.std) - log_normal(x, 0.0, 1.0)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Forward and backward log-weights."""
        z = torch.randn(2, n, generator=generator, dtype=torch.float64)
        return self.log_weight(z[0]), self.log_weight(self.mean + self.std * z[1])

    @property
    def total_variation(self) -> float:
        """By quadrature."""
        x = torch.linspace(-30, 30, 200_001, dtype=torch.float64)
        gap = log_normal(x, self.mean, self.std).exp() - log_normal(x, 0.0, 1.0).exp()
        return 0.5 * float(torch.trapezoid(gap.abs(), x))


LINES = {
    "equal": Line(0.0, 1.0),
    "shifted": Line(0.5, 1.0),
    "narrow": Line(0.0, 0.5),
    "wide, whose weights have no variance": Line(0.3, 1.6),
}


@pytest.mark.parametrize("name", LINES)
def test_all_bounds_hold_at_once(name: str) -> None:
    line, generator = LINES[name], torch.Generator().manual_seed(0)
    failures = 0
    for _ in range(REPEATS):
        forward, backward = line.draw(400, generator)
        found = certificate(forward, backward, premise="exact samples")
        assert found.log_z_high is not None and found.tv_bound is not None
        holds = found.log_z_low <= LOG_Z <= found.log_z_high
        failures += not (holds and line.total_variation <= found.tv_bound)
    assert failures <= FAILURES


@pytest.mark.parametrize("name", LINES)
def test_the_bounds_close_in_on_the_truth(name: str) -> None:
    line, generator = LINES[name], torch.Generator().manual_seed(1)
    found = [
        certificate(*line.draw(n, generator), premise="exact samples") for n in (300, 3_000, 30_000)
    ]
    widths = [each.width for each in found]
    assert widths[0] > widths[1] > widths[2] > 0 and widths[2] < 0.15
    excess = [(each.tv_bound or 0.0) - line.total_variation for each in found]
    assert excess[0] > excess[1] > excess[2] > 0 and excess[2] < 0.05


def test_the_estimate_lies_between_the_bounds() -> None:
    generator = torch.Generator().manual_seed(2)
    for line in LINES.values():
        found = certificate(*line.draw(2_000, generator), premise="exact samples")
        assert found.log_z_high is not None
        assert found.log_z_low < found.log_z < found.log_z_high


def test_a_constant_in_the_energy_moves_log_z_and_nothing_else() -> None:
    forward, backward = LINES["narrow"].draw(500, torch.Generator().manual_seed(3))
    first = certificate(forward, backward, premise="exact samples")
    moved = certificate(forward - 1e3, backward - 1e3, premise="exact samples")
    for name, value in first.as_dict().items():
        shift = 1e3 if name in ("log_z", "log_z_low", "log_z_high") else 0.0
        if isinstance(value, float):
            assert moved.as_dict()[name] == pytest.approx(value - shift, abs=1e-6), name


def test_without_backward_paths_only_the_lower_bound_is_known() -> None:
    forward, backward = LINES["narrow"].draw(500, torch.Generator().manual_seed(4))
    found = certificate(forward)
    assert found.log_z_high is found.tv_bound is found.premise is found.sample_size is None
    assert found.n_backward == 0 and found.width == math.inf and not found.contradicts
    # It need not share its error with three other bounds.
    assert found.log_z_low > certificate(forward, backward, premise="exact samples").log_z_low


def test_a_mode_that_neither_paths_nor_particles_visit_is_not_seen() -> None:
    """What cannot be certified: a lower bound holds, an upper one is as good as its premise."""
    seen = math.log(0.5)  # half of Z is elsewhere
    generator = torch.Generator().manual_seed(5)
    noise = 0.1 * torch.randn(2, 1_000, generator=generator, dtype=torch.float64)
    found = certificate(
        seen + noise[0] - 0.005, seen + noise[1] + 0.005, premise="explored particles (SMC)"
    )
    assert found.log_z_low < seen < 0.0 and found.reliable
    assert found.log_z_high is not None and found.log_z_high < 0.0
    assert "explored particles (SMC)" in repr(found)


def test_bounds_that_exclude_each_other_refute_the_premise() -> None:
    forward = torch.zeros(1_000)
    found = certificate(forward, forward - 1.0, premise="reference samples (MCMC)")
    assert found.contradicts and found.tv_bound is None
    assert "refuted: reference samples (MCMC) are not of this target" in repr(found)


def test_paths_of_weight_zero_and_states_out_of_reach_count_in_full() -> None:
    generator = torch.Generator().manual_seed(6)
    dead = torch.rand(4_000, generator=generator) < 0.25
    forward = torch.where(dead, math.nan, 0.0)
    found = certificate(forward, torch.full((4_000,), math.log(0.75)), premise="exact samples")
    assert found.log_z_low < math.log(0.75) < (found.log_z_high or 0.0) + 1e-2
    assert found.tv_bound == pytest.approx(0.25, abs=0.05) or (found.tv_bound or 1.0) < 0.25
    lost = torch.zeros(4_000).masked_fill(dead, math.inf)
    found = certificate(torch.zeros(4_000), lost, premise="exact samples")
    assert found.log_z_high is not None and found.log_z_high > math.log(1 / 0.75) - 0.01
    assert found.sample_size == math.inf and found.as_dict()["sample_size"] is None
    unknown = lost.masked_fill(dead, math.nan)
    other = certificate(torch.zeros(4_000), unknown, premise="exact samples")
    assert (other.log_z_high, other.tv_bound) == (found.log_z_high, found.tv_bound)


def test_a_sampler_without_any_weight_is_bounded_by_nothing() -> None:
    found = certificate(torch.full((100,), -math.inf), torch.zeros(100), premise="exact samples")
    assert found.log_z_low == -math.inf and found.tv_bound == pytest.approx(1.0)
    assert not found.reliable and found.log_z_error is None


def test_the_sample_size_is_that_of_the_divergence() -> None:
    line = LINES["shifted"]
    found = certificate(
        *line.draw(50_000, torch.Generator().manual_seed(7)), premise="exact samples"
    )
    assert found.sample_size == pytest.approx(math.exp(0.5 * 0.5**2), rel=0.02)


def test_a_heavy_tail_has_bounds_but_no_standard_error() -> None:
    u = torch.rand(5_000, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    found = certificate(-u.log() / 1.1)
    assert found.k_hat > found.k_limit and not found.reliable and found.log_z_error is None
    assert math.isfinite(found.log_z_low) and "ESS is not reliable" in repr(found)


def test_it_is_strict_json_and_prints_every_bound() -> None:
    found = certificate(*LINES["narrow"].draw(300, torch.Generator()), premise="exact samples")
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False)) == found.as_dict()
    assert Certificate(**found.as_dict()) == found
    for value in (found.log_z_low, found.log_z_high, found.tv_bound):
        assert f"{value:.4f} (95 %, " in repr(found)


def test_bad_input_is_refused_by_name() -> None:
    zeros = torch.zeros(10)
    with pytest.raises(ValueError, match="premise must be one of exact samples, .*, got None"):
        certificate(zeros, zeros)
    with pytest.raises(ValueError, match="premise must be one of .*, got 'hearsay'"):
        certificate(zeros, zeros, premise="hearsay")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"backward must have shape \(n,\), n ≥ 2, got \(1,\)"):
        certificate(zeros, zeros[:1], premise="exact samples")
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\), got 0"):
        certificate(zeros, confidence=0)


@pytest.fixture(scope="module")
def oracle() -> ChainSampler:
    """The nine modes' exact values on the shipped chain."""
    return oracle_sampler(VGS("GMM9", device="cpu").mdp, n_fit=1_000)


class TestCertify:
    """Draws until the bounds are as close as asked for."""

    def test_the_oracle_holds_log_z_and_is_as_narrow_as_asked(self, oracle: ChainSampler) -> None:
        found = certify(oracle, GMM9(), 0.1, n=500)
        assert 0 < found.width <= 0.1 and found.n > 500 and found.confidence == 0.95
        assert found.log_z_low <= 0.0 <= (found.log_z_high or 0.0)
        assert found.n == found.n_backward and found.premise == "exact samples"
        assert found == certify(oracle, GMM9(), 0.1, n=500)
        assert found != certify(oracle, GMM9(), 0.1, n=500, seed=1)

    def test_it_stops_at_its_limit_and_the_report_says_so(self, oracle: ChainSampler) -> None:
        found = certify(oracle, GMM9(), 1e-3, n=400, limit=1_000)
        assert found.n == found.n_backward == 1_000 and found.width > 1e-3
        report = evaluate(oracle, GMM9(), 400)
        names = list(report.metrics)
        hold(report, found, 1e-3)
        assert list(report.metrics) == names
        assert report.metrics["log_z_low"].n == 1_000
        assert report.details["certificate"] == found.as_dict()
        (note,) = report.details["notes"]
        assert "above the 0.001 asked for: 1,000 forward and 1,000 backward paths" in note

    def test_a_reference_that_is_used_up_ends_it(self) -> None:
        sampler = ChainSampler(SamplingMDP(Springs(), MDPConfig(num_steps=3)), _nothing)
        energy = ShippedSprings()
        found = certify(sampler, energy, 1e-3, n=400)
        assert found.n_backward == len(energy.reference()) <= found.n < 1_000_000
        assert found.premise == "reference samples (MCMC)"

    def test_more_looks_cost_confidence(self, oracle: ChainSampler) -> None:
        """One look takes half of the error, so that it cannot be as narrow as no choice at all."""
        found = certify(oracle, GMM9(), 10.0, n=2_000)
        plain = certify(oracle, GMM9(), 10.0, n=2_000, confidence=0.9)
        assert found.n == plain.n == 2_000 and found.width > plain.width

    def test_what_has_no_upper_bound_is_refused(self, oracle: ChainSampler) -> None:
        with pytest.raises(ValueError, match="needs reverse weights, and ExactSampler has none"):
            certify(ExactSampler(GMM9()), GMM9(), 0.1)
        warm = SamplingMDP(FourGauss(), MDPConfig(num_steps=2, temperature=2.0))
        with pytest.raises(ValueError, match="needs temperature 1, got 2"):
            certify(ChainSampler(warm, _nothing), FourGauss(), 0.1)
        with pytest.raises(ValueError, match="width must be a number above 0, got 0"):
            certify(oracle, GMM9(), 0)
        with pytest.raises(ValueError, match="Unknown has neither an exact sampler nor a ref"):
            certify(oracle, Unknown(), 0.1)
        with pytest.raises(ValueError, match="needs independent paths, got Interacting"):
            certify(Interacting(oracle.mdp, oracle.policy), GMM9(), 0.1)


class Unknown(FourGauss):
    """Without samples of any kind."""

    @property
    def can_sample(self) -> bool:
        return False


class Interacting(ChainSampler):
    """Says that its paths are not independent."""

    def sample(self, n: int, *arguments: Any, **options: Any) -> Samples:
        return replace(super().sample(n, *arguments, **options), independent=False)


def _nothing(x: Tensor, t: int) -> Tensor:
    return torch.zeros_like(x)
