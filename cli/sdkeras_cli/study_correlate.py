"""`sdkeras study correlate DIR`: coefficients of every measure with the gaps, without TensorFlow."""

from __future__ import annotations

import click

from sdkeras_cli import options


@click.command()
@click.argument("folder", type=click.Path(), metavar="DIR")
@options.quiet
@options.debug
def command(folder: str, quiet: bool) -> int:
    """Correlate the measures of the study in DIR with its generalization gaps.

    Writes runs.csv, correlations.csv, correlations.json, heat_map.png, heat_map.svg and study.html into DIR.
    """
    from sdkeras.reporting.terminal import render
    from sdkeras.study.page import FILES, correlate_study

    report = correlate_study(folder)
    if not quiet:
        from sdkeras_cli.console import console

        console().print(render(report))
        click.echo(f"written: {', '.join(FILES)} in {click.format_filename(folder)}")
    return 0
