"""The job script for SLURM: it parses, ends its training in order, and goes on after a requeue."""

import signal
import subprocess
import time
from pathlib import Path

import pytest
from commands import ROOT

SCRIPT = ROOT / "docs" / "guides" / "train.sbatch"
SRUN = """#!/usr/bin/env bash
echo "$@" >> calls
trap 'echo "checkpoint" >> calls; exit 130' TERM
mkdir -p run && touch run/config.yaml started
for _ in $(seq 100); do sleep 0.05; done
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then echo first; echo second; else echo "$@" >> calls; fi
"""


def test_the_job_script_parses() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)


def test_a_job_that_is_told_to_stop_is_requeued_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    for _ in range(2):
        (tmp_path / "started").unlink(missing_ok=True)
        job = subprocess.Popen(["bash", str(SCRIPT), "run", "gmm9", "--seed", "1"], cwd=tmp_path)
        deadline = time.time() + 20
        while not (tmp_path / "started").exists():
            assert time.time() < deadline and job.poll() is None
            time.sleep(0.01)
        job.send_signal(signal.SIGTERM)
        assert job.wait(timeout=20) == 130
    first, saved, requeued, second, *_ = (tmp_path / "calls").read_text().splitlines()
    assert first.endswith("-m vgs_rl train gmm9 --seed 1") and "first:29500" in first
    assert (saved, requeued) == ("checkpoint", "requeue 17")
    assert second.endswith("-m vgs_rl train --resume run")
