"""Designs at work: what is known of a target, and which design fits it best before training."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vgs_rl.agents.automatic.design import Design, choose_design, design_of_components
from vgs_rl.agents.automatic.settings import Tails
from vgs_rl.agents.value_gradient.agent import ValueGradientAgent
from vgs_rl.agents.value_gradient.gradient_matching import GradientMatchingLearner
from vgs_rl.agents.value_gradient.sources import WeightedSource
from vgs_rl.energy import Energy
from vgs_rl.exploration import Clock, Exploration, MappedEnergy
from vgs_rl.mdp import SamplingMDP
from vgs_rl.samplers.base import Samples, pilot_generator
from vgs_rl.training import parallel
from vgs_rl.training.config import EvaluationConfig
from vgs_rl.weights import cleaned, systematic_resample, temper

CHECKED = 1_000  # samples that a choice is made with
UNWATCHED = EvaluationConfig(validation_samples=2, validate_every=10**9)  # checks are their own


@dataclass(frozen=True, kw_only=True)
class Rows:
    """States of the target with what is known of them.

    Attributes:
        x: shape (n, D), float64.
        gradient: ∇E, shape (n, D).
        log_weight: shape (n,).
    """

    x: Tensor
    gradient: Tensor
    log_weight: Tensor

    @classmethod
    def of(cls, exploration: Exploration) -> Rows:
        """Particles of an exploration."""
        return cls(
            x=exploration.x, gradient=exploration.gradient, log_weight=exploration.log_weight
        )

    def joined(self, other: Rows) -> Rows:
        """These and others."""
        pairs = ((self.x, other.x), (self.gradient, other.gradient))
        x, gradient = (torch.cat(pair) for pair in pairs)
        log_weight = torch.cat([self.log_weight, other.log_weight])
        return Rows(x=x, gradient=gradient, log_weight=log_weight)

    def tempered(self) -> Rows:
        """The different states among these, with weights so even that a third is effective."""
        x, rows = _first_of_each(self.x)
        log_weight = temper(self.log_weight[rows], 1 / 3).log()
        return Rows(x=x, gradient=self.gradient[rows], log_weight=log_weight)

    def resampled(self, generator: torch.Generator) -> Tensor:
        """States by weight, shape (n, D)."""
        return self.x[systematic_resample(self.log_weight, len(self.x), generator)]

    def fill(self, agent: ValueGradientAgent, design: Design, generator: torch.Generator) -> None:
        """Gives an agent the design's mixture as its start, and these states as its buffer.

        Ranks that train together share the states out. The generator chooses one z of many.
        """
        agent.mdp.start.become(design.mixture)  # type: ignore[operator]
        learner = agent.objective
        assert isinstance(learner, GradientMatchingLearner)
        assert isinstance(learner.source, WeightedSource)
        z = design.coordinates.to_z(self.x, generator)
        slope = design.coordinates.pull_back(z, self.gradient)
        rows = (part.to(agent.mdp.dtype) for part in (z, slope, self.log_weight))
        size = parallel.world_size()
        learner.source.rows.add(*(part[parallel.rank() :: size] for part in rows))


@dataclass(kw_only=True)
class Trial:
    """A design at work.

    Attributes:
        design: what was chosen.
        agent: of that design.
        energy: the target in the design's coordinates.
        gap: between log-weights of backward and of forward paths, both without their extremes: 0
            for a perfect sampler.
        drawn: samples that a choice is made with.
        seconds: that a path took.
        evaluations: states at which E or ∇E was evaluated to check it.
    """

    design: Design
    agent: ValueGradientAgent
    energy: MappedEnergy
    gap: float = float("inf")
    drawn: Samples | None = None
    seconds: float = 0.0
    evaluations: int = 0

    @property
    def misfit(self) -> float:
        """The size of the gap: below 0 it is the known states that are not the target's."""
        return abs(self.gap)

    @property
    def ess(self) -> float:
        """Effective share of the samples, 0 before :meth:`check`."""
        return 0.0 if self.drawn is None else self.drawn.ess

    def check(self, rows: Rows, seed: int) -> None:
        """Draws samples, not those of the result, and paths backwards from known states."""
        generator, began = pilot_generator(self.agent.mdp.device, seed), time.monotonic()
        sampler = self.agent.sampler()
        self.drawn = sampler.sample(CHECKED, generator)
        assert self.drawn.log_weight is not None
        x = rows.resampled(generator)
        x = x[torch.randperm(len(x), generator=generator, device=x.device)[: CHECKED // 2]]
        z = self.energy.coordinates.to_z(x, generator)
        backward = sampler.reverse_log_weight(z, generator)
        self.gap = _trimmed(backward) - _trimmed(self.drawn.log_weight)
        self.seconds = (time.monotonic() - began) / (CHECKED + len(z))
        # A path evaluates the same forwards and backwards.
        self.evaluations += round(self.drawn.energy_evaluations * (1 + len(z) / CHECKED))


@dataclass(kw_only=True)
class Trials:
    """Tries designs for a target that was explored.

    Attributes:
        energy: the target, on R^D.
        exploration: of it.
        dtype: in which it is evaluated.
        seed: of every random number.
        clock: keeps what the time decided, or repeats it.
        seconds: how long the first trials may take.
        target_ess: effective share at which no more is tried.
        tell: told in words what happens.
        known: weighted states besides those of the exploration.
        guided: whether designs with a guide by ∇E are tried; they evaluate E at every step.
        noted: told of each entry of the history, when it is made.
        history: what was done, as JSON holds it.
    """

    energy: Energy
    exploration: Exploration
    dtype: torch.dtype
    seed: int
    clock: Clock
    seconds: float
    target_ess: float
    tell: Callable[[str], None]
    known: Rows | None = None
    guided: bool = True
    noted: Callable[[dict[str, Any]], None] = lambda entry: None
    history: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.began = self.clock.elapsed()
        particles = Rows.of(self.exploration)
        self.rows = particles if self.known is None else particles.joined(self.known)
        self.generator = torch.Generator(self.rows.x.device).manual_seed(self.seed)
        self.tried: list[Trial] = []

    @property
    def evaluations(self) -> int:
        """States at which E or ∇E was evaluated so far."""
        return sum(trial.evaluations + trial.agent.mdp.energy_evaluations for trial in self.tried)

    def designs(self, tails: Tails) -> tuple[Design, Design]:
        """Designs for one component and for the whole target; tails of `components` if there are.

        The two are one where tails are those of components.
        """
        modes, rows = self.exploration.modes, self.rows.tempered()
        known = None if modes is None else modes.x
        states = {"log_weight": rows.log_weight, "modes": known}
        if tails == "components":
            design = design_of_components(rows.x, self.generator, **states)
            if design is not None:
                return design, design
        heavy = tails in ("radial", "coordinates")
        local, whole = choose_design(rows.x, self.generator, **states, tails=heavy)
        if self.guided:
            return local, whole
        plain = replace(local, guided=False)
        return plain, plain if whole is local else replace(whole, guided=False)

    def choose(self) -> Trial:
        """Tries one change of the design after the other, and keeps what helps."""
        local, whole = self.designs("none")
        best = self.attempt(local, "local")
        heavy: tuple[tuple[Tails, str], ...] = (
            ("coordinates", "tails"),
            ("components", "tails of components"),
        )
        for tails, name in heavy:
            if best.ess >= self.target_ess:
                break
            found = self.designs(tails)
            if found[0].tails != "none":
                other = self.attempt(found[0], name)
                if other.misfit < best.misfit:
                    best, (local, whole) = other, found
        changes: list[tuple[str, Callable[[Design], Design]]] = [
            ("whole", lambda design: replace(whole, steps=design.steps)),
            ("unguided", lambda design: replace(design, guided=False)),
            ("more steps", lambda design: replace(design, steps=2 * design.steps)),
        ]
        for name, change in changes:
            if best.ess >= self.target_ess or self.clock.late(self.began + self.seconds):
                break
            if (name == "whole" and local is whole) or (name == "unguided" and not self.guided):
                continue
            other = self.attempt(change(best.design), name)
            needed = 0.85 if name == "more steps" else 0.97  # steps cost time
            if other.misfit < needed * best.misfit:
                best = other
        return best

    def attempt(self, design: Design, name: str) -> Trial:
        """A design before training."""
        self.tell(f"trying a start of {design.kind}, {name}")
        mapped = MappedEnergy(self.energy, design.coordinates, dtype=self.dtype)
        mdp = SamplingMDP(mapped, design.mdp(), device=self.rows.x.device)
        agent = design.agent().build(mdp, seed=self.seed + len(self.history))
        self.rows.fill(agent, design, self.generator)
        if not agent.learn(updates=1, evaluation=UNWATCHED, progress_bar=False).finished:
            raise KeyboardInterrupt  # which the training has taken for its own
        trial = Trial(design=design, agent=agent, energy=mapped)
        self.tried.append(trial)
        trial.check(self.rows, self.seed + 1)
        self.note(trial, name)
        return trial

    def note(self, trial: Trial, name: str) -> None:
        """Adds an entry to the history."""
        self.history.append(
            {
                "what": name,
                **trial.design.summary(),
                "updates": trial.agent.counters.updates,
                "ess": trial.ess,
                "gap": trial.gap,
                "seconds": round(self.clock.elapsed() - self.began, 1),
            }
        )
        self.noted(self.history[-1])


def _first_of_each(x: Tensor) -> tuple[Tensor, Tensor]:
    """The different rows of x (n, D), and where each is first, in their order."""
    _, which = torch.unique(x, dim=0, return_inverse=True)
    first = torch.full((int(which.max()) + 1,), len(x), device=x.device)
    place = torch.arange(len(x), device=x.device)
    rows = first.scatter_reduce(0, which, place, "amin").sort().values
    return x[rows], rows


def _trimmed(log_weight: Tensor, share: float = 0.02) -> float:
    """The mean of log-weights without the largest and the smallest."""
    ordered = cleaned(log_weight.double()).clamp_min(-1e6).sort().values
    few = max(1, round(share * len(ordered)))
    return float(ordered[few:-few].mean())
