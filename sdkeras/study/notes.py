"""Caveats on a study's coefficients and runs, and the meaning of measures and coefficients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs

from sdkeras.errors import counted
from sdkeras.study.correlations import FEWEST_RESAMPLED, Correlations
from sdkeras.study.definition import OF_TRAJECTORIES, parts_of_column
from sdkeras.study.results import OF_A_MAP, Results, Row

_SD = "the largest dimension whose volumes training steps do not contract on average"
_MEASURES = {
    "sd": f"Sharpness dimension, {_SD}; from all eigenvalues of the Hessians of single minibatches.",
    "sd-slq": "Sharpness dimension by the paper's SD-SLQ: Lanczos quadrature of minibatch Hessians, with the exponents "
    "in bins of one width. Bins that are wide beside |t*| can make it anything.",
    "sd-kde": "Sharpness dimension by the paper's SD-KDE: the same quadrature, with the exponents smoothed by a "
    "Gaussian of one bandwidth.",
    "sd-ps": "Sharpness dimension by the paper's SD-PS: the smoothed spectrum cut into pseudo-eigenvalues of equal "
    "mass.",
    "slq": "Sharpness dimension by Lanczos quadrature of minibatch Hessians as it is, without bins or smoothing.",
    "lambda_1": "The leading RDS-sharpness exponent: the mean over minibatches of the logarithm of the largest factor "
    "by which a training step stretches a small distance; above 0 it stretches. Not the largest eigenvalue of the "
    "Hessian, which is sharpness.",
    "sharpness": "The algebraically largest eigenvalue of the Hessian of the loss over the training data. The paper's "
    "tables have the largest absolute value, which is another one where negative curvature is steeper.",
    "trace": "The trace of that Hessian, the sum of all its eigenvalues.",
    "e_alpha": "Total length of the minimum spanning tree of the iterates, each edge to the power alpha. It grows with "
    "their number, which is the same in all runs of a study.",
    "ph_dimension": "Persistent homology dimension of the iterates: alpha / (1 - s), where s is how fast ln e_alpha "
    "grows with ln of the number of iterates. Its standard error is that of the regression; gaps in the set that come "
    "at regular scales move it by more.",
}
_PARTS = {
    "forward": "Of iterates that were simulated from the end of training on.",
    "backward": "Of the last iterates of training itself.",
    "euclidean": "The distance of two iterates is that of their weights.",
    "data": "The distance of two iterates is the mean absolute difference of their losses, over training examples.",
}
_COEFFICIENTS = {
    "gap": "The absolute value of training minus test, |train - test|. An untrained run whose test accuracy is above "
    "its training accuracy, by chance, has a gap too, and may have a large one.",
    "tau-b": "Kendall's rank correlation over all runs: the pairs of runs that measure and gap put in the same order "
    "minus those that they put in opposite order, as a share of the pairs, with a correction for ties. 1: the same "
    "order; 0: none; -1: the opposite one.",
    "psi": "The granulated coefficient of a setting: the mean of tau-b over groups of runs that differ in this setting "
    "alone. It shows whether a measure correlates with the gap while everything else stays the same.",
}


def measures_in_words(columns: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Name and meaning of each measure, trajectory and distance that the columns of a table hold."""
    names: dict[str, None] = {}
    parts: dict[str, None] = {}
    for column in columns:
        measure, *of = parts_of_column(column) if column.startswith(OF_TRAJECTORIES) else (column,)
        names[measure] = None
        parts |= dict.fromkeys(of)
    return (*((name, _MEASURES[name]) for name in names), *((name, _PARTS[name]) for name in _PARTS if name in parts))


def coefficients_in_words() -> tuple[tuple[str, str], ...]:
    """Name and meaning of the gap and of the coefficients."""
    return tuple(_COEFFICIENTS.items())


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
    """A warning in `num_runs` of the `num_analysed` runs with an analysis; the message is that of the first."""

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
    """Caveats on coefficients that mix values of different maps, or of states of different sizes."""
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
