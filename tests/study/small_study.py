"""A study of a net of 32 parameters whose factory writes down when it is called, and misbehaves when asked to."""

from pathlib import Path

MODULE = """
import os
import signal
import time
from pathlib import Path

import keras
import numpy as np

HERE = Path(__file__).parent


def data():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(60, 3)).astype("float32")
    y = (x[:, 0] * x[:, 1] > 0).astype("int64")
    return (x[:40], y[:40]), (x[40:], y[40:])


def net(learning_rate, mood="good", seed=0):
    with (HERE / "calls.txt").open("a") as calls:
        calls.write(f"{mood} {learning_rate} {os.getpid()}\\n")
    print("the factory speaks")
    if mood == "raise" and not (HERE / "cured").exists():
        raise RuntimeError("bad mood")
    if mood == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if mood == "nan":
        learning_rate = float("inf")
    if mood == "wait" and not (HERE / "cured").exists():
        time.sleep(600)
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(5, activation="tanh"), keras.layers.Dense(2)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(learning_rate), loss, metrics=["accuracy"])
    return model


number = 3
"""

GRID = """
[study]
name = "small"
model = "small_nets_of_a_study:net"
data = "small_nets_of_a_study:data"
epochs = {epochs}

[grid]
learning_rate = {rates}
batch_size = 8
mood = {moods}

[measures]
{measures}

[trajectory]
steps = 20
examples = 10
"""

MEASURES = 'e_alpha = { trajectory = "forward", metric = "euclidean" }'


def written(
    folder: Path,
    *,
    rates: str = "[0.1]",
    moods: str = '["good"]',
    epochs: int = 2,
    measures: str = MEASURES,
) -> Path:
    """The files of the study; returns that of its definition."""
    (folder / "small_nets_of_a_study.py").write_text(MODULE)
    grid = folder / "grid.toml"
    grid.write_text(GRID.format(rates=rates, moods=moods, epochs=epochs, measures=measures))
    return grid


def calls(folder: Path) -> list[str]:
    """'mood rate' of each call of the factory so far."""
    path = folder / "calls.txt"
    return [line.rpartition(" ")[0] for line in path.read_text().splitlines()] if path.exists() else []
