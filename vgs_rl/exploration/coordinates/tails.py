"""Coordinates in which Student-t tails are Gaussian: exact, whatever the target's tails are."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from vgs_rl.exploration.coordinates.base import Coordinates, part_of

NODES = 2048
LEAST_NU = 0.5
LEAST_LOG = 280.0  # probabilities below exp(-280) are not resolved
NEWTON_STEPS = 12


class Tails(Coordinates, kind="tails"):
    """x = z exp(h(|z|²)), which takes a standard normal to a Student-t of nu degrees of freedom.

    h matches the quantiles of radii: those of a standard normal and of a multivariate t in D
    dimensions, or, per coordinate, those of a normal and of a t in one. It is a cubic Hermite
    interpolant over |z|² with the exact slopes at its nodes. Beyond the last node, which is at
    least 12 standard deviations out, log |x| grows as |z|²/(2 nu), the t's own asymptotics. The
    map and its Jacobian are those of the interpolant, so densities are exact. Where |x| would
    exceed float64, from 37 standard deviations on at nu = 1, it is infinite.

    Args:
        dim: D.
        nu: degrees of freedom from 0.5 to infinity, where the map is the identity. One number: the
            norm of z is mapped. A tensor of shape (D,): each coordinate is, by its own.

    Raises:
        ValueError: if nu is out of range or has another shape.
    """

    def __init__(self, dim: int, nu: float | Tensor) -> None:
        self.dim_z = self.dim_x = dim
        self.nu = torch.as_tensor(nu, dtype=torch.float64).detach()
        if self.nu.ndim > 0 and self.nu.shape != (dim,):
            raise ValueError(
                f"nu must be a number or of shape ({dim},), got {tuple(self.nu.shape)}"
            )
        if not bool((self.nu >= LEAST_NU).all()):
            raise ValueError(f"nu must be at least {LEAST_NU}, got {self.nu.min().item():g}")
        self.radial = self.nu.ndim == 0
        nus, which = self.nu.reshape(-1).unique(return_inverse=True)
        tables = [_table(float(each), dim if self.radial else 1) for each in nus]
        device = self.nu.device
        self._which = which
        self._step = torch.tensor([step for step, _ in tables], device=device).double()[which]
        self._pieces = torch.stack([pieces for _, pieces in tables]).to(device)

    def with_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Coordinates.with_log_det`."""
        z = z.double()
        s = self._squares(z)
        h, slope = self._log_stretch(s)
        # Along the radius the map stretches by exp(h) (1 + 2 s h'), across it by exp(h).
        directions = self.dim_z if self.radial else 1
        log_det = (directions * h + (2 * s * slope).log1p()).sum(-1)
        return z * h.exp(), log_det

    def to_z(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See :meth:`Coordinates.to_z`; there is one, so the generator is not used."""
        x = x.double()
        size = x.norm(dim=-1, keepdim=True) if self.radial else x.abs()
        log_r = self._log_radius(size.clamp_min(1e-300).log())
        return x * (-self._log_stretch((2 * log_r).exp())[0]).exp()

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Coordinates.state_dict`."""
        return {"kind": self.kind, "dim": self.dim_z, "nu": self.nu}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """See :meth:`Coordinates.from_state`."""
        return cls(part_of(state, "dim", int), part_of(state, "nu", Tensor))

    def to(self, device: torch.device | str) -> Tails:
        """See :meth:`Coordinates.to`."""
        return Tails(self.dim_z, self.nu.to(device))

    def _squares(self, z: Tensor) -> Tensor:
        return z.square().sum(-1, keepdim=True) if self.radial else z.square()

    def _log_stretch(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """H and its derivative at s = r², shape (B, D), or (B, 1) if radial."""
        left = (s.detach().sqrt() / self._step).long().clamp(0, NODES - 1)
        gap = s - (left * self._step).square()
        c0, c1, c2, c3 = self._pieces[self._which, left].unbind(-1)
        h = c0 + gap * (c1 + gap * (c2 + gap * c3))
        return h, c1 + gap * (2 * c2 + gap * (3 * c3))

    def _log_radius(self, log_x: Tensor) -> Tensor:
        """Log r of log |x|, by Newton's method in the piece where it lies."""
        nodes = (torch.arange(NODES, device=log_x.device) * self._step.unsqueeze(-1)).log()
        ends = nodes + self._pieces[self._which, :, 0]  # log |x| at the nodes, (D, N)
        found = torch.searchsorted(ends, log_x.T.contiguous(), right=True) - 1
        left = found.clamp(0, NODES - 2)
        low, high = nodes.gather(-1, left).T, nodes.gather(-1, left + 1).T
        a, b = ends.gather(-1, left).T, ends.gather(-1, left + 1).T
        first, beyond = left.T == 0, log_x > b
        at_zero, growth = self._pieces[self._which, 0, 0], self._pieces[self._which, -1, 1]
        # Within the first piece and beyond the last the steps begin above the root.
        log_r = low + (high - low) * ((log_x - a) / (b - a))
        log_r = torch.where(first, torch.minimum(log_x - at_zero, high), log_r)
        square = (2 * high).exp() + (log_x - b) / growth.clamp_min(1e-300)
        far = torch.minimum(0.5 * square.log(), high + log_x - b)
        log_r = torch.where(beyond, far, log_r)
        low = torch.where(first, -torch.inf, low)
        high = torch.where(beyond, torch.inf, high)
        for _ in range(NEWTON_STEPS):
            s = (2 * log_r).exp()
            h, slope = self._log_stretch(s)
            step = (log_r + h - log_x) / (1 + 2 * s * slope)
            log_r = (log_r - step).clamp(low, high)
            if bool((step.abs() < 1e-9).all()):
                break
        return log_r


@functools.lru_cache(maxsize=64)
def _table(nu: float, dim: int) -> tuple[float, Tensor]:
    """The distance of the nodes in r, and h in powers of r² - r_k² from each, shape (N, 4).

    The last piece reaches to infinity.
    """
    from scipy import special  # slow to import
    from scipy.interpolate import PchipInterpolator

    half, tail = 0.5 * dim, 0.5 * nu
    least = math.exp(-LEAST_LOG * min(nu, 1.0))
    end = math.sqrt(2.0 * float(special.gammainccinv(half, least)))
    if math.isinf(nu):
        return end / (NODES - 1), torch.zeros(NODES, 4, dtype=torch.float64)
    s = np.square(np.linspace(0.0, end, NODES))[1:]
    # |x|² / (nu + |x|²) is Beta(D/2, nu/2); its quantiles are taken from the nearer end.
    below, above = special.gammainc(half, 0.5 * s), special.gammaincc(half, 0.5 * s)
    near = below < above
    y, rest = special.betaincinv(half, tail, below), special.betaincinv(tail, half, above)
    known = below > math.exp(-2 * LEAST_LOG)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        log_y = np.where(near, np.log(y), np.log1p(-rest))
        log_rest = np.where(near, np.log1p(-y), np.log(rest))
        h = 0.5 * (math.log(nu) + log_y - log_rest - np.log(s))
        # h' from the densities of log r and log |x|.
        normal = half * np.log(0.5 * s) - 0.5 * s + math.log(2) - special.gammaln(half)
        student = math.log(2) + half * log_y + tail * log_rest - special.betaln(half, tail)
        slope = np.expm1(normal - student) / (2.0 * s)
    # At 0 both densities are flat, with known curvature.
    log_ratio = special.gammaln(tail) - special.gammaln(half + tail) + half * math.log(0.5 * nu)
    at_zero = float(log_ratio) / dim
    curvature = ((nu + dim) / nu * math.exp(2 * at_zero) - 1) / (2 * (dim + 2))
    s, h = np.r_[0.0, s], np.r_[at_zero, h]
    slope, known = np.r_[curvature, slope], np.r_[True, known]
    if not known.all():  # far below any radius that occurs
        bridge = PchipInterpolator(s[known], h[known])
        h = np.where(known, h, bridge(s))
        slope = np.where(known, slope, bridge(s, 1))
    secant, width = np.diff(h) / np.diff(s), np.diff(s)
    least_secant = np.minimum(np.r_[secant, slope[-1]], np.r_[slope[0], secant])
    slope = np.clip(slope, 0.0, 3.0 * least_secant)  # h stays monotone (Fritsch and Carlson, 1980)
    c2 = (3 * secant - 2 * slope[:-1] - slope[1:]) / width
    c3 = (slope[:-1] + slope[1:] - 2 * secant) / width**2
    pieces = np.stack([h, slope, np.r_[c2, 0.0], np.r_[c3, 0.0]], axis=-1)
    return end / (NODES - 1), torch.from_numpy(pieces)
