"""What one process of a comparison does: trains or draws, and leaves what pictures need."""

from __future__ import annotations

import shutil
import traceback
from pathlib import Path

import numpy as np
import torch
from compare_jobs import Job
from torch import Tensor

from vgs_rl.agents.baselines import Baseline, run_baseline
from vgs_rl.agents.run import RunConfig, config_of, load_run, parse_run, resolved_yaml, train
from vgs_rl.config import resolve_device
from vgs_rl.mdp import SamplingMDP
from vgs_rl.metrics import spread_rows
from vgs_rl.registry import find
from vgs_rl.run import RunFolder

SHOWN = 2_000  # final samples kept for the pictures


def run_agent(job: Job, *, resume: bool) -> bool:
    """Trains an agent into its run folder; False if it was interrupted."""
    torch.set_num_threads(job.threads)
    arguments = ["--config", str(job.file)]
    config = config_of(parse_run(arguments, trust=job.trust))
    if config.folder != job.folder:
        raise ValueError(f"{job.agent} calls itself {config.agent.name}: its folder is another's")
    report = None
    if resume:
        try:
            report = train(
                config,
                resolved_yaml(arguments, trust=job.trust),
                resume=job.folder,
                progress_bar=False,
                trust=job.trust,
            )
        except (ValueError, OSError):
            traceback.print_exc()
            print("starting anew")
            resume = False
    if not resume:
        shutil.rmtree(job.folder, ignore_errors=True)
        text = resolved_yaml(arguments, trust=job.trust)
        report = train(config, text, progress_bar=False)
    if report is None:
        return False
    keep_samples(job.folder, _final_samples(job, config))
    return True


def _final_samples(job: Job, config: RunConfig) -> Tensor | None:
    try:
        _, agent = load_run(job.folder, device=config.device, trust=job.trust)
        return agent.sampler().sample(SHOWN, config.evaluation.seed + 6).x
    except Exception:  # a picture less is no reason to lose a finished run
        traceback.print_exc()
        return None


def run_without_training(job: Job) -> bool:
    """Draws with a baseline into a run folder of the same form."""
    torch.set_num_threads(job.threads)
    config = config_of(parse_run(["--config", str(job.file)], trust=job.trust))
    target = find(config.env)
    mdp = SamplingMDP(
        target.make_energy(**config.env_args), config.mdp, device=resolve_device(config.device)
    )
    shutil.rmtree(job.folder, ignore_errors=True)
    folder = RunFolder(job.folder, job.text)
    try:
        run = Baseline(
            name=job.own_name,
            mdp=mdp,
            n=config.evaluation.n_samples,
            scale=job.scale,
            seed=config.seed,
        )
        _, samples = run_baseline(
            run, config.budget, config.evaluation, folder, target_name=target.name
        )
    finally:
        folder.close()
    keep_samples(job.folder, spread_rows(samples.x, SHOWN))
    return True


def keep_samples(folder: Path, x: Tensor | None) -> None:
    """Writes samples.npy, shape (n, D)."""
    if x is not None:
        np.save(folder / "samples.npy", x.float().cpu().numpy())
