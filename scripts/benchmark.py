"""Benchmarks: what the machine was, what was compared, what it cost.

python scripts/benchmark.py env                              a step through NumPy, transitions/s
python scripts/benchmark.py libraries                        where SB3's and tianshou's time goes
python scripts/benchmark.py sampling                         samples/s, memory, evaluation time
python scripts/benchmark.py oracle --configs '[gmm9]'        ceilings of schedule, drift and start
python scripts/benchmark.py quality --configs '[gmm9]'       trains over seeds; figures and bounds
python scripts/benchmark.py steps                            T against quality, with a picture
python scripts/benchmark.py ebm                              an update of an energy-based model
python scripts/benchmark.py stability                        10,000 of them at three rates
"""

from __future__ import annotations

import json as json_format
import math
import os
import sys
import time
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from command import Mistake, command, output_file  # isort: skip

# As in vgs_rl itself, but here torch is imported before it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from benchmark_ebm import ebm, stability
from benchmark_libraries import libraries
from benchmark_speed import env, sampling
from benchmark_table import (
    Table,
    config_arguments,
    format_cell,
    machine,
    markdown_table,
    print_machine,
    print_table,
    require_section,
    write_json,
    write_section,
)
from compare_jobs import check_jobs, make_jobs
from compare_worker import run_job
from jsonargparse import auto_cli

from vgs_rl import find
from vgs_rl.agents import (
    Agent,
    MALASampler,
    RefinedSampler,
    ValueGradientAgent,
    ValueGradientConfig,
)
from vgs_rl.agents.pretrained import counters_of, load_pretrained, shipped_samplers
from vgs_rl.agents.run import (
    RunConfig,
    ceilings,
    config_of,
    judge,
    judge_smc,
    open_run,
    parse_run,
    resolved_yaml,
    train,
)
from vgs_rl.evaluation import Report, format_comparison
from vgs_rl.fields import field_types, nearest
from vgs_rl.options import checked_options
from vgs_rl.particle_figures import ParticleProtocol
from vgs_rl.plots import plot_steps, save_figure, try_picture
from vgs_rl.report import OWN_FLOORS, format_value, own_floor
from vgs_rl.sampler import DrawnSampler, Sampler, Samples

# What each shipped configuration has to reach on every seed (value, how it is meant).
# Training seconds are on 2 cores without a GPU. Nothing here is ever loosened.
BOUNDS: dict[str, dict[str, tuple[str, float]]] = {
    "gmm9": {
        "train_seconds": ("at most", 60),
        "tvd_energy": ("x floor", 1.25),
        "std_error": ("at most", 0.03),
        "log_z_error": ("at most", 0.005),
        "path_ess": ("at least", 0.6),
        "mode_weight_error": ("at most", 0.008),
    },
    "gmm25": {
        "train_seconds": ("at most", 180),
        "tvd_energy": ("x floor", 2.0),
        "std_error": ("at most", 0.05),
        "log_z_error": ("at most", 0.01),
        "path_ess": ("at least", 0.5),
        "mode_weight_error": ("at most", 0.01),
    },
    "gmm40": {
        "train_seconds": ("at most", 300),
        "tvd_energy": ("x floor", 2.0),
        "std_error": ("at most", 0.2299),  # 1% of the mean marginal std, 22.99
        "log_z_error": ("at most", 0.02),
        "path_ess": ("at least", 0.4),
        "mode_weight_error": ("at most", 0.01),
    },
    "funnel10": {
        "train_seconds": ("at most", 300),
        "tvd_energy": ("x floor", 1.5),
        "log_z_error": ("at most", 0.05),
        "path_ess": ("at least", 0.15),
    },
    "manywell32": {
        "train_seconds": ("at most", 480),
        "tvd_energy": ("x floor", 2.0),
        "std_error": ("at most", 0.03),
        "log_z_error": ("at most", 0.1),
        "path_ess": ("at least", 0.1),
        "mode_weight_error": ("at most", 0.02),
    },
    "dw4": {
        "train_seconds": ("at most", 300),
        "w2": ("at most", 1.56),
        "tvd_energy_published": ("at most", 0.045),
        "tvd_distance_published": ("at most", 0.020),
        "w2_energy": ("at most", 0.18),
    },
    "lj13": {
        "train_seconds": ("at most", 3600),
        "w2": ("at most", 4.17),
        "tvd_energy_published": ("at most", 0.09),
        "tvd_distance_published": ("at most", 0.004),
        "w2_energy": ("at most", 0.8),
    },
    "lj55": {
        "train_seconds": ("at most", 7200),
        "w2_energy": ("at most", 15.0),
        "w2_geometric": ("at most", 4.0),
    },
}
PARTICLES = ("dw4", "lj13", "lj55")

Beside = Literal["resampled", "SMC", "MALA alone", "oracle", "then MALA", "less noise"]
BESIDE: tuple[Beside, ...] = get_args(Beside)
COSTS = ("train_seconds", "env_steps", "energy_evaluations")


def quality(
    configs: tuple[str, ...] = tuple(name for name in BOUNDS if name not in PARTICLES),
    seeds: tuple[int, ...] = (0, 1, 2),
    agents: tuple[str, ...] = (),
    beside: tuple[Beside, ...] = BESIDE,
    pretrained: bool = False,
    n: int | None = None,
    compiled: bool = False,
    output: Path = Path("runs/benchmark"),
    json: Path | None = None,
    markdown: Path | None = None,
    section: str = "quality",
    trust: bool = False,
) -> None:
    """Trains shipped configurations over seeds and prints every figure beside floor and bound.

    Beside each run stand the same samples after importance resampling, SMC with the learned value
    as twist, MALA alone with as many energy evaluations as training and sampling took together,
    and the oracle, which is what perfect learning would reach; for particle systems, which have no
    oracle, the samples after ten MALA steps instead, and samples drawn with nine tenths of the
    noise and none in the last step, which some published tables report.

    Args:
        configs: names of files in configs/, or paths of YAML files.
        seeds: training seeds; the table shows medians over them, and for how many bounds hold.
        agents: further agents by their short names in compare.py, such as `sb3-ppo` or `pis`: each
            gets a column, after as many seconds on the same MDP as the configuration's own agent.
        beside: which of the columns above to show; for many particles some take as long as the
            training.
        pretrained: train nothing; judge the samplers that the package ships for the
            configurations' targets.
        n: with `pretrained`, samples to judge; as many as the shipped configuration says by
            default.
        compiled: with `pretrained`, compile drifts before they draw.
        output: where the run folders go; finished runs there are read, not repeated.
        json: also write all reports to this file.
        markdown: also write the tables to this file, between its lines `<!-- SECTION:begin -->`
            and `<!-- SECTION:end -->` if it has them.
        section: name of that section.
        trust: whether the YAML files may name code that is not this package's.
    """
    for file in (json, markdown):
        if file is not None:
            output_file(file)
    if markdown is not None:
        require_section(markdown, section)
    if not pretrained and (n is not None or compiled):
        raise Mistake("n and compiled are for --pretrained true")
    size = machine(torch.get_num_threads())
    print_machine(size)
    tables, reports = [], []
    for name in configs:
        place = output / Path(name).stem
        if pretrained:
            trained = [_shipped(name, place, n, compiled, trust)]
        else:
            trained = [_trained(name, place, [f"--seed={seed}"], trust) for seed in seeds]
        runs = [_reports(name, run, agents, beside, place, trust) for run in trained]
        reports += [report for run in runs for report in run.values()]
        rows = _quality_rows(runs, BOUNDS.get(name, {}))
        title = _title(name, runs)
        print_table(title, rows)
        tables.append(f"**{title}**\n\n{markdown_table(rows)}")
    if markdown is not None:
        write_section(markdown, section, "\n\n".join(tables))
    contents = [json_format.loads(report.as_json()) for report in reports]
    write_json({"machine": size, "reports": contents}, json)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A trained agent: its report, the folder of what is judged beside it, and how to load it."""

    report: Report
    folder: Path
    load: Callable[[], tuple[RunConfig, Agent]]
    compiled: bool = False


def _reports(
    name: str,
    run: _Run,
    agents: Sequence[str],
    beside: Sequence[Beside],
    output: Path,
    trust: bool,
) -> dict[str, Report]:
    """The reports of one configuration and run, new or read from an earlier call."""
    config = config_of(parse_run(config_arguments(name, trust=trust)))
    energy = find(config.env).make_energy(**config.env_args)
    others: dict[Beside, Callable[[_Run], Report]] = {
        "resampled": _resampled,
        "SMC": _smc,
        "MALA alone": _mala,
    }
    if energy.has_value:
        others["oracle"] = _oracle
    else:
        others |= {"then MALA": _then_mala, "less noise": _less_noise}
    reports = {"vgs": run.report}
    for title, judge_other in others.items():
        if title not in beside:
            continue
        # The oracle knows no training seed: one report serves all of them.
        place = output if title == "oracle" else run.folder
        path = place / f"report_{title.replace(' ', '_').lower()}.json"
        if not path.is_file():
            judge_other(run).save(path)
        reports[title] = Report.from_json(path.read_text(encoding="utf-8"))
    budget = {"seconds": run.report.train_seconds}
    config_file, seed = config_arguments(name)[1], run.report.seed or 0
    jobs = []
    if agents:
        place = output / "agents"
        jobs = make_jobs([config_file], agents, [seed], budget, place, trust=trust)
    jobs = [job for job in jobs if job.agent in agents]  # `uncontrolled` is in every comparison
    check_jobs(jobs)
    for job in jobs:
        if not job.finished:
            print(f"training {job.name} into {job.folder}")
            if not run_job(job):
                raise SystemExit(130)
        reports[job.agent] = Report.load(job.folder / "report.json")
    return reports


def _trained(name: str, output: Path, options: Sequence[str], trust: bool) -> _Run:
    """Trains a configuration, or reads the report of that run from an earlier call."""
    arguments = config_arguments(name, [*options, f"--output={output}"], trust=trust)
    config = config_of(parse_run(arguments))
    done = config.folder / "report.json"
    if not done.is_file():
        print(f"training {' '.join([name, *options])} into {config.folder}")
        if train(config, resolved_yaml(arguments), overwrite=True) is None:
            raise SystemExit(130)
    report = Report.from_json(done.read_text(encoding="utf-8"))
    return _Run(
        report=report,
        folder=config.folder,
        load=lambda: open_run(config.folder, trust=trust),
    )


def _shipped(name: str, output: Path, n: int | None, compiled: bool, trust: bool) -> _Run:
    """Judges the sampler that is shipped for a configuration's target, or reads its report."""
    target = find(config_of(parse_run(config_arguments(name, trust=trust))).env)
    if target.name not in shipped_samplers():
        known = ", ".join(shipped_samplers())
        raise Mistake(f"no sampler is shipped for {target.name}; there are {known}")
    config, agent, trained = load_pretrained(target.name)
    n = n or config.evaluation.n_samples
    folder = output / f"pretrained_{n}"
    file, drawn = folder / "report.json", folder / "samples.pt"
    if not file.is_file():
        print(f"judging {target.name} in {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        sampler: Sampler = agent.sampler(compiled=compiled)
        if drawn.is_file():  # drawn before, and then interrupted
            sampler = DrawnSampler(Samples.load(drawn, agent.mdp.device))
        agent.counters = counters_of(trained)
        judge(
            config,
            target,
            agent,
            n=n,
            sampler=sampler,
            on_samples=lambda samples: samples.save(drawn),
            progress_bar=True,
        ).save(file)
    report = Report.from_json(file.read_text(encoding="utf-8"))
    return _Run(
        report=report,
        folder=folder,
        load=lambda: load_pretrained(target.name)[:2],
        compiled=compiled,
    )


def _others(agent: Agent, report: Report) -> dict[str, Any]:
    """How what stands beside the run is judged: particles, which cost more, on a tenth."""
    if agent.mdp.energy.symmetry is None:
        return {"n": report.n_samples}
    protocol = ParticleProtocol(geometric_repeats=0, published_geometric_repeats=0)
    return {"n": report.n_samples // 10, "protocol": protocol}


def _again(run: _Run, agent: Agent) -> Sampler | None:
    """The samples that were judged, where the chain is expensive, else None: new ones."""
    if agent.mdp.energy.symmetry is None:
        return None
    return DrawnSampler(Samples.load(run.folder / "samples.pt", agent.mdp.device))


def _resampled(run: _Run) -> Report:
    config, agent = run.load()
    resampled = judge(
        config,
        find(config.env),
        agent,
        resample=True,
        sampler=_again(run, agent),
        progress_bar=True,
        **_others(agent, run.report),
    )
    return _costing_as(run.report, resampled, "vgs, resampled")


def _smc(run: _Run) -> Report:
    config, agent = run.load()
    smc = judge_smc(config, agent, **_others(agent, run.report))
    return _costing_as(run.report, smc, "vgs, SMC")


def _costing_as(report: Report, other: Report, agent: str) -> Report:
    """`other`, which needed the training that `report` tells of."""
    cost = {name: getattr(report, name) for name in COSTS}
    return replace(other, agent=agent, **cost)


def _mala(run: _Run) -> Report:
    """MALA with the energy evaluations of training and of one sampling, from a start as wide."""
    report = run.report
    config, agent = run.load()
    assert isinstance(config.agent, ValueGradientConfig)
    budget = report.energy_evaluations + report.n_samples
    energy = agent.mdp.energy
    # Clusters settle slowly, a few of them very slowly: rather few chains than short ones.
    chains = budget // 20 if energy.symmetry is None else max(10, budget // 100_000)
    sampler = MALASampler(
        energy,
        budget,
        chains=min(1_000, chains),
        scale=config.agent.prior_std,
        temperature=agent.mdp.temperature,
        # Particles may start on top of each other.
        max_drift=None if energy.symmetry is None else 100.0,
        device=agent.mdp.device,
    )
    drawn: list[float] = []
    begin = time.perf_counter()
    mala = judge(
        config,
        find(config.env),
        agent,
        sampler=sampler,
        on_samples=lambda _: drawn.append(time.perf_counter() - begin),
        **_others(agent, report),
    )
    cost = {"train_seconds": drawn[0], "env_steps": 0, "energy_evaluations": budget}
    return replace(mala, agent="mala", **cost)


def _then_mala(run: _Run) -> Report:
    config, agent = run.load()
    drawn = _again(run, agent) or agent.sampler()
    pilot = min(200, run.report.n_samples // 2)
    sampler = RefinedSampler(drawn, agent.mdp.energy, steps=10, pilot=pilot)
    how = _others(agent, run.report)
    refined = judge(config, find(config.env), agent, sampler=sampler, **how)
    return _costing_as(run.report, refined, "vgs, then MALA")


def _less_noise(run: _Run) -> Report:
    config, agent = run.load()
    assert isinstance(agent, ValueGradientAgent)
    scale = torch.full_like(agent.mdp.rho, 0.9)
    scale[-1] = 0.0
    quiet = judge(
        config,
        find(config.env),
        agent,
        sampler=agent.sampler(compiled=run.compiled, noise_scale=scale),
        progress_bar=True,
        **_others(agent, run.report),
    )
    return _costing_as(run.report, quiet, "vgs, less noise")


def _oracle(run: _Run) -> Report:
    config, _ = run.load()
    return ceilings(config, ("posterior",))["oracle posterior"]


def _title(name: str, runs: Sequence[dict[str, Report]]) -> str:
    """What a table shows, and how its brackets are to be read."""
    reports = [report for run in runs for report in run.values()]
    seeds = [run["vgs"].seed for run in runs]
    of = f"seed {seeds[0]}" if len(runs) == 1 else f"median of seeds {seeds}"
    title = f"{name}, {reports[0].n_samples:,} samples, {of}"
    sizes = {report.n_samples for report in reports}
    return title if len(sizes) == 1 else f"{title}; {OWN_FLOORS}"


def _quality_rows(runs: list[dict[str, Report]], bounds: dict[str, tuple[str, float]]) -> Table:
    """One row a figure; a bound has to hold for every seed, and the row says for how many."""
    rows: Table = []
    columns = list(runs[0])
    for name in (*COSTS, *runs[0]["vgs"].figures):
        figure = runs[0]["vgs"].figures.get(name)
        row: dict[str, Any] = {"figure": name, "vgs": _median([run["vgs"] for run in runs], name)}
        if len(runs) > 1:
            row["range"] = _range([run["vgs"] for run in runs], name)
        row["floor"] = "" if figure is None else figure.floor_text()
        row |= {"bound": "", "holds": ""}
        if name in bounds:
            meaning, bound = bounds[name]
            kept = sum(_holds(run["vgs"], name, meaning, bound) for run in runs)
            row["bound"] = f"{meaning} {bound:g}"
            row["holds"] = ("yes" if kept else "NO") if len(runs) == 1 else f"{kept} of {len(runs)}"
        for column in columns[1:]:
            reports = [run[column] for run in runs]
            row[column] = _median(reports, name) + own_floor(reports[0].figures.get(name), figure)
        rows.append(row)
    return rows


def _holds(report: Report, name: str, meaning: str, bound: float) -> bool:
    figure = report.figures.get(name)
    if meaning == "x floor":
        bound *= 0.0 if figure is None or figure.floor is None else figure.floor
    value = _value(report, name)
    return value >= bound if meaning == "at least" else value <= bound


def _value(report: Report, name: str) -> float:
    """A figure or a count of a report; NaN where it has none."""
    if name in report.figures:
        return report.figures[name].value
    return float(getattr(report, name, math.nan))


def _median(reports: Sequence[Report], name: str) -> str:
    """The median over seeds; of a single report the value with its error."""
    if name in COSTS:
        return format_cell(float(np.median([_value(report, name) for report in reports])))
    figures = [report.figures[name] for report in reports if name in report.figures]
    if len(figures) == 1:
        return figures[0].text()
    return format_value(float(np.median([f.value for f in figures]))) if figures else ""


def _range(reports: Sequence[Report], name: str) -> str:
    values = [_value(report, name) for report in reports]
    shown = format_cell if name in COSTS else format_value
    low, high = shown(min(values)), shown(max(values))
    return low if low == high else f"{low} to {high}"


def oracle(
    configs: tuple[str, ...] = tuple(name for name in BOUNDS if name not in PARTICLES),
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
            learned = _trained(name, output / f"{drift}_{count}", options, trust).report
            (ceiling,) = ceilings(
                config_of(parse_run(config_arguments(name, options, trust=trust))), (drift,)
            ).values()
            for title, report in ((f"learned, {drift}", learned), (f"exact, {drift}", ceiling)):
                curves.setdefault(title, []).append((count, report))
    figures = ("elbo", "path_ess", "tvd_energy")
    rows: Table = [
        {"curve": title, "T": count, **{key: report.figures[key].value for key in figures}}
        for title, points in curves.items()
        for count, report in points
    ]
    print_table(f"{name}, seed {seed}", rows)
    values = {
        title: {key: [(t, report.figures[key].value) for t, report in points] for key in figures}
        for title, points in curves.items()
    }
    write_json({"rows": rows}, json)
    try_picture(str(figure), lambda: save_figure(plot_steps(values), figure))
    if figure.is_file():
        print(f"\n  picture {figure}")


COMMANDS: dict[str, Callable[..., None]] = {
    "env": env,
    "libraries": libraries,
    "sampling": sampling,
    "quality": quality,
    "oracle": oracle,
    "steps": steps,
    "ebm": ebm,
    "stability": stability,
}


@command
def main(arguments: list[str]) -> int:
    """Runs one of the benchmarks; returns the exit status."""
    if not arguments:
        raise Mistake(f"say which benchmark: {', '.join(COMMANDS)}")
    name, *options = arguments
    if name not in COMMANDS and not name.startswith("-"):
        raise Mistake(f"no benchmark is called {name!r}; {nearest(name, COMMANDS)}")
    if name in COMMANDS:
        options = checked_options(COMMANDS[name], [], options)
        known = [f"--{each}" for each in (*field_types(COMMANDS[name]), "help", "config")]
        for option in (each.partition("=")[0] for each in options if each.startswith("--")):
            if option not in known:
                raise Mistake(f"there is no option {option}; {nearest(option, known)}")
    settings: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False}
    try:
        auto_cli(COMMANDS, args=[name, *options], **settings)
    except ArgumentError as error:
        raise Mistake(str(error)) from error
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
