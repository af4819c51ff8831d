"""`sdkeras compare A.json B.json`: what differs between two runs, without TensorFlow."""

from __future__ import annotations

import click

from sdkeras.reporting.compare import compare
from sdkeras.results.answers import load_document
from sdkeras.results.arrays import Value
from sdkeras_cli import conditions, options
from sdkeras_cli.output import Outputs

_FILES = ("comparison.json", "comparison.html")


@options.command("sdkeras compare before.json after.json --fail-if 'delta.edge_of_stability.ratio > 0.1'")
@click.argument("a_json", type=options.RUN, metavar="A.json")
@click.argument("b_json", type=options.RUN, metavar="B.json")
@options.of_a_report(
    options.json,
    options.out(" and ".join(_FILES)),
    options.option(
        "--fail-if",
        "expression",
        metavar="EXPR",
        help="Exit with 3 if it holds: PATH OP NUMBER [and|or ...], of B; delta.PATH is B minus A, a.PATH is of A.",
    ),
)
def command(a_json: str, b_json: str, expression: str | None, **parameters: Value) -> int:
    """Show what differs between A.json and B.json (both of analyze, or both of lyapunov): settings, then numbers.

    Each may be the folder that --out has put it into. Differences are B minus A, with the error that the intervals of
    both give.
    """
    outputs = Outputs.taken_from(parameters, _FILES)
    outputs.check([a_json, b_json])
    a, b = load_document(a_json), load_document(b_json)
    comparison = compare(a, b, names=(a_json, b_json))
    condition = conditions.parse(expression, type(b), conditions.OF_TWO)
    outputs.write(comparison, comparison)
    return conditions.exit_status(condition, conditions.numbers_of_two(a, b, comparison))
