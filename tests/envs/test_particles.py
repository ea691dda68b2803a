import math
import warnings

import gymnasium
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from vgs_rl.energy import Energy
from vgs_rl.envs import (
    DW4,
    LJ13,
    LJ55,
    DoubleWellCluster,
    LennardJones,
    check_energy,
    check_vector_env,
)

TARGETS = {
    "dw4": DW4,
    "lj13": LJ13,
    "lj55": LJ55,
    "two": lambda: LennardJones(2),  # the smallest, with an even number of particles
    "five": lambda: LennardJones(5, 2, epsilon=0.5, r_m=1.3, trap=0.4, core=0.9),
    "dw3": lambda: DoubleWellCluster(3, 1, a=0.5, b=-2.0, d0=2.0),
}
BARE = [LennardJones(core=None), DoubleWellCluster(core=None)]
CORED = [LennardJones(), DoubleWellCluster()]


def states(energy: Energy, n: int, seed: int = 0, spread: float = 1.5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, energy.dim, generator=generator, dtype=torch.float64)
    return energy.geometry.project(spread * x)


def double_sum(energy: LennardJones | DoubleWellCluster, x: torch.Tensor) -> torch.Tensor:
    """The docstrings' formulas, word for word, without a core."""
    assert energy.symmetry is not None
    total = []
    for row in x.unflatten(-1, energy.symmetry):
        e = 0.5 * energy.trap * (row - row.mean(0)).square().sum()
        for i, a in enumerate(row):
            for j, b in enumerate(row):
                r = (a - b).norm()
                if isinstance(energy, LennardJones) and i != j:
                    q = energy.r_m / r
                    e = e + energy.epsilon * (q**12 - 2 * q**6)
                elif isinstance(energy, DoubleWellCluster) and i < j:
                    t = r - energy.d0
                    e = e + energy.a * t**4 + energy.b * t**2
        total.append(e)
    return torch.stack(total)


@pytest.mark.parametrize(
    "energy",
    [
        DW4(),
        LJ13(),
        LennardJones(4, 2, epsilon=0.7, r_m=1.2, trap=0.3),
        DoubleWellCluster(3, 3, a=0.5, b=-2.0, d0=2.0),
    ],
)
def test_energy_is_its_formula(energy):
    # Spread so far that no pair is within the core.
    generator = torch.Generator().manual_seed(0)
    x = 30 * torch.rand(200, energy.dim, generator=generator, dtype=torch.float64)
    r = pair_distances(energy, x)
    x = x[r.amin(-1) > 1.2][:8]
    assert len(x) == 8
    torch.testing.assert_close(energy.energy(x), double_sum(energy, x))


def pair_distances(energy: Energy, x: torch.Tensor) -> torch.Tensor:
    assert energy.symmetry is not None
    positions = x.unflatten(-1, energy.symmetry)
    i, j = torch.triu_indices(len(positions[0]), len(positions[0]), 1)
    return (positions[:, i] - positions[:, j]).norm(dim=-1)


@pytest.mark.parametrize("name", TARGETS)
def test_energy_is_the_sum_of_its_pair_potentials_and_its_trap(name):
    energy = TARGETS[name]()
    x = states(energy, 20)
    pairs = energy.pair_potential(pair_distances(energy, x)).sum(-1)
    torch.testing.assert_close(energy.energy(x), pairs + 0.5 * energy.trap * x.square().sum(-1))


@pytest.mark.parametrize("name", TARGETS)
def test_every_construction_passes_its_check(name):
    energy = TARGETS[name]()
    report = check_energy(energy, samples=None if energy.dim in (8, 39, 165) else states(energy, 9))
    assert "invariant under reflection" in report.passed


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(sorted(TARGETS)),
    seed=st.integers(0, 2**31),
    spread=st.floats(0.3, 5.0),
)
def test_energy_is_invariant_and_its_gradient_equivariant(name, seed, spread):
    energy = TARGETS[name]()
    n, d = energy.symmetry
    generator = torch.Generator().manual_seed(seed)
    x = states(energy, 4, seed, spread)
    rotation = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=x.dtype)).Q  # det ±1
    order = torch.randperm(n, generator=generator)
    shift = torch.randn(d, generator=generator, dtype=x.dtype)

    def move(y: torch.Tensor) -> torch.Tensor:
        return (y.unflatten(-1, (n, d))[:, order] @ rotation).flatten(-2)

    e, g = energy.energy_and_gradient(x)
    moved = (move(x).unflatten(-1, (n, d)) + shift).flatten(-2)
    e_moved, g_moved = energy.energy_and_gradient(moved)
    torch.testing.assert_close(e_moved, e, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(g_moved, move(g), rtol=1e-8, atol=1e-8 * float(g.abs().max()))
    torch.testing.assert_close(g.unflatten(-1, (n, d)).sum(1), torch.zeros(4, d).double())


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(sorted(TARGETS)),
    seed=st.integers(0, 2**31),
    spread=st.floats(0.01, 5.0),
)
def test_closed_form_gradient_is_autograds(name, seed, spread):
    energy = TARGETS[name]()
    x = states(energy, 5, seed, spread)
    e, g = energy.energy_and_gradient(x)
    e_auto, g_auto = Energy.energy_and_gradient(energy, x)
    torch.testing.assert_close(e, e_auto, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(g, g_auto, rtol=1e-10, atol=1e-9)
    assert not g.requires_grad


@pytest.mark.parametrize(("energy", "bare"), zip(CORED, BARE, strict=True))
@settings(max_examples=50, deadline=None)
@given(factor=st.floats(1.0, 20.0))
def test_beyond_the_core_nothing_changes(energy, bare, factor):
    r = torch.tensor([factor * energy.core], dtype=torch.float64)
    torch.testing.assert_close(energy.pair_potential(r), bare.pair_potential(r))


@pytest.mark.parametrize(("energy", "bare"), zip(CORED, BARE, strict=True))
def test_value_and_slope_are_continuous_at_the_core(energy, bare):
    def value_and_slope(potential, r: float) -> torch.Tensor:
        x = torch.tensor(r, dtype=torch.float64, requires_grad=True)
        u = potential(x)
        return torch.stack([u, *torch.autograd.grad(u, x)]).detach()

    inside = value_and_slope(energy.pair_potential, energy.core * (1 - 1e-9))
    outside = value_and_slope(bare.pair_potential, energy.core * (1 + 1e-9))
    torch.testing.assert_close(inside, outside, rtol=1e-6, atol=0)


@pytest.mark.parametrize("energy", CORED)
def test_the_core_is_repulsive_and_without_samples(energy):
    r = torch.linspace(1e-3, energy.core, 1000, dtype=torch.float64)
    u = energy.pair_potential(r)
    assert bool((u.diff() < 0).all())
    lowest = energy.pair_potential(torch.linspace(0.1, 10, 20_000, dtype=torch.float64)).min()
    assert float(u[-1] - lowest) > 90


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", TARGETS)
def test_coincident_particles_have_finite_energy_and_bounded_forces(name, dtype):
    energy = TARGETS[name]()
    x = torch.zeros(2, energy.dim, dtype=dtype)
    x[1, -1] = 1e-20
    for method in (energy.energy_and_gradient, lambda y: Energy.energy_and_gradient(energy, y)):
        e, g = method(x)
        assert bool(torch.isfinite(e).all()) and bool(torch.isfinite(g).all())
    n, d = energy.symmetry
    for spread in (1e-3, 0.1, 0.5):
        close = states(energy, 50, spread=spread).to(dtype)
        reach = float(pair_distances(energy, close).max())
        r = torch.linspace(1e-3, max(reach, energy.core), 5000).double().requires_grad_(True)
        (slopes,) = torch.autograd.grad(energy.pair_potential(r).sum(), r)
        limit = (n - 1) * float(slopes.abs().max()) * 1.01
        forces = energy.energy_and_gradient(close)[1].double() - energy.trap * close
        assert float(forces.unflatten(-1, (n, d)).norm(dim=-1).max()) < limit
    assert math.isinf(float(LennardJones(core=None).energy(torch.zeros(1, 39))))


@pytest.mark.parametrize("name", TARGETS)
def test_single_precision_agrees_with_double(name):
    energy = TARGETS[name]()
    x = states(energy, 200).float()
    e, g = energy.energy_and_gradient(x)
    e_double, g_double = energy.energy_and_gradient(x.double())
    size = energy.pair_potential(pair_distances(energy, x.double())).abs().sum(-1)
    assert float(((e - e_double).abs() / (size + 1)).max()) < 1e-5
    error = (g - g_double).norm(dim=-1) / g_double.norm(dim=-1)
    assert float(error.max()) < 1e-4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LennardJones(1), "n_particles must be at least 2, got 1"),
        (lambda: LennardJones(3, 0), "n_dims must be at least 1, got 0"),
        (lambda: LennardJones(epsilon=0.0), "epsilon must be a positive number, got 0.0"),
        (lambda: LennardJones(r_m=-1.0), "r_m must be a positive number, got -1.0"),
        (lambda: LennardJones(trap=0.0), "trap must be a positive number, got 0.0"),
        (lambda: LennardJones(core=0.0), "core must be a positive number or None, got 0.0"),
        (lambda: DoubleWellCluster(a=0.0), "a must be positive, got 0.0"),
    ],
)
def test_impossible_constants_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("id", ["vgs_rl/DW4-v0", "vgs_rl/LJ13-v0", "vgs_rl/LJ55-v0"])
def test_environments_pass_both_checks(id):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of infinite observation bounds, which are meant
        check_env(gymnasium.make(id).unwrapped, skip_render_check=True)
    check_vector_env(gymnasium.make_vec(id, num_envs=3))
