"""`sdkeras analyze`: options in, one library call, reports and exit status out."""

from __future__ import annotations

from typing import Any

import click

from sdkeras.estimators import registry
from sdkeras.operators.modes import MODES
from sdkeras.runs.options import DEFAULT_STEPS, DEFAULT_TRANSIENT
from sdkeras_cli import conditions, shared
from sdkeras_cli.inputs import check_inputs, input_files, load
from sdkeras_cli.output import check_outputs, show_plan, write_reports
from sdkeras_cli.settings import estimator_settings
from sdkeras_cli.shared import COUNT, FRACTION, NOT_NEGATIVE, POSITIVE


@click.command()
@click.argument("model", type=click.Path())
@shared.data
@shared.batch_size
@shared.learning_rate
@shared.loss
@shared.class_weight
@shared.params
@click.option("--samples", type=COUNT, default=4096, show_default=True, help="Samples for the data-set Hessian.")
@click.option(
    "--mode",
    type=click.Choice(MODES),
    default="train",
    show_default=True,
    help="Of dropout and batch normalization.",
)
@click.option(
    "--map",
    "step_map",
    type=click.Choice(["auto", "hessian", "full"]),
    default="auto",
    show_default=True,
    help="auto: the optimizer's own step where it is known; hessian: |1 - eta*alpha|; full: singular values of the "
    "whole step of any optimizer.",
)
@shared.dtype
@shared.product_mode
@click.option("--estimator", "estimators", multiple=True, help="Estimator to use; repeatable.")
@shared.settings
@click.option("--exact", is_flag=True, help="Exact spectra of minibatches as well (small models).")
@click.option("--exact-minibatches", type=COUNT, help="How many (with --exact or without); adaptive by default.")
@click.option("--tolerance", type=FRACTION, default=0.05, show_default=True, help="Half-width over the codimension.")
@click.option("--max-hvps", type=COUNT, help="Budget of products for all stages; required steps run anyway.")
@click.option("--time-limit", type=POSITIVE, metavar="SECONDS", help="Budget of time for all stages, likewise.")
@shared.memory("bases and dense matrices")
@shared.seed
@shared.allow_unverified("an operator")
@click.option("--per-layer", is_flag=True, help="Largest eigenvalue, trace and codimension of each layer's block.")
@click.option("--lyapunov", type=COUNT, metavar="K", help="K Lyapunov exponents along training from here as well.")
@click.option("--lyapunov-steps", type=COUNT, default=DEFAULT_STEPS, show_default=True, help="Averaged over.")
@click.option("--lyapunov-transient", type=NOT_NEGATIVE, default=DEFAULT_TRANSIENT, show_default=True, help="Before.")
@click.option("--snapshots", type=COUNT, metavar="N", help="The supremum over N snapshots of training as well.")
@click.option("--every", type=COUNT, metavar="M", help="Training steps between two snapshots.")
@shared.bound
@shared.estimate_bound_inputs
@shared.of_a_run
def command(
    model: str,
    data: str,
    custom_objects: str | None,
    unsafe: bool,
    json_path: str | None,
    html_path: str | None,
    dry_run: bool,
    quiet: bool,
    debug: bool,
    assignments: tuple[str, ...],
    estimators: tuple[str, ...],
    step_map: str,
    expression: str | None,
    **options: Any,
) -> int:
    """Analyse MODEL (.keras or .h5) on its training data.

    Prints the edge-of-stability verdict, the Hessian's extremes, the RDS sharpness exponents and the sharpness
    dimension, each with its evidence.
    """
    del debug
    for name in estimators:
        registry.get_estimator(registry.kind_of(name, registry.ANALYSIS_KINDS), name)
    settings = estimator_settings(assignments, registry.ANALYSIS_KINDS)
    condition = None if expression is None else conditions.parse(expression)
    outputs = [path for path in (json_path, html_path) if path is not None]
    check_inputs(model, data, custom_objects)
    check_outputs(outputs, input_files(model, data, custom_objects))
    options |= {"estimators": estimators, "settings": settings, "map": step_map}
    return run(
        model,
        data,
        options,
        custom_objects=custom_objects,
        unsafe=unsafe,
        json_path=json_path,
        html_path=html_path,
        condition=condition,
        dry_run=dry_run,
        quiet=quiet,
    )


def run(
    model_path: str,
    data_spec: str,
    options: dict[str, Any],
    *,
    custom_objects: str | None = None,
    unsafe: bool = False,
    json_path: str | None = None,
    html_path: str | None = None,
    condition: conditions.Expression | None = None,
    dry_run: bool = False,
    quiet: bool = False,
) -> int:
    """Loads, analyses, reports; returns the exit status."""
    from sdkeras_cli.interrupts import INTERRUPTED
    from sdkeras_cli.main import tensorflow_settings
    from sdkeras_cli.progress import progress_bar
    from sdkeras_cli.report import fail_if

    tensorflow_settings()
    import keras

    from sdkeras.runs import analyze

    loaded = load(model_path, data_spec, custom_objects=custom_objects, unsafe=unsafe, loss=options.get("loss"))
    if dry_run:
        written = [path for path in (json_path, html_path) if path is not None]
        show_plan(analyze.plan(loaded.model, loaded.data, **options), written)
        return 0
    scope = keras.saving.custom_object_scope(loaded.custom_objects)  # copies in other precisions need them as well
    with scope, progress_bar(quiet) as progress:
        answer = analyze.analyze(loaded.model, loaded.data, **options, progress=progress)
    write_reports(answer, json_path, html_path, quiet=quiet)
    return INTERRUPTED if answer.partial else fail_if(answer, condition)
