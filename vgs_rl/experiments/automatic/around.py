"""A reference around what a sampler has learned, for an exploration that checks it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from vgs_rl.energy import Energy
from vgs_rl.experiments.automatic.design import Design
from vgs_rl.experiments.automatic.learning import Trial
from vgs_rl.exploration import Exploration, Island, MappedReference, Reference, explore_again
from vgs_rl.starts import Mixture, ProductMixture


class DesignReference:
    """A design's mixture in its own z, wider by a factor, and a wide reference for what it lacks.

    Args:
        design: coordinates and mixture.
        wide: the wide one, of x.
        share: of the mixture.
        factor: on the standard deviations of its components.
    """

    def __init__(
        self, design: Design, wide: Reference, *, share: float = 0.8, factor: float = 1.15
    ) -> None:
        self.wide, self.share = MappedReference(wide, design.coordinates), share
        self.mixture: Mixture | ProductMixture
        if isinstance(design.mixture, Mixture):
            covariances = factor**2 * design.mixture.covariances
            self.mixture = replace(design.mixture, covariances=covariances)
        else:
            variances = factor**2 * design.mixture.variances
            self.mixture = replace(design.mixture, variances=variances)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """See :class:`~vgs_rl.exploration.reference.Reference`; both parts in fixed numbers."""
        some = round(self.share * n)
        known = self.mixture.sample(some, generator)
        both = torch.cat([known, self.wide.sample(n - some, generator)])
        return both[torch.randperm(n, generator=generator, device=both.device)]

    def level(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`~vgs_rl.exploration.reference.Reference`."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            known = math.log(self.share) + self.mixture.log_prob(leaf)
            (slope,) = torch.autograd.grad(known.sum(), leaf)
        known = known.detach()
        level, wide_slope = self.wide.level(x)
        wide = math.log1p(-self.share) - level
        total = torch.logaddexp(known, wide)
        part = (known - total).exp().unsqueeze(-1)
        return -total, -part * slope + (1 - part) * wide_slope

    def labels(self, x: Tensor) -> Tensor:
        """See :class:`~vgs_rl.exploration.reference.Reference`; a product is one mode."""
        if isinstance(self.mixture, ProductMixture):
            return torch.zeros(len(x), dtype=torch.long, device=x.device)
        return self.mixture.log_components(x).argmax(-1)


def explore_around(
    trial: Trial,
    energy: Energy,
    before: Exploration,
    generator: torch.Generator,
    *,
    seconds: float,
    dtype: torch.dtype,
    tell: Callable[[str], None],
) -> Exploration:
    """Two new islands around a trial's mixture, in its coordinates; the result is in x.

    Args:
        trial: whose design is known.
        energy: the target of x.
        before: the exploration that it came from.
        generator: source of randomness.
        seconds: about how long it may take.
        dtype: in which the energy is evaluated.
        tell: told in words what happens.
    """
    found = explore_again(
        trial.energy,
        generator,
        before,
        DesignReference(trial.design, before.reference),
        seconds=seconds,
        dtype=torch.float64,
        tell=tell,
    )

    def of_x(island: Island) -> Island:
        x = trial.design.coordinates.to_x(island.x)
        gradient = energy.with_gradient(x.to(dtype))[1].double()
        return replace(island, x=x, gradient=gradient)

    return replace(found, islands=tuple(of_x(island) for island in found.islands))
