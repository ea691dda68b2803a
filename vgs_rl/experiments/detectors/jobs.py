"""The runs of a detector experiment: which there are, what each costs, running them side by side.

An experiment is one folder, OUTPUT/DATA: its configuration, its tables, and a run folder
PART/METHOD/SEED for each training. Methods are the configured sampler of negatives and, for
comparison, Langevin walks with as many energy evaluations and the plain autoencoder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from vgs_rl.agents import EBMTrainer, NoNegatives
from vgs_rl.agents.ebm.detector import DetectorTraining
from vgs_rl.checks import one_line
from vgs_rl.envs.anomaly import AnomalyData
from vgs_rl.evaluation.report import Report
from vgs_rl.experiments import jobs as side_by_side
from vgs_rl.experiments.detectors.config import DetectorConfig, saved_config
from vgs_rl.experiments.pretrained import counters_of
from vgs_rl.training.config import (
    BudgetConfig,
    ConfigError,
    resolve_device,
)
from vgs_rl.training.identity import differences, identity_of, settings_of
from vgs_rl.training.resume import notice, refuse_changes_of_finished, require_same_run
from vgs_rl.trust import Trust


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training of an experiment.

    Attributes:
        part: the data's.
        method: the name of its sampler of negatives.
        seed: of everything.
        root: the experiment's folder.
        budget: the experiment's; what is measured by another has about as many updates.
        reference: the method whose energy evaluations it gets, or None.
        trust: the names in the experiment's configuration, which have been let through.
    """

    part: str
    method: str
    seed: int
    root: Path
    budget: BudgetConfig
    reference: str | None = None
    trust: Trust = False

    @property
    def name(self) -> str:
        """For tables and messages."""
        return f"{self.part}/{self.method}/{self.seed}"

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.root / self.part / self.method / str(self.seed)

    @property
    def finished(self) -> bool:
        """Whether there is a report that can be read."""
        return self.report() is not None

    @property
    def ready(self) -> bool:
        """Whether what it is measured by is known."""
        return self.reference is None or self.reference_report() is not None

    @property
    def log(self) -> Path:
        """What it printed where it ran next to others."""
        return self.root / "logs" / f"{self.name.replace('/', '-')}.txt"

    def report(self) -> Report | None:
        """What came out; None where there is nothing yet, or nothing that can be read."""
        try:
            return Report.load(self.folder / "report.json")
        except (OSError, ValueError):
            return None

    def reference_report(self) -> Report | None:
        """What came out for the method whose energy evaluations it gets."""
        return replace(self, method=str(self.reference), reference=None).report()

    def fraction(self) -> float:
        """How much of the budget it has used, by its last record."""
        return side_by_side.fraction(self.folder, self.budget)


def make_jobs(config: DetectorConfig, *, trust: Trust = False) -> list[Job]:
    """All trainings, those that others are measured by first; each has `trust`."""
    own = config.ebm.negatives.name
    jobs = [
        Job(
            part=part,
            method=own,
            seed=seed,
            root=config.folder,
            budget=config.budget,
            trust=trust,
        )
        for seed in config.all_seeds
        for part in config.parts
    ]
    others = [method for method in config.comparison.methods if method != own]
    return jobs + [
        replace(job, method=method, reference=own)
        for job in jobs
        for method in (others if config.compare else ())
    ]


def run_config(config: DetectorConfig, job: Job) -> DetectorConfig:
    """The configuration of one run, which has one part and one seed.

    What is measured by another gets the energy evaluations, or the updates, of that one's report.
    """
    run = replace(config, part=job.part, seed=job.seed, seeds=1, compare=False)
    if job.reference is None:
        return run
    report = job.reference_report()
    assert report is not None
    ebm, comparison = config.ebm, config.comparison
    if job.method == "plain":
        updates = comparison.plain_updates
        if updates is None:
            updates = ebm.pretrain_steps + report.details["updates"]
        plain = replace(
            ebm,
            energy=comparison.autoencoder or ebm.energy,
            negatives=NoNegatives(),
            pretrain_steps=0,
            learner=replace(ebm.learner, lr=ebm.pretrain_lr),
        )
        return replace(run, ebm=plain, budget=BudgetConfig(updates=updates))
    fresh, batch = ebm.learner.fresh, ebm.learner.batch_size
    each = report.energy_evaluations / report.details["updates"] - 2 * batch
    steps = max(1, round(each / fresh) - 1)  # a walk of n steps evaluates n + 1 states
    walk = comparison.langevin(steps, persistent=job.method != "langevin")
    budget = BudgetConfig(energy_evaluations=report.energy_evaluations)
    return replace(run, ebm=replace(ebm, negatives=walk), budget=budget)


def _goes_on(job: Job, run: DetectorConfig) -> bool:
    """Whether the run in the job's folder is this one.

    One that the experiment's own is compared with follows its evaluations and its settings: where
    these have changed, it is made again.

    Raises:
        ConfigError: if the experiment's own run differs, naming each setting with both values.
    """
    was = saved_config(job.folder, job.trust)
    if job.reference is None:
        require_same_run(was, run, job.folder)
    changes = differences(identity_of(was), identity_of(run))
    if changes:
        notice(f"{job.name} is made again: {'; '.join(changes)}")
    return not changes


def reopen(was: DetectorConfig, config: DetectorConfig, jobs: Sequence[Job]) -> None:
    """Takes the reports from finished runs that have more to do under new settings.

    Args:
        was: the experiment's configuration so far.
        config: the new one.
        jobs: of the new one, those that others are measured by first.

    Raises:
        ConfigError: if a setting was changed that a finished run cannot take up any more.
    """
    changed, again = settings_of(was) != settings_of(config), set[tuple[str, int]]()
    for job in jobs:
        file, report, run = job.folder / "report.json", job.report(), (job.part, job.seed)
        if report is None:
            if file.is_file():
                notice(f"{file} is damaged: it is made again")
            continue
        if job.reference is None:
            used = asdict(counters_of(report))
            if changed:
                refuse_changes_of_finished(was, config, used)
            more = config.budget.fraction(used) < 1
            again |= {run} if more else set()
        else:
            more = was.comparison != config.comparison or run in again
        if more:
            file.unlink()


def build(config: DetectorConfig) -> tuple[AnomalyData, EBMTrainer]:
    """Data and the untrained detector of a run, which has one part.

    Raises:
        ConfigError: if they do not fit each other.
    """
    (part,) = config.parts
    data = config.data.load(part, config.seed)
    device = resolve_device(config.device)
    if config.ebm.on_sphere and not data.unit_norm:
        raise ConfigError(f"ebm.on_sphere must be false for {data.name}, whose norms differ")
    try:
        return data, EBMTrainer(data.rows.to(device), config.ebm, seed=config.seed, device=device)
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error


def run_job(config: DetectorConfig, job: Job, *, progress_bar: bool = False) -> bool:
    """One run, from the data to its report, from its last checkpoint if there is one.

    Returns:
        Whether it came to its end.
    """
    run = run_config(config, job)
    resume = (job.folder / "config.yaml").is_file() and _goes_on(job, run)
    data, trainer = build(run)
    training = DetectorTraining(
        trainer,
        data,
        run.watch,
        path=job.folder,
        yaml=run.to_yaml(),
        config=run,
        resume=resume,
        overwrite=not resume,
    )
    target = f"{run.data.name}-{job.part}"
    report = training.run(run.budget, target=target, seed=job.seed, progress_bar=progress_bar)
    return report is not None


def run_all(
    config: DetectorConfig, jobs: Sequence[Job], processes: int, *, bar: bool
) -> dict[str, str]:
    """Runs what is not finished, side by side if `processes` is above 1.

    Returns:
        What went wrong, by the names of the runs; others went on.

    Raises:
        KeyboardInterrupt: after Ctrl-C, when every run has written its checkpoint.
    """
    waiting = [job for job in jobs if not job.finished]
    processes = min(processes, len(waiting))
    if processes > 1:
        work = partial(run_job, config)
        threads = max(1, (os.cpu_count() or 1) // processes)
        return side_by_side.run_all(
            jobs, work, processes=processes, threads=threads, reuse=True, progress_bar=bar
        )
    failed = {}
    for job in waiting:
        if bar:
            print(job.name, file=sys.stderr)
        try:
            if not job.ready:
                raise RuntimeError(f"it waited for {job.reference}, which failed")
            if not run_job(config, job, progress_bar=bar):
                raise KeyboardInterrupt
        except (OSError, ValueError, RuntimeError) as error:
            failed[job.name] = one_line(error)
            print(f"failed: {job.name}: {failed[job.name]}", file=sys.stderr)
    return failed
