"""Gradient matching at work: buffers, targets of the value's gradient and their loss."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vgs_rl.agents.base import rollout_scalars
from vgs_rl.agents.value_gradient.buffer import WeightedBuffer
from vgs_rl.agents.value_gradient.continuity import ContinuityTest
from vgs_rl.agents.value_gradient.objectives import GradientMatching, ValueLearner
from vgs_rl.agents.value_gradient.refinement import PosteriorAverage, RefinedBuffer, resample
from vgs_rl.files.restore import check_like, check_rows
from vgs_rl.networks.clusters import ClusterValue
from vgs_rl.networks.guide import GuidedValue
from vgs_rl.networks.paper import PublishedMLP
from vgs_rl.samplers.annealed import AnnealedSMC
from vgs_rl.starts import widened
from vgs_rl.weights import dead_paths

if TYPE_CHECKING:
    from vgs_rl.agents.value_gradient.agent import ValueGradientAgent


class GradientMatchingLearner(ValueLearner):
    """The buffer of terminal states and the loss on it, see :class:`GradientMatching`.

    Args:
        config: the objective.
        agent: whose value it teaches.
    """

    def __init__(self, config: GradientMatching, agent: ValueGradientAgent) -> None:
        self.config = config
        clusters = isinstance(agent.network, ClusterValue | GuidedValue)
        if clusters and self.config.start_size < agent.mdp.num_steps:
            raise ValueError(
                f"GradientMatching.start_size must be at least mdp.num_steps "
                f"{agent.mdp.num_steps} for particles, got {self.config.start_size}"
            )
        agent.mdp.geometry.require_linear("GradientMatching")
        agent.mdp.start.require_density("GradientMatching")
        if agent.config.fit_noise_scale:
            std = agent.config.network.untrained_std(agent.config.prior_std)
            agent.mdp.noise_scale_of_gaussian(std)
        self._buffer = WeightedBuffer(self.config.capacity, self.config.least_ess)
        self._refined = RefinedBuffer(agent.mdp, self.config.capacity, self.config.max_drift)
        self._posterior = PosteriorAverage(
            agent.mdp, self.config.posterior_steps, self.config.max_drift
        )
        self._share = torch.ones(agent.mdp.num_steps, device=agent.mdp.device)
        self._shared = agent.mdp.num_steps  # first step without a share
        # Beside posterior_steps, references serve where S is large.
        self._precision = torch.float32 if self.config.posterior_steps else torch.float64
        self._continuity = ContinuityTest(agent.mdp)
        self._scalars: dict[str, Tensor] = {}
        self._refreshes = 0

    def loss(self, agent: ValueGradientAgent) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`GradientMatching`."""
        if agent.counters.updates % self.config.refresh_every == 0:
            self._refresh(agent)
        mdp, chain, tau = agent.mdp, agent.mdp.chain, agent.mdp.temperature
        # Every step equally often, whether the batch is larger than T or smaller.
        rank = torch.arange(self.config.batch_size, device=mdp.device, dtype=torch.float64)
        rank += torch.rand(1, device=mdp.device, generator=agent.generator)
        t = (rank * (mdp.num_steps / self.config.batch_size)).long().clamp_max(mdp.num_steps - 1)
        x, denoising, target_score = self._scores(agent, t)
        network = agent.network
        assert not isinstance(network, PublishedMLP)  # the configuration refuses it
        if agent.config.drift == "posterior":
            slope, mixture = network.gradient_and_mixture(x, t)
            error = slope - self._mixed(denoising, target_score, mixture)
        else:
            # V_T = E is given: the last step has nothing to learn.
            inner = t + 1 < mdp.num_steps
            a = chain.a[t].unsqueeze(-1)
            slope, mixture = network.gradient_and_mixture(a * x, torch.where(inner, t + 1, t))
            error = a * slope - self._mixed(denoising, target_score, mixture)
            error = error * inner.unsqueeze(-1)
        weight = 0.5 * mdp.num_steps * (chain.s[t] / tau).square()
        loss = (weight * mdp.geometry.project(error).square().sum(-1)).mean()
        return loss, {"train/loss": loss.detach(), **self._scalars}

    @property
    def denoises_only(self) -> bool:
        """Whether the target score is left out."""
        targets = self.config.targets
        return targets == "denoising" or (targets == "auto" and self._continuity.jumps)

    def _mixed(self, denoising: Tensor, target_score: Tensor, mixture: Tensor) -> Tensor:
        return denoising if self.denoises_only else torch.lerp(denoising, target_score, mixture)

    @torch.no_grad()
    def _scores(self, agent: ValueGradientAgent, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States x_t with their denoising and target-score targets, all (B, D), for t (B,)."""
        mdp, chain = agent.mdp, agent.mdp.chain
        x_T, gradient = self._draw(max(len(t), self.config.references), agent)
        x, z = mdp.noised_marginal(x_T[: len(t)], t, agent.generator)
        scale, spread = chain.A[t].unsqueeze(-1), chain.S[t].unsqueeze(-1)
        mean, slope = x_T[: len(t)], gradient[: len(t)]
        if self.config.posterior_steps:
            mean, slope = self._posterior(mean, slope, x, t, agent.generator)
        if self.config.references:
            k = math.ceil(self._shared * len(t) / mdp.num_steps)  # t ascends
            values = torch.cat([x_T, gradient], dim=-1)
            of = (x[:k], x_T, scale[:k], spread[:k], self._precision)
            averages = _posterior_means(*of, values).to(x.dtype).chunk(2, dim=-1)
            share = self._share[t[:k]].unsqueeze(-1)
            mean = torch.cat([torch.lerp(mean[:k], averages[0], share), mean[k:]])
            slope = torch.cat([torch.lerp(slope[:k], averages[1], share), slope[k:]])
        if self.config.references or self.config.posterior_steps:
            z = (x - mean / scale) / spread.sqrt()
        return x, mdp.temperature * z / spread.sqrt(), scale * slope

    def _draw(self, n: int, agent: ValueGradientAgent) -> tuple[Tensor, Tensor]:
        """N terminal states with their ∇E, distributed as the target, both (n, D)."""
        if self.config.refine_steps:
            return self._refined.draw(n, agent.generator)
        return self._buffer.draw(n, agent.generator)

    @torch.no_grad()
    def _refresh(self, agent: ValueGradientAgent) -> None:
        """New chain samples; then start and noise scales follow the buffer."""
        if self.config.refine_steps:
            self._refresh_refined(agent)
        else:
            self._refresh_weighted(agent)
        rows = self._refined if self.config.refine_steps else self._buffer
        agent.narrow(math.sqrt(float(rows.mean_square()) / agent.mdp.effective_dim))
        if self._refreshes % self.config.start_every == 0:
            agent.refit_start(self._draw(self.config.start_size, agent)[0], rate=0.3)
        if not self._refreshes:
            agent.calibrate(self._draw(self.config.start_size, agent)[0])
            self._fit_mixture(agent)
        agent.refit_noise_scale(self._draw(self.config.refresh_size, agent)[0], rate=0.3)
        if self.config.references and self.config.posterior_steps:
            self._measure_share(agent)
        self._refreshes += 1

    def _fit_mixture(self, agent: ValueGradientAgent) -> None:
        """Gives a cluster's mixture of the two targets a start, from states of every step."""
        networks = [
            network
            for network in (agent.network, agent.average)
            if isinstance(network, ClusterValue | GuidedValue)
        ]
        if agent.config.drift != "posterior" or not networks or self.denoises_only:
            return
        steps = torch.arange(self.config.start_size, device=agent.mdp.device)
        t = steps * agent.mdp.num_steps // self.config.start_size
        x, denoising, target_score = self._scores(agent, t)
        apart, error = target_score - denoising, networks[0].gradient(x, t) - denoising
        for network in networks:  # equal so far
            network.fit_mixture(apart, error, t)

    def _measure_share(self, agent: ValueGradientAgent) -> None:
        """The share of the references in each step's targets, from their effective number.

        It is fixed before states are drawn: a share that knew the state's own x_T would bias.
        """
        chain, steps = agent.mdp.chain, agent.mdp.num_steps
        t = torch.arange(4 * steps, device=agent.mdp.device) // 4
        x_T, _ = self._draw(max(len(t), self.config.references), agent)
        x, _ = agent.mdp.noised_marginal(x_T[: len(t)], t, agent.generator)
        scale, spread = chain.A[t].unsqueeze(-1), chain.S[t].unsqueeze(-1)
        left, right = _posterior_factors(x, x_T, scale, spread, torch.float64)
        weights = torch.softmax(left @ right.T, dim=-1).to(x.dtype)
        inverse = weights.square().sum(-1).view(steps, 4).mean(-1)  # of the effective number
        self._share = torch.where(inverse < 0.9, 1 - inverse, 0.0)
        self._shared = int((self._share > 0).nonzero().amax()) + 1 if self._share.any() else 0

    def _refresh_refined(self, agent: ValueGradientAgent) -> None:
        """Chain samples by weight into the persistent set, which then moves by MALA."""
        if not len(self._refined):
            x = self._first_states(agent)
            self._refined.add(x, self.config.first_refine_steps, agent.generator)
        else:
            rollout = agent.rollout(self.config.refresh_size, with_gradient=True)
            self._test(rollout.x, rollout.gradient, rollout.log_weight)
            size, generator = self.config.refresh_size, agent.generator
            x = resample(rollout.x, rollout.log_weight, size, self.config.least_ess, generator)
            self._refined.dropped += dead_paths(rollout.log_weight)
            self._refined.add(x, self.config.refine_steps, generator)
            self._scalars = rollout_scalars(agent.mdp, rollout)
        self._scalars["train/refinement_acceptance"] = self._refined.acceptance
        self._require_rows(self._refined, x, agent)

    def _first_states(self, agent: ValueGradientAgent) -> Tensor:
        """The persistent set before MALA moves it, shape (capacity, D)."""
        mdp, scale = agent.mdp, agent.config.prior_std
        if not self.config.first_anneal_steps:
            return scale * mdp.noise(self.config.capacity, agent.generator)
        sampler = AnnealedSMC(
            mdp.energy,
            self.config.first_anneal_steps,
            scale=scale,
            threshold=0.5,
            temperature=mdp.temperature,
            device=mdp.device,
        )
        samples = sampler.sample(self.config.capacity, agent.generator, resample=True, oversample=1)
        mdp.energy_evaluations += samples.energy_evaluations
        return samples.x.to(mdp.dtype)

    def _refresh_weighted(self, agent: ValueGradientAgent) -> None:
        if self.config.first_range > 1 and not self._refreshes:
            x, log_weight = self._first_draws(agent)
            energy, gradient = agent.mdp.evaluate_gradient(x)
            log_weight = log_weight - energy / agent.mdp.temperature
        else:
            size = self.config.refresh_size if len(self._buffer) else self.config.first_size
            with widened(agent.mdp.start, self.config.start_widening):
                rollout = agent.rollout(size, with_gradient=True)
            assert rollout.gradient is not None
            x, log_weight, gradient = rollout.x, rollout.log_weight, rollout.gradient
            self._scalars = rollout_scalars(agent.mdp, rollout)
        self._test(x, gradient, log_weight)
        self._buffer.add(x, gradient, log_weight)
        self._require_rows(self._buffer, x, agent)

    def _test(self, x: Tensor, gradient: Tensor | None, log_weight: Tensor) -> None:
        """Looks for jumps of the density; the first few in a row are told of."""
        assert gradient is not None
        if self.config.targets == "auto":
            self._continuity.add(x, gradient, log_weight)

    def notes(self) -> list[str]:
        """That the density jumps."""
        if not (self.config.targets == "auto" and self._continuity.jumps):
            return []
        return [
            "the target's density jumps: ∇E does not tell where its mass is, so the value learns "
            "from denoising targets alone (objective.targets); samples of its edges are blurred by "
            "the last step's noise, weights stay exact"
        ]

    def _require_rows(
        self, buffer: WeightedBuffer | RefinedBuffer, x: Tensor, agent: ValueGradientAgent
    ) -> None:
        """Notes the rows that were left out; refuses to go on without any."""
        self._scalars["train/dropped_rows"] = torch.tensor(buffer.dropped)
        if len(buffer):
            return
        name = type(agent.mdp.energy).__name__
        raise ValueError(
            f"{name}.energy and its gradient are finite at none of {len(x):,} states with "
            f"coordinates up to {float(x.abs().max()):.3g}: set agent.prior_std, "
            f"{agent.config.prior_std:g} now, to the size of the region where they are"
        )

    def report_details(self) -> dict[str, Any]:
        """Rows that were left out of the buffer because they were not finite."""
        return {"dropped_rows": self._buffer.dropped + self._refined.dropped}

    def _first_draws(self, agent: ValueGradientAgent) -> tuple[Tensor, Tensor]:
        """Draws of a mixture of Gaussians of many widths, with minus their log density."""
        mdp, reach = agent.mdp, math.log(self.config.first_range)
        dim = mdp.effective_dim
        log_r = torch.linspace(-reach, reach, 64, device=mdp.device, dtype=mdp.dtype)
        log_r = log_r + math.log(agent.config.prior_std)
        which = torch.arange(self.config.first_size, device=mdp.device) % len(log_r)
        x = log_r.exp()[which].unsqueeze(-1) * mdp.noise(self.config.first_size, agent.generator)
        squares = x.square().sum(-1, keepdim=True)
        components = -0.5 * squares * (-2 * log_r).exp() - dim * log_r
        constant = 0.5 * dim * math.log(2 * math.pi) + math.log(len(log_r))
        return x, constant - torch.logsumexp(components, dim=-1)

    def state_dict(self) -> dict[str, Any]:
        """Buffer and the scalars of the last refresh."""
        return {
            "buffer": self._buffer.state_dict(),
            "refined": self._refined.state_dict(),
            "posterior_log_step": self._posterior.log_step,
            "share": self._share,
            "shared": self._shared,
            "refreshes": self._refreshes,
            "scalars": self._scalars,
            "continuity": self._continuity.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`.

        Raises:
            ValueError: if it does not fit the objective and its MDP.
        """
        check_like(
            state, {**self.state_dict(), "buffer": {}, "refined": {}, "scalars": {}}, "objective"
        )
        check_rows(state["buffer"], {"x": 2}, "objective.buffer", width=self._refined.mdp.dim)
        self._buffer.load_state_dict(state["buffer"])
        self._refined.load_state_dict(state["refined"])
        self._posterior.log_step = state["posterior_log_step"].clone()
        self._share, self._shared = state["share"].clone(), state["shared"]
        self._refreshes, self._scalars = state["refreshes"], state["scalars"]
        self._continuity.load_state_dict(state["continuity"])


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
