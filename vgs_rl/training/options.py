"""Options of a command line, `--agent.lr 1e-3`, checked by the types of the fields they name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from vgs_rl.fields import (
    alternatives,
    checked,
    class_named,
    field_defaults,
    field_types,
    is_section,
    may_be_subclass,
    near_names,
    section_type,
)
from vgs_rl.files.yaml_text import YamlError, parse_yaml


def checked_options(
    config: Callable[..., Any], files: Sequence[Mapping[str, Any]], arguments: Sequence[str]
) -> list[str]:
    """The arguments with every option of the configuration checked, and counts as whole numbers.

    Args:
        config: the dataclass whose fields options name, or the function whose arguments.
        files: contents of files below the options; they say which subclasses are chosen.
        arguments: a command line; what names no field of the configuration stays as it is.

    Raises:
        ValueError: naming the option, the value and what was expected.
    """
    reader = _Reader(config)
    for content in files:
        reader.choose("", config, content)
    result, tokens = list[str](), list(arguments)
    while tokens:
        token = tokens.pop(0)
        name, equals, text = token.removeprefix("--").partition("=")
        known = token.startswith("--") and name.partition(".")[0] in field_types(config)
        if not known or name.endswith(".help") or not (equals or tokens):
            result.append(token)
            continue
        result.append(f"--{name}={reader.read(name, text if equals else tokens.pop(0))}")
    return [*reader.dropped(), *result]


class _Reader:
    """Reads options one after the other; later ones see the subclasses that earlier ones chose."""

    def __init__(self, config: Callable[..., Any]) -> None:
        self.config = config
        self.chosen: dict[str, type | None] = {}
        self.limits: dict[str, tuple[Callable[..., Any], set[str]]] = {}

    def choose(self, name: str, cls: Callable[..., Any], content: Mapping[str, Any]) -> None:
        """Remembers the subclasses that a mapping of a dataclass's fields chooses."""
        for key, value in content.items():
            kind = section_type(field_types(cls).get(key))
            if not is_section(kind):
                continue
            path = f"{name}.{key}" if name else key
            if may_be_subclass(kind):
                self._choose_class(path, kind, value, field_defaults(cls).get(key))
            elif isinstance(value, Mapping):
                self.choose(path, kind, value)

    def _choose_class(self, path: str, kind: type, value: Any, default: Any) -> None:
        inner: Any = value
        if isinstance(value, Mapping) and ("class_path" in value or "init_args" in value):
            inner = value.get("init_args", {})
        named = value if isinstance(value, str) else None
        named = value.get("class_path") if isinstance(value, Mapping) else named
        if named is not None:
            self.chosen[path] = class_named(kind, named, path)
        cls = self.chosen.get(path, None if default is None else type(default))
        if cls is not None and isinstance(inner, Mapping):
            self.choose(path, cls, inner)

    def read(self, name: str, text: str) -> str:
        """One option's text as the parser takes it."""
        cls = self.config
        path, default = "", None
        parts = name.split(".")
        while parts:
            part = parts.pop(0)
            if part not in field_types(cls):
                raise ValueError(_unknown(name, path, part, field_types(cls)))
            owner, kind = cls, field_types(cls)[part]
            default = field_defaults(cls).get(part)
            path = f"{path}.{part}" if path else part
            section = section_type(kind)
            if not parts:
                self._note_limit(path, owner, part, text)
                return self._leaf(path, kind, text, default)
            if get_origin(section) is dict or section is Any:
                return text
            if not is_section(section):
                raise ValueError(f"there is no option --{name}: {path} has no fields")
            if may_be_subclass(section):
                if parts == ["class_path"]:
                    return self._leaf(path, section, text, default)
                inside = parts[0] == "init_args"
                parts = parts[1:] if inside else parts
                chosen = self.chosen.get(path, type(default) if default is not None else None)
                if chosen is None:
                    return text
                if not parts:
                    value = checked(dict[str, Any], _parsed(name, text), name)
                    return _written(checked(chosen, value, path))
                section = chosen
            cls = section
        return text

    def _leaf(self, path: str, kind: Any, text: str, default: Any) -> str:
        section = section_type(kind)
        if is_section(section):
            is_class = may_be_subclass(section) and not text.lstrip().startswith("{")
            if is_class and not (text == "null" and None in alternatives(kind)):
                self.chosen[path] = class_named(section, text, path)
                return text
            value = checked(kind, _parsed(path, text), path, default)
            if isinstance(value, Mapping):
                self._choose_class(path, section, value, default)
            return _written(value)
        kinds = alternatives(kind)
        literal = get_origin(kind) is Literal and all(isinstance(e, str) for e in get_args(kind))
        if literal:
            checked(kind, text, path)
            return text
        if str in kinds or Path in kinds or Any in kinds or kind is Any:
            return text
        return _written(checked(kind, _parsed(path, text), path, default))

    def _note_limit(self, path: str, owner: Callable[..., Any], part: str, text: str) -> None:
        if getattr(owner, "replaced_whole", False):
            section = path.rpartition(".")[0]
            self.limits.setdefault(section, (owner, set()))[1].add("" if text == "null" else part)

    def dropped(self) -> list[str]:
        """Options that drop the limits of a file, or of a default, which others replace."""
        return [
            f"--{section}.{field}=null"
            for section, (owner, named) in self.limits.items()
            if named - {""}
            for field in field_types(owner)
            if field not in named
        ]


def _unknown(name: str, path: str, part: str, known: Iterable[str]) -> str:
    start = f"--{path}." if path else "--"
    near = near_names(part, known)
    shown = ", ".join(f"{start}{each}" for each in near or known)
    hint = f"did you mean {shown}?" if near else f"there are {shown}"
    return f"there is no option --{name}; {hint}"


def _parsed(name: str, text: str) -> Any:
    try:
        return parse_yaml(text)
    except YamlError as error:
        raise ValueError(f"{name}: {error}, got {text!r}") from error


def _written(value: Any) -> str:
    """A value as an option's text."""
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else f"{'-' if value < 0 else ''}.inf"
    return json.dumps(value, ensure_ascii=False)
