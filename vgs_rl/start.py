"""Start distributions pi_0: any density that can be sampled and evaluated."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vgs_rl.fields import settle
from vgs_rl.geometry import Geometry, Sphere


@dataclass(kw_only=True)
class StartConfig:
    """The density of x_0.

    Args:
        kind: `gaussian` is N(0, scale² I), as published; `mixture` is a Gaussian mixture with
            diagonal covariances, fitted by EM to noised states (until then N(0, scale² I));
            `product` is the same for each coordinate by itself, independent of the others: K^D
            modes at the cost of K; `uniform` is the uniform density on a sphere; `data` are rows
            of the energy's own ``data``, noised by the chain. The last has no known density, and
            with it log-weights, ELBO and log Z are not available.
        scale: s_0, the initial standard deviation per coordinate. By default √(S_0 + σ²/A_0²), that
            of N(0, σ² I) noised by the whole chain, where σ is the agent's `prior_std`, or 1
            without one. A scale that is given stays as it is, whatever `prior_std` says.
        learned: whether an agent may fit the start; False keeps the given scale.
        components: number of components of `mixture`, or of each coordinate's in `product`.
    """

    kind: Literal["gaussian", "mixture", "product", "uniform", "data"] = "gaussian"
    scale: float | None = None
    learned: bool = True
    components: int = 10

    def __post_init__(self) -> None:
        settle(self, "start")
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"start.scale must be a positive number, got {self.scale}")
        if self.components < 1:
            raise ValueError(f"start.components must be at least 1, got {self.components}")


class Start(nn.Module, ABC):
    """A density on the geometry's space, with an exact sampler.

    Attributes:
        has_density: whether :meth:`log_prob` is known.
    """

    has_density: bool = True

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Independent samples, shape (n, D), detached."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Log density at x of shape (B, D), with respect to the space's own measure; (B,)."""

    def require_density(self, what: str) -> None:
        """Raises a ValueError that names `what` needs a density, unless there is one."""
        if not self.has_density:
            raise ValueError(f"{what} needs a start with a density, got {type(self).__name__}")

    @abstractmethod
    def widen(self, factor: float) -> None:
        """Multiplies every standard deviation by `factor`."""

    @abstractmethod
    def fit(self, x: Tensor, generator: torch.Generator, *, rate: float = 1.0) -> None:
        """Fits the density to states x of shape (B, D), by maximum likelihood.

        Args:
            x: states on the geometry's space.
            generator: source of every random choice.
            rate: 1 replaces the old parameters, less moves towards the new where that is defined.
        """


class GaussianStart(Start):
    """N(0, s_0² I); ``log_scale`` is a parameter, so s_0 may also be learned by gradients."""

    def __init__(
        self, geometry: Geometry, scale: float, *, dtype: torch.dtype | None = None
    ) -> None:
        geometry.require_linear("start.kind 'gaussian'")
        super().__init__(geometry)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale), dtype=dtype))

    @property
    def scale(self) -> Tensor:
        """s_0, a scalar tensor."""
        return self.log_scale.exp()

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """See :meth:`Start.sample`."""
        scale = self.scale.detach()
        z = torch.randn(
            n, self.geometry.dim, generator=generator, device=scale.device, dtype=scale.dtype
        )
        return self.geometry.project(z).mul_(scale)

    def log_prob(self, x: Tensor) -> Tensor:
        """See :meth:`Start.log_prob`."""
        d = self.geometry.effective_dim
        log_norm = d * (self.log_scale + 0.5 * math.log(2 * math.pi))
        return -0.5 * x.square().sum(-1) * (-2 * self.log_scale).exp() - log_norm

    @torch.no_grad()
    def widen(self, factor: float) -> None:
        """See :meth:`Start.widen`."""
        self.log_scale.add_(math.log(factor))

    @torch.no_grad()
    def fit(self, x: Tensor, generator: torch.Generator, *, rate: float = 1.0) -> None:
        """Moves s_0² towards E‖x‖²/D."""
        variance = x.square().sum(-1).mean().to(self.log_scale) / self.geometry.effective_dim
        mixed = torch.lerp((2 * self.log_scale).exp(), variance, rate)
        self.log_scale.copy_(0.5 * mixed.log())


class MixtureStart(Start):
    """Σ_k w_k N(m_k, diag(v_k)), fitted by EM; Euclidean geometry only.

    The variances of a fit are floored at 1e-6 of the data's and at `noise`, the variance S_0 that
    noised states have around any terminal state: no component may collapse onto an outlier.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor
    fitted: Tensor

    # EM on more states than this changes the fit by less than its own noise.
    MAX_FIT_STATES = 60_000

    def __init__(
        self,
        geometry: Geometry,
        components: int,
        scale: float,
        noise: float = 0.0,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        if geometry.effective_dim != geometry.dim:
            raise ValueError(
                "start.kind 'mixture' needs a Euclidean geometry; "
                f"this one has {geometry.effective_dim} of {geometry.dim} dimensions"
            )
        super().__init__(geometry)
        self.noise = noise
        shape = (components, geometry.dim)
        weights = torch.full((components,), 1.0 / components, dtype=dtype)
        self.register_buffer("weights", weights)
        self.register_buffer("means", torch.zeros(shape, dtype=dtype))
        self.register_buffer("variances", torch.full(shape, scale**2, dtype=dtype))
        self.register_buffer("fitted", torch.tensor(False))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """See :meth:`Start.sample`."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(
            n,
            self.geometry.dim,
            generator=generator,
            device=self.means.device,
            dtype=self.means.dtype,
        )
        return self.means[k] + self.variances[k].sqrt() * z

    def log_prob(self, x: Tensor) -> Tensor:
        """See :meth:`Start.log_prob`."""
        # Differences first: the expanded square loses all digits of narrow, distant components.
        deviation = x.unsqueeze(1) - self.means  # (B, K, D)
        squares = (deviation.square() / self.variances).sum(-1)
        log_norm = (2 * math.pi * self.variances).log().sum(-1)
        return torch.logsumexp(self.weights.log() - 0.5 * (squares + log_norm), dim=-1)

    def widen(self, factor: float) -> None:
        """See :meth:`Start.widen`."""
        self.variances.mul_(factor**2)

    @torch.no_grad()
    def fit(self, x: Tensor, generator: torch.Generator, *, rate: float = 1.0) -> None:
        """EM (scikit-learn); `rate` below 1 has no meaning for a mixture and is ignored."""
        seed = int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device))
        data = x[: self.MAX_FIT_STATES].double().cpu().numpy()
        candidates = [self._em(data, seed, warm=False)]
        if bool(self.fitted):  # going on from the last fit is often better than starting anew
            candidates.append(self._em(data, seed, warm=True))
        best = max(candidates, key=lambda mixture: float(mixture.lower_bound_))
        for buffer, value in (
            (self.weights, best.weights_),
            (self.means, best.means_),
            (self.variances, best.covariances_),
        ):
            buffer.copy_(torch.as_tensor(value))
        self.weights.clamp_min_(1e-8).div_(self.weights.sum())
        self.variances.clamp_min_(self.noise)
        self.fitted.fill_(True)

    def _em(self, data: Any, seed: int, *, warm: bool) -> Any:
        from sklearn.mixture import GaussianMixture

        least = max(1e-6 * float(data.var(axis=0).mean()), 1e-12)
        initial: dict[str, Any] = {}
        if warm:
            weights = self.weights.double().cpu().numpy()
            initial = {
                "weights_init": weights / weights.sum(),
                "means_init": self.means.double().cpu().numpy(),
                "precisions_init": self.variances.double().reciprocal().cpu().numpy(),
            }
        mixture = GaussianMixture(
            n_components=len(self.weights),
            covariance_type="diag",
            reg_covar=least,
            max_iter=30,
            tol=1e-4,
            random_state=seed,
            **initial,
        )
        with _quiet_convergence():
            return mixture.fit(data)


class ProductStart(Start):
    """Π_i Σ_k w_ik N(m_ik, v_ik): each coordinate its own mixture, fitted by EM.

    Euclidean geometry only. Variances are floored at 1e-4 of the coordinate's own, so that no
    component collapses.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor

    ITERATIONS = 30
    MAX_FIT_STATES = 10_000

    def __init__(
        self,
        geometry: Geometry,
        components: int,
        scale: float,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        if geometry.effective_dim != geometry.dim:
            raise ValueError(
                "start.kind 'product' needs a Euclidean geometry; "
                f"this one has {geometry.effective_dim} of {geometry.dim} dimensions"
            )
        super().__init__(geometry)
        shape = (geometry.dim, components)
        self.register_buffer("weights", torch.full(shape, 1.0 / components, dtype=dtype))
        self.register_buffer("means", torch.zeros(shape, dtype=dtype))
        self.register_buffer("variances", torch.full(shape, scale**2, dtype=dtype))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """See :meth:`Start.sample`."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)  # (D, n)
        z = torch.randn(
            n,
            self.geometry.dim,
            generator=generator,
            device=self.means.device,
            dtype=self.means.dtype,
        )
        return self.means.gather(1, k).T + self.variances.gather(1, k).sqrt().T * z

    def log_prob(self, x: Tensor) -> Tensor:
        """See :meth:`Start.log_prob`."""
        return torch.logsumexp(self._components(x), dim=-1).sum(-1)

    def _components(self, x: Tensor) -> Tensor:
        """Log w_ik N(x_i; m_ik, v_ik), shape (B, D, K)."""
        log_norm = self.weights.log() - 0.5 * (2 * math.pi * self.variances).log()
        return log_norm - 0.5 * (x.unsqueeze(-1) - self.means).square() / self.variances

    def widen(self, factor: float) -> None:
        """See :meth:`Start.widen`."""
        self.variances.mul_(factor**2)

    @torch.no_grad()
    def fit(self, x: Tensor, generator: torch.Generator, *, rate: float = 1.0) -> None:
        """EM from the quantiles; `rate` below 1 has no meaning for a mixture and is ignored."""
        x = x[: self.MAX_FIT_STATES]
        components = self.weights.shape[1]
        middle = (torch.arange(components, device=x.device, dtype=x.dtype) + 0.5) / components
        spread = x.var(0).unsqueeze(-1)
        self.weights.fill_(1.0 / components)
        self.means.copy_(x.quantile(middle, dim=0).T)
        self.variances.copy_((spread / components**2).expand_as(self.variances))
        for _ in range(self.ITERATIONS):
            share = torch.softmax(self._components(x), dim=-1)  # (B, D, K)
            mass = share.sum(0).clamp_min(1e-6)
            mean = (share * x.unsqueeze(-1)).sum(0) / mass
            square = (share * (x.unsqueeze(-1) - mean).square()).sum(0) / mass
            self.weights.copy_(mass / mass.sum(-1, keepdim=True))
            self.means.copy_(mean)
            self.variances.copy_(torch.maximum(square, 1e-4 * spread))


class UniformStart(Start):
    """The uniform density on a sphere; there is nothing to fit."""

    anchor: Tensor

    def __init__(self, geometry: Geometry) -> None:
        if not isinstance(geometry, Sphere):
            raise ValueError(
                f"start.kind 'uniform' needs a Sphere as geometry, got {type(geometry).__name__}"
            )
        super().__init__(geometry)
        self.log_area = geometry.log_area
        self.register_buffer("anchor", torch.zeros(()), persistent=False)  # device and dtype

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """See :meth:`Start.sample`."""
        device, dtype = self.anchor.device, self.anchor.dtype
        z = torch.randn(n, self.geometry.dim, generator=generator, device=device, dtype=dtype)
        return self.geometry.project(z)

    def log_prob(self, x: Tensor) -> Tensor:
        """See :meth:`Start.log_prob`."""
        return x.new_full((len(x),), -self.log_area)

    def widen(self, factor: float) -> None:
        """Does nothing: it is as wide as the sphere."""

    def fit(self, x: Tensor, generator: torch.Generator, *, rate: float = 1.0) -> None:
        """Does nothing."""


@contextmanager
def widened(start: Start, factor: float) -> Iterator[None]:
    """A start with `factor` times its widths, for the time being; weights stay exact."""
    if factor == 1:
        yield
        return
    before = {name: value.clone() for name, value in start.state_dict().items()}
    start.widen(factor)
    try:
        yield
    finally:
        start.load_state_dict(before)


class _quiet_convergence:
    """An EM that stops at its iteration limit is good enough here: weights stay exact."""

    def __enter__(self) -> None:
        import warnings

        from sklearn.exceptions import ConvergenceWarning

        self._context = warnings.catch_warnings()
        self._context.__enter__()
        warnings.simplefilter("ignore", ConvergenceWarning)

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(None, None, None)


def make_start(
    config: StartConfig,
    geometry: Geometry,
    noise: float = 0.0,
    *,
    scale: float = 1.0,
    dtype: torch.dtype | None = None,
) -> Start:
    """The start distribution that `config` describes.

    Args:
        config: its kind and its numbers.
        geometry: the space.
        noise: the chain's S_0.
        scale: s_0 where `config` gives none.
        dtype: floating type of its parameters; torch's default if None.

    Raises:
        ValueError: if the kind does not fit the geometry, or is `data`, which needs more than that.
    """
    if config.kind == "data":
        raise ValueError("start.kind 'data' is made from data and chain: see DataStart")
    if config.kind == "uniform":
        return UniformStart(geometry)
    scale = config.scale or scale
    if config.kind == "mixture":
        return MixtureStart(geometry, config.components, scale, noise, dtype=dtype)
    if config.kind == "product":
        return ProductStart(geometry, config.components, scale, dtype=dtype)
    return GaussianStart(geometry, scale, dtype=dtype)
