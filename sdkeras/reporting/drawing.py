"""How a figure is drawn: as an SVG element that takes its colours from the page, or as an image file."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import attrs
import numpy as np

from sdkeras.reporting.numbers import number
from sdkeras.reporting.plotted import numbers_of
from sdkeras.reporting.report import Figure
from sdkeras.results.arrays import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure as Canvas

FONT_SIZE = 12
_POINTS = 72  # of an SVG to the inch
# Least distance of two ticks as a share of their axis.
_LEAST_GAP = 0.1
DOTS_PER_INCH = 150
# Within this factor a logarithmic axis has room for the names of 2 and 5 beside those of 1 in each decade.
_FEW_DECADES = 1e3


@attrs.frozen
class Colours:
    """The colours of a figure: text and main lines, lesser lines, axes, and two that stand out."""

    ink: str
    soft: str
    line: str
    accent: str
    warn: str


# Placeholders that no figure uses otherwise: the page puts its own colours, light or dark, in their place.
PAGE = Colours("#010101", "#020202", "#030303", "#040404", "#050505")
_VARIABLES = Colours("currentColor", "var(--soft)", "var(--axis)", "var(--accent)", "var(--warn)")
PRINT = Colours("#17212e", "#566273", "#8b8577", "#0a5c86", "#a05a00")
# What each of the page's colours is in a file of its own.
LIGHT = dict(zip(attrs.astuple(_VARIABLES), attrs.astuple(PRINT), strict=True))


@attrs.frozen
class Plot:
    """A figure on a page: its SVG element, and as JSON the numbers behind it with their places in the SVG."""

    svg: str
    numbers: str


def as_svg(figure: Figure) -> str:
    """The figure as an SVG element that scales with the page; ids begin with the figure's name."""
    return as_plot(figure).svg


def as_plot(figure: Figure) -> Plot:
    """The figure as `as_svg` has it, with its numbers for `templates/page.js`."""
    content, canvas = _drawn(figure, "svg", PAGE)
    return Plot(_for_page(figure, content.decode("utf-8")), numbers_of(figure, canvas))


def _for_page(figure: Figure, text: str) -> str:
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"font-family: [^;\"]*", "font-family: 'DejaVu Sans', Verdana, sans-serif", text)
    text = re.sub(r' transform="rotate\(-0 [^"]*\)"', "", text)
    for placeholder, shown in zip(attrs.astuple(PAGE), attrs.astuple(_VARIABLES), strict=True):
        text = text.replace(placeholder, shown)
    text = re.sub(r'\bid="', f'id="{figure.name}-', text)
    text = re.sub(r'href="#', f'href="#{figure.name}-', text)
    text = text.replace("url(#", f"url(#{figure.name}-")
    # Panels side by side are not drawn much below their own size: their text stays readable, the box around it scrolls.
    # A page of full width has room for 0.96 of four panels.
    least = "" if figure.panels is None else f' style="min-width: {0.95 * _POINTS * figure.size[0]:.0f}px"'
    return re.sub(
        r'<svg [^>]*?viewBox="(\S+ \S+ ([\d.]+) [^"]*)"[^>]*>',
        r'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="\1" role="img"'
        rf'{least} aria-label="{figure.title}">',
        text,
        count=1,
    )


def as_image(figure: Figure, suffix: str) -> bytes:
    """The figure as the content of a file, png or svg; the same figure has the same bytes."""
    return _drawn(figure, suffix, PRINT)[0]


def _drawn(figure: Figure, suffix: str, colours: Colours) -> tuple[bytes, Canvas]:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": figure.name,
        "font.size": FONT_SIZE,
        "axes.edgecolor": colours.line,
        "axes.labelcolor": colours.soft,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": colours.line,
        "ytick.color": colours.line,
        "xtick.labelcolor": colours.soft,
        "ytick.labelcolor": colours.soft,
        "text.color": colours.ink,
        "path.simplify": True,
    }
    with matplotlib.rc_context(style):
        canvas = Canvas(figsize=figure.size, layout="constrained")
        FigureCanvasAgg(canvas)
        axes = canvas.subplots(*(figure.panels or (1, 1)), squeeze=False, sharey=True)
        if colours == PAGE:
            canvas.patch.set_visible(False)
            for each in axes.flat:
                each.patch.set_visible(False)
        figure.draw(axes[0, 0] if figure.panels is None else list(axes.flat), colours)
        buffer = io.BytesIO()
        metadata = {"Date": None, "Creator": None} if suffix == "svg" else {"Software": None}
        canvas.savefig(buffer, format=suffix, dpi=DOTS_PER_INCH, metadata=metadata)
    return buffer.getvalue(), canvas


def usable(*arrays: FloatArray) -> bool:
    """Whether the arrays have one length, not 0, and values that axes can hold."""
    lengths = {len(array) for array in arrays}
    # Beyond 1e100 the axes themselves would overflow.
    return lengths != {0} and len(lengths) == 1 and all(bool(np.all(np.abs(array) < 1e100)) for array in arrays)


def tick_format(axis: Axis, digits: int = 3) -> None:
    """Ticks written as the reports write numbers."""
    axis.set_major_formatter(lambda tick, _: number(float(f"{tick:.6g}"), digits))


def value_axis(axes: Axes, label: str, digits: int = 3, ticks: int = 6) -> None:
    """A linear vertical axis with few ticks."""
    axes.set_ylabel(label)
    axes.locator_params(axis="y", nbins=ticks)
    tick_format(axes.yaxis, digits)


def log_value_axis(axes: Axes, label: str, lowest: float, highest: float) -> None:
    """A logarithmic vertical axis around these values, with ticks between the decades where there are few."""
    from matplotlib.ticker import LogLocator

    axes.set_yscale("log")
    axes.set_ylabel(label)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if highest < _FEW_DECADES * lowest else (1.0,)))
    axes.set_ylim(0.5 * lowest, 2.5 * highest)
    tick_format(axes.yaxis)
    axes.yaxis.set_minor_formatter(lambda tick, _: "")


def step_axis(axes: Axes, label: str) -> None:
    """A horizontal axis of counts: steps, runs."""
    axes.set_xlabel(label)
    axes.locator_params(axis="x", nbins=5, integer=True)
    tick_format(axes.xaxis, 6)


def series(axes: Axes, x: FloatArray, y: FloatArray, colour: str, *, dashed: bool = False) -> None:
    """A line through points; the dashed one is thinner."""
    width, style, marker = (1.6, "--", "s") if dashed else (2.2, "-", "o")
    axes.plot(x, y, color=colour, linewidth=width, linestyle=style, marker=marker, markersize=4)


def zero_line(axes: Axes, colours: Colours) -> None:
    """The line at 0."""
    axes.axhline(0, color=colours.ink, linewidth=0.9)


def asinh_axis(axes: Axes, side: Literal["x", "y"], linear: float, low: float, high: float) -> None:
    """A scale that is linear within +-linear and logarithmic beyond, with a few round ticks."""
    linear = max(linear, 1e-100)  # below that the axes themselves would overflow
    getattr(axes, f"set_{side}scale")("asinh", linear_width=linear)
    getattr(axes, f"set_{side}lim")(low, high)
    last = math.floor(math.log10(max(abs(low), abs(high))))
    decades = [10.0**e for e in range(min(math.floor(math.log10(linear)) + 1, last), last + 1)]
    ticks = [t for t in (*(-d for d in reversed(decades)), 0.0, *decades) if low <= t <= high]
    ticks = _apart(ticks, linear, _LEAST_GAP * (math.asinh(high / linear) - math.asinh(low / linear)))
    getattr(axes, f"set_{side}ticks")(ticks, [number(tick, 3) for tick in ticks])
    getattr(axes, f"set_{side}ticks")([], minor=True)


def _apart(ticks: Sequence[float], linear: float, least: float) -> list[float]:
    """Those of the ticks that are this far apart on an asinh axis: 0, then the largest ones before the smaller."""
    kept: list[float] = []
    for tick in sorted(ticks, key=lambda each: (each != 0, -abs(each))):
        if all(abs(math.asinh(tick / linear) - math.asinh(other / linear)) >= least for other in kept):
            kept.append(tick)
    return sorted(kept)


def label_line(axes: Axes, y: float, text: str, colour: str) -> None:
    """The name of a horizontal line, below it at the left."""
    where = ("axes fraction", "data")
    axes.annotate(text, (0.02, y), (0, -3), where, textcoords="offset points", color=colour, va="top")


def mark(axes: Axes, at: float, label: str, colour: str, height: float = 0.97) -> None:
    """A vertical line with its name beside it at this height, as a share of the axes, on the side that has room."""
    axes.axvline(at, 0, min(1.0, height + 0.03), color=colour, linewidth=1.6)
    right = axes.transData.transform((at, 1.0))[0] > 0.6 * axes.transAxes.transform((1.0, 0))[0]
    axes.annotate(
        label,
        (at, height),
        (-6 if right else 6, 0),
        ("data", "axes fraction"),
        textcoords="offset points",
        ha="right" if right else "left",
        va="top",
        color=colour,
    )


def legend(axes: Axes) -> None:
    """The legend, with names as they are: a dollar sign begins no formula."""
    for text in axes.legend(frameon=False).get_texts():
        text.set_parse_math(False)
