"""The numbers of an example: rows that a script measured, as a markdown table and as a JSON file of results/.

A file has the command, its settings, the tables of the page and single findings. Rows hold unrounded numbers; the
page rounds them (tests/examples/test_results.py compares the two).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


def markdown(rows: Sequence[Row], columns: Mapping[str, str]) -> str:
    """A markdown table; `columns` maps each heading to the format of its cells, with the keys of a row as fields."""
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(cell.format(**row) for cell in columns.values())} |" for row in rows]
    return "\n".join(lines)


def interval_text(interval: Sequence[float] | None) -> str:
    return "none" if interval is None else "[{:,.0f}, {:,.0f}]".format(*interval)


def save(path: Path, *tables: Sequence[Row], **others: Any) -> None:
    """Writes tables, one row a line; whatever else the file has (command, settings, findings) stays."""
    document = (json.loads(path.read_text()) if path.exists() else {}) | others
    parts = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in document.items() if key != "tables"]
    rows = ["[\n   " + ",\n   ".join(json.dumps(row) for row in table) + "\n  ]" for table in tables]
    parts.append(' "tables": [\n  ' + ",\n  ".join(rows) + "\n ]")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")
