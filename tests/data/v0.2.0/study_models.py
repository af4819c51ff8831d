"""A net and its data for grid.toml."""

import keras
import numpy as np


def data():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(60, 3)).astype("float32")
    y = (x[:, 0] * x[:, 1] > 0).astype("int64")
    return (x[:40], y[:40]), (x[40:], y[40:])


def net(learning_rate, seed=0):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(5, activation="tanh"), keras.layers.Dense(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(learning_rate), loss, metrics=["accuracy"])
    return model
