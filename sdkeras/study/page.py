"""The report of a study (coefficients, caveats, trainings, failures) and the files that its folder gets."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from sdkeras._version import __version__
from sdkeras.errors import counted
from sdkeras.reporting.drawing import as_image
from sdkeras.reporting.html import save_html
from sdkeras.reporting.numbers import ABSENT
from sdkeras.reporting.report import Cell, Figure, Paragraph, Report, Section, Table
from sdkeras.reporting.report import Row as Cells
from sdkeras.results.document import write_atomically
from sdkeras.results.note import Note, by_severity
from sdkeras.study.correlations import FEWEST_RESAMPLED, TARGETS, Correlations, MeasureCorrelation, coefficient
from sdkeras.study.definition import OF_A_MAP, definition, length
from sdkeras.study.figures import heat_map, matrix, scatter
from sdkeras.study.results import Results, Row, read_results

_DRAWN = {"heat_map": heat_map, "matrix": matrix}
FILES = (
    *("runs.csv", "correlations.csv", "correlations.json"),
    *(f"{name}.{suffix}" for name in _DRAWN for suffix in ("png", "svg")),
    "study.html",
)
# A coefficient with a larger p value says nothing clear.
_CLEAR = 0.05

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
    "trace": "The trace of the Hessian of the loss, the sum of all its eigenvalues.",
    "e_alpha": "Total length of the minimum spanning tree of the iterates, each edge to the power alpha. It grows with "
    "their number, which is the same in all runs of a study.",
    "ph_dimension": "Persistent homology dimension of the iterates: alpha / (1 - s), where s is how fast ln e_alpha "
    "grows with ln of the number of iterates. Its standard error is that of the regression; gaps in the set that come "
    "at regular scales move it by more.",
}
_PARTS = {
    "forward": "Measured on iterates simulated from the end of training on.",
    "backward": "Measured on the last iterates of training itself.",
    "euclidean": "Two iterates are as far apart as their weights.",
    "data": "Two iterates are as far apart as their losses: the mean absolute difference over training examples.",
    "hessian": "The same of the paper's map, |1 - eta*alpha| for each eigenvalue alpha of a minibatch Hessian whatever "
    "the optimizer, which the paper's own numbers are of. Without this ending a measure is of the step that the "
    "optimizer really takes.",
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


def correlate_study(folder: str | os.PathLike[str]) -> Report:
    """Correlates every measure of a study with its gaps and writes `FILES` into its folder.

    A SdkerasError says that the folder is not a study's, that fewer than 2 runs are done, or which file cannot be
    written; the same from `plot_study`.
    """
    results, place = read_results(folder), Path(folder)
    correlations = results.correlations()
    report = study_report(results, correlations)
    write_atomically(place / "runs.csv", results.to_csv(), follow_links=False)
    write_atomically(place / "correlations.csv", correlations.to_csv(), follow_links=False)
    correlations.save(place / "correlations.json", follow_links=False)
    for name, figure in _DRAWN.items():
        _draw(figure(correlations), place / name)
    save_html(report, place / "study.html")
    return report


def plot_study(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """Draws each measure against each gap that the runs have, as PNG and SVG into the folder; returns their names."""
    results = read_results(folder)
    results.check_enough("a scatter plot")
    drawn = [target for target in TARGETS if any(row.gap(target) is not None for row in results.done)]
    figures = {target: scatter(results, target) for target in drawn or TARGETS[-1:]}
    return tuple(name for target, figure in figures.items() for name in _draw(figure, Path(folder) / target))


def _draw(figure: Figure, place: Path) -> list[str]:
    """Writes the figure under both suffixes; returns the files' names."""
    files = [place.with_name(f"{place.name}.{suffix}") for suffix in ("png", "svg")]
    for file in files:
        write_atomically(file, as_image(figure, file.suffix[1:]))
    return [file.name for file in files]


def study_report(results: Results, correlations: Correlations) -> Report:
    """Report of a study: which measures correlate with generalization."""
    mixed = _mixed(results)
    study, verdict, failures = results.study, headline(correlations, mixed), results.failures()
    gaps = [target for target in TARGETS if any(row.gap(target) is not None for row in results.done)]
    scatters = (scatter(results, target) for target in gaps)
    failed = Section("What failed", "failed", tables=(Table("What failed", failures),))
    trainings = tuple(
        tuple(Cell(text, "failed" if "failed" in cells else "") for text in cells) for cells in results.cells()
    )
    return Report(
        name=study.name or study.model,
        about=f"{study.model}, {length(study)}, {results.summary()}",
        eyebrow="Which measures correlate with generalization",
        headline=verdict,
        detail=study.text,
        lines=(f"{verdict}.", f"{results.summary()}."),
        notes=tuple(Note("", message) for message in notes(results, correlations)),
        sections=(
            Section("Plot", "plot", "Plot", figures=(heat_map(correlations), *scatters)),
            _coefficients(correlations),
            _between(correlations),
            Section("What the measures are", "measures", "Measures", paragraphs=_glossary(results)),
            *_warnings(results),
            *((failed,) if failures else ()),
            Section(
                "How it was made",
                "made",
                "How it was made",
                tables=(Table("Definition", definition(study), only="page"),),
            ),
            Section(
                "Every run",
                "runs",
                "Runs",
                "Losses and accuracies over all data in inference mode, at the end of training; a gap is the absolute "
                "value of their difference.",
                tables=(Table("Runs", trainings, results.header(), wide=True, only="page"),),
            ),
        ),
        footer=f"Measured by sdkeras {__version__}. Bootstrap of {correlations.num_resamples:,} resamples, seed "
        f"{correlations.seed}. Granulated coefficients: Jiang et al. (2019).",
    )


def headline(correlations: Correlations, mixed: Sequence[str] = ()) -> str:
    """Names the strongest positive and negative correlations with a gap, as far as corrected p values support them.

    Measures that are `mixed`, of values that do not compare from run to run, are left out.
    """
    rows = [(float(row.tau_b), row) for row in correlations.rows if row.tau_b is not None and row.measure not in mixed]
    certain = {id(row): p for row, p in zip(correlations.rows, correlations.adjusted, strict=True)}
    if not rows and mixed:
        return "No measure compares between all runs"
    if not rows:
        return "No measure has a tau-b: all values of it, or of the gaps, are equal"
    largest, first = max(rows, key=lambda pair: pair[0])
    clear = [pair for pair in rows if _clear(pair[1], certain[id(pair[1])])]
    tau, best = max(clear, key=lambda pair: pair[0], default=(0.0, first))
    against = [pair for pair in clear if tau <= 0 or pair[1].target == best.target]
    least, worst = min(against, key=lambda pair: pair[0], default=(0.0, first))
    falling = sum(value < 0 for value, row in against if row.target == worst.target)
    others = f", of {falling} that are clear" if falling > 1 else ""
    negative = f"is that of {worst.measure}: {coefficient(least)}{others}"
    if tau <= 0:
        clearly = "clearly " if largest > 0 else ""
        text = (
            f"No measure {clearly}correlates with a gap: the largest tau-b is {first.measure}'s with the "
            f"{_gap(first)}, {coefficient(largest)} over {counted(first.num_runs, 'run')} (p = {first.p_value:.2g})"
        )
        return text + (f"; the strongest negative one with the {_gap(worst)} {negative}" if least < 0 else "")
    count = sum(row.target == best.target for _, row in rows)
    of = f"of {count} measures" if count > 1 else "the one measure"
    how = "most strongly" if tau == largest else "clearly"
    text = f"{best.measure} correlates {how} with the {_gap(best)}: tau-b {coefficient(tau)}"
    text += f" over {counted(best.num_runs, 'run')}, {of}"
    return text + (f"; the strongest negative correlation {negative}" if least < 0 else "")


def _clear(row: MeasureCorrelation, p_value: float | None) -> bool:
    """Whether its interval excludes 0 and it is rare without association, among as many as there are."""
    apart = row.interval is not None and not row.interval[0] <= 0 <= row.interval[1]
    return apart and p_value is not None and p_value < _CLEAR


def _gap(row: MeasureCorrelation) -> str:
    return row.target.replace("_", " ")


def _coefficients(correlations: Correlations) -> Section:
    """All coefficients for the page; tau-b and the mean psi, a table for each gap, for a terminal of 80 columns."""
    everything = Table("Coefficients", correlations.cells(), correlations.header(), wide=True, only="page")
    heads = ("measure", "tau-b", "95 % interval", "p", "mean psi")
    by_gap: dict[str, list[Cells]] = {}
    for row in correlations.rows:
        interval = coefficient(row.tau_b, row.interval).partition(" ")[2] or ABSENT
        p_value = ABSENT if row.p_value is None else f"{row.p_value:.2g}"
        cells = (row.measure, coefficient(row.tau_b), interval, p_value, coefficient(row.psi_mean))
        by_gap.setdefault(_gap(row), []).append(cells)
    averaged = (
        f"Mean psi is over {', '.join(correlations.settings)}; psi of each is in study.html and correlations.csv."
    )
    return Section(
        "Coefficients",
        "coefficients",
        "Coefficients",
        "Brackets are 95 % bootstrap intervals, over runs (tau-b) and over groups (psi). p is the probability of a "
        "coefficient this large if measure and gap had nothing to do with each other: one in 20 such measures has a p "
        "below 0.05. Runs that differ in the seed alone count as one in both. p (Holm) is corrected for the number of "
        "coefficients; the headline goes by it. A dash: all values "
        "are equal, or there are too few runs.",
        lines=(averaged,) if len(correlations.settings) > 1 else (),
        tables=(
            everything,
            *(Table(f"With the {gap}", tuple(rows), heads, wide=True, only="terminal") for gap, rows in by_gap.items()),
        ),
    )


def _between(correlations: Correlations) -> Section:
    """How the measures order the runs beside each other."""
    rows = tuple(
        (
            pair.first.replace("_gap", " gap"),
            pair.second.replace("_gap", " gap"),
            coefficient(pair.tau_b, pair.interval),
            ABSENT if pair.p_value is None else f"{pair.p_value:.2g}",
            f"{pair.num_runs}",
        )
        for pair in correlations.between
    )
    heads = ("measure", "with", "tau-b", "p", "runs")
    return Section(
        "Between the measures",
        "between",
        "Between measures",
        "Two measures that order the runs alike tell the same of them. With 95 % bootstrap intervals over runs; p is "
        "not corrected for the number of pairs.",
        figures=(matrix(correlations),),
        tables=(Table("Between the measures", rows, heads, wide=True, only="page"),),
    )


def _glossary(results: Results) -> tuple[Paragraph, ...]:
    """Name and meaning of each measure, trajectory and distance of the table, of the gap and of the coefficients."""
    parts = {part for column in results.columns for part in column.split("-")}
    meanings = {
        **{name: _MEASURES[name] for name in results.study.measures},
        **{"map-hessian" if name == "hessian" else name: text for name, text in _PARTS.items() if name in parts},
        **_COEFFICIENTS,
    }
    return tuple(Paragraph(name, text) for name, text in meanings.items())


def _warnings(results: Results) -> Iterator[Section]:
    """The warnings of the analyses of the runs that are done, by severity and then the most frequent first."""
    analyses = [row.analysed for row in results.done if row.analysed is not None]
    counts = Counter(code for each in analyses for code in each.codes).most_common()
    if not counts:
        return
    runs = counted(len(analyses), "run")
    messages: dict[str, str] = {}
    for warning in (warning for each in analyses for warning in each.warnings):
        messages.setdefault(warning.code, warning.message)
    listed = ", ".join(f"{code} in {count}" for code, count in counts)
    yield Section(
        "Warnings of the runs",
        "warnings",
        lede="From the analyses of the finished runs, with the message of the first run that has it; each run's codes "
        "are in runs.csv, its own messages in its run.json.",
        lines=(f"Warnings of {runs} (messages in study.html): {listed}.",),
        notes=by_severity(Note(code, f"in {count} of {runs}: {messages[code]}") for code, count in counts),
    )


def notes(results: Results, correlations: Correlations) -> tuple[str, ...]:
    """Caveats of the table, in sentences."""
    return (
        *_left_out(results),
        *_maps(results),
        *_identical(results.done),
        *_undetermined(results),
        *_few(results, correlations),
    )


def _left_out(results: Results) -> Iterator[str]:
    failed, others = len(results.failures()), len(results.others)
    if failed:
        yield f"{counted(failed, 'run')} failed and {_be(failed)} left out of all coefficients."
    if others:
        be = _be(others)
        yield f"{counted(others, 'run')} in the folder {be} not in the grid and {be} left out of all coefficients."


def _be(count: int) -> str:
    return "is" if count == 1 else "are"


def _mixed(results: Results) -> tuple[str, ...]:
    """The columns whose coefficients mix values of different maps, or of states of different sizes."""
    study, counts = results.study, _maps_and_sizes(results)
    own_alone = len({name for name, _ in counts}) > 1 and len(study.maps) > 1
    of_maps = tuple(column for column, measure in study.columns.items() if measure in OF_A_MAP)
    if own_alone:
        of_maps = tuple(column for column in of_maps if study.map_of(column) == study.maps[0])
    return of_maps if len(counts) > 1 else ()


def _maps_and_sizes(results: Results) -> Counter[tuple[str, int | None]]:
    """How many runs have each map and size of its state."""
    analyses = [row.analysed for row in results.done if row.analysed is not None]
    return Counter((each.map, each.state_size) for each in analyses if each.map is not None)


def _maps(results: Results) -> Iterator[str]:
    """Caveats on coefficients that mix values of different maps, or of states of different sizes."""
    mixed, counts = _mixed(results), _maps_and_sizes(results)
    if not mixed:
        return
    listed = ", ".join(f"{name} with d = {size:,} in {counted(count, 'run')}" for (name, size), count in counts.items())
    several = len({name for name, _ in counts}) > 1
    if not several:
        remedy = "Make one study for each size of the model."
    elif len(results.study.maps) > 1:
        remedy = "Make one study for each optimizer, or take the columns of the map hessian."
    else:
        remedy = 'Make one study for each optimizer, or set map = "hessian" under [analysis].'
    yield (
        f"Runs are of different {'maps' if several else 'states'}: {listed}. SD and lambda_1 of different maps, or of "
        f"different d, are not comparable, and the coefficients of {', '.join(mixed)} mix them. {remedy}"
    )


def _identical(rows: Sequence[Row]) -> Iterator[str]:
    """Trainings that came out equal although their settings differ; one sentence for each set of such settings."""
    alike: dict[tuple[float | None, ...], list[Row]] = {}
    for row in rows:
        alike.setdefault(row.scores, []).append(row)
    by_settings: dict[tuple[str, ...], list[list[Row]]] = {}
    for group in alike.values():
        if len(group) > 1:
            names = group[0].state.run.settings
            differ = tuple(name for name in names if len({row.state.run.settings[name] for row in group}) > 1)
            by_settings.setdefault(differ, []).append(group)
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
        yield f"Runs {first} and {second}{also} came out identical: {question}"


def _undetermined(results: Results) -> Iterator[str]:
    """Measures without a number in some done runs, each with the first reason."""
    for column in results.columns:
        values = [row.measure(column) for row in results.done]
        reasons = [value.reason for value in values if value.value is None and value.by]
        if reasons:
            runs = counted(len(reasons), "run")
            yield f"{column} has no number in {runs}, for example: {reasons[0].rstrip('.')}."


def _few(results: Results, correlations: Correlations) -> Iterator[str]:
    """What is missing of the gaps and intervals, and runs of several versions of the code."""
    trained = [row.trained for row in results.done if row.trained is not None]
    if any(each.accuracy_gap is None for each in trained):
        yield "The model is compiled without metrics=['accuracy'], so there is no accuracy gap."
    versions = len({each.code for each in trained})
    if versions > 1:
        yield f"The file of the model's factory has changed between runs: they are of {versions} versions of it."
    few = {row.measure: row.num_runs for row in correlations.rows if row.tau_b is not None and row.interval is None}
    if len(results.done) < FEWEST_RESAMPLED:
        yield f"There are no intervals: they need at least {FEWEST_RESAMPLED} runs, and {len(results.done)} are done."
    elif few:
        listed = ", ".join(f"{measure} with {counted(count, 'run')}" for measure, count in few.items())
        yield f"There is no interval for {listed}: too few settings or too few different values."
