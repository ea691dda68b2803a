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
from typing import Any, NoReturn

STANDARD = Path("-")  # as a file to write: standard output

Main = Callable[[list[str]], int]


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


# --- types of arguments; each takes its own result, too, as jsonargparse does --------------------


def switch(value: Any) -> bool:
    """`true` or `false`."""
    if str(value).lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"must be true or false, got {value!r}")
    return str(value).lower() == "true"


def whole(least: int = 1) -> Callable[[Any], int]:
    """A whole number of at least `least`; `1e4` is one."""

    def read(value: Any) -> int:
        from vgs_rl.checks import count_of

        return _checked(lambda: count_of("it", _number(value), least=least))

    return read


def seed(value: Any) -> int:
    """A seed."""
    from vgs_rl.checks import seed_of

    return _checked(lambda: seed_of(_number(value), "it"))


def _number(value: Any) -> Any:
    from vgs_rl.yaml_text import plain_scalar

    return plain_scalar(value) if isinstance(value, str) else value


def _checked(read: Callable[[], int]) -> int:
    try:
        return read()
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("it ")) from error


def one_of(*choices: str) -> Callable[[Any], str]:
    """One of these words."""

    def read(value: Any) -> str:
        if value not in choices:
            raise argparse.ArgumentTypeError(f"must be one of {', '.join(choices)}, got {value!r}")
        return str(value)

    return read


def device(value: Any) -> str:
    """A device that exists here."""
    from vgs_rl.config import resolve_device

    try:
        resolve_device(str(value))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return str(value)


def output(value: Any) -> Path:
    """A file to write, or `-`, which is standard output."""
    return STANDARD if str(value) == "-" else output_file(value)


def output_file(value: Any) -> Path:
    """A file that can be written: its folder exists, or can be made."""
    path = Path(value)
    if not str(value) or path.is_dir():
        raise argparse.ArgumentTypeError(f"must be a file to write, got {str(value)!r}")
    _require_writable(path.parent, path)
    if path.exists() and not os.access(path, os.W_OK):
        raise argparse.ArgumentTypeError(f"{path} cannot be written: no permission")
    return path


def output_folder(value: Any) -> Path:
    """A folder that can be written to: it exists, or can be made."""
    _require_writable(Path(value), Path(value))
    return Path(value)


def _require_writable(folder: Path, what: Path) -> None:
    """Tries to write where `folder` is or would be made."""
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise argparse.ArgumentTypeError(f"{what} cannot be written: {existing} is no folder")
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(bytes(4096))
    except OSError as error:
        reason = error.strerror or error
        raise argparse.ArgumentTypeError(f"{what} cannot be written: {reason}") from error
