"""Evaluates trained runs again: their metrics and what exact samples score.

vgs-rl evaluate RUN [RUN ...] [--n 100000] [--resample true] [--smc true] [--json -]
vgs-rl evaluate RUN --certificate 0.05         draws until log Z is bounded to 0.05 nats
vgs-rl evaluate RUN --budget                   what the gap is made of, and what to buy
vgs-rl evaluate RUN --temperature 0.7          a run of a range of temperatures, at one of them
vgs-rl evaluate RUN --condition kappa=0.25     an energy with parameters, at one value
vgs-rl evaluate RUN --curve                    log Z over the range, with bounds and a picture
vgs-rl evaluate --pretrained my_sampler.pt     an exported sampler, or a shipped name
vgs-rl evaluate RUN --export my_sampler.pt     one small file for load_sampler()
vgs-rl evaluate RUN --export my_sampler.pt2    a program of torch.export, without this package
vgs-rl evaluate RUN [RUN ...] [--split validation]     detectors of vgs-rl train-ebm

A long draw that was ended goes on where it was, with the same command.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from vgs_rl.agents import Agent, ValueGradientAgent
from vgs_rl.conditional import JointEnergy
from vgs_rl.evaluation.budget.estimate import chain_of, error_budget
from vgs_rl.evaluation.budget.parts import GROUPS
from vgs_rl.evaluation.certify import LIMIT, certify, hold, require_backward_paths
from vgs_rl.evaluation.conditional.references import MCMCReferences
from vgs_rl.evaluation.evaluate import Report, format_comparison
from vgs_rl.experiments.cli import (
    STANDARD,
    Mistake,
    Parser,
    command,
    device,
    one_of,
    output,
    output_file,
    positive,
    switch,
    whole,
)
from vgs_rl.experiments.config import RunConfig
from vgs_rl.experiments.detectors.report import evaluate_runs, is_detector
from vgs_rl.experiments.evaluation import ceilings, evaluate_agent, evaluate_smc
from vgs_rl.experiments.pretrained import Exported, counters_of, export_sampler, load_pretrained
from vgs_rl.experiments.run import open_run
from vgs_rl.files.checkpoint import write_text
from vgs_rl.files.lock import FolderLock
from vgs_rl.files.unfinished import NAME as UNFINISHED
from vgs_rl.files.unfinished import Unfinished
from vgs_rl.plots.plots import save_figure, try_picture
from vgs_rl.samplers.base import Sampler
from vgs_rl.samplers.dpm_solver import DPMSolver, note_on
from vgs_rl.samplers.oracle import require_exact_values
from vgs_rl.training.config import TRUST_HELP
from vgs_rl.training.resume import run_digest

CURVE_SAMPLES = 4_000  # at each value of --curve
FOR_SAMPLERS = (
    *("export", "n", "resample", "smc", "compiled", "calls", "ceiling", "certificate", "budget"),
    *("temperature", "condition", "curve", "references"),
)


@command
def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit status."""
    options = _parse(arguments)
    if any(is_detector(run) for run in options.runs):
        columns = _evaluate_detectors(options)
    else:
        loaded = _load(options)
        chains = [(run.config.env, run.config.env_args, run.config.mdp) for run in loaded]
        if options.ceiling and any(chain != chains[0] for chain in chains):
            raise Mistake("--ceiling needs runs of one target and one chain: call it for each")
        samplers = {run.title: _checked(options, run) for run in loaded}
        columns = {}
        for run in loaded:
            with ExitStack() as held:
                if options.budget and run.folder is not None:
                    held.enter_context(FolderLock(run.folder))
                columns |= _judge(options, run, samplers[run.title])
        if options.ceiling:
            columns |= ceilings(loaded[-1].config)
    text = json.dumps([json.loads(report.as_json()) for report in columns.values()], indent=2)
    if options.json == STANDARD:
        print(text)
        return 0
    for title, report in columns.items():
        for line in report.verdict:
            print(line if len(columns) == 1 else f"{title}: {line}")
    print(format_comparison(columns))
    for title, report in columns.items():
        for note in report.details.get("notes", []):
            print(f"note: {title}: {note}", file=sys.stderr)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_text(options.json, text + "\n")
    return 0


def make_parser() -> Parser:
    """The command's options."""
    parser = Parser(__doc__, "evaluate")
    add = parser.add_argument
    add("runs", type=Path, nargs="*", help="run folders")
    add("--pretrained", default=None, help="a shipped sampler, or an exported file")
    add("--export", type=output_file, default=None, help="write the run's sampler to this file")
    add("--n", type=whole(2), default=None, help="samples; the run's own number by default")
    checkpoint = "best or last; best where there is one"
    add("--checkpoint", type=one_of("best", "last"), default=None, help=checkpoint)
    add("--resample", type=switch, default=False, help="importance-resample the samples")
    add("--smc", type=switch, default=False, help="also evaluate SMC, the learned value as twist")
    add("--compiled", type=switch, default=False, help="compile the drift of particles first")
    few = "draw in so many network calls, without log-weights (DPM-Solver++)"
    add("--calls", type=whole(2), default=None, help=few)
    add("--ceiling", type=switch, default=False, help="also evaluate the oracle with either drift")
    bounds = "draw until log_z_high - log_z_low is at most this [nats]"
    add("--certificate", type=positive, default=None, help=bounds)
    most = f"most paths that --certificate draws; {LIMIT:,} by default"
    add("--limit", type=whole(2), default=None, help=most)
    parts = "split EUBO - log Z by its causes; writes budget.json and a picture into the run"
    add("--budget", type=switch, nargs="?", const=True, default=False, help=parts)
    at = "of a run whose temperature is a range: which one is evaluated; 1 by default"
    add("--temperature", type=positive, default=None, help=at)
    at = "NAME=VALUE of a run whose energy has parameters: what is evaluated"
    add("--condition", action="append", default=[], metavar="NAME=VALUE", help=at)
    curve = f"log Z at so many values over the range, from --n samples each, {CURVE_SAMPLES:,} by "
    curve += "default; writes log_z.json and a picture into the run"
    add("--curve", type=whole(2), nargs="?", const=11, default=None, help=curve)
    states = "with --curve: states of parallel tempering at each value, for an upper bound where "
    states += "there are no exact samples, in place of shipped ones; none by default"
    add("--references", type=whole(2), default=None, help=states)
    split = "of a detector's data: test (by default) or validation"
    add("--split", type=one_of("test", "validation"), default=None, help=split)
    add("--device", type=device, default=None, help="auto, cpu or cuda; the run's by default")
    add("--json", type=output, default=None, help="write the reports here; - is stdout")
    add("--trust", type=switch, default=False, help=TRUST_HELP)
    return parser


def _parse(arguments: list[str]) -> Namespace:
    options = make_parser().read(arguments)
    options.runs = list(dict.fromkeys(options.runs))
    if not options.runs and not options.pretrained:
        raise Mistake("give at least one run folder, or --pretrained NAME")
    if options.export is not None and (len(options.runs) != 1 or options.pretrained):
        raise Mistake(f"--export needs exactly one run folder, got {len(options.runs)}")
    options.condition = _condition(options)
    if options.limit is not None and options.certificate is None:
        raise Mistake(f"--limit is of --certificate, which is not given, got {options.limit:,}")
    return options


def _condition(options: Namespace) -> dict[str, float] | None:
    """The value of an energy's parameters that is asked for, by name."""
    condition = {} if options.temperature is None else {"temperature": options.temperature}
    for text in options.condition:
        name, _, value = text.partition("=")
        try:
            condition[name] = float(value)
        except ValueError:
            raise Mistake(f"--condition must be NAME=VALUE, got {text!r}") from None
    return condition or None


def _evaluate_detectors(options: Namespace) -> dict[str, Report]:
    detectors = [run for run in options.runs if is_detector(run)]
    if len(detectors) < len(options.runs) or options.pretrained:
        raise Mistake("detectors and samplers are evaluated by different metrics: call twice")
    for name in FOR_SAMPLERS:
        if getattr(options, name):
            raise Mistake(f"--{name} is for samplers, got a detector: {detectors[0]}")
    return evaluate_runs(
        detectors,
        checkpoint=options.checkpoint,
        split=options.split or "test",
        device=options.device,
        trust=options.trust,
    )


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """A trained sampler: `folder` is its run's, or None."""

    title: str
    config: RunConfig
    agent: Agent
    folder: Path | None


def _load(options: Namespace) -> list[_Loaded]:
    """Every sampler that is to be evaluated."""
    loaded = []
    alone = len(options.runs) + bool(options.pretrained) == 1
    for run in options.runs:
        config, agent = open_run(run, options.checkpoint, options.device, trust=options.trust)
        done = run / "report.json"
        if done.is_file():  # what the whole training has cost, not the checkpoint's part
            trained = Report.load(done)
            agent.counters = counters_of(trained)
            skipped = trained.details.get("skipped_updates", 0)
            agent.tally.skipped = torch.tensor(float(skipped))
        title = "this run" if alone else str(run)
        loaded.append(_Loaded(title=title, config=config, agent=agent, folder=run))
    if options.pretrained:
        if options.checkpoint is not None and alone:
            raise Mistake("--checkpoint is for run folders, an exported sampler has but one")
        config, agent, trained = load_pretrained(
            options.pretrained, options.device or "auto", trust=options.trust
        )
        agent.counters = counters_of(trained)
        title = "this run" if alone else options.pretrained
        loaded.append(_Loaded(title=title, config=config, agent=agent, folder=None))
    return loaded


def _checked(options: Namespace, run: _Loaded) -> Sampler:
    """What draws, after everything that is asked of it has been checked; nothing is drawn yet.

    Raises:
        Mistake: naming option and run.
    """
    agent, name = run.agent, run.config.agent.name
    if options.split is not None:
        raise Mistake(f"--split is for detectors, got a sampler: {run.folder or run.title}")
    for option, given in (
        ("--compiled", options.compiled),
        ("--smc", options.smc),
    ):
        if given and not isinstance(agent, ValueGradientAgent):
            raise Mistake(f"{option} is for value gradients, got {name}: {run.folder}")
    if options.export is not None:
        if not isinstance(agent, Exported):
            raise Mistake(f"--export is for value gradients and students, got {name}: {run.folder}")
        if options.export.suffix == ".pt2" and not isinstance(agent, ValueGradientAgent):
            raise Mistake(f"--export as .pt2 is for value gradients, got {name}: {run.folder}")
    sampler: Sampler = agent.sampler()
    if isinstance(agent, ValueGradientAgent) and options.compiled:
        sampler = agent.sampler(compiled=True)
    chosen, energy = agent.target_at(options.condition)
    if chosen is None and options.curve is not None:
        raise Mistake(f"--curve is for energies with parameters, got {run.config.env}")
    if options.references is not None and options.curve is None:
        raise Mistake("--references are for --curve, which is not asked for")
    if chosen is not None:
        for option in ("smc", "budget", "ceiling"):
            if getattr(options, option):
                raise Mistake(f"--{option} is for one energy, got one with parameters: {run.title}")
        sampler = sampler.at(chosen)
    if options.calls is not None:
        for option in ("export", "smc", "certificate", "budget", "curve"):
            if getattr(options, option):
                raise Mistake(f"--{option} needs log-weights, and there are none with --calls")
        sampler = DPMSolver(sampler, options.calls)
    if options.resample and not sampler.has_weights:
        raise Mistake(f"--resample needs log-weights, and {name} has none: {run.folder}")
    if options.smc:
        agent.mdp.start.require_density("--smc")
    if options.ceiling:
        require_exact_values(agent.mdp.energy, agent.mdp.temperature)
    if options.certificate is not None:
        require_backward_paths(sampler, energy)
    if options.budget:
        chain_of(sampler)
    return sampler


def _judge(options: Namespace, run: _Loaded, sampler: Sampler) -> dict[str, Report]:
    """The run's columns; exports it, too, if that is asked for."""
    config, agent = run.config, run.agent
    unfinished = None
    if run.folder is not None:
        identity = f"{run_digest(run.folder, agent.checkpoint)} {options.compiled} {options.calls}"
        unfinished = sampler.unfinished = Unfinished(run.folder / UNFINISHED, identity)
    report = evaluate_agent(
        config,
        agent,
        n=options.n,
        resample=options.resample,
        sampler=sampler,
        progress_bar=True,
        condition=options.condition,
    )
    if options.calls is not None:
        report.details["calls"] = options.calls
        notes = report.details.get("notes", [])
        report.details["notes"] = [*notes, note_on(options.calls)]
    if options.certificate is not None:
        proven = certify(
            sampler,
            agent.target_at(options.condition)[1],
            options.certificate,
            n=report.n_samples,
            limit=options.limit or LIMIT,
            seed=config.evaluation.seed,
        )
        if options.json != STANDARD:
            print(f"certificate of {run.title}\n{proven}\n")
        hold(report, proven, options.certificate)
    if options.budget:
        _split_gap(options, run, sampler, report)
    if options.curve is not None:
        _show_curve(options, run)
    columns = {run.title: report}
    exported = options.export
    if exported is not None and exported.suffix == ".pt2" and isinstance(agent, ValueGradientAgent):
        options.export.parent.mkdir(parents=True, exist_ok=True)
        agent.sampler().export(options.export)
    elif options.export is not None and run.folder and isinstance(agent, Exported):
        yaml = (run.folder / "config.yaml").read_text(encoding="utf-8")
        options.export.parent.mkdir(parents=True, exist_ok=True)
        export_sampler(yaml, agent, report, options.export)
    if options.smc:
        columns[f"{run.title}, SMC"] = evaluate_smc(config, agent, n=options.n)
    if unfinished is not None:
        unfinished.remove()
    return columns


def _split_gap(options: Namespace, run: _Loaded, sampler: Sampler, report: Report) -> None:
    """Shows the error budget, and writes it into the run's folder if there is one."""
    few = None if options.n is None else max(options.n, 2 * GROUPS)
    seed = run.config.evaluation.seed
    budget = error_budget(sampler, n=few, paths=report.n_samples, seed=seed)
    report.details["error_budget"] = budget.as_dict()
    if options.json != STANDARD:
        print(f"error budget of {run.title}\n{budget}\n")
    if run.folder is None:
        return
    write_text(run.folder / "budget.json", json.dumps(budget.as_dict(), indent=2) + "\n")
    picture = run.folder / "figures" / "error_budget.png"
    picture.parent.mkdir(exist_ok=True)
    try_picture("error_budget", lambda: save_figure(budget.plot(), picture))


def _show_curve(options: Namespace, run: _Loaded) -> None:
    """Shows log Z over the range of the parameters, and writes it into the run's folder."""
    seed = run.config.evaluation.seed
    agent, references = run.agent, None
    if options.references is not None:
        assert isinstance(agent.energy, JointEnergy)
        references = MCMCReferences(agent.energy, options.references, seed, agent.mdp.device)
    n = options.n or CURVE_SAMPLES
    curve = agent.log_z_curve(
        options.curve, n=n, seed=seed, references=references, progress_bar=True
    )
    if options.json != STANDARD:
        print(f"log Z of {run.title}\n{curve}\n")
    if run.folder is None:
        return
    write_text(run.folder / "log_z.json", json.dumps(curve.rows(), indent=2) + "\n")
    picture = run.folder / "figures" / "log_z.png"
    picture.parent.mkdir(exist_ok=True)
    try_picture("log_z", lambda: save_figure(curve.plot(), picture))
