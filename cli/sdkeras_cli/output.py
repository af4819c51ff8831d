"""What a command writes: files, checked before the work starts, and lines, reports and progress in the terminal.

What draws reports is imported when there is one: it takes a second, which `plugins list` need not wait for.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sdkeras.errors import SdkerasError
from sdkeras.files.atomic import check_room, is_stream, reason_of, shown
from sdkeras.reporting.advice import rendered
from sdkeras.reporting.progress_bar import Tell, console, telling
from sdkeras.reporting.report import Table, printable
from sdkeras.results.document import Document, write_atomically

if TYPE_CHECKING:
    from sdkeras.reporting.build import Reported


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


def say(message: str, *, err: bool = False) -> None:
    """Prints a line of the library's, which may quote model files and name arguments."""
    click.echo(printable(message), err=err)


@contextlib.contextmanager
def progress_bar(quiet: bool) -> Iterator[Tell | None]:
    """A callback that shows on stderr what is under way and each measurement as it is completed; None if quiet."""
    with telling(not quiet) as show:
        yield show
