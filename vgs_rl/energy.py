"""The target: an unnormalised density p(x) ∝ exp(-E(x)/tau), described by its energy E."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn

from vgs_rl.geometry import Euclidean, Geometry

if TYPE_CHECKING:
    from vgs_rl.chain import Chain

Split = Literal["validation", "test"]


class Particles(NamedTuple):
    """Symmetry of n particles in d dimensions: translation, rotation, reflection, permutation."""

    n_particles: int
    n_dims: int


class Energy(nn.Module, ABC):
    """Base class of every target.

    A subclass sets ``dim`` and writes :meth:`energy`; the rest is optional and switches on the
    figures that need it (exact samples, log Z, exact values, mode weights). It keeps its constants
    as buffers, accepts any floating dtype and device, and never touches the global RNG.

    Attributes:
        dim: ambient dimension D.
        log_z: log ∫ exp(-E(x)) dx at tau = 1, or None where it is unknown.
        symmetry: the particle symmetry of E, or None.
        mode_probabilities: exact expectations, shape (M,), of :meth:`mode_indicators`, or None.

    Example:
        >>> class Ring(Energy):
        ...     dim = 2
        ...     def energy(self, x):
        ...         return 5.0 * (x.norm(dim=-1) - 3.0) ** 2
        >>> Ring()(torch.zeros(4, 2)).shape
        torch.Size([4])
    """

    dim: int
    log_z: float | None = None
    symmetry: Particles | None = None
    mode_probabilities: Tensor | None = None

    @abstractmethod
    def energy(self, x: Tensor) -> Tensor:
        """E(x) for states x of shape (B, D); returns shape (B,)."""

    def forward(self, x: Tensor) -> Tensor:
        """Same as :meth:`energy`."""
        return self.energy(x)

    @property
    def geometry(self) -> Geometry:
        """The space that the target lives on; Euclidean R^D unless a subclass says otherwise."""
        return Euclidean(self.dim)

    @property
    def data(self) -> Tensor | None:
        """Rows that the energy is learned from, shape (N, D), or None; chains may start there."""
        return None

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """E(x), shape (B,), and ∇E(x), shape (B, D), both detached.

        By automatic differentiation; override it where a closed form is faster.
        """
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            energy = self.energy(x)
            (gradient,) = torch.autograd.grad(energy.sum(), x)
        return energy.detach(), gradient

    @property
    def can_sample(self) -> bool:
        """Whether :meth:`sample` draws exact samples."""
        return type(self).sample is not Energy.sample

    @property
    def has_value(self) -> bool:
        """Whether the exact values V_t are known."""
        return type(self).value is not Energy.value

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Exact, independent samples of p at tau = 1, shape (n, D), on the generator's device.

        Raises:
            NotImplementedError: if the target has no exact sampler.
        """
        raise NotImplementedError(f"{type(self).__name__} has no exact sampler")

    def reference(self, split: Split = "test") -> Tensor:
        """Shipped reference samples, shape (n, D), for targets without an exact sampler.

        Args:
            split: "validation" samples may guide choices, "test" samples only judge.

        Raises:
            NotImplementedError: if none are shipped.
        """
        raise NotImplementedError(f"{type(self).__name__} ships no reference samples")

    def value(self, x: Tensor, t: int, chain: Chain) -> Tensor:
        """Exact V_t(x) = -log p~_t(x) at tau = 1, shape (B,): the target noised to step t.

        Raises:
            NotImplementedError: if it is not known.
        """
        raise NotImplementedError(f"{type(self).__name__} has no exact values")

    def value_gradient(self, x: Tensor, t: int, chain: Chain) -> Tensor:
        """Exact ∇V_t(x), shape (B, D), detached; by automatic differentiation of :meth:`value`."""
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.value(x, t, chain).sum(), x)
        return gradient

    def mode_indicators(self, x: Tensor) -> Tensor:
        """Statistics h(x) of shape (B, M) whose exact means are ``mode_probabilities``.

        For a mixture these are the posterior probabilities of its components.

        Raises:
            NotImplementedError: if the target names no modes.
        """
        raise NotImplementedError(f"{type(self).__name__} names no modes")


def probe(energy: Energy, *, dtype: torch.dtype, device: torch.device) -> None:
    """Evaluates `energy` once on 64 standard-normal states, before any work starts.

    Raises:
        TypeError: if it is not an :class:`Energy`.
        ValueError: if ``dim`` is not a positive integer, or E does not return shape (B,), a
            floating dtype and values free of NaN.
    """
    name = type(energy).__name__
    if not isinstance(energy, Energy):
        raise TypeError(f"energy must be a vgs_rl.Energy, got {name}")
    dim = getattr(energy, "dim", None)
    if not isinstance(dim, int) or dim < 1:
        raise ValueError(f"{name}.dim must be a positive integer, got {dim!r}")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, dim, generator=generator, dtype=torch.float64).to(device, dtype)
    with torch.no_grad():
        values = energy.energy(energy.geometry.project(x))
    if not isinstance(values, Tensor):
        raise ValueError(f"{name}.energy must return a tensor, got {type(values).__name__}")
    if values.shape != (64,):
        raise ValueError(
            f"{name}.energy must return shape (B,) = (64,), got {tuple(values.shape)}; "
            "sum or squeeze the last dimension"
        )
    if not values.is_floating_point():
        raise ValueError(f"{name}.energy must return a floating dtype, got {values.dtype}")
    if bool(values.isnan().any()):
        count = int(values.isnan().sum())
        raise ValueError(f"{name}.energy returned NaN on {count} of 64 standard-normal states")
