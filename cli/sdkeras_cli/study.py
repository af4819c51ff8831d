"""`sdkeras study`: many trainings, and which measures go with generalization."""

from __future__ import annotations

import click

from sdkeras_cli.lazy_group import LazyGroup

_COMMANDS = {
    "run": ("sdkeras_cli.study_run", "Train and measure the runs of a grid, or go on where it stopped."),
    "correlate": ("sdkeras_cli.study_correlate", "Correlate the measures of a study with its generalization gaps."),
    "trajectory": (
        "sdkeras_cli.study_trajectory",
        "How large a trajectory of the weights is: E_alpha and PH dimension.",
    ),
    "plot": ("sdkeras_cli.study_plot", "Draw the measures of a study against its generalization gaps."),
}


@click.group(cls=LazyGroup, modules=_COMMANDS)
def command() -> None:
    """Many trainings, and which measures go with generalization."""
