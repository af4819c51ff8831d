"""The figures of a training over time, over the steps of the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sdkeras.reporting.drawing import ACCENT, FONT_SIZE, INK, SOFT, WARN, Figure, plain_ticks, svg
from sdkeras.reporting.numbers import number
from sdkeras.results.arrays import FloatArray
from sdkeras.results.log import Measurement

# Sharpness and threshold farther apart than this share an axis that is logarithmic.
_FAR = 5.0


def track_figures(measured: Sequence[Measurement]) -> tuple[Figure, ...]:
    """The figures that there are numbers for, in the page's order."""
    made = (
        edge_over_time(measured),
        codimension(measured),
        dimension(measured),
        bound_scale(measured),
        *gaps(measured),
    )
    return tuple(figure for figure in made if figure is not None)


def edge_over_time(measured: Sequence[Measurement]) -> Figure | None:
    """Sharpness of the threshold's own operator, and the threshold."""
    thresholds = _array([found.threshold for found in measured])
    sharpness = _array([found.numerator for found in measured])
    known = np.isfinite(sharpness) & np.isfinite(thresholds)
    if not known.any():
        return None
    steps = _steps(measured)
    what = (
        "sharpness"
        if all(found.operator == "H" for found in measured if found.operator)
        else "preconditioned sharpness"
    )
    values = np.concatenate([sharpness[known], thresholds[known]])
    positive = bool(np.all(values > 0))
    logarithmic = positive and float(values.max()) > _FAR * float(values.min())

    def draw(axes: Any) -> None:
        axes.plot(steps[known], thresholds[known], color=WARN, linewidth=1.6, linestyle="--")
        axes.plot(steps[known], sharpness[known], color=ACCENT, linewidth=2.2, marker="o", markersize=4)
        if logarithmic:
            axes.set_yscale("log")
            from matplotlib.ticker import LogLocator

            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.set_ylim(0.5 * float(values.min()), 2.5 * float(values.max()))
            axes.yaxis.set_major_formatter(lambda tick, _: number(float(f"{tick:.6g}"), 3))
            axes.yaxis.set_minor_formatter(lambda tick, _: "")
        else:
            axes.set_ylim(min(0.0, 1.1 * float(values.min())), 1.2 * float(values.max()))
            plain_ticks(axes)
        _label(axes, steps[known], thresholds[known], "threshold", WARN)
        _over_steps(axes)
        axes.set_ylabel("largest eigenvalue")

    return Figure(
        "Sharpness against the threshold",
        svg("edge", "Sharpness and stability threshold over the steps", draw),
        f"The solid line is the {what}, the dashed one the optimizer's threshold at its learning rate then. Full-batch "
        "training often climbs to the threshold and stays there: the edge of stability.",
    )


def codimension(measured: Sequence[Measurement]) -> Figure | None:
    """Codimension with its intervals."""
    return _with_intervals(
        measured,
        "sharpness_codimension",
        "Codimension",
        "The size of the state minus the sharpness dimension, with 95 % intervals. Neutral directions and dead "
        "parameters do not change it.",
    )


def dimension(measured: Sequence[Measurement]) -> Figure | None:
    """Sharpness dimension with its intervals."""
    return _with_intervals(
        measured,
        "sharpness_dimension",
        "Sharpness dimension",
        "The largest dimension whose volumes steps do not contract on average, with 95 % intervals.",
    )


def bound_scale(measured: Sequence[Measurement]) -> Figure | None:
    """What the bounds grow with, sqrt(SD/n), beside the gap of the loss where it is known; each on an axis of its own.

    Their units differ: the bounds multiply the scale by B and more, which no model shows.
    """
    scale = _array([found.value("bound_scale") for found in measured])
    known = np.isfinite(scale)
    if not known.any():
        return None
    gap = _array([found.metrics.get("val_loss") for found in measured])
    gap = gap - _array([found.metrics.get("loss") for found in measured])
    beside, steps = np.isfinite(gap), _steps(measured)

    def draw(axes: Any) -> None:
        axes.plot(steps[known], scale[known], color=WARN, linewidth=1.6, linestyle="--", marker="s", markersize=4)
        axes.set_ylim(0, 1.2 * float(scale[known].max()) or 1.0)
        plain_ticks(axes)
        axes.set_ylabel("sqrt(SD/n), dashed")
        if beside.any():
            right = axes.twinx()
            for each in (axes, right):  # twinx shows the first one's background, which is white on a dark page
                each.patch.set_visible(False)
            right.spines["right"].set_visible(True)
            right.plot(steps[beside], gap[beside], color=ACCENT, linewidth=2.2, marker="o", markersize=4)
            right.axhline(0, color=INK, linewidth=0.9)
            plain_ticks(right)
            right.set_ylabel("validation loss - loss, solid")
        _over_steps(axes)

    what = "The dashed line is sqrt(SD/n), which both bounds grow with; they multiply it by inputs of their own"
    totals = [found for found in measured if np.isfinite(_array([found.value("generalization_bound")])[0])]
    if totals:
        last, bound = totals[-1], next(bound for bound in totals[-1].bounds if bound.total is not None)
        what += f" (at step {last.step:,} {bound.theorem} comes to {number(bound.total)}: {bound.verdict})"
    solid = " The solid line is the real gap of the loss, on the right axis." if beside.any() else ""
    return Figure(
        "Scale of the bounds" + (" and gap of the loss" if beside.any() else ""),
        svg("bound", "Scale of the generalization bounds over the steps", draw),
        f"{what}.{solid} Compare how they move, not how large they are.",
    )


def gaps(measured: Sequence[Measurement]) -> list[Figure]:
    """Validation loss minus loss, and accuracy minus validation accuracy, where the logs hold them."""
    names = {name for found in measured for name in found.metrics}
    pairs = sorted(name for name in names if f"val_{name}" in names and (name == "loss" or name.endswith("accuracy")))
    made = []
    for place, name in enumerate(pairs):
        sign = 1.0 if name == "loss" else -1.0
        own = _array([found.metrics.get(name) for found in measured])
        gap = sign * (_array([found.metrics.get(f"val_{name}") for found in measured]) - own)
        if not np.isfinite(gap).any():
            continue
        quantity = "loss" if name == "loss" else "accuracy"
        terms = "validation loss - loss" if name == "loss" else "accuracy - validation accuracy"
        made.append(
            Figure(
                f"Generalization gap of the {quantity}",
                svg(f"gap{place}", f"Generalization gap of the {quantity}", _line(measured, gap, terms)),
                f"{terms[:1].upper()}{terms[1:]}: what the bounds are about. {_sides(measured)}",
            )
        )
    return made


def _sides(measured: Sequence[Measurement]) -> str:
    if all(found.source != "fit" for found in measured):
        return "Both sides are of the checkpoint's weights, in inference mode."
    return "The training side is Keras' mean over the epoch, with the weights and the dropout masks of each step."


def _line(measured: Sequence[Measurement], values: FloatArray, label: str) -> Callable[[Any], None]:
    known = np.isfinite(values)

    def draw(axes: Any) -> None:
        axes.plot(_steps(measured)[known], values[known], color=ACCENT, linewidth=2.2, marker="o", markersize=4)
        axes.axhline(0, color=INK, linewidth=0.9)
        plain_ticks(axes)
        _over_steps(axes)
        axes.set_ylabel(label)

    return draw


def _with_intervals(measured: Sequence[Measurement], key: str, title: str, caption: str) -> Figure | None:
    readings = [found.values.get(key) for found in measured]
    values = _array([None if reading is None else reading.value for reading in readings])
    known = np.isfinite(values)
    if not known.any():
        return None
    spans = [None if reading is None else reading.interval for reading in readings]
    low = _array([None if span is None else span[0] for span in spans])
    high = _array([None if span is None else span[1] for span in spans])
    bounded = known & np.isfinite(low) & np.isfinite(high)
    steps = _steps(measured)

    def draw(axes: Any) -> None:
        axes.vlines(steps[bounded], low[bounded], high[bounded], color=SOFT, linewidth=1.6)
        axes.plot(steps[known], values[known], color=ACCENT, linewidth=2.2, marker="o", markersize=4)
        axes.locator_params(axis="y", nbins=6)
        axes.yaxis.set_major_formatter(lambda tick, _: number(float(f"{tick:.6g}"), 6))
        _over_steps(axes)
        axes.set_ylabel(title.lower())

    return Figure(title, svg(key.replace("_", "-"), f"{title} over the steps", draw), caption)


def _label(axes: Any, x: FloatArray, y: FloatArray, text: str, colour: str) -> None:
    axes.annotate(
        text, (x[0], y[0]), xytext=(0, 5), textcoords="offset points", color=colour, va="bottom", fontsize=FONT_SIZE
    )


def _over_steps(axes: Any) -> None:
    axes.set_xlabel("step")
    axes.locator_params(axis="x", nbins=5, integer=True)
    axes.xaxis.set_major_formatter(lambda tick, _: number(round(tick, 6), 6))


def _steps(measured: Sequence[Measurement]) -> FloatArray:
    return _array([float(found.step) for found in measured])


def _array(values: Sequence[float | None]) -> FloatArray:
    return np.array([np.nan if value is None or not abs(value) < 1e100 else value for value in values], np.float64)
