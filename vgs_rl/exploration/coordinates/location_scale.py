"""Coordinates whose place and width depend on another coordinate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from vgs_rl.exploration.coordinates.base import Coordinates, part_of

NAMES = ("parents", "location", "log_scale")
ROOT = -1
MOST_LOG = 40.0  # of a width, so that numbers stay finite


class LocationScale(Coordinates, kind="location_scale"):
    """x_j = m_j(x_i) + exp(s_j(x_i)) z_j, where i is the parent of j, and x_j = z_j of a root.

    m is quadratic; s is linear with a bend, so that it has a slope far out on either side, and
    bounded by 40. Coordinates and parents form trees, so the Jacobian is triangular. It undoes what
    hierarchical models do (non-centring: Papaspiliopoulos, Roberts and Sköld, Statistical Science
    22, 2007).

    Args:
        parents: index of each parent or -1, shape (D,), int64.
        location: coefficients of 1, x_i and x_i² in m, shape (D, 3).
        log_scale: coefficients of 1, x_i and log(1 + exp(x_i)) in s, shape (D, 3).

    Raises:
        ValueError: if shapes do not fit, or the parents are no trees.
    """

    def __init__(self, parents: Tensor, location: Tensor, log_scale: Tensor) -> None:
        dim = len(parents)
        for name, value in (("location", location), ("log_scale", log_scale)):
            if value.shape != (dim, 3):
                raise ValueError(f"{name} must have shape ({dim}, 3), got {tuple(value.shape)}")
        self.dim_z = self.dim_x = dim
        self.parents = parents
        self.location, self.log_scale = location.double(), log_scale.double()
        self._levels = _levels(parents)

    def with_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Coordinates.with_log_det`."""
        x = z = z.double()
        log_det = torch.zeros_like(z[:, 0])
        for level in self._levels:
            m, s = self._conditional(x[:, self.parents[level]], level)
            x = x.index_copy(1, level, m + s.exp() * z[:, level])
            log_det = log_det + s.sum(-1)
        return x, log_det

    def to_z(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See :meth:`Coordinates.to_z`; there is one, so the generator is not used."""
        z = x.double().clone()
        for level in self._levels:
            m, s = self._conditional(x[:, self.parents[level]].double(), level)
            z[:, level] = (x[:, level].double() - m) * (-s).exp()
        return z

    def _conditional(self, above: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """M and s of some coordinates at their parents' values, both (B, rows)."""
        (c0, c1, c2), (a, b, bend) = self.location[rows].T, self.log_scale[rows].T
        s = a + b * above + bend * torch.nn.functional.softplus(above)
        return c0 + above * (c1 + above * c2), s.clamp(-MOST_LOG, MOST_LOG)

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Coordinates.state_dict`."""
        return {"kind": self.kind, **{name: getattr(self, name) for name in NAMES}}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """See :meth:`Coordinates.from_state`."""
        return cls(*(part_of(state, name, Tensor) for name in NAMES))

    def to(self, device: torch.device | str) -> LocationScale:
        """See :meth:`Coordinates.to`."""
        return LocationScale(*(getattr(self, name).to(device) for name in NAMES))


def _levels(parents: Tensor) -> list[Tensor]:
    """Coordinates by their distance from a root, without the roots.

    Raises:
        ValueError: if a coordinate is its own ancestor, or a parent is no coordinate.
    """
    above = parents.tolist()
    if any(not ROOT <= i < len(above) for i in above):
        raise ValueError(f"parents must be from -1 to {len(above) - 1}, got {above}")
    depth: list[int] = []
    for j in range(len(above)):
        at, steps = j, 0
        while above[at] != ROOT:
            at, steps = above[at], steps + 1
            if steps > len(above):
                raise ValueError(f"parents must form trees, got {above}")
        depth.append(steps)
    return [
        torch.tensor([j for j, each in enumerate(depth) if each == level], device=parents.device)
        for level in range(1, max(depth, default=0) + 1)
    ]


class SplineLocationScale(Coordinates, kind="spline_location_scale"):
    """x_0 = z_0 and x_j = m_j(z_0) + exp(s_j(z_0)) z_j of all others, m and s being cubic splines.

    Beyond the outermost knots m and s are linear. The splines are those of scipy.

    Args:
        knots: rising, shape (K,), K at least 4.
        location: m at the knots, shape (K, D - 1).
        log_scale: s at the knots, shape (K, D - 1).

    Raises:
        ValueError: if shapes do not fit, a number is not finite, or the knots do not rise.
    """

    TABLES = ("knots", "location", "log_scale")

    def __init__(self, knots: Tensor, location: Tensor, log_scale: Tensor) -> None:
        if knots.ndim != 1 or len(knots) < 4:
            raise ValueError(f"knots must have shape (K,), K >= 4, got {tuple(knots.shape)}")
        for name, value in (("location", location), ("log_scale", log_scale)):
            if value.ndim != 2 or len(value) != len(knots) or value.shape != location.shape:
                raise ValueError(
                    f"{name} must have shape ({len(knots)}, D - 1), got {tuple(value.shape)}"
                )
        tables = torch.cat([location, log_scale], -1).double()
        self.knots, self.location, self.log_scale = knots.double(), location, log_scale
        if not bool(self.knots.isfinite().all() & tables.isfinite().all()):
            raise ValueError("knots, location and log_scale must be finite")
        if not bool((self.knots.diff() > 0).all()):
            raise ValueError("knots must rise")
        self.dim_z = self.dim_x = 1 + location.shape[1]
        pieces = CubicSpline(self.knots.cpu().numpy(), tables.cpu().numpy()).c
        self._pieces = torch.as_tensor(np.ascontiguousarray(pieces)).to(knots.device)

    def with_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Coordinates.with_log_det`."""
        z = z.double()
        m, s = self._conditional(z[:, :1])
        return torch.cat([z[:, :1], m + s.exp() * z[:, 1:]], -1), s.sum(-1)

    def to_z(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See :meth:`Coordinates.to_z`; there is one, so the generator is not used."""
        x = x.double()
        m, s = self._conditional(x[:, :1])
        return torch.cat([x[:, :1], (x[:, 1:] - m) * (-s).exp()], -1)

    def _conditional(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """M and s at v (B, 1), both (B, D - 1)."""
        inside = v.clamp(self.knots[0], self.knots[-1])
        left = torch.searchsorted(self.knots, inside.detach()[:, 0].contiguous(), right=True) - 1
        left = left.clamp(0, len(self.knots) - 2)
        c3, c2, c1, c0 = self._pieces[:, left]
        gap = inside - self.knots[left].unsqueeze(-1)
        value = c0 + gap * (c1 + gap * (c2 + gap * c3))
        value = value + (v - inside) * (c1 + gap * (2 * c2 + gap * 3 * c3))
        m, s = value.chunk(2, -1)
        return m, s.clamp(-MOST_LOG, MOST_LOG)

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Coordinates.state_dict`."""
        return {"kind": self.kind, **{name: getattr(self, name) for name in self.TABLES}}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """See :meth:`Coordinates.from_state`."""
        return cls(*(part_of(state, name, Tensor) for name in cls.TABLES))

    def to(self, device: torch.device | str) -> SplineLocationScale:
        """See :meth:`Coordinates.to`."""
        return SplineLocationScale(*(getattr(self, name).to(device) for name in self.TABLES))
