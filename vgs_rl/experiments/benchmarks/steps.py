"""Ceilings of chains, and quality against the number of steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vgs_rl.evaluation.evaluate import Report, format_comparison
from vgs_rl.experiments.benchmarks.quality import SAMPLED
from vgs_rl.experiments.benchmarks.runs import trained_run
from vgs_rl.experiments.config import named_config
from vgs_rl.experiments.evaluation import ceilings
from vgs_rl.experiments.tables import (
    Table,
    print_table,
    require_outputs,
    write_json,
)
from vgs_rl.networks.policies import Drift
from vgs_rl.plots.curves import plot_steps
from vgs_rl.plots.plots import save_figure, try_picture


def oracle(
    configs: tuple[str, ...] = SAMPLED,
    trust: bool = False,
) -> None:
    """Prints each configuration's ceilings: the chain driven by exact values, with either drift.

    Args:
        configs: names of files in configs/, or paths of YAML files.
        trust: whether the YAML files may name code that is not this package's.
    """
    for name in configs:
        print(format_comparison(ceilings(named_config(name, trust=trust))))
        print()


def steps(
    name: str = "gmm9",
    num_steps: tuple[int, ...] = (5, 10, 20, 40),
    updates: int | None = None,
    seed: int = 0,
    output: Path = Path("runs/steps"),
    figure: Path = Path("runs/steps.png"),
    json: Path | None = None,
    trust: bool = False,
) -> None:
    """Steps against quality: trains at several T with either drift, and draws the curves.

    The exact values' ceilings stand next to what was learned. Each drift keeps its own form: the
    published one (`bellman`) has rho_t = 1. The schedule must be of kind `auto`, so that T alone
    changes.

    Args:
        name: name of a file in configs/, or path of a YAML file.
        num_steps: values of T.
        updates: gradient steps of each training; the configuration's by default.
        seed: training seed.
        output: where the run folders go; finished runs there are read, not repeated.
        figure: the picture to write.
        json: also write all reports to this file.
        trust: whether the YAML files may name code that is not this package's.
    """
    require_outputs(json, figure)
    curves: dict[str, list[tuple[int, Report]]] = {}
    drifts: tuple[Drift, ...] = ("posterior", "bellman")
    for drift in drifts:
        for count in num_steps:
            agent = {"drift": drift, "fit_noise_scale": drift == "posterior"}
            settings: dict[str, Any] = {"mdp": {"num_steps": count}, "seed": seed}
            settings |= {"agent": {"init_args": agent}, "output": output / f"{drift}_{count}"}
            settings |= {"budget": {"updates": updates}} if updates else {}
            config = named_config(name, settings, trust=trust)
            learned = trained_run(config, trust).report
            (ceiling,) = ceilings(config, (drift,)).values()
            for title, report in ((f"learned, {drift}", learned), (f"exact, {drift}", ceiling)):
                curves.setdefault(title, []).append((count, report))
    figures = ("elbo", "path_ess", "tvd_energy")
    rows: Table = [
        {"curve": title, "T": count, **{key: report.metrics[key].value for key in figures}}
        for title, points in curves.items()
        for count, report in points
    ]
    print_table(f"{name}, seed {seed}", rows)
    values = {
        title: {key: [(t, report.metrics[key].value) for t, report in points] for key in figures}
        for title, points in curves.items()
    }
    write_json({"rows": rows}, json)
    try_picture(str(figure), lambda: save_figure(plot_steps(values), figure))
    if figure.is_file():
        print(f"\n  picture {figure}")
