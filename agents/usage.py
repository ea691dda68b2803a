"""What a user does with any agent: sample, evaluate, save, load, look at it."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from matplotlib.figure import Figure

from vgs_rl.conditional.conditions import ConditionLike
from vgs_rl.conditional.energy import JointEnergy
from vgs_rl.energy import Energy
from vgs_rl.evaluation.conditional.curve import LogZCurve, log_z_curve
from vgs_rl.evaluation.evaluate import evaluate
from vgs_rl.evaluation.particle_metrics import ParticleProtocol
from vgs_rl.evaluation.report import Report
from vgs_rl.mdp import SamplingMDP
from vgs_rl.plots.plots import plot_summary
from vgs_rl.plots.results import plot_states
from vgs_rl.samplers.base import ChainSampler, Sampler, Samples
from vgs_rl.trust import Trust

if TYPE_CHECKING:
    from vgs_rl.agents.distilled.agent import DistilledAgent
    from vgs_rl.training.folder import RunFolder
    from vgs_rl.training.loop import Counters


class Usable(ABC):
    """The methods of an agent that do not depend on how it learns.

    Attributes:
        mdp: its chain.
        seed: of its training.
        counters: what training has used.
        config: its settings.
        origin: where its energy comes from (:class:`vgs_rl.agents.target.Origin`), if that is
            known.
        student: of one step, which draws in its place, or None.
    """

    mdp: SamplingMDP
    seed: int
    counters: Counters
    config: Any
    origin: Any = None
    student: DistilledAgent | None = None

    @abstractmethod
    def sampler(self) -> Sampler:
        """The current sampler; it follows later training."""

    @property
    def drawing(self) -> Sampler:
        """What draws: the student's sampler if there is one, else this agent's."""
        return self.sampler() if self.student is None else self.student.sampler()

    @abstractmethod
    def report_details(self) -> dict[str, Any]:
        """What a report of this agent says besides its metrics."""

    @property
    def energy(self) -> Energy:
        """The target, in the coordinates of its samples."""
        return self.mdp.energy

    def judged(self, sampler: Sampler, samples: Samples, seed: int) -> dict[str, Any]:
        """What can be said of samples that the agent's report does not measure.

        Args:
            sampler: what drew them.
            samples: of the target.
            seed: of everything random in it.
        """
        return {}

    @property
    def target_name(self) -> str:
        """The name of the target, for reports."""
        return self.origin.name if self.origin else type(self.energy).__name__

    @property
    def picture_title(self) -> str:
        """The title of pictures of the chain."""
        own = self.energy is self.mdp.energy
        return self.target_name if own else f"{self.target_name}, in the coordinates of the chain"

    @property
    def used(self) -> Counters:
        """What training has used, with that of the student."""
        if self.student is None:
            return self.counters
        own, other = asdict(self.counters), asdict(self.student.counters)
        return replace(self.counters, **{name: own[name] + other[name] for name in own})

    def sample(
        self,
        n: int,
        seed: int = 0,
        *,
        resample: bool = False,
        condition: ConditionLike | None = None,
        **parameters: float,
    ) -> Samples:
        """Draws n samples; see :meth:`vgs_rl.Sampler.sample`.

        Args:
            n: number of samples.
            seed: of this draw.
            resample: draw more and keep n by their weights: asymptotically exact samples.
            condition: a value of the parameters of a conditional energy.
            **parameters: the same by name, such as ``temperature=0.7``.

        Raises:
            ValueError: as :meth:`vgs_rl.Sampler.sample`.
        """
        condition = named_condition(condition, parameters)
        return self.drawing.sample(n, seed, resample=resample, condition=condition)

    def target_at(
        self, condition: ConditionLike | None = None
    ) -> tuple[ConditionLike | None, Energy]:
        """What is evaluated: a value of the parameters, and the target there.

        Args:
            condition: by default the energy's own choice; None where there are no parameters.

        Raises:
            ValueError: if there are no parameters, or it is out of their range.
        """
        energy = self.energy
        if not isinstance(energy, JointEnergy):
            if condition is not None:
                self.mdp.condition_of(condition)  # says what is wrong with it
            return None, energy
        of = energy.conditional
        chosen = of.default if condition is None else of.conditions.tensor(condition)
        return chosen, of.at(chosen)

    def log_z_curve(self, conditions: Any = 11, n: int = 4_000, **options: Any) -> LogZCurve:
        """Log Z(c) over the range of the parameters, with bounds.

        Arguments are those of :func:`vgs_rl.evaluation.conditional.curve.log_z_curve`.
        """
        return log_z_curve(self.sampler(), self.energy, conditions, n, **options)

    def evaluate(
        self,
        n: int = 20_000,
        *,
        seed: int = 0,
        resample: bool = False,
        sampler: Sampler | None = None,
        protocol: ParticleProtocol | None = None,
        on_samples: Callable[[Samples], None] | None = None,
        progress_bar: bool = False,
        condition: ConditionLike | None = None,
        **parameters: float,
    ) -> Report:
        """Every metric that agent and target admit; see :func:`vgs_rl.evaluate`.

        Args:
            n: samples to draw.
            seed: of the evaluation.
            resample: evaluate importance-resampled samples.
            sampler: what draws instead of :attr:`drawing`, on its target and its account.
            protocol: repeats and sample counts of particle metrics; all of it by default.
            on_samples: told what was drawn.
            progress_bar: whether to show one while it draws.
            condition: a value of the parameters of a conditional energy; by default temperature 1,
                or the middle of their range.
            **parameters: the same by name, such as ``temperature=0.7``.

        Returns:
            The report; printing it shows the table.
        """
        condition = named_condition(condition, parameters)
        chosen, energy = self.target_at(condition)
        sampler = sampler or (self.drawing if chosen is None else self.sampler().at(chosen))
        sampler.progress_bar = progress_bar
        used = self.used
        drawn: list[Samples] = []

        def seen(samples: Samples) -> None:
            drawn.append(samples)
            if on_samples is not None:
                on_samples(samples)

        report = evaluate(
            sampler,
            energy,
            n,
            seed=seed,
            resample=resample,
            target_name=self.target_name + written(self.mdp, condition),
            agent_name=self.config.name,
            training_seed=self.seed,
            train_seconds=used.seconds,
            env_steps=used.env_steps,
            energy_evaluations=used.energy_evaluations,
            protocol=protocol,
            on_samples=seen,
        )
        if chosen is not None:
            report.details["condition"] = self.mdp.named(chosen)
        report.details |= self.report_details() | self.judged(sampler, drawn[0], seed)
        return report

    def plot(self, seed: int = 0) -> Figure:
        """The chain over the target's density, and energies of samples; of two dimensions best.

        Of a sampler that is no chain, its samples; of an energy with parameters those that
        :meth:`evaluate` looks at.
        """
        sampler = self.drawing
        chosen = self.target_at()[0]
        if chosen is not None or not isinstance(sampler, ChainSampler):
            return plot_states(sampler.sample(2_000, seed, condition=chosen).x)
        return plot_summary(
            self.mdp, sampler.policy, self.mdp.generator(seed), title=self.picture_title
        )

    def distill(
        self,
        steps: int = 1,
        *,
        updates: int = 1_000,
        seed: int = 0,
        states: int = 40_000,
        folder: RunFolder | None = None,
        progress_bar: bool = True,
    ) -> DistilledAgent:
        """A student of this agent: a sampler of few network calls, with exact log-weights.

        One step is a normalising flow, more are a chain of mixture kernels
        (:func:`vgs_rl.distill`). This agent is left as it is.

        Args:
            steps: network calls of a sample.
            updates: gradient steps; 0 leaves the student at the mixture that it begins with.
            seed: of everything random.
            states: states of this agent to learn from.
            folder: where records and checkpoints go; None writes nothing.
            progress_bar: whether to show one.

        Raises:
            ValueError: if an argument does not fit, or the target is not on R^D.
            ModuleNotFoundError: for one step, if zuko is not installed.
        """
        module = importlib.import_module("vgs_rl.agents.distilled.distill")
        student: DistilledAgent = module.distill(
            self.sampler(),
            self.energy,
            steps=steps,
            updates=updates,
            seed=seed,
            states=states,
            origin=self.origin,
            folder=folder,
            progress_bar=progress_bar,
        )
        return student

    def save(self, path: Path | str) -> None:
        """Writes everything that it is to one file for :meth:`load`; training can go on from it.

        Settings and state are written, no code. The energy is written by its name; one that was
        handed over as an object has to be handed over again.

        Raises:
            OSError: if the file cannot be written.
        """
        importlib.import_module("vgs_rl.experiments.saved").save_agent(self, Path(path))

    @classmethod
    def load(
        cls,
        path: Path | str,
        energy: Energy | Any = None,
        *,
        dim: int | None = None,
        device: str = "auto",
        trust: Trust = False,
    ) -> Self:
        """An agent from a file of :meth:`save`.

        Args:
            path: the file.
            energy: its target where the file cannot name it: an energy, or a function of `dim`.
            dim: dimensions of a function's states.
            device: where to put it.
            trust: True imports what the file names though it is not this package's
                (:mod:`vgs_rl.trust`); False refuses it.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged, holds another kind of agent, needs `energy`, or names
                foreign code without `trust`.
        """
        load = importlib.import_module("vgs_rl.experiments.saved").load_agent
        agent = load(Path(path), energy, dim=dim, device=device, trust=trust)
        if not isinstance(agent, cls):
            raise ValueError(
                f"{path} must hold a {cls.__name__}, got a {type(agent).__name__}: "
                f"vgs_rl.{type(agent).__name__}.load reads it"
            )
        return agent

    def __repr__(self) -> str:
        used = f"{self.counters.updates:,} updates" + (", one step" if self.student else "")
        return f"{type(self).__name__}({self.target_name}, seed={self.seed}, {used})"


def named_condition(
    condition: ConditionLike | None, parameters: dict[str, float]
) -> ConditionLike | None:
    """A value of the parameters that is given as one, or by name.

    Raises:
        ValueError: if it is given twice.
    """
    if condition is not None and parameters:
        raise ValueError(f"condition must be left out beside {', '.join(parameters)}")
    return parameters or condition


def written(mdp: SamplingMDP, condition: ConditionLike | None) -> str:
    """A value of the parameters as it follows the name of a target; nothing where none is given."""
    if condition is None:
        return ""
    return "".join(f", {name} {value:.6g}" for name, value in mdp.named(condition).items())
