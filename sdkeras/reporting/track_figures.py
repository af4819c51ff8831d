"""The figures of a training over time, over its epochs or the steps of the optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sdkeras.reporting.drawing import FONT_SIZE, Colours, log_value_axis, series, step_axis, value_axis, zero_line
from sdkeras.reporting.numbers import number
from sdkeras.reporting.report import Figure, Series, present
from sdkeras.results.arrays import FloatArray
from sdkeras.results.log import Measurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Sharpness and threshold farther apart than this factor share a logarithmic axis.
_FAR = 5.0


def track_figures(measured: Sequence[Measurement]) -> tuple[Figure, ...]:
    """The figures that there are numbers for, in the page's order."""
    codimension = (
        "The size of the state minus the sharpness dimension, with 95 % intervals. Neutral directions, which steps "
        "hardly change, and dead parameters do not affect it."
    )
    largest = "The largest dimension whose volumes steps do not contract on average, with 95 % intervals."
    return present(
        edge_over_time(measured),
        _with_intervals(measured, "sharpness_codimension", "Codimension", codimension),
        _with_intervals(measured, "sharpness_dimension", "Sharpness dimension", largest),
        bound_scale(measured),
        *gaps(measured),
        learning_rate(measured),
    )


def edge_over_time(measured: Sequence[Measurement]) -> Figure | None:
    """Sharpness of the threshold's own operator, and the threshold."""
    thresholds = _array([each.threshold for each in measured])
    sharpness = _array([each.numerator for each in measured])
    known = np.isfinite(sharpness) & np.isfinite(thresholds)
    if not known.any():
        return None
    of_hessian = all(each.operator == "H" for each in measured if each.operator)
    steps, sharpness, thresholds = _time(measured)[known], sharpness[known], thresholds[known]
    unit, name = _unit(measured), "sharpness" if of_hessian else "preconditioned sharpness"
    lowest, highest = (float(end) for end in np.quantile(np.concatenate([sharpness, thresholds]), [0, 1]))
    logarithmic = lowest > 0 and highest > _FAR * lowest

    def draw(axes: Axes, colours: Colours) -> None:
        alone = len(steps) == 1  # a line of one point would not be seen
        across = (steps[0] + np.array([-1.0, 1.0]), np.repeat(thresholds, 2)) if alone else (steps, thresholds)
        axes.plot(*across, color=colours.warn, linewidth=1.6, linestyle="--")
        series(axes, steps, sharpness, colours.accent)
        if logarithmic:
            log_value_axis(axes, "largest eigenvalue", lowest, highest)
        else:
            axes.set_ylim(min(0.0, 1.1 * lowest), 1.2 * highest)
            value_axis(axes, "largest eigenvalue")
        over = sharpness[0] > thresholds[0]  # the name stands on the other side of its line
        axes.annotate(
            "threshold",
            (steps[0], thresholds[0]),
            (0, -5 if over else 5),
            textcoords="offset points",
            color=colours.warn,
            va="top" if over else "bottom",
            fontsize=FONT_SIZE,
        )
        _time_axis(axes, measured)

    return Figure(
        "edge",
        "Sharpness against the threshold",
        f"The solid line is the {name}, the dashed one the optimizer's threshold at the learning rate of the moment. "
        "Full-batch training often climbs to the threshold and stays there: the edge of stability.",
        draw,
        series=(
            Series(name, unit, "largest eigenvalue", steps, sharpness),
            Series("threshold", unit, "largest eigenvalue", steps, thresholds),
        ),
    )


def bound_scale(measured: Sequence[Measurement]) -> Figure | None:
    """The factor that the bounds grow with, sqrt(SD/n), beside the gap of the loss where it is known.

    Each has an axis of its own, since their units differ: the bounds multiply the scale by B and more, which no model
    shows.
    """
    scale = _array([each.value("bound_scale") for each in measured])
    known = np.isfinite(scale)
    if not known.any():
        return None
    gap, steps, unit = _gap(measured, "loss"), _time(measured), _unit(measured)
    beside = np.isfinite(gap)

    def draw(axes: Axes, colours: Colours) -> None:
        series(axes, steps[known], scale[known], colours.warn, dashed=True)
        axes.set_ylim(0, 1.2 * float(scale[known].max()) or 1.0)
        value_axis(axes, "sqrt(SD/n), dashed")
        if beside.any():
            right = axes.twinx()
            for each in (axes, right):  # twinx shows the first one's background, which is white on a dark page
                each.patch.set_visible(False)
            right.spines["right"].set_visible(True)
            series(right, steps[beside], gap[beside], colours.accent)
            zero_line(right, colours)
            value_axis(right, "validation loss - loss, solid")
        _time_axis(axes, measured)

    caption = "The dashed line is sqrt(SD/n), which both bounds grow with; they multiply it by inputs of their own"
    totals = [each for each in measured if np.isfinite(_array([each.value("generalization_bound")])[0])]
    if totals:
        last, bound = totals[-1], next(bound for bound in totals[-1].bounds if bound.total is not None)
        caption += f" (at step {last.step:,} {bound.theorem} comes to {number(bound.total)}: {bound.verdict})"
    solid = (
        f" The solid line is the real gap of the loss, on the right axis. {_sides(measured)}" if beside.any() else ""
    )
    return Figure(
        "bound",
        "Scale of the bounds" + (" and gap of the loss" if beside.any() else ""),
        f"{caption}.{solid} Compare how they move, not how large they are.",
        draw,
        series=(
            Series("scale of the bounds", unit, "sqrt(SD/n)", steps[known], scale[known]),
            *(
                [Series("gap", unit, "validation loss - loss", steps[beside], gap[beside], axes=1)]
                if beside.any()
                else []
            ),
        ),
    )


def learning_rate(measured: Sequence[Measurement]) -> Figure | None:
    """The learning rate over time, where it changed."""
    rates = _array([each.learning_rate or None for each in measured])
    if len(set(rates[np.isfinite(rates)])) < 2:
        return None
    caption = "The optimizer's own at each measurement. The threshold rises as it falls."
    return _over_steps(measured, rates, "rate", "Learning rate", caption, "learning rate")


def gaps(measured: Sequence[Measurement]) -> Iterator[Figure | None]:
    """Accuracy minus validation accuracy, and validation loss minus loss unless the bounds' figure draws it."""
    names = {name for each in measured for name in each.metrics}
    with_scale = any(np.isfinite(_array([each.value("bound_scale") for each in measured])))
    drawn = [name for name in sorted(names) if (name == "loss" and not with_scale) or name.endswith("accuracy")]
    said = with_scale and np.isfinite(_gap(measured, "loss")).any()
    for place, name in enumerate(drawn):
        quantity = "loss" if name == "loss" else "accuracy"
        terms = "validation loss - loss" if name == "loss" else "accuracy - validation accuracy"
        title = f"Generalization gap of the {quantity}"
        sides = "" if place or said else f" {_sides(measured)}"
        caption = f"{terms[:1].upper()}{terms[1:]}, the quantity that the bounds limit.{sides}"
        yield _over_steps(measured, _gap(measured, name), f"gap{place}", title, caption, terms)


def _gap(measured: Sequence[Measurement], name: str) -> FloatArray:
    """How much worse the validation side is."""
    train = _array([each.metrics.get(name) for each in measured])
    validation = _array([each.metrics.get(f"val_{name}") for each in measured])
    return validation - train if name == "loss" else train - validation


def _sides(measured: Sequence[Measurement]) -> str:
    if all(each.source != "fit" for each in measured):
        return "Both sides are of the checkpoint's weights, in inference mode."
    return "The training side is Keras' mean over the epoch, with the weights and the dropout masks of each step."


def _with_intervals(measured: Sequence[Measurement], key: str, title: str, caption: str) -> Figure | None:
    spans = [each.values[key].interval if key in each.values else None for each in measured]
    values, ends = _array([each.value(key) for each in measured]), [span or (None, None) for span in spans]
    bars = _array([low for low, _ in ends]), _array([high for _, high in ends])
    return _over_steps(measured, values, key.replace("_", "-"), title, caption, title.lower(), bars)


def _over_steps(
    measured: Sequence[Measurement],
    values: FloatArray,
    name: str,
    title: str,
    caption: str,
    label: str,
    bars: tuple[FloatArray, FloatArray] | None = None,
) -> Figure | None:
    """Values over the steps, with their error bars, or with the line at 0."""
    steps, known = _time(measured), np.isfinite(values)
    if not known.any():
        return None
    lower, upper = (None, None) if bars is None else (bars[0][known], bars[1][known])

    def draw(axes: Axes, colours: Colours) -> None:
        if bars is not None:
            bounded = known & np.isfinite(bars[0]) & np.isfinite(bars[1])
            axes.vlines(steps[bounded], bars[0][bounded], bars[1][bounded], color=colours.soft, linewidth=1.6)
        series(axes, steps[known], values[known], colours.accent)
        if bars is None:
            zero_line(axes, colours)
        value_axis(axes, label, 3 if bars is None else 6)
        _time_axis(axes, measured)

    shown = Series("", _unit(measured), label, steps[known], values[known], lower, upper)
    return Figure(name, title, caption, draw, series=(shown,))


def _in_epochs(measured: Sequence[Measurement]) -> bool:
    """Whether every measurement has an epoch of its own."""
    epochs = [each.epoch for each in measured if each.epoch is not None]
    return len(epochs) == len(measured) and all(np.diff(epochs) > 0)


def _time(measured: Sequence[Measurement]) -> FloatArray:
    """Epochs where each measurement has its own, or else the steps of the optimizer."""
    in_epochs = _in_epochs(measured)
    return _array([each.epoch if in_epochs else each.step for each in measured])


def _unit(measured: Sequence[Measurement]) -> str:
    return "epoch" if _in_epochs(measured) else "step"


def _time_axis(axes: Axes, measured: Sequence[Measurement]) -> None:
    """The horizontal axis of `_time`; about a single measurement it is an epoch or a step to either side."""
    times = _time(measured)
    step_axis(axes, _unit(measured))
    if len(times) == 1:
        axes.set_xlim(times[0] - 1, times[0] + 1)


def _array(values: Sequence[float | None]) -> FloatArray:
    return np.array([np.nan if value is None or not abs(value) < 1e100 else value for value in values], np.float64)
