"""The path gap, split into start, discretisation, learning and noise scale (docs/error_budget.md).

P is the law of paths whose last state is a sample of the target and whose others are noised from
it, Q that of the sampler's paths. With pushes v, x_{t+1} = a_t x_t + sigma_t v, and the control u,

EUBO - log Z = KL(P ‖ Q) = KL(p_0 ‖ pi_0) + Σ_t [ learning + noise scale + discretisation ],

learning        ½ E‖u - u*‖² / rho²,  u* = E[v | x_t]
noise scale     ½ D (r²/rho² - 1 - log(r²/rho²)),  r² = E‖v - u*‖² / D
discretisation  E KL(P(v | x_t) ‖ N(u*, r² I))
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vgs_rl.checks import count_of, seed_of
from vgs_rl.conditional.energy import require_one
from vgs_rl.energy import Split
from vgs_rl.evaluation.budget.bridges import draw_bridges, halved, start_part
from vgs_rl.evaluation.budget.parts import GROUPS, split_gap
from vgs_rl.evaluation.budget.posterior import ExactPosterior, Posterior, SampledPosterior
from vgs_rl.evaluation.budget.result import ErrorBudget, Estimate
from vgs_rl.samplers.base import ChainSampler, Sampler
from vgs_rl.transitions import KernelPolicy
from vgs_rl.weights import log_z_estimate, log_z_standard_error

EXACT, SAMPLED = 20_000, 2_000  # bridge paths by default
STARTS = 10  # times as many states for the start's part, where exact ones are to be had
POOL = 20_000  # samples that posteriors are drawn from


class HasSampler(Protocol):
    """An agent."""

    def sampler(self) -> Sampler:
        """Its current sampler."""


@torch.no_grad()
def error_budget(
    agent: HasSampler | Sampler,
    *,
    n: int | None = None,
    paths: int = 20_000,
    seed: int = 0,
    exact: bool | None = None,
    split: Split = "test",
) -> ErrorBudget:
    """Splits EUBO - log Z of a sampler into its causes, and predicts what each purchase gains.

    Bridge paths end at exact samples of the target, at its shipped reference, or, where it has
    neither, at the sampler's own samples, resampled by their weights. These say nothing of modes
    that no path visits.

    Where the target's values V_t are known, every part has an unbiased estimate or a consistent
    one. Elsewhere the best control comes from MCMC draws of x_T given x_t, which start at an exact
    draw. Where they do not forget it, learning is estimated too high and discretisation too low;
    the start's part is from a kernel density estimate. A path then costs about 140 gradients of E a
    step. The sum of the parts against the measured gap says how far to trust them.

    Args:
        agent: an agent, or a chain's sampler.
        n: bridge paths; 20,000 by default with exact values, 2,000 without.
        paths: on which either gap is measured.
        seed: of all draws.
        exact: whether to use the target's exact values; by default where it has them.
        split: which shipped samples.

    Raises:
        ValueError: if the steps are not Gaussians of one width, the start has no density, space is
            not linear, the temperature is not 1, `exact` is asked of a target without values, or a
            number is out of its range.
    """
    paths, seed = count_of("paths", paths, least=2), seed_of(seed)
    sampler = chain_of(agent if isinstance(agent, Sampler) else agent.sampler())
    mdp = sampler.mdp
    energy = mdp.energy
    if exact is None:
        exact = energy.has_value and energy.log_z is not None
    elif exact and not (energy.has_value and energy.log_z is not None):
        raise ValueError(f"exact must be False: {type(energy).__name__} has no exact values")
    n = count_of("n", n or (EXACT if exact else SAMPLED), least=2 * GROUPS)
    states = np.random.SeedSequence([seed, 2]).generate_state(4, np.uint64)
    forward, source, bridges, backward = (
        mdp.generator(int(state >> np.uint64(1))) for state in states
    )
    samples = sampler.sample(paths, forward)
    assert samples.log_weight is not None
    log_weight = samples.log_weight.double()
    log_z, log_z_error = energy.log_z, 0.0
    if log_z is None:
        log_z = float(log_z_estimate(log_weight))
        log_z_error = log_z_standard_error(log_weight) or math.nan
    with mdp.uncounted():
        supply = _Supply(sampler, split, (n, paths, POOL), source)
        x, again, pool = supply.sets
        posterior: Posterior
        chain = halved(mdp.chain)
        if exact:
            posterior = ExactPosterior(energy, chain, log_z)
        else:
            posterior = SampledPosterior(energy, chain, pool)
        drawn = draw_bridges(sampler, x, posterior, bridges)
        if exact and energy.can_sample:
            more = energy.sample(STARTS * n, source)
            drawn = replace(drawn, start=start_part(sampler, more, posterior, bridges))
    eubo = sampler.reverse_log_weight(again, backward).double()
    end = posterior.slope_at_end if isinstance(posterior, SampledPosterior) else None
    found = split_gap(drawn, mdp.rho, mdp.effective_dim, chain, end)
    return ErrorBudget(
        parts=found.parts,
        total=found.total,
        predictions=found.gains,
        num_steps=mdp.num_steps,
        gap=_mean(eubo - log_z, log_z_error),
        elbo_gap=_mean(log_z - log_weight, log_z_error),
        n=len(x),
        seed=seed,
        log_z=log_z,
        log_z_error=log_z_error,
        log_z_known=energy.log_z is not None,
        method="exact values" if exact else "posterior draws",
        premise=supply.premise,
        target=type(energy).__name__,
    )


def chain_of(sampler: Sampler) -> ChainSampler:
    """The sampler, if its gap can be split.

    Raises:
        ValueError: as :func:`error_budget`, of what does not depend on its numbers.
    """
    name = type(sampler).__name__
    if not isinstance(sampler, ChainSampler):
        raise ValueError(f"an error budget needs a ChainSampler, got {name}")
    if isinstance(sampler.policy, KernelPolicy):
        policy = type(sampler.policy).__name__
        raise ValueError(f"an error budget needs steps of one width, got the kernel {policy}")
    if not sampler.has_reverse_weights:
        raise ValueError("an error budget needs a start with a density and noise_scale 1")
    if sampler.temperature != 1.0:
        raise ValueError(f"an error budget needs temperature 1, got {sampler.temperature}")
    sampler.mdp.geometry.require_linear("an error budget")
    require_one(sampler.mdp.energy, "an error budget is of")
    # The gap is the same in the chain's own coordinates.
    return sampler if sampler.coordinates is None else ChainSampler(sampler.mdp, sampler.policy)


def _mean(values: Tensor, log_z_error: float) -> Estimate:
    error = float(values.std()) / math.sqrt(len(values))
    if not math.isnan(log_z_error):
        error = math.hypot(error, log_z_error)
    return Estimate(value=float(values.mean()), error=error)


class _Supply:
    """Samples of the target: for bridge paths, for the measured gap, for posteriors."""

    premise: str

    def __init__(
        self,
        sampler: ChainSampler,
        split: Split,
        sizes: tuple[int, int, int],
        generator: torch.Generator,
    ) -> None:
        energy = sampler.mdp.energy
        if energy.can_sample:
            self.premise = "exact samples"
            self.sets = [energy.sample(size, generator) for size in sizes]
            return
        try:
            x, self.premise = energy.reference(split), "reference samples (MCMC)"
        except NotImplementedError:
            self.premise = "weighted samples of its own"
            self.sets = [sampler.sample(size, generator, resample=True).x for size in sizes]
            return
        x = x.to(generator.device)
        x = x[torch.randperm(len(x), generator=generator, device=x.device)]
        n = min(sizes[0], len(x) // 3)
        left = len(x) - n
        self.sets = [x[:n], x[n : n + left // 2], x[n + left // 2 :]]
