"""Atoms with an ASE calculator: energies in kT, forces, and what is done about translation."""

from __future__ import annotations

from typing import Any

import foreign_functions
import numpy as np
import pytest
import torch

from vgs_rl import CentreOfMassFree, Energy, Euclidean, MDPConfig, Particles, SamplingMDP
from vgs_rl.agents import ValueGradientConfig
from vgs_rl.foreign.gradients import central_differences
from vgs_rl.foreign.rows import FunctionError

KELVIN = 600.0


pytest.importorskip("ase", reason="needs the extra ase")


def copper(symbol: str = "Cu") -> Any:
    """Thirteen atoms, an icosahedron."""
    atoms = foreign_functions.copper()
    atoms[0].symbol = symbol
    return atoms


def slab() -> Any:
    """Gold on a copper surface whose lower layer is fixed."""
    from ase.build import add_adsorbate, fcc111
    from ase.calculators.emt import EMT
    from ase.constraints import FixAtoms

    atoms = fcc111("Cu", (2, 2, 2), vacuum=8.0)
    add_adsorbate(atoms, "Au", 2.5, "fcc")
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 2))
    atoms.calc = EMT()
    return atoms


def near(energy: Any, n: int = 4, width: float = 0.15) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, energy.dim, generator=generator, dtype=torch.float64)
    return energy.geometry.project(energy.initial + width * z)


@pytest.mark.parametrize("make", [copper, slab])
def test_energy_and_forces_are_those_of_ase(make: Any) -> None:
    from ase.units import kB

    energy = Energy.from_ase(make(), temperature_K=KELVIN)
    x = near(energy)
    value, gradient = energy.with_gradient(x)
    for atoms, e, slope in zip(energy.to_atoms(x), value, gradient, strict=True):
        atoms.calc = make().calc
        assert float(e) == pytest.approx(atoms.get_potential_energy() / (kB * KELVIN), rel=1e-12)
        forces = atoms.get_forces()[energy.free]
        np.testing.assert_allclose(slope.reshape(-1, 3), -forces / (kB * KELVIN), atol=1e-9)


@pytest.mark.parametrize("make", [copper, slab])
def test_gradients_agree_with_finite_differences(make: Any) -> None:
    energy = Energy.from_ase(make(), temperature_K=KELVIN, trap=0.5)
    x = near(energy)
    value, gradient = energy.with_gradient(x)
    assert float(gradient.abs().max()) > 10.0
    found = central_differences(energy, x, value)
    torch.testing.assert_close(found, gradient, rtol=1e-6, atol=1e-5)


def test_a_cluster_has_the_symmetry_that_it_declares() -> None:
    energy = Energy.from_ase(copper(), temperature_K=KELVIN, trap=0.5)
    generator = torch.Generator().manual_seed(1)
    x = near(energy).reshape(4, 13, 3)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=x.dtype))[0]
    order = torch.randperm(13, generator=generator)
    for image in (x @ turn, -x, x[:, order]):
        torch.testing.assert_close(
            energy(image.flatten(1)), energy(x.flatten(1)), rtol=1e-10, atol=0
        )


@pytest.mark.parametrize("make", [copper, slab])
def test_a_trap_adds_what_it_says(make: Any) -> None:
    from ase.units import kB

    free, trapped = (Energy.from_ase(make(), temperature_K=KELVIN, trap=k) for k in (0.0, 0.5))
    x = near(free)
    centre = x.reshape(len(x), -1, 3).mean(1).repeat(1, free.dim // 3)
    if make is slab:
        centre = torch.from_numpy(make().positions[free.free]).flatten()
    added = 0.5 * 0.5 * (x - centre).square().sum(-1) / (kB * KELVIN)
    torch.testing.assert_close(trapped(x) - free(x), added, rtol=1e-9, atol=1e-9)
    slope = trapped.with_gradient(x)[1] - free.with_gradient(x)[1]
    torch.testing.assert_close(slope, 0.5 * (x - centre) / (kB * KELVIN), rtol=1e-9, atol=1e-9)


def test_gradients_that_flow_through_a_trapped_energy_are_those_of_all_of_it() -> None:
    energy = Energy.from_ase(copper(), temperature_K=KELVIN, trap=0.5)
    x = near(energy, 2).requires_grad_(True)
    energy(x).sum().backward()
    torch.testing.assert_close(x.grad, energy.with_gradient(x)[1])


def test_a_cluster_lives_where_its_mean_position_is_the_origin() -> None:
    energy = Energy.from_ase(copper(), temperature_K=KELVIN, trap=0.5)
    assert isinstance(energy.geometry, CentreOfMassFree) and energy.symmetry == Particles(13, 3)
    assert energy.geometry.effective_dim == 36 and energy.dim == 39
    x = near(energy)
    torch.testing.assert_close(energy(x + 5.0), energy(x), rtol=1e-12, atol=1e-9)
    agent = ValueGradientConfig(prior_std=1.5).build(
        SamplingMDP(energy, MDPConfig(num_steps=3)), seed=0
    )
    mean = agent.sampler().sample(10).x.reshape(10, 13, 3).mean(1)
    torch.testing.assert_close(mean, torch.zeros(10, 3), rtol=0, atol=1e-5)


def test_unlike_atoms_are_not_exchanged_and_fixed_ones_stay() -> None:
    assert Energy.from_ase(copper("Au"), temperature_K=KELVIN).symmetry is None
    energy, given = Energy.from_ase(slab(), temperature_K=KELVIN), slab()
    assert isinstance(energy.geometry, Euclidean) and energy.symmetry is None
    assert energy.dim == 3 * 5 and list(energy.free) == [4, 5, 6, 7, 8]
    (moved,) = energy.to_atoms(near(energy, 1))
    np.testing.assert_array_equal(moved.positions[:4], given.positions[:4])
    assert (moved.positions[4:] != given.positions[4:]).all()


def test_the_users_atoms_stay_as_they_are() -> None:
    atoms = slab()
    before = atoms.copy()
    energy = Energy.from_ase(atoms, temperature_K=KELVIN)
    energy.with_gradient(near(energy))
    assert atoms == before and len(atoms.constraints) == 1
    assert atoms.get_potential_energy() == pytest.approx(slab().get_potential_energy(), rel=1e-12)


def test_atoms_are_shared_by_processes_where_a_function_makes_them() -> None:
    alone = Energy.from_ase(foreign_functions.copper, temperature_K=KELVIN)
    shared = Energy.from_ase(foreign_functions.copper, temperature_K=KELVIN, processes=1)
    x = near(alone, 6)
    for got, right in zip(shared.with_gradient(x), alone.with_gradient(x), strict=True):
        torch.testing.assert_close(got, right, rtol=1e-12, atol=1e-9)


def calculated() -> Any:
    atoms = copper()
    atoms.get_potential_energy()  # EMT cannot be pickled from then on
    return atoms


def constrained() -> Any:
    from ase.constraints import FixBondLength

    atoms = copper()
    atoms.set_constraint(FixBondLength(0, 1))
    return atoms


def fixed() -> Any:
    from ase.constraints import FixAtoms

    atoms = copper()
    atoms.set_constraint(FixAtoms(range(13)))
    return atoms


def bare() -> Any:
    atoms = copper()
    atoms.calc = None
    return atoms


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (copper, {"temperature_K": 0.0}, "from_ase.temperature_K must be a positive number, got 0"),
        (copper, {"trap": -1.0}, "from_ase.trap must be at least 0, got -1"),
        (copper, {"processes": 1.5}, "processes must be a whole number, got 1.5"),
        (bare, {}, "atoms.calc must be an ASE calculator, got None"),
        (constrained, {}, "atoms.constraints must be FixAtoms alone, got FixBondLengths"),
        (fixed, {}, "atoms must have one that is free to move, all 13 are not"),
        (calculated, {"processes": 1}, "the calculator EMT cannot be sent to another process"),
    ],
)
def test_a_mistake_names_the_argument(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Energy.from_ase(make(), **{"temperature_K": KELVIN, **options})


@pytest.mark.parametrize("atoms", ["Cu13", lambda: "Cu13"])
def test_what_is_no_atoms_is_refused(atoms: Any) -> None:
    with pytest.raises(TypeError, match=r"atoms must (be|make) an ase.Atoms .*got 'Cu13'"):
        Energy.from_ase(atoms, temperature_K=KELVIN)


def test_an_error_of_a_calculator_names_the_state() -> None:
    from ase.calculators.lj import LennardJones

    class Refusing(LennardJones):
        def calculate(self, atoms: Any = None, *args: Any, **options: Any) -> None:
            if atoms.positions[0, 0] > 50.0:
                raise RuntimeError("not converged")
            super().calculate(atoms, *args, **options)

    atoms = copper()
    atoms.calc = Refusing()
    energy = Energy.from_ase(atoms, temperature_K=KELVIN)
    x = near(energy)
    x[2, 0] = 99.0
    message = r"the calculator Refusing failed on state 2 of 4, x = .*RuntimeError: not converged"
    with pytest.raises(FunctionError, match=message):
        energy(x)
