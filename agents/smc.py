"""Sequential Monte Carlo along the chain, with the value as its twist."""

from __future__ import annotations

import torch

from vgs_rl.agents.policy import ValueGradientPolicy
from vgs_rl.mdp import SamplingMDP, State
from vgs_rl.sampler import Sampler, Samples
from vgs_rl.weights import effective_sample_size, log_z_estimate, systematic_resample


class SMCSampler(Sampler):
    """Runs particles through the chain and resamples them by exp(-V_t/tau) on the way.

    With γ_t = exp(-V_t/tau) as the target at step t (γ_0 = pi_0, γ_T = exp(-E/tau)), a step
    multiplies a particle's weight by γ_{t+1}(x_{t+1}) q~(x_t | x_{t+1}) / (γ_t(x_t) pi(x_{t+1} |
    x_t)). Whenever the effective sample size falls below `threshold`, particles are resampled
    systematically and share their mean weight. The mean weight stays unbiased for Z whatever V
    is; the better V is, the less the weights vary (Guarniero, Johansen and Lee, 2017). Additive
    constants in V, even one per step, cancel.

    Particles of one chunk interact: samples are exchangeable within it, not independent, and
    their weights belong together.

    Args:
        mdp: the chain.
        policy: the control; its value is the twist.
        threshold: effective sample size, as a fraction, below which particles are resampled.
    """

    def __init__(
        self, mdp: SamplingMDP, policy: ValueGradientPolicy, threshold: float = 0.5
    ) -> None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be in [0, 1], got {threshold}")
        self.mdp, self.policy, self.threshold = mdp, policy, threshold
        self.device = mdp.device

    def _draw(self, n: int, generator: torch.Generator) -> Samples:
        mdp, tau = self.mdp, self.mdp.temperature
        before = mdp.energy_evaluations
        x = mdp.start.sample(n, generator)
        log_twist = mdp.start.log_prob(x)  # log γ_t(x_t)
        log_weight = torch.zeros_like(log_twist)
        for t in range(mdp.num_steps):
            # One synchronisation a step: whether to resample is a decision of the host.
            if bool(effective_sample_size(log_weight) < self.threshold):
                chosen = systematic_resample(log_weight, n, generator)
                x, log_twist = x[chosen], log_twist[chosen]
                log_weight = log_z_estimate(log_weight).expand(n)
            step, energy = mdp.step_with_energy(State(x, t), self.policy(x, t), generator)
            x = step.state.x
            if energy is None:
                next_twist = -self.policy.value.value(x, t + 1) / tau
                log_weight = log_weight + step.log_ratio + next_twist - log_twist
                log_twist = next_twist
            else:  # the last step's log-ratio already holds -E/tau
                log_weight = log_weight + step.log_ratio - log_twist
        used = mdp.energy_evaluations - before
        return Samples(x=x, log_weight=log_weight, energy_evaluations=used)
