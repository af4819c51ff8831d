"""The files that a study's folder gets: tables, correlations, page and figures."""

from __future__ import annotations

import os
from pathlib import Path

from sdkeras.reporting.drawing import as_image
from sdkeras.reporting.html import save_html
from sdkeras.results.document import write_atomically
from sdkeras.study.correlations import TARGETS, Correlations
from sdkeras.study.figures import save_heat_map, scatter
from sdkeras.study.page import study_report
from sdkeras.study.results import Results, read_results

FILES = ("runs.csv", "correlations.csv", "correlations.json", "heat_map.png", "heat_map.svg", "study.html")


def correlate_study(folder: str | os.PathLike[str]) -> tuple[Results, Correlations]:
    """Correlates every measure of a study with its gaps and writes `FILES` into its folder.

    A SdkerasError says that the folder is not a study's, that fewer than 2 runs are done, or which file cannot be
    written; the same from `plot_study`.
    """
    results = read_results(folder)
    correlations = results.correlations()
    place = Path(folder)
    write_atomically(place / "runs.csv", results.to_csv(), follow_links=False)
    write_atomically(place / "correlations.csv", correlations.to_csv(), follow_links=False)
    correlations.save(place / "correlations.json", follow_links=False)
    for name in ("heat_map.png", "heat_map.svg"):
        save_heat_map(correlations, place / name)
    save_html(study_report(results, correlations), place / "study.html")
    return results, correlations


def plot_study(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """Draws each measure against each gap that the runs have, as PNG and SVG into the folder; returns their names."""
    results = read_results(folder)
    results.check_enough("a scatter plot")
    drawn = [target for target in TARGETS if any(row.gap(target) is not None for row in results.done)]
    names = []
    for target in drawn or TARGETS[-1:]:
        figure = scatter(results, target)
        for suffix in ("png", "svg"):
            names.append(f"{target}.{suffix}")
            write_atomically(Path(folder) / names[-1], as_image(figure, suffix))
    return tuple(names)
