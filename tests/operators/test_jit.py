"""Functions compiled by XLA: the same products to rounding, verified as they are compiled, or refused by name."""

import contextlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import sdkeras.operators.engine as engine_module
from sdkeras.errors import ModelError, VerificationError
from sdkeras.operators import lockstep
from sdkeras.operators.engine import Engine, by_xla
from sdkeras.operators.linearized import Flat
from sdkeras.operators.modes import JIT
from sdkeras.operators.tf_patches import indexed_pooling
from small_losses import X, Y, compiled, hessian, mlp

layers = keras.layers
GENERATOR = np.random.default_rng(3)
IMAGES = GENERATOR.standard_normal((22, 8, 8, 2)).astype("float32")
SERIES = GENERATOR.standard_normal((22, 5, 3)).astype("float32")


def cnn() -> keras.Model:
    blocks = [layers.Conv2D(4, 3, activation="relu"), layers.MaxPooling2D(2), layers.Conv2D(4, 2, activation="tanh")]
    return compiled(keras.Input((8, 8, 2)), *blocks, layers.Flatten(), layers.Dense(3))


NETS: dict[str, Any] = {
    "Dense": lambda: (mlp(), (X, Y)),
    "Conv2D, MaxPooling2D": lambda: (cnn(), (IMAGES, Y)),
    "LSTM": lambda: (compiled(keras.Input((5, 3)), layers.LSTM(4), layers.Dense(3)), (SERIES, Y)),
    "LayerNormalization": lambda: (mlp(layers.LayerNormalization()), (X, Y)),
    "BatchNormalization": lambda: (mlp(layers.BatchNormalization()), (X, Y)),
}


class OnTheHost(layers.Layer):
    """Adds what Python computes."""

    def compute_output_shape(self, shape: Any) -> Any:
        return shape

    def call(self, x: Any) -> Any:
        return x + tf.ensure_shape(tf.numpy_function(np.zeros_like, [x], x.dtype), x.shape)


def is_compiled_by_xla(function: Any) -> bool:
    """Whether TensorFlow runs a function by XLA or not at all."""
    return bool(function.function._inference_function.cached_definition.attr["_XlaMustCompile"].b)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name not in ("Dense", "LayerNormalization"))) for name in NETS],
)
def test_products_agree_with_those_without_xla(name: str) -> None:
    keras.utils.set_random_seed(0)
    model, data = NETS[name]()
    jit, plain = (hessian(model, data, 8, jit=mode, dtype="float64") for mode in ("on", "off"))
    assert (jit.verification.jit, plain.verification.jit) == (True, False)
    assert jit.verification.mode == plain.verification.mode == "reverse-over-reverse"
    vector = GENERATOR.standard_normal(jit.size)
    expected = plain.matvec(vector)
    assert np.linalg.norm(jit.matvec(vector) - expected) < 1e-12 * np.linalg.norm(expected)
    np.testing.assert_allclose(jit.gradient(), plain.gradient(), rtol=0, atol=1e-13 * np.linalg.norm(plain.gradient()))


@pytest.mark.parametrize("jit", ["on", "off", "auto"])
def test_all_functions_of_an_analysis_are_compiled_alike(jit: str) -> None:
    operator = hessian(mlp(), (X, Y), 8, jit=jit, product_mode="linearized")
    engine = operator.engine
    rows = lockstep.Rows.of(engine, operator.batches[:2])
    engine.products(engine.point, tf.eye(operator.size), operator.batches[0])
    assert rows is not None
    assert engine.cut is not None
    assert engine._shared.block_product is not None
    linear = engine.cut.at(engine, operator.batches[0])
    functions = [engine._evaluate, engine._gradient(None), engine.compiled_product(None), engine._shared.block_product]
    functions += [rows.product, engine.cut.primal, linear.tangent]
    assert {is_compiled_by_xla(each) for each in functions} == {jit == "on"}
    assert operator.verification.jit == (jit == "on")


def test_a_call_that_skips_tensorflows_matching_of_names_is_still_one_by_xla() -> None:
    graph = tf.function(lambda x: tf.numpy_function(np.sin, [x], x.dtype), jit_compile=True, autograph=False)
    flat = Flat(graph.get_concrete_function(tf.TensorSpec([2], tf.float32)))
    with pytest.raises(tf.errors.InvalidArgumentError, match="PyFunc"):
        flat(tf.ones(2))


def test_the_float64_clone_is_compiled_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, bool]] = []
    original = Engine.compiled

    def recorded(function: Any, *arguments: Any, jit: bool = False, **options: Any) -> Engine:
        made.append((function.dtype, jit))
        return original(function, *arguments, jit=jit, **options)

    monkeypatch.setattr(Engine, "compiled", recorded)
    hessian(mlp(), jit="on")
    assert made == [("float32", True), ("float64", True)]


def test_on_a_tpu_everything_is_compiled_by_xla(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [by_xla(jit) for jit in JIT] == [False, True, False]
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [kind] if kind == "TPU" else [])
    assert [by_xla(jit) for jit in JIT] == [True, True, True]


@pytest.mark.slow
def test_dropout_is_verified_with_the_masks_that_xla_draws() -> None:
    jit = hessian(mlp(layers.Dropout(0.4)), (X, Y), 8, jit="on")
    assert jit.verification.passed
    assert jit.verification.finite_difference_error < 1e-6
    plain = hessian(jit.loss._model, (X, Y), 8, jit="off")
    assert abs(jit.loss.value() - plain.loss.value()) > 1e-4  # other masks


def test_an_operation_that_xla_does_not_know_is_named() -> None:
    with pytest.raises(ModelError, match=r"XLA cannot compile .*: XLA does not know PyFunc; .*\(`jit='off'`\)\.$"):
        hessian(mlp(OnTheHost()), jit="on")
    words = compiled(
        keras.Input((1,), dtype="string"),
        layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot"),
        layers.Dense(3),
    )
    data = np.array([["a"], ["b"]]), np.array([0, 1])
    with pytest.raises(ModelError, match=r"XLA knows no text, .*\(`jit='off'`\)\.$"):
        hessian(words, data, jit="on")


@pytest.mark.slow
def test_the_next_product_mode_where_xla_does_not_know_an_operation_of_the_first() -> None:
    model = compiled(
        keras.Input((8, 8, 2)), layers.Conv2D(2, 3), layers.MaxPooling2D(2), layers.Flatten(), layers.Dense(3)
    )
    images = IMAGES.astype("float64")
    with pytest.MonkeyPatch.context() as patch:  # XLA has TensorFlow's own second derivative in float32 only
        patch.setattr(engine_module, "indexed_pooling", contextlib.nullcontext)
        with pytest.raises(ModelError, match=r"reverse-over-reverse: XLA does not know MaxPoolGradGrad\).*jit='off'"):
            hessian(model, (images, Y), 8, jit="on", dtype="float64", product_mode="reverse-over-reverse")
        chosen = hessian(model, (images, Y), 8, jit="on", dtype="float64").verification
    assert (chosen.mode, chosen.passed) == ("finite-differences", True)
    assert "XLA does not know MaxPoolGradGrad" in chosen.details


@pytest.mark.slow
def test_wrong_second_derivatives_of_xla_do_not_pass() -> None:
    """XLA compares in bfloat16 to find a window's maximum: close entries are taken for each other."""
    images = GENERATOR.standard_normal((64, 12, 12, 1)).astype("float32")
    model = compiled(
        keras.Input((12, 12, 1)), layers.Conv2D(8, 3, activation="relu"), layers.MaxPooling2D(2),
        layers.Conv2D(8, 3, activation="relu"), layers.Flatten(), layers.Dense(3),
    )  # fmt: skip
    data = images, GENERATOR.integers(0, 3, 64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "indexed_pooling", contextlib.nullcontext)
        with pytest.raises(VerificationError, match=r"`jit='off'`"):
            hessian(model, data, jit="on")
    assert hessian(model, data, jit="on").verification.finite_difference_error < 1e-6


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(("size", "strides"), [((2, 3), (2, 1)), ((3, 2), (1, 2)), ((3, 3), (3, 3))])
def test_pooling_by_windows_takes_the_places_that_tensorflow_takes(
    size: tuple[int, int], strides: tuple[int, int], padding: str
) -> None:
    """Ties included: among few whole numbers most windows have several maxima, and the first counts."""
    x = tf.constant(GENERATOR.integers(-3, 1, (2, 8, 7, 2)), tf.float64)

    def pooled(jit: bool | None) -> list[Any]:
        with tf.GradientTape() as tape, contextlib.nullcontext() if jit is None else indexed_pooling(jit):
            tape.watch(x)
            y = tf.nn.max_pool(x, size, strides, padding.upper())
        return [y, tape.gradient(y, x, tf.cast(tf.reshape(tf.range(tf.size(y)), tf.shape(y)), y.dtype))]

    for jit in (False, True):
        for one, other in zip(pooled(jit), pooled(None), strict=True):
            np.testing.assert_array_equal(one, other)
