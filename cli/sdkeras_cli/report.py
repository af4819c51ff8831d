"""`sdkeras report RUN.json`: the report of a finished run again, without TensorFlow."""

from __future__ import annotations

import click

from sdkeras.results.answers import load_document
from sdkeras_cli import conditions, options
from sdkeras_cli.output import check_outputs, write_report


@click.command()
@click.argument("run_json", type=click.Path(), metavar="RUN.json")
@options.html
@options.fail_if
@options.quiet
@options.debug
def command(run_json: str, html_path: str | None, expression: str | None, quiet: bool) -> int:
    """Show the report of RUN.json (of analyze or lyapunov), in the terminal or as a page."""
    if html_path is not None:
        check_outputs([html_path], [run_json])
    run = load_document(run_json)
    condition = conditions.parse(expression, type(run))
    write_report(run, html_path, quiet=quiet or html_path is not None)
    return conditions.exit_status(condition, conditions.numbers_of(run))
