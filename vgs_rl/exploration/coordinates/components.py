"""Coordinates in which a mixture of Student-t distributions is one standard normal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from vgs_rl.exploration.coordinates.base import Coordinates, part_of
from vgs_rl.exploration.coordinates.tails import Tails
from vgs_rl.starts.em import Mixture
from vgs_rl.starts.student import StudentComponents

LEAST = 1e-300  # a probability


class Components(Coordinates, kind="components"):
    """x = m_k + s_k T(z'), where k is where Φ(z_0) lies among shares, and z_0' what is left of it.

    The line of z_0 is cut into pieces of the components' weights w_k. Each piece is stretched to a
    whole line, so that z' is standard normal where z is, and T makes it a Student-t. Every x has
    one z in each component; w(z) is that component's share of the mixture's density at x. So the
    mixture is a standard normal of z, and any target p has the density p/mixture times that.

    Args:
        students: the mixture.

    Raises:
        ValueError: if shapes do not fit, or a number is not finite.
    """

    TABLES = ("weights", "means", "covariances")

    def __init__(self, students: StudentComponents) -> None:
        scales = students.scales
        k, dim = scales.means.shape
        known = {(k, dim), (1, dim, dim), (k, dim, dim)} if students.radial else {(k, dim)}
        if tuple(scales.covariances.shape) not in known or scales.weights.shape != (k,):
            shape = tuple(scales.covariances.shape)
            raise ValueError(f"components: covariances must have one of {known}, got {shape}")
        if not all(bool(getattr(scales, name).isfinite().all()) for name in self.TABLES):
            raise ValueError("components must be finite")
        if not bool((scales.weights > 0).all()):
            raise ValueError("components.weights must be above 0")
        self.dim_z = self.dim_x = dim
        self.students, self.tails = students, Tails(dim, students.nu)
        self._above = scales.weights.flip(0).cumsum(0).flip(0) / scales.weights.sum()
        self._end = torch.nn.functional.pad(self._above[1:], (0, 1))
        self._share = scales.weights / scales.weights.sum()
        covariances = scales.covariances
        full = covariances.ndim == 3
        self._factors = torch.linalg.cholesky(covariances) if full else covariances.sqrt()

    @property
    def device(self) -> torch.device:
        """Where its numbers are."""
        return self._factors.device

    def with_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Coordinates.with_log_det`."""
        z = z.double()
        above = _below(-z[:, 0])  # of the mass
        k = (above.detach().unsqueeze(1) <= self._above[1:]).sum(1)
        end, share = self._end[k], self._share[k]
        right, left = (above - end) / share, (self._above[k] - above) / share
        # The first piece has no left end, where 1 - above would have no digits.
        left = torch.where(k == 0, _below(z[:, 0]) / share, left)
        inner = _quantile(left, right)
        log_det = 0.5 * (inner.square() - z[:, 0].square()) - share.log()
        y, stretch = self.tails.with_log_det(torch.cat([inner.unsqueeze(1), z[:, 1:]], 1))
        x = self._placed(y, k)
        parts = self.students.log_components(x)
        own = parts.gather(1, k.unsqueeze(1)).squeeze(1) - torch.logsumexp(parts, 1)
        size = 0.5 * self.students.scales.log_det()
        return x, log_det + stretch + size.expand(len(self._share))[k] + own

    def to_z(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See :meth:`Coordinates.to_z`."""
        if generator is None:
            raise ValueError("components have a z each for every x: give a generator to choose one")
        x = x.double()
        shares = torch.softmax(self.students.log_components(x), 1).nan_to_num(0.0)
        chosen = torch.multinomial(shares.clamp_min(LEAST), 1, generator=generator)
        k = chosen.squeeze(1)
        z = self.tails.to_z(self._unplaced(x, k))
        inner = z[:, 0]
        above = self._end[k] + self._share[k] * _below(-inner)
        below = 1 - self._above[k] + self._share[k] * _below(inner)
        below = torch.where(k == 0, self._share[k] * _below(inner), below)
        return torch.cat([_quantile(below, above).unsqueeze(1), z[:, 1:]], 1)

    def _placed(self, y: Tensor, k: Tensor) -> Tensor:
        """M_k + s_k y for rows of y (B, D) and their components (B,)."""
        means, factors = self.students.scales.means, self._factors
        if factors.ndim == 2:
            return means[k] + factors[k] * y
        if len(factors) == 1:
            return means[k] + y @ factors[0].T
        stretched = torch.zeros_like(y)
        for component, factor in enumerate(factors):  # a gather would hold D² numbers a row
            stretched = torch.where((k == component).unsqueeze(1), y @ factor.T, stretched)
        return means[k] + stretched

    def _unplaced(self, x: Tensor, k: Tensor) -> Tensor:
        """The inverse of :meth:`_placed`."""
        gap, factors = x - self.students.scales.means[k], self._factors
        if factors.ndim == 2:
            return gap / factors[k]
        y = torch.zeros_like(gap)
        for component, factor in enumerate(factors):
            solved = torch.linalg.solve_triangular(factor, gap.T, upper=False).T
            rows = (k == component).unsqueeze(1)
            y = solved if len(factors) == 1 else torch.where(rows, solved, y)
        return y

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Coordinates.state_dict`."""
        tables = {name: getattr(self.students.scales, name) for name in self.TABLES}
        return {"kind": self.kind, "nu": self.students.nu, **tables}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """See :meth:`Coordinates.from_state`."""
        tables = {name: part_of(state, name, Tensor) for name in cls.TABLES}
        if tables["means"].ndim != 2:
            raise ValueError("coordinates.means must have shape (K, D)")
        return cls(StudentComponents(scales=Mixture(**tables), nu=part_of(state, "nu", Tensor)))

    def to(self, device: torch.device | str) -> Components:
        """See :meth:`Coordinates.to`."""
        tables = {name: getattr(self.students.scales, name).to(device) for name in self.TABLES}
        return Components(
            StudentComponents(scales=Mixture(**tables), nu=self.students.nu.to(device))
        )


def _below(z: Tensor) -> Tensor:
    """Φ(z), with all its digits where it is small."""
    share: Tensor = torch.special.log_ndtr(z).exp()
    return share


def _quantile(below: Tensor, above: Tensor) -> Tensor:
    """Z with Φ(z) = below = 1 - above, from the smaller one, which has all its digits."""
    low = torch.special.ndtri(below.clamp(LEAST, 0.5))
    return torch.where(above < below, -torch.special.ndtri(above.clamp(LEAST, 0.5)), low)
