"""Energies that are learned from data: trainable networks E_theta, each with its configuration.

:mod:`vgs_rl.ebm.contrastive` has the loss, :mod:`vgs_rl.agents.ebm.trainer` the whole loop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vgs_rl.checks import require_at_least, require_positive, seed_of
from vgs_rl.ebm.learned import EnergyConfig, LearnedEnergy, layers
from vgs_rl.names import imports
from vgs_rl.trust import load_class


class MLPEnergy(LearnedEnergy):
    """E(x) = MLP(x) + ½ ‖x‖² / prior_std², with SiLU layers.

    Args:
        dim: ambient dimension D.
        hidden: units of the hidden layers.
        prior_std: width of the Gaussian that keeps exp(-E) integrable on R^D; None leaves it out.
        on_sphere: whether states are unit vectors.
        seed: initialises the weights.
    """

    def __init__(
        self,
        dim: int,
        *,
        hidden: tuple[int, ...] = (128, 128, 128),
        prior_std: float | None = None,
        on_sphere: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(dim, on_sphere=on_sphere)
        if prior_std is not None:
            require_positive("MLPEnergy", prior_std=prior_std)
        self.prior_std = prior_std
        generator = torch.Generator().manual_seed(seed_of(seed))
        self.network = layers((dim, *hidden, 1), nn.SiLU, generator)

    def network_energy(self, x: Tensor) -> Tensor:
        """See the class."""
        energy: Tensor = self.network(x).squeeze(-1)
        if self.prior_std is not None:
            energy = energy + 0.5 * x.square().sum(-1) / self.prior_std**2
        return energy


class AutoencoderEnergy(LearnedEnergy):
    """E(x) = scale² ‖x - decode(encode(x))‖² / T_E, the energy of arXiv:2502.13280 on MVTec-AD.

    ReLU layers; the latent and the reconstruction are normalised to unit norm, for data on the unit
    sphere; `scale` is learned. The defaults are the paper's, there with D = 272.

    Args:
        dim: ambient dimension D.
        hidden: units of the encoder's hidden layers; the decoder mirrors them.
        latent: dimension of the latent.
        temperature: T_E.
        on_sphere: whether states are unit vectors.
        seed: initialises the weights.
    """

    def __init__(
        self,
        dim: int,
        *,
        hidden: tuple[int, ...] = (1024, 1024, 1024),
        latent: int = 128,
        temperature: float = 0.1,
        on_sphere: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(dim, on_sphere=on_sphere)
        require_at_least("AutoencoderEnergy", 1, latent=latent)
        require_positive("AutoencoderEnergy", temperature=temperature)
        self.temperature = temperature
        generator = torch.Generator().manual_seed(seed_of(seed))
        self.encoder = layers((dim, *hidden, latent), nn.ReLU, generator)
        self.decoder = layers((latent, *reversed(hidden), dim), nn.ReLU, generator)
        self.scale = nn.Parameter(torch.ones(()))

    def reconstruct(self, x: Tensor) -> Tensor:
        """decode(encode(x)), unit vectors of shape (B, D)."""
        latent = F.normalize(self.encoder(x), dim=-1)
        return F.normalize(self.decoder(latent), dim=-1)

    def network_energy(self, x: Tensor) -> Tensor:
        """See the class."""
        error = (x - self.reconstruct(x)).square().sum(-1)
        return self.scale.square() * error / self.temperature

    def pretraining_loss(self, x: Tensor) -> Tensor:
        """Mean squared length of the reconstruction error."""
        return (x - self.reconstruct(x)).square().sum(-1).mean()


class PrototypeEnergy(LearnedEnergy):
    """E(x) = shift - log Σ_k w_k exp(-‖x - c_k‖² / 2 width²), a mixture around prototypes c_k.

    :meth:`attach` puts the prototypes on rows of the data: so it begins as a kernel density of
    them, and contrast then moves prototypes, weights, width and shift. For few data, which an
    energy without such a start hardly learns the shape of. On the unit sphere the kernels are von
    Mises-Fisher's.

    Args:
        dim: ambient dimension D.
        prototypes: number K; rows are repeated where there are fewer.
        width: of the kernels at first, in units of the data.
        on_sphere: whether states are unit vectors.
        seed: chooses the rows.
    """

    def __init__(
        self,
        dim: int,
        *,
        prototypes: int = 1024,
        width: float = 0.1,
        on_sphere: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(dim, on_sphere=on_sphere)
        require_at_least("PrototypeEnergy", 1, prototypes=prototypes)
        require_positive("PrototypeEnergy", width=width)
        self._generator = torch.Generator().manual_seed(seed_of(seed))
        start = torch.randn(prototypes, dim, generator=self._generator)
        self.prototypes = nn.Parameter(F.normalize(start, dim=-1))
        self.log_weights = nn.Parameter(torch.zeros(prototypes))
        self.log_width = nn.Parameter(torch.tensor(math.log(width)))
        self.shift = nn.Parameter(torch.zeros(()))

    def attach(self, data: Tensor) -> None:
        """See :meth:`LearnedEnergy.attach`; moves the prototypes onto random rows of the data.

        Args:
            data: shape (N, D), in the units of `width`; unit vectors on the sphere.

        Raises:
            ValueError: as there.
        """
        super().attach(data)
        order = torch.randperm(len(data), generator=self._generator)
        rows = order[torch.arange(len(self.prototypes)) % len(data)].to(data.device)
        with torch.no_grad():
            self.prototypes.copy_(data[rows])

    def network_energy(self, x: Tensor) -> Tensor:
        """See the class."""
        c = self.prototypes
        half_squares = 0.5 * (x.square().sum(-1, keepdim=True) + c.square().sum(-1)) - x @ c.T
        exponents = -half_squares * (-2 * self.log_width).exp()
        return self.shift - torch.logsumexp(self.log_weights.log_softmax(-1) + exponents, -1)


class GaussianEnergy(LearnedEnergy):
    """E(x) = ½ (‖factor z - mean‖² - D) / T_E + shift, a Gaussian of full covariance in whitened z.

    :meth:`attach` whitens by mean and covariance of the data: so it begins as their Mahalanobis
    distance, a strong detector of defects in features of pretrained networks (arXiv:2005.14140),
    and contrast then moves mean, factor and shift. On the unit sphere it is Fisher-Bingham's.

    Args:
        dim: ambient dimension D.
        shrinkage: weight of the mean variance, as a multiple of the identity, that is added to the
            covariance.
        temperature: T_E.
        on_sphere: whether states are unit vectors.
    """

    def __init__(
        self,
        dim: int,
        *,
        shrinkage: float = 0.01,
        temperature: float = 1.0,
        on_sphere: bool = False,
    ) -> None:
        super().__init__(dim, on_sphere=on_sphere)
        require_positive("GaussianEnergy", shrinkage=shrinkage, temperature=temperature)
        self.shrinkage, self.temperature = shrinkage, temperature
        self.centre: Tensor
        self.whitening: Tensor
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("whitening", torch.eye(dim))
        self.mean = nn.Parameter(torch.zeros(dim))
        self.factor = nn.Parameter(torch.eye(dim))
        self.shift = nn.Parameter(torch.zeros(()))

    def attach(self, data: Tensor) -> None:
        """See :meth:`LearnedEnergy.attach`; takes mean and covariance from the data.

        Args:
            data: shape (N, D); unit vectors on the sphere.

        Raises:
            ValueError: as there, or if all rows are the same.
        """
        super().attach(data)
        mean = data.mean(0)
        centred = (data - mean).double()
        variances, axes = torch.linalg.eigh(centred.T @ centred / len(data))
        variances = variances.clamp_min(0) + self.shrinkage * variances.mean()
        if not bool((variances > 0).all()):
            raise ValueError("data must vary, got rows that are all the same")
        self.centre.copy_(mean)
        self.whitening.copy_((axes * variances.rsqrt()) @ axes.T)

    def network_energy(self, x: Tensor) -> Tensor:
        """See the class."""
        z = (x - self.centre.to(x)) @ self.whitening.to(x).T
        squares = (z @ self.factor.T - self.mean).square().sum(-1)
        return 0.5 * (squares - self.dim) / self.temperature + self.shift


class ModuleEnergy(LearnedEnergy):
    """Any module that maps (B, D) to (B,) or (B, 1), as an energy.

    Args:
        module: the network, with at least one parameter.
        dim: ambient dimension D.
        on_sphere: whether states are unit vectors.
    """

    def __init__(self, module: nn.Module, dim: int, *, on_sphere: bool = False) -> None:
        super().__init__(dim, on_sphere=on_sphere)
        if not any(True for _ in module.parameters()):
            raise ValueError(f"module must have parameters, {type(module).__name__} has none")
        self.module = module

    def network_energy(self, x: Tensor) -> Tensor:
        """See the class."""
        energy: Tensor = self.module(x)
        return energy.squeeze(-1) if energy.ndim == 2 and energy.shape[1] == 1 else energy


@dataclass(kw_only=True)
class MLPEnergyConfig(EnergyConfig):
    """An MLP, :class:`MLPEnergy`.

    Args:
        hidden: units of the hidden layers.
        prior_std: width of the Gaussian that keeps exp(-E) integrable; None leaves it out.
    """

    hidden: tuple[int, ...] = (128, 128, 128)
    prior_std: float | None = None

    def build(self, dim: int, *, on_sphere: bool, seed: int) -> MLPEnergy:
        """See :meth:`EnergyConfig.build`."""
        return MLPEnergy(
            dim, hidden=self.hidden, prior_std=self.prior_std, on_sphere=on_sphere, seed=seed
        )


@dataclass(kw_only=True)
class AutoencoderEnergyConfig(EnergyConfig):
    """A reconstruction error, :class:`AutoencoderEnergy`.

    Args:
        hidden: units of the encoder's hidden layers; the decoder mirrors them.
        latent: dimension of the latent.
        temperature: T_E.
    """

    hidden: tuple[int, ...] = (1024, 1024, 1024)
    latent: int = 128
    temperature: float = 0.1

    def build(self, dim: int, *, on_sphere: bool, seed: int) -> AutoencoderEnergy:
        """See :meth:`EnergyConfig.build`."""
        return AutoencoderEnergy(
            dim,
            hidden=self.hidden,
            latent=self.latent,
            temperature=self.temperature,
            on_sphere=on_sphere,
            seed=seed,
        )


@dataclass(kw_only=True)
class PrototypeEnergyConfig(EnergyConfig):
    """A mixture around rows of the data, :class:`PrototypeEnergy`.

    Args:
        prototypes: number K.
        width: of the kernels at first, in units of the data.
    """

    prototypes: int = 1024
    width: float = 0.1

    def build(self, dim: int, *, on_sphere: bool, seed: int) -> PrototypeEnergy:
        """See :meth:`EnergyConfig.build`."""
        return PrototypeEnergy(
            dim, prototypes=self.prototypes, width=self.width, on_sphere=on_sphere, seed=seed
        )


@dataclass(kw_only=True)
class GaussianEnergyConfig(EnergyConfig):
    """A Gaussian of full covariance, :class:`GaussianEnergy`.

    Args:
        shrinkage: of the covariance at first.
        temperature: T_E.
    """

    shrinkage: float = 0.01
    temperature: float = 1.0

    def build(self, dim: int, *, on_sphere: bool, seed: int) -> GaussianEnergy:
        """See :meth:`EnergyConfig.build`; the data decide all, the seed nothing."""
        return GaussianEnergy(
            dim, shrinkage=self.shrinkage, temperature=self.temperature, on_sphere=on_sphere
        )


@dataclass(kw_only=True)
class ModuleEnergyConfig(EnergyConfig):
    """A module of your own, named by its import path.

    Args:
        class_path: a subclass of `nn.Module` such as `my_module.Net`, or a function annotated to
            return one.
        init_args: its keyword arguments.
    """

    class_path: str = imports(nn.Module)
    init_args: dict[str, Any] = field(default_factory=dict)

    def build(self, dim: int, *, on_sphere: bool, seed: int) -> ModuleEnergy:
        """See :meth:`EnergyConfig.build`; the module's random weights follow `seed`.

        Raises:
            ValueError: if there is no such class, or it does not take the arguments.
        """
        make = load_class(
            self.class_path, nn.Module, owner=f"energy.class_path {self.class_path!r}"
        )
        # Foreign code draws from the global generator: it gets a seed, the user's goes on as it was
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed))
            try:
                module = make(**self.init_args)
            except TypeError as error:
                raise ValueError(f"energy.init_args of {self.class_path}: {error}") from error
        return ModuleEnergy(module, dim, on_sphere=on_sphere)
