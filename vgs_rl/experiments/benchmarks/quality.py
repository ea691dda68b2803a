"""Quality: shipped configurations trained over seeds, every metric with ideal and bound."""

from __future__ import annotations

import json as json_format
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from vgs_rl import find
from vgs_rl.evaluation.evaluate import Report
from vgs_rl.evaluation.report import OWN_IDEALS, format_value, own_ideal
from vgs_rl.experiments.benchmarks.runs import (
    COSTS,
    TrainedRun,
    exact_values,
    low_noise,
    mala,
    mala_steps,
    resampled,
    shipped_run,
    smc,
    trained_run,
)
from vgs_rl.experiments.cli import Mistake
from vgs_rl.experiments.comparison.jobs import check_jobs, make_jobs
from vgs_rl.experiments.comparison.worker import run_job
from vgs_rl.experiments.config import RunConfig, named_config
from vgs_rl.experiments.tables import (
    Table,
    format_cell,
    machine,
    markdown_table,
    print_machine,
    print_table,
    require_outputs,
    write_json,
    write_section,
)
from vgs_rl.files.shipped import CONFIGS
from vgs_rl.training.config import config_file, read_yaml

SAMPLED = ("gmm9", "gmm25", "gmm40", "funnel10", "manywell32")

Extra = Literal["resampled", "twisted SMC", "MALA alone", "oracle", "+ MALA", "low noise"]
EXTRA: tuple[Extra, ...] = get_args(Extra)


def bounds() -> dict[str, dict[str, tuple[str, float]]]:
    """What each shipped configuration has to reach on every seed: `configs/bounds.yaml`."""
    content = read_yaml(CONFIGS / "bounds.yaml")
    return {
        name: {metric: (meaning, float(bound)) for metric, (meaning, bound) in entries.items()}
        for name, entries in content.items()
    }


def quality(
    configs: tuple[str, ...] = SAMPLED,
    seeds: tuple[int, ...] = (0, 1, 2),
    agents: tuple[str, ...] = (),
    extra: tuple[Extra, ...] = EXTRA,
    pretrained: bool = False,
    n: int | None = None,
    compiled: bool = False,
    output: Path = Path("runs/benchmark"),
    json: Path | None = None,
    markdown: Path | None = None,
    section: str = "quality",
    trust: bool = False,
) -> None:
    """Trains shipped configurations over seeds and prints every metric with ideal and bound.

    Extra each run stand the same samples after importance resampling, SMC with the learned value
    as twist, MALA alone with as many energy evaluations as training and sampling took together,
    and the oracle, which is what perfect learning would reach; for particle systems, which have no
    oracle, the samples after ten MALA steps instead, and samples drawn with nine tenths of the
    noise and none in the last step, which some published tables report.

    Args:
        configs: names of files in configs/, or paths of YAML files.
        seeds: training seeds; the table shows medians over them, and for how many bounds hold.
        agents: further agents by their short names (`vgs-rl list agents`), such as `pis`: each
            gets a column, after as many seconds on the same MDP as the configuration's own agent.
        extra: which of the columns above to show; for many particles some take as long as the
            training.
        pretrained: train nothing; evaluate the samplers that the package ships for the
            configurations' targets.
        n: with `pretrained`, samples to evaluate; as many as the shipped configuration says by
            default.
        compiled: with `pretrained`, compile drifts before they draw.
        output: where the run folders go; finished runs there are read, not repeated.
        json: also write all reports to this file.
        markdown: also write the tables to this file, between its lines `<!-- SECTION:begin -->`
            and `<!-- SECTION:end -->` if it has them.
        section: name of that section.
        trust: whether the YAML files may name code that is not this package's.
    """
    require_outputs(json, markdown=markdown, sections=[section])
    if not pretrained and (n is not None or compiled):
        raise Mistake("n and compiled are for --pretrained true")
    size = machine(torch.get_num_threads())
    print_machine(size)
    tables, reports = [], []
    for name in configs:
        place = output / Path(name).stem
        config = named_config(name, {"output": place}, trust=trust)
        if pretrained:
            trained = [shipped_run(config.env, place, n, compiled)]
        else:
            trained = [trained_run(replace(config, seed=seed), trust) for seed in seeds]
        runs = [_reports(name, config, run, agents, extra, trust) for run in trained]
        reports += [report for run in runs for report in run.values()]
        rows = _quality_rows(runs, bounds().get(name, {}))
        title = _title(name, runs)
        print_table(title, rows)
        tables.append(f"**{title}**\n\n{markdown_table(rows)}")
    if markdown is not None:
        write_section(markdown, section, "\n\n".join(tables))
    contents = [json_format.loads(report.as_json()) for report in reports]
    write_json({"machine": size, "reports": contents}, json)


def _reports(
    name: str,
    config: RunConfig,
    run: TrainedRun,
    agents: Sequence[str],
    extra: Sequence[Extra],
    trust: bool,
) -> dict[str, Report]:
    """The reports of one configuration and run, new or read from an earlier call."""
    output = config.output
    energy = find(config.env).make_energy(**config.env_args)
    others: dict[Extra, Callable[[TrainedRun], Report]] = {
        "resampled": resampled,
        "twisted SMC": smc,
        "MALA alone": mala,
    }
    if energy.has_value:
        others["oracle"] = exact_values
    else:
        others |= {"+ MALA": mala_steps, "low noise": low_noise}
    reports = {"vgs": run.report}
    for title, evaluate_other in others.items():
        if title not in extra:
            continue
        # The oracle knows no training seed: one report serves all of them.
        place = output if title == "oracle" else run.folder
        path = place / f"report_{title.replace('+ ', '').replace(' ', '_').lower()}.json"
        if not path.is_file():
            evaluate_other(run).save(path)
        reports[title] = Report.from_json(path.read_text(encoding="utf-8"))
    budget = {"seconds": run.report.train_seconds}
    jobs = []
    if agents:
        place = output / "agents"
        file, seed = config_file(name, "run"), run.report.seed or 0
        jobs = make_jobs([str(file)], agents, [seed], budget, place, trust=trust)
    jobs = [job for job in jobs if job.agent in agents]  # `uncontrolled` is in every comparison
    check_jobs(jobs)
    for job in jobs:
        if not job.finished:
            print(f"training {job.name} into {job.folder}")
            if not run_job(job):
                raise SystemExit(130)
        reports[job.agent] = Report.load(job.folder / "report.json")
    return reports


def _title(name: str, runs: Sequence[dict[str, Report]]) -> str:
    """What a table shows, and how its brackets are to be read."""
    reports = [report for run in runs for report in run.values()]
    seeds = [run["vgs"].seed for run in runs]
    of = f"seed {seeds[0]}" if len(runs) == 1 else f"median of seeds {seeds}"
    title = f"{name}, {reports[0].n_samples:,} samples, {of}"
    sizes = {report.n_samples for report in reports}
    return title if len(sizes) == 1 else f"{title}; {OWN_IDEALS}"


def _quality_rows(runs: list[dict[str, Report]], bounds: dict[str, tuple[str, float]]) -> Table:
    """One row a metric; a bound has to hold for every seed, and the row says for how many."""
    rows: Table = []
    columns = list(runs[0])
    for name in (*COSTS, *runs[0]["vgs"].metrics):
        metric = runs[0]["vgs"].metrics.get(name)
        row: dict[str, Any] = {"metric": name, "vgs": _median([run["vgs"] for run in runs], name)}
        if len(runs) > 1:
            row["range"] = _range([run["vgs"] for run in runs], name)
        row["ideal"] = "" if metric is None else metric.ideal_text()
        row |= {"bound": "", "holds": ""}
        if name in bounds:
            meaning, bound = bounds[name]
            kept = sum(_holds(run["vgs"], name, meaning, bound) for run in runs)
            row["bound"] = f"{meaning} {bound:g}"
            row["holds"] = ("yes" if kept else "NO") if len(runs) == 1 else f"{kept} of {len(runs)}"
        for column in columns[1:]:
            reports = [run[column] for run in runs]
            row[column] = _median(reports, name) + own_ideal(reports[0].metrics.get(name), metric)
        rows.append(row)
    return rows


def _holds(report: Report, name: str, meaning: str, bound: float) -> bool:
    metric = report.metrics.get(name)
    if meaning == "x ideal":
        bound *= 0.0 if metric is None or metric.ideal is None else metric.ideal
    value = _value(report, name)
    return value >= bound if meaning == "at least" else value <= bound


def _value(report: Report, name: str) -> float:
    """A metric or a count of a report; NaN where it has none."""
    if name in report.metrics:
        return report.metrics[name].value
    return float(getattr(report, name, math.nan))


def _median(reports: Sequence[Report], name: str) -> str:
    """The median over seeds; of a single report the value with its error."""
    if name in COSTS:
        return format_cell(float(np.median([_value(report, name) for report in reports])))
    metrics = [report.metrics[name] for report in reports if name in report.metrics]
    if len(metrics) == 1:
        return metrics[0].text()
    return format_value(float(np.median([f.value for f in metrics]))) if metrics else ""


def _range(reports: Sequence[Report], name: str) -> str:
    values = [_value(report, name) for report in reports]
    shown = format_cell if name in COSTS else format_value
    low, high = shown(min(values)), shown(max(values))
    return low if low == high else f"{low} to {high}"
