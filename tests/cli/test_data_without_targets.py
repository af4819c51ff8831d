"""`sdkeras analyze` of a model that takes no targets."""

from pathlib import Path
from typing import Any

import keras
import numpy as np

X = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")


def test_the_commands_take_data_without_targets(in_process: Any, tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, activity_regularizer="l2")])
    model.compile("sgd")
    model.save(tmp_path / "m.keras")
    np.savez(tmp_path / "x.npz", x=X)
    np.save(tmp_path / "x.npy", X)
    for data in ("x.npz", "x.npy"):
        status, _, err = in_process(
            "analyze", tmp_path / "m.keras", "--data", tmp_path / data, "--batch-size", 8, "--max-hvps", 60, "--quiet"
        )
        assert (status, err) == (0, "")
