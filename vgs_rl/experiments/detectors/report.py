"""The tables of a detector experiment: every method, mean and spread over seeds, by class."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vgs_rl.agents.ebm.classical import OutlierConfig, OutlierDetector
from vgs_rl.agents.ebm.detector import evaluate_detector, load_energy
from vgs_rl.evaluation.detection import detection_metrics, mean_metrics
from vgs_rl.evaluation.report import Report
from vgs_rl.experiments.detectors.config import DetectorConfig, saved_config
from vgs_rl.experiments.detectors.jobs import Job, build
from vgs_rl.experiments.pretrained import counters_of
from vgs_rl.experiments.tables import Table, markdown_table
from vgs_rl.files.checkpoint import write_text
from vgs_rl.training.config import ConfigError, read_yaml
from vgs_rl.training.loop import Counters
from vgs_rl.trust import Trust

METRICS = ("auroc_image", "auroc_pixel")


def collect(config: DetectorConfig, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """One entry for each method and seed: metrics over all parts, and what training cost."""
    entries = []
    for method in dict.fromkeys(job.method for job in jobs):
        for seed in config.all_seeds:
            mine = [job for job in jobs if (job.method, job.seed) == (method, seed)]
            reports = [report for job in mine if (report := job.report()) is not None]
            if len(reports) == len(mine):
                entries.append(_entry(method, seed, reports))
    return entries + (classical(config) if config.compare else [])


def classical(config: DetectorConfig) -> list[dict[str, Any]]:
    """The same entries for classical detectors."""
    entries = []
    for seed in config.all_seeds:
        data_sets = [config.data.load(part, seed) for part in config.parts]
        for method in config.comparison.outliers:
            options = OutlierConfig(max_rows=config.comparison.max_rows, seed=seed)
            reports, began = [], time.perf_counter()
            for part, data in zip(config.parts, data_sets, strict=True):
                detector = OutlierDetector(method, data.rows, options)
                seconds = time.perf_counter() - began
                report = Report(
                    target=f"{config.data.name}-{part}",
                    agent=method,
                    seed=seed,
                    n_samples=len(data.test),
                    train_seconds=seconds,
                    env_steps=0,
                    energy_evaluations=0,
                    metrics=detection_metrics(detector, data.test),
                )
                reports.append(report)
                began = time.perf_counter()
            entries.append(_entry(method, seed, reports))
    return entries


def _entry(method: str, seed: int, reports: Sequence[Report]) -> dict[str, Any]:
    metrics = mean_metrics([report.metrics for report in reports])
    guards = ("rollbacks", "collapses", "restarts")
    return {
        "method": method,
        "seed": seed,
        "metrics": {
            name: {"value": metric.value, "ideal": metric.ideal, "n": metric.n, **metric.details}
            for name, metric in metrics.items()
        },
        "train_seconds": sum(report.train_seconds for report in reports),
        "env_steps": sum(report.env_steps for report in reports),
        "energy_evaluations": sum(report.energy_evaluations for report in reports),
        "updates": sum(report.details.get("updates", 0) for report in reports),
        "guards": sum(report.details.get(name, 0) for report in reports for name in guards),
    }


def is_detector(run: Path) -> bool:
    """Whether a run folder is one of a detector experiment."""
    file = run / "config.yaml"
    return file.is_file() and "ebm" in read_yaml(file)


def evaluate_runs(
    runs: Sequence[Path],
    *,
    checkpoint: str | None = None,
    split: str = "test",
    trust: Trust = False,
    device: str | None = None,
) -> dict[str, Report]:
    """Reports of trained detectors, each on its own data, by run folder.

    Args:
        runs: run folders.
        checkpoint: `best` or `last`; by default the best, or the last if validation chose none.
        split: `test` or `validation`.
        trust: the user's word for what their configurations name.
        device: where to score; the run's own device by default.

    Raises:
        ConfigError: if there is no such split.
        FileNotFoundError: if a checkpoint is missing.
        ValueError: if one is damaged or does not fit.
    """
    if split not in ("test", "validation"):
        raise ConfigError(f"--split must be test or validation, got {split!r}")
    reports = {}
    for run in runs:
        config = saved_config(run, trust, device)
        data, trainer = build(config)
        state = load_energy(run, trainer, checkpoint, config)
        done = run / "report.json"
        if done.is_file():  # what the whole training has cost, not the checkpoint's part
            report = Report.load(done)
            trainer.counters = counters_of(report)
        else:
            trainer.counters = Counters(**state["counters"])
        reports[str(run)] = evaluate_detector(
            trainer,
            getattr(data, split),
            target=f"{data.name}-{data.class_name}",
            seed=config.seed,
            validation=state.get("validation"),
        )
    return reports


def summary(entries: Sequence[dict[str, Any]]) -> Table:
    """One row a method: mean ± standard deviation over seeds of each metric, and mean costs."""
    rows: Table = []
    for method, mine in _by_method(entries).items():
        row: dict[str, Any] = {"method": method}
        for name in _present(entries):
            row[name] = _spread([entry["metrics"][name]["value"] for entry in mine])
        for name in ("train_seconds", "updates", "energy_evaluations", "guards"):
            row[name.replace("_", " ")] = float(np.mean([entry[name] for entry in mine]))
        rows.append(row | {"seeds": len(mine)})
    return rows


def by_class(entries: Sequence[dict[str, Any]], metric: str) -> Table:
    """One row a method: the metric of every class, mean over seeds."""
    rows: Table = []
    for method, mine in _by_method(entries).items():
        metrics = [entry["metrics"][metric] for entry in mine]
        classes = {
            name: float(np.mean([each["classes"][name] for each in metrics]))
            for name in metrics[0]["classes"]
        }
        classes["mean"] = float(np.mean([each["value"] for each in metrics]))
        shown = {name: f"{value:.3f}" for name, value in classes.items()}
        rows.append({"method": method} | shown)
    return rows


def verdicts(entries: Sequence[dict[str, Any]]) -> list[str]:
    """How far the first method is above each other, as lines."""
    rows, lines = _means(entries), []
    (own, metrics), *rest = rows.items()
    others = dict(rest)
    for name in _present(entries):
        gaps = [f"{method} {metrics[name] - other[name]:+.3f}" for method, other in others.items()]
        if gaps:
            lines.append(f"- {own}'s {name} minus that of {', '.join(gaps)}")
    return lines


def as_markdown(
    config: DetectorConfig, entries: Sequence[dict[str, Any]], failed: Mapping[str, str]
) -> str:
    """All tables, and what failed: reasons by the names of the runs."""
    seeds = list(config.all_seeds)
    title = f"{config.data.name}, test split, seeds {seeds[0]} to {seeds[-1]}"
    parts = [f"**{title}: means over classes ± standard deviation over seeds**"]
    parts.append(markdown_table(summary(entries)))
    if lines := verdicts(entries):
        parts.append("\n".join(lines))
    for name in _present(entries):
        parts += [f"**{name} by class**", markdown_table(by_class(entries, name))]
    if failed:
        parts += ["Failed:", "\n".join(f"- {name}: {why}" for name, why in failed.items())]
    return "\n\n".join(parts)


def write(
    config: DetectorConfig,
    entries: Sequence[dict[str, Any]],
    size: dict[str, Any],
    failed: Mapping[str, str],
) -> dict[str, Any]:
    """Writes table.md and table.json into the experiment's folder; returns the latter's content."""
    content = {
        "data": config.data.name,
        "machine": size,
        "rows": summary(entries),
        "reports": list(entries),
        "failed": dict(failed),
    }
    write_text(config.folder / "table.md", as_markdown(config, entries, failed) + "\n")
    write_text(config.folder / "table.json", json.dumps(content, indent=2) + "\n")
    return content


def _present(entries: Sequence[dict[str, Any]]) -> list[str]:
    return [name for name in METRICS if all(name in entry["metrics"] for entry in entries)]


def _means(entries: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    return {
        method: {
            name: float(np.mean([entry["metrics"][name]["value"] for entry in mine]))
            for name in _present(entries)
        }
        for method, mine in _by_method(entries).items()
    }


def _by_method(entries: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    methods: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        methods.setdefault(entry["method"], []).append(entry)
    return methods


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}"
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
