"""The report of a study: coefficients, trainings and failures."""

from __future__ import annotations

from sdkeras._version import __version__
from sdkeras.errors import counted
from sdkeras.reporting.numbers import ABSENT
from sdkeras.reporting.report import Cell, Paragraph, Report, Row, Section, Table
from sdkeras.results.note import Note
from sdkeras.study.correlations import Correlations, MeasureCorrelation, coefficient
from sdkeras.study.definition import columns, definition, length
from sdkeras.study.figures import heat_map
from sdkeras.study.notes import coefficients_in_words, measures_in_words, notes, warnings_by_code
from sdkeras.study.results import Results

# A coefficient with a larger p value says nothing clear.
_CLEAR = 0.05


def headline(correlations: Correlations) -> str:
    """Names the strongest positive and negative correlations with a gap, as far as p values support them."""
    rows = [(float(row.tau_b), row) for row in correlations.rows if row.tau_b is not None]
    if not rows:
        return "No measure has a tau-b: all values of it, or of the gaps, are equal"
    largest, first = max(rows, key=lambda pair: pair[0])
    clear = [pair for pair in rows if _clear(pair[1])]
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


def _clear(row: MeasureCorrelation) -> bool:
    """Whether its interval excludes 0 and it is rare without association."""
    apart = row.interval is not None and not row.interval[0] <= 0 <= row.interval[1]
    return apart and row.p_value is not None and row.p_value < _CLEAR


def _gap(row: MeasureCorrelation) -> str:
    return row.target.replace("_", " ")


def study_report(results: Results, correlations: Correlations) -> Report:
    """Report of a study: which measures correlate with generalization."""
    study = results.study
    verdict = headline(correlations)
    return Report(
        name=study.name or study.model,
        about=f"{study.model}, {length(study)}, {results.summary()}",
        eyebrow="Which measures correlate with generalization",
        headline=verdict,
        detail=study.text,
        lines=(f"{verdict}.", f"{results.summary()}."),
        notes=tuple(Note("", message) for message in notes(results, correlations)),
        sections=(
            Section("Plot", "plot", "Plot", figures=(heat_map(correlations),)),
            _coefficients(correlations),
            _glossary(results),
            *_warnings(results),
            *_failures(results),
            Section(
                "How it was made",
                "made",
                "How it was made",
                tables=(Table("Definition", definition(study), only="page"),),
            ),
            _trainings(results),
        ),
        footer=f"Measured by sdkeras {__version__}. Bootstrap of {correlations.num_resamples:,} resamples, seed "
        f"{correlations.seed}. Granulated coefficients: Jiang et al. (2019).",
    )


def _coefficients(correlations: Correlations) -> Section:
    """All coefficients for the page; tau-b and the mean psi, a table for each gap, for a terminal of 80 columns."""
    everything = Table("Coefficients", correlations.cells(), correlations.header(), wide=True, only="page")
    heads = ("measure", "tau-b", "95 % interval", "p", "mean psi")
    by_gap: dict[str, list[Row]] = {}
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
        "With 95 % bootstrap intervals over runs (tau-b) and over groups (psi); p is of independent runs without "
        "association, of this one measure: of 20 that do not correlate with a gap, one has a p below 0.05. A dash: all "
        "values equal, or too few runs.",
        lines=(averaged,) if len(correlations.settings) > 1 else (),
        tables=(
            everything,
            *(Table(f"With the {gap}", tuple(rows), heads, wide=True, only="terminal") for gap, rows in by_gap.items()),
        ),
    )


def _glossary(results: Results) -> Section:
    meanings = (*measures_in_words(columns(results.study.measures)), *coefficients_in_words())
    paragraphs = tuple(Paragraph(name, text) for name, text in meanings)
    return Section("What the measures are", "measures", "Measures", paragraphs=paragraphs)


def _warnings(results: Results) -> tuple[Section, ...]:
    warnings = warnings_by_code(results)
    if not warnings:
        return ()
    analysed = counted(warnings[0].num_analysed, "run")
    counts = ", ".join(f"{each.code} in {each.num_runs}" for each in warnings)
    return (
        Section(
            "Warnings of the runs",
            "warnings",
            lede="From the analyses of the finished runs, with the message of the first run that has it; each run's "
            "codes are in runs.csv, its own messages in its run.json.",
            lines=(f"Warnings of {analysed} (messages in study.html): {counts}.",),
            notes=tuple(Note(each.code, f"in {each.num_runs} of {analysed}: {each.message}") for each in warnings),
        ),
    )


def _failures(results: Results) -> tuple[Section, ...]:
    failures = results.failures()
    return (Section("What failed", "failed", tables=(Table("What failed", failures),)),) if failures else ()


def _trainings(results: Results) -> Section:
    rows = tuple(
        tuple(Cell(text, "failed" if "failed" in cells else "") for text in cells) for cells in results.cells()
    )
    return Section(
        "Every run",
        "runs",
        "Runs",
        "Losses and accuracies over all data in inference mode, at the end of training; a gap is the absolute value of "
        "their difference.",
        tables=(Table("Runs", rows, results.header(), wide=True, only="page"),),
    )
