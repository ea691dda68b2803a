"""The space in which states live: where noise points and how many dimensions count."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Geometry(ABC):
    """A state space: ambient R^D, a subspace of it, or the unit sphere in it.

    The defaults of :meth:`tangent`, :meth:`move` and :meth:`geodesic` are those of linear spaces.

    Attributes:
        dim: ambient dimension D, the last axis of every state.
        effective_dim: dimension of the space itself, the D of every formula.
        linear: whether states can be scaled and added.
        moving: how many coordinates a state has that move, its first; the others are parameters.
    """

    dim: int
    effective_dim: int
    linear: bool = True

    @property
    def moving(self) -> int:
        """See the class: all of them, except where there are parameters."""
        return self.dim

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """The point of the space that is nearest to x, shape (..., D)."""

    def tangent(self, v: Tensor, x: Tensor) -> Tensor:
        """Orthogonal projection of v, shape (..., D), onto the directions of the space at x."""
        return self.project(v)

    def scaled(self, x: Tensor, factor: Tensor | float) -> Tensor:
        """States of a linear space times a factor that is broadcast, shape (..., D)."""
        return factor * x

    def shrunk(self, x: Tensor, factor: Tensor) -> Tensor:
        """States of a linear space divided by a factor that is broadcast, shape (..., D)."""
        return x / factor

    def move(self, x: Tensor, v: Tensor, scale: Tensor) -> Tensor:
        """Where a straight walk from x along scale · v ends (the exponential map), (..., D).

        Args:
            x: states, shape (..., D).
            v: tangent vectors at x, shape (..., D).
            scale: step size, broadcast against v.
        """
        return torch.addcmul(x, scale, v)

    def geodesic(self, x: Tensor, v: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`move`, with v carried along: the direction in which the walk arrives."""
        return self.move(x, v, scale), v

    def require_linear(self, what: str) -> None:
        """Raises a ValueError that names `what` needs a linear space, unless this is one."""
        if not self.linear:
            raise ValueError(f"{what} needs a linear geometry, got {type(self).__name__}")


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


class Sphere(Geometry):
    """The unit sphere in R^D; D - 1 dimensions count.

    A step is x' = exp_x(v) = cos(r) x + sin(r) v/r with r = ‖v‖, v tangent at x. With the velocity
    v' at which it arrives, (x, v) -> (x', -v') is a bijection of all pairs of a point and a tangent
    vector, of whatever length. It preserves their volume (Liouville: geodesic flow does) and r. So
    with velocities as part of the path, the noising kernel's density over the sampling kernel's is

        N(v'; 0, s²) / N(v; sigma u, (rho sigma)²),  both in D - 1 dimensions:

    the Euclidean log-ratio with D - 1 in place of D and a = 1, and E[w] = Z holds exactly, however
    long the steps. (In terms of the points alone both kernels are wrapped normals, whose densities
    divide by the same Jacobian (sin r / r)^{D-2}; dropping it is the same formula, there exact up
    to the mass of steps longer than pi. The velocities make that exception unnecessary.)

    What is approximate here: T small steps are not one step of their summed variance, so noised
    states are simulated step by step (:meth:`vgs_rl.SamplingMDP.noised`); and the mean of the
    reversed kernel is -(s/tau) ∇V_t only to first order in s², as `bellman` is everywhere. Either
    costs efficiency of the weights, never their exactness.
    """

    linear = False

    def __init__(self, dim: int) -> None:
        if dim < 2:
            raise ValueError(f"dim must be at least 2, got {dim}")
        self.dim, self.effective_dim = dim, dim - 1

    @property
    def log_area(self) -> float:
        """Log of the sphere's surface, 2 pi^{D/2} / Gamma(D/2)."""
        half = 0.5 * self.dim
        return math.log(2) + half * math.log(math.pi) - math.lgamma(half)

    def project(self, x: Tensor) -> Tensor:
        """Divides x by its norm."""
        return torch.nn.functional.normalize(x, dim=-1)

    def tangent(self, v: Tensor, x: Tensor) -> Tensor:
        """Takes out of v what points along x: v - (v·x) x."""
        return v - (v * x).sum(-1, keepdim=True) * x

    def move(self, x: Tensor, v: Tensor, scale: Tensor) -> Tensor:
        """exp_x(scale v), put back onto the sphere to the last digit."""
        v = scale * v
        r = v.norm(dim=-1, keepdim=True)
        return self.project(r.cos() * x + torch.sinc(r / math.pi) * v)

    def geodesic(self, x: Tensor, v: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Geometry.geodesic`; v turns with the walk and keeps its length."""
        r = (scale * v).norm(dim=-1, keepdim=True)
        arriving = r.cos() * v - r.sin() * v.norm(dim=-1, keepdim=True) * x
        return self.move(x, v, scale), arriving


class Conditioned(Geometry):
    """Rows (x, c): x in a linear space, c the parameters of an energy, C numbers that stay.

    Noise, controls and gradients have 0 along c, and scaling leaves c. So a chain of rows is the
    chain of x at a c that is fixed along the path, and every formula counts the dimensions of x.

    Args:
        space: of x.
        parameters: C.
    """

    def __init__(self, space: Geometry, parameters: int) -> None:
        space.require_linear("a space with parameters")
        self.space, self.parameters = space, parameters
        self.dim, self.effective_dim = space.dim + parameters, space.effective_dim

    @property
    def moving(self) -> int:
        """D of x."""
        return self.space.dim

    def project(self, x: Tensor) -> Tensor:
        """Projects x, and leaves c."""
        return torch.cat([self.space.project(x[..., : self.moving]), x[..., self.moving :]], -1)

    def tangent(self, v: Tensor, x: Tensor) -> Tensor:
        """Projects what points along x, and takes out what points along c."""
        moving = self.space.project(v[..., : self.moving])
        return torch.nn.functional.pad(moving, (0, self.parameters))

    def scaled(self, x: Tensor, factor: Tensor | float) -> Tensor:
        """Scales x, and leaves c."""
        return torch.cat([factor * x[..., : self.moving], x[..., self.moving :]], -1)

    def shrunk(self, x: Tensor, factor: Tensor) -> Tensor:
        """Divides x, and leaves c."""
        return torch.cat([x[..., : self.moving] / factor, x[..., self.moving :]], -1)
