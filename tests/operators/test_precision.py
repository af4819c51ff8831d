"""Copies of a model in other precisions: layers with learned state, functions of the user's, code that must not run."""

import contextlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import sdkeras
from sdkeras.errors import ModelError, SdkerasError, VerificationError
from sdkeras.operators import engine, precision
from sdkeras.runs.lyapunov_options import LyapunovOptions
from sdkeras.runs.options import Options

layers = keras.layers
RNG = np.random.default_rng(0)
REAL = RNG.normal(2, 3, (12, 4)).astype("float32")
WHOLE = RNG.integers(0, 30, (12, 3))
WORDS = np.array(["red", "green", "Blue", "red and blue"], dtype=object)[RNG.integers(0, 4, (12, 1))]
EPS = float(np.finfo(np.float32).eps)


def adapted(layer: Any, data: Any) -> Any:
    layer.adapt(data)
    return layer


def net(layer: Any, data: Any) -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input(data.shape[1:], dtype="string" if data.dtype == object else str(data.dtype))
    hidden = layer(inputs)
    if "int" in hidden.dtype:  # positions in a vocabulary
        hidden = layers.Embedding(40, 3)(hidden)
    hidden = layers.Flatten()(hidden) if len(hidden.shape) > 2 else hidden
    model = keras.Model(inputs, layers.Dense(2)(layers.Dense(3, "tanh")(hidden)))
    model.compile("sgd", "mse")
    return model


ADAPTED = {
    "Normalization": lambda: (adapted(layers.Normalization(), REAL), REAL),
    "Normalization of everything": lambda: (adapted(layers.Normalization(axis=None), REAL), REAL),
    "Normalization inverted": lambda: (adapted(layers.Normalization(invert=True), REAL), REAL),
    "Discretization": lambda: (adapted(layers.Discretization(num_bins=4, output_mode="one_hot"), REAL), REAL),
    "Discretization to integers": lambda: (adapted(layers.Discretization(num_bins=4), REAL), REAL),
    "IntegerLookup": lambda: (adapted(layers.IntegerLookup(max_tokens=9), WHOLE), WHOLE),
    "IntegerLookup tf_idf": lambda: (adapted(layers.IntegerLookup(output_mode="tf_idf"), WHOLE), WHOLE),
    "StringLookup": lambda: (adapted(layers.StringLookup(output_mode="multi_hot"), WORDS), WORDS),
    "TextVectorization": lambda: (adapted(layers.TextVectorization(output_sequence_length=3), WORDS), WORDS),
    "TextVectorization tf_idf": lambda: (adapted(layers.TextVectorization(output_mode="tf_idf"), WORDS), WORDS),
    "Normalization inside a model": lambda: (keras.Sequential([adapted(layers.Normalization(), REAL)]), REAL),
}


# Averages, a vocabulary with its frequencies, and words.
QUICK = ("Normalization", "IntegerLookup tf_idf", "StringLookup", "TextVectorization")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in ADAPTED])
def test_what_a_layer_has_learned_is_copied(name: str) -> None:
    layer, data = ADAPTED[name]()
    model = net(layer, data)
    inputs = tf.constant(data)
    clone = precision.in_precision(model, "float64")
    single, double = (np.asarray(each(inputs)) for each in (model, clone))
    assert double.dtype == np.float64
    # Two small layers in float32; without the learned state the outputs differ by their own size.
    assert np.allclose(single, double, rtol=0, atol=30 * EPS * np.max(np.abs(double)))
    if data.dtype != object:
        operator = sdkeras.HessianOperator(sdkeras.EmpiricalLoss(model, (data, RNG.normal(size=(12, 2)))))
        assert operator.verification.finite_difference_dtype == "float64"
        assert not operator.verification.details


def cubed(x: Any) -> Any:
    return x**3


def functions() -> dict[str, Any]:
    scale = tf.constant(0.7)
    return {
        "lambda": layers.Lambda(lambda x: x * tf.cast(scale, x.dtype)),
        "function by name": layers.Lambda(cubed),
        "output shape": layers.Lambda(lambda x: x[:, :2], output_shape=lambda shape: (shape[0], 2)),
        "activation": layers.Activation(lambda x: x**2),
        "two of the same name": keras.Sequential([layers.Lambda(lambda x: 2 * x), layers.Lambda(lambda x: x + 1)]),
        "regularizer": layers.Dense(3, kernel_regularizer=lambda kernel: tf.reduce_sum(kernel**4)),
        "cell": keras.Sequential([layers.Reshape((2, 2)), layers.RNN(layers.GRUCell(3, activation=lambda x: x / 2))]),
    }


@pytest.mark.parametrize("name", functions())
def test_functions_are_shared_with_the_copy(name: str) -> None:
    model = net(functions()[name], REAL)
    before = {id(each): each.__name__ for each in vars(model.layers[1]).values() if hasattr(each, "__name__")}
    clone = precision.in_precision(model, "float64")
    assert np.allclose(model(REAL), clone(REAL), rtol=0, atol=30 * EPS * np.max(np.abs(clone(REAL))))
    assert np.allclose(sum(map(float, model.losses)), sum(map(float, clone.losses)), rtol=30 * EPS)
    after = {id(each): each.__name__ for each in vars(model.layers[1]).values() if hasattr(each, "__name__")}
    assert before == after
    assert cubed.__name__ == "cubed"


class Planted(layers.Lambda):  # type: ignore[misc]
    """A layer whose configuration holds code that is not the function it computes with."""

    def get_config(self) -> dict[str, Any]:
        code = layers.Lambda(lambda x: setattr(__import__("keras"), "planted_code_ran", True) or x)
        return {**super().get_config(), "function": code.get_config()["function"]}


def test_code_in_a_configuration_is_not_run() -> None:
    """Keras would run it when the copy is made: `call` of the copy is what the code says."""
    model = net(Planted(lambda x: x), REAL)
    with pytest.raises(ModelError, match="cannot be rebuilt in float64"):
        precision.in_precision(model, "float64")
    operator = sdkeras.HessianOperator(sdkeras.EmpiricalLoss(model, (REAL, np.zeros((12, 2), "float32"))))
    assert "no float64 clone" in operator.verification.details
    assert not hasattr(keras, "planted_code_ran")


# Activations in bfloat16


def image_net() -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(4, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(5, "tanh"),
            layers.LayerNormalization(),
            layers.Dense(3),
        ]
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


IMAGES = RNG.standard_normal((22, 6, 6, 1)).astype("float32"), RNG.integers(0, 3, 22)


@pytest.mark.parametrize("trained_in", ["float32", "mixed_bfloat16"])
def test_products_in_bfloat16_are_verified_and_their_rounding_is_told(trained_in: str) -> None:
    with precision.default_precision(trained_in):
        model = image_net()
    exact = sdkeras.HessianOperator(sdkeras.EmpiricalLoss(model, IMAGES, 8, dtype="float64"))
    mixed = sdkeras.HessianOperator(sdkeras.EmpiricalLoss(model, IMAGES, 8, dtype="mixed_bfloat16"))
    assert mixed.loss.function.is_mixed
    assert mixed.dtype == np.float32
    # The user's own model where it is mixed already.
    assert (mixed.loss.function.model is model) == (trained_in == "mixed_bfloat16")
    vector = np.random.default_rng(1).standard_normal(exact.size)
    expected = exact.matvec(vector)
    error = np.linalg.norm(mixed.matvec(vector.astype("float32")) - expected) / np.linalg.norm(expected)
    eps = 2.0**-8
    # Rounded activations, of some layers: more than float32's rounding, less than a layer's times the depth and more.
    assert 0.1 * eps < error < 40 * eps
    checked = mixed.verification
    assert checked.passed
    assert checked.finite_difference_error < 1e-5
    assert error / 3 < checked.hvp_relative_error < 3 * error


def test_products_that_are_wrong_are_refused_in_bfloat16_too(monkeypatch: pytest.MonkeyPatch) -> None:
    # TensorFlow's own moments are right to first order only.
    monkeypatch.setattr(engine, "exact_moments", contextlib.nullcontext)
    monkeypatch.setattr(engine, "inexact_moments", lambda graph: [])
    with pytest.raises(VerificationError):
        sdkeras.HessianOperator(sdkeras.EmpiricalLoss(image_net(), IMAGES, 8, dtype="mixed_bfloat16"))


def test_a_layer_in_float32_stays_so_beside_bfloat16() -> None:
    with precision.default_precision("mixed_bfloat16"):
        model = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Activation("softmax", dtype="float32")])
        model.compile("sgd", "sparse_categorical_crossentropy")
    assert precision.is_pure(model, "mixed_bfloat16")
    assert not precision.is_pure(model, "float32")
    assert not precision.is_pure(image_net(), "mixed_bfloat16")


@pytest.mark.parametrize(
    "options", [{"lyapunov": 2}, {"map": "full"}, {"snapshots": 2, "every": 5}], ids=["lyapunov", "full", "snapshots"]
)
def test_steps_of_training_are_not_in_bfloat16(options: dict[str, Any]) -> None:
    with pytest.raises(SdkerasError, match=r"mixed_bfloat16 rounds .*take float32"):
        Options(dtype="mixed_bfloat16", **options)
    with pytest.raises(SdkerasError, match="take float32 or float64"):
        LyapunovOptions(dtype="mixed_bfloat16")
    with pytest.raises(SdkerasError, match="exact to some per cent; take float32"):
        Options(dtype="mixed_bfloat16", exact=True)


def test_rounding_in_bfloat16_is_told_where_masks_are_random() -> None:
    model = image_net()
    dropped = keras.Sequential([keras.Input((6, 6, 1)), *model.layers[:-1], layers.Dropout(0.3), layers.Dense(3)])
    dropped.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    checked = sdkeras.HessianOperator(sdkeras.EmpiricalLoss(dropped, IMAGES, 8, dtype="mixed_bfloat16")).verification
    assert checked.passed
    assert 1e-3 < checked.hvp_relative_error < 0.3
