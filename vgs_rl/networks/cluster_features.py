"""What surrounds each particle: sums over neighbours, where particles are and where they relax to.

The features of :class:`~vgs_rl.networks.clusters.ClusterValue`, with their Jacobian and its
transpose. Positions have the batch last: products with a constant matrix of zeros and ones make
differences over pairs, and sums of pairs over particles.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vgs_rl.chain import Chain
from vgs_rl.energy import Energy
from vgs_rl.networks.pairs import NoisedPairPotential, PairSums


class Stiffness(NamedTuple):
    """Second derivatives of Σ U_t, by pairs, times the length of a relaxation.

    Attributes:
        unit: unit vectors, shape (d, P, B).
        across: length · U_t'/r, shape (P, B).
        along: length · (U_t'' - U_t'/r), shape (P, B).
    """

    unit: Tensor
    across: Tensor
    along: Tensor


class Stage(NamedTuple):
    """Positions, and how the next stage's depend on them.

    Attributes:
        y: positions in units of l_t, shape (d, n, B).
        stiffness: of the pairs at y; None at the last stage.
    """

    y: Tensor
    stiffness: Stiffness | None


class Places(NamedTuple):
    """What a sweep needs of positions at their steps; none of it takes a gradient.

    Attributes:
        stages: positions, then what they relax to, one after the other.
        unit: l_t, one or (B,).
        energy: Σ_{i<j} U_t at the first, shape (B,).
        force: its gradient, shape (d, n, B).
    """

    stages: list[Stage]
    unit: Tensor
    energy: Tensor
    force: Tensor


def noise_of(chain: Chain) -> Tensor:
    """Variances A_t² S_t of the noise around y_t = A_t x_t, double precision, shape (T,)."""
    return (chain.A.double().square() * chain.S.double())[:-1].cpu()


class Descriptors(nn.Module):
    """ρ_i = Σ_j b(r_ij / l_t) and v_i = Σ_j b(r_ij / l_t) r_ij/|r_ij| at n particles' positions.

    Both are taken at y and, `stages` times over, at where y relaxes to.

    Args:
        noise: A_t² S_t, shape (T,).
        energy: the target; a particle system with a `pair_potential(r)`.
        prior_std: rough standard deviation per coordinate; l_t² = 1 + A_t² S_t / prior_std².
        near: smallest distance that the radial functions resolve, at l_t = 1.
        reach: largest one.
        radial: number of radial functions.
        relax: length of a relaxation, 0 for none.
        stages: number of relaxations, one after the other.

    Raises:
        ValueError: if the energy is no particle system, or a size is not positive.
    """

    centres: Tensor
    unit: Tensor
    relaxation: Tensor

    def __init__(
        self,
        noise: Tensor,
        energy: Energy,
        *,
        prior_std: float,
        near: float,
        reach: float,
        radial: int,
        relax: float,
        stages: int,
    ) -> None:
        super().__init__()
        if energy.symmetry is None or not hasattr(energy, "pair_potential"):
            raise ValueError(
                f"network 'cluster' needs a particle system with a pair_potential, "
                f"got {type(energy).__name__}"
            )
        self.n, self.d = energy.symmetry
        if not 0 <= near < reach:
            raise ValueError(f"near must be in [0, reach = {reach}), got {near}")
        self.radial, self.spacing = radial, (reach - near) / radial
        self.pairs = NoisedPairPotential(energy, noise)
        self.sums = PairSums(self.n)
        self.register_buffer("centres", near + (torch.arange(radial) + 0.5) * self.spacing, False)
        self.register_buffer("unit", (1 + noise / prior_std**2).sqrt().float(), False)
        self.stages = stages if relax > 0 else 0
        self.register_buffer("relaxation", (relax * noise).float(), False)

    def _radial(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """Radial functions and their slopes at r (P, B): both (K, P, B)."""
        # Clamped: what underflows to denormal numbers is many times slower.
        u = (r - self.centres.view(-1, 1, 1)).mul_(1 / self.spacing).clamp_(-9.0, 9.0)
        value = torch.exp(-0.5 * u.square())
        return value, u.mul_(value).mul_(-1 / self.spacing)

    def _pairs(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Distances (P, B) of the pairs of y (d, n, B), and unit vectors (d, P, B)."""
        difference = self.sums.difference(y)
        r = difference.square().sum(0).clamp_min(1e-8).sqrt()
        return r, difference / r

    def _describe(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """ρ of shape (K, n, B) and v of shape (K, d, n, B) at positions y in units of l_t."""
        r, unit = self._pairs(y)
        value, _ = self._radial(r)
        return self._collect(value, [value * along for along in unit])

    def _collect(self, value: Tensor, vectors: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Sums over each particle's pairs of numbers (K, P, B), and of vectors that change sign."""
        vector = torch.stack([self.sums.net(part) for part in vectors], 1)
        return self.sums.total(value), vector

    def _pull(self, y: Tensor, density: Tensor, vector: Tensor) -> Tensor:
        """Transposed Jacobian of :meth:`_describe`: (K, n, B) and (K, d, n, B) to (d, n, B)."""
        r, unit = self._pairs(y)
        value, slope = self._radial(r)
        both = self.sums.both(density)
        across = []
        for axis in range(self.d):
            difference = self.sums.difference(vector[:, axis])
            both.addcmul_(difference, unit[axis])
            across.append(difference.mul_(value).sum(0).div_(r))
        along = slope.mul_(both).sum(0)
        for part, axis_unit in zip(across, unit, strict=True):
            along = along - part * axis_unit
        return self.sums.forces(part + along * u for part, u in zip(across, unit, strict=True))

    def _push(self, y: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Jacobian of :meth:`_describe` times a direction (d, n, B)."""
        r, unit = self._pairs(y)
        value, slope = self._radial(r)
        moved = self.sums.difference(direction)
        along = (unit * moved).sum(0)
        turn = (moved - unit * along) / r
        stretch = slope.mul_(along)
        parts = [torch.addcmul(stretch * unit[i], value, turn[i]) for i in range(self.d)]
        return self._collect(stretch, parts)

    def _forces(self, y: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor, Stiffness]:
        """Σ U_t at y (d, n, B), its gradient, and the stiffness of its pairs."""
        r, unit = self._pairs(y)
        u, slope, curvature = self.pairs(r, t)
        force = self.sums.forces(slope * along for along in unit)
        across, length = slope / r, self.relaxation[t]
        return (
            self.sums.all(u),
            force,
            Stiffness(unit, length * across, length * (curvature - across)),
        )

    @torch.no_grad()
    def places(self, y: Tensor, t: int | Tensor) -> Places:
        """Where descriptors are taken at y (d, n, B), and the pair potential there."""
        unit, length = self.unit[t], self.relaxation[t]
        energy, first, stiffness = self._forces(y, t)
        stages, force = [], first
        for stage in range(self.stages):
            if stage:
                _, force, stiffness = self._forces(y, t)
            stages.append(Stage(y / unit, stiffness))
            y = y - length * force
        stages.append(Stage(y / unit, None))
        return Places(stages, unit, energy, first)

    def _relaxed(self, stage: Stage, direction: Tensor) -> Tensor:
        """Jacobian of the next stage's positions by this one's, times a direction (d, n, B)."""
        assert stage.stiffness is not None
        unit, across, along = stage.stiffness
        moved = self.sums.difference(direction)
        stretch = along * (unit * moved).sum(0)
        both = zip(moved, unit, strict=True)
        return direction - self.sums.forces(across * m + stretch * u for m, u in both)

    @torch.no_grad()
    def descriptors(self, places: Places) -> tuple[Tensor, Tensor]:
        """ρ of shape (C, n, B) and v of shape (C, d, n, B), not standardised."""
        parts = [self._describe(stage.y) for stage in places.stages]
        density, vector = zip(*parts, strict=True)
        return torch.cat(density), torch.cat(vector)

    def pull_back(self, places: Places, density: Tensor, vector: Tensor) -> Tensor:
        """Transposed Jacobian of the descriptors by y: (C, n, B), (C, d, n, B) to (d, n, B)."""
        parts = zip(density.split(self.radial), vector.split(self.radial), strict=True)
        pulls = [self._pull(s.y, *part) for s, part in zip(places.stages, parts, strict=True)]
        total = pulls.pop()
        for stage, pull in zip(reversed(places.stages[:-1]), reversed(pulls), strict=True):
            total = pull + self._relaxed(stage, total)  # a symmetric Jacobian
        return total / places.unit

    def push_forward(self, places: Places, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Jacobian of the descriptors by y, times a direction (d, n, B)."""
        parts = []
        for stage in places.stages:
            parts.append(self._push(stage.y, direction / places.unit))
            if stage.stiffness is not None:
                direction = self._relaxed(stage, direction)
        density, vector = zip(*parts, strict=True)
        return torch.cat(density), torch.cat(vector)


class _PullBack(torch.autograd.Function):
    """:meth:`Descriptors.pull_back`, linear in its cotangents; positions take no gradient."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        network: Descriptors,
        places: Places,
        density: Tensor,
        vector: Tensor,
    ) -> Tensor:
        ctx.network, ctx.places = network, places  # type: ignore[attr-defined]
        return network.pull_back(places, density, vector)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        network, places = ctx.network, ctx.places  # type: ignore[attr-defined]
        return None, None, *network.push_forward(places, grads[0])


def differentiable_pull_back(
    network: Descriptors, places: Places, density: Tensor, vector: Tensor
) -> Tensor:
    """:meth:`Descriptors.pull_back`, whose backward pass is :meth:`Descriptors.push_forward`."""
    pulled: Tensor = _PullBack.apply(network, places, density, vector)  # type: ignore[no-untyped-call]
    return pulled
