"""Draws the documentation's figures from docs/runs, by the functions that draw sdkeras' pages: `make docs-figures`."""

from pathlib import Path

from sdkeras.reporting import figures
from sdkeras.reporting.drawing import as_image
from sdkeras.reporting.track_figures import edge_over_time
from sdkeras.results.answers import Analysis
from sdkeras.results.document import write_atomically
from sdkeras.results.log import read_run_log

HERE = Path(__file__).parent
RUNS, FIGURES = HERE / "runs", HERE / "figures"


def main() -> None:
    healthy, edge, dead = (Analysis.load(RUNS / f"{name}.json") for name in ("healthy", "edge", "dead-relu"))
    drawn = {
        "sharpness": figures.spectral_density(healthy),
        "edge-of-stability": edge_over_time(read_run_log(RUNS / "edge" / "sharpness.jsonl").measurements),
        "catapult": edge_over_time(read_run_log(RUNS / "catapult" / "sharpness.jsonl").measurements),
        "exponents": figures.rds_exponents(healthy),
        "sharpness-dimension": figures.cumulative_sum(healthy),
        "codimension": figures.rds_exponents(dead),
        "expansion": figures.cumulative_sum(edge),
    }
    FIGURES.mkdir(exist_ok=True)
    for name, figure in drawn.items():
        if figure is None:
            raise SystemExit(f"docs/runs has no numbers for the figure {name}; python docs/gallery.py makes them.")
        write_atomically(FIGURES / f"{name}.svg", as_image(figure, "svg").decode("utf-8"))


if __name__ == "__main__":
    main()
