import math

import pytest
import torch

from vgs_rl.energy import Energy
from vgs_rl.envs import (
    DW4,
    GMM9,
    Funnel10,
    Gaussian,
    ManyWell,
)
from vgs_rl.samplers.mcmc.annealed import AnnealedSMC
from vgs_rl.weights import effective_sample_size


def z_ratios(sampler: AnnealedSMC, log_z: float, runs: int, n: int) -> torch.Tensor:
    """Ẑ/Z of independent runs of n particles."""
    weights = [sampler.sample(n, seed).log_weight for seed in range(runs)]
    return torch.stack([(w.double() - log_z).exp().mean() for w in weights if w is not None])


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "energy",
    [Gaussian((3.0, -2.0), (0.2, 2.0)), ManyWell(dim=2)],
)
def test_annealed_weights_are_unbiased_for_z(energy: Energy, threshold: float) -> None:
    sampler = AnnealedSMC(energy, 12, scale=2.0, threshold=threshold, pilot=100)
    assert energy.log_z is not None
    ratios = z_ratios(sampler, energy.log_z, runs=60, n=128)
    error = ratios.std() / math.sqrt(len(ratios))
    assert abs(ratios.mean() - 1) < 4.5 * error
    assert error < 0.06  # or the test would prove nothing


def test_at_another_temperature_z_is_that_temperatures() -> None:
    energy, tau = Gaussian((0.0, 0.0), (0.5, 2.0)), 3.0
    log_z = 0.5 * math.log((2 * math.pi * tau * 0.5) * (2 * math.pi * tau * 2.0))
    sampler = AnnealedSMC(energy, 10, scale=2.0, temperature=tau)
    log_weight = sampler.sample(20_000, 0).log_weight
    assert log_weight is not None
    assert abs(float((log_weight.double() - log_z).exp().mean()) - 1) < 0.05


def test_without_its_centre_of_mass_z_is_the_subspaces() -> None:
    """Both a coarse and a fine annealing agree on log Z of a particle target."""
    estimates = []
    for steps in (20, 60):
        log_weight = AnnealedSMC(DW4(), steps, scale=3.0, threshold=0.5).sample(4_000, 1)
        assert log_weight.log_weight is not None
        assert float(log_weight.x.unflatten(-1, (4, 2)).mean(1).abs().max()) < 1e-3
        estimates.append(float(torch.logsumexp(log_weight.log_weight.double(), 0)))
    assert abs(estimates[0] - estimates[1]) < 0.2


def test_resampled_particles_are_distributed_as_the_target() -> None:
    energy = GMM9()
    sampler = AnnealedSMC(energy, 40, scale=5.0, threshold=0.5)
    x = sampler.sample(8_000, 3, resample=True, oversample=1).x
    torch.testing.assert_close(x.mean(0), torch.zeros(2), atol=0.35, rtol=0)
    torch.testing.assert_close(x.std(0), torch.full((2,), 4.12), rtol=0.05, atol=0)


def test_more_steps_make_better_weights() -> None:
    ess = []
    for steps in (5, 40):
        log_weight = AnnealedSMC(Funnel10(), steps, scale=3.0).sample(2_000, 0).log_weight
        assert log_weight is not None
        ess.append(float(log_weight.mean()))
    assert ess[1] > ess[0] + 1.0


def test_evaluations_are_counted_and_the_pilot_once() -> None:
    sampler = AnnealedSMC(GMM9(), 10, scale=5.0, moves=2, pilot=50)
    pilot = 3 * 50 * (1 + 5 * 10)
    first, second = (sampler.sample(100, 0) for _ in range(2))
    assert first.energy_evaluations == pilot + 100 * 21
    assert second.energy_evaluations == 100 * 21
    torch.testing.assert_close(first.x, second.x, rtol=0, atol=0)
    assert float(sampler.betas[0]) == 0 and float(sampler.betas[-1]) == 1
    assert bool((sampler.betas.diff() > 0).all())


class Wall(Energy):
    """A normal density, infinite energy right of 0."""

    dim = 1
    log_z = 0.5 * math.log(2 * math.pi) - math.log(2)

    def energy(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x[:, 0] < 0, 0.5 * x[:, 0].square(), torch.inf)


def test_infinite_energies_have_no_weight() -> None:
    samples = AnnealedSMC(Wall(), 5, scale=1.5).sample(20_000, 0)
    assert samples.log_weight is not None and not bool(samples.log_weight.isnan().any())
    ratio = (samples.log_weight.double() - Wall.log_z).exp().mean()
    assert abs(float(ratio) - 1) < 0.05
    assert 0.3 < float(effective_sample_size(samples.log_weight)) < 0.7


def test_impossible_settings_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\], got 2"):
        AnnealedSMC(GMM9(), 3, threshold=2)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        AnnealedSMC(GMM9(), 0)
