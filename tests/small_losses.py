"""Nets on a few samples and their Hessians, for the tests of operators."""

from typing import Any

import keras
import numpy as np

import sdkeras

CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
X = np.random.default_rng(0).standard_normal((22, 6)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 22)


def compiled(*layers: Any, loss: Any = CE, optimizer: Any = "sgd") -> keras.Model:
    """A compiled sequence of layers, or of one model."""
    model = layers[0] if isinstance(layers[0], keras.Model) else keras.Sequential(list(layers))
    model.compile(optimizer, loss)
    return model


def mlp(*inner: Any, **options: Any) -> keras.Model:
    dense = keras.layers.Dense
    return compiled(keras.Input((6,)), dense(5, "tanh"), *inner, dense(3), **options)


def hessian(
    model: keras.Model,
    data: Any = (X, Y),
    *sizes: int | None,
    product_mode: str = "auto",
    allow_unverified: bool = False,
    **options: Any,
) -> sdkeras.HessianOperator:
    """The verified operator; sizes and options are those of the loss."""
    loss = sdkeras.EmpiricalLoss(model, data, *sizes, **options)
    return sdkeras.HessianOperator(loss, product_mode=product_mode, allow_unverified=allow_unverified)


def dense(operator: Any) -> np.ndarray:
    """The matrix of an operator, in float64."""
    return operator.matmat(np.eye(operator.size, dtype=operator.dtype)).astype(np.float64)
