"""Models and data of the studies mnist_width16.toml and mnist_width200.toml."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from sdkeras.datasets import load_mnist_5k


def mnist_5k() -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """4,000 images of MNIST-5k for training and 1,000 for the test, 100 of each digit."""
    images, labels = load_mnist_5k()
    order = np.random.default_rng(0).permutation(500)
    place = np.argsort(labels, kind="stable").reshape(10, 500)[:, order]
    train, test = place[:, :400].ravel(), place[:, 400:].ravel()
    return (images[train], labels[train]), (images[test], labels[test])


def width_16(learning_rate: float) -> keras.Model:
    """784-16-16-10, 12,960 parameters: ReLU, no bias."""
    return _mlp([16, 16], learning_rate)


def width_200(learning_rate: float) -> keras.Model:
    """784-200-200-200-200-10, 278,800 parameters: ReLU, no bias."""
    return _mlp([200, 200, 200, 200], learning_rate)


def _mlp(widths: list[int], learning_rate: float) -> keras.Model:
    hidden = [keras.layers.Dense(width, activation="relu", use_bias=False) for width in widths]
    model = keras.Sequential(
        [keras.Input((28, 28)), keras.layers.Flatten(), *hidden, keras.layers.Dense(10, use_bias=False)]
    )
    model.compile(
        keras.optimizers.SGD(learning_rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model
