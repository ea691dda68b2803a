"""One network call for a few particles in the plane: a flow that is averaged over all symmetries.

    q(x) = 1/(2 n!) Σ_g q_u(u(g x)) / (2 pi rho(g x)²),     g: exchanges, and a mirror

u are coordinates without the frame: with y the n - 1 vectors that an orthonormal basis makes of the
centred positions, and y turned until the first of them lies along an axis, u = (log rho, y_2, …),
where rho is the first one's length. The angle is uniform, and dy = rho² du dangle. q_u is a flow
from a mixture (:mod:`vgs_rl.agents.distilled.flow`). The sum makes q invariant and exact, whichever
of its images a state is taken for. It has 2 n! terms, so that n is at most 5.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from vgs_rl.agents.distilled.clusters import centred_basis
from vgs_rl.agents.distilled.densities import Choice
from vgs_rl.agents.distilled.flow import FlowSampler, coupling_layers
from vgs_rl.geometry import CentreOfMassFree, Geometry
from vgs_rl.mdp import SamplingMDP
from vgs_rl.starts import Mixture, fit_mixture

MOST = 5  # particles: 2 n! terms of a density
COMPONENTS = 32
ROUNDS = 6  # of choosing an image of each state, and fitting a mixture to them
STATES = 8_000  # for that
CHUNK = 1_024  # states at once, each in all of its images
WIDE = 0.02  # weight of a component that is wider than the states
WIDER = 1.5  # than they are, in standard deviations


def has_orbits(geometry: Geometry) -> bool:
    """Whether a space is of so few particles in the plane that a density can sum over images."""
    return (
        isinstance(geometry, CentreOfMassFree)
        and geometry.n_dims == 2
        and 3 <= geometry.n_particles <= MOST
    )


class OrbitStudent(nn.Module):
    """A flow of the coordinates without a frame, averaged over exchanges and mirror images.

    Args:
        mdp: of the student; its space is of centred particles in the plane.
        width: units of a hidden layer.
        depth: hidden layers of each coupling.
        couplings: layers; by default as many as
            :func:`~vgs_rl.agents.distilled.flow.coupling_masks` says.
        generator: initialises the weights.

    Raises:
        ModuleNotFoundError: if zuko is not installed.
    """

    basis: Tensor
    exchanges: Tensor
    mirror: Tensor
    weights: Tensor
    means: Tensor
    factors: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        mdp: SamplingMDP,
        *,
        width: int,
        depth: int,
        couplings: int | None,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        geometry = mdp.geometry
        assert isinstance(geometry, CentreOfMassFree) and has_orbits(geometry)
        self.n = geometry.n_particles
        dim = self.dim = 2 * self.n - 3
        basis = centred_basis(self.n)
        orders = torch.tensor(list(itertools.permutations(range(self.n))))
        moved = torch.eye(self.n)[orders]  # (n!, n, n)
        mirror = torch.ones(dim)
        mirror[2::2] = -1.0
        for name, constant in (
            ("basis", basis),
            ("exchanges", basis.T @ moved @ basis),
            ("mirror", mirror),
        ):
            self.register_buffer(name, constant, persistent=False)
        for name, value in (
            ("weights", torch.full((COMPONENTS,), 1 / COMPONENTS)),
            ("means", torch.zeros(COMPONENTS, dim)),
            ("factors", torch.eye(dim).repeat(COMPONENTS, 1, 1)),
            ("shift", torch.zeros(dim)),
            ("scale", torch.ones(dim)),
        ):
            self.register_buffer(name, value)
        self.layers = coupling_layers(dim, width, depth, couplings, generator)
        self.to(mdp.device, mdp.dtype)

    # --- coordinates --------------------------------------------------------------------------

    def images(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates u (B, 2 n!, 2n - 3) of all images of states x (B, 2n), and log rho² too."""
        y = self.basis.T @ x.unflatten(-1, (self.n, 2))
        y = self.exchanges @ y.unsqueeze(1)  # (B, n!, n - 1, 2)
        first = y[..., 0, :]
        square = first.square().sum(-1).clamp_min(torch.finfo(y.dtype).tiny)
        along = first / square.sqrt().unsqueeze(-1)
        turned = torch.stack(
            [
                (y * along.unsqueeze(-2)).sum(-1),
                y[..., 1] * along[..., None, 0] - y[..., 0] * along[..., None, 1],
            ],
            -1,
        )
        log_square = square.log()
        u = torch.cat([0.5 * log_square.unsqueeze(-1), turned[..., 1:, :].flatten(-2)], -1)
        return torch.cat([u, self.mirror * u], 1), log_square.repeat(1, 2)

    def states(self, u: Tensor, generator: torch.Generator) -> Tensor:
        """A state x (B, 2n) of each u (B, 2n - 3), with a frame and numbers drawn at random."""
        n, device = len(u), u.device
        mirrored = torch.rand(n, 1, generator=generator, device=device) < 0.5
        u = torch.where(mirrored, self.mirror * u, u)
        angle = 2 * math.pi * torch.rand(n, generator=generator, device=device, dtype=u.dtype)
        first = torch.stack([u[:, 0].exp(), torch.zeros_like(angle)], -1).unsqueeze(1)
        y = torch.cat([first, u[:, 1:].unflatten(-1, (self.n - 2, 2))], 1)
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        y = torch.stack([cos * y[..., 0] - sin * y[..., 1], sin * y[..., 0] + cos * y[..., 1]], -1)
        k = torch.randint(len(self.exchanges), (n,), generator=generator, device=device)
        return (self.basis @ (self.exchanges[k] @ y)).flatten(1)

    # --- the density of u ---------------------------------------------------------------------

    def begin(self, x: Tensor, choice: Choice | None) -> None:
        """Fits the mixture to an image of each state x (n, D): the one that it finds likeliest."""
        few = x[:STATES]
        u = self.images(few)[0]
        furthest = u[..., 0].max(1, keepdim=True).values
        chosen = (u[..., 0] > furthest - 1e-6) * (1.0 + u[..., 1:].clamp(-10, 10).sum(-1).exp())
        at = u[torch.arange(len(u)), chosen.argmax(1)].double()
        generator = torch.Generator(x.device).manual_seed(0)
        mixture: Mixture | None = None
        for _ in range(ROUNDS):
            mixture = fit_mixture(at, COMPONENTS - 1, generator, begin=mixture)
            parts = [mixture.log_prob(part.double().flatten(0, 1)) for part in u.split(1000)]
            best = torch.cat(parts).view(len(u), -1).argmax(1)
            at = u[torch.arange(len(u)), best].double()
        assert mixture is not None
        weights = torch.cat([(1 - WIDE) * mixture.weights, mixture.weights.new_tensor([WIDE])])
        means = torch.cat([mixture.means, at.mean(0, keepdim=True)])
        wide = WIDER**2 * torch.cov(at.T)
        factors = torch.linalg.cholesky(torch.cat([mixture.covariances, wide.unsqueeze(0)]))
        for name, value in (
            ("weights", weights),
            ("means", means),
            ("factors", factors),
            ("shift", at.mean(0)),
            ("scale", at.std(0)),
        ):
            getattr(self, name).copy_(value)

    def _log_mixture(self, u: Tensor) -> Tensor:
        gap = (u.unsqueeze(0) - self.means.unsqueeze(1)).mT  # (K, dim, B)
        z = torch.linalg.solve_triangular(self.factors, gap, upper=False)
        size = self.factors.diagonal(dim1=1, dim2=2).log().sum(-1)
        constant = self.weights.log() - size - 0.5 * self.dim * math.log(2 * math.pi)
        return torch.logsumexp(constant.unsqueeze(-1) - 0.5 * z.square().sum(1), 0)

    def _log_prob_u(self, u: Tensor) -> Tensor:
        z, log_det = (u - self.shift) / self.scale, u.new_zeros(len(u))
        for layer in reversed(self.layers):
            z, change = layer().inv.call_and_ladj(z)
            log_det = log_det + change
        return self._log_mixture(self.shift + self.scale * z) + log_det

    def log_prob(self, mdp: SamplingMDP, x: Tensor) -> Tensor:
        """Log q at states x (B, D); shape (B,)."""
        u, log_square = self.images(x)
        parts = self._log_prob_u(u.flatten(0, 1)).view(len(x), -1) - log_square
        return torch.logsumexp(parts, 1) - math.log(parts.shape[1] * 2 * math.pi)

    def forward_loss(self, mdp: SamplingMDP, x: Tensor, generator: torch.Generator) -> Tensor:
        """-E[log q] over target states x (B, D): KL(p ‖ q) up to a constant."""
        return -self.log_prob(mdp, x).mean()

    @torch.no_grad()
    def draw(self, mdp: SamplingMDP, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """States x (n, D) and log w (n,), without gradients; counted."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        shape = (n, self.dim, 1)
        z = torch.randn(shape, generator=generator, device=mdp.device, dtype=self.means.dtype)
        u = self.means[k] + (self.factors[k] @ z).squeeze(-1)
        u = (u - self.shift) / self.scale
        for layer in self.layers:
            u = layer()(u)
        x = self.states(self.shift + self.scale * u, generator)
        return x, -mdp.evaluate_energy(x) / mdp.temperature - self.log_prob(mdp, x)

    def log_density(self, mdp: SamplingMDP, drawn: Tensor) -> Tensor:
        """Log q of what :meth:`draw` returned, shape (n,), with its gradient."""
        return self.log_prob(mdp, drawn)

    def sampler(self, mdp: SamplingMDP) -> FlowSampler:
        """What draws."""
        sampler = FlowSampler(mdp, self)
        sampler.chunk_size = CHUNK
        return sampler
