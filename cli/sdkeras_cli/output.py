"""What a command writes: files, checked before the work starts, and lines, reports and progress in the terminal.

What draws reports is imported when there is one: it takes a second, which `plugins list` need not wait for.
"""

from __future__ import annotations

import contextlib
import os
import webbrowser
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import click

from sdkeras.errors import SdkerasError
from sdkeras.files.atomic import check_room, is_stream, make_folder, reason_of, shown
from sdkeras.reporting.advice import rendered
from sdkeras.reporting.progress_bar import Tell, console, telling
from sdkeras.reporting.report import Table, printable
from sdkeras.results.arrays import Value
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


def _make_folder(path: str) -> None:
    """Makes a folder with those above it, and removes them where the command ends without having written anything."""
    missing = [str(each) for each in (Path(path), *Path(path).parents) if not os.path.exists(each)]
    make_folder(path, "the folder ")
    context = click.get_current_context(silent=True)
    if context is not None and missing:
        context.call_on_close(lambda: _remove_empty(missing))


def _remove_empty(folders: Sequence[str]) -> None:
    with contextlib.suppress(OSError):  # it holds something, and so do those above it
        for folder in folders:
            os.rmdir(folder)


# Names in the folder --out.
OF_ANALYSIS = ("run.json", "report.html")


@attrs.frozen
class Outputs:
    """Where an answer goes, and how much of it is told.

    Attributes:
        json_path, html_path: A file for the answer, and one for its page.
        out: Folder for both, or None.
        open_page: Whether the page is opened in the browser.
        verbose, quiet: Whether the terminal shows everything, or nothing.
        names: The names in the folder, of the answer and of its page; "" for none.
    """

    json_path: str | None = None
    html_path: str | None = None
    out: str | None = None
    open_page: bool = False
    verbose: bool = False
    quiet: bool = False
    names: tuple[str, str] = OF_ANALYSIS

    @classmethod
    def taken_from(cls, parameters: dict[str, Value], names: tuple[str, str]) -> Outputs:
        """Takes its other fields out of a command's parameters."""
        taken = {name: parameters.pop(name) for name in attrs.fields_dict(cls) if name in parameters}
        return cls(**taken, names=names)

    @property
    def jsons(self) -> list[str]:
        return self._files(self.json_path, self.names[0])

    @property
    def pages(self) -> list[str]:
        return self._files(self.html_path, self.names[1])

    def _files(self, path: str | None, name: str) -> list[str]:
        return [*([] if path is None else [path]), *([str(Path(self.out) / name)] if self.out and name else [])]

    def check(self, inputs: list[str], *further: str | None, dry_run: bool = False) -> list[str]:
        """Refuses outputs that cannot be written, and makes the folder unless it is a dry run; returns the outputs."""
        if self.open_page and not self.pages:
            raise SdkerasError("--open opens the report page, and none is written; give --html FILE or --out DIR.")
        if self.out == "":
            raise SdkerasError("the name of the folder (--out) is empty; give one, or leave the option out.")
        outputs = [*self.jsons, *self.pages, *(path for path in further if path is not None)]
        if self.out is not None and not dry_run:
            _make_folder(self.out)
        check_outputs([path for path in outputs if not dry_run or self._is_there(path)], inputs)
        return outputs

    def _is_there(self, path: str) -> bool:
        """Whether the folder of a file exists, or is not the one that is made for it."""
        return self.out is None or Path(path).parent != Path(self.out) or Path(self.out).is_dir()

    def write(
        self, answer: Reported, document: Document | None = None, *further: str | None, show: bool = True
    ) -> None:
        """Writes files, shows the report in the terminal unless quiet, says what was written, and opens the page.

        Args:
            answer: What there is a report of.
            document: What is saved as JSON.
            further: Files that were written before.
            show: Whether the report is shown.
        """
        from sdkeras.reporting.build import report_of
        from sdkeras.reporting.html import save_html
        from sdkeras.reporting.terminal import is_brief, render

        jsons = []
        if document is not None:
            jsons = self.jsons
            text = rendered(document.to_json())  # whose messages name the options of the command
            for path in jsons:
                write_atomically(path, text)
        for path in self.pages:
            save_html(answer, path)
        report = report_of(answer)
        if show and not self.quiet:
            console().print(render(report, verbose=self.verbose))
            click.echo("")
            if is_brief(report) and not self.verbose:
                page = "" if self.pages else ", --html FILE writes a page with plots"
                console().print(f"--verbose shows every number, check and assumption{page}", highlight=False)
        if not self.quiet:
            say_written([*jsons, *self.pages, *(path for path in further if path is not None)])
        if self.open_page:
            open_in_browser(self.pages[0])


def say_written(paths: Sequence[str]) -> None:
    """Says which files were written, streams and pipes left out; not by rich, which would break a path."""
    files = [path for path in paths if not is_stream(Path(path))]
    if files:
        click.echo(f"written: {', '.join(click.format_filename(path) for path in files)}")


def open_in_browser(page: str) -> None:
    """Opens a page and says so; where there is no browser that is only said."""
    place = Path(page).resolve()
    try:
        opened = webbrowser.open(place.as_uri())
    except (webbrowser.Error, OSError, ValueError):
        opened = False
    say(f"opened: {page}" if opened else f"sdkeras: note: no browser could be started; open {place}", err=not opened)


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
