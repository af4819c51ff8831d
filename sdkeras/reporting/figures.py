"""The figures of the reports, as functions of records: one checkpoint, snapshots, a trajectory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sdkeras.dimension.exponents import FULL
from sdkeras.dimension.lyapunov import FEWEST_BLOCKS
from sdkeras.reporting.drawing import (
    Colours,
    asinh_axis,
    label_line,
    legend,
    mark,
    series,
    step_axis,
    tick_format,
    usable,
    value_axis,
    zero_line,
)
from sdkeras.reporting.numbers import dimension, number
from sdkeras.reporting.report import Figure, Series, present
from sdkeras.results.answers import Analysis, SpectrumSummary
from sdkeras.results.arrays import FloatArray
from sdkeras.results.dimension import RdsSharpness, SharpnessDimension, Supremum
from sdkeras.results.lyapunov import LyapunovSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BINS = 90
# A threshold beyond this multiple of the largest eigenvalue is given in words; the axis would hold nothing else.
_FARTHEST = 1e4
# Lyapunov exponents whose running means are drawn, before lines lie on lines.
_MOST_LINES = 6
# Points with error bars, before they are a line with a band.
_MOST_MARKERS = 60


# One checkpoint, and snapshots


def analysis_figures(run: Analysis) -> tuple[Figure, ...]:
    """The figures that there are numbers for, in the page's order."""
    return present(
        spectral_density(run), rds_exponents(run), block_spectrum(run), cumulative_sum(run), convergence(run)
    )


def spectral_density(run: Analysis) -> Figure | None:
    """Number of eigenvalues of a minibatch's operator in bins, with its stability threshold."""
    spectrum, edge, estimate = _drawable(run.spectrum), run.edge_of_stability, run.sharpness_dimension
    if spectrum is None or (estimate is not None and estimate.map == FULL):  # whose spectrum is of singular values
        return None
    nodes, operator = spectrum.nodes, spectrum.operator
    scale = max(float(np.max(np.abs(nodes))), 1e-90)
    linear = 1e-3 * scale
    threshold = edge.threshold if edge.operator == operator and math.isfinite(edge.threshold or 0.0) else None
    beyond = "" if threshold is None else " A step overshoots along directions to the right of the threshold."
    if threshold is not None and abs(threshold) > _FARTHEST * scale:
        beyond = f" The stability threshold, {number(threshold, 3)}, is far to the right of them all."
        threshold = None
    whole = edge.sharpness if edge.operator == operator else None
    if whole is not None and not usable(np.array([whole])):
        whole = None
    marks = [at for at in (threshold, whole) if at is not None]
    edges = _bins(np.array([*nodes, 0.0, *marks]), linear)
    mass, floor = _masses(edges, spectrum)
    bars = _bars("", edges, mass[0], floor, linear)

    def draw(axes: Axes, colours: Colours) -> None:
        axes.stairs(np.maximum(mass[0], floor), edges, baseline=floor, fill=True, color=colours.accent, alpha=0.75)
        _density_axes(axes, _matrix(operator), edges, linear, (floor, 3 * float(mass.max())))
        if threshold is not None:
            mark(axes, threshold, f"threshold {number(threshold, 3)}", colours.warn)
        if whole is not None:
            mark(axes, whole, f"all data {number(whole, 3)}", colours.ink, 0.87)

    of_data = "" if whole is None else "; the line 'all data' is the largest eigenvalue of the whole data set"
    return Figure(
        "density",
        "Spectral density",
        "How many directions have which curvature: flat ones near 0, steep ones to the right, and left of 0 those in "
        f"which the loss curves downwards. The bars are of single minibatches{of_data}.{beyond}",
        draw,
        series=(bars,),
    )


def _bins(values: FloatArray, linear: float) -> FloatArray:
    """Ends of bins that hold the values and are equally wide on an asinh axis."""
    low, high = np.arcsinh(float(values.min()) / linear), np.arcsinh(float(values.max()) / linear)
    room = 0.04 * max(high - low, 1.0)
    return np.sinh(np.linspace(low - room, high + room, _BINS + 1)) * linear


def _masses(edges: FloatArray, *spectra: SpectrumSummary) -> tuple[FloatArray, float]:
    """Eigenvalues of each spectrum in each bin, a row each, and a value below all that are not 0."""
    masses = np.stack([np.histogram(each.nodes, bins=edges, weights=each.weights)[0] for each in spectra])
    return masses, max(1e-3, 0.5 * float(np.min(masses[masses > 0], initial=1.0)))


def _bars(name: str, edges: FloatArray, mass: FloatArray, floor: float, linear: float) -> Series:
    middle = np.sinh(0.5 * (np.arcsinh(edges[:-1] / linear) + np.arcsinh(edges[1:] / linear))) * linear
    at = middle, np.maximum(mass, floor)
    return Series(name, "eigenvalue", "eigenvalues", edges[:-1], mass, x_end=edges[1:], at=at)


def _density_axes(axes: Axes, matrix: str, edges: FloatArray, linear: float, heights: tuple[float, float]) -> None:
    axes.set_yscale("log")
    axes.set_ylim(*heights)
    tick_format(axes.yaxis)
    asinh_axis(axes, "x", linear, float(edges[0]), float(edges[-1]))
    axes.set_xlabel(f"eigenvalue of the {matrix} of a minibatch")
    axes.set_ylabel("eigenvalues per bin")


def overlaid_spectra(
    spectra: Sequence[SpectrumSummary | None], names: Sequence[str], shades: Sequence[str] | None = None
) -> Figure | None:
    """The spectral densities of several runs in the same bins, an outline each, where they are of the same operator.

    Args:
        spectra: One of each run.
        names: For the legend.
        shades: Colours of the runs; by default those of the page, of which there are four.
    """
    if len({each.operator for each in spectra if each is not None}) > 1:
        return None
    caption = "How many directions have which curvature, run by run; of single minibatches, in the same bins."
    return _outlines(spectra, names, shades, ("spectra", "Spectral densities", caption))


def operator_spectra(run: Analysis) -> Figure | None:
    """The spectral densities of the Hessian and of what was measured beside it, an outline each."""
    beside = [each for each in run.operators if each.spectrum is not None]
    if not beside:
        return None
    names = ("Hessian", *(each.name.removesuffix(" matrix") for each in beside))
    caption = (
        "How many directions have which curvature with each of the matrices; of the same minibatches, in the same "
        "bins. Left of 0 is what only the curvature of the outputs makes, if the loss is convex in them."
    )
    about = ("operators", "Spectral densities of the matrices", caption)
    return _outlines((run.spectrum, *(each.spectrum for each in beside)), names, None, about)


def _outlines(
    spectra: Sequence[SpectrumSummary | None],
    names: Sequence[str],
    shades: Sequence[str] | None,
    about: tuple[str, str, str],
) -> Figure | None:
    """Spectral densities in the same bins; `about` are the figure's name, title and caption."""
    known = [spectrum for each in spectra if (spectrum := _drawable(each)) is not None]
    if not known or len(known) < len(spectra):
        return None
    nodes = np.concatenate([*(each.nodes for each in known), [0.0]])
    linear = 1e-3 * max(float(np.max(np.abs(nodes))), 1e-90)
    edges = _bins(nodes, linear)
    masses, floor = _masses(edges, *known)
    operators = {each.operator for each in known}
    matrix = _matrix(operators.pop()) if len(operators) == 1 else "matrix"

    def draw(axes: Axes, colours: Colours) -> None:
        for mass, name, colour in zip(masses, names, shades or _four(colours), strict=False):
            axes.stairs(np.maximum(mass, floor), edges, baseline=floor, color=colour, linewidth=1.8, label=_label(name))
        _density_axes(axes, matrix, edges, linear, (floor, 3 * float(masses.max())))
        legend(axes)

    return Figure(
        *about,
        draw,
        series=tuple(_bars(name, edges, mass, floor, linear) for name, mass in zip(names, masses, strict=True)),
    )


def overlaid_exponents(
    runs: Sequence[RdsSharpness | None], size: int, names: Sequence[str], shades: Sequence[str] | None = None
) -> Figure | None:
    """RDS sharpness exponents of several runs whose states have this size, a line each; see `overlaid_spectra`."""
    lines = [_ranked(each, size) for each in runs if each is not None]
    if not lines or len(lines) < len(runs) or size < 2:
        return None
    if not all(usable(*line) and len(line[0]) > 1 for line in lines):
        return None
    both = np.concatenate([values for _, values in lines])
    linear = 1e-2 * (float(np.max(np.abs(both))) or 1.0)

    def draw(axes: Axes, colours: Colours) -> None:
        for (ranks, values), name, colour in zip(lines, names, shades or _four(colours), strict=False):
            axes.plot(_position(ranks, size), values, color=colour, linewidth=1.8, label=_label(name))
        zero_line(axes, colours)
        room = 0.1 * (float(np.ptp(both)) + linear)
        asinh_axis(axes, "y", linear, float(both.min()) - room, float(both.max()) + room)
        _rank_axis(axes, size)
        axes.set_ylabel("exponent per step")
        legend(axes)

    return Figure(
        "exponents",
        "RDS sharpness exponents",
        "By what factor (its natural logarithm) a step stretches (above 0) or contracts (below 0) distances, direction "
        "by direction, run by run.",
        draw,
        series=tuple(
            Series(name, "direction", "exponent per step", *line, at=(_position(line[0], size), line[1]))
            for name, line in zip(names, lines, strict=True)
        ),
    )


def _label(name: str) -> str:
    """A name for the legend, which leaves out those that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


def _four(colours: Colours) -> tuple[str, ...]:
    return colours.accent, colours.warn, colours.ink, colours.soft


def overlaid_intervals(name: str, title: str, label: str, a: FloatArray, b: FloatArray) -> Figure | None:
    """Numbers of two runs side by side, each with its interval: rows of value, lower and upper end, shape [n, 3]."""
    if len(a) < 1 or a.shape != b.shape or not usable(a.ravel(), b.ravel()):
        return None
    ranks = np.arange(1.0, len(a) + 1)
    sides = (("A", ranks - 0.1, a), ("B", ranks + 0.1, b))

    def draw(axes: Axes, colours: Colours) -> None:
        for (_, place, rows), colour, marker in zip(sides, (colours.accent, colours.warn), "so", strict=True):
            halves = np.abs(rows[:, 1:] - rows[:, :1]).T
            axes.errorbar(place, rows[:, 0], halves, color=colour, fmt=marker, markersize=5, elinewidth=1.6, capsize=3)
        zero_line(axes, colours)
        step_axis(axes, "exponent, largest first")
        axes.set_xlim(0.5, len(a) + 0.5)
        value_axis(axes, label)

    return Figure(
        name,
        title,
        "Squares: A. Dots: B. Bars are 95 % intervals.",
        draw,
        series=tuple(
            Series(side, "exponent", label, ranks, rows[:, 0], rows[:, 1], rows[:, 2], at=(place, rows[:, 0]))
            for side, place, rows in sides
        ),
    )


def _ranked(rds: RdsSharpness, size: int) -> tuple[FloatArray, FloatArray]:
    """The directions k whose exponents are known, ascending, and these."""
    ranks = np.concatenate([np.arange(1.0, len(rds.leading) + 1), np.round(rds.levels * size)])
    ranks, first = np.unique(ranks, return_index=True)
    return ranks, np.concatenate([rds.leading, rds.values])[first]


def rds_exponents(run: Analysis) -> Figure | None:
    """RDS sharpness exponents lambda_k over k."""
    rds, estimate = run.rds_sharpness, run.sharpness_dimension
    if rds is None or estimate is None or len(rds.values) < 2 or not usable(rds.values, rds.levels):
        return None
    size, threshold = estimate.state_size, estimate.threshold_exponent
    ranks, values = _ranked(rds, size)
    if not usable(ranks, values) or len(ranks) < 2:
        return None
    if not threshold or not math.isfinite(threshold):
        threshold = None
    linear = 1e-2 * (float(np.max(np.abs(values))) or 1.0) if threshold is None else abs(threshold)

    def draw(axes: Axes, colours: Colours) -> None:
        axes.plot(_position(ranks, size), values, color=colours.accent, linewidth=2.2)
        zero_line(axes, colours)
        if threshold is not None:
            axes.axhline(threshold, color=colours.soft, linewidth=1.2, linestyle="--")
            label_line(axes, threshold, f"t* = {number(threshold, 3)}", colours.soft)
        room = 0.1 * (values.max() - values.min() + linear)
        asinh_axis(axes, "y", linear, float(values.min() - room), float(values.max() + room))
        _rank_axis(axes, size)
        axes.set_ylabel("exponent per step")
        _mark_dimension(axes, estimate, f"SD {dimension(estimate.value)}", colours)

    return Figure(
        "exponents",
        "RDS sharpness exponents",
        "By what factor (its natural logarithm) a training step stretches (above 0) or contracts (below 0) distances "
        "between nearby weights, direction by direction, largest first. The horizontal axis is logarithmic from both "
        "ends; t* is the exponent at SD.",
        draw,
        series=(Series("", "direction", "exponent per step", ranks, values, at=(_position(ranks, size), values)),),
    )


def block_spectrum(run: Analysis) -> Figure | None:
    """ln sigma and ln |mu| of the 2x2 block of position and velocity (u, v) over the eigenvalue it belongs to."""
    spectrum, edge, momentum = _drawable(run.spectrum), run.edge_of_stability, run.optimizer.momentum
    if spectrum is None or run.sharpness_dimension is None or not momentum:
        return None
    nodes, exponents, moduli = spectrum.nodes, spectrum.exponents, spectrum.log_moduli
    if exponents is None or moduli is None or not usable(exponents, moduli, np.tile(nodes, 2)):
        return None
    linear = 1e-3 * max(float(np.max(np.abs(nodes))), 1e-90)
    low, high = np.arcsinh(float(nodes.min()) / linear), np.arcsinh(float(nodes.max()) / linear)
    branches = slice(0, len(nodes)), slice(len(nodes), None)
    smallest = 3 * math.log(momentum)  # only the factor of a step that hits the minimum is below it
    threshold = edge.threshold if edge.operator == spectrum.operator and edge.threshold is not None else math.inf

    def draw(axes: Axes, colours: Colours) -> None:
        for branch in branches:
            axes.plot(nodes, exponents[branch], color=colours.accent, linewidth=1.4, marker=".", markersize=4)
            axes.plot(nodes, moduli[branch], color=colours.soft, linewidth=1.4, linestyle="--")
        zero_line(axes, colours)
        room = 0.05 * (high - low) or 0.5
        asinh_axis(axes, "x", linear, float(np.sinh(low - room) * linear), float(np.sinh(high + room) * linear))
        both = np.concatenate([exponents, moduli])
        shown = both[both >= smallest] if np.any(both >= smallest) else both
        margin = 0.1 * (float(shown.max()) - float(shown.min())) or 0.1
        axes.set_ylim(float(shown.min()) - margin, float(shown.max()) + margin)
        axes.set_xlabel(f"eigenvalue of the {_matrix(spectrum.operator)}")
        value_axis(axes, "exponent per step")
        if nodes.min() < threshold < nodes.max():
            mark(axes, threshold, f"threshold {number(threshold, 3)}", colours.warn)

    return Figure(
        "blocks",
        "Position and velocity",
        "With momentum each eigenvalue has two exponents. Solid: the logarithms of the singular values of its block, "
        "which give the sharpness dimension, with a dot at each eigenvalue. Dashed: the moduli of its own "
        "eigenvalues, which would remain if every step saw the same matrix; only where these are above 0 does a "
        "direction grow in the long run.",
        draw,
        series=tuple(
            Series(name, "eigenvalue", "exponent per step", nodes, both[branch])
            for name, both in (("ln sigma", exponents), ("ln |mu|", moduli))
            for branch in branches
        ),
    )


def cumulative_sum(run: Analysis) -> Figure | None:
    """Cumulative sum of the pooled exponents: it crosses 0 at SD."""
    spectrum, estimate = _drawable(run.spectrum), run.sharpness_dimension
    sums = None if spectrum is None else cumulative_exponents(spectrum)
    if estimate is None or sums is None:
        return None
    (mass, total), size, span = sums, estimate.state_size, estimate.interval
    inside = (mass >= 0.5) & (mass <= size - 0.5)  # where the axis begins and ends
    if np.count_nonzero(inside) < 2:
        return None
    mass, total = mass[inside], total[inside]
    linear = max(float(np.max(total)), 1e-3 * float(np.max(np.abs(total)))) or 1.0

    def draw(axes: Axes, colours: Colours) -> None:
        axes.plot(_position(mass, size), total, color=colours.accent, linewidth=2.2)
        zero_line(axes, colours)
        if span is not None and usable(np.array(span)):
            axes.axvspan(*_position(np.array(span), size), color=colours.warn, alpha=0.2, linewidth=0)
        room = 0.15 * (total.max() - total.min())
        asinh_axis(axes, "y", linear, float(total.min() - room), float(total.max() + room + linear))
        _rank_axis(axes, size)
        axes.set_ylabel("sum of the exponents up to here")
        _mark_dimension(axes, estimate, f"j* = {dimension(estimate.j_star)}\nSD {dimension(estimate.value)}", colours)

    return Figure(
        "cumulative",
        "Where the sum of the exponents turns negative",
        "The exponents added up, largest first. A ball of that many dimensions grows in volume while the sum is above "
        "0 and shrinks once it is below: the crossing is the sharpness dimension, j* the last direction before "
        f"it ({dimension(estimate.j_star)} here). The band is the 95 % interval.",
        draw,
        series=(Series("", "directions", "sum of exponents", mass, total, at=(_position(mass, size), total)),),
    )


def cumulative_exponents(spectrum: SpectrumSummary) -> tuple[FloatArray, FloatArray] | None:
    """Mass and sum of the pooled exponents, largest first: (U_j, L_j), one entry for each exponent of each node.

    None for a file without exponents.
    """
    exponents = spectrum.exponents
    if exponents is None or not usable(exponents) or len(exponents) % len(spectrum.weights):
        return None
    weights = np.resize(spectrum.weights, len(exponents))
    order = np.argsort(-exponents, kind="stable")
    return np.cumsum(weights[order]), np.cumsum((weights * exponents)[order])


def convergence(run: Analysis) -> Figure | None:
    """The running estimate and its interval over the runs."""
    estimate = run.sharpness_dimension
    if estimate is None:
        return None
    value, half, runs = estimate.history, estimate.history_half_width, estimate.history_runs
    if len(value) < 2 or len(half) != len(value) or not usable(value, runs):
        return None
    ends = np.where(np.isfinite(half), value - half, np.nan), np.where(np.isfinite(half), value + half, np.nan)
    half = np.where(np.isfinite(half), half, 0.0)

    def draw(axes: Axes, colours: Colours) -> None:
        axes.fill_between(runs, value - half, value + half, color=colours.accent, alpha=0.2, linewidth=0)
        series(axes, runs, value, colours.accent)
        value_axis(axes, "sharpness dimension", 6, ticks=5)
        step_axis(axes, "runs (one minibatch and one probe each)")

    return Figure(
        "convergence",
        "Convergence",
        "The estimate as runs accumulate, with its 95 % interval. By the end it should have settled. Where a run was "
        "given more steps, counting began again.",
        draw,
        series=(Series("", "runs", "sharpness dimension", runs, value, *ends),),
    )


def supremum_figure(supremum: Supremum) -> Figure | None:
    """SD of each snapshot alone as points, the supremum over all of them as a line."""
    steps, values = np.array(supremum.steps, dtype=np.float64), supremum.per_snapshot_values
    span = supremum.interval or (supremum.value, supremum.value)
    if supremum.num_snapshots < 2 or not (usable(steps, values) and usable(np.array(span))):
        return None

    def draw(axes: Axes, colours: Colours) -> None:
        axes.axhspan(*span, color=colours.warn, alpha=0.2, linewidth=0)
        axes.axhline(supremum.value, color=colours.warn, linewidth=1.6)
        axes.plot(steps, values, color=colours.accent, linestyle="none", marker="o", markersize=6)
        value_axis(axes, "sharpness dimension", 6, ticks=5)
        step_axis(axes, "training steps from the checkpoint")

    return Figure(
        "supremum",
        "Snapshots and their supremum",
        f"Points: each snapshot alone, on the same minibatches. Line: the supremum ({dimension(supremum.value)}) with "
        "its 95 % interval. It can lie above all points, since different directions stretch most at different "
        "snapshots.",
        draw,
        series=(Series("each snapshot", "steps", "sharpness dimension", steps, values),),
    )


def layer_sharpness(run: Analysis) -> Figure | None:
    """The largest eigenvalue of each layer's diagonal block in the Hessian, a bar each, in the order of the model."""
    known = [(each.name, each.largest) for each in run.layers if each.largest is not None]
    values, errors = np.array([each.value for _, each in known]), np.array([each.residual or 0.0 for _, each in known])
    if not usable(values, errors):
        return None

    def draw(axes: Axes, colours: Colours) -> None:
        places = np.arange(len(known))
        axes.barh(places, values, xerr=errors, color=colours.accent, alpha=0.75, ecolor=colours.ink)
        axes.axvline(0, color=colours.ink, linewidth=0.9)
        axes.set_yticks(places, [name for name, _ in known], parse_math=False)
        axes.invert_yaxis()
        axes.set_xlabel("largest eigenvalue of the layer's block")
        axes.locator_params(axis="x", nbins=5)
        tick_format(axes.xaxis)

    return Figure(
        "layers",
        "Where the sharpness sits",
        "The largest eigenvalue of the diagonal block of each layer's parameters in the Hessian, as if the other "
        "layers stood still.",
        draw,
        (5.6, 0.8 + 0.3 * len(known)),
    )


def _drawable(spectrum: SpectrumSummary | None) -> SpectrumSummary | None:
    return spectrum if spectrum is not None and usable(spectrum.nodes, spectrum.weights) else None


def _mark_dimension(axes: Axes, estimate: SharpnessDimension, label: str, colours: Colours) -> None:
    if 0 < estimate.value < estimate.state_size:
        at = float(_position(np.array([estimate.value]), estimate.state_size)[0])
        mark(axes, at, label, colours.warn)


def _matrix(operator: str) -> str:
    """An operator's name in words."""
    words = "preconditioned Hessian" if operator.startswith("P") else "Hessian"
    return words + (" plus weight decay" if operator.endswith(" + W") else "")


def _position(ranks: FloatArray, size: int) -> FloatArray:
    """Ranks on an axis that is logarithmic from both ends: ln(k / (d - k)), half a rank inside."""
    inside = np.clip(ranks, 0.5, max(size - 0.5, 0.5))
    located: FloatArray = np.log(inside / np.maximum(size - inside, 0.5))
    return located


def _rank_axis(axes: Axes, size: int) -> None:
    """Ticks 1, 10, 100 ... d/2 ... d - 100, d - 10, d."""
    powers = [10**e for e in range(12) if 10**e <= size / 8]
    powers = powers[:: 1 + len(powers) // 4]
    ticks = [(float(p), f"{p:,}") for p in powers] + [(size / 2, "d/2")]
    ticks += [(float(size - p), f"d-{p:,}") for p in reversed(powers[1:])] + [(float(size), "d")]
    axes.set_xticks(_position(np.array([at for at, _ in ticks]), size), [label for _, label in ticks])
    axes.set_xlim(*_position(np.array([0.5, size - 0.5]), size) + np.array([-0.4, 0.4]))
    axes.set_xlabel(f"directions, most stretching first (d = {size:,})")


# A trajectory


def lyapunov_figures(summary: LyapunovSummary) -> tuple[Figure, ...]:
    """The figures that there are numbers for."""
    return present(lyapunov_exponents(summary), lyapunov_convergence(summary), window_dimensions(summary))


def lyapunov_exponents(summary: LyapunovSummary) -> Figure | None:
    """The leading Lyapunov exponents with their standard errors."""
    values, errors = summary.values, summary.stderr
    if not usable(values, errors):
        return None
    if summary.forks is None and len(summary.history[0]) < FEWEST_BLOCKS:
        errors = np.zeros_like(errors)
    ranks = np.arange(1.0, len(values) + 1)
    resolved = ranks <= (len(values) if summary.num_resolved is None else summary.num_resolved)

    def draw(axes: Axes, colours: Colours) -> None:
        for shown, colour in ((resolved, colours.accent), (~resolved, colours.soft)):
            x, y, half = ranks[shown], values[shown], errors[shown]
            if len(values) > _MOST_MARKERS:
                axes.plot(x, y, color=colour, linewidth=2.2)
                axes.fill_between(x, y - half, y + half, color=colour, alpha=0.2, linewidth=0)
            else:
                axes.errorbar(x, y, half, color=colour, fmt="o", markersize=5, elinewidth=1.6, capsize=3)
        zero_line(axes, colours)
        step_axis(axes, "exponent, largest first")
        axes.set_xlim(0.5, len(values) + 0.5)
        value_axis(axes, "Lyapunov exponent per step")

    hidden = "" if np.all(resolved) else " Those in grey are upper bounds: rounding hides how far down they are."
    return Figure(
        "lyapunov",
        "Lyapunov exponents",
        "By what factor (its natural logarithm) a step of training stretches or contracts nearby trajectories in the "
        f"long run, direction by direction, with standard errors. Above 0 they come apart.{hidden}",
        draw,
        series=(Series("", "exponent", "per step", ranks, values, values - errors, values + errors),),
    )


def lyapunov_convergence(summary: LyapunovSummary) -> Figure | None:
    """Running means of the leading exponents over the steps."""
    means = summary.history[:_MOST_LINES]
    if len(means[0]) < 2 or not usable(*means):
        return None
    steps = summary.block_size * np.arange(1.0, len(means[0]) + 1)
    # The first blocks are averages over a handful of steps and would set the scale.
    settled = np.stack(means)[:, len(steps) // 8 :]
    room = 0.08 * float(np.ptp(settled)) or 1e-3 * float(np.max(np.abs(settled))) or 1.0

    def draw(axes: Axes, colours: Colours) -> None:
        for rank, line in enumerate(means):
            width = 2.2 if rank == 0 else 1.4
            axes.plot(steps, line, color=colours.accent, alpha=1.0 - 0.07 * rank, linewidth=width)
        zero_line(axes, colours)
        step_axis(axes, "steps averaged over")
        axes.set_ylim(float(settled.min()) - room, float(settled.max()) + room)
        value_axis(axes, "mean so far, per step")

    leading = "leading exponent" if len(means) == 1 else f"{len(means)} leading exponents"
    return Figure(
        "lyapunov-convergence",
        "Convergence of the exponents",
        f"The {leading} averaged over a growing number of steps; the thick line is the first. They should have "
        "settled; while they drift, training has not reached its attractor, and needs a longer burn-in.",
        draw,
        series=tuple(
            Series(f"ell_{k}", "steps", "mean so far, per step", steps, line) for k, line in enumerate(means, 1)
        ),
    )


def window_dimensions(summary: LyapunovSummary) -> Figure | None:
    """SD^(m) against m, with D_s over the same steps beside them."""
    known = [(window.num_window_steps, window.dimension) for window in summary.windows if window.dimension is not None]
    answer = summary.dimension
    lengths, values = np.array([m for m, _ in known], np.float64), np.array([value for _, value in known])
    ends = np.array([*values, *(answer.interval or ())])
    if not known or not usable(ends):
        return None
    room = 0.1 * float(np.ptp(ends)) or 0.05 * float(np.max(ends)) or 1.0

    def draw(axes: Axes, colours: Colours) -> None:
        series(axes, lengths, values, colours.accent)
        if answer.interval is not None:
            axes.axhspan(*answer.interval, color=colours.warn, alpha=0.2, linewidth=0)
            label_line(axes, answer.interval[1], "D_s", colours.warn)
        if answer.value is not None:
            axes.axhline(answer.value, color=colours.warn, linewidth=1.6)
        axes.set_xscale("log", base=2)
        axes.set_xlim(0.8 * lengths[0], 1.25 * lengths[-1])
        shown = lengths[:: 1 + (len(lengths) - 1) // 8]
        axes.set_xticks(shown, [number(m) for m in shown])
        axes.set_xticks([], minor=True)
        axes.set_ylim(float(ends.min()) - room, float(ends.max()) + room)
        axes.set_xlabel("training steps taken as one, m")
        value_axis(axes, f"dimension, of {answer.size:,}")

    unknown = [f"{window.num_window_steps:,}" for window in summary.windows if window.dimension is None]
    missing = f" Undetermined, and not drawn: m = {', '.join(unknown)}." if unknown else ""
    band = {
        "determined": "The line is D_s, the band its 95 % interval.",
        "bracketed": "D_s lies in the band.",
        "undetermined": "D_s is undetermined here.",
    }[answer.status]
    return Figure(
        "windows",
        "SD of several steps taken as one",
        "What one step stretches the next may shrink again. Over the same training steps the dimension of m steps "
        f"taken as one is at most that of any length that divides m, and at least D_s. {band}{missing}",
        draw,
        series=(Series("", "steps taken as one", "dimension", lengths, values),),
    )
