"""Numerator and threshold of the ratio stand beside it wherever it is printed, and divide to it."""

import csv
import html
import io
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from rich.console import Console

import sdkeras
from sdkeras.reporting.build import report_of
from sdkeras.reporting.html import as_html
from sdkeras.reporting.terminal import render
from sdkeras.results.log import read_run_log
from small_nets import X, Y

NUMBER = r"([\d.,e+-]+?)"


def values(text: str, pattern: str) -> tuple[float, ...]:
    """The numbers of the pattern's groups in a text, boxes and line breaks aside."""
    found = re.search(pattern, " ".join(text.replace("│", "").split()))
    assert found is not None, pattern
    return tuple(float(part.replace(",", "")) for part in found.groups())


def divides(numerator: float, threshold: float, ratio: float, digits: int) -> None:
    """To half a unit of each number's last digit: 4 digits of numerator and threshold, `digits` of the ratio."""
    allowed = 2 * 0.5 * 10**-3 + 0.5 * 10 ** (1 - digits)
    assert abs(numerator / threshold / ratio - 1) <= allowed


@pytest.fixture(scope="module", params=["Adam", "SGD"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, keras.Model, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)], name="logistic")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(getattr(keras.optimizers, request.param)(0.125), loss)
    callback = sdkeras.callbacks.SharpnessDimension(
        (X, Y), batch_size=16, measures=("sharpness", "sharpness_ratio"), max_overhead=None, log_dir=folder
    )
    model.fit(
        X, Y, batch_size=16, epochs=2, verbose=0, callbacks=[callback, keras.callbacks.CSVLogger(folder / "log.csv")]
    )
    return request.param, model, folder


def test_csv_and_log_hold_both_sharpnesses(trained) -> None:
    name, _, folder = trained
    rows = list(csv.DictReader((folder / "log.csv").read_text().splitlines()))
    lines = read_run_log(folder).measurements
    assert len(rows) == len(lines) == 2
    for row, line in zip(rows, lines, strict=True):
        keys = ("sharpness", "sharpness_preconditioned", "sharpness_threshold", "sharpness_ratio")
        of_h, numerator, threshold, ratio = (float(row[key]) for key in keys)
        assert [line.value(key) for key in keys] == [of_h, numerator, threshold, ratio]
        assert ratio == pytest.approx(numerator / threshold, rel=1e-15)
        assert (numerator == of_h) == (name == "SGD") == (line.operator == "H")
        # Logistic regression: H is at most 1/2 of the inputs' second moments.
        assert of_h <= 0.5 * np.linalg.eigvalsh(np.cov(X.T, bias=True) + np.outer(X.mean(0), X.mean(0)))[-1] + 0.6


def test_track_in_terminal_and_page(trained) -> None:
    name, _, folder = trained
    log = read_run_log(folder)
    what = "sharpness" if name == "SGD" else "preconditioned sharpness"
    console = Console(width=120, color_system=None, highlight=False, file=io.StringIO())
    console.print(render(log))
    text = console.file.getvalue()
    for shown in (text, as_html(log)):
        numerator, ratio, threshold = values(
            shown, rf"(?i:{what}) {NUMBER} is {NUMBER} times the threshold {NUMBER} of {name}"
        )
        divides(numerator, threshold, ratio, 3)
    ratio, numerator, threshold = values(
        text, rf"{what.capitalize()} / threshold {NUMBER} \({NUMBER} / {NUMBER} at step"
    )
    divides(numerator, threshold, ratio, 3)
    table = next(table for table in report_of(log).tables if table.only == "page")
    columns, cells = table.columns, [cell.text for cell in table.rows[-1]]
    shown = "sharpness" if name == "SGD" else "preconditioned"
    numerator, threshold, ratio = (float(cells[columns.index(key)]) for key in (shown, "threshold", "ratio"))
    divides(numerator, threshold, ratio, 3)
    assert ("preconditioned" in columns) == (name == "Adam")
    header = next(line for line in text.splitlines() if " sharpness" in line and " ratio" in line)
    assert header.split().index(shown) < header.split().index("threshold") < header.split().index("ratio")


def test_report_in_terminal_and_page(trained) -> None:
    name, model, _ = trained
    run = sdkeras.analyze(model, (X, Y), batch_size=16, max_hvps=1500)
    what = "sharpness" if name == "SGD" else "preconditioned sharpness"
    page = html.unescape(re.sub(r"<[^>]+>", " ", as_html(run)))
    for shown in (str(run), page):
        said = rf"(?i:{what}) {NUMBER} is {NUMBER} times the threshold \S+ = {NUMBER} of"
        numerator, ratio, threshold = values(shown, said)
        divides(numerator, threshold, ratio, 2)
        block = shown[shown.rindex("Edge of stability") :]
        rows = rf"^Edge of stability {what} {NUMBER} .*?threshold {NUMBER} .*?ratio {NUMBER} "
        divides(*values(block, rows), 3)
        under = " ".join(block.partition("ratio")[2].split())[:60]
        assert ("batch sharpness" in under) == (name == "SGD")
        assert re.search(r"over [\d,]+ minibatches, of H", " ".join(shown.split()))
    gauge = rf"the edge {NUMBER}(?: →)? 0 2 {what.capitalize()} {NUMBER} over the optimizer's .*? threshold {NUMBER}\. "
    ratio, numerator, threshold = values(page, gauge)
    divides(numerator, threshold, ratio, 3)
    assert run.edge_of_stability.operator == ("H" if name == "SGD" else "P^-1/2 H P^-1/2")
