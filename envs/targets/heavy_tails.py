"""Student's t: densities whose tails fall as a power, with exact samples and log Z = 0."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vgs_rl.checks import count_of, require_positive, seed_of
from vgs_rl.energy import Energy


class StudentT(Energy):
    """Multivariate t, a Gaussian over a random scale: p(x) ∝ (1 + ‖x‖²/ν)^(-(ν + D)/2); log Z = 0.

    The variance is ν/(ν - 2) for ν > 2, and infinite below.

    Args:
        dim: D.
        degrees: ν, above 0.
    """

    thread_safe = True

    def __init__(self, dim: int = 10, degrees: float = 2.0) -> None:
        super().__init__()
        require_positive("StudentT", degrees=degrees)
        self.dim, self.degrees, self.log_z = count_of("dim", dim), float(degrees), 0.0
        self._log_norm = _log_norm(self.dim, self.degrees)

    def energy(self, x: Tensor) -> Tensor:
        """See :meth:`Energy.energy`."""
        level = torch.log1p(x.square().sum(-1) / self.degrees)
        return 0.5 * (self.degrees + self.dim) * level + self._log_norm

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Closed form."""
        with torch.no_grad():
            scale = (self.degrees + self.dim) / (self.degrees + x.square().sum(-1, keepdim=True))
            return self.energy(x), scale * x

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """A Gaussian over the root of a chi-squared variable over ν."""
        z = torch.randn(n, self.dim, generator=generator, device=generator.device)
        return z / _random_scale(z[:, :1], self.degrees, generator)


class StudentMixture(Energy):
    """Equal mixture of K products of D univariate t densities with ν degrees; log Z = 0.

    Coordinates of a component are independent, so that its level sets are no spheres. Locations are
    uniform on [-reach, reach]^D, drawn as float32 by torch's generator for the CPU. Blessing et al.
    (arXiv:2406.07423) use ten components with ν = 2 and reach 10, and locations of their own.

    Args:
        dim: D.
        components: K.
        degrees: ν, above 0.
        reach: half the width of the cube of locations.
        seed: of the locations.
    """

    locations: Tensor
    thread_safe = True

    def __init__(
        self,
        dim: int = 50,
        components: int = 10,
        degrees: float = 2.0,
        reach: float = 10.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        require_positive("StudentMixture", degrees=degrees, reach=reach)
        k = count_of("components", components, least=2)
        self.dim, self.degrees, self.log_z = count_of("dim", dim), float(degrees), 0.0
        generator = torch.Generator().manual_seed(seed_of(seed))
        unit = torch.rand(k, self.dim, generator=generator).double()
        self.register_buffer("locations", reach * (2 * unit - 1), persistent=False)
        self.mode_probabilities = torch.full((k,), 1 / k, dtype=torch.float64)
        self._constant = self.dim * _log_norm(1, self.degrees) + math.log(k)

    def _components(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log densities up to a constant, (B, K), and deviations, (B, K, D)."""
        deviation = x.unsqueeze(1) - self.locations.to(x)
        level = torch.log1p(deviation.square() / self.degrees).sum(-1)
        return -0.5 * (self.degrees + 1) * level, deviation

    def energy(self, x: Tensor) -> Tensor:
        """See :meth:`Energy.energy`."""
        return self._constant - torch.logsumexp(self._components(x)[0], dim=-1)

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Closed form."""
        with torch.no_grad():
            log_density, deviation = self._components(x)
            posterior = torch.softmax(log_density, dim=-1).unsqueeze(-1)  # (B, K, 1)
            pull = (self.degrees + 1) * deviation / (self.degrees + deviation.square())
            energy = self._constant - torch.logsumexp(log_density, dim=-1)
            return energy, (posterior * pull).sum(1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """See :meth:`Energy.sample`."""
        device = generator.device
        k = torch.randint(len(self.locations), (n,), generator=generator, device=device)
        z = torch.randn(n, self.dim, generator=generator, device=device)
        z = z / _random_scale(z, self.degrees, generator)
        return self.locations.to(z)[k] + z

    def mode_indicators(self, x: Tensor) -> Tensor:
        """Posterior probability of each component, shape (B, K); their exact means are 1/K."""
        return torch.softmax(self._components(x)[0], dim=-1)


def _log_norm(dim: int, degrees: float) -> float:
    """Log ∫ (1 + ‖x‖²/ν)^(-(ν + D)/2) dx."""
    gammas = math.lgamma(0.5 * degrees) - math.lgamma(0.5 * (degrees + dim))
    return gammas + 0.5 * dim * math.log(degrees * math.pi)


def _random_scale(like: Tensor, degrees: float, generator: torch.Generator) -> Tensor:
    """Roots of chi-squared variables over ν, in the shape, type and device of a tensor."""
    half = torch.full_like(like, 0.5 * degrees, dtype=torch.float64)
    gamma: Tensor = torch._standard_gamma(half, generator=generator)
    return (2 * gamma / degrees).sqrt().to(like)
