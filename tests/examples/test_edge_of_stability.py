"""The example of the edge of stability: it runs, and full-batch gradient descent does hover at 2/eta."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import attrs
import pytest

from example_scripts import EXAMPLES, load_script

SCRIPT = EXAMPLES / "edge_of_stability.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load_script("edge_of_stability")


def test_the_thresholds_are_the_published_ones(example: ModuleType) -> None:
    expected = [2 / 1.0, 2 / 1.3, 2 / 1.6, 2 / 2.5, 2 * 1.9 / 2.4, 2 * 0.1 / 0.25, 2 * 1.9 / 2.4, 38 / 3e-3]
    assert [setting.threshold for setting in example.SETTINGS] == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
def test_full_batch_gradient_descent_hovers_at_two_over_eta(example: ModuleType) -> None:
    setting = attrs.evolve(example.SETTINGS[2], steps=3000)
    assert setting.learning_rate == 1.6
    measured = example.train(setting, every=20)
    times_eta = [1.6 * value for value in measured.courses["sharpness"]]
    assert 1.2 < times_eta[0] < 1.7  # it starts below the edge and comes to it by itself
    late = 2 * measured.late("sharpness")
    assert 1.8 < late.mean() < 2.4
    assert late.min() > 1.6
    assert measured.courses["loss"][-1] < 0.3 * measured.courses["loss"][0]
    # A fifth of the rate ends far below its own edge after as many steps: to be at the edge says something.
    below = example.train(attrs.evolve(setting, learning_rate=0.32), every=500)
    assert (2 * below.late("sharpness")).max() < 1.0


@pytest.mark.slow
def test_the_script_runs(tmp_path: Path) -> None:
    out = tmp_path / "figure.png"
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick", "--out", str(out)], capture_output=True, text=True, check=True
    )
    rows = [line for line in run.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 14
    assert "nan" not in run.stdout
    assert out.read_bytes().startswith(b"\x89PNG")
