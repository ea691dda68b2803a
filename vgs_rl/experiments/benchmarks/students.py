"""Students: few network calls and one, next to the teacher that they have learned from."""

from __future__ import annotations

import dataclasses
import functools
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from vgs_rl.agents import Agent, DistilledAgent, DistilledConfig
from vgs_rl.agents.distilled.distill import STATES, plan
from vgs_rl.evaluation.evaluate import Report
from vgs_rl.evaluation.particle_metrics import ParticleProtocol
from vgs_rl.experiments.benchmarks.runs import TrainedRun, shipped_run, trained_run
from vgs_rl.experiments.cli import Mistake
from vgs_rl.experiments.commands.distill import begin, student_config
from vgs_rl.experiments.config import RunConfig, named_config
from vgs_rl.experiments.evaluation import evaluate_agent
from vgs_rl.experiments.pretrained import counters_of
from vgs_rl.experiments.run import load_run, train
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
from vgs_rl.plots.curves import plot_steps
from vgs_rl.plots.plots import save_figure, try_picture
from vgs_rl.samplers.base import Sampler
from vgs_rl.samplers.dpm_solver import DPMSolver
from vgs_rl.samplers.mcmc.mala import RefinedSampler

TARGETS = ("gmm9", "gmm40", "funnel10", "manywell32")
DRAWS = 20_000  # that are timed, at most
MOST_SECONDS = 10.0  # of one timed draw, about
MALA_STEPS = 10
SOLVER = "DPM-Solver"
SHORT = ParticleProtocol(geometric_repeats=0, published_geometric_repeats=0)
Found = tuple[str, int, Report, Sampler]  # title, calls, report, sampler


def distill(
    configs: tuple[str, ...] = TARGETS,
    steps: tuple[int, ...] = (8, 4, 2, 1),
    solver: tuple[int, ...] = (),
    updates: int = 600,
    teacher_updates: int | None = None,
    states: int = STATES,
    pretrained: bool = False,
    n: int | None = None,
    seed: int = 0,
    output: Path = Path("runs/distill"),
    figure: Path = Path("runs/distill.png"),
    json: Path | None = None,
    markdown: Path | None = None,
    section: str = "distill",
    trust: bool = False,
) -> None:
    """Trains teachers, distils them, and prints teacher and students in one table.

    The row `mixture` is the student of one step before its first update: the mixture that was
    fitted to the teacher's states, without a network. `DPM-Solver` is the teacher's own network in
    few calls, without log-weights; of particles also after ten MALA steps. ESS is of all samples.
    Samples per second include log-weights where there are some, and are measured after the
    trainings, on all of torch's threads.

    Args:
        configs: names of files in configs/, or paths of YAML files: the teachers.
        steps: network calls of the students.
        solver: network calls of the teacher's own network by DPM-Solver++.
        updates: gradient steps of each student.
        teacher_updates: gradient steps of each teacher; its configuration's by default.
        states: states of the teacher that each student learns from.
        pretrained: train no teachers; take the samplers that the package ships for their targets.
        n: with `pretrained`, samples to evaluate; as many as the shipped configuration says by
            default.
        seed: of teachers and students.
        output: where the run folders go; finished runs there are read, not repeated.
        figure: the picture to write: ESS and TVD-E against calls.
        json: also write all reports to this file.
        markdown: also write the table to this file, between its lines `<!-- SECTION:begin -->` and
            `<!-- SECTION:end -->` if it has them.
        section: name of that section.
        trust: whether the YAML files may name code that is not this package's.
    """
    require_outputs(json, figure, markdown=markdown, sections=[section])
    if n is not None and not pretrained:
        raise Mistake("n is for --pretrained true")
    size = machine(torch.get_num_threads())
    print_machine(size)
    rows: Table = []
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    reports: list[Report] = []
    for name in configs:
        settings: dict[str, Any] = {"output": output / Path(name).stem, "seed": seed}
        settings |= {"budget": {"updates": teacher_updates}} if teacher_updates else {}
        config = named_config(name, settings, trust=trust)
        if pretrained:
            run = shipped_run(config.env, config.output, n, compiled=False, protocol=SHORT)
        else:
            run = trained_run(config, trust)
        teacher = run.load()[1]
        found = [("teacher", teacher.mdp.num_steps, run.report, teacher.sampler())]
        options = Namespace(
            seconds=None, updates=updates, seed=seed, device=None, output=config.output
        )
        found += _students(config, teacher, sorted(steps, reverse=True), states, options, trust)
        solved = _solved(run, solver)
        for title, calls, report, sampler in [*found, *solved]:
            reports.append(report)
            rows.append(_row(report, title, calls, samples_per_second(sampler)))
        curves[run.report.target] = _curves(found)
        if solved:
            by_itself = [row for row in solved if row[0] == SOLVER]
            curves[f"{SOLVER}, {run.report.target}"] = _curves(by_itself)
    known = [name for name in rows[0] if any(row[name] == row[name] for row in rows)]  # not all NaN
    rows = [{name: row[name] for name in known} for row in rows]
    title = f"Seed {seed}, {reports[0].n_samples:,} samples, {size['threads']} threads"
    print_table(title, rows)
    if markdown is not None:
        write_section(markdown, section, f"**{title}**\n\n{markdown_table(rows)}")
    write_json({"machine": size, "rows": rows}, json)
    try_picture(str(figure), lambda: save_figure(plot_steps(curves), figure))


def _curves(found: list[Found]) -> dict[str, list[tuple[int, float]]]:
    """Figures against calls, of those that call a network."""
    return {
        metric: [
            (calls, report.metrics[metric].value)
            for _, calls, report, _ in found
            if calls and metric in report.metrics
        ]
        for metric in ("ess", "tvd_energy")
    }


def _students(
    config: RunConfig,
    teacher: Agent,
    steps: list[int],
    states: int,
    options: Namespace,
    trust: bool,
) -> list[Found]:
    """Each student, and the mixture without a network."""
    found: list[Found] = []
    for count in steps:
        folder = config.folder.parents[1] / f"{DistilledConfig.name}-{count}" / str(options.seed)
        done = folder / "report.json"
        if not done.is_file():
            print(f"distilling {config.env} to {count} calls into {folder}")
            planned = plan(
                teacher.sampler(), teacher.mdp.energy, count, seed=options.seed, states=states
            )
            student = student_config(config, planned, options)
            if train(student, overwrite=True, begin=functools.partial(begin, planned)) is None:
                raise SystemExit(130)
        agent = load_run(folder, trust=trust)
        assert isinstance(agent, DistilledAgent)
        found.append(("student", count, Report.load(done), agent.sampler()))
        if count == 1:
            untrained = DistilledConfig().build(agent.mdp)
            known = dict(agent.average.named_buffers())
            for name, buffer in untrained.average.named_buffers():
                buffer.copy_(known[name])  # the coordinates that both have
            mixture, file = untrained.sampler(), folder / "report_mixture.json"
            if not file.is_file():
                evaluate_agent(config, untrained).save(file)
            report = dataclasses.replace(Report.load(file), target=found[0][2].target)
            found.append(("mixture", 0, report, mixture))
    return found


def _solved(run: TrainedRun, solver: tuple[int, ...]) -> list[Found]:
    """The teacher's network in few calls, of particles also after MALA."""
    config, teacher = run.load()
    teacher.counters = counters_of(run.report)
    found: list[Found] = []
    for calls in sorted(solver, reverse=True):
        few = DPMSolver(teacher.sampler(), calls)
        drawn: list[tuple[str, str, Sampler]] = [(SOLVER, "solver", few)]
        if teacher.mdp.energy.symmetry is not None:
            moved = RefinedSampler(few, teacher.mdp.energy, MALA_STEPS)
            drawn.append((f"{SOLVER} + {MALA_STEPS} MALA steps", "solver_mala", moved))
        for title, name, sampler in drawn:
            file = run.folder / f"report_{name}_{calls}.json"
            if not file.is_file():
                print(f"drawing {run.report.target} in {calls} calls")
                evaluate_agent(
                    config,
                    teacher,
                    n=run.report.n_samples,
                    sampler=sampler,
                    protocol=SHORT,
                    progress_bar=True,
                ).save(file)
            found.append((title, calls, Report.load(file), sampler))
    return found


def samples_per_second(sampler: Sampler) -> float:
    """Samples with their log-weights that are drawn in a second, best of three."""

    def seconds(n: int, seed: int) -> float:
        began = time.perf_counter()
        sampler.sample(n, seed)
        return time.perf_counter() - began

    few = DRAWS // 40
    n = min(DRAWS, max(few, int(few * MOST_SECONDS / seconds(few, 0))))
    seconds(n // 4, 0)  # a first time
    return n / min(seconds(n, seed) for seed in range(3))


def _row(report: Report, title: str, calls: int, speed: float) -> dict[str, Any]:
    tvd = report.metrics.get("tvd_energy")
    ratio = tvd.value / tvd.ideal if tvd is not None and tvd.ideal else float("nan")
    return {
        "target": report.target,
        "sampler": title,
        "calls": calls,
        "updates": report.details.get("updates", 0),
        "ESS": _value(report, "ess"),
        "W2-E": _value(report, "w2_energy"),
        "TVD-E": _value(report, "tvd_energy"),
        "over ideal": ratio,
        "mode weight error": _value(report, "mode_weight_error"),
        "Δ log Z": _value(report, "log_z_error"),
        "gap": _value(report, "gap"),
        "seconds": report.train_seconds,
        "samples/s": speed,
    }


def _value(report: Report, name: str) -> float:
    metric = report.metrics.get(name)
    return float("nan") if metric is None else metric.value
