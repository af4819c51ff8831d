"""`sdkeras study trajectory`: E_alpha and PH dimension, of a recorded trajectory or simulated from a model on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import click
from click.core import ParameterSource

from sdkeras.errors import SdkerasError
from sdkeras.reporting.report import Table
from sdkeras.results.arrays import Value
from sdkeras.study.forward_options import ForwardOptions
from sdkeras_cli import options
from sdkeras_cli.output import Outputs, progress_bar, show_outputs, show_plan
from sdkeras_cli.request import Request

if TYPE_CHECKING:
    from sdkeras.study.simulate import ForwardPlan
    from sdkeras.study.topology import TrajectoryMeasures

_FILES = ("trajectory.json", "trajectory.html")
# Parameters that a recorded trajectory has as well.
_OF_BOTH = ("model", "alpha", "seed", "memory_gb", "dry_run", *attrs.fields_dict(Outputs))


@options.command("sdkeras study trajectory model.keras --data train.npz --html t.html")
@click.argument("model", type=click.Path(), metavar="MODEL|TRAJECTORY")
@options.data_or_none
@options.options_of(
    ForwardOptions,
    *("steps", "every", "projection", "alpha", "batch_size", "learning_rate", "loss", "seed", "samples"),
    *("allow_unverified", "memory_gb", "initial_slots", "save"),
    losses_on={"type": options.NOT_NEGATIVE},
)
@options.of_a_report(
    options.custom_objects, options.unsafe, options.json, options.out(" and ".join(_FILES)), options.dry_run
)
@click.pass_context
def command(context: click.Context, /, **parameters: Value) -> int:
    """Measure how large a trajectory of the weights is: E_alpha and PH dimension.

    Takes a MODEL, whose training with DATA is simulated from there on, or a TRAJECTORY (.npz) that
    sdkeras.study.recorder.TrajectoryRecorder, or --save, wrote, or that is a plain matrix, steps x weights (.npz,
    .npy).
    """
    request = Request.taken_from(parameters, _FILES)
    if request.model.endswith((".npz", ".npy")):
        _refuse_simulation(context)
        measures = _recorded(request, parameters["alpha"], parameters["seed"], parameters["memory_gb"])
    else:
        measures = _simulated(request, parameters)
    if measures is not None:
        from sdkeras.study.trajectory_report import trajectory_report

        request.outputs.write(trajectory_report(measures), measures, parameters.get("save"))
    return 0


def _refuse_simulation(context: click.Context) -> None:
    for option in context.command.params:
        name = option.name or ""
        if name not in _OF_BOTH and context.get_parameter_source(name) not in (ParameterSource.DEFAULT, None):
            raise SdkerasError(
                f"{option.opts[0]} applies to a simulation, a recorded trajectory (.npz, .npy) is measured as it is; "
                f"leave {option.opts[0]} out, or give a model."
            )


def _recorded(request: Request, alpha: float, seed: int, memory_gb: float | None) -> TrajectoryMeasures | None:
    """The measures of a file; None for a dry run, which says what is in it."""
    from sdkeras.runs.trajectory import Trajectory
    from sdkeras.study.topology import measure_trajectory

    outputs = request.outputs.check([request.model], dry_run=request.dry_run)
    trajectory = Trajectory.load(request.model)
    if request.dry_run:
        losses = "no losses" if trajectory.losses is None else f"losses of {trajectory.losses.shape[1]:,} examples"
        click.echo(f"{len(trajectory.iterates):,} iterates of {trajectory.num_parameters:,} weights, {losses}")
        show_outputs(outputs)
        return None
    return measure_trajectory(trajectory, alpha, seed=seed, memory_gb=memory_gb)


def _simulated(request: Request, parameters: dict[str, Value]) -> TrajectoryMeasures | None:
    """The measures of a training that goes on from the model; None for a dry run, which shows the plan."""
    if request.data is None:
        raise SdkerasError(
            "a model needs the data it is trained with: give `data=DATA` (a recorded trajectory ends in .npz or .npy)."
        )
    outputs = request.check(parameters["save"])
    steps, every = parameters["steps"], parameters["every"]
    if steps < 2 * every:
        raise SdkerasError(f"--steps {steps} are too few for 2 iterates {every} steps apart.")
    with request.loaded(parameters["loss"], "auto") as (model, data):
        from sdkeras.study.simulate import forward, plan

        if request.dry_run:
            del parameters["save"]
            show_plan(_plan_table(plan(model, data, **parameters)), outputs)
            return None
        with progress_bar(request.quiet) as progress:
            return forward(model, data, **parameters, progress=progress)


def _plan_table(plan: ForwardPlan) -> Table:
    rows = (
        ("weights", f"{plan.num_parameters:,}", f"{plan.num_columns:,} numbers kept of each iterate"),
        ("steps", f"{plan.num_steps:,}", f"{plan.num_iterates:,} iterates"),
        ("losses", f"{plan.num_examples:,} examples", "at each iterate"),
        ("peak memory", f"about {plan.peak_memory / 1e9:.2f} GB", ""),
        ("one gradient", f"{1e3 * plan.seconds_per_gradient:.3g} ms", ""),
        ("time", f"about {plan.seconds:.3g} s", ""),
    )
    return Table("Plan", rows)
