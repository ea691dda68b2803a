"""Coordinates that are standard normal where those of the target are independent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from vgs_rl.exploration.coordinates.base import Coordinates, part_of


class Quantiles(Coordinates, kind="quantiles"):
    """x_i = F_i⁻¹(Φ(z_i)) of some coordinates, F_i being what their law is; x_j = z_j of others.

    Between knots, x is a monotone rational quadratic spline of z with exact slopes there (Gregory
    and Delbourgo, IMA Journal of Numerical Analysis 2, 1982); beyond the outermost knots it is
    linear. The map and its Jacobian are those of the spline, so densities are exact.

    Args:
        dim: D.
        index: which coordinates are mapped, shape (N,), int64, each once.
        z: knots, rising, shape (N, K), K at least 2.
        x: F_i⁻¹(Φ(z)) there, rising, shape (N, K).
        log_slope: log dx/dz there, shape (N, K).

    Raises:
        ValueError: if shapes do not fit, a number is not finite, or knots do not rise.
    """

    TABLES = ("z", "x", "log_slope")

    def __init__(self, dim: int, index: Tensor, z: Tensor, x: Tensor, log_slope: Tensor) -> None:
        if index.ndim != 1 or index.dtype != torch.int64 or len(index.unique()) < len(index):
            raise ValueError("index must have shape (N,), of whole numbers, each once")
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < dim:
            raise ValueError(f"index must be from 0 to {dim - 1}, got {index.tolist()}")
        for name, table in (("z", z), ("x", x), ("log_slope", log_slope)):
            if table.ndim != 2 or table.shape != z.shape or len(table) != len(index):
                expected = f"({len(index)}, K)"
                raise ValueError(f"{name} must have shape {expected}, got {tuple(table.shape)}")
            if not bool(table.isfinite().all()):
                raise ValueError(f"{name} must be finite")
        if z.shape[1] < 2 or not bool((z.diff() > 0).all() & (x.diff() > 0).all()):
            raise ValueError("z and x must rise along at least 2 knots")
        self.dim_z = self.dim_x = dim
        self.index = index
        self.z, self.x, self.log_slope = z.double(), x.double(), log_slope.double()

    def with_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Coordinates.with_log_det`."""
        z = z.double()
        here = z[:, self.index]
        inside = torch.maximum(torch.minimum(here, self.z[:, -1]), self.z[:, 0])
        z0, z1, x0, x1, a, b = self._piece(inside.detach(), self.z)
        secant = (x1 - x0) / (z1 - z0)
        part = (inside - z0) / (z1 - z0)
        both = part * (1 - part)
        below = secant + (a + b - 2 * secant) * both
        value = x0 + (x1 - x0) * (secant * part.square() + a * both) / below
        slope = b * part.square() + 2 * secant * both + a * (1 - part).square()
        log_slope = 2 * (secant / below).log() + slope.log()
        beyond = (here - inside) * log_slope.detach().exp()
        return z.index_copy(1, self.index, value + beyond), log_slope.sum(-1)

    def to_z(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See :meth:`Coordinates.to_z`; there is one, so the generator is not used."""
        x = x.double()
        here = x[:, self.index]
        inside = torch.maximum(torch.minimum(here, self.x[:, -1]), self.x[:, 0])
        z0, z1, x0, x1, a, b = self._piece(inside, self.x)
        secant = (x1 - x0) / (z1 - z0)
        rise = (inside - x0) / (x1 - x0)
        bend = rise * (a + b - 2 * secant)
        p, q, r = secant - a + bend, a - bend, -secant * rise
        part = 2 * r / (-q - (q.square() - 4 * p * r).clamp_min(0.0).sqrt())
        end = torch.where(here < inside, a, b)
        value = z0 + (z1 - z0) * part.clamp(0.0, 1.0) + (here - inside) / end
        return x.index_copy(1, self.index, value)

    def _piece(self, at: Tensor, knots: Tensor) -> tuple[Tensor, ...]:
        """Ends in z and in x of the pieces where (B, N) lies among knots, and the slopes there."""
        found = torch.searchsorted(knots, at.T.contiguous(), right=True) - 1
        left = found.clamp(0, knots.shape[1] - 2)
        ends = [table.gather(1, left + right).T for table in (self.z, self.x) for right in (0, 1)]
        slopes = [self.log_slope.gather(1, left + right).T.exp() for right in (0, 1)]
        return (*ends, *slopes)

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Coordinates.state_dict`."""
        tables = {name: getattr(self, name) for name in self.TABLES}
        return {"kind": self.kind, "dim": self.dim_z, "index": self.index, **tables}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """See :meth:`Coordinates.from_state`."""
        tables = [part_of(state, name, Tensor) for name in ("index", *cls.TABLES)]
        return cls(part_of(state, "dim", int), *tables)

    def to(self, device: torch.device | str) -> Quantiles:
        """See :meth:`Coordinates.to`."""
        tables = [getattr(self, name).to(device) for name in ("index", *self.TABLES)]
        return Quantiles(self.dim_z, *tables)
