"""The example of the Laplace posterior: its scores are what they are called, and it runs."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from example_scripts import EXAMPLES, load_script


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load_script("laplace")


def test_scores_of_four_predictions(example: ModuleType) -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.3, 0.7]])
    found = example.scores(probabilities, np.array([0, 1, 1, 1]))
    assert found["accuracy"] == 0.75
    assert found["nll"] == pytest.approx(-(np.log(0.9) + np.log(0.1) + 2 * np.log(0.7)) / 4)
    # Of two predictions at 0.9 one is right, of two at 0.7 both.
    assert found["ece"] == pytest.approx((2 * 0.4 + 2 * 0.3) / 4)
    assert example.scores(np.array([[1.0, 0.0]]), np.array([0]))["ece"] == 0  # in the last bin


def test_the_temperature_undoes_a_factor(example: ModuleType) -> None:
    """Labels drawn from softmax(z), and logits 3 z."""
    generator = np.random.default_rng(0)
    z = generator.standard_normal((4000, 5))
    labels = np.argmax(z + generator.gumbel(size=z.shape), axis=1)
    assert example.temperature(3 * z, labels) == pytest.approx(3, rel=0.1)


@pytest.mark.slow
def test_the_script_runs(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    command = [sys.executable, str(EXAMPLES / "laplace.py"), "--seeds", "1", "--steps", "30", "--results", str(out)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [line for line in run.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) == 3 * (1 + 18) + 1 + 2
    assert "nan" not in run.stdout
    assert out.is_file()
