"""The figures of the Lyapunov exponents along training."""

from __future__ import annotations

from typing import Any

import numpy as np

from sdkeras.reporting.drawing import ACCENT, FONT_SIZE, INK, SOFT, WARN, Figure, plain_ticks, svg, usable
from sdkeras.reporting.numbers import number
from sdkeras.results.lyapunov import LyapunovSummary

# Exponents whose running means are drawn, before lines lie on lines.
_MOST_LINES = 6
# Points with error bars, before they are a line with a band.
_MOST_MARKERS = 60


def trajectory_figures(found: LyapunovSummary) -> tuple[Figure, ...]:
    """The figures of the Lyapunov exponents along training that there are numbers for."""
    made = (lyapunov_exponents(found), lyapunov_convergence(found), window_dimensions(found))
    return tuple(figure for figure in made if figure is not None)


def lyapunov_exponents(found: LyapunovSummary) -> Figure | None:
    """The leading Lyapunov exponents with their standard errors."""
    values, errors = found.values, found.stderr
    if not usable(values, errors):
        return None
    ranks = np.arange(1.0, len(values) + 1)
    resolved = ranks <= (len(values) if found.num_resolved is None else found.num_resolved)

    def draw(axes: Any) -> None:
        for part, colour in ((resolved, ACCENT), (~resolved, SOFT)):
            if len(values) > _MOST_MARKERS:
                axes.plot(ranks[part], values[part], color=colour, linewidth=2.2)
                low, high = values[part] - errors[part], values[part] + errors[part]
                axes.fill_between(ranks[part], low, high, color=colour, alpha=0.2, linewidth=0)
                continue
            axes.errorbar(
                ranks[part], values[part], errors[part], color=colour, fmt="o", markersize=5, elinewidth=1.6, capsize=3
            )
        axes.axhline(0, color=INK, linewidth=0.9)
        axes.set_xlim(0.5, len(values) + 0.5)
        axes.set_xlabel("exponent, largest first")
        axes.set_ylabel("Lyapunov exponent per step")
        axes.locator_params(axis="x", integer=True, nbins=8)
        plain_ticks(axes)

    rest = "" if np.all(resolved) else " Those in grey are upper ends: rounding hides how far down they are."
    return Figure(
        "Lyapunov exponents",
        svg("lyapunov", "Lyapunov exponents by rank", draw),
        "By what factor (its natural logarithm) a step of training stretches or contracts nearby trajectories in the "
        f"long run, direction by direction, with standard errors. Above 0 they come apart.{rest}",
    )


def lyapunov_convergence(found: LyapunovSummary) -> Figure | None:
    """Running means of the leading exponents over the steps."""
    means = found.history[:_MOST_LINES]
    if len(means[0]) < 2 or not usable(*means):
        return None
    steps = found.block_size * np.arange(1.0, len(means[0]) + 1)
    # The first blocks are averages over a handful of steps and would set the scale.
    settled = np.stack(means)[:, len(steps) // 8 :]
    room = 0.08 * float(np.ptp(settled)) or 1e-3 * float(np.max(np.abs(settled))) or 1.0

    def draw(axes: Any) -> None:
        for rank, line in enumerate(means):
            axes.plot(steps, line, color=ACCENT, alpha=1.0 - 0.12 * rank, linewidth=2.2 if rank == 0 else 1.4)
        axes.axhline(0, color=INK, linewidth=0.9)
        axes.set_ylim(float(settled.min()) - room, float(settled.max()) + room)
        axes.set_xlabel("steps averaged over")
        axes.set_ylabel("mean so far, per step")
        axes.locator_params(axis="x", nbins=5)
        axes.xaxis.set_major_formatter(lambda tick, _: number(round(tick, 6), 6))
        plain_ticks(axes)

    return Figure(
        "Convergence of the exponents",
        svg("lyapunov-convergence", "Running means of the leading exponents over the steps", draw),
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
    if not known or not usable(ends):
        return None
    room = 0.1 * float(np.ptp(ends)) or 0.05 * float(np.max(ends)) or 1.0

    def draw(axes: Any) -> None:
        axes.plot(lengths, values, color=ACCENT, linewidth=2.2, marker="o", markersize=5)
        if answer.interval is not None:
            axes.axhspan(*answer.interval, color=WARN, alpha=0.2, linewidth=0)
            axes.annotate(
                "D_s",
                (0.02, answer.interval[1]),
                xycoords=("axes fraction", "data"),
                xytext=(0, -4),
                textcoords="offset points",
                color=WARN,
                va="top",
                fontsize=FONT_SIZE,
            )
        if answer.value is not None:
            axes.axhline(answer.value, color=WARN, linewidth=1.6)
        axes.set_xscale("log", base=2)
        axes.set_xlim(0.8 * lengths[0], 1.25 * lengths[-1])
        shown = lengths[:: 1 + (len(lengths) - 1) // 8]
        axes.set_xticks(shown, [number(m) for m in shown])
        axes.set_xticks([], minor=True)
        axes.set_ylim(float(ends.min()) - room, float(ends.max()) + room)
        axes.set_xlabel("training steps taken as one, m")
        axes.set_ylabel(f"dimension, of {size:,}")
        plain_ticks(axes)

    unknown = [f"{window.num_window_steps:,}" for window in found.windows if window.dimension is None]
    missing = f" Undetermined, and not drawn: m = {', '.join(unknown)}." if unknown else ""
    band = {
        "determined": "The line is D_s, the band its 95 % interval.",
        "bracketed": "D_s lies in the band.",
        "undetermined": "D_s is undetermined here.",
    }[answer.status]
    return Figure(
        "SD of several steps taken as one",
        svg("windows", "Sharpness dimension of m steps taken as one, against m", draw),
        "What one step stretches the next may shrink again. Over the same training steps the dimension of m steps "
        f"taken as one is at most that of any length that divides m, and at least D_s. {band}{missing}",
    )
