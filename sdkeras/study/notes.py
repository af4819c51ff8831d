"""Caveats of a study's coefficients that come from its runs."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from sdkeras.errors import counted
from sdkeras.study.correlations import FEWEST_RESAMPLED, Correlations
from sdkeras.study.results import OF_A_MAP, Results, Row


def notes(results: Results, correlations: Correlations) -> tuple[str, ...]:
    """Caveats of the table, in sentences."""
    messages = [*_left_out(results), *_maps(results), *_identical(results.done)]
    messages += [f"{reason.rstrip('.')}." for reason in results.undetermined()]
    if any(row.trained is not None and row.trained.accuracy_gap is None for row in results.done):
        messages.append("The model is compiled without metrics=['accuracy'], so there is no accuracy gap.")
    versions = {row.trained.code for row in results.done if row.trained is not None}
    if len(versions) > 1:
        messages.append(
            f"The file of the model's factory has changed between runs: they are of {len(versions)} versions of it."
        )
    few = {row.measure: row.num_runs for row in correlations.rows if row.tau_b is not None and row.interval is None}
    if len(results.done) < FEWEST_RESAMPLED:
        messages.append(
            f"With {counted(len(results.done), 'run')} there are no intervals; {FEWEST_RESAMPLED} are the least."
        )
    elif few:
        listed = ", ".join(f"{measure} with {counted(count, 'run')}" for measure, count in few.items())
        messages.append(f"No interval has {listed}: too few runs or too few different values.")
    return tuple(messages)


@attrs.frozen
class CountedWarning:
    """A warning in `num_runs` of the `num_analysed` runs with an analysis; the message is of the first of them."""

    code: str
    num_runs: int
    num_analysed: int
    message: str


def warnings_by_code(results: Results) -> tuple[CountedWarning, ...]:
    """The warnings of the analyses of the runs that are done, the most frequent first."""
    analysed = [row.analysed for row in results.done if row.analysed is not None]
    counts: dict[str, int] = {}
    messages: dict[str, str] = {}
    for each in analysed:
        for code in each.codes:
            counts[code] = counts.get(code, 0) + 1
        for warning in each.warnings:
            messages.setdefault(warning.code, warning.message)
    return tuple(
        CountedWarning(code, counts[code], len(analysed), messages[code])
        for code in sorted(counts, key=lambda code: -counts[code])
    )


def _left_out(results: Results) -> list[str]:
    messages = []
    failed, others = len(results.failures()), len(results.others)
    if failed:
        messages.append(f"{counted(failed, 'run')} failed and {_be(failed)} in no coefficient.")
    if others:
        messages.append(
            f"{counted(others, 'run')} of the folder {_be(others)} not in the grid and {_be(others)} in no coefficient."
        )
    return messages


def _maps(results: Results) -> list[str]:
    """That values of different maps, or of states of different sizes, stand in one coefficient."""
    columns = [name for name in results.study.measures if name in OF_A_MAP]
    counts: dict[tuple[str, int | None], int] = {}
    for row in results.done:
        if row.analysed is not None and row.analysed.map is not None:
            of = row.analysed.map, row.analysed.state_size
            counts[of] = counts.get(of, 0) + 1
    if len(counts) < 2 or not columns:
        return []
    listed = ", ".join(f"{name} with d = {size:,} in {counted(count, 'run')}" for (name, size), count in counts.items())
    several = len({name for name, _ in counts}) > 1
    remedy = (
        'Make one study for each optimizer, or set map = "hessian" under [analysis].'
        if several
        else "Make one study for each size of the model."
    )
    return [
        f"Runs are of different {'maps' if several else 'states'}: {listed}. SD and lambda_1 of different maps, or of "
        f"different d, are not comparable, and the coefficients of {', '.join(columns)} mix them. {remedy}"
    ]


def _identical(rows: Sequence[Row]) -> list[str]:
    """Trainings that came out equal although their settings differ; one sentence for each set of such settings."""
    alike: dict[tuple[float | None, ...], list[Row]] = {}
    for row in rows:
        if row.trained is not None:
            train, test = row.trained.train, row.trained.test
            alike.setdefault((train.loss, train.accuracy, test.loss, test.accuracy), []).append(row)
    by_settings: dict[tuple[str, ...], list[list[Row]]] = {}
    for group in alike.values():
        if len(group) > 1:
            names = group[0].state.run.settings
            differ = tuple(name for name in names if len({row.state.run.settings[name] for row in group}) > 1)
            by_settings.setdefault(differ, []).append(group)
    messages = []
    for differ, groups in by_settings.items():
        first, second = (row.state.run.name for row in groups[0][:2])
        more = sum(map(len, groups)) - 2
        also = f" (and {counted(more, 'other')} alike)" if more else ""
        asked = [f"'{name}'" for name in differ if name != "batch_size"]
        question = (
            f"does the factory use {' and '.join(asked)}?"
            if asked
            else "is every batch_size at least the number of training examples?"
        )
        messages.append(f"Runs {first} and {second}{also} came out identical: {question}")
    return messages


def _be(count: int) -> str:
    return "is" if count == 1 else "are"
