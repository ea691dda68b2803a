"""A run's entry in TensorBoard's HParams view: one small event file, written whole.

No experiment is described anywhere. TensorBoard then makes its columns from the entries of all
runs, which are the same at every start; of several descriptions it would pick any.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vgs_rl.checkpoint import write_atomically

NAME = "events.out.tfevents.0.session"


def write_session(folder: Path, settings: Mapping[str, Any], *, finished: bool) -> None:
    """Writes the entry of the run in this folder, in place of an earlier one.

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
    summaries = [start, end] if finished else [start]

    def write(file: Any) -> None:
        records = RecordWriter(file)
        records.write(
            Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString()
        )
        for summary in summaries:
            records.write(Event(wall_time=time.time(), summary=summary).SerializeToString())

    write_atomically(folder / NAME, write)
