"""Progress of a running analysis: a bar in a terminal or a notebook, lines in a log."""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from sdkeras.errors import SdkerasError, counted
from sdkeras.reporting.numbers import dimension
from sdkeras.reporting.report import printable
from sdkeras.results.arrays import Value
from sdkeras.results.progress import Progress

Tell: TypeAlias = Callable[[Progress], None]

# Columns that a report needs at least and can use at most, and those of a terminal that does not know (COLUMNS=0).
_NARROWEST, _WIDEST, _UNKNOWN = 40, 10_000, 80
# Columns from which there is room for a bar beside the words.
_WITH_BAR = 110
_SECONDS_BETWEEN_LINES, _SECONDS_BETWEEN_UPDATES = 10.0, 0.2


class _Console(Console):
    """A console whose broken pipe is an error like any other; rich would end the process."""

    def on_broken_pipe(self) -> None:
        raise  # called where the BrokenPipeError is handled


def console(*, stderr: bool = False) -> Console:
    """A console as wide as the terminal, but never too narrow to print in."""
    usual = _Console(stderr=stderr, highlight=False)
    if _NARROWEST <= usual.width <= _WIDEST:
        return usual
    width = _UNKNOWN if usual.width <= 0 else min(max(usual.width, _NARROWEST), _WIDEST)
    return _Console(stderr=stderr, highlight=False, width=width)


@contextlib.contextmanager
def telling(progress: Tell | bool | None) -> Iterator[Tell | None]:
    """The function to call with progress reports: the given one, for True one that shows them, else none."""
    if progress is True:
        with progress_bar() as show:
            yield show
    else:
        yield _named(progress) if progress else None


def _named(progress: Tell) -> Tell:
    """The given function, whose failure is told as its own, wherever it happens."""

    def tell(step: Progress) -> None:
        try:
            progress(step)
        except SdkerasError:
            raise
        except Exception as error:
            raise SdkerasError(f"the progress function failed: {type(error).__name__}: {error}") from error

    return tell


@contextlib.contextmanager
def progress_bar() -> Iterator[Tell]:
    """Shows what is under way, and each measurement as it is completed: on stderr, or below a notebook's cell."""
    screen = console(stderr=True)
    if screen.is_jupyter:
        yield _in_notebook()
    elif not sys.stderr.isatty():
        yield _line_by_line()
    else:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(16), TimeElapsedColumn())
        chosen = [column for column in columns if screen.width >= _WITH_BAR or not isinstance(column, BarColumn)]
        with Bar(*chosen, console=screen, transient=True) as bar:
            yield _in_terminal(bar)


def _in_terminal(bar: Bar) -> Tell:
    task = bar.add_task("starting", total=None)

    def show(step: Progress) -> None:
        if step.reading:
            bar.console.print(printable(step.reading), markup=False)
            return
        total = None if step.expected_runs is None else float(step.expected_runs)
        words = printable(in_words(step, brief=True)).replace("[", r"\[")
        bar.update(task, description=words, total=total, completed=float(step.num_runs) if total else 0.0)

    return show


def _in_notebook() -> Tell:
    """A line that is written over, below the measurements so far."""
    display: Value = importlib.import_module("IPython.display").display  # which every notebook has
    handle = display({"text/plain": "starting"}, raw=True, display_id=True)
    readings, told = list[str](), -_SECONDS_BETWEEN_UPDATES

    def show(step: Progress) -> None:
        nonlocal told
        readings.extend([step.reading] if step.reading else [])
        if not step.reading and time.monotonic() - told < _SECONDS_BETWEEN_UPDATES:
            return
        told = time.monotonic()
        done = min(1.0, step.num_runs / step.expected_runs) if step.expected_runs else 0.0
        bar = f"[{'#' * round(16 * done):16}] "
        handle.update({"text/plain": "\n".join(map(printable, [*readings, bar + in_words(step)]))}, raw=True)

    return show


def _line_by_line() -> Tell:
    """A line every ten seconds, and the measurements that were completed meanwhile."""
    told, readings = time.monotonic(), list[str]()

    def show(step: Progress) -> None:
        nonlocal told
        readings.extend([step.reading] if step.reading else [])
        if time.monotonic() - told >= _SECONDS_BETWEEN_LINES:
            # With a reading comes the stage that is over.
            for line in readings if step.reading else (*readings, in_words(step)):
                print(printable(line), file=sys.stderr, flush=True)
            told = time.monotonic()
            readings.clear()

    return show


def in_words(step: Progress, *, brief: bool = False) -> str:
    """The stage with products done, running value and interval, and the time left; `brief` for 80 columns."""
    words = [f"{step.num_hvps:,} HVPs"] if step.num_hvps and not (brief and step.value is not None) else []
    stage = re.sub(" of the (data-set|preconditioned) Hessian", "", step.stage) if brief else step.stage
    if step.value is not None:
        value = f"SD {dimension(step.value, step.half_width)}"
        if step.half_width is not None and step.target:
            value += f" within {step.half_width:.2g} (aim: {step.target:.2g})"
        runs = counted(step.num_runs, "run")
        if step.expected_runs is not None:
            expected = counted(step.expected_runs, "run")
            runs = f"{step.num_runs:,}{'/' if brief else ' of about '}{expected}"
        words += [runs, value] if not brief else [value, runs]
        stage = "" if brief else stage
    if step.seconds_left is not None:
        words.append(f"{duration(step.seconds_left)} left")
    return ": ".join(filter(None, (stage, ", ".join(words))))


def duration(seconds: float) -> str:
    """About how long, in one unit: 'about 40 s', 'about 3 min', 'about 2 h'."""
    if seconds < 90:
        return f"about {max(1, round(seconds)) if seconds < 10 else 5 * round(seconds / 5)} s"
    return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {round(seconds / 3600)} h"
