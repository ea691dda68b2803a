"""Which network a value-gradient agent learns, as configuration."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from vgs_rl.checks import require_at_least, require_positive
from vgs_rl.conditional.energy import JointEnergy, TemperedEnergy
from vgs_rl.mdp import SamplingMDP
from vgs_rl.networks.base import TimeConditionedMLP
from vgs_rl.networks.clusters import ClusterValue
from vgs_rl.networks.guide import GuidedValue, ModeGuide
from vgs_rl.networks.mixture import MixtureValue
from vgs_rl.networks.paper import PublishedFeatures, PublishedForm, PublishedMLP

LearnedValue = TimeConditionedMLP | ClusterValue | GuidedValue | PublishedMLP


@dataclass(kw_only=True)
class NetworkConfig(ABC):
    """Base of the networks."""

    @abstractmethod
    def build(
        self, mdp: SamplingMDP, *, prior_std: float, generator: torch.Generator
    ) -> LearnedValue:
        """The untrained network."""

    def untrained_std(self, prior_std: float) -> float:
        """Standard deviation of the Gaussian whose value the untrained network is."""
        return prior_std


@dataclass(kw_only=True)
class MLPNetwork(NetworkConfig):
    """An MLP that starts as the exact value of a Gaussian, with analytic gradients.

    Args:
        width: units per hidden layer.
        depth: hidden layers.
        input_scale: sharpness of the first layer's initial features.
        tail_std: standard deviation of that Gaussian; `agent.prior_std` by default. Wider for
            heavy tails, where the network sees too little to undo a narrow one.
        radii: log-radius inputs, for densities whose width spans orders of magnitude.
        splines: coefficients per step and coordinate of the value's additive part, for densities
            that depend on single coordinates sharply; 0 or at least 4.
    """

    width: int = 128
    depth: int = 3
    input_scale: float = 2.6
    tail_std: float | None = None
    radii: int = 0
    splines: int = 0

    def __post_init__(self) -> None:
        require_positive("network", input_scale=self.input_scale)
        if self.tail_std is not None:
            require_positive("network", tail_std=self.tail_std)
        require_at_least("network", 1, width=self.width, depth=self.depth)
        require_at_least("network", 0, radii=self.radii)
        if self.splines and self.splines < 4:
            raise ValueError(f"network.splines must be 0 or at least 4, got {self.splines}")

    def untrained_std(self, prior_std: float) -> float:
        """See :meth:`NetworkConfig.untrained_std`."""
        return self.tail_std or prior_std

    def build(
        self, mdp: SamplingMDP, *, prior_std: float, generator: torch.Generator
    ) -> TimeConditionedMLP:
        """See :meth:`NetworkConfig.build`."""
        return TimeConditionedMLP(
            mdp.chain,
            mdp.geometry.moving,
            prior_std=prior_std,
            tail_std=self.tail_std,
            width=self.width,
            depth=self.depth,
            input_scale=self.input_scale,
            radii=self.radii,
            splines=self.splines,
            temperature=mdp.temperature,
            conditions=mdp.conditions,
            generator=generator,
        )


@dataclass(kw_only=True)
class MixtureNetwork(NetworkConfig):
    """An MLP beside the exact value of the start's mixture; `mdp.start.kind` must be `noised`.

    Args:
        width: units per hidden layer.
        depth: hidden layers.
        input_scale: sharpness of the first layer's initial features.
        guided: whether the target's own gradient, where the mixture expects the sample, joins the
            value's (:class:`~vgs_rl.networks.mixture.MixtureValue`): one more evaluation of ∇E per
            state and step.
    """

    width: int = 128
    depth: int = 3
    input_scale: float = 2.6
    guided: bool = True

    def __post_init__(self) -> None:
        require_positive("network", input_scale=self.input_scale)
        require_at_least("network", 1, width=self.width, depth=self.depth)

    def build(
        self, mdp: SamplingMDP, *, prior_std: float, generator: torch.Generator
    ) -> MixtureValue:
        """See :meth:`NetworkConfig.build`; the mixture stands in for `prior_std`."""
        return MixtureValue(
            mdp,
            guided=self.guided,
            width=self.width,
            depth=self.depth,
            input_scale=self.input_scale,
            generator=generator,
        )


@dataclass(kw_only=True)
class PublishedNetwork(NetworkConfig):
    """The paper's ReLU network; for TD objectives only.

    Args:
        width: units per hidden layer.
        over_dim: whether it learns V/D.
        features: `state`, or on particles sorted `distances` or `reciprocals`.
        form: how state and time meet: `embedded` for mixtures and DW-4, `joined` for the funnel,
            `multiplied` for LJ-13 and MVTec-AD (:class:`~vgs_rl.networks.paper.PublishedMLP`).
        sinusoids: length of the time's embedding; `width` by default.
    """

    width: int = 1024
    over_dim: bool = False
    features: PublishedFeatures = "state"
    form: PublishedForm = "embedded"
    sinusoids: int | None = None

    def __post_init__(self) -> None:
        require_at_least("network", 1, width=self.width)
        if self.sinusoids is not None and (self.sinusoids < 4 or self.sinusoids % 2):
            raise ValueError(f"network.sinusoids must be even and at least 4, got {self.sinusoids}")

    def build(
        self, mdp: SamplingMDP, *, prior_std: float, generator: torch.Generator
    ) -> PublishedMLP:
        """See :meth:`NetworkConfig.build`; `prior_std` has no meaning here."""
        scale = float(mdp.effective_dim) if self.over_dim else 1.0
        return PublishedMLP(
            mdp.chain,
            mdp.dim,
            width=self.width,
            scale=scale,
            particles=mdp.energy.symmetry,
            features=self.features,
            form=self.form,
            sinusoids=self.sinusoids,
            generator=generator,
        )


@dataclass(kw_only=True)
class ClusterNetwork(NetworkConfig):
    """The invariant network of particle systems, :class:`~vgs_rl.networks.clusters.ClusterValue`.

    Args:
        near: smallest distance that the radial functions resolve.
        reach: largest one.
        radial: number of radial functions.
        scalars: density channels.
        vectors: vector channels.
        width: units of the MLP's two layers.
        pooled: units of the two layers that see all particles at once; 0 leaves them out.
        knots: spline knots in log S of every coefficient that depends on t.
        relax: above 0, descriptors of relaxed positions join: by so many times the noise's
            variance along the noised pair forces.
        stages: how often they relax, each time with its own descriptors.
        guide: above 0, :class:`~vgs_rl.networks.guide.ModeGuide` joins the gradient, with so many
            steps of descent; for gradient matching only.
    """

    near: float = 0.0
    reach: float = 4.0
    radial: int = 16
    scalars: int = 16
    vectors: int = 8
    width: int = 128
    pooled: int = 0
    knots: int = 10
    relax: float = 0.0
    stages: int = 1
    guide: int = 0

    def __post_init__(self) -> None:
        require_positive("network", reach=self.reach)
        if not 0 <= self.near < self.reach:
            raise ValueError(f"network.near must be in [0, reach), got {self.near}")
        require_at_least("network", 1, radial=self.radial, scalars=self.scalars)
        require_at_least("network", 1, vectors=self.vectors, width=self.width)
        require_at_least("network", 0, pooled=self.pooled)
        require_at_least("network", 2, knots=self.knots)
        require_at_least("network", 0, relax=self.relax)
        require_at_least("network", 1, stages=self.stages)
        if self.guide:
            require_at_least("network", 4, guide=self.guide)

    def build(
        self, mdp: SamplingMDP, *, prior_std: float, generator: torch.Generator
    ) -> ClusterValue | GuidedValue:
        """See :meth:`NetworkConfig.build`; of an energy over temperature, the particles' own."""
        energy = mdp.energy
        if isinstance(energy, JointEnergy) and isinstance(energy.conditional, TemperedEnergy):
            energy = energy.conditional.inner
        network = ClusterValue(
            mdp.chain,
            energy,
            prior_std=prior_std,
            near=self.near,
            reach=self.reach,
            radial=self.radial,
            scalars=self.scalars,
            vectors=self.vectors,
            width=self.width,
            pooled=self.pooled,
            knots=self.knots,
            relax=self.relax,
            stages=self.stages,
            temperature=mdp.temperature,
            conditions=mdp.conditions,
            generator=generator,
        )
        if not self.guide:
            return network
        guide = ModeGuide(
            mdp.chain,
            mdp.energy,
            steps=self.guide,
            knots=self.knots,
            temperature=mdp.temperature,
            generator=generator,
        )
        return GuidedValue(network, guide)
