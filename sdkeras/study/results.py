"""The runs of a finished or unfinished study as one table, read from its folder."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import attrs

from sdkeras.errors import SdkerasError, counted
from sdkeras.files.atomic import shown
from sdkeras.reporting.data_tables import as_csv
from sdkeras.reporting.numbers import ABSENT, number
from sdkeras.results.answers import Analysis
from sdkeras.results.note import Note
from sdkeras.study.correlations import Correlations, Run, correlate
from sdkeras.study.definition import OF_ANALYSES, Study
from sdkeras.study.run_files import (
    DONE,
    FAILED,
    STUDY_FILE,
    Measured,
    RunFolder,
    RunState,
    Trained,
    Value,
    plan_study,
    runs_folder,
)

_COMMAND = "sdkeras study run GRID.toml --out DIR"
_SCORES = ("train accuracy", "test accuracy", "accuracy gap", "train loss", "test loss", "loss gap")
_NO_VALUE = Value(None, None, "", {})


@attrs.frozen
class Analysed:
    """From a run's analysis: map and state's size of its SD and exponents (None without SD), and the warnings."""

    map: str | None
    state_size: int | None
    warnings: tuple[Note, ...]

    @property
    def codes(self) -> tuple[str, ...]:
        """Codes of the warnings, each once."""
        return tuple(dict.fromkeys(warning.code for warning in self.warnings))


@attrs.frozen
class Row:
    """One run of the table; `trained`, `measured` and `analysed` are None until it has reached that stage."""

    state: RunState
    trained: Trained | None
    measured: Measured | None
    analysed: Analysed | None = None

    def measure(self, column: str) -> Value:
        """A measure with its error and reason; empty where there is none."""
        return _NO_VALUE if self.measured is None else self.measured.values.get(column, _NO_VALUE)

    def gap(self, target: str) -> float | None:
        """'accuracy_gap' or 'loss_gap', or None where it is unknown."""
        gap: float | None = None if self.trained is None else getattr(self.trained, target)
        return gap

    @property
    def scores(self) -> tuple[float | None, ...]:
        """In the order of `_SCORES`."""
        trained = self.trained
        if trained is None:
            return (None,) * len(_SCORES)
        train, test = trained.train, trained.test
        return train.accuracy, test.accuracy, trained.accuracy_gap, train.loss, test.loss, trained.loss_gap


@attrs.frozen
class Results:
    """A study with all runs of its grid, and the names of folders of other runs."""

    study: Study
    rows: tuple[Row, ...]
    others: tuple[str, ...]

    @property
    def done(self) -> tuple[Row, ...]:
        """Finished runs, which enter the coefficients."""
        return tuple(row for row in self.rows if row.state.state == DONE)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the measures."""
        return tuple(self.study.columns)

    def varied(self) -> tuple[str, ...]:
        """Settings with more than one value."""
        return tuple(name for name, values in self.study.grid.items() if len(values) > 1)

    def summary(self) -> str:
        """The number of runs in each state."""
        counts = Counter(row.state.state for row in self.rows)
        words = [f"{counts[DONE]} of {counted(len(self.rows), 'run')} done"]
        words += [f"{counts[FAILED]} failed"] if counts[FAILED] else []
        to_do = len(self.rows) - counts[DONE] - counts[FAILED]
        return ", ".join([*words, f"{to_do} to do"] if to_do else words)

    def failures(self) -> tuple[tuple[str, str], ...]:
        """Name and reason of each failed run."""
        states = (row.state for row in self.rows)
        return tuple((each.run.name, each.failure.words) for each in states if each.failure is not None)

    def header(self) -> tuple[str, ...]:
        """Titles of the columns of `cells`."""
        return (*self.varied(), "state", *_SCORES, *self.columns)

    def cells(self) -> tuple[tuple[str, ...], ...]:
        """The table as text."""
        return tuple(
            (
                *(_shown(row.state.run.settings[name]) for name in self.varied()),
                row.state.state,
                *map(number, row.scores),
                *(number(row.measure(column).value) for column in self.columns),
            )
            for row in self.rows
        )

    def to_csv(self) -> str:
        """The table in full precision; absent values are empty."""
        header = ["run", "state", *self.study.grid, *(name.replace(" ", "_") for name in _SCORES)]
        header += ["epochs", "steps", "ended_by", *(name for each in self.columns for name in (each, f"{each}_error"))]
        rows: list[list[object]] = [[*header, "map", "state_size", "warnings", "reason"]]
        for row in self.rows:
            trained, analysed, failure = row.trained, row.analysed, row.state.failure
            line: list[object] = [row.state.run.name, row.state.state, *row.state.run.settings.values(), *row.scores]
            line += [None] * 3 if trained is None else [trained.num_epochs, trained.num_steps, trained.ended_by]
            for value in map(row.measure, self.columns):
                line += [value.value, value.error]
            line += [None] * 3 if analysed is None else [analysed.map, analysed.state_size, ";".join(analysed.codes)]
            rows.append([*line, "" if failure is None else failure.words])
        return as_csv(rows)

    def check_enough(self, wanted: str) -> None:
        """Refuses to correlate or draw fewer than 2 runs that are done, and says how to get more."""
        failures = self.failures()
        if len(self.done) >= 2:
            return
        if len(self.rows) < 2:
            again = " --retry" if failures else ""
            advice = f"Give a setting under [grid] more values, and run {_COMMAND}{again}."
        elif len(self.rows) - len(failures) >= 2:
            advice = f"Continue with {_COMMAND}."
        else:
            name, reason = failures[0]
            advice = f"Correct what made them fail and run {_COMMAND} --retry. The first, {name}, failed in {reason}"
        raise SdkerasError(f"{self.summary()}; {wanted} needs at least 2 that are done. {advice}")

    def correlations(self) -> Correlations:
        """Correlations of every measure with both gaps, over the runs that are done; an SdkerasError below 2."""
        self.check_enough("a correlation")
        return correlate(
            [
                Run(
                    settings=row.state.run.settings,
                    measures={column: row.measure(column).value for column in self.columns},
                    accuracy_gap=row.gap("accuracy_gap"),
                    loss_gap=row.gap("loss_gap"),
                )
                for row in self.done
            ]
        )


def read_results(folder: str | os.PathLike[str]) -> Results:
    """Reads the folder of a study.

    Raises:
        SdkerasError: It is not a study, or files in it are damaged.
    """
    path = Path(folder) / STUDY_FILE
    if not os.path.isfile(path):
        raise SdkerasError(f"{shown(folder)} holds no study; give the folder that sdkeras study run --out named.")
    study = Study.load(path)
    plan = plan_study(study, folder)
    with_analysis = any(name in OF_ANALYSES for name in study.measures)
    rows = []
    for state in plan.runs:
        files = RunFolder(runs_folder(folder) / state.run.name)
        analysed = _read_analyses(files) if with_analysis and state.state == DONE else None
        rows.append(Row(state, files.trained(), files.measured(), analysed))
    return Results(study, tuple(rows), plan.others)


def _read_analyses(files: RunFolder) -> Analysed | None:
    """Reads the analyses of a run, or gives None where there is none."""
    analyses = [_read_analysis(path) for path in (files.analysis, files.second_analysis) if path.exists()]
    if not analyses:
        return None
    warnings = tuple(warning for each in analyses for warning in each.warnings)
    dimension = analyses[0].sharpness_dimension
    if dimension is None:
        return Analysed(None, None, warnings)
    return Analysed(dimension.map, dimension.state_size, warnings)


def _read_analysis(path: Path) -> Analysis:
    try:
        return Analysis.load(path)
    except SdkerasError as error:
        raise SdkerasError(f"{error} Delete {path.parent}, and the run is done again.") from error


def _shown(value: object) -> str:
    return (str(value).lower() if isinstance(value, bool) else f"{value}") or ABSENT
