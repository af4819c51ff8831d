"""Hessians that can be written down, and dense Hessians by finite differences of the gradient, in float64."""

import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf

import sdkeras
from oracles import VECTORS, finite_difference_hessian
from sdkeras.operators.modes import PRODUCT_MODES
from sdkeras.operators.tf_patches import exact_moments
from small_losses import compiled, dense, hessian

layers = keras.layers


@pytest.fixture(autouse=True)
def _seeds() -> None:
    keras.utils.set_random_seed(0)


def data(*shape: int, count: int = 11, classes: int = 4, seed: int = 0):
    generator = np.random.default_rng(seed)
    return generator.standard_normal((count, *shape)), generator.integers(0, classes, count)


@pytest.mark.parametrize(
    ("dtype", "batch_size"),
    [
        ("float32", 4),
        ("float64", None),
        pytest.param("float32", None, marks=pytest.mark.slow),
        pytest.param("float64", 4, marks=pytest.mark.slow),
    ],
)
def test_linear_regression(dtype: str, batch_size: int | None) -> None:
    """Mean squared error of a linear map: H = 2/N X'X, ragged batches included."""
    x, _ = data(3)
    y = np.random.default_rng(1).standard_normal((11, 1))
    model = compiled(keras.Input((3,)), layers.Dense(1), loss="mse")
    design = np.hstack([x, np.ones((11, 1))])
    found = dense(hessian(model, (x, y), batch_size, dtype=dtype))
    assert np.allclose(found, 2 / 11 * design.T @ design, atol=1e-6 if dtype == "float32" else 1e-13)


def test_logistic_regression_with_sample_weights() -> None:
    x, _ = data(4)
    y = np.random.default_rng(1).integers(0, 2, (11, 1)).astype(float)
    weights = np.random.default_rng(2).uniform(0.1, 3, 11)
    model = compiled(keras.Input((4,)), layers.Dense(1), loss=keras.losses.BinaryCrossentropy(from_logits=True))
    operator = hessian(model, (x, y, weights), 4, dtype="float64")
    design = np.hstack([x, np.ones((11, 1))])
    p = scipy.special.expit(design @ operator.loss.point)
    expected = design.T @ (design * (weights * p * (1 - p))[:, None]) / 11
    assert np.allclose(dense(operator), expected, atol=1e-12)


@pytest.mark.parametrize("batch_size", [pytest.param(None, marks=pytest.mark.slow), 4])
def test_l2_regulariser_counts_once_whatever_the_batches(batch_size: int | None) -> None:
    model = compiled(keras.Input((3,)), layers.Dense(4, kernel_regularizer=keras.regularizers.L2(0.5)))
    plain = compiled(keras.Input((3,)), layers.Dense(4))
    plain.set_weights(model.get_weights())
    both = [dense(hessian(m, data(3), batch_size, dtype="float64")) for m in (model, plain)]
    assert np.allclose(both[0] - both[1], np.diag([1.0] * 12 + [0.0] * 4), atol=1e-12)


def test_variance_hessian_is_exact_inside_the_scope_only() -> None:
    truth = np.array(VECTORS["variance_hessian"]["row0"])
    x = tf.constant([1.0, 2.0, 4.0, -3.0], tf.float64)

    def first_row() -> np.ndarray:
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                variance = tf.nn.moments(x, [0])[1]
            slope = inner.gradient(variance, x)
        return outer.gradient(slope, x, output_gradients=tf.one_hot(0, 4, dtype=tf.float64)).numpy()

    original = tf.nn.moments
    with exact_moments(), exact_moments():
        assert np.allclose(first_row(), truth, atol=1e-14)
    assert tf.nn.moments is original
    assert not np.allclose(first_row(), truth, atol=0.1)


def tokens(count: int = 11, length: int = 5, size: int = 9):
    generator = np.random.default_rng(3)
    return generator.integers(0, size, (count, length)), generator.integers(0, 4, count)


def sequential(shape: tuple[int, ...], *inner: object) -> keras.Model:
    return keras.Sequential([keras.Input(shape), *inner, layers.Flatten(), layers.Dense(4)])


def attention() -> keras.Model:
    x = keras.Input((3, 2))
    return keras.Model(x, layers.Dense(4)(layers.Flatten()(layers.MultiHeadAttention(1, 2)(x, x))))


def residual_attention() -> keras.Model:
    x = keras.Input((5,), dtype="int32")
    h = layers.Embedding(9, 4)(x)
    a = layers.LayerNormalization()(h)
    h = layers.Add()([h, layers.MultiHeadAttention(2, 2)(a, a)])
    f = layers.Dense(4, "gelu")(layers.LayerNormalization()(h))
    return keras.Model(x, layers.Dense(4)(layers.Flatten()(layers.Add()([h, f]))))


FAMILIES = {
    "dense tanh": lambda: sequential((3,), layers.Dense(4, "tanh")),
    "layer normalization": lambda: sequential((3,), layers.Dense(4), layers.LayerNormalization()),
    "group normalization": lambda: sequential((3, 4), layers.Dense(4), layers.GroupNormalization(2)),
    "batch normalization": lambda: sequential((3,), layers.Dense(4), layers.BatchNormalization()),
    "rms normalization": lambda: sequential((3,), layers.Dense(4), layers.RMSNormalization()),
    "unit normalization": lambda: sequential((3,), layers.Dense(4), layers.UnitNormalization()),
    "convolution and max pooling": lambda: sequential(
        (6, 6, 1), layers.Conv2D(2, 3, activation="tanh"), layers.MaxPool2D(2)
    ),
    # TensorFlow's own second gradient of these writes over its input.
    "max pooling, strides 1": lambda: sequential(
        (5, 4, 1), layers.Conv2D(2, 2, activation="tanh"), layers.MaxPool2D(2, 1, "same")
    ),
    "max pooling of sequences": lambda: sequential(
        (7, 2), layers.Conv1D(3, 2, activation="tanh"), layers.MaxPool1D(3, 1, "same")
    ),
    "max pooling by TensorFlow": lambda: sequential(
        (7, 2),
        layers.Conv1D(3, 2, activation="tanh"),
        layers.Lambda(lambda x: tf.nn.max_pool(x, [1, 3, 1], [1, 1, 1], "SAME"), output_shape=(6, 3)),
        layers.Lambda(lambda x: tf.nn.max_pool(x[:, None], np.array([1, 2]), [2], "VALID"), output_shape=(1, 3, 3)),
    ),
    "depthwise": lambda: sequential((5, 5, 2), layers.DepthwiseConv2D(3), layers.Activation("gelu")),
    "separable": lambda: sequential((5, 5, 2), layers.SeparableConv2D(2, 3), layers.Activation("swish")),
    "transposed": lambda: sequential((3, 3, 1), layers.Conv2DTranspose(2, 2, activation="elu")),
    "average pooling": lambda: sequential(
        (4, 4, 1), layers.Conv2D(2, 2, activation="softplus"), layers.AveragePooling2D(2)
    ),
    "lstm": lambda: sequential((4, 2), layers.LSTM(3)),
    "gru": lambda: sequential((4, 2), layers.GRU(3)),
    "simple rnn": lambda: sequential((4, 2), layers.SimpleRNN(3)),
    "prelu": lambda: sequential((3,), layers.Dense(4), layers.PReLU()),
    "dropout": lambda: sequential((3,), layers.Dense(6, "tanh"), layers.Dropout(0.5)),
    "activity regulariser": lambda: sequential((3,), layers.Dense(4, "tanh", activity_regularizer="l2")),
    "attention": attention,
    "transformer block": residual_attention,
}
# The while loops of recurrent layers take half a minute to trace in every form.
QUICK = ("layer normalization", "max pooling, strides 1", "attention")


@pytest.mark.parametrize(
    "family", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_layer_families_against_finite_differences(family: str) -> None:
    """The operator in float64 against second derivatives made from first ones: their steps leave 1e-8 or so."""
    model = compiled(FAMILIES[family]())
    for variable in model.trainable_variables:  # gamma = 1 and beta = 0 hide terms
        variable.assign_add(0.1 * np.random.default_rng(7).standard_normal(variable.shape))
    xy = tokens() if family == "transformer block" else data(*model.input_shape[1:])
    operator, single = (hessian(model, xy, 6, dtype=dtype) for dtype in ("float64", "float32"))
    truth = finite_difference_hessian(operator.loss)
    assert np.max(np.abs(dense(operator) - truth)) < 1e-6 * np.max(np.abs(truth))
    assert single.verification.passed
    assert single.verification.hvp_relative_error < 2e-5


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param(mode, marks=pytest.mark.slow if mode == "reverse-over-reverse" else ())
        for mode in PRODUCT_MODES[1:]
    ],
)
def test_product_modes_agree(mode: str) -> None:
    model = compiled(FAMILIES["layer normalization"]())
    operator = hessian(model, data(3), 6, dtype="float64", product_mode=mode)
    assert operator.verification.product_mode == mode
    found = dense(operator)
    assert np.max(np.abs(found - finite_difference_hessian(operator.loss))) < 1e-6 * np.max(np.abs(found))


def test_softsign_falls_back_to_finite_differences() -> None:
    operator = hessian(compiled(sequential((3,), layers.Dense(4, "softsign"))), data(3), dtype="float64")
    assert operator.verification.mode == "finite-differences"
    assert operator.verification.passed
    assert "LookupError" in operator.verification.details


@pytest.mark.slow
def test_pre_ln_transformer_extremes_and_trace() -> None:
    model = compiled(residual_attention())
    model.fit(*tokens(40), epochs=3, verbose=0)
    truth = finite_difference_hessian(sdkeras.EmpiricalLoss(model, tokens(40), batch_size=16, dtype="float64"))
    values = np.linalg.eigvalsh(truth)
    operator = hessian(model, tokens(40), 16)
    found = sdkeras.get_estimator("eigenpairs", "lanczos")(tolerance=1e-5).estimate(operator, seed=0)
    assert np.allclose(found.values, [values[-1], values[0]], rtol=1e-3)
    exact = sdkeras.get_estimator("spectrum", "exact")().estimate(operator, seed=0)
    assert np.isclose(np.sum(exact.nodes * exact.weights), np.trace(truth), rtol=1e-4)
    assert np.allclose(exact.nodes[[0, -1]], values[[0, -1]], rtol=1e-3)
