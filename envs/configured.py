"""The environment of a configuration file: its target, energy arguments and MDP."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vgs_rl.energy import Energy
from vgs_rl.files.shipped import CONFIGS, shipped_configs
from vgs_rl.mdp import MDPConfig
from vgs_rl.names import imports
from vgs_rl.registry import find
from vgs_rl.training.config import (
    ConfigError,
    checked_content,
    parse_content,
    read_yaml,
)


@dataclass(kw_only=True)
class EnvironmentConfig:
    """What an environment takes from the configuration of an experiment.

    Args:
        env: the target.
        env_args: arguments of its energy.
        mdp: how a sample moves; the target's own where it is left out.
    """

    env: str = imports(Energy)
    env_args: dict[str, Any] = field(default_factory=dict)
    mdp: MDPConfig = field(default_factory=MDPConfig)


def tuned_config(target: str) -> str | None:
    """Name of the shipped configuration whose settings were found for a target, or None."""
    file = find(target).config
    return None if file is None or not file.is_relative_to(CONFIGS) else _name(file)


def ranged_config(target: str) -> str | None:
    """Name of the shipped configuration of a target over a range of temperatures, or None."""
    wanted = find(target).id
    for file in sorted((CONFIGS / "conditional").glob("*.yaml")):
        content = read_yaml(file)
        if "temperature" in content["mdp"] and find(content["env"]).id == wanted:
            return _name(file)
    return None


def _name(file: Path) -> str:
    return file.relative_to(CONFIGS).with_suffix("").as_posix()


def configured(target: str, config: str | Path) -> tuple[dict[str, Any], MDPConfig]:
    """Energy arguments and MDP of a configuration, for the target that it is of.

    Args:
        target: name of the target, as :func:`vgs_rl.find` takes it.
        config: a name of :func:`vgs_rl.files.shipped.shipped_configs`, or the path of a YAML file,
            which may name no other code than `target` (:mod:`vgs_rl.trust`).

    Raises:
        ConfigError: if there is no such file, it is of another target, or a setting is wrong.
    """
    path = Path(config)
    if path.suffix not in (".yaml", ".yml"):
        path = CONFIGS / f"{config}.yaml"
        if not path.is_file():
            known = ", ".join(shipped_configs())
            raise ConfigError(f"config must be the path of a YAML file, or {known}, got {config!r}")
    sections = {k: v for k, v in read_yaml(path).items() if k in ("env", "env_args", "mdp")}
    if "env" not in sections:
        raise ConfigError(f"config {path} names no env: an environment cannot be made from it")
    word = frozenset({target})  # the one name of code that the caller has given
    content = checked_content(sections, EnvironmentConfig, source=f"config {path}", trust=word)
    of, wanted = find(content["env"]), find(target)
    if of.id != wanted.id:
        raise ConfigError(f"config {path} is of {of.id}, the environment is {wanted.id}")
    settings = parse_content(EnvironmentConfig, content)
    return settings.env_args, settings.mdp if "mdp" in content else wanted.mdp
