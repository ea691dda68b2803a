"""Reads other people's files of tensors and arrays without executing anything in them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def load_tensors(path: Path) -> dict[str, Any]:
    """A dictionary of tensors, NumPy arrays, numbers, strings and lists, as torch.save wrote it.

    Raises:
        ValueError: if the file is damaged, is no dictionary, or holds anything else: such a file
            would have to be allowed to run code.
    """
    try:
        _require_no_more_than(path)
        with torch.serialization.safe_globals(_numpy_names()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged or foreign files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} cannot be read: it is damaged, or holds more than tensors, arrays, numbers "
            f"and strings ({reason})"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a dictionary, got {type(content).__name__}")
    return content


def _require_no_more_than(path: Path) -> None:
    """Refuses an archive whose entries are together larger than it is."""
    if not zipfile.is_zipfile(path):
        return  # what torch.save wrote before it wrote archives
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > path.stat().st_size:
        raise ValueError(f"it expands to {size:,} bytes")


def as_tensor(value: Any) -> Tensor:
    """A tensor of a tensor, an array, or a list of equally shaped ones or of numbers."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, list) and value and isinstance(value[0], Tensor | np.ndarray):
        return torch.stack([as_tensor(each) for each in value])
    return torch.as_tensor(np.asarray(value))


def _numpy_names() -> list[Any]:
    """What rebuilds plain arrays, under its names in NumPy 1 and 2."""
    reconstruct, scalar = np.array(0).__reduce__()[0], np.float64(0).__reduce__()[0]
    names: list[Any] = [np.ndarray, np.dtype]
    for package in ("numpy.core", "numpy._core"):
        names.append((reconstruct, f"{package}.multiarray._reconstruct"))
        names.append((scalar, f"{package}.multiarray.scalar"))
    kinds = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?", "U1")
    return names + [type(np.dtype(kind)) for kind in kinds]
