"""Tables as CSV text that a spreadsheet shows as it is."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from sdkeras.reporting.report import printable
from sdkeras.results.arrays import Value

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
