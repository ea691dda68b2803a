"""What a configuration's fields take: values are checked against the types of the dataclasses.

The same checks hold for a file, for an option and for a comparison's settings, so that all of them
say the same: the field's name, the value and what was expected.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import numbers
import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from vgs_rl.checks import whole
from vgs_rl.files.yaml_text import YamlError, parse_yaml

C = TypeVar("C")

_subclassed: list[type] = []


def allow_subclasses(*bases: type) -> None:
    """Lets a field of one of these dataclass types name a subclass by `class_path`."""
    _subclassed.extend(base for base in bases if base not in _subclassed)


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a message: the nearest known names, or all of them."""
    known = list(dict.fromkeys(known))
    near = near_names(name, known)
    if near:
        return f"did you mean {', '.join(near)}?"
    return f"there are {', '.join(known)}" if known else "there are none"


def near_names(name: str, known: Iterable[str]) -> list[str]:
    """Up to three known names that resemble this one, whatever their case; the nearest first."""
    plain = {each.removeprefix("--").lower(): each for each in known}
    word = name.removeprefix("--").lower()
    return [plain[each] for each in difflib.get_close_matches(word, plain, n=3)]


def checked(kind: Any, value: Any, name: str, default: Any = None) -> Any:
    """A value as a field takes it: as it is, or a whole number written as a float as an int.

    Args:
        kind: the field's type.
        value: what a file or an option gives.
        name: dotted name of the field, for messages.
        default: what the field holds otherwise; its class is used where none is named.

    Raises:
        ValueError: naming the field, the value and what was expected.
    """
    kinds = alternatives(kind)
    if value is None and (None in kinds or kind is Any):
        return None
    kinds = [each for each in kinds if each is not None]
    if len(kinds) > 1:
        return _checked_union(kinds, value, name)
    (kind,) = kinds
    if is_section(kind):
        return _checked_section(kind, value, name, default)
    if get_origin(kind) is Literal:
        return _checked_choice(get_args(kind), value, name)
    if get_origin(kind) in (tuple, list):
        return _checked_sequence(get_args(kind), value, name)
    if get_origin(kind) is dict:
        if not isinstance(value, Mapping):
            raise _error(name, "a mapping", value)
        each = get_args(kind)[1]
        return {key: checked(each, entry, f"{name}.{key}") for key, entry in value.items()}
    return _checked_simple(kind, value, name)


def checked_mapping(cls: type, content: Any, name: str = "") -> dict[str, Any]:
    """Checks a mapping of a dataclass's fields; limits of a budget that it leaves out are dropped.

    Raises:
        ValueError: naming the field.
    """
    hints = field_types(cls)
    if not isinstance(content, Mapping):
        raise _error(name, f"a mapping of {', '.join(hints)}", content)
    for key in content:
        if key not in hints:
            raise ValueError(
                f"{join(name, key)} is no field of {cls.__name__}; " + nearest(str(key), hints)
            )
    defaults = field_defaults(cls)
    result = {
        key: checked(hints[key], value, join(name, key), defaults.get(key))
        for key, value in content.items()
    }
    if getattr(cls, "replaced_whole", False) and any(v is not None for v in result.values()):
        result = dict.fromkeys(hints) | result
    return result


def settle(config: C, name: str = "") -> C:
    """Checks the fields of a configuration that Python code made, in place; returns it.

    Whole numbers of other libraries, or written as floats, become ints, and texts become paths.

    Raises:
        ValueError: naming the field, the value and what was expected.
    """
    cls: Callable[..., Any] = type(config)
    for key, kind in field_types(cls).items():
        value, path = getattr(config, key), join(name, key)
        section = section_type(kind)
        if is_section(section):
            if isinstance(value, section):
                settle(value, path)
            elif not (value is None and None in alternatives(kind)):
                raise _error(path, f"a {section.__name__}", value)
            continue
        new = checked(kind, value, path)
        if kind is Path and isinstance(value, str):
            new = Path(value)
        if new is not value:
            object.__setattr__(config, key, new)
    return config


def is_section(kind: Any) -> bool:
    """Whether a field of this type has its own fields."""
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def may_be_subclass(kind: type) -> bool:
    """Whether a field of this type may name a subclass."""
    return issubclass(kind, tuple(_subclassed))


@functools.cache
def field_types(cls: Callable[..., Any]) -> dict[str, Any]:
    """Types of what a dataclass's constructor, or a function, takes."""
    hints = get_type_hints(cls)
    if not isinstance(cls, type):
        return {name: hints[name] for name in inspect.signature(cls).parameters}
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}


@functools.cache
def field_defaults(cls: Callable[..., Any]) -> dict[str, Any]:
    """Defaults of a dataclass's sections, by field."""
    defaults: dict[str, Any] = {}
    if not isinstance(cls, type):
        return defaults
    for each in dataclasses.fields(cls):
        if each.default_factory is not dataclasses.MISSING and is_section(
            section_type(field_types(cls).get(each.name))
        ):
            defaults[each.name] = each.default_factory()
    return defaults


def section_type(kind: Any) -> Any:
    """The dataclass among a field's alternatives, or the type as it is."""
    sections = [each for each in alternatives(kind) if is_section(each)]
    return sections[0] if len(sections) == 1 else kind


def class_named(base: type, path: Any, name: str) -> type | None:
    """The subclass that a `class_path` names, or None for a dotted path that is not imported yet.

    Raises:
        ValueError: if no subclass has that short name.
    """
    if not isinstance(path, str):
        raise _error(name, "the name of a class", path)
    known = {
        cls.__name__: cls
        for cls in descendants(base)
        if not (cls.__name__.startswith("_") or inspect.isabstract(cls))
    }
    last = path.rpartition(".")[2]
    if "." not in path:
        if path not in known:
            raise ValueError(
                f"{name}: no {base.__name__} is called {path!r}; " + nearest(path, known)
            )
        return known[path]
    cls = known.get(last)
    package = path.partition(".")[0]
    return cls if cls is not None and cls.__module__.partition(".")[0] == package else None


def descendants(cls: type) -> list[type]:
    """A class and all of its subclasses that are imported, each once, the class itself first."""
    children: list[type] = type.__subclasses__(cls) if cls is not object else []
    found = [cls, *(each for child in children for each in descendants(child))]
    return list(dict.fromkeys(found))


def _checked_section(kind: type, value: Any, name: str, default: Any) -> Any:
    if not may_be_subclass(kind):
        return checked_mapping(kind, value, name)
    if isinstance(value, str):
        class_named(kind, value, name)
        return value
    if not isinstance(value, Mapping):
        raise _error(name, "class_path and init_args, or the name of a class", value)
    cls: type | None = type(default) if isinstance(default, kind) else None
    if "class_path" not in value and "init_args" not in value:
        for key in value:
            if near := near_names(str(key), ("class_path", "init_args")):
                raise ValueError(f"{name}.{key} is no field; did you mean {near[0]}?")
        return dict(value) if cls is None else checked_mapping(cls, value, name)
    for key in value:
        if key not in ("class_path", "init_args"):
            raise ValueError(f"{name}.{key} belongs under {name}.init_args")
    result = dict(value)
    if "class_path" in value:
        cls = class_named(kind, value["class_path"], f"{name}.class_path")
    if value.get("init_args") is None and "init_args" in value:
        raise _error(f"{name}.init_args", "a mapping", None)
    if cls is not None and "init_args" in value:
        result["init_args"] = checked_mapping(cls, value["init_args"], name)
    return result


def _checked_union(kinds: list[Any], value: Any, name: str) -> Any:
    messages = []
    for kind in kinds:
        try:
            result = checked(kind, value, name)
        except ValueError as error:
            messages.append(str(error))
            continue
        if type(result) is type(value):
            return result
        fitting = result
        break
    else:
        raise ValueError("; or ".join(messages))
    return value if float in kinds and isinstance(value, float) else fitting


def _checked_choice(choices: tuple[Any, ...], value: Any, name: str) -> Any:
    if value not in choices or (isinstance(value, bool) and bool not in map(type, choices)):
        raise _error(name, f"one of {', '.join(map(str, choices))}", value)
    return value


def _checked_sequence(kinds: tuple[Any, ...], value: Any, name: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise _error(name, "a list", value)
    if (len(kinds) == 2 and kinds[1] is Ellipsis) or len(kinds) == 1:
        kinds = kinds[:1] * len(value)
    if len(value) != len(kinds):
        raise _error(name, f"a list of {len(kinds)}", value)
    pairs = enumerate(zip(kinds, value, strict=True))
    new = [checked(kind, each, f"{name}[{i}]") for i, (kind, each) in pairs]
    same = all(one is other for one, other in zip(new, value, strict=True))
    return value if same else type(value)(new)


def _checked_simple(kind: Any, value: Any, name: str) -> Any:
    if kind is int:
        return whole(name, value)
    elif kind is float:
        found: type = type(value)
        if found is bool or not isinstance(value, numbers.Real):
            raise _error(name, "a number", value)
        return value if found in (int, float) else float(value)
    elif kind is bool:
        if not isinstance(value, bool):
            raise _error(name, "true or false", value)
    elif kind is str or kind is Path:
        if not isinstance(value, (str, kind)):
            raise _error(name, "text", value)
    elif kind is Any:
        _check_text_stays_text(value, name)
    return value


def _check_text_stays_text(value: Any, name: str) -> None:
    """Refuses quoted text that stands for a number: the parser would take it for one."""
    entries: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        entries = value.items()
    elif isinstance(value, list):
        entries = enumerate(value)
    elif isinstance(value, str) and value.strip() and not _is_text(value):
        raise ValueError(f"{name}: text that reads as something else is not taken, got {value!r}")
    for key, entry in entries:
        _check_text_stays_text(entry, f"{name}.{key}")


def _is_text(value: str) -> bool:
    try:
        return isinstance(parse_yaml(value), str)
    except YamlError:
        return True


def alternatives(kind: Any) -> list[Any]:
    """The members of a union, None for NoneType; else the type alone."""
    if get_origin(kind) in (Union, types.UnionType):
        return [None if each is type(None) else each for each in get_args(kind)]
    return [kind]


def join(name: str, key: Any) -> str:
    """The dotted name of a field within a section, which may have no name."""
    return f"{name}.{key}" if name else str(key)


def _error(name: str, expected: str, value: Any) -> ValueError:
    shown = "null" if value is None else repr(value)
    shown = shown if len(shown) < 80 else shown[:77] + "..."
    return ValueError(f"{name} must be {expected}, got {shown}")
