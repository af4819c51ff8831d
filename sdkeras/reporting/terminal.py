"""Reports in a terminal."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table as Grid
from rich.text import Text

from sdkeras.reporting.build import Reported, report_of
from sdkeras.reporting.report import Cell, Report, Table, printable

_BAR_WIDTH = 12
_TYPED_WIDTH = 70


def render(record: Reported) -> RenderableType:
    """The whole report: verdict first, then the caveats and the tables."""
    return Group(*_parts(report_of(record)))


def as_text(record: Reported, width: int = 100) -> str:
    """The report as plain text."""
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None, highlight=False).print(render(record))
    return stream.getvalue().rstrip("\n")


def render_table(table: Table) -> RenderableType:
    """A table: with headings, or rows of label, value and remark."""
    title = Text(printable(table.title), style="bold")
    grid = Grid(box=None, pad_edge=False, header_style="dim", show_header=bool(table.columns))
    if not table.columns:
        grid.add_column(min_width=22)
        for style in (None, "dim"):
            grid.add_column(style=style, overflow="fold")
        for row in table.rows:
            grid.add_row(*map(_text, row))
        return Group(title, grid)
    bars = next((k for row in table.rows for k, cell in enumerate(row) if _share(cell) is not None), None)
    for k, name in enumerate(table.columns):
        grid.add_column(
            printable(name), overflow="fold", justify="right" if k == bars or (k and table.wide) else "left"
        )
        if k == bars:
            grid.add_column(width=_BAR_WIDTH)
    for row in table.rows:
        cells = [_text(cell) for cell in row]
        if bars is not None:
            cells.insert(bars + 1, Text(_bar(_share(row[bars]))))
        failed = any(isinstance(cell, Cell) and cell.mark == "failed" for cell in row)
        grid.add_row(*cells, style="dim" if failed else "")
    return Group(title, grid)


def _parts(report: Report) -> Iterator[RenderableType]:
    styled = [(line, "" if k else "bold") for k, line in enumerate(report.lines)]
    styled += [(report.assumed, "yellow")] if report.assumed else []
    styled += [(alarm, "bold red") for alarm in report.alarms]
    summary = Group(
        *(Text(line[: len(line) - len(line.lstrip())] + printable(line.lstrip()), style) for line, style in styled)
    )
    yield Panel(summary, title=escape(printable(report.name)))
    if report.next_steps:
        yield Text("What to do next", style="bold")
        for number, step in enumerate(report.next_steps, 1):
            yield Text(f"{number}. {printable(step.message)}")
            if step.command:
                yield Text(_typed(printable(step.command)), style="cyan")
    for note in report.notes:
        code = f"{printable(note.code)}: " if note.code else ""
        yield Text.assemble((code, "yellow"), (printable(note.message), "" if code else "yellow"))
    for section in report.sections:
        for table in section.tables:
            if table.only != "page":
                yield Text("")
                yield render_table(table)
        for line in section.lines:
            yield Text(printable(line), style="dim")


def _typed(command: str) -> str:
    """A command in lines that a shell takes as one, broken before options; a call in Python breaks anywhere."""
    if command.startswith("sdkeras."):
        return f"   {command}"
    lines = [""]
    for part in re.split(" (?=--)", command):
        if lines[-1] and len(lines[-1]) + len(part) > _TYPED_WIDTH:
            lines.append(part)
        else:
            lines[-1] = f"{lines[-1]} {part}".lstrip()
    return "   " + " \\\n     ".join(lines)


def _text(cell: str | Cell) -> Text:
    return Text(printable(cell.text if isinstance(cell, Cell) else cell))


def _share(cell: str | Cell) -> float | None:
    return cell.share if isinstance(cell, Cell) else None


def _bar(share: float | None) -> str:
    return "#" * max(1, round(_BAR_WIDTH * share)) if share else ""
