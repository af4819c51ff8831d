"""`sdkeras critical`: the rate at which the next step raises the loss; options in, one library call, reports out."""

from __future__ import annotations

import click

from sdkeras.results.arrays import Value
from sdkeras.runs.loss_options import CriticalOptions
from sdkeras_cli import options
from sdkeras_cli.request import Request

_FILES = ("critical.json", "critical.html")


@options.command("sdkeras critical model.keras --data train.npz --batch-size 128")
@click.argument("model", type=click.Path())
@options.data
@options.options_of(CriticalOptions)
@options.of_a_run(*_FILES)
def command(**parameters: Value) -> int:
    """Find the critical learning rate of MODEL (.keras or .h5): at which its optimizer's next step raises the loss.

    By about ten forward passes over the data, for any optimizer and any size; nothing is changed.
    """
    request = Request.taken_from(parameters, _FILES)
    outputs = request.check()
    CriticalOptions(**parameters)  # checked before TensorFlow takes its seconds to start
    return request.answer("critical", parameters, outputs)
