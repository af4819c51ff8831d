"""The trainings behind the documentation's figures and gallery: each a small net on digits, trained in seconds.

    python docs/gallery.py [NAME ...]      `make docs-figures` for all of them

Writes docs/runs/NAME.json for an analysis and docs/runs/NAME/sharpness.jsonl for a training that was followed; the
site's pages and figures are drawn from these files without TensorFlow.
"""

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import sdkeras
from sdkeras.datasets import load_digits

RUNS = Path(__file__).parent / "runs"
BATCH_SIZE = 64
X, Y = load_digits()
X, Y = X[:1347], Y[:1347]
ONE_HOT = keras.utils.to_categorical(Y)


def net(
    name: str, activation: str = "tanh", regularizer: keras.Regularizer | None = None, depth: int = 1
) -> keras.Sequential:
    """One or more hidden layers of 16 units."""
    keras.utils.set_random_seed(0)
    hidden = [keras.layers.Dense(16, activation, kernel_regularizer=regularizer) for _ in range(depth)]
    outputs = keras.layers.Dense(10, kernel_regularizer=regularizer)
    return keras.Sequential([keras.Input((8, 8)), keras.layers.Flatten(), *hidden, outputs], name=name)


def compiled(
    model: keras.Sequential, rate: float | keras.optimizers.schedules.LearningRateSchedule
) -> keras.Sequential:
    """The net with plain SGD at this rate."""
    model.compile(keras.optimizers.SGD(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def healthy() -> keras.Sequential:
    """The net that has nothing wrong with it, for the concepts' figures."""
    model = compiled(net("healthy"), 0.2)
    model.fit(X, Y, batch_size=BATCH_SIZE, epochs=20, verbose=0)
    return model


def dead() -> keras.Sequential:
    """A rate of 8 throws all units of a ReLU layer below 0, where they have no gradient, and where they stay."""
    model = compiled(net("dead-relu", "relu", depth=2), 8.0)
    model.fit(X, Y, batch_size=BATCH_SIZE, epochs=3, verbose=0)
    return model


def overregularised() -> keras.Sequential:
    """An L2 penalty so strong that every weight is best at 0."""
    model = compiled(net("over-regularised", regularizer=keras.regularizers.L2(0.3)), 0.2)
    model.fit(X, Y, batch_size=BATCH_SIZE, epochs=10, verbose=0)
    return model


def decayed() -> keras.Sequential:
    """A cosine schedule that has come to its end, where the rate is 0."""
    model = compiled(net("decayed"), keras.optimizers.schedules.CosineDecay(0.2, 15 * -(-len(X) // BATCH_SIZE)))
    model.fit(X, Y, batch_size=BATCH_SIZE, epochs=15, verbose=0)
    return model


def edge() -> keras.Sequential:
    """Full-batch gradient descent for long enough that the sharpness has risen to 2/eta."""
    model = net("edge")
    model.compile(keras.optimizers.SGD(0.8), "mse", steps_per_execution=100)
    follow(model, ONE_HOT, epochs=30, steps=100)
    return model


def catapult() -> None:
    """Full-batch gradient descent that begins above 2/eta: the loss jumps, and training lands where it is flatter."""
    follow(compiled(net("catapult"), 2.0), Y, epochs=30, steps=6)


def follow(model: keras.Sequential, targets: np.ndarray, *, epochs: int, steps: int) -> None:
    """Trains on the whole data set in each of `steps` steps an epoch, measured after each; the log is runs/NAME."""
    folder = RUNS / model.name
    shutil.rmtree(folder, ignore_errors=True)
    keys = ("sharpness", "sharpness_ratio")
    watch = sdkeras.callbacks.SharpnessDimension(
        (X, targets), batch_size=len(X), samples=len(X), num_measurements=epochs, log_dir=folder, measures=keys
    )
    data = tf.data.Dataset.from_tensors((X, targets)).repeat()
    model.fit(data, steps_per_epoch=steps, epochs=epochs, verbose=0, callbacks=[watch])


# What trains it, its targets, and the batch size of that training.
ANALYSED: dict[str, tuple[Callable[[], keras.Sequential], np.ndarray, int]] = {
    "healthy": (healthy, Y, BATCH_SIZE),
    "edge": (edge, ONE_HOT, len(X)),
    "dead-relu": (dead, Y, BATCH_SIZE),
    "over-regularised": (overregularised, Y, BATCH_SIZE),
    "decayed": (decayed, Y, BATCH_SIZE),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="all, without any: catapult " + " ".join(ANALYSED))
    names = parser.parse_args().names or ["catapult", *ANALYSED]
    RUNS.mkdir(exist_ok=True)
    for name in names:
        if name == "catapult":
            catapult()
            continue
        train, targets, batch_size = ANALYSED[name]
        run = sdkeras.analyze(train(), (X, targets), batch_size=batch_size, samples=len(X), preset="quick", seed=0)
        run.save(RUNS / f"{name}.json")
        print(f"{name}: ratio {run.edge_of_stability.ratio}, written: docs/runs/{name}.json", flush=True)


if __name__ == "__main__":
    main()
