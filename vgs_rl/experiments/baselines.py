"""Samplers that learn nothing, run into the same folders as trainings: curves and reports overlay.

A move of one state is one environment step and one energy evaluation, whatever the method.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from vgs_rl.conditional.energy import require_one
from vgs_rl.evaluation.evaluate import Report, evaluate
from vgs_rl.evaluation.metrics import evenly_spaced_rows
from vgs_rl.evaluation.progress import EnergyProgress
from vgs_rl.mdp import SamplingMDP
from vgs_rl.samplers.base import ChainSampler, DrawnSampler, Sampler, Samples, pilot_generator
from vgs_rl.samplers.mcmc.annealed import AnnealedSMC
from vgs_rl.samplers.mcmc.langevin import HMCSampler, ULASampler
from vgs_rl.samplers.mcmc.mala import MALASampler
from vgs_rl.samplers.mcmc.tempering import ParallelTempering
from vgs_rl.training.config import BudgetConfig, EvaluationConfig
from vgs_rl.training.folder import RunFolder
from vgs_rl.weights import systematic_resample

UNCONTROLLED = "uncontrolled"
CURVE_FACTOR = 4  # between the budgets of a learning curve
CURVE_POINTS = 5


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """One run of a baseline.

    Attributes:
        name: one of :data:`BASELINES`.
        mdp: supplies target, temperature and device; only `uncontrolled` walks its chain.
        n: samples to draw, out of the whole budget.
        scale: standard deviation of the states that it starts from.
        seed: seed of the samples.
    """

    name: str
    mdp: SamplingMDP
    n: int
    scale: float
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in BASELINES:
            raise ValueError(f"baseline must be one of {', '.join(BASELINES)}, got {self.name!r}")

    def check(self, budget: BudgetConfig) -> None:
        """Refuses a budget that nothing can be drawn with.

        Raises:
            ValueError: if it names no count and no seconds, or is too small.
        """
        if self.name == UNCONTROLLED:
            return
        limits = _limits(budget)
        if not limits and budget.seconds is None:
            raise ValueError(
                f"{self.name} needs a budget of env_steps, energy_evaluations or seconds, "
                f"got {budget}"
            )
        if limits:
            self.sampler(min(limits))

    def sampler(self, budget: int) -> Sampler:
        """The sampler that uses `budget` energy evaluations for n samples, as far as it can.

        Raises:
            ValueError: if the budget is too small for it.
        """
        require_one(self.mdp.energy, f"{self.name} draws from")
        return BASELINES[self.name](self, budget)

    @property
    def options(self) -> dict[str, Any]:
        """What all samplers of targets take."""
        return {
            "scale": self.scale,
            "temperature": self.mdp.temperature,
            "device": self.mdp.device,
        }

    def chains(self, budget: int, most: int = 1_000) -> int:
        """At most so many chains that each makes a hundred moves, half of them kept."""
        return max(1, min(most, budget // 100, self.n))


def _uncontrolled(run: Baseline, budget: int) -> Sampler:
    return ChainSampler(run.mdp, lambda x, t: torch.zeros_like(x))


def _ula(run: Baseline, budget: int) -> Sampler:
    return ULASampler(run.mdp.energy, budget, chains=run.chains(budget), **run.options)


def _mala(run: Baseline, budget: int) -> Sampler:
    return MALASampler(run.mdp.energy, budget, chains=run.chains(budget), **run.options)


def _hmc(run: Baseline, budget: int) -> Sampler:
    return HMCSampler(run.mdp.energy, budget, chains=run.chains(budget // 8), **run.options)


def _tempering(run: Baseline, budget: int) -> Sampler:
    chains = run.chains(budget // 40, most=100)
    return ParallelTempering(run.mdp.energy, budget, chains=chains, **run.options)


def _annealed(run: Baseline, budget: int, threshold: float) -> Sampler:
    kind, pilot = AnnealedSMC, 200
    pilot_cost = kind.ROUNDS * kind.PILOT_MOVES * pilot  # of every step
    steps = (budget - run.n - pilot * kind.ROUNDS) // (run.n + pilot_cost)
    if steps < 1:
        least = 2 * run.n + pilot_cost + pilot * kind.ROUNDS
        raise ValueError(f"{run.name} needs {least} energy evaluations for {run.n} samples")
    return kind(run.mdp.energy, steps, threshold=threshold, pilot=pilot, **run.options)


def _ais(run: Baseline, budget: int) -> Sampler:
    return _annealed(run, budget, 0.0)


def _smc(run: Baseline, budget: int) -> Sampler:
    return _annealed(run, budget, 0.5)


BASELINES: dict[str, Callable[[Baseline, int], Sampler]] = {
    UNCONTROLLED: _uncontrolled,
    "ula": _ula,
    "mala": _mala,
    "hmc": _hmc,
    "pt": _tempering,
    "ais": _ais,
    "smc": _smc,
}


def run_baseline(
    run: Baseline,
    budget: BudgetConfig,
    evaluation: EvaluationConfig,
    folder: RunFolder,
    *,
    target_name: str,
    details: Mapping[str, Any] | None = None,
) -> tuple[Report, Samples]:
    """Draws with the budget, and with a few smaller ones for the curve; writes the run folder.

    A smaller budget is a separate run that would have ended there, not a part of the longest.

    Args:
        run: the baseline.
        budget: its env_steps, energy_evaluations or seconds; drawing is all that it is spent on.
        evaluation: how the run is evaluated; curves use `validation_samples` of the n.
        folder: where records and report go.
        target_name: for the report.
        details: further details of the report.

    Returns:
        The report, also in report.json, and the samples that it evaluates, also in samples.pt.

    Raises:
        ValueError: if the budget names none of these, or is too small for the baseline.
    """
    mdp = run.mdp
    progress = EnergyProgress(
        mdp.energy, mdp.generator(evaluation.seed + 5), temperature=mdp.temperature
    )
    drawn = None
    for samples, seconds in _draws(run, budget):
        drawn, used = samples, seconds
        _record(samples, seconds, run, progress, evaluation.validation_samples, folder)
    if drawn is None:
        raise ValueError(f"{run.name} can draw nothing within {budget}")
    trained = run.name != UNCONTROLLED
    counters = _counters(drawn, used)
    report = evaluate(
        # What was drawn is counted as the run's cost already.
        run.sampler(0)
        if run.name == UNCONTROLLED
        else DrawnSampler(replace(drawn, energy_evaluations=0)),
        mdp.energy,
        run.n,
        seed=evaluation.seed,
        target_name=target_name,
        agent_name=run.name,
        training_seed=run.seed,
        train_seconds=counters["seconds"] if trained else 0.0,
        env_steps=counters["env_steps"] if trained else 0,
        energy_evaluations=counters["energy_evaluations"] if trained else 0,
    )
    report.details |= details or {}
    report.to_tensorboard(folder.writer, counters["env_steps"])
    limits = {f"budget.{name}": limit for name, limit in asdict(budget).items()}
    settings = {"env": target_name, "agent": run.name, "seed": run.seed, **limits}
    folder.hyper_parameters(settings, finished=True)
    drawn.save(folder.path / "samples.pt")
    folder.finish(report)
    return report, drawn


def _draws(run: Baseline, budget: BudgetConfig) -> Iterator[tuple[Samples, float]]:
    """Draws of rising budgets, the last one the whole; each with the seconds it took."""
    run.check(budget)
    limits = _limits(budget)
    if run.name == UNCONTROLLED:
        yield _timed(run, 0)
        return
    most = min(limits) if limits else None
    if most is not None and budget.seconds is None:
        for k in reversed(range(CURVE_POINTS)):
            yield from _if_enough(run, most // CURVE_FACTOR**k, last=k == 0)
        return
    assert budget.seconds is not None
    yield from _within_seconds(run, budget.seconds, most)


def _limits(budget: BudgetConfig) -> list[int]:
    return [limit for limit in (budget.env_steps, budget.energy_evaluations) if limit]


def _within_seconds(
    run: Baseline, limit: float, most: int | None
) -> Iterator[tuple[Samples, float]]:
    """Rising budgets until the next is predicted to take longer than the limit."""
    size = 10 * run.n
    while True:
        capped = size if most is None else min(size, most)
        draws = list(_if_enough(run, capped, last=capped == most))
        yield from draws
        if capped == most:
            return
        rate = capped / max(draws[-1][1], 1e-6) if draws else math.inf
        affordable = rate * limit
        if draws and affordable < 1.3 * capped:
            return
        size = int(min(CURVE_FACTOR * size, max(affordable, size + 1)))


def _if_enough(run: Baseline, budget: int, *, last: bool) -> Iterator[tuple[Samples, float]]:
    """One draw, or none where the budget is too small; the last one has to succeed."""
    try:
        draw = _timed(run, budget)
    except ValueError:
        if last:
            raise
        return
    yield draw


def _timed(run: Baseline, budget: int) -> tuple[Samples, float]:
    sampler = run.sampler(budget)
    begin = time.perf_counter()
    samples = sampler.sample(run.n, run.seed)
    if samples.log_weight is not None and run.name != UNCONTROLLED:
        # Annealed samples mean something with their weights only: evaluated are resampled ones.
        own = pilot_generator(run.mdp.device, run.seed)
        chosen = systematic_resample(samples.log_weight, run.n, own)
        samples = replace(samples, x=samples.x[chosen])
    return samples, time.perf_counter() - begin


def _counters(samples: Samples, seconds: float) -> dict[str, Any]:
    used = samples.energy_evaluations
    return {"env_steps": used, "energy_evaluations": used, "seconds": seconds}


def _record(
    samples: Samples,
    seconds: float,
    run: Baseline,
    progress: EnergyProgress,
    n: int,
    folder: RunFolder,
) -> None:
    """What a validation of a training writes: metrics, histograms, a few states."""
    counters = _counters(samples, seconds)
    energies = run.mdp.energy(evenly_spaced_rows(samples.x, min(n, run.n)))
    metrics = progress.metrics(energies, samples.log_weight, independent=samples.independent)
    folder.record(metrics, updates=0, **counters)
    folder.keep_states(samples.x)
    folder.histogram("eval/energy", energies, counters["env_steps"])
    if samples.log_weight is not None and samples.independent:
        folder.histogram("eval/log_weight", samples.log_weight, counters["env_steps"])
