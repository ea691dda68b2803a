"""A few states of some validations of a run, for pictures of its samples over the budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vgs_rl.evaluation.metrics import evenly_spaced_rows
from vgs_rl.files.checkpoint import load_checkpoint, save_checkpoint

FOLDER = "states"
ROWS = 256  # states of one validation
FILES = 16  # at most; where there are more, every second one goes
COUNTERS = ("env_steps", "energy_evaluations", "seconds", "updates")


@dataclass(frozen=True, kw_only=True)
class ValidationStates:
    """States of one validation.

    Attributes:
        x: shape (n, D), at most :data:`ROWS` of the validation's samples.
        counters: what the run had used by then.
    """

    x: Tensor
    counters: Mapping[str, float]


def keep_states(path: Path, x: Tensor, record: Mapping[str, Any], index: int) -> None:
    """Writes states/<index>.pt, unless this validation is between those that are kept.

    Args:
        path: the run folder.
        x: samples of the validation, shape (n, D).
        record: the validation's record, whose counters are kept.
        index: which validation it is, from 0.
    """
    stride = 1
    while index >= FILES * stride:
        stride *= 2
    if index % stride:
        return
    folder = path / FOLDER
    if path.is_dir():  # else the write says that the folder is gone
        folder.mkdir(exist_ok=True)
    rows = evenly_spaced_rows(x.detach(), min(ROWS, len(x))).float().cpu().clone()
    counters = {name: record[name] for name in COUNTERS}
    save_checkpoint(folder / f"{index:06d}.pt", {"x": rows, "counters": counters})
    for number, file in _numbered(folder):
        if number % stride:
            file.unlink()


def drop_states(path: Path, count: int) -> None:
    """Removes the states of all validations but the first `count`."""
    for number, file in _numbered(path / FOLDER):
        if number >= count:
            file.unlink()


def load_states(path: Path) -> list[ValidationStates]:
    """The states that a run folder holds, in the order of its validations.

    Raises:
        ValueError: if a file is damaged, naming it.
    """
    found = [load_checkpoint(file, torch.device("cpu")) for _, file in _numbered(path / FOLDER)]
    return [ValidationStates(x=each["x"], counters=each["counters"]) for each in found]


def _numbered(folder: Path) -> Iterator[tuple[int, Path]]:
    for file in sorted(folder.glob("[0-9]*.pt")):
        yield int(file.stem), file
