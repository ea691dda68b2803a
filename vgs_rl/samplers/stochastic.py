"""What a policy's own noise means, and exact log-weights for it.

The MDP's kernel has its noise: x_{t+1} = a_t x_t + sigma_t (u_t + rho_t eps_t). The stochastic
policy of an RL library brings its own noise, and there are two ways in which it may enter:

`environment`  The MDP keeps its noise. The policy is evaluated by its mean, a deterministic
               control; its noise is exploration while training and nothing else. Log-weights are
               the MDP's own, exact for every control, clipped ones included.
`policy`       The MDP's noise is off and the policy is the kernel: v_t ~ pi(· | x_t, t),
               x_{t+1} = a_t x_t + sigma_t v_t. Since x_{t+1} and v_t fix each other given x_t,

        log w = -E(x_T)/tau - log pi_0(x_0) + Σ_t [log q~(x_t | x_{t+1}) - log pi(x_{t+1} | x_t)]
              = -E(x_T)/tau - log pi_0(x_0) + Σ_t [D log a_t + log N(v_t; 0, I) - log pi(v_t)],

               and tau E[log w] is the return plus tau times the policy's entropy, plus a constant:
               maximum-entropy RL at temperature tau and discount 1 is exactly KL minimisation.

E[w] = Z where the policy can draw every v that the target's paths need. A Gaussian can. A squashed
one, v = b tanh(z), cannot draw |v_i| ≥ b: E[w] = Z P(all |v_i| < b on the target's paths), and the
EUBO is infinite as soon as one reference path leaves the bound. A clipped Gaussian has atoms at the
bound and no density: libraries that clip while training are evaluated unclipped here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softplus

from vgs_rl.transitions import KernelPolicy

Parameters = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""Maps states (B, D) at step t to mean and log standard deviation, each of shape (B, D)."""


def gaussian_log_density(z: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log N(z; mean, std² I) summed over the last axis, shape (B,)."""
    standard = (z - mean) * torch.exp(-log_std)
    return (-0.5 * (standard.square() + math.log(2 * math.pi)) - log_std).sum(-1)


def log_tanh_slope(z: Tensor) -> Tensor:
    """Log of d tanh(z)/dz = 1 - tanh²(z), exact where tanh(z) rounds to 1."""
    return 2 * (math.log(2) - z - softplus(-2 * z))


class GaussianKernel(KernelPolicy):
    """v ~ N(mean, std²), unbounded.

    Args:
        parameters: maps (x, t) to mean and log standard deviation, in units of the step's noise.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters

    def __call__(self, x: Tensor, t: int) -> Tensor:
        """See :class:`KernelPolicy`."""
        return self.parameters(x, t)[0]

    def draw(self, x: Tensor, t: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """See :meth:`KernelPolicy.draw`."""
        mean, log_std = self.parameters(x, t)
        v = mean + log_std.exp() * _normal_like(mean, generator)
        return v, gaussian_log_density(v, mean, log_std)

    def log_density(self, v: Tensor, x: Tensor, t: int) -> Tensor:
        """See :meth:`KernelPolicy.log_density`."""
        return gaussian_log_density(v, *self.parameters(x, t))


class SquashedGaussianKernel(KernelPolicy):
    """v = b tanh(z), z ~ N(mean, std²): SAC's policy.

    Args:
        parameters: maps (x, t) to mean and log standard deviation of z.
        bound: b, in units of the step's noise.
    """

    def __init__(self, parameters: Parameters, bound: float) -> None:
        self.parameters, self.bound = parameters, bound

    def __call__(self, x: Tensor, t: int) -> Tensor:
        """The median of v: b tanh(mean)."""
        return self.bound * torch.tanh(self.parameters(x, t)[0])

    def draw(self, x: Tensor, t: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """See :meth:`KernelPolicy.draw`."""
        mean, log_std = self.parameters(x, t)
        z = mean + log_std.exp() * _normal_like(mean, generator)
        return self.bound * torch.tanh(z), self._log_density(z, mean, log_std)

    def log_density(self, v: Tensor, x: Tensor, t: int) -> Tensor:
        """See :meth:`KernelPolicy.log_density`."""
        mean, log_std = self.parameters(x, t)
        # Double precision: single leaves atanh few digits near the bound.
        ratio = v.double() / self.bound
        inside = (ratio.abs() < 1).all(-1)
        z = torch.atanh(torch.where(inside.unsqueeze(-1), ratio, 0.0))
        return torch.where(inside, self._log_density(z, mean, log_std), -torch.inf).to(v.dtype)

    def _log_density(self, z: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
        slope = log_tanh_slope(z) + math.log(self.bound)
        return gaussian_log_density(z, mean, log_std) - slope.sum(-1)


def _normal_like(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
