"""A student: a sampler of few network calls that learns from a trained sampler's weighted states.

    forward   -E_p[log q(x)], or of a chain -E[Σ_t log pi(v_t | x_t)] on bridges of the teacher's
              states: the EUBO, which no mode of the teacher escapes
    reverse   E_q[(log w - mean) (-log q)]: the gradient of KL(q ‖ p), with the mean as baseline.
              Its variance vanishes at the optimum, and it needs E but not ∇E

A teacher's states are resampled by its weights once; a part of them is held out. Validation keeps
the student of the least gap between EUBO, on held-out states, and ELBO.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from vgs_rl.agents.base import AgentConfig
from vgs_rl.agents.distilled.clusters import ClusterStudent
from vgs_rl.agents.distilled.densities import Choice, take_over
from vgs_rl.agents.distilled.flow import FlowStudent, require_zuko
from vgs_rl.agents.distilled.kernels import ChainStudent, KernelStudent
from vgs_rl.agents.distilled.orbits import OrbitStudent, has_orbits
from vgs_rl.agents.distilled.teacher import TeacherStates
from vgs_rl.agents.target import TargetAgent
from vgs_rl.checks import require_at_least, require_positive
from vgs_rl.conditional.energy import require_one
from vgs_rl.energy import Energy
from vgs_rl.fields import settle
from vgs_rl.geometry import CentreOfMassFree
from vgs_rl.mdp import MDPConfig, SamplingMDP
from vgs_rl.samplers.base import Sampler
from vgs_rl.training.config import BudgetConfig, EvaluationConfig
from vgs_rl.training.folder import RunFolder
from vgs_rl.training.loop import Checkpoints
from vgs_rl.training.optim import MovingAverage, guarded_step, scheduled_rate, set_rates
from vgs_rl.weights import effective_share, live_elbo

Student = FlowStudent | OrbitStudent | ChainStudent
MOST_LEVER = 10.0  # of a log-weight from the mean, in the reverse loss [nats]


@dataclass(kw_only=True)
class DistilledConfig(AgentConfig):
    """A student. `mdp.num_steps` says how many network calls it has.

    One makes it a flow, unless its target is of particles.

    Args:
        width: units of a hidden layer.
        depth: hidden layers; of particles, rounds of messages.
        couplings: coupling layers of a flow; by default two for each bit of D, 4 to 8.
        components: mixture components of each step of a chain.
        factorised: whether these are of each coordinate by itself, given the state before; else
            of all coordinates together.
        batch_size: states of the teacher in an update.
        reverse: weight of the reverse loss, and 0 leaves it out. Without a teacher it is the only
            loss.
        reverse_size: states that the student draws for it.
        reverse_from: fraction of the budget after which it joins.
        lr: Adam's learning rate at its peak.
        final_lr: the cosine schedule's end, as a fraction of `lr`.
        warmup: updates of linear warm-up.
        clip_norm: bound of the gradient's norm.
        ema: decay of the moving average that draws.
    """

    name: ClassVar[str] = "distilled"
    changeable: ClassVar[tuple[str, ...]] = ("lr", "final_lr", "warmup")

    width: int = 64
    depth: int = 2
    couplings: int | None = None
    components: int = 16
    factorised: bool = False
    batch_size: int = 512
    reverse: float = 0.5
    reverse_size: int = 256
    reverse_from: float = 0.5
    lr: float = 2e-3
    final_lr: float = 0.02
    warmup: int = 50
    clip_norm: float = 5.0
    ema: float = 0.99

    def __post_init__(self) -> None:
        settle(self, "agent")
        require_positive("agent", lr=self.lr, clip_norm=self.clip_norm)
        for name in ("width", "depth", "components", "batch_size"):
            require_at_least("agent", 1, **{name: getattr(self, name)})
        require_at_least("agent", 2, reverse_size=self.reverse_size)
        require_at_least("agent", 0, warmup=self.warmup, reverse=self.reverse)
        if self.couplings is not None:
            require_at_least("agent", 2, couplings=self.couplings)
        for name in ("ema", "final_lr", "reverse_from"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"agent.{name} must be in [0, 1], got {getattr(self, name)}")

    def folder_name(self, mdp: MDPConfig) -> str:
        """See :meth:`AgentConfig.folder_name`; students of as many steps share a folder."""
        return f"{self.name}-{mdp.num_steps}"

    def build(self, mdp: SamplingMDP, *, seed: int = 0) -> DistilledAgent:
        """The untrained agent, without a teacher."""
        return DistilledAgent(mdp, self, seed=seed)


class DistilledAgent(TargetAgent):
    """A student and how it learns.

    Attributes:
        network: the student, trained.
        teacher: the teacher's states; none until :meth:`begin`.
    """

    saved: ClassVar[tuple[str, ...]] = ("network", "averaged", "optimizer", "teacher")
    config_type = DistilledConfig
    config: DistilledConfig

    def _setup(self) -> None:
        config, mdp = self.config, self.mdp
        require_distillable(mdp.energy)
        if config.batch_size < mdp.num_steps:
            raise ValueError(
                f"agent.batch_size must be at least the {mdp.num_steps} steps of the chain, "
                f"got {config.batch_size}"
            )
        initial = torch.Generator().manual_seed(self.seed)
        size: dict[str, Any] = {"width": config.width, "depth": config.depth, "generator": initial}
        self.network: Student
        if mdp.num_steps == 1 and has_orbits(mdp.geometry):
            self.network = OrbitStudent(mdp, couplings=config.couplings, **size)
        elif isinstance(mdp.geometry, CentreOfMassFree):
            self.network = ClusterStudent(mdp, components=config.components, **size)
        elif mdp.num_steps == 1:
            self.network = FlowStudent(mdp, couplings=config.couplings, **size)
        else:
            self.network = KernelStudent(
                mdp, components=config.components, factorised=config.factorised, **size
            )
        self.averaged = MovingAverage(self.network, config.ema)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=config.lr, fused=True)
        self.teacher = TeacherStates(mdp.dim)
        self._best: dict[str, Any] | None = None

    @property
    def average(self) -> Student:
        """The moving average of the student: what draws."""
        average = self.averaged.module
        assert isinstance(average, Student)
        return average

    @torch.no_grad()
    def begin(self, teacher: TeacherStates, choice: Choice | None) -> None:
        """Takes a teacher's states, and the density that was fitted to them, to learn from.

        Args:
            teacher: the states.
            choice: the density; none of particles.
        """
        self.teacher = teacher.of_type(self.mdp.dtype)
        self.counters.energy_evaluations += teacher.energy_evaluations
        if choice is not None:
            take_over(self.mdp.start, choice.mixture)
        for network in (self.network, self.average):
            network.begin(self.teacher.x, choice)

    def sampler(self, *, compiled: bool = False) -> Sampler:
        """See :meth:`Agent.sampler`.

        Raises:
            ValueError: if `compiled` is asked for, which is of particle systems.
        """
        if compiled:
            raise ValueError("compiled is for value gradients of particles, got a student")
        return self.average.sampler(self.mdp)

    def notes(self) -> list[str]:
        """See :meth:`Agent.notes`; also a teacher that has no weights."""
        notes = super().notes()
        if len(self.teacher.x) and not self.teacher.weighted:
            notes.append(
                "the teacher has no log-weights: the student has learned its errors, too. Its own "
                "log-weights are exact; look at its ESS"
            )
        return notes

    def learn(
        self,
        budget: BudgetConfig | None = None,
        *,
        evaluation: EvaluationConfig | None = None,
        folder: RunFolder | None = None,
        **options: Any,
    ) -> Self:
        """See :meth:`Agent.learn`; without a folder it ends with the student that was best."""
        if folder is None and self.counters.updates == 0:
            evaluation = evaluation or EvaluationConfig()
            self._validate(evaluation, None, Checkpoints(None, self.state_dict, 60.0))
        super().learn(budget, evaluation=evaluation, folder=folder, **options)
        if self._best is not None and self.finished:
            self.average.load_state_dict(self._best)
            self.checkpoint = "best"
        return self

    def _validate(
        self,
        evaluation: EvaluationConfig,
        folder: RunFolder | None,
        checkpoints: Checkpoints,
        *,
        competes: bool = True,
    ) -> float:
        """See :meth:`Agent._validate`; a student may be best before the first update."""
        before = self.best_elbo
        elbo = super()._validate(evaluation, folder, checkpoints)
        if folder is None and self.best_elbo > before:
            self._best = copy.deepcopy(self.average.state_dict())
        return elbo

    def _merit(self, log_weight: Tensor) -> float:
        """Minus the gap between the EUBO on held-out states and the ELBO."""
        elbo = float(live_elbo(log_weight))
        if not len(self.teacher.held):
            return elbo
        generator = self.mdp.generator(self.seed)
        reverse = self.sampler().reverse_log_weight(self.teacher.held, generator).double()
        return elbo - float(reverse.mean())

    def _train_step(self) -> dict[str, Tensor]:
        config, mdp = self.config, self.mdp
        scalars: dict[str, Tensor] = {}
        loss = torch.zeros((), device=mdp.device, dtype=mdp.dtype)
        taught = len(self.teacher.x) > 0
        if taught:
            x = self.teacher.batch(config.batch_size, self.generator)
            loss = self.network.forward_loss(mdp, x, self.generator)
            scalars["train/forward_loss"] = loss.detach()
        if not taught or (config.reverse > 0 and self.progress >= config.reverse_from):
            reverse, log_weight = self._reverse_loss()
            loss = loss + (config.reverse if taught else 1.0) * reverse
            scalars["rollout/elbo"] = live_elbo(log_weight)
            scalars["rollout/path_ess"] = effective_share(log_weight)
        rate = scheduled_rate(
            config.lr,
            progress=self.progress,
            updates=self.counters.updates,
            warmup=config.warmup,
            final=config.final_lr,
        )
        set_rates(self.optimizer, [rate])
        norm = guarded_step(self.optimizer, loss, self.tally, clip_norm=config.clip_norm)
        self.averaged.update_parameters(self.network)
        return {
            **scalars,
            "train/loss": loss.detach(),
            "train/gradient_norm": norm,
            "train/learning_rate": torch.tensor(rate),
        }

    def _reverse_loss(self) -> tuple[Tensor, Tensor]:
        """The reverse loss and log w (n,); a path of weight 0 pulls as far as the bound lets it."""
        config, mdp = self.config, self.mdp
        with torch.no_grad():
            drawn, log_weight = self.network.draw(mdp, config.reverse_size, self.generator)
            known = log_weight.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
            middle = torch.nanmedian(torch.where(known.isfinite(), known, torch.nan))
            lever = (known - middle).clamp(-MOST_LEVER, MOST_LEVER)
            lever = lever - lever.mean()
        self.counters.env_steps += config.reverse_size * mdp.num_steps
        log_density = self.network.log_density(mdp, drawn)
        return -(lever * log_density).mean(), log_weight


def require_distillable(energy: Energy, steps: int = 2) -> None:
    """Refuses a target that a student of so many steps cannot have.

    Raises:
        ValueError: if its space is neither R^D nor that of exchangeable particles.
        ModuleNotFoundError: for one step of a flow, if zuko is not installed.
    """
    require_one(energy, "a student draws from")
    geometry = energy.geometry
    if isinstance(geometry, CentreOfMassFree):
        if energy.symmetry is None:
            raise ValueError(
                "energy must have a symmetry to be distilled, as its particles exchange, got "
                f"{type(energy).__name__} without one"
            )
        if steps == 1 and has_orbits(geometry):
            require_zuko()
    elif geometry.effective_dim != geometry.dim:
        raise ValueError(
            "energy must have states in R^D, or of particles, to be distilled, got "
            f"{type(energy).__name__} on a {type(geometry).__name__}"
        )
    elif steps == 1:
        require_zuko()
