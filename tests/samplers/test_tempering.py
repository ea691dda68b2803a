import math

import pytest
import torch

from vgs_rl.agents import MALASampler
from vgs_rl.energy import Energy, Particles
from vgs_rl.envs import (
    Gaussian,
    GaussianMixture,
    LennardJones,
    ManyWell,
)
from vgs_rl.evaluation.diagnostics import effective_draws, split_r_hat
from vgs_rl.geometry import CentreOfMassFree
from vgs_rl.samplers.mcmc.tempering import ParallelTempering, TemperingKernel, geometric_ladder


class HarmonicCluster(Energy):
    """½ k Σ ‖x_i - mean‖²: each of the (n - 1) d coordinates is normal with variance tau / k."""

    def __init__(self, n_particles: int, n_dims: int, k: float) -> None:
        super().__init__()
        self.k, self.space = k, CentreOfMassFree(n_particles, n_dims)
        self.dim, self.symmetry = n_particles * n_dims, Particles(n_particles, n_dims)

    @property
    def geometry(self) -> CentreOfMassFree:
        return self.space

    def energy(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * self.k * self.space.project(x).square().sum(-1)


class Counting(Gaussian):
    """Counts the states at which it is evaluated."""

    states = 0

    def energy_and_gradient(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.states += len(x)
        return super().energy_and_gradient(x)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("leapfrog_steps", [1, 4])
def test_a_sweep_leaves_every_temperatures_density_invariant(leapfrog_steps: int) -> None:
    """Started from exact samples of each exp(-E/tau), with steps long enough to be rejected."""
    energy = Gaussian((1.0, -2.0), (0.5, 2.0))
    tau = geometric_ladder(4, 8.0)
    chains, mean, variance = 20_000, torch.tensor([1.0, -2.0]), torch.tensor([0.5, 2.0])
    normal = torch.randn(4, chains, 2, generator=generator(), dtype=torch.float64)
    x = mean + (tau[:, None, None] * variance).sqrt() * normal
    kernel = TemperingKernel(energy, x.clone(), tau, leapfrog_steps=leapfrog_steps, step_size=0.9)
    g = generator(1)
    for _ in range(15):
        kernel.sweep(g, adapt=False)
    assert bool((kernel.acceptance_rates() < 0.95).all())  # or a wrong correction would not show
    assert bool((kernel.swap_rates() > 0.2).all())
    z = (kernel.x - mean) / (tau[:, None, None] * variance).sqrt()
    assert float(z.mean(1).abs().max()) < 5 / math.sqrt(chains)
    assert float((z.var(1) - 1).abs().max()) < 5 * math.sqrt(2 / chains)
    fourth = z.pow(4).mean(1)
    assert float((fourth - 3).abs().max()) < 5 * math.sqrt(96 / chains)
    assert float((kernel.x - x).norm(dim=-1).min()) > 0


def test_values_and_gradients_travel_with_their_states() -> None:
    energy = ManyWell(4)
    x = torch.randn(5, 50, 4, generator=generator())
    kernel = TemperingKernel(energy, x, geometric_ladder(5, 20.0))
    for sweep in range(30):
        kernel.sweep(generator(sweep), adapt=sweep < 10)
    value, gradient = energy.energy_and_gradient(kernel.x.flatten(0, 1))
    torch.testing.assert_close(kernel.value.flatten(), value)
    torch.testing.assert_close(kernel.gradient.flatten(0, 1), gradient)


def test_weights_of_distant_modes_are_found_where_mala_stays_where_it_started() -> None:
    energy = GaussianMixture([[0.0, 0.0], [12.0, 0.0]], 0.5 * torch.ones(2, 2), [1.0, 3.0])
    tempered = ParallelTempering(energy, 1_000_000, chains=100, replicas=8, hottest=100.0)
    samples = tempered.sample(2000, 0)
    weight = float((samples.x[:, 0] > 6).float().mean())
    assert abs(weight - 0.75) < 0.06
    near = samples.x[samples.x[:, 0] > 6]
    torch.testing.assert_close(near.mean(0), torch.tensor([12.0, 0.0]), atol=0.15, rtol=0)
    torch.testing.assert_close(near.var(0), torch.full((2,), 0.5), atol=0.1, rtol=0)
    local = MALASampler(energy, 200_000, chains=100).sample(2000, 0)
    assert float((local.x[:, 0] > 6).float().mean()) < 0.01


def test_double_wells_weights_are_found() -> None:
    energy = ManyWell(4)
    assert energy.mode_probabilities is not None
    samples = ParallelTempering(energy, 1_000_000, chains=100, replicas=5, hottest=15.0)
    x = samples.sample(4000, 1).x
    got = energy.mode_indicators(x).double().mean(0)
    assert bool(((got - energy.mode_probabilities).abs() < 0.04).all())


def test_particles_keep_their_centre_and_their_dimensions() -> None:
    energy = HarmonicCluster(5, 3, k=2.0)
    sampler = ParallelTempering(energy, 300_000, chains=200, replicas=3, hottest=3.0)
    x = sampler.sample(4000, 0).x
    torch.testing.assert_close(energy.geometry.project(x), x, atol=1e-5, rtol=0)
    squares = 2.0 * x.square().sum(-1)  # chi-squared with 12 degrees of freedom
    assert abs(float(squares.mean()) - 12) < 0.5
    assert abs(float(squares.var()) - 24) < 3.5


@pytest.mark.parametrize("budget", [11 * 40, 10_000])
def test_the_budget_is_kept_and_every_evaluation_counted(budget: int) -> None:
    energy = Counting()
    sampler = ParallelTempering(energy, budget, chains=10, replicas=4, leapfrog_steps=5)
    samples = sampler.sample(30, 0)
    assert samples.x.shape == (30, 2) and samples.log_weight is None
    assert samples.energy_evaluations == energy.states <= budget
    assert energy.states > budget - 10 * 4 * 5


def test_equal_seeds_give_equal_samples_and_kept_states_differ() -> None:
    sampler = ParallelTempering(Gaussian(), 20_000, chains=10, replicas=3)
    x = sampler.sample(50, 3).x
    torch.testing.assert_close(x, sampler.sample(50, 3).x, atol=0, rtol=0)
    assert not torch.equal(x, sampler.sample(50, 4).x)
    assert len(x.unique(dim=0)) > 45


def test_temperature_widens_the_samples() -> None:
    energy = Gaussian((0.0, 0.0), (1.0, 1.0))
    sampler = ParallelTempering(energy, 200_000, chains=200, replicas=2, hottest=2, temperature=4.0)
    x = sampler.sample(4000, 0).x
    torch.testing.assert_close(x.var(0), torch.full((2,), 4.0), atol=0.5, rtol=0)


def test_overlapping_particles_come_apart() -> None:
    """A start too steep for the step sizes of the others is left during burn-in."""
    energy = LennardJones(13)
    x = torch.zeros(2, 20, energy.dim, dtype=torch.float64)
    x[:, :, 3:] = torch.randn(2, 20, energy.dim - 3, generator=generator(), dtype=torch.float64)
    kernel = TemperingKernel(energy, energy.geometry.project(0.5 * x), geometric_ladder(2, 1.2))
    g = generator(1)
    assert float(kernel.value.min()) > 100
    for _ in range(250):
        kernel.sweep(g, adapt=True)
    assert float(kernel.value.max()) < 60  # one overlapping pair costs more than 110


def test_states_of_infinite_energy_are_never_accepted() -> None:
    class Box(Energy):
        dim = 1

        def energy(self, x: torch.Tensor) -> torch.Tensor:
            return torch.where(x.abs() < 1, 0.0 * x, torch.inf).sum(-1)

    x = torch.zeros(2, 500, 1)
    kernel = TemperingKernel(Box(), x, geometric_ladder(2, 2.0), step_size=0.3)
    g = generator()
    for _ in range(50):
        kernel.sweep(g, adapt=False)
    assert float(kernel.x.abs().max()) < 1
    assert abs(float(kernel.x.var()) - 1 / 3) < 0.05


def test_convergence_metrics_of_known_series() -> None:
    normal = torch.randn(40, 2000, generator=generator(), dtype=torch.float64)
    assert split_r_hat(normal) == pytest.approx(1, abs=2e-3)
    assert effective_draws(normal) == pytest.approx(80_000, rel=0.05)
    phi, series = 0.8, torch.empty_like(normal)
    series[:, 0] = normal[:, 0] / math.sqrt(1 - phi**2)
    for t in range(1, 2000):
        series[:, t] = phi * series[:, t - 1] + normal[:, t]
    assert effective_draws(series) == pytest.approx(80_000 * (1 - phi) / (1 + phi), rel=0.1)
    apart = normal + (torch.arange(40) < 20).double().unsqueeze(1)
    assert split_r_hat(apart) > 1.1
    assert effective_draws(apart) < 1000
    drifting = normal + torch.linspace(0, 2, 2000).double()
    assert split_r_hat(drifting) > 1.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ParallelTempering(Gaussian(), 10), r"leapfrog_steps\) = 8800, got 10"),
        (lambda: ParallelTempering(Gaussian(), 10, chains=0), "chains must be at least 1, got 0"),
        (lambda: ParallelTempering(Gaussian(), 10, hottest=0.5), "hottest must be at least 1"),
        (
            lambda: ParallelTempering(Gaussian(), 10, replicas=0),
            "replicas must be at least 1, got 0",
        ),
        (
            lambda: TemperingKernel(Gaussian(), torch.zeros(4, 2), torch.ones(4)),
            r"x must have shape \(4, C, 2\), got \(4, 2\)",
        ),
        (lambda: split_r_hat(torch.zeros(4)), r"shape \(chains, draws\)"),
    ],
)
def test_impossible_settings_are_refused_by_name(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()
