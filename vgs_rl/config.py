"""Configuration: dataclasses, YAML files and dotted overrides, checked before anything starts."""

from __future__ import annotations

import warnings
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from vgs_rl.checks import require_at_least, require_positive

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the field."""


@dataclass(kw_only=True)
class BudgetConfig:
    """When training stops: at whichever limit is reached first; at least one is needed.

    Args:
        updates: gradient steps.
        env_steps: transitions of the MDP.
        energy_evaluations: states at which E or its gradient is evaluated.
        seconds: wall-clock time; a run limited by it is not reproducible bit for bit.
    """

    updates: int | None = None
    env_steps: int | None = None
    energy_evaluations: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
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
    """How a run is watched and judged.

    Args:
        n_samples: samples of the final report.
        seed: seed of the final report's samples; validation uses others.
        validation_samples: samples of each validation, which chooses the best checkpoint by ELBO.
        best_from: fraction of the budget after which checkpoints compete to be the best; earlier
            ones are forgotten then. Early in training a high ELBO can mean lost mass.
        validate_every: updates between validations.
        log_every: updates between scalar records.
        figures_every: validations between pictures in TensorBoard; 0 draws at the end only.
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


def make_parser(config: type[T], **options: Any) -> ArgumentParser:
    """A command line and YAML parser for a configuration dataclass."""
    parser = ArgumentParser(exit_on_error=False, **options)
    parser.add_argument("--config", action="config", help="YAML file; later options override it")
    parser.add_class_arguments(config)
    return parser


def allow_subclasses(*bases: type) -> None:
    """Lets a field of one of these dataclass types name a subclass by `class_path`."""
    set_parsing_settings(subclasses_enabled=list(bases))


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Parses and instantiates.

    Raises:
        ConfigError: in one line or a few, naming the field, the value and what was expected.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            options: Namespace = parser.instantiate(parser.parse_args(list(arguments)))
            return options
    except (ArgumentError, ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error


def as_yaml(parser: ArgumentParser, arguments: Sequence[str], without: Sequence[str]) -> str:
    """The resolved configuration, every default included, without the named options."""
    options = parser.parse_args(list(arguments))
    for name in without:
        options.pop(name, None)
    text: str = parser.dump(options, skip_none=False, skip_validation=True)
    return text


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping.

    Raises:
        ConfigError: if the file is missing, unreadable or not a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"config {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"config {path} must be a mapping, got {type(content).__name__}")
    return content


def resumed(folder: Path, arguments: Sequence[str]) -> list[str]:
    """The command line of what a folder holds: its own configuration, these options over it.

    Raises:
        FileNotFoundError: if it holds none.
    """
    file = folder / "config.yaml"
    if not file.is_file():
        raise FileNotFoundError(f"--resume {folder}: nothing to go on with, it has no config.yaml")
    return ["--config", str(file), *arguments]
