"""Samples in the files and objects of other programs."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vgs_rl.checks import count_of, require_module
from vgs_rl.files.checkpoint import write_atomically, write_text

if TYPE_CHECKING:
    from vgs_rl.samplers.base import Samples


def write_npz(samples: Samples, path: Path) -> None:
    """NumPy's archive of `x` (n, D), `log_weight` (n,) if there are weights, `temperature`."""
    arrays: dict[str, Any] = {
        "x": samples.x.cpu().numpy(),
        "temperature": np.array(samples.temperature),
    }
    if samples.log_weight is not None:
        arrays["log_weight"] = samples.log_weight.cpu().numpy()
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(content.getvalue()))


def write_xyz(samples: Samples, path: Path, n_particles: int, element: str) -> None:
    """One frame a sample; coordinates that a plane or a line lacks are 0.

    Raises:
        ValueError: if the states are not of so many particles in at most three dimensions.
    """
    n, dim = samples.x.shape
    particles = count_of("n_particles", n_particles)
    if dim % particles or dim // particles > 3:
        raise ValueError(
            f"n_particles must divide {dim} dimensions into at most 3 for each, got {n_particles}"
        )
    places = np.zeros((n, particles, 3))
    places[:, :, : dim // particles] = samples.x.cpu().numpy().reshape(n, particles, -1)
    weights = [""] * n
    if samples.log_weight is not None:
        weights = [f" log_weight={value:.9g}" for value in samples.log_weight.tolist()]
    frames = (
        f"{particles}\nsample {i}{weight}\n"
        + "".join(f"{element} {x:.9g} {y:.9g} {z:.9g}\n" for x, y, z in frame)
        for i, (frame, weight) in enumerate(zip(places, weights, strict=True))
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(frames))


def as_arviz(samples: Samples) -> Any:
    """An ArviZ DataTree: one chain, `posterior.x` and `sample_stats.log_weight`.

    Raises:
        ModuleNotFoundError: if ArviZ is not installed, with the extra that has it.
    """
    require_module("to_arviz", "arviz_base", "arviz")
    from arviz_base import from_dict

    groups = {"posterior": {"x": samples.x.cpu().numpy()[None]}}
    if samples.log_weight is not None:
        groups["sample_stats"] = {"log_weight": samples.log_weight.cpu().numpy()[None]}
    attributes = {group: {"temperature": samples.temperature} for group in groups}
    return from_dict(groups, dims={"x": ["coordinate"]}, attrs=attributes)
