"""The estimated cost of a grid with --full, by hand."""

from pathlib import Path
from types import ModuleType

import pytest

from example_scripts import load_script
from sdkeras.study.definition import read_study

GRID = """
[study]
model = "nets:net"
data = "nets:data"
epochs = 2
[grid]
learning_rate = 0.1
batch_size = [8, 100]
[measures]
sd = { minibatches = 2 }
slq = { num_steps = 10 }
e_alpha = {}
[trajectory]
steps = 100
examples = 10
[analysis]
samples = 50
runs = 20
map = ["auto", "hessian"]
[full.study]
epochs = 20
[full.grid]
batch_size = [8, 16]
[full.measures]
sd = { minibatches = 5 }
slq = { num_steps = 30 }
[full.trajectory]
steps = 200
examples = 80
[full.analysis]
samples = 500
runs = 100
"""


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load_script("full_cost")


def test_the_cost_of_each_run_by_hand(example: ModuleType, tmp_path: Path) -> None:
    """Training: 20 epochs of 6 steps of 0.5 s with batches of 8, of 3 steps with batches of 16, by the run of 8.

    Products: 30 of each of 100 runs, 7 of each of 5 minibatches, and ten times 11; 0.25 s each, for two maps. The
    trajectories' 3 s: twice as many iterates, and losses of eight times as many examples.
    """
    path = tmp_path / "grid.toml"
    path.write_text(GRID)
    usual, full = read_study(str(path)), read_study(str(path), full=True)
    costs = [example.Cost(8, 6.0, 0.5, 0.25, 7.0, 11, 3.0), example.Cost(100, 1.0, 9.0, 9.0, 9.0, 9, 9.0)]
    small, large = (example.estimated(full, usual, run.settings, costs) for run in full.runs)
    assert small[0] == pytest.approx(20 * 6 * 0.5)
    assert large[0] == pytest.approx(20 * 3 * 0.5)
    assert small[1] == large[1] == pytest.approx((3000 + 35 + 110) * 2 * 0.25 + 3.0 * 2 * 8)
