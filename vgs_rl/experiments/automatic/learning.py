"""Learning without settings: designs are tried, the best is trained, and fitted again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vgs_rl.agents.value_gradient.agent import ValueGradientAgent
from vgs_rl.agents.value_gradient.gradient_matching import GradientMatchingLearner
from vgs_rl.agents.value_gradient.sources import WeightedSource
from vgs_rl.energy import Energy
from vgs_rl.experiments.automatic.design import Design, choose_design
from vgs_rl.exploration import Exploration, MappedEnergy
from vgs_rl.mdp import SamplingMDP
from vgs_rl.samplers.base import Samples, pilot_generator
from vgs_rl.weights import cleaned, systematic_resample, temper

CHECKED = 1_000  # samples that a choice is made with
TRIED = 0.25  # of the time, for trying designs
FIRST = 0.5  # of the rest, for the first training
PATIENCE = 3  # checks without a gain that end a training
GAIN = 0.02  # of the effective sample size, that counts as one


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
    """

    design: Design
    agent: ValueGradientAgent
    energy: MappedEnergy
    gap: float = float("inf")
    drawn: Samples | None = None

    @property
    def ess(self) -> float:
        """Effective share of the samples, 0 before :meth:`check`."""
        return 0.0 if self.drawn is None else self.drawn.ess

    def check(self, rows: Rows, seed: int) -> None:
        """Draws samples, not those of the result, and paths backwards from known states."""
        generator = pilot_generator(self.agent.mdp.device, seed)
        sampler = self.agent.sampler()
        self.drawn = sampler.sample(CHECKED, generator)
        assert self.drawn.log_weight is not None
        x = rows.resampled(generator)
        x = x[torch.randperm(len(x), generator=generator, device=x.device)[: CHECKED // 2]]
        z = self.energy.coordinates.to_z(x).to(self.agent.mdp.dtype)
        backward = sampler.reverse_log_weight(z, generator)
        self.gap = _trimmed(backward) - _trimmed(self.drawn.log_weight)


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


@dataclass(kw_only=True)
class Learning:
    """Learns a target that was explored.

    Attributes:
        energy: the target, on R^D.
        exploration: of it.
        dtype: in which it is evaluated.
        seed: of every random number.
        seconds: how long it may take.
        target_ess: effective share at which it ends early.
        tell: told in words what happens.
        known: weighted states besides those of the exploration.
        guided: whether designs with a guide by ∇E are tried; they evaluate E at every step.
        history: what was done, as JSON holds it.
    """

    energy: Energy
    exploration: Exploration
    dtype: torch.dtype
    seed: int
    seconds: float
    target_ess: float
    tell: Callable[[str], None]
    known: Rows | None = None
    guided: bool = True
    history: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.began = time.monotonic()
        particles = Rows.of(self.exploration)
        self.rows = particles if self.known is None else particles.joined(self.known)
        self.generator = torch.Generator(self.rows.x.device).manual_seed(self.seed)
        self.stopped = False

    def _left(self, share: float = 1.0) -> float:
        return share * self.seconds - (time.monotonic() - self.began)

    def run(self) -> Trial:
        """The best trial."""
        best = self._choose()
        if best.ess >= self.target_ess:
            return best
        self._train(best, max(self._left() * FIRST, 1.0))
        if self._ends(best):
            return best
        self.rows = self.rows.joined(self.drawn(best))
        local, whole = self._designs(best.design.tails != "none")
        again = local if best.design.unit == "component" else whole
        options = {name: getattr(best.design, name) for name in ("steps", "guided")}
        fitted = self._try(replace(again, **options), "fitted again")
        best.check(self.rows, self.seed + 3)
        if fitted.gap < best.gap:
            best, other = fitted, best
        else:
            other = fitted
        if best.ess < self.target_ess and self._left() > 1.0:
            self._train(best, self._left())
        return max((best, other), key=lambda trial: trial.ess)

    def _ends(self, trial: Trial) -> bool:
        return self.stopped or trial.ess >= self.target_ess or self._left() < 2.0

    def _designs(self, tails: bool) -> tuple[Design, Design]:
        """Designs for one component and for the whole target."""
        modes, rows = self.exploration.modes, self.rows.tempered()
        known = None if modes is None else modes.x
        log_weight = rows.log_weight
        local, whole = choose_design(
            rows.x, self.generator, log_weight=log_weight, modes=known, tails=tails
        )
        if self.guided:
            return local, whole
        plain = replace(local, guided=False)
        return plain, plain if whole is local else replace(whole, guided=False)

    def _choose(self) -> Trial:
        """Tries one change of the design after the other, and keeps what helps."""
        local, whole = self._designs(tails=False)
        best = self._try(local, "local")
        if best.ess < self.target_ess:
            heavy, heavy_whole = self._designs(tails=True)
            if heavy.tails != "none":
                other = self._try(heavy, "tails")
                if other.gap < best.gap:
                    best, local, whole = other, heavy, heavy_whole
        changes: list[tuple[str, Callable[[Design], Design]]] = [
            ("whole", lambda design: replace(whole, steps=design.steps)),
            ("unguided", lambda design: replace(design, guided=False)),
            ("more steps", lambda design: replace(design, steps=2 * design.steps)),
        ]
        for name, change in changes:
            if best.ess >= self.target_ess or self._left() < (1 - TRIED) * self.seconds:
                break
            if (name == "whole" and local is whole) or (name == "unguided" and not self.guided):
                continue
            other = self._try(change(best.design), name)
            needed = 0.85 if name == "more steps" else 0.97  # steps cost time
            if other.gap < needed * best.gap:
                best = other
        return best

    def _try(self, design: Design, name: str) -> Trial:
        """A design before training."""
        self.tell(f"trying a start of {design.kind}, {name}")
        mapped = MappedEnergy(self.energy, design.coordinates, dtype=self.dtype)
        device = self.rows.x.device
        mdp = SamplingMDP(mapped, design.mdp(), device=device)
        agent = design.agent().build(mdp, seed=self.seed + len(self.history))
        agent.mdp.start.become(design.mixture)  # type: ignore[operator]
        learner = agent.objective
        assert isinstance(learner, GradientMatchingLearner)
        assert isinstance(learner.source, WeightedSource)
        z = design.coordinates.to_z(self.rows.x)
        slope = design.coordinates.pull_back(z, self.rows.gradient)
        rows = (part.to(mdp.dtype) for part in (z, slope, self.rows.log_weight))
        learner.source.rows.add(*rows)
        agent.learn(updates=1, progress_bar=False)
        trial = Trial(design=design, agent=agent, energy=mapped)
        trial.check(self.rows, self.seed + 1)
        self._note(trial, name)
        return trial

    def _note(self, trial: Trial, name: str) -> None:
        self.history.append(
            {
                "what": name,
                **trial.design.summary(),
                "updates": trial.agent.counters.updates,
                "ess": trial.ess,
                "gap": trial.gap,
                "seconds": round(time.monotonic() - self.began, 1),
            }
        )

    def _train(self, trial: Trial, seconds: float) -> None:
        """Trains until the target ESS, a plateau, the time or Ctrl-C."""
        agent, began = trial.agent, time.monotonic()
        best, idle, enough = trial.ess, 0, False
        next_check = began + seconds / 5

        def look(agent: Any) -> bool:
            nonlocal best, idle, next_check, enough
            now = time.monotonic()
            if now < next_check:
                return True
            next_check = now + seconds / 5
            trial.check(self.rows, self.seed + 2)
            updates = agent.counters.updates
            self.tell(f"learning, {updates:,} updates, effective share {trial.ess:.2f}")
            idle = 0 if trial.ess > best + GAIN else idle + 1
            best = max(best, trial.ess)
            enough = trial.ess >= self.target_ess or idle >= PATIENCE
            return not enough

        self.tell("learning")
        budget = agent.counters.seconds + seconds
        agent.learn(seconds=budget, progress_bar=False, callback=look)
        self.stopped = not (agent.finished or enough)  # by Ctrl-C
        trial.check(self.rows, self.seed + 2)
        self._note(trial, "trained")

    def drawn(self, trial: Trial) -> Rows:
        """The sampler's weighted samples."""
        drawn = trial.drawn
        assert drawn is not None and drawn.log_weight is not None
        x = trial.energy.to_x(drawn.x)
        gradient = self.energy.with_gradient(x)[1]
        return Rows(x=x.double(), gradient=gradient.double(), log_weight=drawn.log_weight.double())
