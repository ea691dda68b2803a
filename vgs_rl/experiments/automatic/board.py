"""TensorBoard of a sampling without settings: phases, trials over time, verdict, picture."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Self

from vgs_rl.evaluation.verdict import Evidence, Verdict
from vgs_rl.experiments.automatic.result import Result
from vgs_rl.exploration import Clock, Exploration
from vgs_rl.plots.plots import rendered, try_picture
from vgs_rl.plots.results import plot_states
from vgs_rl.training.events import EventFile
from vgs_rl.training.folder import make_folders


class Board:
    """Writes one event file; x is milliseconds.

    Args:
        folder: where it goes; None writes nothing.
        clock: tells the time.

    Raises:
        FileExistsError: if the folder holds an event file.
        OSError: if it cannot be written to.
    """

    def __init__(self, folder: Path | None, clock: Clock) -> None:
        self.clock, self.file = clock, None
        self._phases: list[str] = []
        if folder is None:
            return
        make_folders(folder, "log")
        if any(folder.glob("events.out.tfevents.*")):
            raise FileExistsError(f"log folder {folder} holds another run: choose another one")
        self.file = EventFile(folder)

    def __enter__(self) -> Self:
        """The file is open."""
        return self

    def __exit__(self, *exception: object) -> None:
        """The file is closed."""
        if self.file is not None:
            self.file.close()

    @property
    def now(self) -> int:
        """Milliseconds since the clock began."""
        return round(1000 * self.clock.elapsed())

    def phase(self, message: str) -> None:
        """A line in the card `phases`."""
        if self.file is None:
            return
        self._phases.append(f"{self.clock.elapsed():.1f} s: {message}")
        self.file.add_text("phases", "  \n".join(self._phases), self.now)
        self.file.flush()

    def explored(self, found: Exploration) -> None:
        """What an exploration found."""
        if self.file is None:
            return
        modes = 0 if found.modes is None else len(found.modes.x)
        numbers = {
            "log_z": found.log_z,
            "spread": found.spread,
            "particles": len(found.x),
            "evaluations": found.evaluations,
            "modes": modes,
            "doubts": len(found.doubts),
        }
        for name, value in numbers.items():
            self._number(f"exploration/{name}", value)

    def trial(self, entry: dict[str, Any]) -> None:
        """A design that was tried, or a check of its training."""
        if self.file is None:
            return
        for name in ("ess", "gap", "updates", "steps"):
            self._number(f"trial/{name}", entry[name])
        self.phase(
            f"{entry['what']}: {entry['start']}, unit {entry['unit']}, tails {entry['tails']}, "
            f"T = {entry['steps']}, guide {'on' if entry['guided'] else 'off'}, "
            f"{entry['updates']:,} updates: ESS {entry['ess']:.3f}, gap {entry['gap']:.3f}"
        )

    def judged(self, verdict: Verdict, evidence: Evidence) -> None:
        """A verdict, the last one or one on the way."""
        if self.file is None:
            return
        words = [f"**verdict: {verdict}**", *(f"- {reason}" for reason in verdict.reasons), ""]
        words += [
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in evidence.rows()),
        ]
        self.file.add_text("verdict", "\n".join(words), self.now)
        proven = evidence.certificate
        for name in ("log_z", "log_z_low", "log_z_high", "ess", "k_hat", "tv_bound"):
            self._number(f"verdict/{name}", getattr(proven, name))
        for name in ("elbo", "eubo", "moved"):
            self._number(f"verdict/{name}", getattr(evidence, name))

    def finish(self, result: Result) -> None:
        """Settings, and the picture of the samples."""
        file = self.file
        if file is None:
            return
        file.add_text(
            "settings", f"```json\n{json.dumps(result.settings, indent=2)}\n```", self.now
        )
        try_picture(
            "samples",
            lambda: file.add_picture(
                "figures/samples", rendered(plot_states(result.x, result.log_weight)), self.now
            ),
        )

    def _number(self, tag: str, value: float | None) -> None:
        if self.file is not None and value is not None and math.isfinite(value):
            self.file.add_scalar(tag, float(value), self.now)
