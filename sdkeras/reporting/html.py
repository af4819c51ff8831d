"""Reports as self-contained pages."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
from importlib.resources import files

import attrs
import jinja2
import markupsafe

from sdkeras.reporting.build import Reported, report_of
from sdkeras.reporting.drawing import LIGHT, Plot, as_plot
from sdkeras.reporting.report import Figure, printable
from sdkeras.results.document import write_atomically
from sdkeras.results.note import SEVERE


def as_html(record: Reported) -> str:
    """The page; whatever came from a model or a data file is escaped."""
    return _environment().get_template("report.html.j2").render(report=report_of(record))


def as_frame(record: Reported) -> str:
    """The page inside another one, a notebook's: in a frame, so that neither's styles and scripts reach the other."""
    # Without the base, links within the page would lead to the notebook's address.
    page = as_html(record).replace("<head>", '<head>\n<base href="about:srcdoc">', 1)
    style = "width: 100%; height: 44rem; border: 0"
    frame = '<iframe srcdoc="{}" sandbox="allow-scripts allow-downloads" style="{}"></iframe>'
    return str(markupsafe.Markup(frame).format(page, style))


def save_html(record: Reported, path: str | os.PathLike[str]) -> None:
    """Writes the page, all of it or nothing; a SdkerasError if it cannot be written."""
    write_atomically(path, as_html(record))


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sdkeras.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["drawn"] = _drawn
    script = (files("sdkeras.reporting") / "templates" / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    environment.globals.update(script=markupsafe.Markup(script), script_digest=digest, print_colours=json.dumps(LIGHT))
    environment.globals["severe"] = SEVERE
    return environment


def _drawn(figure: Figure) -> Plot:
    """The figure with its names as text."""
    plot = as_plot(figure)
    return attrs.evolve(plot, svg=markupsafe.Markup(plot.svg))


def _shown(value: object) -> object:
    """Names without what no page can show; markup made here passes as it is."""
    return printable(value) if isinstance(value, str) and not isinstance(value, markupsafe.Markup) else value
