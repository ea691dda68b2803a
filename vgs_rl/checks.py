"""Checks of configured numbers and installed packages: one clear error that names the culprit."""

from __future__ import annotations

import importlib.util
import math
import numbers
import os
from pathlib import Path
from typing import Any

import torch

LARGEST_SEED = 2**63 - 1


def require_positive(section: str, **fields: Any) -> None:
    """Raises a ValueError unless every field is a finite number above 0; None is not."""
    for name, value in fields.items():
        if not (_is_number(value) and value > 0):
            raise ValueError(f"{section}.{name} must be a positive number, got {value}")


def require_at_least(section: str, least: float, **fields: Any) -> None:
    """Raises a ValueError unless every field is a finite number of at least `least`."""
    for name, value in fields.items():
        if not (_is_number(value) and value >= least):
            raise ValueError(f"{section}.{name} must be at least {least:g}, got {value}")


def _is_number(value: Any) -> bool:
    """Whether it is a finite number; True is not."""
    found: type = type(value)
    return found is not bool and isinstance(value, numbers.Real) and math.isfinite(value)


def whole(name: str, value: Any) -> int:
    """A whole number as an int: an int of any library, or a float such as 1e3; no boolean.

    Raises:
        ValueError: naming the field, the value and what was expected.
    """
    found: type = type(value)
    if found is not bool:
        if isinstance(value, numbers.Integral):
            return int(value)
        if isinstance(value, numbers.Real) and float(value).is_integer():
            return int(float(value))
    raise ValueError(f"{name} must be a whole number, got {value!r}")


def count_of(name: str, value: Any, *, least: int = 1) -> int:
    """A whole number of at least `least`, as an int.

    Raises:
        ValueError: naming the field, the value and what was expected.
    """
    number = whole(name, value)
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def seed_of(value: Any, name: str = "seed") -> int:
    """A seed, from 0 to 2**63 - 1, as an int.

    Raises:
        ValueError: naming the field, the value and what was expected.
    """
    number = count_of(name, value, least=0)
    if number > LARGEST_SEED:
        raise ValueError(f"{name} must be below 2**63, got {number}")
    return number


def path_of(value: Any, name: str = "path") -> Path:
    """A path, given as one or as text.

    Raises:
        ValueError: naming the field, the value and what was expected.
    """
    if not isinstance(value, (str, os.PathLike)) or not str(value):
        raise ValueError(f"{name} must be a path, got {value!r}")
    return Path(value)


def generator_of(value: Any, device: torch.device, name: str = "generator") -> torch.Generator:
    """A generator on a device, given as one or as a seed.

    Raises:
        ValueError: if it is neither, or lives on another device.
    """
    if not isinstance(value, torch.Generator):
        if not isinstance(value, numbers.Real):
            raise ValueError(f"{name} must be a torch.Generator or a seed, got {value!r}")
        return torch.Generator(device).manual_seed(seed_of(value))
    if value.device.type != device.type:
        raise ValueError(f"{name} must be on the device {device}, got {value.device}")
    return value


def require_module(purpose: str, module: str, extra: str) -> None:
    """Raises a ModuleNotFoundError that names the extra, unless the module is installed."""
    if importlib.util.find_spec(module) is None:
        raise ModuleNotFoundError(
            f"{purpose} needs {module}, which is not installed: pip install 'vgs-rl[{extra}]'"
        )


def exporting() -> bool:
    """Whether a program of `torch.export` is made of what runs: its sizes are not numbers then."""
    asked = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # of torch 2.7
    return bool(asked())


def one_line(error: BaseException) -> str:
    """What an error says, without its line breaks; its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
