"""What x_T may have been, given a noised state: the best control, from values or from samples."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from vgs_rl.chain import Chain
from vgs_rl.energy import Energy
from vgs_rl.samplers.mcmc.kernels import FiniteEnergy, Point, metropolis_langevin

Pair = tuple[Tensor, Tensor]


class Posterior(ABC):
    """Gradients of V_t at bridge states, with τ = 1.

    Attributes:
        knows_values: whether :meth:`value` is known.
        chain: the one whose levels are meant, in double precision.
    """

    knows_values: ClassVar[bool]
    chain: Chain

    @abstractmethod
    def slopes(self, x: Tensor, t: int, x_T: Tensor, generator: torch.Generator) -> Pair:
        """Two estimates of ∇V_t(x), (B, D), each unbiased and independent of x_T given x.

        Args:
            x: bridge states.
            t: their level.
            x_T: the final states that they come from, (B, D).
            generator: source of randomness.
        """

    @abstractmethod
    def value(self, x: Tensor, t: int) -> Tensor | None:
        """V_t(x), shape (B,), or None where it is not known."""

    @abstractmethod
    def log_start(self, x: Tensor) -> Tensor:
        """Log p_0(x), normalised, shape (B,)."""


class ExactPosterior(Posterior):
    """An energy's exact values.

    Args:
        energy: the target.
        chain: the chain.
        log_z: log Z.
    """

    knows_values = True

    def __init__(self, energy: Energy, chain: Chain, log_z: float) -> None:
        self.energy, self.chain, self.log_z = energy, chain, log_z

    def slopes(self, x: Tensor, t: int, x_T: Tensor, generator: torch.Generator) -> Pair:
        """See :meth:`Posterior.slopes`: twice the truth."""
        slope = self.energy.hand_over(self.energy.value_gradient, x, t, self.chain).to(x)
        return slope, slope

    def value(self, x: Tensor, t: int) -> Tensor:
        """See :meth:`Posterior.value`."""
        return self.energy.hand_over(self.energy.value, x, t, self.chain).to(x)

    def log_start(self, x: Tensor) -> Tensor:
        """See :meth:`Posterior.log_start`."""
        return -self.value(x, 0) - self.log_z


class SampledPosterior(Posterior):
    """Two groups of draws of x_T given x_t, for targets without exact values.

    x_t comes from x_T by noising, so x_T is itself an exact draw, and so is every later state of a
    chain that leaves the posterior alone. A sweep of it is a jump to one of `CANDIDATES` samples of
    the target (iterated sampling importance resampling: Andrieu, Lee, Vihola, Bernoulli 24, 2018)
    and `STEPS` steps of MALA. Where the chain forgets x_T, the mean gradients of the two groups are
    independent. Where it does not, they agree with each other and with x_T by more than ∇V_t.

    Args:
        energy: the target, τ = 1.
        chain: the chain.
        samples: independent samples of the target, shape (M, D), none of which a path ends at.
    """

    knows_values = False
    CANDIDATES = 128
    STEPS = 4
    APART = 3  # sweeps before each group
    SWEEPS = 4  # of each group
    ACCEPTANCE = 0.6

    def __init__(self, energy: Energy, chain: Chain, samples: Tensor) -> None:
        self.chain, self.samples = chain, samples.double()
        self.energy = FiniteEnergy(energy)
        self.geometry = energy.geometry
        self.dim = energy.geometry.effective_dim
        gradient = self.energy(self.samples[:1_000])[1]
        self.slope_at_end = gradient.square().sum(-1)  # ‖∇E‖², whose mean is that of ‖∇V_T‖²

    def slopes(self, x: Tensor, t: int, x_T: Tensor, generator: torch.Generator) -> Pair:
        """See :meth:`Posterior.slopes`: means over two groups of draws."""
        density = _Noised(self, x, t)
        size = (0.5 * density.noise / (1 + density.noise * density.sharpness)).clamp_max(1.0)
        log_step = size.log()
        now, groups = density(x_T), list[Tensor]()
        for _ in range(2):
            total = torch.zeros_like(x)
            for sweep in range(self.APART + self.SWEEPS):
                now = density.jump(now, generator)
                for _ in range(self.STEPS):
                    now, log_ratio = metropolis_langevin(density, now, log_step.exp(), generator)
                    rate = log_ratio.exp().clamp_max(1.0).mean()
                    log_step = log_step + 0.1 * (rate - self.ACCEPTANCE)
                    if sweep >= self.APART:
                        total += density.slope(now)
            groups.append(total / (self.SWEEPS * self.STEPS))
        return groups[0], groups[1]

    def value(self, x: Tensor, t: int) -> None:
        """Is not known."""

    def log_start(self, x: Tensor) -> Tensor:
        """See :meth:`Posterior.log_start`: the mean of the samples' noising kernels."""
        scale, noise = self.chain.A[0], self.chain.S[0]
        logs = []
        for part in x.split(256):
            squares = torch.cdist(part, self.samples / scale).square()
            logs.append(torch.logsumexp(-0.5 * squares / noise, dim=-1))
        norm = math.log(len(self.samples)) + 0.5 * self.dim * math.log(2 * math.pi)
        return torch.cat(logs) - norm - 0.5 * self.dim * noise.log()


class _Noised:
    """The density of x_T given x_t, with τ = 1.

    Args:
        of: target and samples.
        x: bridge states (B, D).
        t: their level.
    """

    def __init__(self, of: SampledPosterior, x: Tensor, t: int) -> None:
        self.of, self.geometry = of, of.geometry
        self.scale = of.chain.A[t]
        self.noise = self.scale.square() * of.chain.S[t]  # of x_T around A_t x_t
        self.centre = self.scale * x
        self.sharpness = of.slope_at_end.mean() / of.dim
        # The mixture of both unbiased gradients that does not vary for a Gaussian.
        self.share = 1 / (1 + self.noise * self.sharpness)

    def __call__(self, x: Tensor) -> Point:
        energy, gradient = self.of.energy(x)
        apart = (x - self.centre) / self.noise
        level = energy + 0.5 * self.noise * apart.square().sum(-1)
        return Point(x, level, gradient + apart, energy, gradient)

    def slope(self, now: Point) -> Tensor:
        """An unbiased estimate of ∇V_t at x_t, shape (B, D)."""
        denoising = (self.centre - now.x) / self.noise
        return self.scale * torch.lerp(denoising, now.gradient, self.share)

    def jump(self, now: Point, generator: torch.Generator) -> Point:
        """To one of some samples of the target, or nowhere, by their noising kernels."""
        of, n = self.of, len(now.x)
        pick = torch.randint(
            len(of.samples), (n, of.CANDIDATES), generator=generator, device=now.x.device
        )
        states = torch.cat([now.x.unsqueeze(1), of.samples[pick]], dim=1)
        logs = -0.5 * (states - self.centre.unsqueeze(1)).square().sum(-1) / self.noise
        uniform = torch.rand(
            logs.shape, generator=generator, device=logs.device, dtype=logs.dtype
        ).clamp_min(1e-300)
        chosen = (logs - (-uniform.log()).log()).argmax(-1)  # one of them by its share
        return self(states[torch.arange(n, device=chosen.device), chosen])
