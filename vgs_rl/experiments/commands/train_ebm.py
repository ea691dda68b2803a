"""Trains an energy-based model as an anomaly detector, evaluates it, and compares it in one table.

    vgs-rl train-ebm ebm_digits --seeds 3 --compare true
    vgs-rl train-ebm ebm_textures --part gravel --seed 1
    vgs-rl train-ebm mvtec --data.folder DIR
    vgs-rl train-ebm --resume runs/digits

A name is a shipped configuration; `vgs-rl list configs` shows them. Options go over it. Ctrl-C
stops every run at a checkpoint. `vgs-rl evaluate` evaluates single runs again.
"""

from __future__ import annotations

import json
import os
import sys

from vgs_rl.experiments.cli import (
    STANDARD,
    add_training_options,
    called,
    command,
    whole,
    with_files,
)
from vgs_rl.experiments.detectors.config import (
    DetectorConfig,
    config_of,
    detector_parser,
    parse_detector,
    saved_config,
)
from vgs_rl.experiments.detectors.jobs import make_jobs, reopen, run_all
from vgs_rl.experiments.detectors.report import as_markdown, collect, write
from vgs_rl.experiments.tables import machine, write_json
from vgs_rl.files.lock import FolderLock
from vgs_rl.training.config import ConfigError, ConfigParser, resumed
from vgs_rl.training.folder import clear, make_folders, write_config
from vgs_rl.training.resume import require_same_run
from vgs_rl.trust import names_of


def make_parser() -> ConfigParser:
    """The command's options."""
    parser = detector_parser(prog=called("train-ebm"), description=__doc__)
    add_training_options(parser, "experiment", "table")
    jobs = "trainings at a time; 0 is one for each core"
    parser.add_argument("--jobs", type=whole(0), default=0, help=jobs)
    return parser


@command
def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit status."""
    parser = make_parser()
    folder, out = None, sys.stdout
    try:
        arguments = resumed(with_files(arguments, parser, "detector"))
        options = parse_detector(arguments, parser)
        if options.resume is not None and options.overwrite:
            raise ConfigError(
                "--overwrite true starts an experiment, and --resume goes on: give one"
            )
        config = config_of(options)
        if options.print_config:
            print(config.to_yaml(), end="")
            return 0
        folder = options.resume or config.folder
        text = config.to_yaml()
        trust = options.trust is True or names_of(text, DetectorConfig)
        was = None if options.resume is None else saved_config(folder, trust)
        if was is not None:
            require_same_run(was, config, folder)
        if folder != config.folder:
            raise ConfigError(f"--resume {folder}: the folder was moved from {config.folder}")
        for part in config.parts:
            config.data.load(part, config.seed)  # what is missing is said before anything starts
        out = sys.stderr if options.json == STANDARD else sys.stdout
        size = machine(1)
        jobs = make_jobs(config, trust=trust)
        make_folders(folder, "experiment")
        with FolderLock(folder):
            if was is None:
                clear(folder, overwrite=options.overwrite, what="experiment")
            else:
                reopen(was, config, jobs)
            write_config(folder, text)
            finished = sum(job.finished for job in jobs)
            print(f"{len(jobs)} trainings into {folder}, {finished} finished before", file=out)
            processes = options.jobs or os.cpu_count() or 1
            failed = run_all(config, jobs, processes, bar=options.progress)
            entries = collect(config, jobs)
            if not entries:
                reasons = "; ".join(failed.values())
                print(f"error: no method has a report of every part: {reasons}", file=sys.stderr)
                return 1
            content = write(config, entries, size, failed)
        print(f"\n{as_markdown(config, entries, failed)}\n", file=out)
        print(f"table     {folder / 'table.md'}, {folder / 'table.json'}", file=out)
        print(f"pictures  {jobs[0].folder / 'figures'} and so on", file=out)
        print(f"curves    tensorboard --logdir {folder}", file=out)
        if options.json == STANDARD:
            print(json.dumps(content, indent=2))
        else:
            write_json(content, options.json)
    except KeyboardInterrupt:
        begun = folder is not None and (folder / "config.yaml").is_file()
        again = f"stopped; go on with: {called('train-ebm')} --resume {folder}"
        print(again if begun else "stopped")
        return 130
    return 1 if failed else 0
