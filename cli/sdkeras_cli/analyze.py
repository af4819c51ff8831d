"""`sdkeras analyze`: options in, one library call, reports and exit status out."""

from __future__ import annotations

import click

from sdkeras.estimators import registry
from sdkeras.results.arrays import Value
from sdkeras.results.log import place_of
from sdkeras.runs.options import Options
from sdkeras_cli import options
from sdkeras_cli.output import OF_ANALYSIS
from sdkeras_cli.request import Request


@options.command("sdkeras analyze model.keras --data train.npz --batch-size 128 --out report")
@click.argument("model", type=click.Path())
@options.data
@options.options_of(Options)
@options.of_a_run(*OF_ANALYSIS)
def command(**parameters: Value) -> int:
    """Analyse MODEL (.keras or .h5) on its training data.

    Prints the edge-of-stability verdict, the Hessian's extremes, the RDS sharpness exponents and the sharpness
    dimension, each with its evidence.
    """
    for name in parameters["estimators"]:
        registry.get_estimator(registry.kind_of(name, registry.ANALYSIS_KINDS), name)
    request, log = Request.taken_from(parameters), parameters["log"]
    outputs = request.check(parameters["checkpoint"], further_input=None if log is None else str(place_of(log)))
    return request.answer("analyze", parameters, outputs)
