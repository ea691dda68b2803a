"""Label switching: the means of a mixture, whose posterior has a mode for every order of them."""

from __future__ import annotations

import functools
import itertools
import math

import torch
from torch import Tensor

from vgs_rl.energy import Energy
from vgs_rl.envs.targets.quadrature import normal_log_density

# Twelve points in the plane, drawn once with torch's seed 0 around these means, unit covariance.
TRUE_MEANS = ((-3.0, 0.0), (3.0, 0.0), (0.0, 4.0))
POINTS = (
    (-4.126, -1.152), (2.749, -0.434), (0.849, 4.692), (-3.316, -2.115),
    (3.468, -0.158), (1.444, 4.266), (-2.834, 0.874), (2.857, -0.112),
    (0.932, 5.259), (-0.995, 0.054), (3.618, -0.413), (-0.841, 1.684),
)  # fmt: skip


class MixtureMeans(Energy):
    """Posterior of the three means of a Gaussian mixture in the plane, in 6 dimensions.

    y_i ~ ⅓ Σ_k N(m_k, I) for twelve points, m_k ~ N(0, 5² I); every density is normalised, so that
    Z = p(y). The labels of the means are arbitrary: 3! = 6 modes of equal weight.

    Given which mean each point belongs to, the posterior is Gaussian. So log Z and exact samples
    take a sum over all 3^12 allocations, of which a third differs by more than the labels' order.
    """

    COMPONENTS, PRIOR_STD = 3, 5.0
    points: Tensor
    thread_safe = True

    def __init__(self) -> None:
        super().__init__()
        self.dim = 2 * self.COMPONENTS
        self.register_buffer("points", torch.tensor(POINTS).double(), persistent=False)
        orders = math.factorial(self.COMPONENTS)
        self.mode_probabilities = torch.full((orders,), 1 / orders, dtype=torch.float64)
        n = len(POINTS)
        self._constant = n * math.log(2 * math.pi * self.COMPONENTS)
        self._constant += self.COMPONENTS * math.log(2 * math.pi * self.PRIOR_STD**2)
        self.log_z = float(torch.logsumexp(self._allocations[0], 0))

    def energy(self, x: Tensor) -> Tensor:
        """See :meth:`Energy.energy`."""
        squares = self._deviations(x).square().sum(-1)  # (B, N, K)
        likelihood = torch.logsumexp(-0.5 * squares, dim=-1).sum(-1)
        return self._constant + 0.5 * x.square().sum(-1) / self.PRIOR_STD**2 - likelihood

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Closed form."""
        with torch.no_grad():
            deviations = self._deviations(x)
            share = torch.softmax(-0.5 * deviations.square().sum(-1), dim=-1)
            pull = (share.unsqueeze(-1) * deviations).sum(1).flatten(-2)
            return self.energy(x), x / self.PRIOR_STD**2 + pull

    def _deviations(self, x: Tensor) -> Tensor:
        """m_k - y_i, shape (B, N, K, 2)."""
        means = x.unflatten(-1, (self.COMPONENTS, 2))
        deviations: Tensor = means.unsqueeze(1) - self.points.to(x)[:, None]
        return deviations

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """An allocation, means given it, and a random order of them."""
        device = generator.device

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=device, dtype=torch.float64)

        log_weights, counts, sums = (part.to(device) for part in self._allocations)
        weights = torch.softmax(log_weights, 0)
        chosen = torch.multinomial(weights, n, replacement=True, generator=generator)
        precision = (counts[chosen] + self.PRIOR_STD**-2).unsqueeze(-1)
        means = sums[chosen] / precision + normal(n, self.COMPONENTS, 2) / precision.sqrt()
        order = torch.rand(n, self.COMPONENTS, generator=generator, device=device).argsort(1)
        means = means.gather(1, order.unsqueeze(-1).expand_as(means))
        return means.flatten(-2).float()

    @functools.cached_property
    def _allocations(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log p(y, allocation) (A,), counts (A, K) and sums (A, K, 2) of points.

        The first point is given to the first mean, and the weight is that of all K choices of it.
        """
        k, y = self.COMPONENTS, self.points.cpu().double()
        counts, sums = torch.eye(k, dtype=y.dtype)[:1], torch.zeros(1, k, 2, dtype=y.dtype)
        sums[0, 0] = y[0]
        for point in y[1:]:
            one = torch.eye(k, dtype=y.dtype)
            counts = (counts.unsqueeze(1) + one).flatten(0, 1)
            sums = (sums.unsqueeze(1) + one.unsqueeze(-1) * point).flatten(0, 1)
        # of each mean: ∫ N(m; 0, s²) Π N(y_i; m, 1) dm, a Gaussian integral in either coordinate
        precision = counts + self.PRIOR_STD**-2
        per_mean = 0.5 * sums.square().sum(-1) / precision
        per_mean = per_mean - precision.log() - 2 * math.log(self.PRIOR_STD)
        zero = y.new_zeros(())
        constant = normal_log_density(y, zero, 1.0).sum() + (1 - len(y)) * math.log(k)
        return per_mean.sum(-1) + constant, counts, sums

    def mode_indicators(self, x: Tensor) -> Tensor:
        """Which order the means have by their first coordinate, shape (B, 6), 0 or 1."""
        order = x[..., 0::2].argsort(-1)
        orders = torch.tensor([*itertools.permutations(range(self.COMPONENTS))], device=x.device)
        return (order.unsqueeze(-2) == orders).all(-1).to(x.dtype)
