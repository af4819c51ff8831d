"""Batches in parts: the same loss, gradient, products and steps."""

from typing import Any

import keras
import numpy as np
import pytest

import sdkeras
from sdkeras.errors import ModelError
from small_losses import X, Y, compiled, mlp

layers = keras.layers
TOKENS = np.random.default_rng(2).integers(1, 9, (22, 5))


def masked() -> keras.Model:
    """Embeddings with a mask of ragged length, a penalty, two outputs of different denominators."""
    inputs = keras.Input((5,), dtype="int32")
    h = layers.Embedding(9, 4, mask_zero=True)(inputs)
    h = layers.Dense(6, "tanh", kernel_regularizer=keras.regularizers.L2(0.02))(h)
    model = keras.Model(inputs, [layers.Dense(3)(h), layers.Dense(1)(layers.GlobalAveragePooling1D()(h))])
    ce = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=2)
    model.compile(keras.optimizers.Adam(0.01, clipnorm=0.5), [ce, "mse"], loss_weights=[1.0, 0.3])
    return model


def nets() -> dict[str, tuple[keras.Model, Any]]:
    keras.utils.set_random_seed(0)
    ragged = TOKENS.copy()
    for row, length in enumerate(np.random.default_rng(3).integers(1, 6, 22)):
        ragged[row, length:] = 0
    targets = np.random.default_rng(4).integers(0, 3, (22, 5)), X[:, :1]
    weights = np.random.default_rng(5).uniform(0, 2, 22)
    return {
        "dense": (mlp(), (X, Y)),
        "weighted": (mlp(), (X, Y, weights)),
        "summed": (
            compiled(keras.Input((6,)), layers.Dense(3), loss=keras.losses.MeanSquaredError("sum")),
            (X, X[:, :3]),
        ),
        "masked": (masked(), (ragged, list(targets))),
    }


@pytest.mark.parametrize(
    ("name", "batch_size"),
    [
        ("dense", None),
        ("weighted", 8),
        ("masked", 8),
        pytest.param("summed", 8, marks=pytest.mark.slow),
        pytest.param("masked", None, marks=pytest.mark.slow),
    ],
)
def test_parts_of_batches_are_the_same_function(name: str, batch_size: int | None) -> None:
    model, data = nets()[name]
    whole, parts = (
        sdkeras.EmpiricalLoss(model, data, batch_size, dtype="float64", micro_batch=size) for size in (None, 3)
    )
    assert [len(batch.pieces) for batch in parts.batches] == ([8] if batch_size is None else [3, 3, 2])
    eps = 1e-12
    assert parts.value() == pytest.approx(whole.value(), rel=eps)
    np.testing.assert_allclose(parts.gradient(), whole.gradient(), atol=eps * np.linalg.norm(whole.gradient()))
    operators = [sdkeras.HessianOperator(loss) for loss in (whole, parts)]
    v = np.random.default_rng(0).standard_normal((2, whole.size))
    for view in (lambda each: each, lambda each: each.on_minibatch(1)):
        expected, got = (view(each).rows(v) for each in operators)
        np.testing.assert_allclose(got, expected, atol=eps * np.linalg.norm(expected))
        expected, got = (view(each).matvec(v[0]) for each in operators)
        np.testing.assert_allclose(got, expected, atol=eps * np.linalg.norm(expected))
        np.testing.assert_allclose(
            view(operators[1]).gradient(), view(operators[0]).gradient(), atol=eps * np.linalg.norm(whole.gradient())
        )


def test_a_product_with_a_batch_in_parts_is_one_product() -> None:
    model, data = nets()["dense"]
    hessian = sdkeras.HessianOperator(sdkeras.EmpiricalLoss(model, data, 8, micro_batch=3))
    before = hessian.num_products
    hessian.matvec(np.ones(hessian.size, np.float32))
    hessian.on_minibatch(0).rows(np.ones((4, hessian.size), np.float32))
    assert hessian.num_products == before + 3 + 4
    assert not hessian.verification.linearized


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dense", "masked"])
def test_a_step_over_parts_is_the_same_step(name: str) -> None:
    model, data = nets()[name]
    model.optimizer.build(model.trainable_variables)
    whole, parts = (
        sdkeras.UpdateMap(
            sdkeras.EmpiricalLoss(model, data, 8, dtype="float64", micro_batch=size),
            model.optimizer,
            initial_slots=True,
        ).on_minibatch(0)
        for size in (None, 3)
    )
    v = np.random.default_rng(0).standard_normal((whole.size, 3))
    for product in ("jvp", "vjp"):
        expected = getattr(whole, product)(v)
        np.testing.assert_allclose(getattr(parts, product)(v), expected, atol=1e-9 * np.linalg.norm(expected))
    np.testing.assert_allclose(parts.apply(), whole.apply(), atol=1e-9)


@pytest.mark.slow
def test_an_analysis_in_parts_gives_the_same_numbers() -> None:
    model, data = nets()["dense"]
    options: Any = {"batch_size": 8, "runs": 4, "settings": {"slq": {"num_steps": 10}}, "lyapunov": 2}
    options |= {"lyapunov_steps": 8, "lyapunov_transient": 2, "dtype": "float64"}
    whole, parts = (sdkeras.analyze(model, data, micro_batch=size, **options) for size in (None, 3))
    assert parts.sharpness_dimension.value == pytest.approx(whole.sharpness_dimension.value, rel=1e-8)
    assert parts.hessian.trace.value == pytest.approx(whole.hessian.trace.value, rel=1e-8)
    assert parts.edge_of_stability.batch_sharpness == pytest.approx(whole.edge_of_stability.batch_sharpness, rel=1e-8)
    np.testing.assert_allclose(parts.lyapunov.values, whole.lyapunov.values, rtol=1e-6)


def test_batch_statistics_are_refused() -> None:
    model = mlp(layers.BatchNormalization(name="norm"))
    with pytest.raises(ModelError, match=r"norm couples the examples.*inference"):
        sdkeras.EmpiricalLoss(model, (X, Y), 8, micro_batch=3)
    sdkeras.EmpiricalLoss(model, (X, Y), 8, micro_batch=3, mode="inference")
    for wrong in (0, 2.5, "3", True):
        with pytest.raises(ModelError, match=f"micro_batch is {wrong!r}; it must be a whole number"):
            sdkeras.EmpiricalLoss(mlp(), (X, Y), 8, micro_batch=wrong)


class Centred(layers.Layer):
    def call(self, x: Any) -> Any:
        return x - keras.ops.mean(x, axis=0)


class Penalised(layers.Layer):
    def call(self, x: Any) -> Any:
        self.add_loss(0.1 * keras.ops.sum(x**2))
        return x


@pytest.mark.parametrize("layer", [Centred, Penalised])
@pytest.mark.parametrize("dropout", [False, True])
def test_a_model_that_couples_examples_is_refused(layer: Any, dropout: bool) -> None:
    inner = [layers.Dropout(0.5)] if dropout else []
    sdkeras.EmpiricalLoss(mlp(layer(), *inner), (X, Y), 8)
    with pytest.raises(ModelError, match="couples the examples of a batch"):
        sdkeras.EmpiricalLoss(mlp(layer(), *inner), (X, Y), 8, micro_batch=3)


def test_parts_are_rounded_in_bfloat16_and_no_other_function() -> None:
    sdkeras.EmpiricalLoss(mlp(), (X, Y), 8, micro_batch=3, dtype="mixed_bfloat16")
    with pytest.raises(ModelError, match="couples the examples of a batch"):
        sdkeras.EmpiricalLoss(mlp(Centred()), (X, Y), 8, micro_batch=3, dtype="mixed_bfloat16")


def test_parts_of_random_nets_are_weighted() -> None:
    weights = np.random.default_rng(5).uniform(0, 2, 22)
    sdkeras.EmpiricalLoss(mlp(layers.Dropout(0.5)), (X, Y, weights), 8, micro_batch=3)


def test_parts_have_masks_of_their_own() -> None:
    model = mlp(layers.Dropout(0.5))
    loss = sdkeras.EmpiricalLoss(model, (X, Y), micro_batch=8)
    seeds = {part.seeds.tobytes() for part in loss.batches[0].parts}
    assert len(seeds) == 3
    assert loss.value() == loss.value()
    sdkeras.HessianOperator(loss)  # verified
