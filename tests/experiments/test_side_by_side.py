"""Processes of comparisons and experiments: failures are named, and nobody outlives the parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import ROOT, load
from runs_of_tests import Toy, play

run_all = load("jobs").run_all


def test_every_failure_is_its_own_and_named(tmp_path: Path) -> None:
    (tmp_path / "done.done").write_text("")
    jobs = [Toy(name, tmp_path) for name in ("done", "full", "killed")]
    jobs.append(Toy("later", tmp_path, ready=False))
    failed = run_all(jobs, play, processes=2, reuse=True, progress_bar=False)
    assert set(failed) == {"full", "killed", "later"}
    assert failed["full"].startswith("OSError: [Errno 28] No space left on device (")
    assert failed["killed"].startswith("it was ended by SIGKILL (")
    assert failed["later"] == "it waited for a run that failed"
    assert "Traceback" in (tmp_path / "logs/full.log").read_text()


PARENT = """
import sys
from pathlib import Path
sys.path[:0] = [{scripts!r}, {tests!r}]
from runs_of_tests import Toy, play
from vgs_rl.experiments.jobs import run_all
if __name__ == "__main__":
    try:
        run_all([Toy("waits", Path({root!r}))], play, processes=1, progress_bar=False)
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_child_ends_with_its_parent(number: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    places = {"scripts": str(ROOT / "scripts"), "tests": str(ROOT / "tests")}
    script.write_text(PARENT.format(root=str(tmp_path), **places))
    parent = subprocess.Popen([sys.executable, str(script)])
    wait_for(lambda: (tmp_path / "pid").is_file() and bool((tmp_path / "pid").read_text()))
    child = int((tmp_path / "pid").read_text())
    parent.send_signal(number)
    assert parent.wait(60) == (130 if number == signal.SIGTERM else -signal.SIGKILL)
    wait_for(lambda: not alive(child))
    assert (tmp_path / "checkpoint").exists() == (number == signal.SIGTERM)


def wait_for(condition, patience: float = 120.0) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")  # one that nobody has waited for is no more
    try:
        return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
