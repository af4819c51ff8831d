"""`sdkeras analyze --snapshots N --every M` on the digits, from the file to the page."""

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest

import sdkeras
from sdkeras.datasets import load_digits

layers = keras.layers
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    x, y = load_digits()
    np.savez(folder / "digits.npz", x=x[:300], y=y[:300])
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8, 8)), layers.Flatten(), layers.Dense(8, "tanh"), layers.Dense(10)])
    model.compile(
        keras.optimizers.AdamW(3e-3, weight_decay=1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    model.fit(x[:300], y[:300], epochs=3, verbose=0)
    model.save(folder / "model.keras")
    return folder


def test_the_supremum_is_in_every_report(files: Path, tmp_path: Path, in_process: Command) -> None:
    model, data = files / "model.keras", files / "digits.npz"
    before = model.read_bytes()
    out, page = tmp_path / "run.json", tmp_path / "report.html"
    options = ("--snapshots", 3, "--every", 20, "--tolerance", 0.5)
    status, text, error = in_process("analyze", model, "--data", data, *options, "--json", out, "--html", page)
    assert status == 0, error
    assert model.read_bytes() == before
    run = sdkeras.Analysis.load(out)
    found = run.supremum
    assert found.steps == (0, 20, 40)
    assert found.approximate
    assert found.num_minibatches == run.sharpness_dimension.num_runs
    assert found.value >= found.per_snapshot_values.max()
    assert found.single_point_value == pytest.approx(run.sharpness_dimension.quantile_average, abs=1e-6)
    assert found.num_hvps == 2 * found.num_minibatches * run.sharpness_dimension.num_steps
    assert "Supremum over 3 snapshots" in text
    assert "after 40 steps" in text
    html = page.read_text()
    for wanted in ('id="snapshots"', "Snapshots and their supremum", "supremum-", "approximate"):
        assert wanted in html
    assert in_process("report", out, "--html", tmp_path / "again.html")[0] == 0


def test_a_dry_run(files: Path, in_process: Command) -> None:
    given = ("analyze", files / "model.keras", "--data", files / "digits.npz")
    status, text, _ = in_process(*given, "--snapshots", 3, "--every", 20, "--dry-run")
    assert status == 0
    assert "over 3 snapshots, 20 steps apart (40 steps)" in text
