"""Judges trained runs again: their figures beside the floors of exact samples.

python scripts/evaluate.py RUN [RUN ...] [--n 100000] [--resample true] [--smc true] [--json -]
python scripts/evaluate.py --pretrained my_sampler.pt     an exported sampler, or a shipped name
python scripts/evaluate.py RUN --export my_sampler.pt     one small file for load_sampler()
python scripts/evaluate.py RUN [RUN ...] [--split validation]     detectors of train_ebm.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from ebm_report import is_detector, judge_runs
from jsonargparse import ArgumentParser

from vgs_rl.agents import ValueGradientAgent
from vgs_rl.agents.pretrained import counters_of, export_sampler, load_pretrained
from vgs_rl.agents.run import ceilings, judge, judge_smc, load_run
from vgs_rl.config import TRUST_HELP, ConfigError, parse
from vgs_rl.evaluation import Report, format_comparison
from vgs_rl.registry import find


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit status."""
    parser = ArgumentParser(exit_on_error=False, description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("runs", type=Path, nargs="*", help="run folders")
    add(
        "--pretrained", type=str | None, default=None, help="a shipped sampler, or an exported file"
    )
    add("--export", type=Path | None, default=None, help="write the run's sampler to this file")
    add("--n", type=int | None, default=None, help="samples; the run's own number by default")
    add("--checkpoint", type=str | None, default=None, help="best or last; best where there is one")
    add("--resample", type=bool, default=False, help="importance-resample the samples")
    add("--smc", type=bool, default=False, help="also judge SMC with the learned value as twist")
    add("--compiled", type=bool, default=False, help="compile the drift of particles first")
    add("--ceiling", type=bool, default=False, help="also judge the oracle with either drift")
    add("--split", type=str, default="test", help="of a detector's data: test or validation")
    add("--device", type=str | None, default=None, help="auto, cpu or cuda; the run's by default")
    add("--json", type=str | None, default=None, help="write the reports here; - is stdout")
    add("--trust", type=bool, default=False, help=TRUST_HELP)
    try:
        options = parse(parser, arguments)
        columns: dict[str, Report] = {}
        names = [*options.runs, *([options.pretrained] if options.pretrained else [])]
        if not names:
            raise ConfigError("give at least one run folder, or --pretrained NAME")
        if options.export is not None and len(options.runs) != 1:
            raise ConfigError(f"--export needs exactly one run folder, got {len(options.runs)}")
        detectors = [run for run in options.runs if is_detector(run)]
        if detectors and len(detectors) < len(names):
            raise ConfigError("detectors and samplers are judged by different figures: call twice")
        for name in ("export", "n", "resample", "smc", "compiled", "ceiling"):
            if detectors and options[name]:
                raise ConfigError(f"--{name} is for samplers, got a detector: {detectors[0]}")
        if detectors:
            columns = judge_runs(
                detectors,
                checkpoint=options.checkpoint,
                split=options.split,
                device=options.device,
                trust=options.trust,
            )
            names = []
        for run in names:
            if run is options.pretrained:
                config, agent, trained = load_pretrained(
                    run, options.device or "auto", trust=options.trust
                )
                agent.counters = counters_of(trained)
            else:
                config, agent = load_run(
                    run, options.checkpoint, options.device, trust=options.trust
                )
                done = run / "report.json"
                if done.is_file():  # what the whole training has cost, not the checkpoint's part
                    trained = Report.load(done)
                    agent.counters = counters_of(trained)
                    skipped = trained.details.get("skipped_updates", 0)
                    agent.tally.skipped = torch.tensor(float(skipped))
            how: dict[str, Any] = {"n": options.n, "resample": options.resample}
            if options.compiled:
                if not isinstance(agent, ValueGradientAgent):
                    raise ConfigError(
                        f"--compiled is for value gradients, got {config.agent.name}: {run}"
                    )
                how["sampler"] = agent.sampler(compiled=True)
            report = judge(config, find(config.env), agent, progress_bar=True, **how)
            title = "this run" if len(names) == 1 else str(run)
            columns[title] = report
            if options.export is not None:
                yaml = (run / "config.yaml").read_text()
                export_sampler(yaml, agent, report, options.export)
            if options.smc:
                columns[f"{title}, SMC"] = judge_smc(config, agent, n=options.n)
        if options.ceiling:
            columns |= ceilings(config)
        text = json.dumps([json.loads(report.as_json()) for report in columns.values()], indent=2)
        if options.json == "-":
            print(text)
            return 0
        print(format_comparison(columns))
        for title, report in columns.items():
            for note in report.details.get("notes", []):
                print(f"note: {title}: {note}", file=sys.stderr)
        if options.json is not None:
            Path(options.json).write_text(text + "\n")
    except (ConfigError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
