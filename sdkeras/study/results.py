"""The runs of a finished or unfinished study as one table, read from its folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import attrs

from sdkeras.errors import SdkerasError, counted
from sdkeras.files.atomic import shown
from sdkeras.reporting.csv_text import as_csv
from sdkeras.reporting.numbers import ABSENT, number
from sdkeras.results.answers import Analysis
from sdkeras.results.note import Note
from sdkeras.study.correlations import Correlations, Run, correlate
from sdkeras.study.definition import Study
from sdkeras.study.measures import ESTIMATOR_OF, OF_ANALYSES, Settings, columns
from sdkeras.study.run_files import Measured, RunFolder, Trained
from sdkeras.study.runner import DONE, FAILED, STUDY_FILE, RunState, plan_study, runs_folder

_COMMAND = "sdkeras study run GRID.toml --out DIR"


@attrs.frozen
class Row:
    """One run of the table; `trained`, `measured` and `analysed` are None as far as it has not come."""

    state: RunState
    trained: Trained | None
    measured: Measured | None
    analysed: Analysed | None = None

    @property
    def done(self) -> bool:
        """Whether it has all measures."""
        return self.state.state == DONE

    def value(self, column: str) -> float | None:
        """A measure, or None where there is none."""
        found = None if self.measured is None else self.measured.values.get(column)
        return None if found is None else found.value

    def error(self, column: str) -> float | None:
        """Of that measure, or None where it is unknown."""
        found = None if self.measured is None else self.measured.values.get(column)
        return None if found is None else found.error


@attrs.frozen
class Results:
    """A study with its runs.

    Attributes:
        study: Its definition.
        rows: All runs of the grid.
        others: Folders of runs that are not in it.
    """

    study: Study
    rows: tuple[Row, ...]
    others: tuple[str, ...]

    @property
    def done(self) -> tuple[Row, ...]:
        """The runs that count."""
        return tuple(row for row in self.rows if row.done)

    def varied(self) -> tuple[str, ...]:
        """Settings with more than one value."""
        return tuple(name for name, values in self.study.grid.items() if len(values) > 1)

    def summary(self) -> str:
        """How many runs there are and how they stand."""
        counts = {state: sum(row.state.state == state for row in self.rows) for state in (DONE, FAILED)}
        rest = len(self.rows) - sum(counts.values())
        parts = [f"{counts[DONE]} of {counted(len(self.rows), 'run')} done"]
        parts += [f"{counts[FAILED]} failed"] if counts[FAILED] else []
        parts += [f"{rest} to do"] if rest else []
        return ", ".join(parts)

    def failures(self) -> tuple[tuple[str, str], ...]:
        """Name and reason of each failed run."""
        found = [(row.state.run.name, row.state.failure) for row in self.rows]
        return tuple((name, f"{failed.stage}: {failed.reason}") for name, failed in found if failed is not None)

    def undetermined(self) -> tuple[str, ...]:
        """Measures that some done runs have no number of, with the reasons."""
        found: dict[tuple[str, str], int] = {}
        for row in self.done:
            for column in columns(self.study.measures):
                value = None if row.measured is None else row.measured.values.get(column)
                if value is not None and value.value is None:
                    found[column, value.reason] = found.get((column, value.reason), 0) + 1
        by_column: dict[str, list[tuple[str, int]]] = {}
        for (column, reason), count in found.items():
            by_column.setdefault(column, []).append((reason, count))
        return tuple(
            f"{column} has no number in {counted(sum(count for _, count in reasons), 'run')}, "
            f"for example: {reasons[0][0]}"
            for column, reasons in by_column.items()
        )

    def header(self) -> tuple[str, ...]:
        """Titles of the columns of `cells`."""
        gaps = ("train accuracy", "test accuracy", "accuracy gap", "train loss", "test loss", "loss gap")
        return (*self.varied(), "state", *gaps, *columns(self.study.measures))

    def cells(self) -> tuple[tuple[str, ...], ...]:
        """The table as text."""
        return tuple(
            (
                *(_shown(row.state.run.settings[name]) for name in self.varied()),
                row.state.state,
                *(number(value) for value in _scores(row)),
                *(number(row.value(column)) for column in columns(self.study.measures)),
            )
            for row in self.rows
        )

    def to_csv(self) -> str:
        """The table in full precision; absent values are empty."""
        of = tuple(columns(self.study.measures))
        scores = ("train_accuracy", "test_accuracy", "accuracy_gap", "train_loss", "test_loss", "loss_gap")
        errors = [name for column in of for name in (column, f"{column}_error")]
        ending, of_analysis = ("epochs", "steps", "ended_by"), ("map", "state_size", "warnings")
        rows: list[list[Any]] = [["run", "state", *self.study.grid, *scores, *ending, *errors, *of_analysis, "reason"]]
        for row in self.rows:
            values: list[Any] = [row.state.run.name, row.state.state, *row.state.run.settings.values(), *_scores(row)]
            trained = row.trained
            values += [None] * 3 if trained is None else [trained.num_epochs, trained.num_steps, trained.ended_by]
            for column in of:
                found = None if row.measured is None else row.measured.values.get(column)
                values += [None, None] if found is None else [found.value, found.error]
            analysed = row.analysed
            values += [None] * 3 if analysed is None else [analysed.map, analysed.state_size, ";".join(analysed.codes)]
            failure = row.state.failure
            rows.append([*values, "" if failure is None else f"{failure.stage}: {failure.reason}"])
        return as_csv(rows)

    def check_enough(self, wanted: str) -> None:
        """Refuses what needs more runs.

        Raises:
            SdkerasError: Fewer than 2 are done; the message says how to get more.
        """
        done = len(self.done)
        if done >= 2:
            return
        to_do = sum(row.state.state not in (DONE, FAILED) for row in self.rows)
        failures = self.failures()
        if len(self.rows) < 2:
            advice = f"Give a setting under [grid] more values, and say {_COMMAND}{' --retry' if failures else ''}."
        elif done + to_do >= 2:
            advice = f"Go on with {_COMMAND}."
        else:
            name, reason = failures[0]
            advice = f"Mend what made them fail and say {_COMMAND} --retry. The first, {name}, failed in {reason}"
        raise SdkerasError(f"{self.summary()}; {wanted} needs at least 2 that are done. {advice}")

    def correlations(self) -> Correlations:
        """Of every measure with both gaps, over the runs that are done.

        Raises:
            SdkerasError: Fewer than 2 are.
        """
        self.check_enough("a correlation")
        of = columns(self.study.measures)
        return correlate(
            [
                Run(
                    settings=row.state.run.settings,
                    measures={column: row.value(column) for column in of},
                    accuracy_gap=None if row.trained is None else row.trained.accuracy_gap,
                    loss_gap=None if row.trained is None else row.trained.loss_gap,
                )
                for row in self.done
            ]
        )


def read_results(folder: str | os.PathLike[str]) -> Results:
    """Reads the folder of a study.

    Raises:
        SdkerasError: It is none, or files in it are damaged.
    """
    path = Path(folder) / STUDY_FILE
    if not os.path.isfile(path):
        raise SdkerasError(f"{shown(folder)} holds no study; give the folder that sdkeras study run --out named.")
    study = Study.load(path)
    plan = plan_study(study, folder)
    rows = []
    for state in plan.runs:
        files = RunFolder(runs_folder(folder) / state.run.name)
        analysed = read_analysis(files.analysis) if state.state == DONE and needs_analysis(study.measures) else None
        rows.append(Row(state, files.trained(), files.measured(), analysed))
    return Results(study, tuple(rows), plan.others)


def _scores(row: Row) -> tuple[float | None, ...]:
    found = row.trained
    if found is None:
        return (None,) * 6
    return (
        found.train.accuracy,
        found.test.accuracy,
        found.accuracy_gap,
        found.train.loss,
        found.test.loss,
        found.loss_gap,
    )


def _shown(value: Any) -> str:
    return (str(value).lower() if isinstance(value, bool) else f"{value}") or ABSENT


# The columns whose values are of a map and its state, and compare only within it.
OF_A_MAP = (*ESTIMATOR_OF, "lambda_1")


@attrs.frozen
class Analysed:
    """Of one run's analysis.

    Attributes:
        map: The map that its SD and exponents are of; None where it has no SD.
        state_size: Dimension d of that map's state; None as well.
        warnings: Of the analysis.
    """

    map: str | None
    state_size: int | None
    warnings: tuple[Note, ...]

    @property
    def codes(self) -> tuple[str, ...]:
        """Codes of the warnings, each once."""
        return tuple(dict.fromkeys(warning.code for warning in self.warnings))


def needs_analysis(measures: Settings) -> bool:
    """Whether a measure of the study is read from an analysis."""
    return any(name in OF_ANALYSES for name in measures)


def read_analysis(path: Path) -> Analysed | None:
    """Reads a run.json, or gives None where there is none.

    Raises:
        SdkerasError: It is damaged.
    """
    if not path.exists():
        return None
    try:
        found = Analysis.load(path)
    except SdkerasError as error:
        raise SdkerasError(f"{error} Delete {path.parent}, and the run is done again.") from error
    dimension = found.sharpness_dimension
    if dimension is None:
        return Analysed(None, None, found.warnings)
    return Analysed(dimension.map, dimension.state_size, found.warnings)
