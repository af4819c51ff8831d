"""The report as one self-contained page."""

from __future__ import annotations

import os

import jinja2

from sdkeras.reporting.numbers import headline
from sdkeras.reporting.schema import Analysis, write_atomically
from sdkeras.reporting.tables import CITATION, FORMULAS, MEANING, printable, tables


def as_html(run: Analysis) -> str:
    """The page; whatever came from a model or a data file is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sdkeras.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: printable(value) if isinstance(value, str) else value,
    )
    return environment.get_template("report.html.j2").render(
        run=run,
        headline=None if run.sharpness_dimension is None else headline(run.sharpness_dimension),
        tables=tables(run),
        meaning=MEANING,
        formulas=FORMULAS,
        citation=CITATION,
    )


def save_html(run: Analysis, path: str | os.PathLike[str]) -> None:
    """Writes the page, all of it or nothing.

    Raises:
        SdkerasError: The file cannot be written.
    """
    write_atomically(path, as_html(run))
