"""The density that a student begins with: a mixture, fitted to its teacher's states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

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


@dataclass(frozen=True)
class Choice:
    """A fitted density, and the configuration of the start that can hold it.

    Attributes:
        mixture: the density of target states.
        config: the start.
        within: its mean variance within components, over coordinates.
    """

    mixture: Fitted
    config: StartConfig
    within: float


def choose_density(x: Tensor, generator: torch.Generator, *, diagonal: bool = False) -> Choice:
    """The joint mixture, or product of mixtures, that held-out states find likeliest.

    Args:
        x: target states, shape (n, D).
        generator: source of randomness.
        diagonal: whether covariances have to be diagonal.
    """
    few = x[:MOST_STATES].double()
    cut = 3 * len(few) // 4
    fitted, held = few[:cut], few[cut:]
    kinds: tuple[Kind, ...] = ("diagonal",) if diagonal else ("diagonal", "tied", "full")
    candidates: list[Fitted] = [choose_mixture(fitted, generator, kinds=kinds)]
    candidates += [fit_product(fitted, count) for count in PRODUCTS if count * 4 <= cut]
    levels = [float(each.log_prob(held).mean()) for each in candidates]
    best = _refitted(candidates[levels.index(max(levels))], x.double(), generator)
    pooled = best.pooled()
    variance = pooled if pooled.ndim == 1 else pooled.diagonal()
    return Choice(best, _config_of(best), float(variance.mean()))


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
