"""A reference around what a sampler has learned, for an exploration that checks it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from vgs_rl.agents.automatic.trials import Trial
from vgs_rl.energy import Energy
from vgs_rl.exploration import (
    Clock,
    Exploration,
    Island,
    JoinedReference,
    MappedReference,
    explore_again,
)
from vgs_rl.starts import Mixture, ProductMixture


class DesignReference:
    """A design's mixture, in its own z, wider by a factor.

    Args:
        mixture: of z.
        factor: on the standard deviations of its components.
    """

    def __init__(self, mixture: Mixture | ProductMixture, factor: float = 1.15) -> None:
        self.mixture: Mixture | ProductMixture
        if isinstance(mixture, Mixture):
            self.mixture = replace(mixture, covariances=factor**2 * mixture.covariances)
        else:
            self.mixture = replace(mixture, variances=factor**2 * mixture.variances)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """See :class:`~vgs_rl.exploration.reference.Reference`."""
        return self.mixture.sample(n, generator)

    def level(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`~vgs_rl.exploration.reference.Reference`."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            level = -self.mixture.log_prob(leaf)
            (slope,) = torch.autograd.grad(level.sum(), leaf)
        return level.detach(), slope

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
    clock: Clock,
    seconds: float,
    dtype: torch.dtype,
    tell: Callable[[str], None],
) -> Exploration:
    """Two new islands around a trial's mixture, in its coordinates; the result is in x.

    Where the time ends before they reach the target, an earlier exploration that reached it stays.

    Args:
        trial: whose design is known.
        energy: the target of x.
        before: the exploration that it came from.
        generator: source of randomness.
        clock: keeps what the time decided, or repeats it.
        seconds: about how long it may take.
        dtype: in which the energy is evaluated.
        tell: told in words what happens.
    """
    wide = MappedReference(before.reference, trial.design.coordinates)
    found = explore_again(
        trial.energy,
        generator,
        before,
        JoinedReference(DesignReference(trial.design.mixture), wide, 0.8),
        seconds=seconds,
        clock=clock,
        dtype=torch.float64,
        tell=tell,
    )

    if before.complete and not found.complete:
        return replace(before, evaluations=found.evaluations)

    def of_x(island: Island) -> Island:
        x = trial.design.coordinates.to_x(island.x)
        gradient = energy.with_gradient(x.to(dtype))[1].double()
        return replace(island, x=x, gradient=gradient)

    return replace(found, islands=tuple(of_x(island) for island in found.islands))
