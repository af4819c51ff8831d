"""The report of a training over time, from its log."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import attrs

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
from sdkeras.reporting.words import CODIMENSION
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
    *("λ₁", "SD", "codimension", "loss", "val_loss"),
)
# Of these, what a narrow terminal does without after the metrics, least important first.
_OPTIONAL = ("SD", "epoch", "val_loss", "λ₁")


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
    if not measured:
        return Section("Every measurement", "numbers", "Numbers", "Nothing has been measured yet.")
    seconds = number(sum(each.seconds for each in measured), 3)
    products = f"{sum(each.num_hvps for each in measured):,}"
    return Section(
        "Every measurement",
        "numbers",
        "Numbers",
        "Every measurement takes the same minibatches and random start vectors; eigenvalues and trace are over "
        f'{header.num_samples_hessian:,} samples; brackets are 95 % intervals; "?" is for not converged. In all '
        f"it took {seconds} s and {products} Hessian-vector products.",
        lines=(f"the last {_MOST_ROWS} of {len(measured):,}",) if len(measured) > _MOST_ROWS else (),
        tables=(_table(drawn, "page"), _table(measured[-_MOST_ROWS:], "terminal")),
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


# Columns of the table of measurements, and what they show of one.
_COLUMNS: dict[str, Callable[[Measurement], str]] = {
    "source": lambda each: "" if each.source == "fit" else each.source,
    "step": lambda each: f"{each.step:,}",
    "epoch": lambda each: number(each.epoch),
    "sharpness": lambda each: _cell(each, "sharpness"),
    "preconditioned": lambda each: ABSENT if each.operator in ("", "H") else _numerator(each),
    "threshold": lambda each: number(each.threshold),
    "ratio": lambda each: _cell(each, "sharpness_ratio", 3),
    "λ₁": lambda each: _cell(each, "rds_sharpness", 3),
    "SD": lambda each: _dimension(each, "sharpness_dimension"),
    "codimension": lambda each: _dimension(each, "sharpness_codimension"),
    "sqrt(SD/n)": lambda each: _cell(each, "bound_scale", 3),
    "bound": lambda each: _cell(each, "generalization_bound"),
    "trace": lambda each: _cell(each, "hessian_trace"),
    "loss": lambda each: number(each.metrics.get("loss")),
    "val_loss": lambda each: number(each.metrics.get("val_loss")),
    "learning rate": lambda each: number(each.learning_rate),
    "seconds": lambda each: number(each.seconds, 2),
}


def _table(measured: Sequence[Measurement], only: Literal["page", "terminal"]) -> Table:
    """Rows of measurements; columns without a number are left out, in the terminal minor ones and intervals too."""
    names = _COLUMNS if only == "page" else _IN_TERMINAL
    columns = {name: [_COLUMNS[name](each) for each in measured] for name in names}
    metrics = _metrics(measured)
    columns |= {name: [number(each.metrics.get(name)) for each in measured] for name in metrics}
    if only == "terminal":
        columns = {name: [cell.partition(" [")[0] for cell in cells] for name, cells in columns.items()}
    shown = {name: cells for name, cells in columns.items() if set(cells) - {"", ABSENT}}
    marks = ["failed" if each.failed else "" for each in measured]
    rows = [map(Cell, cells, marks) for cells in shown.values()]
    optional = tuple(name for name in (*reversed(metrics), *_OPTIONAL) if name in shown)
    headings = tuple(_heading(name, measured) if only == "page" else name for name in shown)
    table = Table("Measurements", tuple(zip(*rows, strict=True)), headings, wide=True, only=only)
    return attrs.evolve(table, optional=optional)


def _heading(name: str, measured: Sequence[Measurement]) -> str:
    """Of a column: the training loss of `fit`, its mean over an epoch, is another number than that of a checkpoint."""
    return "epoch_loss" if name == "loss" and any(each.source == "fit" for each in measured) else name


def _metrics(measured: Sequence[Measurement]) -> list[str]:
    """Metrics of the training other than its loss, those of the validation last."""
    names = dict.fromkeys(name for each in measured for name in each.metrics)
    known = {*_COLUMNS, *(key for each in measured for key in each.values), "learning_rate"}
    return sorted((name for name in names if name not in known), key=lambda name: name.startswith("val_"))


def _cards(measured: Sequence[Measurement]) -> tuple[Card, ...]:
    """The last numbers."""
    last = {key: each for each in measured for key in each.values if _finite(each, key)}
    ratio, scale, leading = None, None, None
    if "sharpness_ratio" in last:
        each = last["sharpness_ratio"]
        name = f"{sharpness_name(each.operator).capitalize()} / threshold"
        evidence = f"{number(each.numerator)} / {number(each.threshold)} at step {each.step:,}"
        ratio = Card(name, number(each.value("sharpness_ratio"), 3), evidence, "1 is the edge of stability")
    if "bound_scale" in last:
        reading = last["bound_scale"].values["bound_scale"]
        total = last["bound_scale"].value("generalization_bound")
        meaning = "the factor that the generalization bounds grow with"
        if total is not None and math.isfinite(total):
            meaning += f"; the bound itself is {number(total)}"
        scale = Card("Scale of the bounds", number(reading.value, 3), interval(reading.interval), meaning)
    if "rds_sharpness" in last:
        value = number(last["rds_sharpness"].value("rds_sharpness"), 3)
        leading = Card("RDS sharpness λ₁", value, "per step", "the fastest stretching of distances; 0 is neutral")
    largest = "largest dimension whose volumes steps do not contract on average"
    return present(
        ratio,
        _dimension_card(last.get("sharpness_codimension"), "sharpness_codimension", "Codimension", CODIMENSION),
        _dimension_card(last.get("sharpness_dimension"), "sharpness_dimension", "Sharpness dimension", largest),
        scale,
        leading,
    )


def _dimension_card(each: Measurement | None, key: str, name: str, meaning: str) -> Card | None:
    if each is None:
        return None
    value, _, span = _dimension(each, key).partition(" ")
    return Card(name, value, f"{span} of {each.state_size:,}", meaning)


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
