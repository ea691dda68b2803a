import math

import numpy as np
import pytest
import torch

from vgs_rl import (
    Chain,
    Particles,
    SamplingMDP,
    ScheduleConfig,
    find,
    registered,
)
from vgs_rl.energy import Energy
from vgs_rl.envs import (
    GMM9,
    GMM40,
    Funnel,
    Gaussian,
    GaussianMixture,
    ManyWell,
    ManyWell32,
    check_energy,
)
from vgs_rl.geometry import CentreOfMassFree

MATRICES = torch.tensor([[[1.0, 0.4], [0.4, 0.5]], [[0.3, -0.1], [-0.1, 0.8]]])
TARGETS = {
    "gaussian": lambda: Gaussian((0.5, -1.0)),
    "gaussian_diagonal": lambda: Gaussian((0.5, -1.0, 0.2), (0.5, 2.0, 1.0)),
    "mixture_full": lambda: GaussianMixture([[-1.0, 0.0], [2.0, 1.0]], MATRICES, [1, 3], 0.7),
    "mixture_diagonal": lambda: GaussianMixture([[-1.0], [2.0]], [[0.2], [0.7]], [1, 3]),
    "gmm9": GMM9,
    "funnel": lambda: Funnel(dim=2),
    "many_well": lambda: ManyWell(dim=2),
}
CHAINS = {
    "vp": Chain.build(ScheduleConfig(kind="geometric", first=0.5, last=0.02), "vp", 8),
    "ve": Chain.build(ScheduleConfig(kind="geometric", first=1.0, last=0.02), "ve", 8),
}


def gauss_hermite(dim: int, nodes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Nodes (J, D) and log-weights (J,) of the expectation over N(0, I)."""
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    grid = np.stack(np.meshgrid(*[x] * dim, indexing="ij"), -1).reshape(-1, dim)
    weights = np.stack(np.meshgrid(*[w] * dim, indexing="ij"), -1).reshape(-1, dim)
    log_weights = np.log(weights).sum(-1) - 0.5 * dim * math.log(2 * math.pi)
    return torch.from_numpy(grid), torch.from_numpy(log_weights)


@pytest.mark.parametrize("kind", CHAINS)
@pytest.mark.parametrize("name", TARGETS)
def test_exact_values_solve_the_soft_bellman_equation(name, kind):
    energy, chain = TARGETS[name](), CHAINS[kind]
    generator = torch.Generator().manual_seed(0)
    x_T = energy.sample(6, generator).double()
    for t in (0, 3, 5, 7):
        # The last value, the energy itself, is the least smooth and the cheapest.
        nodes = {1: 100, 2: 250 if t == 7 else 40, 3: 20}[energy.dim]
        eps, log_w = gauss_hermite(energy.dim, nodes)
        z = torch.randn(x_T.shape, generator=generator, dtype=torch.float64)
        x = x_T / chain.A[t] + chain.S[t].sqrt() * z  # (6, D)
        x_next = chain.a[t] * x.unsqueeze(1) + chain.sigma[t] * eps  # (6, J, D)
        value_next = energy.value(x_next.flatten(0, 1), t + 1, chain).unflatten(0, (6, -1))
        expected = -torch.logsumexp(log_w - value_next, dim=1) - energy.dim * chain.log_a[t]
        torch.testing.assert_close(energy.value(x, t, chain), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("kind", CHAINS)
def test_high_dimensional_values_solve_it_within_monte_carlo_error(kind):
    chain, generator = CHAINS[kind], torch.Generator().manual_seed(0)
    for energy in (Funnel(dim=5, first_variance=1.0), ManyWell(dim=4)):
        x_T = energy.sample(3, generator).double()
        for t in (2, 7):
            noise = torch.randn(x_T.shape, generator=generator, dtype=torch.float64)
            x = x_T / chain.A[t] + chain.S[t].sqrt() * noise
            eps = torch.randn(3, 4000, energy.dim, generator=generator, dtype=torch.float64)
            x_next = (chain.a[t] * x.unsqueeze(1) + chain.sigma[t] * eps).flatten(0, 1)
            value_next = energy.value(x_next, t + 1, chain).unflatten(0, (3, -1))
            value = energy.value(x, t, chain) + energy.dim * chain.log_a[t]
            ratio = (value.unsqueeze(1) - value_next).exp()  # mean 1
            error = ratio.std(1) / math.sqrt(ratio.shape[1])
            assert bool(((ratio.mean(1) - 1).abs() < 4.5 * error).all())


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("kind", CHAINS)
def test_the_last_value_is_the_energy(name, kind):
    energy, chain = TARGETS[name](), CHAINS[kind]
    x = energy.sample(20, torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(energy.value(x, chain.num_steps, chain), energy.energy(x))
    gradient = energy.value_gradient(x, chain.num_steps, chain)
    torch.testing.assert_close(gradient, energy.energy_and_gradient(x)[1])


@pytest.mark.parametrize("id", [i for i in registered() if i.startswith("vgs_rl/")])
def test_every_registered_target_passes_its_check(id):
    energy = find(id).make_energy()
    report = check_energy(energy)
    assert not energy.can_sample or {"virial identity", "exact sampler"} <= report.passed.keys()


@pytest.mark.parametrize("name", TARGETS)
def test_every_construction_passes_its_check(name):
    check_energy(TARGETS[name](), seed=1)


def assert_moments(samples: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> None:
    x = samples.double()
    error = variance.sqrt() / math.sqrt(len(x))
    assert bool(((x.mean(0) - mean).abs() < 5 * error).all())
    squares = (x - mean).square()
    error = squares.std(0) / math.sqrt(len(x))
    assert bool(((squares.mean(0) - variance).abs() < 5 * error).all())


def test_samplers_have_the_known_moments():
    def draw(energy):
        return energy.sample(20_000, torch.Generator().manual_seed(0))

    nine = torch.full((2,), 0.3 + 50 / 3).double()
    assert_moments(draw(GMM9()), torch.zeros(2).double(), nine)
    forty = GMM40()
    spread = forty.means.var(0, correction=0) + math.log(1 + math.e) ** 2
    assert_moments(draw(forty), forty.means.mean(0), spread)
    assert forty.eigenvalues.sqrt()[0, 0] == pytest.approx(1.3133, abs=1e-4)
    assert_moments(draw(Funnel())[:, :1], torch.zeros(1).double(), torch.full((1,), 9.0).double())
    covariance = draw(Gaussian((1.0, 2.0))).double().T.cov()
    expected = torch.tensor([[2.0, 0.8], [0.8, 0.5]]).double()
    torch.testing.assert_close(covariance, expected, atol=0.06, rtol=0)
    grid = torch.linspace(-4, 4, 20_001, dtype=torch.float64)
    p = torch.softmax(-(grid**4) + 6 * grid**2 + 0.5 * grid, 0)
    mean = float((p * grid).sum())
    variance = float((p * (grid - mean) ** 2).sum())
    assert_moments(
        draw(ManyWell(4)),
        torch.tensor([mean, 0.0, mean, 0.0]).double(),
        torch.tensor([variance, 1.0, variance, 1.0]).double(),
    )


def test_log_z_of_the_gaussian_is_the_integral():
    energy = Gaussian((0.5, -1.0))
    axis = torch.linspace(-14, 14, 1201, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    log_z = torch.logsumexp(-energy.energy(grid), 0) + 2 * torch.log(axis[1] - axis[0])
    assert energy.log_z == pytest.approx(float(log_z), abs=1e-6)


def test_log_z_of_many_well_is_the_integral_and_the_published_number():
    x = torch.zeros(4001, 2, dtype=torch.float64)
    x[:, 0] = torch.linspace(-5, 5, 4001, dtype=torch.float64)
    well = torch.logsumexp(-ManyWell(2).energy(x), 0) + math.log(10 / 4000)
    log_z = float(well) + 0.5 * math.log(2 * math.pi)
    assert ManyWell(2).log_z == pytest.approx(log_z, abs=1e-6)
    assert ManyWell32().log_z == pytest.approx(164.6957, abs=5e-5)


@pytest.mark.parametrize("first_variance", [1.0, 9.0, 16.0])
def test_log_z_of_the_funnel_is_the_integral(first_variance):
    energy = Funnel(dim=2, first_variance=first_variance)
    first = torch.linspace(-32, 32, 1001, dtype=torch.float64)
    ray = torch.linspace(-9, 9, 301, dtype=torch.float64)  # x_2 / exp(x_1 / 2)
    grid = torch.cartesian_prod(first, ray)
    x = torch.stack([grid[:, 0], grid[:, 1] * (0.5 * grid[:, 0]).exp()], -1)
    log_z = torch.logsumexp(0.5 * grid[:, 0] - energy.energy(x), 0)
    log_z = log_z + math.log(64 / 1000) + math.log(18 / 300)
    assert energy.log_z == pytest.approx(float(log_z), abs=1e-6)


class Cluster(Energy):
    """½ Σ ‖x_i - mean‖², whose samples are standard normal around their own mean."""

    def __init__(self, n_particles: int = 4, n_dims: int = 2) -> None:
        super().__init__()
        self.dim, self.symmetry = n_particles * n_dims, Particles(n_particles, n_dims)
        self.log_z = 0.5 * self.geometry.effective_dim * math.log(2 * math.pi)

    @property
    def geometry(self):
        return CentreOfMassFree(*self.symmetry)

    def energy(self, x):
        return 0.5 * self.geometry.project(x).square().sum(-1)


def test_particle_symmetry_and_virial_hold_on_centred_samples():
    energy = Cluster()
    samples = torch.randn(5000, 8, generator=torch.Generator().manual_seed(0))
    report = check_energy(energy, samples=energy.geometry.project(samples))
    assert "expected 6" in report.passed["virial identity"]
    assert "invariant under rotation" in report.passed


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Funnel(dim=1), "dim must be at least 2, got 1"),
        (lambda: Funnel(first_variance=0.0), "first_variance must be a positive number, got 0.0"),
        (lambda: ManyWell(dim=3), "dim must be even and at least 2, got 3"),
        (lambda: GaussianMixture([0.0], [1.0]), r"means must have shape \(K, D\), got \(1,\)"),
        (lambda: GaussianMixture([[0.0]], [1.0]), r"variances must have shape \(1, 1\)"),
        (lambda: GaussianMixture([[0.0]], [[-1.0]]), "variances must be positive"),
        (lambda: GaussianMixture([[0.0]], [[1.0]], [0.0]), "weights must be 1 positive numbers"),
        (lambda: GaussianMixture([[0.0, 0.0]], [[[1.0, 0.5], [0.0, 1.0]]]), "symmetric"),
        (lambda: Gaussian((0.0,), (1.0, 1.0)), "mean must have shape"),
        (lambda: CentreOfMassFree(1, 3), "n_particles must be at least 2, got 1"),
        (lambda: CentreOfMassFree(2, 0), "n_dims must be at least 1, got 0"),
    ],
)
def test_impossible_constants_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def energy_of(function, dim=2):
    class Custom(Energy):
        def energy(self, x):
            return function(x)

    custom = Custom()
    custom.dim = dim
    return custom


@pytest.mark.parametrize(
    ("energy", "error", "message"),
    [
        (energy_of(lambda x: x.sum(-1, keepdim=True)), ValueError, r"shape \(B,\) = \(64,\)"),
        (energy_of(lambda x: x.sum()), ValueError, r"shape \(B,\) = \(64,\), got \(\)"),
        (
            energy_of(lambda x: x.sum(-1) * math.nan),
            ValueError,
            "finite nowhere: NaN on 128 and infinite on 0 of 128",
        ),
        (energy_of(lambda x: x.sum(-1).int()), ValueError, "floating dtype, got torch.int32"),
        (energy_of(lambda x: 1.0), ValueError, "must return a tensor, got float"),
        (energy_of(lambda x: x.sum(-1), dim=0), ValueError, "dim must be a positive integer"),
        (energy_of(lambda x: x.sum(-1), dim=2.0), ValueError, "dim must be a positive integer"),
        (torch.nn.Linear(2, 1), TypeError, "must be a vgs_rl.Energy, got Linear"),
        (lambda x: x, TypeError, "must be a vgs_rl.Energy, got function"),
    ],
)
def test_unusable_energies_are_refused_before_any_work(energy, error, message):
    with pytest.raises(error, match=message):
        SamplingMDP(energy)


def test_what_is_not_known_raises():
    plain = energy_of(lambda x: x.square().sum(-1))
    chain = CHAINS["vp"]
    assert not plain.can_sample and not plain.has_value
    for call in (
        lambda: plain.sample(3, torch.Generator()),
        plain.reference,
        lambda: plain.value(torch.zeros(1, 2), 0, chain),
        lambda: plain.mode_indicators(torch.zeros(1, 2)),
    ):
        with pytest.raises(NotImplementedError, match="Custom"):
            call()


@pytest.mark.parametrize("noise", [3.0, 0.5, 0.003])
def test_many_well_slopes_of_large_batches_agree_with_quadrature(noise):
    energy = ManyWell(dim=4)
    chain = Chain(torch.tensor([noise]), "ve")
    generator = torch.Generator().manual_seed(0)
    x = energy.sample(9000, generator).double()
    x = x + noise**0.5 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    exact = torch.cat([energy.value_gradient(part, 0, chain) for part in x.split(1000)])
    torch.testing.assert_close(energy.value_gradient(x, 0, chain), exact, rtol=1e-6, atol=1e-5)
