"""`sdkeras plugins`: the installed estimators."""

from __future__ import annotations

import attrs
import click
from rich.table import Table
from rich.text import Text

from sdkeras.errors import PluginError, SdkerasError
from sdkeras.estimators import registry
from sdkeras.estimators.kinds import KINDS, Estimator
from sdkeras.files.user_code import USER_ERRORS, last_line
from sdkeras.reporting.progress_bar import console
from sdkeras.reporting.report import printable
from sdkeras_cli import options
from sdkeras_cli.main import Suggesting


@click.group(cls=Suggesting)
def command() -> None:
    """Show the installed estimators, or check one."""


@command.command("list", short_help="List the installed estimators.")
def list_plugins() -> None:
    """List every installed estimator; a broken one is shown with its reason."""
    table = Table(box=None, pad_edge=False)
    for heading in ("kind", "name", "from", "status"):
        table.add_column(heading, overflow="fold")
    for plugin in registry.installed():
        problem = plugin.problem
        status = Text("ok", style="green") if problem is None else Text(printable(f"broken: {problem}"), style="red")
        cells = (plugin.kind, plugin.name, f"{plugin.distribution} {plugin.version}")
        table.add_row(*(Text(printable(cell)) for cell in cells), status)
    console().print(table)


@command.command("check", short_help="Run an estimator through its kind's contract.")
@click.argument("name")
@options.debug
def check_plugin(name: str) -> int:
    """Run the estimator NAME, with its default settings, through its kind's contract.

    Operators of known spectra in float32 and float64: values where the spectrum is, residuals that hold, products
    counted, the same numbers for the same seed, an error where products are NaN.
    """
    kind = registry.kind_of(name, list(KINDS))
    cls = registry.get_estimator(kind, name)
    _run_contract(cls, f"{kind} plugin '{name}'")
    click.echo(f"{kind} estimator '{name}' ({cls.__module__}.{cls.__qualname__}) passes its kind's contract.")
    return 0


def _run_contract(cls: type[Estimator], who: str) -> None:
    """Refuses an estimator that has fields without a default, fails, or breaks the contract."""
    from sdkeras.testing import check_estimator

    required = [field.name for field in attrs.fields(cls) if field.init and field.default is attrs.NOTHING]
    if required:
        raise PluginError(
            f"{who} has fields without a default: {', '.join(required)}; give each one, so that the estimator runs "
            "without settings."
        )
    try:
        check_estimator(cls())
    except SdkerasError:
        raise
    except USER_ERRORS as error:
        raise PluginError(f"{who} fails: {last_line(error)}") from error
