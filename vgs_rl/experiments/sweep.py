"""Searches settings of a training with Optuna: sampled, pruned by the validation ELBO, restartable.

A trial is a run in the sweep's folder, named by the digest of its settings. The study lies in a
journal next to it, so that the same sweep goes on where it was ended, its unfinished run included.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vgs_rl.agents.base import Agent
from vgs_rl.checks import one_line, require_module
from vgs_rl.experiments.config import RunConfig, config_of, parse_run
from vgs_rl.experiments.run import train
from vgs_rl.files.checkpoint import load_checkpoint, write_text
from vgs_rl.files.yaml_text import read_mapping
from vgs_rl.training.config import ConfigError
from vgs_rl.training.identity import digest, settings_of
from vgs_rl.trust import Trust

KEYS = ("low", "high", "log", "step")
Table = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """What one setting may be: one of some values, or a number between two.

    Attributes:
        name: dotted, as on the command line without its dashes.
        choices: the values; empty for a range.
        low: least number; whole where both ends are.
        high: largest number.
        log: whether its logarithm is drawn evenly.
        step: between numbers; None takes any.
    """

    name: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None

    def suggest(self, trial: Any) -> Any:
        """The value of an Optuna trial."""
        if self.choices:
            return trial.suggest_categorical(self.name, list(self.choices))
        if isinstance(self.low, int) and isinstance(self.high, int):
            step = 1 if self.step is None else self.step
            return trial.suggest_int(self.name, self.low, self.high, log=self.log, step=step)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log, step=self.step)

    def ends(self) -> tuple[Any, ...]:
        """The values that show whether all are valid."""
        return self.choices or (self.low, self.high)


def read_space(file: Path) -> dict[str, Dimension]:
    """The dimensions of a YAML file: `name: [values]` or `name: {low: , high: , log: , step: }`.

    Raises:
        ConfigError: naming file, setting and value.
    """
    found = read_mapping(file)
    if not found:
        raise ConfigError(f"{file}: names no setting to search")
    return {name: _dimension(f"{file}: {name}", str(name), what) for name, what in found.items()}


def _dimension(where: str, name: str, content: Any) -> Dimension:
    if isinstance(content, list) and content:
        return Dimension(name=name, choices=tuple(content))
    if not isinstance(content, Mapping) or not {"low", "high"} <= content.keys() <= set(KEYS):
        expected = f"a list of values, or low and high, and maybe {' and '.join(KEYS[2:])}"
        raise ConfigError(f"{where}: must be {expected}, got {content!r}")
    low, high, step = content["low"], content["high"], content.get("step")
    for key, value in (("low", low), ("high", high), ("step", step)):
        if key == "step" and value is None:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and math.isfinite(float(value or 0))):
            raise ConfigError(f"{where}.{key}: must be a number, got {value!r}")
    log = content.get("log", False)
    if not isinstance(log, bool):
        raise ConfigError(f"{where}.log: must be true or false, got {log!r}")
    if not low < high:
        raise ConfigError(f"{where}: low must be below high, got {low} and {high}")
    if log and (low <= 0 or step is not None):
        raise ConfigError(f"{where}: log needs low above 0 and no step, got {low} and {step}")
    return Dimension(name=name, low=low, high=high, log=log, step=step)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A search.

    Attributes:
        arguments: the command line of the training that is varied.
        space: what is varied.
        folder: of study, runs and results.
        trials: how many, finished, pruned and failed ones together.
        startup: trials before any is pruned.
        trust: the user's word for what files name.
    """

    arguments: Sequence[str]
    space: Mapping[str, Dimension]
    folder: Path
    trials: int
    startup: int = 4
    trust: Trust = False

    def config(self, values: Mapping[str, Any]) -> RunConfig:
        """The run of some values.

        Raises:
            ConfigError: if they do not fit.
        """
        options = [f"--{name}={_text(value)}" for name, value in values.items()]
        return config_of(parse_run([*self.arguments, *options], trust=self.trust))

    def run_of(self, values: Mapping[str, Any]) -> RunConfig:
        """The same, in the sweep's folder."""
        config = self.config(values)
        settings = {k: v for k, v in settings_of(config).items() if k not in ("output", "device")}
        name = digest(settings)[:12]
        return replace(config, output=self.folder / "trials" / name)

    def check(self) -> None:
        """Builds the configuration at the ends of every dimension, before any work.

        Raises:
            ConfigError: naming the setting and what is wrong with its value.
        """
        first = {name: each.ends()[0] for name, each in self.space.items()}
        for name, dimension in self.space.items():
            for value in dimension.ends():
                try:
                    self.config({**first, name: value})
                except ValueError as error:
                    raise ConfigError(f"--space: {name} = {_text(value)}: {error}") from error

    def run(self, *, progress_bar: bool = True, tell: Callable[[str], None] = print) -> Table:
        """Runs the trials that are not done; returns the table of all, best first.

        Args:
            progress_bar: whether each training shows one.
            tell: gets a line for each trial.

        Raises:
            ModuleNotFoundError: if Optuna is not installed, naming the extra.
            ConfigError: if the folder holds another sweep.
            KeyboardInterrupt: after Ctrl-C; the same sweep goes on.
        """
        study = self._study()
        states = importlib.import_module("optuna").trial.TrialState
        for stale in study.get_trials(states=[states.RUNNING]):  # of a process that has ended
            study.tell(stale.number, state=states.FAIL)
            if set(stale.params) == set(self.space):
                study.enqueue_trial(stale.params)
        done = len(_done(study))
        while done < self.trials:
            trial = study.ask()
            values = {name: each.suggest(trial) for name, each in self.space.items()}
            shown = ", ".join(f"{name} = {_text(value)}" for name, value in values.items())
            tell(f"trial {trial.number}: {shown}")
            tell(f"trial {trial.number}: {self._try(study, trial, values, progress_bar)}")
            done += 1
        return self.table(study)

    def _try(self, study: Any, trial: Any, values: Mapping[str, Any], progress_bar: bool) -> str:
        """Runs a trial; says what came out."""
        states = importlib.import_module("optuna").trial.TrialState
        pruned = False

        def prune(agent: Agent) -> bool:
            nonlocal pruned
            updates, elbo = agent.validation
            if updates == agent.counters.updates and math.isfinite(elbo):
                trial.report(elbo, updates)
                pruned = trial.should_prune()
            return not pruned

        config = self.run_of(values)
        try:
            begun = (config.folder / "config.yaml").is_file()
            options: dict[str, Any] = {"resume": config.folder} if begun else {"overwrite": True}
            report = train(
                config, progress_bar=progress_bar, trust=self.trust, callback=prune, **options
            )
            if report is None and not pruned:
                raise KeyboardInterrupt
            if pruned:
                study.tell(trial, state=states.PRUNED)
                return "pruned"
            elbo = float(load_checkpoint(config.folder / "checkpoints" / "best.pt")["best_elbo"])
        except (ValueError, OSError, RuntimeError) as error:
            why = one_line(error)
            trial.set_user_attr("error", why)
            study.tell(trial, state=states.FAIL)
            return f"failed: {why}"
        study.tell(trial, elbo)
        return f"validation ELBO {elbo:.4f}"

    def _study(self) -> Any:
        require_module("a sweep", "optuna", "sweep")
        optuna = importlib.import_module("optuna")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        base = self.config({name: each.ends()[0] for name, each in self.space.items()})
        settings = {k: v for k, v in settings_of(base).items() if k != "output"}
        identity = digest(settings | {f"space {k}": str(v) for k, v in self.space.items()})
        self.folder.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that journals are experimental
            backend = optuna.storages.journal.JournalFileBackend(str(self.folder / "study.journal"))
            storage = optuna.storages.JournalStorage(backend)
            study = optuna.create_study(
                storage=storage, study_name="sweep", direction="maximize", load_if_exists=True
            )
            study.sampler = optuna.samplers.TPESampler(seed=(base.seed + len(study.trials)) % 2**32)
            study.pruner = optuna.pruners.MedianPruner(n_startup_trials=self.startup)
        if study.user_attrs.setdefault("identity", identity) != identity:
            raise ConfigError(
                f"{self.folder} holds a sweep of other settings or another space: choose another "
                "--folder"
            )
        study.set_user_attr("identity", identity)
        return study

    def table(self, study: Any) -> Table:
        """A row for each trial: those that came to their end first, by their validation ELBO."""
        rows = []
        for trial in _done(study):
            elbo = trial.value if trial.value is not None else -math.inf
            row = {"trial": trial.number, "state": trial.state.name.lower(), "elbo": elbo}
            rows.append({**row, **{name: trial.params[name] for name in self.space}})
        return sorted(rows, key=lambda row: (row["state"] != "complete", -row["elbo"]))

    def write_best(self, table: Table) -> Path | None:
        """Writes best.yaml, the configuration of the best trial; None if no trial was completed."""
        if not table or table[0]["state"] != "complete":
            return None
        config = self.config({name: table[0][name] for name in self.space})
        file = self.folder / "best.yaml"
        write_text(file, config.to_yaml())
        return file


def _done(study: Any) -> list[Any]:
    """Trials that came to an end; not those that were cut off and begun again."""
    names = ("COMPLETE", "PRUNED")
    return [
        trial for trial in study.trials if trial.state.name in names or "error" in trial.user_attrs
    ]


def _text(value: Any) -> str:
    """A value as an option of the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
