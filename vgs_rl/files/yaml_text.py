"""YAML as this package reads and writes it: one reader and one writer for every file and option.

Plain scalars follow YAML 1.2: `2e-1`, `1e-3` and `.5` are numbers, `on`, `no` and `1:30` are text,
`010` is ten. A key given twice, a tag, several documents and expanding aliases are refused.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

MOST_CHARACTERS = 2**20
MOST_VALUES = 100_000
DEEPEST = 50

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULLS = {"", "~", "null", "Null", "NULL"}
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False}
_BOOLEANS["FALSE"] = False
_INTEGER = re.compile(r"[-+]?[0-9]+(_[0-9]+)*")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(_[0-9]+)*(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class YamlError(ValueError):
    """Text that is not the YAML that this package reads; the message names the line."""


def plain_scalar(text: str) -> Any:
    """What a scalar without quotes stands for."""
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _INTEGER.fullmatch(text):
        if len(text) > 1000:
            raise YamlError(f"a whole number of {len(text)} digits is too long")
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if special := _SPECIAL.fullmatch(text):
        return float("nan") if special[3] else float(f"{special[1]}inf")
    return text


def parse_yaml(text: str, source: str = "") -> Any:
    """The value that a YAML text stands for.

    Args:
        text: one document.
        source: what errors call it, as `config gmm9.yaml`.

    Raises:
        YamlError: naming source and line.
    """
    start = f"{source}: " if source else ""
    if len(text) > MOST_CHARACTERS:
        raise YamlError(f"{start}at most {MOST_CHARACTERS} characters are read, got {len(text)}")
    try:
        return _Builder(yaml.parse(text, Loader=_LOADER), source).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark is not None else ""
        raise YamlError(f"{start}{line}{error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise YamlError(f"{start}{' '.join(str(error).split())}") from error


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        YamlError: if the file is missing, unreadable, not UTF-8 or not a mapping.
    """
    source = f"config {path}"
    try:
        with open(path, "rb") as file:
            text = file.read(4 * MOST_CHARACTERS + 1).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise YamlError(f"{source} cannot be read: {error}") from error
    return parse_mapping(text, source)


def parse_mapping(text: str, source: str) -> dict[str, Any]:
    """The mapping that a YAML text stands for.

    Raises:
        YamlError: naming source and line.
    """
    content = parse_yaml(text, source)
    if not isinstance(content, dict):
        kind = "nothing" if content is None else type(content).__name__
        raise YamlError(f"{source} must be a mapping, got {kind}")
    for key in content:
        if not isinstance(key, str):
            raise YamlError(f"{source}: keys must be names, got {key!r}")
    return content


def dump_yaml(value: Any) -> str:
    """YAML that :func:`parse_yaml` reads back as the same value."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False
    )
    return text


class _Dumper(yaml.SafeDumper):
    """Quotes every text that would be read as something else, and writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def text(self, data: str) -> yaml.ScalarNode:
        style = None if isinstance(plain_scalar(data[:1000]), str) else "'"
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.text)


class _Builder:
    """Builds values from the parser's events, counting what aliases expand to."""

    def __init__(self, events: Iterator[Any], source: str) -> None:
        self.events = events
        self.source = source
        self.anchors: dict[str, tuple[Any, int]] = {}
        self.count = 0

    def document(self) -> Any:
        value: Any = None
        documents = 0
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self._error(event, "only one document is read")
                value = self._value(next(self.events), 0)
        return value

    def _value(self, event: Any, depth: int) -> Any:
        if depth > DEEPEST:
            raise self._error(event, f"nested deeper than {DEEPEST}")
        before = self.count
        self._add(event, 1)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                raise self._error(event, f"*{event.anchor} is not defined before it is used")
            value, size = self.anchors[event.anchor]
            self._add(event, size)
            return copy.deepcopy(value)
        if event.tag is not None and event.tag != "!":
            raise self._error(event, f"tags are not read, got {event.tag}")
        if isinstance(event, yaml.ScalarEvent):
            try:
                value = plain_scalar(event.value) if event.implicit[0] else event.value
            except YamlError as error:
                raise self._error(event, str(error)) from error
        elif isinstance(event, yaml.SequenceStartEvent):
            value = []
            while not isinstance(each := next(self.events), yaml.SequenceEndEvent):
                value.append(self._value(each, depth + 1))
        else:
            value = self._mapping(depth)
        if event.anchor is not None:
            self.anchors[event.anchor] = value, self.count - before
        return value

    def _mapping(self, depth: int) -> dict[Any, Any]:
        mapping: dict[Any, Any] = {}
        lines: dict[Any, int] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key = self._value(event, depth + 1)
            if isinstance(key, bool) or not isinstance(key, (str, int)):
                raise self._error(event, f"keys must be names, got {key!r}")
            if key == "<<":
                raise self._error(event, "merge keys (<<) are not read")
            if key in mapping:
                raise self._error(event, f"{key!r} is given twice, first in line {lines[key]}")
            lines[key] = event.start_mark.line + 1
            mapping[key] = self._value(next(self.events), depth + 1)
        return mapping

    def _add(self, event: Any, size: int) -> None:
        self.count += size
        if self.count > MOST_VALUES:
            raise self._error(event, f"it expands to more than {MOST_VALUES} values")

    def _error(self, event: Any, message: str) -> YamlError:
        source = f"{self.source}: " if self.source else ""
        return YamlError(f"{source}line {event.start_mark.line + 1}: {message}")
