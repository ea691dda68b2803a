"""Few network calls for particles: kernels that turn, mirror and exchange with them.

The kernel of a step is a mixture of Gaussians on states with their centre of mass at the origin.
With pairs i < j, unit vectors e_ij and distances r_ij of x_t, component k has

    mean       m_0 + Σ_j f_ij e_ij + g x_i,                    m_0 that of an isotropic Gaussian
    precision  P_0 I + Σ_{i<j} L_ij ⊗ (α_ij e e^T + β_ij (I - e e^T)),         α, β, P_0 > 0

where L_ij is the Laplacian of the pair. The Hessian of a pair potential has this form, so that
of the reversed kernel has it, to second order. A network of distances gives f, g, α, β, P_0
and the weights of components; it sees neither the axes nor the numbers of the particles. So the
kernel is equivariant, and its density is exact.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vgs_rl.agents.distilled.densities import Choice
from vgs_rl.agents.distilled.kernels import ChainStudent, choose_component, network_of
from vgs_rl.geometry import CentreOfMassFree
from vgs_rl.mdp import SamplingMDP
from vgs_rl.networks.pairs import pair_differences

RADIAL = 24  # Gaussians of a distance
REACH = 4.0  # of the widest of them, in standard deviations of a coordinate
FIRST = 0.1  # size of the last layer's weights at first, of the usual: components must differ
MOST_LEVEL = 6.0  # of log P_0
LEAST_LEVEL = 1e-5  # of P_0 over the mean stiffness: single precision has no more
SOFT = 3.0  # how far below 0 stiffness begins, before softplus


class PairGaussians(NamedTuple):
    """A mixture for each row, of Gaussians on centred states of m = (n - 1) d dimensions.

    Attributes:
        log_weight: shape (B, K).
        mean: in the basis, shape (B, K, m).
        factor: lower Cholesky factor of the precision, shape (B, K, m, m).
        basis: orthonormal, shape (n d, m).
    """

    log_weight: Tensor
    mean: Tensor
    factor: Tensor
    basis: Tensor

    def log_density(self, v: Tensor) -> Tensor:
        """Log density at v (B, n d) in m dimensions; shape (B,)."""
        gap = (v @ self.basis).unsqueeze(1) - self.mean
        z = (self.factor * gap.unsqueeze(-1)).sum(-2)  # L^T gap
        size = self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        parts = size - 0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2 * math.pi))
        return torch.logsumexp(self.log_weight + parts, 1)

    def centre(self) -> Tensor:
        """The mean, shape (B, n d)."""
        return (self.log_weight.exp().unsqueeze(-1) * self.mean).sum(1) @ self.basis.T

    def sample(self, generator: torch.Generator) -> Tensor:
        """One draw a row, shape (B, n d)."""
        rows = torch.arange(len(self.mean), device=self.mean.device)
        k = choose_component(self.log_weight, generator).squeeze(1)
        mean, factor = self.mean[rows, k], self.factor[rows, k]
        z = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        moved: Tensor = torch.linalg.solve_triangular(factor.mT, z.unsqueeze(-1), upper=True)
        return (mean + moved.squeeze(-1)) @ self.basis.T


class ClusterStudent(ChainStudent):
    """Kernels of exchangeable particles, a network for each step.

    Args:
        mdp: of the student; its space is of centred particles.
        width: units of a hidden layer.
        depth: rounds of messages.
        components: K.
        generator: initialises the weights.
    """

    variance: Tensor
    basis: Tensor
    signed: Tensor
    across: Tensor

    def __init__(
        self,
        mdp: SamplingMDP,
        *,
        width: int,
        depth: int,
        components: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        geometry = mdp.geometry
        assert isinstance(geometry, CentreOfMassFree)
        self.chain, self.count = mdp.chain, components
        self.n, self.d = geometry.n_particles, geometry.n_dims
        self.register_buffer("variance", torch.ones(()))
        centred = centred_basis(self.n)
        self.register_buffer("basis", torch.kron(centred, torch.eye(self.d)), persistent=False)
        pairs = pair_differences(self.n)
        for name, constant in (("signed", pairs), ("across", pairs @ centred)):
            self.register_buffer(name, constant, persistent=False)
        self.steps = nn.ModuleList(
            PairMessages(width, depth, components, generator) for _ in range(mdp.num_steps)
        )
        self.to(mdp.device, mdp.dtype)

    def begin(self, x: Tensor, choice: Choice | None) -> None:
        """Takes the variance of a coordinate of target states x (n, D)."""
        dims = (self.n - 1) * self.d
        self.variance.copy_(x.double().square().sum(-1).mean() / dims)

    def components(self, x: Tensor, t: int) -> PairGaussians:
        """The mixture of v at centred states x (B, n d) and step t."""
        chain = self.chain
        a, sigma, scale, noise = chain.a[t], chain.sigma[t], chain.A[t + 1], chain.S[t + 1]
        variance = self.variance / scale.square() + noise
        total = variance + sigma.square()
        std = (variance / total).sqrt()  # of v given an isotropic x
        unit = (self.variance / chain.A[t].square() + chain.S[t]).sqrt()
        y = x.unflatten(-1, (self.n, self.d)) / unit
        apart = self.signed @ y  # (B, P, d)
        r = apart.square().sum(-1).add(1e-12).sqrt()
        direction = apart / r.unsqueeze(-1)
        found = self.steps[t](r, self.signed.abs())
        pull = torch.einsum("pi,bpk,bpd->bkid", self.signed, found.force, direction)
        pull = pull + found.radial[:, :, None, None] * y.unsqueeze(1)
        mean = -(a * sigma / total) * x.unsqueeze(1) + std * pull.flatten(-2)
        outer = direction.unsqueeze(-1) * direction.unsqueeze(-2)  # (B, P, d, d)
        identity = torch.eye(self.d, device=x.device, dtype=x.dtype)
        along, over = (each.mT[..., None, None] for each in (found.along, found.over))
        stiff = over * identity + (along - over) * outer.unsqueeze(1)  # (B, K, P, d, d)
        blocks = (self.across.unsqueeze(-1) * self.across.unsqueeze(-2)).flatten(1)  # (P, (n-1)²)
        sums = blocks.T @ stiff.flatten(-2)
        precision = sums.unflatten(2, (self.n - 1, self.n - 1)).unflatten(-1, (self.d, self.d))
        precision = precision.transpose(-2, -3).flatten(-2).flatten(2, 3)
        level = (MOST_LEVEL * torch.tanh(found.level / MOST_LEVEL)).exp()
        level = level + LEAST_LEVEL * precision.diagonal(dim1=-2, dim2=-1).mean(-1)
        whole = torch.eye(precision.shape[-1], device=x.device, dtype=x.dtype)
        precision = (precision + level[..., None, None] * whole) * (total / variance)
        factor = torch.linalg.cholesky_ex(precision)[0]  # NaN where x is: the path has no weight
        log_weight = torch.log_softmax(found.logits, 1)
        return PairGaussians(log_weight, mean @ self.basis, factor, self.basis)


class PairOutputs(NamedTuple):
    """What the network gives: of pairs (B, P, K), of states (B, K)."""

    force: Tensor
    along: Tensor
    over: Tensor
    level: Tensor
    radial: Tensor
    logits: Tensor


class PairMessages(nn.Module):
    """From distances of pairs to what shapes a kernel, invariant under exchange.

    Args:
        width: units of a hidden layer.
        depth: rounds of messages.
        components: K.
        generator: initialises the weights.
    """

    centres: Tensor

    def __init__(self, width: int, depth: int, components: int, generator: torch.Generator) -> None:
        super().__init__()
        self.count, self.width = components, width
        self.register_buffer("centres", torch.linspace(0, REACH, RADIAL), persistent=False)
        sizes = [RADIAL + 1 + width, width, width]
        self.messages = nn.ModuleList(network_of(sizes, generator, 1.0) for _ in range(depth))
        self.pairs = network_of([RADIAL + 1 + width, width, 3 * components], generator, FIRST)
        self.whole = network_of([2 * width, width, 3 * components], generator, FIRST)

    def forward(self, r: Tensor, ends: Tensor) -> PairOutputs:
        """Outputs for distances r (B, P); `ends` (P, n) has 1 where a particle is of a pair."""
        spacing = REACH / (RADIAL - 1)
        near = (-0.5 * ((r.unsqueeze(-1) - self.centres) / spacing).square()).exp()
        features = torch.cat([near, r.unsqueeze(-1)], -1)
        share = 1 / (ends.shape[1] - 1)
        nodes = r.new_zeros(len(r), ends.shape[1], self.width)
        for message in self.messages:
            sent = message(torch.cat([features, ends @ nodes], -1))
            nodes = nodes + torch.nn.functional.silu(share * (ends.T @ sent))
        force, along, over = self.pairs(torch.cat([features, ends @ nodes], -1)).chunk(3, -1)
        pooled = torch.cat([nodes.mean(1), nodes.square().mean(1)], -1)
        level, radial, logits = self.whole(pooled).chunk(3, -1)
        soft = torch.nn.functional.softplus
        return PairOutputs(force, soft(along - SOFT), soft(over - SOFT), level, radial, logits)


def centred_basis(n: int) -> Tensor:
    """An orthonormal basis of the numbers of n particles that sum to 0, shape (n, n - 1)."""
    columns = torch.cat([torch.ones(n, 1), torch.eye(n)[:, :-1]], 1)
    full: Tensor = torch.linalg.qr(columns.double())[0]
    return full[:, 1:].float().contiguous()
