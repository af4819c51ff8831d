"""A training over time, from its log: what the terminal and the page say of it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import attrs
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table as RichTable
from rich.text import Text

from sdkeras.dimension.stability import EDGE
from sdkeras.reporting.html import Card, environment
from sdkeras.reporting.numbers import (
    ABSENT,
    batch_size_in_words,
    dimension,
    estimated,
    interval,
    number,
    rate_source_in_words,
)
from sdkeras.reporting.tables import printable, sharpness_name
from sdkeras.reporting.track_figures import track_figures
from sdkeras.results.document import write_atomically
from sdkeras.results.log import Measurement, Reading, RunLog, breaks, trajectory

# What a terminal has room for; the page has it all.
_MOST_ROWS = 30
# Measurements that the page draws and lists: more cannot be told apart, and would make it slow to write and to read.
_MOST_DRAWN = 2000
# Gaps and returns that are told one by one.
_MOST_BREAKS = 4
_PRECONDITIONED = "preconditioned"
_NARROW = (
    *("source", "step", "epoch", "sharpness", _PRECONDITIONED, "threshold", "ratio"),
    *("λ₁", "SD", "codimension", "loss"),
)


@attrs.frozen
class Row:
    """The cells of one measurement, in the order of `Rows.columns`, and whether there was nothing to measure."""

    cells: tuple[str, ...]
    failed: bool


@attrs.frozen
class Rows:
    """The table of a log; columns without a number are left out."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def verdict(log: RunLog) -> str:
    """Where the training stood when it was last compared with its threshold, and when it first came to the edge."""
    found = [each for each in trajectory(log) if _finite(each, "sharpness_ratio")]
    if not found:
        reasons = [note for each in trajectory(log) if "sharpness_ratio" in each.values for note in each.notes]
        why = reasons[-1].removeprefix("No verdict: ") if reasons else ""
        return f"No verdict: {why or 'no measurement compares the sharpness with the threshold of the optimizer.'}"
    last = found[-1]
    ratio = last.values["sharpness_ratio"].value
    where = "Below" if ratio < EDGE[0] else "At" if ratio <= EDGE[1] else "Above"
    text = (
        f"{where} the edge of stability at step {last.step:,}: {sharpness_name(last.operator)} "
        f"{number(last.numerator)} is {number(ratio, 3)} times the threshold {number(last.threshold)} of "
        f"{log.header.optimizer} at learning rate {number(last.learning_rate)}{_rate_source(log)}."
    )
    reached = [each.step for each in found if each.values["sharpness_ratio"].value >= EDGE[0]]
    return f"{text} It was at {EDGE[0]:g} or above first at step {reached[0]:,}." if reached else text


def notes(log: RunLog) -> tuple[str, ...]:
    """What the reader must know: of the file, and of the last measurement that has something to say."""
    measured = trajectory(log)
    said = breaks(log)
    own = [*log.notes, *said[:_MOST_BREAKS]]
    if len(said) > _MOST_BREAKS:
        own.append(f"and so {len(said) - _MOST_BREAKS:,} times more")
    failed = [each for each in measured if each.failed]
    if failed:
        own.append(f"{len(failed)} of {len(measured)} measurements failed, the last one: {'; '.join(failed[-1].notes)}")
    if log.header.class_weight and any(each.source == "fit" and "val_loss" in each.metrics for each in measured):
        own.append("fit weighs the loss by class and the validation loss not: their difference is no gap")
    own += _about_bounds(measured)
    noted = [each for each in measured if each.notes and not each.failed]
    return (*own, *(f"step {noted[-1].step:,}: {note}" for note in (noted[-1].notes if noted else ())))


def _about_bounds(measured: Sequence[Measurement]) -> list[str]:
    """What each bound comes to at the last measurement with inputs for it, and which inputs are missing."""
    bounded = [each for each in measured if any(one.value is not None for bound in each.bounds for one in bound.inputs)]
    lines = []
    for bound in bounded[-1].bounds if bounded else ():
        known = [
            f"{one.name} {number(one.value)}{' (estimated)' if one.estimated else ''}"
            for one in bound.inputs
            if one.value is not None
        ]
        missing = [one.name for one in bound.inputs if one.value is None]
        value = f"known terms {number(bound.partial_sum)}" if bound.total is None else f"total {number(bound.total)}"
        lines.append(
            f"{bound.theorem} at step {bounded[-1].step:,}: {bound.verdict}, {value}; with "
            + (", ".join(known) or "no input")
            + (f"; missing {', '.join(missing)}" if missing else "")
        )
    return lines


def table(log: RunLog) -> Rows:
    """All measurements."""
    return _rows(trajectory(log))


def _rows(measured: Sequence[Measurement]) -> Rows:
    columns = {
        "source": [each.source if each.source != "fit" else "" for each in measured],
        "step": [f"{each.step:,}" for each in measured],
        "epoch": [number(each.epoch) for each in measured],
        "sharpness": [_cell(each, "sharpness") for each in measured],
        _PRECONDITIONED: [_numerator(each) if each.operator not in ("", "H") else ABSENT for each in measured],
        "threshold": [number(each.threshold) for each in measured],
        "ratio": [_cell(each, "sharpness_ratio", 3) for each in measured],
        "λ₁": [_cell(each, "rds_sharpness", 3) for each in measured],
        "SD": [_dimension(each, "sharpness_dimension") for each in measured],
        "codimension": [_dimension(each, "sharpness_codimension") for each in measured],
        "sqrt(SD/n)": [_cell(each, "bound_scale", 3) for each in measured],
        "bound": [_cell(each, "generalization_bound") for each in measured],
        "trace": [_cell(each, "hessian_trace") for each in measured],
        "loss": [number(each.metrics.get("loss")) for each in measured],
        "val_loss": [number(each.metrics.get("val_loss")) for each in measured],
        "learning rate": [number(each.learning_rate) for each in measured],
        "seconds": [number(each.seconds, 2) for each in measured],
    }
    shown = {name: cells for name, cells in columns.items() if set(cells) - {"", ABSENT}}
    rows = zip(*shown.values(), strict=True)
    return Rows(tuple(shown), tuple(Row(cells, each.failed) for cells, each in zip(rows, measured, strict=True)))


def cards(log: RunLog) -> tuple[Card, ...]:
    """The last numbers."""
    measured = trajectory(log)
    made = []

    def last(key: str) -> Measurement | None:
        return next((each for each in reversed(measured) if _finite(each, key)), None)

    found = last("sharpness_ratio")
    if found is not None:
        value = number(found.values["sharpness_ratio"].value, 3)
        name = sharpness_name(found.operator)
        evidence = f"{number(found.numerator)} / {number(found.threshold)} at step {found.step:,}"
        made.append(Card(f"{name.capitalize()} / threshold", value, evidence, "1 is the edge of stability"))
    for key, name, meaning in (
        ("sharpness_codimension", "Codimension", "the rest of the state; neutral directions do not change it"),
        (
            "sharpness_dimension",
            "Sharpness dimension",
            "largest dimension whose volumes steps do not contract on average",
        ),
    ):
        found = last(key)
        if found is not None:
            reading = found.values[key]
            of = f"{interval(reading.interval)} of {found.state_size:,}"
            made.append(Card(name, dimension(reading.value, _half_width(reading)), of, meaning))
    found = last("bound_scale")
    if found is not None:
        reading = found.values["bound_scale"]
        total = found.value("generalization_bound")
        meaning = "what the generalization bounds grow with"
        if total is not None and math.isfinite(total):
            meaning += f"; the bound itself is {number(total)}"
        made.append(Card("Scale of the bounds", number(reading.value, 3), interval(reading.interval), meaning))
    found = last("rds_sharpness")
    if found is not None:
        value = number(found.values["rds_sharpness"].value, 3)
        made.append(Card("RDS sharpness λ₁", value, "per step", "the fastest stretching of distances; 0 is neutral"))
    return tuple(made)


def render(log: RunLog) -> RenderableType:
    """The log in a terminal: verdict, last numbers, notes, and the last measurements without their intervals."""
    first = [Text(verdict(log), style="bold")]
    if log.header.batch_size_source == "assumed":
        words = batch_size_in_words(log.header.batch_size, log.header.batch_size_source)
        first.append(Text(f"{words.capitalize()}.", style="yellow"))
    first += [Text(f"{card.name} {card.value} ({card.evidence}): {card.meaning}") for card in cards(log)]
    parts: list[RenderableType] = [Panel(Group(*first), title=escape(printable(log.header.model)))]
    parts += [Text(printable(note), style="yellow") for note in notes(log)]
    measured = trajectory(log)
    content = _rows(measured[-_MOST_ROWS:])
    shown = [k for k, name in enumerate(content.columns) if name in _NARROW]
    grid = RichTable(title="Measurements", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for k in shown:
        grid.add_column(content.columns[k], justify="right")
    for row in content.rows:
        cells = (Text(printable(row.cells[k]).partition(" [")[0]) for k in shown)
        grid.add_row(*cells, style="dim" if row.failed else "")
    if len(measured) > _MOST_ROWS:
        grid.caption = f"the last {_MOST_ROWS} of {len(measured):,}"
    return Group(*parts, Text(""), grid)


def as_html(log: RunLog) -> str:
    """The page; whatever came from a model or a data file is escaped."""
    headline, _, detail = verdict(log).partition(": ")
    measured = trajectory(log)
    drawn = _thinned(measured)
    thinned = (
        f"figures and table show {len(drawn):,} of {len(measured):,} measurements, evenly spaced; the log has them all",
    )
    return (
        environment()
        .get_template("track.html.j2")
        .render(
            log=log,
            headline=headline.rstrip("."),
            detail=detail[:1].upper() + detail[1:],
            cards=cards(log),
            batch_size=batch_size_in_words(log.header.batch_size, log.header.batch_size_source),
            notes=notes(log) + (thinned if len(drawn) < len(measured) else ()),
            figures=track_figures(drawn),
            table=_rows(drawn),
            seconds=number(sum(each.seconds for each in measured), 3),
            products=f"{sum(each.num_hvps for each in measured):,}",
        )
    )


def save_html(log: RunLog, path: str | os.PathLike[str]) -> None:
    """Writes the page, all of it or nothing.

    Raises:
        SdkerasError: The file cannot be written.
    """
    write_atomically(path, as_html(log))


def _thinned(measured: Sequence[Measurement]) -> Sequence[Measurement]:
    """At most `_MOST_DRAWN`, evenly spaced, the first and the last among them."""
    last = len(measured) - 1
    if last < _MOST_DRAWN:
        return measured
    return [measured[round(k * last / (_MOST_DRAWN - 1))] for k in range(_MOST_DRAWN)]


def _finite(found: Measurement, key: str) -> bool:
    value = found.value(key)
    return value is not None and math.isfinite(value)


def _rate_source(log: RunLog) -> str:
    """Of a learning rate that was not the optimizer's own."""
    setting = log.header.settings.get("learning_rate", "")
    if not setting:
        return ""
    return f" ({rate_source_in_words(setting if setting[0].isalpha() else 'given')})"


def _numerator(found: Measurement) -> str:
    """The ratio's, with the mark of what has not converged."""
    reading = found.values.get("sharpness_ratio")
    value = found.numerator
    known = value is not None and math.isfinite(value)
    return number(value) + (" ?" if known and reading is not None and not reading.converged else "")


def _cell(found: Measurement, key: str, digits: int = 4) -> str:
    reading = found.values.get(key)
    if reading is None:
        return ABSENT
    return number(reading.value, digits) + ("" if reading.converged or math.isnan(reading.value) else " ?")


def _dimension(found: Measurement, key: str) -> str:
    reading = found.values.get(key)
    if reading is None or math.isnan(reading.value):
        return ABSENT
    return estimated(reading.value, reading.interval)


def _half_width(reading: Reading) -> float | None:
    return None if reading.interval is None else 0.5 * (reading.interval[1] - reading.interval[0])
