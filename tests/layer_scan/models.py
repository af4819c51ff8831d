"""Small compiled Keras models around one thing: weights before it, a nonlinear loss after it, random data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import keras
import numpy as np

layers, losses = keras.layers, keras.losses

NUM_EXAMPLES, BATCH_SIZE = 7, 4  # a ragged last batch of 3
# Layers before the thing under test carry this in their names: does a gradient reach them?
FRONT = "front"

Build = Callable[[], "Problem"]
Make = Callable[[], Any]  # -> a layer, or a function of tensors


class NotTriedError(Exception):
    """There is no model for this here; the message says why."""


@attrs.frozen(eq=False)
class Problem:
    """A compiled model with its data.

    Attributes:
        model: Small, compiled, with random weights.
        x: Its inputs.
        y: Its targets.
        mode: 'train' or 'inference'.
        batch_size: Of the analysis.
    """

    model: Any
    x: Any
    y: Any
    mode: str = "train"
    batch_size: int = BATCH_SIZE


# Models around the thing under test


def random(stream: int = 0) -> np.random.Generator:
    return np.random.default_rng([20, stream])


def _compiled(inputs: Any, outputs: Any, loss: Any) -> Any:
    """A compiled model at a generic point: no weight is zero, no gamma one, no moving average trivial."""
    model = keras.Model(inputs, outputs)
    model.compile(optimizer="sgd", loss=loss)
    rng = random(1)
    for variable in model.trainable_variables:
        variable.assign_add(0.2 * rng.standard_normal(variable.shape))
    for variable in model.non_trainable_variables:
        if "float" in str(variable.dtype):
            variable.assign((np.asarray(variable) + 0.1) * rng.uniform(0.5, 1.5, variable.shape))
    for layer in model._flatten_layers():
        if layer.variables and hasattr(layer, "finalize_state"):  # what it computes with is made of its variables
            layer.finalize_state()
    return model


def _head(hidden: Any) -> Any:
    """Three logits, by weights of their own."""
    if len(hidden.shape) != 2:
        hidden = layers.Flatten()(hidden)
    return layers.Dense(3, name="head")(hidden)


def _classes(count: int = NUM_EXAMPLES) -> Any:
    return random(2).integers(0, 3, count)


def _cross_entropy() -> Any:
    return losses.SparseCategoricalCrossentropy(from_logits=True)


def between(make: Make, *shapes: tuple[int, ...], squash: str | None = None, mode: str = "train") -> Build:
    """The thing between weights and weights: inputs -> Dense -> thing -> Dense -> cross-entropy.

    Args:
        make: Makes the thing; called on one tensor, or on a list of them for several shapes.
        shapes: Shape of each of its inputs, without the batch axis.
        squash: Activation of the weights before it, for things that take only a range of values.
        mode: 'train' or 'inference'.
    """

    def build() -> Problem:
        inputs = keras.Input((3,))
        tensors = []
        for position, shape in enumerate(shapes):
            size = int(np.prod(shape))
            front = layers.Dense(size, activation=squash, name=f"{FRONT}_{position}")(inputs)
            tensors.append(layers.Reshape(shape)(front))
        model = _compiled(inputs, _head(make()(tensors[0] if len(tensors) == 1 else tensors)), _cross_entropy())
        return Problem(model, random().standard_normal((NUM_EXAMPLES, 3)).astype("float32"), _classes(), mode)

    return build


def first(make: Make, *arrays: Any) -> Build:
    """The thing before the first weights (or with its own, as Embedding): inputs -> thing -> Dense -> Dense."""

    def build() -> Problem:
        inputs = [keras.Input(a.shape[1:], dtype="string" if a.dtype.kind in "UO" else str(a.dtype)) for a in arrays]
        hidden = make()(inputs[0] if len(inputs) == 1 else inputs)
        if len(hidden.shape) != 2:
            hidden = layers.Flatten()(hidden)
        model = _compiled(inputs, _head(layers.Dense(4, activation="tanh")(hidden)), _cross_entropy())
        return Problem(model, arrays[0] if len(arrays) == 1 else list(arrays), _classes())

    return build


def adapted(layer: Any, data: Any) -> Any:
    """A preprocessing layer that has learned from data."""
    layer.adapt(data)
    return layer


def masked(make: Make, *, mask_zero: bool = False) -> Build:
    """Sequences with padded steps: zeros -> Dense without bias (still zeros) -> Masking -> thing, or Embedding."""

    def build() -> Problem:
        x = random().standard_normal((NUM_EXAMPLES, 4, 2)).astype("float32")
        x[::2, 3:] = 0
        x[1, 2:] = 0
        if mask_zero:
            x = random().integers(1, 6, (NUM_EXAMPLES, 4)) * np.any(x != 0, axis=-1)
            inputs = keras.Input((4,), dtype="int32")
            hidden = layers.Embedding(6, 3, mask_zero=True)(inputs)
        else:
            inputs = keras.Input((4, 2))
            hidden = layers.Masking()(layers.Dense(3, use_bias=False, name=f"{FRONT}_0")(inputs))
        return Problem(_compiled(inputs, _head(make()(hidden)), _cross_entropy()), x, _classes())

    return build


def stateful(make: Make) -> Build:
    """A layer that keeps its state between batches, which needs a fixed batch size: here all batches are full."""

    def build() -> Problem:
        inputs = keras.Input(batch_shape=(BATCH_SIZE, 4, 2))
        hidden = layers.Dense(3, name=f"{FRONT}_0")(inputs)
        x = random().standard_normal((2 * BATCH_SIZE, 4, 2)).astype("float32")
        return Problem(_compiled(inputs, _head(make()(hidden)), _cross_entropy()), x, _classes(2 * BATCH_SIZE))

    return build


def under(
    make_loss: Make,
    targets: Any,
    activation: Any = None,
    shape: tuple[int, ...] | None = None,
    batch_size: int = BATCH_SIZE,
) -> Build:
    """A loss of two layers of weights.

    Args:
        make_loss: Makes the loss.
        targets: Shape (examples, ...).
        activation: Of the outputs: its name, or what makes a layer.
        shape: Of one example's outputs, by default the targets'.
        batch_size: Of the analysis.
    """

    def build() -> Problem:
        form = targets.shape[1:] if shape is None else shape
        inputs = keras.Input((3,))
        hidden = layers.Dense(5, activation="tanh", name=f"{FRONT}_0")(inputs)
        outputs = layers.Reshape(form)(layers.Dense(int(np.prod(form)), name="head")(hidden))
        if activation is not None:
            last = layers.Activation(activation) if isinstance(activation, str) else activation()
            outputs = last(outputs)
        model = _compiled(inputs, outputs, make_loss())
        x = random().standard_normal((NUM_EXAMPLES, 3)).astype("float32")
        return Problem(model, x, targets, batch_size=batch_size)

    return build


# Layers and a loss of the user's own


@keras.saving.register_keras_serializable("sdkeras.testing")
class GatedLayer(keras.layers.Layer):  # type: ignore[misc]
    """A layer of the user's own: w x sigmoid(x), with an input specification."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.input_spec = layers.InputSpec(ndim=2)

    def build(self, input_shape: Any) -> None:
        self.scale = self.add_weight(shape=(input_shape[-1],), name="scale")

    def call(self, inputs: Any) -> Any:
        return self.scale * inputs * keras.ops.sigmoid(inputs)


@keras.saving.register_keras_serializable("sdkeras.testing")
class SquaredWrapper(keras.layers.Wrapper):  # type: ignore[misc]
    """A wrapper of the user's own: the square of what its layer gives."""

    def call(self, inputs: Any) -> Any:
        return keras.ops.square(self.layer(inputs))


@keras.saving.register_keras_serializable("sdkeras.testing")
class Inside(keras.layers.Wrapper):  # type: ignore[misc]
    """Calls its layer as a part of itself, for layers that cannot stand in a functional model."""

    def call(self, inputs: Any) -> Any:
        return self.layer(inputs)


@keras.saving.register_keras_serializable("sdkeras.testing")
class QuarticLoss(keras.losses.Loss):  # type: ignore[misc]
    """A loss of the user's own: mean fourth power of the error."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return keras.ops.mean((y_pred - y_true) ** 4, axis=-1)


# Data: inputs and targets


def probabilities(*shape: int, stream: int = 4) -> Any:
    raw = np.exp(random(stream).standard_normal(shape))
    return (raw / raw.sum(axis=-1, keepdims=True)).astype("float32")


def normal(*shape: int) -> Any:
    return random(5).standard_normal(shape).astype("float32")


def positive(*shape: int) -> Any:
    return random(6).uniform(0.2, 2, shape).astype("float32")


def bits(*shape: int) -> Any:
    return random(7).integers(0, 2, shape).astype("float32")


def one_hot(*shape: int, depth: int) -> Any:
    return np.eye(depth, dtype="float32")[random(8).integers(0, depth, shape)]


def signs(*shape: int) -> Any:
    return 2 * bits(*shape) - 1


def integers(*shape: int, high: int = 6) -> Any:
    return random(9).integers(0, high, shape).astype("int32")


def words(*shape: int) -> Any:
    return np.array(["red", "green", "blue", "grey"], dtype=object)[random(10).integers(0, 4, shape)]
