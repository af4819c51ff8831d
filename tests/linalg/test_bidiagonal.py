"""Golub-Kahan bidiagonalisation against matrices of known singular values that are not symmetric."""

import numpy as np
import pytest

from oracles import matrix_of
from sdkeras.errors import NonFiniteError
from sdkeras.linalg.bidiagonal import bidiagonalize
from sdkeras.linalg.probes import start_vector

DTYPES = [np.float32, np.float64]
SPREAD = np.concatenate([np.geomspace(1e-3, 0.5, 12), np.linspace(0.6, 1.4, 25), [2.0, 5.0, 9.0]])


def run(matrix: np.ndarray, num_steps: int, seed: int = 0, **options: bool):
    start = start_vector(len(matrix), seed=seed, dtype=matrix.dtype)
    counts = [0, 0]

    def product(side: int, m: np.ndarray):
        def multiply(vector: np.ndarray) -> np.ndarray:
            counts[side] += 1
            return m @ vector

        return multiply

    found = bidiagonalize(product(0, matrix), product(1, matrix.T), start, num_steps, **options)
    assert sum(counts) == found.num_products
    return found, start


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_steps_give_all_singular_values(dtype: type) -> None:
    """To a few eps * sigma_1, the small ones too: J'J in float32 would end at 3e-4 * sigma_1 = 3e-3."""
    found, _ = run(matrix_of(SPREAD).astype(dtype), 100)
    assert found.invariant
    assert (found.num_steps, found.num_products) == (40, 79)  # the last product is not needed
    nodes, weights, residuals = found.rule()
    assert np.allclose(nodes, np.sort(SPREAD), rtol=0, atol=100 * np.finfo(dtype).eps * 9)
    assert np.isclose(weights.sum(), 1)
    assert np.all(residuals == 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_steps_keep_both_bases_orthogonal(dtype: type) -> None:
    """200 steps at condition 2,000: two Gram-Schmidt passes leave a few eps, a basis let go some eps * condition.

    Backward stability then bounds |sigma - exact| by n * eps * norm, whatever the order of summation.
    """
    values = np.linspace(1e-3, 2, 200)
    matrix, eps = matrix_of(values).astype(dtype), float(np.finfo(dtype).eps)
    exact = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)[::-1]
    bases: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])

    def product(side: int, m: np.ndarray):
        def multiply(vector: np.ndarray) -> np.ndarray:
            bases[side].append(vector.astype(np.float64))
            return m @ vector

        return multiply

    bidiagonal = bidiagonalize(
        product(0, matrix), product(1, matrix.T), start_vector(200, seed=0, dtype=matrix.dtype), 200
    )
    for basis in bases:
        gram = np.array(basis) @ np.array(basis).T
        assert np.max(np.abs(gram - np.eye(len(gram)))) < 20 * eps
    assert np.max(np.abs(bidiagonal.rule()[0] - exact)) < len(values) * eps * 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_steps", [1, 4, 10])
def test_moments_are_exact_up_to_the_rules_degree(dtype: type, num_steps: int) -> None:
    """sum w sigma^2p = v'(J'J)^p v for p < 2m, and not for p = 2m."""
    matrix = matrix_of(SPREAD)
    found, start = run(matrix.astype(dtype), num_steps)
    nodes, weights, _ = found.rule()
    vector, gram = start.astype(np.float64), matrix.T @ matrix / 81
    vector /= np.linalg.norm(vector)
    tolerance = 1e3 * float(np.finfo(dtype).eps)
    for power in range(2 * num_steps):
        moment = vector @ np.linalg.matrix_power(gram, power) @ vector
        assert weights @ (nodes / 9) ** (2 * power) == pytest.approx(moment, rel=tolerance)
    if num_steps == 1:
        assert weights @ (nodes / 9) ** 4 < 0.99 * vector @ gram @ gram @ vector


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("singular_values", "distinct", "products"),
    [
        (np.repeat([0.5, 1.0, 2.0], [3, 10, 2]), [0.5, 1.0, 2.0], 6),  # beta = 0
        (np.repeat([0.0, 1.0, 2.0], [4, 9, 2]), [0.0, 1.0, 2.0], 5),  # alpha = 0
        (np.zeros(5), [0.0], 1),
        (np.ones(7), [1.0], 2),
        (np.array([3.0]), [3.0], 1),
    ],
    ids=["repeated", "rank-deficient", "zero", "orthogonal", "one dimension"],
)
def test_breakdown_is_a_result(dtype: type, singular_values: np.ndarray, distinct: list, products: int) -> None:
    """The rule is exact for its start: weights are the shares of the start vector in each right singular space."""
    matrix, right = matrix_of(singular_values, with_right=True)
    found, start = run(matrix.astype(dtype), 10)
    assert found.invariant
    assert found.num_products == products
    nodes, weights, _ = found.rule()
    eps = np.finfo(dtype).eps
    assert np.allclose(nodes, distinct, rtol=0, atol=100 * eps * max(distinct))
    shares = (right.T @ start) ** 2
    assert np.allclose(weights, [shares[singular_values == value].sum() for value in distinct], atol=1e3 * eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_singular_value_lies_within_each_residual(dtype: type) -> None:
    found, _ = run(matrix_of(SPREAD).astype(dtype), 14)
    nodes, _, residuals = found.rule()
    distances = np.min(np.abs(nodes[:, None] - SPREAD), axis=1)
    assert np.all(distances <= residuals + 1e2 * np.finfo(dtype).eps * 9)
    assert residuals[-1] < 1e-6 < residuals[5]
    assert np.any(distances > 0.01 * residuals)  # they are no idle bound


def test_the_first_steps_are_a_shorter_run() -> None:
    matrix = matrix_of(SPREAD)
    long, short = run(matrix, 20)[0], run(matrix, 14)[0]
    for one, other in zip(long.rule(14), short.rule(), strict=True):
        assert np.array_equal(one, other)


def test_without_reorthogonalisation_the_density_stays() -> None:
    matrix = matrix_of(SPREAD).astype(np.float32)
    kept, local = run(matrix, 30)[0].rule(), run(matrix, 30, reorthogonalize=False)[0].rule()
    assert len(local[0]) == 30
    for power in (1, 2, 4):
        assert kept[1] @ kept[0] ** power == pytest.approx(local[1] @ local[0] ** power, rel=2e-3)
    assert not np.allclose(kept[0], local[0], rtol=1e-3)  # ghosts


def test_bad_input_is_refused() -> None:
    with pytest.raises(NonFiniteError, match="Golub-Kahan step 1 holds NaN"):
        run(np.full((4, 4), np.nan), 3)
    with pytest.raises(ValueError, match="norm 0"):
        bidiagonalize(lambda v: v, lambda v: v, np.zeros(3), 2)
    with pytest.raises(ValueError, match=r"shape \(2,\), expected \(3,\)"):
        bidiagonalize(lambda v: v[:2], lambda v: v, np.ones(3), 2)
