"""Exploration finds the mass of an energy that nobody tuned for, and doubts itself."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from vgs_rl import Energy, FunctionEnergy
from vgs_rl.envs import GMM9
from vgs_rl.exploration import (
    AffineMap,
    GaussianReference,
    MappedEnergy,
    PriorReference,
    explore,
    find_reference,
    tempered_smc,
)
from vgs_rl.exploration.islands import _moved
from vgs_rl.samplers.mcmc.kernels import Boltzmann, FiniteEnergy, hamiltonian


def gaussian(std: list[float], mean: float = 0.0) -> FunctionEnergy:
    """-log N(mean, diag(std²)), so that log Z = 0."""
    scale = torch.tensor(std, dtype=torch.float64)
    constant = float(scale.log().sum()) + 0.5 * len(std) * math.log(2 * math.pi)

    def energy(x: Tensor) -> Tensor:
        return 0.5 * ((x - mean) / scale.to(x)).square().sum(-1) + constant

    return FunctionEnergy(energy, len(std))


def two_modes(dim: int, distance: float) -> FunctionEnergy:
    """A tenth of the mass at 0, the rest at `distance` along the first axis; log Z = 0."""

    def energy(x: Tensor) -> Tensor:
        other = x.clone()
        other[:, 0] -= distance
        a = math.log(0.1) - 0.5 * x.square().sum(-1)
        b = math.log(0.9) - 0.5 * other.square().sum(-1)
        return -torch.logaddexp(a, b) + 0.5 * dim * math.log(2 * math.pi)

    return FunctionEnergy(energy, dim)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("diagonal", [False, True])
def test_an_affine_map_keeps_densities_and_gradients(diagonal: bool) -> None:
    shift = torch.tensor([3.0, -1.0])
    factor = torch.tensor([2.0, 0.5]) if diagonal else torch.tensor([[2.0, 0.0], [0.7, 0.5]])
    coordinates = AffineMap(shift, factor)
    energy = MappedEnergy(GMM9(), coordinates, dtype=torch.float64)
    z = torch.randn(50, 2, generator=generator(), dtype=torch.float64)
    x = energy.to_x(z)
    torch.testing.assert_close(coordinates.to_z(x), z)
    torch.testing.assert_close(energy(z), GMM9()(x) - math.log(2.0 * 0.5))
    value, slope = energy.with_gradient(z)
    leaf = z.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(GMM9()(energy.to_x(leaf)).sum(), leaf)
    torch.testing.assert_close(slope, expected)
    torch.testing.assert_close(value, energy(z))
    assert energy.log_z == GMM9().log_z
    # ∫ exp(-E) dz on a fine grid is Z.
    axis = torch.linspace(-25, 25, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    total = torch.exp(-energy(grid)).sum() * (axis[1] - axis[0]) ** 2
    assert float(total) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("factor", [[1.0, 0.0], [1.0, -1.0], [math.nan, 1.0]])
def test_a_singular_map_is_refused(factor: list[float]) -> None:
    with pytest.raises(ValueError, match="factor must be finite with a positive diagonal"):
        AffineMap(torch.zeros(2), torch.tensor(factor))


def test_whitened_states_have_unit_covariance() -> None:
    mixed = torch.tensor([[1e-3, 0.0, 0.0], [5.0, 1.0, 0.0], [900.0, 2.0, 1e3]]).double()
    x = torch.randn(20_000, 3, generator=generator(), dtype=torch.float64) @ mixed.T + 7.0
    z = AffineMap.whitening(x).to_z(x)
    torch.testing.assert_close(torch.cov(z.T), torch.eye(3).double(), atol=0.01, rtol=0)


@pytest.mark.parametrize("dim", [3, 10, 32])
def test_few_states_of_any_affine_copy_whiten_as_those_of_the_original(dim: int) -> None:
    """Shrinking by D / (n + D) would leave axes of 1 and 10,000 some hundred times apart."""
    source = generator()
    left, right = (torch.randn(dim, dim, generator=source).double() for _ in range(2))
    axes = torch.linalg.qr(left)[0] * torch.logspace(-2, 2, dim, dtype=torch.float64)
    skewed = axes @ torch.linalg.qr(right)[0]
    x = torch.randn(512, dim, generator=source, dtype=torch.float64)
    x[256:] = x[:256]  # copies, as resampled particles have
    found = torch.linalg.solve(skewed, AffineMap.whitening(x @ skewed.T + 7.0).factor)
    widths = torch.linalg.svdvals(found)
    plain = torch.linalg.svdvals(torch.linalg.cholesky(torch.cov(x.T)))
    assert float(widths[0] / widths[-1]) < 1.1 * float(plain[0] / plain[-1])


def test_independent_coordinates_whiten_by_a_diagonal() -> None:
    """The full covariance of 1,000 states of 64 coordinates would cost a nat."""
    x = torch.randn(1000, 64, generator=generator(), dtype=torch.float64)
    factor = AffineMap.whitening(3 * x + 1).factor / 3
    assert float((factor - torch.eye(64)).abs().max()) < 0.1


def test_states_fewer_than_coordinates_whiten_by_a_shrunk_covariance() -> None:
    x = torch.randn(40, 64, generator=generator(), dtype=torch.float64)
    widths = torch.linalg.svdvals(AffineMap.whitening(x).factor)
    assert float(widths[0] / widths[-1]) < 4


@pytest.mark.parametrize("different", [1, 2, 3])
def test_copies_of_few_states_whiten_to_finite_widths(different: int) -> None:
    x = torch.randn(different, 5, generator=generator(), dtype=torch.float64)
    z = AffineMap.whitening(x.repeat(20, 1)).to_z(x)
    assert bool(z.isfinite().all()) and float(z.abs().max()) < 10


def test_tempering_reaches_a_narrow_ellipsoid_through_its_own_covariance() -> None:
    dim, source = 6, generator()
    axes = torch.linalg.qr(torch.randn(dim, dim, generator=source).double())[0]
    width = torch.logspace(-2, 2, dim, dtype=torch.float64)

    def energy(x: Tensor) -> Tensor:
        return 0.5 * ((x @ axes.to(x)) / width.to(x)).square().sum(-1)

    target = FiniteEnergy(FunctionEnergy(energy, dim), dtype=torch.float64)
    wide = GaussianReference(torch.zeros(dim), torch.full((dim,), 300.0))
    island = tempered_smc(target, wide, 512, source)
    truth = float(width.log().sum()) + 0.5 * dim * math.log(2 * math.pi)
    assert island.complete and island.memory < 0.6
    assert island.log_z == pytest.approx(truth, abs=1.0)
    assert float((island.x @ axes / width).var(0).log().abs().max()) < 0.5


def test_hamiltonian_trajectories_leave_the_density_alone() -> None:
    energy = FiniteEnergy(gaussian([0.5, 2.0]))
    density, source = Boltzmann(energy), generator()
    x = torch.randn(40_000, 2, generator=source).double() * torch.tensor([0.5, 2.0])
    now = density(x)
    for _ in range(10):
        now, log_ratio = hamiltonian(density, now, 0.5, 4, source)
    assert 0.5 < float(log_ratio.exp().clamp_max(1).mean()) < 0.999  # it does reject
    variance = now.x.var(0) / torch.tensor([0.25, 4.0])
    assert ((variance - 1).abs() < 5 * math.sqrt(2 / 40_000)).all()


def test_preconditioning_does_not_bias_log_z_in_many_dimensions() -> None:
    """A particle that shaped its own moves did so by more than a nat here."""
    energy = FiniteEnergy(gaussian([1.0] * 40))
    reference = GaussianReference(torch.zeros(40), torch.full((40,), 3.0))
    source = generator()
    found = [tempered_smc(energy, reference, 270, source).log_z for _ in range(6)]
    assert abs(sum(found) / 6) < 0.35


@pytest.mark.parametrize(
    "energy",
    [
        gaussian([1.0, 1.0, 1.0], mean=1000.0),
        gaussian([1e-3, 1.0, 1e3]),
        gaussian([1e-4, 1e-4]),
        two_modes(2, 20.0),
    ],
    ids=["far away", "three scales", "narrow", "two modes"],
)
def test_exploration_finds_log_z_without_a_setting(energy: Energy) -> None:
    found = explore(energy, generator())
    assert found.doubts == ()
    assert abs(found.log_z) < 0.15 and found.spread < 0.3
    assert float(found.log_weight.exp().mean().log()) == pytest.approx(found.log_z, abs=1e-9)


def test_the_shares_of_distant_modes_are_found() -> None:
    x = explore(two_modes(20, 20.0), generator()).x
    assert float((x[:, 0] < 10).double().mean()) == pytest.approx(0.1, abs=0.05)


def test_a_prior_is_where_exploration_begins() -> None:
    prior = torch.distributions.MultivariateNormal(torch.full((2,), 50.0), 4.0 * torch.eye(2))
    found = explore(gaussian([1.0, 1.0], 52.0), generator(), reference=PriorReference(prior, 2))
    assert abs(found.log_z) < 0.15
    with pytest.raises(ValueError, match=r"prior must have 3 coordinates, got \(2,\)"):
        PriorReference(prior, 3)


def test_a_narrow_reference_moves() -> None:
    narrow = GaussianReference(torch.zeros(2), torch.tensor([0.01, 10.0]))
    x = torch.randn(500, 2, generator=generator()) * torch.tensor([1e-3, 1e3])
    moved = _moved(narrow, x.double())
    assert moved is not None
    assert float(moved.std[1]) > 2e3 and float(moved.std[0]) == pytest.approx(0.01)
    assert _moved(moved, moved.sample(500, generator()) / 3) is None


def test_the_found_reference_is_wider_than_the_target() -> None:
    for std in (1e-3, 1.0, 1e3):
        reference = find_reference(FiniteEnergy(gaussian([std] * 4, 3.0)), 4, generator())
        assert (reference.std > 2 * std).all() and (reference.std < 40 * std).all()
        assert ((reference.mean - 3.0).abs() < reference.std).all()


def test_an_exploration_that_runs_out_of_time_says_so() -> None:
    found = explore(gaussian([1.0] * 5), generator(), seconds=1e-3)
    assert any("did not reach the target in its time" in doubt for doubt in found.doubts)


def test_particles_of_an_unfinished_run_carry_the_weights_that_are_left() -> None:
    """Stopped after one level: the weights still have mean Z."""
    asked = itertools.chain([False], itertools.repeat(True))
    reference = GaussianReference(torch.zeros(2), torch.full((2,), 2.0))
    found = tempered_smc(
        FiniteEnergy(gaussian([0.7, 0.5])), reference, 20_000, generator(), stop=lambda: next(asked)
    )
    assert not found.complete and float(found.log_weight.std()) > 0.1
    assert abs(found.log_z) < 0.05


def test_an_energy_that_is_finite_nowhere_is_refused() -> None:
    nowhere = FunctionEnergy(lambda x: torch.full_like(x[:, 0], torch.inf), 2)
    with pytest.raises(ValueError, match="FunctionEnergy is finite at none of .* give prior="):
        explore(nowhere, generator())
