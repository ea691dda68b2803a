"""What a comparison found: tables over seeds with ideals, findings in words, pictures."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vgs_rl.evaluation.evaluate import Report
from vgs_rl.evaluation.report import OWN_IDEALS, format_value, own_ideal
from vgs_rl.experiments.baselines import BASELINES
from vgs_rl.experiments.comparison.jobs import CompareError, Job
from vgs_rl.experiments.tables import Table, format_cell, markdown_table

# The figures shown, and whether more is better.
FIGURES = {
    "elbo": True,
    "gap": False,
    "tvd_energy": False,
    "tvd_distance": False,
    "w2_energy": False,
    "mode_weight_error": False,
    "std_error": False,
    "log_z_error": False,
    "ess": True,
}
EVALUATED = ("elbo", "tvd_energy")  # what agents are ranked by, in words

Results = Mapping[str, Mapping[str, Sequence[Report]]]
"""Reports over seeds by target and agent."""


def read_reports(files: str, jobs: Sequence[Job]) -> list[Report]:
    """Reports of samplers that were evaluated elsewhere, from files with commas between.

    Raises:
        CompareError: if one cannot be read, is of a target that is not compared, or has the name of
            a run.
    """
    reports = []
    for file in filter(None, files.split(",")):
        try:
            report = Report.load(Path(file))
        except (OSError, ValueError) as error:
            raise CompareError(f"--reports {file}: {error}") from error
        targets = list(dict.fromkeys(job.env for job in jobs))
        if report.target not in targets:
            raise CompareError(
                f"--reports {file} is of the target {report.target!r}, compared are "
                f"{', '.join(targets)}"
            )
        if not report.agent or report.agent in {job.agent for job in jobs}:
            raise CompareError(
                f"--reports {file} calls its agent {report.agent!r}; a row needs its own name"
            )
        reports.append(report)
    return reports


def collect(jobs: Sequence[Job], others: Sequence[Report] = ()) -> Results:
    """The reports of all finished runs, and of samplers that were evaluated elsewhere."""
    found: dict[str, dict[str, list[Report]]] = {}
    for job in jobs:
        report = job.report()
        if report is not None:
            found.setdefault(job.env, {}).setdefault(job.agent, []).append(report)
    for report in others:
        if report.target in found:
            found[report.target].setdefault(report.agent, []).append(report)
    return found


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error over seeds; the error of a single one is NaN."""
    n = len(values)
    error = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return float(np.mean(values)), error


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    return format_value(*mean_and_error(values))


def values_of(reports: Sequence[Report], name: str) -> list[float]:
    """One figure over seeds."""
    return [report.metrics[name].value for report in reports if name in report.metrics]


def table(results: Mapping[str, Sequence[Report]]) -> Table:
    """One row an agent, the ideal first, with an agent's own behind it; then costs."""
    everything = [report for reports in results.values() for report in reports]
    names = [name for name in FIGURES if any(name in report.metrics for report in everything)]
    found = {name: [r.metrics[name] for r in everything if name in r.metrics] for name in names}
    ideals = {
        name: next((figure for figure in figures if figure.ideal is not None), None)
        for name, figures in found.items()
    }
    costs = ("seeds", "seconds", "env steps", "energies", "energies per sample")
    rows: Table = [
        {
            "agent": "*ideal*",
            **{name: f.ideal_text() if f is not None else "" for name, f in ideals.items()},
            **dict.fromkeys(costs, ""),
        }
    ]
    for agent, reports in results.items():
        per_sample = [
            report.details.get("sampling_energy_evaluations", 0) / report.n_samples
            for report in reports
        ]
        cost = (
            len(reports),
            format_cell(float(np.mean([r.train_seconds for r in reports]))),
            format_cell(float(np.mean([r.env_steps for r in reports]))),
            format_cell(float(np.mean([r.energy_evaluations for r in reports]))),
            format_cell(float(np.mean(per_sample))),
        )
        figures = {
            name: _cell(values_of(reports, name))
            + own_ideal(reports[0].metrics.get(name), ideals[name])
            for name in names
        }
        rows.append({"agent": agent, **figures, **dict(zip(costs, cost, strict=True))})
    return rows


def findings(results: Mapping[str, Sequence[Report]]) -> list[str]:
    """Sentences: whom value-gradient agents do not beat, who does not learn anything."""
    sentences = []
    means = {
        agent: {
            name: mean_and_error(values)[0]
            for name in EVALUATED
            if (values := values_of(reports, name))
        }
        for agent, reports in results.items()
    }
    ours = [agent for agent in means if agent.partition("-")[0] == "vgs"]
    for agent, name in itertools.product(ours, EVALUATED):
        if name not in means[agent]:
            continue
        own, sign = means[agent][name], 1.0 if FIGURES[name] else -1.0
        # A figure that is not finite belongs to a sampler that diverged: beaten.
        finite = {a: m[name] for a, m in means.items() if math.isfinite(m.get(name, math.nan))}
        others = {a: value for a, value in finite.items() if a not in ours}
        ahead = {a: value for a, value in others.items() if not sign * own > sign * value}
        listed = ", ".join(f"{other} ({format_value(value)})" for other, value in ahead.items())
        what = f"{name} {format_value(own)}"
        if ahead:
            sentences.append(f"{agent} ({what}) does **not** beat {listed}")
        elif others:
            sentences.append(f"{agent} ({what}) beats every other row")
    start = means.get("uncontrolled", {}).get("elbo")
    learned = {
        agent: mean["elbo"]
        for agent, mean in means.items()
        if agent not in BASELINES and "elbo" in mean
    }
    if start is not None and learned:
        worse = [agent for agent, elbo in learned.items() if not elbo > start]
        sentences.append(
            f"no better than the uncontrolled chain's ELBO: {', '.join(worse)}"
            if worse
            else "every agent improves on the uncontrolled chain's ELBO"
        )
    return sentences


def as_markdown(results: Results, title: str, failed: Mapping[str, str]) -> str:
    """Tables and findings of all targets."""
    parts = []
    for env, agents in results.items():
        first = next(iter(agents.values()))[0]
        parts.append(f"**{env}, {title}, {first.n_samples:,} samples**")
        rows = table(agents)
        parts.append(markdown_table(rows))
        if any(str(row[name]).endswith(")") for row in rows[1:] for name in FIGURES if name in row):
            parts.append(f"{OWN_IDEALS[0].upper()}{OWN_IDEALS[1:]}.")
        parts.append("\n".join(f"- {sentence}" for sentence in findings(agents)))
    if failed:
        parts.append("Failed:")
        parts.append("\n".join(f"- {name}: {why}" for name, why in failed.items()))
    return "\n\n".join(parts)


def as_json(results: Results, failed: Mapping[str, str]) -> dict[str, Any]:
    """Means, errors, ideals and all reports."""
    summary = {
        env: {
            agent: {
                name: dict(zip(("mean", "standard_error"), _finite(values), strict=True))
                for name in FIGURES
                if (values := values_of(reports, name))
            }
            for agent, reports in agents.items()
        }
        for env, agents in results.items()
    }
    reports = [
        json.loads(report.as_json())
        for agents in results.values()
        for reports in agents.values()
        for report in reports
    ]
    return {
        "summary": summary,
        "findings": {env: findings(agents) for env, agents in results.items()},
        "failed": dict(failed),
        "reports": reports,
    }


def _finite(values: Sequence[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in mean_and_error(values)]
