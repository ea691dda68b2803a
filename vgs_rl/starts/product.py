"""Products of mixtures: each coordinate a mixture of Gaussians, independent of the others."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vgs_rl.chain import Chain
from vgs_rl.geometry import Geometry
from vgs_rl.starts.base import Start, require_euclidean

ITERATIONS = 30
LEAST = 1e-4  # of a coordinate's variance, that a component has at least


@dataclass(frozen=True, kw_only=True)
class ProductMixture:
    """Π_i Σ_k w_ik N(m_ik, v_ik).

    Attributes:
        weights: w_ik, shape (D, K).
        means: m_ik, shape (D, K).
        variances: v_ik, shape (D, K).
    """

    weights: Tensor
    means: Tensor
    variances: Tensor

    def pooled(self) -> Tensor:
        """The mean variance within components, of each coordinate, shape (D,)."""
        return (self.weights * self.variances).sum(-1)

    def log_components(self, x: Tensor) -> Tensor:
        """Log w_ik N(x_i; m_ik, v_ik) at states x (B, D): shape (B, D, K)."""
        log_norm = self.weights.log() - 0.5 * (2 * math.pi * self.variances).log()
        return log_norm - 0.5 * (x.unsqueeze(-1) - self.means).square() / self.variances

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density at x (B, D): shape (B,)."""
        return torch.logsumexp(self.log_components(x), dim=-1).sum(-1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Independent samples, shape (n, D)."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)  # (D, n)
        shape = (n, len(self.weights))
        z = torch.randn(shape, generator=generator, dtype=self.means.dtype, device=k.device)
        return self.means.gather(1, k).T + self.variances.gather(1, k).sqrt().T * z


def fit_product(x: Tensor, components: int, log_weight: Tensor | None = None) -> ProductMixture:
    """EM of every coordinate, from its quantiles.

    Args:
        x: states, shape (n, D).
        components: K.
        log_weight: of the states, shape (n,); equal if None.
    """
    n, dim = x.shape
    share = torch.full((n,), 1 / n, dtype=x.dtype, device=x.device)
    if log_weight is not None:
        share = torch.softmax(log_weight.to(x.dtype), 0)
    middle = (torch.arange(components, device=x.device, dtype=x.dtype) + 0.5) / components
    ordered, order = x.sort(0)
    below = share[order].cumsum(0)
    at = torch.searchsorted(below.T.contiguous(), middle.expand(dim, -1).contiguous())
    mean = share @ x
    spread = (share @ (x - mean).square()).unsqueeze(-1).clamp_min(1e-300)
    mixture = ProductMixture(
        weights=torch.full((dim, components), 1.0 / components, dtype=x.dtype, device=x.device),
        means=ordered.T.gather(1, at.clamp_max(n - 1)),
        variances=(spread / components**2).expand(-1, components),
    )
    for _ in range(ITERATIONS):
        part = torch.softmax(mixture.log_components(x), dim=-1) * share[:, None, None]  # (B, D, K)
        mass = part.sum(0).clamp_min(1e-6 / n)
        means = (part * x.unsqueeze(-1)).sum(0) / mass
        squares = (part * (x.unsqueeze(-1) - means).square()).sum(0) / mass
        mixture = ProductMixture(
            weights=mass / mass.sum(-1, keepdim=True),
            means=means,
            variances=torch.maximum(squares, LEAST * spread),
        )
    return mixture


class ProductStart(Start):
    """Π_i Σ_k w_ik N(m_ik, v_ik): each coordinate its own mixture, fitted by EM.

    Euclidean geometry only.

    Args:
        geometry: R^D.
        components: K.
        scale: standard deviation of every component until the first fit.
        dtype: floating type.

    Raises:
        ValueError: if the geometry is not R^D.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor

    KIND = "product"
    MAX_FIT_STATES = 10_000

    def __init__(
        self,
        geometry: Geometry,
        components: int,
        scale: float,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        require_euclidean(self.KIND, geometry)
        super().__init__(geometry)
        shape = (geometry.dim, components)
        self.register_buffer("weights", torch.full(shape, 1.0 / components, dtype=dtype))
        self.register_buffer("means", torch.zeros(shape, dtype=dtype))
        self.register_buffer("variances", torch.full(shape, scale**2, dtype=dtype))

    def mixture(self) -> ProductMixture:
        """The density of x_0."""
        return ProductMixture(weights=self.weights, means=self.means, variances=self.variances)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """See :meth:`Start.sample`."""
        return self.mixture().sample(n, generator)

    def of_noise(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """See :meth:`Start.of_noise`; a uniform number chooses each coordinate's component."""
        at = self.mixture()
        below = at.weights.cumsum(1)[:, :-1]
        k = (uniform.T.unsqueeze(-1) > below.unsqueeze(1)).sum(-1)  # (D, n)
        return at.means.gather(1, k).T + at.variances.gather(1, k).sqrt().T * normal

    def log_prob(self, x: Tensor) -> Tensor:
        """See :meth:`Start.log_prob`."""
        return self.mixture().log_prob(x)

    def widen(self, factor: float) -> None:
        """See :meth:`Start.widen`."""
        self.variances.mul_(factor**2)

    @torch.no_grad()
    def fit(self, x: Tensor, generator: torch.Generator, *, rate: float = 1.0) -> None:
        """EM from the quantiles; `rate` below 1 has no meaning for a mixture and is ignored."""
        self.become(fit_product(x[: self.MAX_FIT_STATES], self.weights.shape[1]))

    @torch.no_grad()
    def become(self, mixture: ProductMixture) -> None:
        """Takes over a product of as many components."""
        self.weights.copy_(mixture.weights)
        self.means.copy_(mixture.means)
        self.variances.copy_(mixture.variances)


class NoisedProductStart(ProductStart):
    """A product of mixtures that is fitted to the target, and noised by the chain in closed form.

    Noised to any step the product stays one, so its value is known at every step, as that of
    :class:`~vgs_rl.starts.noised.NoisedMixtureStart`.

    Args:
        geometry: R^D.
        chain: supplies A_t and S_t.
        components: K.
        std: standard deviation of the target, per coordinate, until the first fit.
        dtype: floating type.
    """

    KIND = "noised_product"
    of_target = True

    scale: Tensor
    noise: Tensor
    widening: Tensor

    def __init__(
        self,
        geometry: Geometry,
        chain: Chain,
        components: int,
        std: float = 1.0,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(geometry, components, std, dtype=dtype)
        self.register_buffer("widening", torch.ones((), dtype=dtype))
        self.register_buffer("scale", chain.A.to("cpu", self.means.dtype), persistent=False)
        self.register_buffer("noise", chain.S.to("cpu", self.means.dtype), persistent=False)

    @property
    def width(self) -> Tensor:
        """Mean variance of the target within components, a scalar."""
        return (self.weights * self.variances).sum(-1).mean()

    def mixture(self) -> ProductMixture:
        """See :meth:`ProductStart.mixture`."""
        noised = self._noised(0)
        variances = noised.variances * self.widening
        return ProductMixture(weights=self.weights, means=noised.means, variances=variances)

    def _noised(self, t: int | Tensor) -> ProductMixture:
        """The target's mixture noised to step t; means and variances (D, K) or (B, D, K)."""
        scale, noise = self.scale[t], self.noise[t]
        if isinstance(t, Tensor):
            scale, noise = scale[:, None, None], noise[:, None, None]
        variances = self.variances / scale.square() + noise
        return ProductMixture(weights=self.weights, means=self.means / scale, variances=variances)

    def value(self, x: Tensor, t: int | Tensor) -> Tensor:
        """-log of the product noised to step t, shape (B,); t one step or one per row."""
        return -self._noised(t).log_prob(x)

    def value_gradient(self, x: Tensor, t: int | Tensor) -> Tensor:
        """The gradient of :meth:`value`, shape (B, D), in closed form."""
        at = self._noised(t)
        part = torch.softmax(at.log_components(x), dim=-1)
        return (part * (x.unsqueeze(-1) - at.means) / at.variances).sum(-1)

    def widen(self, factor: float) -> None:
        """See :meth:`Start.widen`; the value keeps its widths."""
        self.widening.mul_(factor**2)
