"""Each measure against a gap, one panel a measure: learning rate by colour, batch size by marker."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from sdkeras.errors import SdkerasError
from sdkeras.reporting.drawing import FONT_SIZE, Colours, tick_format
from sdkeras.reporting.report import Figure
from sdkeras.study.correlations import coefficient, kendall_tau_b
from sdkeras.study.measures import columns
from sdkeras.study.results import Results, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_PANEL = (3.4, 3.1)  # inches
_ACROSS = 4
_MARKERS = "osD^vP*X<>pH"
# Settings shown by colours and by markers, in the order of preference.
_COLOURED, _MARKED = ("learning_rate", "weight_decay"), ("batch_size",)


@attrs.frozen
class _Scale:
    """How the values of a setting are shown, by colour or by marker."""

    setting: str
    values: list[Any]

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
            _panel(panel, rows, name, target, coloured, marked)
        for panel in panels[len(names) :]:
            panel.set_visible(False)
        for panel in panels[::across]:
            panel.set_ylabel(f"|train {quantity} - test {quantity}|")
        _legend(panels[0].get_figure(root=True), coloured, marked)

    size = (across * _PANEL[0] + 1.4, down * _PANEL[1] + 0.3)
    return Figure(target, f"Each measure against the {target.replace('_', ' ')}", "", draw, size, (down, across))


def _panel(axes: Axes, rows: Sequence[Row], name: str, target: str, coloured: _Scale, marked: _Scale) -> None:
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
