"""Diagonal blocks of layers against dense matrices, and the estimated inputs of the bounds against closed forms."""

import keras
import numpy as np
import pytest

import sdkeras
from oracles import rotated
from sdkeras.dimension.controls import Rows
from sdkeras.dimension.exponents import ExponentMap
from sdkeras.linalg.operators import DenseOperator, RestrictedOperator
from sdkeras.operators.controls import number, population
from sdkeras.operators.layout import Layout
from sdkeras.runs import assumptions
from sdkeras.runs.layers import block_traces

layers = keras.layers
CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)
    return generator.standard_normal((64, 5)).astype("float32"), generator.integers(0, 3, 64)


@pytest.fixture(scope="module")
def model(data) -> keras.Model:
    keras.utils.set_random_seed(0)
    named = [layers.Dense(6, "tanh", name="first"), layers.Dense(3, name="last")]
    model = keras.Sequential([keras.Input((5,)), *named], name="net")
    model.compile(keras.optimizers.SGD(0.5), CE)
    model.fit(*data, batch_size=16, epochs=20, verbose=0)
    return model


def test_a_restricted_operator_is_the_diagonal_block() -> None:
    matrix = rotated(np.linspace(-1, 3, 12))
    operator = RestrictedOperator(DenseOperator(matrix), slice(3, 8))
    assert np.allclose(operator.matmat(np.eye(5)), matrix[3:8, 3:8])
    assert np.allclose(operator.matvec(np.ones(5)), matrix[3:8, 3:8].sum(axis=1))
    for wrong in (slice(4, 4), slice(8, 3), slice(0, 8, 2)):
        with pytest.raises(ValueError, match="range"):
            RestrictedOperator(DenseOperator(matrix), wrong)


def test_traces_of_blocks() -> None:
    matrix = rotated(np.linspace(-1, 3, 60))
    blocks = {"a": slice(0, 10), "b": slice(10, 60)}
    found = block_traces(DenseOperator(matrix), blocks, seed=0)
    for name, block in blocks.items():
        truth = float(np.trace(matrix[block, block]))
        assert abs(found[name].value - truth) < 5 * found[name].stderr
        assert found[name].stderr < 0.2 * abs(truth)


def test_layers_of_a_layout() -> None:
    shapes = ((2, 3), (3,), (3, 1), (2,))
    names = ("a/kernel", "a/bias", "b/c/kernel", "scale")
    assert Layout(names, shapes).layers == {"a": slice(0, 9), "b/c": slice(9, 12), "scale": slice(12, 14)}
    apart = Layout(("a/x", "b/x", "a/y"), ((2,), (2,), (2,))).layers
    assert apart == {"a": slice(0, 2), "b": slice(2, 4), "a/y": slice(4, 6)}


def test_each_layer_against_dense_blocks(model: keras.Model, data) -> None:
    run = sdkeras.analyze(model, data, batch_size=16, exact_minibatches=24, per_layer=True, tolerance=0.3)
    loss = sdkeras.EmpiricalLoss(model, data, batch_size=16)
    hessian = sdkeras.HessianOperator(loss)
    dense = hessian.matmat(np.eye(hessian.size, dtype="float32"))
    numbers = [number(loss.source, index) for index in range(24)]
    weights = Rows.of(24, population(loss)).run_weights  # by regression on the controls
    spectra = [hessian.on_minibatch(k).matmat(np.eye(hessian.size, dtype="float32")) for k in numbers]
    assert [layer.name for layer in run.layers] == ["net/first", "net/last"]
    assert [layer.num_parameters for layer in run.layers] == [36, 21]
    for layer, block in zip(run.layers, (slice(0, 36), slice(36, 57)), strict=True):
        top = np.linalg.eigvalsh(dense[block, block].astype(np.float64))[-1]
        assert layer.largest.value == pytest.approx(top, rel=1e-4)
        assert abs(layer.trace.value - np.trace(dense[block, block])) < 5 * layer.trace.stderr
        z = [ExponentMap("sgd", 0.5)(np.linalg.eigvalsh(h[block, block].astype(np.float64))) for h in spectra]
        pooled = sdkeras.sharpness_dimension(np.concatenate(z), np.repeat(weights, [len(each) for each in z]))
        assert layer.codimension == pytest.approx(layer.num_parameters - pooled, abs=0.05)
    assert sdkeras.Analysis.from_json(run.to_json()) == run
    assert "first (36)" in str(run)


def test_estimated_inputs_of_a_linear_classifier(data) -> None:
    x, y = data
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((5,)), layers.Dense(3)])
    model.compile(keras.optimizers.SGD(0.5), CE)
    logits = model.predict(x, verbose=0).astype(np.float64)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    losses = -np.log(p[np.arange(64), y])
    # The gradient of example i is (p - e_y) times (x, 1).
    norms = np.linalg.norm(p - np.eye(3)[y], axis=1) * np.sqrt(np.sum(x.astype(np.float64) ** 2, axis=1) + 1)
    found = assumptions.inputs_at(sdkeras.EmpiricalLoss(model, data, batch_size=10, mode="inference"), {})
    assert found["loss_bound"] == pytest.approx(losses.max(), rel=1e-5)
    assert found["lipschitz"] == pytest.approx(norms.max(), rel=1e-5)
    run = sdkeras.analyze(
        model, data, batch_size=16, runs=3, estimate_bound_inputs=True, bound_inputs={"loss_bound": 9.0}
    )
    inputs = {entry.name: entry for entry in run.bounds[0].inputs}
    assert (inputs["loss_bound"].value, inputs["loss_bound"].estimated) == (9.0, False)
    assert inputs["lipschitz"].estimated
    assert inputs["lipschitz"].value == pytest.approx(norms.max(), rel=1e-5)


def test_kinks_and_unbounded_losses() -> None:
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(2, 3, activation="relu", name="conv"),
            layers.MaxPooling2D(name="pool"),
            layers.Flatten(),
            layers.Dense(3, "tanh"),
            layers.LeakyReLU(name="leaky"),
        ]
    )
    model.compile("sgd", "mae")
    assert assumptions.kinks(model) == (
        "relu (conv)",
        "MaxPooling2D (pool)",
        "LeakyReLU (leaky)",
        "mean_absolute_error (loss)",
    )
    assert assumptions.unbounded_loss(model) == "mean_absolute_error"
    model.compile("sgd", keras.losses.CosineSimilarity())
    assert assumptions.unbounded_loss(model) is None
    model.compile("sgd", lambda y, p: keras.ops.mean(p))
    assert assumptions.unbounded_loss(model) is None
    smooth = keras.Sequential([keras.Input((4,)), layers.Dense(3, "tanh"), layers.LayerNormalization()])
    smooth.compile("sgd", "mse")
    assert assumptions.kinks(smooth) == ()
