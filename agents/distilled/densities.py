"""The density that a student begins with: a mixture, fitted to its teacher's states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from vgs_rl.exploration import Composed, fit_location_scale
from vgs_rl.starts import (
    Mixture,
    NoisedMixtureStart,
    NoisedProductStart,
    ProductMixture,
    Start,
    StartConfig,
    choose_mixture,
    fit_mixture,
    fit_product,
)
from vgs_rl.starts.em import Kind

Fitted: TypeAlias = Mixture | ProductMixture

MOST_STATES = 8_000  # that choose the mixture
REFITS = 6  # iterations of EM on all states
PRODUCTS = (1, 2, 4, 8)  # components of a coordinate
DEFENCE = 0.02  # weight of a wide component of a mixture
DEFENCES = 0.2  # and, at most, of all those of a product, one for each coordinate
WIDER = 1.5  # than the states, in standard deviations


@dataclass(frozen=True)
class Choice:
    """A fitted density, and the configuration of the start that can hold it.

    Attributes:
        mixture: the density of target states, in these coordinates.
        config: the start.
        within: its mean variance within components, over coordinates.
        coordinates: where target states depend less on each other, or None: their own.
    """

    mixture: Fitted
    config: StartConfig
    within: float
    coordinates: Composed | None = None


def choose_density(x: Tensor, generator: torch.Generator, *, chain: bool = False) -> Choice:
    """The joint mixture, or product of mixtures, that held-out states find likeliest.

    Args:
        x: target states, shape (n, D).
        generator: source of randomness.
        chain: whether it is for a chain, which needs diagonal covariances and the states' own
            coordinates. Else a wide component fills what lies between modes, where weights would be
            large (Hesterberg, *Weighted average importance sampling*, 1995).
    """
    coordinates = None if chain else fit_location_scale(x[:MOST_STATES].double(), generator)
    if coordinates is not None:
        x = coordinates.to_z(x)
    few = x[:MOST_STATES].double()
    cut = 3 * len(few) // 4
    fitted, held = few[:cut], few[cut:]
    kinds: tuple[Kind, ...] = ("diagonal",) if chain else ("diagonal", "tied", "full")
    candidates: list[Fitted] = [choose_mixture(fitted, generator, kinds=kinds)]
    candidates += [fit_product(fitted, count) for count in PRODUCTS if count * 4 <= cut]
    levels = [float(each.log_prob(held).mean()) for each in candidates]
    best = _refitted(candidates[levels.index(max(levels))], x.double(), generator)
    pooled = best.pooled()
    variance = pooled if pooled.ndim == 1 else pooled.diagonal()
    within = float(variance.mean())
    if not chain:
        best = _defended(best, x.double())
    return Choice(best, _config_of(best), within, coordinates)


def _defended(mixture: Fitted, x: Tensor) -> Fitted:
    """The mixture with a wide component besides, if it has several of widths of their own."""
    centre, wide = x.mean(0), WIDER**2 * x.var(0)
    if isinstance(mixture, ProductMixture):
        if mixture.weights.shape[1] == 1:
            return mixture
        share = min(DEFENCE, DEFENCES / x.shape[1])
        extra = torch.full_like(centre, share)
        parts = (
            ((1 - share) * mixture.weights, extra),
            (mixture.means, centre),
            (mixture.variances, wide),
        )
        weights, means, variances = (
            torch.cat([each, new.unsqueeze(-1)], -1) for each, new in parts
        )
        return ProductMixture(weights=weights, means=means, variances=variances)
    if len(mixture.weights) == 1 or mixture.kind == "tied":
        return mixture
    covariance = wide if mixture.kind == "diagonal" else WIDER**2 * torch.cov(x.T)
    return Mixture(
        weights=torch.cat([(1 - DEFENCE) * mixture.weights, x.new_tensor([DEFENCE])]),
        means=torch.cat([mixture.means, centre.unsqueeze(0)]),
        covariances=torch.cat([mixture.covariances, covariance.unsqueeze(0)]),
    )


def _refitted(mixture: Fitted, x: Tensor, generator: torch.Generator) -> Fitted:
    """The same mixture after EM on all states: its weights have their number's precision."""
    if isinstance(mixture, ProductMixture):
        return fit_product(x, mixture.weights.shape[1])
    return fit_mixture(
        x, len(mixture.means), generator, kind=mixture.kind, begin=mixture, iterations=REFITS
    )


def _config_of(mixture: Fitted) -> StartConfig:
    kind: Literal["noised", "noised_product"]
    if isinstance(mixture, ProductMixture):
        kind, count = "noised_product", mixture.weights.shape[1]
        return StartConfig(kind=kind, components=count, learned=False)
    covariance: Literal["full", "diagonal"]
    covariance = "diagonal" if mixture.kind == "diagonal" else "full"
    return StartConfig(
        kind="noised", components=len(mixture.weights), covariance=covariance, learned=False
    )


def take_over(start: Start, mixture: Fitted) -> None:
    """Puts a fitted density into the start that was configured for it.

    Raises:
        ValueError: if the start is of another kind.
    """
    if isinstance(start, NoisedProductStart) and isinstance(mixture, ProductMixture):
        start.become(mixture)
        return
    if isinstance(start, NoisedMixtureStart) and isinstance(mixture, Mixture):
        start.become(mixture)
        return
    raise ValueError(f"a {type(start).__name__} cannot take over a {type(mixture).__name__}")
