"""`sdkeras study`: train a grid of models and see which measures correlate with generalization."""

from __future__ import annotations

import click

from sdkeras_cli.lazy_group import LazyGroup

_COMMANDS = {
    "run": ("sdkeras_cli.study_run", "Train and measure the runs of a grid, or resume an unfinished one."),
    "correlate": ("sdkeras_cli.study_correlate", "Correlate the measures of a study with its generalization gaps."),
    "trajectory": (
        "sdkeras_cli.study_trajectory",
        "Measure the size of a weight trajectory: E_alpha and PH dimension.",
    ),
    "plot": ("sdkeras_cli.study_plot", "Draw the measures of a study against its generalization gaps."),
}


@click.group(cls=LazyGroup, modules=_COMMANDS)
def command() -> None:
    """Train a grid of models and see which measures correlate with generalization."""
