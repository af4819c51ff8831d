"""The terminal that reports are printed to."""

from __future__ import annotations

from rich.console import Console

# Columns that a report needs at least, and those of a terminal that does not know (COLUMNS=0).
_NARROWEST, _UNKNOWN = 40, 80


def console(*, stderr: bool = False) -> Console:
    """A console as wide as the terminal, but never too narrow to print in."""
    made = Console(stderr=stderr, highlight=False)
    if made.width >= _NARROWEST:
        return made
    return Console(stderr=stderr, highlight=False, width=_NARROWEST if made.width > 0 else _UNKNOWN)
