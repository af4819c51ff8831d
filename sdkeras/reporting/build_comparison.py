"""The report of two runs side by side."""

from __future__ import annotations

from sdkeras._version import __version__
from sdkeras.reporting.comparison import Comparison, NumberDifference
from sdkeras.reporting.report import Cell, Paragraph, Report, Row, Section, Table, split
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
        Note("", f"Not comparable: {entry.what}: {entry.reason}.")
        for entry in comparison.incomparable
        if f"not comparable: {entry.reason}" in shown
    ]
    return (*reasons, *(Note("", message) for message in comparison.notes))


def _sections(comparison: Comparison) -> tuple[Section, ...]:
    sections = []
    if comparison.settings:
        rows = tuple((each.label, each.a, each.b) for each in comparison.settings)
        settings = Table("Settings that differ", rows, ("", "A", "B"))
        sections.append(Section("Settings that differ", "settings", "Settings", tables=(settings,)))
    if comparison.numbers:
        title = "Every number that both have"
        lines, tables = (ERRORS_IN_WORDS,), _differences(comparison)
        sections.append(Section(title, "numbers", "Numbers", ERRORS_IN_WORDS, lines, tables=tables))
    return tuple(sections)


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
