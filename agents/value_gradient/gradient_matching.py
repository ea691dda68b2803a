"""Gradient matching at work: a source of terminal states, targets of the gradient, their loss."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vgs_rl.agents.ranks import replicated
from vgs_rl.agents.value_gradient.continuity import ContinuityTest
from vgs_rl.agents.value_gradient.objectives import GradientMatching, ValueLearner
from vgs_rl.agents.value_gradient.score_targets import ScoreTargets
from vgs_rl.agents.value_gradient.sources import RefinedSource, Source, WeightedSource
from vgs_rl.files.restore import check_like
from vgs_rl.networks.clusters import ClusterValue
from vgs_rl.networks.guide import GuidedValue
from vgs_rl.networks.mixture import MixtureValue
from vgs_rl.networks.paper import PublishedMLP
from vgs_rl.training import parallel

if TYPE_CHECKING:
    from vgs_rl.agents.value_gradient.agent import ValueGradientAgent


class GradientMatchingLearner(ValueLearner):
    """The loss of :class:`GradientMatching`, and when its parts are renewed.

    Attributes:
        source: terminal states.
        targets: of the value's gradient.
        continuity: whether the target's density jumps.
        refreshes: of the source so far.

    Args:
        config: the objective.
        agent: whose value it teaches.
    """

    def __init__(self, config: GradientMatching, agent: ValueGradientAgent) -> None:
        self.config, mdp = config, agent.mdp
        clusters = isinstance(agent.network, ClusterValue | GuidedValue)
        start_size = config.start_size * parallel.world_size()
        if clusters and start_size < mdp.num_steps:
            raise ValueError(
                f"GradientMatching.start_size must be at least mdp.num_steps "
                f"{mdp.num_steps} for particles, got {start_size}"
            )
        mdp.geometry.require_linear("GradientMatching")
        mdp.start.require_density("GradientMatching")
        if agent.config.fit_noise_scale:
            std = agent.config.network.untrained_std(agent.config.prior_std)
            mdp.noise_scale_of_gaussian(std)
        self.source: Source = (
            RefinedSource(config, agent) if config.refine_steps else WeightedSource(config, agent)
        )
        self.targets = ScoreTargets(config, mdp)
        self.continuity = ContinuityTest(mdp)
        self.refreshes = 0

    def loss(self, agent: ValueGradientAgent) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`GradientMatching`."""
        if agent.counters.updates % self.config.refresh_every == 0:
            self.refresh(agent)
        mdp, chain, tau = agent.mdp, agent.mdp.chain, agent.mdp.temperature
        # Every step equally often, whether the batch is larger than T or smaller.
        rank = torch.arange(self.config.batch_size, device=mdp.device, dtype=torch.float64)
        rank += torch.rand(1, device=mdp.device, generator=agent.generator)
        t = (rank * (mdp.num_steps / self.config.batch_size)).long().clamp_max(mdp.num_steps - 1)
        x, denoising, target_score = self.targets.draw(self.source, t, agent.generator)
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
        loss = (weight * mdp.geometry.tangent(error, x).square().sum(-1)).mean()
        if parallel.world_size() > 1:
            loss = loss * self.source.share
        return loss, {"train/loss": loss.detach(), **self.source.scalars}

    @property
    def jumps(self) -> bool:
        """Whether the density was found to jump, and that was asked."""
        return self.config.targets == "auto" and self.continuity.jumps

    @property
    def denoises_only(self) -> bool:
        """Whether the target score is left out."""
        return self.config.targets == "denoising" or self.jumps

    def _mixed(self, denoising: Tensor, target_score: Tensor, mixture: Tensor) -> Tensor:
        return denoising if self.denoises_only else torch.lerp(denoising, target_score, mixture)

    @torch.no_grad()
    def refresh(self, agent: ValueGradientAgent) -> None:
        """New states in the source; then start and noise scales follow it, on all ranks alike."""
        drawn = self.source.refresh(agent)
        if drawn is not None and self.config.targets == "auto":
            self.continuity.add(*(parallel.gather(each) for each in drawn))
        config, generator = self.config, agent.generator
        mean_square = float(self.source.mean_square(agent.mdp.geometry.moving))
        agent.narrow(math.sqrt(mean_square / agent.mdp.effective_dim))
        if self.refreshes % config.start_every == 0:
            agent.refit_start(self._of_all(agent), rate=0.3)
        if not self.refreshes:
            agent.calibrate(self._of_all(agent))
            self._fit_mixture(agent)
            self._fit_guide(agent)
        # A mixture's value is near the target's from the first update on.
        rate = 1.0 if not self.refreshes and isinstance(agent.network, MixtureValue) else 0.3
        agent.refit_noise_scale(self.source.draw_part(config.refresh_size, generator), rate=rate)
        if config.references and config.posterior_steps:
            self.targets.measure_share(self.source, generator)
        parallel.equalise(replicated(agent))  # whatever the arithmetic of a rank's machine
        self.refreshes += 1

    def _of_all(self, agent: ValueGradientAgent) -> Tensor:
        """States of all ranks, `start_size` in sum but for rounding, the same on each."""
        return parallel.gather(self.source.draw_part(self.config.start_size, agent.generator))

    def _of_all_steps(self, agent: ValueGradientAgent) -> tuple[Tensor, ...]:
        """Steps t (B,) ascending, x_t and its two targets (B, D): of all ranks, alike on each."""
        ranks, n = parallel.world_size(), self.config.start_size
        steps = torch.arange(parallel.rank(), n * ranks, ranks, device=agent.mdp.device)
        t = steps * agent.mdp.num_steps // (n * ranks)
        drawn = (t, *self.targets.draw(self.source, t, agent.generator))
        if ranks == 1:
            return drawn
        return tuple(torch.stack(parallel.gather_parts(each), 1).flatten(0, 1) for each in drawn)

    def _fit_guide(self, agent: ValueGradientAgent) -> None:
        """Gives what joins a mixture's value its coefficients, from states of every step."""
        networks = [n for n in (agent.network, agent.average) if isinstance(n, MixtureValue)]
        for network in networks:
            network.follow_start()
        if not (networks and networks[0].guided):
            return
        t, x, denoising, target_score = self._of_all_steps(agent)
        _, mixture = networks[0].gradient_and_mixture(x, t)
        target = self._mixed(denoising, target_score, mixture)
        for network in networks:
            network.fit_guide(x, t, target)

    def _fit_mixture(self, agent: ValueGradientAgent) -> None:
        """Gives a cluster's mixture of the two targets a start, from states of every step."""
        networks = [
            network
            for network in (agent.network, agent.average)
            if isinstance(network, ClusterValue | GuidedValue)
        ]
        if agent.config.drift != "posterior" or not networks or self.denoises_only:
            return
        t, x, denoising, target_score = self._of_all_steps(agent)
        apart, error = target_score - denoising, networks[0].gradient(x, t) - denoising
        for network in networks:  # equal so far
            network.fit_mixture(apart, error, t)

    def notes(self) -> list[str]:
        """That the density jumps."""
        if not self.jumps:
            return []
        return [
            "the target's density jumps: ∇E does not tell where its mass is, so the value learns "
            "from denoising targets alone (objective.targets); samples of its edges are blurred by "
            "the last step's noise, weights stay exact"
        ]

    def report_details(self) -> dict[str, Any]:
        """Rows that were left out of the buffer because they were not finite."""
        of_all = self.source.scalars.get("train/dropped_rows")
        return {"dropped_rows": self.source.rows.dropped if of_all is None else int(of_all)}

    def state_dict(self) -> dict[str, Any]:
        """Source, targets and what was found of the density."""
        return {
            "source": self.source.state_dict(),
            "targets": self.targets.state_dict(),
            "refreshes": self.refreshes,
            "continuity": self.continuity.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`.

        Raises:
            ValueError: if it does not fit the objective and its MDP.
        """
        check_like(state, {**self.state_dict(), "source": {"rows": {}, "scalars": {}}}, "objective")
        self.source.load_state_dict(state["source"], self.targets.mdp.dim)
        self.targets.load_state_dict(state["targets"])
        self.refreshes = state["refreshes"]
        self.continuity.load_state_dict(state["continuity"])
