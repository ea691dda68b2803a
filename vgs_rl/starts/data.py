"""Starts at data, noised by the chain: where an energy-based model's negatives begin."""

from __future__ import annotations

import torch
from torch import Tensor

from vgs_rl.chain import Chain, noise_on
from vgs_rl.geometry import Geometry
from vgs_rl.starts.base import Start


class DataStart(Start):
    """Random rows of given data, noised all the way by the chain: where p~_0 is, its modes and all.

    The density is a mixture of as many components as there are rows (on a sphere not even that is
    known in closed form), so there is none to evaluate: :meth:`log_prob` refuses.

    Args:
        geometry: the space.
        data: rows on that space, shape (N, D); checkpoints do not hold them.
        chain: its steps noise the rows.
    """

    has_density = False
    data: Tensor
    factor: Tensor

    def __init__(self, geometry: Geometry, data: Tensor, chain: Chain) -> None:
        super().__init__(geometry)
        if data.ndim != 2 or data.shape[1] != geometry.dim or not len(data):
            raise ValueError(
                f"data must have shape (N, {geometry.dim}) with N of at least 1, "
                f"got {tuple(data.shape)}"
            )
        if not bool(torch.isfinite(data).all()):
            raise ValueError("data must be finite, got NaN or infinity")
        gap = float((geometry.project(data) - data).abs().max())
        if gap > 1e-4:
            raise ValueError(
                f"data must lie on the {type(geometry).__name__}, got a row off it by {gap:.2g}"
            )
        self.chain = chain
        self.register_buffer("data", data.detach(), persistent=False)
        self.register_buffer("factor", torch.ones(()))

    def rows(self, n: int, generator: torch.Generator) -> Tensor:
        """Random rows of the data as they are, with replacement, shape (n, D)."""
        chosen = torch.randint(len(self.data), (n,), generator=generator, device=self.data.device)
        return self.data[chosen]

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """See :meth:`Start.sample`."""
        chain = self.chain.to(self.data.device, self.data.dtype)
        x = self.rows(n, generator)
        if not self.geometry.linear:
            return noise_on(self.geometry, chain, x, 0, generator, factor=self.factor)
        z = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        return x / chain.A[0] + self.factor * chain.S[0].sqrt() * self.geometry.project(z)

    def log_prob(self, x: Tensor) -> Tensor:
        """Refuses: see the class."""
        raise NotImplementedError("a start at noised data has no density that could be evaluated")

    def widen(self, factor: float) -> None:
        """Multiplies the noise, not the data."""
        self.factor.mul_(factor)

    def fit(self, x: Tensor, generator: torch.Generator, *, rate: float = 1.0) -> None:
        """Does nothing: the data stay what they are."""
