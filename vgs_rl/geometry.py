"""The space in which states live: where noise points and how many dimensions count."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class Geometry(ABC):
    """A linear state space: ambient R^D, or a subspace of it.

    Attributes:
        dim: ambient dimension D, the last axis of every state.
        effective_dim: dimension of the space itself, the D of every formula.
    """

    dim: int
    effective_dim: int

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """Orthogonal projection of x, shape (..., D), onto the space."""


class Euclidean(Geometry):
    """All of R^D."""

    def __init__(self, dim: int) -> None:
        self.dim = self.effective_dim = dim

    def project(self, x: Tensor) -> Tensor:
        """Returns x itself."""
        return x


class CentreOfMassFree(Geometry):
    """n particles in d dimensions whose mean position is the origin; (n - 1) d dimensions count.

    A state is the flattened (n, d) array, so dim = n d.
    """

    def __init__(self, n_particles: int, n_dims: int) -> None:
        if n_particles < 2:
            raise ValueError(f"n_particles must be at least 2, got {n_particles}")
        if n_dims < 1:
            raise ValueError(f"n_dims must be at least 1, got {n_dims}")
        self.n_particles, self.n_dims = n_particles, n_dims
        self.dim = n_particles * n_dims
        self.effective_dim = (n_particles - 1) * n_dims

    def project(self, x: Tensor) -> Tensor:
        """Subtracts the centre of mass."""
        particles: Tensor = x.unflatten(-1, (self.n_particles, self.n_dims))
        return (particles - particles.mean(dim=-2, keepdim=True)).flatten(-2)
