"""Batches of the data set are put together where that changes rounding alone."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import sdkeras
from small_losses import CE, X, Y, compiled, dense, mlp

layers = keras.layers
EPS = float(np.finfo(np.float64).eps)


class Centred(layers.Layer):
    """Subtracts the mean over the batch, which no name tells."""

    def call(self, x: Any) -> Any:
        return x - tf.reduce_mean(x, axis=0, keepdims=True)


def loss(model: keras.Model, data: Any = (X, Y), batch_size: int | None = 3) -> sdkeras.EmpiricalLoss:
    return sdkeras.EmpiricalLoss(model, data, batch_size, dtype="float64", num_samples=20)


@pytest.mark.parametrize("data", [(X, Y), tf.data.Dataset.from_tensor_slices((X, Y)).batch(3)], ids=["arrays", "own"])
def test_the_merged_loss_is_the_same_function(data: Any) -> None:
    separate = loss(mlp(), data, None if isinstance(data, tf.data.Dataset) else 3)
    merged = separate.merged()
    assert len(merged.batches) == 1 < len(separate.batches)
    assert merged.num_examples == separate.num_examples
    assert merged.value() == pytest.approx(separate.value(), rel=100 * EPS)
    one, two = (dense(sdkeras.HessianOperator(each)) for each in (separate, merged))
    assert np.abs(one - two).max() < 1000 * EPS * np.abs(one).max()


@pytest.mark.parametrize(
    "inner",
    [[layers.BatchNormalization()], [layers.Dropout(0.5)], [Centred()]],
    ids=["batch statistics", "masks", "a layer of the user's"],
)
def test_what_couples_the_examples_of_a_batch_stays_in_its_batches(inner: list[layers.Layer]) -> None:
    separate = loss(mlp(*inner))
    assert separate.merged() is separate


def test_random_denominators_and_large_outputs_stay_in_their_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    ignoring = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=1)
    separate = loss(compiled(keras.Input((6,)), layers.Dense(3), loss=ignoring))
    assert separate.merged() is separate
    tokens = compiled(keras.Input((None,)), layers.Embedding(9, 4), layers.Dense(3), loss=CE)
    unknown = loss(tokens, (np.abs(X).astype(int), np.abs(X).astype(int) % 3))
    assert unknown.merged() is unknown
    wide = loss(mlp())
    monkeypatch.setattr("sdkeras.operators.loss._MERGED_BYTES", 8 * (6 + 5 + 3 + 3) * 6)  # two batches of 3
    assert [batch.num_examples for batch in wide.merged().batches] == [6, 6, 6, 2]
