"""Figures of losses along directions in the space of the weights: critical rates and landscapes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from sdkeras.dimension.landscape import quadratic_change
from sdkeras.errors import counted
from sdkeras.reporting.drawing import (
    Colours,
    label_line,
    legend,
    log_value_axis,
    mark,
    series,
    step_axis,
    tick_format,
    usable,
    value_axis,
    zero_line,
)
from sdkeras.reporting.numbers import number
from sdkeras.reporting.report import Figure, Series
from sdkeras.results.answers import CriticalRun, LandscapeRun
from sdkeras.results.arrays import FloatArray
from sdkeras.results.landscape import Landscape

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def critical_figure(run: CriticalRun) -> Figure | None:
    """The change of the loss over the rate of the step, at the rates tried, with eta_c and the rate in use."""
    step, rate = run.critical, run.optimizer.learning_rate
    scale, name = (rate, "learning rate") if rate > 0 else (1.0, "multiple of the update in use")
    changes = step.losses - step.loss
    near = np.isfinite(changes)
    middle = math.nan
    if step.outcome == "measured" and step.num_minibatches is None and step.ratio is not None:
        middle = 1 / step.ratio.value
        near &= step.factors < 2.5 * middle
    x, y = scale * step.factors[near], changes[near]
    if step.ratios is not None:
        return _critical_of_minibatches(run, step.ratios, scale, name)
    if len(x) < 2 or not usable(x, y):
        return None
    doublings = x[np.log2(x / scale) % 1 == 0]

    def draw(axes: Axes, colours: Colours) -> None:
        series(axes, x, y, colours.accent)
        zero_line(axes, colours)
        axes.set_xscale("log", base=2)
        axes.set_xticks(doublings, [number(tick, 2) for tick in doublings])
        axes.set_xticks([], minor=True)
        if math.isfinite(middle):
            mark(axes, scale * middle, f"eta_c {number(scale * middle, 3)}", colours.warn)
        mark(axes, scale, "in use", colours.ink, 0.87)
        axes.set_xlabel(name)
        value_axis(axes, "loss after minus before")

    return Figure(
        "critical",
        "Loss after the step over its rate",
        "The loss after the optimizer's next update, made longer or shorter as a whole, less the loss before it. Where "
        "it crosses 0 from below, the step is as long as it may be.",
        draw,
        series=(Series("", name, "loss after minus before", x, y),),
    )


def _critical_of_minibatches(run: CriticalRun, ratios: FloatArray, scale: float, name: str) -> Figure | None:
    """Each minibatch's critical rate beside the rate in use, and their median with its interval."""
    step = run.critical
    known = np.isfinite(ratios) & (ratios > 0)
    x, y = np.flatnonzero(known).astype(np.float64) + 1, scale / ratios[known]
    if not usable(x, y) or not np.all(y > 1e-100):
        return None
    middle, ends = math.nan, None
    if step.ratio is not None:
        middle, ends = scale / step.ratio.value, step.ratio.interval
    heights = np.array([*y, scale])

    def draw(axes: Axes, colours: Colours) -> None:
        log_value_axis(axes, f"critical {name}", float(heights.min()), float(heights.max()))
        if ends is not None:
            axes.axhspan(scale / ends[1], scale / ends[0], color=colours.warn, alpha=0.2, linewidth=0)
        if math.isfinite(middle):
            axes.axhline(middle, color=colours.warn, linewidth=1.6)
            label_line(axes, middle, f"median {number(middle, 3)}", colours.warn)
        axes.axhline(scale, color=colours.ink, linewidth=1.2)
        label_line(axes, scale, "in use", colours.ink)
        axes.plot(x, y, color=colours.accent, linestyle="", marker="o", markersize=5)
        step_axis(axes, "minibatch")

    uphill = (
        f" Not drawn: {counted(step.num_ascents, 'minibatch', 'minibatches')} at 0, whose update leads uphill."
        if step.num_ascents
        else ""
    )
    band = "" if ends is None else "; the band is its 95 % interval"
    return Figure(
        "critical",
        "Critical rate of each minibatch",
        "The rate at which the update of a minibatch first raises that minibatch's own loss, and their median (of all, "
        f"those at 0 included){band}. Of points below the line of the rate in use the step raises the loss.{uphill}",
        draw,
        series=(Series("", "minibatch", f"critical {name}", x, y),),
    )


def landscape_figure(run: LandscapeRun) -> Figure | None:
    """The loss along a line with its quadratic model, or its contours in a plane with the trajectory's path."""
    drawn = run.landscape
    losses = np.stack(drawn.losses)
    if np.sum(np.isfinite(losses)) < 3 or not usable(losses[np.isfinite(losses)]):
        return None
    return _line(drawn) if len(drawn.axes) == 1 else _plane(drawn, losses)


def _line(drawn: Landscape) -> Figure:
    axis, losses = drawn.axes[0], drawn.losses[0]
    known = np.isfinite(losses)
    x, y = axis.coordinates[known], losses[known]
    model = drawn.loss + quadratic_change(drawn.slopes, drawn.curvature, x[:, None])[0]
    left, right = drawn.quadratic_to
    room = 0.1 * float(np.ptp(y)) or 0.1 * abs(drawn.loss) or 1.0

    def draw(axes: Axes, colours: Colours) -> None:
        axes.axvspan(-left, right, color=colours.accent, alpha=0.12, linewidth=0)
        axes.plot(x, y, color=colours.accent, linewidth=2.2, label="loss")
        axes.plot(x, model, color=colours.warn, linewidth=1.6, linestyle="--", label="quadratic model")
        axes.plot([0], [drawn.loss], color=colours.ink, marker="o", markersize=5)
        axes.set_ylim(float(y.min()) - room, float(y.max()) + room)
        axes.set_xlabel(f"along {axis.name}")
        value_axis(axes, "loss")
        tick_format(axes.xaxis)
        legend(axes)

    name = f"along {axis.name}"
    return Figure(
        "landscape",
        "The loss along a line",
        "The loss over the data, through the weights (the dot), and the parabola with the slope and curvature that it "
        "has there. The parabola holds within the band.",
        draw,
        series=(Series("loss", name, "loss", x, y), Series("quadratic model", name, "loss", x, model)),
    )


def _plane(drawn: Landscape, losses: FloatArray) -> Figure:
    first, second = drawn.axes
    known = losses[np.isfinite(losses)]
    levels = np.unique(np.quantile(known, np.linspace(0.02, 0.95, 11)))
    path = drawn.path
    grid = np.stack([each.ravel() for each in np.meshgrid(first.coordinates, second.coordinates)], axis=1)
    model = (drawn.loss + quadratic_change(drawn.slopes, drawn.curvature, grid)[0]).reshape(losses.shape)
    of_model = levels[(levels > model.min()) & (levels < model.max())]

    def draw(axes: Axes, colours: Colours) -> None:
        shown = np.ma.masked_invalid(losses)
        if len(levels) > 1:
            lines = axes.contour(
                first.coordinates, second.coordinates, shown, levels=levels, colors=colours.accent, linewidths=1.2
            )
            axes.clabel(lines, levels[::3], fmt=lambda level: number(level, 3), fontsize=9)
        if len(of_model):
            axes.contour(
                first.coordinates,
                second.coordinates,
                model,
                levels=of_model,
                colors=colours.soft,
                linewidths=1.0,
                linestyles="dashed",
            )
        if path is not None:
            axes.plot(path[0], path[1], color=colours.warn, linewidth=1.6, marker=".", markersize=3)
        axes.plot([0], [0], color=colours.ink, marker="o", markersize=5)
        axes.set_xlabel(f"along {first.name}")
        value_axis(axes, f"along {second.name}")
        tick_format(axes.xaxis)

    beside = "" if path is None else " The other line is the path of the training, as seen from the plane."
    name = f"along {first.name}"
    rows = [
        Series(
            f"{number(at, 3)} along {second.name}",
            name,
            "loss",
            first.coordinates,
            row,
            at=(first.coordinates, np.full(len(row), at)),
        )
        for at, row in zip(second.coordinates, losses, strict=True)
    ]
    return Figure(
        "landscape",
        "The loss in a plane",
        "Lines of equal loss over the data, around the weights (the dot), and dashed those of the quadratic model with "
        f"the slopes and curvatures that it has there, at the same values.{beside}",
        draw,
        size=(5.6, 4.6),
        series=tuple(rows),
    )
