"""A comparison of two runs as a record: settings, and numbers with the error of their difference."""

from __future__ import annotations

import fnmatch
import math

import attrs

from sdkeras.reporting.numbers import estimated, interval, number, with_error
from sdkeras.results.document import SCHEMA_VERSION, Document
from sdkeras.results.measured import Measured

# What an interval rests on. Sampling errors of the two runs are independent and add in quadrature; bounds are not
# random and add as they are.
SAMPLING = ("interval", "standard error")
BOUND = ("residual", "bracket")
EVIDENCE = (*SAMPLING, *BOUND, "exact", "none")
OUTCOMES = ("rose", "fell", "within the error", "equal", "not comparable")


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
            return f"{number(self.value, 6)} ± {half:.1g}"
        return (
            with_error(self.value, half) if self.evidence == "standard error" else estimated(self.value, self.interval)
        )


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
    words = f"{outcome} by {with_error(abs(change), error)}"
    if error is not None and abs(change) <= error:
        outcome, words = "within the error", f"no difference beyond the error ({with_error(change, error)})"
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


@attrs.frozen(eq=False)
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
