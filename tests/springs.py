"""A particle system that can be sampled exactly, for tests."""

import torch
from torch import Tensor

from vgs_rl import CentreOfMassFree, Energy, Particles
from vgs_rl.energy import Split


class Springs(Energy):
    """n particles, each pair joined by a spring: a Gaussian without centre of mass."""

    def __init__(self, n_particles: int = 3, n_dims: int = 2) -> None:
        super().__init__()
        self.symmetry = Particles(n_particles, n_dims)
        self.space = CentreOfMassFree(n_particles, n_dims)
        self.dim = self.space.dim

    @property
    def geometry(self) -> CentreOfMassFree:
        return self.space

    def energy(self, x: Tensor) -> Tensor:
        return 0.5 * self.space.project(x).square().sum(-1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return self.space.project(torch.randn(n, self.dim, generator=generator))


class ShippedSprings(Springs):
    """The same with shipped samples, in which no particle was ever relabelled."""

    size = 1_200

    @property
    def can_sample(self) -> bool:
        return False

    def reference(self, split: Split = "test") -> Tensor:
        generator = torch.Generator().manual_seed(3 if split == "test" else 4)
        x = super().sample(self.size, generator).unflatten(1, self.symmetry)
        order = x.norm(dim=-1).argsort(dim=1, descending=True)
        return x.gather(1, order.unsqueeze(-1).expand_as(x)).flatten(1)
