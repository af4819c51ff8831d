"""The progress line of a running analysis."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from sdkeras import records
from sdkeras.reporting.numbers import dimension


@contextlib.contextmanager
def progress_bar(quiet: bool) -> Iterator[Callable[[records.Progress], None] | None]:
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
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None, detail="")

        def show(step: records.Progress) -> None:
            detail = f"{step.num_hvps:,} products" if step.num_hvps else ""
            total, done = None, 0.0
            if step.value is not None:
                detail += f", {step.num_runs} runs, SD {dimension(step.value, step.half_width)}"
                if step.half_width is not None and step.target:
                    detail += f" ± {step.half_width:.2g} (wanted {step.target:.2g})"
                    # Half-widths fall like 1/sqrt(runs).
                    total, done = 1.0, min(1.0, (step.target / max(step.half_width, 1e-300)) ** 2)
            bar.update(task, description=step.stage, detail=detail, total=total, completed=done)

        yield show
