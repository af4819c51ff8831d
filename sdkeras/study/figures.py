"""The figures of a study: the heat map of its coefficients, and each measure against each gap."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sdkeras.errors import SdkerasError
from sdkeras.reporting.drawing import FONT_SIZE, Colours, tick_format
from sdkeras.reporting.report import Figure, Series
from sdkeras.results.arrays import Value
from sdkeras.study.correlations import (
    TARGETS,
    Correlations,
    MeasureCorrelation,
    PairCorrelation,
    coefficient,
    kendall_tau_b,
)
from sdkeras.study.results import Results, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

# Colour and marker of a run.
_Look = Mapping[str, Value]

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
            _heat_panel(panel, rows, columns, colours)
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
        series=tuple(
            _cells(row, columns, target, line, panel)
            for panel, (target, rows) in enumerate(panels.items())
            for line, row in enumerate(rows)
        ),
    )


def _cells(row: MeasureCorrelation, columns: Sequence[str], target: str, line: int, panel: int) -> Series:
    """The coefficients of a row of the heat map, with their intervals."""
    cells = ((row.tau_b, row.interval), *((each.psi, each.interval) for each in row.granulated))
    cells = (*cells, (row.psi_mean, row.psi_mean_interval))
    table = np.array([(value, *(span or (None, None))) for value, span in cells], np.float64)  # None is NaN
    value, lower, upper = table.T
    place = np.arange(len(columns), dtype=np.float64), np.full(len(columns), float(line))
    name = target.replace("_", " ")
    return Series(row.measure, name, "coefficient", tuple(columns), value, lower, upper, at=place, axes=panel)


def _heat_panel(axes: Axes, rows: list[MeasureCorrelation], columns: list[str], colours: Colours) -> None:
    for line, row in enumerate(rows):
        for column, value in enumerate((row.tau_b, *(each.psi for each in row.granulated), row.psi_mean)):
            _cell(axes, column, line, value, colours)
    _framed(axes, columns)


def _cell(axes: Axes, column: int, line: int, value: float | None, colours: Colours) -> None:
    """A coefficient as colour and number."""
    from matplotlib.patches import Rectangle

    strength = 0.0 if value is None else _OPACITY * abs(value)
    colour = colours.accent if (value or 0) > 0 else colours.warn
    axes.add_patch(Rectangle((column - 0.5, line - 0.5), 1, 1, color=colour, alpha=strength, linewidth=0))
    axes.text(column, line, coefficient(value), ha="center", va="center")


def _framed(axes: Axes, columns: Sequence[str]) -> None:
    """The names of the columns, and no frame."""
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_xticks(range(len(columns)), columns, rotation=35, ha="right", rotation_mode="anchor", parse_math=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def matrix(correlations: Correlations) -> Figure:
    """Tau-b between every two measures and gaps, below the diagonal; cells are as in `heat_map`."""
    measures = {row.measure for row in correlations.rows}
    names = list(dict.fromkeys(name for pair in correlations.between for name in (pair.first, pair.second)))
    places = {name: place for place, name in enumerate(names)}
    lines = [[pair for pair in correlations.between if pair.second == name] for name in names[1:]]
    across = names[:-1]
    size = (
        0.11 * max(map(len, names)) + len(across) * _CELL[0] + 0.6,
        len(lines) * _CELL[1] + 0.5 + 0.08 * max(map(len, names)),
    )

    def draw(axes: Sequence[Axes], colours: Colours) -> None:
        for line, pairs in enumerate(lines):
            for pair in pairs:
                _cell(axes[0], places[pair.first], line, pair.tau_b, colours)
        _framed(axes[0], [shown(name) for name in across])
        axes[0].set_yticks(range(len(lines)), [shown(name) for name in names[1:]], parse_math=False)
        axes[0].set_ylim(len(lines) - 0.5, -0.5)

    def shown(name: str) -> str:
        return name if name in measures else name.replace("_", " ")

    return Figure(
        "matrix",
        "Coefficients of the measures with each other",
        "Kendall's tau-b over the runs that have both values. Measures that order the runs alike, near 1, cannot be "
        "told apart by these runs, whatever either says of the gaps.",
        draw,
        size,
        (1, 1),
        series=tuple(_line_of(shown(names[line + 1]), pairs, line) for line, pairs in enumerate(lines)),
    )


def _line_of(name: str, pairs: Sequence[PairCorrelation], line: int) -> Series:
    """A line of the matrix, with intervals."""
    table = np.array([(pair.tau_b, *(pair.interval or (None, None))) for pair in pairs], np.float64)  # None is NaN
    value, lower, upper = table.T
    place = np.arange(len(pairs), dtype=np.float64), np.full(len(pairs), float(line))
    others = tuple(pair.first for pair in pairs)
    return Series(name, "with", "coefficient", others, value, lower, upper, at=place)


_PANEL = (3.4, 3.1)  # inches
_ACROSS = 4
_MARKERS = "osD^vP*X<>pH"
# Settings shown by colours and by markers, in the order of preference.
_COLOURED, _MARKED = ("learning_rate", "weight_decay"), ("batch_size",)


def scatter(results: Results, target: str) -> Figure:
    """The runs that are done, with a bar of ± its error where a value has one; a panel for each measure.

    Args:
        results: The runs of the study.
        target: 'accuracy_gap' or 'loss_gap'.

    Raises:
        SdkerasError: No run has this gap.
    """
    rows = [row for row in results.done if row.gap(target) is not None]
    if not rows:
        raise SdkerasError(f"no run that is done has the {target.replace('_', ' ')}; there is nothing to draw.")
    names = results.columns
    across = min(_ACROSS, len(names))
    down = math.ceil(len(names) / across)
    quantity = target.removesuffix("_gap")
    varied = results.varied()
    coloured = next((name for name in (*_COLOURED, *varied) if name in varied and name not in _MARKED), "")
    marked = next((name for name in (*_MARKED, *varied) if name in varied and name != coloured), "")

    def draw(panels: Sequence[Axes], colours: Colours) -> None:
        import matplotlib

        shade = matplotlib.colormaps["viridis"]
        values = _values(rows, coloured)
        shades = {value: shade(0.3 + 0.65 * place / max(1, len(values) - 1)) for place, value in enumerate(values)}
        markers = {value: _MARKERS[k % len(_MARKERS)] for k, value in enumerate(_values(rows, marked))}
        looks = []
        for row in rows:
            settings = row.state.run.settings
            colour, marker = shades.get(settings.get(coloured), shade(0.5)), markers.get(settings.get(marked), "o")
            looks.append({"color": colour, "marker": marker})
        for panel, name in zip(panels, names, strict=False):
            _scatter_panel(panel, rows, looks, name, target)
        for panel in panels[len(names) :]:
            panel.set_visible(False)
        for panel in panels[::across]:
            panel.set_ylabel(f"|train {quantity} - test {quantity}|")
        entries: dict[str, list[tuple[Value, _Look]]] = {
            coloured: [(value, {"color": each, "marker": "o"}) for value, each in shades.items()],
            marked: [(value, {"color": "0.5", "marker": each}) for value, each in markers.items()],
        }
        _legend(panels[0].get_figure(root=True), entries)

    size = (across * _PANEL[0] + 1.4, down * _PANEL[1] + 0.3)
    gap = target.replace("_", " ")
    title, caption = f"Each measure against the {gap}", "A point for each run; bars are ± the error of a measure."
    points = tuple(_points(rows, name, target, panel) for panel, name in enumerate(names))
    return Figure(target, title, caption, draw, size, (down, across), points)


def _points(rows: Sequence[Row], name: str, target: str, panel: int) -> Series:
    known = [(row.measure(name), row.gap(target)) for row in rows]
    table = np.array([(each.value, gap) for each, gap in known], np.float64).reshape(-1, 2)  # None is NaN
    shown = table[np.all(np.isfinite(table), axis=1)]
    return Series(name, name, target.replace("_", " "), shown[:, 0], shown[:, 1], axes=panel)


def _values(rows: Sequence[Row], setting: str) -> list[Value]:
    """The values of a setting in order, texts last; none of ''."""
    values = {row.state.run.settings[setting] for row in rows} if setting else set()
    return sorted(values, key=lambda value: (isinstance(value, str), value))


def _scatter_panel(axes: Axes, rows: Sequence[Row], looks: Sequence[_Look], name: str, target: str) -> None:
    pairs = []
    for row, look in zip(rows, looks, strict=True):
        value, gap, error = row.measure(name).value, row.gap(target), row.measure(name).error
        if value is None or gap is None:
            continue
        pairs.append((value, gap))
        style = {"markersize": 7, "alpha": 0.85, "markeredgecolor": "0.5", "markeredgewidth": 0.5, **look}
        axes.plot(value, gap, linestyle="", **style)
        if error is not None and 0 < error < math.inf:
            axes.errorbar(value, gap, xerr=error, fmt="none", zorder=1, ecolor="0.5", elinewidth=1.0)
    columns = np.array(pairs, np.float64).reshape(-1, 2).T
    axes.set_title(f"{name}\ntau-b {coefficient(kendall_tau_b(*columns)[0])}", fontsize=FONT_SIZE - 1, parse_math=False)
    axes.locator_params(axis="x", nbins=4)
    axes.locator_params(axis="y", nbins=5)
    tick_format(axes.xaxis, 5)
    if not pairs:
        axes.text(0.5, 0.5, "no run has it", transform=axes.transAxes, ha="center")


def _legend(canvas: Canvas | None, entries: Mapping[str, Sequence[tuple[Value, _Look]]]) -> None:
    """Each setting with the looks of its values."""
    from matplotlib.lines import Line2D

    handles = []
    for setting, looks in entries.items():
        if setting:
            handles.append(Line2D([], [], linestyle="", label=setting.replace("_", " ")))
        for value, look in looks:
            handles.append(Line2D([], [], linestyle="", markeredgecolor="0.5", label=f"{value}", **look))
    if handles and canvas is not None:
        canvas.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=FONT_SIZE - 1)
