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

from sdkeras._version import __version__
from sdkeras.errors import counted
from sdkeras.reporting.html import environment
from sdkeras.reporting.numbers import ABSENT
from sdkeras.reporting.tables import printable
from sdkeras.results.document import write_atomically
from sdkeras.study.correlations import Correlations, MeasureCorrelation, coefficient
from sdkeras.study.definition import definition, length
from sdkeras.study.glossary import coefficients_in_words, measures_in_words
from sdkeras.study.heat_map import as_svg
from sdkeras.study.measures import columns
from sdkeras.study.notes import notes, warnings_by_code
from sdkeras.study.results import Results

# Of the p value, from which on a coefficient says nothing clear.
_CLEAR = 0.05


def headline(found: Correlations) -> str:
    """Which measure goes most with which gap, and which most against it, as far as p values bear them out."""
    rows = [(float(row.tau_b), row) for row in found.rows if row.tau_b is not None]
    if not rows:
        return "No measure has a tau-b: all values of it, or of the gaps, are equal"
    largest, first = max(rows, key=lambda pair: pair[0])
    clear = [pair for pair in rows if _clear(pair[1])]
    tau, best = max(clear, key=lambda pair: pair[0], default=(0.0, first))
    against = [pair for pair in clear if tau <= 0 or pair[1].target == best.target]
    least, worst = min(against, key=lambda pair: pair[0], default=(0.0, first))
    falling = sum(value < 0 for value, row in against if row.target == worst.target)
    others = f", of {falling} that clearly do" if falling > 1 else ""
    falling_most = f"goes {worst.measure}: {coefficient(least)}{others}"
    if tau <= 0:
        clearly = " clearly" if largest > 0 else ""
        text = (
            f"No measure goes{clearly} with a gap: the largest tau-b is {first.measure}'s with the {_gap(first)}, "
            f"{coefficient(largest)} over {counted(first.num_runs, 'run')} (p = {first.p_value:.2g})"
        )
        return text + (f"; most against the {_gap(worst)} {falling_most}" if least < 0 else "")
    count = sum(row.target == best.target for _, row in rows)
    of = f"of {count} measures" if count > 1 else "the one measure"
    how = "most" if tau == largest else "clearly"
    text = f"{best.measure} goes {how} with the {_gap(best)}: tau-b {coefficient(tau)}"
    text += f" over {counted(best.num_runs, 'run')}, {of}"
    return text + (f"; most against it {falling_most}" if least < 0 else "")


def _clear(row: MeasureCorrelation) -> bool:
    """Whether its interval leaves 0 out and it is rare without association."""
    apart = row.interval is not None and not row.interval[0] <= 0 <= row.interval[1]
    return apart and row.p_value is not None and row.p_value < _CLEAR


def _gap(row: MeasureCorrelation) -> str:
    return row.target.replace("_", " ")


def render(results: Results, found: Correlations) -> RenderableType:
    """Correlations, failures and notes for a terminal, readable in 80 columns."""
    head = Text(printable(f"{headline(found)}.") + f"\n{results.summary()}.")
    grids = [_grid(found, target) for target in dict.fromkeys(row.target for row in found.rows)]
    title = escape(printable(results.study.name or results.study.model))
    parts: list[RenderableType] = [Panel(head, title=title), *grids]
    if len(found.settings) > 1:
        names = ", ".join(found.settings)
        parts.append(Text(printable(f"Mean psi is over {names}; psi of each is in study.html and correlations.csv.")))
    parts += [Text(printable(note), style="yellow") for note in notes(results, found)]
    warnings = warnings_by_code(results)
    if warnings:
        listed = ", ".join(f"{each.code} in {each.num_runs}" for each in warnings)
        of = f"Warnings of {counted(warnings[0].num_analysed, 'run')} (messages in study.html)"
        parts.append(Text(printable(f"{of}: {listed}."), style="yellow"))
    parts += [Text(printable(f"{name} failed in {reason}"), style="red") for name, reason in results.failures()]
    return Group(*parts)


def _grid(found: Correlations, target: str) -> Table:
    """The coefficients with one gap; psi of each setting is in the files and on the page."""
    grid = Table(title=f"With the {target.replace('_', ' ')}", title_justify="left", title_style="bold", box=None)
    grid.add_column("measure", overflow="fold")
    for name in ("tau-b", "95 % interval", "p", "mean psi"):
        grid.add_column(name, justify="right", no_wrap=True)
    for row in (each for each in found.rows if each.target == target):
        interval = coefficient(row.tau_b, row.interval).partition(" ")[2] or ABSENT
        p_value = ABSENT if row.p_value is None else f"{row.p_value:.2g}"
        cells = (row.measure, coefficient(row.tau_b), interval, p_value, coefficient(row.psi_mean))
        grid.add_row(*(Text(printable(cell)) for cell in cells))
    return grid


def as_html(results: Results, found: Correlations) -> str:
    """The page; whatever came from the study or the user's code is escaped."""
    study = results.study
    return (
        environment()
        .get_template("study.html.j2")
        .render(
            results=results,
            name=study.name or study.model,
            length=length(study),
            headline=headline(found),
            notes=notes(results, found),
            warnings=warnings_by_code(results),
            measures_in_words=measures_in_words(columns(study.measures)),
            coefficients_in_words=coefficients_in_words(),
            definition=definition(study),
            heat_map=Markup(_inline(as_svg(found))),  # drawn here, names in it as text
            found=found,
            made_by=__version__,
        )
    )


def save_html(results: Results, found: Correlations, path: str | os.PathLike[str]) -> None:
    """Writes the page, all of it or nothing.

    Raises:
        SdkerasError: The file cannot be written.
    """
    write_atomically(path, as_html(results, found))


def _inline(svg: str) -> str:
    """The element alone, never drawn smaller than its own size: text stays readable, the box around it scrolls."""
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>\s*", "", element, flags=re.DOTALL)
    return re.sub(
        r'<svg [^>]*?viewBox="(\S+ \S+ ([\d.]+) [^"]*)"[^>]*>',
        r'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="\1" role="img" '
        r'style="min-width: \2px" aria-label="Coefficients of each measure">',
        element,
        count=1,
    )
