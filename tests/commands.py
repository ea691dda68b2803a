"""The project's commands as a user runs them: in other folders, here or as processes."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vgs_rl.training.folder import RunFolder

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))  # vgs_rl_main, where this checkout is not installed
PATIENCE = 300.0  # seconds


def run(script: str, *arguments: object, folder: Path, status: int = 0) -> tuple[str, str]:
    """Runs a script in a folder and expects its exit status; returns stdout and stderr."""
    process = _start(script, *arguments, folder=folder)
    out, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == status, out + error
    return out, error


def call(name: str, *arguments: object, folder: Path, status: int = 0) -> tuple[str, str]:
    """Does in this process what :func:`run` does in one that has to import PyTorch first."""
    out, error = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        patch.setenv("OMP_NUM_THREADS", "1")  # a command that starts processes sets theirs
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            found = load(f"commands.{name}").main([*map(str, arguments)])
    assert found == status, out.getvalue() + error.getvalue()
    return out.getvalue(), error.getvalue()


@contextlib.contextmanager
def without_pictures() -> Iterator[None]:
    """Runs in this process draw nothing: their pictures take longer than a small training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "draw", lambda *_, **__: None)
        yield


def run_until_ctrl_c(script: str, *arguments: object, folder: Path, metrics: Path) -> str:
    """Presses Ctrl-C when a file has some records, expects an orderly end; returns stdout."""
    process, deadline = _start(script, *arguments, folder=folder), time.time() + PATIENCE
    while not (metrics.exists() and metrics.read_text().count("\n") > 3):
        assert process.poll() is None and time.time() < deadline, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, out + error
    return out


def load(name: str) -> ModuleType:
    """A module of the experiments, such as `commands.train`."""
    return importlib.import_module(f"vgs_rl.experiments.{name}")


def _start(script: str, *arguments: object, folder: Path) -> subprocess.Popen[Any]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / script), *map(str, arguments)],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
