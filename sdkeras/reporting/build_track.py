"""The report of a training over time, from its log."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sdkeras.dimension.stability import EDGE
from sdkeras.reporting.numbers import (
    ABSENT,
    batch_size_in_words,
    estimated,
    interval,
    number,
    rate_source_in_words,
)
from sdkeras.reporting.report import Card, Cell, Report, Section, Table, plots, present, split
from sdkeras.reporting.tables import sharpness_name
from sdkeras.reporting.track_figures import track_figures
from sdkeras.results.log import Header, Measurement, RunLog, breaks, trajectory
from sdkeras.results.note import Note

# Rows that a terminal has room for; the page has them all.
_MOST_ROWS = 30
# Measurements on the page: more cannot be told apart, and would make it slow to write and to read.
_MOST_DRAWN = 2000
# Gaps and returns that are listed one by one.
_MOST_BREAKS = 4
_IN_TERMINAL = (
    *("source", "step", "epoch", "sharpness", "preconditioned", "threshold", "ratio"),
    *("λ₁", "SD", "codimension", "loss"),
)


def track_report(log: RunLog) -> Report:
    """Where training went."""
    header, measured = log.header, trajectory(log)
    batch_size = batch_size_in_words(header.batch_size, header.batch_size_source)
    verdict = _verdict(header, measured)
    headline, detail = split(verdict)
    cards = _cards(measured)
    drawn = _thinned(measured)
    notes = _notes(log, measured)
    if len(drawn) < len(measured):
        drawn_of = f"{len(drawn):,} of {len(measured):,} measurements, evenly spaced"
        notes.append(f"figures and table show {drawn_of}; the log has them all")
    return Report(
        name=header.model,
        about=f"{header.optimizer}, {header.num_samples:,} samples, {batch_size}",
        eyebrow="Where training went",
        headline=headline,
        detail=detail,
        lines=(verdict, *(f"{card.name} {card.value} ({card.evidence}): {card.meaning}" for card in cards)),
        assumed=f"{batch_size.capitalize()}." if header.batch_size_source == "assumed" else "",
        cards=cards,
        notes=tuple(Note("", message) for message in notes),
        sections=present(plots(track_figures(drawn)), _measurements(header, measured, drawn)),
        footer=f"Measured by sdkeras {header.sdkeras} with TensorFlow {header.tensorflow}, Keras {header.keras}, seed "
        f"{header.seed}, on data {header.data_digest}.",
    )


def _measurements(header: Header, measured: Sequence[Measurement], drawn: Sequence[Measurement]) -> Section:
    seconds = number(sum(each.seconds for each in measured), 3)
    products = f"{sum(each.num_hvps for each in measured):,}"
    columns, rows = _rows(drawn)
    names, last = _rows(measured[-_MOST_ROWS:])
    shown = [k for k, name in enumerate(names) if name in _IN_TERMINAL]
    narrow = tuple(tuple(_without_interval(row[k]) for k in shown) for row in last)
    return Section(
        "Every measurement",
        "numbers",
        "Numbers",
        "The same minibatches and probes every time, with eigenvalues and trace over "
        f'{header.num_samples_hessian:,} samples; dimensions with 95 % intervals; "?" is not converged. In all '
        f"{seconds} s and {products} Hessian-vector products.",
        lines=(f"the last {_MOST_ROWS} of {len(measured):,}",) if len(measured) > _MOST_ROWS else (),
        tables=(
            Table("Measurements", rows, columns, wide=True, only="page"),
            Table("Measurements", narrow, tuple(names[k] for k in shown), wide=True, only="terminal"),
        ),
    )


def _verdict(header: Header, measured: Sequence[Measurement]) -> str:
    """Where the training stood when it was last compared with its threshold, and when it first came to the edge."""
    compared = [each for each in measured if _finite(each, "sharpness_ratio")]
    if not compared:
        reasons = [note for each in measured if "sharpness_ratio" in each.values for note in each.notes]
        why = reasons[-1].removeprefix("No verdict: ") if reasons else ""
        return f"No verdict: {why or 'no measurement compares the sharpness with the threshold of the optimizer.'}"
    last = compared[-1]
    ratio = last.values["sharpness_ratio"].value
    where = "Below" if ratio < EDGE[0] else "At" if ratio <= EDGE[1] else "Above"
    text = (
        f"{where} the edge of stability at step {last.step:,}: {sharpness_name(last.operator)} "
        f"{number(last.numerator)} is {number(ratio, 3)} times the threshold {number(last.threshold)} of "
        f"{header.optimizer} at learning rate {number(last.learning_rate)}{_rate_source(header)}."
    )
    reached = [each.step for each in compared if each.values["sharpness_ratio"].value >= EDGE[0]]
    return f"{text} It was at {EDGE[0]:g} or above first at step {reached[0]:,}." if reached else text


def _notes(log: RunLog, measured: Sequence[Measurement]) -> list[str]:
    """Caveats about the file, and those of the last measurement that has any."""
    interruptions = breaks(log)
    notes = [*log.notes, *interruptions[:_MOST_BREAKS]]
    if len(interruptions) > _MOST_BREAKS:
        notes.append(f"and {len(interruptions) - _MOST_BREAKS:,} more of this kind")
    failed = [each for each in measured if each.failed]
    if failed:
        reason = "; ".join(failed[-1].notes)
        notes.append(f"{len(failed)} of {len(measured)} measurements failed, the last one: {reason}")
    if log.header.class_weight and any(each.source == "fit" and "val_loss" in each.metrics for each in measured):
        notes.append("fit weighs the loss by class and the validation loss not: their difference is no gap")
    notes += _about_bounds(measured)
    noted = [each for each in measured if each.notes and not each.failed]
    return [*notes, *(f"step {noted[-1].step:,}: {note}" for note in (noted[-1].notes if noted else ()))]


def _about_bounds(measured: Sequence[Measurement]) -> list[str]:
    """The value of each bound at the last measurement with inputs for it, and which inputs are missing."""
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


def _rows(measured: Sequence[Measurement]) -> tuple[tuple[str, ...], tuple[tuple[Cell, ...], ...]]:
    """Headings and rows; columns without a number are left out."""
    columns = {
        "source": [each.source if each.source != "fit" else "" for each in measured],
        "step": [f"{each.step:,}" for each in measured],
        "epoch": [number(each.epoch) for each in measured],
        "sharpness": [_cell(each, "sharpness") for each in measured],
        "preconditioned": [_numerator(each) if each.operator not in ("", "H") else ABSENT for each in measured],
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
    rows = zip(measured, zip(*shown.values(), strict=True), strict=True)
    return tuple(shown), tuple(
        tuple(Cell(text, "failed" if each.failed else "") for text in cells) for each, cells in rows
    )


def _without_interval(cell: Cell) -> Cell:
    return Cell(cell.text.partition(" [")[0], cell.mark)


def _cards(measured: Sequence[Measurement]) -> tuple[Card, ...]:
    """The last numbers."""
    cards = []
    last = {key: each for each in measured for key in each.values if _finite(each, key)}
    if "sharpness_ratio" in last:
        each = last["sharpness_ratio"]
        name = f"{sharpness_name(each.operator).capitalize()} / threshold"
        evidence = f"{number(each.numerator)} / {number(each.threshold)} at step {each.step:,}"
        ratio = number(each.values["sharpness_ratio"].value, 3)
        cards.append(Card(name, ratio, evidence, "1 is the edge of stability"))
    for key, name, meaning in (
        ("sharpness_codimension", "Codimension", "the rest of the state; neutral directions do not change it"),
        (
            "sharpness_dimension",
            "Sharpness dimension",
            "largest dimension whose volumes steps do not contract on average",
        ),
    ):
        if key in last:
            value, _, span = _dimension(last[key], key).partition(" ")
            cards.append(Card(name, value, f"{span} of {last[key].state_size:,}", meaning))
    if "bound_scale" in last:
        reading = last["bound_scale"].values["bound_scale"]
        total = last["bound_scale"].value("generalization_bound")
        meaning = "the factor that the generalization bounds grow with"
        if total is not None and math.isfinite(total):
            meaning += f"; the bound itself is {number(total)}"
        cards.append(Card("Scale of the bounds", number(reading.value, 3), interval(reading.interval), meaning))
    if "rds_sharpness" in last:
        value = number(last["rds_sharpness"].values["rds_sharpness"].value, 3)
        cards.append(Card("RDS sharpness λ₁", value, "per step", "the fastest stretching of distances; 0 is neutral"))
    return tuple(cards)


def _thinned(measured: Sequence[Measurement]) -> Sequence[Measurement]:
    """At most `_MOST_DRAWN`, evenly spaced, the first and the last among them."""
    last = len(measured) - 1
    if last < _MOST_DRAWN:
        return measured
    return [measured[round(k * last / (_MOST_DRAWN - 1))] for k in range(_MOST_DRAWN)]


def _finite(each: Measurement, key: str) -> bool:
    value = each.value(key)
    return value is not None and math.isfinite(value)


def _rate_source(header: Header) -> str:
    """Where a learning rate came from that was not the optimizer's own."""
    setting = header.settings.get("learning_rate", "")
    if not setting:
        return ""
    return f" ({rate_source_in_words(setting if setting[0].isalpha() else 'given')})"


def _numerator(each: Measurement) -> str:
    """The numerator of the ratio, marked where it has not converged."""
    reading, value = each.values.get("sharpness_ratio"), each.numerator
    known = value is not None and math.isfinite(value)
    return number(value) + (" ?" if known and reading is not None and not reading.converged else "")


def _cell(each: Measurement, key: str, digits: int = 4) -> str:
    reading = each.values.get(key)
    if reading is None:
        return ABSENT
    return number(reading.value, digits) + ("" if reading.converged or math.isnan(reading.value) else " ?")


def _dimension(each: Measurement, key: str) -> str:
    reading = each.values.get(key)
    if reading is None or math.isnan(reading.value):
        return ABSENT
    return estimated(reading.value, reading.interval)
