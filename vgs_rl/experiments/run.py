"""One training run from configuration to report: what the scripts call."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import vgs_rl.envs.sampling  # noqa: F401  importing the Gymnasium faces registers the targets
from vgs_rl.agents.automatic.explored import chain_energy
from vgs_rl.agents.automatic.settings import KEPT, When
from vgs_rl.agents.base import Agent
from vgs_rl.agents.distilled.agent import DistilledConfig
from vgs_rl.agents.ranks import ranks_of
from vgs_rl.agents.target import Origin, needs_exploration
from vgs_rl.agents.value_gradient.agent import ValueGradientAgent, ValueGradientConfig
from vgs_rl.energy import Energy
from vgs_rl.evaluation.evaluate import Report
from vgs_rl.experiments.config import RunConfig, saved_config
from vgs_rl.experiments.evaluation import finish
from vgs_rl.files.checkpoint import load_checkpoint
from vgs_rl.files.lock import FolderLock
from vgs_rl.mdp import MDPConfig, SamplingMDP
from vgs_rl.registry import Target, find
from vgs_rl.training import parallel
from vgs_rl.training.config import (
    ConfigError,
    resolve_device,
)
from vgs_rl.training.folder import RunFolder, write_config
from vgs_rl.training.identity import identity_of, shown_settings
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
from vgs_rl.trust import Trust


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
        energy = chain_energy(energy, config.exploration.done, device)
        mdp = SamplingMDP(energy, config.mdp, device=device)
        agent = config.agent.build(mdp, seed=config.seed)
        if isinstance(agent, ValueGradientAgent):
            agent.exploration = config.exploration
        agent.origin = Origin(target.name, config.env, config.env_args)
        return target, agent
    except (ValueError, TypeError, ModuleNotFoundError) as error:
        raise ConfigError(str(error)) from error


def settled(config: RunConfig, *, untouched: bool) -> RunConfig:
    """The configuration of a new run, with `exploration.when` decided where it is `auto`.

    Args:
        config: the run.
        untouched: whether it leaves to an exploration what that chooses.

    Raises:
        ConfigError: if there is no such target.
    """
    if config.exploration.when != "auto":
        return config
    when: When = "never"
    if untouched and isinstance(config.agent, ValueGradientConfig):
        try:
            energy = find(config.env).make_energy(**config.env_args)
        except (ValueError, TypeError, ModuleNotFoundError) as error:
            raise ConfigError(str(error)) from error
        when = "always" if needs_exploration(config.env, energy) else "never"
    return replace(config, exploration=replace(config.exploration, when=when))


def _refuse_choices(config: RunConfig) -> None:
    """Refuses settings that an exploration would replace.

    Raises:
        ConfigError: naming them.
    """
    if config.exploration.when != "always" or config.exploration.done:
        return
    agent = config.agent
    if not isinstance(agent, ValueGradientConfig):
        raise ConfigError(f"exploration.when always is for vgs, got agent {agent.name}")
    plain = ValueGradientConfig(**{name: getattr(agent, name) for name in KEPT})
    for name, given in (
        ("mdp", config.mdp not in (MDPConfig(), find(config.env).mdp)),
        ("agent", agent != plain),
    ):
        if given:
            raise ConfigError(
                f"exploration.when always chooses {name} itself: leave {name} out"
                + (f", but for {', '.join(KEPT)}" if name == "agent" else "")
            )


def train(
    config: RunConfig,
    *,
    resume: Path | None = None,
    overwrite: bool = False,
    progress_bar: bool = True,
    trust: Trust = False,
    begin: Callable[[Agent], None] | None = None,
    callback: Callable[[Agent], bool | None] | None = None,
) -> Report | None:
    """Trains, keeps the best checkpoint, evaluates it and writes the run folder.

    A resumed run is the run that its folder holds. What defines it may not differ from there; what
    may differ (budget, evaluation, device, learning rates) takes effect and is written back to
    config.yaml, so that the folder always says what its report comes from. A finished run is
    trained no further than its budget: its report is returned as it is, or made again where
    settings of the evaluation differ.

    Ranks that train together (:mod:`vgs_rl.training.parallel`) call it together, and the first one
    alone writes. A run goes on with as many ranks as it had.

    Args:
        config: the run.
        resume: the run folder to go on with, from its last checkpoint.
        overwrite: replace an existing run folder.
        progress_bar: whether to show one.
        trust: the user's word for what the resumed folder names (:mod:`vgs_rl.trust`).
        begin: called with the untrained agent of a new run, such as to give it a teacher's states.
        callback: called after every update; False ends the training, as Ctrl-C does.

    Returns:
        The report, or None if training was interrupted (``--resume`` goes on).

    Raises:
        ConfigError: if settings that define a resumed run differ, naming each with both values, or
            it had another number of ranks.
        FolderInUse: if another process works in the folder.
        OSError: if the folder holds another run, or cannot be written to.
        ValueError: if a checkpoint is damaged.
    """
    _refuse_choices(config)
    identity = identity_of(config)
    if resume is None:
        target, agent = build(config)
        if begin is not None:
            begin(agent)
        if not parallel.is_first():
            return _learn(config, target, agent, None, progress_bar=False, callback=callback)
        folder = RunFolder(config.folder, config.to_yaml(), identity=identity, overwrite=overwrite)
        with folder:
            return _learn(
                config, target, agent, folder, progress_bar=progress_bar, callback=callback
            )
    was = saved_config(resume, trust=trust)
    require_same_run(was, config, resume)
    target, agent = build(config)
    with ExitStack() as opened:
        lock = opened.enter_context(FolderLock(resume)) if parallel.is_first() else None
        started = _load_last(config, resume, agent)
        report = _finished(was, resume, agent) if started else None
        parallel.meet()  # before the first rank writes what the others read
        if report is not None:
            refuse_changes_of_finished(was, config, asdict(agent.counters))
            if was.budget == config.budget and _evaluated_alike(was, config):
                if not parallel.is_first():
                    return report
                write_config(resume, config.to_yaml())
                notice(
                    f"{resume} is finished; with a longer budget it goes on: "
                    f"--resume {resume} {longer(config.budget)}"
                )
                return report
        if not parallel.is_first():
            return _learn(config, target, agent, None, progress_bar=False, callback=callback)
        folder = RunFolder(
            resume,
            config.to_yaml(),
            identity=identity,
            resume_at=agent.counters.updates or -1,  # nothing is recorded before all of update 0
            lock=lock,
        )
        notice(f"going on in {resume} at update {agent.counters.updates:,}")
        with folder:
            return _learn(
                config, target, agent, folder, progress_bar=progress_bar, callback=callback
            )


def _learn(
    config: RunConfig,
    target: Target,
    agent: Agent,
    folder: RunFolder | None,
    *,
    progress_bar: bool,
    callback: Callable[[Agent], bool | None] | None,
) -> Report | None:
    """Trains to the end of the budget, takes the chosen checkpoint and evaluates it.

    Of several ranks, the first one has the folder and evaluates; all return its report.
    """
    if isinstance(agent, ValueGradientAgent) and agent.unexplored:
        config = _explored(config, agent, folder, progress_bar=progress_bar)
    if folder is not None:
        folder.hyper_parameters(shown_settings(config))
    agent.learn(
        config.budget,
        evaluation=config.evaluation,
        folder=folder,
        progress_bar=progress_bar,
        callback=callback,
    )
    report = None
    if agent.finished and folder is not None:
        with parallel.alone():
            report = _evaluated(config, target, agent, folder, progress_bar=progress_bar)
    return parallel.from_first(report)


def _evaluated(
    config: RunConfig, target: Target, agent: Agent, folder: RunFolder, *, progress_bar: bool
) -> Report:
    """The report of a run's chosen checkpoint."""
    used, skipped = agent.counters, agent.tally.skipped
    chosen = chosen_checkpoint(folder.path)
    if chosen != "best":
        notice(f"{folder.path}: {_why_none_is_best(used.updates)}")
    _load(config, folder.path, chosen, agent)
    # What training has cost, not the part up to the checkpoint.
    agent.counters, agent.tally.skipped = used, skipped
    return finish(config, target, agent, folder, progress_bar=progress_bar)


def _why_none_is_best(updates: int) -> str:
    """Why validation has chosen no checkpoint."""
    if not updates:
        return "the budget ended before the first update, so the untrained agent is evaluated"
    return "no validation had a weight above 0, so the last agent is evaluated"


def _explored(
    config: RunConfig, agent: ValueGradientAgent, folder: RunFolder | None, *, progress_bar: bool
) -> RunConfig:
    """Explores the energy; the folder then says what was chosen."""
    agent.prepare(config.budget, progress_bar=progress_bar)
    config = replace(
        config, mdp=agent.mdp.config, agent=agent.config, exploration=agent.exploration
    )
    if folder is None:
        return config
    folder.identity = identity_of(config)
    write_config(folder.path, config.to_yaml())
    folder.writer.add_text("config", f"```yaml\n{config.to_yaml()}```")
    return config


def _load_last(config: RunConfig, path: Path, agent: Agent) -> bool:
    """Puts the last state of a run into the agent; False where there is none yet."""
    file = last_checkpoint(path)
    if file is None:
        if isinstance(config.agent, DistilledConfig):
            raise ConfigError(
                f"{path} has no checkpoint yet, and a student's first one holds its teacher's "
                "states: start it again, with --overwrite true"
            )
        notice(f"{path} has no checkpoint yet: it starts from the beginning")
        return False
    ranks = ranks_of(_load(config, path, file.stem, agent))
    if ranks != parallel.world_size():
        start = f"torchrun --nproc-per-node {ranks}" if ranks > 1 else "one process"
        raise ConfigError(
            f"{path} was trained by {ranks} ranks, got {parallel.world_size()}: each has its own "
            f"part of the buffer and its own random numbers; go on with {start}"
        )
    best = path / "checkpoints" / "best.pt"
    if best.is_file():  # how far into the budget it was chosen: into today's budget
        counters = counters_in(best)
        if counters["updates"] <= agent.counters.updates:  # else it is chosen once more
            agent.best_progress = config.budget.fraction(counters)
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


def _load(config: RunConfig, path: Path, name: str, agent: Agent) -> dict[str, Any]:
    """Puts a checkpoint of a run into its agent; returns it."""
    file = path / "checkpoints" / f"{name}.pt"
    state = load_checkpoint(file, agent.mdp.device)
    check_identity(file, state, config)
    try:
        agent.load_state_dict(state)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    agent.checkpoint = name
    return state


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
