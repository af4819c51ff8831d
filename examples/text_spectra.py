"""Curvature of a small language model after SGD, SGD with momentum and AdamW (Fig. 8 of the paper, smaller).

A decoder of 0.1 million parameters (--full: 0.6) learns the characters of Python's documentation. Each trained model is
analysed with the map of its own optimizer. The figure has the spectral density of the operator that the step sees (the
Hessian; for AdamW P^-1/2 H P^-1/2) and the density of the exponents of the step: ln |1 - eta a| for SGD, and both
exponents of each eigenvalue with momentum and for AdamW, P frozen.

    python examples/text_spectra.py [--full] [--quick] [--out FOLDER] [--results JSON]
"""

import argparse
import time
from pathlib import Path

import attrs
import keras
import numpy as np
from decoder import build, compiled
from matplotlib.figure import Figure
from result_files import interval_text, markdown, save

import sdkeras
from sdkeras.datasets import character_windows, load_documentation_text
from sdkeras.dimension.exponents import exponent_map

BATCH = 32
SYMBOLS = 96
# Standard deviation of the kernel of a drawn density, as a part of the width of the picture.
BANDWIDTH = 0.008


@attrs.frozen
class Size:
    """The decoder, the training and the analysis."""

    context: int = 64
    width: int = 64
    depth: int = 2
    heads: int = 4
    epochs: int = 4
    samples: int = 128
    max_hvps: int | None = 800


USUAL = Size()
FULL = Size(context=128, width=128, depth=3, epochs=20, samples=1024, max_hvps=None)
QUICK = Size(context=16, width=16, depth=1, heads=2, epochs=0, samples=32, max_hvps=150)
TITLES = ("SGD", "SGD with momentum", "AdamW")


def optimizer(title: str) -> keras.optimizers.Optimizer:
    """Of each training; rates at which it trains well."""
    if title == "AdamW":
        return keras.optimizers.AdamW(2e-3, weight_decay=0.01)
    return keras.optimizers.SGD(0.5) if title == "SGD" else keras.optimizers.SGD(0.1, momentum=0.9)


@attrs.frozen
class Trained:
    """A trained model, its analysis, and its loss and accuracy over the data of training and of the test."""

    title: str
    run: sdkeras.Analysis
    scores: tuple[float, float]
    test_scores: tuple[float, float]
    seconds: tuple[float, float]


def train_and_analyse(title: str, size: Size) -> Trained:
    """The same first weights and the same order of the data in all trainings."""
    keras.utils.set_random_seed(0)
    train, test = character_windows(load_documentation_text(), size.context)
    model = compiled(build(SYMBOLS, size.context, size.width, size.depth, size.heads), optimizer(title))
    start = time.perf_counter()
    if size.epochs:
        model.fit(*train, batch_size=BATCH, epochs=size.epochs, verbose=0)
    else:
        model.fit(*(part[: 4 * BATCH] for part in train), batch_size=BATCH, verbose=0)
    trained = time.perf_counter()
    scores = [tuple(model.evaluate(*(part[:1000] for part in data), verbose=0)) for data in (train, test)]
    start_of_analysis = time.perf_counter()
    run = sdkeras.analyze(model, train, batch_size=BATCH, samples=size.samples, max_hvps=size.max_hvps, tolerance=0.1)
    return Trained(title, run, *scores, (trained - start, time.perf_counter() - start_of_analysis))


def exponents(run: sdkeras.Analysis) -> tuple[np.ndarray, np.ndarray]:
    """The exponents of the analysed step and the mass of each, of all its eigenvalues."""
    step = run.sharpness_dimension.map
    settings = {"momentum": run.optimizer.momentum, "weight_decay": run.optimizer.weight_decay}
    own = exponent_map(step, run.optimizer.learning_rate, **({} if step == "hessian" else settings))
    return own(run.spectrum.nodes), own.spread(run.spectrum.weights)


def density(at: np.ndarray, points: np.ndarray, masses: np.ndarray, bandwidth: float) -> np.ndarray:
    """Density of a measure of mass 1 after smoothing with a Gaussian."""
    kernel = np.exp(-0.5 * ((at[:, None] - points) / bandwidth) ** 2) / (bandwidth * np.sqrt(2 * np.pi))
    return kernel @ (masses / masses.sum())


def draw(trainings: list[Trained]) -> Figure:
    """A column for each training: eigenvalues above, exponents below."""
    figure = Figure(figsize=(12, 6.6), layout="constrained")
    for column, one in zip(figure.subplots(2, len(trainings), squeeze=False).T, trainings, strict=True):
        run = one.run
        edge, whole = run.edge_of_stability, run.sharpness_dimension
        ends = [run.spectrum.nodes.min(), run.spectrum.nodes.max(), edge.threshold]
        _draw(column[0], (run.spectrum.nodes, run.spectrum.weights), ends)
        column[0].axvline(edge.threshold, color="C3", linestyle="--", linewidth=1, label="threshold")
        column[0].set_title(f"{one.title}, η = {run.optimizer.learning_rate:.3g}", fontsize=12)
        column[0].set_xlabel(f"eigenvalue of {run.spectrum.operator}")
        z, masses = exponents(run)
        _draw(column[1], (z, masses), [z.min(), z.max(), 0.0])
        column[1].axvline(0.0, color="C7", linewidth=1, label="neutral")
        if whole.threshold_exponent is not None:
            column[1].axvline(whole.threshold_exponent, color="C3", linestyle="--", linewidth=1, label="t*")
        column[1].set_xlabel(f"exponent of the step ({whole.map}), {whole.state_size:,} of them")
        for axes in column:
            axes.legend(loc="upper right", frameon=False, fontsize=9)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_ylabel("density")
    return figure


def _draw(axes, measure: tuple[np.ndarray, np.ndarray], ends: list[float]) -> None:
    low, high = min(ends), max(ends)
    room = 0.05 * (high - low)
    at = np.linspace(low - room, high + room, 1200)
    values = density(at, *measure, BANDWIDTH * (high - low))
    # One direction of the whole is about the least that can be seen.
    floor = values.max() * 1e-8
    axes.semilogy(at, np.maximum(values, floor), color="C0")
    axes.fill_between(at, floor, np.maximum(values, floor), color="C0", alpha=0.3)
    axes.set_ylim(floor, 4 * values.max())


def results(trainings: list[Trained]) -> list[dict]:
    """A row for each training: losses and accuracies of training and test, then the analysis."""
    rows = []
    for one in trainings:
        run = one.run
        dimension = run.sharpness_dimension
        rows.append(
            {
                "training": one.title,
                "losses": [one.scores[0], one.test_scores[0]],
                "accuracies": [one.scores[1], one.test_scores[1]],
                "sharpness": run.hessian.largest.value,
                "ratio": run.edge_of_stability.ratio,
                "sd": dimension.value,
                "interval": dimension.interval,
                "state_size": dimension.state_size,
                "codimension": dimension.codimension,
                "lambda_1": float(run.rds_sharpness.leading[0]),
                "trace": run.hessian.trace.value,
                "trace_stderr": run.hessian.trace.stderr,
                "finite_difference_error": run.verification.finite_difference_error,
                "rounding_error": run.verification.hvp_relative_error,
                "verification": "passed" if run.verification.passed else "FAILED",
            }
        )
    return rows


def table(rows: list[dict]) -> str:
    columns = {
        "training": "{training}",
        "loss: train, test": "{losses[0]:.3f}, {losses[1]:.3f}",
        "accuracy: train, test": "{accuracies[0]:.3f}, {accuracies[1]:.3f}",
        "sharpness": "{sharpness:.3g}",
        "ratio": "{ratio:.3g}",
        "SD": "{sd:,.0f} {interval_text} of {state_size:,}",
        "codimension": "{codimension:,.0f}",
        "lambda_1": "{lambda_1:.3g}",
        "trace": "{trace:,.4g} ± {trace_stderr:.2g}",
        "HVP error, rounding": "{finite_difference_error:.1g}, {rounding_error:.1g} {verification}",
    }
    return markdown([row | {"interval_text": interval_text(row["interval"])} for row in rows], columns)


def main() -> None:
    parser = argparse.ArgumentParser(description="Spectra of a small language model after three trainings.")
    parser.add_argument("--full", action="store_true", help="0.6 million parameters, trained longer, no limit")
    parser.add_argument("--quick", action="store_true", help="a tiny model, hardly trained, as a smoke test")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, metavar="FOLDER", help="of text_spectra.png")
    parser.add_argument("--results", type=Path, metavar="JSON", help="save the numbers of the table there")
    options = parser.parse_args()
    size = FULL if options.full else QUICK if options.quick else USUAL
    trainings = []
    for title in TITLES:
        one = train_and_analyse(title, size)
        trainings.append(one)
        print(f"{title}: trained in {one.seconds[0]:.0f} s, analysed in {one.seconds[1]:.0f} s", flush=True)
        for note in one.run.warnings:
            print(f"  {note.code}: {note.message}")
    options.out.mkdir(parents=True, exist_ok=True)
    draw(trainings).savefig(options.out / "text_spectra.png", dpi=100)
    rows = results(trainings)
    print(table(rows))
    if options.results is not None:
        save(options.results, rows)
    print(f"\nThe figure is in {options.out / 'text_spectra.png'}.")


if __name__ == "__main__":
    main()
