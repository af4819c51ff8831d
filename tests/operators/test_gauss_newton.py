"""The Gauss-Newton matrix: closed forms, and J' H_out J from the outputs by differences, in float64."""

from typing import Any

import keras
import numpy as np
import pytest
import scipy.special

import sdkeras
from sdkeras.errors import ModelError, VerificationError
from sdkeras.operators.gauss_newton import GaussNewtonEngine
from small_losses import CE, X, Y, compiled, dense, hessian, mlp

layers = keras.layers


@pytest.fixture(autouse=True)
def _seeds() -> None:
    keras.utils.set_random_seed(0)


def gauss_newton(model: keras.Model, data: Any = (X, Y), *sizes: int | None, mode: str = "auto", **options: Any) -> Any:
    loss = sdkeras.EmpiricalLoss(model, data, *sizes, **{"dtype": "float64", **options})
    return sdkeras.GaussNewtonOperator(loss, product_mode=mode)


def jacobian(model: keras.Model, x: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """d outputs / d weights by central differences of the model itself in float64, [outputs, weights]."""
    weights = model.trainable_variables
    point = np.concatenate([np.ravel(each) for each in weights]).astype(float)

    def outputs(at: np.ndarray) -> np.ndarray:
        start = 0
        for each in weights:
            size = int(np.prod(each.shape))
            each.assign(at[start : start + size].reshape(each.shape))
            start += size
        return np.ravel(keras.ops.convert_to_numpy(model(x, training=False)))

    columns = [(outputs(point + e) - outputs(point - e)) / (2 * step) for e in step * np.eye(len(point))]
    outputs(point)
    return np.stack(columns, axis=1)


def softmax_curvature(logits: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Block diagonal of weight * (diag p - p p'), one block an example."""
    p = scipy.special.softmax(logits, axis=1)
    return scipy.linalg.block_diag(
        *(w * (np.diag(each) - np.outer(each, each)) for w, each in zip(weights, p, strict=True))
    )


def in_float64(*inner: Any, **options: Any) -> keras.Model:
    """Built in float64 from the start, so that its own outputs can be differenced."""
    keras.config.set_dtype_policy("float64")
    try:
        return mlp(*inner, **options)
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("batch_size", [pytest.param(None, marks=pytest.mark.slow), 8])
def test_a_net_against_its_outputs_jacobian_with_sample_weights(batch_size: int | None) -> None:
    """G = J' H_out J for a net whose H is another matrix; a ragged last batch changes nothing."""
    model = in_float64()
    weights = np.random.default_rng(2).uniform(0.1, 3, 22)
    operator = gauss_newton(model, (X, Y, weights), batch_size)
    x = X.astype(float)
    j = jacobian(model, x)
    logits = keras.ops.convert_to_numpy(model(x))
    expected = j.T @ softmax_curvature(logits, weights / 22) @ j
    found = dense(operator)
    scale = np.linalg.norm(expected)
    assert np.linalg.norm(found - expected) < 1e-8 * scale
    assert np.linalg.eigvalsh(found)[0] > -1e-12 * scale
    whole = dense(hessian(model, (X, Y, weights), batch_size, dtype="float64"))
    assert np.linalg.norm(whole - expected) > 1e-3 * scale
    checked = operator.verification
    assert checked.passed
    assert checked.finite_difference_error < 1e-6


def test_a_model_linear_in_its_weights_has_the_hessian() -> None:
    """Softmax regression, whose matrix is also written down; a regularizer's own Hessian is in both."""
    model = compiled(keras.Input((6,)), layers.Dense(3, kernel_regularizer=keras.regularizers.L2(0.5)))
    g, h = gauss_newton(model, (X, Y), 8), hessian(model, (X, Y), 8, dtype="float64")
    design = np.hstack([X, np.ones((22, 1))]).astype(float)
    p = scipy.special.softmax(design @ g.loss.point.reshape(7, 3), axis=1)
    blocks = np.einsum("na,nb,nij->aibj", design, design, p[:, :, None] * (np.eye(3) - p[:, None])) / 22
    expected = blocks.reshape(21, 21) + np.diag([1.0] * 18 + [0.0] * 3)
    assert np.allclose(dense(g), expected, atol=1e-12)
    assert np.allclose(dense(h), expected, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_cross_entropy_is_cut_at_the_logits_that_keras_reads(activation: str) -> None:
    """The same matrix with the activation in the layer as with the logits."""
    binary = activation == "sigmoid"
    targets = (Y > 0)[:, None].astype(float) if binary else Y
    units = 1 if binary else 3
    kind = keras.losses.BinaryCrossentropy if binary else keras.losses.SparseCategoricalCrossentropy
    inside = compiled(keras.Input((6,)), layers.Dense(4, "tanh"), layers.Dense(units, activation), loss=kind())
    logits = compiled(keras.Input((6,)), layers.Dense(4, "tanh"), layers.Dense(units), loss=kind(from_logits=True))
    logits.set_weights(inside.get_weights())
    first, second = (dense(gauss_newton(model, (X, targets))) for model in (inside, logits))
    assert np.allclose(first, second, atol=1e-12)
    assert np.linalg.norm(first) > 1e-2


@pytest.mark.slow
def test_squared_error_on_probabilities_is_cut_at_the_probabilities() -> None:
    """2/(N C) J'J with J of the probabilities: positive semidefinite, as it would not be with that of the logits."""
    keras.config.set_dtype_policy("float64")
    model = compiled(keras.Input((6,)), layers.Dense(4, "tanh"), layers.Dense(3, "softmax"), loss="mse")
    keras.config.set_dtype_policy("float32")
    j = jacobian(model, X.astype(float))
    assert np.allclose(dense(gauss_newton(model, (X, np.eye(3)[Y]))), 2 / 66 * j.T @ j, atol=1e-9)


@pytest.mark.slow
def test_batch_statistics_couple_examples_in_training_mode() -> None:
    """J is that of the outputs with the statistics of the batch, by differences of a stateless call."""
    keras.config.set_dtype_policy("float64")
    model = mlp(layers.BatchNormalization())
    keras.config.set_dtype_policy("float32")
    operator = gauss_newton(model)
    found = dense(operator)
    x = X.astype(float)
    state = model.get_weights()

    class Training:
        trainable_variables = model.trainable_variables

        def __call__(self, x: np.ndarray, training: bool) -> Any:
            values = [v.value for v in model.non_trainable_variables]
            return model.stateless_call([v.value for v in model.trainable_variables], values, x, training=True)[0]

    logits = keras.ops.convert_to_numpy(Training()(x, True))
    j = jacobian(Training(), x)  # type: ignore[arg-type]
    expected = j.T @ softmax_curvature(logits, np.full(22, 1 / 22)) @ j
    assert all(np.array_equal(a, b) for a, b in zip(state, model.get_weights(), strict=True))
    assert np.linalg.norm(found - expected) < 1e-7 * np.linalg.norm(expected)
    assert np.linalg.eigvalsh(found)[0] > -1e-12


@pytest.mark.slow
def test_two_outputs_one_feeding_the_other() -> None:
    """H_out treats them as independent: its cross terms are 0 although the second is made of the first."""
    keras.config.set_dtype_policy("float64")
    inputs = keras.Input((6,))
    first = layers.Dense(2, "tanh", name="a")(inputs)
    model = keras.Model(inputs, {"a": first, "b": layers.Dense(3, name="b")(first)})
    keras.config.set_dtype_policy("float32")
    model.compile("sgd", {"a": "mse", "b": CE}, loss_weights={"a": 0.5, "b": 2.0})
    target = np.random.default_rng(4).standard_normal((22, 2))
    operator = gauss_newton(model, (X, {"a": target, "b": Y}), 8)

    class One:
        trainable_variables = model.trainable_variables

        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self, x: np.ndarray, training: bool) -> Any:
            return model(x, training=training)[self.name]

    x = X.astype(float)
    a, b = (jacobian(One(name), x) for name in "ab")  # type: ignore[arg-type]
    logits = keras.ops.convert_to_numpy(model(x)["b"])
    expected = 0.5 * 2 / 44 * a.T @ a + 2.0 * b.T @ softmax_curvature(logits, np.full(22, 1 / 22)) @ b
    assert np.allclose(dense(operator), expected, atol=1e-8)


@pytest.mark.slow
def test_a_masked_sequence_counts_its_valid_places() -> None:
    """A GRU over padded tokens: padding beyond the mask changes nothing, and the matrix is positive semidefinite."""
    model = compiled(
        layers.Embedding(5, 3, mask_zero=True), layers.GRU(3, return_sequences=True), layers.Dense(2), loss=CE
    )
    tokens = np.array([[1, 2, 3, 0], [4, 0, 0, 0], [2, 2, 1, 3]])
    labels = np.array([[0, 1, 0, 1], [1, 0, 0, 0], [1, 1, 0, 0]])
    model(tokens)
    first = gauss_newton(model, (tokens, labels), 2)
    labels[0, 3], labels[1, 1:] = 0, 1  # behind the mask
    second = gauss_newton(model, (tokens, labels), 2)
    assert np.allclose(dense(first), dense(second), atol=1e-13)
    assert np.linalg.eigvalsh(dense(first))[0] > -1e-12
    assert np.linalg.norm(dense(first)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["forward-over-reverse", "finite-differences", "linearized"])
def test_every_product_mode_and_minibatches_with_held_masks(mode: str) -> None:
    model = mlp(layers.Dropout(0.3))
    usual, other = gauss_newton(model, (X, Y), 8), gauss_newton(model, (X, Y), 8, mode=mode)
    tolerance = 1e-6 if mode == "finite-differences" else 1e-12
    minibatch = usual.on_minibatch(3)
    expected = dense(minibatch)
    assert other.verification.mode == ("reverse-over-reverse" if mode == "linearized" else mode)
    assert np.allclose(dense(other.on_minibatch(3)), expected, atol=tolerance)
    assert np.array_equal(dense(usual.on_minibatch(3)), expected)  # the same masks
    assert np.linalg.norm(dense(usual.on_minibatch(4)) - expected) > 1e-3
    together = type(usual).batch([usual.on_minibatch(k) for k in (3, 4)])
    vectors = np.random.default_rng(0).standard_normal((2, usual.size))
    assert np.allclose(together.matvecs(vectors)[0], expected @ vectors[0], atol=1e-12)


@pytest.mark.slow
def test_float32_products_are_verified_by_a_float64_clone() -> None:
    model = mlp()
    single, double = (gauss_newton(model, dtype=dtype) for dtype in ("float32", "float64"))
    assert single.verification.finite_difference_dtype == "float64"
    assert np.allclose(dense(single), dense(double), atol=1e-6)


def test_what_has_no_split_is_refused() -> None:
    def own(model: keras.Model, batch: Any) -> Any:
        return keras.ops.mean(CE(batch[1], model(batch[0])))

    with pytest.raises(ModelError, match="where the outputs end"):
        gauss_newton(mlp(), loss_fn=own, dtype="float32")
    with pytest.raises(ModelError, match="adds a loss of its own"):
        gauss_newton(mlp(layers.ActivityRegularization(l2=0.1)))


@pytest.mark.slow
def test_wrong_products_do_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of the Hessian are not those of the Gauss-Newton matrix."""
    graph = sdkeras.HessianOperator.engine_class._first_pass
    monkeypatch.setattr(GaussNewtonEngine, "_first_pass", graph)
    with pytest.raises(VerificationError, match="Gauss-Newton"):
        gauss_newton(in_float64())
