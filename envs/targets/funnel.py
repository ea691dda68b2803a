"""Neal's funnel, a density whose width changes by orders of magnitude along one coordinate."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vgs_rl.chain import Chain
from vgs_rl.energy import Energy
from vgs_rl.envs.targets.quadrature import nodes_of_integral, normal_log_density


class Funnel(Energy):
    """x_1 ~ N(0, first_variance), x_i | x_1 ~ N(0, exp(x_1)) for i = 2 … D; log Z = 0.

    Neal, *Slice sampling*, Annals of Statistics 31 (2003), has variance 9 and D = 10, as here by
    default and as in arXiv:2502.13280. Some papers write N(0, 3²), others use variance 1 under
    the same name.

    Exact values: x_1 is the only coordinate that couples the others, so the noised density is a
    one-dimensional integral over it, done by quadrature in float64.

    Args:
        dim: D, at least 2.
        first_variance: variance of x_1: the larger, the harder.
    """

    thread_safe = True

    def __init__(self, dim: int = 10, first_variance: float = 9.0) -> None:
        super().__init__()
        if dim < 2:
            raise ValueError(f"dim must be at least 2, got {dim}")
        if not (math.isfinite(first_variance) and first_variance > 0):
            raise ValueError(f"first_variance must be a positive number, got {first_variance}")
        self.dim, self.first_variance, self.log_z = dim, first_variance, 0.0
        self._log_norm = 0.5 * (dim * math.log(2 * math.pi) + math.log(first_variance))

    def energy(self, x: Tensor) -> Tensor:
        """See :meth:`Energy.energy`."""
        first, rest = x[..., 0], x[..., 1:]
        squares = rest.square().sum(-1)
        return (
            0.5 * first.square() / self.first_variance
            + 0.5 * squares * torch.exp(-first)
            + 0.5 * (self.dim - 1) * first
            + self._log_norm
        )

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Closed form."""
        with torch.no_grad():
            first, rest = x[..., :1], x[..., 1:]
            precision = torch.exp(-first)
            squares = rest.square().sum(-1, keepdim=True) * precision
            slope = first / self.first_variance + 0.5 * (self.dim - 1 - squares)
            return self.energy(x), torch.cat([slope, rest * precision], dim=-1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """See :meth:`Energy.sample`."""
        z = torch.randn(n, self.dim, generator=generator, device=generator.device)
        first = z[:, :1] * math.sqrt(self.first_variance)
        return torch.cat([first, z[:, 1:] * (0.5 * first).exp()], dim=-1)

    def value(self, x: Tensor, t: int, chain: Chain) -> Tensor:
        """See :meth:`Energy.value`."""
        if t == chain.num_steps:
            return self.energy(x)
        _, log_terms, _ = self._integral(x.double(), float(chain.A[t]), float(chain.S[t]))
        return -torch.logsumexp(log_terms, dim=-1).to(x.dtype)

    def value_gradient(self, x: Tensor, t: int, chain: Chain) -> Tensor:
        """Posterior mean over the hidden coordinate of the joint's gradient."""
        if t == chain.num_steps:
            return self.energy_and_gradient(x)[1]
        with torch.no_grad():
            y, scale, noise = x.double(), float(chain.A[t]), float(chain.S[t])
            nodes, log_terms, variance = self._integral(y, scale, noise)
            posterior = torch.softmax(log_terms, dim=-1)  # (B, J)
            mean_first = (posterior * nodes).sum(-1, keepdim=True)
            precision = (posterior / variance).sum(-1, keepdim=True)
            gradient = torch.cat([(y[:, :1] - mean_first / scale) / noise, y[:, 1:] * precision], 1)
            return gradient.to(x.dtype)

    def _integral(self, y: Tensor, scale: float, noise: float) -> tuple[Tensor, Tensor, Tensor]:
        """Nodes over x_1, log terms of the integral, and variance of the others; all (B, J)."""
        first, squares = y[:, 0], y[:, 1:].square().sum(-1, keepdim=True)

        def others(nodes: Tensor) -> Tensor:
            return nodes.exp() / scale**2 + noise

        def log_joint(nodes: Tensor) -> Tensor:
            variance = others(nodes)
            return (
                normal_log_density(nodes, nodes.new_zeros(()), self.first_variance)
                + normal_log_density(first.unsqueeze(-1), nodes / scale, noise)
                - 0.5 * ((self.dim - 1) * (2 * math.pi * variance).log() + squares / variance)
            )

        # The peak lies between the posterior of x_1 alone and where the others are likeliest.
        variance = 1.0 / (1.0 / self.first_variance + 1.0 / (scale**2 * noise))
        alone = variance * first / (scale * noise)
        excess = (squares.squeeze(-1) / (self.dim - 1) - noise).clamp_min(1e-30) * scale**2
        likeliest = torch.where(excess > 1e-20, excess.log(), alone)
        reach = 9.0 * math.sqrt(variance)
        # Below: a slope of at most (D-1)/2 pulls towards small x_1, by at most slope x variance.
        pull = 0.5 * (self.dim - 1) * variance
        low = torch.minimum(alone - pull, torch.minimum(alone, likeliest)) - reach
        high = torch.maximum(alone, torch.minimum(likeliest, alone + 60.0)) + reach
        nodes, log_terms = nodes_of_integral(log_joint, low, high, nodes=257)
        return nodes, log_terms, others(nodes)


class EasyFunnel10(Funnel):
    """Ten dimensions, first variance 1."""

    def __init__(self) -> None:
        super().__init__(dim=10, first_variance=1.0)


class Funnel10(Funnel):
    """Ten dimensions, first variance 9: the usual benchmark."""

    def __init__(self) -> None:
        super().__init__(dim=10, first_variance=9.0)


class HardFunnel10(Funnel):
    """Ten dimensions, first variance 16."""

    def __init__(self) -> None:
        super().__init__(dim=10, first_variance=16.0)
