"""Coordinates of the state: balancing by its definition, conjugated products by dense algebra, names of real slots."""

import re

import keras
import numpy as np
import pytest
import scipy.optimize

import sdkeras
from oracles import matrix_of
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

layers = keras.layers
optimizers = keras.optimizers
RATE = 0.125
X = np.random.default_rng(0).standard_normal((8, 2))
Y = np.random.default_rng(1).integers(0, 2, 8)
NORMS = np.array([[3.0, 2e4, 1e-3], [5e-3, 1.0, 0.0], [7e5, 2e-2, 1.0]])


def step_of(optimizer: object, steps: int = 3) -> sdkeras.UpdateMap:
    keras.utils.set_random_seed(0)
    with precision.default_precision("float64"):
        model = keras.Sequential([keras.Input((2,)), layers.Dense(2, "tanh"), layers.Dense(2)])
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        for _ in range(steps):
            model.train_on_batch(X, Y)
        return sdkeras.UpdateMap(sdkeras.EmpiricalLoss(model, (X, Y), dtype="float64"), model.optimizer)


def test_balanced_blocks_weigh_the_same_by_rows_and_columns_and_have_the_least_norm() -> None:
    factors = balancing_factors(NORMS, [4, 4, 4])
    assert factors[0] == 1
    scaled = np.outer(factors, 1 / factors) * NORMS
    np.fill_diagonal(scaled, 0)
    rows, columns = (scaled**2).sum(axis=1), (scaled**2).sum(axis=0)
    assert np.allclose(rows, columns, rtol=1e-5)

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
    groups = [[slice(0, 3), slice(7, 9)], [slice(3, 7)]]
    matrix = matrix_of(np.linspace(0.5, 2, 9))
    rows = [np.r_[0:3, 7:9], np.r_[3:7]]
    truth = [[np.linalg.norm(matrix[np.ix_(a, b)]) for b in rows] for a in rows]
    assert np.allclose(block_norms(MatrixMap(matrix), groups, seed=0), truth)
    big = matrix_of(np.linspace(0.5, 2, 600))
    parts = [[slice(0, 200)], [slice(200, 600)]]
    source = MatrixMap(big)
    found = block_norms(source, parts, seed=0)
    truth = [[np.linalg.norm(big[a[0], b[0]]) for b in parts] for a in parts]
    assert np.allclose(found, truth, rtol=0.05)
    assert not np.allclose(found, truth, rtol=1e-6)
    assert source.count == 32


@pytest.mark.parametrize("nesterov", [False, True])
def test_balanced_coordinates_make_a_flat_step_neutral(nesterov: bool) -> None:
    beta, identity = 0.75, np.eye(3)
    ahead = beta * identity if nesterov else identity
    flat = np.block([[identity, beta * ahead], [0 * identity, beta * identity]])
    made = balanced(beta, nesterov, [(slice(0, 1), slice(3, 4)), (slice(1, 3), slice(4, 6))])
    conjugated = ConjugatedMap(MatrixMap(flat), made)
    assert np.allclose(conjugated.jvp(np.eye(6)), np.diag([1, 1, 1, beta, beta, beta]), atol=1e-14)
    other = ConjugatedMap(MatrixMap(flat), balanced(0.74, nesterov, [(slice(0, 3), slice(3, 6))]))
    assert not np.allclose(other.jvp(np.eye(6)), np.diag([1, 1, 1, beta, beta, beta]), atol=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("which", ["balanced", "diagonal"])
def test_a_conjugated_map_is_the_conjugated_matrix_from_either_side(which: str, dtype: type) -> None:
    matrix = matrix_of(np.linspace(0.5, 2, 6)).astype(dtype)
    pairs = [(slice(0, 1), slice(3, 4)), (slice(1, 3), slice(4, 6))]
    if which == "balanced":
        made = balanced(0.9, False, pairs)
    else:
        groups = {"weights": [slice(0, 2)], "m": [slice(2, 3), slice(5, 6)], "v": [slice(3, 5)]}
        made = diagonal({"v": 200.0, "m": 0.5}, groups)
        assert made.name == "diagonal scaling: v x 200, m x 0.5"
    change = made.forward(np.eye(6))
    inverse = made.backward(np.eye(6))
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


NAMES = {
    "weights": lambda: optimizers.SGD(RATE),
    "balanced": lambda: optimizers.SGD(RATE, momentum=0.9, nesterov=True),
    "diagonal scaling: momentum x .*, velocity x .*, velocity_hat x": lambda: optimizers.Adam(RATE, amsgrad=True),
    "diagonal scaling: accumulator x": lambda: optimizers.Adagrad(RATE),
    "diagonal scaling: accumulated_grad x .*, accumulated_delta_var x": lambda: optimizers.Adadelta(RATE),
    "diagonal scaling: momentum x .*, velocity x": lambda: optimizers.Muon(RATE),
    "diagonal scaling: kernel slots x .*, velocity x": lambda: optimizers.Adafactor(RATE),
}


@pytest.mark.parametrize("name", NAMES)
def test_real_optimizers_name_their_coordinates(name: str) -> None:
    step = step_of(NAMES[name]())
    made = training_coordinates(step)
    assert re.match(name, made.name)
    groups = state_groups(step)
    covered = np.concatenate([np.arange(part.start, part.stop) for parts in groups.values() for part in parts])
    assert sorted(covered) == list(range(step.size))
    assert groups["weights"] == list(step.layout.slices[:4])
    scaled = ConjugatedMap(step, made).jvp(np.eye(step.size))
    assert np.linalg.norm(scaled) <= np.linalg.norm(step.jvp(np.eye(step.size))) * 1.1
    if name.startswith("diagonal"):
        assert np.linalg.norm(scaled, 2) < 10
        norms = block_norms(ConjugatedMap(step, made), list(groups.values()), seed=0)
        sizes = [sum(part.stop - part.start for part in parts) for parts in groups.values()]
        assert np.allclose(balancing_factors(norms, sizes), 1, atol=0.02)  # factors have three digits


def test_one_factor_for_each_optimizer_of_several() -> None:
    if not hasattr(optimizers, "MultiOptimizer"):
        pytest.skip("this Keras has no MultiOptimizer")
    parts = optimizers.OptimizerMap(optimizers.SGD(RATE, momentum=0.5), {".*bias": optimizers.Adam(RATE)})
    kinds = [kind.partition("/")[2] for kind in state_groups(step_of(optimizers.MultiOptimizer(parts)))]
    assert sorted(kinds[1:]) == ["momentum", "momentum", "velocity"]
