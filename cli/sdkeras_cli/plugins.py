"""`sdkeras plugins`: the installed estimators."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sdkeras import registry


@click.group()
def command() -> None:
    """Show the installed estimators."""


@command.command("list", short_help="List the installed estimators.")
def list_plugins() -> None:
    """List every installed estimator; a broken one is shown with its reason."""
    table = Table(box=None, pad_edge=False)
    for heading in ("kind", "name", "from", "status"):
        table.add_column(heading, overflow="fold")
    for plugin in registry.installed():
        status = Text("ok", style="green") if plugin.problem is None else Text(f"broken: {plugin.problem}", style="red")
        table.add_row(plugin.kind, plugin.name, f"{plugin.distribution} {plugin.version}", status)
    Console(highlight=False).print(table)
