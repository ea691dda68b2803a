"""Energies over temperature: exact samples and integrals, and the laws that bind them."""

import functools
import math

import pytest
import torch

from vgs_rl import Energy, TemperedEnergy
from vgs_rl.conditional import JointEnergy, joint_energy
from vgs_rl.envs import DW4, GMM9, GMM40, ConditionalPhi4, Gaussian, GaussianMixture, Phi4
from vgs_rl.envs.targets.particles import DoubleWellCluster
from vgs_rl.envs.targets.quadrature import log_z_of_four_in_the_plane

CASES = {
    "Gaussian": Gaussian(),
    "GMM9": GMM9(),
    "unequal": GaussianMixture([[0.0, 0.0], [2.0, 1.0]], [[1.0, 0.3], [0.5, 2.0]], [0.2, 0.8], 1.5),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_at_temperature_one_it_is_the_energy_itself() -> None:
    energy = GMM9()
    joint = JointEnergy(TemperedEnergy(energy, (0.5, 2.0)))
    x = 3 * torch.randn(50, 2, generator=generator())
    assert joint.conditional.at(1.0) is energy
    assert torch.equal(joint(torch.cat([x, torch.ones(50, 1)], -1)), energy(x))


@pytest.mark.parametrize("tau", [0.5, 0.8, 2.0])
@pytest.mark.parametrize("name", list(CASES))
def test_the_mean_energy_of_exact_samples_is_the_slope_of_log_z(name: str, tau: float) -> None:
    energy = CASES[name]
    beta, step, n = 1 / tau, 1e-4, 20_000
    levels = energy(energy.sample_at(n, tau, generator())).double()
    high, low = (energy.log_z_at(1 / (beta + sign * step)) for sign in (1, -1))
    error = float(levels.std()) / math.sqrt(n)
    assert abs(float(levels.mean()) + (high - low) / (2 * step)) < 4 * error


@pytest.mark.parametrize("name", list(CASES))
def test_log_z_at_temperature_one_is_log_z(name: str) -> None:
    energy = CASES[name]
    assert energy.log_z_at(1.0) == pytest.approx(energy.log_z, abs=1e-9)


def test_log_z_of_dw4_is_its_quadrature_and_its_slope_the_reference_energy() -> None:
    energy, step = DW4(), 2e-3
    assert energy.log_z_at(1.0) == pytest.approx(29.6672, abs=1e-4)
    over = TemperedEnergy(energy, (0.5, 2.0))
    assert over.log_z(torch.ones(1)) == energy.log_z_at(1.0)
    high, low = (energy.log_z_at(1 / (1 + sign * step)) for sign in (1, -1))
    levels = energy(energy.reference()).double()
    error = float(levels.std()) / math.sqrt(len(levels))
    assert abs(float(levels.mean()) + (high - low) / (2 * step)) < 5 * error


def test_log_z_of_dw4_in_narrow_wells_is_that_of_a_finer_grid() -> None:
    energy, tau = DW4(), 0.3
    finer = log_z_of_four_in_the_plane(
        lambda r: energy.pair_potential(r) / tau, reach=9.0, distances=180, step=0.07
    )
    assert energy.log_z_at(tau) == pytest.approx(finer, abs=1e-6)
    assert energy.log_z_at(0.05) is None  # rather than what no grid here resolves
    stiff = DoubleWellCluster(a=9.0, b=-40.0)  # ten times the usual potential
    assert stiff.log_z_at(10 * tau) == pytest.approx(finer, abs=1e-6)
    assert DoubleWellCluster(b=4.0).log_z_at(0.2) is None  # no four have six equal distances


def test_the_energy_of_one_value_finds_its_log_z_once_and_when_it_is_asked_for() -> None:
    class Counting(Gaussian):
        calls = 0

        def log_z_at(self, temperature: float) -> float | None:
            Counting.calls += 1
            return super().log_z_at(temperature)

    cold = TemperedEnergy(Counting(), (0.5, 2.0)).at(0.7)
    assert Counting.calls == 0
    assert cold.log_z == cold.log_z == Gaussian().log_z_at(0.7)
    assert Counting.calls == 1


def test_what_is_not_known_at_a_temperature_is_none() -> None:
    tempered = TemperedEnergy(Phi4(2, 0.2), (0.5, 2.0))
    assert not tempered.can_sample and tempered.at(0.7).log_z is None
    with pytest.raises(NotImplementedError):
        tempered.at(0.7).reference()
    assert GaussianMixture(torch.zeros(2, 3), torch.ones(2, 3)).log_z_at(0.7) is None


def test_a_lattice_over_its_coupling_is_the_lattice_at_each() -> None:
    energy, x = ConditionalPhi4(4, (0.1, 0.3)), torch.randn(30, 16, generator=generator())
    c = 0.1 + 0.2 * torch.rand(30, 1, generator=generator(1))
    values, slopes = energy.energy_and_gradient(x, c)
    for i in range(0, 30, 7):
        exact = Phi4(4, float(c[i]))
        value, slope = exact.energy_and_gradient(x[i : i + 1])
        assert torch.allclose(values[i], value[0], atol=1e-4)
        assert torch.allclose(slopes[i], slope[0], atol=1e-4)
    assert torch.allclose(energy.energy(x, c), values, atol=1e-4)
    shipped, tensor = ConditionalPhi4(8), functools.partial(torch.tensor, dtype=torch.float64)
    assert shipped.at(0.3).log_z == shipped.log_z(tensor([0.3])) == Phi4(8, 0.3).log_z
    assert shipped.log_z(tensor([0.25])) is None


def test_an_energy_has_parameters_or_a_range_of_temperatures() -> None:
    with pytest.raises(ValueError, match="must be one number for ConditionalPhi4, which has param"):
        joint_energy(ConditionalPhi4(4), (0.5, 2.0))
    with pytest.raises(ValueError, match="temperature must be a range of two ascending numbers"):
        TemperedEnergy(GMM9(), (2.0, 0.5))


class Hidden(Energy):
    dim = 1

    def energy(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(x.detach().numpy()[:, 0] ** 2)


@pytest.mark.filterwarnings("ignore:Hidden.energy hides its gradient")
def test_a_gradient_by_differences_is_tempered_and_counted() -> None:
    joint = JointEnergy(TemperedEnergy(Hidden(), (0.5, 2.0)))
    rows = torch.tensor([[1.0, 0.5], [2.0, 2.0]])
    energy, gradient = joint.with_gradient(rows)
    assert torch.allclose(energy, torch.tensor([2.0, 2.0]))
    assert torch.allclose(gradient, torch.tensor([[4.0, 0.0], [2.0, 0.0]]), atol=1e-2)
    assert joint.gradient_evaluations == 3


def test_where_exact_samples_would_take_too_long_there_are_none() -> None:
    many = TemperedEnergy(GMM40(), (0.1, 2.0))
    assert many.at(0.7).can_sample and many.at(1.0).can_sample
    cold = many.at(0.2)  # 40^4 proposals for a sample
    assert not cold.can_sample
    assert TemperedEnergy(Gaussian(), (0.01, 2.0)).at(0.01).can_sample


def test_log_z_is_not_known_where_its_grid_would_be_too_big() -> None:
    needles = GaussianMixture([[-50.0, 0.0], [50.0, 0.0]], [[1e-6, 1e-6]] * 2, [0.5, 0.5])
    assert needles.log_z_at(0.5) is None and GMM9().log_z_at(0.5) is not None
