"""The progress line of a running analysis."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from sdkeras.reporting.numbers import dimension
from sdkeras.results import progress
from sdkeras_cli.console import console


def _share_done(half_width: float, target: float) -> float:
    """Half-widths fall like 1/sqrt(runs); it is 0 where every run says the same."""
    if half_width <= target:
        return 1.0
    return (target / half_width) ** 2 if math.isfinite(half_width) else 0.0


@contextlib.contextmanager
def progress_bar(quiet: bool) -> Iterator[Callable[[progress.Progress], None] | None]:
    """A callback that draws products done, running value and interval; None where nobody looks."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None, detail="")

        def show(step: progress.Progress) -> None:
            detail = f"{step.num_hvps:,} products" if step.num_hvps else ""
            total, done = None, 0.0
            if step.value is not None:
                detail += f", {step.num_runs} runs, SD {dimension(step.value, step.half_width)}"
                if step.half_width is not None and step.target:
                    detail += f" ± {step.half_width:.2g} (wanted {step.target:.2g})"
                    total, done = 1.0, _share_done(step.half_width, step.target)
            bar.update(task, description=step.stage, detail=detail, total=total, completed=done)

        yield show
