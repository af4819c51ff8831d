"""The callback notices that fit minimises another loss, and only then."""

import logging
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, ClassVar

import keras
import numpy as np
import pytest
import tensorflow as tf

from callbacks.test_logs import StandIn
from sdkeras.callbacks import SharpnessDimension, sharpness_dimension
from sdkeras.callbacks.loss_check import LossCheck
from sdkeras.datasets import load_digits
from sdkeras.operators.loss import EmpiricalLoss
from sdkeras.operators.minibatches import as_source
from sdkeras.runs.monitor import Monitor

layers = keras.layers
IMAGES, LABELS = load_digits()
X, Y = IMAGES[:256], LABELS[:256]


class LossOnly(StandIn):
    """Has the real loss, and no curvature to compile."""

    error: ClassVar[dict[int, BaseException]] = {}
    training_loss = Monitor.training_loss

    def __init__(self, model, data, **options) -> None:
        super().__init__(model, data, **options)
        known = {name: options[name] for name in ("batch_size", "class_weight")}
        source = as_source(data, **known, default_batch_size=32, limit=None)
        loss = EmpiricalLoss(model, source, num_samples=options["samples"], seed=0)
        self.problem = SimpleNamespace(loss=loss, source=source)


@pytest.fixture(autouse=True)
def _no_curvature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharpness_dimension, "Monitor", LossOnly)


def net(*hidden: keras.Layer, optimizer: keras.optimizers.Optimizer, loss: object = None):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((8, 8)), layers.Flatten(), *hidden, layers.Dense(10)])
    model.compile(optimizer, loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def warnings_of(
    caplog, model: keras.Model, *, data=(X, Y), fitted=(X, Y), fit_class_weight=None, epochs: int = 5, **options: object
) -> list[str]:
    """What is said of a training on `fitted` while the callback looks at `data`."""
    fit = {"epochs": epochs, "verbose": 0, "class_weight": fit_class_weight}
    x, y, weights = (*fitted, None)[:3] if isinstance(fitted, tuple) else (fitted, None, None)
    if y is not None:
        fit |= {"batch_size": 32, "sample_weight": weights}
    callback = SharpnessDimension(data, **{"batch_size": 32, "max_overhead": None, **options})
    with caplog.at_level(logging.WARNING, logger="sdkeras"):
        model.fit(x, y, callbacks=[callback], **fit)
    return [record.getMessage() for record in caplog.records if record.name == "sdkeras"]


WEIGHTS = np.random.default_rng(0).uniform(0.0, 4.0, 256).astype("float32")
WEIGHTED = tf.data.Dataset.from_tensor_slices((X, Y, WEIGHTS)).batch(32)
# As much as in the command line's example; the loss of training is five times the one without.
ODD = dict.fromkeys(range(1, 10, 2), 9.0)
SGD, Adam = keras.optimizers.SGD, keras.optimizers.Adam
SUM = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
L2 = keras.regularizers.L2(1e-2)
# Hidden layers, optimizer, and what differs from a training of five epochs on all the data.
ORDINARY = {
    "dropout": lambda: ([layers.Dense(32, "relu"), layers.Dropout(0.5)], Adam(3e-3), {}),
    "batch normalization": lambda: ([layers.Dense(32), layers.BatchNormalization(), layers.ReLU()], Adam(1e-2), {}),
    "fast descent": lambda: ([layers.Dense(64, "relu")], Adam(2e-2), {}),
    "short": lambda: ([layers.Dense(64, "relu")], Adam(2e-2), {"epochs": 2}),
    "edge of stability": lambda: ([layers.Dense(32, "tanh")], SGD(0.5), {"epochs": 8}),
    "overfitted": lambda: ([layers.Dense(64, "relu")], Adam(3e-2), {"epochs": 8}),
    "sample weights": lambda: (
        [layers.Dense(16, "tanh")],
        Adam(1e-2),
        {"data": WEIGHTED, "fitted": WEIGHTED, "batch_size": None},
    ),
    "sum over the batch": lambda: ([], SGD(1e-3), {"loss": SUM}),
    "a part of the data": lambda: (
        [layers.Dense(16, "relu"), layers.Dropout(0.2)],
        Adam(1e-2),
        {"data": (X[:128], Y[:128])},
    ),
    "within epochs": lambda: ([layers.Dense(64, "relu")], Adam(1e-2), {"every": 7}),
    "regularised": lambda: ([layers.Dense(32, "relu", kernel_regularizer=L2)], Adam(1e-2), {}),
    "class weights on both sides": lambda: (
        [layers.Dense(16, "tanh")],
        Adam(1e-2),
        {"class_weight": ODD, "fit_class_weight": ODD},
    ),
}

# Noise of the training mode, a loss that is no mean, and weights: each its own way into the comparison.
QUICK = {"dropout", "sum over the batch", "class weights on both sides"}


def some(names: Iterable[str], quick: set[str]) -> list[Any]:
    """The names as parameters; those that are not among the quick ones are slow."""
    return [pytest.param(name, marks=[] if name in quick else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", some(ORDINARY, QUICK))
def test_nothing_is_said_of_an_ordinary_training(name: str, caplog) -> None:
    keras.utils.set_random_seed(1)
    hidden, optimizer, options = ORDINARY[name]()
    model = net(*hidden, optimizer=optimizer, loss=options.pop("loss", None))
    assert not warnings_of(caplog, model, **options)


OTHER = {
    "class weights": {"fit_class_weight": ODD},
    "class weights of a training of two epochs": {"fit_class_weight": ODD, "epochs": 2},
    "class weights within epochs": {"fit_class_weight": dict.fromkeys(range(10), 9.0), "every": 7},
    "class weights on this side only": {"class_weight": ODD},
    "sample weights": {"fitted": (X, Y, np.full(256, 0.3, "float32"))},
    "other data": {"data": (X, np.roll(Y, 1)), "epochs": 8},
}


@pytest.mark.parametrize("name", some(OTHER, {"class weights within epochs", "sample weights"}))
def test_another_loss_is_told_once(name: str, caplog) -> None:
    model = net(layers.Dense(16, "tanh"), layers.Dropout(0.2), optimizer=Adam(1e-2))
    said = warnings_of(caplog, model, **OTHER[name])
    assert len(said) == 1
    assert "fit minimises a different loss than the one measured here" in said[0]
    assert "class_weight=..., data=(x, y, sample_weight)" in said[0]


def test_a_training_step_of_ones_own_may_log_any_loss(caplog) -> None:
    class Doubled(keras.Sequential):
        def train_step(self, data):
            return {**super().train_step(data), "loss": 100.0}

    keras.utils.set_random_seed(0)
    model = Doubled([keras.Input((8, 8)), layers.Flatten(), layers.Dense(10)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert not warnings_of(caplog, model)


# The comparison alone


def compared(means: list[float], own: list[float], *, error: float = 0.0, ended: bool = True) -> str | None:
    """The verdict on the means of epochs 1, 2, ... and losses at their ends."""
    check = LossCheck()
    for epoch, (mean, loss) in enumerate(zip(means, own, strict=True), 1):
        check.measured(epoch, loss, error, within=False)
        check.epoch_ended(epoch, mean)
    return check.disagreement(ended=ended)


def test_a_loss_between_its_neighbours_agrees_however_fast_it_falls() -> None:
    means = [10.0, 1.0, 0.1, 0.01]
    assert compared(means, [3.0, 0.3, 0.03, 0.003]) is None
    assert compared(means[::-1], [0.03, 0.3, 3.0, 30.0]) is None
    assert compared([-1.0, -2.0, -3.0, -3.5], [-1.5, -2.5, -3.2, -3.6]) is None


@pytest.mark.parametrize("factor", [0.4, 3.0])
def test_a_constant_factor_is_noticed(factor: float) -> None:
    means = [2.0, 1.6, 1.3, 1.1, 1.0]
    own = [factor * loss for loss in (1.8, 1.45, 1.2, 1.05, 1.0)]
    assert "fit logged a loss of 1.1 for epoch 4 and 1 for epoch 5" in compared(means, own)
    assert compared(means, own, ended=False) is not None
    assert compared(means[:3], own[:3], ended=False) is None  # two comparisons: more may tell
    assert compared(means, own, error=0.5) is None  # the noise explains it


def test_one_epoch_that_agrees_acquits() -> None:
    means, own = [2.0, 1.6, 1.3, 1.1], [5.0, 5.0, 1.2, 1.0]
    assert compared(means, own) is None
    assert compared(means, [5.0, 0.2, 5.0, 1.0]) is None  # now above, now below


def test_what_is_not_finite_or_not_known_is_not_compared() -> None:
    assert compared([2.0, float("nan"), 1.3], [9.0, 9.0, 9.0]) is None
    assert compared([2.0, 1.6, 1.3], [float("inf")] * 3) is None
    check = LossCheck()
    check.measured(1, 9.0, None, within=False)
    for epoch in (1, 2, 3):
        check.epoch_ended(epoch, 1.0)
    assert check.disagreement(ended=True) is None
