"""What a command writes: files, checked before the work starts, and lines, reports and progress in the terminal.

What draws reports is imported when there is one: it takes a second, which `plugins list` need not wait for.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from sdkeras.errors import SdkerasError
from sdkeras.files.atomic import check_room, is_stream, reason_of, shown
from sdkeras.reporting.advice import rendered
from sdkeras.reporting.report import Table, printable
from sdkeras.results import progress
from sdkeras.results.document import Document, write_atomically

if TYPE_CHECKING:
    from sdkeras.reporting.build import Reported

# Columns that a report needs at least and can use at most, and those of a terminal that does not know (COLUMNS=0).
_NARROWEST, _WIDEST, _UNKNOWN = 40, 10_000, 80
_SECONDS_BETWEEN_LINES = 10.0


def check_outputs(outputs: list[str], inputs: list[str]) -> None:
    """Refuses, before the work starts, an output that would overwrite an input or another, or cannot be written."""
    read, written = {os.path.realpath(path) for path in inputs}, set()
    for path in outputs:
        place = os.path.realpath(path)
        if place in written:
            raise SdkerasError(f"two outputs both name {shown(path)}; give each a file of its own.")
        if place in read:
            raise SdkerasError(
                f"{shown(path)} is the input and would be overwritten; choose another place for what is written."
            )
        check_writable(path)
        written.add(place)


def check_writable(path: str) -> None:
    """Refuses, before the work starts, a path whose folder is missing or that cannot be written to."""
    if not path:
        raise SdkerasError("the name of a file to write is empty; give one, or leave its option out.")
    target = Path(path)
    try:
        if target.is_dir():
            raise SdkerasError(f"{shown(path)} is a folder; give the name of a file to write.")
        if is_stream(target):
            return  # written to at the end; to open a pipe now would wait for its reader
        if not target.parent.is_dir():
            raise SdkerasError(f"the folder of {shown(path)} does not exist; create it or choose another place.")
        # The report comes through a temporary file beside it, so that is what must work; os.access says yes to
        # root even where nothing can be made.
        check_room(target)
    except (OSError, ValueError) as error:
        raise SdkerasError(f"{shown(path)} cannot be written: {reason_of(error)}; choose another place.") from error


def save_json(answer: Document, path: str | None) -> None:
    """The answer as a file where asked for, whose messages name the options of the command."""
    if path is not None:
        write_atomically(path, rendered(answer.to_json()))


def write_report(answer: Reported, html_path: str | None = None, *, quiet: bool) -> None:
    """The answer as a page where asked for, and in the terminal unless quiet."""
    from sdkeras.reporting.html import save_html
    from sdkeras.reporting.terminal import render

    if html_path is not None:
        save_html(answer, html_path)
    if not quiet:
        console().print(render(answer))


def show_plan(table: Table, outputs: list[str]) -> None:
    """The plan of `--dry-run`, and which files would be written."""
    from sdkeras.reporting.terminal import render_table

    console().print(render_table(table))
    show_outputs(outputs)


def show_outputs(outputs: list[str]) -> None:
    """Which files would be written; not by rich, which would break a path at the margin."""
    click.echo(f"files to be written: {', '.join(outputs) or 'none'}")


def console(*, stderr: bool = False) -> Console:
    """A console as wide as the terminal, but never too narrow to print in."""
    usual = Console(stderr=stderr, highlight=False)
    if _NARROWEST <= usual.width <= _WIDEST:
        return usual
    width = _UNKNOWN if usual.width <= 0 else min(max(usual.width, _NARROWEST), _WIDEST)
    return Console(stderr=stderr, highlight=False, width=width)


def say(message: str, *, err: bool = False) -> None:
    """Prints a line of the library's, which may quote model files and name arguments."""
    click.echo(printable(message), err=err)


def _state(step: progress.Progress) -> str:
    """Products done, running value and interval, in words."""
    from sdkeras.reporting.numbers import dimension

    words = f"{step.num_hvps:,} HVPs" if step.num_hvps else ""
    if step.value is not None:
        words += f", {step.num_runs} runs, SD {dimension(step.value, step.half_width)}"
        if step.half_width is not None and step.target:
            words += f" ± {step.half_width:.2g} (target {step.target:.2g})"
        if step.expected_runs is not None:
            words += f", about {step.expected_runs:,} runs in all"
    return words


def _line_by_line() -> Callable[[progress.Progress], None]:
    """A callback for a log: a line every ten seconds, and the measurements that were completed meanwhile."""
    told, readings = time.monotonic(), list[str]()

    def show(step: progress.Progress) -> None:
        nonlocal told
        readings.extend([step.reading] if step.reading else [])
        if time.monotonic() - told >= _SECONDS_BETWEEN_LINES:
            for reading in readings:
                say(reading, err=True)
            say(": ".join(filter(None, (step.stage, _state(step)))), err=True)
            told = time.monotonic()
            readings.clear()

    return show


@contextlib.contextmanager
def progress_bar(quiet: bool) -> Iterator[Callable[[progress.Progress], None] | None]:
    """A callback that shows on stderr what is under way and each measurement as it is completed; None if quiet."""
    if quiet:
        yield None
        return
    if not sys.stderr.isatty():
        yield _line_by_line()
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
            if step.reading:
                bar.console.print(printable(step.reading), markup=False)
                return
            total = None if step.expected_runs is None else float(step.expected_runs)
            done = float(step.num_runs) if total else 0.0
            bar.update(task, description=step.stage, detail=_state(step), total=total, completed=done)

        yield show
