"""EM for mixtures of Student-t distributions of weighted states."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vgs_rl.starts.em import Mixture, maximum, pooled_variances

NUS = (15.0, 8.0, 5.0, 3.0, 2.0, 1.5, 1.0)  # degrees of freedom, from light to heavy
STEPS = 30  # of EM, at most, for each of them
SETTLED = 1e-3  # nats a state, by which a step gains no more
LEAST = 1e-4  # of the mean width within components, that a component has at least


@dataclass(frozen=True, kw_only=True)
class StudentComponents:
    """Σ_k w_k t_nu((x - m_k) / s_k), in float64.

    Attributes:
        scales: w_k and m_k, and s_k² or its matrices in the place of covariances.
        nu: degrees of freedom: one number, of multivariate t; or of shape (D,), of products of
            univariate t, whose scales are diagonal.
    """

    scales: Mixture
    nu: Tensor

    @property
    def radial(self) -> bool:
        """Whether a component is a multivariate t."""
        return self.nu.ndim == 0

    def squares(self, x: Tensor) -> Tensor:
        """Squared distances of x (B, D) from the locations, in scales: (B, K), or (B, K, D)."""
        if self.radial:
            return self.scales.squares(x)
        gap = x.double().unsqueeze(1) - self.scales.means
        return gap.square() / self.scales.covariances

    def log_components(self, x: Tensor, squares: Tensor | None = None) -> Tensor:
        """Log w_k t_k at states x (B, D): shape (B, K)."""
        squares = self.squares(x) if squares is None else squares
        nu, dim = self.nu, self.scales.means.shape[1] if self.radial else 1
        level = torch.lgamma(0.5 * (nu + dim)) - torch.lgamma(0.5 * nu)
        level = level - 0.5 * dim * (nu * math.pi).log()
        level = level - 0.5 * (nu + dim) * (squares / nu).log1p()
        if not self.radial:
            level = level.sum(-1)
        return self.scales.weights.clamp_min(1e-300).log() + level - 0.5 * self.scales.log_det()

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density at x (B, D): shape (B,)."""
        return torch.logsumexp(self.log_components(x), dim=-1)


def fit_students(
    x: Tensor,
    begin: Mixture,
    *,
    radial: bool,
    log_weight: Tensor | None = None,
    nu: Tensor | None = None,
) -> StudentComponents:
    """Maximum likelihood by EM, for one degree of freedom after the other until it falls.

    Scales are those of the t, by the EM that also finds the width of its mixing law (Liu, Rubin and
    Wu, Biometrika 85, 1998), and drawn to each other as those of
    :func:`~vgs_rl.starts.em.fit_mixture` are. A product of t gets degrees of freedom for each of
    its coordinates.

    Args:
        x: states, shape (n, D).
        begin: a mixture of Gaussians, diagonal if not radial.
        radial: whether components are multivariate t; products of t if not.
        log_weight: of the states, shape (n,); equal if None.
        nu: degrees of freedom, if they are known.
    """
    x = x.double()
    share = torch.full_like(x[:, 0], 1 / len(x))
    if log_weight is not None:
        share = torch.softmax(log_weight.double(), 0)
    if nu is not None:
        return _fitted(x, share, StudentComponents(scales=begin, nu=nu))[0]
    shape = () if radial else (x.shape[1],)
    best: tuple[float, StudentComponents] | None = None
    levels, scales = [], begin
    for each in NUS:
        at = StudentComponents(scales=scales, nu=x.new_full(shape, each))
        found, level = _fitted(x, share, at)
        scales = found.scales
        if not radial:
            levels.append(_by_coordinate(x, share, found))
        if best is not None and level < best[0]:
            break
        best = level, found
    assert best is not None
    if radial:
        return best[1]
    chosen = torch.stack(levels).argmax(0)
    return _fitted(x, share, replace(best[1], nu=x.new_tensor(NUS)[chosen]))[0]


def _fitted(x: Tensor, share: Tensor, at: StudentComponents) -> tuple[StudentComponents, float]:
    """EM with the same degrees of freedom, and its mean log-likelihood."""
    size = 1 / share.square().sum()
    before = -math.inf
    for step in range(STEPS):
        squares = at.squares(x)
        parts = at.log_components(x, squares)
        total = torch.logsumexp(parts, dim=-1)
        level = float(share @ total)
        if step and level - before < SETTLED:
            break
        before = level
        shares = (parts - total.unsqueeze(-1)).exp() * share.unsqueeze(-1)
        at = replace(at, scales=_maximum(x, shares, squares, size, at))
    return at, level


def _maximum(
    x: Tensor, shares: Tensor, squares: Tensor, size: Tensor, at: StudentComponents
) -> Mixture:
    """The M step from shares (n, K) that sum to 1."""
    mass = shares.sum(0).clamp_min(1e-12)
    weights = mass / mass.sum()
    if at.radial:
        near = shares / (at.nu + squares)
        near = near * (mass / near.sum(0).clamp_min(1e-300))  # as many states, nearer ones more
        return replace(maximum(x, near, size, at.scales.kind), weights=weights)
    near = shares.unsqueeze(-1) / (at.nu + squares)
    near = near / near.sum(0).clamp_min(1e-300)
    means = torch.einsum("nkd,nd->kd", near, x)
    own = (near * (x.unsqueeze(1) - means).square()).sum(0)
    known = (mass * size).unsqueeze(-1) * at.nu / (at.nu + 3)  # what a state says of a scale
    least = LEAST * (weights @ own).clamp_min(1e-300)
    variance = torch.maximum(pooled_variances(own, known, weights), least)
    return Mixture(weights=weights, means=means, covariances=variance)


def _by_coordinate(x: Tensor, share: Tensor, at: StudentComponents) -> Tensor:
    """The mean log-likelihood of each coordinate, given the components: shape (D,)."""
    squares = at.squares(x)
    shares = torch.softmax(at.log_components(x, squares), -1) * share.unsqueeze(-1)
    nu = at.nu
    level = torch.lgamma(0.5 * (nu + 1)) - torch.lgamma(0.5 * nu) - 0.5 * (nu * math.pi).log()
    level = level - 0.5 * (nu + 1) * (squares / nu).log1p() - 0.5 * at.scales.covariances.log()
    return torch.einsum("nk,nkd->d", shares, level)
