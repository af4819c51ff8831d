"""`sdkeras compare A.json B.json`: what differs between two runs, without TensorFlow."""

from __future__ import annotations

import click

from sdkeras.reporting.compare import compare
from sdkeras.results.answers import load_document
from sdkeras_cli import conditions, options
from sdkeras_cli.output import check_outputs, save_json, write_report


@click.command()
@click.argument("a_json", type=click.Path(), metavar="A.json")
@click.argument("b_json", type=click.Path(), metavar="B.json")
@options.json
@options.html
@click.option(
    "--fail-if",
    "expression",
    metavar="EXPR",
    help="Exit with 3 if it holds: PATH OP NUMBER [and|or ...], of B; delta.PATH is B minus A, a.PATH is of A.",
)
@options.quiet
@options.debug
def command(
    a_json: str,
    b_json: str,
    json_path: str | None,
    html_path: str | None,
    expression: str | None,
    quiet: bool,
) -> int:
    """Show what differs between A.json and B.json (both of analyze, or both of lyapunov): settings, then numbers.

    Differences are B minus A, with the error that the intervals of both give.
    """
    check_outputs([path for path in (json_path, html_path) if path is not None], [a_json, b_json])
    a, b = load_document(a_json), load_document(b_json)
    comparison = compare(a, b, names=(a_json, b_json))
    condition = conditions.parse(expression, type(b), conditions.OF_TWO)
    save_json(comparison, json_path)
    write_report(comparison, html_path, quiet=quiet)
    return conditions.exit_status(condition, conditions.numbers_of_two(a, b, comparison))
