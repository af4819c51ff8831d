"""Diagonal plus low rank against the dense matrix, over six orders of magnitude on either side."""

import numpy as np
import pytest

from sdkeras.linalg import woodbury
from sdkeras.linalg.woodbury import DiagonalPlusLowRank, shrinkage

GENERATOR = np.random.default_rng(0)
FACTOR = GENERATOR.standard_normal((7, 30)) * np.geomspace(1e-3, 1e3, 7)[:, None]
DIAGONAL = GENERATOR.uniform(0.5, 2, 30)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_inverse_determinant_and_root_are_the_dense_ones(dtype: str) -> None:
    factor = FACTOR.astype(dtype)
    matrix = DiagonalPlusLowRank(DIAGONAL, factor)
    wide = factor.astype(float)
    dense = np.diag(DIAGONAL) + wide.T @ wide
    inverse = np.linalg.inv(dense)
    tolerance = 1e-9 if dtype == "float64" else 1e-4  # rounding of V'V's root, relative to its largest
    assert matrix.log_det() == pytest.approx(np.linalg.slogdet(dense)[1], rel=tolerance)
    assert np.allclose(matrix.inverse_diagonal(), np.diag(inverse), rtol=tolerance)
    rows = GENERATOR.standard_normal((2, 3, 30))
    expected = np.einsum("bin,nm,bjm->bij", rows, inverse, rows)
    assert np.allclose(matrix.inverse_quadratic(rows), expected, rtol=tolerance)
    root = np.diag(DIAGONAL**0.5)
    q, stretch = matrix.directions, matrix.stretch
    assert np.allclose(root @ (np.eye(30) + q * (stretch - 1) @ q.T) @ root, dense, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shift", [1e-9, 1.0, 1e9])
def test_shrinkage_counts_the_eigenvalues_above_the_shift(shift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a singular matrix, whose zeros count nothing however small the shift; in blocks of columns."""
    monkeypatch.setattr(woodbury, "_BLOCK", 11)
    rest = np.where(np.arange(30) < 12, DIAGONAL, 0.0)
    values = np.maximum(np.linalg.eigvalsh(np.diag(rest) + FACTOR.T @ FACTOR), 0)
    values[:11] = 0  # 12 + 7 of 30 dimensions
    assert shrinkage(rest, FACTOR, shift) == pytest.approx(np.sum(values / (values + shift)), rel=1e-6)
