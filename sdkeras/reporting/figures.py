"""The figures of one analysis."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sdkeras.dimension.exponents import FULL, ExponentMap, Exponents, SingularValueMap, exponent_map
from sdkeras.reporting.drawing import (
    ACCENT,
    FONT_SIZE,
    INK,
    SOFT,
    WARN,
    Figure,
    asinh_axis,
    mark,
    plain_ticks,
    svg,
    usable,
)
from sdkeras.reporting.numbers import dimension, number
from sdkeras.results.answers import Analysis
from sdkeras.results.arrays import FloatArray

_BINS = 90
# A threshold more than so many times the largest eigenvalue away is said in words; the axis would hold nothing else.
_FARTHEST = 1e4
# Of a curve over the eigenvalues.
_CURVE_POINTS = 400


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
    if run.spectrum is None or not usable(run.spectrum.nodes, run.spectrum.weights):
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
        axes.stairs(np.maximum(mass, floor), edges, baseline=floor, fill=True, color=ACCENT, alpha=0.75)
        axes.set_yscale("log")
        axes.set_ylim(floor, 3 * float(mass.max()))
        asinh_axis(axes, "x", linear, float(edges[0]), float(edges[-1]))
        axes.set_xlabel(f"eigenvalue of the {matrix} of a minibatch")
        axes.set_ylabel("eigenvalues per bin")
        if threshold is not None:
            mark(axes, threshold, f"threshold {number(threshold, 3)}")

    return Figure(
        "Spectral density",
        svg("density", f"Spectral density of the {matrix}", draw),
        "How many directions have which curvature: flat ones near 0, steep ones to the right, and those left of 0 "
        f"curve downwards.{beyond}",
    )


def exponents(run: Analysis) -> Figure | None:
    """RDS sharpness exponents lambda_k over k."""
    rds, estimate = run.rds_sharpness, run.sharpness_dimension
    if rds is None or estimate is None or len(rds.values) < 2 or not usable(rds.values, rds.levels):
        return None
    size = estimate.state_size
    ranks = np.concatenate([np.arange(1.0, len(rds.leading) + 1), np.round(rds.levels * size)])
    values = np.concatenate([rds.leading, rds.values])
    ranks, first = np.unique(ranks, return_index=True)
    values = values[first]
    if not usable(ranks, values) or len(ranks) < 2:
        return None
    threshold = estimate.threshold_exponent
    known = threshold is not None and math.isfinite(threshold) and threshold != 0
    linear = abs(threshold) if known and threshold is not None else 1e-2 * (float(np.max(np.abs(values))) or 1.0)

    def draw(axes: Any) -> None:
        axes.plot(_position(ranks, size), values, color=ACCENT, linewidth=2.2)
        axes.axhline(0, color=INK, linewidth=0.9)
        if known:
            axes.axhline(threshold, color=SOFT, linewidth=1.2, linestyle="--")
            axes.annotate(
                f"t* = {number(threshold, 3)}",
                (0.02, threshold),
                xycoords=("axes fraction", "data"),
                xytext=(0, -3),
                textcoords="offset points",
                color=SOFT,
                va="top",
                fontsize=FONT_SIZE,
            )
        room = 0.1 * (values.max() - values.min() + linear)
        asinh_axis(axes, "y", linear, float(values.min() - room), float(values.max() + room))
        _ranks(axes, size)
        axes.set_ylabel("exponent per step")
        if 0 < estimate.value < size:
            mark(axes, float(_position(np.array([estimate.value]), size)[0]), f"SD {dimension(estimate.value)}")

    return Figure(
        "RDS sharpness exponents",
        svg("exponents", "RDS sharpness exponents by rank", draw),
        "By what factor (its natural logarithm) a training step stretches (above 0) or contracts (below 0) distances "
        "between nearby weights, direction by direction, largest first. The horizontal axis is spread out at both "
        "ends.",
    )


def block_spectrum(run: Analysis) -> Figure | None:
    """ln sigma and ln |mu| of the 2x2 block of position and velocity (u, v) over the eigenvalue it belongs to."""
    made, spectrum, estimate = _exponent_map(run), run.spectrum, run.sharpness_dimension
    if not isinstance(made, ExponentMap) or made.branches == 1 or spectrum is None or estimate is None:
        return None
    if not usable(spectrum.nodes, spectrum.weights):
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
            axes.plot(alpha, z[part], color=ACCENT, linewidth=2.2)
            axes.plot(alpha, growth[part], color=SOFT, linewidth=1.4, linestyle="--")
        axes.plot(made.spread(nodes)[inside], at_nodes[inside], color=ACCENT, linestyle="", marker=".", markersize=4)
        axes.axhline(0, color=INK, linewidth=0.9)
        room = 0.05 * (high - low) or 0.5
        asinh_axis(axes, "x", linear, float(np.sinh(low - room) * linear), float(np.sinh(high + room) * linear))
        shown = np.concatenate([z, growth])
        shown = shown[shown >= smallest]
        top = 0.1 * (float(shown.max()) - float(shown.min())) or 0.1
        axes.set_ylim(float(shown.min()) - top, float(shown.max()) + top)
        axes.set_xlabel(f"eigenvalue of the {_matrix(spectrum.operator)}")
        axes.set_ylabel("exponent per step")
        plain_ticks(axes)
        if nodes.min() < threshold < nodes.max():
            mark(axes, threshold, f"threshold {number(threshold, 3)}")

    return Figure(
        "Position and velocity",
        svg("blocks", "Exponents of the blocks of position and velocity over the eigenvalue", draw),
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
        axes.plot(_position(mass, size), total, color=ACCENT, linewidth=2.2)
        axes.axhline(0, color=INK, linewidth=0.9)
        if span is not None and usable(np.array(span), np.array(span)):
            low, high = _position(np.array(span), size)
            axes.axvspan(low, high, color=WARN, alpha=0.2, linewidth=0)
        room = 0.15 * (total.max() - total.min())
        asinh_axis(axes, "y", linear, float(total.min() - room), float(total.max() + room + linear))
        _ranks(axes, size)
        axes.set_ylabel("sum of the exponents up to here")
        if 0 < estimate.value < size:
            at = float(_position(np.array([estimate.value]), size)[0])
            mark(axes, at, f"j* = {dimension(estimate.j_star)}\nSD {dimension(estimate.value)}")

    return Figure(
        "Where the sum of the exponents turns negative",
        svg("cumulative", "Cumulative sum of the exponents", draw),
        "The exponents added up, largest first. A ball of that many dimensions grows in volume while the sum is above "
        "0 and shrinks once it is below: the crossing is the sharpness dimension, j* the last direction before "
        f"it ({dimension(estimate.j_star)} here). The band is the 95 % interval.",
    )


def cumulative_exponents(run: Analysis) -> tuple[FloatArray, FloatArray] | None:
    """Mass and sum of the pooled exponents, largest first: (U_j, L_j), one entry for each exponent of each node.

    None where the record's map is unknown or its spectrum is empty.
    """
    made = _exponent_map(run)
    if made is None or run.spectrum is None or not usable(run.spectrum.nodes, run.spectrum.weights):
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
    if not (len(value) == len(half) == len(runs)) or not usable(value, runs):
        return None
    half = np.where(np.isfinite(half), half, 0.0)

    def draw(axes: Any) -> None:
        axes.fill_between(runs, value - half, value + half, color=ACCENT, alpha=0.2, linewidth=0)
        axes.plot(runs, value, color=ACCENT, linewidth=2.2, marker="o", markersize=4)
        axes.set_xlabel("runs (one minibatch and one probe each)")
        axes.set_ylabel("sharpness dimension")
        axes.yaxis.set_major_formatter(lambda tick, _: number(round(tick, 6), 6))
        axes.xaxis.set_major_formatter(lambda tick, _: number(round(tick, 6), 6))
        axes.locator_params(nbins=5)

    return Figure(
        "Convergence",
        svg("convergence", "The estimate over the runs", draw),
        "The estimate after so many runs, with its interval. It should have settled; where the number of steps was "
        "raised the runs began again.",
    )


def supremum_figures(run: Analysis) -> tuple[Figure, ...]:
    """SD of each snapshot alone as points, the supremum over all of them as a line."""
    found = run.supremum
    if found is None or found.num_snapshots < 2:
        return ()
    steps, values = np.array(found.steps, dtype=np.float64), found.per_snapshot_values
    span = np.array(found.interval or (found.value, found.value))
    if not (usable(steps, values) and usable(span)):
        return ()

    def draw(axes: Any) -> None:
        axes.axhspan(*span, color=WARN, alpha=0.2, linewidth=0)
        axes.axhline(found.value, color=WARN, linewidth=1.6)
        axes.plot(steps, values, color=ACCENT, linestyle="none", marker="o", markersize=6)
        axes.set_xlabel("training steps from the checkpoint")
        axes.set_ylabel("sharpness dimension")
        axes.locator_params(nbins=5)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda tick, _: number(round(tick, 6), 6))

    return (
        Figure(
            "Snapshots and their supremum",
            svg("supremum", "Sharpness dimension of each snapshot, and the supremum over them", draw),
            f"Points: each snapshot alone, on the same minibatches. Line: the supremum ({dimension(found.value)}) with "
            "its 95 % interval. It can lie above all points, since different directions stretch most at different "
            "snapshots.",
        ),
    )


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
