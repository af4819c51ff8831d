"""`sdkeras track`: a training over time, from the callback's log, or from its checkpoints."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from sdkeras.errors import SdkerasError
from sdkeras.files.atomic import shown
from sdkeras.files.checkpoints import in_order
from sdkeras.files.dataset import load_data
from sdkeras.files.user_code import load_custom_objects
from sdkeras.results import log as run_log
from sdkeras.results.arrays import Value
from sdkeras.results.log import Measurement, RunLog
from sdkeras.runs.declare import WHAT
from sdkeras.runs.options import DEFAULT_PRESET, PRESETS, Options, measurement_options
from sdkeras_cli import conditions, options, request
from sdkeras_cli.output import Outputs, progress_bar, say, show_outputs

_DEFAULT_FOLDER, _PAGE = "track", "track.html"


@options.command("sdkeras track 'checkpoints/*.keras' --data train.npz --html track.html")
@click.argument("paths", nargs=-1, required=True, type=options.PATH, metavar="RUN | CHECKPOINT...")
@options.option("--data", type=click.Path(), metavar="DATA", group=WHAT, help="Data for checkpoints: FILE.npz, ...")
@options.option(
    "--test-data", type=click.Path(), metavar="DATA", group=WHAT, help="Test data, for loss and metrics on both."
)
@options.option("--model", type=click.Path(), metavar="FILE", group=WHAT, help="Compiled model for .weights.h5 files.")
@options.option(
    "--measures", metavar="NAME,NAME,...", group=WHAT, help="Measures, by the callback's keys; default: all."
)
@options.options_of(
    Options,
    *("batch_size", "learning_rate", "loss", "class_weight", "params"),
    *("bound_inputs", "estimate_bound_inputs", "memory_gb"),
    preset=options.unset("Values of the options that are left out; default quick."),
    samples=options.unset("Samples for the data-set Hessian; default by the preset, 1024 of quick."),
    mode=options.unset("Mode of dropout and batch normalization; default train."),
    dtype=options.unset("Default float32."),
    tolerance=options.unset("Target half-width over the codimension; default by the preset, 0.2 of quick."),
    max_hvps=options.unset("Hessian-vector products (HVPs) for a checkpoint's exponents; default 1000 with quick."),
    seed=options.unset("Default 0."),
    jit=options.unset("Whether products are compiled by XLA; default auto."),
    micro_batch=options.unset("Compute each batch in parts of at most N examples."),
    device=options.unset("Where products are made, as analyze takes it; default auto."),
)
@options.of_a_report(
    options.custom_objects,
    options.unsafe,
    options.out(f"the log and {_PAGE}; default: {_DEFAULT_FOLDER}, without the page"),
    options.report_to,
    options.option("--fail-if", "expression", metavar="EXPR", help="Exit with 3 if it holds for the last measurement."),
    options.option("--dry-run", is_flag=True, help="Show which checkpoints are measured already and which would be."),
)
def command(
    paths: tuple[str, ...], report_to: tuple[str, ...], expression: str | None, dry_run: bool, **parameters: Value
) -> int:
    """Show a training over time: sharpness against the threshold, exponents, sharpness dimension.

    Without --data: the log RUN, or the log in the folder RUN, that sdkeras.callbacks.SharpnessDimension(...,
    log_dir=RUN) writes, while it trains or afterwards.

    With --data: CHECKPOINTs (files, folders, patterns) are measured in their order, and the log is kept in --out.
    Interrupted or killed, the same command measures the rest.
    """
    condition = conditions.parse(expression, Measurement)
    outputs = Outputs.taken_from(parameters, ("", _PAGE))
    source = click.get_current_context().get_parameter_source
    chosen = {name: value for name, value in parameters.items() if source(name) is not ParameterSource.DEFAULT}
    if "data" in chosen:
        checkpoints, folder = in_order(list(paths)), _DEFAULT_FOLDER if outputs.out is None else outputs.out
        kept = str(Path(folder) / run_log.FILE_NAME)
        _check_inputs(checkpoints, chosen)
        pages = outputs.check([*checkpoints, chosen["data"], kept], dry_run=dry_run)
        if dry_run:
            _show_plan(checkpoints, folder, chosen)
            show_outputs([kept, *pages])
            return 0
        log = _measured(checkpoints, folder, chosen | {"report_to": report_to}, quiet=outputs.quiet)
        outputs.write(log, None, kept)
        status = _status(log, condition)
        failed = [measurement for measurement in log.measurements if measurement.failed]
        for each in failed:
            say(f"sdkeras: error: {shown(each.source)}: {'; '.join(each.notes)}", err=True)
        return 2 if failed else status
    _check_log(paths, chosen or ({"dry_run": True} if dry_run else {}))
    outputs.check([str(run_log.place_of(paths[0]))])
    log = run_log.read_run_log(paths[0])
    from sdkeras.reporting.trackers.reporter import reporting  # which draws

    with reporting(report_to, str(run_log.place_of(paths[0]).parent)) as reporter:
        outputs.write(log, show=not outputs.pages)
        if reporter:
            reporter.log(log)
    return _status(log, condition)


def _check_log(paths: tuple[str, ...], chosen: dict[str, Value]) -> None:
    """Refuses checkpoints without data, several logs, and options of checkpoints for a log."""
    if any(path.endswith((".keras", ".h5", ".hdf5")) for path in paths):
        raise SdkerasError("checkpoints are measured on data; give them (--data DATA).")
    if len(paths) > 1:
        raise SdkerasError(
            f"{' and '.join(map(shown, paths))}: one log at a time; checkpoints need data (--data DATA)."
        )
    if chosen:
        names = ", ".join(f"`{name}`" for name in chosen)
        raise SdkerasError(f"{names}: for checkpoints only; give their data as well (--data).")


def _check_inputs(paths: list[str], chosen: dict[str, Value]) -> None:
    """Refuses inputs that are not there."""
    request.check_inputs(chosen.get("model", paths[0]), chosen["data"], chosen.get("custom_objects"))
    if "test_data" in chosen:
        request.check_inputs(paths[0], chosen["test_data"], None)


def _measured(paths: list[str], folder: str, chosen: dict[str, Value], *, quiet: bool) -> RunLog:
    """The log after the checkpoints that it lacked were measured."""
    request.tensorflow_settings(quiet, chosen.get("device", "auto"))
    from sdkeras.runs.track import track

    if "custom_objects" in chosen:
        chosen["custom_objects"] = load_custom_objects(chosen["custom_objects"])
    if "measures" in chosen:
        chosen["measures"] = [name.strip() for name in chosen["measures"].split(",")]
    with progress_bar(quiet) as progress:
        data = request.load_training_data(chosen.pop("data"))
        if "test_data" in chosen:
            chosen["test_data"] = load_data(chosen["test_data"])
        return track(paths, data, log_dir=folder, progress=progress, **chosen)


def _status(log: RunLog, condition: conditions.Condition | None) -> int:
    """The exit status that `--fail-if` asks for."""
    if condition is None:
        return 0
    measured = run_log.trajectory(log)
    if not measured:
        raise SdkerasError("--fail-if: the log holds no measurement yet.")
    return conditions.exit_status(condition, conditions.numbers_of(measured[-1], "the last measurement"))


def _show_plan(paths: list[str], folder: str, chosen: dict[str, Value]) -> None:
    given = {name: chosen[name] for name in PRESETS[DEFAULT_PRESET] if name in chosen}
    say(f"preset {measurement_options(chosen.get('preset', DEFAULT_PRESET), given).preset_words}")
    left = run_log.pending(paths, folder)
    for path in paths:
        click.echo(f"{'to measure' if path in left else 'measured'}  {path}")
    logged = () if len(left) == len(paths) else run_log.read_run_log(folder).measurements
    done = [each.seconds for each in logged if not each.failed]
    estimate = f", about {len(left) * sum(done) / len(done):.0f} s" if done and left else ""
    click.echo(f"{len(left)} of {len(paths)} checkpoints to measure{estimate}")
