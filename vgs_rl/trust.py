"""The gate between names in files and imports.

A configuration, a run folder and an exported sampler name code: a target (`my_module:Rings`) or a
class (`class_path: my_module.Rule`). By itself a file may name registered targets and classes of
this package. Any other name needs the user's word, `trust=True` or `--trust true`. It is announced
before it is imported, and it must be what its field expects before it is called.

What the user types (an option, an argument of a Python function) is the user's word for exactly
that name.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_type_hints

from vgs_rl.checks import one_line
from vgs_rl.files.yaml_text import parse_yaml
from vgs_rl.names import PACKAGE, Name, is_foreign, names_in

# True trusts every name of a file, a set these names alone, False none.
Trust = bool | frozenset[str]


class ImportFailed(ModuleNotFoundError, ValueError):
    """A module that was named cannot be had; the message gives module and reason."""


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
    if not name.is_foreign and is_foreign(getattr(found, "__module__", "")):
        raise ValueError(f"{owner}: {name.text} is no class of {PACKAGE}")


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
        message = one_line(error)
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


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Options of a command line with their values: `--key=value` and `--key value`."""
    for i, argument in enumerate(arguments):
        key, equals, value = argument.partition("=")
        if not key.startswith("--"):
            continue
        if not equals:
            value = arguments[i + 1] if i + 1 < len(arguments) else ""
        yield key[2:], value
