"""`sdkeras study correlate DIR`: coefficients of every measure with the gaps, without TensorFlow."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(), metavar="DIR")
@click.option("--quiet", is_flag=True, help="Nothing in the terminal.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def command(folder: str, quiet: bool, debug: bool) -> int:
    """Correlate the measures of the study in DIR with its generalization gaps.

    Writes runs.csv, correlations.csv, correlations.json, heat_map.png, heat_map.svg and study.html into DIR.
    """
    del debug
    from sdkeras.reporting.schema import write_atomically
    from sdkeras.study.heat_map import save_heat_map
    from sdkeras.study.page import render, save_html
    from sdkeras.study.results import read_results

    results = read_results(folder)
    found = results.correlations()
    place = Path(folder)
    write_atomically(place / "runs.csv", results.to_csv())
    write_atomically(place / "correlations.csv", found.to_csv())
    found.save(place / "correlations.json")
    for name in ("heat_map.png", "heat_map.svg"):
        save_heat_map(found, place / name)
    save_html(results, found, place / "study.html")
    if not quiet:
        from rich.console import Console

        Console(highlight=False).print(render(results, found))
        click.echo(
            f"written: runs.csv, correlations.csv, correlations.json, heat_map.png, heat_map.svg, study.html "
            f"in {click.format_filename(folder)}"
        )
    return 0
