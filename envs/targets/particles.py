"""Particle systems: E(x) = Σ_{i<j} u(‖x_i - x_j‖) + ½ k Σ_i ‖x_i - mean‖², centre of mass free."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from vgs_rl.checks import exporting
from vgs_rl.energy import Particles
from vgs_rl.envs.targets.quadrature import log_z_of_four_in_the_plane
from vgs_rl.envs.targets.references import ReferencedEnergy
from vgs_rl.geometry import CentreOfMassFree
from vgs_rl.networks.pairs import pair_differences


class ParticleEnergy(ReferencedEnergy):
    """n particles with a pair potential u and a harmonic trap around their own mean.

    A state is the flattened (n, d) array of positions; the density lives on states whose mean
    position is the origin, so (n - 1) d dimensions count. E itself is invariant to translation,
    rotation, reflection and permutation. A subclass writes :meth:`_potential`.

    Below the distance `core` the pair potential goes on linearly in r², with the value and slope
    that it has there. That is C1 everywhere, also where particles coincide; energies and forces
    stay bounded, so float32 does. The published targets' core lies where p has no mass (their
    docstrings say how little), so that it changes no sample and no expectation.

    Attributes:
        trap: k, the strength of the harmonic trap; 0 is none.
        core: distance below which u is continued, or None.
        CORE: the default core.
        shipped: names of the reference files in this package, by (n, d).
        published: the constants that they are of.

    Args:
        n_particles: n, at least 2.
        n_dims: d.
        trap: k.
        core: see above; None keeps u as it is, infinite where particles coincide.
    """

    differences: Tensor
    geometry: CentreOfMassFree
    thread_safe = True
    CORE: float = 0.0
    PART = 150_000  # numbers per array of pairs
    shipped: Mapping[tuple[int, int], str] = {}
    published: Mapping[str, float] = {}

    def __init__(
        self, n_particles: int, n_dims: int, *, trap: float = 0.0, core: float | None = None
    ) -> None:
        super().__init__()
        self.geometry = CentreOfMassFree(n_particles, n_dims)
        if not (math.isfinite(trap) and trap >= 0):
            raise ValueError(f"trap must be a number that is not negative, got {trap}")
        if core is not None and not (math.isfinite(core) and core > 0):
            raise ValueError(f"core must be a positive number or None, got {core}")
        self.trap, self.core = trap, core
        self.dim, self.symmetry = self.geometry.dim, Particles(n_particles, n_dims)
        self.register_buffer("differences", pair_differences(n_particles), persistent=False)

    @abstractmethod
    def _potential(self, square: Tensor) -> tuple[Tensor, Tensor]:
        """U and du/dr² at squared distances r² of any shape, without the core."""

    def _pair(self, square: Tensor) -> tuple[Tensor, Tensor]:
        """U and du/dr² at squared distances, with the core."""
        if self.core is None:
            return self._potential(square)
        outside = square.clamp_min(self.core**2)
        u, slope = self._potential(outside)
        return torch.addcmul(u, square - outside, slope), slope

    def pair_potential(self, r: Tensor) -> Tensor:
        """U(r), the energy of one unordered pair at distances r of any shape; same shape."""
        return self._pair(r.square())[0]

    def _pairs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Centred positions (n, d B), and their differences over pairs (P, d, B)."""
        n, d = self.geometry.n_particles, self.geometry.n_dims
        positions = x.T.contiguous().view(n, d * x.shape[0])  # a batch is contiguous
        positions = positions - positions.mean(0)
        difference = self.differences.to(x) @ positions
        return positions, difference.view(-1, d, x.shape[0])

    def energy(self, x: Tensor) -> Tensor:
        """See :meth:`Energy.energy`."""
        return torch.cat([self._energy(part) for part in self._parts(x)])

    def _energy(self, x: Tensor) -> Tensor:
        positions, difference = self._pairs(x)
        squares = positions.square().view(self.dim, x.shape[0]).sum(0)
        return 0.5 * self.trap * squares + self._pair(difference.square().sum(1))[0].sum(0)

    @torch.no_grad()
    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Closed form, in parts that fit the cache."""
        parts = [self._energy_and_gradient(part) for part in self._parts(x)]
        return torch.cat([energy for energy, _ in parts]), torch.cat([slope for _, slope in parts])

    def _energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        positions, difference = self._pairs(x)
        squares = positions.square().view(self.dim, x.shape[0]).sum(0)
        u, slope = self._pair(difference.square().sum(1))
        energy = u.sum(0).add_(squares, alpha=0.5 * self.trap)
        force = difference.mul_(slope.unsqueeze(1)).view(len(difference), -1)
        differences = self.differences.to(x)
        gradient = torch.addmm(positions, differences.T, force, beta=self.trap, alpha=2.0)
        return energy, gradient.view(self.dim, x.shape[0]).T.contiguous()

    def _parts(self, x: Tensor) -> tuple[Tensor, ...]:
        if x.device.type != "cpu" or exporting():
            return (x,)
        size = max(16, self.PART // (len(self.differences) * self.geometry.n_dims))
        parts: tuple[Tensor, ...] = x.split(size)
        return parts

    def reference_name(self) -> str:
        """See :class:`~vgs_rl.envs.ReferencedEnergy`; the samples are of parallel tempering."""
        constants = {name: getattr(self, name) for name in self.published}
        name = self.shipped.get(self.symmetry or (0, 0))
        # A core within the published one changes the density where it has no mass.
        same_core = self.core is None or self.core <= self.CORE
        if name is None or constants != dict(self.published) or not same_core:
            raise NotImplementedError(
                f"{type(self).__name__} ships reference samples for (n_particles, n_dims) in "
                f"{sorted(self.shipped)} with {dict(self.published)} and the default core, "
                f"got {tuple(self.symmetry or ())} with {constants} and core {self.core}"
            )
        return name


class DoubleWellCluster(ParticleEnergy):
    """E(x) = Σ_{i<j} a (r_ij - d0)⁴ + b (r_ij - d0)²: every pair prefers one of two distances.

    Constants and units (energies in kT) as in Köhler, Klein and Noé (arXiv:2006.02425) and every
    later DW-4: n = 4, d = 2, a = 0.9, b = -4, d0 = 4. Their double sum over ordered pairs with
    prefactor ½ is this sum over i < j; some codes add a constant c, 0 where it is given.
    At r = core = 0.5 the pair's energy is 90 above its minimum.

    Args:
        n_particles: n.
        n_dims: d.
        a: quartic coefficient.
        b: quadratic coefficient.
        d0: distance of the barrier's top.
        core: see :class:`ParticleEnergy`; None leaves a kink where particles coincide.
    """

    CORE = 0.5
    thread_safe = True
    shipped = {(4, 2): "dw4"}
    published = {"a": 0.9, "b": -4.0, "d0": 4.0}

    def __init__(
        self,
        n_particles: int = 4,
        n_dims: int = 2,
        *,
        a: float = 0.9,
        b: float = -4.0,
        d0: float = 4.0,
        core: float | None = CORE,
    ) -> None:
        super().__init__(n_particles, n_dims, core=core)
        if not a > 0:
            raise ValueError(f"a must be positive, got {a}: the density cannot be normalised")
        self.a, self.b, self.d0 = a, b, d0

    def log_z_at(self, temperature: float) -> float | None:
        """Log ∫ exp(-E/tau) of four particles in the plane, by quadrature; else None.

        It is None, too, where the wells are so narrow that a grid as fine would take minutes: below
        tau = 0.1 for the usual potential.

        Args:
            temperature: tau.
        """
        if (self.geometry.n_particles, self.geometry.n_dims) != (4, 2):
            return None
        depth = max(-self.b, 0.0) / (2 * self.a)  # of the wells: squared distance from the top
        reach = self.d0 + math.sqrt(depth + math.sqrt(depth**2 + 60 * temperature / self.a))
        # Of a double well, of a single one, and of a quartic one.
        curvature = max(-4 * self.b, 2 * self.b, 2 * math.sqrt(self.a * temperature))
        step = min(0.12, 0.68 * math.sqrt(temperature / curvature))
        if reach / step > self.MOST_STEPS:
            return None
        return log_z_of_four_in_the_plane(
            lambda r: self.pair_potential(r) / temperature,
            reach=reach,
            distances=math.ceil(80 * 0.12 / step),
            step=step,
        )

    MOST_STEPS = 120  # of a quadrature from the middle to its edge

    def _potential(self, square: Tensor) -> tuple[Tensor, Tensor]:
        r = square.sqrt()
        t = r - self.d0
        t2 = t.square()
        return (self.a * t2 + self.b) * t2, (2 * self.a * t2 + self.b) * t / r


class LennardJones(ParticleEnergy):
    """E(x) = Σ_{i≠j} ε [(r_m/r_ij)¹² - 2 (r_m/r_ij)⁶] + ½ k Σ_i ‖x_i - mean‖².

    The sum runs over ordered pairs, each pair counts twice: u(r) = 2ε [(r_m/r)¹² - 2 (r_m/r)⁶],
    -2 at its minimum r_m = 1 with ε = 1, k = 1 and d = 3 for LJ-13 and LJ-55. So do iDEM
    (arXiv:2402.06121) and the samples published with it, which satisfy the virial identity with
    this sum only. Köhler, Klein and Noé (arXiv:2006.02425) state the sum over ordered pairs with
    prefactor ε/(2τ), half of this; metrics for the two are not comparable.
    At r = core = 0.7 the pair's energy is 112 above its minimum.

    Args:
        n_particles: n.
        n_dims: d.
        epsilon: ε.
        r_m: distance of the minimum.
        trap: k; without a trap, 0, the density cannot be normalised.
        core: see :class:`ParticleEnergy`.
    """

    CORE = 0.7
    thread_safe = True
    shipped = {(13, 3): "lj13", (55, 3): "lj55"}
    published = {"epsilon": 1.0, "r_m": 1.0, "trap": 1.0}

    def __init__(
        self,
        n_particles: int = 13,
        n_dims: int = 3,
        *,
        epsilon: float = 1.0,
        r_m: float = 1.0,
        trap: float = 1.0,
        core: float | None = CORE,
    ) -> None:
        super().__init__(n_particles, n_dims, trap=trap, core=core)
        for name, value in (("epsilon", epsilon), ("r_m", r_m), ("trap", trap)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, got {value}")
        self.epsilon, self.r_m = epsilon, r_m

    def _potential(self, square: Tensor) -> tuple[Tensor, Tensor]:
        inverse = square.reciprocal()
        q = (self.r_m**2 * inverse).pow(3)
        excess = q - 1
        # q² - 2q = (q - 1)² - 1
        return (
            (2 * self.epsilon) * (excess.square() - 1),
            (-12 * self.epsilon) * q * excess * inverse,
        )


class DW4(DoubleWellCluster):
    """DW-4: four particles in the plane."""

    def __init__(self) -> None:
        super().__init__(n_particles=4, n_dims=2)


class LJ13(LennardJones):
    """LJ-13: thirteen particles in space."""

    def __init__(self) -> None:
        super().__init__(n_particles=13)


class LJ55(LennardJones):
    """LJ-55: fifty-five particles in space."""

    def __init__(self) -> None:
        super().__init__(n_particles=55)
