"""Event files of TensorBoard, written in the caller's thread.

TensorBoard's own writer has a thread. Where that meets a full disk, it prints a traceback and the
caller learns nothing; here the caller gets the error.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vgs_rl.files.checkpoint import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SESSION = "events.out.tfevents.0.session"
FLUSH_SECONDS = 10.0
_numbers = itertools.count()


@functools.cache
def _edges() -> list[float]:
    """Edges of histograms, as TensorBoard has them: by factors of 1.1, up to 1e20."""
    positive = [1e-12 * 1.1**k for k in range(774)]
    return [-edge for edge in reversed(positive)] + [0.0] + positive


class EventFile:
    """One event file of a folder, appended to.

    Args:
        folder: the run folder.
        suffix: end of the file's name.
        purge_step: what earlier files hold at this step and later is void.
    """

    def __init__(self, folder: Path, *, suffix: str = "", purge_step: int | None = None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        stamp = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self._file = open(folder / f"events.out.tfevents.{stamp}{suffix}", "ab")  # noqa: SIM115
        self._records, self._event = RecordWriter(self._file), Event
        self._flushed = time.monotonic()
        self._write(file_version="brain.Event:2")
        if purge_step is not None:
            self._write(step=purge_step, session_log=SessionLog(status=SessionLog.START))
        self.flush()

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """One number."""
        from torch.utils.tensorboard.summary import scalar

        self._write(step=global_step, summary=scalar(tag, scalar_value))

    def add_histogram(self, tag: str, values: Tensor, step: int) -> None:
        """A histogram of values, which are finite."""
        from torch.utils.tensorboard.summary import histogram

        self._write(step=step, summary=histogram(tag, values.numpy(), _edges()))

    def add_figure(self, tag: str, figure: Figure, step: int) -> None:
        """A picture."""
        from torch.utils.tensorboard._utils import figure_to_image
        from torch.utils.tensorboard.summary import image

        self._write(step=step, summary=image(tag, figure_to_image(figure, close=False), 1.0, "CHW"))

    def add_text(self, tag: str, words: str) -> None:
        """Markdown."""
        from torch.utils.tensorboard.summary import text

        self._write(step=0, summary=text(tag, words))

    def _write(self, **content: Any) -> None:
        event = self._event(wall_time=time.time(), **content)
        self._records.write(event.SerializeToString())
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what is buffered."""
        self._file.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._file.close()


def write_session(folder: Path, settings: Mapping[str, Any], *, finished: bool) -> None:
    """Writes the run's entry in the HParams view, in place of an earlier one.

    No experiment is described anywhere. TensorBoard then makes its columns from the entries of all
    runs, which are the same at every start; of several descriptions it would pick any.

    Args:
        folder: the run folder.
        settings: by dotted name; None is left out, so that a column has one type.
        finished: whether the run has come to its end.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter
    from torch.utils.tensorboard.summary import hparams

    plain = {
        name: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for name, value in settings.items()
        if value is not None
    }
    _, start, end = hparams(plain, {})

    def write(file: Any) -> None:
        records, now = RecordWriter(file), time.time()
        records.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
        for summary in [start, end] if finished else [start]:
            records.write(Event(wall_time=now, summary=summary).SerializeToString())

    write_atomically(folder / SESSION, write)
