"""A configuration as the text of its file: the record of a run, made from the object itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from vgs_rl.fields import field_types, is_section, may_be_subclass, section_type
from vgs_rl.files.yaml_text import dump_yaml


def as_yaml(config: Any) -> str:
    """A configuration as YAML, every default included; reading it gives an equal configuration.

    Args:
        config: a dataclass of dataclasses.

    Example:
        >>> from vgs_rl.training.config import BudgetConfig
        >>> print(as_yaml(BudgetConfig(seconds=60.0)), end="")
        updates: null
        env_steps: null
        energy_evaluations: null
        seconds: 60.0
    """
    return dump_yaml(as_mapping(config))


def as_mapping(config: Any) -> dict[str, Any]:
    """What a file holds for a configuration; a class that a field may choose is named."""
    cls: Callable[..., Any] = type(config)
    kinds = field_types(cls)
    return {
        each.name: _entry(getattr(config, each.name), kinds.get(each.name))
        for each in fields(config)
        if each.init
    }


def as_choice(config: Any) -> dict[str, Any]:
    """What a file holds for a section whose class can be chosen."""
    return {"class_path": import_path(type(config)), "init_args": as_mapping(config)}


def import_path(kind: type) -> str:
    """The shortest path within the class's packages that imports it, as a `class_path`.

    Example:
        >>> from vgs_rl.chain import ScheduleConfig
        >>> import_path(ScheduleConfig)
        'vgs_rl.ScheduleConfig'
    """
    parts = kind.__module__.split(".")
    for length in range(1, len(parts)):
        module = ".".join(parts[:length])
        if getattr(sys.modules.get(module), kind.__name__, None) is kind:
            return f"{module}.{kind.__name__}"
    return f"{kind.__module__}.{kind.__qualname__}"


def _entry(value: Any, kind: Any = None) -> Any:
    """A field's value as YAML holds it."""
    if is_dataclass(value) and not isinstance(value, type):
        section = section_type(kind)
        if is_section(section) and may_be_subclass(section):
            return as_choice(value)
        return as_mapping(value)
    if isinstance(value, Mapping):
        return {key: _entry(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_entry(each) for each in value]
    return str(value) if isinstance(value, Path) else value
