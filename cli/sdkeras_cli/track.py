"""`sdkeras track`: a training over time, from the callback's log, or from its checkpoints."""

from __future__ import annotations

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
from sdkeras.runs.options import Options
from sdkeras_cli import conditions, options
from sdkeras_cli.console import say
from sdkeras_cli.output import check_outputs
from sdkeras_cli.request import check_inputs, load_training_data

_DEFAULT_FOLDER = "track"


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(), metavar="RUN | CHECKPOINT...")
@click.option("--data", type=click.Path(), metavar="DATA", help="Data for checkpoints: FILE.npz, X.npy,Y.npy, ...")
@click.option("--test-data", type=click.Path(), metavar="DATA", help="Test data, for loss and metrics on both.")
@click.option("--model", type=click.Path(), metavar="FILE", help="Compiled model for .weights.h5 files.")
@click.option("--out", "log_dir", type=click.Path(), metavar="DIR", help="Folder of the log; default: track.")
@click.option("--measures", metavar="NAME,NAME,...", help="Measures, by the callback's keys; default: all.")
@options.options_of(
    Options,
    *("batch_size", "learning_rate", "loss", "class_weight", "params"),
    *("bound_inputs", "estimate_bound_inputs", "memory_gb"),
    samples=options.unset("Samples for the data-set Hessian; default 1024."),
    mode=options.unset("Mode of dropout and batch normalization; default train."),
    dtype=options.unset("Default float32."),
    tolerance=options.unset("Target half-width over the codimension; default 0.2."),
    max_hvps=options.unset("Hessian-vector products (HVPs) for a checkpoint's exponents; default 1000."),
    seed=options.unset("Default 0."),
)
@options.custom_objects
@options.unsafe
@options.html
@click.option("--fail-if", "expression", metavar="EXPR", help="Exit with 3 if it holds for the last measurement.")
@click.option("--dry-run", is_flag=True, help="Show which checkpoints are measured already and which would be.")
@options.quiet
@options.debug
def command(
    paths: tuple[str, ...],
    html_path: str | None,
    expression: str | None,
    dry_run: bool,
    quiet: bool,
    **parameters: options.Value,
) -> int:
    """Show a training over time: sharpness against the threshold, exponents, sharpness dimension.

    Without --data: the log RUN, or the log in the folder RUN, that sdkeras.callbacks.SharpnessDimension(...,
    log_dir=RUN) writes, while it trains or afterwards.

    With --data: CHECKPOINTs (files, folders, patterns) are measured in their order, and the log is kept in --out.
    Interrupted or killed, the same command measures the rest.

    \f

    Raises:
        SdkerasError: Checkpoints without data, several logs, or options of checkpoints for a log.
    """
    condition = None if expression is None else conditions.parse(expression, Measurement)
    source = click.get_current_context().get_parameter_source
    chosen = {name: value for name, value in parameters.items() if source(name) is not ParameterSource.DEFAULT}
    if "data" in chosen:
        return _measure(list(paths), chosen, html_path, condition, dry_run=dry_run, quiet=quiet)
    if any(path.endswith((".keras", ".h5", ".hdf5")) for path in paths):
        raise SdkerasError("checkpoints are measured on data; give them (--data DATA).")
    if len(paths) > 1:
        raise SdkerasError(
            f"{' and '.join(map(shown, paths))}: one log at a time; checkpoints need data (--data DATA)."
        )
    if chosen or dry_run:
        names = ", ".join(f"`{name}`" for name in chosen or ["dry_run"])
        raise SdkerasError(f"{names}: for checkpoints only; give their data as well (--data).")
    if html_path is not None:
        check_outputs([html_path], [str(run_log.place_of(paths[0]))])
    return _show(run_log.read_run_log(paths[0]), html_path, condition, quiet=quiet or html_path is not None)


def _measure(
    patterns: list[str],
    chosen: dict[str, Value],
    html_path: str | None,
    condition: conditions.Expression | None,
    *,
    dry_run: bool,
    quiet: bool,
) -> int:
    paths = in_order(patterns)
    folder = chosen.pop("log_dir", _DEFAULT_FOLDER)
    data, test_data, custom_objects = (chosen.pop(name, None) for name in ("data", "test_data", "custom_objects"))
    check_inputs(chosen.get("model", paths[0]), data, custom_objects)
    if test_data is not None:
        check_inputs(paths[0], test_data, None)
    if html_path is not None:
        check_outputs([html_path], [*paths, data])
    if "measures" in chosen:
        chosen["measures"] = [name.strip() for name in chosen["measures"].split(",")]

    from sdkeras_cli.main import tensorflow_settings
    from sdkeras_cli.progress import progress_bar

    if dry_run:
        _show_plan(paths, folder, html_path)
        return 0
    tensorflow_settings()
    from sdkeras.runs.track import track

    objects = load_custom_objects(custom_objects) if custom_objects else None
    with progress_bar(quiet) as progress:
        log = track(
            paths,
            load_training_data(data),
            test_data=None if test_data is None else load_data(test_data),
            log_dir=folder,
            custom_objects=objects,
            progress=progress,
            **chosen,
        )
    status = _show(log, html_path, condition, quiet=quiet)
    failed = [measurement for measurement in log.measurements if measurement.failed]
    for each in failed:
        say(f"sdkeras: error: {shown(each.source)}: {'; '.join(each.notes)}", err=True)
    return 2 if failed else status


def _show(log: RunLog, html_path: str | None, condition: conditions.Expression | None, *, quiet: bool) -> int:
    """The log as a page and in the terminal; the exit status that `--fail-if` asks for."""
    from sdkeras.reporting.html import save_html
    from sdkeras.reporting.terminal import render
    from sdkeras_cli.report import status_of

    if html_path is not None:
        save_html(log, html_path)
    if not quiet:
        from sdkeras_cli.console import console

        console().print(render(log))
    if condition is None:
        return 0
    measured = run_log.trajectory(log)
    if not measured:
        raise SdkerasError("--fail-if: the log holds no measurement yet.")
    return status_of(condition, conditions.numbers_of(measured[-1], "the last measurement"))


def _show_plan(paths: list[str], folder: str, html_path: str | None) -> None:
    from sdkeras.results.log import pending, read_run_log

    left = pending(paths, folder)
    for path in paths:
        click.echo(f"{'to measure' if path in left else 'measured'}  {path}")
    done = [] if len(left) == len(paths) else [each for each in read_run_log(folder).measurements if not each.failed]
    estimate = f", about {len(left) * sum(each.seconds for each in done) / len(done):.0f} s" if done and left else ""
    click.echo(f"{len(left)} of {len(paths)} checkpoints to measure{estimate}")
    files = [f"{folder}/{run_log.FILE_NAME}", *([html_path] if html_path else [])]
    click.echo(f"files to be written: {', '.join(files)}")
