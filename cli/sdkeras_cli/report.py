"""`sdkeras report RUN.json`: the report of a finished run again, without TensorFlow."""

from __future__ import annotations

import click

from sdkeras.results.answers import load_document
from sdkeras.results.arrays import Value
from sdkeras_cli import conditions, options
from sdkeras_cli.output import Outputs


@options.command("sdkeras report run.json --html report.html")
@click.argument("run_json", type=options.RUN, metavar="RUN.json")
@options.of_a_report(options.out("report.html"), options.fail_if)
def command(run_json: str, expression: str | None, **parameters: Value) -> int:
    """Show the report of RUN.json (of analyze, critical, landscape or lyapunov), in the terminal or as a page.

    RUN.json may be the folder that --out has put it into.
    """
    outputs = Outputs.taken_from(parameters, ("", "report.html"))
    outputs.check([run_json])
    run = load_document(run_json)
    condition = conditions.parse(expression, type(run))
    outputs.write(run, show=not outputs.pages)
    return conditions.exit_status(condition, conditions.numbers_of(run))
