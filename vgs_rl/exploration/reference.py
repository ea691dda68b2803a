"""Where an exploration starts: a wide density that can be sampled and evaluated."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from vgs_rl.samplers.kernels import FiniteEnergy

GRID = 10.0 ** torch.linspace(-5, 5, 41, dtype=torch.float64)
DRAWS = 128  # at each width of the grid
DESCENTS = 200  # steps downhill


class Reference(Protocol):
    """A density on R^D."""

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Independent samples, shape (n, D), float64."""

    def level(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Minus the log density (B,) and its gradient (B, D), at states x (B, D)."""


class GaussianReference:
    """N(mean, diag(std²)).

    Args:
        mean: shape (D,).
        std: shape (D,).
    """

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self.mean, self.std = mean.double(), std.double()

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """See :class:`Reference`."""
        shape, device = (n, len(self.mean)), self.mean.device
        z = torch.randn(shape, generator=generator, dtype=torch.float64, device=device)
        return self.mean + self.std * z

    def level(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Reference`."""
        u = (x - self.mean) / self.std
        constant = self.std.log().sum() + 0.5 * len(self.std) * math.log(2 * math.pi)
        return 0.5 * u.square().sum(-1) + constant, u / self.std


class PriorReference:
    """A user's prior as a reference.

    Args:
        prior: a torch distribution, or anything with `sample((n,))` and `log_prob(x)`.
        dim: D.

    Raises:
        ValueError: if its samples have not D coordinates.
    """

    def __init__(self, prior: Any, dim: int) -> None:
        self.prior, self.dim = prior, dim
        self._flat(prior.sample((2,)), 2)

    def _flat(self, x: Tensor, n: int) -> Tensor:
        if x.numel() != n * self.dim:
            raise ValueError(f"prior must have {self.dim} coordinates, got {tuple(x.shape[1:])}")
        return x.reshape(n, self.dim).double()

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """See :class:`Reference`; its own random numbers are torch's global ones, seeded here."""
        seed = int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._flat(self.prior.sample((n,)), n)

    def level(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Reference`."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            log_prob = self.prior.log_prob(leaf)
            log_prob = log_prob.reshape(len(x), -1).sum(-1)
            (slope,) = torch.autograd.grad(log_prob.sum(), leaf)
        return -log_prob.detach(), -slope


def find_reference(energy: FiniteEnergy, dim: int, generator: torch.Generator) -> GaussianReference:
    """A Gaussian that is wide enough to begin with, and not absurdly wider.

    Draws of N(0, r² I) at widths r of a grid walk downhill. Where they end is the centre. The
    width is the largest of the grid at which the median energy around the centre is within 5 D + 20
    of the least, and at least that of the ends.

    Raises:
        ValueError: if the energy is finite nowhere among these draws.
    """
    device = generator.device

    def normal(n: int) -> Tensor:
        shape = (n, dim)
        return torch.randn(shape, generator=generator, dtype=torch.float64, device=device)

    widths = GRID.to(device)
    spread = widths.repeat_interleave(8).unsqueeze(-1) * normal(8 * len(widths))
    ends, heights = descend(energy, spread)
    finite = heights.isfinite()
    if not bool(finite.any()):
        reach = float(spread.abs().max())
        raise ValueError(
            f"{type(energy.energy).__name__} is finite at none of {len(spread)} states with "
            f"coordinates up to {reach:.3g}: give prior="
        )
    low = ends[heights <= heights[finite].min() + 5.0 * dim + 20.0]
    centre = low.median(0).values
    at = centre + widths.repeat_interleave(DRAWS).unsqueeze(-1) * normal(DRAWS * len(widths))
    found, _ = energy(at)
    medians = found.view(len(widths), DRAWS).median(1).values
    close = medians <= medians.min() + 5.0 * dim + 20.0
    width = float(widths[close].max()) if bool(close.any()) else float(widths[0])
    std = (low - centre).square().mean(0).sqrt().mul(2.0).clamp_min(width)
    return GaussianReference(centre, std)


def descend(energy: FiniteEnergy, x: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient descent of each row with a step of its own that grows while it succeeds.

    Returns:
        Where the rows end (B, D), and their energies (B,), +inf where none was ever finite.
    """
    value, slope = energy(x)
    size = x.abs().mean(-1, keepdim=True).clamp_min(1e-12)
    step = 0.1 * size / slope.norm(dim=-1, keepdim=True).clamp_min(1e-300)
    for _ in range(DESCENTS):
        proposal = x - step * slope
        new_value, new_slope = energy(proposal)
        better = new_value < value
        column = better.unsqueeze(-1)
        x, value = torch.where(column, proposal, x), torch.where(better, new_value, value)
        slope = torch.where(column, new_slope, slope)
        step = torch.where(column, 1.6 * step, 0.4 * step)
    return x, value
