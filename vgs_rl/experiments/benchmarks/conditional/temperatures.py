"""The benchmark `conditional`: ELBO gaps side by side, and log Z against the truth."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from vgs_rl.agents import Agent
from vgs_rl.conditional import JointEnergy
from vgs_rl.evaluation.conditional.curve import LogZCurve, log_z_curve
from vgs_rl.evaluation.conditional.references import MCMCReferences
from vgs_rl.experiments.benchmarks.runs import trained_run
from vgs_rl.experiments.cli import Mistake
from vgs_rl.experiments.config import RunConfig, named_config
from vgs_rl.experiments.tables import (
    Table,
    machine,
    markdown_table,
    print_machine,
    print_table,
    require_outputs,
    write_json,
    write_section,
)
from vgs_rl.plots.conditional import plot_range
from vgs_rl.plots.plots import save_figure, try_picture
from vgs_rl.weights import effective_sample_size, live_elbo


def conditional(
    name: str = "gmm9",
    temperatures: tuple[float, ...] = (0.5, 0.7, 1.0, 1.4, 2.0),
    updates: int | None = None,
    alone: int | None = None,
    n: int = 20_000,
    references: int = 2_000,
    seed: int = 0,
    output: Path = Path("runs/conditional"),
    figure: Path = Path("runs/conditional.png"),
    json: Path | None = None,
    markdown: Path | None = None,
    section: str = "conditional",
    trust: bool = False,
) -> None:
    """Trains one sampler of a range of temperatures, and one of each alone.

    The gap is log Z - ELBO [nats], with log Z by quadrature; 0 is perfect. Bounds of log Z are of
    the sampler of the range. The upper one needs samples of the target: exact ones, else those of
    parallel tempering.

    Args:
        name: name of a file in configs/, or the path of a YAML file.
        temperatures: that are compared; the least and the greatest are the range's ends.
        updates: gradient steps of the range's sampler; the configuration's by default.
        alone: gradient steps of each sampler of one temperature; as many as the range's by default.
        n: samples at each temperature.
        references: samples of parallel tempering, where there are no exact ones.
        seed: of everything random.
        output: where the run folders go; finished runs there are read, not repeated.
        figure: the picture to write: gaps, and log Z.
        json: also write the table to this file.
        markdown: also write the table to this file, between its lines `<!-- SECTION:begin -->` and
            `<!-- SECTION:end -->` if it has them.
        section: name of that section.
        trust: whether the YAML file may name code that is not this package's.
    """
    require_outputs(json, figure, markdown=markdown, sections=[section])
    if len(temperatures) < 2 or len(set(temperatures)) < len(temperatures):
        raise Mistake(f"--temperatures must be two different ones or more, got {temperatures}")
    size = machine(torch.get_num_threads())
    print_machine(size)
    taus = sorted(float(tau) for tau in temperatures)

    def settled(
        folder: str, temperature: float | tuple[float, float], updates: int | None
    ) -> RunConfig:
        settings: dict[str, Any] = {"output": output / Path(name).stem / folder, "seed": seed}
        settings["mdp"] = {"temperature": temperature}
        settings |= {"budget": {"updates": updates}} if updates else {}
        return named_config(name, settings, trust=trust)

    whole = trained_run(settled("range", (taus[0], taus[-1]), updates), trust)
    agent = whole.load()[1]
    assert isinstance(agent.energy, JointEnergy)
    drawn = MCMCReferences(agent.energy, references, seed, agent.mdp.device)
    curve = log_z_curve(agent.sampler(), agent.energy, taus, n, seed=seed, references=drawn)
    elbos: list[float] = []
    rows: Table = []
    for i, tau in enumerate(taus):
        run = trained_run(settled(f"{tau:g}", tau, alone or updates), trust)
        elbo, ess, seconds = _alone(run.load()[1], n, seed, run.report.train_seconds)
        elbos.append(elbo)
        rows.append(_row(curve, i, elbo, ess, seconds, whole.report.train_seconds))
    title = f"{whole.report.target}, seed {seed}, {n:,} samples, {size['threads']} threads"
    print_table(title, rows)
    if markdown is not None:
        write_section(markdown, section, f"**{title}**\n\n{markdown_table(rows)}")
    write_json({"machine": size, "rows": rows}, json)
    try_picture(str(figure), lambda: save_figure(plot_range(curve, elbos), figure))


def _alone(agent: Agent, n: int, seed: int, seconds: float) -> tuple[float, float, float]:
    """ELBO and ESS of a sampler of one temperature, and what its training took."""
    log_weight = agent.sample(n, seed + 1).log_weight
    assert log_weight is not None
    log_weight = log_weight.double()
    return float(live_elbo(log_weight)), float(effective_sample_size(log_weight)), seconds


def _row(
    curve: LogZCurve, i: int, elbo: float, ess: float, seconds: float, whole: float
) -> dict[str, Any]:
    proven, exact = curve.certificates[i], curve.exact[i]
    high = math.inf if proven.log_z_high is None else proven.log_z_high
    log_z = math.nan if exact is None else exact
    return {
        "temperature": curve.conditions[i][0],
        "gap, range": log_z - curve.elbos[i],
        "gap, alone": log_z - elbo,
        "range - alone": elbo - curve.elbos[i],
        "ESS, range": proven.ess,
        "ESS, alone": ess,
        "log Z, at least": f"{proven.log_z_low:.4f}",
        "log Z, exact": "" if exact is None else f"{exact:.4f}",
        "log Z, at most": f"{high:.4f}",
        "held": "" if exact is None else str(proven.log_z_low <= exact <= high),
        "seconds, range": whole,
        "seconds, alone": seconds,
    }
