"""Targets on a part of R^D: intervals, half-lines, simplices and angles, from z in all of R^D_z."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints

from vgs_rl.checks import require_positive
from vgs_rl.exploration.coordinates.base import Coordinates, part_of

SOFTNESS = 0.05  # of the edges of an angle's windings, in periods
SUM_TOLERANCE = 1e-5  # of a simplex
LEAST = torch.finfo(torch.float64).tiny


class Periodic(constraints.Constraint):
    """Angles; see :func:`periodic`."""

    def __init__(self, period: float, low: float) -> None:
        self.period, self.low = period, low
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Every finite number is an angle."""
        return value.isfinite()

    def __repr__(self) -> str:
        return f"periodic({self.period:g}, low={self.low:g})"


def periodic(period: float = 2 * math.pi, low: float = 0.0) -> Periodic:
    """The constraint of an angle: x in [low, low + period), whose ends are the same point.

    Raises:
        ValueError: if the period is not positive or `low` is not finite.
    """
    require_positive("periodic", period=period)
    if not math.isfinite(low):
        raise ValueError(f"periodic.low must be finite, got {low}")
    return Periodic(float(period), float(low))


@dataclass(frozen=True)
class Block:
    """Adjacent coordinates of x under one constraint.

    Attributes:
        name: `real`, `above`, `below`, `between`, `simplex` or `periodic`.
        low: lower bounds, shape (k,), float64; -inf where there is none.
        high: upper bounds, shape (k,), float64; +inf where there is none.
    """

    name: str
    low: Tensor
    high: Tensor

    def __len__(self) -> int:
        return len(self.low)


class Support(Coordinates, kind="support"):
    """x in its support of z in R^D_z, by the bijections of `torch.distributions.biject_to`.

    An interval is the image of a logistic function, a half-line that of an exponential function.
    A simplex of k coordinates has k - 1 of z, by stick-breaking. Its densities, and so Z, are those
    by the first k - 1 coordinates, as the Dirichlet's.

    An angle is x = low + (u - low) mod period, for u on all of R. Each winding of u has the weight
    w(u) = σ((v + ½)/s) - σ((v - ½)/s), where v counts periods from the middle of
    [low, low + period) and s is 0.05. The weights of all windings sum to 1. So the density p(x) w
    of u has the Z of p, and its x have the density p. :meth:`to_z` draws a winding by these
    weights.

    Args:
        blocks: adjacent coordinates under one constraint, in their order.

    Raises:
        ValueError: if a block is unknown or its bounds do not fit it.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = tuple(blocks)
        for block in self.blocks:
            _check(block)
        self.low = torch.cat([block.low for block in self.blocks]).double()
        self.high = torch.cat([block.high for block in self.blocks]).double()
        angles = [torch.full_like(b.low, b.name == "periodic") for b in self.blocks]
        self._angles = torch.cat(angles).bool()
        self._parts = _parts(self.blocks)
        self.dim_x = len(self.low)
        self.dim_z = sum(len(part.z) for part in self._parts)
        self._order = torch.cat([part.x for part in self._parts]).argsort()
        self._order_z = torch.cat([part.z for part in self._parts]).argsort()

    def with_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Coordinates.with_log_det`."""
        z = z.double()
        pairs = [part.map.with_log_det(z[:, part.z]) for part in self._parts]
        x = torch.cat([x for x, _ in pairs], -1)[:, self._order]
        return x, torch.stack([log_det for _, log_det in pairs]).sum(0)

    def to_z(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See :meth:`Coordinates.to_z`; a bound itself becomes the nearest number within."""
        x = x.double()
        self._require(x)
        parts = [part.map.to_z(x[:, part.x], generator) for part in self._parts]
        return torch.cat(parts, -1)[:, self._order_z]

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Coordinates.state_dict`."""
        return {
            "kind": self.kind,
            "names": [block.name for block in self.blocks],
            "sizes": [len(block) for block in self.blocks],
            "low": self.low,
            "high": self.high,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """See :meth:`Coordinates.from_state`."""
        names, sizes = part_of(state, "names", list), part_of(state, "sizes", list)
        low, high = part_of(state, "low", Tensor), part_of(state, "high", Tensor)
        if not (sizes and all(type(size) is int and size > 0 for size in sizes)):
            raise ValueError(f"coordinates.sizes must be positive numbers, got {sizes}")
        if len(names) != len(sizes) or not (sum(sizes) == len(low) == len(high)):
            raise ValueError("coordinates.sizes must fit names, low and high")
        rows = zip(names, low.split(sizes), high.split(sizes), strict=True)
        return cls([Block(*row) for row in rows])

    def to(self, device: torch.device | str) -> Support:
        """See :meth:`Coordinates.to`."""
        moved = [Block(b.name, b.low.to(device), b.high.to(device)) for b in self.blocks]
        return Support(moved)

    def _require(self, x: Tensor) -> None:
        """Raises a ValueError that names the first coordinate outside the support."""
        if x.ndim != 2 or x.shape[-1] != self.dim_x:
            raise ValueError(f"x must have shape (B, {self.dim_x}), got {tuple(x.shape)}")
        # Any number is an angle.
        inside = (x >= self.low) & (x <= self.high) | (self._angles & x.isfinite())
        if not bool(inside.all()):
            row, column = (int(index) for index in (~inside).nonzero()[0])
            expected = f"lie in [{self.low[column]:g}, {self.high[column]:g}]"
            raise ValueError(
                f"x must lie in the support: coordinate {column} must "
                f"{'be finite' if self._angles[column] else expected}, "
                f"got {x[row, column]:g} in row {row}"
            )
        for part in self._parts:
            if not (isinstance(part.map, _Bijection) and part.map.name == "simplex"):
                continue
            total = x[:, part.x].sum(-1)
            if bool(((total - 1).abs() > SUM_TOLERANCE).any()):
                row = int((total - 1).abs().argmax())
                raise ValueError(
                    f"x must lie in the support: coordinates {int(part.x[0])} to "
                    f"{int(part.x[-1])} must sum to 1, got {total[row]:g} in row {row}"
                )


class _Map(Protocol):
    def with_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]: ...

    def to_z(self, x: Tensor, generator: torch.Generator | None) -> Tensor: ...


@dataclass(frozen=True)
class _Part:
    """Which coordinates one map takes, of z and of x."""

    map: _Map
    z: Tensor
    x: Tensor


class _Bijection:
    """A map of torch.distributions."""

    def __init__(self, name: str, low: Tensor, high: Tensor) -> None:
        self.name, self.low, self.high = name, low, high
        constraint: constraints.Constraint = {
            "real": constraints.real,
            "above": constraints.greater_than(low),
            "below": constraints.less_than(high),
            "between": constraints.interval(low, high),
            "simplex": constraints.simplex,
        }[name]
        self.transform: Transform = biject_to(constraint)

    def with_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        x: Tensor = self.transform(z)
        log_det: Tensor = self.transform.log_abs_det_jacobian(z, x)
        return x, log_det if self.name == "simplex" else log_det.sum(-1)

    def to_z(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.name == "above":
            x = torch.maximum(x, torch.nextafter(self.low, self.high))
        elif self.name == "below":
            x = torch.minimum(x, torch.nextafter(self.high, self.low))
        elif self.name == "simplex":
            x = x.clamp_min(LEAST)
        z: Tensor = self.transform.inv(x)
        return z


class _Angle:
    """Angles over all windings; the log of a winding's weight stands in for the log-determinant."""

    def __init__(self, low: Tensor, high: Tensor) -> None:
        self.low, self.period = low, high - low

    def with_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        v = (z - self.low) / self.period - 0.5
        a, b = (v + 0.5) / SOFTNESS, (v - 0.5) / SOFTNESS
        # log(σ(a) - σ(b)), where a - b is a constant.
        total = math.log(-math.expm1(-1 / SOFTNESS))
        softplus = torch.nn.functional.softplus
        log_weight = total - softplus(-a) - softplus(b)
        # The remainder's derivative is 1, also at the ends.
        winding = ((z - self.low) / self.period).detach().floor()
        return z - winding * self.period, log_weight.sum(-1)

    def to_z(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        if generator is None:
            raise ValueError("to_z needs a generator where angles have many windings")
        v = ((x - self.low) / self.period).remainder(1.0) - 0.5
        uniform = torch.rand(x.shape, generator=generator, dtype=torch.float64, device=x.device)
        # The weights of windings up to k sum to σ((v + k + ½)/s).
        winding = (SOFTNESS * uniform.logit(eps=LEAST) - v - 0.5).ceil()
        return self.low + (v + 0.5 + winding) * self.period


def _check(block: Block) -> None:
    low, high = block.low, block.high
    if low.shape != high.shape or low.ndim != 1 or len(low) == 0:
        raise ValueError(
            f"bounds of a block must have one shape (k,), got {tuple(low.shape)} and "
            f"{tuple(high.shape)}"
        )
    finite = {
        "real": (False, False),
        "above": (True, False),
        "below": (False, True),
        "between": (True, True),
        "simplex": (True, True),
        "periodic": (True, True),
    }
    if block.name not in finite:
        raise ValueError(f"a block must be one of {', '.join(finite)}, got {block.name!r}")
    if block.name == "simplex" and len(block) < 2:
        raise ValueError("a simplex needs at least 2 coordinates, got 1")
    for bounds, expected in zip((low, high), finite[block.name], strict=True):
        if not bool((bounds.isfinite() == expected).all()):
            raise ValueError(f"bounds of {block.name} do not fit it: {low} and {high}")
    if not bool((low < high).all()):
        raise ValueError(f"low must be below high, got {low} and {high}")


def _parts(blocks: Sequence[Block]) -> list[_Part]:
    """One map for all scalar coordinates of a name, and one for each simplex."""
    device = blocks[0].low.device
    rows: dict[str, list[tuple[Tensor, Tensor, Block]]] = {}
    first_z = first_x = 0
    for i, block in enumerate(blocks):
        simplex = block.name == "simplex"
        size = len(block) - simplex
        z = torch.arange(first_z, first_z + size, device=device)
        x = torch.arange(first_x, first_x + len(block), device=device)
        rows.setdefault(f"simplex {i}" if simplex else block.name, []).append((z, x, block))
        first_z, first_x = first_z + size, first_x + len(block)
    parts = []
    for each in rows.values():
        name = each[0][2].name
        low = torch.cat([block.low for _, _, block in each]).double()
        high = torch.cat([block.high for _, _, block in each]).double()
        made: _Map = _Angle(low, high) if name == "periodic" else _Bijection(name, low, high)
        z, x = torch.cat([row[0] for row in each]), torch.cat([row[1] for row in each])
        parts.append(_Part(made, z, x))
    return parts
