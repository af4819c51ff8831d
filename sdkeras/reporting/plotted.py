"""The numbers behind a figure and their places in its SVG: a page shows and saves them without knowing scales."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from sdkeras.reporting.report import Figure, Series
from sdkeras.results.arrays import FloatArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

# An SVG of matplotlib has this many units to the inch.
_UNITS = 72
# Points of one series that lie closer together than this, in units, cannot be told apart: one of them is enough.
_APART = 0.75
# Series with fewer points are given whole.
_FEW = 300


def numbers_of(figure: Figure, canvas: Canvas) -> str:
    """The series and the boxes of the axes as JSON, after the canvas has been saved as an SVG.

    {"boxes": [[left, top, right, bottom]], "series": [{"name", "names", "box", "of", "x", "y", "at", ...}]}, with the
    boxes and `at`, pairs of each point, in the SVG's coordinates; `box` is the index of the axes, `of` the number of
    points of which these are some.
    """
    canvas.set_dpi(_UNITS)
    height = _UNITS * figure.size[1]
    boxes = [
        [round(end, 1) for end in (axes.bbox.x0, height - axes.bbox.y1, axes.bbox.x1, height - axes.bbox.y0)]
        for axes in canvas.axes
    ]
    series = [_placed(each, canvas, height) for each in figure.series]
    return json.dumps({"name": figure.name, "boxes": boxes, "series": series}, separators=(",", ":"), allow_nan=False)


def _placed(series: Series, canvas: Canvas, height: float) -> dict[str, object]:
    x, y = series.at or (np.asarray(series.x, np.float64), series.y)
    at = canvas.axes[series.axes].transData.transform(np.column_stack([x, y]))
    at[:, 1] = height - at[:, 1]
    kept = _kept(at)
    optional = {"lower": series.lower, "upper": series.upper, "end": series.x_end}
    return {
        "name": series.name,
        "names": [series.x_name, series.y_name],
        "box": series.axes,
        "of": len(series.y),
        "x": [series.x[k] for k in kept] if isinstance(series.x, tuple) else _plain(series.x[kept]),
        "y": _plain(series.y[kept]),
        "at": [[round(float(end), 1) for end in at[k]] for k in kept],
        **{name: _plain(values[kept]) for name, values in optional.items() if values is not None},
    }


def _kept(at: FloatArray) -> list[int]:
    """The points that have a place, without those of a long line that lie on the one before."""
    placed = [k for k in range(len(at)) if np.all(np.abs(at[k]) < 1e6)]  # false of NaN
    if len(placed) <= _FEW:
        return placed
    kept: list[int] = []
    for k in placed:
        if not kept or k == placed[-1] or np.max(np.abs(at[k] - at[kept[-1]])) >= _APART:
            kept.append(k)
    return kept


def _plain(values: Iterable[float]) -> list[float | int | None]:
    """Numbers that JSON can hold, each the same one when read back; None for what is no number."""
    return [
        None if not math.isfinite(value) else int(value) if value.is_integer() and abs(value) < 2**53 else value
        for value in map(float, values)
    ]
