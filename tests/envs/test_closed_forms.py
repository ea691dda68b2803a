"""Targets whose samples and log Z are closed forms agree with independent formulas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.integrate import dblquad

from vgs_rl.envs import FortyModes, Rosenbrock, StudentMixture, StudentT, TwoModes


def states(n: int, dim: int, scale: float = 5.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return scale * torch.randn(n, dim, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("dim", [1, 2, 10])
@pytest.mark.parametrize("degrees", [1.0, 2.0, 4.5])
def test_student_t_is_scipys(dim: int, degrees: float) -> None:
    x = states(100, dim)
    expected = stats.multivariate_t(np.zeros(dim), np.eye(dim), df=degrees).logpdf(x.numpy())
    got = StudentT(dim, degrees).energy(x)
    torch.testing.assert_close(got, -torch.from_numpy(np.atleast_1d(expected)))


@pytest.mark.parametrize("degrees", [2.0, 3.5])
def test_student_samples_have_scipys_radii(degrees: float) -> None:
    """‖x‖²/D has Fisher's distribution with D and ν degrees."""
    x = StudentT(4, degrees).sample(5_000, torch.Generator().manual_seed(0)).double()
    squares = (x.square().sum(-1) / 4).numpy()
    assert stats.kstest(squares, stats.f(4, degrees).cdf).pvalue > 1e-3


def test_a_student_mixture_is_a_mixture_of_products_of_scipys_t() -> None:
    energy = StudentMixture(dim=3, components=4, degrees=2.5, reach=6.0, seed=3)
    x = states(50, 3)
    parts = stats.t.logpdf(x.numpy()[:, None], 2.5, loc=energy.locations.numpy()).sum(-1)
    expected = np.logaddexp.reduce(parts, axis=1) - math.log(4)
    torch.testing.assert_close(energy.energy(x), -torch.from_numpy(expected))
    assert energy.locations.abs().max() <= 6.0
    assert not torch.equal(energy.locations, StudentMixture(3, 4, 2.5, 6.0, seed=4).locations)


def test_samples_of_a_student_mixture_are_t_around_the_locations() -> None:
    energy = StudentMixture(dim=2, components=3, degrees=3.0, reach=200.0)
    x = energy.sample(6_000, torch.Generator().manual_seed(0)).double()
    near = energy.mode_indicators(x).argmax(-1)
    assert torch.bincount(near).double().sub(2_000).abs().max() < 5 * math.sqrt(6_000 * 2 / 9)
    gap = (x - energy.locations[near]).flatten().numpy()
    assert stats.kstest(gap, stats.t(3.0).cdf).pvalue > 1e-3


def test_log_z_of_rosenbrocks_function_is_the_integral() -> None:
    energy = Rosenbrock(2, stiffness=3.0)

    def density(b: float, a: float) -> float:
        return math.exp(-((a - 1) ** 2) - 3.0 * (b - a * a) ** 2)

    x = states(20, 2, 1.0)
    expected = [-math.log(density(float(b), float(a))) for a, b in x]
    torch.testing.assert_close(energy.energy(x), torch.tensor(expected, dtype=torch.float64))
    z, _ = dblquad(density, -5, 7, lambda a: a * a - 6, lambda a: a * a + 6, epsabs=1e-9)
    assert energy.log_z == pytest.approx(math.log(z), abs=1e-6)
    assert Rosenbrock(6, 3.0).log_z == pytest.approx(3 * energy.log_z)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.floats(0.5, 500.0))
def test_energies_of_rosenbrocks_samples_are_gammas(pairs: int, stiffness: float) -> None:
    """E is half the sum of D squared standard normals."""
    energy = Rosenbrock(2 * pairs, stiffness)
    x = energy.sample(2_000, torch.Generator().manual_seed(7))
    assert stats.kstest(energy.energy(x).numpy(), stats.gamma(pairs).cdf).pvalue > 1e-4


@pytest.mark.parametrize("dim", [2, 20, 100])
def test_two_modes_are_a_tenth_and_the_rest(dim: int) -> None:
    energy, far = TwoModes(dim), torch.zeros(1, dim, dtype=torch.float64)
    half_log = 0.5 * dim * math.log(2 * math.pi)
    assert float(energy.energy(far)) == pytest.approx(half_log - math.log(0.1))
    far[0, 0] = 20.0
    assert float(energy.energy(far)) == pytest.approx(half_log - math.log(0.9))
    x = energy.sample(20_000, torch.Generator().manual_seed(0))
    share = float((x[:, 0] < 10).double().mean())
    assert abs(share - 0.1) < 5 * math.sqrt(0.09 / 20_000)


def test_forty_modes_lie_in_their_cube() -> None:
    energy = FortyModes(50)
    assert energy.means.shape == (40, 50) and energy.means.abs().max() <= 40
    assert stats.kstest(energy.means.flatten().numpy(), stats.uniform(-40, 80).cdf).pvalue > 1e-3
    assert torch.equal(energy.means, FortyModes(50).means)
    assert not torch.equal(energy.means, FortyModes(50, seed=1).means)
    value = float(energy.energy(energy.means[:1]))
    assert value == pytest.approx(math.log(40) + 25 * math.log(2 * math.pi))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StudentT(0), "dim must be at least 1, got 0"),
        (lambda: StudentT(2, degrees=0.0), "StudentT.degrees must be a positive number, got 0"),
        (lambda: StudentMixture(components=1), "components must be at least 2, got 1"),
        (lambda: StudentMixture(reach=-1.0), "StudentMixture.reach must be a positive number"),
        (lambda: Rosenbrock(3), "dim must be even, got 3"),
        (lambda: Rosenbrock(2, stiffness=0.0), "Rosenbrock.stiffness must be a positive number"),
        (lambda: TwoModes(2, weight=1.0), "weight must be between 0 and 1, got 1.0"),
        (lambda: TwoModes(2, distance=math.inf), "TwoModes.distance must be a positive number"),
        (lambda: FortyModes(2, seed=-1), "seed must be at least 0, got -1"),
    ],
)
def test_a_wrong_constant_is_named(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
