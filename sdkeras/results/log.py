"""The log of a training: what was measured on its way, one JSON line a measurement, readable while it grows.

A line is appended by one write with O_APPEND and synchronised, so that a reader sees whole lines and a crash loses the
last one at most.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from sdkeras.errors import SdkerasError, counted
from sdkeras.files.atomic import Claim, check_is_file, open_own, reason_of, refuse_url, shown
from sdkeras.files.checkpoints import digest
from sdkeras.files.reading import Json, blamed_on, parsed_json
from sdkeras.results.bounds import Bound
from sdkeras.results.codec import as_plain, from_plain
from sdkeras.results.measured import Measured
from sdkeras.results.shown import Shown, face

if TYPE_CHECKING:
    from pandas import DataFrame

FILE_NAME = "sharpness.jsonl"
SCHEMA_VERSION = 1
# Bytes of a log's first line.
_LONGEST_HEADER = 2**20
_WRITTEN_BY = "sdkeras.callbacks.SharpnessDimension(..., log_dir=...) or `sdkeras track CHECKPOINT... --data DATA`"


@attrs.frozen
class Header:
    """The first line of a log: the model, its data and the measures."""

    sdkeras: str
    tensorflow: str
    keras: str
    model: str
    num_parameters: int  # analysed
    optimizer: str  # its class name
    num_samples: int  # of the data; `data_digest` is of all of them
    num_samples_hessian: int  # of the data-set Hessian
    batch_size: int
    data_digest: str
    seed: int  # of all random draws
    measures: tuple[str, ...]  # keys of what is measured
    settings: dict[str, str] = attrs.field(factory=dict)  # options that the numbers depend on; {} from the callback
    batch_size_source: str = ""  # 'given', 'dataset', 'assumed', or "" where it is not known
    class_weight: dict[str, float] | None = None  # in the measured loss
    preset: str = ""  # of the options that were left out; "" in logs of version 0.1


@attrs.frozen
class Beginning:
    """Where a call of `fit` began: the optimizer's steps, and epochs, that were done before it."""

    step: int
    epoch: int


@attrs.frozen
class Measurement:
    """The numbers at one point of a training."""

    source: str  # 'fit', or the name of the checkpoint that was looked at
    step: int  # updates of the weights so far, as the optimizer counts them
    epoch: int | None  # epochs finished, or None where it is not known
    time: str  # UTC, ISO 8601
    seconds: float  # wall time, compilation included
    num_hvps: int  # Hessian-vector products on single batches
    learning_rate: float | None  # at this step; 0 or None where exponents and thresholds have none to be of
    threshold: float | None  # upper stability threshold of the optimizer, or None where none is known
    operator: str  # the threshold's own, 'H' or 'P^-1/2 H P^-1/2'
    map: str  # whose exponents and dimension are meant; '' without them
    state_size: int  # of that map; 0 without them
    # By the keys of the callback. Logs of 0.1.0 have no `sharpness_preconditioned` and `sharpness_threshold`, see
    # `numerator`.
    values: dict[str, Measured]
    # Losses and metrics as Keras has them: those of source 'fit' are means over the epoch so far, in training mode,
    # while the weights moved; those of a checkpoint are of its weights over all the data, in inference mode. Validation
    # (`val_`) is in inference mode in both.
    metrics: dict[str, float]
    notes: tuple[str, ...] = ()  # caveats, a failure for example
    digest: str = ""  # of the checkpoint's file; "" for 'fit'
    bounds: tuple[Bound, ...] = ()  # at this SD; empty where SD was not measured
    began: Beginning | None = None  # in the first line of each `fit`; None in all others, and in logs of 0.1.0

    @property
    def failed(self) -> bool:
        """Whether not one number was found."""
        return all(math.isnan(reading.value) for reading in self.values.values())

    def value(self, key: str) -> float | None:
        """A number without its evidence; None where it was not asked for."""
        return self.values[key].value if key in self.values else None

    @property
    def numerator(self) -> float | None:
        """The ratio's numerator: the threshold operator's largest eigenvalue; None where it was not measured."""
        if "sharpness_preconditioned" in self.values or self.threshold is None:
            return self.value("sharpness_preconditioned")
        ratio = self.value("sharpness_ratio")
        return None if ratio is None else ratio * self.threshold


@attrs.frozen(repr=False)
class RunLog(Shown):
    """The contents of a log."""

    header: Header  # the last one
    measurements: tuple[Measurement, ...]  # in the order of the file
    notes: tuple[str, ...] = ()  # lines that could not be read, and changes of the header

    def summary(self) -> DataFrame:
        """The training over time, one row for each measurement along it (`trajectory`), by its step.

        Returns:
            A `pandas.DataFrame` with the columns source, epoch, learning_rate, threshold; for each key that was
            measured KEY, and KEY_lower and KEY_upper, between which the number lies; then the metrics of the training,
            where `loss` is Keras' mean over the epoch if the source is 'fit', and the loss at the weights of a
            checkpoint. NaN where there is no number.

        Raises:
            SdkerasError: pandas is not installed.
        """
        return face("data_tables").over_time(trajectory(self))


def place_of(path: str | os.PathLike[str]) -> Path:
    """The log in a folder, or the file itself."""
    return Path(path) / FILE_NAME if os.path.isdir(path) else Path(path)


def place_in(folder: str | os.PathLike[str]) -> Path:
    """The log's path in a folder, which is made; an SdkerasError where it cannot be made or not written to."""
    place = Path(folder) / FILE_NAME
    if not os.fspath(folder):
        raise SdkerasError("log_dir is empty; name a folder for the log.")
    refuse_url(folder, "log_dir ")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        os.close(open_own(place, os.O_WRONLY | os.O_APPEND | os.O_CREAT))
    except (OSError, ValueError) as error:
        raise SdkerasError(f"{shown(place)} cannot be written: {reason_of(error)}; choose another folder.") from error
    return place


def claim(place: Path) -> Claim:
    """The right to write a log; an SdkerasError where another process has it, or the file is no log."""
    if place.is_file() and not place.is_symlink():
        with place.open("rb") as file:
            first = file.readline(_LONGEST_HEADER)
        if first.endswith(b"\n") and "schema_version" not in (_parsed(first) or {}):
            raise SdkerasError(
                f"{shown(place)} does not begin with the header of a log of sdkeras, and nothing is appended to it; "
                "choose another folder."
            )
    return Claim(place, "wait until it has ended, end it, or choose another folder")


def read_run_log(path: str | os.PathLike[str]) -> RunLog:
    """Reads a log, or the log in a folder, of no later version; broken lines are left out, and that is noted."""
    place = place_of(path)
    advice = f"give a folder with a {FILE_NAME}, or such a file, as {_WRITTEN_BY} writes it."
    check_is_file(place, SdkerasError, advice)
    with blamed_on(f"{shown(place)} cannot be read", advice), place.open("rb") as lines:
        return _read(lines, shown(place))


def _read(lines: Iterable[bytes], place: str) -> RunLog:
    header: Header | None = None
    measurements: list[Measurement] = []
    notes: list[str] = []
    number = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{place}, line {number}"
        document = _parsed(line)
        if document is None:
            what = "is broken" if line.endswith(b"\n") else "breaks off"
            notes.append(f"line {number} {what} (a crash, or a writer at work) and was left out")
        elif "schema_version" in document:
            before, header = header, _header(document, where)
            if before is not None and attrs.evolve(before, measures=()) != attrs.evolve(header, measures=()):
                notes.append(f"from line {number} on the log belongs to another model, optimizer, data set or version")
        elif header is None:
            break
        else:
            measurements.append(from_plain(document, Measurement, where, "remove the line."))
    if not number:
        raise SdkerasError(f"{place} is empty: nothing has been measured yet; look again after the first epoch.")
    if header is None:
        raise SdkerasError(f"{place} does not begin with the header of a log; give one written by {_WRITTEN_BY}.")
    return RunLog(header, tuple(measurements), tuple(notes))


def has_lines(place: Path) -> bool:
    """Whether a log holds a whole line; a crash can leave a part of the first one."""
    return place.is_file() and b"\n" in place.read_bytes()


def by_digest(log: RunLog) -> dict[str, dict[str, Measurement]]:
    """The measurements of checkpoints that did not fail, by the digest of their files and then by their names."""
    done: dict[str, dict[str, Measurement]] = {}
    for measurement in log.measurements:
        if measurement.digest and not measurement.failed:
            done.setdefault(measurement.digest, {})[measurement.source] = measurement
    return done


def pending(paths: Sequence[str], folder: str | os.PathLike[str]) -> list[str]:
    """The checkpoints that the log in a folder lacks in their present form."""
    place = Path(folder) / FILE_NAME
    done = by_digest(read_run_log(place)) if has_lines(place) else {}
    return [path for path in paths if digest(path) not in done]


def append(path: str | os.PathLike[str], record: Header | Measurement) -> None:
    """Appends a record as one line, whole or not at all, and returns when it is on the disk.

    A header equal to the file's last one is not written again. After a last line without its end a new one is begun.

    Raises:
        OSError: It cannot be written. (An SdkerasError where it is a link, or no file.)
    """
    document = as_plain(record)
    if isinstance(record, Header):
        document = {"schema_version": SCHEMA_VERSION, **document}
        if _last_header(path) == document:
            return
    line = json.dumps(document, allow_nan=False).encode() + b"\n"
    handle = open_own(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            line = b"\n" + line
        written = os.write(handle, line)
        if written < len(line):
            raise OSError(f"{written} of {len(line)} bytes were written; is the disk full?")
        os.fsync(handle)
    finally:
        os.close(handle)


def _last_header(path: str | os.PathLike[str]) -> dict[str, Json] | None:
    lines = Path(path).read_bytes().split(b"\n") if os.path.exists(path) else []
    return next((each for each in map(_parsed, reversed(lines)) if each and "schema_version" in each), None)


def _parsed(line: bytes) -> dict[str, Json] | None:
    """The JSON object of a line; None for a broken one."""
    try:
        document = parsed_json(line)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _header(document: dict[str, Json], where: str) -> Header:
    version = document["schema_version"]
    if version != SCHEMA_VERSION:
        raise SdkerasError(
            f"{where} has schema version {version!r:.40}, this sdkeras reads up to {SCHEMA_VERSION}; update sdkeras."
        )
    return from_plain(document, Header, where, "remove the line.")


def trajectory(log: RunLog) -> tuple[Measurement, ...]:
    """The measurements along one training, by step.

    Where the steps of `fit` go back, or a `fit` began at an earlier one, training has gone back (a restored backup, a
    fresh start): what was measured beyond is of weights that were given up, and is left out. Of a checkpoint the last
    measurement counts.
    """
    fitted, _ = _fitted(log)
    saved = {measurement.source: place for place, measurement in _from(log, fit=False)}
    kept = [log.measurements[place] for place in sorted([*fitted, *saved.values()])]
    return tuple(sorted(kept, key=lambda measurement: measurement.step))


def breaks(log: RunLog) -> tuple[str, ...]:
    """Where the log is not of one uninterrupted training, in words: what is missing, and what is there twice."""
    _, words = _fitted(log)
    sources = [measurement.source for _, measurement in _from(log, fit=False)]
    count = len(sources) - len(set(sources))
    if count:
        words.append(f"of {counted(count, 'checkpoint')} measured again, the last measurement is shown")
    return tuple(words)


def _from(log: RunLog, *, fit: bool) -> Iterator[tuple[int, Measurement]]:
    """(place in the file, measurement) of `fit`, or of checkpoints."""
    return ((place, each) for place, each in enumerate(log.measurements) if (each.source == "fit") == fit)


def _fitted(log: RunLog) -> tuple[list[int], list[str]]:
    """Places of the measurements of `fit` that count, their steps ascending, and what happened on the way."""
    fitted: list[tuple[int, Measurement]] = []
    words: list[str] = []
    for place, measurement in _from(log, fit=True):
        began, count = measurement.began, len(fitted)
        while fitted and (
            fitted[-1][1].step >= measurement.step or (began is not None and fitted[-1][1].step > began.step)
        ):
            last = fitted.pop()[1]
        if len(fitted) < count:
            back = measurement.step if began is None else began.step
            words.append(
                f"training went back to step {back:,}: {counted(count - len(fitted), 'measurement')} beyond it, up to "
                f"step {last.step:,}, belong to weights that were given up and are left out"
            )
        if began is not None:
            words += _joined(fitted[-1][1] if fitted else None, began)
        fitted.append((place, measurement))
    return [place for place, _ in fitted], words


def _joined(last: Measurement | None, began: Beginning) -> Iterator[str]:
    """The gap between the last measurement that counts and a `fit` that continues from it, if there is one."""
    if began.epoch if last is None else last.step < began.step:
        before = "there is no measurement" if last is None else f"the last measurement is of step {last.step:,}"
        epochs = counted(began.epoch, "epoch")
        yield f"training was continued at step {began.step:,}, after {epochs}; before it {before}: the log has a gap"
    if began.step and last is not None and last.epoch is not None and last.epoch > began.epoch:
        yield (
            f"from step {began.step:,} on epochs are counted from {began.epoch:,} again: a later call of fit, or an "
            "epoch trained twice because a backup's epoch was older than its weights"
        )
