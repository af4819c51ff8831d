"""The figures of a study: the heat map of its coefficients, and each measure against each gap."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import numpy as np

from sdkeras.errors import SdkerasError
from sdkeras.reporting.drawing import FONT_SIZE, Colours, as_image, tick_format
from sdkeras.reporting.report import Figure
from sdkeras.results.document import write_atomically
from sdkeras.study.correlations import TARGETS, Correlations, MeasureCorrelation, coefficient, kendall_tau_b
from sdkeras.study.definition import columns
from sdkeras.study.results import Results, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

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


_PANEL = (3.4, 3.1)  # inches
_ACROSS = 4
_MARKERS = "osD^vP*X<>pH"
# Settings shown by colours and by markers, in the order of preference.
_COLOURED, _MARKED = ("learning_rate", "weight_decay"), ("batch_size",)


@attrs.frozen
class _Scale:
    """How the values of a setting are shown, by colour or by marker."""

    setting: str
    values: list[object]

    def colour(self, value: object) -> tuple[float, float, float, float]:
        import matplotlib

        place = self.values.index(value) / max(1, len(self.values) - 1) if value in self.values else 0.5
        return matplotlib.colormaps["viridis"](place)

    def marker(self, value: object) -> str:
        return _MARKERS[self.values.index(value) % len(_MARKERS)] if value in self.values else "o"


def scatter(results: Results, target: str) -> Figure:
    """The runs that are done, with a bar of ± its error where a value has one.

    Args:
        results: The runs of the study.
        target: 'accuracy_gap' or 'loss_gap'.

    Raises:
        SdkerasError: No run has this gap.
    """
    rows = [row for row in results.done if row.gap(target) is not None]
    if not rows:
        raise SdkerasError(f"no run that is done has the {target.replace('_', ' ')}; there is nothing to draw.")
    names = list(columns(results.study.measures))
    coloured, marked = _scales(results, rows)
    across = min(_ACROSS, len(names))
    down = math.ceil(len(names) / across)
    quantity = target.removesuffix("_gap")

    def draw(panels: Sequence[Axes], colours: Colours) -> None:
        for panel, name in zip(panels, names, strict=False):
            _scatter_panel(panel, rows, name, target, coloured, marked)
        for panel in panels[len(names) :]:
            panel.set_visible(False)
        for panel in panels[::across]:
            panel.set_ylabel(f"|train {quantity} - test {quantity}|")
        _legend(panels[0].get_figure(root=True), coloured, marked)

    size = (across * _PANEL[0] + 1.4, down * _PANEL[1] + 0.3)
    return Figure(target, f"Each measure against the {target.replace('_', ' ')}", "", draw, size, (down, across))


def _scatter_panel(axes: Axes, rows: Sequence[Row], name: str, target: str, coloured: _Scale, marked: _Scale) -> None:
    points = [(row, row.value(name), row.gap(target)) for row in rows]
    known = [(row, value, gap) for row, value, gap in points if value is not None and gap is not None]
    for row, value, gap in known:
        settings, error = row.state.run.settings, row.error(name)
        axes.plot(
            value,
            gap,
            linestyle="",
            markersize=7,
            alpha=0.85,
            color=coloured.colour(settings.get(coloured.setting)),
            marker=marked.marker(settings.get(marked.setting)),
            markeredgecolor="0.25",
            markeredgewidth=0.5,
        )
        if error is not None and 0 < error < math.inf:
            axes.errorbar(value, gap, xerr=error, fmt="none", zorder=1, ecolor="0.6", elinewidth=1.0)
    pairs = np.array([pair for _, *pair in known], np.float64).reshape(-1, 2)
    tau = float(kendall_tau_b(pairs[:, 0], pairs[:, 1])[0]) if len(pairs) > 1 else math.nan
    axes.set_title(f"{name}\ntau-b {coefficient(tau)}", fontsize=FONT_SIZE - 1, parse_math=False)
    axes.locator_params(axis="x", nbins=4)
    axes.locator_params(axis="y", nbins=5)
    tick_format(axes.xaxis, 5)
    if not known:
        axes.text(0.5, 0.5, "no run has it", transform=axes.transAxes, ha="center", color="0.4")


def _legend(canvas: Canvas | None, coloured: _Scale, marked: _Scale) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for scale in (coloured, marked):
        if scale.setting:
            handles.append(Line2D([], [], linestyle="", label=scale.setting.replace("_", " ")))
        for value in scale.values:
            colour, marker = (scale.colour(value), "o") if scale is coloured else ("0.6", scale.marker(value))
            handles.append(
                Line2D([], [], linestyle="", marker=marker, markeredgecolor="0.25", label=f"{value}", color=colour)
            )
    if handles and canvas is not None:
        canvas.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=FONT_SIZE - 1)


def _scales(results: Results, rows: Sequence[Row]) -> tuple[_Scale, _Scale]:
    """The settings shown by colours and by markers; '' for none."""
    varied = list(results.varied())
    coloured = next((name for name in (*_COLOURED, *varied) if name in varied and name not in _MARKED), "")
    marked = next((name for name in (*_MARKED, *varied) if name in varied and name != coloured), "")
    return _scale(rows, coloured), _scale(rows, marked)


def _scale(rows: Sequence[Row], name: str) -> _Scale:
    values = {row.state.run.settings[name] for row in rows} if name else set()
    return _Scale(name, sorted(values, key=lambda value: (isinstance(value, str), value)))
