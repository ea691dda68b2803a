"""The Value Gradient Sampler: learn a scalar value, drift along its gradient.

Yoon et al., *Value Gradient Sampler: Sampling as Sequential Decision Making*, arXiv:2502.13280;
with the `posterior` drift, fitted noise scales and gradient matching of this project.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from matplotlib.figure import Figure
from torch import Tensor

from vgs_rl.agents.automatic.explored import Explored, ExploredEnergy
from vgs_rl.agents.automatic.settings import KEPT, ExplorationConfig
from vgs_rl.agents.base import AgentConfig
from vgs_rl.agents.target import TargetAgent
from vgs_rl.agents.value_gradient.conditional import require_conditional
from vgs_rl.agents.value_gradient.objectives import GradientMatching, ValueLearner, ValueObjective
from vgs_rl.checks import require_at_least, require_positive
from vgs_rl.energy import Energy
from vgs_rl.fields import settle
from vgs_rl.mdp import SamplingMDP
from vgs_rl.networks.base import TimeConditionedMLP, ValueFunction
from vgs_rl.networks.clusters import ClusterValue
from vgs_rl.networks.compiled import CompiledValue
from vgs_rl.networks.config import (
    ClusterNetwork,
    LearnedValue,
    MLPNetwork,
    NetworkConfig,
    PublishedNetwork,
)
from vgs_rl.networks.guide import GuidedValue
from vgs_rl.networks.policies import Drift, ValueGradientPolicy
from vgs_rl.plots.panels import View
from vgs_rl.plots.particles import plot_episodes
from vgs_rl.plots.plots import Drawing, has_landscape, plot_value
from vgs_rl.samplers.base import ChainSampler, Sampler, Samples
from vgs_rl.training import parallel
from vgs_rl.training.config import BudgetConfig
from vgs_rl.training.loop import Counters
from vgs_rl.training.optim import MovingAverage, guarded_step, scheduled_rate, set_rates
from vgs_rl.transitions import Rollout


@dataclass(kw_only=True)
class ValueGradientConfig(AgentConfig):
    """The value-gradient agent.

    Args:
        drift: how the control is read off the value: `posterior`, or `bellman` as published.
        drift_clip: bound of E in the last step of the `bellman` drift, which is the gradient of
            min(E, bound) there (published for the funnel); None leaves E as it is.
        objective: how the value is learned.
        network: what V is; its fields are its own.
        prior_std: rough standard deviation of the target per coordinate: an untrained sampler with
            an `MLPNetwork` and `GradientMatching` is the exact one of N(0, prior_std² I), so it
            should cover the modes. `mdp.start.scale` follows it, unless it is given itself.
        lr: Adam's learning rate at its peak.
        final_lr: the cosine schedule's end, as a fraction of `lr`; 1 keeps it constant.
        warmup: updates of linear warm-up.
        clip_norm: bound of the gradient's norm; None leaves it.
        ema: decay of the moving average that acts, evaluates and gives targets.
        fit_noise_scale: whether rho_t is fitted, which makes EUBO - log Z least; off, rho_t = 1 as
            published.
    """

    name: ClassVar[str] = "vgs"
    changeable: ClassVar[tuple[str, ...]] = ("lr", "final_lr", "warmup")

    drift: Drift = "posterior"
    drift_clip: float | None = None
    objective: ValueObjective = field(default_factory=GradientMatching)
    network: NetworkConfig = field(default_factory=MLPNetwork)
    prior_std: float = 1.0
    lr: float = 2e-3
    final_lr: float = 0.02
    warmup: int = 50
    clip_norm: float | None = None
    ema: float = 0.995
    fit_noise_scale: bool = True

    def __post_init__(self) -> None:
        settle(self, "agent")
        require_positive("agent", prior_std=self.prior_std, lr=self.lr)
        require_at_least("agent", 0, warmup=self.warmup)
        if self.clip_norm is not None:
            require_positive("agent", clip_norm=self.clip_norm)
        if self.drift_clip is not None and self.drift != "bellman":
            raise ValueError(
                f"agent.drift_clip needs the drift bellman, which reads ∇E, got {self.drift}"
            )
        for name in ("ema", "final_lr"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"agent.{name} must be in [0, 1], got {getattr(self, name)}")
        if isinstance(self.network, PublishedNetwork) and isinstance(
            self.objective, GradientMatching
        ):
            raise ValueError(
                "agent.network PublishedNetwork needs a TD objective, got GradientMatching"
            )
        guided = isinstance(self.network, ClusterNetwork) and self.network.guide
        if guided and not isinstance(self.objective, GradientMatching):
            name = type(self.objective).__name__
            raise ValueError(
                f"agent.network.guide needs the objective GradientMatching, got {name}"
            )

    def build(self, mdp: SamplingMDP, *, seed: int = 0) -> ValueGradientAgent:
        """The untrained agent."""
        return ValueGradientAgent(mdp, self, seed=seed)


class ValueGradientAgent(TargetAgent):
    """Learns V(x, t) by a :class:`~vgs_rl.agents.ValueObjective`; u_t is its scaled gradient.

    An energy that comes without settings is explored before it is learned (:meth:`explore`): an
    object, a function, or a name without configuration, where neither `config` nor `mdp` nor
    settings besides `lr`, `final_lr`, `warmup`, `clip_norm`, `ema` and `fit_noise_scale` are given.

    Attributes:
        explored: what exploration has found, or None. `mdp` then has other coordinates than the
            target, and those of samples are the target's.
        network: V, trained.
        objective: the configured objective at work: its state and its loss.
        average: V, exponential moving average of the network: what acts and evaluates.
    """

    TOO_WIDE = 0.7  # an MLP's Gaussian restarts where states have less than this of its width

    saved: ClassVar[tuple[str, ...]] = ("network", "averaged", "optimizer", "objective")
    sharded: ClassVar[tuple[str, ...]] = ("objective",)
    data_parallel: ClassVar[bool] = True
    config_type = ValueGradientConfig
    conditional = True
    explores = True
    config: ValueGradientConfig
    explored: Explored | None = None

    def _setup(self) -> None:
        config, energy = self.config, self.mdp.energy
        if isinstance(energy, ExploredEnergy):
            self.explored = energy.explored
            vars(self)["saved"] = (*type(self).saved, "explored")
        require_conditional(config, self.mdp)
        self.mdp.start_as_wide_as(config.prior_std)
        # On the CPU whatever the device: the same seed gives the same initial network.
        initial = torch.Generator().manual_seed(self.seed)
        self.network: LearnedValue = config.network.build(
            self.mdp, prior_std=config.prior_std, generator=initial
        )
        self.averaged = MovingAverage(self.network, config.ema)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=config.lr, fused=True)
        self.objective: ValueLearner = config.objective.of_one_rank().build(self)

    @property
    def energy(self) -> Energy:
        """See :attr:`vgs_rl.agents.usage.Usable.energy`."""
        return self.mdp.energy if self.explored is None else self.explored.energy.inner

    @property
    def unexplored(self) -> bool:
        """Whether it is to be explored before anything is learned."""
        known = self.explored is not None and len(self.explored.particles) > 0
        return self.exploration.when == "always" and not known

    def explore(self, seconds: float | None = None, *, progress_bar: bool = True) -> Self:
        """Explores the energy; chain, network and first states are those that suit what was found.

        :meth:`learn` begins with it where the energy came without settings. `exploration` then says
        what was decided, and `mdp.config` and `config` what was chosen. Learning rates and `ema`
        stay. What has been learned before is forgotten.

        Args:
            seconds: about how long it may take. By default what `exploration` says: its effort
                again, if there is one, else its seconds.
            progress_bar: whether to show one.

        Raises:
            ValueError: if the energy is finite nowhere that was looked, the temperature is not 1,
                or `exploration.effort` does not repeat.
        """
        from vgs_rl.agents.automatic.plan import common_plan

        if self.mdp.temperature != 1.0:
            raise ValueError(f"exploration needs mdp.temperature 1, got {self.mdp.temperature}")
        began, device, settings = time.perf_counter(), self.mdp.device, self.exploration
        if seconds is not None:
            settings = ExplorationConfig(when="always", seconds=seconds)
        plan = common_plan(
            self.energy, settings, seed=self.seed, device=device, progress_bar=progress_bar
        )
        chain, config = plan.design.mdp(), plan.design.agent()
        kept = {name: getattr(self.config, name) for name in KEPT}
        if settings.done:  # what the configuration says now, if it fits
            plan.design.check(self.mdp.config)
            chain, config = self.mdp.config, self.config
        self.config = replace(config, **kept)
        self.exploration = plan.settings
        self.mdp = SamplingMDP(plan.explored.energy, chain, device=device, dtype=self.mdp.dtype)
        self._seed_generators()
        self._setup()
        plan.rows.fill(self, plan.design, self.mdp.generator(self.seed))
        used = Counters(
            energy_evaluations=self.counters.energy_evaluations + plan.evaluations,
            seconds=self.counters.seconds + time.perf_counter() - began,
        )
        self.counters = parallel.from_first(used)
        return self

    def prepare(self, budget: BudgetConfig, *, progress_bar: bool) -> None:
        """See :meth:`Agent.prepare`; an energy without settings is explored."""
        if not self.unexplored:
            return
        seconds = None
        if budget.seconds is not None and not self.exploration.done:
            seconds = min(self.exploration.seconds, 0.5 * budget.seconds)
        self.explore(seconds, progress_bar=progress_bar)
        used, most = self.counters.energy_evaluations, budget.energy_evaluations
        if most is not None and used >= most:
            warnings.warn(
                f"exploration took {used:,} energy evaluations, and budget.energy_evaluations is "
                f"{most:,}: nothing is learned",
                stacklevel=3,
            )

    def judged(self, sampler: Sampler, samples: Samples, seed: int) -> dict[str, Any]:
        """See :meth:`vgs_rl.agents.usage.Usable.judged`; a verdict, after an exploration."""
        if self.explored is None or self.unexplored or not isinstance(sampler, ChainSampler):
            return {}
        if not (sampler.has_reverse_weights and samples.independent):
            return {}
        return {"verdict": self.explored.verdict(sampler, samples, seed + 6)}

    @property
    def average(self) -> LearnedValue:
        """The moving average of the network."""
        average = self.averaged.module
        assert isinstance(average, LearnedValue)  # what the network is
        return average

    @property
    def policy(self) -> ValueGradientPolicy:
        """The control of the moving average."""
        return self._policy_of(self.average)

    def _policy_of(self, value: ValueFunction) -> ValueGradientPolicy:
        drift, clip = self.config.drift, self.config.drift_clip
        return ValueGradientPolicy(self.mdp, value, drift, energy_clip=clip)

    def sampler(self, *, compiled: bool = False, noise_scale: float | Tensor = 1.0) -> ChainSampler:
        """See :meth:`Agent.sampler`.

        Args:
            compiled: of a particle system: compile the drift at the first call, which takes about
                a minute (:class:`~vgs_rl.networks.compiled.CompiledValue`).
            noise_scale: see :class:`~vgs_rl.samplers.base.ChainSampler`.

        Raises:
            ValueError: if the drift cannot be compiled.
        """
        policy = self._policy_of(CompiledValue(self.average)) if compiled else self.policy
        return ChainSampler(self.mdp, policy, noise_scale=noise_scale, coordinates=self.explored)

    def rollout(
        self,
        n: int,
        *,
        noise_scale: float = 1.0,
        keep_states: bool = False,
        with_gradient: bool = False,
    ) -> Rollout:
        """N training episodes with the current policy, counted as environment steps."""
        self.counters.env_steps += n * self.mdp.num_steps
        return self.mdp.rollout(
            self.policy,
            n,
            self.generator,
            noise_scale=noise_scale,
            keep_states=keep_states,
            with_gradient=with_gradient,
        )

    def refit_start(self, x: Tensor, *, rate: float) -> None:
        """Fits pi_0, if it is learned, to target-like terminal states x (B, D), noised.

        All ranks have the same states, and the same fit.
        """
        if self.mdp.config.start.learned:
            states = x if self.mdp.start.of_target else self.mdp.noised(x, 0, self.common)
            self.mdp.start.fit(states, self.common, rate=rate)

    def narrow(self, std: float) -> None:
        """Restarts an MLP at N(0, std² I) where target-like states are that much narrower than it.

        A network that has to undo a far too wide Gaussian, with one slope for all of it, takes
        long. Late in training it has done so already, and keeps what it has learned.
        """
        config = self.config.network
        if not isinstance(config, MLPNetwork) or config.tail_std is not None or self.progress > 0.5:
            return
        for network in (self.network, self.average):
            assert isinstance(network, TimeConditionedMLP)
            if not 0 < std < self.TOO_WIDE * network.prior_std:
                return
            network.restart(std)
        self.optimizer.state.clear()
        if self.config.fit_noise_scale:
            self.mdp.noise_scale_of_gaussian(std)

    def calibrate(self, x: Tensor) -> None:
        """Lets a network that standardises its features see target-like states x (B, D), noised."""
        t = torch.arange(len(x), device=x.device) % self.mdp.num_steps
        noised = self.mdp.noised(x, t, self.common)
        for network in (self.network, self.average):
            if isinstance(network, ClusterValue | GuidedValue):
                network.calibrate(noised, t)

    def refit_noise_scale(self, x: Tensor, *, rate: float) -> None:
        """Fits rho_t, if configured, to target-like terminal states x (B, D), each rank's own."""
        if self.config.fit_noise_scale:
            self.mdp.fit_noise_scale(self.policy, x, self.generator, rate=rate)

    def notes(self) -> list[str]:
        """See :meth:`Agent.notes`; also noise scales at their bound, and the objective's notes."""
        notes = [*super().notes(), *self.objective.notes()]
        rho = self.mdp.rho.reshape(self.mdp.num_steps, -1).amax(-1)
        bound = rho <= 1.05 * self.mdp.LEAST_RHO
        if bool(bound[-1]) or 2 * int(bound.sum()) > len(bound):
            notes.append(
                f"rho_t is at its bound {self.mdp.LEAST_RHO:g} in {int(bound.sum())} of "
                f"{len(bound)} steps: the target is narrower than the chain can draw; let "
                "mdp.schedule end with less noise, or rescale the energy's coordinates"
            )
        return notes

    def _train_step(self) -> dict[str, Tensor]:
        loss, scalars = self.objective.loss(self)
        rate = scheduled_rate(
            self.config.lr,
            progress=self.progress,
            updates=self.counters.updates,
            warmup=self.config.warmup,
            final=self.config.final_lr,
        )
        set_rates(self.optimizer, [rate])
        norm = guarded_step(self.optimizer, loss, self.tally, clip_norm=self.config.clip_norm)
        if self.objective.averages_now():
            self.averaged.update_parameters(self.network)
            self.objective.after_average(self)
        return {
            **scalars,
            "train/gradient_norm": norm,
            "train/learning_rate": torch.tensor(rate),
            "train/rho_mean": self.mdp.rho.mean(),
        }

    def report_details(self) -> dict[str, Any]:
        """See :meth:`Agent.report_details`; with what the objective says."""
        return super().report_details() | self.objective.report_details()

    def figures(self, generator: torch.Generator) -> dict[str, Drawing]:
        """The chain over the density (of particles: as clusters); up to 2-D the value and drift."""
        mdp, policy = self.mdp, self.policy
        if mdp.conditions is not None:
            return {}  # of one value of the parameters after the other
        pictures: dict[str, Drawing] = {
            "chain": lambda: plot_episodes(mdp, policy, 2000, generator)
        }
        if mdp.energy.symmetry is None and has_landscape(mdp):
            pictures["value"] = lambda: plot_value_of(mdp, policy, generator)
        return pictures


def plot_value_of(
    mdp: SamplingMDP, policy: ValueGradientPolicy, generator: torch.Generator
) -> Figure:
    """Value landscape and drift arrows of a policy at mid-chain, over where its states are."""
    t = mdp.num_steps // 2
    with torch.no_grad():
        states = mdp.rollout(policy, 500, generator, keep_states=True).states
        assert states is not None
        view = View.around(states[t])
        value: Callable[[Tensor], Tensor] = lambda x: policy.value.value(x, t)  # noqa: E731
        drift: Callable[[Tensor], Tensor] = lambda x: policy(x, t)  # noqa: E731
        limits, dim = (view.x, view.y), mdp.dim
        return plot_value(value, drift, t, limits, dim=dim, device=mdp.device, dtype=mdp.dtype)
