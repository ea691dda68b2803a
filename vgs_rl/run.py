"""Run folders `runs/<env>/<agent>/<seed>/`: configuration, records, checkpoints, pictures, report.

config.yaml          the resolved configuration
metrics.jsonl        one line per record: counters and scalars
events.out.tfevents  the same for TensorBoard, with histograms and pictures
checkpoints/         best.pt (by validation), last.pt
figures/             PNG files
report.json          the final figures, each beside its floor
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vgs_rl.checkpoint import load_checkpoint, save_checkpoint, write_text
from vgs_rl.plots import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class RunFolder:
    """One run's folder. Tags start with train/, rollout/, eval/ or time/; x is environment steps.

    Args:
        path: the folder; made if it does not exist.
        config: the resolved configuration as YAML, written on creation.
        resume_at: go on with an existing folder, dropping records made after this many updates.

    Raises:
        FileExistsError: if it holds another run and `resume_at` is None.
        OSError: if it cannot be written to.
    """

    def __init__(self, path: Path, config: str, *, resume_at: int | None = None) -> None:
        self.path = Path(path)
        if resume_at is None and self.path.is_dir() and any(self.path.iterdir()):
            raise FileExistsError(
                f"run folder {self.path} is not empty: go on with --resume {self.path}, "
                "replace it with --overwrite true, or choose another --output or --seed"
            )
        self._make_folders()
        self.records: list[dict[str, Any]] = []
        if resume_at is None:
            write_text(self.path / "config.yaml", config)
        else:
            self._drop_records_after(resume_at)
        from torch.utils.tensorboard import SummaryWriter

        purge = self.records[-1]["env_steps"] + 1 if self.records else None
        self.writer = SummaryWriter(str(self.path), purge_step=purge, flush_secs=10)
        if resume_at is None:
            self.writer.add_text("config", "```yaml\n" + config + "```")
        self._metrics = open(self.path / "metrics.jsonl", "a", buffering=1)  # noqa: SIM115

    def _make_folders(self) -> None:
        """Makes the folders, or nothing at all."""
        made: list[Path] = []
        try:
            for folder in (self.path, self.path / "checkpoints", self.path / "figures"):
                for parent in [*reversed(folder.parents), folder]:
                    if not parent.exists():
                        parent.mkdir()
                        made.append(parent)
            if not os.access(self.path, os.W_OK | os.X_OK):
                raise PermissionError(f"no permission to write in {self.path}")
        except OSError as error:
            for folder in reversed(made):
                folder.rmdir()
            raise OSError(f"run folder {self.path} cannot be written to: {error}") from error

    def _drop_records_after(self, updates: int) -> None:
        file = self.path / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        for line in lines:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # the line that a crash cut short
                continue
            if record["updates"] <= updates:
                self.records.append(record)
        write_text(file, "".join(json.dumps(record) + "\n" for record in self.records))

    def record(
        self,
        scalars: Mapping[str, float],
        *,
        updates: int,
        env_steps: int,
        energy_evaluations: int,
        seconds: float,
    ) -> None:
        """Writes scalars to metrics.jsonl and TensorBoard, with all counters beside them."""
        counters = {
            "updates": updates,
            "env_steps": env_steps,
            "energy_evaluations": energy_evaluations,
            "seconds": round(seconds, 3),
        }
        # Strict JSON has no NaN: a figure that is not finite is null.
        finite = {name: v if math.isfinite(v) else None for name, v in scalars.items()}
        self.records.append({**counters, **finite})
        self._metrics.write(json.dumps(self.records[-1]) + "\n")
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, env_steps)
        for name in ("updates", "energy_evaluations", "seconds"):
            self.writer.add_scalar(f"time/{name}", counters[name], env_steps)

    def histogram(self, name: str, values: Tensor, step: int) -> None:
        """A TensorBoard histogram of the finite values."""
        values = values.detach().flatten()
        values = values[torch.isfinite(values)].float().cpu()
        if len(values):
            self.writer.add_histogram(name, values, step)

    def figure(self, name: str, figure: Figure, step: int, *, keep: bool = False) -> Path | None:
        """A picture in TensorBoard; with `keep` also figures/<name>.png, whose path it returns."""
        self.writer.add_figure(f"figures/{name}", figure, step, close=False)
        if not keep:
            return None
        path = self.path / "figures" / f"{name}.png"
        save_figure(figure, path)
        return path

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Writes checkpoints/<name>.pt."""
        save_checkpoint(self.path / "checkpoints" / f"{name}.pt", state)

    def load(self, name: str, device: torch.device | str = "cpu") -> dict[str, Any]:
        """Reads checkpoints/<name>.pt."""
        return load_checkpoint(self.path / "checkpoints" / f"{name}.pt", device)

    def hyper_parameters(self, values: Mapping[str, Any], figures: Mapping[str, float]) -> None:
        """An entry of TensorBoard's HParams view."""
        flat = {
            name: value if isinstance(value, (bool, int, float, str)) else str(value)
            for name, value in values.items()
        }
        # Same event folder, so that no second run appears beside the curves.
        self.writer.add_hparams(flat, dict(figures), run_name=".")

    def flush(self) -> None:
        """Writes what is buffered."""
        self.writer.flush()
        self._metrics.flush()

    def close(self) -> None:
        """Flushes and closes the files."""
        self.writer.close()
        self._metrics.close()
