"""`sdkeras lyapunov`: exponents along real training steps; options in, one library call, reports out."""

from __future__ import annotations

import click

from sdkeras.results.arrays import Value
from sdkeras.runs.lyapunov_options import LyapunovOptions
from sdkeras_cli import options
from sdkeras_cli.options import COUNT, NOT_NEGATIVE
from sdkeras_cli.request import Request

_FILES = ("lyapunov.json", "lyapunov.html")


def _lengths(context: click.Context, option: click.Parameter, text: str | None) -> tuple[int, ...]:
    """Numbers with commas between."""
    return () if text is None else tuple(COUNT(entry.strip(), option, context) for entry in text.split(","))


@options.command("sdkeras lyapunov model.keras --data train.npz --checkpoint kept.npz")
@click.argument("model", type=click.Path())
@options.data
@options.options_of(
    LyapunovOptions,
    *("num_exponents", "num_steps", "forks"),
    transient={"type": NOT_NEGATIVE},
    windows={"type": None, "callback": _lengths},
    checkpoint={"type": click.Path()},
)
@options.options_of(
    LyapunovOptions,
    *("checkpoint_interval", "estimator", "batch_size", "learning_rate", "loss", "class_weight", "dtype"),
    *(
        "product_mode",
        "jit",
        "device",
        "micro_batch",
        "seed",
        "samples",
        "memory_gb",
        "allow_unverified",
        "time_limit",
        "initial_slots",
    ),
    settings={"callback": options.settings_of(("lyapunov",), "lyapunov-qr.tolerance=0.001")},
)
@options.of_a_run(*_FILES)
def command(**parameters: Value) -> int:
    """Estimate the Lyapunov exponents of the training of MODEL (.keras or .h5), and the dimension D_s of its attractor.

    Training continues from the file, on copies, with its own optimizer on the same data; nothing is changed.
    Ctrl-C ends it after the current step; with --checkpoint the same command continues from there.
    """
    request = Request.taken_from(parameters, _FILES)
    outputs = request.check(parameters["checkpoint"])
    LyapunovOptions(**parameters)  # checked before TensorFlow takes its seconds to start
    return request.answer("lyapunov", parameters, outputs)
