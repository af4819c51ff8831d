"""The coefficients of many measures in one plot."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sdkeras.errors import SdkerasError
from sdkeras.reporting.drawing import FONT_SIZE, Colours, as_image
from sdkeras.reporting.report import Figure
from sdkeras.results.document import write_atomically
from sdkeras.study.correlations import TARGETS, Correlations, MeasureCorrelation, coefficient

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CELL = (0.82, 0.42)  # inches: room for "+0.00" at the font's size
# Opacity of a cell at +-1: text in the page's own colour stays readable on it, light or dark.
_OPACITY = 0.45


def heat_map(correlations: Correlations) -> Figure:
    """Tau-b and the granulated coefficients, measures down and coefficients across, a panel for each gap.

    Cells are blue above 0 and orange below, the stronger the larger the coefficient; each has its number, a dash where
    there is none.
    """
    measures = list(dict.fromkeys(row.measure for row in correlations.rows))
    gaps = {target: [row for row in correlations.rows if row.target == target] for target in TARGETS}
    panels = {target: rows for target, rows in gaps.items() if rows}
    columns = ["tau-b", *(f"psi {name}" for name in correlations.settings), "mean psi"]
    width = 0.11 * max(map(len, measures)) + len(panels) * (len(columns) * _CELL[0] + 0.2) + 0.4
    height = len(measures) * _CELL[1] + 0.5 + 0.08 * max(map(len, columns))

    def draw(axes: Sequence[Axes], colours: Colours) -> None:
        for panel, (target, rows) in zip(axes, panels.items(), strict=True):
            _panel(panel, rows, columns, colours)
            panel.set_title(target.replace("_", " "), fontsize=FONT_SIZE)
        axes[0].set_yticks(range(len(measures)), measures, parse_math=False)
        axes[0].set_ylim(len(measures) - 0.5, -0.5)

    return Figure(
        "heat-map",
        "Coefficients of each measure with the gaps",
        "Kendall's tau-b over all runs; psi of a setting is its mean over groups of runs that differ in nothing else. "
        "1: the measure orders the runs as the gap does; 0: no correlation; -1: it orders them the other way.",
        draw,
        (width, height),
        (1, len(panels)),
    )


def save_heat_map(correlations: Correlations, path: str | os.PathLike[str]) -> None:
    """Draws `heat_map` into a file.

    Args:
        correlations: The coefficients.
        path: File to write, .png or .svg.

    Raises:
        SdkerasError: Another suffix, or the file cannot be written.
    """
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix not in ("png", "svg"):
        raise SdkerasError(f"a figure is written as .png or .svg, got {os.fspath(path)!r}; name the file so.")
    write_atomically(path, as_image(heat_map(correlations), suffix))


def _panel(axes: Axes, rows: list[MeasureCorrelation], columns: list[str], colours: Colours) -> None:
    from matplotlib.patches import Rectangle

    for line, row in enumerate(rows):
        for column, value in enumerate((row.tau_b, *(each.psi for each in row.granulated), row.psi_mean)):
            strength = 0.0 if value is None else _OPACITY * abs(value)
            colour = colours.accent if (value or 0) > 0 else colours.warn
            axes.add_patch(Rectangle((column - 0.5, line - 0.5), 1, 1, color=colour, alpha=strength, linewidth=0))
            axes.text(column, line, coefficient(value), ha="center", va="center")
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_xticks(range(len(columns)), columns, rotation=35, ha="right", rotation_mode="anchor", parse_math=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
