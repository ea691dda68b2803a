"""Searches settings of a training with Optuna (extra sweep), by the validation ELBO.

    vgs-rl sweep gmm9 --space space.yaml --trials 20 --budget.updates 500

The file names settings as the command line does:

    agent.lr: {low: 1e-4, high: 1e-2, log: true}
    agent.network.width: [32, 64, 128]
    agent.objective.refresh_every: {low: 10, high: 100, step: 10}

All other options are those of `train`. A trial whose validation ELBO is below the median of earlier
ones after as many updates is stopped. The same command goes on after Ctrl-C or a kill.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from vgs_rl.experiments.cli import (
    Mistake,
    Parser,
    command,
    output_folder,
    switch,
    whole,
    with_files,
)
from vgs_rl.experiments.config import run_parser
from vgs_rl.experiments.sweep import Sweep, read_space
from vgs_rl.experiments.tables import markdown_table, print_table, write_json
from vgs_rl.files.checkpoint import write_text
from vgs_rl.training.config import TRUST_HELP
from vgs_rl.training.loop import handling, interrupt


def make_parser() -> Parser:
    """The command's own options."""
    parser = Parser(__doc__, "sweep")
    add = parser.add_argument
    add("--space", type=Path, required=True, help="YAML file of what is searched")
    add("--trials", type=whole(), default=20, help="how many, all calls together")
    startup = "trials before any is stopped early"
    add("--startup", type=whole(), default=4, help=startup)
    folder = "of study, runs, table and best.yaml; by default runs/sweep/<space>"
    add("--folder", type=output_folder, default=None, help=folder)
    add("--progress", type=switch, default=True, help="show a progress bar")
    add("--trust", type=switch, default=False, help=TRUST_HELP)
    return parser


@command
def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit status."""
    options, training = make_parser().parse_known_args(arguments)
    for argument in training:
        name = argument.partition("=")[0]
        if name in ("--output", "--resume", "--overwrite"):
            raise Mistake(
                f"{name} is for train: a sweep has --folder, and the same command goes on"
            )
    sweep = Sweep(
        arguments=with_files(training, run_parser(), "run"),
        space=read_space(options.space),
        folder=options.folder or Path("runs") / "sweep" / options.space.stem,
        trials=options.trials,
        startup=options.startup,
        trust=options.trust,
    )
    sweep.check()
    try:
        with handling(interrupt):
            table = sweep.run(progress_bar=options.progress)
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    print_table("Trials by their best validation ELBO", table)
    write_text(sweep.folder / "table.md", markdown_table(table) + "\n")
    rows = [{k: None if v == -math.inf else v for k, v in row.items()} for row in table]
    write_json({"trials": rows}, sweep.folder / "table.json")
    best = sweep.write_best(table)
    print(f"table     {sweep.folder / 'table.md'}, {sweep.folder / 'table.json'}")
    if best is None:
        print("error: no trial was completed", file=sys.stderr)
        return 1
    print(f"best      {best}")
    return 0
