"""What all commands share: one line for a mistake, exit codes, pipes, Ctrl-C, checked arguments.

Exit codes: 0 done, 1 done but something failed, 2 a mistake of the user's, 130 interrupted. It is
imported first and imports nothing heavy, so that Ctrl-C while others are imported is no traceback.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import NoReturn

LARGEST_SEED = 2**63 - 1

Main = Callable[[list[str]], int]


class Mistake(ValueError):
    """A command line that cannot be used; the message names the option."""


def _without_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr, flush=True)
        os._exit(130)
    sys.__excepthook__(kind, error, trace)


def guard_imports() -> None:
    """Ends a command by Ctrl-C with one word, from now on: its imports take seconds."""
    sys.excepthook = _without_traceback


def command(main: Main) -> Main:
    """A `main` whose mistakes of the user's are one line and exit code 2."""

    @functools.wraps(main)
    def guarded(arguments: list[str]) -> int:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # an ASCII terminal shows `?` for the rest
                stream.reconfigure(errors="replace")
        output = sys.stdout
        sys.stdout = _Output(output)
        try:
            return main(arguments)
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else 0 if end.code is None else 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except (OSError, ValueError, ImportError) as error:
            print(f"error: {_one_line(error)}", file=sys.stderr)
            return 2
        except (MemoryError, RuntimeError) as error:
            if not (isinstance(error, MemoryError) or "memory" in str(error).lower()):
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

    def __init__(self, stream: io.TextIOBase) -> None:
        self.stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return str(getattr(self.stream, "encoding", "utf-8"))

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

    def _leave(self) -> None:
        """What is written from now on goes nowhere."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()


class Parser(argparse.ArgumentParser):
    """A command line without abbreviations; a mistake is a :class:`Mistake`, with what is near."""

    def __init__(self, document: str | None) -> None:
        super().__init__(
            description=document,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.options: list[str] = []

    def option(
        self,
        name: str,
        *,
        help: str,
        type: Callable[[str], object] = str,
        default: object = None,
    ) -> None:
        """Adds an option that takes one value."""
        self.options.append(name)
        self.add_argument(name, help=help, type=type, default=default)

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The options; nothing may be left over."""
        options, unknown = self.parse_known_args(list(arguments))
        if unknown:
            word = unknown[0].partition("=")[0]
            if not word.startswith("-"):
                raise Mistake(f"there is nothing to do with {word!r}")
            raise Mistake(f"there is no option {word}; {nearest(word, self.options)}")
        return options

    def error(self, message: str) -> NoReturn:
        """Instead of usage and exit."""
        raise Mistake(message.removeprefix("argument "))


def nearest(word: str, known: Iterable[str]) -> str:
    """The nearest known words, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(word.lower(), [each.lower() for each in known], n=3)
    found = [each for each in known if each.lower() in near]
    return f"did you mean {', '.join(found)}?" if found else f"there are {', '.join(known)}"


# --- types of arguments ---------------------------------------------------------------------------


def switch(text: str) -> bool:
    """`true` or `false`."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"must be true or false, got {text!r}")
    return text.lower() == "true"


def whole(least: int = 1, most: int | None = None) -> Callable[[str], int]:
    """A whole number in a range; `1e4` is one."""

    def read(text: str) -> int:
        try:
            number = int(text) if text.lstrip("+-").isdigit() else _integral(float(text))
        except (ValueError, OverflowError) as error:
            raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from error
        if number < least or (most is not None and number > most):
            limits = f"at least {least}" + ("" if most is None else f" and at most {most}")
            raise argparse.ArgumentTypeError(f"must be {limits}, got {text}")
        return number

    return read


def _integral(number: float) -> int:
    if not number.is_integer():
        raise ValueError
    return int(number)


seed = whole(0, LARGEST_SEED)


def one_of(*choices: str) -> Callable[[str], str]:
    """One of these words."""

    def read(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"must be one of {', '.join(choices)}, got {text!r}")
        return text

    return read


def output_file(text: str) -> Path:
    """A file that can be written: its folder exists, or can be made."""
    path = Path(text)
    if not text or path.is_dir():
        raise argparse.ArgumentTypeError(f"must be a file to write, got {text!r}")
    require_writable(path.parent, f"{text!r} cannot be written")
    if path.exists() and not os.access(path, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written: no permission")
    return path


def output_folder(text: str) -> Path:
    """A folder that exists or can be made, and can be written to."""
    require_writable(Path(text), f"{text!r} cannot be written to")
    return Path(text)


def output(text: str) -> Path | None:
    """A file to write, or None for `-`, which is standard output."""
    return STANDARD if text == "-" else output_file(text)


STANDARD = Path("-")


def require_writable(folder: Path, what: str) -> None:
    """Refuses a folder that nothing can be written into, its nearest parent where there is none.

    Raises:
        argparse.ArgumentTypeError: saying why.
    """
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise argparse.ArgumentTypeError(f"{what}: {existing} is no folder")
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"0" * 4096)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{what}: {error.strerror or error}") from error
