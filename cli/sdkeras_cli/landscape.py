"""`sdkeras landscape`: the loss along directions through the weights; options in, one library call, reports out."""

from __future__ import annotations

import click

from sdkeras.results.arrays import Value
from sdkeras.runs.loss_options import LandscapeOptions
from sdkeras_cli import options
from sdkeras_cli.request import Request

_FILES = ("landscape.json", "landscape.html")


@options.command(
    "sdkeras landscape model.keras --data train.npz --out landscape\n"
    "sdkeras landscape model.keras --data train.npz --directions random --dimensions 2 --filter-normalized"
)
@click.argument("model", type=click.Path())
@options.data
@options.options_of(
    LandscapeOptions,
    *("directions", "dimensions", "span", "points", "filter_normalized", "rho", "adaptive_rho", "ascent_steps"),
    *("batch_size", "learning_rate", "loss", "class_weight", "mode", "samples", "dtype", "seed", "initial_slots"),
    *("product_mode", "jit", "device", "micro_batch", "memory_gb", "allow_unverified"),
    settings={"callback": options.settings_of(("eigenpairs",), "lanczos.num_steps=200")},
)
@options.of_a_run(*_FILES)
def command(**parameters: Value) -> int:
    """Draw the loss of MODEL (.keras or .h5) along directions through its weights, beside its quadratic model.

    With --rho or --adaptive-rho also the worst loss within a ball around the weights, as SAM and ASAM have it.
    """
    request = Request.taken_from(parameters, _FILES)
    checked = LandscapeOptions(**parameters)  # before TensorFlow takes its seconds to start
    outputs = request.check(further_input=checked.trajectory)
    return request.answer("landscape", parameters, outputs)
