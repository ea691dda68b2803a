"""Trains an agent on a target, evaluates it and writes a run folder.

    vgs-rl train gmm9 --agent.lr 1e-3 --seed 1
    vgs-rl train my_file.yaml --budget.updates 1000
    vgs-rl train --env my_module:Rings              explored first, which chooses the settings
    vgs-rl train --env my_module:Rings --mdp.num_steps 10 --agent.prior_std 3
    vgs-rl train --resume runs/GMM9/vgs/0
    torchrun --nproc-per-node 2 -m vgs_rl train gmm9        two processes, one run

A name is a shipped configuration; `vgs-rl list configs` shows them. Options go over it. A file
that names a module of your own needs --trust true; what you type yourself does not.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TextIO

from vgs_rl.envs.configured import ranged_config, tuned_config
from vgs_rl.evaluation.evaluate import format_comparison
from vgs_rl.experiments.cli import (
    STANDARD,
    add_training_options,
    called,
    command,
    switch,
    with_files,
)
from vgs_rl.experiments.config import config_of, parse_run, run_parser
from vgs_rl.experiments.evaluation import ceilings
from vgs_rl.experiments.run import settled, train
from vgs_rl.registry import find
from vgs_rl.samplers.oracle import require_exact_values
from vgs_rl.training import parallel
from vgs_rl.training.config import ConfigError, ConfigParser, resumed


def make_parser() -> ConfigParser:
    """The command's options."""
    parser = run_parser(prog=called("train"), description=__doc__)
    add_training_options(parser, "run", "report")
    ceiling = "also evaluate the oracle with either drift"
    parser.add_argument("--ceiling", type=switch, default=False, help=ceiling)
    return parser


@command
def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit status."""
    parser = make_parser()
    folder: Path | None = None
    out: TextIO = sys.stdout
    try:
        arguments = resumed(with_files(arguments, parser, "run"))
        options = parse_run(arguments, parser)
        from_file = any(each.partition("=")[0] == "--config" for each in arguments)
        if options.resume is not None and options.overwrite:
            raise ConfigError("--overwrite true starts a run, and --resume goes on: give one")
        config = config_of(options)
        if options.print_config:
            print(config.to_yaml(), end="")
            return 0
        with parallel.joined(config.device):
            folder = options.resume or config.folder
            if options.resume is None:
                config = settled(config, untouched=options.untouched and not options.ceiling)
            explored = config.exploration.when == "always"
            if options.ceiling and explored:
                raise ConfigError(
                    "--ceiling is of chains in the target's own coordinates, and this one is "
                    "explored"
                )
            if options.ceiling:
                energy = find(config.env).make_energy(**config.env_args)
                require_exact_values(energy, config.mdp.temperature)
            out = sys.stderr if options.json == STANDARD else sys.stdout
            if not parallel.is_first():  # which says it all
                out = io.StringIO()
            if options.resume is None:
                print(f"training {config.agent.name} on {config.env} into {folder}", file=out)
                ranged = isinstance(config.mdp.temperature, tuple)
                named = ranged_config if ranged else tuned_config
                tuned = None if from_file else named(config.env)
                if tuned is not None:
                    print(
                        f"note: the agent has defaults; its settings for {config.env} are in the "
                        f"configuration {tuned}: {called('train')} {tuned}",
                        file=out,
                    )
            report = train(
                config,
                resume=options.resume,
                overwrite=options.overwrite,
                progress_bar=options.progress,
                trust=options.trust,
            )
            if report is None:
                raise KeyboardInterrupt
            if not parallel.is_first():
                return 0
            columns = {"this run": report}
            if options.ceiling:
                columns |= ceilings(config)
            for line in report.verdict:
                print(line, file=out)
            print(format_comparison(columns), file=out)
            if explored:
                print(f"choices   {folder / 'config.yaml'}: what exploration chose", file=out)
            print(f"report    {folder / 'report.json'}", file=out)
            for picture in sorted((folder / "figures").glob("*.png")):
                print(f"picture   {picture}", file=out)
            print(f"curves    tensorboard --logdir {config.output}", file=out)
            if options.json == STANDARD:
                print(report.as_json())
            elif options.json is not None:
                options.json.parent.mkdir(parents=True, exist_ok=True)
                report.save(options.json)
    except KeyboardInterrupt:
        begun = folder is not None and (folder / "config.yaml").is_file()
        again = f"stopped; go on with: {called('train')} --resume {folder}"
        print(again if begun else "stopped", file=out)
        return 130
    return 0
