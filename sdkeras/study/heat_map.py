"""The coefficients of many measures as one picture."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from sdkeras.errors import SdkerasError
from sdkeras.results.document import write_atomically
from sdkeras.study.correlations import TARGETS, Correlations, MeasureCorrelation, coefficient

_FONT = 12
_CELL = (0.82, 0.42)  # inches: room for "+0.00" at the font's size
# Per inch, for PNG.
_DOTS = 150
# Luminance below which white text is read more easily than black.
_DARK = 0.45
_TITLES = {"accuracy_gap": "accuracy gap", "loss_gap": "loss gap"}


def save_heat_map(found: Correlations, path: str | os.PathLike[str]) -> None:
    """Draws tau-b and the granulated coefficients, measures down and coefficients across, a panel for each gap.

    The colour scale goes from -1 over white at 0 to 1; every cell has its number, a dash where there is none.

    Args:
        found: What `correlate` returned.
        path: File to write, .png or .svg.

    Raises:
        SdkerasError: Another suffix, or the file cannot be written.
    """
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix not in ("png", "svg"):
        raise SdkerasError(f"a figure is written as .png or .svg, got {os.fspath(path)!r}; name the file so.")
    write_atomically(path, _drawn(found, suffix))


def as_svg(found: Correlations) -> str:
    """The picture of `save_heat_map` as SVG text."""
    return _drawn(found, "svg").decode("utf-8")


def _drawn(found: Correlations, suffix: str) -> bytes:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measures = list(dict.fromkeys(row.measure for row in found.rows))
    panels = {target: [row for row in found.rows if row.target == target] for target in TARGETS}
    panels = {target: rows for target, rows in panels.items() if rows}
    columns = ["tau-b", *(f"psi {name}" for name in found.settings), "mean psi"]
    width = 0.11 * max(map(len, measures)) + len(panels) * (len(columns) * _CELL[0] + 0.2) + 0.4
    height = len(measures) * _CELL[1] + 0.5 + 0.08 * max(map(len, columns))
    style = {"font.size": _FONT, "svg.fonttype": "none", "svg.hashsalt": "correlations"}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, (target, rows) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
            _panel(axes, rows, columns)
            axes.set_title(_TITLES[target], fontsize=_FONT)
            first = target == next(iter(panels))
            axes.set_yticks(range(len(rows)), measures if first else [""] * len(rows), parse_math=False)
        buffer = io.BytesIO()
        nothing = {"Date": None, "Creator": None} if suffix == "svg" else {"Software": None}
        figure.savefig(buffer, format=suffix, dpi=_DOTS, metadata=nothing)
    return buffer.getvalue()


def _panel(axes: Any, rows: list[MeasureCorrelation], columns: list[str]) -> None:
    import matplotlib

    values = np.array([_coefficients(row) for row in rows], np.float64)
    colours = matplotlib.colormaps["RdBu_r"].with_extremes(bad="0.92")
    # Squares and no image: a page that loads nothing shows none.
    edges = [np.arange(length + 1) - 0.5 for length in values.shape]
    axes.pcolormesh(edges[1], edges[0], np.ma.masked_invalid(values), cmap=colours, vmin=-1, vmax=1)
    axes.invert_yaxis()
    axes.set_xticks(range(len(columns)), columns, rotation=35, ha="right", rotation_mode="anchor", parse_math=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for (line, column), value in np.ndenumerate(values):
        red, green, blue, _ = colours((value + 1) / 2)
        dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < _DARK
        axes.text(column, line, coefficient(value), ha="center", va="center", color="white" if dark else "black")


def _coefficients(row: MeasureCorrelation) -> list[float | None]:
    return [row.tau_b, *(part.psi for part in row.granulated), row.psi_mean]
