"""A start that is a Gaussian mixture of the target, noised by the chain in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vgs_rl.chain import Chain
from vgs_rl.geometry import Geometry
from vgs_rl.starts.base import Start, require_euclidean
from vgs_rl.starts.em import Kind, Mixture, fit_mixture


class NoisedMixtureStart(Start):
    """Σ_k w_k N(m_k/A_0, C_k/A_0² + S_0 I), where Σ_k w_k N(m_k, C_k) is fitted to the target.

    Noised to any other step the mixture stays one, so its value is known at every step:
    V_t(x) = -log Σ_k w_k N(x; m_k/A_t, C_k/A_t² + S_t I). A network may begin with it
    (:class:`~vgs_rl.networks.mixture.MixtureValue`).

    Args:
        geometry: R^D.
        chain: supplies A_t and S_t.
        components: K.
        std: standard deviation of the target, per coordinate, until the first fit.
        full: whether covariances are full; diagonal if not.
        dtype: floating type.

    Raises:
        ValueError: if the geometry is not R^D.
    """

    of_target = True

    log_weights: Tensor
    means: Tensor
    variances: Tensor
    vectors: Tensor | None
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
        full: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        require_euclidean("noised", geometry)
        super().__init__(geometry)
        dim = geometry.dim
        self.register_buffer("log_weights", torch.full((components,), -math.log(components)))
        self.register_buffer("means", torch.zeros(components, dim))  # along the axes of `vectors`
        self.register_buffer("variances", torch.full((components, dim), std**2))
        axes = torch.eye(dim).repeat(components, 1, 1) if full else None
        self.register_buffer("vectors", axes)  # (K, D, D), a column each
        self.register_buffer("widening", torch.ones(()))
        self.register_buffer("scale", chain.A.clone(), persistent=False)
        self.register_buffer("noise", chain.S.clone(), persistent=False)
        self.to(dtype=dtype or torch.get_default_dtype())

    @property
    def width(self) -> Tensor:
        """Mean variance of the target within components, a scalar."""
        return (self.log_weights.exp() @ self.variances).mean()

    def _along(self, x: Tensor) -> Tensor:
        """Coordinates of x (B, D) along each component's axes, shape (B, K, D)."""
        if self.vectors is None:
            return x.unsqueeze(1)
        return torch.einsum("bi,kij->bkj", x, self.vectors)

    def _spread(self, t: int | Tensor, widening: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        """Noised means and variances along the axes, (K, D) or (B, K, D)."""
        scale, noise = self.scale[t], self.noise[t]
        if isinstance(t, Tensor):
            scale, noise = scale[:, None, None], noise[:, None, None]
        return self.means / scale, (self.variances / scale.square() + noise) * widening

    def _parts(
        self, x: Tensor, t: int | Tensor, widening: Tensor | float = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log w_k N_k (B, K); deviations and variances along the axes (B, K, D)."""
        means, variance = self._spread(t, widening)
        deviation = self._along(x) - means
        squares = (deviation.square() / variance).sum(-1)
        constant = (2 * math.pi * variance).log().sum(-1)
        return self.log_weights - 0.5 * (squares + constant), deviation, variance

    def value(self, x: Tensor, t: int | Tensor) -> Tensor:
        """-log of the mixture noised to step t, shape (B,); t one step or one per row."""
        return -torch.logsumexp(self._parts(x, t)[0], dim=-1)

    def _products(self, x: Tensor, t: int) -> Tensor:
        """:meth:`value_gradient` of diagonal components, without any (B, K, D) numbers."""
        x = x.double()  # squares are far larger than their differences
        means, variance = (part.double() for part in self._spread(t))
        precision = variance.reciprocal()
        pulls = means * precision
        constant = variance.log().sum(-1) + (means * pulls).sum(-1)
        squares = x.square() @ precision.T - 2 * x @ pulls.T + constant
        share = torch.softmax(self.log_weights - 0.5 * squares, dim=-1)
        return x * (share @ precision) - share @ pulls

    def value_gradient(self, x: Tensor, t: int | Tensor) -> Tensor:
        """The gradient of :meth:`value`, shape (B, D), in closed form."""
        if self.vectors is None and isinstance(t, int):
            return self._products(x, t).to(x)
        parts, deviation, variance = self._parts(x, t)
        slope = torch.softmax(parts, dim=-1).unsqueeze(-1) * (deviation / variance)
        if self.vectors is None:
            return slope.sum(1)
        return torch.einsum("bkj,kij->bi", slope, self.vectors)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """See :meth:`Start.sample`."""
        weights, device = self.log_weights.exp(), self.means.device
        k = torch.multinomial(weights, n, replacement=True, generator=generator)
        shape = (n, self.geometry.dim)
        z = torch.randn(shape, generator=generator, device=device, dtype=self.means.dtype)
        return self._placed(k, z)

    def of_noise(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """See :meth:`Start.of_noise`; the first uniform number chooses the component."""
        below = self.log_weights.exp().cumsum(0)[:-1]
        return self._placed((uniform[:, :1] > below).sum(-1), normal)

    def _placed(self, k: Tensor, z: Tensor) -> Tensor:
        means, variances = self._spread(0, self.widening)
        along = means[k] + variances[k].sqrt() * z
        if self.vectors is None:
            return along
        x = torch.zeros_like(along)
        for component, axes in enumerate(self.vectors):  # K products, where a gather is K D² a row
            x = torch.where((k == component).unsqueeze(-1), along @ axes.T, x)
        return x

    def log_prob(self, x: Tensor) -> Tensor:
        """See :meth:`Start.log_prob`."""
        return torch.logsumexp(self._parts(x, 0, self.widening)[0], dim=-1)

    def widen(self, factor: float) -> None:
        """See :meth:`Start.widen`; the value keeps its widths."""
        self.widening.mul_(factor**2)

    @torch.no_grad()
    def fit(self, x: Tensor, generator: torch.Generator, *, rate: float = 1.0) -> None:
        """EM on states of the target itself; `rate` has no meaning for a mixture."""
        kind: Kind = "diagonal" if self.vectors is None else "full"
        self.become(fit_mixture(x, len(self.log_weights), generator, kind=kind))

    @torch.no_grad()
    def become(self, mixture: Mixture) -> None:
        """Takes over a mixture of as many components.

        Raises:
            ValueError: if its covariances are full, and those of this start are diagonal.
        """
        if self.vectors is None and mixture.kind != "diagonal":
            raise ValueError(f"a diagonal start cannot take over a {mixture.kind} mixture")
        self.log_weights.copy_(mixture.weights.clamp_min(1e-12).log())
        if self.vectors is None:
            self.variances.copy_(mixture.covariances)
            self.means.copy_(mixture.means)
            return
        covariances = mixture.covariances
        if mixture.kind == "diagonal":
            covariances = torch.diag_embed(covariances)
        variances, vectors = torch.linalg.eigh(covariances)
        self.variances.copy_(variances.clamp_min(1e-12))
        self.vectors.copy_(vectors)
        self.means.copy_(torch.einsum("ki,kij->kj", mixture.means, vectors.expand_as(self.vectors)))
