"""Ceilings of chains, and quality against the number of steps."""

from __future__ import annotations

from pathlib import Path

from vgs_rl.evaluation.evaluate import Report, format_comparison
from vgs_rl.experiments.benchmarks.quality import SAMPLED
from vgs_rl.experiments.benchmarks.runs import trained_run
from vgs_rl.experiments.run import (
    ceilings,
    config_of,
    parse_run,
)
from vgs_rl.experiments.tables import (
    Table,
    config_arguments,
    print_table,
    write_json,
)
from vgs_rl.plots.plots import plot_steps, save_figure, try_picture


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
        print(
            format_comparison(ceilings(config_of(parse_run(config_arguments(name, trust=trust)))))
        )
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

    The exact values' ceilings stand beside what was learned. Each drift keeps its own form: the
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
    curves: dict[str, list[tuple[int, Report]]] = {}
    for drift in ("posterior", "bellman"):
        for count in num_steps:
            options = [f"--mdp.num_steps={count}", f"--agent.drift={drift}", f"--seed={seed}"]
            options += [f"--agent.fit_noise_scale={str(drift == 'posterior').lower()}"]
            options += [f"--budget.updates={updates}"] if updates else []
            learned = trained_run(name, output / f"{drift}_{count}", options, trust).report
            (ceiling,) = ceilings(
                config_of(parse_run(config_arguments(name, options, trust=trust))), (drift,)
            ).values()
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
