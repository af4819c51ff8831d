"""Recurrent layers over few steps are analysed without a loop: the same function, and the model is left as it was."""

import importlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from sdkeras.errors import ModelError
from sdkeras.operators import tf_patches
from sdkeras.operators.hessian import HessianOperator
from sdkeras.operators.loss import EmpiricalLoss

layers = keras.layers
RNG = np.random.default_rng(3)
X, Y = RNG.standard_normal((20, 4, 2)), RNG.standard_normal((20, 2))
X[::3, 2:] = 0.0  # masked

NETS = {
    "masked, stacked": lambda: [layers.Masking(), layers.GRU(2, return_sequences=True), layers.LSTM(2)],
    "backwards": lambda: [layers.Masking(), layers.LSTM(2, go_backwards=True, zero_output_for_mask=True)],
    "both directions": lambda: [layers.Masking(), layers.Bidirectional(layers.SimpleRNN(2))],
    "sequences": lambda: [
        layers.Masking(),
        layers.GRU(2, return_sequences=True, zero_output_for_mask=True, reset_after=False),
        layers.TimeDistributed(layers.Dense(2, "tanh")),
        layers.Flatten(),
    ],
    "dropout": lambda: [layers.LSTM(2, dropout=0.3, recurrent_dropout=0.3, seed=1)],
    "cells": lambda: [layers.RNN([layers.GRUCell(2, dropout=0.2, seed=2), layers.SimpleRNNCell(2)])],
}


def loss_of(hidden, batch_size=16):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4, 2)), *hidden(), layers.Dense(2)])
    model.compile("sgd", "mse")
    return EmpiricalLoss(model, (X, Y), batch_size, dtype="float64")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in ("backwards", "cells") else name for name in NETS]
)
def test_gradients_and_products_are_those_of_the_loop(name, monkeypatch):
    unrolled = loss_of(NETS[name])
    assert unrolled.gradients.fixed
    assert not unrolled.gradients.has_operation(("While", "StatelessWhile"))
    gradient = unrolled.gradient()
    monkeypatch.setattr(tf_patches, "MOST_STEPS", 3)
    loop = loss_of(NETS[name])
    assert not loop.gradients.fixed
    assert loop.gradients.has_operation(("While", "StatelessWhile"))
    # The batches have 16 and 4 examples; seeds, masks and weights are the same. Sums of a few hundred terms.
    np.testing.assert_allclose(gradient, loop.gradient(), rtol=0, atol=1e-12 * np.linalg.norm(gradient))
    if name == "backwards":  # the loop's product takes long to compile
        v = RNG.standard_normal(loop.size)
        product, expected = (HessianOperator(each).matvec(v) for each in (unrolled, loop))
        np.testing.assert_allclose(product, expected, rtol=0, atol=1e-12 * np.linalg.norm(product))


def test_the_model_and_keras_are_left_as_they_were():
    before, gru = keras.src.backend.rnn, layers.GRU(2)
    config = gru.get_config()
    loss = loss_of(lambda: [gru])
    assert loss.gradients.fixed
    assert gru.get_config() == config
    assert not gru.unroll
    model = keras.Sequential([keras.Input((4, 2)), layers.GRU(2)])
    model.compile("sgd", "mse")
    model.layers[0].cell = None
    with pytest.raises(ModelError, match="cannot be computed"):
        EmpiricalLoss(model, (X, Y))
    assert keras.src.backend.rnn is before


def test_another_thread_keeps_its_loops():
    layer = layers.SimpleRNN(2)
    x = tf.constant(X)

    def graph():
        return {op.type for op in tf.function(layer).get_concrete_function(x).graph.get_operations()}

    with tf_patches.unrolled_loops([]), ThreadPoolExecutor(1) as thread:
        assert not any("While" in name for name in graph())
        assert any("While" in name for name in thread.submit(graph).result())
    assert any("While" in name for name in graph())


def test_long_sequences_keep_their_loop():
    steps = tf_patches.MOST_STEPS + 1
    model = keras.Sequential([keras.Input((steps, 1)), layers.SimpleRNN(1)])
    model.compile("sgd", "mse")
    assert not EmpiricalLoss(model, (np.zeros((4, steps, 1)), np.ones((4, 1)))).gradients.fixed


def test_a_layer_that_draws_nothing_is_not_random():
    assert not loss_of(lambda: [layers.GRU(2)]).function.is_random
    assert loss_of(lambda: [layers.GRU(2, dropout=0.1)]).function.is_random


@pytest.mark.parametrize("layer", [keras.layers.LSTM, keras.layers.GRU])
def test_products_do_without_cudnn_where_there_is_a_gpu(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rnn = importlib.import_module("keras.src.backend.tensorflow.rnn")
    monkeypatch.setattr(rnn, "_is_gpu_available", lambda: True)
    asked = rnn.cudnn_ok(keras.activations.tanh, keras.activations.sigmoid, False, use_bias=True)
    assert asked  # this is how Keras would go on
    model = keras.Sequential([keras.Input((4, 3)), layer(2), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).standard_normal((8, 4, 3)).astype("float32")
    operator = HessianOperator(EmpiricalLoss(model, (x, x[:, 0, :2])))
    assert operator.verification.mode == "reverse-over-reverse"
    assert rnn.cudnn_ok(keras.activations.tanh, keras.activations.sigmoid, False, use_bias=True)
