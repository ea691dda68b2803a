"""Annealed importance sampling and sequential Monte Carlo from a wide Gaussian to the target.

With pi_0 = N(0, scale² I) and φ(x) = -E(x)/tau - log pi_0(x), the densities
γ_k = pi_0 exp(β_k φ), 0 = β_0 < … < β_K = 1, lead from pi_0 to the unnormalised target. Particles
start from pi_0; step k multiplies their weight by exp((β_k - β_{k-1}) φ(x)) and then moves them by
MALA, which leaves γ_k invariant. E[w] = Z exactly (Neal, Statistics and Computing 11, 2001), with
resampling on the way too (Del Moral, Doucet and Jasra, JRSS B 68, 2006).
"""

from __future__ import annotations

import torch
from torch import Tensor

from vgs_rl.checks import count_of, require_positive, seed_of
from vgs_rl.energy import Energy
from vgs_rl.samplers.base import Sampler, Samples, pilot_generator
from vgs_rl.samplers.mcmc.kernels import FiniteEnergy, Point, acceptance_rate, metropolis_langevin
from vgs_rl.starts import GaussianStart
from vgs_rl.weights import effective_sample_size, log_z_estimate, systematic_resample


class Bridge:
    """γ = pi_0 exp(β φ) as a density of chains.

    Args:
        energy: E/tau.
        scale: standard deviation of pi_0.
        beta: β, between pi_0 and the target.
    """

    def __init__(self, energy: FiniteEnergy, scale: float, beta: float) -> None:
        self.energy, self.beta, self.geometry = energy, beta, energy.geometry
        self.precision = (1 - beta) / scale**2

    def __call__(self, x: Tensor) -> Point:
        """See :class:`~vgs_rl.samplers.mcmc.kernels.Density`."""
        return self.at(x, *self.energy(x))

    def at(self, x: Tensor, energy: Tensor, gradient: Tensor) -> Point:
        """The point at x (B, D), where E/tau (B,) and its gradient (B, D) are known."""
        level = 0.5 * self.precision * x.square().sum(-1) + self.beta * energy
        return Point(x, level, self.precision * x + self.beta * gradient, energy, gradient)


class AnnealedSMC(Sampler):
    """Annealed importance sampling; with a `threshold` above 0, sequential Monte Carlo.

    The β_k and the step size of every γ_k are fitted on `pilot` separate particles at the
    first draw (counted there), from a separate stream of random numbers. So they depend on no
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
        self.energy_at_tau = FiniteEnergy(energy, temperature, keep_infinite_weights=True)
        self._fitted = False

    def _bridge(self, k: int) -> Bridge:
        return Bridge(self.energy_at_tau, self.scale, float(self.betas[k]))

    def _potential(self, now: Point) -> Tensor:
        """φ(x), shape (B,)."""
        return -now.energy - self.start.log_prob(now.x)

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
        now = self._bridge(0)(self.start.sample(self.pilot, generator))
        spreads = [self._spread(now)]
        h = self.step_sizes[0]
        for k in range(1, len(self.betas)):
            bridge = self._bridge(k)
            now = bridge.at(now.x, now.energy, now.gradient)
            for _ in range(self.PILOT_MOVES):
                now, log_ratio = metropolis_langevin(bridge, now, h, generator)
                h = h * torch.exp(acceptance_rate(log_ratio) - self.ACCEPTANCE)
            self.step_sizes[k - 1] = h
            spreads.append(self._spread(now))
        return torch.stack(spreads)

    def _spread(self, now: Point) -> Tensor:
        potential = self._potential(now).double()
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
        before = self.energy_at_tau.evaluations
        if not self._fitted:
            self._fit()
        now = self._bridge(0)(self.start.sample(n, generator))
        log_weight = torch.zeros_like(now.energy)
        for k in range(1, len(self.betas)):
            rise = float(self.betas[k] - self.betas[k - 1])
            log_weight = log_weight + rise * self._potential(now)
            # One synchronisation a step: whether to resample is a decision of the host.
            if self.threshold and bool(effective_sample_size(log_weight) < self.threshold):
                chosen = systematic_resample(log_weight, n, generator)
                now = now.rows(chosen)
                log_weight = log_z_estimate(log_weight).expand(n)
            bridge = self._bridge(k)
            now = bridge.at(now.x, now.energy, now.gradient)
            for _ in range(self.moves):
                now, _ = metropolis_langevin(bridge, now, self.step_sizes[k - 1], generator)
        return Samples(
            x=now.x,
            log_weight=log_weight,
            energy_evaluations=self.energy_at_tau.evaluations - before,
            independent=not self.threshold,
        )
