"""Operators as NumPy and SciPy take them: `@`, the dense matrix, `aslinearoperator`."""

import numpy as np
import pytest
import scipy.sparse.linalg

from oracles import rotated
from sdkeras.errors import OperatorSizeError
from sdkeras.linalg import dense
from sdkeras.linalg.operators import (
    DenseOperator,
    DiagonallyScaledOperator,
    DiagonallyShiftedOperator,
    RestrictedOperator,
    SymmetricOperator,
)

VALUES = np.linspace(-1.0, 6.0, 70)  # more than the dense matrix has in a block of columns
MATRIX = rotated(VALUES)
D = np.linspace(0.5, 2.0, len(VALUES))
OPERATORS = {
    "dense": (DenseOperator(MATRIX), MATRIX),
    "scaled": (DiagonallyScaledOperator(DenseOperator(MATRIX), D), D[:, None] * MATRIX * D),
    "shifted": (DiagonallyShiftedOperator(DenseOperator(MATRIX), D), MATRIX + np.diag(D)),
    "restricted": (RestrictedOperator(DenseOperator(MATRIX), slice(3, 40)), MATRIX[3:40, 3:40]),
}
EXACT = {"rtol": 0, "atol": 100 * np.finfo(float).eps * float(VALUES.max())}


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_multiplies_as_its_matrix_does(name: str) -> None:
    operator, matrix = OPERATORS[name]
    v, w = np.random.default_rng(0).standard_normal((2, len(matrix), 3))
    assert operator.shape == matrix.shape
    assert repr(operator) == f"<{type(operator).__name__} {len(matrix)} x {len(matrix)}, float64>"
    for product, expected in (
        (operator @ v[:, 0], matrix @ v[:, 0]),
        (operator @ v, matrix @ v),
        (v[:, 0] @ operator, v[:, 0] @ matrix),
        (v.T @ operator @ w, v.T @ matrix @ w),
        (operator.as_matrix(), matrix),
    ):
        np.testing.assert_allclose(product, expected, **EXACT)


@pytest.mark.parametrize("name", OPERATORS)
def test_scipy_takes_an_operator(name: str) -> None:
    operator, matrix = OPERATORS[name]
    linear = scipy.sparse.linalg.aslinearoperator(operator)
    columns = np.random.default_rng(1).standard_normal((len(matrix), 2))
    assert (linear.shape, linear.dtype) == (matrix.shape, matrix.dtype)
    np.testing.assert_allclose(linear @ columns, matrix @ columns, **EXACT)
    np.testing.assert_allclose(linear.T @ columns, matrix @ columns, **EXACT)
    largest = scipy.sparse.linalg.eigsh(linear, 3, which="LA", return_eigenvectors=False, v0=columns[:, 0])
    np.testing.assert_allclose(np.sort(largest), np.linalg.eigvalsh(matrix)[-3:], rtol=1e-10)


def test_a_matrix_that_does_not_fit_the_memory_is_refused_before_any_product(monkeypatch: pytest.MonkeyPatch) -> None:
    class Huge(SymmetricOperator):
        size, dtype = 10**6, np.dtype(np.float32)

        def matvec(self, vector: np.ndarray) -> np.ndarray:
            raise AssertionError("a product was made")

    monkeypatch.setattr(dense, "available_memory", lambda: 10**9)
    with pytest.raises(OperatorSizeError, match=r"1,000,000 x 1,000,000 numbers needs 8001\.0 GB, and 1\.0 GB may be"):
        Huge().as_matrix()
