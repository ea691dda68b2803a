"""Targets that nobody tuned for, sampled without any setting."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import torch

from vgs_rl.checks import require_positive
from vgs_rl.experiments.automatic import sample
from vgs_rl.experiments.benchmarks.rivals import require_rivals, run_rival
from vgs_rl.experiments.benchmarks.untuned_targets import (
    TARGETS,
    Counted,
    Truth,
    make_target,
)
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
from vgs_rl.plots.plots import save_figure, try_picture
from vgs_rl.plots.verdicts import plot_verdicts

SECTION = "untuned"


def untuned(
    targets: tuple[str, ...] = TARGETS,
    seconds: float = 240.0,
    n: int = 10_000,
    seeds: tuple[int, ...] = (0,),
    rivals: tuple[str, ...] = (),
    json: Path | None = None,
    markdown: Path | None = None,
    picture: Path | None = None,
    section: str = SECTION,
) -> None:
    """Samples targets of known log Z or moments by `vgs_rl.sample`, without any setting.

    A result is right if |log Z - truth| is at most 0.1 and no weighted mean is off by more than
    0.15 true standard deviations, as far as both are known.

    Args:
        targets: names of the benchmark's own densities or of registered targets on R^D.
        seconds: about how long each may take.
        n: samples of each.
        seeds: of the draws and trainings.
        rivals: methods that run on the same targets for the time that `vgs_rl.sample` took, among
            nuts, smc and dynesty; they need the extra `rivals`.
        json: also write the rows to this file, after each target.
        markdown: also write the table into a section of this file, and that of rivals into another
            of this name with `-rivals` behind it.
        picture: also draw errors of log Z and effective sample sizes into this file.
        section: name of that section.
    """
    require_positive("untuned", seconds=seconds)
    require_rivals(rivals)
    truths = {name: Truth.of(make_target(name)) for name in targets}
    sections = (section, f"{section}-rivals")[: 1 + bool(rivals)]
    require_outputs(json, picture, markdown=markdown, sections=sections)
    size = machine(torch.get_num_threads())
    print_machine(size)
    rows: Table = []
    beside: Table = []
    for name, truth in truths.items():
        for seed in seeds:
            row = _sampled(name, truth, n, seconds, seed)
            rows.append(row)
            print_table(f"{name}, seed {seed}", _shown([row]))
            if rivals:
                beside.append(_as_rival(row))
            for rival in rivals:
                beside.append(_rival(name, truth, rival, row["seconds"], seed))
                print_table(f"{name}, seed {seed}, {rival}", _shown(beside[-1:]))
            write_json(_json(size, n, seconds, rows, beside), json)
    print_table(f"{n:,} samples, {seconds:g} seconds a target", _shown(rows))
    print(f"\n  {summary(rows)}")
    if beside:
        print_table("for the same time", _shown(beside))
    if picture is not None:
        picture.parent.mkdir(parents=True, exist_ok=True)
        try_picture(str(picture), lambda: save_figure(plot_verdicts(rows), picture))
    if markdown is not None:
        text = f"{summary(rows)}\n\n{markdown_table(_shown(rows))}"
        if picture is not None and picture.is_file():
            text = f"![|Δ log Z| and ESS]({_link(picture, markdown)})\n\n{text}"
        write_section(markdown, section, text)
        if beside:
            write_section(markdown, sections[1], markdown_table(_shown(beside)))


def counts(rows: Table) -> dict[str, int]:
    """How many results there are, are right, are trusted, and are trusted and wrong."""
    trusted = [row for row in rows if row["verdict"] == "trust"]
    return {
        "results": len(rows),
        "right": sum(row["right"] is True for row in rows),
        "trust": len(trusted),
        "false trusts": sum(row["right"] is False for row in trusted),
    }


def summary(rows: Table) -> str:
    """The same as a sentence."""
    found = counts(rows)
    return (
        f"Right: {found['right']} of {found['results']}. Verdict *trust*: {found['trust']}, "
        f"of which wrong: {found['false trusts']}."
    )


def _sampled(name: str, truth: Truth, n: int, seconds: float, seed: int) -> dict[str, Any]:
    """A row of `vgs_rl.sample`; one that raises is a row without numbers."""
    energy = Counted(make_target(name))
    began = time.monotonic()
    row: dict[str, Any] = {
        "target": name,
        "D": energy.dim,
        "seed": seed,
        "verdict": "failed",
        "right": False,
        "log Z - truth": math.nan,
        "exploration's": math.nan,
        "mean error": math.nan,
        "std error": math.nan,
        "ESS of all": math.nan,
        "k-hat": math.nan,
    }
    try:
        result = sample(energy, n, seconds=seconds, seed=seed)
    except Exception as error:  # one target is not worth the others
        print(f"  {name}, seed {seed}: {type(error).__name__}: {error}")
    else:
        if any(result.settings["effort"].get("stopped", ())):
            raise KeyboardInterrupt  # which the learning has taken for its own
        found, proven = result.evidence, result.evidence.certificate
        mean_error, std_error = truth.errors(result.x, result.log_weight)
        row |= {
            "verdict": str(result.verdict),
            "right": truth.is_right(proven.log_z, mean_error),
            "log Z - truth": _gap(proven.log_z, truth),
            "exploration's": _gap(found.explored_log_z, truth),
            "mean error": mean_error,
            "std error": std_error,
            "ESS of all": proven.ess,
            "k-hat": proven.k_hat,
        }
    return row | {"energies": energy.evaluations, "seconds": time.monotonic() - began}


def _as_rival(row: dict[str, Any]) -> dict[str, Any]:
    """A row of `vgs_rl.sample` among those of rivals."""
    kept = ("right", "log Z - truth", "mean error", "std error")
    head = {"target": row["target"], "D": row["D"], "seed": row["seed"], "method": "vgs_rl.sample"}
    cost = {"energies": row["energies"], "seconds": row["seconds"], "note": row["verdict"]}
    return head | {key: row[key] for key in kept} | {"R-hat": math.nan} | cost


def _rival(name: str, truth: Truth, rival: str, seconds: float, seed: int) -> dict[str, Any]:
    """A row of another method; one that raises is a row without numbers."""
    energy = Counted(make_target(name))
    row: dict[str, Any] = {
        "target": name,
        "D": energy.dim,
        "seed": seed,
        "method": rival,
        "right": False,
        "log Z - truth": math.nan,
        "mean error": math.nan,
        "std error": math.nan,
        "R-hat": math.nan,
    }
    began = time.monotonic()
    try:
        found = run_rival(rival, energy, seconds, seed)
    except Exception as error:  # of another library
        note = "failed"
        print(f"  {name}, seed {seed}, {rival}: {type(error).__name__}: {error}")
    else:
        note = found.note
        mean_error, std_error = truth.errors(found.x, found.log_weight)
        row |= {
            "right": truth.is_right(found.log_z, mean_error),
            "log Z - truth": math.nan if found.log_z is None else _gap(found.log_z, truth),
            "mean error": mean_error,
            "std error": std_error,
            "R-hat": found.r_hat,
        }
    took = time.monotonic() - began
    return row | {"energies": energy.evaluations, "seconds": took, "note": note}


def _gap(log_z: float, truth: Truth) -> float:
    return math.nan if truth.log_z is None else log_z - truth.log_z


def _json(size: dict[str, Any], n: int, seconds: float, rows: Table, beside: Table) -> Any:
    """All results, NaN and infinities as null."""

    def plain(table: Table) -> Table:
        return [
            {
                key: None if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in row.items()
            }
            for row in table
        ]

    settings = {"n": n, "seconds": seconds}
    results = {"summary": counts(rows), "rows": plain(rows), "rivals": plain(beside)}
    return {"machine": size, "settings": settings, **results}


def _shown(rows: Table) -> Table:
    """Rows as a table shows them."""
    words = {True: "yes", False: "no", None: ""}
    return [
        row
        | {
            "right": words[row["right"]],
            "energies": f"{row['energies']:,}",
            "seconds": round(row["seconds"]),
        }
        for row in rows
    ]


def _link(picture: Path, page: Path) -> str:
    """The path of a picture as a page names it."""
    return Path(os.path.relpath(picture.resolve(), page.resolve().parent)).as_posix()
