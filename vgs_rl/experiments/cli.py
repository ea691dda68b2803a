"""What all commands share: one line for a mistake, exit codes, pipes, Ctrl-C, checked arguments.

Exit codes: 0 done, 1 done but something failed, 2 a mistake of the user's, 130 interrupted.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import io
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from vgs_rl.checks import one_line

if TYPE_CHECKING:
    from vgs_rl.files.shipped import Kind

STANDARD = Path("-")  # as a file to write: standard output

Main = Callable[[list[str]], int]
T = TypeVar("T")


_called: dict[str, str] = {}


def command_named(name: str, typed: str) -> Main:
    """The `main` of a command.

    Args:
        name: such as `train-ebm`.
        typed: how the user calls it, for its messages: `vgs-rl train`, `python scripts/train.py`.
    """
    _called[name] = typed
    main: Main = module_of(name).main
    return main


def module_of(name: str) -> ModuleType:
    """The module of a command; importing it imports PyTorch."""
    return importlib.import_module(f"vgs_rl.experiments.commands.{name.replace('-', '_')}")


def called(name: str) -> str:
    """How the user calls a command."""
    return _called.get(name, f"vgs-rl {name}")


class Mistake(ValueError):
    """A command line that cannot be used; the message names the option."""


def command(main: Main) -> Main:
    """A `main` whose user's mistakes are one line and exit code 2; SIGTERM is Ctrl-C."""

    @functools.wraps(main)
    def guarded(arguments: list[str]) -> int:
        from vgs_rl.training.loop import handling, interrupt

        output = sys.stdout
        for stream in (output, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # an ASCII terminal shows `?` for the rest
                stream.reconfigure(errors="replace")
        sys.stdout = _Output(output)
        try:
            with handling(interrupt):
                return main(arguments)
        except SystemExit as end:
            if end.code is None or isinstance(end.code, int):
                return end.code or 0
            print(end.code, file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except (OSError, ValueError, ImportError) as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
            return 2
        except (MemoryError, RuntimeError) as error:
            if isinstance(error.__cause__, KeyboardInterrupt):  # in a class statement, Python 3.11
                print("interrupted", file=sys.stderr)
                return 130
            if not isinstance(error, MemoryError) and "memory" not in str(error):
                raise
            print(f"error: not enough memory: {one_line(error)}", file=sys.stderr)
            return 1
        finally:
            sys.stdout.flush()
            sys.stdout = output

    return guarded


class _Output(io.TextIOBase):
    """Standard output that goes on when its reader has gone, as in `vgs-rl list | head`."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return str(getattr(self.stream, "encoding", None) or "utf-8")

    def write(self, text: str) -> int:
        try:
            self.stream.write(text)
        except BrokenPipeError:
            self._leave()
        return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except BrokenPipeError:
            self._leave()

    def isatty(self) -> bool:
        return bool(self.stream.isatty())

    def fileno(self) -> int:
        return int(self.stream.fileno())

    def _leave(self) -> None:
        """What is written from now on goes nowhere."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Help that shows every default as the user would type it."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        if not action.option_strings or default is argparse.SUPPRESS or "default" in text:
            return text
        shown = str(default).lower() if isinstance(default, bool) else default or "none"
        return f"{text} (default: {shown})".replace("%", "%%")


class Parser(argparse.ArgumentParser):
    """A command line without abbreviations; a mistake is a :class:`Mistake`, with what is near.

    Args:
        document: what the command does, for --help.
        name: the command's.
    """

    def __init__(self, document: str | None, name: str) -> None:
        super().__init__(
            prog=called(name),
            description=document,
            formatter_class=_Help,
            allow_abbrev=False,
        )

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The options; nothing may be left over.

        Raises:
            Mistake: naming the option, the value and what was expected.
        """
        options, unknown = self.parse_known_args(list(arguments))
        if unknown:
            from vgs_rl.fields import nearest

            word = unknown[0].partition("=")[0]
            if not word.startswith("-"):
                raise Mistake(f"there is nothing to do with {word!r}")
            known = [name for name in self._option_string_actions if name.startswith("--")]
            raise Mistake(f"there is no option {word}; {nearest(word, known)}")
        return options

    def error(self, message: str) -> NoReturn:
        """A mistake, where argparse would print its usage and exit."""
        raise Mistake(message.removeprefix("argument "))


def with_files(arguments: Sequence[str], parser: argparse.ArgumentParser, kind: Kind) -> list[str]:
    """A command line in which a configuration's name, `gmm9`, is `--config` and its file.

    Args:
        arguments: the command line; what is neither an option nor an option's value is a name.
        parser: the command's, which knows the options without a value.
        kind: what the configurations are of.

    Raises:
        ConfigError: with the nearest names, if there is none.
    """
    from vgs_rl.training.config import config_file

    result, tokens = list[str](), list(arguments)
    while tokens:
        token = tokens.pop(0)
        if not token.startswith("-"):
            result += ["--config", str(config_file(token, kind))]
            continue
        result.append(token)
        action = parser._option_string_actions.get(token)
        alone = "=" in token or (action is not None and action.nargs == 0)
        if tokens and not alone:
            result.append(tokens.pop(0))
    return result


def add_training_options(parser: argparse.ArgumentParser, what: str, result: str) -> None:
    """Adds what every command that trains has.

    Args:
        parser: the command's.
        what: it trains: `run`, `experiment`.
        result: it writes as JSON: `report`, `table`.
    """
    add = parser.add_argument
    add("--resume", type=Path, default=None, help=f"{what} folder to go on with")
    add("--overwrite", type=switch, default=False, help=f"replace an existing {what} folder")
    add("--progress", type=switch, default=True, help="show a progress bar")
    add("--json", type=output, default=None, help=f"also write the {result} here; - is stdout")
    add("--print_config", action="store_true", help="print the configuration and exit")


# --- types of arguments --------------------------------------------------------------------------


class Argument(Generic[T]):
    """Reads a text; its own result, too, as jsonargparse asks.

    Args:
        name: what it is, for --help.
        read: raises a ValueError that says what was expected.
    """

    def __init__(self, name: str, read: Callable[[Any], T]) -> None:
        self.name, self.read = name, read

    def __call__(self, value: Any) -> T:
        """The value; argparse puts the option's name before what is raised."""
        try:
            return self.read(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix("it ")) from error

    def __repr__(self) -> str:
        return self.name


def _switch(value: Any) -> bool:
    if str(value).lower() not in ("true", "false"):
        raise ValueError(f"must be true or false, got {value!r}")
    return str(value).lower() == "true"


def _number(value: Any) -> Any:
    from vgs_rl.files.yaml_text import plain_scalar

    return plain_scalar(value) if isinstance(value, str) else value


def _seed(value: Any) -> int:
    from vgs_rl.checks import seed_of

    return seed_of(_number(value), "it")


def _positive(value: Any) -> float:
    from vgs_rl.checks import require_positive

    number = _number(value)
    require_positive("it", value=number)
    return float(number)


def _device(value: Any) -> str:
    from vgs_rl.training.config import resolve_device

    resolve_device(str(value))
    return str(value)


def _output_file(value: Any) -> Path:
    path = Path(value)
    if not str(value) or path.is_dir():
        raise ValueError(f"must be a file to write, got {str(value)!r}")
    _require_writable(path.parent, path)
    if path.exists() and not os.access(path, os.W_OK):
        raise ValueError(f"{path} cannot be written: no permission")
    return path


def _output(value: Any) -> Path:
    return STANDARD if str(value) == "-" else _output_file(value)


def _output_folder(value: Any) -> Path:
    _require_writable(Path(value), Path(value))
    return Path(value)


def _require_writable(folder: Path, what: Path) -> None:
    """Tries to write where `folder` is or would be made."""
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise ValueError(f"{what} cannot be written: {existing} is no folder")
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(bytes(4096))
    except OSError as error:
        raise ValueError(f"{what} cannot be written: {error.strerror or error}") from error


switch = Argument("true or false", _switch)
seed = Argument("seed", _seed)
positive = Argument("positive number", _positive)
device = Argument("device", _device)
output_file = Argument("file", _output_file)
output = Argument("file, or - for standard output", _output)
output_folder = Argument("folder", _output_folder)


def whole(least: int = 1) -> Argument[int]:
    """A whole number of at least `least`; `1e4` is one."""

    def read(value: Any) -> int:
        from vgs_rl.checks import count_of

        return count_of("it", _number(value), least=least)

    return Argument(f"whole number from {least}", read)


def one_of(*choices: str) -> Argument[str]:
    """One of these words."""

    def read(value: Any) -> str:
        if value not in choices:
            from vgs_rl.fields import near_names

            near = near_names(str(value), choices)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"must be one of {', '.join(choices)}, got {value!r}{hint}")
        return str(value)

    return Argument(" or ".join(choices), read)
