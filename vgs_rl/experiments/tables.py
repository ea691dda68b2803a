"""What all benchmarks print: the machine, tables, JSON."""

from __future__ import annotations

import json
import math
import os
import platform
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vgs_rl.experiments.cli import output_file
from vgs_rl.fields import nearest
from vgs_rl.files.checkpoint import write_text

Table = list[dict[str, Any]]


def machine(threads: int) -> dict[str, Any]:
    """Size of the machine and versions of what the timings depend on."""
    memory = math.nan  # not every system says it
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "gpu": gpu,
        "threads": threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def print_machine(size: dict[str, Any]) -> None:
    """Prints :func:`machine`'s result on one line."""
    print(", ".join(f"{key} {value}" for key, value in size.items()))


def print_table(title: str, rows: Table) -> None:
    """Prints rows of equal keys in columns."""
    print(f"\n{title}")
    cells = [list(rows[0]), *([format_cell(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    for line in cells:
        print("  " + "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def format_cell(value: object) -> str:
    """A number with three digits, or the text itself."""
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def markdown_table(rows: Table) -> str:
    """Rows of equal keys as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[format_cell(value) for value in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_json(result: dict[str, Any], file: Path | None) -> None:
    """Writes `result`, if a file is given."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(result, indent=2) + "\n")


def require_outputs(
    *files: Path | None, markdown: Path | None = None, sections: Iterable[str] = ()
) -> None:
    """Refuses, before any work, what a benchmark could not write in the end.

    Args:
        files: that it writes.
        markdown: a page that it writes into.
        sections: of that page.

    Raises:
        ValueError: naming the file or the section.
    """
    for file in (*files, markdown):
        if file is not None:
            output_file.read(file)
    if markdown is not None:
        for section in sections:
            require_section(markdown, section)


def require_section(file: Path, name: str) -> None:
    """Refuses a file that a section cannot be written into: one that has other text, no marks.

    Raises:
        ValueError: naming the sections that it has.
    """
    old = file.read_text(encoding="utf-8") if file.is_file() else ""
    sections = re.findall(r"<!-- ([\w-]+):begin -->", old)
    if old and (name not in sections or f"<!-- {name}:end -->" not in old):
        hint = nearest(name, sections)
        raise ValueError(f"{file} has no section {name!r} (<!-- {name}:begin -->); {hint}")


def write_section(file: Path, name: str, text: str) -> None:
    """Replaces what stands between a file's marks of a section; a new file gets the marks."""
    require_section(file, name)
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    old = file.read_text(encoding="utf-8") if file.is_file() else ""
    head, tail = (old.split(begin)[0], old.split(end)[1]) if old else ("", "\n")
    text = f"{head}{begin}\n\n{text}\n\n{end}{tail}"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text if text.endswith("\n") else text + "\n")
