"""`sdkeras lyapunov`: exponents along real training steps; options in, one library call, reports out."""

from __future__ import annotations

from typing import Any

import click

from sdkeras.results.answers import LyapunovRun
from sdkeras.runs.lyapunov_settings import DEFAULT_ESTIMATOR, settings_of
from sdkeras.runs.options import DEFAULT_STEPS, DEFAULT_TRANSIENT
from sdkeras_cli import conditions, shared
from sdkeras_cli.inputs import check_inputs, input_files, load
from sdkeras_cli.output import check_outputs, show_plan, write_reports
from sdkeras_cli.settings import estimator_settings
from sdkeras_cli.shared import COUNT, NOT_NEGATIVE, POSITIVE


def _lengths(context: click.Context, option: click.Parameter, text: str | None) -> tuple[int, ...]:
    """Numbers with commas between."""
    return () if text is None else tuple(COUNT(part.strip(), option, context) for part in text.split(","))


@click.command()
@click.argument("model", type=click.Path())
@shared.data
@shared.batch_size
@click.option("--num-exponents", type=COUNT, metavar="K", help="Default 10, or all where the state has fewer.")
@click.option(
    "--steps", "num_steps", type=COUNT, default=DEFAULT_STEPS, show_default=True, help="Steps to average over."
)
@click.option("--transient", type=NOT_NEGATIVE, default=DEFAULT_TRANSIENT, show_default=True, help="Steps before.")
@click.option(
    "--windows",
    callback=_lengths,
    metavar="M,M,...",
    help="SD, and SD^(m) of M steps taken as one, over the same steps as D_s; all exponents (small models).",
)
@shared.memory("the windows' Jacobians")
@shared.learning_rate
@shared.loss
@shared.class_weight
@click.option("--samples", type=COUNT, help="How much of an endless data set to read.")
@shared.dtype
@shared.product_mode
@shared.seed
@shared.initial_slots
@shared.allow_unverified("a step")
@click.option(
    "--checkpoint", type=click.Path(), metavar="FILE", help="Keep the run here, and go on from it if it is there."
)
@click.option("--checkpoint-interval", type=COUNT, default=100, show_default=True, help="Steps between two writings.")
@click.option("--time-limit", type=POSITIVE, metavar="SECONDS", help="Ends it as Ctrl-C does.")
@click.option("--estimator", default=DEFAULT_ESTIMATOR, show_default=True, help="Lyapunov estimator to use.")
@shared.settings
@shared.of_a_run
def command(
    model: str,
    data: str,
    assignments: tuple[str, ...],
    custom_objects: str | None,
    unsafe: bool,
    json_path: str | None,
    html_path: str | None,
    expression: str | None,
    dry_run: bool,
    quiet: bool,
    debug: bool,
    **options: Any,
) -> int:
    """Lyapunov exponents of the training of MODEL (.keras or .h5), and the dimension D_s of its attractor.

    Training goes on from the file, on copies, with its own optimizer on the same data; nothing is changed.
    Ctrl-C ends it after the step under way; with --checkpoint the same command goes on from there.
    """
    del debug
    options["settings"] = estimator_settings(assignments, ("lyapunov",))
    condition = None if expression is None else conditions.parse(expression, LyapunovRun)
    check_inputs(model, data, custom_objects)
    outputs = [path for path in (json_path, html_path, options["checkpoint"]) if path is not None]
    check_outputs(outputs, input_files(model, data, custom_objects))
    settings_of(**options)  # they are checked before TensorFlow takes its seconds to start

    from sdkeras_cli.interrupts import INTERRUPTED
    from sdkeras_cli.main import tensorflow_settings
    from sdkeras_cli.progress import progress_bar
    from sdkeras_cli.report import fail_if

    tensorflow_settings()
    import keras

    from sdkeras.runs import lyapunov

    loaded = load(model, data, custom_objects=custom_objects, unsafe=unsafe, loss=options["loss"])
    if dry_run:
        show_plan(lyapunov.plan(loaded.model, loaded.data, **options), outputs)
        return 0
    with keras.saving.custom_object_scope(loaded.custom_objects), progress_bar(quiet) as progress:
        answer = lyapunov.lyapunov(loaded.model, loaded.data, **options, progress=progress)
    write_reports(answer, json_path, html_path, quiet=quiet)
    return INTERRUPTED if answer.partial else fail_if(answer, condition)
