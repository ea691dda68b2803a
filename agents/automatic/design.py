"""What is chosen for a target from particles of it: coordinates, start, chain and network."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from vgs_rl.agents.automatic.settings import Tails
from vgs_rl.agents.value_gradient.agent import ValueGradientConfig
from vgs_rl.agents.value_gradient.objectives import GradientMatching
from vgs_rl.chain import ScheduleConfig
from vgs_rl.exploration import (
    AffineMap,
    Composed,
    Coordinates,
    Rotation,
    fit_components,
    fit_tails,
)
from vgs_rl.mdp import MDPConfig
from vgs_rl.networks.config import MixtureNetwork
from vgs_rl.starts import (
    Mixture,
    ProductMixture,
    StartConfig,
    choose_mixture,
    fit_mixture,
    fit_product,
)
from vgs_rl.weights import systematic_resample

PARTICLES = 6_000  # that a design is fitted to
MOST_NUMBERS, FEWEST = 2**20, 1_000  # in them, but so many particles at least
CLEARLY = 0.1  # nats a state, by which a product must be likelier than a mixture


@dataclass(frozen=True, kw_only=True)
class Design:
    """How a target is sampled.

    Attributes:
        coordinates: from the z of the chain to the x of the target.
        mixture: of the target, in z.
        unit: what has unit size in z: the whole target, or a component of the mixture.
        steps: T.
        total_noise: S_0.
        guided: whether ∇E guides the value.
        tails: the kind of heavy tails that the coordinates take away, of the target or of each
            component.
    """

    coordinates: Coordinates
    mixture: Mixture | ProductMixture
    unit: Literal["target", "component"]
    steps: int = 20
    total_noise: float = 0.8
    guided: bool = True
    tails: Tails = "none"

    @property
    def kind(self) -> str:
        """What the start is, in a word or two."""
        if isinstance(self.mixture, ProductMixture):
            return "product"
        count = len(self.mixture.weights)
        return f"{count} Gaussian{'s' if count > 1 else ''}, {self.mixture.kind}"

    def mdp(self) -> MDPConfig:
        """The chain."""
        if isinstance(self.mixture, ProductMixture):
            components = self.mixture.weights.shape[1]
            start = StartConfig(kind="noised_product", components=components, learned=False)
        else:
            covariance: Literal["diagonal", "full"] = (
                "diagonal" if self.mixture.kind == "diagonal" else "full"
            )
            start = StartConfig(
                kind="noised",
                components=len(self.mixture.weights),
                covariance=covariance,
                learned=False,
            )
        schedule = ScheduleConfig(kind="auto", total_noise=self.total_noise)
        return MDPConfig(chain="vp", num_steps=self.steps, schedule=schedule, start=start)

    def check(self, chain: MDPConfig) -> None:
        """Compares the start of another chain with the mixture.

        Raises:
            ValueError: if it cannot take the mixture over, naming the field.
        """
        ours = self.mdp().start
        for name in ("kind", "components", "covariance"):
            chosen, got = getattr(ours, name), getattr(chain.start, name)
            if chosen != got:
                raise ValueError(f"mdp.start.{name} must be {chosen}, as explored, got {got}")

    def agent(self) -> ValueGradientConfig:
        """The agent."""
        dim = self.coordinates.dim_z
        objective = GradientMatching(
            batch_size=512,
            references=1024 if dim <= 32 else 0,
            start_size=4096,
            first_size=2048,
            targets="denoising" if self.tails == "components" else "auto",
        )
        network = MixtureNetwork(guided=self.guided)
        return ValueGradientConfig(objective=objective, network=network, prior_std=1.0)

    def summary(self) -> dict[str, Any]:
        """The choices, as JSON holds them."""
        return {
            "start": self.kind,
            "unit": self.unit,
            "tails": self.tails,
            "steps": self.steps,
            "total_noise": self.total_noise,
            "guided": self.guided,
        }


def choose_design(
    x: Tensor,
    generator: torch.Generator,
    *,
    log_weight: Tensor | None = None,
    modes: Tensor | None = None,
    tails: bool = False,
) -> tuple[Design, Design]:
    """Designs for a target of which particles are known.

    A mixture of Gaussians and a product of mixtures are fitted; the product also along independent
    components (Hyvärinen and Oja, 2000), so that a rotated product is found. Held-out particles
    choose.

    Args:
        x: particles, all different, shape (n, D).
        generator: source of randomness.
        log_weight: of the particles, shape (n,), not too unequal; equal if None.
        modes: known modes, shape (M, D).
        tails: whether heavy tails are taken away, if there are any.

    Returns:
        One in whose coordinates a component of the mixture has unit size, and one in whose
        coordinates the target has. The first has less to correct, the second also connects what
        the mixture keeps apart.
    """
    x, log_weight = _some(x, log_weight, generator)
    heavy = fit_tails(x, log_weight) if tails else None
    if heavy is None or heavy.kind == "none":
        return _light(x, log_weight, generator, modes)
    light = heavy.coordinates
    known = None if modes is None else light.to_z(modes)
    local, whole = _light(light.to_z(x), log_weight, generator, known)
    local, whole = (
        replace(design, coordinates=Composed(light, design.coordinates), tails=heavy.kind)
        for design in (local, whole)
    )
    return local, whole


def design_of_components(
    x: Tensor,
    generator: torch.Generator,
    *,
    log_weight: Tensor | None = None,
    modes: Tensor | None = None,
) -> Design | None:
    """A standard normal that coordinates make a mixture of Student-t; see :func:`choose_design`.

    It is without ∇E, since E jumps where components meet.

    Returns:
        None where no such mixture is clearly likelier than Gaussians.
    """
    x, log_weight = _some(x, log_weight, generator)
    coordinates = fit_components(x, generator, log_weight, modes)
    if coordinates is None:
        return None
    one = torch.ones(1, coordinates.dim_z, dtype=torch.float64, device=x.device)
    mixture = Mixture(weights=one[:, 0], means=torch.zeros_like(one), covariances=one)
    return Design(
        coordinates=coordinates, mixture=mixture, unit="target", guided=False, tails="components"
    )


def _some(
    x: Tensor, log_weight: Tensor | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Particles that a design is fitted to, in float64, and their log-weights."""
    most = min(PARTICLES, max(FEWEST, MOST_NUMBERS // x.shape[1]))
    some = torch.randperm(len(x), generator=generator, device=x.device)[:most]
    log_weight = torch.zeros_like(x[:, 0]) if log_weight is None else log_weight
    return x[some].double(), log_weight[some].double()


def _light(
    x: Tensor, log_weight: Tensor, generator: torch.Generator, modes: Tensor | None
) -> tuple[Design, Design]:
    """:func:`choose_design` for a target without heavy tails."""
    whitened = AffineMap.whitening(x, torch.softmax(log_weight, 0))
    z = whitened.to_z(x)
    known = None if modes is None else whitened.to_z(modes)
    half = len(z) // 2
    mixture = choose_mixture(z[:half], generator, log_weight=log_weight[:half], modes=known)
    held = torch.softmax(log_weight[half:], 0)
    level = float(held @ mixture.log_prob(z[half:])) - whitened.log_det
    found = _product(x, log_weight, generator, whitened, level + CLEARLY)
    if found is not None:
        return _of_product(*found)
    count, kind = len(mixture.weights), mixture.kind
    mixture = fit_mixture(z, count, generator, kind=kind, log_weight=log_weight, begin=mixture)
    whole = Design(coordinates=whitened, mixture=mixture, unit="target")
    if len(mixture.weights) == 1:
        return whole, whole
    pooled = mixture.pooled()
    root = pooled.sqrt() if pooled.ndim == 1 else torch.linalg.cholesky(pooled)
    within = AffineMap(torch.zeros_like(pooled[0] if pooled.ndim == 2 else pooled), root)
    local = Design(
        coordinates=_joined(whitened, within), mixture=_mapped(mixture, within), unit="component"
    )
    return local, whole


def _joined(outer: AffineMap, inner: AffineMap) -> Coordinates:
    """One affine map in place of two, where that is as short."""
    if len(outer.stretch):
        return Composed(outer, inner)
    a, b = (torch.diag(part) if part.ndim == 1 else part for part in (outer.factor, inner.factor))
    if outer.factor.ndim == inner.factor.ndim == 1:
        return AffineMap(outer.to_x(inner.shift.unsqueeze(0))[0], outer.factor * inner.factor)
    return AffineMap(outer.to_x(inner.shift.unsqueeze(0))[0], a @ b)


def _mapped(mixture: Mixture, to: AffineMap) -> Mixture:
    """The mixture in the coordinates z of a map x = T(z)."""
    means, covariances = to.to_z(mixture.means), mixture.covariances
    if mixture.kind == "tied":  # by its own factor, so that it is the identity there
        return replace(mixture, means=means, covariances=torch.ones_like(means))
    if mixture.kind == "diagonal":
        return replace(mixture, means=means, covariances=covariances / to.factor.square())
    inverse = torch.linalg.inv(to.factor)
    return replace(mixture, means=means, covariances=inverse @ covariances @ inverse.T)


def _product(
    x: Tensor,
    log_weight: Tensor,
    generator: torch.Generator,
    whitened: AffineMap,
    level: float,
) -> tuple[Coordinates, ProductMixture] | None:
    """A product along some axes under which held-out particles are likelier than a level."""
    if x.shape[1] < 2:
        return None
    half = len(x) // 2
    weight, held = torch.softmax(log_weight, 0), torch.softmax(log_weight[half:], 0)
    rows = systematic_resample(log_weight[:half], half, generator)
    best: tuple[Coordinates, ProductMixture] | None = None
    mean = weight @ x
    along = AffineMap(mean, (weight @ (x - mean).square()).sqrt().clamp_min(1e-300))
    candidates: list[Coordinates] = [along]
    axes = _independent_axes(whitened.to_z(x[:half][rows]))
    if axes is not None:
        candidates.append(Composed(whitened, Rotation(axes)))
    for coordinates in candidates:
        at = coordinates.to_z(x)
        log_det = float(coordinates.with_log_det(at[:1])[1])
        fitted = fit_product(at[:half], 4, log_weight[:half])
        found = float(held @ fitted.log_prob(at[half:])) - log_det
        if found > level:
            best, level = (coordinates, fit_product(at, 4, log_weight)), found
    return best


def _independent_axes(z: Tensor) -> Tensor | None:
    """Directions in which whitened states (n, D) are as independent as can be, a column each."""
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    dim = z.shape[1]
    if dim > 128 or len(z) < 10 * dim:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        search = FastICA(whiten=False, algorithm="deflation", max_iter=100, random_state=0)
        gap = z - z.mean(0)  # the search takes exact whiteness for granted
        root, info = torch.linalg.cholesky_ex(torch.cov(z.T))
        if int(info):
            return None
        exactly = torch.linalg.solve_triangular(root, gap.T, upper=False).T
        found = search.fit(exactly.cpu().numpy())
    rotation = torch.as_tensor(found.components_, dtype=torch.float64)
    if not bool(rotation.isfinite().all()):
        return None
    u, _, v = torch.linalg.svd(rotation)  # orthonormal to the last digit
    axes: Tensor = (u @ v).T.to(z.device)
    return axes


def _of_product(coordinates: Coordinates, mixture: ProductMixture) -> tuple[Design, Design]:
    whole = Design(coordinates=coordinates, mixture=mixture, unit="target")
    width = mixture.pooled().sqrt()
    inner = AffineMap(torch.zeros_like(width), width)
    scaled = ProductMixture(
        weights=mixture.weights,
        means=mixture.means / width.unsqueeze(-1),
        variances=mixture.variances / width.square().unsqueeze(-1),
    )
    local = Design(coordinates=Composed(coordinates, inner), mixture=scaled, unit="component")
    return local, whole
