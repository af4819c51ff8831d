"""The report of two runs side by side."""

from __future__ import annotations

from sdkeras._version import __version__
from sdkeras.reporting.comparison import Comparison, NumberDifference
from sdkeras.reporting.report import Cell, Paragraph, Report, Row, Section, Table, present, split
from sdkeras.reporting.words import ERRORS_IN_WORDS
from sdkeras.results.note import Note

# Lyapunov exponents that are listed.
_MOST_EXPONENTS = 12


def comparison_report(comparison: Comparison) -> Report:
    """Differences between two runs: settings first, since they decide what the numbers may mean."""
    sides = {"A": comparison.a, "B": comparison.b}
    lines, alarms = [comparison.summary], []
    for letter, side in sides.items():
        lines += [f"{letter}: {side.name} ({side.model}, {side.created})", f"   {side.verdict}"]
        if not side.verified:
            alarms.append(f"{letter} is UNVERIFIED: its operator failed its check; do not trust its numbers.")
        if side.partial:
            alarms.append(f"{letter} was interrupted.")
    headline, detail = split(comparison.summary, "; ")
    return Report(
        name=f"{comparison.a.name} → {comparison.b.name}",
        eyebrow="What differs between two runs",
        headline=headline,
        detail=detail,
        lines=tuple(lines),
        alarms=tuple(alarms),
        paragraphs=tuple(
            Paragraph(f"{letter}: {side.model}", f"{side.verdict} ({side.name}, {side.created})")
            for letter, side in sides.items()
        ),
        notes=() if comparison.identical else _notes(comparison),
        sections=() if comparison.identical else _sections(comparison),
        footer=f"Made by sdkeras {__version__}.",
    )


def _notes(comparison: Comparison) -> tuple[Note, ...]:
    """Numbers that cannot be compared, with the reasons, then all other notes."""
    shown = {row.verdict for row in comparison.numbers if row.outcome == "not comparable"}
    reasons = [
        f"Not comparable: {entry.what}: {entry.reason}."
        for entry in comparison.incomparable
        if f"not comparable: {entry.reason}" in shown
    ]
    return tuple(Note("", message) for message in (*reasons, *comparison.notes))


def _sections(comparison: Comparison) -> tuple[Section, ...]:
    title, rows = "Settings that differ", tuple((each.label, each.a, each.b) for each in comparison.settings)
    settings, every, numbers = (
        Table(title, rows, ("", "A", "B")),
        "Every number that both have",
        _differences(comparison),
    )
    return present(
        Section(title, "settings", "Settings", tables=(settings,)) if rows else None,
        Section(every, "numbers", "Numbers", ERRORS_IN_WORDS, (ERRORS_IN_WORDS,), tables=numbers) if numbers else None,
    )


def _differences(comparison: Comparison) -> tuple[Table, ...]:
    """The numbers under the titles of their groups; of the Lyapunov exponents the leading ones."""
    hidden = {f"lyapunov.values.{k}" for k in range(_MOST_EXPONENTS, len(comparison.numbers))}
    reasons = {f"not comparable: {entry.reason}" for entry in comparison.incomparable}
    groups: dict[str, list[Row]] = {}
    for row in comparison.numbers:
        if row.path not in hidden:
            groups.setdefault(row.group, []).append(_difference(row, reasons))
    columns = ("", "A", "B", "B minus A")
    return tuple(Table(title, tuple(rows), columns) for title, rows in groups.items())


def _difference(row: NumberDifference, reasons: set[str]) -> Row:
    """A reason that a note gives is not repeated in the row."""
    verdict = row.outcome if row.verdict in reasons else row.verdict
    return row.label, str(row.a), str(row.b), Cell(verdict, row.outcome.replace(" ", "-"))
