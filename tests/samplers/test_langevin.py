import pytest
import torch

from vgs_rl.energy import Energy
from vgs_rl.envs import GMM9, Gaussian
from vgs_rl.samplers.mcmc.langevin import HMCSampler, LangevinKernel, ULASampler
from vgs_rl.samplers.mcmc.tempering import TemperingKernel


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_unadjusted_langevin_has_its_known_bias_on_a_gaussian(tau: float) -> None:
    """x' = (1 - h/(2 v)) x + √h z has variance v / (1 - h/(4 v)), v the target's own at tau."""
    energy, h = Gaussian((0.0, 1.0), (0.5, 2.0)), 0.6
    v = torch.tensor([0.5, 2.0]) * tau
    kernel = LangevinKernel(energy, torch.zeros(40_000, 2), step_size=h, temperature=tau)
    g = generator()
    for _ in range(60):
        kernel.step(g)
    biased = v / (1 - h / (4 * v))
    assert float((biased / v - 1).max()) > 0.15  # the bias is far larger than the tolerance
    torch.testing.assert_close(kernel.x.var(0), biased, rtol=0.03, atol=0)
    torch.testing.assert_close(kernel.x.mean(0), torch.tensor([0.0, 1.0]), rtol=0, atol=0.05)
    assert kernel.energy_evaluations == 61 * 40_000


class Wall(Energy):
    """A normal density, infinite energy right of 0."""

    dim = 1

    def energy(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x[:, 0] < 0, 0.5 * x[:, 0].square(), torch.inf)


def test_states_of_infinite_energy_are_never_entered() -> None:
    kernel = LangevinKernel(Wall(), -torch.ones(500, 1), step_size=0.5)
    g = generator()
    for _ in range(50):
        kernel.step(g)
    assert bool((kernel.x < 0).all()) and float(kernel.x.std()) > 0.2


@pytest.mark.parametrize("kind", [ULASampler, HMCSampler])
def test_the_budget_is_kept_and_a_unimodal_target_found(
    kind: type[ULASampler] | type[HMCSampler],
) -> None:
    energy = Gaussian((1.0, -2.0), (0.5, 3.0))
    samples = kind(energy, 200_000, chains=200, scale=2.0).sample(2_001, 1)
    assert samples.x.shape == (2_001, 2) and samples.log_weight is None
    assert 195_000 <= samples.energy_evaluations <= 200_000
    torch.testing.assert_close(samples.x.mean(0), torch.tensor([1.0, -2.0]), atol=0.25, rtol=0)
    torch.testing.assert_close(samples.x.var(0), torch.tensor([0.5, 3.0]), atol=0, rtol=0.25)
    again = kind(energy, 200_000, chains=200, scale=2.0).sample(2_001, 1)
    torch.testing.assert_close(again.x, samples.x, rtol=0, atol=0)


def test_a_given_step_size_is_used_from_the_start() -> None:
    energy = Gaussian((0.0, 0.0), (1.0, 1.0))
    samples = ULASampler(energy, 150_000, chains=500, step_size=1.0).sample(5_000, 0)
    assert samples.energy_evaluations == 150_000
    expected = torch.full((2,), 1 / (1 - 0.25))
    torch.testing.assert_close(samples.x.var(0), expected, rtol=0.08, atol=0)


def test_hamiltonian_steps_leave_the_target_invariant() -> None:
    """Started from exact samples, with steps long enough that a wrong correction would show."""
    energy = Gaussian((1.0, -2.0), (0.5, 3.0))
    x = energy.sample(20_000, generator())
    kernel = TemperingKernel(
        energy, x.unsqueeze(0).clone(), torch.ones(1), leapfrog_steps=5, step_size=0.9
    )
    g = generator(1)
    for _ in range(15):
        kernel.sweep(g, adapt=False)
    assert 0.3 < float(kernel.acceptance_rates()) < 0.95
    torch.testing.assert_close(kernel.x[0].mean(0), torch.tensor([1.0, -2.0]), atol=0.05, rtol=0)
    torch.testing.assert_close(kernel.x[0].var(0), torch.tensor([0.5, 3.0]), atol=0, rtol=0.05)
    assert (kernel.x[0] != x).any(-1).float().mean() > 0.99


def test_temperature_widens_what_hmc_samples() -> None:
    energy = Gaussian((0.0, 0.0), (1.0, 1.0))
    x = HMCSampler(energy, 200_000, chains=200, temperature=4.0).sample(4_000, 0).x
    torch.testing.assert_close(x.var(0), torch.full((2,), 4.0), rtol=0.15, atol=0)


def test_impossible_settings_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="energy_evaluations must be at least 4 x chains = 4000"):
        ULASampler(GMM9(), 100)
    with pytest.raises(ValueError, match=r"ULASampler\.step_size must be a positive number"):
        ULASampler(GMM9(), 10_000, step_size=-1.0)
    with pytest.raises(ValueError, match="energy_evaluations must be at least chains x replicas"):
        HMCSampler(GMM9(), 100)
