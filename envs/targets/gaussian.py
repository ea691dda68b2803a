"""Gaussians and Gaussian mixtures: exact samples, exact log Z, exact values in closed form."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vgs_rl.chain import Chain
from vgs_rl.checks import count_of, require_positive, seed_of
from vgs_rl.energy import Energy

ArrayLike = Tensor | Sequence[Any]


class GaussianMixture(Energy):
    """E(x) = -log Σ_k w_k N(x; m_k, C_k) - log_z, so that Z = exp(log_z) at tau = 1.

    Noised to step t the mixture stays one: p~_t = Z Σ_k w_k N(m_k / A_t, C_k / A_t² + S_t I), so
    V_t and its gradient have closed forms.

    Args:
        means: m_k, shape (K, D).
        variances: C_k as variances per coordinate, shape (K, D), or as full covariance matrices,
            shape (K, D, D), symmetric positive definite.
        weights: w_k > 0, shape (K,), normalised here; equal by default.
        log_z: log of the normalising constant to give the density.

    Raises:
        ValueError: on wrong shapes or values, naming the argument.
    """

    means: Tensor
    eigenvalues: Tensor
    eigenvectors: Tensor | None
    log_weights: Tensor
    thread_safe = True

    def __init__(
        self,
        means: ArrayLike,
        variances: ArrayLike,
        weights: ArrayLike | None = None,
        log_z: float = 0.0,
    ) -> None:
        super().__init__()
        m = torch.as_tensor(means, dtype=torch.float64)
        if m.ndim != 2 or m.numel() == 0:
            raise ValueError(f"means must have shape (K, D), got {tuple(m.shape)}")
        k, d = m.shape
        c = torch.as_tensor(variances, dtype=torch.float64)
        if c.shape not in ((k, d), (k, d, d)):
            raise ValueError(
                f"variances must have shape ({k}, {d}) or ({k}, {d}, {d}), got {tuple(c.shape)}"
            )
        vectors = None
        if c.ndim == 3:
            if not torch.allclose(c, c.mT, rtol=1e-6):
                raise ValueError("variances must be symmetric matrices")
            c, vectors = torch.linalg.eigh(c)
        if not bool((torch.isfinite(c) & (c > 0)).all()):
            raise ValueError(f"variances must be positive (definite), least is {float(c.min()):g}")
        w = torch.ones(k) if weights is None else torch.as_tensor(weights)
        w = w.to(torch.float64)
        if w.shape != (k,) or not bool((torch.isfinite(w) & (w > 0)).all()):
            raise ValueError(f"weights must be {k} positive numbers, got {w.tolist()}")
        self.dim = d
        self.log_z = float(log_z)
        self.register_buffer("means", m, persistent=False)
        self.register_buffer("eigenvalues", c, persistent=False)
        self.register_buffer("eigenvectors", vectors, persistent=False)
        self.register_buffer("log_weights", (w / w.sum()).log(), persistent=False)
        if k > 1:
            self.mode_probabilities = w / w.sum()

    def _components(self, x: Tensor, scale: float, noise: float) -> tuple[Tensor, Tensor, Tensor]:
        """Log w_k N(x; m_k/scale, C_k/scale² + noise), (B, K); whitening factors; deviations."""
        deviation = x.unsqueeze(1) - (self.means / scale).to(x)  # (B, K, D)
        if self.eigenvectors is not None:
            deviation = torch.einsum("kde,bkd->bke", self.eigenvectors.to(x), deviation)
        variance = self.eigenvalues / scale**2 + noise  # (K, D), double
        log_norm = self.log_weights - 0.5 * (2 * math.pi * variance).log().sum(-1)
        precision = variance.reciprocal().to(x)
        squares = (deviation.square() * precision).sum(-1)
        return log_norm.to(x) - 0.5 * squares, precision, deviation

    def _gradient(self, components: Tensor, precision: Tensor, deviation: Tensor) -> Tensor:
        posterior = torch.softmax(components, dim=-1).unsqueeze(-1)  # (B, K, 1)
        pull = posterior * precision * deviation
        if self.eigenvectors is None:
            return pull.sum(1)
        return torch.einsum("kde,bke->bd", self.eigenvectors.to(deviation), pull)

    def energy(self, x: Tensor) -> Tensor:
        """See :meth:`Energy.energy`."""
        assert self.log_z is not None
        return -torch.logsumexp(self._components(x, 1.0, 0.0)[0], dim=-1) - self.log_z

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Closed form."""
        assert self.log_z is not None
        with torch.no_grad():
            parts = self._components(x, 1.0, 0.0)
            return -torch.logsumexp(parts[0], dim=-1) - self.log_z, self._gradient(*parts)

    def value(self, x: Tensor, t: int, chain: Chain) -> Tensor:
        """See :meth:`Energy.value`."""
        assert self.log_z is not None
        components = self._components(x, float(chain.A[t]), float(chain.S[t]))[0]
        return -torch.logsumexp(components, dim=-1) - self.log_z

    def value_gradient(self, x: Tensor, t: int, chain: Chain) -> Tensor:
        """Closed form."""
        with torch.no_grad():
            return self._gradient(*self._components(x, float(chain.A[t]), float(chain.S[t])))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """See :meth:`Energy.sample`."""
        device = generator.device
        weights = self.log_weights.exp().to(device)
        k = torch.multinomial(weights, n, replacement=True, generator=generator)
        z = torch.randn(n, self.dim, generator=generator, device=device)
        z = self.eigenvalues.sqrt().to(z)[k] * z
        if self.eigenvectors is not None:
            z = torch.einsum("bde,be->bd", self.eigenvectors.to(z)[k], z)
        return self.means.to(z)[k] + z

    MOST_NODES = 10_000_000  # of a quadrature
    MOST_PROPOSALS = 1_000  # for a sample at a temperature below 1

    def can_sample_at(self, temperature: float) -> bool:
        """Whether :meth:`sample_at` takes few enough proposals: up to K^(1/tau - 1) a sample."""
        return (1 / temperature - 1) * math.log(len(self.means)) <= math.log(self.MOST_PROPOSALS)

    def sample_at(self, n: int, temperature: float, generator: torch.Generator) -> Tensor:
        """Exact samples of exp(-E/tau)/Z, by rejection, shape (n, D), on the generator's device.

        With beta = 1/tau and a_k the weighted components, (Σ a_k)^beta is at most Σ a_k^beta for
        beta ≤ 1, and K^(beta - 1) times that for beta > 1; the latter is a mixture, too.

        Args:
            n: number of samples.
            temperature: tau.
            generator: source of randomness.
        """
        beta, device = 1 / temperature, generator.device
        log_norm = self.log_weights - 0.5 * (2 * math.pi * self.eigenvalues).log().sum(-1)
        spread = 0.5 * (2 * math.pi / beta * self.eigenvalues).log().sum(-1)
        shares = torch.softmax(beta * log_norm + spread, 0).clamp_min(1e-300)
        wide = GaussianMixture(self.means, torch.ones_like(self.means), shares)
        wide.eigenvalues, wide.eigenvectors = self.eigenvalues / beta, self.eigenvectors
        most = max(0.0, beta - 1) * math.log(len(self.means))
        kept, count = list[Tensor](), 0
        while count < n:
            x = wide.sample(max(n, 64), generator)
            parts = self._components(x, 1.0, 0.0)[0]
            log_share = beta * torch.logsumexp(parts, -1) - torch.logsumexp(beta * parts, -1) - most
            uniform = torch.rand(len(x), generator=generator, device=device)
            kept.append(x[uniform.log() < log_share])
            count += len(kept[-1])
        return torch.cat(kept)[:n]

    def log_z_at(self, temperature: float) -> float | None:
        """Log ∫ exp(-E/tau), closed for one component, by quadrature in two dimensions; else None.

        It is None, too, where components so narrow lie so far apart that the grid would be too big.

        Args:
            temperature: tau.
        """
        assert self.log_z is not None
        beta = 1 / temperature
        if len(self.means) == 1:
            spread = float(0.5 * (2 * math.pi * self.eigenvalues[0]).log().sum())
            return (1 - beta) * spread - 0.5 * self.dim * math.log(beta) + beta * self.log_z
        if self.dim > 2:
            return None
        reach = 12 * float(self.eigenvalues.max().sqrt()) * max(1.0, temperature**0.5)
        step = 0.2 * float(self.eigenvalues.min().sqrt()) * min(1.0, temperature**0.5)
        least, most = (ends.values.tolist() for ends in (self.means.min(0), self.means.max(0)))
        ends = [(low - reach, high + reach) for low, high in zip(least, most, strict=True)]
        if math.prod((high - low) / step for low, high in ends) > self.MOST_NODES:
            return None
        axes = [torch.arange(low, high, step, dtype=torch.float64) for low, high in ends]
        grid = torch.cartesian_prod(*axes).reshape(-1, self.dim).to(self.means.device)
        levels = torch.cat([-beta * self.energy(part) for part in grid.split(65_536)])
        return float(torch.logsumexp(levels, 0)) + self.dim * math.log(step)

    def mode_indicators(self, x: Tensor) -> Tensor:
        """Posterior probability of each component, shape (B, K); their exact means are w_k."""
        return torch.softmax(self._components(x, 1.0, 0.0)[0], dim=-1)


class Gaussian(GaussianMixture):
    """E(x) = ½ (x - m)ᵀ C⁻¹ (x - m), so log Z = ½ log det(2 pi C).

    Args:
        mean: m, shape (D,); two zeros by default.
        covariance: C, as variances per coordinate, shape (D,), or a matrix, shape (D, D);
            by default [[2, 0.8], [0.8, 0.5]].
    """

    def __init__(
        self,
        mean: Sequence[float] | Tensor = (0.0, 0.0),
        covariance: ArrayLike = ((2.0, 0.8), (0.8, 0.5)),
    ) -> None:
        m = torch.as_tensor(mean, dtype=torch.float64)
        c = torch.as_tensor(covariance, dtype=torch.float64)
        if m.ndim != 1 or c.shape not in ((len(m),), (len(m), len(m))):
            raise ValueError(
                "mean must have shape (D,) and covariance (D,) or (D, D), "
                f"got {tuple(m.shape)} and {tuple(c.shape)}"
            )
        super().__init__(m.unsqueeze(0), c.unsqueeze(0))
        self.log_z = float(0.5 * (2 * math.pi * self.eigenvalues).log().sum())


def _grid(coordinates: Sequence[float], variance: float) -> tuple[Tensor, Tensor]:
    means = torch.tensor(list(itertools.product(coordinates, repeat=2)), dtype=torch.float64)
    return means, torch.full_like(means, variance)


class FourGauss(GaussianMixture):
    """The paper's illustration: means {-2, 2}², variance 0.13, equal weights; log Z = 0."""

    def __init__(self) -> None:
        super().__init__(*_grid((-2, 2), 0.13))


class GMM9(GaussianMixture):
    """Nine modes: means {-5, 0, 5}², variance 0.3, equal weights; log Z = 0 (arXiv:2502.13280)."""

    def __init__(self) -> None:
        super().__init__(*_grid((-5, 0, 5), 0.3))


class GMM25(GaussianMixture):
    """Twenty-five modes: means {-10, -5, 0, 5, 10}², variance 0.3, equal weights; log Z = 0."""

    def __init__(self) -> None:
        super().__init__(*_grid((-10, -5, 0, 5, 10), 0.3))


class GMM40(GaussianMixture):
    """Forty modes of FAB (arXiv:2208.01893) and iDEM (arXiv:2402.06121); log Z = 0.

    Means drawn once, uniformly on [-40, 40]², with their seed 0 (the numbers stand in this file);
    std softplus(1) = 1.3133 in both coordinates; equal weights. Other papers draw other means
    under the same name.
    """

    def __init__(self) -> None:
        means = torch.tensor(_GMM40_MEANS, dtype=torch.float64)
        super().__init__(means, torch.full_like(means, math.log1p(math.e) ** 2))


class FortyModes(GaussianMixture):
    """Forty modes in D dimensions: unit covariance, equal weights; log Z = 0.

    Means are uniform on [-40, 40]^D, drawn as float32 by torch's generator for the CPU. Blessing et
    al. (arXiv:2406.07423) use such a mixture in 50 dimensions with means of their own.

    Args:
        dim: D.
        seed: of the means.
    """

    def __init__(self, dim: int = 50, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed_of(seed))
        means = 80 * torch.rand(40, count_of("dim", dim), generator=generator) - 40
        super().__init__(means, torch.ones_like(means))


class TwoModes(GaussianMixture):
    """Two unit Gaussians of unequal weights, at 0 and far along the first axis; log Z = 0.

    Args:
        dim: D.
        distance: of the second mode.
        weight: of the mode at 0.
    """

    def __init__(self, dim: int = 2, distance: float = 20.0, weight: float = 0.1) -> None:
        require_positive("TwoModes", distance=distance)
        if not 0 < weight < 1:
            raise ValueError(f"weight must be between 0 and 1, got {weight}")
        means = torch.zeros(2, count_of("dim", dim), dtype=torch.float64)
        means[1, 0] = distance
        super().__init__(means, torch.ones_like(means), [weight, 1 - weight])


# fmt: off
_GMM40_MEANS = (
    (-0.299473, 21.457745), (-32.921806, -29.437561), (-15.406175, 10.726295),
    (-0.792527, 31.715580), (-3.549762, 10.584502), (-12.088523, -7.862616),
    (-38.213940, -26.491283), (-16.488924, 1.481743), (15.813408, 24.000912),
    (-27.117643, -17.418514), (14.528685, 33.215519), (-8.232007, 29.932470),
    (-6.447334, 4.232564), (36.219048, -37.106815), (-25.181519, -10.126610),
    (-15.591998, 34.560032), (-25.927185, -18.413315), (-27.945618, -37.462440),
    (-23.349619, 34.383923), (17.848736, 19.386902), (2.103662, -20.507339),
    (6.767387, -37.347790), (-28.902649, -20.621201), (25.237518, 23.452850),
    (-17.739801, -1.443295), (25.582428, 39.765324), (15.875287, 5.403714),
    (26.819454, -23.552094), (7.453761, -31.012220), (-27.723446, -20.663342),
    (18.098923, 16.086416), (-23.694099, 12.084284), (21.958881, -5.048695),
    (1.527262, 9.268188), (24.815063, 38.407764), (-30.824944, -14.658790),
    (15.720396, 33.141975), (34.808292, 35.294270), (7.960582, -34.783306),
    (3.679700, -25.024214),
)
# fmt: on
