"""What all commands share: one line for a mistake, exit codes, pipes, Ctrl-C, checked arguments.

Exit codes: 0 done, 1 done but something failed, 2 a mistake of the user's, 130 interrupted. This
module is a command's first import and imports nothing heavy itself: Ctrl-C while the others are
imported is no traceback.
"""

from __future__ import annotations

import argparse
import functools
import io
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, NoReturn, TypeVar

STANDARD = Path("-")  # as a file to write: standard output

Main = Callable[[list[str]], int]
T = TypeVar("T")


def _ended_by(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr, flush=True)
        os._exit(130)
    sys.__excepthook__(kind, error, trace)


if sys.excepthook is sys.__excepthook__:
    sys.excepthook = _ended_by  # until `command` takes over, and after a second Ctrl-C


class Mistake(ValueError):
    """A command line that cannot be used; the message names the option."""


def command(main: Main) -> Main:
    """A `main` whose user's mistakes are one line and exit code 2."""

    @functools.wraps(main)
    def guarded(arguments: list[str]) -> int:
        output = sys.stdout
        for stream in (output, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # an ASCII terminal shows `?` for the rest
                stream.reconfigure(errors="replace")
        sys.stdout = _Output(output)
        try:
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
            print(f"error: {_one_line(error)}", file=sys.stderr)
            return 2
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and "memory" not in str(error):
                raise
            print(f"error: not enough memory: {_one_line(error)}", file=sys.stderr)
            return 1
        finally:
            sys.stdout.flush()
            sys.stdout = output

    return guarded


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines) or type(error).__name__


class _Output(io.TextIOBase):
    """Standard output that goes on when its reader has gone, as in `train.py … | head`."""

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


class Parser(argparse.ArgumentParser):
    """A command line without abbreviations; a mistake is a :class:`Mistake`, with what is near.

    Args:
        document: what the command does, for --help.
    """

    def __init__(self, document: str | None) -> None:
        super().__init__(
            description=document,
            formatter_class=argparse.RawDescriptionHelpFormatter,
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
            raise ValueError(f"must be one of {', '.join(choices)}, got {value!r}")
        return str(value)

    return Argument(" or ".join(choices), read)
