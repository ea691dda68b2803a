"""Changes of coordinates x = T(z) under which ∫ exp(-E) stays the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from vgs_rl.energy import Energy

Value = TypeVar("Value")


class Mapped(NamedTuple):
    """States of x, and how gradients come back from there.

    Attributes:
        x: shape (B, D_x), float64, detached.
        log_det: log |det dx/dz|, shape (B,), float64, detached.
        pull_back: from ∇E(x), shape (B, D_x), the gradient by z of E(x(z)) - log |det dx/dz|,
            shape (B, D_z), float64. It can be called once.
    """

    x: Tensor
    log_det: Tensor
    pull_back: Callable[[Tensor], Tensor]


class Coordinates(ABC):
    """A map from z in R^D_z to the x of a target, computed in float64.

    A subclass names its `kind` and writes :meth:`with_log_det` in operations that autograd
    follows, :meth:`to_z`, :meth:`state_dict`, :meth:`from_state` and :meth:`to`.

    Where T maps many z to one x, `log_det` also holds the log of a weight w(z), and w sums to 1
    over the z of each x. So the density p(x(z)) |det dx/dz| w(z) of z is that of x under T.

    Attributes:
        dim_z: D_z, dimensions of z.
        dim_x: D_x, coordinates of x.
        kind: its name in a state.
    """

    dim_z: int
    dim_x: int
    kind: ClassVar[str]
    _kinds: ClassVar[dict[str, type[Coordinates]]] = {}

    def __init_subclass__(cls, *, kind: str, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls.kind = kind
        Coordinates._kinds[kind] = cls

    @abstractmethod
    def with_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """X (B, D_x) and log |det dx/dz| (B,) of z (B, D_z), both float64."""

    @abstractmethod
    def to_z(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Z (B, D_z), float64, of x (B, D_x).

        Args:
            x: states in the target's support.
            generator: draws one z of many with its weight w(z), where a map has many.

        Raises:
            ValueError: if a state is outside the support, or a map of many z gets no generator.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Plain tensors, names and numbers, and `kind`."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The map with this state; :func:`load_coordinates` finds the class."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Coordinates:
        """The same map on a device."""

    def to_x(self, z: Tensor) -> Tensor:
        """X (B, D_x), float64, of z (B, D_z)."""
        return self.with_log_det(z)[0]

    def with_pull_back(self, z: Tensor) -> Mapped:
        """X, log |det dx/dz| and the pull-back of gradients, at z (B, D_z)."""
        with torch.enable_grad():
            leaf = z.detach().double().requires_grad_(True)
            x, log_det = self.with_log_det(leaf)

        def pull_back(gradient: Tensor) -> Tensor:
            with torch.enable_grad():
                total = (gradient.double() * x).sum() - log_det.sum()
            (slope,) = torch.autograd.grad(total, leaf)
            return slope

        return Mapped(x.detach(), log_det.detach(), pull_back)

    def pull_back(self, z: Tensor, gradient: Tensor) -> Tensor:
        """The gradient by z of E(x(z)) - log |det dx/dz|, float64.

        Args:
            z: states, shape (B, D_z).
            gradient: ∇E at x(z), shape (B, D_x).
        """
        return self.with_pull_back(z).pull_back(gradient)


class Composed(Coordinates, kind="composed"):
    """x = outer(inner(z)).

    Args:
        outer: the map that is applied last.
        inner: the map that is applied first.

    Raises:
        ValueError: if their dimensions do not fit.
    """

    def __init__(self, outer: Coordinates, inner: Coordinates) -> None:
        if outer.dim_z != inner.dim_x:
            raise ValueError(
                f"inner must map to the {outer.dim_z} coordinates of outer, got {inner.dim_x}"
            )
        self.outer, self.inner = outer, inner
        self.dim_z, self.dim_x = inner.dim_z, outer.dim_x

    def with_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Coordinates.with_log_det`."""
        between, first = self.inner.with_log_det(z)
        x, second = self.outer.with_log_det(between)
        return x, first + second

    def to_z(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See :meth:`Coordinates.to_z`."""
        return self.inner.to_z(self.outer.to_z(x, generator), generator)

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Coordinates.state_dict`."""
        outer, inner = self.outer.state_dict(), self.inner.state_dict()
        return {"kind": self.kind, "outer": outer, "inner": inner}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """See :meth:`Coordinates.from_state`."""
        return cls(*(load_coordinates(part_of(state, name, dict)) for name in ("outer", "inner")))

    def to(self, device: torch.device | str) -> Composed:
        """See :meth:`Coordinates.to`."""
        return Composed(self.outer.to(device), self.inner.to(device))


def load_coordinates(state: Mapping[str, Any]) -> Coordinates:
    """The map whose :meth:`Coordinates.state_dict` this is.

    Raises:
        ValueError: if it is no such state, naming the part that is wrong.
    """
    kind = part_of(state, "kind", str)
    if kind not in Coordinates._kinds:
        known = ", ".join(sorted(Coordinates._kinds))
        raise ValueError(f"coordinates.kind must be one of {known}, got {kind!r}")
    return Coordinates._kinds[kind].from_state(state)


def part_of(state: Mapping[str, Any], name: str, kind: type[Value]) -> Value:
    """A part of a state, once it has its type.

    Raises:
        ValueError: if it is missing or of another type.
    """
    value = state.get(name)
    if not isinstance(value, kind):
        found = type(value).__name__
        raise ValueError(f"coordinates.{name} must be a {kind.__name__}, got a {found}")
    return value


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
