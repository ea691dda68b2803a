"""Brownian motion that is observed with noise, both scales unknown."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from vgs_rl.energy import Energy
from vgs_rl.envs.targets.quadrature import normal_log_density

STEPS = 30
SEEN = (*range(10), *range(20, 30))
# Drawn by the authors with scales 0.1 and 0.15; the numbers of inference_gym/internal/datasets.
OBSERVED = (
    0.21592641, 0.118771404, -0.07945447, 0.037677474, -0.27885845, -0.1484156, -0.3250906,
    -0.22957903, -0.44110894, -0.09830782, -0.8786016, -0.83736074, -0.7384849, -0.8939254,
    -0.7774566, -0.70238715, -0.87771565, -0.51853573, -0.6948214, -0.6202789,
)  # fmt: skip
PRIOR_STD = 2.0  # of the log of either scale


class BrownianMotion(Energy):
    """Posterior of (log s, log o, x_1 … x_30) in 32 dimensions: the inference gym's model and data.

    x_1 ~ N(0, s²), x_t ~ N(x_{t-1}, s²), y_t ~ N(x_t, o²) for t = 1 … 10 and 21 … 30, log s and
    log o ~ N(0, 2²): `BrownianMotionUnknownScalesMissingMiddleObservations` of TensorFlow
    Probability's inference gym. Its own unconstrained scales are softplus instead of exp, a change
    of coordinates that leaves Z = p(y) as it is. Every density is normalised.

    Given the scales, the path is Gaussian, and p(y | s, o) = N(0, s² K + o² I) takes one
    eigendecomposition of K for all scales. So log Z and exact samples take one integral over the
    two log-scales, done on a grid in float64.
    """

    LOW, HIGH, NODES = -20.0, 16.0, 361
    observed: Tensor
    thread_safe = True

    def __init__(self) -> None:
        super().__init__()
        self.dim = 2 + STEPS
        self.register_buffer("observed", torch.tensor(OBSERVED).double(), persistent=False)
        self._constant = 0.5 * (STEPS + len(SEEN) + 2) * math.log(2 * math.pi)
        self._constant += 2 * math.log(PRIOR_STD)
        nodes = torch.linspace(self.LOW, self.HIGH, self.NODES, dtype=torch.float64)
        log_density = self._marginal(nodes.unsqueeze(-1), nodes)
        self.log_z = float(
            torch.logsumexp(log_density.flatten() + 2 * (nodes[1] - nodes[0]).log(), 0)
        )

    def energy(self, x: Tensor) -> Tensor:
        """See :meth:`Energy.energy`."""
        scales, path = x[..., :2], x[..., 2:]
        steps = torch.cat([path[..., :1], path[..., 1:] - path[..., :-1]], dim=-1)
        gap = torch.cat([path[..., :10], path[..., 20:]], dim=-1) - self.observed.to(x)
        precision = torch.exp(-2 * scales)
        squares = precision[..., 0] * steps.square().sum(-1)
        squares = squares + precision[..., 1] * gap.square().sum(-1)
        squares = squares + scales.square().sum(-1) / PRIOR_STD**2
        counts = STEPS * scales[..., 0] + len(SEEN) * scales[..., 1]
        return 0.5 * squares + counts + self._constant

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Closed form."""
        with torch.no_grad():
            scales, path = x[..., :2], x[..., 2:]
            precision = torch.exp(-2 * scales)
            steps = torch.cat([path[..., :1], path[..., 1:] - path[..., :-1]], dim=-1)
            gap = torch.cat([path[..., :10], path[..., 20:]], dim=-1) - self.observed.to(x)
            pull = precision[..., :1] * steps
            slope = pull.clone()
            slope[..., :-1] -= pull[..., 1:]
            push = precision[..., 1:] * gap
            slope[..., :10] += push[..., :10]
            slope[..., 20:] += push[..., 10:]
            counts = x.new_tensor([STEPS, len(SEEN)])
            squares = torch.stack([steps.square().sum(-1), gap.square().sum(-1)], -1) * precision
            of_scales = scales / PRIOR_STD**2 + counts - squares
            return self.energy(x), torch.cat([of_scales, slope], dim=-1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Log-scales from a grid of a million cells, uniform within each; the path is Gaussian."""
        device = generator.device
        nodes, log_mass = self._cells
        edges = log_mass.exp().cumsum(0).to(device)
        u = torch.rand(n, 3, generator=generator, device=device, dtype=torch.float64)
        cell = torch.searchsorted(edges, u[:, 0] * edges[-1]).clamp_max(len(edges) - 1)
        width = torch.stack([axis[1] - axis[0] for axis in nodes]).to(device)
        s, o = cell // len(nodes[1]), cell % len(nodes[1])
        scales = torch.stack([nodes[0].to(device)[s], nodes[1].to(device)[o]], -1)
        scales = scales + (u[:, 1:] - 0.5) * width
        z = torch.randn(n, STEPS, generator=generator, device=device, dtype=torch.float64)
        paths = [
            self._paths(*part) for part in zip(scales.split(4_096), z.split(4_096), strict=True)
        ]
        return torch.cat([scales, torch.cat(paths)], dim=-1).float()

    def _paths(self, scales: Tensor, z: Tensor) -> Tensor:
        """Paths given log-scales (B, 2), as a function of standard normal numbers (B, 30)."""
        ones = torch.ones(STEPS, dtype=z.dtype, device=z.device)
        neighbours = torch.diag(ones[1:], 1)
        tridiagonal = torch.diag(2 * ones) - neighbours - neighbours.T
        tridiagonal[-1, -1] = 1.0
        seen = torch.zeros_like(ones)
        seen[list(SEEN)] = 1.0
        force = torch.zeros_like(ones)
        force[list(SEEN)] = self.observed.to(z)
        step, noise = (torch.exp(-2 * scales[:, i : i + 1, None]) for i in (0, 1))
        precision = step * tridiagonal + noise * torch.diag(seen)
        factor = torch.linalg.cholesky(precision)  # (B, 30, 30)
        mean = torch.cholesky_solve((noise[:, 0] * force).unsqueeze(-1), factor)
        noisy = torch.linalg.solve_triangular(factor.mT, z.unsqueeze(-1), upper=True)
        paths: Tensor = (mean + noisy).squeeze(-1)
        return paths

    @functools.cached_property
    def _cells(self) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Axes of a fine grid of log-scales where the mass is, and log masses of its cells."""
        coarse = torch.linspace(self.LOW, self.HIGH, self.NODES, dtype=torch.float64)
        log_density = self._marginal(coarse.unsqueeze(-1), coarse)
        keep = log_density > log_density.max() - 25.0
        step = coarse[1] - coarse[0]
        axes = []
        for kept in (keep.any(1), keep.any(0)):
            low, high = coarse[kept][0] - step, coarse[kept][-1] + step
            axes.append(low + (high - low) * torch.linspace(0, 1, 1_001, dtype=torch.float64))
        fine = self._marginal(axes[0].unsqueeze(-1), axes[1]).flatten()
        return (axes[0], axes[1]), fine - torch.logsumexp(fine, 0)

    def _marginal(self, log_s: Tensor, log_o: Tensor) -> Tensor:
        """Log p(y, log s, log o), of the shape that the log-scales broadcast to."""
        times = torch.tensor(SEEN, dtype=torch.float64) + 1
        kernel = torch.minimum(times.unsqueeze(0), times.unsqueeze(1))
        spectrum, vectors = torch.linalg.eigh(kernel)
        squares = (vectors.T @ self.observed.cpu().double()).square()
        s_2, o_2 = (2 * log_s).exp(), (2 * log_o).exp()
        zero = log_s.new_zeros(())
        result = sum(normal_log_density(scale, zero, PRIOR_STD**2) for scale in (log_s, log_o))
        for eigenvalue, square in zip(spectrum, squares, strict=True):
            variance = eigenvalue * s_2 + o_2
            result = result - 0.5 * (square / variance + (2 * math.pi * variance).log())
        return torch.as_tensor(result)
