"""Affine changes of coordinates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from vgs_rl.exploration.coordinates.base import Coordinates, Mapped, part_of

MOST_FULL = 256  # dimensions up to which a covariance is full; above, few of its axes are long
MOST_LONG = 16  # axes that are longer, above that
ITERATIONS = 8  # of the search for them
POWERS = 9  # of a tenth, by which a covariance may be shrunk less than its size asks for
MORE = (1.0, 0.9, 0.75, 0.5, 0.3, 0.15)  # shares of the diagonal, where it is all that is known
ENOUGH = 5.0  # states for each dimension, from which it may
ROUNDING = 1e-12  # of a correlation


class AffineMap(Coordinates, kind="affine"):
    """x = shift + factor (1 + U (s - 1) U^T) z, in float64.

    Args:
        shift: shape (D,).
        factor: lower triangular, shape (D, D), or the diagonal of one, shape (D,).
        axes: U, orthonormal, a column each, shape (D, r); none if None.
        stretch: s, shape (r,), above 0.

    Raises:
        ValueError: if the factor is singular or not finite, or its shape does not fit.

    Attributes:
        log_det: log of the map's determinant.
    """

    def __init__(
        self,
        shift: Tensor,
        factor: Tensor,
        axes: Tensor | None = None,
        stretch: Tensor | None = None,
    ) -> None:
        diagonal = factor if factor.ndim == 1 else factor.diagonal()
        if not bool((diagonal > 0).all() & factor.isfinite().all()):
            raise ValueError("factor must be finite with a positive diagonal")
        dim = len(shift)
        if factor.shape not in {(dim,), (dim, dim)}:
            expected = f"({dim},) or ({dim}, {dim})"
            raise ValueError(f"factor must have shape {expected}, got {tuple(factor.shape)}")
        self.dim_z = self.dim_x = dim
        self.shift, self.factor = shift.detach().double(), factor.detach().double()
        self.log_det = float(diagonal.double().log().sum())
        self.axes = self.shift.new_zeros(dim, 0) if axes is None else axes.detach().double()
        self.stretch = self.shift.new_ones(0) if stretch is None else stretch.detach().double()
        rank = len(self.stretch)
        if self.stretch.ndim != 1 or self.axes.shape != (dim, rank):
            raise ValueError(f"axes must have shape ({dim}, r), got {tuple(self.axes.shape)}")
        gap = self.axes.T @ self.axes - torch.eye(rank).to(self.axes)
        if not bool((gap.abs() < 1e-6).all() & (self.stretch > 0).all()):
            raise ValueError("axes must be orthonormal, and their stretches above 0")
        self.log_det += float(self.stretch.log().sum())

    def _stretched(self, z: Tensor, power: float = 1.0) -> Tensor:
        """Z (B, D) times s^power along the axes."""
        if not len(self.stretch):
            return z
        return z + ((z @ self.axes) * (self.stretch**power - 1)) @ self.axes.T

    def to_x(self, z: Tensor) -> Tensor:
        """X (B, D) of z (B, D)."""
        z = self._stretched(z.double())
        return self.shift + (z * self.factor if self.factor.ndim == 1 else z @ self.factor.T)

    def with_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Coordinates.with_log_det`."""
        x = self.to_x(z)
        return x, x.new_full((len(x),), self.log_det)

    def with_pull_back(self, z: Tensor) -> Mapped:
        """See :meth:`Coordinates.with_pull_back`."""
        return Mapped(*self.with_log_det(z.detach()), self.gradient)

    def to_z(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Z (B, D) of x (B, D); there is one, so the generator is not used."""
        gap = x.double() - self.shift
        if self.factor.ndim == 1:
            return self._stretched(gap / self.factor, -1.0)
        solved: Tensor = torch.linalg.solve_triangular(self.factor, gap.T, upper=False)
        return self._stretched(solved.T, -1.0)

    def gradient(self, gradient: Tensor) -> Tensor:
        """The gradient by z (B, D) of a function whose gradient by x is given (B, D)."""
        gradient = gradient.double()
        whole = gradient * self.factor if self.factor.ndim == 1 else gradient @ self.factor
        return self._stretched(whole)

    def gradient_of_x(self, gradient: Tensor) -> Tensor:
        """The gradient by x (B, D) of a function whose gradient by z is given (B, D)."""
        gradient = self._stretched(gradient.double(), -1.0)
        if self.factor.ndim == 1:
            return gradient / self.factor
        solved: Tensor = torch.linalg.solve_triangular(self.factor.T, gradient.T, upper=True)
        return solved.T

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Coordinates.state_dict`."""
        state = {"kind": self.kind, "shift": self.shift, "factor": self.factor}
        return {**state, "axes": self.axes, "stretch": self.stretch}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """See :meth:`Coordinates.from_state`; a state without axes has none."""
        parts = [part_of(state, name, Tensor) for name in ("shift", "factor")]
        if "axes" in state:
            parts += [part_of(state, name, Tensor) for name in ("axes", "stretch")]
        return cls(*parts)

    def to(self, device: torch.device | str) -> AffineMap:
        """See :meth:`Coordinates.to`."""
        parts = (self.shift, self.factor, self.axes, self.stretch)
        return AffineMap(*(part.to(device) for part in parts))

    @classmethod
    def whitening(cls, x: Tensor, weight: Tensor | None = None) -> AffineMap:
        """The map in whose coordinates states x (B, D) have mean 0 and unit covariance.

        Above MOST_FULL dimensions, the covariance is diagonal but for a few long axes. Below, it is
        shrunk towards its diagonal as far as makes states that are left out likeliest: wholly where
        coordinates are independent, and hardly where they depend on each other. Shrinking by a
        hundredth alone would leave an ellipsoid with axes of 1 and 10,000 a thousand times as long
        as it is wide.

        Args:
            x: states, shape (B, D).
            weight: their weights up to a factor, shape (B,); equal if None.
        """
        x, weight = different(x.double(), weight)
        dim = x.shape[-1]
        n = 1.0 / float(weight.square().sum())
        unbiased = n / (n - 1) if n > 1 else 1.0
        mean = weight @ x
        std = ((weight @ (x - mean).square()) * unbiased).sqrt()
        # A coordinate that all states share has no width: a millionth of its size stands in.
        std = std.clamp_min(1e-6 * mean.abs().clamp_min(1e-6))
        if dim == 1:
            return cls(mean, std)
        scaled = (x - mean) / std
        if dim > MOST_FULL:
            return cls(mean, std, *_long_axes(scaled, weight, n))
        correlation = (scaled.T * weight) @ scaled * unbiased
        correlation.fill_diagonal_(1.0)
        if not bool(correlation.isfinite().all()):
            raise ValueError("states and weights must be finite and their squares numbers")
        shrinkage = dim / (n + dim)
        if n >= ENOUGH * dim:
            shrinkage = _shrinkage(correlation, scaled, weight, shrinkage)
        correlation *= 1 - shrinkage
        correlation.fill_diagonal_(1 + ROUNDING)
        factor, info = torch.linalg.cholesky_ex(correlation)
        return cls(mean, std if int(info) else std.unsqueeze(-1) * factor)


def different(x: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """The different rows of x (B, D), and the weight of each, with sum 1.

    Args:
        x: states, shape (B, D).
        weight: their weights up to a factor, shape (B,); equal if None.
    """
    if weight is None:
        weight = x.new_ones(len(x))
    rows, which = torch.unique(x, dim=0, return_inverse=True)
    weight = torch.zeros_like(rows[:, 0]).index_add_(0, which, weight.double())
    return rows, weight / weight.sum()


def _long_axes(scaled: Tensor, weight: Tensor, n: float) -> tuple[Tensor, Tensor]:
    """Axes (D, r) along which states (B, D) of unit variance are wider than chance makes them.

    Of n states in D independent coordinates the widest axis has a variance of (1 + √(D/n))². What
    is above that is as wide as the spiked model says (Donoho, Gavish and Johnstone, Annals of
    Statistics 46, 2018: Frobenius loss). Widths of the axes come with them, shape (r,).
    """
    dim = scaled.shape[1]
    rows = scaled * weight.sqrt().unsqueeze(-1)
    axes = torch.randn(
        dim,
        min(2 * MOST_LONG, len(rows)),
        generator=torch.Generator().manual_seed(0),
        dtype=rows.dtype,
    ).to(rows)
    for _ in range(ITERATIONS):
        axes = torch.linalg.qr(rows.T @ (rows @ axes)).Q
    _, width, turn = torch.linalg.svd(rows @ axes, full_matrices=False)
    variance, noise = width.square(), dim / n
    found = variance[:MOST_LONG] > 1.1 * (1 + math.sqrt(noise)) ** 2
    variance = variance[:MOST_LONG][found]
    inner = variance + 1 - noise
    spike = 0.5 * (inner + (inner.square() - 4 * variance).clamp_min(0.0).sqrt())
    kept = (1 - noise / (spike - 1).square()) / (1 + noise / (spike - 1))
    axes = torch.linalg.qr(axes @ turn.mT[:, :MOST_LONG][:, found]).Q
    return axes, (1 + (spike - 1) * kept.clamp_min(0.0)).sqrt()


def _shrinkage(correlation: Tensor, scaled: Tensor, weight: Tensor, most: float) -> float:
    """The share of the identity in a correlation (D, D) under which left-out states are likeliest.

    Each state (n, D) is judged by the Gaussian of all others, by the formula of Sherman and
    Morrison (Theiler, Proc. SPIE 8390, 2012).
    """
    size, axes = torch.linalg.eigh(correlation)
    less = most * 0.1 ** torch.arange(POWERS, dtype=size.dtype, device=size.device)
    shares = torch.cat([size.new_tensor([share for share in MORE if share > most]), less])
    width = (1 - shares) * size.clamp_min(0.0).unsqueeze(-1) + shares + ROUNDING  # (D, shares)
    square = (scaled @ axes).square() @ (1 / width)  # (n, shares), in units of the width
    left = (1 - (1 - shares) * weight.unsqueeze(-1) * square).clamp_min(ROUNDING)
    loss = width.log().sum(0) + weight @ (left.log() + square / left)
    return float(shares[loss.argmin()])


class Rotation(Coordinates, kind="rotation"):
    """x = axes z, with orthonormal axes.

    Args:
        axes: a column each, shape (D, D).

    Raises:
        ValueError: if they are not orthonormal.
    """

    def __init__(self, axes: Tensor) -> None:
        axes = axes.detach().double()
        if axes.ndim != 2 or axes.shape[0] != axes.shape[1]:
            raise ValueError(f"axes must have shape (D, D), got {tuple(axes.shape)}")
        gap = axes.T @ axes - torch.eye(len(axes)).to(axes)
        if not float(gap.abs().max()) < 1e-6:
            raise ValueError(
                f"axes must be orthonormal, got products off by {float(gap.abs().max()):g}"
            )
        self.axes, self.dim_x, self.dim_z = axes, len(axes), len(axes)

    def with_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Coordinates.with_log_det`."""
        x = z.double() @ self.axes.T
        return x, x.new_zeros(len(x))

    def with_pull_back(self, z: Tensor) -> Mapped:
        """See :meth:`Coordinates.with_pull_back`."""
        return Mapped(
            *self.with_log_det(z.detach()), lambda gradient: gradient.double() @ self.axes
        )

    def to_z(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Z (B, D) of x (B, D); there is one, so the generator is not used."""
        return x.double() @ self.axes

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Coordinates.state_dict`."""
        return {"kind": self.kind, "axes": self.axes}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """See :meth:`Coordinates.from_state`."""
        return cls(part_of(state, "axes", Tensor))

    def to(self, device: torch.device | str) -> Rotation:
        """See :meth:`Coordinates.to`."""
        return Rotation(self.axes.to(device))
