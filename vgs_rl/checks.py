"""Checks of configured numbers and installed packages: one clear error that names the culprit."""

from __future__ import annotations

import importlib.util
import math


def require_positive(section: str, **fields: float | None) -> None:
    """Raises a ValueError unless every field is a finite number above 0; None is not."""
    for name, value in fields.items():
        if value is None or not (math.isfinite(value) and value > 0):
            raise ValueError(f"{section}.{name} must be a positive number, got {value}")


def require_at_least(section: str, least: float, **fields: float) -> None:
    """Raises a ValueError unless every field is a finite number of at least `least`."""
    for name, value in fields.items():
        if not (math.isfinite(value) and value >= least):
            raise ValueError(f"{section}.{name} must be at least {least:g}, got {value}")


def require_module(purpose: str, module: str, extra: str) -> None:
    """Raises a ModuleNotFoundError that names the extra, unless the module is installed."""
    if importlib.util.find_spec(module) is None:
        raise ModuleNotFoundError(
            f"{purpose} needs {module}, which is not installed: pip install 'vgs-rl[{extra}]'"
        )
