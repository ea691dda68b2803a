"""Run folders `runs/<env>/<agent>/<seed>/`: configuration, records, checkpoints, pictures, report.

config.yaml          the resolved configuration
metrics.jsonl        one line per record: counters and scalars
events.out.tfevents  the same for TensorBoard, with histograms and pictures
checkpoints/         best.pt (by validation), last.pt
figures/             PNG files
states/              a few states of some validations, see :mod:`vgs_rl.training.states`
report.json          the final metrics with their ideals; there is one when the run is finished
"""

from __future__ import annotations

import gc
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vgs_rl.evaluation.report import Report
from vgs_rl.files.checkpoint import (
    load_checkpoint,
    remove_temporaries,
    save_checkpoint,
    write_atomically,
    write_text,
    writing,
)
from vgs_rl.files.lock import NAME as LOCK
from vgs_rl.files.lock import FolderLock
from vgs_rl.plots.plots import Drawing, rendered, try_picture
from vgs_rl.training.events import EventFile, write_ideals, write_session
from vgs_rl.training.states import COUNTERS, drop_states, keep_states

HISTOGRAM_LIMIT = 9e19  # TensorBoard's bins end at 1e20

# TensorBoard has one x-axis a tag, the environment steps of training; the other two get their own.
AXES = {"energy_evaluations": ("energies", 1), "seconds": ("milliseconds", 1000)}
IDEAL = "ideal"  # the run of TensorBoard that holds what perfect samplers score
RESULTS = ("report.json", "samples.pt")


class RunFolder:
    """One run's folder, locked while it is open.

    Tags start with train/, rollout/, eval/, report/ or time/, and x is environment steps;
    eval_by_energies/ and eval_by_milliseconds/ repeat eval/ over the other counters.

    Args:
        path: the folder; made if it does not exist.
        config: the resolved configuration as YAML, written if it is not there yet.
        identity: what defines the run; every checkpoint holds it.
        resume_at: go on with an existing folder: records made after this many updates and an
            earlier report go.
        overwrite: replace an earlier run; a folder that holds something else is left alone.
        lock: of the folder, if it is held already.

    Raises:
        FileExistsError: if it holds another run, `resume_at` is None and `overwrite` is false.
        FolderInUse: if another process works in it.
        OSError: if it cannot be written to.
    """

    def __init__(
        self,
        path: Path,
        config: str,
        *,
        identity: Mapping[str, Any] | None = None,
        resume_at: int | None = None,
        overwrite: bool = False,
        lock: FolderLock | None = None,
    ) -> None:
        self.path = Path(path)
        self.identity = identity
        self.records: list[dict[str, Any]] = []
        make_folders(self.path)
        with ExitStack() as opened:
            held = lock or FolderLock(self.path)
            opened.callback(held.release)
            remove_temporaries(
                *(self.path / name for name in ("", "checkpoints", "figures", "states"))
            )
            if resume_at is None:
                clear(self.path, overwrite=overwrite)
            else:
                for name in RESULTS:
                    (self.path / name).unlink(missing_ok=True)
            for name in ("checkpoints", "figures"):
                (self.path / name).mkdir(exist_ok=True)
            write_config(self.path, config)
            if resume_at is not None:
                self._drop_records_after(resume_at)
                drop_states(self.path, self._validations())
            self._open(opened, config, resumed=resume_at is not None)
            self._opened = opened.pop_all()

    def _open(self, opened: ExitStack, config: str, *, resumed: bool) -> None:
        """Opens the event files and metrics.jsonl."""
        purge = self.records[-1]["env_steps"] + 1 if self.records else 0 if resumed else None
        self.writer = EventFile(self.path, purge_step=purge)
        opened.callback(self.writer.close)
        if not resumed:
            self.writer.add_text("config", "```yaml\n" + config + "```")
        # Purging goes by the steps of all tags alike: these curves are written again, behind it.
        for file in self.path.glob("events.out.tfevents.*.axes"):
            file.unlink()
        self._axes = EventFile(self.path, suffix=".axes")
        opened.callback(self._axes.close)
        for record in self.records:
            self._add_to_axes(record)
        self._metrics = open(self.path / "metrics.jsonl", "a", buffering=1, encoding="utf-8")  # noqa: SIM115
        opened.callback(self._close_metrics)

    def _close_metrics(self) -> None:
        with writing(self.path / "metrics.jsonl"):
            self._metrics.close()

    def _drop_records_after(self, updates: int) -> None:
        found = read_records(self.path)
        self.records += [each for each in found if each.get("updates", math.inf) <= updates]
        file = self.path / "metrics.jsonl"
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
        """Writes scalars to metrics.jsonl and TensorBoard, with all counters."""
        counters = {
            "updates": updates,
            "env_steps": env_steps,
            "energy_evaluations": energy_evaluations,
            "seconds": round(seconds, 3),
        }
        # Strict JSON has no NaN: a figure that is not finite is null.
        finite = {name: v if math.isfinite(v) else None for name, v in scalars.items()}
        self.records.append({**counters, **finite})
        with writing(self.path / "metrics.jsonl"):
            self._metrics.write(json.dumps(self.records[-1]) + "\n")
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, env_steps)
        for name in ("updates", "energy_evaluations", "seconds"):
            self.writer.add_scalar(f"time/{name}", counters[name], env_steps)
        self._add_to_axes(self.records[-1])

    def validated(self, updates: int) -> bool:
        """Whether a validation after this many updates is among the records."""
        return any(
            record["updates"] == updates and any(tag.startswith("eval/") for tag in record)
            for record in reversed(self.records)
        )

    def _validations(self) -> int:
        return sum(any(tag.startswith("eval/") for tag in record) for record in self.records)

    def keep_states(self, x: Tensor) -> None:
        """Keeps a few states of the validation that was recorded last.

        Args:
            x: its samples, shape (n, D).
        """
        keep_states(self.path, x, self.records[-1], self._validations() - 1)

    def _add_to_axes(self, record: Mapping[str, Any]) -> None:
        for tag, value in record.items():
            group, _, name = tag.partition("/")
            if group != "eval" or value is None:
                continue
            for counter, (axis, unit) in AXES.items():
                step = int(record[counter] * unit)
                self._axes.add_scalar(f"eval_by_{axis}/{name}", value, step)

    def histogram(self, name: str, values: Tensor, step: int) -> None:
        """A TensorBoard histogram of the finite values, those beyond its range at its ends."""
        values = values.detach().flatten().double().cpu()
        values = values[torch.isfinite(values)].clamp(-HISTOGRAM_LIMIT, HISTOGRAM_LIMIT)
        if len(values):
            self.writer.add_histogram(name, values, step)

    @torch.no_grad()
    def draw(
        self, pictures: Callable[[], Mapping[str, Drawing]], step: int, *, keep: bool = False
    ) -> None:
        """Pictures in TensorBoard; with `keep` also figures/<name>.png.

        What cannot be drawn is a warning, see :func:`vgs_rl.plots.plots.try_picture`.

        Args:
            pictures: makes the pictures, by name.
            step: environment steps.
            keep: whether to write files.
        """
        for name, drawing in (try_picture("of this run", pictures) or {}).items():
            try_picture(name, partial(self._draw, name, drawing, step, keep=keep))
        if not keep:  # the figures hold each other, and training makes few objects that start this
            gc.collect()

    def _draw(self, name: str, drawing: Drawing, step: int, *, keep: bool) -> None:
        png = rendered(drawing(), dpi=160 if keep else 100)
        if keep:
            file = self.path / "figures" / f"{name}.png"
            write_atomically(file, lambda opened: opened.write(png))
        self.writer.add_picture(f"figures/{name}", png, step)

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Writes checkpoints/<name>.pt, with what defines the run."""
        if self.identity is not None:
            state = state | {"identity": dict(self.identity)}
        save_checkpoint(self.path / "checkpoints" / f"{name}.pt", state)

    def remove(self, name: str) -> None:
        """Removes checkpoints/<name>.pt, if there is one."""
        (self.path / "checkpoints" / f"{name}.pt").unlink(missing_ok=True)

    def load(self, name: str, device: torch.device | str = "cpu") -> dict[str, Any]:
        """Reads checkpoints/<name>.pt."""
        return load_checkpoint(self.path / "checkpoints" / f"{name}.pt", device)

    def hyper_parameters(self, settings: Mapping[str, Any], *, finished: bool = False) -> None:
        """The run's entry in TensorBoard's HParams view; its figures are the scalars report/*."""
        write_session(self.path, settings, finished=finished)

    def finish(self, report: Report) -> None:
        """Writes report.json, the last file: with it the run is finished, and all else is there."""
        self.flush()
        report.save(self.path / "report.json")

    def flush(self) -> None:
        """Writes what is buffered."""
        self.writer.flush()
        self._axes.flush()
        with writing(self.path / "metrics.jsonl"):
            self._metrics.flush()

    def close(self) -> None:
        """Flushes and closes the files, and lets the folder go."""
        self._opened.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_records(path: Path) -> list[dict[str, Any]]:
    """The lines of a run folder's metrics.jsonl, without those that are damaged or cut short."""
    file, records = path / "metrics.jsonl", []
    for line in file.read_bytes().splitlines() if file.is_file() else []:
        with suppress(ValueError, RecursionError):
            records.append(json.loads(line))
    return [record for record in records if _is_record(record)]


def _is_record(record: Any) -> bool:
    """Whether a line holds what :meth:`RunFolder.record` writes: finite numbers, and null."""
    if not isinstance(record, dict) or any(record.get(name) is None for name in COUNTERS):
        return False
    numbers = [value for value in record.values() if value is not None]
    return all(isinstance(each, int | float) and abs(each) < 1e308 for each in numbers)


def write_ideal_run(
    path: Path,
    ideals: Mapping[str, float],
    *,
    env_steps: int,
    energy_evaluations: int,
    seconds: float,
) -> None:
    """Writes the run of TensorBoard that overlays ideals as horizontal lines on those of samplers.

    Args:
        path: its folder; made if it does not exist.
        ideals: by the tags of metrics; those of eval/ stand over all three axes.
        env_steps: where the lines end on the axis of environment steps.
        energy_evaluations: where they end on that of energy evaluations.
        seconds: where they end on that of time.
    """
    used = {"energy_evaluations": energy_evaluations, "seconds": seconds}
    lines = [(tag, value, env_steps) for tag, value in ideals.items()]
    for counter, (axis, unit) in AXES.items():
        for tag, value in ideals.items():
            group, _, name = tag.partition("/")
            if group == "eval":
                lines.append((f"eval_by_{axis}/{name}", value, int(used[counter] * unit)))
    path.mkdir(parents=True, exist_ok=True)
    write_ideals(path, lines)


def occupied(path: Path) -> bool:
    """Whether a folder holds any file; hidden and temporary ones and empty folders do not count."""
    if not path.is_dir():
        return False
    return any(
        not any(part.startswith(".") for part in file.relative_to(path).parts)
        for file in path.rglob("*")
        if not file.is_dir()
    )


def clear(path: Path, *, overwrite: bool, what: str = "run") -> None:
    """Makes room for a new run (or experiment): refuses what is there, or removes it.

    Args:
        path: the folder.
        overwrite: whether an earlier run may go.
        what: the folder's kind, for the message.

    Raises:
        FileExistsError: if it holds another one and `overwrite` is false, or something else.
        FolderInUse: if another process works in a run below.
    """
    if not occupied(path):
        return
    if not (path / "config.yaml").is_file():
        raise FileExistsError(
            f"{what} folder {path} is not empty and holds no {what} (it has no config.yaml): "
            "choose another --output, or empty it"
        )
    if not overwrite:
        raise FileExistsError(
            f"{what} folder {path} is not empty: go on with --resume {path}, "
            "replace it with --overwrite true, or choose another --output or --seed"
        )
    for lock in path.glob("*/**/" + LOCK):  # of runs of an experiment
        FolderLock(lock.parent).release()
    for file in sorted(path.iterdir(), key=lambda file: file.name == "config.yaml"):
        if file.name == LOCK:
            continue
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        else:
            file.unlink()


def write_config(path: Path, text: str) -> None:
    """Writes config.yaml, unless it says the same already."""
    file = path / "config.yaml"
    if not file.is_file() or file.read_bytes() != text.encode():
        write_text(file, text)


def make_folders(path: Path, what: str = "run") -> None:
    """Makes a folder with its parents, or nothing at all.

    Raises:
        OSError: if it cannot be written to.
    """
    made: list[Path] = []
    try:
        for folder in [*reversed(path.parents), path]:
            if not folder.exists():
                folder.mkdir(exist_ok=True)
                made.append(folder)
        if not path.is_dir():
            raise NotADirectoryError(f"{path} is a file")
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(f"no permission to write in {path}")
    except OSError as error:
        for folder in reversed(made):
            folder.rmdir()
        raise OSError(f"{what} folder {path} cannot be written to: {error}") from error
