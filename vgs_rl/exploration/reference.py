"""Where an exploration starts: a wide density that can be sampled and evaluated."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from vgs_rl.exploration.coordinates.affine import AffineMap, different
from vgs_rl.exploration.coordinates.base import Coordinates
from vgs_rl.exploration.coordinates.components import Components
from vgs_rl.exploration.tail_fit import fit_components
from vgs_rl.samplers.mcmc.kernels import FiniteEnergy
from vgs_rl.starts.em import Mixture, choose_mixture
from vgs_rl.weights import temper

GRID = 10.0 ** torch.linspace(-5, 5, 41, dtype=torch.float64)
DRAWS = 128  # at each width of the grid
DESCENTS = 200  # steps downhill


class Reference(Protocol):
    """A density on R^D."""

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Independent samples, shape (n, D), float64."""

    def level(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Minus the log density (B,) and its gradient (B, D), at states x (B, D)."""

    def labels(self, x: Tensor) -> Tensor:
        """To which of its modes each state x (B, D) belongs, whole numbers from 0, shape (B,)."""


class GaussianReference:
    """N(mean, diag(std²)).

    Args:
        mean: shape (D,).
        std: shape (D,).
    """

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self.mean, self.std = mean.double(), std.double()

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """See :class:`Reference`."""
        shape, device = (n, len(self.mean)), self.mean.device
        z = torch.randn(shape, generator=generator, dtype=torch.float64, device=device)
        return self.mean + self.std * z

    def level(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Reference`."""
        u = (x - self.mean) / self.std
        constant = self.std.log().sum() + 0.5 * len(self.std) * math.log(2 * math.pi)
        return 0.5 * u.square().sum(-1) + constant, u / self.std

    def labels(self, x: Tensor) -> Tensor:
        """See :class:`Reference`; there is one mode."""
        return torch.zeros(len(x), dtype=torch.long, device=x.device)


class PriorReference:
    """A user's prior as a reference.

    Args:
        prior: a torch distribution, or anything with `sample((n,))` and `log_prob(x)`.
        dim: D.

    Raises:
        ValueError: if its samples have not D coordinates.
    """

    def __init__(self, prior: Any, dim: int) -> None:
        self.prior, self.dim = prior, dim
        self._flat(prior.sample((2,)), 2)

    def _flat(self, x: Tensor, n: int) -> Tensor:
        if x.numel() != n * self.dim:
            raise ValueError(f"prior must have {self.dim} coordinates, got {tuple(x.shape[1:])}")
        return x.reshape(n, self.dim).double()

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """See :class:`Reference`; its own random numbers are torch's global ones, seeded here."""
        seed = int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._flat(self.prior.sample((n,)), n)

    def level(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Reference`."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            log_prob = self.prior.log_prob(leaf)
            log_prob = log_prob.reshape(len(x), -1).sum(-1)
            (slope,) = torch.autograd.grad(log_prob.sum(), leaf)
        return -log_prob.detach(), -slope

    def labels(self, x: Tensor) -> Tensor:
        """See :class:`Reference`; there is one mode."""
        return torch.zeros(len(x), dtype=torch.long, device=x.device)


class JoinedReference:
    """A reference around what is known, and a wide one for what is not.

    Args:
        known: the first.
        wide: the second.
        share: of the first.
    """

    def __init__(self, known: Reference, wide: Reference, share: float) -> None:
        self.known, self.wide, self.share = known, wide, share

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """See :class:`Reference`; both parts in fixed numbers."""
        some = round(self.share * n)
        parts = [self.known.sample(some, generator), self.wide.sample(n - some, generator)]
        order = torch.randperm(n, generator=generator, device=parts[0].device)
        return torch.cat(parts)[order]

    def level(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Reference`."""
        (known, slope), (wide, wide_slope) = self.known.level(x), self.wide.level(x)
        log_known, log_wide = math.log(self.share) - known, math.log1p(-self.share) - wide
        total = torch.logaddexp(log_known, log_wide)
        part = (log_known - total).exp().unsqueeze(-1)
        return -total, part * slope + (1 - part) * wide_slope

    def labels(self, x: Tensor) -> Tensor:
        """See :class:`Reference`: those of what is known."""
        return self.known.labels(x)


class MixtureReference:
    """Gaussians around what is known.

    Along the axes of the mean covariance every component is taken as diagonal: as cheap to evaluate
    as if it were, and close where the components are alike.

    Args:
        mixture: of x.
        factor: on its standard deviations.
    """

    def __init__(self, mixture: Mixture, factor: float) -> None:
        pooled = mixture.pooled()
        root = pooled.sqrt() if pooled.ndim == 1 else torch.linalg.cholesky(pooled)
        self.coordinates = AffineMap(mixture.weights @ mixture.means, root)
        self.log_weights = mixture.weights.clamp_min(1e-300).log()
        self.means, self.known = self.coordinates.to_z(mixture.means), len(mixture.means)
        if root.ndim == 1:
            variances = mixture.covariances / pooled
        else:
            inverse = torch.linalg.inv(root)
            variances = (inverse @ mixture.covariances @ inverse.T).diagonal(dim1=1, dim2=2)
        self.variances = (variances * factor**2).expand_as(self.means)

    def __str__(self) -> str:
        return f"{self.known} Gaussians known"

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """See :class:`Reference`."""
        k = torch.multinomial(self.log_weights.exp(), n, True, generator=generator)
        shape, device = (n, self.means.shape[1]), self.means.device
        z = torch.randn(shape, generator=generator, dtype=torch.float64, device=device)
        return self.coordinates.to_x(self.means[k] + self.variances[k].sqrt() * z)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log w_k N_k (B, K), and deviations in units of the variance (B, K, D)."""
        gap = self.coordinates.to_z(x).unsqueeze(1) - self.means
        scaled = gap / self.variances
        constant = (2 * math.pi * self.variances).log().sum(-1) + 2 * self.coordinates.log_det
        return self.log_weights - 0.5 * ((gap * scaled).sum(-1) + constant), scaled

    def level(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Reference`."""
        parts, scaled = self._parts(x)
        slope = (torch.softmax(parts, -1).unsqueeze(1) @ scaled).squeeze(1)
        return -torch.logsumexp(parts, -1), self.coordinates.gradient_of_x(slope)

    def labels(self, x: Tensor) -> Tensor:
        """See :class:`Reference`."""
        return self._parts(x)[0].argmax(-1)


class StudentReference:
    """Student-t components around what is known, where its tails are heavy.

    Args:
        components: of x.
    """

    def __init__(self, components: Components) -> None:
        self.components, self.known = components, len(components.students.scales.weights)

    def __str__(self) -> str:
        return f"{self.known} Student-t known"

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """See :class:`Reference`."""
        shape, device = (n, self.components.dim_z), self.components.device
        z = torch.randn(shape, generator=generator, dtype=torch.float64, device=device)
        return self.components.to_x(z)

    def level(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Reference`."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            level = -self.components.students.log_prob(leaf)
            (slope,) = torch.autograd.grad(level.sum(), leaf)
        return level.detach(), slope

    def labels(self, x: Tensor) -> Tensor:
        """See :class:`Reference`."""
        return self.components.students.log_components(x).argmax(-1)


class MappedReference:
    """A density of x as one of z, x = T(z).

    Args:
        reference: a :class:`~vgs_rl.exploration.reference.Reference` of x, or a prior as
            :class:`~vgs_rl.exploration.reference.PriorReference` takes it.
        coordinates: the map from z to x.

    Raises:
        ValueError: if a prior has not D_x coordinates.
    """

    def __init__(self, reference: Reference | Any, coordinates: Coordinates) -> None:
        known = hasattr(reference, "level")
        self.reference: Reference = (
            reference if known else PriorReference(reference, coordinates.dim_x)
        )
        self.coordinates = coordinates

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """See :class:`~vgs_rl.exploration.reference.Reference`."""
        return self.coordinates.to_z(self.reference.sample(n, generator), generator)

    def labels(self, x: Tensor) -> Tensor:
        """See :class:`~vgs_rl.exploration.reference.Reference`."""
        return self.reference.labels(self.coordinates.to_x(x))

    def level(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`~vgs_rl.exploration.reference.Reference`; x are states z, (B, D_z)."""
        mapped = self.coordinates.with_pull_back(x)
        level, slope = self.reference.level(mapped.x)
        return level - mapped.log_det, mapped.pull_back(slope)


def find_reference(
    energy: FiniteEnergy, dim: int, generator: torch.Generator, *, effort: float = 1.0
) -> GaussianReference:
    """A Gaussian that is wide enough to begin with, and not absurdly wider.

    Draws of N(0, r² I) at widths r of a grid walk downhill. Where they end is the centre. The
    width is the largest of the grid at which the median energy around the centre is within 5 D + 20
    of the least, and at least that of the ends.

    Args:
        energy: E/tau.
        dim: D.
        generator: source of randomness.
        effort: below 1, fewer draws and shorter walks.

    Raises:
        ValueError: if the energy is finite nowhere among these draws.
    """
    device = generator.device

    def normal(n: int) -> Tensor:
        shape = (n, dim)
        return torch.randn(shape, generator=generator, dtype=torch.float64, device=device)

    widths = GRID.to(device)
    few = max(2, round(8 * effort**0.5))
    spread = widths.repeat_interleave(few).unsqueeze(-1) * normal(few * len(widths))
    ends, heights = descend(energy, spread, steps=max(20, round(DESCENTS * effort**0.5)))
    finite = heights.isfinite()
    if not bool(finite.any()):
        reach = float(spread.abs().max())
        raise ValueError(
            f"{type(energy.energy).__name__} is finite at none of {len(spread)} states with "
            f"coordinates up to {reach:.3g}: give prior= to vgs_rl.sample, or mdp and prior_std to "
            "an agent"
        )
    low = ends[heights <= heights[finite].min() + 5.0 * dim + 20.0]
    centre = low.median(0).values
    draws = max(16, round(DRAWS * effort))
    at = centre + widths.repeat_interleave(draws).unsqueeze(-1) * normal(draws * len(widths))
    found, _ = energy(at)
    medians = found.view(len(widths), draws).median(1).values
    close = medians <= medians.min() + 5.0 * dim + 20.0
    width = float(widths[close].max()) if bool(close.any()) else float(widths[0])
    std = (low - centre).square().mean(0).sqrt().mul(2.0).clamp_min(width)
    return GaussianReference(centre, std)


def descend(
    energy: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor, *, steps: int = DESCENTS
) -> tuple[Tensor, Tensor]:
    """Gradient descent of each row with a step of its own that grows while it succeeds.

    Returns:
        Where the rows end (B, D), and their energies (B,), +inf where none was ever finite.
    """
    value, slope = energy(x)
    size = x.abs().mean(-1, keepdim=True).clamp_min(1e-12)
    step = 0.1 * size / slope.norm(dim=-1, keepdim=True).clamp_min(1e-300)
    for _ in range(steps):
        proposal = x - step * slope
        new_value, new_slope = energy(proposal)
        better = new_value < value
        column = better.unsqueeze(-1)
        x, value = torch.where(column, proposal, x), torch.where(better, new_value, value)
        slope = torch.where(column, new_slope, slope)
        step = torch.where(column, 1.6 * step, 0.4 * step)
    return x, value


def fitted_reference(
    x: Tensor, log_weight: Tensor, generator: torch.Generator, modes: Tensor | None = None
) -> MixtureReference | StudentReference:
    """A density around weighted states, by a mixture that is fitted to them.

    Where Student-t components are clearly likelier than Gaussians, it is one of these.

    Args:
        x: states, shape (n, D), float64.
        log_weight: of the states, shape (n,).
        generator: source of randomness.
        modes: where components may be, shape (M, D).
    """
    dim = x.shape[1]
    rows, weight = different(x, torch.softmax(log_weight.double(), 0))
    if len(rows) < len(x):  # states that stand twice would speak for components of their own
        x, log_weight = rows, weight.log()
    some = torch.randperm(len(x), generator=generator, device=x.device)[:4096]
    x, log_weight = x[some], temper(log_weight[some], 1 / 3).log()
    mixture = choose_mixture(
        x,
        generator,
        log_weight=log_weight,
        most=32 if modes is None else max(32, len(modes)),
        modes=modes,
        kinds=("diagonal", "tied"),
    )
    heavy = fit_components(x, generator, log_weight, modes, light=mixture)
    if heavy is not None:
        return StudentReference(heavy)
    return MixtureReference(mixture, 1 + 1.5 / dim**0.5)  # wider where that costs little
