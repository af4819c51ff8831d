"""A study's folder and the folders of its runs: their files, how far each run has come, and what is to do."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import attrs

from sdkeras.errors import SdkerasError, counted
from sdkeras.files.atomic import check_is_file, shown
from sdkeras.files.reading import Json, blamed_on, parsed_json
from sdkeras.results.codec import as_plain, from_plain
from sdkeras.results.document import write_atomically
from sdkeras.study.definition import GridRun, Study, differences

_Rec = TypeVar("_Rec")


@attrs.frozen
class Scores:
    """Loss, and accuracy where the model is compiled with it, over all of some data in inference mode."""

    loss: float
    accuracy: float | None


@attrs.frozen
class Trained:
    """A finished training.

    Attributes:
        training: Settings that all runs of its study share, see `Study.training`.
        ended_by: 'epochs', 'steps', or the threshold that was reached.
        code: SHA-256 of the file of the model's factory (first 16 hex digits), "" where it has none.
        history: Logs of `fit` at each epoch.
        optimizer: SHA-256 of the configuration of the factory's optimizer (first 16 hex digits), "" where Keras cannot
            serialise it, and in folders of version 0.1.0.
    """

    settings: dict[str, Json]
    training: dict[str, Json]
    num_epochs: int
    num_steps: int
    ended_by: str
    train: Scores
    test: Scores
    code: str
    history: dict[str, list[float]]
    seconds: float
    optimizer: str = ""

    @property
    def accuracy_gap(self) -> float | None:
        """|train accuracy - test accuracy|."""
        if self.train.accuracy is None or self.test.accuracy is None:
            return None
        return abs(self.train.accuracy - self.test.accuracy)

    @property
    def loss_gap(self) -> float:
        """|train loss - test loss|."""
        return abs(self.train.loss - self.test.loss)


@attrs.frozen
class Value:
    """One measure of one run, by the settings of `Study.by_column`: a number, or None for a reason.

    `error` is the standard error or half-width of the interval, or None where that is unknown.
    """

    value: float | None
    error: float | None = None
    reason: str = ""
    by: dict[str, Json] = attrs.field(factory=dict)


@attrs.frozen
class Measured:
    """The measures of one run by column, and the time they took in seconds."""

    values: dict[str, Value]
    seconds: float


@attrs.frozen
class Failed:
    """Why a run failed, and at which stage: 'training' or 'measuring'."""

    stage: str
    reason: str

    @property
    def words(self) -> str:
        return f"{self.stage}: {self.reason}"


class RunFolder:
    """The files of one run; each is written whole or not at all, and the last one of a stage marks its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings = path / "settings.json"
        self.weights = path / "model.weights.h5"
        # Version 0.1.0 wrote the whole model; only the weights in it are read.
        self.old_model = path / "model.keras"
        self.trajectory = path / "trajectory.npz"
        self.training = path / "training.json"
        self.analysis = path / "run.json"
        self.second_analysis = path / "run-map-hessian.json"
        self.measures = path / "measures.json"
        self.failure = path / "failed.json"
        self.log = path / "log.txt"

    def begin(self, settings: Mapping[str, Json]) -> None:
        """Prepares the folder for a run of these settings, which no other process may be doing.

        Unfinished files that a killed process has left are removed, and a link in place of the log.
        """
        self.path.mkdir(exist_ok=True)
        if self.log.is_symlink():
            self.log.unlink()
        starts = tuple(f".{file.name}." for file in vars(self).values() if file != self.path)
        for entry in [each for each in self.path.iterdir() if each.name.startswith(starts)]:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
        self.write(self.settings, settings)
        self.failure.unlink(missing_ok=True)

    def trained(self) -> Trained | None:
        return self._read(self.training, Trained)

    def measured(self) -> Measured | None:
        """The measures so far."""
        return self._read(self.measures, Measured)

    def failed(self) -> Failed | None:
        """Why it failed the last time."""
        return self._read(self.failure, Failed)

    def missing(self, by: dict[str, dict[str, Json]]) -> tuple[str, ...]:
        """Columns that are not measured yet, or were with other settings than these, see `Study.by_column`."""
        measured = self.measured()
        values = {} if measured is None else measured.values
        return tuple(column for column, wanted in by.items() if column not in values or values[column].by != wanted)

    def write(self, path: Path, record: object) -> None:
        """Writes one of its files as JSON."""
        write_atomically(path, json.dumps(as_plain(record), indent=1, allow_nan=False) + "\n", follow_links=False)

    @staticmethod
    def _read(path: Path, kind: type[_Rec]) -> _Rec | None:
        damaged, advice = f"{shown(path)} is damaged", "delete it, and the run is done again."
        check_is_file(path, SdkerasError, advice)
        with blamed_on(damaged, advice):
            try:
                text = path.read_text(encoding="utf-8")
            except FileNotFoundError:
                return None
            return from_plain(parsed_json(text), kind, damaged, advice)


STUDY_FILE = "study.json"
DONE, TRAINED, FAILED, NEW = "done", "trained", "failed", "new"


@attrs.frozen
class RunState:
    """State of a run: 'done', 'trained' (not all measures), 'failed' or 'new'."""

    run: GridRun
    state: str
    failure: Failed | None = None


@attrs.frozen
class StudyPlan:
    """Plan of `run_study`: all runs of the grid, and notes on differences from an earlier definition.

    `others` are folders of runs that are not in the grid; they stay, and no table holds them. `seconds` is the mean
    duration of the runs that are done, None without one; `jobs` the number of parallel processes.
    """

    runs: tuple[RunState, ...]
    others: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float | None
    jobs: int

    def to_do(self, retry: bool) -> tuple[RunState, ...]:
        """Runs that `run_study` has to do."""
        return tuple(each for each in self.runs if each.state in (NEW, TRAINED) or (retry and each.state == FAILED))


def _cores() -> int:
    """Cores that this process may use."""
    with contextlib.suppress(AttributeError):  # not everywhere
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def runs_folder(folder: str | os.PathLike[str]) -> Path:
    """Folder of the folders of a study's runs."""
    return Path(folder) / "runs"


def plan_study(study: Study, folder: str | os.PathLike[str], *, jobs: int | None = None) -> StudyPlan:
    """Lists the runs that are done and those to do; writes nothing.

    Raises:
        SdkerasError: The folder holds runs that were trained by another definition, or damaged files.
    """
    place = runs_folder(folder)
    if os.path.exists(place) and not os.path.isdir(place):
        raise SdkerasError(f"{shown(place)} is a file, and must be the folder of the runs; choose another `out`.")
    training, by = json.loads(json.dumps(study.training())), study.by_column()
    states, seconds = [], []
    remeasured: set[str] = set()
    for run in study.runs:
        files = RunFolder(place / run.name)
        trained, measured, failure = files.trained(), files.measured(), files.failed()
        state = NEW
        if trained is not None:
            _check_same(trained.training, training, folder)
            missing = files.missing(by)
            state = TRAINED if missing else DONE
            if measured is not None:
                remeasured.update(missing)
                seconds += [] if missing else [trained.seconds + measured.seconds]
        states.append(RunState(run, state if failure is None else FAILED, failure))
    names = {run.name for run in study.runs}
    others = sorted({each.name for each in place.iterdir()} - names) if os.path.isdir(place) else []
    notes = []
    if remeasured:
        listed = ", ".join(sorted(remeasured))
        notes.append(f"measures that are new or have other settings are taken of trained runs: {listed}.")
    if others:
        notes.append(f"not in this grid, and in no table: {counted(len(others), 'run')} of the folder.")
    mean = sum(seconds) / len(seconds) if seconds else None
    return StudyPlan(tuple(states), tuple(others), tuple(notes), mean, _cores() if jobs is None else jobs)


def _check_same(trained: Mapping[str, Json], wanted: Mapping[str, Json], folder: str | os.PathLike[str]) -> None:
    """Refuses runs of another definition of training."""
    recorded = wanted["recorded"]
    if recorded is not None and trained.get("recorded") is None:
        raise SdkerasError(
            f"{', '.join(recorded['for'])} are of the iterates of training, which the runs in {shown(folder)} have "
            "not recorded; name another folder (`out`), or take trajectory = 'forward', which is simulated afterwards."
        )
    changed = differences(trained, wanted)
    if changed:
        raise SdkerasError(
            f"{shown(folder)} holds runs of another definition: {'; '.join(changed)}. Name another folder (`out`), "
            "or restore the definition."
        )
