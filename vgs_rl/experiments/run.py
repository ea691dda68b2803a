"""One training run from configuration to report: what the scripts call."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from jsonargparse import Namespace
from torch import Tensor

import vgs_rl.envs.sampling  # noqa: F401  importing the Gymnasium faces registers the targets
from vgs_rl.agents.base import Agent, AgentConfig
from vgs_rl.agents.value_gradient.agent import ValueGradientAgent, ValueGradientConfig
from vgs_rl.agents.value_gradient.objectives import ValueObjective
from vgs_rl.checks import seed_of
from vgs_rl.energy import Energy
from vgs_rl.evaluation.evaluate import Report, evaluate
from vgs_rl.evaluation.particle_metrics import ParticleProtocol
from vgs_rl.fields import settle
from vgs_rl.files.checkpoint import load_checkpoint
from vgs_rl.files.lock import FolderLock
from vgs_rl.mdp import MDPConfig, SamplingMDP
from vgs_rl.networks.config import NetworkConfig
from vgs_rl.networks.policies import Drift
from vgs_rl.plots.particles import (
    EXACT_CLUSTERS,
    cluster_summary,
    plot_pair_distances,
    reference_label,
    reference_states,
)
from vgs_rl.plots.plots import Drawing, plot_energy_histogram, plot_learning_curves, plot_summary
from vgs_rl.registry import Target, find
from vgs_rl.samplers.base import ChainSampler, Sampler, Samples
from vgs_rl.samplers.oracle import oracle_sampler
from vgs_rl.samplers.twisted import TwistedSMC
from vgs_rl.training.config import (
    BudgetConfig,
    ConfigError,
    ConfigParser,
    EvaluationConfig,
    Given,
    allow_subclasses,
    as_yaml,
    checked_content,
    given,
    make_parser,
    parse,
    parse_content,
    parse_settings,
    read_yaml,
    resolve_device,
)
from vgs_rl.training.folder import RunFolder, write_config
from vgs_rl.training.identity import identity_details, identity_of, settings_of
from vgs_rl.training.resume import (
    check_identity,
    chosen_checkpoint,
    counters_in,
    last_checkpoint,
    longer,
    notice,
    refuse_changes_of_finished,
    require_same_run,
)
from vgs_rl.trust import Trust, imports

allow_subclasses(AgentConfig, NetworkConfig, ValueObjective)


@dataclass(kw_only=True)
class RunConfig:
    """One training run.

    Attributes:
        changeable: what a resumed run may change.

    Args:
        env: a registered target (`GMM9`, `vgs_rl/GMM9-v0`), `my_module:me/Rings-v0`, or the import
            path of an energy (`my_module:Rings`).
        env_args: arguments of the energy, over the registered ones.
        mdp: how a sample moves; a configuration file that leaves it out gets the target's own.
        agent: `class_path` of an agent's configuration, and its `init_args`.
        budget: when training stops; naming a limit drops those of file and default.
        evaluation: how the run is watched and evaluated.
        seed: seed of everything in training.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        output: folder of run folders; this run's is <output>/<env>/<agent>/<seed>.
    """

    changeable: ClassVar[tuple[str, ...]] = ("budget", "evaluation", "device", "output")

    env: str = imports(Energy, default="GMM9")
    env_args: dict[str, Any] = field(default_factory=dict)
    mdp: MDPConfig = field(default_factory=MDPConfig)
    agent: AgentConfig = field(default_factory=ValueGradientConfig)
    budget: BudgetConfig = field(default_factory=lambda: BudgetConfig(updates=2000))
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    seed: int = 0
    device: str = "auto"
    output: Path = Path("runs")

    def __post_init__(self) -> None:
        settle(self)
        self.seed = seed_of(self.seed)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.output / find(self.env).name / self.agent.name / str(self.seed)


def run_parser(**options: Any) -> ConfigParser:
    """The parser of run configurations; scripts add their own options to it."""
    return make_parser(RunConfig, **options)


def parse_run(
    arguments: Sequence[str], parser: ConfigParser | None = None, *, trust: Trust = False
) -> Namespace:
    """Parses a command line; the target's own MDP fills in where a file does not give one.

    Args:
        arguments: the command line.
        parser: the command's.
        trust: the user's word for what files name, beside what the command line says.

    Raises:
        ConfigError: naming the field, the value and what was expected.
    """
    parser = parser or run_parser()
    _use_target_defaults(parser, given(parser, arguments, trust=trust))
    return parse(parser, arguments, trust=trust)


def _use_target_defaults(parser: ConfigParser, known: Given) -> None:
    """Sets the defaults of `mdp` from the registered target, unless a file has that section."""
    if known.file_value("mdp") is not None:
        return
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--env", default=known.file_value("env") or parser.get_default("env"))
    name = early.parse_known_args(known.arguments)[0].env
    try:
        target = find(str(name))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    parser.set_defaults({"mdp": asdict(target.mdp)})


def run_config(content: dict[str, Any], *, source: str, trust: Trust = False) -> RunConfig:
    """The run configuration that a file holds.

    Args:
        content: the file's mapping.
        source: the file, for messages.
        trust: the user's word for what the file names (:mod:`vgs_rl.trust`).

    Raises:
        ConfigError: naming the source, the field, the value and what was expected.
    """
    content = checked_content(content, RunConfig, source=source, trust=trust)
    parser = run_parser()
    try:
        _use_target_defaults(parser, Given([], [content]))
        config = config_of(parse_content(parser, content))
        find(config.env)
        return config
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error


def config_of(options: Namespace) -> RunConfig:
    """The run configuration among parsed options.

    Raises:
        ConfigError: naming the field, the value and what was expected.
    """
    try:
        return RunConfig(**{each.name: options[each.name] for each in fields(RunConfig)})
    except ValueError as error:
        raise ConfigError(str(error)) from error


def run_of(settings: Mapping[str, Any]) -> tuple[RunConfig, str]:
    """The run configuration of a mapping, and the same as YAML with every default.

    Args:
        settings: what a file would hold. Its names are the caller's word, see
            :mod:`vgs_rl.trust`; a target's own MDP does not fill in.

    Raises:
        ConfigError: naming the field, the value and what was expected.
    """
    options, text = parse_settings(run_parser(), settings)
    return config_of(options), text


def build(config: RunConfig, energy: Energy | None = None) -> tuple[Target, Agent]:
    """The untrained agent of a configuration, on its device.

    Args:
        config: the run.
        energy: the target's energy, if there is one already; by default it is made.

    Raises:
        ConfigError: if target, energy arguments, device or agent do not fit.
    """
    try:
        target = find(config.env)
        energy = energy or target.make_energy(**config.env_args)
        device = resolve_device(config.device)
        mdp = SamplingMDP(energy, config.mdp, device=device)
        return target, config.agent.build(mdp, seed=config.seed)
    except (ValueError, TypeError, ModuleNotFoundError) as error:
        raise ConfigError(str(error)) from error


def train(
    config: RunConfig,
    yaml: str,
    *,
    resume: Path | None = None,
    overwrite: bool = False,
    progress_bar: bool = True,
    trust: Trust = False,
) -> Report | None:
    """Trains, keeps the best checkpoint, evaluates it and writes the run folder.

    A resumed run is the run that its folder holds. What defines it may not differ from there; what
    may differ (budget, evaluation, device, learning rates) takes effect and is written back to
    config.yaml, so that the folder always says what its report comes from. A finished run is
    trained no further than its budget: its report is returned as it is, or made again where
    settings of the evaluation differ.

    Args:
        config: the run.
        yaml: its text, for the run folder.
        resume: the run folder to go on with, from its last checkpoint.
        overwrite: replace an existing run folder.
        progress_bar: whether to show one.
        trust: the user's word for what the resumed folder names (:mod:`vgs_rl.trust`).

    Returns:
        The report, or None if training was interrupted (``--resume`` goes on).

    Raises:
        ConfigError: if settings that define a resumed run differ, naming each with both values.
        FolderInUse: if another process works in the folder.
        OSError: if the folder holds another run, or cannot be written to.
        ValueError: if a checkpoint is damaged.
    """
    identity = identity_of(config)
    if resume is None:
        target, agent = build(config)
        folder = RunFolder(config.folder, yaml, identity=identity, overwrite=overwrite)
        with folder:
            return _learn(config, target, agent, folder, progress_bar=progress_bar)
    was = saved_config(resume, trust=trust)
    require_same_run(was, config, resume)
    target, agent = build(config)
    with FolderLock(resume) as lock:
        started = _load_last(config, resume, agent)
        report = _finished(was, resume, agent) if started else None
        if report is not None:
            refuse_changes_of_finished(was, config, asdict(agent.counters))
            if was.budget == config.budget and _evaluated_alike(was, config):
                write_config(resume, yaml)
                notice(
                    f"{resume} is finished; with a longer budget it goes on: "
                    f"--resume {resume} {longer(config.budget)}"
                )
                return report
        folder = RunFolder(
            resume,
            yaml,
            identity=identity,
            resume_at=agent.counters.updates if started else -1,
            lock=lock,
        )
        notice(f"going on in {resume} at update {agent.counters.updates:,}")
        with folder:
            return _learn(config, target, agent, folder, progress_bar=progress_bar)


def _learn(
    config: RunConfig, target: Target, agent: Agent, folder: RunFolder, *, progress_bar: bool
) -> Report | None:
    """Trains to the end of the budget, takes the chosen checkpoint and evaluates it."""
    folder.hyper_parameters(settings_of(config))
    agent.learn(
        config.budget, evaluation=config.evaluation, folder=folder, progress_bar=progress_bar
    )
    if not agent.finished:
        return None
    used, skipped = agent.counters, agent.tally.skipped
    chosen = chosen_checkpoint(folder.path)
    if chosen != "best":
        notice(f"no validation of {folder.path} had a weight above 0: the last agent is evaluated")
    _load(config, folder.path, chosen, agent)
    # What training has cost, not the part up to the checkpoint.
    agent.counters, agent.tally.skipped = used, skipped
    return finish(config, target, agent, folder, progress_bar=progress_bar)


def _load_last(config: RunConfig, path: Path, agent: Agent) -> bool:
    """Puts the last state of a run into the agent; False where there is none yet."""
    file = last_checkpoint(path)
    if file is None:
        notice(f"{path} has no checkpoint yet: it starts from the beginning")
        return False
    _load(config, path, file.stem, agent)
    best = path / "checkpoints" / "best.pt"
    if best.is_file():  # how far into the budget it was chosen: into today's budget
        agent.best_progress = config.budget.fraction(counters_in(best))
    return True


def _finished(config: RunConfig, path: Path, agent: Agent) -> Report | None:
    """The report of a run that has come to its end, else None; a damaged one is made again."""
    file = path / "report.json"
    if not file.is_file() or config.budget.fraction(asdict(agent.counters)) < 1:
        return None
    try:
        return Report.load(file)
    except ValueError as error:
        notice(f"{error}; it is made again")
        return None


def _evaluated_alike(one: RunConfig, other: RunConfig) -> bool:
    """Whether reports of one run under these settings are the same."""
    same = all(
        getattr(one.evaluation, n) == getattr(other.evaluation, n) for n in ("n_samples", "seed")
    )
    return same and resolve_device(one.device) == resolve_device(other.device)


def saved_config(path: Path, *, trust: Trust = False) -> RunConfig:
    """The configuration of a run folder.

    Args:
        path: the run folder.
        trust: the user's word for what the configuration names (:mod:`vgs_rl.trust`).

    Raises:
        FileNotFoundError: if there is none.
        ConfigError: if it is damaged, or names foreign code without `trust`, naming the file.
    """
    file = Path(path) / "config.yaml"
    if not file.is_file():
        raise FileNotFoundError(f"{path} is not a run folder: it has no config.yaml")
    return run_config(read_yaml(file), source=f"config {file}", trust=trust)


def _load(config: RunConfig, path: Path, name: str, agent: Agent) -> None:
    """Puts a checkpoint of a run into its agent."""
    file = path / "checkpoints" / f"{name}.pt"
    state = load_checkpoint(file, agent.mdp.device)
    check_identity(file, state, config)
    try:
        agent.load_state_dict(state)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    agent.checkpoint = name


def _available(device: str) -> str:
    """The device if it is here, else `auto`, saying so."""
    try:
        resolve_device(device)
    except ValueError as error:
        notice(f"{error}; auto is taken")
        return "auto"
    return device


def load_run(
    path: Path | str,
    checkpoint: str | None = None,
    device: str | None = None,
    *,
    trust: Trust = False,
) -> Agent:
    """The trained agent of a run folder; arguments and errors are those of :func:`open_run`."""
    return open_run(path, checkpoint, device, trust=trust)[1]


def open_run(
    path: Path | str,
    checkpoint: str | None = None,
    device: str | None = None,
    *,
    trust: Trust = False,
) -> tuple[RunConfig, Agent]:
    """The configuration of a run folder, and its trained agent.

    Args:
        path: the run folder.
        checkpoint: `best` or `last`; by default the best, or the last if validation chose none.
        device: where to put it; the run's own by default, on which it repeats its report.
        trust: True imports what its configuration names, though it is not this package's
            (:mod:`vgs_rl.trust`); False refuses it.

    Raises:
        FileNotFoundError: if there is no such run or checkpoint.
        ValueError: if the checkpoint is damaged or does not fit, or the configuration names
            foreign code without `trust`.
    """
    path = Path(path)
    config = saved_config(path, trust=trust)
    config.device = device or _available(config.device)
    chosen = chosen_checkpoint(path, checkpoint)
    if chosen != (checkpoint or "best"):
        notice(f"{path} has no checkpoint best: {chosen} is taken")
    _, agent = build(config)
    _load(config, path, chosen, agent)
    return config, agent


def evaluate_agent(
    config: RunConfig,
    target: Target,
    agent: Agent,
    *,
    n: int | None = None,
    resample: bool = False,
    sampler: Sampler | None = None,
    protocol: ParticleProtocol | None = None,
    on_samples: Callable[[Samples], None] | None = None,
    progress_bar: bool = False,
) -> Report:
    """The report of an agent (or of another sampler) on the run's own evaluation seed."""
    sampler = sampler or agent.sampler()
    sampler.progress_bar = progress_bar
    report = evaluate(
        sampler,
        agent.mdp.energy,
        n or config.evaluation.n_samples,
        seed=config.evaluation.seed,
        resample=resample,
        target_name=target.name,
        agent_name=config.agent.name,
        training_seed=config.seed,
        train_seconds=agent.counters.seconds,
        env_steps=agent.counters.env_steps,
        energy_evaluations=agent.counters.energy_evaluations,
        protocol=protocol,
        on_samples=on_samples,
    )
    report.details |= agent.report_details() | identity_details(config)
    return report


def evaluate_smc(
    config: RunConfig,
    agent: Agent,
    *,
    n: int | None = None,
    protocol: ParticleProtocol | None = None,
) -> Report:
    """The report of SMC with the agent's value as twist, resampled at the end.

    Raises:
        ValueError: if the agent has no value.
    """
    if not isinstance(agent, ValueGradientAgent):
        raise ValueError(f"SMC needs a value as its twist, and {config.agent.name} has none")
    sampler = TwistedSMC(agent.mdp, agent.policy)
    return evaluate_agent(
        config,
        find(config.env),
        agent,
        n=n,
        resample=True,
        sampler=sampler,
        protocol=protocol,
    )


def finish(
    config: RunConfig,
    target: Target,
    agent: Agent,
    folder: RunFolder,
    *,
    progress_bar: bool = False,
) -> Report:
    """Evaluates, draws, writes samples.pt and, last of all, report.json."""
    evaluated: list[Samples] = []
    report = evaluate_agent(
        config, target, agent, on_samples=evaluated.append, progress_bar=progress_bar
    )
    evaluated[0].save(folder.path / "samples.pt")
    step = agent.counters.env_steps
    report.to_tensorboard(folder.writer, step)
    folder.hyper_parameters(settings_of(config), finished=True)
    folder.draw(
        lambda: final_figures(config, target, agent, folder, evaluated[0].x), step, keep=True
    )
    report.save(folder.path / "report.json")  # the last file: with it, the run is finished
    return report


def final_figures(
    config: RunConfig, target: Target, agent: Agent, folder: RunFolder, x: Tensor
) -> dict[str, Drawing]:
    """The pictures of a finished run, by name; x (n, D) are the samples that were evaluated."""
    mdp, energy = agent.mdp, agent.mdp.energy
    generator = mdp.generator(config.evaluation.seed + 3)
    pictures = agent.figures(generator)
    log_z = energy.log_z if mdp.temperature == 1.0 else None
    pictures["learning_curves"] = lambda: plot_learning_curves(folder.records, log_z=log_z)
    sampler = agent.sampler()
    if energy.symmetry is not None:
        return pictures | _cluster_figures(target, sampler, folder, x, generator)
    if energy.can_sample and mdp.temperature == 1.0:
        pictures["energy"] = lambda: plot_energy_histogram(
            energy(x), energy(energy.sample(len(x), generator).to(mdp.dtype))
        )
    pictures["summary"] = lambda: plot_summary(
        mdp,
        sampler.policy,
        generator,
        value=agent.average.value if isinstance(agent, ValueGradientAgent) else None,
        records=folder.records,
        title=target.name,
    )
    return pictures


def _cluster_figures(
    target: Target,
    sampler: ChainSampler,
    folder: RunFolder,
    x: Tensor,
    generator: torch.Generator,
) -> dict[str, Drawing]:
    """What particle targets have instead of pictures of two coordinates."""
    mdp, energy = sampler.mdp, sampler.mdp.energy
    symmetry = energy.symmetry
    assert symmetry is not None
    x = x[:EXACT_CLUSTERS]
    reference, label = reference_states(mdp, generator, "test"), reference_label(energy)
    pictures: dict[str, Drawing] = {
        "distances": lambda: plot_pair_distances(x, reference, symmetry, label=label)
    }
    if reference is not None:
        pictures["energy"] = lambda: plot_energy_histogram(
            energy(x), energy(reference), label=label
        )
    pictures["summary"] = lambda: cluster_summary(
        mdp,
        sampler.policy,
        x,
        generator,
        records=folder.records,
        split="test",
        title=target.name,
    )
    return pictures


def ceilings(
    config: RunConfig, drifts: Sequence[Drift] = ("posterior", "bellman")
) -> dict[str, Report]:
    """Reports of the oracle on the run's MDP, by drift: what perfect learning reaches."""
    target = find(config.env)
    reports = {}
    for drift in drifts:
        energy = target.make_energy(**config.env_args)
        mdp = SamplingMDP(energy, config.mdp, device=resolve_device(config.device))
        reports[f"oracle {drift}"] = evaluate(
            oracle_sampler(mdp, drift, seed=config.evaluation.seed + 4),
            energy,
            config.evaluation.n_samples,
            seed=config.evaluation.seed,
            target_name=target.name,
            agent_name=f"oracle {drift}",
        )
    return reports


def resolved_yaml(
    arguments: Sequence[str],
    parser: ConfigParser | None = None,
    *,
    without: Sequence[str] = ("config",),
    trust: Trust = False,
) -> str:
    """The resolved configuration of a command line as YAML, without a script's own options."""
    parser = parser or run_parser()
    _use_target_defaults(parser, given(parser, arguments, trust=trust))
    return as_yaml(parser, arguments, without, trust=trust)
