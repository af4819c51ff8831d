"""The figures of the Lyapunov exponents along training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sdkeras.reporting.drawing import Colours, few_ticks, label_line, series, step_axis, usable, zero_line
from sdkeras.reporting.numbers import number
from sdkeras.reporting.report import Figure, present
from sdkeras.results.lyapunov import LyapunovSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Exponents whose running means are drawn, before lines lie on lines.
_MOST_LINES = 6
# Points with error bars, before they are a line with a band.
_MOST_MARKERS = 60


def lyapunov_figures(summary: LyapunovSummary) -> tuple[Figure, ...]:
    """The figures that there are numbers for."""
    return present(lyapunov_exponents(summary), lyapunov_convergence(summary), window_dimensions(summary))


def lyapunov_exponents(summary: LyapunovSummary) -> Figure | None:
    """The leading Lyapunov exponents with their standard errors."""
    values, errors = summary.values, summary.stderr
    if not usable(values, errors):
        return None
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
        axes.set_ylabel("Lyapunov exponent per step")
        few_ticks(axes)

    hidden = "" if np.all(resolved) else " Those in grey are upper bounds: rounding hides how far down they are."
    return Figure(
        "lyapunov",
        "Lyapunov exponents",
        "By what factor (its natural logarithm) a step of training stretches or contracts nearby trajectories in the "
        f"long run, direction by direction, with standard errors. Above 0 they come apart.{hidden}",
        draw,
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
            axes.plot(steps, line, color=colours.accent, alpha=1.0 - 0.12 * rank, linewidth=width)
        zero_line(axes, colours)
        step_axis(axes, "steps averaged over")
        axes.set_ylim(float(settled.min()) - room, float(settled.max()) + room)
        axes.set_ylabel("mean so far, per step")
        few_ticks(axes)

    leading = "leading exponent" if len(means) == 1 else f"{len(means)} leading exponents"
    return Figure(
        "lyapunov-convergence",
        "Convergence of the exponents",
        f"The {leading} averaged over a growing number of steps; the thick line is the first. They should have "
        "settled; while they drift, training has not reached its attractor, and needs a longer burn-in.",
        draw,
    )


def window_dimensions(summary: LyapunovSummary) -> Figure | None:
    """SD^(m) against m, with D_s over the same steps beside them."""
    known = [(window.num_window_steps, window.dimension) for window in summary.windows if window.dimension is not None]
    answer, size = summary.dimension, summary.dimension.size
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
        axes.set_ylabel(f"dimension, of {size:,}")
        few_ticks(axes)

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
    )
