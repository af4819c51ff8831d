"""A training that is killed and restored by BackupAndRestore: what its log says, whichever callback comes first."""

import os
from pathlib import Path

import attrs
import keras
import pytest

from callbacks.test_logs import Clock, StandIn, fit, watch
from sample_log import FOUND, HEADER
from sdkeras.callbacks import SharpnessDimension, sharpness_dimension
from sdkeras.reporting.build import report_of
from sdkeras.reporting.html import as_html
from sdkeras.results import log as run_log
from sdkeras.results.log import Beginning, Measurement, RunLog, breaks, read_run_log, trajectory

EPOCHS, STEPS = 4, 6


class PowerCut(Exception):
    pass


class Cut(keras.callbacks.Callback):
    """Ends the process, as far as the disk can tell, at the end of an epoch."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.at = epoch

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        if epoch + 1 == self.at:
            raise PowerCut


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharpness_dimension, "Monitor", type("One", (StandIn,), {"clock": Clock(), "error": {}}))


def trained(folder: Path, order: str, *, cut: tuple[int, int] | None = None, **options) -> SharpnessDimension:
    """The callback after one call of `fit`; `cut` is the place in the list of callbacks and the epoch."""
    callbacks = {"w": watch(log_dir=folder, **options), "b": keras.callbacks.BackupAndRestore(folder / "backup")}
    listed = [callbacks[letter] for letter in order]
    if cut is not None:
        listed.insert(cut[0], Cut(cut[1]))
    try:
        fit(*listed, epochs=EPOCHS)  # the steps are counted from 0, as in a new process
    except PowerCut:
        assert cut is not None
    return callbacks["w"]


def steps(log: RunLog) -> list[int]:
    return [found.step for found in log.measurements]


@pytest.mark.parametrize(
    ("order", "place", "in_file", "shown", "words"),
    [
        ("wb", 0, [6, 12, 18, 24], [6, 12, 18, 24], ""),
        ("wb", 1, [6, 12, 12, 18, 24], [6, 12, 18, 24], "training went back to step 6: 1 measurement beyond it"),
        pytest.param("bw", 0, [6, 12, 18, 24], [6, 12, 18, 24], "", marks=pytest.mark.slow),
        ("bw", 1, [6, 18, 24], [6, 18, 24], "at step 12, after 2 epochs; before it the last measurement is of step 6"),
    ],
)
def test_what_is_there_twice_and_what_is_missing_is_said(
    tmp_path: Path, order: str, place: int, in_file: list[int], shown: list[int], words: str
) -> None:
    trained(tmp_path, order, cut=(place, 2))
    trained(tmp_path, order)
    log = read_run_log(tmp_path)
    assert steps(log) == in_file
    assert [found.step for found in trajectory(log)] == shown
    assert len(breaks(log)) == bool(words)
    assert words in " ".join(note.message for note in report_of(log).notes)
    assert words in as_html(log)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_measurements_of_given_up_weights_are_left_out_where_the_next_one_is_later(tmp_path: Path) -> None:
    """Measured every 5 steps, killed after step 10, restored to step 6: step 15 follows step 5."""
    trained(tmp_path, "bw", cut=(0, 2), every=5)
    trained(tmp_path, "bw", every=5)
    log = read_run_log(tmp_path)
    assert steps(log) == [5, 10, 10, 15, 20]
    lines = list(log.measurements)
    lines[2] = attrs.evolve(lines[2], step=11)
    assert [found.step for found in trajectory(attrs.evolve(log, measurements=tuple(lines)))] == [5, 11, 15, 20]
    assert "training went back to step 6: 1 measurement beyond it, up to step 10" in breaks(log)[0]
    assert "before it the last measurement is of step 5" in breaks(log)[1]


@pytest.mark.parametrize("order", ["wb", "bw"])
def test_steps_are_counted_from_the_restored_one(tmp_path: Path, order: str) -> None:
    """The first batch after a restore is no multiple of the steps because the count began at 0."""
    trained(tmp_path, order, cut=(0, 3), every=8)
    trained(tmp_path, order, every=8)
    assert steps(read_run_log(tmp_path)) == [6, 8, 16, 16, 24]


def at(step: int, epoch: int, *began: int) -> Measurement:
    return attrs.evolve(FOUND, step=step, epoch=epoch, began=Beginning(*began) if began else None)


@pytest.mark.parametrize(
    ("lines", "shown", "words"),
    [
        ([at(6, 1, 0, 0), at(12, 2), at(18, 3, 12, 2)], [6, 12, 18], []),
        ([at(6, 1, 0, 0), at(6, 1, 0, 0)], [6], ["went back to step 0: 1 measurement beyond it, up to step 6"]),
        ([at(6, 1, 0, 0), at(12, 1, 0, 0)], [12], ["went back to step 0"]),
        ([at(6, 1, 0, 0), at(12, 2), at(24, 4, 6, 1)], [6, 24], ["went back to step 6: 1 measurement beyond"]),
        ([at(12, 2, 6, 1)], [12], ["at step 6, after 1 epoch; before it there is no measurement"]),
        ([at(606, 1, 600, 0)], [606], []),  # a trained model, and a new log
        (
            [at(6, 1, 0, 0), at(12, 2), at(18, 2, 12, 1)],
            [6, 12, 18],
            ["step 12 on epochs are counted from 1 again"],
        ),
        ([at(20, 1), at(30, 2), at(10, 1)], [10], ["went back to step 10: 2 measurements"]),  # a log of 0.1.0
        ([attrs.evolve(FOUND, source="a"), attrs.evolve(FOUND, source="a")], [10], ["1 checkpoint measured again"]),
    ],
)
def test_breaks_of_a_log(lines: list[Measurement], shown: list[int], words: list[str]) -> None:
    log = RunLog(HEADER, tuple(lines))
    assert [found.step for found in trajectory(log)] == shown
    assert len(breaks(log)) == len(words)
    assert all(expected in said for expected, said in zip(words, breaks(log), strict=True))


def test_many_breaks_are_counted() -> None:
    lines = [at(10 * k, 1, 10 * k - 5, 1) for k in range(1, 30)]
    notes = [note.message for note in report_of(RunLog(HEADER, tuple(lines))).notes]
    said = [note for note in notes if "gap" in note or "more" in note]
    assert len(said) == 5
    assert said[-1] == "and 25 more of this kind"


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_line_that_cannot_be_written_is_a_gap_and_the_rest_of_the_log_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """A disk that is full at the header, or in the middle of a line."""
    write, calls = os.write, []

    def full(handle: int, line: bytes) -> int:
        if not line.lstrip().startswith(b"{"):  # a lock
            return write(handle, line)
        calls.append(line)
        return write(handle, line[:50]) if len(calls) == failing + 1 else write(handle, line)

    monkeypatch.setattr(run_log.os, "write", full)
    callback = trained(tmp_path, "wb")
    assert [found.began for found in callback.measurements] == [Beginning(0, 0), None, None, None]
    log = read_run_log(tmp_path)
    assert steps(log) == [[12, 18, 24], [12, 18, 24], [6, 18, 24]][failing]
    assert "is broken (a crash, or a writer at work) and was left out" in log.notes[0]
    assert [found.began for found in log.measurements] == [Beginning(0, 0), None, None]
