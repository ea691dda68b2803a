"""A target, and a density to begin with, in other coordinates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from vgs_rl.energy import Energy
from vgs_rl.exploration.coordinates import Coordinates
from vgs_rl.exploration.reference import PriorReference, Reference


class MappedEnergy(Energy):
    """The energy of z where x = T(z): E(x(z)) - log |det dx/dz|.

    At tau = 1, ∫ exp(-E) is the same in both coordinates, and so are log-weights, ELBO and log Z.

    Args:
        energy: the target of x.
        coordinates: the map from z to x.
        dtype: in which x is computed; that of the states by default. Where scales differ by much
            or the target is far from 0, float64 keeps digits that float32 has not.

    Raises:
        ValueError: if the target's space is not all of its coordinates, or their number differs
            from that of the map.
    """

    def __init__(
        self, energy: Energy, coordinates: Coordinates, *, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        if energy.geometry.effective_dim != energy.dim:
            raise ValueError("a change of coordinates needs a Euclidean geometry")
        if energy.dim != coordinates.dim_x:
            raise ValueError(
                f"coordinates must map to the {energy.dim} coordinates of the energy, "
                f"got {coordinates.dim_x}"
            )
        self.dim, self.log_z = coordinates.dim_z, energy.log_z
        self.inner, self.coordinates = energy, coordinates
        self.computes_in = energy.dtype or dtype
        vars(self)["thread_safe"] = energy.thread_safe

    def to_x(self, z: Tensor) -> Tensor:
        """User's coordinates of z (B, D_z), in the type that the energy computes in."""
        return self._typed(self.coordinates.to_x(z), z)

    def energy(self, x: Tensor) -> Tensor:
        """See :meth:`Energy.energy`; x are states z of the chain."""
        mapped, log_det = self.coordinates.with_log_det(x)
        energy = self.inner(self._typed(mapped, x))
        return (energy.double() - log_det).to(x)

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Energy.energy_and_gradient`."""
        mapped = self.coordinates.with_pull_back(x)
        energy, gradient = self.inner.with_gradient(self._typed(mapped.x, x))
        return (energy.double() - mapped.log_det).to(x), mapped.pull_back(gradient).to(x)

    @property
    def gradient_evaluations(self) -> int:
        """See :attr:`Energy.gradient_evaluations`."""
        return self.inner.gradient_evaluations

    def _typed(self, x: Tensor, z: Tensor) -> Tensor:
        return x.to(self.computes_in or z.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What moves a module's tensors moves those of its map."""
        self.coordinates = self.coordinates.to(fn(torch.empty(0)).device)
        moved: Self = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return moved


class MappedReference:
    """A density of x as one of z, x = T(z).

    Args:
        reference: a :class:`~vgs_rl.exploration.reference.Reference` of x, or a prior as
            :class:`~vgs_rl.exploration.reference.PriorReference` takes it.
        coordinates: the map from z to x.

    Raises:
        ValueError: if a prior has not D_x coordinates.
    """

    def __init__(self, reference: Reference | Any, coordinates: Coordinates) -> None:
        known = hasattr(reference, "level")
        self.reference: Reference = (
            reference if known else PriorReference(reference, coordinates.dim_x)
        )
        self.coordinates = coordinates

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """See :class:`~vgs_rl.exploration.reference.Reference`."""
        return self.coordinates.to_z(self.reference.sample(n, generator), generator)

    def labels(self, x: Tensor) -> Tensor:
        """See :class:`~vgs_rl.exploration.reference.Reference`."""
        return self.reference.labels(self.coordinates.to_x(x))

    def level(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`~vgs_rl.exploration.reference.Reference`; x are states z, (B, D_z)."""
        mapped = self.coordinates.with_pull_back(x)
        level, slope = self.reference.level(mapped.x)
        return level - mapped.log_det, mapped.pull_back(slope)
