"""What the scripts share: each is a face of a command of `vgs-rl`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

sys.path.append(str(Path(__file__).parents[1]))  # the folder of vgs_rl_main.py

from vgs_rl_main import run_command


def show(command: str) -> NoReturn:
    """Runs a command with the options of this process, and ends it with the command's status."""
    sys.exit(run_command(command, sys.argv[1:], typed=f"python {sys.argv[0]}"))
