"""Eight schools: a hierarchical model whose two parametrisations are easy and hard for samplers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vgs_rl.energy import Energy
from vgs_rl.envs.targets.quadrature import normal_log_density

EFFECTS = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
ERRORS = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)
PRIOR_STD, PRIOR_SCALE = 5.0, 5.0  # of mu and of tau


class EightSchools(Energy):
    """Posterior of (mu, log tau, theta_1 … theta_8) in 10 dimensions, the centred parametrisation.

    y_j ~ N(theta_j, sigma_j²), theta_j ~ N(mu, tau²), mu ~ N(0, 5²), tau ~ half-Cauchy(5), with
    the Jacobian of log tau. Every density is normalised, so Z = p(y). Data of Rubin (1981) and
    priors of posteriordb's `eight_schools`. As tau falls, the thetas have a funnel.

    Given tau, mu and the thetas are Gaussian. So log Z and exact samples take one integral over
    log tau, done on a grid in float64.
    """

    NODES, LOW, HIGH = 20_001, -45.0, 25.0  # beyond, log tau has less than e^-39 of the mass
    effects: Tensor
    errors: Tensor
    thread_safe = True

    def __init__(self) -> None:
        super().__init__()
        self.dim = 2 + len(EFFECTS)
        self.register_buffer("effects", torch.tensor(EFFECTS).double(), persistent=False)
        self.register_buffer("errors", torch.tensor(ERRORS).double(), persistent=False)
        self._constant = 0.5 * (2 * len(EFFECTS) + 1) * math.log(2 * math.pi)
        self._constant += math.log(PRIOR_STD) + float(self.errors.log().sum())
        self._constant -= math.log(2 / (math.pi * PRIOR_SCALE))
        self.log_z = float(torch.logsumexp(self._grid()[1], 0))

    def energy(self, x: Tensor) -> Tensor:
        """See :meth:`Energy.energy`."""
        log_tau = x[..., 1]
        squares = ((x[..., 2:] - x[..., :1]) * torch.exp(-x[..., 1:2])).square().sum(-1)
        schools = len(EFFECTS)
        return self._shared(x, x[..., 2:]) + 0.5 * squares + schools * log_tau

    def _shared(self, x: Tensor, theta: Tensor) -> Tensor:
        """Minus the log densities of y, mu and log tau, and the constants of all."""
        mu, log_tau = x[..., 0], x[..., 1]
        gap = (theta - self.effects.to(x)) / self.errors.to(x)
        # log(1 + (tau/5)²), without overflow
        tail = torch.nn.functional.softplus(2 * (log_tau - math.log(PRIOR_SCALE)))
        squares = gap.square().sum(-1) + (mu / PRIOR_STD).square()
        return 0.5 * squares + tail - log_tau + self._constant

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Log tau from a grid of 20,000 cells, uniform within each; the rest is Gaussian."""
        device = generator.device

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=device, dtype=torch.float64)

        nodes, log_terms = (part.to(device) for part in self._grid())
        u = torch.rand(n, 2, generator=generator, device=device, dtype=torch.float64)
        edges = torch.softmax(log_terms, 0).cumsum(0)
        cell = torch.searchsorted(edges, u[:, 0] * edges[-1]).clamp_max(len(nodes) - 1)
        log_tau = nodes[cell] + (u[:, 1] - 0.5) * (nodes[1] - nodes[0])
        effects, variances = self.effects.to(device), self.errors.to(device).square()
        mean, precision = _mean_given(log_tau, effects, variances)
        mu = mean + normal(n) / precision.sqrt()
        tau_2 = (2 * log_tau).exp().unsqueeze(-1)
        shrinkage = tau_2 / (tau_2 + variances)
        theta = mu.unsqueeze(-1) + shrinkage * (effects - mu.unsqueeze(-1))
        theta = theta + (shrinkage * variances).sqrt() * normal(n, len(effects))
        x = torch.stack([mu, log_tau], -1)
        return self._of_theta(torch.cat([x, theta], -1)).float()

    def _of_theta(self, x: Tensor) -> Tensor:
        """A state of (mu, log tau, theta)."""
        return x

    def _grid(self) -> tuple[Tensor, Tensor]:
        """Nodes of log tau, and the log mass p(y, log tau) of each one's cell."""
        nodes = torch.linspace(self.LOW, self.HIGH, self.NODES, dtype=torch.float64)
        effects, variances = self.effects.cpu().double(), self.errors.cpu().double().square()
        mean, precision = _mean_given(nodes, effects, variances)
        total = (2 * nodes).exp().unsqueeze(-1) + variances
        # p(y | tau) = p(y | mu, tau) p(mu) / p(mu | y, tau), at mu = its posterior mean
        mu = mean.unsqueeze(-1)
        log_density = normal_log_density(effects, mu, total).sum(-1)
        log_density += normal_log_density(mean, mean.new_zeros(()), PRIOR_STD**2)
        log_density += 0.5 * (2 * math.pi / precision).log()
        tail = torch.nn.functional.softplus(2 * (nodes - math.log(PRIOR_SCALE)))
        prior = nodes - tail + math.log(2 / (math.pi * PRIOR_SCALE))
        return nodes, log_density + prior + (nodes[1] - nodes[0]).log()


class EightSchoolsNonCentred(EightSchools):
    """The same posterior of (mu, log tau, eta), where theta_j = mu + tau eta_j and eta_j ~ N(0, 1).

    A change of coordinates, so log Z is that of :class:`EightSchools`.
    """

    thread_safe = True

    def energy(self, x: Tensor) -> Tensor:
        """See :meth:`Energy.energy`."""
        eta = x[..., 2:]
        theta = x[..., :1] + torch.exp(x[..., 1:2]) * eta
        return self._shared(x, theta) + 0.5 * eta.square().sum(-1)

    def _of_theta(self, x: Tensor) -> Tensor:
        eta = (x[..., 2:] - x[..., :1]) * torch.exp(-x[..., 1:2])
        return torch.cat([x[..., :2], eta], -1)


def _mean_given(log_tau: Tensor, effects: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and precision of mu given y and tau, each of the shape of log tau."""
    precisions = ((2 * log_tau).exp().unsqueeze(-1) + variances).reciprocal()
    precision = precisions.sum(-1) + PRIOR_STD**-2
    return (precisions * effects).sum(-1) / precision, precision
