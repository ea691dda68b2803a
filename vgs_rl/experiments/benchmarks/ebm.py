"""Energy-based models in the loop: what an update costs at published sizes, and stability."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from vgs_rl.agents import (
    EBMConfig,
    EBMTrainer,
    LangevinNegatives,
    NegativesConfig,
)
from vgs_rl.experiments.detectors.config import named_detector
from vgs_rl.experiments.detectors.jobs import build
from vgs_rl.experiments.tables import (
    Table,
    machine,
    print_machine,
    print_table,
    require_outputs,
    write_json,
)
from vgs_rl.training.config import BudgetConfig, resolve_device


def ebm(
    name: str = "mvtec",
    dim: int = 272,
    rows: int = 4 * 196,
    updates: int = 5,
    device: str = "auto",
    json: Path | None = None,
    trust: bool = False,
) -> None:
    """One update of energy and sampler at the published sizes, and Langevin's.

    The data are random unit vectors: only their shape matters here. Langevin walks are as long as
    gives the same number of energy evaluations an update.

    Args:
        name: a detector's configuration, a file of configs/ or the path of a YAML file.
        dim: dimension of a feature.
        rows: features in a batch; the published ones are the 14x14 positions of four images.
        updates: how many are timed, after one that is not.
        device: auto, cpu or cuda.
        json: also write the table to this file.
        trust: whether the YAML file may name code that is not this package's.
    """
    require_outputs(json)
    size = machine(torch.get_num_threads())
    print_machine(size)
    where = resolve_device(device)
    generator = torch.Generator().manual_seed(0)
    data = torch.nn.functional.normalize(torch.randn(8 * rows, dim, generator=generator), dim=-1)
    config = named_detector(name, trust=trust).ebm
    learner = replace(config.learner, batch_size=rows)
    config = replace(config, learner=learner, pretrain_steps=0, warmup=0)

    def timed(negatives: NegativesConfig) -> dict[str, float | str]:
        return _timed(replace(config, negatives=negatives), data.to(where), where, updates)

    table: Table = [timed(config.negatives)]
    each = float(table[0]["evaluations"]) - 2 * rows
    for persistent in (False, True):
        steps = max(1, round(each / learner.fresh) - 1)
        table.append(timed(LangevinNegatives(steps=steps, step_size=1e-4, persistent=persistent)))
    print_table(f"{name}: one update, D = {dim}, batch {rows}, T = {config.mdp.num_steps}", table)
    write_json({"machine": size, "rows": table}, json)


def _timed(
    config: EBMConfig, data: torch.Tensor, device: torch.device, updates: int
) -> dict[str, float | str]:
    trainer = EBMTrainer(data, config, device=device)
    synchronise: Callable[[], None] = (
        torch.cuda.synchronize if device.type == "cuda" else lambda: None
    )
    trainer.update()
    synchronise()
    before, seconds = trainer.counters.energy_evaluations, []
    for _ in range(updates):
        begin = time.perf_counter()
        trainer.update()
        synchronise()
        seconds.append(time.perf_counter() - begin)
    evaluations = (trainer.counters.energy_evaluations - before) / updates
    return {
        "negatives": config.negatives.name,
        "ms per update": 1e3 * float(np.mean(seconds)),
        "evaluations": evaluations,
        "us per evaluation": 1e6 * float(np.mean(seconds)) / evaluations,
    }


def stability(
    name: str = "ebm_digits",
    part: str = "3",
    updates: int = 10_000,
    factor: float = 10.0,
    seed: int = 0,
    json: Path | None = None,
    trust: bool = False,
) -> None:
    """Trains at three learning rates of E, `factor` apart around the configured one.

    Prints what the guards did, and whether every energy stayed finite.

    Args:
        name: a detector's configuration, a file of configs/ or the path of a YAML file.
        part: of its data.
        updates: of E, each.
        factor: between the learning rates.
        seed: of everything.
        json: also write the table to this file.
        trust: whether the YAML file may name code that is not this package's.
    """
    require_outputs(json)
    size = machine(torch.get_num_threads())
    print_machine(size)
    experiment = replace(named_detector(name, trust=trust), part=part, seed=seed)
    table: Table = []
    for scale in (1 / factor, 1.0, factor):
        learner = replace(experiment.ebm.learner, lr=scale * experiment.ebm.learner.lr)
        run = replace(experiment, ebm=replace(experiment.ebm, learner=learner))
        data, trainer = build(run)
        trainer.learn(BudgetConfig(updates=updates))
        scalars = {key: float(value) for key, value in trainer.update().items()}
        scores = trainer.score(data.validation.x.reshape(-1, data.dim))
        table.append(
            {
                "learning rate": learner.lr,
                "updates": trainer.counters.updates - 1,
                "finite": str(bool(torch.isfinite(scores).all())),
                "gap": scalars["train/energy_gap"],
                "skipped": int(scalars["train/ebm_skipped_updates"]),
                "lost negatives": int(scalars["train/lost_negatives"]),
                "rollbacks": int(scalars["train/ebm_rollbacks"]),
                "collapses": int(scalars["train/collapses"]),
                "restarts": int(scalars["train/restarts"]),
                "learning rate at the end": trainer.learner.lr,
                "seconds": trainer.counters.seconds,
            }
        )
    print_table(f"{name}, part {part}, seed {seed}", table)
    write_json({"machine": size, "rows": table}, json)
