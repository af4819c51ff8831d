"""Numbers as tables for other programs: CSV text that a spreadsheet shows as it is, and data frames."""

from __future__ import annotations

import csv
import importlib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from sdkeras.errors import SdkerasError
from sdkeras.reporting.compare import in_words, known_numbers
from sdkeras.reporting.comparison import Quantity
from sdkeras.reporting.report import printable
from sdkeras.results.answers import Run
from sdkeras.results.arrays import Value
from sdkeras.results.document import walk
from sdkeras.results.log import Measurement
from sdkeras.results.measured import Measured

if TYPE_CHECKING:
    from pandas import DataFrame

_BEGINS_A_FORMULA = ("=", "+", "-", "@")


def as_csv(rows: Iterable[Sequence[object]]) -> str:
    """The rows as CSV; None is an empty cell.

    Numbers are in full precision. Texts come from model files and error messages of others: they are without control
    characters, and one that a spreadsheet would calculate begins with an apostrophe.
    """
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([[_cell(value) for value in row] for row in rows])
    return buffer.getvalue()


def _cell(value: Value) -> Value:
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.lstrip().startswith(_BEGINS_A_FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def summary(run: Run) -> DataFrame:
    """Every number that is compared, and every other one that has evidence, by path; see `Answer.summary`."""
    named = {each.path: each for each in known_numbers(run)}
    rows: dict[str, Mapping[str, Value]] = {}
    for path, value in walk(run):
        if path in named:
            rows[path] = _row(named[path].quantity, f"{named[path].label} ({named[path].group})")
        # The first of the estimates is `sharpness_dimension` once more.
        elif isinstance(value, Measured) and Quantity.of(value).known and not path.startswith("estimates.0."):
            rows[path] = _row(Quantity.of(value), in_words(run, path))
    return _pandas().DataFrame.from_dict(rows, orient="index").rename_axis("path")


def over_time(measured: Sequence[Measurement]) -> DataFrame:
    """Measurements by their steps; see `sdkeras.results.log.RunLog.summary`."""
    keys = dict.fromkeys(key for each in measured for key in each.values)
    metrics = dict.fromkeys(name for each in measured for name in each.metrics)
    rows = []
    for each in measured:
        about = {"source": each.source, "epoch": each.epoch}
        row = {**about, "learning_rate": _or_nan(each.learning_rate), "threshold": _or_nan(each.threshold)}
        for key in keys:
            lower, upper = _ends(each.values[key].bounds if key in each.values else None)
            row |= {key: _or_nan(each.value(key)), f"{key}_lower": lower, f"{key}_upper": upper}
        rows.append(row | {name: _or_nan(each.metrics.get(name)) for name in metrics})
    pandas = _pandas()
    return pandas.DataFrame(rows, index=pandas.Index([each.step for each in measured], name="step"))


def _row(quantity: Quantity, meaning: str) -> Mapping[str, Value]:
    lower, upper = _ends(quantity.interval)
    evidence = {"evidence": quantity.evidence, "remark": quantity.remark, "meaning": meaning}
    return {"value": _or_nan(quantity.value), "lower": lower, "upper": upper, **evidence}


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _ends(interval: tuple[float, float] | None) -> tuple[float, float]:
    return (math.nan, math.nan) if interval is None else interval


def _pandas() -> Value:
    try:
        return importlib.import_module("pandas")
    except ImportError as error:
        raise SdkerasError(
            "a summary is a pandas.DataFrame, and pandas cannot be imported; install it (pip install "
            "'sdkeras[pandas]'), or take the numbers from the record itself."
        ) from error
