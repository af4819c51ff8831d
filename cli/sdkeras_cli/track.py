"""`sdkeras track RUN`: a training over time, from the log that the callback has written, without TensorFlow."""

from __future__ import annotations

import click

from sdkeras.reporting import run_log
from sdkeras_cli.output import check_outputs


@click.command()
@click.argument("run", type=click.Path())
@click.option("--html", "html_path", type=click.Path(), metavar="OUT", help="Write the page here.")
@click.option("--quiet", is_flag=True, help="No table in the terminal.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def command(run: str, html_path: str | None, quiet: bool, debug: bool) -> int:
    """Show the training whose log is RUN, or in the folder RUN, while it runs or afterwards.

    sdkeras.callbacks.SharpnessDimension(..., log_dir=RUN) writes the log.
    """
    del debug
    if html_path is not None:
        check_outputs([html_path], [str(run_log.place_of(run))])
    log = run_log.read_run_log(run)
    from sdkeras.reporting.track import render, save_html

    if html_path is not None:
        save_html(log, html_path)
    if not quiet and html_path is None:
        from rich.console import Console

        Console(highlight=False).print(render(log))
    return 0
