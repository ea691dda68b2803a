"""The agent's base class: everything that is not the algorithm (SB3's split)."""

from __future__ import annotations

import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from vgs_rl.agents.ranks import load_own, replicated, require_ranks, state_of_all
from vgs_rl.agents.usage import Usable
from vgs_rl.checks import seed_of
from vgs_rl.evaluation.progress import EnergyProgress
from vgs_rl.files.restore import check_like, fitting, load_generator, load_module, restore
from vgs_rl.mdp import MDPConfig, SamplingMDP
from vgs_rl.plots.plots import Drawing
from vgs_rl.samplers.base import Sampler
from vgs_rl.training import parallel
from vgs_rl.training.config import BudgetConfig, EvaluationConfig
from vgs_rl.training.folder import RunFolder
from vgs_rl.training.loop import Checkpoints, Counters, Loop, Recording, Scalars
from vgs_rl.training.optim import Tally
from vgs_rl.training.states import is_kept
from vgs_rl.transitions import Rollout
from vgs_rl.weights import effective_share, live_elbo

HISTOGRAMS = 128  # of all first validations; of later ones ever fewer


@dataclass(kw_only=True)
class AgentConfig(ABC):
    """Base of every agent's configuration; a subclass names its agent in :meth:`build`.

    Attributes:
        changeable: settings that a resumed run may change, since they are read at every update.
    """

    name: ClassVar[str] = "agent"
    changeable: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def build(self, mdp: SamplingMDP, *, seed: int = 0) -> Agent:
        """The untrained agent."""

    def folder_name(self, mdp: MDPConfig) -> str:
        """The folder of its runs on a target, of chains like this one."""
        return self.name


class Agent(Usable):
    """Learns to sample one MDP.

    A subclass writes :meth:`_setup` (networks, optimisers, buffers), :meth:`_train_step` (one
    gradient step) and :meth:`sampler`, and names its state in ``saved``.

    Attributes:
        mdp: the MDP; its start and noise scales belong to the agent's state.
        generator: source of all randomness in training; each rank has its own.
        ranks: how many processes train it together.
        common: source of randomness that all ranks share.
        counters: updates, transitions, energy evaluations and seconds used.
        progress: fraction of the budget used, in [0, 1]; schedules read it.
        tally: updates in vain so far: those whose loss or gradient was not finite.
        validation: updates before the last validation, and its ELBO.
        checkpoint: name of the checkpoint that the state is from, None for what was just trained.
        finished: whether the last call of :meth:`learn` used its budget up.
        conditional: whether it learns energies with parameters.
        saved: attributes (with ``state_dict``/``load_state_dict``) that a checkpoint holds.
        sharded: those of them that each rank has for itself.
        data_parallel: whether several ranks can train it together.
    """

    IN_VAIN: ClassVar[str] = "were skipped: their loss or gradient was not finite"
    saved: ClassVar[tuple[str, ...]] = ()
    sharded: ClassVar[tuple[str, ...]] = ()
    conditional: ClassVar[bool] = False
    data_parallel: ClassVar[bool] = False
    finished: bool = False

    def __init__(self, mdp: SamplingMDP, *, seed: int = 0) -> None:
        if mdp.conditions is not None and not self.conditional:
            names = ", ".join(mdp.conditions.names)
            raise ValueError(f"{type(self).__name__} learns no parameters, got {names}: VGS does")
        self.mdp, self.seed = mdp, seed_of(seed)
        require_ranks(self)
        self.ranks = parallel.world_size()
        self._seed_generators()
        self.counters = Counters()
        self.progress = 0.0
        self.checkpoint: str | None = None
        self.best_elbo, self.best_progress = -float("inf"), 0.0
        self.validation = (-1, float("nan"))
        self.tally = Tally(mdp.device)
        self._energy_progress: EnergyProgress | None = None
        self._setup()

    def _seed_generators(self) -> None:
        self.generator = self.common = self.mdp.generator(parallel.own_seed(self.seed))
        if parallel.world_size() > 1:
            self.common = self.mdp.generator(parallel.common_seed(self.seed))

    @abstractmethod
    def _setup(self) -> None:
        """Creates networks, optimisers and buffers."""

    @abstractmethod
    def _train_step(self) -> dict[str, Tensor]:
        """One gradient step; returns scalars to log, as tensors (no host round trip)."""

    @abstractmethod
    def sampler(self) -> Sampler:
        """The current sampler, for evaluation; it follows later training."""

    def figures(self, generator: torch.Generator) -> dict[str, Drawing]:
        """Pictures of the agent's current state, by name; each is drawn when it is called."""
        return {}

    def report_details(self) -> dict[str, Any]:
        """What a report of this agent says besides its metrics, as JSON holds it."""
        return {
            "updates": self.counters.updates,
            "skipped_updates": self.skipped,
            "checkpoint": self.checkpoint,
            "notes": self.notes(),
            **({"ranks": self.ranks} if self.ranks > 1 else {}),
        }

    @property
    def skipped(self) -> int:
        """Updates skipped so far."""
        return int(self.tally.skipped)

    def notes(self) -> list[str]:
        """What a user of this agent has to know, a line each; they end training as warnings."""
        skipped, updates = self.skipped, self.counters.updates
        if not skipped:
            return []
        note = f"{skipped:,} of {updates:,} updates {self.IN_VAIN}"
        if 2 * skipped >= updates:
            note += "; the agent has hardly learned, its metrics are those of an untrained one"
        return [note]

    # --- the loop -----------------------------------------------------------------------------

    def learn(
        self,
        budget: BudgetConfig | None = None,
        *,
        evaluation: EvaluationConfig | None = None,
        folder: RunFolder | None = None,
        progress_bar: bool = True,
        callback: Callable[[Agent], bool | None] | None = None,
        updates: int | None = None,
        env_steps: int | None = None,
        energy_evaluations: int | None = None,
        seconds: float | None = None,
    ) -> Self:
        """Trains until the budget is used up, Ctrl-C is pressed or `callback` returns False.

        A folder gets a checkpoint before the first update, at every validation, every
        `save_seconds` and at the end, so that training can go on from wherever it was ended. Ctrl-C
        lets an update or a validation come to its end; one that takes seconds is cut off by a
        KeyboardInterrupt, and training goes on from the last checkpoint.

        Ranks that train together (:mod:`vgs_rl.training.parallel`) call it together. The first one
        alone has a folder, validates and shows a bar.

        Args:
            budget: when to stop; counts include what an earlier call used.
            evaluation: how often to log, validate and save.
            folder: where to write records and checkpoints; None writes nothing.
            progress_bar: whether to show one.
            callback: called after every update.
            updates: gradient steps, in place of `budget`.
            env_steps: transitions, in place of `budget`.
            energy_evaluations: evaluations of E or ∇E, in place of `budget`.
            seconds: wall-clock time, in place of `budget`.

        Returns:
            The agent; its `finished` says whether the budget was used up (it is False after
            Ctrl-C or the callback's stop).

        Raises:
            ValueError: if there is no limit, or a validation sample has energy -inf.
            OSError: if the folder cannot be written to any more; its last checkpoint stays.
        """
        budget = budget or BudgetConfig(
            updates=updates,
            env_steps=env_steps,
            energy_evaluations=energy_evaluations,
            seconds=seconds,
        )
        evaluation = evaluation or EvaluationConfig()
        self.prepare(budget, progress_bar=progress_bar)
        validated = -1
        checkpoints = Checkpoints(
            folder,
            lambda: state_of_all(self),
            evaluation.save_seconds,
            lambda: self.counters.seconds if parallel.world_size() > 1 else time.monotonic(),
        )
        parallel.equalise(replicated(self))
        with Loop(self, budget, progress_bar=progress_bar) as loop:

            def show(values: dict[str, float]) -> None:
                loop.shown["loss"] = f"{values.get('train/loss', float('nan')):.4g}"

            def validate(scalars: Scalars) -> None:
                nonlocal validated
                if self.counters.updates % evaluation.validate_every == 0:
                    elbo = self._validate(evaluation, folder, checkpoints)
                    loop.shown["elbo"] = f"{elbo:.3f}"
                    validated = self.counters.updates
                    loop.tick()

            self.progress = loop.fraction()
            if parallel.from_first(folder is not None and not folder.records):
                if self.counters.updates == 0:
                    checkpoints.save()  # what was prepared, such as an exploration
                    self._validate(evaluation, folder, checkpoints, competes=False)
                    loop.tick()
                else:
                    checkpoints.save()
            finished = loop.run(
                [
                    Recording(folder, self, evaluation.log_every, show),
                    validate,
                    checkpoints,
                    lambda scalars: (
                        None if callback is None else parallel.all_of(callback(self) is not False)
                    ),
                ],
                on_progress=self._set_progress,
            )
            updates = self.counters.updates
            recorded = folder is not None and folder.validated(updates)
            if parallel.from_first(finished and validated != updates and not recorded):
                self._validate(evaluation, folder, checkpoints)
                loop.tick()
            checkpoints.save()
            if folder is not None:
                folder.flush()
            for note in self.notes() if parallel.is_first() else ():
                warnings.warn(note, stacklevel=2)
            self.finished = finished and not loop.interrupted()
            return self

    def prepare(self, budget: BudgetConfig, *, progress_bar: bool) -> None:
        """What is done before the first update, once; `learn` calls it.

        Args:
            budget: of the training.
            progress_bar: whether to show one.
        """

    def update(self) -> dict[str, Tensor]:
        """One gradient step, counted; returns scalars to log, as tensors."""
        self.checkpoint = None
        used = self.mdp.energy_evaluations
        scalars = self._train_step()
        scalars["train/skipped_updates"] = self.tally.skipped
        self.counters.updates += 1
        self.counters.energy_evaluations += self.mdp.energy_evaluations - used
        return scalars

    def _set_progress(self, fraction: float) -> None:
        self.progress = fraction

    def _validate(
        self,
        evaluation: EvaluationConfig,
        folder: RunFolder | None,
        checkpoints: Checkpoints,
        *,
        competes: bool = True,
    ) -> float:
        """ELBO and friends on fresh samples of rank 0; saves the best checkpoint and the last.

        Best is the highest ELBO. Where paths have weight 0 it is that of the sampler which throws
        them away (:func:`vgs_rl.weights.live_elbo`), so an energy that is infinite here and there
        does not end the choice. Without weights (a start that has no density), or with weights of
        0 alone, no checkpoint is better than another, and only the last one is saved.

        Args:
            evaluation: how.
            folder: where records, pictures and the best checkpoint go.
            checkpoints: saves the last one.
            competes: whether the agent may be the best; an untrained one may not.

        Raises:
            ValueError: if a sample has energy -inf, which would be best for ever.
        """
        if not parallel.is_first():
            checkpoints.save()
            return float("nan")
        # A fixed validation seed: checkpoints are compared on the same noise.
        samples = self.sampler().sample(evaluation.validation_samples, evaluation.seed + 1)
        if samples.log_weight is None:
            if folder is not None:
                folder.histogram("eval/energy", self.energy(samples.x), self.counters.env_steps)
            checkpoints.save()
            return float("nan")
        log_weight = samples.log_weight.double()
        if infinite := int(torch.isposinf(log_weight).sum()):
            raise ValueError(
                f"log_weight must not be +inf, got {infinite:,} of {len(log_weight):,} at update "
                f"{self.counters.updates:,}: the energy is -inf there"
            )
        elbo, merit = float(live_elbo(log_weight)), self._merit(log_weight)
        self.validation = (self.counters.updates, elbo)
        if folder is None:
            self.best_elbo = max(self.best_elbo, merit)
            return elbo
        energies = self.energy(samples.x)
        if self._energy_progress is None:
            self._energy_progress = EnergyProgress(
                self.energy,
                self.mdp.generator(evaluation.seed + 5),
                temperature=self.mdp.temperature,
            )
        metrics = self._energy_progress.metrics(energies, samples.log_weight)
        folder.record(metrics, **asdict(self.counters))
        folder.keep_states(samples.x)
        step = self.counters.env_steps
        index = self.counters.updates // evaluation.validate_every
        if is_kept(index, HISTOGRAMS):
            for name, values in (("eval/log_weight", log_weight), ("eval/energy", energies)):
                folder.histogram(name, values, step)
        every = evaluation.figures_every
        if competes and every and index % every == 0 and is_kept(index // every):
            generator = self.mdp.generator(evaluation.seed + 2)
            folder.draw(lambda: self.figures(generator), step)
        if self.best_progress < evaluation.best_from <= self.progress:
            self.best_elbo = -float("inf")  # what came before no longer competes
            folder.remove("best")
        if competes and merit > self.best_elbo:
            self.best_progress = self.progress
            self.best_elbo = merit
            folder.save("best", self.state_dict())
        checkpoints.save()
        return elbo

    def _merit(self, log_weight: Tensor) -> float:
        """What the best checkpoint has most of, from a validation's log-weights: the ELBO."""
        return float(live_elbo(log_weight))

    # --- state --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that training needs to go on exactly where it is."""
        return {
            "counters": asdict(self.counters),
            "best_elbo": self.best_elbo,
            "best_progress": self.best_progress,
            "mdp": self.mdp.state_dict(),
            "generator": self.generator.get_state(),
            "tally": self.tally.state_dict(),
            **{name: getattr(self, name).state_dict() for name in self.saved},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`; of a training by as many ranks, each rank's own part.

        Raises:
            ValueError: if the state belongs to another agent or another configuration.
        """
        own = {"counters", "best_elbo", "best_progress", "mdp", "generator", "tally"}
        expected = own | set(self.saved)
        missing = expected - set(state)
        if missing:
            raise ValueError(f"the checkpoint lacks {', '.join(sorted(missing))}: another agent's?")
        with fitting():
            check_like(state["counters"], asdict(self.counters), "counters")
            for name in ("best_elbo", "best_progress"):
                check_like(state[name], getattr(self, name), name)
            load_module(self.mdp, state["mdp"], "mdp")
            for name in ("tally", *self.saved):
                restore(getattr(self, name), state[name], name)
            load_generator(self.generator, state["generator"])
            load_own(self, state)
        self.counters = Counters(**state["counters"])
        self.best_elbo, self.best_progress = state["best_elbo"], state["best_progress"]


def rollout_scalars(mdp: SamplingMDP, rollout: Rollout) -> dict[str, Tensor]:
    """Scalars of training episodes, to log; those of weights only where there are any."""
    scalars = {
        "rollout/return": -rollout.cost.detach().mean(),
        "rollout/energy": rollout.energy.detach().mean(),
    }
    if mdp.start.has_density:
        log_weight = rollout.log_weight.detach()
        scalars["rollout/elbo"] = live_elbo(log_weight)
        scalars["rollout/path_ess"] = effective_share(log_weight)
    return scalars
