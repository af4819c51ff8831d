"""A study of small nets, as its tests write it; one factory writes down its calls and misbehaves when asked."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

MODULE = """
import os
import signal
import time
from pathlib import Path

import keras
import numpy as np

HERE = Path(__file__).parent
X = np.random.default_rng(0).normal(size=(60, 3)).astype("float32")
SIGNS = (X[:, 0] * X[:, 1] > 0).astype("int64")
O, L = keras.optimizers, keras.layers
OPTIMIZERS = {
    "sgd": O.SGD,
    "momentum": lambda rate: O.SGD(rate, 0.9),
    "cosine": lambda rate: O.SGD(O.schedules.CosineDecay(rate, 20), momentum=0.9),
    "adam": lambda rate: O.Adam(rate, amsgrad=True),
    "nadam": lambda rate: O.Nadam(rate, weight_decay=0.01),
    "two": lambda rate: O.MultiOptimizer(O.OptimizerMap(O.SGD(rate), {".*bias": O.Adam(0.1)})),
    "scaled": lambda rate: O.LossScaleOptimizer(O.RMSprop(rate, momentum=0.5)),
    "broken": lambda rate: 1 / 0,
}
number = 3


def split(y, *weights):
    return (X[:40], y[:40], *weights), (X[40:], y[40:])


def data():
    return split(SIGNS)


def weighted_data():
    return split(SIGNS, np.ones(40))


def products():
    return split(X[:, :1] * X[:, 1:2])


def wrong_labels():
    return split(np.full(60, 7))


def net(learning_rate, optimizer="sgd", mood="good", seed=0):
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
    model = keras.Sequential([keras.Input((3,)), L.Dense(5, activation="tanh"), L.Dense(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(OPTIMIZERS[optimizer](learning_rate), loss, metrics=["accuracy"])
    return model


def regression(learning_rate, activation="relu"):
    model = keras.Sequential([keras.Input((3,)), L.Dense(5, activation=activation), L.Dense(1)])
    model.compile(O.SGD(learning_rate), "mse")
    return model


def logistic(learning_rate, optimizer="cosine"):
    layer = L.Dense(1, kernel_initializer="zeros", use_bias=optimizer == "two")
    model = keras.Sequential([keras.Input((3,)), layer])
    model.compile(OPTIMIZERS[optimizer](learning_rate), keras.losses.BinaryCrossentropy(from_logits=True))
    return model


@keras.saving.register_keras_serializable("small_study")
class Loss(keras.losses.MeanSquaredError):
    pass


def unbuilt(learning_rate, optimizer):
    # Without keras.Input: it has no weights before it sees data.
    model = keras.Sequential([L.Dense(5, "tanh"), L.BatchNormalization(), L.Dropout(0.2), L.Dense(1)])
    model.compile(OPTIMIZERS[optimizer](learning_rate), Loss())
    return model
"""

GRID = """
[study]
name = "small"
model = "{module}:{model}"
data = "{module}:{data}"
epochs = {epochs}
{study}
[grid]
learning_rate = {rates}
batch_size = {batch_size}
{grid}
[measures]
{measures}
[trajectory]
steps = 20
examples = 10
[analysis]
{analysis}
"""
USUAL = {
    "module": "small_nets_of_a_study",
    "model": "net",
    "data": "data",
    "epochs": 2,
    "study": "",
    "rates": 0.1,
    "batch_size": 8,
    "grid": 'mood = "good"',
    "measures": 'e_alpha = { trajectory = "forward", metric = "euclidean" }',
    "analysis": "runs = 3\ntolerance = 0.9",
}


def written(folder: Path, *, code: str = MODULE, **texts: object) -> Path:
    """The files of the study, with these texts in place of the usual ones; returns that of its definition."""
    filled = {**USUAL, **texts}
    (folder / f"{filled['module']}.py").write_text(code)
    grid = folder / "grid.toml"
    grid.write_text(GRID.format(**filled))
    return grid


def started(grid: Path, folder: Path) -> subprocess.Popen[bytes]:
    """A process that does the study, in one worker process."""
    script = (
        "from sdkeras.study.definition import read_study; from sdkeras.study.runner import run_study; "
        f"run_study(read_study({str(grid)!r}), {str(folder)!r}, code={str(grid.parent)!r}, jobs=1)"
    )
    return subprocess.Popen([sys.executable, "-c", script])


def wait_until(holds: Callable[[], bool], seconds: float) -> None:
    """Waits, at most so long."""
    until = time.monotonic() + seconds
    while not holds() and time.monotonic() < until:
        time.sleep(0.01)


def calls(folder: Path) -> list[str]:
    """'mood rate' of each call of the factory so far."""
    path = folder / "calls.txt"
    return [line.rpartition(" ")[0] for line in path.read_text().splitlines()] if path.exists() else []
