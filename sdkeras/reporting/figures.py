"""The figures of the page, as SVG text that takes its colours from the page.

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

from sdkeras.dimension.exponents import FULL, ExponentMap, Exponents, SingularValueMap, exponent_map
from sdkeras.records import FloatArray
from sdkeras.reporting.numbers import dimension, number
from sdkeras.reporting.schema import Analysis, LyapunovSummary

# Drawn in these colours, which the page replaces by its own: one figure for light and dark.
_INK, _SOFT, _LINE, _ACCENT, _WARN = "#010101", "#020202", "#030303", "#040404", "#050505"
_COLOURS = {_INK: "currentColor", _SOFT: "var(--soft)", _LINE: "var(--line)", _ACCENT: "var(--accent)"}
_COLOURS[_WARN] = "var(--warn)"
_SIZE = (5.6, 3.5)
_FONT = 12
_BINS = 90
# A threshold more than so many times the largest eigenvalue away is said in words; the axis would hold nothing else.
_FARTHEST = 1e4
# Of a curve over the eigenvalues.
_CURVE_POINTS = 400
# Exponents whose running means are drawn, before lines lie on lines.
_MOST_LINES = 6
# Points with error bars, before they are a line with a band.
_MOST_MARKERS = 60


@attrs.frozen
class Figure:
    """A figure of the page: its title, the SVG, and how to read it."""

    title: str
    svg: str
    caption: str


def figures(run: Analysis) -> tuple[Figure, ...]:
    """The figures that this run has the numbers for, in the page's order."""
    made = (spectral_density(run), exponents(run), block_spectrum(run), cumulative(run), convergence(run))
    return tuple(figure for figure in made if figure is not None)


def spectral_density(run: Analysis) -> Figure | None:
    """Number of eigenvalues of a minibatch's operator in bins, with its stability threshold.

    None for the map full, whose spectrum is of singular values: the exponents' figure shows their logarithms.
    """
    if run.sharpness_dimension is not None and run.sharpness_dimension.map == FULL:
        return None
    if run.spectrum is None or not _usable(run.spectrum.nodes, run.spectrum.weights):
        return None
    nodes, weights = run.spectrum.nodes, run.spectrum.weights
    edge = run.edge_of_stability
    matrix = _matrix(run.spectrum.operator)
    scale = max(float(np.max(np.abs(nodes))), 1e-90)
    linear = 1e-3 * scale
    threshold, beyond = None, ""
    if edge.operator == run.spectrum.operator and edge.threshold is not None and math.isfinite(edge.threshold):
        if abs(edge.threshold) <= _FARTHEST * scale:
            threshold = edge.threshold
            beyond = " A step overshoots along directions to the right of the threshold."
        else:
            beyond = f" The stability threshold, {number(edge.threshold, 3)}, is far to the right of them all."
    ends = [float(nodes.min()), float(nodes.max()), 0.0, *([] if threshold is None else [threshold])]
    low, high = np.arcsinh(min(ends) / linear), np.arcsinh(max(ends) / linear)
    room = 0.04 * max(high - low, 1.0)
    edges = np.sinh(np.linspace(low - room, high + room, _BINS + 1)) * linear
    mass, _ = np.histogram(nodes, bins=edges, weights=weights)
    floor = max(1e-3, 0.5 * float(np.min(mass[mass > 0], initial=1.0)))

    def draw(axes: Any) -> None:
        axes.stairs(np.maximum(mass, floor), edges, baseline=floor, fill=True, color=_ACCENT, alpha=0.75)
        axes.set_yscale("log")
        axes.set_ylim(floor, 3 * float(mass.max()))
        _asinh(axes, "x", linear, float(edges[0]), float(edges[-1]))
        axes.set_xlabel(f"eigenvalue of the {matrix} of a minibatch")
        axes.set_ylabel("eigenvalues per bin")
        if threshold is not None:
            _mark(axes, threshold, f"threshold {number(threshold, 3)}")

    return Figure(
        "Spectral density",
        _svg("density", f"Spectral density of the {matrix}", draw),
        "How many directions have which curvature: flat ones near 0, steep ones to the right, and those left of 0 "
        f"curve downwards.{beyond}",
    )


def exponents(run: Analysis) -> Figure | None:
    """RDS sharpness exponents lambda_k over k."""
    rds, estimate = run.rds_sharpness, run.sharpness_dimension
    if rds is None or estimate is None or len(rds.values) < 2 or not _usable(rds.values, rds.levels):
        return None
    size = estimate.state_size
    ranks = np.concatenate([np.arange(1.0, len(rds.leading) + 1), np.round(rds.levels * size)])
    values = np.concatenate([rds.leading, rds.values])
    ranks, first = np.unique(ranks, return_index=True)
    values = values[first]
    if not _usable(ranks, values) or len(ranks) < 2:
        return None
    threshold = estimate.threshold_exponent
    known = threshold is not None and math.isfinite(threshold) and threshold != 0
    linear = abs(threshold) if known and threshold is not None else 1e-2 * (float(np.max(np.abs(values))) or 1.0)

    def draw(axes: Any) -> None:
        axes.plot(_position(ranks, size), values, color=_ACCENT, linewidth=2.2)
        axes.axhline(0, color=_INK, linewidth=0.9)
        if known:
            axes.axhline(threshold, color=_SOFT, linewidth=1.2, linestyle="--")
            axes.annotate(
                f"t* = {number(threshold, 3)}",
                (0.02, threshold),
                xycoords=("axes fraction", "data"),
                xytext=(0, -3),
                textcoords="offset points",
                color=_SOFT,
                va="top",
                fontsize=_FONT,
            )
        room = 0.1 * (values.max() - values.min() + linear)
        _asinh(axes, "y", linear, float(values.min() - room), float(values.max() + room))
        _ranks(axes, size)
        axes.set_ylabel("exponent per step")
        if 0 < estimate.value < size:
            _mark(axes, float(_position(np.array([estimate.value]), size)[0]), f"SD {dimension(estimate.value)}")

    return Figure(
        "RDS sharpness exponents",
        _svg("exponents", "RDS sharpness exponents by rank", draw),
        "By what factor (its natural logarithm) a training step stretches (above 0) or contracts (below 0) distances "
        "between nearby weights, direction by direction, largest first. The horizontal axis is spread out at both "
        "ends.",
    )


def block_spectrum(run: Analysis) -> Figure | None:
    """ln sigma and ln |mu| of the 2x2 block of position and velocity (u, v) over the eigenvalue it belongs to."""
    made, spectrum, estimate = _exponent_map(run), run.spectrum, run.sharpness_dimension
    if not isinstance(made, ExponentMap) or made.branches == 1 or spectrum is None or estimate is None:
        return None
    if not _usable(spectrum.nodes, spectrum.weights):
        return None
    nodes = spectrum.nodes
    linear = 1e-3 * max(float(np.max(np.abs(nodes))), 1e-90)
    low, high = np.arcsinh(float(nodes.min()) / linear), np.arcsinh(float(nodes.max()) / linear)
    alpha = np.sinh(np.linspace(low, high, _CURVE_POINTS)) * linear
    z, growth, at_nodes = made(alpha), made.log_eigenvalues(alpha), made(nodes)
    smallest = math.log(made.momentum) * 3  # below it only the factor of a step that hits the minimum, ln 0 at most
    inside = at_nodes >= smallest
    edge = run.edge_of_stability
    threshold = edge.threshold if edge.operator == spectrum.operator and edge.threshold is not None else math.inf

    def draw(axes: Any) -> None:
        for part in (slice(0, _CURVE_POINTS), slice(_CURVE_POINTS, None)):
            axes.plot(alpha, z[part], color=_ACCENT, linewidth=2.2)
            axes.plot(alpha, growth[part], color=_SOFT, linewidth=1.4, linestyle="--")
        axes.plot(made.spread(nodes)[inside], at_nodes[inside], color=_ACCENT, linestyle="", marker=".", markersize=4)
        axes.axhline(0, color=_INK, linewidth=0.9)
        room = 0.05 * (high - low) or 0.5
        _asinh(axes, "x", linear, float(np.sinh(low - room) * linear), float(np.sinh(high + room) * linear))
        shown = np.concatenate([z, growth])
        shown = shown[shown >= smallest]
        top = 0.1 * (float(shown.max()) - float(shown.min())) or 0.1
        axes.set_ylim(float(shown.min()) - top, float(shown.max()) + top)
        axes.set_xlabel(f"eigenvalue of the {_matrix(spectrum.operator)}")
        axes.set_ylabel("exponent per step")
        _plain_ticks(axes)
        if nodes.min() < threshold < nodes.max():
            _mark(axes, threshold, f"threshold {number(threshold, 3)}")

    return Figure(
        "Position and velocity",
        _svg("blocks", "Exponents of the blocks of position and velocity over the eigenvalue", draw),
        "With momentum each eigenvalue has two exponents. Solid: the logarithms of the singular values of its block, "
        "from which the sharpness dimension is taken, with the eigenvalues found as dots. Dashed: the moduli of its "
        "own eigenvalues, what would be left if every step saw the same matrix; only where these are above 0 does a "
        "direction grow in the long run.",
    )


def cumulative(run: Analysis) -> Figure | None:
    """Cumulative sum of the pooled exponents: it crosses 0 at SD."""
    estimate, sums = run.sharpness_dimension, cumulative_exponents(run)
    if estimate is None or sums is None:
        return None
    size = estimate.state_size
    mass, total = sums
    inside = (mass >= 0.5) & (mass <= size - 0.5)  # where the axis begins and ends
    if np.count_nonzero(inside) < 2:
        return None
    mass, total = mass[inside], total[inside]
    linear = max(float(np.max(total)), 1e-3 * float(np.max(np.abs(total)))) or 1.0
    span = estimate.interval

    def draw(axes: Any) -> None:
        axes.plot(_position(mass, size), total, color=_ACCENT, linewidth=2.2)
        axes.axhline(0, color=_INK, linewidth=0.9)
        if span is not None and _usable(np.array(span), np.array(span)):
            low, high = _position(np.array(span), size)
            axes.axvspan(low, high, color=_WARN, alpha=0.2, linewidth=0)
        room = 0.15 * (total.max() - total.min())
        _asinh(axes, "y", linear, float(total.min() - room), float(total.max() + room + linear))
        _ranks(axes, size)
        axes.set_ylabel("sum of the exponents up to here")
        if 0 < estimate.value < size:
            at = float(_position(np.array([estimate.value]), size)[0])
            _mark(axes, at, f"j* = {dimension(estimate.j_star)}\nSD {dimension(estimate.value)}")

    return Figure(
        "Where the sum of the exponents turns negative",
        _svg("cumulative", "Cumulative sum of the exponents", draw),
        "The exponents added up, largest first. A ball of that many dimensions grows in volume while the sum is above "
        "0 and shrinks once it is below: the crossing is the sharpness dimension, j* the last direction before "
        f"it ({dimension(estimate.j_star)} here). The band is the 95 % interval.",
    )


def cumulative_exponents(run: Analysis) -> tuple[FloatArray, FloatArray] | None:
    """Mass and sum of the pooled exponents, largest first: (U_j, L_j), one entry for each exponent of each node.

    None where the record's map is unknown or its spectrum is empty.
    """
    made = _exponent_map(run)
    if made is None or run.spectrum is None or not _usable(run.spectrum.nodes, run.spectrum.weights):
        return None
    z, weights = made(run.spectrum.nodes), made.spread(run.spectrum.weights)
    order = np.argsort(-z, kind="stable")
    return np.cumsum(weights[order]), np.cumsum(weights[order] * z[order])


def convergence(run: Analysis) -> Figure | None:
    """The running estimate and its interval over the runs."""
    estimate = run.sharpness_dimension
    if estimate is None or len(estimate.history) < 2:
        return None
    value, half, runs = estimate.history, estimate.history_half_width, estimate.history_runs
    if not (len(value) == len(half) == len(runs)) or not _usable(value, runs):
        return None
    half = np.where(np.isfinite(half), half, 0.0)

    def draw(axes: Any) -> None:
        axes.fill_between(runs, value - half, value + half, color=_ACCENT, alpha=0.2, linewidth=0)
        axes.plot(runs, value, color=_ACCENT, linewidth=2.2, marker="o", markersize=4)
        axes.set_xlabel("runs (one minibatch and one probe each)")
        axes.set_ylabel("sharpness dimension")
        axes.yaxis.set_major_formatter(lambda tick, _: number(round(tick, 6), 6))
        axes.xaxis.set_major_formatter(lambda tick, _: number(round(tick, 6), 6))
        axes.locator_params(nbins=5)

    return Figure(
        "Convergence",
        _svg("convergence", "The estimate over the runs", draw),
        "The estimate after so many runs, with its interval. It should have settled; where the number of steps was "
        "raised the runs began again.",
    )


def trajectory_figures(found: LyapunovSummary) -> tuple[Figure, ...]:
    """The figures of the Lyapunov exponents along training that there are numbers for."""
    made = (lyapunov_exponents(found), lyapunov_convergence(found), window_dimensions(found))
    return tuple(figure for figure in made if figure is not None)


def lyapunov_exponents(found: LyapunovSummary) -> Figure | None:
    """The leading Lyapunov exponents with their standard errors."""
    values, errors = found.values, found.stderr
    if not _usable(values, errors):
        return None
    ranks = np.arange(1.0, len(values) + 1)
    resolved = ranks <= (len(values) if found.num_resolved is None else found.num_resolved)

    def draw(axes: Any) -> None:
        for part, colour in ((resolved, _ACCENT), (~resolved, _SOFT)):
            if len(values) > _MOST_MARKERS:
                axes.plot(ranks[part], values[part], color=colour, linewidth=2.2)
                low, high = values[part] - errors[part], values[part] + errors[part]
                axes.fill_between(ranks[part], low, high, color=colour, alpha=0.2, linewidth=0)
                continue
            axes.errorbar(
                ranks[part], values[part], errors[part], color=colour, fmt="o", markersize=5, elinewidth=1.6, capsize=3
            )
        axes.axhline(0, color=_INK, linewidth=0.9)
        axes.set_xlim(0.5, len(values) + 0.5)
        axes.set_xlabel("exponent, largest first")
        axes.set_ylabel("Lyapunov exponent per step")
        axes.locator_params(axis="x", integer=True, nbins=8)
        _plain_ticks(axes)

    rest = "" if np.all(resolved) else " Those in grey are upper ends: rounding hides how far down they are."
    return Figure(
        "Lyapunov exponents",
        _svg("lyapunov", "Lyapunov exponents by rank", draw),
        "By what factor (its natural logarithm) a step of training stretches or contracts nearby trajectories in the "
        f"long run, direction by direction, with standard errors. Above 0 they come apart.{rest}",
    )


def lyapunov_convergence(found: LyapunovSummary) -> Figure | None:
    """Running means of the leading exponents over the steps."""
    means = found.history[:_MOST_LINES]
    if len(means[0]) < 2 or not _usable(*means):
        return None
    steps = found.block_size * np.arange(1.0, len(means[0]) + 1)
    # The first blocks are averages over a handful of steps and would set the scale.
    settled = np.stack(means)[:, len(steps) // 8 :]
    room = 0.08 * float(np.ptp(settled)) or 1e-3 * float(np.max(np.abs(settled))) or 1.0

    def draw(axes: Any) -> None:
        for rank, line in enumerate(means):
            axes.plot(steps, line, color=_ACCENT, alpha=1.0 - 0.12 * rank, linewidth=2.2 if rank == 0 else 1.4)
        axes.axhline(0, color=_INK, linewidth=0.9)
        axes.set_ylim(float(settled.min()) - room, float(settled.max()) + room)
        axes.set_xlabel("steps averaged over")
        axes.set_ylabel("mean so far, per step")
        axes.locator_params(axis="x", nbins=5)
        axes.xaxis.set_major_formatter(lambda tick, _: number(round(tick, 6), 6))
        _plain_ticks(axes)

    return Figure(
        "Convergence of the exponents",
        _svg("lyapunov-convergence", "Running means of the leading exponents over the steps", draw),
        f"The {'leading exponent' if len(means) == 1 else f'{len(means)} leading exponents'} as the mean over so many "
        "steps, the thick line the first. They should have settled; while they drift, training has not come to its "
        "attractor, and a longer transient is due.",
    )


def window_dimensions(found: LyapunovSummary) -> Figure | None:
    """SD^(m) against m, with D_s over the same steps beside them."""
    known = [(window.num_window_steps, window.dimension) for window in found.windows if window.dimension is not None]
    answer, size = found.dimension, found.dimension.size
    lengths, values = np.array([m for m, _ in known], np.float64), np.array([value for _, value in known])
    ends = np.array([*values, *(answer.interval or ())])
    if not known or not _usable(ends):
        return None
    room = 0.1 * float(np.ptp(ends)) or 0.05 * float(np.max(ends)) or 1.0

    def draw(axes: Any) -> None:
        axes.plot(lengths, values, color=_ACCENT, linewidth=2.2, marker="o", markersize=5)
        if answer.interval is not None:
            axes.axhspan(*answer.interval, color=_WARN, alpha=0.2, linewidth=0)
            axes.annotate(
                "D_s",
                (0.02, answer.interval[1]),
                xycoords=("axes fraction", "data"),
                xytext=(0, -4),
                textcoords="offset points",
                color=_WARN,
                va="top",
                fontsize=_FONT,
            )
        if answer.value is not None:
            axes.axhline(answer.value, color=_WARN, linewidth=1.6)
        axes.set_xscale("log", base=2)
        axes.set_xlim(0.8 * lengths[0], 1.25 * lengths[-1])
        shown = lengths[:: 1 + (len(lengths) - 1) // 8]
        axes.set_xticks(shown, [number(m) for m in shown])
        axes.set_xticks([], minor=True)
        axes.set_ylim(float(ends.min()) - room, float(ends.max()) + room)
        axes.set_xlabel("training steps taken as one, m")
        axes.set_ylabel(f"dimension, of {size:,}")
        _plain_ticks(axes)

    unknown = [f"{window.num_window_steps:,}" for window in found.windows if window.dimension is None]
    missing = f" Undetermined, and not drawn: m = {', '.join(unknown)}." if unknown else ""
    band = {
        "determined": "The line is D_s, the band its 95 % interval.",
        "bracketed": "D_s lies in the band.",
        "undetermined": "D_s is undetermined here.",
    }[answer.status]
    return Figure(
        "SD of several steps taken as one",
        _svg("windows", "Sharpness dimension of m steps taken as one, against m", draw),
        "What one step stretches the next may shrink again. Over the same training steps the dimension of m steps "
        f"taken as one is at most that of any length that divides m, and at least D_s. {band}{missing}",
    )


def _plain_ticks(axes: Any) -> None:
    """Ticks of the vertical axis as the reports write numbers, few of them."""
    axes.locator_params(axis="y", nbins=6)
    axes.yaxis.set_major_formatter(lambda tick, _: number(float(f"{tick:.6g}"), 3))


def _exponent_map(run: Analysis) -> Exponents | None:
    """The map of the record, or None where its exponents are no function of the spectrum alone."""
    optimizer, estimate = run.optimizer, run.sharpness_dimension
    rate, decay = optimizer.learning_rate, optimizer.weight_decay or 0.0
    if run.spectrum is not None and run.spectrum.operator.endswith(" + W"):
        decay = 0.0  # it is in the eigenvalues
    if estimate is not None and estimate.map == FULL:
        return SingularValueMap(estimate.coordinates)
    if estimate is None or not (math.isfinite(rate) and math.isfinite(decay)):
        return None
    try:
        return exponent_map(estimate.map, rate, momentum=optimizer.momentum or 0.0, weight_decay=decay)
    except ValueError:  # a map of a later version, or settings that no step has
        return None


def _matrix(operator: str) -> str:
    """An operator's name in words."""
    words = "preconditioned Hessian" if operator.startswith("P") else "Hessian"
    return words + (" plus weight decay" if operator.endswith(" + W") else "")


def _usable(*arrays: FloatArray) -> bool:
    lengths = {len(array) for array in arrays}
    # Beyond 1e100 the axes themselves would overflow.
    return lengths != {0} and len(lengths) == 1 and all(bool(np.all(np.abs(array) < 1e100)) for array in arrays)


def _position(ranks: FloatArray, size: int) -> FloatArray:
    """Ranks on an axis that is logarithmic from both ends: ln(k / (d - k)), half a rank inside."""
    inside = np.clip(ranks, 0.5, max(size - 0.5, 0.5))
    located: FloatArray = np.log(inside / np.maximum(size - inside, 0.5))
    return located


def _ranks(axes: Any, size: int) -> None:
    """Ticks 1, 10, 100 ... d/2 ... d - 100, d - 10, d."""
    powers = [10**e for e in range(12) if 10**e <= size / 8]
    powers = powers[:: 1 + len(powers) // 4]
    ticks = [(float(p), f"{p:,}") for p in powers] + [(size / 2, "d/2")]
    ticks += [(float(size - p), f"d-{p:,}") for p in reversed(powers[1:])] + [(float(size), "d")]
    axes.set_xticks(_position(np.array([at for at, _ in ticks]), size), [label for _, label in ticks])
    axes.set_xlim(*_position(np.array([0.5, size - 0.5]), size) + np.array([-0.4, 0.4]))
    axes.set_xlabel(f"directions, most stretching first (d = {size:,})")


def _asinh(axes: Any, side: str, linear: float, low: float, high: float) -> None:
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


def _mark(axes: Any, at: float, label: str) -> None:
    """A vertical line with its name beside it, on the side that has room."""
    axes.axvline(at, color=_WARN, linewidth=1.6)
    right = axes.transData.transform((at, 1.0))[0] > 0.6 * axes.transAxes.transform((1.0, 0))[0]
    axes.annotate(
        label,
        (at, 0.97),
        xycoords=("data", "axes fraction"),
        xytext=(-6 if right else 6, 0),
        textcoords="offset points",
        ha="right" if right else "left",
        va="top",
        color=_WARN,
        fontsize=_FONT,
    )


def _svg(name: str, label: str, draw: Callable[[Any], None]) -> str:
    """The drawing as an SVG element that scales with the page; ids begin with the figure's name."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": _FONT,
        "axes.edgecolor": _LINE,
        "axes.labelcolor": _SOFT,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": _LINE,
        "ytick.color": _LINE,
        "xtick.labelcolor": _SOFT,
        "ytick.labelcolor": _SOFT,
        "text.color": _INK,
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
