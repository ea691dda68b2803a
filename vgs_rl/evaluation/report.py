"""What an evaluation found: metrics with their ideals, as JSON, tables and scalars."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from html import escape
from pathlib import Path
from typing import Any, Protocol

from vgs_rl.files.checkpoint import write_text

OWN_IDEALS = "in brackets: a sampler's own ideal, where it differs"


class ScalarWriter(Protocol):
    """What :meth:`Report.to_tensorboard` needs of a TensorBoard ``SummaryWriter``."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Writes one number."""


@dataclass(kw_only=True)
class Metric:
    """One number of a report.

    Attributes:
        value: the number; not finite where the sampler diverged.
        ideal: what a perfect sampler scores, or None where that is unknown.
        n: number of samples or paths behind it.
        note: its settings, for people.
        details: the same settings for machines, such as bins, reg, batches, reference samples.
    """

    value: float
    ideal: float | None
    n: int
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def error(self) -> float | None:
        """Standard error of the value, or None where it is unknown."""
        error: float | None = self.details.get("standard_error")
        return self._of_mean("std") if error is None else error

    @property
    def ideal_error(self) -> float | None:
        """Standard deviation of what perfect samplers score, or None where it is unknown."""
        return self._of_mean("ideal_std")

    def _of_mean(self, name: str) -> float | None:
        """That of a mean over repeats, of which `name` is the spread."""
        spread: float | None = self.details.get(name)
        return None if spread is None else spread / math.sqrt(self.details.get("repeats", 1))

    def text(self) -> str:
        """The value with its error."""
        return format_value(self.value, self.error)

    def ideal_text(self) -> str:
        """The ideal with its error; empty where there is none."""
        return format_value(self.ideal, self.ideal_error)


@dataclass(kw_only=True)
class Report:
    """Everything known about one sampler on one target.

    Attributes:
        target: name of the target.
        agent: name of what drew the samples.
        seed: training seed, or None for a sampler that was not trained.
        n_samples: samples evaluated.
        train_seconds: wall-clock spent on training.
        env_steps: transitions simulated in training.
        energy_evaluations: states at which E or ∇E was evaluated in training.
        metrics: by name, as in the ``report.json`` paragraph of the design.
        details: settings of the evaluation itself, with what sampling has cost.
    """

    target: str
    agent: str
    seed: int | None
    n_samples: int
    train_seconds: float
    env_steps: int
    energy_evaluations: int
    metrics: dict[str, Metric]
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> list[str]:
        """What may be believed of the samples, and why, a line each; empty where nothing is known.

        There is one where the energy was explored (:class:`vgs_rl.evaluation.verdict.Verdict`).
        """
        found = self.details.get("verdict")
        return [] if not found else [f"verdict: {found['word']}", *found["reasons"]]

    def as_json(self) -> str:
        """The report as strict JSON: numbers that are not finite become null."""
        content = {f.name: getattr(self, f.name) for f in fields(self)}
        content["metrics"] = {
            name: {
                "value": metric.value,
                "ideal": metric.ideal,
                "n": metric.n,
                "note": metric.note,
                **metric.details,
            }
            for name, metric in self.metrics.items()
        }
        return json.dumps(_finite(content), indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The inverse of :meth:`as_json`; a value of null is read as NaN.

        Raises:
            ValueError: if the text is not a report, naming what is missing or unknown.
        """
        try:
            content = json.loads(text, parse_int=_whole)
        except RecursionError as error:
            raise ValueError("not a report: it is nested too deep") from error
        if not isinstance(content, dict):
            raise ValueError(f"a report must be a JSON object, got {type(content).__name__}")
        names = {f.name for f in fields(cls)}
        missing = sorted(names - {"details"} - content.keys())
        unknown = sorted(content.keys() - names)
        if missing or unknown:
            raise ValueError(f"not a report: missing keys {missing}, unknown keys {unknown}")
        for name, kinds in _KINDS.items():
            if not _is(content.get(name, {}), *kinds):
                raise ValueError(f"not a report: {name} is {content[name]!r:.80}")
        content["metrics"] = {
            name: _metric_from(name, entry) for name, entry in content["metrics"].items()
        }
        return cls(**content)

    @classmethod
    def load(cls, path: Path | str) -> Report:
        """A report from its file.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged or holds something else, naming the file.
        """
        path = Path(path)
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"report {path} is damaged or no report: {error}") from error

    def to_table(self, *, markdown: bool = False) -> str:
        """One line a metric, its value and its ideal, each with its error where it has one."""
        return _table(self._cells(), numeric=(1, 2, 3), markdown=markdown)

    def _cells(self) -> list[list[str]]:
        lines = [["metric", "value", "ideal", "n", "settings"]]
        for name, metric in self.metrics.items():
            numbers = [metric.text(), metric.ideal_text(), f"{metric.n:,}"]
            lines.append([_label(name, metric), *numbers, metric.note])
        return lines

    def plot(self) -> Any:
        """A matplotlib figure: every metric against its ideal."""
        return importlib.import_module("vgs_rl.plots.results").plot_report(self)

    def __str__(self) -> str:
        who = f"{self.agent or 'sampler'} on {self.target}, {self.n_samples:,} samples"
        notes = "".join(f"\nnote: {note}" for note in self.details.get("notes", []))
        verdict = "".join(f"{line}\n" for line in self.verdict)
        return f"{verdict}{who}\n\n{self.to_table()}{notes}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head, *rows = self._cells()
        cells = "".join(f"<th>{escape(each)}</th>" for each in head)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(each)}</td>" for each in row) + "</tr>" for row in rows
        )
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.details.get("notes", []))
        who = escape(f"{self.agent or 'sampler'} on {self.target}, {self.n_samples:,} samples")
        table = f"<table><caption>{who}</caption><tr>{cells}</tr>{body}</table>"
        return f"<div>{table}{notes}</div>"

    def save(self, path: Path | str) -> None:
        """Writes :meth:`as_json` to a file, whole or not at all."""
        write_text(Path(path), self.as_json() + "\n")

    def to_tensorboard(self, writer: ScalarWriter, step: int) -> None:
        """Writes the metrics as ``report/<name>``."""
        for name, metric in self.metrics.items():
            writer.add_scalar(f"report/{name}", metric.value, step)

    def ideals(self) -> dict[str, float]:
        """What perfect samplers score, by the tags of TensorBoard.

        Those of ``eval/`` are here where they do not depend on the number of samples: log Z for the
        ELBO and for the estimate of log Z, and 1 for the path-ESS.
        """
        known = {name: m.ideal for name, m in self.metrics.items() if m.ideal is not None}
        ideals = {f"report/{name}": ideal for name, ideal in known.items()}
        for name in ("elbo", "path_ess"):
            if name in known:
                ideals[f"eval/{name}"] = known[name]
        if "elbo" in known:
            ideals["eval/log_z"] = known["elbo"]
        return ideals


def format_comparison(reports: Mapping[str, Report], *, markdown: bool = False) -> str:
    """One table of several reports: rows are metrics, columns their values.

    The ideal, that of the first report, stands right behind the first report's column. Where
    another report has another ideal, as for other sample counts, it follows the value in brackets.
    A metric that a report does not have is left blank.

    Args:
        reports: by column name, such as ``{"this run": …, "oracle posterior": …}``.
        markdown: a Markdown table instead of plain text.

    Raises:
        ValueError: if there is no report.
    """
    if not reports:
        raise ValueError("reports must not be empty")
    (first_name, first), *others = reports.items()
    names = list(dict.fromkeys(name for report in reports.values() for name in report.metrics))
    lines = [["metric", first_name, "ideal", *(name for name, _ in others)]]
    for name in names:
        metric = first.metrics.get(name)
        values = [_with_own_ideal(report.metrics.get(name), metric) for _, report in others]
        shown = ["", ""] if metric is None else [metric.text(), metric.ideal_text()]
        any_metric = next(r.metrics[name] for r in reports.values() if name in r.metrics)
        lines.append([_label(name, any_metric), *shown, *values])
    table = _table(lines, numeric=range(1, len(lines[0])), markdown=markdown)
    title = f"{first.target}, {first.n_samples:,} samples"
    if any(cell.endswith(")") for line in lines[1:] for cell in line[3:]):
        title += f"; {OWN_IDEALS}"
    return f"**{title}**\n\n{table}" if markdown else f"{title}\n{table}"


# What a report's file holds.
_KINDS: dict[str, tuple[type | None, ...]] = {
    "target": (str,),
    "agent": (str,),
    "seed": (int, None),
    "n_samples": (int,),
    "train_seconds": (float, int, None),
    "env_steps": (int,),
    "energy_evaluations": (int,),
    "metrics": (dict,),
    "details": (dict,),
}


def _whole(digits: str) -> int:
    """A whole number that a float can hold.

    Raises:
        ValueError: if it is larger than any count.
    """
    number = int(digits)
    if abs(number) >= 2**63:
        raise ValueError(f"a whole number must be below 2**63, got {digits:.20}")
    return number


def _is(value: Any, *kinds: type | None) -> bool:
    """Whether a value of JSON has one of these types; true is no number."""
    found: type | None = None if value is None else type(value)
    return found in kinds


def _metric_from(name: str, entry: Any) -> Metric:
    if not isinstance(entry, dict) or not {"value", "ideal", "n"} <= entry.keys():
        raise ValueError(f"metric {name} must have the keys value, ideal and n, got {entry!r}")
    details = {key: entry[key] for key in entry.keys() - {"value", "ideal", "n", "note"}}
    value = math.nan if entry["value"] is None else entry["value"]
    note = entry.get("note", "")
    errors = [details.get(key) for key in ("standard_error", "std", "ideal_std")]
    if not (
        all(_is(each, float, int, None) for each in (value, entry["ideal"], *errors))
        and _is(entry["n"], int)
        and _is(note, str)
        and _is(repeats := details.get("repeats", 1), int)
        and repeats > 0
    ):
        raise ValueError(f"metric {name} has no numbers, but {entry!r:.80}")
    return Metric(value=value, ideal=entry["ideal"], n=entry["n"], note=note, details=details)


def _finite(content: Any) -> Any:
    """A copy in which every float that strict JSON cannot hold is None."""
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content


def own_ideal(metric: Metric | None, first: Metric | None) -> str:
    """A metric's ideal in brackets for a table that shows that of `first`, if it is another."""
    own, shown = (None if f is None else f.ideal for f in (metric, first))
    return "" if own is None or own == shown else f" ({format_value(own)})"


def format_value(value: float | None, error: float | None = None) -> str:
    """A number for tables, with its standard error unless that is below what is shown.

    Four decimals, so that gaps of a thousandth of a nat are seen, or as many digits as large and
    small numbers need.
    """
    if value is None:
        return ""
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    form = ".4f"
    if size >= 1e6:
        form = ".3e"
    elif size >= 1000:
        form = ",.2f"
    elif 0 < size < 1e-4:
        form = ".1e"
    text = f"{value:{form}}"
    if error is None or not math.isfinite(error) or error < 1e-3 * size * (size < 1e-4):
        return text
    shown = f"{error:{form}}"
    return f"{text} ± {shown}" if float(shown.replace(",", "")) else text


def _label(name: str, metric: Metric) -> str:
    """The metric's name, with the premise that it rests on."""
    premise = metric.details.get("premise")
    return name if premise is None else f"{name} from {premise}"


def _with_own_ideal(metric: Metric | None, first: Metric | None) -> str:
    return "" if metric is None else metric.text() + own_ideal(metric, first)


def _table(lines: list[list[str]], *, numeric: Collection[int], markdown: bool) -> str:
    """Columns of equal width, the numeric ones flush right; the first line is the header."""
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(lines[0]))]
    padded = [
        [
            cell.rjust(width) if i in numeric else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    if markdown:
        marks = ["-" * (w - 1) + ":" if i in numeric else "-" * w for i, w in enumerate(widths)]
        return "\n".join(f"| {' | '.join(line)} |" for line in [padded[0], marks, *padded[1:]])
    marks = ["-" * width for width in widths]
    return "\n".join("  ".join(line).rstrip() for line in [padded[0], marks, *padded[1:]])
