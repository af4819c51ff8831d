"""`sdkeras lyapunov`: exponents along real training steps; options in, one library call, reports out."""

from __future__ import annotations

import click

from sdkeras.results.answers import LyapunovRun
from sdkeras.runs.lyapunov_settings import LyapunovSettings, settings_of
from sdkeras.runs.options import Options
from sdkeras_cli import options
from sdkeras_cli.options import COUNT, NOT_NEGATIVE
from sdkeras_cli.request import Request


def _lengths(context: click.Context, option: click.Parameter, text: str | None) -> tuple[int, ...]:
    """Numbers with commas between."""
    return () if text is None else tuple(COUNT(part.strip(), option, context) for part in text.split(","))


@click.command()
@click.argument("model", type=click.Path())
@options.data
@options.options_of(
    LyapunovSettings,
    num_exponents={"metavar": "K", "help": "Default 10, or all where the state has fewer."},
    num_steps={"help": "Steps to average over."},
    transient={"type": NOT_NEGATIVE, "help": "Burn-in steps before."},
    windows={
        "type": None,
        "callback": _lengths,
        "metavar": "M,M,...",
        "help": "SD, and SD^(m) of M steps taken as one, over the same steps as D_s; all exponents (small models).",
    },
    checkpoint={"type": click.Path(), "metavar": "FILE", "help": "Keep the run here, and continue it if it is there."},
    checkpoint_interval={"help": "Steps between two writings."},
    estimator={"help": "Lyapunov estimator to use."},
)
@options.options_of(
    Options,
    *("batch_size", "learning_rate", "loss", "class_weight", "dtype", "product_mode", "seed"),
    samples=options.unset("How much of an endless data set to read."),
    memory_gb={"help": "Memory for the windows' Jacobians."},
    allow_unverified={"help": "Go on with a step that failed its verification."},
    time_limit={"help": "Ends it as Ctrl-C does."},
    settings={"callback": options.settings_of(("lyapunov",), "lyapunov-qr.tolerance=0.001")},
)
@options.initial_slots
@options.of_a_run
def command(**parameters: options.Value) -> int:
    """Lyapunov exponents of the training of MODEL (.keras or .h5), and the dimension D_s of its attractor.

    Training goes on from the file, on copies, with its own optimizer on the same data; nothing is changed.
    Ctrl-C ends it after the step under way; with --checkpoint the same command goes on from there.
    """
    request = Request.taken_from(parameters)
    outputs = request.check(parameters["checkpoint"])
    settings_of(**parameters)  # they are checked before TensorFlow takes its seconds to start
    return request.answer("lyapunov", parameters, outputs, LyapunovRun)
