"""Output files: checked before the work starts, written at its end."""

from __future__ import annotations

import os
from pathlib import Path

import click

from sdkeras.errors import SdkerasError
from sdkeras.files.atomic import check_room, is_stream, reason_of, shown
from sdkeras.reporting.advice import rendered
from sdkeras.reporting.comparison import Comparison
from sdkeras.results.answers import Analysis, LyapunovRun
from sdkeras.results.document import Document, write_atomically
from sdkeras.results.plans import LyapunovPlan, Plan


def check_outputs(outputs: list[str], inputs: list[str]) -> None:
    """Checks outputs before the work.

    Raises:
        SdkerasError: One would overwrite an input or another, or cannot be written.
    """
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


def write_reports(
    answer: Analysis | LyapunovRun | Comparison, json_path: str | None, html_path: str | None, *, quiet: bool
) -> None:
    """The answer as JSON and as a page where asked for, and in the terminal unless quiet."""
    if json_path is not None:
        save_json(answer, json_path)
    if html_path is not None:
        from sdkeras.reporting.html import save_html

        save_html(answer, html_path)
    if not quiet:
        from sdkeras.reporting.terminal import render
        from sdkeras_cli.console import console

        console().print(render(answer))


def save_json(answer: Document, path: str) -> None:
    """The answer as a file, whose messages name the options of the command."""
    write_atomically(path, rendered(answer.to_json()))


def show_plan(plan: Plan | LyapunovPlan, outputs: list[str]) -> None:
    """The plan of `--dry-run`, and which files would be written."""
    from sdkeras.reporting.tables import plan_table
    from sdkeras.reporting.terminal import render_table
    from sdkeras_cli.console import console

    console().print(render_table(plan_table(plan)))
    click.echo(f"files to be written: {', '.join(outputs) or 'none'}")  # rich would break a path at the margin


def check_writable(path: str) -> None:
    """Refuses an output path before the work starts.

    Raises:
        SdkerasError: Its folder is missing or cannot be written to.
    """
    if not path:
        raise SdkerasError("the name of a file to write is empty; give one, or leave its option out.")
    target = Path(path)
    try:
        if not target.is_dir() and is_stream(target):
            return  # written to at the end; to open a pipe now would wait for its reader
        if target.is_dir():
            raise SdkerasError(f"{shown(path)} is a folder; give the name of a file to write.")
        if not target.parent.is_dir():
            raise SdkerasError(f"the folder of {shown(path)} does not exist; create it or choose another place.")
        # The report comes through a temporary file beside it, so that is what must work; os.access says yes to
        # root even where nothing can be made.
        check_room(target)
    except (OSError, ValueError) as error:
        raise SdkerasError(f"{shown(path)} cannot be written: {reason_of(error)}; choose another place.") from error
