"""A report as a record: everything that the terminal and the page show, whatever it is a report of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import attrs

from sdkeras.reporting.advice import rendered
from sdkeras.results.arrays import FloatArray
from sdkeras.results.next_step import NextStep
from sdkeras.results.note import FOOTNOTES, Note
from sdkeras.results.shown import Shown

if TYPE_CHECKING:
    from sdkeras.reporting.drawing import Colours

_T = TypeVar("_T")


def printable(text: str) -> str:
    """The text in one line, with a mark for what no report can show, and arguments as the caller writes them.

    Names come from model files: escape sequences would reach the terminal, and lone surrogates cannot be encoded.
    """
    shown = (" " if c.isspace() else c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return rendered("".join(shown))


@attrs.frozen
class Card:
    """One of the large numbers at the top: its name, value, evidence, and what it is."""

    name: str
    value: str
    evidence: str
    meaning: str


@attrs.frozen
class Gauge:
    """A ratio on a scale from 0 to 2 with the edge of stability in the middle, as written, and a sentence about it."""

    ratio: float
    shown: str
    text: str


@attrs.frozen
class Paragraph:
    """Prose under a heading; `mark` colours the heading on the page: 'verified' or 'failed'."""

    heading: str
    text: str
    mark: str = ""


@attrs.frozen
class Cell:
    """A table cell with more than text: `mark` colours it; a remark stands below it on the page, a bar beside it."""

    text: str
    mark: str = ""  # the kind of answer: 'holds', 'rose', 'failed'
    remark: str = ""
    share: float | None = None  # length of the bar, as a share of the longest one


Row = tuple[str | Cell, ...]


@attrs.frozen
class Table:
    """Rows under a title; without `columns` they are a label, a value and perhaps a remark.

    Attributes:
        wide: Many short cells, which are not wrapped: the page scrolls sideways instead.
        only: Where the table is shown, if not everywhere.
        folded: Whether the page shows it only when asked to.
        brief: How many of its rows the terminal shows unless everything is asked for; None: all of them.
        optional: Columns that a terminal too narrow for all of them leaves out, in this order.
    """

    title: str
    rows: tuple[Row, ...]
    columns: tuple[str, ...] = ()
    wide: bool = False
    only: Literal["", "page", "terminal"] = ""
    folded: bool = False
    brief: int | None = None
    optional: tuple[str, ...] = ()


@attrs.frozen(eq=False)
class Series:
    """Numbers of one line, set of points or row of bars in a figure, as the record has them.

    Attributes:
        name: What the line is; "" where the figure has only one.
        x_name, y_name: The two quantities, with their units.
        x: Shape [n]; texts where the axis has names.
        y: Shape [n]; NaN where there is none.
        lower, upper: Ends of the interval of each y.
        x_end: Where each bar ends, which begins at x.
        at: Data coordinates at which they are drawn, where these are not x and y.
        axes: Which axes of the figure, in the order of their making.
    """

    name: str
    x_name: str
    y_name: str
    x: FloatArray | tuple[str, ...]
    y: FloatArray
    lower: FloatArray | None = None
    upper: FloatArray | None = None
    x_end: FloatArray | None = None
    at: tuple[FloatArray, FloatArray] | None = None
    axes: int = 0


@attrs.frozen
class Figure:
    """A figure: how it is drawn, and how to read it. Only numbers are drawn, and names that the caller chose.

    Attributes:
        name: Unique in its page; ids in the SVG begin with it.
        draw: Draws it in the given colours on axes, or on a list of axes where there are `panels`.
        size: Width and height in inches.
        panels: Rows and columns of axes, which share their vertical axis; None for a single one.
        series: The numbers that are drawn.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Any, Colours], None]
    size: tuple[float, float] = (5.6, 3.5)
    panels: tuple[int, int] | None = None
    series: tuple[Series, ...] = ()


@attrs.frozen
class Section:
    """A part of a report under a heading: the page shows all of it, the terminal tables and the `lines` below them.

    Attributes:
        anchor: Its id on the page.
        link: Its name in the page's navigation; "" leaves it out.
        lede: Introduction.
    """

    title: str
    anchor: str
    link: str = ""
    lede: str = ""
    lines: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[Note, ...] = ()
    paragraphs: tuple[Paragraph, ...] = ()


@attrs.frozen(repr=False)
class Report(Shown):
    """Contents of a report.

    Attributes:
        name: Subject: a model, or two files.
        lines: The answer in the terminal, the verdict first; on the page `headline` and `detail`.
        about: The setting in a few words.
        eyebrow: The question that it answers.
        assumed: Assumptions, in place of what the model and its data do not say.
        alarms: Why its numbers must not be trusted, or are not all there.
        paragraphs: The answer in plain words.
        next_steps: What to do next; commands as they are to be typed.
        notes: Caveats; a code may be "".
        formulas: Whether the page ends with definitions and references.
        reload: Seconds after which the page loads itself again; None for a page that rests.
    """

    name: str
    headline: str
    lines: tuple[str, ...]
    sections: tuple[Section, ...]
    footer: str = ""
    about: str = ""
    eyebrow: str = ""
    detail: str = ""
    assumed: str = ""
    alarms: tuple[str, ...] = ()
    gauge: Gauge | None = None
    cards: tuple[Card, ...] = ()
    paragraphs: tuple[Paragraph, ...] = ()
    next_steps: tuple[NextStep, ...] = ()
    notes: tuple[Note, ...] = ()
    formulas: bool = False
    reload: int | None = None

    @property
    def warnings(self) -> tuple[Note, ...]:
        """The caveats that are of these numbers."""
        return tuple(note for note in self.notes if note.code not in FOOTNOTES)

    @property
    def footnotes(self) -> tuple[Note, ...]:
        """The caveats that are of every run of the kind."""
        return tuple(note for note in self.notes if note.code in FOOTNOTES)

    @property
    def figures(self) -> tuple[Figure, ...]:
        """All figures, in the page's order."""
        return tuple(figure for section in self.sections for figure in section.figures)

    @property
    def tables(self) -> tuple[Table, ...]:
        """All tables, in the page's order."""
        return tuple(table for section in self.sections for table in section.tables)


def plots(figures: tuple[Figure, ...]) -> Section | None:
    """The section of the figures, where there are any."""
    return Section("Plots", "plots", "Plots", figures=figures) if figures else None


def split(verdict: str, separator: str = ": ") -> tuple[str, str]:
    """Headline and detail of a verdict in one sentence."""
    headline, _, detail = verdict.partition(separator)
    return headline.rstrip("."), detail[:1].upper() + detail[1:]


def present(*parts: _T | None) -> tuple[_T, ...]:
    """The rows, tables, figures or sections that there are numbers for: all but None."""
    return tuple(part for part in parts if part is not None)
