"""The progress line of a running analysis."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from sdkeras.reporting.numbers import dimension
from sdkeras.results import progress
from sdkeras_cli.console import console


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
            detail = f"{step.num_hvps:,} HVPs" if step.num_hvps else ""
            total, done = None, 0.0
            if step.value is not None:
                detail += f", {step.num_runs} runs, SD {dimension(step.value, step.half_width)}"
                if step.half_width is not None and step.target:
                    detail += f" ± {step.half_width:.2g} (target {step.target:.2g})"
                if step.expected_runs is not None:
                    detail += f", about {step.expected_runs:,} runs in all"
                    total, done = float(step.expected_runs), float(step.num_runs)
            bar.update(task, description=step.stage, detail=detail, total=total, completed=done)

        yield show
