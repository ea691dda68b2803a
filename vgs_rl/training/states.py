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
from vgs_rl.files.restore import check_like, check_rows

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


def is_kept(index: int, first: int = FILES) -> bool:
    """Whether what this validation could show is kept: all of the first, then ever fewer.

    Their number grows as the logarithm of the number of validations.

    Args:
        index: which validation it is, from 0.
        first: how many are kept before every second one, and then every fourth, is left.

    Example:
        >>> [index for index in range(20) if is_kept(index, first=4)]
        [0, 1, 2, 3, 4, 6, 8, 12, 16]
    """
    return index % _stride(index, first) == 0


def _stride(index: int, first: int) -> int:
    stride = 1
    while index >= first * stride:
        stride *= 2
    return stride


def keep_states(path: Path, x: Tensor, record: Mapping[str, Any], index: int) -> None:
    """Writes states/<index>.pt, unless this validation is between those that are kept.

    Args:
        path: the run folder.
        x: samples of the validation, shape (n, D).
        record: the validation's record, whose counters are kept.
        index: which validation it is, from 0.
    """
    stride = _stride(index, FILES)
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
    like = {"x": None, "counters": dict.fromkeys(COUNTERS, 0)}
    for each in found:
        check_like(each, like, path.name)
        check_rows(each, {"x": 2}, path.name)
    return [ValidationStates(x=each["x"], counters=each["counters"]) for each in found]


def _numbered(folder: Path) -> Iterator[tuple[int, Path]]:
    for file in sorted(folder.glob("[0-9]*.pt")):
        yield int(file.stem), file
