"""`sdkeras analyze --map full` on a real net, and what it answers to wrong use."""

from pathlib import Path

import keras
import numpy as np
import pytest

import sdkeras
from sdkeras.datasets import load_digits

layers = keras.layers


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits, a net trained on them by Adagrad, and one whose optimizer has taken no step."""
    folder = tmp_path_factory.mktemp("full")
    x, y = load_digits()
    x, y = x[:200, ::2, ::2], y[:200]
    np.savez(folder / "data.npz", x=x, y=y)
    for name, epochs in (("model", 3), ("untrained", 0)):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((4, 4)), layers.Flatten(), layers.Dense(4, "tanh"), layers.Dense(10)])
        model.compile(keras.optimizers.Adagrad(0.0625), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        if epochs:
            model.fit(x, y, batch_size=25, epochs=epochs, verbose=0)
        model.save(folder / f"{name}.keras")
    return folder


def test_a_net_of_adagrad(files: Path, tmp_path: Path, in_process) -> None:
    out, page = tmp_path / "run.json", tmp_path / "report.html"
    common = ("analyze", files / "model.keras", "--data", files / "data.npz", "--map", "full", "--batch-size", 25)
    chosen = ("--set", "golub-kahan.num_steps=50", "--exact-minibatches", 4, "--max-hvps", 9000, "--tolerance", 0.4)
    code, text, error = in_process(*common, *chosen, "--json", out, "--html", page)
    assert code == 0, error
    assert "full-map: singular values of one whole step mix units, those of 118 weights" in " ".join(text.split())
    found = sdkeras.Analysis.load(out)
    exact, quadrature = found.estimates
    assert [exact.estimator, quadrature.estimator] == ["dense-svd", "golub-kahan"]
    assert quadrature.num_steps >= 50
    assert quadrature.num_hvps == 2 * quadrature.num_steps * quadrature.num_runs
    assert exact.num_hvps == 4 * 236
    assert (exact.map, exact.state_size) == ("full", 236)
    assert exact.interval[0] < quadrature.interval[1]
    assert quadrature.interval[0] < exact.interval[1]
    assert exact.coordinates in page.read_text()


def test_the_plan_shows_the_state(files: Path, in_process) -> None:
    arguments = ("analyze", files / "model.keras", "--data", files / "data.npz", "--map", "full", "--dry-run")
    code, text, _ = in_process(*arguments)
    assert code == 0
    assert "236 (full)" in text


def test_an_optimizer_that_has_taken_no_step_is_told_of(files: Path, in_process) -> None:
    """Keras makes the slots when it loads the file: they are those that training starts with."""
    command = ("analyze", files / "untrained.keras", "--data", files / "data.npz", "--map", "full")
    code, text, error = in_process(*command, "--max-hvps", 10, "--tolerance", 0.9, "--samples", 50)
    assert code == 0, error
    assert "initial-slots: the optimizer Adagrad has taken no step" in " ".join(text.split())
