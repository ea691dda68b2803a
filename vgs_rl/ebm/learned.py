"""What every energy that is learned from data has: data, parameters and a configuration.

:mod:`vgs_rl.ebm.energies` has the networks, :mod:`vgs_rl.ebm.contrastive` the loss.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vgs_rl.checks import require_at_least
from vgs_rl.energy import Energy
from vgs_rl.geometry import Euclidean, Sphere


class LearnedEnergy(Energy):
    """Base of the trainable energies: a subclass writes :meth:`network_energy`.

    Parameters are float32; states of another floating type are evaluated with parameters cast to
    it, so that gradients can be checked in double precision. They are swapped in for the call, so
    that no learned energy is `thread_safe`.

    Args:
        dim: ambient dimension D.
        on_sphere: whether states are unit vectors; else they are all of R^D.
    """

    def __init__(self, dim: int, *, on_sphere: bool = False) -> None:
        super().__init__()
        require_at_least(type(self).__name__, 1, dim=dim)
        self.dim, self.on_sphere = dim, on_sphere
        self.geometry = Sphere(dim) if on_sphere else Euclidean(dim)
        # What it is learned from; a checkpoint does not hold it.
        self.register_buffer("data", None, persistent=False)

    def attach(self, data: Tensor) -> None:
        """Gives the energy its data, a float tensor of shape (N, D).

        Raises:
            ValueError: if they are not finite, of another shape, or off the sphere.
        """
        if data.ndim != 2 or data.shape[1] != self.dim or len(data) < 2:
            raise ValueError(
                f"data must have shape (N, {self.dim}) with N of at least 2, "
                f"got {tuple(data.shape)}"
            )
        if not bool(torch.isfinite(data).all()):
            raise ValueError("data must be finite, got NaN or infinity")
        gap = float((self.geometry.project(data) - data).abs().max())
        if gap > 1e-4:
            raise ValueError(f"data must be unit vectors, got a row off the sphere by {gap:.2g}")
        parameter = next(self.parameters())
        self.data = data.detach().to(parameter.device, parameter.dtype)

    @abstractmethod
    def network_energy(self, x: Tensor) -> Tensor:
        """E_theta(x), shape (B,), for x of shape (B, D) in the parameters' own type."""

    def energy(self, x: Tensor) -> Tensor:
        """See :meth:`Energy.energy`."""
        if x.dtype == next(self.parameters()).dtype:
            return self.network_energy(x)
        cast = {name: p.to(x.dtype) for name, p in self.named_parameters()}
        energy: Tensor = torch.func.functional_call(self, cast, (x,))
        return energy

    def pretraining_loss(self, x: Tensor) -> Tensor:
        """A loss on data x (B, D) alone, a scalar, to start from a sensible network.

        Raises:
            NotImplementedError: if this kind of energy has none.
        """
        raise NotImplementedError(f"{type(self).__name__} has nothing to pre-train on")


def layers(
    sizes: tuple[int, ...], activation: type[nn.Module], generator: torch.Generator
) -> nn.Sequential:
    """Linear layers of the given sizes with an activation between each two.

    PyTorch's default initialisation, which draws from the global generator, from `generator`.
    """
    parts: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        layer: nn.Linear = nn.utils.skip_init(nn.Linear, fan_in, fan_out)
        for parameter in (layer.weight, layer.bias):
            uniform = 2 * torch.rand(parameter.shape, generator=generator) - 1
            parameter.data = uniform / math.sqrt(fan_in)
        parts += [layer, activation()]
    return nn.Sequential(*parts[:-1])


@dataclass(kw_only=True)
class EnergyConfig(ABC):
    """Base of the learned energies' configurations; an own one may be named by `class_path`."""

    @abstractmethod
    def build(self, dim: int, *, on_sphere: bool, seed: int) -> LearnedEnergy:
        """The untrained energy of states of shape (B, dim)."""
