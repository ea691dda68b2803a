"""What an agent keeps of an exploration: coordinates of its chain, and evidence for a verdict."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vgs_rl.agents.automatic.survey import computing_type
from vgs_rl.energy import Energy
from vgs_rl.evaluation.verdict import Evidence, Verdict, early_ends, judge_evidence
from vgs_rl.exploration import (
    AffineMap,
    Coordinates,
    GaussianReference,
    MappedEnergy,
    energy_drift,
    load_coordinates,
)
from vgs_rl.files.restore import check_like
from vgs_rl.samplers.base import ChainSampler, Samples
from vgs_rl.samplers.mcmc.kernels import FiniteEnergy

KEPT = 4_096  # particles


class Explored:
    """An energy in the coordinates that were chosen for it, with particles in its own.

    Attributes:
        energy: of the chain's z; its `coordinates` lead to x.
        particles: of exploration, equally weighted, shape (m, D), float64.
        log_z: exploration's estimate.
        spread: difference between its islands.
        doubts: its own.
        cautions: why samples may be wrong without a sign of it.
        fast: whether E is fast enough to be asked for its gradient at every sample of a verdict.

    Args:
        energy: the target of x, on R^D.
        dtype: in which it is evaluated.
        coordinates: the map from z to x; the identity until a state is loaded, if None.
    """

    def __init__(
        self, energy: Energy, dtype: torch.dtype, coordinates: Coordinates | None = None
    ) -> None:
        dim = int(energy.dim)
        if coordinates is None:
            coordinates = AffineMap(torch.zeros(dim), torch.ones(dim))
        self.energy = ExploredEnergy(energy, coordinates, dtype=dtype)
        self.energy.explored = self
        self.particles = torch.zeros(0, dim, dtype=torch.float64)
        self.log_z, self.spread = 0.0, 0.0
        self.doubts: tuple[str, ...] = ()
        self.cautions: tuple[str, ...] = ()
        self.fast = False

    def to_x(self, z: Tensor) -> Tensor:
        """User's coordinates of z (B, D), in the type that the energy computes in."""
        return self.energy.to_x(z)

    def to_z(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The chain's coordinates of x (B, D), float64; the generator chooses one of many."""
        return self.energy.coordinates.to_z(x, generator)

    def evidence(self, sampler: ChainSampler, samples: Samples, seed: int) -> Evidence:
        """What speaks for and against samples of x.

        Args:
            sampler: what drew them.
            samples: independent and weighted.
            seed: of the paths that are drawn backwards from the particles.
        """
        assert samples.log_weight is not None
        generator = sampler.mdp.generator(seed)
        particles, x = self.particles.to(samples.x.device), samples.x.double()
        ends: list[str] = []
        drift: tuple[float, float] | None = None
        if self.fast:
            tau, dtype = sampler.temperature, self.energy.computes_in or x.dtype
            ends = early_ends(x, samples.log_weight, self.energy.inner, tau, dtype)
            energy = FiniteEnergy(self.energy.inner, tau, dtype=dtype)
            around = GaussianReference(particles.mean(0), particles.std(0))
            drift = energy_drift(energy, around, x, samples.log_weight, generator)
        return Evidence.of(
            x,
            samples.log_weight,
            particles=particles,
            backward=sampler.reverse_log_weight(particles, generator),
            explored_log_z=self.log_z,
            explored_spread=self.spread,
            drift=drift,
            doubts=(*self.doubts, *ends),
            cautions=self.cautions,
        )

    def verdict(self, sampler: ChainSampler, samples: Samples, seed: int) -> dict[str, Any]:
        """The verdict on samples with its reasons and the evidence, as JSON holds it."""
        found = self.evidence(sampler, samples, seed)
        return verdict_details(judge_evidence(found), found)

    def state_dict(self) -> dict[str, Any]:
        """Everything but the energy, for checkpoints."""
        return {
            "coordinates": self.energy.coordinates.state_dict(),
            "particles": self.particles,
            "log_z": self.log_z,
            "spread": self.spread,
            "doubts": list(self.doubts),
            "cautions": list(self.cautions),
            "fast": self.fast,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`.

        Raises:
            ValueError: if it is of another dimension, or no such state.
        """
        like = {"particles": torch.zeros(0, dtype=torch.float64), "log_z": 0.0, "spread": 0.0}
        said = {"doubts": [], "cautions": [], "fast": False}
        check_like(state, {"coordinates": {}, **like, **said}, "explored")
        coordinates, particles = load_coordinates(state["coordinates"]), state["particles"]
        dim = int(self.energy.inner.dim)
        if coordinates.dim_x != dim or coordinates.dim_z != self.energy.dim:
            raise ValueError(f"explored.coordinates must be of {dim}, got {coordinates.dim_x}")
        if particles.ndim != 2 or particles.shape[1] != dim:
            shape = tuple(particles.shape)
            raise ValueError(f"explored.particles must have {dim} coordinates, got {shape}")
        self.energy.coordinates = coordinates.to(particles.device)
        self.particles, self.log_z, self.spread = particles, state["log_z"], state["spread"]
        self.doubts = tuple(str(each) for each in state["doubts"])
        self.cautions = tuple(str(each) for each in state["cautions"])
        self.fast = state["fast"]


def chain_energy(energy: Energy, explored: bool, device: torch.device) -> Energy:
    """The energy that a chain is built on, before its state is loaded.

    Args:
        energy: the target.
        explored: whether the chain has the coordinates of an exploration.
        device: where it is.
    """
    if not explored:
        return energy
    return Explored(energy.to(device), computing_type(energy, device)).energy


class ExploredEnergy(MappedEnergy):
    """A target in the coordinates that exploration has found for it.

    Attributes:
        explored: what is known of it.
    """

    explored: Explored


def verdict_details(verdict: Verdict, evidence: Evidence) -> dict[str, Any]:
    """A verdict as reports hold it."""
    return {
        "word": str(verdict),
        "reasons": list(verdict.reasons),
        "evidence": evidence.as_dict(),
    }
