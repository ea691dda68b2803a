"""What one process of a comparison does: trains or draws into a run folder."""

from __future__ import annotations

import traceback

import torch

from vgs_rl.experiments.baselines import run_baseline
from vgs_rl.experiments.comparison.jobs import Job
from vgs_rl.experiments.config import saved_config
from vgs_rl.experiments.run import train
from vgs_rl.files.lock import FolderInUse
from vgs_rl.training.config import resolve_device
from vgs_rl.training.folder import RunFolder
from vgs_rl.training.identity import settings_of


def run_job(job: Job) -> bool:
    """One run, from its last checkpoint if this very run was begun; whether it came to its end."""
    torch.set_num_threads(job.threads)
    return _draw(job) if job.baseline else _train(job)


def _train(job: Job) -> bool:
    if _begun(job):
        # A report without all that belongs to it, or of other settings, is no result.
        (job.folder / "report.json").unlink(missing_ok=True)
        try:
            report = train(job.config, resume=job.folder, progress_bar=False, trust=job.trust)
            return report is not None
        except FolderInUse:
            raise
        except (ValueError, OSError):
            traceback.print_exc()
            print("starting anew")
    return train(job.config, overwrite=True, progress_bar=False) is not None


def _begun(job: Job) -> bool:
    """Whether the run folder holds a run of the very same settings."""
    try:
        was = saved_config(job.folder, trust=job.trust)
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        traceback.print_exc()
        print("starting anew")
        return False
    return settings_of(was) == settings_of(job.config)


def _draw(job: Job) -> bool:
    baseline = job.make_baseline(resolve_device(job.config.device))
    with RunFolder(job.folder, job.config.to_yaml(), overwrite=True) as folder:
        run_baseline(
            baseline,
            job.config.budget,
            job.config.evaluation,
            folder,
            target_name=job.env,
            details={"settings": job.identity},
        )
    return True
