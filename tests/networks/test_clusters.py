"""The invariant network of particle systems and the noised pair potential that it starts from."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vgs_rl import Chain, ScheduleConfig
from vgs_rl.conditional import Conditions
from vgs_rl.envs import GMM9
from vgs_rl.envs.targets.particles import DoubleWellCluster, LennardJones, ParticleEnergy
from vgs_rl.networks.clusters import ClusterValue, step_averages
from vgs_rl.networks.pairs import NoisedPairPotential

CHAINS = {
    "ve": Chain.build(ScheduleConfig(kind="geometric", first=0.05, last=1e-3), "ve", 12),
    "vp": Chain.build(ScheduleConfig(kind="auto", total_noise=0.6), "vp", 12),
}
# Its steps are so far apart in noise that none has a say in another's calibration.
APART = Chain.build(ScheduleConfig(kind="geometric", first=1.0, last=1e-7), "ve", 12)
ENERGIES = {"DW": DoubleWellCluster(5, 2), "LJ": LennardJones(6)}


TEMPERATURES = Conditions({"temperature": (0.5, 2.0)}, ["temperature"])


def make_network(
    energy: ParticleEnergy,
    chain: Chain,
    *,
    trained: bool = True,
    conditions: Conditions | None = None,
) -> ClusterValue:
    generator = torch.Generator().manual_seed(0)
    reach = 8.0 if energy.geometry.n_dims == 2 else 4.0
    network = ClusterValue(
        chain,
        energy,
        prior_std=1.0,
        reach=reach,
        radial=8,
        width=12,
        pooled=10,
        knots=4,
        relax=0.2,
        stages=2,
        conditions=conditions,
        generator=generator,
    ).double()
    if trained:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return network


def states(energy: ParticleEnergy, n: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, energy.dim, generator=generator, dtype=torch.float64)
    return energy.geometry.project(1.5 * z)


def with_temperatures(x: Tensor) -> Tensor:
    """Rows (x, c), c anywhere in the range."""
    c = TEMPERATURES.draw(len(x), torch.Generator().manual_seed(7), x.dtype)
    return torch.cat([x, c], -1)


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
@pytest.mark.parametrize("energy", ENERGIES.values(), ids=ENERGIES)
def test_analytic_gradients_follow_the_value(energy: ParticleEnergy, chain: Chain) -> None:
    network = make_network(energy, chain)
    x, t = states(energy, 48), torch.arange(48) % 12
    network.calibrate(states(energy, 240, seed=2), torch.arange(240) % 12)
    direction, step = states(energy, 48, seed=3), 1e-6
    rise = network.value(x + step * direction, t) - network.value(x - step * direction, t)
    slope = (network.gradient(x, t) * direction).sum(-1)
    torch.testing.assert_close(rise / (2 * step), slope, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("energy", ENERGIES.values(), ids=ENERGIES)
def test_the_gradient_is_differentiable_by_every_parameter(energy: ParticleEnergy) -> None:
    network = make_network(energy, CHAINS["ve"])
    x, t = states(energy, 24), torch.arange(24) % 12
    weight = states(energy, 24, seed=4)

    def loss() -> Tensor:
        return (network.gradient(x, t) * weight).sum()

    check_parameter_gradients(network, loss, ("offset", "mixture_bias"))


def test_at_every_temperature_gradients_follow_the_value_and_leave_the_temperature() -> None:
    energy, chain = ENERGIES["DW"], CHAINS["ve"]
    network = make_network(energy, chain, conditions=TEMPERATURES)
    rows, t = with_temperatures(states(energy, 48)), torch.arange(48) % 12
    network.calibrate(with_temperatures(states(energy, 240, seed=2)), torch.arange(240) % 12)
    direction, step = torch.nn.functional.pad(states(energy, 48, seed=3), (0, 1)), 1e-6
    rise = network.value(rows + step * direction, t) - network.value(rows - step * direction, t)
    gradient = network.gradient(rows, t)
    slope = (gradient * direction).sum(-1)
    torch.testing.assert_close(rise / (2 * step), slope, rtol=1e-4, atol=1e-3)
    assert bool((gradient[:, -1] == 0).all())
    one = network.gradient(rows[5::12], 5)
    torch.testing.assert_close(one, gradient[5::12])

    def loss() -> Tensor:
        return (network.gradient(rows, t) * direction).sum()

    check_parameter_gradients(network, loss, ("offset", "mixture_bias"))


def test_at_every_temperature_an_untrained_network_is_the_plain_one_over_it() -> None:
    energy, chain = ENERGIES["LJ"], CHAINS["ve"]
    plain = make_network(energy, chain, trained=False)
    network = make_network(energy, chain, trained=False, conditions=TEMPERATURES)
    x, t = states(energy, 24), torch.arange(24) % 12
    rows = with_temperatures(x)
    expected = plain.gradient(x, t) / rows[:, -1:]
    torch.testing.assert_close(network.gradient(rows, t)[:, :-1], expected)
    torch.testing.assert_close(network.value(rows, t), plain.value(x, t) / rows[:, -1])


def check_parameter_gradients(
    network: torch.nn.Module, loss: Callable[[], Tensor], without: tuple[str, ...]
) -> None:
    """Compares autograd with central differences along a direction of every parameter."""
    names = {n: p for n, p in network.named_parameters() if n not in without}
    gradients = torch.autograd.grad(loss(), list(names.values()))
    for (name, parameter), gradient in zip(names.items(), gradients, strict=True):
        generator = torch.Generator().manual_seed(5)
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        before, step = parameter.data.clone(), 1e-6
        with torch.no_grad():
            parameter.copy_(before + step * direction)
            above = loss()
            parameter.copy_(before - step * direction)
            below = loss()
            parameter.copy_(before)
        expected = (above - below) / (2 * step)
        actual = (gradient * direction).sum()
        assert torch.isclose(actual, expected, rtol=1e-5, atol=1e-4), name


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), name=st.sampled_from(sorted(ENERGIES)))
def test_value_is_invariant_and_gradient_equivariant(seed: int, name: str) -> None:
    energy = ENERGIES[name]
    n, d = energy.symmetry  # type: ignore[misc]
    network = make_network(energy, CHAINS["ve"])
    generator = torch.Generator().manual_seed(seed)
    x = states(energy, 6, seed).view(6, n, d)
    # An orthogonal matrix, of either determinant: a rotation or a reflection.
    matrix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(matrix).Q
    order = torch.randperm(n, generator=generator)
    shift = torch.randn(6, 1, d, generator=generator, dtype=torch.float64)
    moved = (x[:, order] @ rotation + shift).flatten(1)
    t = torch.randint(12, (6,), generator=generator)
    torch.testing.assert_close(network.value(moved, t), network.value(x.flatten(1), t))
    expected = network.gradient(x.flatten(1), t).view(6, n, d)[:, order] @ rotation
    torch.testing.assert_close(network.gradient(moved, t), expected.flatten(1))


def test_an_untrained_network_ends_as_the_energy() -> None:
    energy = LennardJones(6)
    chain = Chain.build(ScheduleConfig(kind="geometric", first=1e-3, last=1e-8), "ve", 12)
    network = make_network(energy, chain, trained=False)
    x = 0.9 * states(energy, 400)
    force = energy.energy_and_gradient(x)[1]
    calm = force.abs().amax(-1) < 50  # elsewhere the table's cells are wider than the wall
    assert calm.sum() > 10
    torch.testing.assert_close(network.gradient(x, 11)[calm], force[calm], rtol=0.02, atol=0.1)


def test_an_integer_step_means_the_same_as_one_per_row() -> None:
    energy = ENERGIES["DW"]
    network, x = make_network(energy, CHAINS["vp"]), states(energy, 7)
    rows = torch.full((7,), 5)
    torch.testing.assert_close(network.value(x, 5), network.value(x, rows))
    torch.testing.assert_close(network.gradient(x, 5), network.gradient(x, rows))
    gradient, mixture = network.gradient_and_mixture(x, rows)
    torch.testing.assert_close(gradient, network.gradient(x, 5))
    assert mixture.shape == (7, 1) and bool((mixture > 0).all() & (mixture < 1).all())


def test_calibration_standardises_the_descriptors() -> None:
    energy = ENERGIES["LJ"]
    network, x = make_network(energy, APART), states(energy, 1200)
    t = torch.arange(1200) % 12
    network.calibrate(x, t)
    density, vector = network.descriptors(network.places(network._positions(x, t), t))
    rows = t == 3
    seen = network.density_std[3] > 0.05
    scaled = (density[:, :, rows].flatten(1).T - network.density_mean[3]) / network.density_std[3]
    torch.testing.assert_close(scaled.mean(0)[seen], torch.zeros(int(seen.sum())).double())
    torch.testing.assert_close(
        scaled.std(0)[seen], torch.ones(int(seen.sum())).double(), rtol=0.01, atol=0
    )
    seen = network.vector_std[3] > 0.05
    square = vector[:, :, :, rows].square().sum(1).flatten(1).mean(1).sqrt()
    torch.testing.assert_close(square[seen], network.vector_std[3][seen])


def test_steps_of_a_few_states_each_are_calibrated_smoothly() -> None:
    energy = ENERGIES["LJ"]
    chain = Chain.build(ScheduleConfig(kind="geometric", first=0.02, last=1e-3), "ve", 150)
    network, x = make_network(energy, chain), states(energy, 900)
    t = torch.arange(900) % 150

    def roughness() -> float:
        network.calibrate(x, t)
        std = network.vector_std.log()
        return float((std[2:] - 2 * std[1:-1] + std[:-2])[10:-10].square().mean().sqrt())

    assert roughness() < 0.01
    network.levels *= 1000  # each step on its own
    assert roughness() > 0.1


def test_averages_over_steps_are_those_of_the_states_where_steps_lie_apart() -> None:
    values = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    t = torch.arange(60) % 4
    apart = step_averages(values, t, torch.tensor([0.0, -3.0, -6.0, -9.0]))
    expected = torch.stack([values[t == k].double().mean(0) for k in range(4)])
    torch.testing.assert_close(apart, expected)
    together = step_averages(values, t, torch.zeros(4))
    torch.testing.assert_close(together, values.double().mean(0).expand(4, 3))


def test_the_fitted_mixture_of_targets_varies_least() -> None:
    network = make_network(ENERGIES["LJ"], CHAINS["ve"])
    generator = torch.Generator().manual_seed(0)
    steps, share = 12, torch.linspace(0.1, 0.9, 12)
    t = torch.arange(6000) % steps
    true, width = torch.randn(6000, 12, generator=generator), 3.0
    z, w = torch.randn(2, 6000, 12, generator=generator)
    # Two unbiased targets with independent errors: the best mixture weighs by inverse variance.
    spread = (share / (1 - share)).sqrt()[t].unsqueeze(-1)
    denoising, score = true + width * spread * z, true + width * w
    network.fit_mixture(score - denoising, true - denoising, t)
    torch.testing.assert_close(
        network.mixture_bias.sigmoid().flatten().cpu().float(), share, atol=0.05, rtol=0
    )


@pytest.mark.parametrize("dims", [2, 3, 5])
@pytest.mark.parametrize("noise", [1e-3, 0.02, 0.5])
def test_the_noised_pair_potential_is_the_expectation_that_it_claims(
    dims: int, noise: float
) -> None:
    energy = DoubleWellCluster(3, dims, a=0.2, b=-0.9, d0=2.0)
    table = NoisedPairPotential(energy, torch.tensor([noise, 2 * noise])).double()
    r = torch.tensor([[0.6], [1.3], [2.0], [3.1]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(400_000, dims, generator=generator, dtype=torch.float64)
    moved = math.sqrt(2 * noise) * z
    samples = []
    for distance in r.flatten():
        shifted = moved.clone()
        shifted[:, 0] += distance
        weight = (-energy.pair_potential(shifted.norm(dim=-1))).exp()
        samples.append(-weight.mean().log())
    value, slope, curvature = table(r, torch.tensor([0]))
    torch.testing.assert_close(value.flatten(), torch.stack(samples), rtol=0.01, atol=0.02)
    above, below = (table(r + h, torch.tensor([0]))[0] for h in (1e-5, -1e-5))
    torch.testing.assert_close((above - below) / 2e-5, slope, rtol=1e-5, atol=1e-5)
    above, below = (table(r + h, torch.tensor([0]))[1] for h in (1e-5, -1e-5))
    torch.testing.assert_close((above - below) / 2e-5, curvature, rtol=1e-5, atol=1e-4)


def test_two_particles_have_their_exact_value() -> None:
    """With n = 2 the noised pair potential is all there is: V_t is exact, up to a constant."""
    energy = DoubleWellCluster(2, 2, a=0.2, b=-0.9, d0=2.0)
    network = make_network(energy, CHAINS["ve"], trained=False)
    x = states(energy, 5)
    generator = torch.Generator().manual_seed(0)
    noise = math.sqrt(float(CHAINS["ve"].S[2]))
    z = torch.randn(5, 200_000, 4, generator=generator, dtype=torch.float64)
    moved = x.unsqueeze(1) + noise * energy.geometry.project(z)
    weight = (-energy.energy(moved.flatten(0, 1))).exp().view(5, -1).mean(1)
    torch.testing.assert_close(network.value(x, 2).detach(), -weight.log(), rtol=0.01, atol=0.02)


def test_a_target_without_particles_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a particle system with a pair_potential, got GMM9"):
        ClusterValue(CHAINS["ve"], GMM9(), prior_std=1.0, reach=4.0, generator=torch.Generator())
