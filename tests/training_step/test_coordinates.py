"""Coordinates of the state: closed forms of momentum, balancing by its definition, dense Jacobians along a flow."""

import re

import keras
import numpy as np
import pytest
import scipy.optimize

import sdkeras
from oracles import matrix_of
from sdkeras.dimension.exponents import exponent_map
from sdkeras.errors import NonFiniteError, SdkerasError
from sdkeras.operators import precision
from sdkeras.testing.operators import MatrixMap
from sdkeras.training_step.coordinates import (
    ConjugatedMap,
    balanced,
    balancing_factors,
    block_norms,
    diagonal,
    state_groups,
    training_coordinates,
)
from sdkeras.training_step.flow import DenseFlow
from trainer import RATE, by_layer, dense, step_of, trained

layers = keras.layers
optimizers = keras.optimizers
X = np.random.default_rng(0).standard_normal((11, 3))
Y = np.random.default_rng(1).integers(0, 2, 11)
NORMS = np.array([[3.0, 2e4, 1e-3], [5e-3, 1.0, 0.0], [7e5, 2e-2, 1.0]])
PAIRS = [(slice(0, 1), slice(3, 4)), (slice(1, 3), slice(4, 6))]
pytestmark = pytest.mark.usefixtures("double_precision")


def step_with(optimizer: object) -> sdkeras.UpdateMap:
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, "tanh"), layers.Dense(2)])
    return step_of(trained(optimizer, model, (X, Y)), (X, Y), 4)


def test_balanced_blocks_weigh_the_same_by_rows_and_columns_and_have_the_least_norm() -> None:
    factors = balancing_factors(NORMS, [4, 4, 4])
    assert factors[0] == 1
    scaled = np.outer(factors, 1 / factors) * NORMS
    np.fill_diagonal(scaled, 0)
    assert np.allclose((scaled**2).sum(axis=1), (scaled**2).sum(axis=0), rtol=1e-5)

    def norm(logs: np.ndarray) -> float:
        f = np.exp(np.concatenate([[0.0], logs]))
        return float(np.sum((np.outer(f, 1 / f) * NORMS) ** 2))

    least = scipy.optimize.minimize(norm, np.log(factors[1:]) + 0.3, method="Nelder-Mead", options={"xatol": 1e-9})
    assert np.allclose(np.exp(least.x), factors[1:], rtol=1e-4)
    assert norm(np.log(1.01 * factors[1:])) > least.fun


@pytest.mark.parametrize("norms", [NORMS, np.where(np.eye(3) + np.tri(3) > 0, NORMS, 0)], ids=["both ways", "one way"])
def test_other_units_change_the_factors_and_nothing_else(norms: np.ndarray) -> None:
    units = np.array([1.0, 1e-7, 3e5])
    changed = np.outer(units, 1 / units) * norms
    assert np.allclose(units * balancing_factors(changed, [4, 4, 4]), balancing_factors(norms, [4, 4, 4]), rtol=1e-6)


@pytest.mark.parametrize("read", [True, False], ids=["reads nothing", "read by nothing"])
def test_a_coupling_one_way_is_scaled_away_by_a_finite_factor(read: bool) -> None:
    norms = np.array([[1.0, 50.0], [0.0, 0.9]]) if read else np.array([[1.0, 0.0], [50.0, 0.9]])
    factors = balancing_factors(norms, [100, 100])
    assert factors[1] == pytest.approx(50 / 1e-5 if read else 1e-5 / 50)  # what is left is 1e-6 sqrt(100)
    assert balancing_factors(np.diag([1.0, 2.0]), [100, 100])[1] == 1


def test_block_norms_are_those_of_the_matrix() -> None:
    """Exactly for a small state; by probes within some per cent for one of a flat spectrum."""

    def truth(matrix: np.ndarray, *indices: np.ndarray) -> list[list[float]]:
        return [[float(np.linalg.norm(matrix[np.ix_(a, b)])) for b in indices] for a in indices]

    small, big = (matrix_of(np.linspace(0.5, 2, size)) for size in (9, 600))
    groups = [[slice(0, 3), slice(7, 9)], [slice(3, 7)]]
    assert np.allclose(block_norms(MatrixMap(small), groups, seed=0), truth(small, np.r_[0:3, 7:9], np.r_[3:7]))
    source, expected = MatrixMap(big), truth(big, np.r_[0:200], np.r_[200:600])
    found = block_norms(source, [[slice(0, 200)], [slice(200, 600)]], seed=0)
    assert np.allclose(found, expected, rtol=0.05)
    assert not np.allclose(found, expected, rtol=1e-6)
    assert source.count == 32


@pytest.mark.parametrize("nesterov", [False, True])
def test_balanced_coordinates_make_a_flat_step_neutral(nesterov: bool) -> None:
    """[[1, beta], [0, beta]] on (w, v) for heavy ball, [[1, beta^2], [0, beta]] for Nesterov."""
    beta, identity = 0.75, np.eye(3)
    flat = np.block([[identity, beta * (beta if nesterov else 1) * identity], [0 * identity, beta * identity]])
    neutral = np.diag([1, 1, 1, beta, beta, beta])
    conjugated = ConjugatedMap(MatrixMap(flat), balanced(beta, nesterov, PAIRS))
    assert np.allclose(conjugated.jvp(np.eye(6)), neutral, atol=1e-14)
    other = ConjugatedMap(MatrixMap(flat), balanced(0.74, nesterov, PAIRS))
    assert not np.allclose(other.jvp(np.eye(6)), neutral, atol=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("which", ["balanced", "diagonal"])
def test_a_conjugated_map_is_the_conjugated_matrix_from_either_side(which: str, dtype: type) -> None:
    matrix = matrix_of(np.linspace(0.5, 2, 6)).astype(dtype)
    if which == "balanced":
        made = balanced(0.9, False, PAIRS)
    else:
        groups = {"weights": [slice(0, 2)], "m": [slice(2, 3), slice(5, 6)], "v": [slice(3, 5)]}
        made = diagonal({"v": 200.0, "m": 0.5}, groups)
        assert made.name == "diagonal scaling: v x 200, m x 0.5"
    change, inverse = made.forward(np.eye(6)), made.backward(np.eye(6))
    assert not np.allclose(change, np.eye(6))
    assert np.allclose(change @ inverse, np.eye(6))
    truth = change @ matrix.astype(np.float64) @ inverse
    conjugated = ConjugatedMap(MatrixMap(matrix), made)
    identity = np.eye(6, dtype=dtype)
    tolerance = 1e2 * np.finfo(dtype).eps
    assert conjugated.jvp(identity).dtype == dtype
    assert np.allclose(conjugated.jvp(identity), truth, rtol=tolerance, atol=tolerance * np.max(np.abs(truth)))
    assert np.allclose(conjugated.vjp(identity), truth.T, rtol=tolerance, atol=tolerance * np.max(np.abs(truth)))
    vector = identity[2].copy()
    assert np.allclose(conjugated.vjp(vector), conjugated.vjp(identity)[:, 2])
    assert np.array_equal(vector, identity[2])


@pytest.fixture(scope="module")
def by_adam() -> sdkeras.UpdateMap:
    keras.utils.set_random_seed(0)
    with precision.default_precision("float64"):
        return step_with(optimizers.Adam(0.05))


NAMES = [
    ("weights", lambda: optimizers.SGD(RATE)),
    ("balanced", lambda: optimizers.SGD(RATE, momentum=0.75)),
    ("balanced", lambda: optimizers.SGD(RATE, momentum=0.9, nesterov=True)),
    ("diagonal scaling: momentum x .*, velocity x", None),  # Adam
    ("diagonal scaling: momentum x .*, velocity x .*, velocity_hat x", lambda: optimizers.Adam(RATE, amsgrad=True)),
    ("diagonal scaling: velocity x .*, momentum x", lambda: optimizers.RMSprop(0.01, momentum=0.5)),
    ("diagonal scaling: accumulator x", lambda: optimizers.Adagrad(RATE)),
    ("diagonal scaling: accumulated_grad x .*, accumulated_delta_var x", lambda: optimizers.Adadelta(RATE)),
    ("diagonal scaling: momentum x .*, velocity x", lambda: optimizers.Muon(RATE)),
    ("diagonal scaling: kernel slots x .*, velocity x", lambda: optimizers.Adafactor(RATE)),
]


@pytest.mark.parametrize(
    ("name", "make"), [pytest.param(*each, marks=pytest.mark.slow if k > 3 else ()) for k, each in enumerate(NAMES)]
)
def test_real_optimizers_name_their_coordinates(name: str, make, by_adam) -> None:
    step = step_with(make()) if make else by_adam
    made = training_coordinates(step)
    assert re.match(name, made.name)
    groups = state_groups(step)
    covered = np.concatenate([np.arange(part.start, part.stop) for parts in groups.values() for part in parts])
    assert sorted(covered) == list(range(step.size))
    assert groups["weights"] == list(step.layout.slices[:4])
    if name.startswith("diagonal"):
        first = step.on_minibatch(0)
        scaled = ConjugatedMap(first, made)
        assert np.linalg.norm(dense(scaled)) <= np.linalg.norm(dense(first)) * 1.1
        assert np.linalg.norm(dense(scaled), 2) < 10
        norms = block_norms(scaled, list(groups.values()), seed=0)
        sizes = [sum(part.stop - part.start for part in parts) for parts in groups.values()]
        assert np.allclose(balancing_factors(norms, sizes), 1, atol=0.02)  # factors have three digits


def test_one_factor_for_each_optimizer_of_several() -> None:
    several = by_layer(optimizers.SGD(RATE, momentum=0.5), optimizers.Adam(RATE))
    kinds = [kind.partition("/")[2] for kind in state_groups(step_with(several))]
    assert sorted(kinds[1:]) == ["momentum", "momentum", "velocity"]


@pytest.mark.parametrize(
    ("name", "nesterov", "decay"),
    [
        ("heavy-ball", False, 0.25),
        ("nesterov", True, 0.0),
        pytest.param("heavy-ball", False, 0.0, marks=pytest.mark.slow),
        pytest.param("nesterov", True, 0.25, marks=pytest.mark.slow),
    ],
)
def test_singular_values_of_a_step_are_those_of_its_balanced_blocks(name: str, nesterov: bool, decay: float) -> None:
    """The real step of Keras, dense and in these coordinates, against the closed form on the Hessian's eigenvalues."""
    optimizer = optimizers.SGD(RATE, momentum=0.75, nesterov=nesterov, weight_decay=decay or None)
    step = step_with(optimizer).on_minibatch(0)
    hessian = sdkeras.HessianOperator(step.loss).on_minibatch(0)
    alpha = np.linalg.eigvalsh(hessian.matmat(np.eye(hessian.size)))
    expected = np.sort(exponent_map(name, RATE, momentum=0.75, weight_decay=decay)(alpha))

    def exponents(jacobian: np.ndarray) -> np.ndarray:
        return np.sort(np.log(np.linalg.svd(jacobian, compute_uv=False)))

    np.testing.assert_allclose(exponents(dense(ConjugatedMap(step, training_coordinates(step)))), expected, atol=1e-7)
    assert np.abs(exponents(dense(step)) - expected).max() > 0.1


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: optimizers.SGD(0.5), marks=pytest.mark.slow),
        pytest.param(lambda: optimizers.SGD(0.5, momentum=0.5, nesterov=True), marks=pytest.mark.slow),
        None,
    ],
    ids=["sgd", "nesterov", "adam"],
)
def test_kept_jacobians_are_differences_of_the_map(make, by_adam) -> None:
    """Of the steps after the transient, in the flow's coordinates; the tangents go with them."""
    step = step_with(make()) if make else by_adam
    flow = sdkeras.TrainingFlow(step)
    coordinates = training_coordinates(step)
    kept = DenseFlow(flow, coordinates, transient=2, num_steps=3)
    kept.reset(0)
    frame = np.random.default_rng(3).standard_normal((step.size, 2))
    for index in range(5):
        before = flow.state()
        moved = kept.step(frame)
        view = step.on_batches(step.training_batches(index)).at(before["state"], before["held"])
        columns = []
        for shift in np.diag(1e-6 * np.maximum(np.abs(before["state"]), 1e-3)):
            columns.append(
                (view.apply(before["state"] + shift) - view.apply(before["state"] - shift)) / (2 * shift.sum())
            )
        jacobian = coordinates.forward(np.stack(columns, axis=1) @ coordinates.backward(np.eye(step.size)))
        scale = np.abs(jacobian).max()
        np.testing.assert_allclose(moved, jacobian @ frame, atol=1e-5 * scale * np.abs(frame).sum())
        assert kept.num_kept == max(0, index - 1)
        if index >= 2:
            np.testing.assert_allclose(kept.jacobians[index - 2], jacobian, atol=1e-5 * scale)
    jacobians = kept.jacobians.copy()
    kept.step(frame)  # beyond the last that is kept
    assert kept.num_kept == 3
    assert np.array_equal(kept.jacobians, jacobians)
    with pytest.raises(SdkerasError, match="cannot go back"):
        kept.restore(kept.state())
    kept.reset(0)
    assert kept.num_kept == flow.index == 0


def test_a_step_that_fails_is_not_kept() -> None:
    class Diverging:
        size, dtype = 2, np.dtype(np.float64)

        def step(self, tangents: np.ndarray) -> np.ndarray:
            raise NonFiniteError("diverged")

    kept = DenseFlow(Diverging(), balanced(0.5, False, []), transient=0, num_steps=2)
    with pytest.raises(NonFiniteError):
        kept.step(np.eye(2))
    assert kept.num_kept == 0
