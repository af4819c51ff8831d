"""`sdkeras lyapunov`: exponents along real training steps; options in, one library call, reports out."""

from __future__ import annotations

from typing import Any

import click

from sdkeras.lyapunov_settings import DEFAULT_ESTIMATOR, settings_of
from sdkeras.options import DEFAULT_STEPS, DEFAULT_TRANSIENT
from sdkeras.reporting.schema import LyapunovRun
from sdkeras_cli import conditions
from sdkeras_cli.inputs import COUNT, NOT_NEGATIVE, POSITIVE, PRODUCT_MODES, check_inputs, input_files, load
from sdkeras_cli.options import estimator_settings
from sdkeras_cli.output import check_outputs, show_plan, write_reports


def _lengths(context: click.Context, option: click.Parameter, text: str | None) -> tuple[int, ...]:
    """Numbers with commas between."""
    return () if text is None else tuple(COUNT(part.strip(), option, context) for part in text.split(","))


@click.command()
@click.argument("model", type=click.Path())
@click.option(
    "--data",
    type=click.Path(),
    required=True,
    metavar="DATA",
    help="FILE.npz, X.npy,Y.npy, a tf.data folder, or module:callable.",
)
@click.option("--batch-size", type=COUNT, help="Of training; default 32, or the data set's own.")
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
@click.option("--memory", "memory_gb", type=POSITIVE, metavar="GB", help="Memory for the windows' Jacobians.")
@click.option("--learning-rate", type=POSITIVE, help="In place of the one in the file, or of its schedule.")
@click.option("--loss", help="Name of a Keras loss, or NAME:from_logits, in place of the compiled one.")
@click.option("--samples", type=COUNT, help="How much of an endless data set to read.")
@click.option("--dtype", type=click.Choice(["float32", "float64"]), default="float32", show_default=True)
@click.option("--product-mode", type=click.Choice(PRODUCT_MODES), default="auto", show_default=True)
@click.option("--seed", type=NOT_NEGATIVE, default=0, show_default=True)
@click.option("--initial-slots", is_flag=True, help="For an optimizer without a step: the slots it would start with.")
@click.option("--allow-unverified", is_flag=True, help="Go on with a step that failed its verification.")
@click.option(
    "--checkpoint", type=click.Path(), metavar="FILE", help="Keep the run here, and go on from it if it is there."
)
@click.option("--checkpoint-interval", type=COUNT, default=100, show_default=True, help="Steps between two writings.")
@click.option("--time-limit", type=POSITIVE, metavar="SECONDS", help="Ends it as Ctrl-C does.")
@click.option("--estimator", default=DEFAULT_ESTIMATOR, show_default=True, help="Lyapunov estimator to use.")
@click.option("--set", "assignments", multiple=True, metavar="NAME.FIELD=VALUE", help="A setting of the estimator.")
@click.option("--custom-objects", type=click.Path(), metavar="FILE", help="Python file with the model's own classes.")
@click.option("--unsafe", is_flag=True, help="Load Lambda layers, whose code is in the model file.")
@click.option("--json", "json_path", type=click.Path(), metavar="OUT", help="Write the answer here.")
@click.option("--html", "html_path", type=click.Path(), metavar="OUT", help="Write the report page here.")
@click.option("--fail-if", "expression", metavar="EXPR", help="Exit with 3 if it holds: PATH OP NUMBER [and|or ...].")
@click.option("--dry-run", is_flag=True, help="Show what would be done and what it would cost.")
@click.option("--quiet", is_flag=True, help="No progress and no report.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
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

    from sdkeras_cli.main import INTERRUPTED, tensorflow_settings
    from sdkeras_cli.progress import progress_bar
    from sdkeras_cli.report import fail_if

    tensorflow_settings()
    import keras

    from sdkeras import lyapunov_run

    loaded = load(model, data, custom_objects=custom_objects, unsafe=unsafe, loss=options["loss"])
    if dry_run:
        show_plan(lyapunov_run.plan(loaded.model, loaded.data, **options), outputs)
        return 0
    with keras.saving.custom_object_scope(loaded.custom_objects), progress_bar(quiet) as progress:
        answer = lyapunov_run.lyapunov(loaded.model, loaded.data, **options, progress=progress)
    write_reports(answer, json_path, html_path, quiet=quiet)
    return INTERRUPTED if answer.partial else fail_if(answer, condition)
