"""The gate between names in files and imports.

A configuration, a run folder and an exported sampler name code: a target (`my_module:Rings`) or a
class (`class_path: my_module.Rule`). By itself a file may name registered targets and classes of
this package. Any other name needs the user's word, `trust=True` or `--trust true`. It is announced
before it is imported, and it must be what its field expects before it is called.

What the user types (an option, an argument of a Python function) is the user's word for exactly
that name.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin, get_type_hints

from vgs_rl.energy import Energy
from vgs_rl.fields import alternatives, descendants, is_section, join, may_be_subclass
from vgs_rl.files.yaml_text import YamlError, parse_yaml

PACKAGE = "vgs_rl"
IMPORTS = f"{PACKAGE}.imports"  # key in the metadata of a field that takes an import path

# True trusts every name of a file, a set these names alone, False none.
Trust = bool | frozenset[str]


class ImportFailed(ModuleNotFoundError, ValueError):
    """A module that was named cannot be had; the message gives module and reason."""


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
        return next(filter(_is_foreign, modules), self.text.rpartition(".")[0])

    @property
    def is_foreign(self) -> bool:
        """Whether it is no name of this package."""
        return _is_foreign(self.module)


def _is_foreign(module: str) -> bool:
    return module.partition(".")[0] not in ("", PACKAGE)


# --- the gate ------------------------------------------------------------------------------------


def admit(content: Mapping[str, Any], schema: type, *, file: str, trust: Trust = False) -> None:
    """Lets the names in a file's content through, or refuses the file; nothing is called.

    Args:
        content: what the file holds, before any parser sees it.
        schema: the dataclass that it configures.
        file: its path, for messages.
        trust: the user's word.

    Raises:
        ValueError: naming file, field and name, if it is foreign (and how to trust it), or not what
            its field expects.
    """
    for name in names_in(content, schema):
        owner = f"{file}: {name.field}"
        if name.is_foreign:
            if trust is not True and name.text not in (trust or ()):
                raise ValueError(
                    f"{file}: {name.field} names {name.text!r}, which is no class or target of "
                    f"{PACKAGE}: loading the file would run code of {name.module}. If you trust "
                    "the file, say --trust true (in Python trust=True)"
                )
            _announce(name, file)
        _resolve(name, owner)


def names_of(text: str, schema: type) -> frozenset[str]:
    """The names in a configuration's YAML that has been let through, to pass on the user's word."""
    return frozenset(name.text for name in names_in(parse_yaml(text), schema))


def admit_typed(arguments: Sequence[str], schema: type) -> Trust:
    """The user's word in a command line: `--trust true`, or the names that are typed in it.

    Imports the classes among these names, which may lie in the current folder.

    Raises:
        ValueError: if one cannot be imported, or is not what its option expects.
    """
    typed = set()
    for key, value in _options(arguments):
        content: Any = value
        for part in reversed(key.split(".")):
            content = {part: content}
        for name in names_in(content, schema):
            typed.add(name.text)
            _resolve(name, name.field)
    return says_trust(arguments) or frozenset(typed)


def says_trust(arguments: Sequence[str]) -> bool:
    """Whether a command line holds `--trust true`."""
    said = [value for key, value in _options(arguments) if key == "trust"]
    return bool(said) and said[-1].lower() == "true"


def load(name: str, *, owner: str) -> tuple[types.ModuleType, str]:
    """Imports the module of `module:rest`; the current folder comes last on the path.

    Args:
        name: with a colon.
        owner: the field, for messages.

    Raises:
        ImportFailed: naming module and reason.
    """
    module, _, rest = name.partition(":")
    return _import(module, owner), rest


def load_class(path: str, expected: type, *, owner: str) -> Any:
    """Imports what an import path names: a class, or a function annotated to return one.

    Args:
        path: such as `my_module.Net`.
        expected: the class that it must be a subclass of.
        owner: the field, for messages.

    Raises:
        ImportFailed: naming module and reason.
        ValueError: if there is no such class, or it is not what is expected.
    """
    parts = path.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise ValueError(f"{owner} must be an import path such as my_module.Name, got {path!r}")
    found: Any = _import(parts[0], owner)
    for i, part in enumerate(parts[1:], 2):
        if not hasattr(found, part) and isinstance(found, types.ModuleType) and i < len(parts):
            _import(".".join(parts[:i]), owner)
        if not hasattr(found, part):
            raise ValueError(f"{owner}: {'.'.join(parts[: i - 1])} has no {part!r}")
        found = getattr(found, part)
    require(found, expected, name=path, owner=owner)
    return found


def require(found: Any, expected: type, *, name: str, owner: str) -> None:
    """Checks what a name stands for, before it is called.

    Args:
        found: what was imported: a class, or a function whose annotation says what it returns.
        expected: the class that it must be or return a subclass of.
        name: the name.
        owner: the field, for messages.

    Raises:
        ValueError: if it is anything else.
    """
    made = found
    if inspect.isfunction(found):
        try:
            made = get_type_hints(found).get("return")
        except Exception:  # an annotation that cannot be evaluated promises nothing
            made = None
    if not (inspect.isclass(made) and issubclass(made, expected)):
        kind = "a class" if inspect.isclass(found) else f"a {type(found).__name__}"
        kind = "a function without that annotation" if inspect.isfunction(found) else kind
        raise ValueError(
            f"{owner}: {name} must be a subclass of {expected.__module__.partition('.')[0]}."
            f"{expected.__name__}, or a function annotated to return one, got {kind}"
        )


@functools.cache  # a command reads its file more than once
def _announce(name: Name, file: str) -> None:
    """Says what is imported, from where, for which file."""
    top = name.module.partition(".")[0]
    try:
        _append_current_folder()
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError, AttributeError):
        spec = None
    origin = "" if spec is None or spec.origin is None else f" from {spec.origin}"
    text = f"trusting {file}: {name.field} imports {name.text}{origin}"
    print(text, file=sys.stderr, flush=True)


def _resolve(name: Name, owner: str) -> None:
    """Imports a class and checks that it is one its field expects."""
    if name.is_target and name.is_foreign:
        _import(name.module, owner)
    if name.is_target or name.expected is object or "." not in name.text:
        return
    found = load_class(name.text, name.expected, owner=owner)
    if not name.is_foreign and _is_foreign(getattr(found, "__module__", "")):
        raise ValueError(f"{owner}: {name.text} is no class of {PACKAGE}")


def _called(text: str, base: type) -> list[type]:
    """The classes that a name without a dot stands for, among those imported already."""
    return [cls for cls in descendants(base) if cls.__name__ == text]


def _import(module: str, owner: str) -> types.ModuleType:
    if not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(f"{owner}: {module!r} is no name of a module")
    if module.partition(".")[0] != PACKAGE:
        _append_current_folder()
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module + ".").startswith(error.name + "."):
            raise ImportFailed(
                f"{owner} needs the module {module}, which cannot be imported: no module named "
                f"{error.name!r} in the current folder or on the path"
            ) from error
        raise ImportFailed(_reason(module, owner, error)) from error
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise ImportFailed(_reason(module, owner, error)) from error


def _reason(module: str, owner: str, error: BaseException) -> str:
    """One line: what an import raised, and where."""
    at = ""
    if isinstance(error, SyntaxError):
        at = f" ({os.path.basename(error.filename or '?')}, line {error.lineno})"
        message = error.msg
    else:
        message = " ".join(str(error).split())
        frames = traceback.extract_tb(error.__traceback__)
        if frames and "importlib" not in frames[-1].filename:
            at = f" ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})"
    kind = type(error).__name__
    return f"{owner}: the module {module} fails when it is imported: {kind}: {message}{at}"


def _append_current_folder() -> None:
    """A user's modules may lie in the current folder; it comes last, and shadows nothing."""
    folder = os.getcwd()
    if "" not in sys.path and folder not in sys.path:
        sys.path.append(folder)
        importlib.invalidate_caches()


# --- where names stand ---------------------------------------------------------------------------


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
    """Names in the arguments of a class that is named beside them."""
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


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Options of a command line with their values: `--key=value` and `--key value`."""
    for i, argument in enumerate(arguments):
        key, equals, value = argument.partition("=")
        if not key.startswith("--"):
            continue
        if not equals:
            value = arguments[i + 1] if i + 1 < len(arguments) else ""
        yield key[2:], value
