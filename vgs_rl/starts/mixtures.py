"""A start that is a mixture of Gaussians, fitted by EM."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from vgs_rl.geometry import Geometry
from vgs_rl.starts.base import Start, require_euclidean


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
        require_euclidean("mixture", geometry)
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

    def of_noise(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """See :meth:`Start.of_noise`; the first uniform number chooses the component."""
        below = self.weights.cumsum(0)[:-1]
        k = (uniform[:, :1] > below).sum(-1)
        return self.means[k] + self.variances[k].sqrt() * normal

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
        from sklearn.exceptions import ConvergenceWarning
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
        with warnings.catch_warnings():
            # An EM that stops at its iteration limit is good enough here: weights stay exact.
            warnings.simplefilter("ignore", ConvergenceWarning)
            return mixture.fit(data)
