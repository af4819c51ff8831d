"""`sdkeras study trajectory`: E_alpha and PH dimension, of a recorded trajectory or simulated from a model on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from sdkeras.errors import SdkerasError
from sdkeras_cli import shared
from sdkeras_cli.inputs import check_inputs, input_files, load
from sdkeras_cli.output import check_outputs
from sdkeras_cli.shared import COUNT, NOT_NEGATIVE, POSITIVE

if TYPE_CHECKING:
    from sdkeras.study.forward import ForwardPlan
    from sdkeras.study.trajectory_measures import TrajectoryMeasures

# Options that a recorded trajectory has as well.
_OF_BOTH = ("source", "alpha", "seed", "memory_gb", "json_path", "html_path", "dry_run", "quiet", "debug")


@click.command()
@click.argument("source", type=click.Path(), metavar="MODEL|TRAJECTORY")
@click.option(
    "--data", type=click.Path(), metavar="DATA", help="FILE.npz, X.npy,Y.npy, a tf.data folder, or module:callable."
)
@click.option("--steps", type=COUNT, default=5000, show_default=True, help="Steps to simulate.")
@click.option("--every", type=COUNT, default=1, show_default=True, help="Steps between two iterates that are kept.")
@click.option("--projection", type=COUNT, metavar="K", help="Project the iterates at random to K dimensions.")
@click.option(
    "--losses-on",
    type=NOT_NEGATIVE,
    metavar="N",
    default=1000,
    show_default=True,
    help="Examples of the data-dependent distance, at random; 0 for none.",
)
@click.option("--alpha", type=POSITIVE, default=1.0, show_default=True, help="Power of the edges.")
@shared.batch_size
@shared.learning_rate
@shared.loss
@click.option("--samples", type=COUNT, help="How much of an endless data set to read.")
@shared.seed
@shared.initial_slots
@shared.allow_unverified("a step")
@shared.memory("iterates and distances")
@shared.custom_objects
@shared.unsafe
@click.option("--save", type=click.Path(), metavar="TRAJECTORY.npz", help="Keep the simulated trajectory here.")
@shared.json
@shared.html
@shared.dry_run
@shared.quiet
@shared.debug
@click.pass_context
def command(
    context: click.Context,
    /,
    source: str,
    data: str | None,
    json_path: str | None,
    html_path: str | None,
    dry_run: bool,
    quiet: bool,
    debug: bool,
    **options: Any,
) -> int:
    """Measure how large a trajectory of the weights is: E_alpha and PH dimension.

    Of MODEL, whose training with DATA is simulated on from there, or of a TRAJECTORY (.npz) that
    sdkeras.study.recorder.TrajectoryRecorder, or --save, wrote, or that is a plain matrix, steps x weights (.npz,
    .npy).
    """
    del debug
    outputs = [path for path in (json_path, html_path, options["save"]) if path is not None]
    if source.endswith((".npz", ".npy")):
        _refuse_simulation(context)
        check_outputs(outputs, [source])
        found = _recorded(source, options["alpha"], options["seed"], options["memory_gb"], dry_run)
    else:
        found = _simulated(source, data, outputs, dry_run=dry_run, quiet=quiet, **options)
    if found is None:
        click.echo(f"files to be written: {', '.join(outputs) or 'none'}")
        return 0
    _write(found, json_path, html_path, quiet)
    return 0


def _refuse_simulation(context: click.Context) -> None:
    """A recorded trajectory is what it is."""
    for option in context.command.params:
        name = option.name or ""
        if name not in _OF_BOTH and context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise SdkerasError(
                f"{option.opts[0]} is of a simulation, and a recorded trajectory (.npz, .npy) is measured as it is; "
                f"leave {option.opts[0]} out, or give a model."
            )


def _recorded(path: str, alpha: float, seed: int, memory_gb: float | None, dry_run: bool) -> TrajectoryMeasures | None:
    from sdkeras.study.trajectory import Trajectory
    from sdkeras.study.trajectory_measures import measure

    trajectory = Trajectory.load(path)
    if dry_run:
        losses = "no losses" if trajectory.losses is None else f"losses of {trajectory.losses.shape[1]:,} examples"
        click.echo(f"{len(trajectory.iterates):,} iterates of {trajectory.num_parameters:,} weights, {losses}")
        return None
    return measure(trajectory, alpha, seed=seed, memory_gb=memory_gb)


def _simulated(
    model: str,
    data: str | None,
    outputs: list[str],
    *,
    custom_objects: str | None,
    unsafe: bool,
    dry_run: bool,
    quiet: bool,
    **options: Any,
) -> TrajectoryMeasures | None:
    if data is None:
        raise SdkerasError(
            "a model needs the data it is trained with: give --data DATA (a recorded trajectory ends in .npz or .npy)."
        )
    check_inputs(model, data, custom_objects)
    check_outputs(outputs, input_files(model, data, custom_objects))
    if options["steps"] < 2 * options["every"]:
        raise SdkerasError(f"--steps {options['steps']} are too few for 2 iterates {options['every']} steps apart.")

    from sdkeras_cli.main import tensorflow_settings
    from sdkeras_cli.progress import progress_bar

    tensorflow_settings()
    import keras

    from sdkeras.study.forward import ForwardSettings, forward, plan

    loaded = load(model, data, custom_objects=custom_objects, unsafe=unsafe, loss=options["loss"])
    if dry_run:
        settings = ForwardSettings(
            **{name: options[name] for name in ("steps", "every", "projection", "losses_on", "seed", "memory_gb")}
        )
        read = {name: options[name] for name in ("batch_size", "learning_rate", "loss", "samples")}
        _show(plan(loaded.model, loaded.data, settings=settings, **read))
        return None
    with keras.saving.custom_object_scope(loaded.custom_objects), progress_bar(quiet) as progress:
        return forward(loaded.model, loaded.data, **options, progress=progress)


def _show(found: ForwardPlan) -> None:
    from sdkeras.reporting.report import Table
    from sdkeras.reporting.terminal import render_table
    from sdkeras_cli.console import console

    rows = (
        ("weights", f"{found.num_parameters:,}", f"{found.num_columns:,} numbers kept of each iterate"),
        ("steps", f"{found.num_steps:,}", f"{found.num_iterates:,} iterates"),
        ("losses", f"{found.num_examples:,} examples", "at each iterate"),
        ("peak memory", f"about {found.peak_memory / 1e9:.2f} GB", ""),
        ("one gradient", f"{1e3 * found.seconds_per_gradient:.3g} ms", ""),
        ("time", f"about {found.seconds:.3g} s", ""),
    )
    console().print(render_table(Table("Plan", rows)))


def _write(found: TrajectoryMeasures, json_path: str | None, html_path: str | None, quiet: bool) -> None:
    from sdkeras.reporting.html import save_html
    from sdkeras.reporting.terminal import render
    from sdkeras.study.trajectory_report import trajectory_report

    report = trajectory_report(found)

    if json_path is not None:
        found.save(json_path)
    if html_path is not None:
        save_html(report, html_path)
    if not quiet:
        from sdkeras_cli.console import console

        console().print(render(report))
