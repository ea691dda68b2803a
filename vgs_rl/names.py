"""Names of code in a configuration: which there are, where they stand, and what they may name."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin, get_type_hints

from vgs_rl.energy import Energy
from vgs_rl.fields import alternatives, descendants, is_section, join, may_be_subclass
from vgs_rl.files.yaml_text import YamlError, parse_yaml

PACKAGE = "vgs_rl"
IMPORTS = f"{PACKAGE}.imports"  # key in the metadata of a field that takes an import path


def imports(expected: type, **options: Any) -> Any:
    """A dataclass field that takes an import path of a subclass of `expected`."""
    return field(metadata={IMPORTS: expected}, **options)


@dataclass(frozen=True)
class Name:
    """A name in a configuration.

    Attributes:
        field: dotted path of its field.
        text: the name as it is written: `my_module.Rule`, `Rule`, or `my_module:Rings` of a target.
        expected: the class that it has to be a subclass of; `object` where nothing is made of it.
        is_target: whether it names a target, which :func:`vgs_rl.registry.find` looks up.
    """

    field: str
    text: str
    expected: type
    is_target: bool = False

    @property
    def module(self) -> str:
        """The module that it comes from; empty where a registry or the package knows it."""
        if self.is_target:
            return self.text.partition(":")[0] if ":" in self.text else ""
        modules = [cls.__module__ for cls in _called(self.text, self.expected)]
        return next(filter(is_foreign, modules), self.text.rpartition(".")[0])

    @property
    def is_foreign(self) -> bool:
        """Whether it is no name of this package."""
        return is_foreign(self.module)


def is_foreign(module: str) -> bool:
    """Whether a module, by its dotted name, is no part of this package."""
    return module.partition(".")[0] not in ("", PACKAGE)


def _called(text: str, base: type) -> list[type]:
    """The classes that a name without a dot stands for, among those imported already."""
    return [cls for cls in descendants(base) if cls.__name__ == text]


def names_in(content: Any, schema: type) -> Iterator[Name]:
    """Every name in a configuration, wherever a parser could find it and import it."""
    yield from _visit(content, [schema], "", {})


def _visit(value: Any, kinds: list[Any], path: str, seen: dict[Any, Any]) -> Iterator[Name]:
    """Names in a value whose field may be any of these types."""
    classes: list[type] = [kind for kind in kinds if is_section(kind)]
    bases = [kind for kind in classes if may_be_subclass(kind)]
    if isinstance(value, str):
        if kinds and all(kind in (str, None) for kind in kinds):
            return
        inner = _loaded(value)
        if inner is not None:
            yield from _visit(inner, kinds, path, seen)
        elif bases:
            yield Name(path, value, bases[0])
        return
    if not isinstance(value, (dict, list, tuple)):
        return
    key = (id(value), tuple(map(str, kinds)))
    if key in seen:  # YAML's aliases may make a value part of itself
        return
    seen[key] = value
    if isinstance(value, (list, tuple)):
        inner_kinds = [arg for kind in kinds for arg in _members(kind) if arg is not Ellipsis]
        for i, each in enumerate(value):
            yield from _visit(each, inner_kinds, f"{path}[{i}]", seen)
        return
    value = _nested(value)
    chosen = value.get("class_path")
    if isinstance(chosen, str):
        yield Name(join(path, "class_path"), chosen, classes[0] if classes else object)
        named = [cls for cls in _family(classes) if cls.__name__ == chosen.rpartition(".")[2]]
        classes = named or classes
    fields = _fields(_family(classes))
    mapped = [get_args(kind)[1] for kind in kinds if get_origin(kind) is dict and get_args(kind)]
    for key, each in value.items():
        where = join(path, key)
        if key in ("init_args", "dict_kwargs"):
            yield from _visit_arguments(each, classes, where, seen)
            continue
        if key == "class_path" and isinstance(each, str):
            continue
        yield from _visit_field(each, fields.get(key, []), mapped, where, seen)


def _visit_arguments(
    value: Any, classes: list[type], path: str, seen: dict[Any, Any]
) -> Iterator[Name]:
    """Names in the arguments of a class that is named with them."""
    if isinstance(value, str):
        value = _loaded(value)
    if not isinstance(value, dict):
        return
    fields = _fields(_family(classes))
    for key, each in _nested(value).items():
        yield from _visit_field(each, fields.get(key, []), [], join(path, key), seen)


def _visit_field(
    value: Any,
    fields: list[tuple[Any, type | None]],
    others: list[Any],
    path: str,
    seen: dict[Any, Any],
) -> Iterator[Name]:
    for expected in {expected for _, expected in fields if expected is not None}:
        if isinstance(value, str):
            yield Name(path, value, expected, is_target=expected is Energy)
    kinds = [kind for hint, _ in fields for kind in alternatives(hint)]
    yield from _visit(value, kinds or others, path, seen)


def _loaded(text: str) -> Any:
    """What a parser reads out of a text: a mapping or a list, else None."""
    if not any(mark in text for mark in ":-[{&"):
        return None
    try:
        inner = parse_yaml(text)
    except YamlError:
        return None
    return inner if isinstance(inner, (dict, list)) else None


def _nested(value: Mapping[Any, Any]) -> dict[str, Any]:
    """`{"agent.objective": x}` as `{"agent": {"objective": x}}`."""
    result: dict[str, Any] = {}
    for key, each in value.items():
        first, dot, rest = str(key).removesuffix("+").partition(".")
        if dot:
            each = {rest: each}
            if isinstance(result.get(first), dict):
                each = {**result[first], **each}
        elif isinstance(result.get(first), dict) and isinstance(each, dict):
            each = {**result[first], **each}
        result[first] = each
    return result


def _fields(classes: Sequence[type]) -> dict[str, list[tuple[Any, type | None]]]:
    """Types of the fields of these dataclasses, and what they import."""
    result: dict[str, list[tuple[Any, type | None]]] = {}
    for cls in classes:
        for name, entry in _fields_of(cls).items():
            result.setdefault(name, []).append(entry)
    return result


@functools.cache
def _fields_of(cls: type) -> dict[str, tuple[Any, type | None]]:
    if not dataclasses.is_dataclass(cls):
        return {}
    try:
        hints = get_type_hints(cls)
    except Exception:  # a user's class may be annotated with what does not exist
        hints = {}
    return {
        each.name: (hints.get(each.name, Any), each.metadata.get(IMPORTS))
        for each in dataclasses.fields(cls)
    }


def _family(classes: Sequence[type]) -> list[type]:
    return [each for cls in classes for each in descendants(cls)]


def _members(kind: Any) -> list[Any]:
    members = get_args(kind) if get_origin(kind) in (list, tuple, Sequence, set) else ()
    return [each for member in members for each in alternatives(member)]
