"""A study's table, correlations and failures in the terminal and as one self-contained page."""

from __future__ import annotations

import os
import re

from markupsafe import Markup
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

import sdkeras
from sdkeras.reporting.html import environment
from sdkeras.reporting.numbers import ABSENT
from sdkeras.reporting.schema import write_atomically
from sdkeras.reporting.tables import printable
from sdkeras.study.correlations import Correlations, coefficient
from sdkeras.study.heat_map import as_svg
from sdkeras.study.results import Results


def headline(found: Correlations) -> str:
    """Which measure goes most with which gap, and which most against that gap."""
    rows = [(float(row.tau_b), row) for row in found.rows if row.tau_b is not None]
    if not rows:
        return "No measure has a tau-b: all values of it, or of the gaps, are equal"
    tau, best = max(rows, key=lambda pair: pair[0])
    gap = best.target.replace("_", " ")
    if tau <= 0:
        return f"No measure goes with a gap: the largest tau-b is {best.measure}'s with the {gap}, {tau:+.2f}"
    others = [pair for pair in rows if pair[1].target == best.target and pair[1] is not best]
    of = f"of {len(others) + 1} measures" if others else "the one measure"
    text = f"{best.measure} goes most with the {gap}: tau-b {tau:+.2f} over {best.num_runs} runs, {of}"
    least, worst = min(others, key=lambda pair: pair[0], default=(tau, best))
    return text + (f"; most against it goes {worst.measure}: {least:+.2f}" if least < 0 else "")


def notes(results: Results, found: Correlations) -> tuple[str, ...]:
    """What the reader must know of the table."""
    made = [f"{len(results.failures())} runs failed and are in no coefficient"] if results.failures() else []
    made += list(results.undetermined())
    if results.others:
        made.append(f"{len(results.others)} runs of the folder are not in the grid and are in no coefficient")
    if any(row.trained is not None and row.trained.accuracy_gap is None for row in results.done):
        made.append("the model is compiled without metrics=['accuracy'], so there is no accuracy gap")
    versions = {row.trained.code for row in results.done if row.trained is not None}
    if len(versions) > 1:
        made.append(
            f"the file of the model's factory has changed between runs: they are of {len(versions)} versions of it"
        )
    few = [row for row in found.rows if row.tau_b is not None and row.interval is None]
    if few:
        made.append(f"with {len(results.done)} runs there are no intervals; 5 are the least")
    return tuple(made)


def render(results: Results, found: Correlations) -> RenderableType:
    """Correlations, failures and notes for a terminal."""
    head = Text(f"{headline(found)}.\n{results.summary()}.")
    grids = [_grid(found, target) for target in dict.fromkeys(row.target for row in found.rows)]
    title = escape(printable(results.study.name or results.study.model))
    parts: list[RenderableType] = [Panel(head, title=title), *grids]
    parts += [Text(printable(f"{note}."), style="yellow") for note in notes(results, found)]
    parts += [Text(printable(f"{name} failed in {reason}"), style="red") for name, reason in results.failures()]
    return Group(*parts)


def _grid(found: Correlations, target: str) -> Table:
    """The coefficients with one gap; intervals of psi are in the files and on the page."""
    grid = Table(title=f"With the {target.replace('_', ' ')}", title_justify="left", title_style="bold", box=None)
    grid.add_column("measure", no_wrap=True)
    for name in ("tau-b", "p", *(f"psi {name}" for name in found.settings), "mean psi"):
        grid.add_column(name, justify="right")
    for row in (each for each in found.rows if each.target == target):
        psi = [coefficient(part.psi) for part in row.granulated]
        p_value = ABSENT if row.p_value is None else f"{row.p_value:.2g}"
        cells = (row.measure, coefficient(row.tau_b, row.interval), p_value, *psi, coefficient(row.psi_mean))
        grid.add_row(*(Text(printable(cell)) for cell in cells))
    return grid


def as_html(results: Results, found: Correlations) -> str:
    """The page; whatever came from the study or the user's code is escaped."""
    study = results.study
    length = f"{study.epochs} epochs" if study.epochs else f"{study.steps} steps"
    return (
        environment()
        .get_template("study.html.j2")
        .render(
            results=results,
            name=study.name or study.model,
            length=length,
            headline=headline(found),
            notes=notes(results, found),
            heat_map=Markup(_inline(as_svg(found))),  # drawn here, names in it as text
            found=found,
            made_by=sdkeras.__version__,
        )
    )


def save_html(results: Results, found: Correlations, path: str | os.PathLike[str]) -> None:
    """Writes the page, all of it or nothing.

    Raises:
        SdkerasError: The file cannot be written.
    """
    write_atomically(path, as_html(results, found))


def _inline(svg: str) -> str:
    """The element alone, without its fixed size."""
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>\s*", "", element, flags=re.DOTALL)
    return re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>',
        r'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="\1" role="img" '
        'aria-label="Coefficients of each measure">',
        element,
        count=1,
    )
