"""EM for Gaussian mixtures of weighted states, with covariances that few states cannot spoil."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vgs_rl.weights import systematic_resample

Kind = Literal["diagonal", "tied", "full"]
MOST_FULL = 4096  # K D² of a mixture with a full covariance each, at most
MOST_TIED = 256  # D of one with a covariance in common, at most


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Σ_k w_k N(m_k, C_k), in float64.

    Attributes:
        weights: w_k, shape (K,).
        means: m_k, shape (K, D).
        covariances: C_k, shape (K, D, D); (1, D, D) where all are one; or their diagonals, shape
            (K, D).
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    @property
    def kind(self) -> Kind:
        """What its covariances are."""
        if self.covariances.ndim == 2:
            return "diagonal"
        return "tied" if len(self.covariances) < len(self.means) else "full"

    def pooled(self) -> Tensor:
        """The mean covariance within components: (D, D), or its diagonal (D,)."""
        if self.kind == "tied":
            return self.covariances[0]
        pooled: Tensor = torch.tensordot(self.weights, self.covariances, dims=1)
        return pooled

    def squares(self, x: Tensor) -> Tensor:
        """Squared distances of x (B, D) from the means, in standard deviations: shape (B, K)."""
        x = x.double()
        if self.kind == "diagonal":
            # Around the centre, as products of matrices: float64 has the digits that cancel.
            centre = self.weights @ self.means
            x, means, precision = x - centre, self.means - centre, self.covariances.reciprocal()
            pulls = means * precision
            return x.square() @ precision.T - 2 * x @ pulls.T + (means * pulls).sum(-1)
        factor = torch.linalg.cholesky(self.covariances)
        if self.kind == "tied":
            solved, centres = (
                torch.linalg.solve_triangular(factor[0], part.T, upper=False).T
                for part in (x, self.means)
            )
            return torch.cdist(
                solved, centres, compute_mode="donot_use_mm_for_euclid_dist"
            ).square()
        gap = (x.unsqueeze(0) - self.means.unsqueeze(1)).mT  # (K, D, B)
        squares: Tensor = torch.linalg.solve_triangular(factor, gap, upper=False).square()
        return squares.sum(1).T

    def log_det(self) -> Tensor:
        """Log |C_k|, shape (K,) or (1,)."""
        if self.kind == "diagonal":
            return self.covariances.log().sum(-1)
        factor = torch.linalg.cholesky(self.covariances)
        log_det: Tensor = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(-1)
        return log_det

    def log_components(self, x: Tensor) -> Tensor:
        """Log w_k N(x; m_k, C_k) at states x (B, D): shape (B, K)."""
        constant = self.log_det() + self.means.shape[1] * math.log(2 * math.pi)
        return self.weights.clamp_min(1e-300).log() - 0.5 * (self.squares(x) + constant)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density at x (B, D): shape (B,)."""
        return torch.logsumexp(self.log_components(x), dim=-1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Independent samples, shape (n, D)."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        shape = (n, self.means.shape[1])
        z = torch.randn(shape, generator=generator, dtype=self.means.dtype, device=k.device)
        if self.kind == "diagonal":
            return self.means[k] + self.covariances[k].sqrt() * z
        factors: Tensor = torch.linalg.cholesky(self.covariances)
        if self.kind == "tied":
            return self.means[k] + z @ factors[0].T
        x = self.means[k]
        for component, factor in enumerate(factors):  # a gather would hold D² numbers a row
            rows = k == component
            x[rows] += z[rows] @ factor.T
        return x


def fit_mixture(
    x: Tensor,
    components: int,
    generator: torch.Generator,
    *,
    kind: Kind = "full",
    log_weight: Tensor | None = None,
    iterations: int = 30,
    begin: Tensor | Mixture | None = None,
) -> Mixture:
    """Maximum likelihood by EM.

    A component's covariance is shrunk towards its diagonal, and that towards the mean variance
    within components, the more the fewer states it has and the more alike the variances are. So a
    handful of states gives no singular one, in any dimension.

    Args:
        x: states, shape (n, D).
        components: K, at most n.
        generator: source of randomness: where the means begin.
        kind: of covariances: a diagonal each, one full one for all, or a full one each.
        log_weight: of the states, shape (n,); equal if None.
        iterations: of EM, at most.
        begin: where means begin, shape (K, D), or a mixture of K; by k-means if None.
    """
    x = x.double()
    n, dim = x.shape
    share = torch.full((n,), 1 / n, dtype=x.dtype, device=x.device)
    if log_weight is not None:
        share = torch.softmax(log_weight.double(), 0)
    size = 1 / share.square().sum()  # effective number of states
    if isinstance(begin, Mixture):
        mixture = begin
    else:
        means = _means(x, share, components, generator) if begin is None else begin.to(x)
        near = torch.cdist(x, means).argmin(1)
        shares = torch.nn.functional.one_hot(near, len(means)).to(x.dtype)
        mixture = maximum(x, shares * share.unsqueeze(-1), size, "diagonal")
    before = -math.inf
    for step in range(iterations):
        parts = mixture.log_components(x)
        total = torch.logsumexp(parts, dim=-1)
        level = float(share @ total)
        if level - before < 1e-4 * max(1.0, 0.01 * dim) and step > 2:
            break
        before = level
        shares = (parts - total.unsqueeze(-1)).exp() * share.unsqueeze(-1)
        mixture = maximum(x, shares, size, kind)
    return mixture


def maximum(x: Tensor, shares: Tensor, size: Tensor, kind: Kind) -> Mixture:
    """The M step of EM, with shrunk covariances: see :func:`fit_mixture`.

    Args:
        x: states, shape (n, D).
        shares: of components in states, shape (n, K), whose sum is 1.
        size: effective number of states.
        kind: of covariances.
    """
    dim = x.shape[1]
    mass = shares.sum(0).clamp_min(1e-12)
    weights = mass / mass.sum()
    means = (shares.T @ x) / mass.unsqueeze(-1)
    if kind == "tied":
        return Mixture(weights=weights, means=means, covariances=_tied(x, shares, means, size))
    second = (shares.T @ x.square()) / mass.unsqueeze(-1)
    least = 1e-8 * x.var(0).clamp_min(1e-300)
    own = (second - means.square()).clamp_min(0.0)
    count = (mass * size).unsqueeze(-1)  # effective states of each component
    variance = torch.maximum(pooled_variances(own, count, weights), least)
    if kind == "diagonal":
        return Mixture(weights=weights, means=means, covariances=variance)
    covariances = []
    for k in range(len(mass)):
        gap = (x - means[k]) * (shares[:, k] / mass[k]).sqrt().unsqueeze(-1)
        kept = count[k] / (count[k] + dim)
        scale = (variance[k] / own[k].clamp_min(1e-300)).sqrt().clamp_max(1e6)
        covariance = gap.T @ gap * kept * scale.unsqueeze(-1) * scale
        covariance.diagonal().copy_(variance[k] * (1 + 1e-9))
        covariances.append(covariance)
    return Mixture(weights=weights, means=means, covariances=torch.stack(covariances))


def pooled_variances(own: Tensor, count: Tensor, weights: Tensor) -> Tensor:
    """Variances (K, D) of components drawn to their mean, as far as they are alike.

    Args:
        own: of each component, shape (K, D).
        count: effective states of each component, shape (K, 1) or (K, D).
        weights: of the components, shape (K,).
    """
    pooled = weights @ own
    prior = _alike(own / pooled.clamp_min(1e-300), count, weights)
    return (count * own + prior * pooled) / (count + prior)


def _alike(ratio: Tensor, count: Tensor, weights: Tensor) -> Tensor:
    """How many states the mean variance counts for, between 2 and 1,000.

    Variances of `count` states differ by 2/count of their square though their truths are equal.
    What they differ by beyond that is how much these do (Smyth, Stat. Appl. Genet. Mol. Biol. 3,
    2004).

    Args:
        ratio: variances of components over their mean, shape (K, D).
        count: effective states of each component, shape (K, 1) or (K, D).
        weights: of the components, shape (K,).
    """
    beyond = (weights @ ((ratio - 1).square() - 2 / count.clamp_min(2.0))).mean()
    return 2 / beyond.nan_to_num(1.0).clamp(2e-3, 1.0)


def _tied(x: Tensor, shares: Tensor, means: Tensor, size: Tensor) -> Tensor:
    """One covariance for all, (1, D, D): that of all states less that of the means."""
    dim, mass = x.shape[1], shares.sum(0)
    centre = mass @ means / mass.sum()
    rows, between = x - centre, means - centre
    whole = (rows * shares.sum(1, keepdim=True)).T @ rows
    within = (whole - (between * mass.unsqueeze(-1)).T @ between) / mass.sum()
    least = 1e-8 * x.var(0).clamp_min(1e-300)
    diagonal = torch.maximum(within.diagonal().clone(), least)
    covariance = within * (size / (size + dim))
    covariance.diagonal().copy_(diagonal * (1 + 1e-9))
    _factor, info = torch.linalg.cholesky_ex(covariance)
    return (torch.diag(diagonal) if int(info) else covariance).unsqueeze(0)


def _means(x: Tensor, share: Tensor, components: int, generator: torch.Generator) -> Tensor:
    """Where means begin: k-means of some of the states."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    if components == 1:
        return (share @ x).unsqueeze(0)
    seed = int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device))
    some = x[systematic_resample(share.log(), min(len(x), 2000), generator)]
    scale = some.std(0).clamp_min(1e-300)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different states than means
        means = KMeans(components, n_init=1, random_state=seed).fit((some / scale).cpu().numpy())
    return torch.as_tensor(means.cluster_centers_, dtype=x.dtype, device=x.device) * scale


def choose_mixture(
    x: Tensor,
    generator: torch.Generator,
    *,
    log_weight: Tensor | None = None,
    most: int = 64,
    modes: Tensor | None = None,
    kinds: tuple[Kind, ...] = ("diagonal", "tied", "full"),
) -> Mixture:
    """The mixture whose number and kind of covariances held-out states find likeliest.

    Args:
        x: states, shape (n, D).
        generator: source of randomness.
        log_weight: of the states, shape (n,); equal if None.
        most: components, at most.
        modes: where means may begin as well, shape (M, D).
        kinds: of covariances, to choose from; `full` is left out where it would take long, and
            `tied` above 256 dimensions, where states are seldom more than its numbers.
    """
    x, dim = x.double(), x.shape[1]
    weights = torch.zeros_like(x[:, 0]) if log_weight is None else log_weight.double()
    order = torch.randperm(len(x), generator=generator, device=x.device)
    fitted, held = order[: 2 * len(x) // 3], order[2 * len(x) // 3 :]
    share = torch.softmax(weights[held], 0)
    begins: list[tuple[int, Tensor | None]] = [
        (k, None) for k in (1, 2, 4, 8, 16, 32, 64) if k <= most and 4 * k <= len(fitted)
    ]
    if modes is not None and 1 < len(modes) <= most:
        begins.insert(1, (len(modes), modes))
    best: tuple[float, Mixture] | None = None
    idle = 0
    for count, begin in begins:
        improved, start = False, begin
        for kind in kinds:
            long = count * dim**2 > MOST_FULL
            if kind == "full" and (long or count == 1 or dim == 1):
                continue
            if kind == "tied" and dim > MOST_TIED:
                continue
            mixture = fit_mixture(
                x[fitted],
                count,
                generator,
                kind=kind,
                log_weight=weights[fitted],
                begin=start,
            )
            if start is None:
                start = mixture.means
            level = float(share @ mixture.log_prob(x[held]))
            if best is None or level > best[0] + 0.01:
                best, improved = (level, mixture), True
        idle = 0 if improved else idle + 1
        if idle >= 2:
            break
    assert best is not None
    found = best[1]
    return fit_mixture(
        x, len(found.means), generator, kind=found.kind, log_weight=weights, begin=found
    )
