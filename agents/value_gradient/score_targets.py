"""Unbiased targets for the value's gradient at noised states, and averages that quiet them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vgs_rl.agents.value_gradient.objectives import GradientMatching
from vgs_rl.agents.value_gradient.refinement import PosteriorAverage
from vgs_rl.agents.value_gradient.sources import Source
from vgs_rl.mdp import SamplingMDP
from vgs_rl.training import parallel


class ScoreTargets:
    """The denoising and the target-score target at x_t, averaged over what x_T may have been.

    Attributes:
        share: of the references in each step's targets, shape (T,); the rest is the state's own.
        shared: first step without a share.

    Args:
        config: the objective.
        mdp: chain and target.
    """

    def __init__(self, config: GradientMatching, mdp: SamplingMDP) -> None:
        self.config, self.mdp = config, mdp
        self.posterior = PosteriorAverage(mdp, config.posterior_steps, config.max_drift)
        self.share = torch.ones(mdp.num_steps, device=mdp.device)
        self.shared = mdp.num_steps
        # Beside posterior_steps, references serve where S is large.
        self.precision = torch.float32 if config.posterior_steps else torch.float64

    @torch.no_grad()
    def draw(
        self, source: Source, t: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """States x_t with their denoising and target-score targets, all (B, D), for t (B,)."""
        mdp, chain = self.mdp, self.mdp.chain
        x_T, gradient = source.draw(max(len(t), self.config.references), generator)
        x, z = mdp.noised_marginal(x_T[: len(t)], t, generator)
        scale, spread = chain.A[t].unsqueeze(-1), chain.S[t].unsqueeze(-1)
        mean, slope = x_T[: len(t)], gradient[: len(t)]
        if self.config.posterior_steps:
            mean, slope = self.posterior(mean, slope, x, t, generator)
        if self.config.references:
            k = math.ceil(self.shared * len(t) / mdp.num_steps)  # t ascends
            values = torch.cat([x_T, gradient], dim=-1)
            of = (x[:k], x_T, scale[:k], spread[:k], self.precision)
            averages = _posterior_means(*of, values).to(x.dtype).chunk(2, dim=-1)
            share = self.share[t[:k]].unsqueeze(-1)
            mean = torch.cat([torch.lerp(mean[:k], averages[0], share), mean[k:]])
            slope = torch.cat([torch.lerp(slope[:k], averages[1], share), slope[k:]])
        if self.config.references or self.config.posterior_steps:
            z = (x - mean / scale) / spread.sqrt()
        return x, mdp.temperature * z / spread.sqrt(), scale * slope

    def measure_share(self, source: Source, generator: torch.Generator) -> None:
        """The share of the references in each step's targets, from their effective number.

        It is fixed before states are drawn: a share that knew the state's own x_T would bias.
        """
        chain, steps = self.mdp.chain, self.mdp.num_steps
        t = torch.arange(4 * steps, device=self.mdp.device) // 4
        x_T, _ = source.draw(max(len(t), self.config.references), generator)
        x, _ = self.mdp.noised_marginal(x_T[: len(t)], t, generator)
        scale, spread = chain.A[t].unsqueeze(-1), chain.S[t].unsqueeze(-1)
        left, right = _posterior_factors(x, x_T, scale, spread, torch.float64)
        weights = torch.softmax(left @ right.T, dim=-1).to(x.dtype)
        inverse = weights.square().sum(-1).view(steps, 4).mean(-1)  # of the effective number
        inverse = parallel.mean(inverse)
        self.share = torch.where(inverse < 0.9, 1 - inverse, 0.0)
        self.shared = int((self.share > 0).nonzero().amax()) + 1 if self.share.any() else 0

    def state_dict(self) -> dict[str, Any]:
        """Step sizes of posteriors, and the references' shares."""
        return {"log_step": self.posterior.log_step, "share": self.share, "shared": self.shared}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        self.posterior.log_step = state["log_step"].clone()
        self.share, self.shared = state["share"].clone(), state["shared"]


def _posterior_factors(
    x: Tensor, x_T: Tensor, scale: Tensor, spread: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(B, C) and (M, C) whose products, softmaxed, are the posterior of x_T (M, D) given x (B, D).

    The terminal states are equally likely before; `scale` A_t and `spread` S_t have shape (B, 1).
    """
    # -‖x - x_T / A‖² / 2S without what does not depend on x_T, as one product; in double where
    # S is small, since the squares are large then and all but cancel.
    x, x_T, scale, spread = (z.to(dtype) for z in (x, x_T, scale, spread))
    left = torch.cat([x / (scale * spread), -0.5 / (scale.square() * spread)], dim=-1)
    return left, torch.cat([x_T, x_T.square().sum(-1, keepdim=True)], dim=-1)


def _posterior_means(
    x: Tensor, x_T: Tensor, scale: Tensor, spread: Tensor, dtype: torch.dtype, values: Tensor
) -> Tensor:
    """Means of values (M, C) of terminal states over their posterior given x (B, D): (B, C)."""
    left, right = _posterior_factors(x, x_T, scale, spread, dtype)
    # That is attention, whose fused kernels never hold B x M numbers; they want equal widths.
    width = max(left.shape[-1], values.shape[-1])
    query, key, value = (
        F.pad(z, (0, width - z.shape[-1]))[None, None] for z in (left, right, values.to(dtype))
    )
    means = F.scaled_dot_product_attention(query, key, value, scale=1.0)
    return means[0, 0, :, : values.shape[-1]]
