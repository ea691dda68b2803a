"""Value-learning rules: what a value network is regressed on, and on which states.

Each rule is a strategy of the :class:`~vgs_rl.agents.value_gradient.ValueGradientAgent`; its
fields are its hyper-parameters. A rule returns the loss of one minibatch; the agent steps.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vgs_rl.agents.annealing import AnnealedSampler
from vgs_rl.agents.base import rollout_scalars
from vgs_rl.agents.buffer import WeightedBuffer
from vgs_rl.agents.refinement import PosteriorAverage, RefinedBuffer, resample
from vgs_rl.checks import require_at_least, require_positive
from vgs_rl.clusters import ClusterValue
from vgs_rl.guide import GuidedValue
from vgs_rl.published import PublishedMLP
from vgs_rl.start import widened

if TYPE_CHECKING:
    from vgs_rl.agents.value_gradient import ValueGradientAgent


@dataclass(kw_only=True)
class ValueRule(ABC):
    """Base of the rules."""

    @abstractmethod
    def setup(self, agent: ValueGradientAgent) -> None:
        """Creates the rule's state."""

    @abstractmethod
    def loss(self, agent: ValueGradientAgent) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the next minibatch, with scalars to log."""

    def averages_now(self, agent: ValueGradientAgent) -> bool:
        """Whether the moving average takes in the network after this update."""
        return True

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The rule's state, for checkpoints."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`."""


@dataclass(kw_only=True)
class GradientMatching(ValueRule):
    """Regresses ∇V_t on the noised target's score, without simulating the chain.

    States x_t = x_T / A_t + √S_t z come from a buffer of the sampler's own terminal states, drawn
    by their exact weights. Two unbiased targets for ∇V_t(x_t) are tau z/√S_t (denoising) and
    A_t ∇E(x_T) (target score). Any mixture of them whose coefficient depends on x_t alone is
    unbiased too; the network learns the coefficient that makes it vary least, by the same loss.
    That is the path KL that the drift would lose: T · mean[ s_t²/(2 tau²) ‖∇V_t(x_t) - target‖² ],
    or for the `bellman` drift the same with a_t ∇V_{t+1}(a_t x_t).

    Args:
        batch_size: states per update, stratified over t.
        refresh_every: updates between additions to the buffer.
        refresh_size: chain samples added each time.
        first_size: samples added at first.
        first_spread: the first samples come from the untrained chain if 1; else from Gaussians
            N(0, r² I) with r from prior_std / first_spread to prior_std · first_spread, weighted
            exactly: for targets with heavy tails, which a sampler finds late by itself.
        capacity: rows that the buffer keeps.
        least_ess: effective sample size that tempering keeps, as a fraction of the buffer.
        start_every: refreshes between fits of the start distribution.
        start_size: states drawn from the buffer for each of them.
        start_spread: factor on the start's widths while chains are drawn for the buffer, whose
            weights stay exact: above 1, what the start lacks is found.
        references: terminal states that each target is averaged over, by their posterior
            probability of having been noised into x_t; 0 uses x_t's own x_T alone. Unbiased (it
            is the expectation over which of them it was), and in few dimensions far less noisy.
            Beside posterior_steps, step t takes the share 1 - 1/ESS_t of its targets from these
            averages, ESS_t being the effective number of references there.
        refine_steps: above 0, the buffer is a persistent set of `capacity` equally weighted states
            instead: at every refresh `refresh_size` chain samples, drawn by weight, replace random
            ones, and all move by so many MALA steps. For targets that MCMC explores locally.
        first_anneal_steps: levels of annealed SMC from N(0, prior_std² I) that the first states
            come from; 0 takes draws of that Gaussian as they are. Resampling on the way gets the
            shares of modes right that MALA rarely moves between.
        first_refine_steps: MALA steps on the first states.
        posterior_steps: MALA steps on x_T given x_t that each target is averaged over; 0 uses
            x_t's own x_T alone. Unbiased too, in any dimension.
        max_drift: bound of the norm of ∇E/tau in these MALA proposals.
    """

    batch_size: int = 2048
    refresh_every: int = 50
    refresh_size: int = 2048
    first_size: int = 8192
    first_spread: float = 1.0
    capacity: int = 40_000
    least_ess: float = 0.1
    start_every: int = 5
    start_size: int = 16_384
    start_spread: float = 1.0
    references: int = 0
    refine_steps: int = 0
    first_anneal_steps: int = 0
    first_refine_steps: int = 0
    posterior_steps: int = 0
    max_drift: float = 100.0

    def __post_init__(self) -> None:
        require_at_least(
            "GradientMatching",
            1,
            batch_size=self.batch_size,
            refresh_every=self.refresh_every,
            refresh_size=self.refresh_size,
            first_size=self.first_size,
            first_spread=self.first_spread,
            capacity=self.capacity,
            start_every=self.start_every,
            start_size=self.start_size,
        )
        require_at_least(
            "GradientMatching",
            0,
            least_ess=self.least_ess,
            references=self.references,
            refine_steps=self.refine_steps,
            first_anneal_steps=self.first_anneal_steps,
            first_refine_steps=self.first_refine_steps,
            posterior_steps=self.posterior_steps,
        )
        require_positive("GradientMatching", max_drift=self.max_drift)
        if self.refine_steps and (self.first_spread != 1 or self.start_spread != 1):
            raise ValueError(
                "GradientMatching.first_spread and start_spread are of the weighted buffer and "
                f"must be 1 with refine_steps, got {self.first_spread} and {self.start_spread}"
            )
        for name in ("first_anneal_steps", "first_refine_steps"):
            if getattr(self, name) and not self.refine_steps:
                raise ValueError(f"GradientMatching.{name} needs refine_steps above 0, got 0")
        if self.least_ess > 1:
            raise ValueError(f"GradientMatching.least_ess must be at most 1, got {self.least_ess}")
        if 0 < self.references < self.batch_size:
            raise ValueError(
                f"GradientMatching.references must be 0 or at least batch_size "
                f"{self.batch_size}, got {self.references}"
            )

    def setup(self, agent: ValueGradientAgent) -> None:
        """An empty buffer.

        Raises:
            ValueError: on a sphere, with a start whose density is unknown, and where start_size
                cannot show a cluster's network every step.
        """
        clusters = isinstance(agent.network, ClusterValue | GuidedValue)
        if clusters and self.start_size < agent.mdp.num_steps:
            raise ValueError(
                f"GradientMatching.start_size must be at least mdp.num_steps "
                f"{agent.mdp.num_steps} for particles, got {self.start_size}"
            )
        agent.mdp.geometry.require_linear("GradientMatching")
        agent.mdp.start.require_density("GradientMatching")
        self._buffer = WeightedBuffer(self.capacity, self.least_ess)
        self._refined = RefinedBuffer(agent.mdp, self.capacity, self.max_drift)
        self._posterior = PosteriorAverage(agent.mdp, self.posterior_steps, self.max_drift)
        self._share = torch.ones(agent.mdp.num_steps, device=agent.mdp.device)
        self._shared = agent.mdp.num_steps  # first step without a share
        # Beside posterior_steps, references serve where S is large.
        self._precision = torch.float32 if self.posterior_steps else torch.float64
        self._scalars: dict[str, Tensor] = {}
        self._refreshes = 0

    def loss(self, agent: ValueGradientAgent) -> tuple[Tensor, dict[str, Tensor]]:
        """See the class."""
        if agent.counters.updates % self.refresh_every == 0:
            self._refresh(agent)
        mdp, chain, tau = agent.mdp, agent.mdp.chain, agent.mdp.temperature
        # Every step equally often, whether the batch is larger than T or smaller.
        rank = torch.arange(self.batch_size, device=mdp.device, dtype=torch.float64)
        rank += torch.rand(1, device=mdp.device, generator=agent.generator)
        t = (rank * (mdp.num_steps / self.batch_size)).long().clamp_max(mdp.num_steps - 1)
        x, denoising, target_score = self._scores(agent, t)
        network = agent.network
        assert not isinstance(network, PublishedMLP)  # the configuration refuses it
        if agent.config.drift == "posterior":
            slope, mixture = network.gradient_and_mixture(x, t)
            error = slope - torch.lerp(denoising, target_score, mixture)
        else:
            # V_T = E is given: the last step has nothing to learn.
            inner = t + 1 < mdp.num_steps
            a = chain.a[t].unsqueeze(-1)
            slope, mixture = network.gradient_and_mixture(a * x, torch.where(inner, t + 1, t))
            error = a * slope - torch.lerp(denoising, target_score, mixture)
            error = error * inner.unsqueeze(-1)
        weight = 0.5 * mdp.num_steps * (chain.s[t] / tau).square()
        loss = (weight * mdp.geometry.project(error).square().sum(-1)).mean()
        return loss, {"train/loss": loss.detach(), **self._scalars}

    @torch.no_grad()
    def _scores(self, agent: ValueGradientAgent, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States x_t with their denoising and target-score targets, all (B, D), for t (B,)."""
        mdp, chain = agent.mdp, agent.mdp.chain
        x_T, gradient = self._draw(max(len(t), self.references), agent)
        x, z = mdp.noised_marginal(x_T[: len(t)], t, agent.generator)
        scale, spread = chain.A[t].unsqueeze(-1), chain.S[t].unsqueeze(-1)
        mean, slope = x_T[: len(t)], gradient[: len(t)]
        if self.posterior_steps:
            mean, slope = self._posterior(mean, slope, x, t, agent.generator)
        if self.references:
            k = math.ceil(self._shared * len(t) / mdp.num_steps)  # t ascends
            values = torch.cat([x_T, gradient], dim=-1)
            of = (x[:k], x_T, scale[:k], spread[:k], self._precision)
            averages = _posterior_means(*of, values).to(x.dtype).chunk(2, dim=-1)
            share = self._share[t[:k]].unsqueeze(-1)
            mean = torch.cat([torch.lerp(mean[:k], averages[0], share), mean[k:]])
            slope = torch.cat([torch.lerp(slope[:k], averages[1], share), slope[k:]])
        if self.references or self.posterior_steps:
            z = (x - mean / scale) / spread.sqrt()
        return x, mdp.temperature * z / spread.sqrt(), scale * slope

    def _draw(self, n: int, agent: ValueGradientAgent) -> tuple[Tensor, Tensor]:
        """N terminal states with their ∇E, distributed as the target, both (n, D)."""
        if self.refine_steps:
            return self._refined.draw(n, agent.generator)
        return self._buffer.draw(n, agent.generator)

    @torch.no_grad()
    def _refresh(self, agent: ValueGradientAgent) -> None:
        """New chain samples; then start and noise scales follow the buffer."""
        if self.refine_steps:
            self._refresh_refined(agent)
        else:
            self._refresh_weighted(agent)
        if self._refreshes % self.start_every == 0:
            agent.refit_start(self._draw(self.start_size, agent)[0], rate=0.3)
        if not self._refreshes:
            agent.calibrate(self._draw(self.start_size, agent)[0])
            self._fit_mixture(agent)
        agent.refit_noise_scale(self._draw(self.refresh_size, agent)[0], rate=0.3)
        if self.references and self.posterior_steps:
            self._measure_share(agent)
        self._refreshes += 1

    def _fit_mixture(self, agent: ValueGradientAgent) -> None:
        """Gives a cluster's mixture of the two targets a start, from states of every step."""
        networks = [
            network
            for network in (agent.network, agent.average)
            if isinstance(network, ClusterValue | GuidedValue)
        ]
        if agent.config.drift != "posterior" or not networks:
            return
        steps = torch.arange(self.start_size, device=agent.mdp.device)
        t = steps * agent.mdp.num_steps // self.start_size
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
        x_T, _ = self._draw(max(len(t), self.references), agent)
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
            self._refined.add(x, self.first_refine_steps, agent.generator)
        else:
            rollout = agent.rollout(self.refresh_size)
            size, generator = self.refresh_size, agent.generator
            x = resample(rollout.x, rollout.log_weight, size, self.least_ess, generator)
            self._refined.add(x, self.refine_steps, generator)
            self._scalars = rollout_scalars(agent.mdp, rollout)
        self._scalars["train/refinement_acceptance"] = self._refined.acceptance

    def _first_states(self, agent: ValueGradientAgent) -> Tensor:
        """The persistent set before MALA moves it, shape (capacity, D)."""
        mdp, scale = agent.mdp, agent.config.prior_std
        if not self.first_anneal_steps:
            return scale * mdp.noise(self.capacity, agent.generator)
        sampler = AnnealedSampler(
            mdp.energy,
            self.first_anneal_steps,
            scale=scale,
            threshold=0.5,
            temperature=mdp.temperature,
            device=mdp.device,
        )
        samples = sampler.sample(self.capacity, agent.generator, resample=True, oversample=1)
        mdp.energy_evaluations += samples.energy_evaluations
        return samples.x

    def _refresh_weighted(self, agent: ValueGradientAgent) -> None:
        if self.first_spread > 1 and not self._refreshes:
            x, log_weight = self._first_draws(agent)
            energy, gradient = agent.mdp.evaluate_gradient(x)
            log_weight = log_weight - energy / agent.mdp.temperature
        else:
            size = self.refresh_size if len(self._buffer) else self.first_size
            with widened(agent.mdp.start, self.start_spread):
                rollout = agent.rollout(size)
            x, log_weight = rollout.x, rollout.log_weight
            gradient = agent.mdp.energy.energy_and_gradient(x)[1]  # E was counted already
            self._scalars = rollout_scalars(agent.mdp, rollout)
        self._buffer.add(x, gradient, log_weight)
        if not len(self._buffer):
            raise FloatingPointError(
                "no chain sample has a finite weight and energy gradient; "
                "a smaller start.scale or agent.prior_std may help"
            )

    def _first_draws(self, agent: ValueGradientAgent) -> tuple[Tensor, Tensor]:
        """Draws of a mixture of Gaussians of many widths, with minus their log density."""
        mdp, reach = agent.mdp, math.log(self.first_spread)
        dim = mdp.effective_dim
        log_r = torch.linspace(-reach, reach, 64, device=mdp.device, dtype=mdp.dtype)
        log_r = log_r + math.log(agent.config.prior_std)
        which = torch.arange(self.first_size, device=mdp.device) % len(log_r)
        x = log_r.exp()[which].unsqueeze(-1) * mdp.noise(self.first_size, agent.generator)
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
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        self._buffer.load_state_dict(state["buffer"])
        self._refined.load_state_dict(state["refined"])
        self._posterior.log_step = state["posterior_log_step"].clone()
        self._share, self._shared = state["share"].clone(), state["shared"]
        self._refreshes, self._scalars = state["refreshes"], state["scalars"]


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
