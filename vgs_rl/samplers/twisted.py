"""Sequential Monte Carlo along the chain, with the value as its twist."""

from __future__ import annotations

import torch
from torch import Tensor

from vgs_rl.checks import seed_of, whole
from vgs_rl.mdp import SamplingMDP
from vgs_rl.networks.policies import ValueGradientPolicy
from vgs_rl.samplers.base import Sampler, Samples, pilot_generator
from vgs_rl.transitions import State
from vgs_rl.weights import effective_sample_size, log_z_estimate, systematic_resample


class TwistedSMC(Sampler):
    """Runs particles through the chain and resamples them by tempered twisted weights on the way.

    With γ_t = exp(-V_t/tau), a path up to step t has the twisted log-weight l_t = log γ_t(x_t)
    - log pi_0(x_0) + Σ log q~/pi: what its final log w would be if V were exact. Particles are
    weighted by exp(λ_t l_t) on the way and by exp(l_T) = w at the end; whenever the effective
    sample size falls below `threshold`, they are resampled systematically and share their mean
    weight. That mean stays unbiased for Z whatever V and λ are (Guarniero, Johansen and Lee,
    2017), and constants in V, even one per step, cancel.

    A learned V may have the right gradient and the wrong level in regions that no path connects.
    So λ_t ∈ [0, 1] says how far l_t is believed: the least-squares slope of log w on l_t over
    `pilot` paths of the sampler's own, drawn at construction. Where V is exact λ_t = 1; where it
    says nothing, λ_t = 0, and the plain importance weights are left.

    Particles of one chunk interact: samples are exchangeable within it, not independent, and
    their weights belong together (`Samples.independent` is False). What the pilot costs is counted
    in the first draw.

    Args:
        mdp: the chain.
        policy: the control; its value is the twist.
        threshold: effective sample size, as a fraction, below which particles are resampled.
        pilot: paths that λ is fitted on; 0 sets every λ_t to 1.
        seed: seed of the pilot, which shares no paths with any draw.

    Attributes:
        trust: λ_1 … λ_T, shape (T,).
    """

    def __init__(
        self,
        mdp: SamplingMDP,
        policy: ValueGradientPolicy,
        threshold: float = 0.5,
        *,
        pilot: int = 2_000,
        seed: int = 0,
    ) -> None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be in [0, 1], got {threshold}")
        pilot, seed = whole("pilot", pilot), seed_of(seed)
        if pilot < 0 or pilot == 1:
            raise ValueError(f"pilot must be 0 or at least 2, got {pilot}")
        mdp.start.require_density("SMC")
        if mdp.conditions is not None:
            names = ", ".join(mdp.conditions.names)
            raise ValueError(f"SMC resamples paths of one energy, got parameters ({names})")
        self.mdp, self.policy, self.threshold = mdp, policy, threshold
        self.device, self.temperature = mdp.device, mdp.temperature
        self.trust = torch.ones(mdp.num_steps, device=mdp.device, dtype=mdp.dtype)
        self._pilot_cost = 0
        if pilot:
            with mdp.uncounted() as used:
                self.trust = self._fit_trust(pilot, pilot_generator(mdp.device, seed))
                self._pilot_cost = used()

    @torch.no_grad()
    def _fit_trust(self, n: int, generator: torch.Generator) -> Tensor:
        x = self.mdp.start.sample(n, generator)
        path = -self.mdp.start.log_prob(x)
        twisted = []
        for t in range(self.mdp.num_steps):
            x, path, log_twisted = self._step(x, path, t, generator)
            twisted.append(log_twisted)
        predictors, outcome = torch.stack(twisted), twisted[-1]
        live = torch.isfinite(predictors).all(0)  # a path of weight 0 has no place on a line
        predictors, outcome = predictors[:, live], outcome[live]
        predictors = predictors - predictors.mean(-1, keepdim=True)
        slope = (predictors * (outcome - outcome.mean())).sum(-1) / predictors.square().sum(-1)
        slope = slope.nan_to_num(0.0).clamp(0.0, 1.0)
        slope[-1] = 1.0  # the end is exact
        return slope

    def _step(
        self, x: Tensor, path: Tensor, t: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x_{t+1}, -log pi_0(x_0) + Σ log q~/pi up to there, and l_{t+1}."""
        mdp = self.mdp
        step, energy = mdp.step_with_energy(State(x, t), self.policy(x, t), generator)
        x, path = step.state.x, path + step.log_ratio
        if energy is not None:  # the last step's log-ratio already holds -E/tau
            return x, path, path
        return x, path, path - self.policy.value.value(x, t + 1) / mdp.temperature

    def _draw(self, n: int, generator: torch.Generator) -> Samples:
        with self.mdp.uncounted() as used:
            x, log_weight = self._particles(n, generator)
            cost, self._pilot_cost = used() + self._pilot_cost, 0
        return Samples(
            x=x,
            log_weight=log_weight,
            energy_evaluations=cost,
            independent=not self.threshold,
        )

    def _particles(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        mdp = self.mdp
        x = mdp.start.sample(n, generator)
        path = -mdp.start.log_prob(x)
        log_weight = torch.zeros_like(path)  # of the particles, since all of them were equal
        believed = torch.zeros_like(path)  # λ_t l_t
        for t in range(mdp.num_steps):
            # One synchronisation a step: whether to resample is a decision of the host.
            if bool(effective_sample_size(log_weight) < self.threshold):
                chosen = systematic_resample(log_weight, n, generator)
                x, path, believed = x[chosen], path[chosen], believed[chosen]
                log_weight = log_z_estimate(log_weight).expand(n)
            x, path, log_twisted = self._step(x, path, t, generator)
            log_weight = log_weight - believed
            believed = torch.where(self.trust[t] > 0, self.trust[t] * log_twisted, 0.0)
            log_weight = log_weight + believed
        return x, log_weight
