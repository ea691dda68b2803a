"""Annealed importance sampling and sequential Monte Carlo from a wide Gaussian to the target.

With pi_0 = N(0, scale² I) and φ(x) = -E(x)/tau - log pi_0(x), the densities
γ_k = pi_0 exp(β_k φ), 0 = β_0 < … < β_K = 1, lead from pi_0 to the unnormalised target. Particles
start from pi_0; step k multiplies their weight by exp((β_k - β_{k-1}) φ(x)) and then moves them by
MALA, which leaves γ_k invariant. E[w] = Z exactly (Neal, Statistics and Computing 11, 2001), with
resampling on the way too (Del Moral, Doucet and Jasra, JRSS B 68, 2006).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vgs_rl.checks import count_of, require_positive, seed_of
from vgs_rl.energy import Energy
from vgs_rl.samplers.base import Sampler, Samples, pilot_generator
from vgs_rl.starts import GaussianStart
from vgs_rl.weights import effective_sample_size, log_z_estimate, systematic_resample


class _Particles(NamedTuple):
    """States (B, D), E/tau (B,), infinite where it is not finite, and its gradient (B, D)."""

    x: Tensor
    energy: Tensor
    gradient: Tensor

    def rows(self, index: Tensor) -> _Particles:
        return _Particles(*(part[index] for part in self))

    def where(self, chosen: Tensor, other: _Particles) -> _Particles:
        """These particles where `chosen`, shape (B,), the others elsewhere."""
        rows = chosen.unsqueeze(-1)
        return _Particles(
            torch.where(rows, self.x, other.x),
            torch.where(chosen, self.energy, other.energy),
            torch.where(rows, self.gradient, other.gradient),
        )


class AnnealedSMC(Sampler):
    """Annealed importance sampling; with a `threshold` above 0, sequential Monte Carlo.

    The β_k and the step size of every γ_k are fitted on `pilot` particles of their own at the
    first draw (counted there), from a stream of random numbers of their own. So they depend on no
    particle they are used for, and the weights stay unbiased for Z. The β_k are such that
    log-weights vary by the same amount in every step; step sizes aim at an acceptance rate of 0.6.

    With resampling, particles of one chunk interact: their weights belong together, and neither
    ELBO nor effective sample size is to be had from them (`Samples.independent` is False).

    Attributes:
        betas: β_0 … β_K, shape (K + 1,), once fitted.
        step_sizes: variance of a proposal per coordinate at β_1 … β_K, shape (K,).

    Args:
        energy: the target.
        steps: K; each costs `moves` energy evaluations per sample, and the start one.
        scale: standard deviation of pi_0 per coordinate.
        threshold: effective sample size, as a fraction, below which particles are resampled.
        moves: MALA steps at each β_k.
        temperature: tau.
        pilot: particles of the pilot runs; these cost 3 · 5 (K + 1) evaluations each.
        device: where the particles live.
        seed: seed of the pilot runs.
    """

    ROUNDS, PILOT_MOVES, ACCEPTANCE = 3, 5, 0.6

    def __init__(
        self,
        energy: Energy,
        steps: int,
        *,
        scale: float = 1.0,
        threshold: float = 0.0,
        moves: int = 1,
        temperature: float = 1.0,
        pilot: int = 200,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        steps, moves = count_of("steps", steps), count_of("moves", moves)
        pilot, seed = count_of("pilot", pilot, least=10), seed_of(seed)
        require_positive("AnnealedSMC", scale=scale, temperature=temperature)
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be in [0, 1], got {threshold}")
        self.energy, self.scale, self.threshold, self.moves = energy, scale, threshold, moves
        self.temperature, self.device = temperature, torch.device(device)
        self.pilot, self.seed = pilot, seed
        self.start = GaussianStart(energy.geometry, scale).to(self.device)
        # Before the fit, the pilot's own: close together where a wide start meets steep energies.
        self.betas = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device=self.device) ** 4
        self.step_sizes = torch.full((steps,), 0.1 * scale**2, device=self.device)
        self._fitted = False
        self._used = 0

    def _evaluate(self, x: Tensor) -> _Particles:
        energy, gradient = self.energy.with_gradient(x)
        self._used += len(x) * self.energy.gradient_evaluations
        finite = torch.isfinite(energy) & torch.isfinite(gradient).all(-1)
        usable = finite | torch.isneginf(energy)  # E = -inf is a weight of +inf, which is an error
        energy = torch.where(usable, energy, torch.inf) / self.temperature
        gradient = torch.where(finite.unsqueeze(-1), gradient, 0.0) / self.temperature
        return _Particles(x, energy, self.energy.geometry.project(gradient))

    def _potential(self, particles: _Particles) -> Tensor:
        """φ(x), shape (B,)."""
        return -particles.energy - self.start.log_prob(particles.x)

    def _move(
        self, now: _Particles, beta: float, h: Tensor, generator: torch.Generator
    ) -> tuple[_Particles, Tensor]:
        """One MALA step on γ = pi_0 exp(β φ); the acceptance rate."""
        precision = (1 - beta) / self.scale**2

        def drift(p: _Particles) -> Tensor:  # -½ h ∇(-log γ)
            return -0.5 * h * (precision * p.x + beta * p.gradient)

        def level(p: _Particles) -> Tensor:  # -log γ
            return 0.5 * precision * p.x.square().sum(-1) + beta * p.energy

        x = now.x
        z = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        z = self.energy.geometry.project(z)
        new = self._evaluate(x + drift(now) + h.sqrt() * z)
        back = x - new.x - drift(new)
        log_ratio = level(now) - level(new)
        log_ratio = log_ratio + 0.5 * z.square().sum(-1) - back.square().sum(-1) / (2 * h)
        log_ratio = log_ratio.nan_to_num(-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        uniform = torch.rand(len(x), generator=generator, device=x.device, dtype=x.dtype)
        return new.where(uniform.log() < log_ratio, now), log_ratio.clamp_max(0.0).exp().mean()

    # --- the pilot ------------------------------------------------------------------------------

    def _fit(self) -> None:
        generator = pilot_generator(self.device, self.seed)
        for turn in range(self.ROUNDS):
            spread = self._pilot_run(generator)
            if turn < self.ROUNDS - 1:
                self._respace(spread)
        self._fitted = True

    def _pilot_run(self, generator: torch.Generator) -> Tensor:
        """Adapts the step sizes; returns a robust spread of φ under each γ_k, shape (K + 1,)."""
        particles = self._evaluate(self.start.sample(self.pilot, generator))
        spreads = [self._spread(particles)]
        h = self.step_sizes[0]
        for k in range(1, len(self.betas)):
            for _ in range(self.PILOT_MOVES):
                particles, rate = self._move(particles, float(self.betas[k]), h, generator)
                h = h * torch.exp(rate - self.ACCEPTANCE)
            self.step_sizes[k - 1] = h
            spreads.append(self._spread(particles))
        return torch.stack(spreads)

    def _spread(self, particles: _Particles) -> Tensor:
        potential = self._potential(particles).double()
        potential = torch.nan_to_num(potential, neginf=-1e30)
        levels = torch.quantile(potential, potential.new_tensor([0.16, 0.84]))
        return 0.5 * (levels[1] - levels[0])

    def _respace(self, spread: Tensor) -> None:
        """β_k at equal distances, where dβ has the length spread · dβ."""
        pieces = 0.5 * (spread[1:] + spread[:-1]) * self.betas.diff()
        pieces = pieces + 1e-3 * pieces.sum() / len(pieces) + 1e-12
        length = torch.cat([pieces.new_zeros(1), pieces.cumsum(0)])
        wanted = torch.linspace(0, 1, len(length), dtype=length.dtype, device=length.device)
        wanted = wanted * length[-1]
        cell = (torch.searchsorted(length, wanted) - 1).clamp(0, len(pieces) - 1)
        share = (wanted - length[cell]) / pieces[cell]
        self.betas = self.betas[cell] + share * self.betas.diff()[cell]
        self.betas[0], self.betas[-1] = 0.0, 1.0

    # --- the run --------------------------------------------------------------------------------

    def _draw(self, n: int, generator: torch.Generator) -> Samples:
        before = self._used
        if not self._fitted:
            self._fit()
        particles = self._evaluate(self.start.sample(n, generator))
        log_weight = torch.zeros_like(particles.energy)
        for k in range(1, len(self.betas)):
            rise = float(self.betas[k] - self.betas[k - 1])
            log_weight = log_weight + rise * self._potential(particles)
            # One synchronisation a step: whether to resample is a decision of the host.
            if self.threshold and bool(effective_sample_size(log_weight) < self.threshold):
                chosen = systematic_resample(log_weight, n, generator)
                particles = particles.rows(chosen)
                log_weight = log_z_estimate(log_weight).expand(n)
            for _ in range(self.moves):
                particles, _ = self._move(
                    particles, float(self.betas[k]), self.step_sizes[k - 1], generator
                )
        used = self._used - before
        return Samples(
            x=particles.x,
            log_weight=log_weight,
            energy_evaluations=used,
            independent=not self.threshold,
        )
