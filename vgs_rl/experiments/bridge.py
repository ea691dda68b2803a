"""Log Z by bridge sampling between samples of a target and a Gaussian near it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vgs_rl.energy import Energy
from vgs_rl.envs import Phi4
from vgs_rl.exploration.coordinates.affine import AffineMap


class GaussianFit:
    """N(shift, factor factorᵀ), or the equal mixture of it and its mirror image.

    Args:
        coordinates: the map from N(0, I) to it.
        mirrored: whether it is the mixture.
    """

    def __init__(self, coordinates: AffineMap, mirrored: bool = False) -> None:
        self.coordinates, self.mirrored = coordinates, mirrored

    @classmethod
    def of_samples(cls, x: Tensor) -> GaussianFit:
        """The fit to samples x (B, D), many more than D."""
        return cls(AffineMap(x.mean(0), torch.linalg.cholesky(x.T.cov())))

    @classmethod
    def of_field(cls, energy: Phi4, x: Tensor) -> GaussianFit:
        """The fit to fields x (B, D) that has the lattice's symmetries."""
        x = x * x.mean(1, keepdim=True).sign()
        mean = x.mean() if energy.ordered else x.new_zeros(())
        shape = (energy.side, energy.side)
        modes = torch.fft.fft2((x - mean).unflatten(1, shape))
        power = modes.abs().square().mean(0) / energy.dim
        row = torch.fft.ifft2(0.5 * (power + power.T)).real  # covariance with the first site
        shifts = [(i, j) for i in range(energy.side) for j in range(energy.side)]
        covariance = torch.stack([row.roll(shift, (0, 1)).flatten() for shift in shifts])
        return cls(AffineMap(mean.expand(energy.dim), torch.linalg.cholesky(covariance)), True)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Independent samples, shape (n, D), float64."""
        dim = len(self.coordinates.shift)
        z = torch.randn(n, dim, generator=generator, dtype=torch.float64)
        x = self.coordinates.to_x(z)
        if self.mirrored:
            x[::2] *= -1
        return x

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density at x (B, D), shape (B,)."""
        if not self.mirrored:
            return self._one(x)
        return torch.logaddexp(self._one(x), self._one(-x)) - math.log(2)

    def _one(self, x: Tensor) -> Tensor:
        squares = self.coordinates.to_z(x).square().sum(-1)
        constant = 0.5 * x.shape[-1] * math.log(2 * math.pi) + self.coordinates.log_det
        return -0.5 * squares - constant


def bridge_log_z(
    energy: Energy, fit: GaussianFit, x: Tensor, generator: torch.Generator, *, draws: int = 4
) -> float:
    """The estimate of Meng and Wong (Statistica Sinica 6, 1996) with their optimal bridge.

    Args:
        energy: E, on R^D.
        fit: a Gaussian that overlaps with the target, and was not fitted to x.
        x: samples of exp(-E)/Z, shape (B, D).
        generator: source of the Gaussian's samples.
        draws: how many of these for each of x.
    """
    y = fit.sample(draws * len(x), generator)
    at_x, at_y = (-energy(part) - fit.log_prob(part) for part in (x.double(), y))
    log_share, log_z = math.log(1 / draws), float(at_y.median())
    log_sigmoid = torch.nn.functional.logsigmoid
    for _ in range(1_000):
        up = torch.logsumexp(log_sigmoid(at_y - log_z + log_share), 0)
        down = torch.logsumexp(log_sigmoid(log_z - log_share - at_x), 0)
        step = float(up - down)
        log_z += step
        if abs(step) < 1e-10:
            break
    return log_z
