"""Rosenbrock's function: a narrow, bent ridge whose samples and log Z are exact."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vgs_rl.checks import count_of, require_positive
from vgs_rl.energy import Energy


class Rosenbrock(Energy):
    """E(x) = Σ (a - 1)² + k (b - a²)² over D/2 independent pairs (a, b) of neighbours.

    So a ~ N(1, 1/2) and b | a ~ N(a², 1/(2 k)), and log Z = D/2 log(π/√k). Other densities have the
    same name: some divide E by a temperature, some chain all coordinates.

    Args:
        dim: D, even.
        stiffness: k, 100 in Rosenbrock's function.
    """

    thread_safe = True

    def __init__(self, dim: int = 10, stiffness: float = 100.0) -> None:
        super().__init__()
        require_positive("Rosenbrock", stiffness=stiffness)
        if count_of("dim", dim) % 2:
            raise ValueError(f"dim must be even, got {dim}")
        self.dim, self.stiffness = count_of("dim", dim), float(stiffness)
        self.log_z = 0.5 * self.dim * math.log(math.pi / math.sqrt(self.stiffness))

    def energy(self, x: Tensor) -> Tensor:
        """See :meth:`Energy.energy`."""
        a, b = x[..., 0::2], x[..., 1::2]
        return ((a - 1).square() + self.stiffness * (b - a.square()).square()).sum(-1)

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Closed form."""
        with torch.no_grad():
            a, b = x[..., 0::2], x[..., 1::2]
            pull = 2 * self.stiffness * (b - a.square())
            slope = 2 * (a - 1) - 2 * a * pull
            return self.energy(x), torch.stack([slope, pull], dim=-1).flatten(-2)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """In float64: rounding b to float32 would move it by a part of its width."""
        shape, device = (2, n, self.dim // 2), generator.device
        z = torch.randn(shape, generator=generator, device=device, dtype=torch.float64)
        a = 1 + math.sqrt(0.5) * z[0]
        b = a.square() + z[1] / math.sqrt(2 * self.stiffness)
        return torch.stack([a, b], dim=-1).flatten(-2)
