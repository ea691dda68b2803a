"""Learning without settings: designs are tried, the best is trained, and fitted again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from vgs_rl.agents.automatic.trials import UNWATCHED, Rows, Trial, Trials
from vgs_rl.training.loop import interruptible

TRIED = 0.25  # of the time, for trying designs
FIRST = 0.5  # of the rest, for the first training
PATIENCE = 3  # checks without a gain that end a training
GAIN = 0.02  # of the effective sample size, that counts as one
PILOT = 50  # updates whose time says how many there is time for
CHECKS = 5  # of a training
UNKNOWN = 10_000_000  # updates that are planned until then: the learning rate stays at its peak


@dataclass(kw_only=True)
class Learning:
    """Learns a target that was explored.

    Attributes:
        trials: of designs, with what they are tried on.
        seconds: how long it may take, with the paths of the result.
        paths: how many these are, about.
    """

    trials: Trials
    seconds: float
    paths: int

    def __post_init__(self) -> None:
        self.clock, self.began = self.trials.clock, self.trials.began
        self.trials.seconds = TRIED * self.seconds
        self.target_ess = self.trials.target_ess
        self.stopped = False

    @property
    def history(self) -> list[dict[str, Any]]:
        """What was done, as JSON holds it."""
        return self.trials.history

    def _late(self, seconds: float) -> bool:
        """Whether fewer seconds than these are left."""
        return self.clock.late(self.began + self.seconds - seconds)

    def _left(self) -> float:
        return self.began + self.seconds - self.clock.elapsed()

    def run(self) -> Trial:
        """The best trial."""
        trials = self.trials
        best = trials.choose()
        self.seconds -= min(self.paths * best.seconds, 0.5 * self.seconds)
        if best.ess >= self.target_ess:
            return best
        self._train(best, max(self._left() * FIRST, 1.0))
        if self.stopped or best.ess >= self.target_ess or self._late(2.0):
            return best
        trials.rows = trials.rows.joined(self.drawn(best))
        local, whole = trials.designs(best.design.tails)
        again = local if best.design.unit == "component" else whole
        options: dict[str, Any] = {"steps": best.design.steps}
        if again.tails != "components":
            options["guided"] = best.design.guided
        fitted = trials.attempt(replace(again, **options), "fitted again")
        best.check(trials.rows, trials.seed + 3)
        if fitted.misfit < best.misfit:
            best, other = fitted, best
        else:
            other = fitted
        if best.ess < self.target_ess and not self._late(1.0):
            self._train(best, self._left())
        return max((best, other), key=lambda trial: trial.ess)

    def _train(self, trial: Trial, seconds: float) -> None:
        """Trains until the target ESS, a plateau, the time or Ctrl-C."""
        counters, began = trial.agent.counters, self.clock.elapsed()
        first, best, idle = counters.updates, trial.ess, 0
        self.trials.tell("learning")
        with interruptible() as pressed:
            plan = 2 * first if first > PILOT else UNKNOWN
            self._learn(trial, plan, first + PILOT, began + seconds / CHECKS, pressed)
            for check in range(CHECKS):
                done = counters.updates

                def planned(done: int = done) -> int:
                    used = max(self.clock.elapsed() - began, 1e-9)
                    return done + math.floor((done - first) / used * max(seconds - used, 0.0))

                end = done if self.stopped else self.clock.decide("updates planned", planned)
                if end <= done:
                    trial.check(self.trials.rows, self.trials.seed + 2)
                    break
                until = done + math.ceil((end - done) / (CHECKS - check))
                self._learn(trial, end, until, began + 1.2 * seconds, pressed)
                trial.check(self.trials.rows, self.trials.seed + 2)
                done, ess = counters.updates, trial.ess
                self.trials.tell(f"learning, {done:,} updates, effective share {ess:.2f}")
                self.trials.note(trial, "learning")
                idle = 0 if ess > best + GAIN else idle + 1
                best = max(best, ess)
                if self.stopped or ess >= self.target_ess or idle >= PATIENCE:
                    break
        self.trials.note(trial, "trained")

    def _learn(
        self, trial: Trial, planned: int, until: int, late: float, pressed: Callable[[], bool]
    ) -> None:
        """Updates until there are so many, by a plan of how many there will be in the end."""
        deadline, counters = self.clock.deadline("updates", late), trial.agent.counters
        trial.agent.learn(
            updates=planned,
            evaluation=UNWATCHED,
            progress_bar=False,
            callback=lambda agent: not deadline() and counters.updates < until,
        )
        done = deadline.over or counters.updates >= until
        self.stopped = self.clock.decide("stopped", lambda: pressed() or not done)
        if not done:
            deadline.end()

    def drawn(self, trial: Trial) -> Rows:
        """The sampler's weighted samples."""
        drawn = trial.drawn
        assert drawn is not None and drawn.log_weight is not None
        x = trial.energy.to_x(drawn.x)
        gradient = self.trials.energy.with_gradient(x)[1]
        return Rows(x=x.double(), gradient=gradient.double(), log_weight=drawn.log_weight.double())
