"""ASE calculators: potential energies of atoms in units of kT."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from vgs_rl.checks import count_of, require_at_least, require_module, require_positive
from vgs_rl.energy import Energy, Particles
from vgs_rl.foreign.rows import Array, Rows
from vgs_rl.geometry import CentreOfMassFree

if TYPE_CHECKING:
    import ase

    Source: TypeAlias = ase.Atoms | Callable[[], ase.Atoms]


class AseEnergy(Energy):
    """E(x) = U(x) / kT + ½ k Σ_i ‖x_i - c_i‖² / kT, with U of an ASE calculator.

    A state is the flattened (N, 3) array of positions of the N atoms that are free to move, in Å.
    Atoms held by ASE's `FixAtoms` stay where they are; the cell is fixed. The gradient is -forces
    / kT, in 1/Å. U is the free energy where the calculator has one, since forces belong to it.

    An isolated cluster (no periodic direction, no fixed atom, at least two atoms) has the same U
    wherever it is. Its density lives on states whose mean position is the origin, as that of this
    package's particle systems: `geometry` is :class:`~vgs_rl.CentreOfMassFree`, (N - 1) 3
    dimensions count, and nothing is added to E. c_i is then the mean position. Where all atoms
    are alike, `symmetry` is ``Particles(N, 3)``; set it to None for a calculator that is not
    invariant. All other systems live on R^{3N}, and c_i is the position that atom i was given.

    Without a trap, k = 0, a density that does not fall to 0 far away cannot be normalised: atoms
    leave a cluster, and images repeat in a periodic cell. Z is then infinite, and log-weights
    mean nothing beyond the region that was sampled.

    Args:
        atoms: atoms with a calculator, or a function that makes them. A function is called once
            in each process, and once here.
        temperature_K: temperature in K.
        trap: k, in eV/Å².
        processes: how many processes share the states of a batch; 0 is this one.

    Raises:
        ModuleNotFoundError: if ASE is not installed.
        TypeError: if `atoms` is something else.
        ValueError: if there is no calculator, no free atom or a constraint other than FixAtoms, if
            a number is out of its range, or if the atoms cannot be sent to another process.
    """

    anchors: Tensor
    dtype = torch.float64

    def __init__(
        self,
        atoms: Source,
        *,
        temperature_K: float,
        trap: float = 0.0,
        processes: int = 0,
    ) -> None:
        super().__init__()
        require_module("Energy.from_ase", "ase", "ase")
        from ase.units import kB

        require_positive("from_ase", temperature_K=temperature_K)
        require_at_least("from_ase", 0, trap=trap)
        processes = count_of("processes", processes, least=0)
        self.kT, self.trap = float(kB * temperature_K), float(trap)
        calculator = Calculator(atoms)
        given, self.free = calculator.atoms, calculator.free
        n = len(self.free)
        self.dim = 3 * n
        self.isolated = n == len(given) and n > 1 and not given.pbc.any()
        if self.isolated:
            self.geometry = CentreOfMassFree(n, 3)
            self.symmetry = Particles(n, 3) if _alike(given) else None
        positions = torch.from_numpy(given.positions[self.free].copy())
        self.register_buffer("anchors", positions, persistent=False)
        self._template = given.copy()
        self.rows = Rows(calculator, processes)

    def energy(self, x: Tensor) -> Tensor:
        """E(x), shape (B,), without a unit."""
        x = x.detach()  # autograd would see the trap and nothing else
        energy = self.rows.energy(x).to(x) / self.kT
        return energy + 0.5 * self._stiffness * self._stretch(x).square().sum(-1)

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """E(x), shape (B,), and ∇E(x), shape (B, D), in 1/Å."""
        energy, gradient = self.rows.energy_and_gradient(x)
        stretch = self._stretch(x)
        trapped = 0.5 * self._stiffness * stretch.square().sum(-1)
        return (
            energy.to(x) / self.kT + trapped,
            gradient.to(x) / self.kT + self._stiffness * stretch,
        )

    @property
    def initial(self) -> Tensor:
        """The positions that the free atoms were given, as a state of shape (D,), float64."""
        return self.geometry.project(self.anchors.flatten())

    def to_atoms(self, x: Tensor) -> list[ase.Atoms]:
        """States x, shape (B, D), as ASE's atoms, the fixed ones included; without calculator."""
        frames = []
        for positions in x.detach().cpu().double().numpy().reshape(len(x), -1, 3):
            frame = self._template.copy()
            frame.positions[self.free] = positions
            frames.append(frame)
        return frames

    @property
    def _stiffness(self) -> float:
        return self.trap / self.kT

    def _stretch(self, x: Tensor) -> Tensor:
        """x_i - c_i, shape (B, D)."""
        return self.geometry.project(x) if self.isolated else x - self.anchors.flatten().to(x)


class Calculator:
    """Potential energy in eV and -forces in eV/Å of atoms at one state.

    Args:
        source: atoms with a calculator, which is shared and never copied, or what makes them.

    Attributes:
        atoms: a copy of the atoms, with the calculator and without constraints.
        free: indices of those that move.
    """

    gives_gradient = True

    def __init__(self, source: Source) -> None:
        self.source = source
        self._make()
        self.name = f"the calculator {type(self.atoms.calc).__name__}"

    def _make(self) -> None:
        import ase
        from ase.constraints import FixAtoms

        source: Any = self.source
        given = source() if callable(source) else source
        if not isinstance(given, ase.Atoms):
            made = "must make" if callable(source) else "must be"
            raise TypeError(f"atoms {made} an ase.Atoms with a calculator, got {given!r}")
        if given.calc is None:
            raise ValueError("atoms.calc must be an ASE calculator, got None")
        fixed = np.zeros(len(given), dtype=bool)
        for constraint in given.constraints:
            if not isinstance(constraint, FixAtoms):
                raise ValueError(
                    f"atoms.constraints must be FixAtoms alone, got {type(constraint).__name__}"
                )
            fixed[constraint.get_indices()] = True
        self.free = np.flatnonzero(~fixed)
        if len(self.free) == 0:
            raise ValueError(f"atoms must have one that is free to move, all {len(given)} are not")
        self.atoms = given.copy()
        self.atoms.set_constraint()
        self.atoms.calc = given.calc
        known = getattr(given.calc, "implemented_properties", ())
        self._of_forces = "free_energy" in known

    def __getstate__(self) -> dict[str, Any]:
        """Atoms that a function makes are made again in another process."""
        hidden = ("atoms",) if callable(self.source) else ()
        return {name: value for name, value in vars(self).items() if name not in hidden}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if callable(self.source):
            self._make()

    def __call__(self, x: Array, gradient: bool) -> tuple[Any, Any]:
        """See :class:`vgs_rl.foreign.rows.RowFunction`."""
        self.atoms.positions[self.free] = x.reshape(-1, 3)
        energy = self.atoms.get_potential_energy(force_consistent=self._of_forces)
        if not gradient:
            return energy, None
        return energy, -self.atoms.get_forces()[self.free].reshape(-1)


def _alike(atoms: ase.Atoms) -> bool:
    """Whether all atoms are of one kind."""
    charges, moments = atoms.get_initial_charges(), atoms.get_initial_magnetic_moments()
    return all(np.ptp(each, axis=0).max() == 0 for each in (atoms.numbers, charges, moments))
