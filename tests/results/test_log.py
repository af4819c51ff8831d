"""The log: whole lines, readable whatever happened to its end, and a training's way out of it."""

import math
import os
from pathlib import Path

import attrs
import pytest

from sample_log import FOUND, HEADER
from sdkeras.errors import SdkerasError
from sdkeras.results.log import FILE_NAME, Header, Measurement, RunLog, append, read_run_log, trajectory


def at(step: int, source: str = "fit") -> Measurement:
    return attrs.evolve(FOUND, step=step, source=source)


def written(folder: Path, *records: Header | Measurement) -> Path:
    for record in records:
        append(folder / FILE_NAME, record)
    return folder / FILE_NAME


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, HEADER, FOUND, at(20))
    for place in (tmp_path, path):
        log = read_run_log(place)
        assert log.header == HEADER
        assert [found.step for found in log.measurements] == [10, 20]
        first = log.measurements[0]
        assert math.isnan(first.values["hessian_trace"].value)
        assert attrs.evolve(first, values={}) == attrs.evolve(FOUND, values={})
        assert first.values["sharpness_dimension"] == FOUND.values["sharpness_dimension"]
        assert log.notes == ()
    assert path.read_text().count("\n") == 3
    assert "NaN" not in path.read_text()


def test_a_header_is_written_once_and_another_one_is_noted(tmp_path: Path) -> None:
    path = written(tmp_path, HEADER, FOUND, HEADER, at(20))
    assert path.read_text().count("schema_version") == 1
    written(tmp_path, attrs.evolve(HEADER, data_digest="cd34"), at(30))
    log = read_run_log(path)
    assert log.header.data_digest == "cd34"
    assert log.notes == ("from line 4 on the log belongs to another model, optimizer, data set or version",)
    assert len(log.measurements) == 3


@pytest.mark.parametrize("cut", [1, 40, 200])
def test_a_line_that_breaks_off_is_left_out_and_the_next_writer_begins_a_new_one(tmp_path: Path, cut: int) -> None:
    path = written(tmp_path, HEADER, FOUND, at(20))
    os.truncate(path, path.stat().st_size - cut)
    log = read_run_log(path)
    if cut == 1:  # only the end of the line is missing
        assert [found.step for found in log.measurements] == [10, 20]
    else:
        assert [found.step for found in log.measurements] == [10]
        assert log.notes == ("line 3 breaks off (a crash, or a writer at work) and was left out",)
    written(tmp_path, at(30))
    log = read_run_log(path)
    assert [found.step for found in log.measurements] == ([10, 20, 30] if cut == 1 else [10, 30])
    if cut > 1:
        assert log.notes == ("line 3 is broken (a crash, or a writer at work) and was left out",)


def test_every_length_of_a_crashed_file_can_be_read(tmp_path: Path) -> None:
    whole = written(tmp_path, HEADER, FOUND, at(20)).read_bytes()
    ends = [k for k, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(ends[0], len(whole), 7):
        (tmp_path / FILE_NAME).write_bytes(whole[:length])
        complete = sum(length >= end for end in ends[1:])
        assert len(read_run_log(tmp_path).measurements) == complete


def test_a_record_is_one_write_and_reaches_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    write, fsync = os.write, os.fsync
    monkeypatch.setattr(os, "write", lambda handle, line: calls.append("write") or write(handle, line))
    monkeypatch.setattr(os, "fsync", lambda handle: calls.append("fsync") or fsync(handle))
    written(tmp_path, HEADER, FOUND)
    assert calls == ["write", "fsync"] * 2
    monkeypatch.setattr(os, "write", lambda handle, line: write(handle, line[:9]))
    with pytest.raises(OSError, match=r"9 of .* bytes were written; is the disk full"):
        written(tmp_path, at(20))
    monkeypatch.setattr(os, "write", write)
    written(tmp_path, at(30))
    assert [found.step for found in read_run_log(tmp_path).measurements] == [10, 30]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file or directory; give a folder with a sharpness.jsonl"),
        ("", "is empty: nothing has been measured yet"),
        ('{"step": 3}\n', "does not begin with the header of a log"),
        ("[1, 2]\n", "does not begin with the header of a log"),
        ('{"schema_version": 2}\n', "line 1 has schema version 2, this sdkeras reads up to 1; update sdkeras"),
        ('{"schema_version": 1, "model": "net"}\n', "line 1: required field missing"),
    ],
)
def test_what_is_no_log_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(SdkerasError, match=message):
        read_run_log(tmp_path)


def test_a_training_that_went_back_leaves_its_old_way() -> None:
    def steps(*measured: Measurement) -> list[int]:
        return [found.step for found in trajectory(RunLog(HEADER, measured))]

    assert steps(at(10), at(20), at(30)) == [10, 20, 30]
    assert steps(at(10), at(20), at(30), at(20), at(40)) == [10, 20, 40]
    assert steps(at(10), at(20), at(5)) == [5]
    assert steps(at(30, "c.keras"), at(10, "a.keras"), at(30, "fit"), at(10, "b.keras")) == [10, 10, 30, 30]


class Counted(int):
    """A step that counts how often it is compared."""

    comparisons = 0

    def _counting(self, other: object, compare: str) -> bool:
        Counted.comparisons += 1
        return bool(getattr(int, compare)(self, other))

    def __lt__(self, other: object) -> bool:
        return self._counting(other, "__lt__")

    def __ge__(self, other: object) -> bool:
        return self._counting(other, "__ge__")

    def __eq__(self, other: object) -> bool:
        return self._counting(other, "__eq__")

    __hash__ = int.__hash__


@pytest.mark.parametrize("source", ["fit", "checkpoint"])
def test_the_way_of_a_training_takes_a_few_comparisons_a_measurement(source: str) -> None:
    """Those of every pair would be 2 million."""
    count = 2000
    names = ["fit"] * count if source == "fit" else [f"{k}.keras" for k in range(count)]
    log = RunLog(HEADER, tuple(at(Counted(step), name) for step, name in enumerate(names)))
    Counted.comparisons = 0
    assert len(trajectory(log)) == count
    assert 0 < Counted.comparisons < 10 * count


def test_a_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / FILE_NAME)
    with pytest.raises(SdkerasError, match=r"sharpness\.jsonl is a FIFO, not a file; give a folder"):
        read_run_log(tmp_path)
