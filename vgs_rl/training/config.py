"""Configuration: dataclasses, YAML files and dotted overrides, checked before anything starts."""

from __future__ import annotations

import argparse
import functools
import re
import warnings
from argparse import ArgumentError, HelpFormatter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jsonargparse import (
    ArgumentParser,
    DefaultHelpFormatter,
    Namespace,
    set_dumper,
    set_loader,
    set_parsing_settings,
)

from vgs_rl import fields
from vgs_rl.checks import require_at_least, require_positive
from vgs_rl.files.shipped import CONFIGS, Kind, shipped_configs
from vgs_rl.files.yaml_text import YamlError, dump_yaml, parse_yaml, read_mapping
from vgs_rl.training.help import nested_help
from vgs_rl.training.options import checked_options
from vgs_rl.trust import Trust, admit, admit_typed

YAML_MODE = "vgs_rl"
TRUST_HELP = "import what files name, though it is not this package's"
set_loader(YAML_MODE, parse_yaml, (YamlError,))
set_dumper(YAML_MODE, dump_yaml)


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the field."""


@dataclass(kw_only=True)
class BudgetConfig:
    """When training stops: at the first limit reached; naming one drops those below it.

    A file that names a limit has no other, whatever the default is, and a command line that names
    one has no other, whatever its file says. There, `null` drops one. At least one is needed.

    Args:
        updates: gradient steps.
        env_steps: transitions of the MDP.
        energy_evaluations: states at which E or its gradient is evaluated.
        seconds: wall-clock time; a run limited by it is not reproducible bit for bit.
    """

    replaced_whole: ClassVar[bool] = True

    updates: int | None = None
    env_steps: int | None = None
    energy_evaluations: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        fields.settle(self, "budget")
        limits = {name: value for name, value in vars(self).items() if value is not None}
        if not limits:
            raise ValueError(
                "budget needs at least one of updates, env_steps, energy_evaluations, seconds"
            )
        require_positive("budget", **limits)

    def fraction(self, used: Mapping[str, float]) -> float:
        """How much of it counters of these names have used, in [0, 1]."""
        limits = {name: limit for name, limit in vars(self).items() if limit is not None}
        fractions: list[float] = [used[name] / limit for name, limit in limits.items()]
        return min(1.0, max(fractions))


@dataclass(kw_only=True)
class EvaluationConfig:
    """How a run is watched and evaluated.

    Args:
        n_samples: samples of the final report.
        seed: seed of the final report's samples; validation uses others.
        validation_samples: samples of each validation, which chooses the best checkpoint by ELBO.
        best_from: fraction of the budget after which checkpoints compete to be the best; earlier
            ones are forgotten then. Early in training a high ELBO can mean lost mass.
        validate_every: updates between validations.
        log_every: updates between scalar records.
        figures_every: validations between pictures in TensorBoard; 0 draws at the end only. Of long
            runs ever fewer are drawn, so that event files stay small.
        save_seconds: most seconds between checkpoints: what a killed run loses at most. There is
            one at every validation, too.
    """

    n_samples: int = 20_000
    seed: int = 1_000_003
    validation_samples: int = 4_000
    best_from: float = 0.0
    validate_every: int = 250
    log_every: int = 50
    figures_every: int = 4
    save_seconds: float = 60.0

    def __post_init__(self) -> None:
        fields.settle(self, "evaluation")
        for name, value in vars(self).items():
            least = 0 if name in ("figures_every", "seed", "best_from", "save_seconds") else 1
            require_at_least("evaluation", least, **{name: value})
        if self.best_from > 1:
            raise ValueError(f"evaluation.best_from must be at most 1, got {self.best_from}")


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU.

    Raises:
        ValueError: if the device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} is not available here; use auto, cpu or cuda") from error
    return device


class _Help(DefaultHelpFormatter):
    """Keeps the lines of a command's description."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(indent + line for line in text.splitlines(keepends=True))


class ConfigParser(ArgumentParser):
    """Command line and YAML files of a configuration dataclass, as :func:`make_parser` makes it.

    Attributes:
        config_type: the dataclass.
    """

    config_type: type

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        """Sections are given as mappings; the options of chosen classes come last."""
        text: str = super().format_help(formatter)
        text = text.replace("Path to a configuration file.", "all of it: '{field: value, ...}'.")
        text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
        # The nested options below show the fields of a default class.
        whole = r"\{'class_path':\s+'[\w.]*?(\w+)',\s+'init_args'.*?\}+(?=, known\s|\))"
        text = re.sub(whole, r"\1", text, flags=re.DOTALL)
        return text + nested_help(self.config_type)


def make_parser(config: type, **options: Any) -> ConfigParser:
    """A command line and YAML parser for a configuration dataclass; options go over files."""
    parser = ConfigParser(
        exit_on_error=False,
        allow_abbrev=False,
        parser_mode=YAML_MODE,
        print_config=None,
        formatter_class=_Help,
        **options,
    )
    parser.config_type = config
    parser.add_argument("--config", action="config", help="YAML file; options go over it")
    parser.add_argument("--trust", type=bool, default=False, help=TRUST_HELP)
    parser.add_class_arguments(config)
    return parser


def allow_subclasses(*bases: type) -> None:
    """Lets a field of one of these dataclass types name a subclass by `class_path`."""
    fields.allow_subclasses(*bases)
    set_parsing_settings(subclasses_enabled=list(bases), instantiate_subclass_spec_in_any=False)


def read_config(path: Path, config: type, *, trust: Trust = False) -> dict[str, Any]:
    """A file's content, checked against the fields of a dataclass, its names by the gate.

    Args:
        path: the file.
        config: the dataclass.
        trust: the user's word for what the file names (:mod:`vgs_rl.trust`).

    Raises:
        ConfigError: naming the file and the field.
    """
    return checked_content(read_yaml(path), config, source=f"config {path}", trust=trust)


def checked_content(
    content: dict[str, Any], config: type, *, source: str, trust: Trust = False
) -> dict[str, Any]:
    """What a file holds, checked as :func:`read_config` says. All settings of files enter here.

    Raises:
        ConfigError: naming the source and the field.
    """
    try:
        admit(content, config, file=source, trust=trust)
        return fields.checked_mapping(config, content)
    except ValueError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(source) else f"{source}: {text}") from error


@dataclass(frozen=True)
class Given:
    """What a command line gives.

    Attributes:
        arguments: for the parser: files as text, then options, all checked.
        files: the files' contents, in their order.
        trust: the user's word for what files name: all of it, or the names that are typed.
    """

    arguments: list[str]
    files: list[dict[str, Any]]
    trust: Trust = False

    def file_value(self, name: str) -> Any:
        """A field of the last file that has it, or None."""
        return next((file[name] for file in reversed(self.files) if name in file), None)


def given(parser: ConfigParser, arguments: Sequence[str], *, trust: Trust = False) -> Given:
    """Reads the files of a command line and checks its options, by the fields' types.

    Args:
        parser: of the configuration.
        arguments: the command line; `--trust true` and the names that it holds are the user's word.
        trust: what the user has said elsewhere.

    Raises:
        ConfigError: naming the field, the value and what was expected.
    """
    try:
        trust = trust or admit_typed(arguments, parser.config_type)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    files, others = list[dict[str, Any]](), list[str]()
    tokens = list(arguments)
    while tokens:
        token = tokens.pop(0)
        name, equals, text = token.partition("=")
        if name == "--config" and (equals or tokens):
            path = Path(text if equals else tokens.pop(0))
            files.append(read_config(path, parser.config_type, trust=trust))
        else:
            others.append(token)
    try:
        options = checked_options(parser.config_type, files, others)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    texts = [f"--config={dump_yaml(file)}" for file in files]
    return Given(texts + options, files, trust)


def parse(parser: ConfigParser, known: Given) -> Namespace:
    """Parses and instantiates; `trust` among the options is the user's word.

    Args:
        parser: of the command.
        known: what :func:`given` read of the command line.

    Raises:
        ConfigError: in one line or a few, naming the field, the value and what was expected.
    """
    options = _instantiated(parser, lambda: parser.parse_args(known.arguments))
    options.trust = known.trust
    return options


def parse_content(config: type, content: dict[str, Any]) -> Namespace:
    """Parses and instantiates what :func:`checked_content` returned, by the fields of a dataclass.

    Raises:
        ConfigError: as :func:`parse`.
    """
    parser = _content_parser(config)
    return _instantiated(parser, lambda: parser.parse_object(content))


@functools.cache
def _content_parser(config: type) -> ConfigParser:
    """One for all contents: to make it takes as long as to use it."""
    return make_parser(config)


def _instantiated(parser: ConfigParser, read: Callable[[], Namespace]) -> Namespace:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            options = read()
            options.pop("config", None)
            made: Namespace = parser.instantiate(options)
            return made
    except (ArgumentError, ValueError, TypeError) as error:
        raise ConfigError(_message(parser, error)) from error


def _message(parser: ArgumentParser, error: Exception) -> str:
    """An error's text, with the nearest options where one is not known."""
    text = str(error)
    if unknown := re.search(r"nrecognized arguments:? (--[^ =]+)", text):
        known = re.findall(r"(?<=[ ,\[])--[A-Za-z][\w.-]*", parser.format_help())
        return f"there is no option {unknown[1]}; {fields.nearest(unknown[1], known)}"
    return text


def config_file(name: str, kind: Kind) -> Path:
    """The file of a configuration that the user names.

    Args:
        name: one of :func:`vgs_rl.files.shipped.shipped_configs`, or the path of a file.
        kind: what it configures.

    Raises:
        ConfigError: with the nearest names, if there is none.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return path
    known = shipped_configs(kind)
    if name in known:
        return CONFIGS / f"{name}.yaml"
    if path.is_file():
        return path
    hint = fields.nearest(name, known)
    raise ConfigError(f"no {kind} configuration is called {name!r}; {hint}")


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping.

    Raises:
        ConfigError: if the file is missing, unreadable or not a mapping.
    """
    try:
        return read_mapping(path)
    except YamlError as error:
        raise ConfigError(str(error)) from error


def resumed(arguments: Sequence[str]) -> list[str]:
    """A command line with the configuration of the folder that `--resume` names below its options.

    Options are read after it, since it says which classes they belong to.

    Raises:
        FileNotFoundError: if the folder holds none.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--resume", nargs="?")
    folder = early.parse_known_args(arguments)[0].resume
    if folder in (None, "null"):
        return list(arguments)
    file = Path(folder) / "config.yaml"
    if not file.is_file():
        raise FileNotFoundError(
            f"--resume {folder}: nothing to go on with, it has no config.yaml; start it without "
            "--resume"
        )
    return ["--config", str(file), *arguments]
