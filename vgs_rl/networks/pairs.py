"""A pair potential noised by itself, tabulated over the steps of a chain."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgs_rl.energy import Energy

LEVELS = 40


class NoisedPairPotential(nn.Module):
    """U_t(r) = -log E exp(-u(|r e + √(2 S) z|)), z ~ N(0, I_d), for the noise S of each step.

    That is the exact value of two particles alone whose positions are noised by S. The distance
    is noncentral chi distributed, so it is one integral over r', done once in double precision;
    afterwards a cubic Hermite interpolation, with the slope as its exact derivative. Beyond the
    table U goes on linearly.

    Args:
        energy: supplies u = ``energy.pair_potential(r)`` and d.
        noise: S at every step, shape (T,).
        cells: number of the table's cells, from 0 to REACH plus six standard deviations of r.
    """

    table: Tensor

    REACH = 8.0  # of the pair potentials, in units of distance

    def __init__(self, energy: Energy, noise: Tensor, *, cells: int = 500) -> None:
        super().__init__()
        assert energy.symmetry is not None
        widest = math.sqrt(2 * float(noise.max()))
        self.reach = self.REACH + 6.0 * widest
        self.cells, self.step = cells, self.reach / cells
        r = torch.linspace(0.0, self.reach, cells + 1, dtype=torch.float64)
        # Enough levels that interpolating between them changes U by less than training does.
        level = noise.double().log()
        levels = torch.linspace(float(level.min()), float(level.max()), min(len(noise), LEVELS))
        table = torch.stack([self._noised(energy, r, float(s)) for s in levels.exp()])
        table = torch.einsum("tl,lrc->trc", hat_functions(level, len(levels)), table)
        # Row t cells + i holds the cubic of cell i at step t, whose variable is in [0, 1].
        u, m = table[..., 0], self.step * table[..., 1]
        rise, m0, m1 = u[:, 1:] - u[:, :-1], m[:, :-1], m[:, 1:]
        cubic = [u[:, :-1], m0, 3 * rise - 2 * m0 - m1, m0 + m1 - 2 * rise]
        table = torch.stack(cubic, -1).flatten(0, 1).float()
        self.register_buffer("table", table, persistent=False)

    @staticmethod
    def _noised(energy: Energy, r: Tensor, noise: float) -> Tensor:
        """U and U' at distances r (R,), shape (R, 2), in double precision."""
        assert energy.symmetry is not None
        dims, variance = energy.symmetry.n_dims, 2 * noise
        sigma = math.sqrt(variance)
        # Trapezoid objective over ±7 sigma, finer than the noise and than any wall of u.
        nodes = math.ceil(14 * sigma / min(sigma / 6, 0.02))
        offset = torch.linspace(-7 * sigma, 7 * sigma, nodes, dtype=torch.float64)
        raw = r.unsqueeze(-1) + offset  # (R, nodes)
        other, first = raw.clamp_min(1e-9), r.clamp_min(1e-6).unsqueeze(-1)
        argument = first * other / variance
        log_bessel, cosine = _bessel(dims, argument)
        # Noncentral chi density of r' = |r e + sigma z|.
        order = 0.5 * dims - 1
        log_density = log_bessel - 0.5 * (first - other).square() / variance
        log_density += (order + 1) * other.log() - order * first.log()
        log_density.masked_fill_(raw <= 0, -torch.inf)
        weighted = log_density - energy.pair_potential(other)
        # Normalised by its own quadrature, so that U = u for a constant u.
        u = torch.logsumexp(log_density, -1) - torch.logsumexp(weighted, -1)
        # Tweedie: the slope is (r - E[r' cos θ]) / sigma² under the weights.
        along = (torch.softmax(weighted, -1) * other * cosine).sum(-1)
        slope = (r - along) / variance
        slope[0] = 0.0  # U is even in r
        return torch.stack([u, slope], dim=-1)

    def forward(self, r: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """U_t(r), U_t'(r) and U_t''(r) at distances r (rows, B), steps t one or (B,)."""
        f, beyond, (c0, c1, c2, c3) = self._cell(r, t)
        value = c0 + f * (c1 + f * (c2 + f * c3)) + beyond * (c1 + 2 * c2 + 3 * c3)
        slope = (c1 + f * (2 * c2 + 3 * f * c3)) / self.step
        curvature = (2 * c2 + 6 * f * c3) * ((beyond == 0) / self.step**2)
        return value, slope, curvature

    def slope(self, r: Tensor, t: int | Tensor) -> Tensor:
        """U_t'(r) alone, as :meth:`forward`."""
        f, _, (_, c1, c2, c3) = self._cell(r, t)
        return (c1 + f * (2 * c2 + 3 * f * c3)) / self.step

    def _cell(self, r: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Where r lies in its cell, how far beyond the last, and its cubic's coefficients."""
        u = r / self.step
        cell = u.detach().long().clamp_max(self.cells - 1)
        f = u - cell
        beyond = (f - 1).clamp_min(0.0)
        # embedding(): its gathering of rows is several times faster than that of indexing.
        cubic = F.embedding(cell + t * self.cells, self.table)
        return f - beyond, beyond, cubic.unbind(-1)


def _bessel(dims: int, k: Tensor) -> tuple[Tensor, Tensor]:
    """log(e^-k I_ν(k)), up to a constant, and I_{ν+1}(k)/I_ν(k) with ν = dims/2 - 1.

    The ratio is the mean cosine between r and r' given |r'|.
    """
    if dims == 2:
        zero = torch.special.i0e(k)
        return zero.log(), torch.special.i1e(k) / zero
    if dims == 3:
        log_bessel = torch.log(-torch.expm1(-2 * k)) - 0.5 * k.log()
        small = k < 1e-3
        ratio = torch.where(small, k / 3, 1 / torch.tanh(k) - 1 / k)
        return log_bessel, ratio
    from scipy.special import ive

    values = [
        torch.from_numpy(ive(0.5 * dims - 1 + i, k.numpy())).clamp_min(1e-300) for i in (0, 1)
    ]
    return values[0].log(), values[1] / values[0]


def pair_differences(n: int) -> Tensor:
    """The matrix, shape (n (n - 1)/2, n), that takes n positions to the differences of pairs i < j.

    A product with it is exact but for one rounding, and faster than to gather and scatter; its
    transpose sums over pairs what acts on i one way and on j the other.
    """
    i, j = torch.triu_indices(n, n, 1)
    rows = torch.eye(n)
    return rows[i] - rows[j]


class PairSums(nn.Module):
    """From n particles to their pairs and back: y (..., n, B) and f (..., rows, B).

    Eagerly a row is a pair i < j, and all is products with :func:`pair_differences`: few, large
    operations. Where operations are fused (``torch.compile``) a row is i and any j, twice the
    pairs, and all is broadcasting and sums over j: many times fewer operations.

    Args:
        n: number of particles.
    """

    signed: Tensor
    unsigned: Tensor
    others: Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n, self.count = n, n * (n - 1) // 2
        self.register_buffer("signed", pair_differences(n), False)
        self.register_buffer("unsigned", self.signed.abs(), False)
        self.register_buffer("others", 1 - torch.eye(n).unsqueeze(-1), False)

    def difference(self, y: Tensor) -> Tensor:
        """y_i - y_j."""
        if torch.compiler.is_compiling():
            return (y.unsqueeze(-2) - y.unsqueeze(-3)).flatten(-3, -2)
        return self.signed @ y

    def both(self, y: Tensor) -> Tensor:
        """y_i + y_j."""
        if torch.compiler.is_compiling():
            return (y.unsqueeze(-2) + y.unsqueeze(-3)).flatten(-3, -2)
        return self.unsigned @ y

    def net(self, f: Tensor) -> Tensor:
        """Sums over each particle's pairs of what changes sign with the pair's order."""
        if torch.compiler.is_compiling():
            summed: Tensor = f.unflatten(-2, (self.n, self.n)).sum(-2)
            return summed
        return self.signed.T @ f

    def forces(self, vectors: Iterable[Tensor]) -> Tensor:
        """:meth:`net` of vectors, given by axes, each (rows, B): shape (d, n, B)."""
        return torch.stack([self.net(along) for along in vectors])

    def total(self, f: Tensor) -> Tensor:
        """Sums over each particle's pairs of what does not."""
        if torch.compiler.is_compiling():
            summed: Tensor = (self.others * f.unflatten(-2, (self.n, self.n))).sum(-2)
            return summed
        return self.unsigned.T @ f

    def all(self, f: Tensor) -> Tensor:
        """Sums over all pairs of what does not: (..., rows, B) to (..., B)."""
        if torch.compiler.is_compiling():
            return 0.5 * self.total(f).sum(-2)
        return f.sum(-2)


def hat_functions(position: Tensor, knots: int) -> Tensor:
    """Weights of linear interpolation between equal knots over the positions: (T, knots)."""
    low, high = position.min(), position.max()
    u = (position - low) / (high - low).clamp_min(1e-12) * (knots - 1)
    distance = (u.unsqueeze(-1) - torch.arange(knots, dtype=position.dtype)).abs()
    return (1 - distance).clamp_min(0.0)
