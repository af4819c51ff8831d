"""Each measure against a gap, one panel a measure: learning rate by colour, batch size by marker."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdkeras.errors import SdkerasError
from sdkeras.reporting.numbers import number
from sdkeras.results.document import write_atomically
from sdkeras.study.correlations import coefficient, kendall_tau_b
from sdkeras.study.measures import columns
from sdkeras.study.results import Results, Row

_FONT = 11
_PANEL = (3.4, 3.1)  # inches
_ACROSS = 4
_DOTS = 150  # per inch, for PNG
_MARKERS = "osD^vP*X<>pH"
_TITLES = {"accuracy_gap": "|train accuracy - test accuracy|", "loss_gap": "|train loss - test loss|"}
_BAR = {"ecolor": "0.6", "elinewidth": 1.0}
# What colours and markers tell, in the order of preference.
_COLOURED, _MARKED = ("learning_rate", "weight_decay"), ("batch_size",)


def save_scatter(results: Results, target: str, path: Path) -> None:
    """Draws the runs that are done, with a bar of ± its error where a value has one.

    Args:
        results: Of the study.
        target: 'accuracy_gap' or 'loss_gap'.
        path: File to write, .png or .svg.

    Raises:
        SdkerasError: No run has this gap, or the file cannot be written.
    """
    rows = [row for row in results.done if _gap(row, target) is not None]
    if not rows:
        raise SdkerasError(f"no run that is done has the {target.replace('_', ' ')}; there is nothing to draw.")
    write_atomically(path, _drawn(results, rows, target, path.suffix.removeprefix(".")))


def has_gap(results: Results, target: str) -> bool:
    """Whether a run that is done has this gap."""
    return any(_gap(row, target) is not None for row in results.done)


def _drawn(results: Results, rows: Sequence[Row], target: str, suffix: str) -> bytes:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(columns(results.study.measures))
    coloured, marked = _told(results)
    colours = _levels(rows, coloured)
    markers = _levels(rows, marked)
    across = min(_ACROSS, len(names))
    down = math.ceil(len(names) / across)
    style = {"font.size": _FONT, "svg.fonttype": "none", "svg.hashsalt": target, "axes.spines.top": False}
    with matplotlib.rc_context({**style, "axes.spines.right": False}):
        figure = Figure(figsize=(across * _PANEL[0] + 1.4, down * _PANEL[1] + 0.3), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
        for axes, name in zip(panels, names, strict=False):
            _panel(axes, rows, name, target, (coloured, colours), (marked, markers))
        for axes in panels[len(names) :]:
            axes.set_visible(False)
        for k in range(0, len(names), across):
            panels[k].set_ylabel(_TITLES[target], fontsize=_FONT - 1)
        _legend(figure, (coloured, colours), (marked, markers))
        buffer = io.BytesIO()
        nothing = {"Date": None, "Creator": None} if suffix == "svg" else {"Software": None}
        figure.savefig(buffer, format=suffix, dpi=_DOTS, metadata=nothing)
    return buffer.getvalue()


def _panel(
    axes: Any, rows: Sequence[Row], name: str, target: str, colour: tuple[str, list[Any]], marker: tuple[str, list[Any]]
) -> None:
    shown = [row for row in rows if row.value(name) is not None]
    for row in shown:
        axes.plot(
            row.value(name),
            _gap(row, target),
            linestyle="",
            markersize=7,
            alpha=0.85,
            color=_colour(row.state.run.settings.get(colour[0]), colour[1]),
            marker=_marker(row.state.run.settings.get(marker[0]), marker[1]),
            markeredgecolor="0.25",
            markeredgewidth=0.5,
        )
        error = _error(row, name)
        if error is not None:
            axes.errorbar(row.value(name), _gap(row, target), xerr=error, fmt="none", zorder=1, **_BAR)
    values = np.array([[row.value(name), _gap(row, target)] for row in shown], np.float64).reshape(-1, 2)
    tau = float(kendall_tau_b(values[:, 0], values[:, 1])[0]) if len(values) > 1 else math.nan
    axes.set_title(f"{name}\ntau-b {coefficient(tau)}", fontsize=_FONT - 1, parse_math=False)
    axes.locator_params(axis="x", nbins=4)
    axes.locator_params(axis="y", nbins=5)
    axes.xaxis.set_major_formatter(lambda tick, _: number(float(f"{tick:.6g}"), 5))
    if not shown:
        axes.text(0.5, 0.5, "no run has it", transform=axes.transAxes, ha="center", color="0.4")


def _legend(figure: Any, colour: tuple[str, list[Any]], marker: tuple[str, list[Any]]) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for name, values, colours in ((*colour, True), (*marker, False)):
        if not name:
            continue
        handles.append(Line2D([], [], linestyle="", label=name.replace("_", " ")))
        for value in values:
            drawn = {"color": _colour(value, values)} if colours else {"color": "0.6"}
            shape = "o" if colours else _marker(value, values)
            handles.append(
                Line2D([], [], linestyle="", marker=shape, markeredgecolor="0.25", label=f"{value}", **drawn)
            )
    if handles:
        figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=_FONT - 1)


def _told(results: Results) -> tuple[str, str]:
    """The settings that colours and markers tell; '' for none."""
    varied = list(results.varied())
    coloured = next((name for name in (*_COLOURED, *varied) if name in varied and name not in _MARKED), "")
    marked = next((name for name in (*_MARKED, *varied) if name in varied and name != coloured), "")
    return coloured, marked


def _levels(rows: Sequence[Row], name: str) -> list[Any]:
    found = {row.state.run.settings[name] for row in rows} if name else set()
    return sorted(found, key=lambda value: (isinstance(value, str), value))


def _colour(value: Any, levels: list[Any]) -> Any:
    import matplotlib

    place = levels.index(value) / max(1, len(levels) - 1) if value in levels else 0.5
    return matplotlib.colormaps["viridis"](place)


def _marker(value: Any, levels: list[Any]) -> str:
    return _MARKERS[levels.index(value) % len(_MARKERS)] if value in levels else "o"


def _error(row: Row, name: str) -> float | None:
    """Half the length of the bar, or None where there is none to draw."""
    error = row.error(name)
    return error if error is not None and 0 < error < math.inf else None


def _gap(row: Row, target: str) -> float | None:
    found: float | None = None if row.trained is None else getattr(row.trained, target)
    return found
