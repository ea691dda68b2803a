"""The options within sections whose class can be chosen, such as `--agent.lr`, for help texts."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from docstring_parser import parse as parse_docstring

from vgs_rl.fields import (
    alternatives,
    descendants,
    field_types,
    is_section,
    may_be_subclass,
    section_type,
)

INDENT = 24  # where argparse puts the text of an option


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option.

    Attributes:
        name: with its dashes: `--agent.lr`.
        kind: the field's type.
        help: the field's sentence.
        default: the field's default as YAML shows it.
    """

    name: str
    kind: Any
    help: str
    default: str


def nested_help(config: type) -> str:
    """The options of the classes that are chosen by default, as argparse formats options."""
    parts = []
    for path, value in _chosen(config()):
        parts.append(
            f"\n{path}: {_first_sentence(type(value))}\nby default {type(value).__name__}:\n"
        )
        parts += [_shown(option) for option in options_of(path, value)]
    return "".join(parts)


def options_of(path: str, value: Any) -> list[Option]:
    """The options of one section's own fields.

    Args:
        path: dotted name of the section.
        value: a configuration whose field values are the defaults.
    """
    cls: Callable[..., Any] = type(value)
    texts, kinds = field_texts(type(value)), field_types(cls)
    return [
        Option(
            name=f"--{path}.{each.name}",
            kind=kinds[each.name],
            help=texts.get(each.name, ""),
            default=_default(getattr(value, each.name)),
        )
        for each in fields(value)
        if each.init
    ]


def all_names(config: type) -> dict[str, Any]:
    """Every option of a configuration, those of all classes that can be chosen: names and types."""
    return dict(_names(config, "", set()))


def field_texts(cls: type) -> dict[str, str]:
    """The sentences of a dataclass's fields, from its docstring and those it inherits from."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base is not object and base.__doc__:
            found = parse_docstring(inspect.cleandoc(base.__doc__)).params
            texts |= {each.arg_name: " ".join((each.description or "").split()) for each in found}
    return texts


def _chosen(value: Any, path: str = "", *, within: bool = False) -> Iterator[tuple[str, Any]]:
    """Sections whose class can be chosen, with what is chosen, and those within them."""
    cls: Callable[..., Any] = type(value)
    kinds = field_types(cls)
    for each in fields(value):
        content, kind = getattr(value, each.name), section_type(kinds.get(each.name))
        if is_section(kind) and content is not None:
            name = f"{path}.{each.name}" if path else each.name
            inside = within or may_be_subclass(kind)
            if inside:
                yield name, content
            yield from _chosen(content, name, within=inside)


def _names(cls: type, path: str, seen: set[tuple[str, type]]) -> Iterator[tuple[str, Any]]:
    for name, kind in field_types(cls).items():
        where = f"{path}.{name}" if path else name
        yield f"--{where}", kind
        section = section_type(kind)
        if not is_section(section) or (where, section) in seen:
            continue
        seen.add((where, section))
        for each in descendants(section) if may_be_subclass(section) else [section]:
            yield from _names(each, where, seen)


def _first_sentence(cls: type) -> str:
    text = parse_docstring(inspect.cleandoc(cls.__doc__ or "")).short_description or ""
    return " ".join(text.split()).rstrip(".") + "."


def _shown(option: Option) -> str:
    """One option as argparse formats it."""
    head = f"  {option.name} {option.name.rpartition('.')[2].upper()}"
    text = f"{option.help} (type: {shown_type(option.kind)}, default: {option.default})".lstrip()
    lines = textwrap.wrap(text, 55)
    if len(head) > INDENT - 2:
        lines.insert(0, "")
    body = [" " * INDENT + line for line in lines]
    body[0] = head.ljust(INDENT) + lines[0]
    return "\n".join(line.rstrip() for line in body) + "\n"


def shown_type(kind: Any) -> str:
    """A field's type in words."""
    kinds = alternatives(kind)
    if len(kinds) > 1:
        return " or ".join("null" if each is None else shown_type(each) for each in kinds)
    (kind,) = kinds
    if get_origin(kind) is Literal:
        return ", ".join(map(str, get_args(kind)))
    if is_section(kind):
        names = [each.__name__ for each in descendants(kind) if not inspect.isabstract(each)]
        return ", ".join(names) if may_be_subclass(kind) else "mapping"
    if get_origin(kind) in (tuple, list):
        return "list"
    plain = {str: "text", Path: "path", int: "whole number", float: "number", bool: "true or false"}
    return plain.get(kind, "mapping" if get_origin(kind) is dict else "any")


def _default(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_default, value))}]"
    return type(value).__name__ if is_section(type(value)) else str(value)
