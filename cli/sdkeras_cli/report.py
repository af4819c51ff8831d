"""`sdkeras report RUN.json`: the report of a finished run again, without TensorFlow."""

from __future__ import annotations

import click

from sdkeras.results.answers import Analysis, LyapunovRun, load_document
from sdkeras_cli import conditions, options
from sdkeras_cli.output import check_outputs, write_reports

CONDITION_HELD = 3


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
    condition = None if expression is None else conditions.parse(expression, type(run))
    write_reports(run, None, html_path, quiet=quiet or html_path is not None)
    return fail_if(run, condition)


def fail_if(run: Analysis | LyapunovRun, condition: conditions.Expression | None) -> int:
    """The exit status that `--fail-if` asks for."""
    return 0 if condition is None else status_of(condition, conditions.numbers_of(run))


def status_of(condition: conditions.Expression, number_at: conditions.NumberAt) -> int:
    """The exit status of a condition on numbers at paths; says so where it holds."""
    if not condition.holds(number_at):
        return 0
    met = [c for group in condition.alternatives for c in group]
    click.echo(f"sdkeras: --fail-if holds: {' / '.join(map(str, met))}", err=True)
    return CONDITION_HELD
