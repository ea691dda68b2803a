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
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vgs_rl.files.checkpoint import write_atomically, writing

SESSION = "events.out.tfevents.0.session"
IDEALS = "events.out.tfevents.0.ideals"
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
        self.path = folder / f"events.out.tfevents.{stamp}{suffix}"
        self._file = open(self.path, "ab")  # noqa: SIM115
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

    def add_picture(self, tag: str, png: bytes, step: int) -> None:
        """A picture, as a PNG file holds it."""
        self._write(step=step, summary=picture(tag, png))

    def add_text(self, tag: str, words: str, step: int = 0) -> None:
        """Markdown."""
        self._write(step=step, summary=markdown(tag, words))

    def _write(self, **content: Any) -> None:
        event = self._event(wall_time=time.time(), **content)
        with writing(self.path):
            self._records.write(event.SerializeToString())
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what is buffered."""
        with writing(self.path):
            self._file.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes and closes the file."""
        with writing(self.path):
            self._file.close()


def write_summaries(file: Path, summaries: Iterable[tuple[int, Any]]) -> None:
    """Writes a whole event file, in place of an earlier one of its name.

    Args:
        file: its name has to hold ``tfevents``.
        summaries: steps and protocol buffers ``Summary``.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    def write(opened: Any) -> None:
        records, now = RecordWriter(opened), time.time()
        records.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
        for step, summary in summaries:
            records.write(Event(wall_time=now, step=step, summary=summary).SerializeToString())

    write_atomically(file, write)


def write_session(folder: Path, settings: Mapping[str, Any], *, finished: bool) -> None:
    """Writes the run's entry in the HParams view, in place of an earlier one.

    A run describes no experiment. TensorBoard then makes its columns from the entries of all runs,
    which are the same at every start. A comparison describes one, see :func:`experiment`.

    Args:
        folder: the run folder.
        settings: by dotted name; None is left out, so that a column has one type.
        finished: whether the run has come to its end.
    """
    from torch.utils.tensorboard.summary import hparams

    plain = {name: plain_setting(value) for name, value in settings.items() if value is not None}
    _, start, end = hparams(plain, {})
    summaries = [start, end] if finished else [start]
    write_summaries(folder / SESSION, [(0, summary) for summary in summaries])


def write_ideals(folder: Path, lines: Iterable[tuple[str, float, int]]) -> None:
    """Writes horizontal lines from step 0, in place of earlier ones.

    Args:
        folder: a run's folder, which holds nothing else.
        lines: tag, height and last step of each.
    """
    from torch.utils.tensorboard.summary import scalar

    points = [
        (step, scalar(tag, height))
        for tag, height, end in lines
        for step in dict.fromkeys((0, end))
    ]
    write_summaries(folder / IDEALS, points)


def plain_setting(value: Any) -> bool | int | float | str:
    """A setting as the HParams view takes it; lists and mappings are JSON."""
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)


def experiment(columns: Mapping[str, Iterable[Any]], metrics: Sequence[str]) -> Any:
    """The summary that says which columns the HParams view has.

    Args:
        columns: names of settings, with the values that they have.
        metrics: tags of scalars.
    """
    from google.protobuf.struct_pb2 import ListValue
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    infos = []
    for name, values in columns.items():
        plain = list(dict.fromkeys(plain_setting(value) for value in values if value is not None))
        kind, domain = api_pb2.DATA_TYPE_STRING, None
        if all(isinstance(value, bool) for value in plain):
            kind = api_pb2.DATA_TYPE_BOOL
        elif all(isinstance(value, int | float) for value in plain):
            kind = api_pb2.DATA_TYPE_FLOAT64
        else:
            domain = ListValue()
            domain.extend([str(value) for value in plain])
        infos.append(api_pb2.HParamInfo(name=name, type=kind, domain_discrete=domain))
    shown = [
        api_pb2.MetricInfo(
            name=api_pb2.MetricName(tag=tag), display_name=tag.partition("/")[2] or tag
        )
        for tag in metrics
    ]
    content = plugin_data_pb2.HParamsPluginData(
        experiment=api_pb2.Experiment(hparam_infos=infos, metric_infos=shown),
        version=metadata.PLUGIN_DATA_VERSION,
    ).SerializeToString()
    plugin = SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME, content=content)
    described = SummaryMetadata(plugin_data=plugin)
    value = Summary.Value(
        tag=metadata.EXPERIMENT_TAG, metadata=described, tensor=metadata.NULL_TENSOR
    )
    return Summary(value=[value])


def layout(categories: Mapping[str, Mapping[str, str]]) -> Any:
    """The summary that lays out the Custom Scalars view: by category, charts of one tag each.

    Args:
        categories: by title, tags by the titles of charts.
    """
    from torch.utils.tensorboard.summary import custom_scalars

    return custom_scalars(
        {
            title: {name: ["Multiline", [f"^{tag}$"]] for name, tag in charts.items()}
            for title, charts in categories.items()
        }
    )


def markdown(tag: str, words: str) -> Any:
    """The summary of a text card."""
    from torch.utils.tensorboard.summary import text

    return text(tag, words)


def picture(tag: str, png: bytes) -> Any:
    """The summary of a picture, as a PNG file holds it."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    width, height = struct.unpack(">II", png[16:24])  # where the header has them
    image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
    return Summary(value=[Summary.Value(tag=tag, image=image)])
