"""`sdkeras study plot DIR`: each measure against the gaps, without TensorFlow."""

from __future__ import annotations

import click

from sdkeras_cli import options


@click.command()
@click.argument("folder", type=click.Path(), metavar="DIR")
@options.quiet
@options.debug
def command(folder: str, quiet: bool) -> int:
    """Draw each measure of the study in DIR against each gap: a panel a measure, colour by learning rate.

    A bar is ± the error of a value, where that is known.

    Writes accuracy_gap.png, accuracy_gap.svg, loss_gap.png and loss_gap.svg into DIR.
    """
    from sdkeras.study.page import plot_study

    names = plot_study(folder)
    if not quiet:
        click.echo(f"written: {', '.join(names)} in {click.format_filename(folder)}")
    return 0
