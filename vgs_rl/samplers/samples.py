"""Samples: what a sampler returns, and how they look in the files and objects of other programs."""

from __future__ import annotations

import importlib
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vgs_rl.checks import count_of, require_module
from vgs_rl.files.checkpoint import load_checkpoint, save_checkpoint, write_atomically, write_text
from vgs_rl.files.restore import check_like, check_rows
from vgs_rl.weights import effective_share


@dataclass(kw_only=True)
class Samples:
    """What a sampler returns.

    Attributes:
        x: states, shape (n, D).
        log_weight: log w with E[w] = Z, shape (n,), or None where the sampler has no weights. NaN
            does not occur: a weight that is not known is 0.
        energy_evaluations: states at which E or ∇E was evaluated to draw them.
        temperature: tau of the density exp(-E/tau)/Z that they are samples of.
        independent: whether each row is a separate path. If not, as after resampling, the mean
            weight is unbiased for Z still, but E[log w] and effective sample sizes mean nothing.
    """

    x: Tensor
    log_weight: Tensor | None
    energy_evaluations: int
    temperature: float = 1.0
    independent: bool = True

    def save(self, path: Path | str) -> None:
        """Writes them to a file for :meth:`load`."""
        save_checkpoint(path, vars(self), kind="samples")

    @classmethod
    def load(cls, path: Path | str, device: torch.device | str = "cpu") -> Samples:
        """Samples from a file.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged, or holds something else.
        """
        state = load_checkpoint(path, device, kind="samples")
        if state.keys() != cls.__dataclass_fields__.keys():
            raise ValueError(f"{path} holds no samples, but {', '.join(map(str, state))}")
        like = {"energy_evaluations": 0, "temperature": 1.0, "independent": True}
        check_like({name: state[name] for name in like}, like, str(path))
        rows = {"x": 2} if state["log_weight"] is None else {"x": 2, "log_weight": 1}
        check_rows(state, rows, str(path))
        return cls(**state)

    @property
    def ess(self) -> float:
        """Effective sample size as a fraction of n; NaN without weights."""
        return math.nan if self.log_weight is None else float(effective_share(self.log_weight))

    def to_npz(self, path: Path | str) -> None:
        """Writes NumPy's archive: `x` (n, D), `log_weight` (n,) if there are weights.

        Raises:
            OSError: if the file cannot be written.
        """
        write_npz(self, Path(path))

    def to_xyz(self, path: Path | str, n_particles: int, element: str = "Ar") -> None:
        """Writes the XYZ format of molecular viewers, a frame a sample.

        Args:
            path: the file.
            n_particles: particles of a state, which has D / n_particles coordinates for each.
            element: the symbol that viewers show for them.

        Raises:
            ValueError: if D is not that of so many particles in at most three dimensions.
            OSError: if the file cannot be written.
        """
        write_xyz(self, Path(path), n_particles, element)

    def to_arviz(self) -> Any:
        """An ArviZ DataTree with `posterior.x` and `sample_stats.log_weight`; one chain.

        Raises:
            ModuleNotFoundError: if ArviZ is not installed, with the extra that has it.
        """
        return as_arviz(self)

    def plot(self) -> Any:
        """A matplotlib figure of the states, the areas by weight."""
        plot_states = importlib.import_module("vgs_rl.plots.results").plot_states
        return plot_states(self.x, self.log_weight)

    def __repr__(self) -> str:
        n, dim = self.x.shape
        shown = "unweighted"
        if self.log_weight is not None:
            shown = f"weighted, ESS {self.ess:.1%}" if self.independent else "resampled"
        return f"Samples({n:,} of {dim} dimensions, {shown})"

    def _repr_html_(self) -> str:
        return f"<code>{self!r}</code>"


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
