"""What a run is: the settings that define it, their digest, and where runs differ.

A configuration's class names the settings that a resumed run may change in a class attribute
``changeable``; all others define the run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any


def settings_of(config: Any) -> dict[str, Any]:
    """Every setting of a configuration (a dataclass of dataclasses) by its dotted name.

    Values are what JSON holds. A field whose value is a dataclass is entered by the name of its
    class, and its own fields behind it.
    """
    return dict(_visit(config, "", definition=False))


def identity_of(config: Any) -> dict[str, Any]:
    """The settings that define a run: all but those that their classes call ``changeable``.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Config:
        ...     changeable = ("device",)
        ...     env: str = "GMM9"
        ...     device: str = "cpu"
        >>> identity_of(Config())
        {'env': 'GMM9'}
    """
    return dict(_visit(config, "", definition=True))


def shown_settings(config: Any) -> dict[str, Any]:
    """The settings for people: an agent is named as on the command line, by its class's `name`."""
    return settings_of(config) | {"agent": config.agent.name}


def digest(settings: Mapping[str, Any]) -> str:
    """SHA-256 of settings as canonical JSON, in hexadecimal."""
    return hashlib.sha256(_canonical(dict(settings)).encode()).hexdigest()


def identity_details(config: Any) -> dict[str, Any]:
    """Whose report it is: digests of what defines the run, and of all settings but `output`.

    Two runs of one `identity` train alike; reports of one `settings` are the same report.
    """
    settings = settings_of(config)
    del settings["output"]
    return {"identity": digest(identity_of(config)), "settings": digest(settings)}


def differing(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the settings in which any two of these runs differ, in their order.

    A setting that only one of two runs has belongs to another class, and is no difference.

    Example:
        >>> differing([{"lr": 1, "width": 8, "seed": 0}, {"lr": 2, "seed": 0}])
        ['lr']
    """
    values: dict[str, set[str]] = {}
    for run in runs:
        for name, value in run.items():
            values.setdefault(name, set()).add(_canonical(value))
    return [name for name, found in values.items() if len(found) > 1]


def differences(
    was: Mapping[str, Any], now: Mapping[str, Any], owner: str = "the run"
) -> list[str]:
    """What differs, a phrase a setting: ``env: the run has GMM9, got GMM25``.

    A setting that one side lacks belongs to another class, which is named, or to another version
    of the package, which has its default.
    """
    return [
        f"{name}: {owner} has {_shown(was[name])}, got {_shown(now[name])}"
        for name in now
        if name in was and _canonical(was[name]) != _canonical(now[name])
    ]


def _visit(value: Any, prefix: str, *, definition: bool) -> Iterator[tuple[str, Any]]:
    free = getattr(type(value), "changeable", ()) if definition else ()
    for each in fields(value):
        if each.name in free:
            continue
        name, content = f"{prefix}{each.name}", getattr(value, each.name)
        if is_dataclass(content):
            yield name, _class_name(type(content))
            yield from _visit(content, f"{name}.", definition=definition)
        else:
            yield name, _plain(content)


def _class_name(kind: type) -> str:
    """The name of a class; of the user's, behind its module's."""
    ours = kind.__module__.partition(".")[0] == __name__.partition(".")[0]
    return kind.__qualname__ if ours else f"{kind.__module__}:{kind.__qualname__}"


def _plain(value: Any) -> Any:
    """A value as JSON holds it; 2.0 is 2, so that how a number was written does not matter."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {"class": _class_name(type(value)), **dict(_visit(value, "", definition=False))}
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return value.as_posix() if isinstance(value, Path) else str(value)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
