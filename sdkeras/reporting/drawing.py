"""How a figure of the page is drawn: an SVG text that takes its colours from the page, and its axes.

Nothing that came from a model or a data file is drawn: numbers only.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from typing import Any

import attrs
import numpy as np

from sdkeras.reporting.numbers import number
from sdkeras.results.arrays import FloatArray

# Drawn in these colours, which the page replaces by its own: one figure for light and dark.
INK, SOFT, LINE, ACCENT, WARN = "#010101", "#020202", "#030303", "#040404", "#050505"
_COLOURS = {INK: "currentColor", SOFT: "var(--soft)", LINE: "var(--line)", ACCENT: "var(--accent)", WARN: "var(--warn)"}
_SIZE = (5.6, 3.5)
FONT_SIZE = 12


@attrs.frozen
class Figure:
    """A figure of the page: its title, the SVG, and how to read it."""

    title: str
    svg: str
    caption: str


def usable(*arrays: FloatArray) -> bool:
    """Whether the arrays have one length, not 0, and values that axes can hold."""
    lengths = {len(array) for array in arrays}
    # Beyond 1e100 the axes themselves would overflow.
    return lengths != {0} and len(lengths) == 1 and all(bool(np.all(np.abs(array) < 1e100)) for array in arrays)


def plain_ticks(axes: Any) -> None:
    """Ticks of the vertical axis as the reports write numbers, few of them."""
    axes.locator_params(axis="y", nbins=6)
    axes.yaxis.set_major_formatter(lambda tick, _: number(float(f"{tick:.6g}"), 3))


def asinh_axis(axes: Any, side: str, linear: float, low: float, high: float) -> None:
    """A scale that is linear within +-linear and logarithmic beyond, with a few round ticks."""
    linear = max(linear, 1e-100)  # below that the axes themselves would overflow
    getattr(axes, f"set_{side}scale")("asinh", linear_width=linear)
    getattr(axes, f"set_{side}lim")(low, high)
    last = math.floor(math.log10(max(abs(low), abs(high))))
    decades = [10.0**e for e in range(min(math.floor(math.log10(linear)) + 1, last), last + 1)]
    decades = decades[:: 1 + len(decades) // 4]
    ticks = [t for t in (*(-d for d in reversed(decades)), 0.0, *decades) if low <= t <= high]
    getattr(axes, f"set_{side}ticks")(ticks, [number(tick, 3) for tick in ticks])
    getattr(axes, f"set_{side}ticks")([], minor=True)


def mark(axes: Any, at: float, label: str) -> None:
    """A vertical line with its name beside it, on the side that has room."""
    axes.axvline(at, color=WARN, linewidth=1.6)
    right = axes.transData.transform((at, 1.0))[0] > 0.6 * axes.transAxes.transform((1.0, 0))[0]
    axes.annotate(
        label,
        (at, 0.97),
        xycoords=("data", "axes fraction"),
        xytext=(-6 if right else 6, 0),
        textcoords="offset points",
        ha="right" if right else "left",
        va="top",
        color=WARN,
        fontsize=FONT_SIZE,
    )


def svg(name: str, label: str, draw: Callable[[Any], None]) -> str:
    """The drawing as an SVG element that scales with the page; ids begin with the figure's name."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": FONT_SIZE,
        "axes.edgecolor": LINE,
        "axes.labelcolor": SOFT,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": LINE,
        "ytick.color": LINE,
        "xtick.labelcolor": SOFT,
        "ytick.labelcolor": SOFT,
        "text.color": INK,
        "path.simplify": True,
    }
    with matplotlib.rc_context(style):
        canvas = Canvas(figsize=_SIZE, layout="constrained")
        canvas.patch.set_visible(False)
        axes = canvas.add_subplot()
        axes.patch.set_visible(False)
        draw(axes)
        FigureCanvasSVG(canvas)
        buffer = io.StringIO()
        canvas.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    for drawn, shown in _COLOURS.items():
        text = text.replace(drawn, shown)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = text.replace("url(#", f"url(#{name}-")
    return re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', _opening(label), text, count=1)


def _opening(label: str) -> str:
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        rf'viewBox="\1" role="img" aria-label="{label}">'
    )
