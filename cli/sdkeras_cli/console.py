"""The terminal that reports are printed to."""

from __future__ import annotations

import click
from rich.console import Console

from sdkeras.reporting.report import printable

# Columns that a report needs at least and can use at most, and those of a terminal that does not know (COLUMNS=0).
_NARROWEST, _WIDEST, _UNKNOWN = 40, 10_000, 80


def console(*, stderr: bool = False) -> Console:
    """A console as wide as the terminal, but never too narrow to print in."""
    usual = Console(stderr=stderr, highlight=False)
    if _NARROWEST <= usual.width <= _WIDEST:
        return usual
    width = _UNKNOWN if usual.width <= 0 else min(max(usual.width, _NARROWEST), _WIDEST)
    return Console(stderr=stderr, highlight=False, width=width)


def say(message: str, *, err: bool = False) -> None:
    """Prints a line of the library's, which may quote model files and name arguments."""
    click.echo(printable(message), err=err)
