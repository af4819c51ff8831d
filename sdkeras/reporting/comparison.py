"""A comparison of two runs: settings, and numbers with the error of their difference; its record and its report."""

from __future__ import annotations

import fnmatch
import math
from operator import itemgetter

import attrs
import numpy as np

from sdkeras._version import __version__
from sdkeras.reporting.figures import overlaid_exponents, overlaid_intervals, overlaid_spectra
from sdkeras.reporting.numbers import estimated, interval, number, with_interval
from sdkeras.reporting.report import Cell, Figure, Paragraph, Report, Row, Section, Table, plots, present, split
from sdkeras.results.answers import SpectrumSummary
from sdkeras.results.dimension import RdsSharpness
from sdkeras.results.document import SCHEMA_VERSION, Document
from sdkeras.results.measured import Measured
from sdkeras.results.note import Note

# What an interval rests on. Sampling errors of the two runs are independent and add in quadrature; bounds are not
# random and add as they are.
SAMPLING = ("interval", "standard error")
BOUND = ("residual", "bracket")
EVIDENCE = (*SAMPLING, *BOUND, "exact", "none")
OUTCOMES = ("rose", "fell", "within the error", "equal", "not comparable")
# How a comparison gets its errors.
_ERRORS_IN_WORDS = (
    "Brackets are 95 % intervals. The two runs count as independent: half-widths add in quadrature, each on the side "
    "that faces the other value; residuals and brackets, which are bounds, add as they are."
)
# Lyapunov exponents that are listed.
_MOST_EXPONENTS = 12


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _finite_ends(value: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if value is None or not all(map(math.isfinite, value)) else (float(value[0]), float(value[1]))


@attrs.frozen
class Quantity:
    """A number of one run with its error, as a comparison's file has it.

    Attributes:
        value: The number, or None where only an interval is known (and where nothing is, with no interval).
        interval: A 95 % interval, or bounds; None without an error bar.
        evidence: Source of the interval: 'interval' (a 95 % interval), 'standard error' (1.96 of them),
            'residual' (of an eigenvalue), 'bracket' (known to lie between), 'exact' (a setting), or 'none'.
        remark: A caveat, as 'not converged'.
    """

    value: float | None = attrs.field(default=None, converter=_finite)
    interval: tuple[float, float] | None = attrs.field(default=None, converter=_finite_ends)
    evidence: str = attrs.field(default="none", validator=attrs.validators.in_(EVIDENCE))
    remark: str = ""

    @classmethod
    def of(cls, value: float | Measured | None) -> Quantity:
        """A number as a record has it."""
        if not isinstance(value, Measured):
            return cls(value)
        return cls(value.value, value.bounds, value.evidence, "" if value.converged else "did not converge")

    @property
    def known(self) -> bool:
        return self.value is not None or self.interval is not None

    @property
    def centre(self) -> float:
        """The value, or the middle of the bracket; NaN where nothing is known."""
        if self.value is not None:
            return self.value
        return math.nan if self.interval is None else 0.5 * (self.interval[0] + self.interval[1])

    def half_width(self, side: float) -> float | None:
        """From the centre to the end of the interval on a side: above (> 0), below (< 0), the longer of both (0)."""
        if self.interval is None:
            return None
        below, above = max(0.0, self.centre - self.interval[0]), max(0.0, self.interval[1] - self.centre)
        return max(below, above) if side == 0 else above if side > 0 else below

    def __str__(self) -> str:
        if self.value is None:
            return interval(self.interval)
        half = self.half_width(0)
        if half is None or self.evidence == "exact":
            return number(self.value)
        if self.evidence == "residual":  # often far below the digits that anybody reads
            return f"{number(self.value, 6)} (residual {half:.1g})"
        if self.evidence == "standard error":
            return with_interval(self.value, half)
        return estimated(self.value, self.interval)


@attrs.frozen
class NumberDifference:
    """A number that both runs have, and what may be said of its difference.

    Attributes:
        path: Its path in B's file.
        group: The table it belongs in.
        difference: B minus A (of centres); None where the two are not comparable.
        error: 95 % half-width of the difference, the runs taken as independent; None without an error bar of both.
        outcome: 'rose' and 'fell' are beyond the error, or without one.
        verdict: The same in words with the numbers.
    """

    path: str
    group: str
    label: str
    a: Quantity
    b: Quantity
    difference: float | None
    error: float | None
    outcome: str = attrs.field(validator=attrs.validators.in_(OUTCOMES))
    verdict: str


def number_difference(
    path: str, group: str, label: str, a: Quantity, b: Quantity, *, incomparable: str = ""
) -> NumberDifference:
    """B minus A of two known numbers with its error; `incomparable` says why there is no difference.

    Half-widths are taken on the sides that face each other, since an interval that ends at 0 or at d is lopsided.
    Half-widths from sampling combine as sqrt(a^2 + b^2); those that bound (residuals, brackets) add.
    """
    if incomparable:
        words = f"not comparable: {incomparable}"
        return NumberDifference(path, group, label, a, b, None, None, "not comparable", words)
    change = b.centre - a.centre
    error = _error(a, b, change)
    if a == b or (change == 0 and not error):
        return NumberDifference(path, group, label, a, b, change, error, "equal", "equal")
    remarks = [f"{name} {side.remark}" for name, side in (("A", a), ("B", b)) if side.remark]
    if error is None:
        bare = [name for name, side in (("A", a), ("B", b)) if side.interval is None]
        remarks.insert(0, "neither has an error bar" if len(bare) == 2 else f"{bare[0]} has no error bar")
    outcome = "rose" if change > 0 else "fell"
    words = f"{outcome} by {with_interval(abs(change), error)}"
    if error is not None and abs(change) <= error:
        outcome, words = "within the error", f"no difference beyond the error ({with_interval(change, error)})"
    return NumberDifference(path, group, label, a, b, change, error, outcome, "; ".join([words, *remarks]))


def _error(a: Quantity, b: Quantity, change: float) -> float | None:
    of_a, of_b = a.half_width(change), b.half_width(-change)
    if of_a is None or of_b is None:
        return None
    halves = ((a, of_a), (b, of_b))
    squares = sum(half * half for side, half in halves if side.evidence not in BOUND)  # half**2 raises on overflow
    return math.sqrt(squares) + sum(half for side, half in halves if side.evidence in BOUND)


@attrs.frozen
class SettingDifference:
    """A setting that is not the same in both: its path in either file, its name, and what each has."""

    path: str
    label: str
    a: str
    b: str


@attrs.frozen
class Incomparable:
    """Numbers whose difference means nothing: in words, their paths with * for any part, and why."""

    what: str
    paths: tuple[str, ...]
    reason: str

    def covers(self, path: str) -> bool:
        return any(fnmatch.fnmatchcase(path, pattern) for pattern in self.paths)


@attrs.frozen
class Side:
    """One of the two runs; its verdict is a sentence on the training."""

    name: str  # its file, or what the caller called it
    model: str
    created: str
    verdict: str
    verified: bool  # its products, and its step where there is one
    partial: bool
    # What is drawn of an analysis.
    spectrum: SpectrumSummary | None = None
    rds_sharpness: RdsSharpness | None = None
    state_size: int = 0


@attrs.frozen(eq=False, repr=False)
class Comparison(Document):
    """The differences between run A and run B, B minus A.

    Attributes:
        a, b: The two.
        identical: Whether their files hold the same.
        summary: The outcome, in a sentence.
        settings: The settings that differ, in the order of the files.
        numbers: Every number that both have.
        incomparable: Numbers without a difference, and why.
        notes: Caveats.
    """

    DOCUMENT = "comparison"
    WRITTEN_BY = ("comparison.json", "sdkeras compare")

    a: Side
    b: Side
    identical: bool
    summary: str
    settings: tuple[SettingDifference, ...]
    numbers: tuple[NumberDifference, ...]
    incomparable: tuple[Incomparable, ...] = ()
    notes: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def why_incomparable(self, path: str) -> str:
        """Why the difference of a path means nothing, or "" where it does."""
        return "; ".join(entry.reason for entry in self.incomparable if entry.covers(path))


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
        plots(_figures(comparison)),
        Section(title, "settings", "Settings", tables=(settings,)) if rows else None,
        Section(every, "numbers", "Numbers", _ERRORS_IN_WORDS, (_ERRORS_IN_WORDS,), tables=numbers)
        if numbers
        else None,
    )


def _figures(comparison: Comparison) -> tuple[Figure, ...]:
    """What both have, overlaid; nothing that cannot be compared."""
    a, b, exponents = comparison.a, comparison.b, None
    if not comparison.why_incomparable("rds_sharpness.leading.0"):
        exponents = overlaid_exponents((a.rds_sharpness, b.rds_sharpness), a.state_size, "AB")
    pairs = [
        (row.a, row.b)
        for row in comparison.numbers
        if row.path.startswith("lyapunov.values.") and row.outcome != "not comparable"
    ]
    sides = [
        np.array([(each.centre, *(each.interval or (math.nan, math.nan))) for each in side], np.float64).reshape(-1, 3)
        for side in (list(map(itemgetter(k), pairs)) for k in (0, 1))
    ]
    along = overlaid_intervals("lyapunov", "Lyapunov exponents along training", "per step", *sides)
    return present(overlaid_spectra((a.spectrum, b.spectrum), "AB"), exponents, along)


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
