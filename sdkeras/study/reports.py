"""What a study's folder is told to say: correlations with table and page, and figures."""

from __future__ import annotations

import os
from pathlib import Path

from sdkeras.results.document import write_atomically
from sdkeras.study.correlations import TARGETS, Correlations
from sdkeras.study.heat_map import save_heat_map
from sdkeras.study.page import save_html
from sdkeras.study.results import Results, read_results
from sdkeras.study.scatter import has_gap, save_scatter

FILES = ("runs.csv", "correlations.csv", "correlations.json", "heat_map.png", "heat_map.svg", "study.html")


def correlate_study(folder: str | os.PathLike[str]) -> tuple[Results, Correlations]:
    """Correlates every measure of a study with its gaps and writes `FILES` into its folder.

    Raises:
        SdkerasError: It is no folder of a study, fewer than 2 runs are done, or a file cannot be written.
    """
    results = read_results(folder)
    found = results.correlations()
    place = Path(folder)
    write_atomically(place / "runs.csv", results.to_csv(), follow_links=False)
    write_atomically(place / "correlations.csv", found.to_csv(), follow_links=False)
    found.save(place / "correlations.json", follow_links=False)
    for name in ("heat_map.png", "heat_map.svg"):
        save_heat_map(found, place / name)
    save_html(results, found, place / "study.html")
    return results, found


def plot_study(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """Draws each measure against each gap that the runs have, as PNG and SVG into the folder; returns their names.

    Raises:
        SdkerasError: It is no folder of a study, fewer than 2 runs are done, or a file cannot be written.
    """
    results = read_results(folder)
    results.check_enough("a scatter plot")
    drawn = [target for target in TARGETS if has_gap(results, target)] or [TARGETS[-1]]
    names = tuple(f"{target}.{suffix}" for target in drawn for suffix in ("png", "svg"))
    for name in names:
        save_scatter(results, name.partition(".")[0], Path(folder) / name)
    return names
