"""Coordinates of the state against the closed forms of momentum, and dense Jacobians against differences of the map."""

import keras
import numpy as np
import pytest

import sdkeras
from sdkeras.dimension.exponents import exponent_map
from sdkeras.errors import NonFiniteError, SdkerasError
from sdkeras.training_step.coordinates import balanced, training_coordinates
from sdkeras.training_step.flow import DenseFlow

layers = keras.layers
RATE = 0.125
X = np.random.default_rng(0).standard_normal((11, 3))
Y = np.random.default_rng(1).integers(0, 2, 11)
pytestmark = pytest.mark.usefixtures("double_precision")


def step_of(optimizer: keras.optimizers.Optimizer, inner: str = "tanh") -> sdkeras.UpdateMap:
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, inner), layers.Dense(2)])
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for _ in range(3):
        model.train_on_batch(X, Y)
    loss = sdkeras.EmpiricalLoss(model, (X, Y), batch_size=4, dtype="float64")
    return sdkeras.UpdateMap(loss, model.optimizer)


@pytest.mark.parametrize(
    ("optimizer", "name"),
    [
        (keras.optimizers.SGD(RATE), "weights"),
        (keras.optimizers.SGD(RATE, momentum=0.75), "balanced"),
        (keras.optimizers.SGD(RATE, momentum=0.75, nesterov=True), "balanced"),
        (keras.optimizers.Adam(0.01), "diagonal scaling"),
        (keras.optimizers.RMSprop(0.01, momentum=0.5), "diagonal scaling"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_names_and_inverses(optimizer: keras.optimizers.Optimizer, name: str) -> None:
    step = step_of(optimizer)
    coordinates = training_coordinates(step)
    assert coordinates.name.partition(":")[0] == name
    columns = np.random.default_rng(2).standard_normal((step.size, 3))
    kept = columns.copy()
    there = coordinates.forward(columns)
    np.testing.assert_allclose(coordinates.backward(there), columns, rtol=1e-14, atol=1e-14)
    assert np.array_equal(columns, kept)
    assert (name != "weights") == (not np.allclose(there, columns))


@pytest.mark.parametrize(("name", "nesterov"), [("heavy-ball", False), ("nesterov", True)])
@pytest.mark.parametrize("decay", [0.0, 0.25])
def test_singular_values_of_a_step_are_those_of_its_balanced_blocks(name: str, nesterov: bool, decay: float) -> None:
    """The real step of Keras, dense and in these coordinates, against the closed form on the Hessian's eigenvalues."""
    optimizer = keras.optimizers.SGD(RATE, momentum=0.75, nesterov=nesterov, weight_decay=decay or None)
    step = step_of(optimizer).on_minibatch(0)
    coordinates = training_coordinates(step)
    hessian = sdkeras.HessianOperator(step.loss).on_minibatch(0)
    alpha = np.linalg.eigvalsh(hessian.matmat(np.eye(hessian.size)))
    jacobian = coordinates.forward(step.jvp(coordinates.backward(np.eye(step.size))))
    found = np.sort(np.log(np.linalg.svd(jacobian, compute_uv=False)))
    expected = np.sort(exponent_map(name, RATE, momentum=0.75, weight_decay=decay)(alpha))
    np.testing.assert_allclose(found, expected, atol=1e-7)
    raw = np.sort(np.log(np.linalg.svd(step.jvp(np.eye(step.size)), compute_uv=False)))
    assert np.abs(raw - expected).max() > 0.1


def test_without_curvature_a_balanced_step_is_one_and_beta() -> None:
    """[[1, beta], [0, beta]] on (w, v) for heavy ball, [[1, beta^2], [0, beta]] for Nesterov."""
    beta = 0.9
    for nesterov, corner in ((False, beta), (True, beta**2)):
        coordinates = balanced(beta, nesterov, [(slice(0, 1), slice(1, 2))])
        block = np.array([[1.0, corner], [0.0, beta]])
        found = coordinates.forward(block @ coordinates.backward(np.eye(2)))
        np.testing.assert_allclose(found, np.diag([1.0, beta]), atol=1e-14)


@pytest.mark.parametrize(
    "optimizer",
    [keras.optimizers.SGD(0.5), keras.optimizers.SGD(0.5, momentum=0.5, nesterov=True), keras.optimizers.Adam(0.05)],
    ids=["sgd", "nesterov", "adam"],
)
def test_kept_jacobians_are_differences_of_the_map(optimizer: keras.optimizers.Optimizer) -> None:
    """Of the steps after the transient, in the flow's coordinates; the tangents go with them."""
    step = step_of(optimizer)
    flow = sdkeras.TrainingFlow(step)
    coordinates = training_coordinates(step)
    dense = DenseFlow(flow, coordinates, transient=2, num_steps=3)
    dense.reset(0)
    frame = np.random.default_rng(3).standard_normal((step.size, 2))
    for index in range(5):
        before = flow.state()
        moved = dense.step(frame)
        view = step.on_batches(step.training_batches(index)).at(before["state"], before["held"])
        shifts = 1e-6 * np.maximum(np.abs(before["state"]), 1e-3 if coordinates.name != "raw" else 1e-8)
        raw = np.stack(
            [
                (view.apply(before["state"] + s * e) - view.apply(before["state"] - s * e)) / (2 * s)
                for s, e in zip(shifts, np.eye(step.size), strict=True)
            ],
            axis=1,
        )
        jacobian = coordinates.forward(raw @ coordinates.backward(np.eye(step.size)))
        scale = np.abs(jacobian).max()
        np.testing.assert_allclose(moved, jacobian @ frame, atol=1e-5 * scale * np.abs(frame).sum())
        assert dense.num_kept == max(0, index - 1)
        if index >= 2:
            np.testing.assert_allclose(dense.jacobians[index - 2], jacobian, atol=1e-5 * scale)
    kept = dense.jacobians.copy()
    dense.step(frame)  # beyond the last that is kept
    assert dense.num_kept == 3
    assert np.array_equal(dense.jacobians, kept)
    dense.reset(0)
    assert dense.num_kept == flow.index == 0


def test_kept_jacobians_have_no_way_back() -> None:
    dense = DenseFlow(
        sdkeras.TrainingFlow(step_of(keras.optimizers.SGD(0.5))),
        training_coordinates(step_of(keras.optimizers.SGD(0.5))),
        transient=0,
        num_steps=2,
    )
    with pytest.raises(SdkerasError, match="cannot go back"):
        dense.restore(dense.state())


def test_a_step_that_fails_is_not_kept() -> None:
    class Diverging:
        size, dtype = 2, np.dtype(np.float64)

        def reset(self, seed: int) -> None: ...

        def step(self, tangents: np.ndarray) -> np.ndarray:
            raise NonFiniteError("diverged")

    dense = DenseFlow(Diverging(), balanced(0.5, False, []), transient=0, num_steps=2)
    with pytest.raises(NonFiniteError):
        dense.step(np.eye(2))
    assert dense.num_kept == 0
