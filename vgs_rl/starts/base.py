"""Start distributions pi_0: any density that can be sampled and evaluated."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vgs_rl.fields import settle
from vgs_rl.geometry import Geometry, Sphere

Kind = Literal["gaussian", "mixture", "product", "noised", "noised_product", "uniform", "data"]


@dataclass(kw_only=True)
class StartConfig:
    """The density of x_0.

    Args:
        kind: `gaussian` is N(0, scale² I), as published; `mixture` is a Gaussian mixture with
            diagonal covariances, fitted by EM to noised states (until then N(0, scale² I));
            `product` is the same for each coordinate by itself, independent of the others: K^D
            modes at the cost of K; `noised` is a mixture fitted to the target's own states, and
            noised in closed form, and `noised_product` is a product of that kind; `uniform` is the
            uniform density on a sphere; `data` are rows of the energy's own ``data``, noised by the
            chain. The last has no known density, and with it log-weights, ELBO and log Z are not
            available.
        scale: s_0, the initial standard deviation per coordinate. By default √(S_0 + σ²/A_0²), that
            of N(0, σ² I) noised by the whole chain, where σ is the agent's `prior_std`, or 1
            without one. A scale that is given stays as it is, whatever `prior_std` says.
        learned: whether an agent may fit the start; False keeps the given scale.
        components: number of components, or in a product of each coordinate's.
        covariance: of `noised`: `full`, or `diagonal`, which costs less.
    """

    kind: Literal[
        "gaussian", "mixture", "product", "noised", "noised_product", "uniform", "data"
    ] = "gaussian"
    scale: float | None = None
    learned: bool = True
    components: int = 10
    covariance: Literal["full", "diagonal"] = "full"

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
        of_target: whether :meth:`fit` wants states of the target instead of noised ones.
    """

    has_density: bool = True
    of_target: bool = False

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Independent samples, shape (n, D), detached."""

    def of_noise(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """A draw as a function of its random numbers, for programs without generators.

        Args:
            uniform: numbers in [0, 1), shape (B, D).
            normal: standard normal numbers on the geometry's space, shape (B, D).

        Raises:
            ValueError: if this start is no such function.
        """
        raise ValueError(f"{type(self).__name__} is no function of so many random numbers")

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

    def of_noise(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """See :meth:`Start.of_noise`."""
        return normal * self.scale

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

    def of_noise(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """See :meth:`Start.of_noise`."""
        return normal

    def log_prob(self, x: Tensor) -> Tensor:
        """See :meth:`Start.log_prob`."""
        return x.new_full((x.shape[0],), -self.log_area)

    def widen(self, factor: float) -> None:
        """Does nothing: it is as wide as the sphere."""

    def fit(self, x: Tensor, generator: torch.Generator, *, rate: float = 1.0) -> None:
        """Does nothing."""


def require_euclidean(kind: str, geometry: Geometry) -> None:
    """Refuses a geometry that is not R^D, naming the kind of start.

    Raises:
        ValueError: if it is another one.
    """
    if geometry.effective_dim != geometry.dim:
        raise ValueError(
            f"start.kind {kind!r} needs a Euclidean geometry; "
            f"this one has {geometry.effective_dim} of {geometry.dim} dimensions"
        )


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
