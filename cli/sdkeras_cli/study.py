"""`sdkeras study`: its commands; `correlate` and `plot` read the folder of a study, without TensorFlow."""

from __future__ import annotations

from pathlib import Path

import click

from sdkeras_cli import options
from sdkeras_cli.main import LazyGroup
from sdkeras_cli.output import Outputs, open_in_browser, say_written

_COMMANDS = {
    "run": ("sdkeras_cli.study_run:command", "Train and measure the runs of a grid, or resume an unfinished one."),
    "correlate": ("sdkeras_cli.study:correlate", "Correlate the measures of a study with its generalization gaps."),
    "trajectory": (
        "sdkeras_cli.study_trajectory:command",
        "Measure the size of a weight trajectory: E_alpha and PH dimension.",
    ),
    "plot": ("sdkeras_cli.study:plot", "Draw the measures of a study against its generalization gaps."),
}


@click.group(cls=LazyGroup, modules=_COMMANDS)
def command() -> None:
    """Train a grid of models and see which measures correlate with generalization."""


@options.command("sdkeras study correlate DIR --open")
@click.argument("folder", type=options.PATH, metavar="DIR")
@options.open_page
@options.quiet
@options.debug
def correlate(folder: str, open_page: bool, quiet: bool) -> int:
    """Correlate the measures of the study in DIR with its generalization gaps.

    Writes runs.csv, correlations.csv, correlations.json, heat_map and matrix as .png and .svg and study.html into DIR.
    """
    from sdkeras.study.page import FILES, correlate_study

    Outputs(quiet=quiet).write(correlate_study(folder), None, *(str(Path(folder) / name) for name in FILES))
    if open_page:
        open_in_browser(str(Path(folder) / "study.html"))
    return 0


@options.command("sdkeras study plot DIR")
@click.argument("folder", type=options.PATH, metavar="DIR")
@options.quiet
@options.debug
def plot(folder: str, quiet: bool) -> int:
    """Draw each measure of the study in DIR against each gap: a panel a measure, colour by learning rate.

    A bar is ± the error of a value, where that is known.

    Writes accuracy_gap.png, accuracy_gap.svg, loss_gap.png and loss_gap.svg into DIR.
    """
    from sdkeras.study.page import plot_study

    names = plot_study(folder)
    if not quiet:
        say_written([str(Path(folder) / name) for name in names])
    return 0
