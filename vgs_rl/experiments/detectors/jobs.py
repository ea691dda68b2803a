"""The runs of a detector experiment: which there are, what each costs, running them side by side.

An experiment is one folder, OUTPUT/DATA: its configuration, its tables, and a run folder
PART/METHOD/SEED for each training. Methods are the configured sampler of negatives and, for
comparison, Langevin walks with as many energy evaluations and the plain autoencoder.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from jsonargparse import Namespace

from vgs_rl.agents import EBMConfig, EBMTrainer, LangevinNegatives
from vgs_rl.agents.base import AgentConfig
from vgs_rl.agents.ebm.classical import OutlierConfig, OutlierMethod
from vgs_rl.agents.ebm.detector import DetectorTraining, WatchConfig
from vgs_rl.agents.value_gradient.objectives import ValueObjective
from vgs_rl.checks import require_at_least, require_positive
from vgs_rl.ebm.energies import EnergyConfig, LearnedEnergy
from vgs_rl.envs.anomaly import AnomalyData, DigitsSource, SourceConfig
from vgs_rl.evaluation.report import Report
from vgs_rl.experiments import jobs as side_by_side
from vgs_rl.experiments.pretrained import counters_of
from vgs_rl.networks.config import NetworkConfig
from vgs_rl.training.config import (
    BudgetConfig,
    ConfigError,
    ConfigParser,
    allow_subclasses,
    as_yaml,
    make_parser,
    parse,
    resolve_device,
)
from vgs_rl.training.identity import differences, identity_of, settings_of
from vgs_rl.training.resume import notice, refuse_changes_of_finished, require_same_run
from vgs_rl.trust import Trust

allow_subclasses(AgentConfig, NetworkConfig, ValueObjective, SourceConfig)

Trained = Literal["langevin", "langevin-persistent", "plain"]
TRAINED: tuple[Trained, ...] = get_args(Trained)


@dataclass(kw_only=True)
class ComparisonConfig:
    """What the detector is compared with, on the same data and features.

    Args:
        methods: trainings of the same energy. `langevin` (short runs) and `langevin-persistent`
            get as many energy evaluations as the experiment's own sampler used, in about as many
            updates of E; `plain` is the autoencoder's own loss alone, for as many updates, those
            of the pre-training included.
        autoencoder: what `plain` trains; the experiment's own energy by default, which then has
            to be one.
        plain_updates: updates of `plain`, where not as many as said above.
        step_size: variance of a Langevin step's noise per coordinate.
        temperature: of the Langevin walks; the MDP's by default.
        chains: number of persistent chains.
        restart_fraction: probability that a persistent chain starts anew at a draw.
        outliers: classical detectors, fitted to the same rows.
        max_rows: rows that they are fitted to at most.
    """

    methods: tuple[Trained, ...] = TRAINED
    autoencoder: EnergyConfig | None = None
    plain_updates: int | None = None
    step_size: float = 1e-3
    temperature: float | None = None
    chains: int = 1024
    restart_fraction: float = 0.05
    outliers: tuple[OutlierMethod, ...] = (
        "isolation_forest",
        "one_class_svm",
        "local_outlier_factor",
    )
    max_rows: int = 4_000

    def __post_init__(self) -> None:
        require_positive("comparison", step_size=self.step_size)
        if self.plain_updates is not None:
            require_at_least("comparison", 1, plain_updates=self.plain_updates)
        OutlierConfig(max_rows=self.max_rows)
        self.langevin(1, persistent=True)

    def langevin(self, steps: int, *, persistent: bool) -> LangevinNegatives:
        """The walks."""
        return LangevinNegatives(
            steps=steps,
            step_size=self.step_size,
            temperature=self.temperature,
            persistent=persistent,
            chains=self.chains,
            restart_fraction=self.restart_fraction,
        )


@dataclass(kw_only=True)
class DetectorConfig:
    """An experiment: a detector trained on each part of the data, for each seed.

    Args:
        data: `class_path` of a source: DigitsSource, TexturesSource, MVTecSource.
        part: one part of the data (a digit held out, a texture); all by default.
        ebm: energy, sampler of negatives, how both learn.
        budget: when each training stops; naming a limit drops those of file and default.
        watch: how each is watched, and what chooses its checkpoint.
        compare: whether the methods of `comparison` are run, too.
        comparison: these methods.
        seed: seed of everything, data splits included.
        seeds: how many seeds, from `seed` on.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        output: folder of experiments; this one's is <output>/<data>.
    """

    changeable: ClassVar[tuple[str, ...]] = (
        "budget",
        "compare",
        "comparison",
        "seeds",
        "device",
        "output",
    )

    data: SourceConfig = field(default_factory=DigitsSource)
    part: str | None = None
    ebm: EBMConfig = field(default_factory=EBMConfig)
    budget: BudgetConfig = field(default_factory=lambda: BudgetConfig(updates=500))
    watch: WatchConfig = field(default_factory=WatchConfig)
    compare: bool = False
    comparison: ComparisonConfig = field(default_factory=ComparisonConfig)
    seed: int = 0
    seeds: int = 1
    device: str = "auto"
    output: Path = Path("runs")

    def __post_init__(self) -> None:
        require_at_least("experiment", 0, seed=self.seed)
        require_at_least("experiment", 1, seeds=self.seeds)
        if self.part is not None and self.part not in self.data.parts:
            raise ValueError(f"part must be one of {', '.join(self.data.parts)}, got {self.part!r}")
        resolve_device(self.device)
        if self.compare and "plain" in self.comparison.methods:
            energy = self.comparison.autoencoder or self.ebm.energy
            kind = type(energy.build(2, on_sphere=self.ebm.on_sphere, seed=0))
            if kind.pretraining_loss is LearnedEnergy.pretraining_loss:
                raise ValueError(
                    "comparison.autoencoder must be given for the method `plain`: "
                    f"{type(energy).__name__} has no loss of its own"
                )

    @property
    def folder(self) -> Path:
        """The experiment's folder."""
        return self.output / self.data.name

    @property
    def parts(self) -> tuple[str, ...]:
        """What is trained on, one after the other."""
        return self.data.parts if self.part is None else (self.part,)

    @property
    def all_seeds(self) -> range:
        """The seeds."""
        return range(self.seed, self.seed + self.seeds)


def detector_parser(**options: Any) -> ConfigParser:
    """The parser of experiments; scripts add their own options to it."""
    return make_parser(DetectorConfig, **options)


def config_of(options: Namespace) -> DetectorConfig:
    """The experiment among parsed options."""
    try:
        return DetectorConfig(**{each.name: options[each.name] for each in fields(DetectorConfig)})
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error


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
        """What it printed where it ran beside others."""
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


def job_arguments(config: DetectorConfig, job: Job) -> list[str]:
    """The command line of one run, over the experiment's own configuration file."""
    arguments = ["--config", str(job.root / "config.yaml"), f"--part={job.part}"]
    arguments += [f"--seed={job.seed}", "--seeds=1", "--compare=false"]
    if job.reference is None:
        return arguments
    report = job.reference_report()
    assert report is not None
    if job.method == "plain":
        updates = config.comparison.plain_updates
        if updates is None:
            updates = config.ebm.pretrain_steps + report.details["updates"]
        if (energy := config.comparison.autoencoder) is not None:
            chosen = {"class_path": _import_path(type(energy)), "init_args": asdict(energy)}
            arguments.append(f"--ebm.energy={json.dumps(chosen)}")
        return [
            *arguments,
            "--ebm.negatives=NoNegatives",
            "--ebm.pretrain_steps=0",
            f"--ebm.learner.lr={config.ebm.pretrain_lr}",
            *_budget(updates=updates),
        ]
    fresh, batch = config.ebm.learner.fresh, config.ebm.learner.batch_size
    each = report.energy_evaluations / report.details["updates"] - 2 * batch
    steps = max(1, round(each / fresh) - 1)  # a walk of n steps evaluates n + 1 states
    walk = asdict(config.comparison.langevin(steps, persistent=job.method != "langevin"))
    negatives = {"class_path": "LangevinNegatives", "init_args": walk}
    return [
        *arguments,
        f"--ebm.negatives={json.dumps(negatives)}",
        *_budget(energy_evaluations=report.energy_evaluations),
    ]


def _import_path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _budget(**limit: int) -> list[str]:
    """Options that replace every limit by this one."""
    limits = {each.name: None for each in fields(BudgetConfig)} | limit
    return [f"--budget={json.dumps(limits)}"]


def run_config(config: DetectorConfig, job: Job) -> DetectorConfig:
    """The configuration of one run, which has one part and one seed."""
    return config_of(parse(detector_parser(), job_arguments(config, job), trust=job.trust))


def saved_config(path: Path, trust: Trust) -> DetectorConfig:
    """The configuration that a folder of an experiment, or of one of its runs, holds."""
    arguments = ["--config", str(path / "config.yaml")]
    return config_of(parse(detector_parser(), arguments, trust=trust))


def _goes_on(job: Job, run: DetectorConfig) -> bool:
    """Whether the run in the job's folder is this one.

    One that the experiment's own is compared with follows its evaluations and its settings: where
    these have changed, it is made anew.

    Raises:
        ConfigError: if the experiment's own run differs, naming each setting with both values.
    """
    was = saved_config(job.folder, job.trust)
    if job.reference is None:
        require_same_run(was, run, job.folder)
    changes = differences(identity_of(was), identity_of(run))
    if changes:
        notice(f"{job.name} is made anew: {'; '.join(changes)}")
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
    arguments = job_arguments(config, job)
    yaml = as_yaml(detector_parser(), arguments, ("config",), trust=job.trust)
    resume = (job.folder / "config.yaml").is_file() and _goes_on(job, run)
    data, trainer = build(run)
    training = DetectorTraining(
        trainer,
        data,
        run.watch,
        path=job.folder,
        yaml=yaml,
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
            failed[job.name] = " ".join(str(error).split())
            print(f"failed: {job.name}: {failed[job.name]}", file=sys.stderr)
    return failed
