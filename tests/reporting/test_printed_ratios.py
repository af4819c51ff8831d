"""Numerator and threshold of the ratio stand beside it wherever it is printed, and divide to it."""

import csv
import re
from pathlib import Path

import keras
import numpy as np
import pytest

import sdkeras
from sdkeras.reporting.build import report_of
from sdkeras.reporting.terminal import as_text
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


@pytest.fixture(scope="module", params=["Adam", pytest.param("SGD", marks=pytest.mark.slow)])
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


def test_track_says_what_it_divides(trained) -> None:
    name, _, folder = trained
    log = read_run_log(folder)
    what = "sharpness" if name == "SGD" else "preconditioned sharpness"
    text = as_text(log, 120)
    said = rf"(?i:{what}) {NUMBER} is {NUMBER} times the threshold {NUMBER} of {name}"
    numerator, ratio, threshold = values(text, said)
    divides(numerator, threshold, ratio, 3)
    card = rf"{what.capitalize()} / threshold {NUMBER} \({NUMBER} / {NUMBER} at step"
    ratio, numerator, threshold = values(text, card)
    divides(numerator, threshold, ratio, 3)
    shown = "sharpness" if name == "SGD" else "preconditioned"
    for table in report_of(log).tables:
        numerator, threshold, ratio = (
            float(table.rows[-1][table.columns.index(key)].text) for key in (shown, "threshold", "ratio")
        )
        divides(numerator, threshold, ratio, 3)
        assert ("preconditioned" in table.columns) == (name == "Adam")
        places = [table.columns.index(key) for key in (shown, "threshold", "ratio")]
        assert places == sorted(places)


def test_a_report_says_what_it_divides(trained) -> None:
    name, model, _ = trained
    run = sdkeras.analyze(model, (X, Y), batch_size=16, max_hvps=1500)
    what, text = "sharpness" if name == "SGD" else "preconditioned sharpness", str(run)
    said = rf"(?i:{what}) {NUMBER} is {NUMBER} times the threshold \S+ = {NUMBER} of"
    numerator, ratio, threshold = values(text, said)
    divides(numerator, threshold, ratio, 2)
    block = text[text.rindex("Edge of stability") :]
    rows = rf"^Edge of stability {what} {NUMBER} .*?threshold {NUMBER} .*?ratio {NUMBER} "
    divides(*values(block, rows), 3)
    under = " ".join(block.partition("ratio")[2].split())[:60]
    assert ("batch sharpness" in under) == (name == "SGD")
    assert re.search(r"over [\d,]+ minibatches \(gradient g, Hessian H\)", " ".join(text.split()))
    gauge = report_of(run).gauge
    numerator, threshold = values(
        gauge.text, rf"^{what.capitalize()} {NUMBER} over the optimizer's .*? threshold {NUMBER}\. "
    )
    divides(numerator, threshold, float(gauge.shown), 3)
    assert run.edge_of_stability.operator == ("H" if name == "SGD" else "P^-1/2 H P^-1/2")
