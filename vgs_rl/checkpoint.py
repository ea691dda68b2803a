"""Checkpoints: plain tensors, numbers and strings; written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

FORMAT = "vgs_rl checkpoint"
VERSION = 1


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Calls `write` on a temporary file beside `path` and renames it; a failure leaves nothing."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        mode = 0o666 & ~_umask()
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    write_atomically(path, lambda file: file.write(text.encode()))


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Saves a nested dict of tensors, numbers, strings, lists and dicts."""
    content = {"format": FORMAT, "version": VERSION, "state": state}
    write_atomically(path, lambda file: torch.save(content, file))


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Loads what :func:`save_checkpoint` saved; never executes code from the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is truncated, not a checkpoint of this package, or of another version.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged or foreign files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"checkpoint {path} cannot be read: it is truncated or not one of vgs_rl's ({reason})"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"checkpoint {path} was not written by vgs_rl")
    if content["version"] != VERSION:
        raise ValueError(
            f"checkpoint {path} has version {content['version']}, this package reads {VERSION}"
        )
    state: dict[str, Any] = content["state"]
    return state
