"""Reports in a terminal."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import attrs
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table as Grid
from rich.text import Text

from sdkeras.reporting.build import Reported, report_of
from sdkeras.reporting.report import Cell, Report, Row, Table, printable

_TYPED_WIDTH = 70
_BAR_WIDTH, _GAP = 12, 2
# A number stays with its error.
_WORD = re.compile(r"\S+(?: ± \S+)?")
# Least width of labels where there is room, so that the values of tables below each other line up.
_LABEL_WIDTH = 22


def render(record: Reported, *, verbose: bool = False) -> RenderableType:
    """The report: verdict first, then the caveats and the tables; `verbose` shows all rows of them."""
    return Group(*_parts(report_of(record), verbose))


def as_text(record: Reported, width: int = 100, *, verbose: bool = False) -> str:
    """The report as plain text."""
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None, highlight=False).print(render(record, verbose=verbose))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()).rstrip("\n")


def is_brief(report: Report) -> bool:
    """Whether there are rows that only `verbose` shows."""
    return any(table.only != "page" and len(_rows(table, False)) < len(table.rows) for table in report.tables)


def render_table(table: Table, *, verbose: bool = True) -> RenderableType:
    """A table: with headings, or rows of label, value and remark."""
    return Group(Text(printable(table.title), style="bold"), _Grid(table, _rows(table, verbose)))


def _rows(table: Table, verbose: bool) -> tuple[Row, ...]:
    return table.rows if verbose else table.rows[: table.brief]


@attrs.frozen
class _Grid:
    """Rows of a table, in which no word is broken that fits in a line.

    Where the longest words do not fit beside each other, a remark goes below its value, and a table with headings is
    shown without its optional columns, and what is left is cut into blocks of columns that begin with the first one.
    """

    table: Table
    rows: tuple[Row, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        columns, room = self._columns(), options.max_width
        if not self.table.columns and _least(columns, room) is None:
            below = [Text("\n").join(filter(None, cells)) for cells in zip(*columns[1:], strict=True)]
            columns = [columns[0], below]
        if not columns:
            return
        left_out = []
        for name in self.table.optional:
            if _least(columns, room) is not None:
                break
            columns = [column for column in columns if column[0].plain != printable(name)]
            left_out.append(name)
        block = columns[:1]
        for column in columns[1:]:
            if len(block) > 1 and _least([*block, column], room) is None:
                yield self._grid(block, room)
                block = columns[:1]
            block = [*block, column]
        yield self._grid(block, room)
        if left_out:
            yield Text(f"no room for {', '.join(map(printable, left_out))}, which the page has", style="dim")

    def _columns(self) -> list[list[Text]]:
        """The cells by columns, headings first; beside shares of the longest a column of bars."""
        width = max(len(self.table.columns), *map(len, self.rows), 0)
        columns = [[_text(row[k]) if k < len(row) else Text() for row in self.rows] for k in range(width)]
        bars = next((k for row in self.rows for k, cell in enumerate(row) if _share(cell) is not None), None)
        for k, name in enumerate(self.table.columns):
            columns[k] = [Text(printable(name), style="dim"), *columns[k]]
            for cell in columns[k] if k == bars or (k and self.table.wide) else ():
                cell.justify = "right"
        if bars is not None:
            columns.insert(bars + 1, [Text(), *(Text(_bar(_share(row[bars]))) for row in self.rows)])
        return columns

    def _grid(self, columns: list[list[Text]], room: int) -> Grid:
        styles = () if self.table.columns else (None, None, "dim")
        widths = _widths(columns, room, bool(self.table.columns))
        grid = Grid(box=None, padding=(0, _GAP, 0, 0), show_header=False, pad_edge=False)
        for k, width in enumerate(widths):
            grid.add_column(width=width, overflow="fold", style=styles[k] if k < len(styles) else None)
        failed = [any(isinstance(cell, Cell) and cell.mark == "failed" for cell in row) for row in self.rows]
        for cells, dim in zip(zip(*columns, strict=True), [*[False] * bool(self.table.columns), *failed], strict=True):
            grid.add_row(*cells, style="dim" if dim else "")
        return grid


def _least(columns: list[list[Text]], room: int) -> list[int] | None:
    """The width of each column's longest word; None where they do not fit beside each other."""
    widths = [
        max((Text(word).cell_len for cell in column for word in _WORD.findall(cell.plain)), default=0)
        for column in columns
    ]
    return widths if sum(widths) + _GAP * (len(widths) - 1) <= room else None


def _widths(columns: list[list[Text]], room: int, headed: bool) -> list[int]:
    """Widths that fit the room: beside the longest words it goes where lines wrap most, values before remarks."""
    gaps = _GAP * (len(columns) - 1)
    wanted = [max((line.cell_len for cell in column for line in cell.split()), default=0) for column in columns]
    weights = [1] * len(columns) if headed else [2, 3, 1]
    if not headed:
        wanted[0] = max(wanted[0], _LABEL_WIDTH)
    widths = _least(columns, room) or [max(1, (room - gaps) // len(columns))] * len(columns)
    for _ in range(room - gaps - sum(widths)):
        narrow = [k for k, width in enumerate(widths) if width < wanted[k]]
        if narrow:
            widths[max(narrow, key=lambda k: weights[k] * wanted[k] / max(1, widths[k]))] += 1
    return widths


def _parts(report: Report, verbose: bool) -> Iterator[RenderableType]:
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
            if table.only != "page" and (verbose or table.brief != 0):
                yield Text("")
                yield render_table(table, verbose=verbose)
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
