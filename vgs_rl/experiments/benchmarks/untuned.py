"""Targets that nobody tuned for, sampled without any setting."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vgs_rl.energy import Energy
from vgs_rl.envs import FortyModes, Rosenbrock, StudentT, TwoModes
from vgs_rl.experiments.automatic import sample
from vgs_rl.experiments.tables import (
    Table,
    machine,
    markdown_table,
    print_machine,
    print_table,
    require_section,
    write_json,
    write_section,
)
from vgs_rl.fields import nearest

Density = Callable[[Tensor], Tensor]  # minus a normalised log density, (B, D) -> (B,)

HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)


def _gaussian(std: tuple[float, ...], mean: float = 0.0) -> Density:
    def energy(x: Tensor) -> Tensor:
        scale = torch.tensor(std).to(x)
        constant = scale.log().sum() + len(std) * HALF_LOG_TAU
        return 0.5 * ((x - mean) / scale).square().sum(-1) + constant

    return energy


def _normalised(energy: Energy) -> tuple[int, Density]:
    """D and a plain function, which has neither exact samples nor log Z."""
    log_z = energy.log_z
    assert log_z is not None
    return energy.dim, lambda x: energy.energy(x) + log_z


# Of each: D, and minus the log density. So log Z is 0.
TARGETS: dict[str, tuple[int, Density]] = {
    "scales": (3, _gaussian((1e-3, 1.0, 1e3))),
    "narrow": (4, _gaussian((1e-3,) * 4)),
    "far": (3, _gaussian((1.0,) * 3, mean=1_000.0)),
    "two-modes-2": _normalised(TwoModes(2)),
    "two-modes-20": _normalised(TwoModes(20)),
    "two-modes-100": _normalised(TwoModes(100)),
    "student-10": _normalised(StudentT(10)),
    "rosenbrock-10": _normalised(Rosenbrock(10)),
    "forty-modes-2": _normalised(FortyModes(2)),
    "forty-modes-50": _normalised(FortyModes(50)),
}


def untuned(
    targets: tuple[str, ...] = tuple(TARGETS),
    seconds: float = 240.0,
    n: int = 10_000,
    seeds: tuple[int, ...] = (0,),
    json: Path | None = None,
    markdown: Path | None = None,
) -> None:
    """Samples targets of known log Z by `vgs_rl.sample`, without any setting.

    Args:
        targets: names of targets, all by default.
        seconds: about how long each may take.
        n: samples of each.
        seeds: of the draws and trainings.
        json: also write the rows to this file.
        markdown: also write the table into the section `untuned` of this file.
    """
    for name in targets:
        if name not in TARGETS:
            raise ValueError(f"targets: there is no {name!r}; {nearest(name, TARGETS)}")
    if markdown is not None:
        require_section(markdown, "untuned")
    size = machine(torch.get_num_threads())
    print_machine(size)
    rows: Table = []
    for name in targets:
        dim, energy = TARGETS[name]
        for seed in seeds:
            result = sample(energy, n, dim=dim, seconds=seconds, seed=seed)
            found = result.evidence
            rows.append(
                {
                    "target": name,
                    "D": dim,
                    "seed": seed,
                    "verdict": result.verdict.word,
                    "log Z - truth": f"{found.log_z:+.3f}",
                    "exploration's": f"{found.explored_log_z:+.3f}",
                    "ESS of all": found.ess,
                    "k-hat": found.k_hat,
                    "seconds": round(result.seconds),
                }
            )
            print_table(f"{name}, seed {seed}", rows[-1:])
    print_table(f"{n:,} samples, {seconds:g} seconds a target", rows)
    write_json({"machine": size, "rows": rows}, json)
    if markdown is not None:
        write_section(markdown, "untuned", markdown_table(rows))
