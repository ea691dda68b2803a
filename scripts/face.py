"""What the scripts share: they are faces of the commands in :mod:`vgs_rl.experiments.commands`."""

from __future__ import annotations

import importlib
import os
import sys
from types import TracebackType
from typing import NoReturn


def _ended_by(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr, flush=True)
        os._exit(130)
    sys.__excepthook__(kind, error, trace)


sys.excepthook = _ended_by  # Ctrl-C while the package is imported is no traceback


def show(command: str) -> NoReturn:
    """Runs a command with the options of this process, and ends it with the command's status."""
    main = importlib.import_module(f"vgs_rl.experiments.commands.{command}").main
    sys.exit(main(sys.argv[1:]))
