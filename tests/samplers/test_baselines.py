import math

import pytest
import torch

from vgs_rl import (
    MDPConfig,
    SamplingMDP,
    ScheduleConfig,
    StartConfig,
)
from vgs_rl.agents import (
    MALASampler,
    MLPNetwork,
    RefinedSampler,
    TwistedSMC,
    ValueGradientAgent,
    ValueGradientConfig,
)
from vgs_rl.energy import Energy
from vgs_rl.envs import (
    GMM9,
    FourGauss,
    Gaussian,
    ManyWell,
)
from vgs_rl.envs.targets.particles import LJ13
from vgs_rl.networks.base import ExactValue
from vgs_rl.networks.policies import ValueGradientPolicy
from vgs_rl.samplers.base import Sampler, Samples
from vgs_rl.samplers.mcmc.mala import MALAKernel
from vgs_rl.weights import effective_sample_size


def small_mdp(energy: Energy, num_steps: int = 6, scale: float = 1.5) -> SamplingMDP:
    schedule = ScheduleConfig(kind="auto", total_noise=0.9)
    config = MDPConfig(num_steps=num_steps, schedule=schedule, start=StartConfig(scale=scale))
    return SamplingMDP(energy, config)


def z_estimates(sampler: TwistedSMC, log_z: float, runs: int, n: int) -> torch.Tensor:
    """Ẑ/Z of independent runs of n particles."""
    weights = [sampler.sample(n, seed).log_weight for seed in range(runs)]
    return torch.stack([(w.double() - log_z).exp().mean() for w in weights if w is not None])


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("energy", [Gaussian(), FourGauss(), ManyWell(dim=2)])
def test_smc_is_unbiased_for_z_even_with_a_poor_twist(energy: Energy, threshold: float) -> None:
    mdp = small_mdp(energy)
    untrained = ValueGradientAgent(
        mdp, ValueGradientConfig(prior_std=1.5, network=MLPNetwork(width=8, depth=1))
    )
    sampler = TwistedSMC(mdp, untrained.policy, threshold)
    assert energy.log_z is not None
    ratios = z_estimates(sampler, energy.log_z, runs=150, n=64)
    error = ratios.std() / math.sqrt(len(ratios))
    assert abs(ratios.mean() - 1) < 4.5 * error
    assert error < 0.1  # or the test would prove nothing


@pytest.mark.parametrize("drift", ["posterior", "bellman"])
def test_smc_is_unbiased_for_z_with_exact_twists(drift: str) -> None:
    mdp = small_mdp(GMM9(), num_steps=10)
    policy = ValueGradientPolicy(mdp, ExactValue(mdp.energy, mdp.chain), drift)  # type: ignore[arg-type]
    ratios = z_estimates(TwistedSMC(mdp, policy), 0.0, runs=100, n=200)
    assert abs(ratios.mean() - 1) < 4.5 * ratios.std() / math.sqrt(len(ratios))


def test_without_resampling_smc_weights_are_the_path_weights() -> None:
    mdp = small_mdp(GMM9())
    policy = ValueGradientPolicy(mdp, ExactValue(mdp.energy, mdp.chain), "posterior")
    smc = TwistedSMC(mdp, policy, threshold=0.0).sample(500, 3)
    plain = mdp.rollout(policy, 500, mdp.generator(3))
    torch.testing.assert_close(smc.x, plain.x)
    torch.testing.assert_close(smc.log_weight, plain.log_weight, atol=1e-3, rtol=1e-4)


def test_resampling_with_exact_twists_raises_the_effective_sample_size() -> None:
    mdp = small_mdp(GMM9(), num_steps=10)
    policy = ValueGradientPolicy(mdp, ExactValue(mdp.energy, mdp.chain), "posterior")
    ess = {}
    for threshold in (0.0, 0.9):
        samples = TwistedSMC(mdp, policy, threshold).sample(5000, 0)
        assert samples.log_weight is not None
        ess[threshold] = float(effective_sample_size(samples.log_weight))
    assert ess[0.9] > 2 * ess[0.0]


class WrongLevels(ExactValue):
    """The exact value's gradient, with levels that differ between the halves of the plane."""

    def value(self, x: torch.Tensor, t: int | torch.Tensor) -> torch.Tensor:
        return super().value(x, t) + 8.0 * x[:, 0].sign()


def test_a_twist_of_wrong_levels_is_not_believed() -> None:
    mdp = small_mdp(GMM9(), num_steps=20)
    policy = ValueGradientPolicy(mdp, WrongLevels(mdp.energy, mdp.chain), "posterior")
    sampler = TwistedSMC(mdp, policy)
    assert float(sampler.trust[:-1].max()) < 0.2 and float(sampler.trust[-1]) == 1
    plain = TwistedSMC(mdp, policy, threshold=0.0)
    credulous = TwistedSMC(mdp, policy, pilot=0)
    believing, plain_error, credulous_error = (
        float((z_estimates(s, 0.0, runs=60, n=200) - 1).square().mean().sqrt())
        for s in (sampler, plain, credulous)
    )
    assert believing < 1.3 * plain_error
    assert credulous_error > 3 * believing


def test_an_exact_twist_is_believed_near_the_end() -> None:
    mdp = small_mdp(GMM9(), num_steps=20)
    policy = ValueGradientPolicy(mdp, ExactValue(mdp.energy, mdp.chain), "posterior")
    assert float(TwistedSMC(mdp, policy).trust[10:].min()) > 0.8


def test_mala_leaves_the_target_invariant() -> None:
    energy = Gaussian((1.0, -2.0), (0.5, 3.0))
    generator = torch.Generator().manual_seed(0)
    x = energy.sample(20_000, generator)
    kernel = MALAKernel(energy, x, step_size=0.6)
    for _ in range(20):
        rate = kernel.step(generator, adapt=False)
    assert 0.5 < rate < 0.99  # steps long enough that a wrong correction would show
    torch.testing.assert_close(kernel.x.mean(0), torch.tensor([1.0, -2.0]), atol=0.05, rtol=0)
    torch.testing.assert_close(kernel.x.var(0), torch.tensor([0.5, 3.0]), atol=0, rtol=0.05)
    assert (kernel.x != x).any(-1).float().mean() > 0.99


def test_mala_sampler_spends_its_budget_and_finds_a_unimodal_target() -> None:
    energy = Gaussian((1.0, -2.0), (0.5, 3.0))
    samples = MALASampler(energy, 200_000, chains=500, scale=2.0).sample(2000, 1)
    assert samples.x.shape == (2000, 2)
    assert samples.energy_evaluations == 200_000
    torch.testing.assert_close(samples.x.mean(0), torch.tensor([1.0, -2.0]), atol=0.2, rtol=0)
    torch.testing.assert_close(samples.x.var(0), torch.tensor([0.5, 3.0]), atol=0, rtol=0.15)


def test_impossible_settings_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="energy_evaluations must be at least 3 x chains = 3000"):
        MALASampler(GMM9(), 100)
    mdp = small_mdp(GMM9())
    policy = ValueGradientPolicy(mdp, ExactValue(mdp.energy, mdp.chain), "posterior")
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\], got 2"):
        TwistedSMC(mdp, policy, threshold=2)
    with pytest.raises(ValueError, match="pilot must be 0 or at least 2, got 1"):
        TwistedSMC(mdp, policy, pilot=1)


class Biased(Sampler):
    """Exact samples, moved."""

    def __init__(self, energy: Energy) -> None:
        self.energy = energy

    def _draw(self, n: int, generator: torch.Generator) -> Samples:
        return Samples(
            x=self.energy.sample(n, generator) + 1.0, log_weight=None, energy_evaluations=n
        )


def test_mala_steps_move_a_biased_sampler_to_the_target_and_are_counted() -> None:
    energy = Gaussian((1.0, -2.0), (0.5, 3.0))
    sampler = RefinedSampler(Biased(energy), energy, 60, pilot=50)
    first = sampler.sample(2000, 3)
    assert first.log_weight is None
    pilot = 50 + 51 * 50
    assert first.energy_evaluations == pilot + 2000 + 61 * 2000
    again = sampler.sample(2000, 3)
    assert again.energy_evaluations == 2000 + 61 * 2000
    torch.testing.assert_close(again.x, first.x)
    torch.testing.assert_close(first.x.mean(0), torch.tensor([1.0, -2.0]), atol=0.2, rtol=0)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        RefinedSampler(Biased(energy), energy, 0)


def test_a_bounded_drift_leaves_the_target_invariant() -> None:
    energy = Gaussian((1.0, -2.0), (0.5, 3.0))
    generator = torch.Generator().manual_seed(0)
    kernel = MALAKernel(energy, energy.sample(20_000, generator), step_size=0.6, max_drift=0.7)
    for _ in range(20):
        kernel.step(generator, adapt=False)
    torch.testing.assert_close(kernel.x.mean(0), torch.tensor([1.0, -2.0]), atol=0.05, rtol=0)
    torch.testing.assert_close(kernel.x.var(0), torch.tensor([0.5, 3.0]), atol=0, rtol=0.05)


def test_mala_leaves_overlapping_particles() -> None:
    energy = LJ13()
    samples = MALASampler(energy, 800_000, chains=200, scale=0.7, max_drift=100.0).sample(400, 0)
    reference = energy.energy(energy.reference("validation"))
    error = energy.energy(samples.x).mean() - reference.mean()
    assert abs(float(error)) < 0.3 * float(reference.std())
