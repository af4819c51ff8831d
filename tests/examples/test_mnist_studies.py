"""The studies of MNIST-5k: their definitions can be read, and their models are the paper's."""

import sys
from pathlib import Path

import numpy as np
import pytest

from sdkeras.files.user_code import find_function, user_import
from sdkeras.study.definition import read_study

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("name", "parameters", "layers", "epochs"), [("mnist_width16", 12_960, 3, 250), ("mnist_width200", 278_800, 5, 100)]
)
def test_the_grids_and_models_are_those_of_the_paper(name: str, parameters: int, layers: int, epochs: int) -> None:
    study = read_study(str(EXAMPLES / f"{name}.toml"))
    full = read_study(str(EXAMPLES / f"{name}.toml"), full=True)
    assert (len(study.runs), len(full.runs)) == (27, 25)
    assert (full.epochs, full.steps, full.trajectory.steps) == (epochs, None, 5000)
    with user_import(EXAMPLES):
        model = find_function(study.model)(learning_rate=0.1)
    assert model.count_params() == parameters
    assert len(model.trainable_variables) == layers
    assert "mnist_models" not in sys.modules


def test_the_data_are_split_within_each_digit() -> None:
    with user_import(EXAMPLES):
        (x, y), (x_test, y_test) = find_function("mnist_models:mnist_5k")()
    assert np.bincount(y).tolist() == [400] * 10
    assert np.bincount(y_test).tolist() == [100] * 10
    both = np.concatenate([x, x_test]).reshape(5000, -1)
    assert len(np.unique(both, axis=0)) == 5000
