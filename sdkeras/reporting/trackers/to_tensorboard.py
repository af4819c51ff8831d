"""TensorBoard: event files in a folder, in TensorBoard's own records.

Its `EventFileWriter` would import TensorFlow, and tell of a full disk too late: it writes in another thread.
"""

from __future__ import annotations

import os
import platform
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import attrs
import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.histogram import metadata as histograms
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.scalar import metadata as scalars
from tensorboard.plugins.text import metadata as texts
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto

from sdkeras.reporting.report import Report, printable
from sdkeras.reporting.trackers.histogram import histogram
from sdkeras.reporting.trackers.reporter import Setting
from sdkeras.results.answers import SpectrumSummary
from sdkeras.results.arrays import Array

# As Keras' own callback has it.
_FOLDER = "logs"


def begin(folder: str | os.PathLike[str] | None) -> TensorBoard:
    """A new event file in the folder, or in a new folder of logs."""
    place = Path(_FOLDER, time.strftime("sdkeras-%Y%m%d-%H%M%S")) if folder is None else Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    name = f"events.out.tfevents.{int(time.time()):010d}.{platform.node()}.{os.getpid()}.{secrets.token_hex(4)}"
    tensorboard = TensorBoard((place / name).open("xb"))
    tensorboard.write(Event(wall_time=time.time(), file_version="brain.Event:2"))
    return tensorboard


@attrs.define
class TensorBoard:
    """An event file. Pages cannot be shown there: of a report it gets the first lines."""

    file: BinaryIO
    last_step: int = 0  # of the numbers that the report is of

    def settings(self, values: Mapping[str, Setting]) -> None:
        self.write(Event(wall_time=time.time(), summary=hparams_pb(dict(values))))

    def numbers(self, numbers: Mapping[str, float], spectrum: SpectrumSummary | None, step: int) -> None:
        kind = scalars.create_summary_metadata(display_name=None, description=None)
        summary = Summary(value=[_value(name, kind, np.array(value, np.float32)) for name, value in numbers.items()])
        if spectrum is not None:
            masses, edges = histogram(spectrum)
            kind = histograms.create_summary_metadata(display_name=None, description=None)
            summary.value.append(_value("spectrum", kind, np.stack([edges[:-1], edges[1:], masses], axis=1)))
        self.last_step = step
        self.write(Event(wall_time=time.time(), step=step, summary=summary))

    def page(self, name: str, report: Report) -> None:
        kind = texts.create_summary_metadata(display_name=None, description=None)
        text = np.array("\n\n".join(printable(line) for line in report.lines).encode(), dtype=object)
        summary = Summary(value=[_value(name, kind, text)])
        self.write(Event(wall_time=time.time(), step=self.last_step, summary=summary))

    def close(self, *, failed: bool) -> None:
        self.file.close()

    def write(self, event: Event) -> None:
        """Appends an event, which a TensorBoard that is running sees at once."""
        RecordWriter(self.file).write(event.SerializeToString())
        self.file.flush()


def _value(name: str, kind: SummaryMetadata, value: Array) -> Summary.Value:
    return Summary.Value(tag=f"sdkeras/{name}", metadata=kind, tensor=make_tensor_proto(value))
