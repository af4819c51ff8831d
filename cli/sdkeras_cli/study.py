"""`sdkeras study`: how measures go with generalization."""

from __future__ import annotations

import click

from sdkeras_cli.study_trajectory import command as trajectory


@click.group()
def command() -> None:
    """Measures of generalization over trainings."""


command.add_command(trajectory, "trajectory")
