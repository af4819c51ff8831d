"""Diagonals by Hutchinson and XDiag: unbiased, with an honest standard error, exact where they can be."""

from typing import Any

import numpy as np
import pytest

import sdkeras
from oracles import rotated
from sdkeras.linalg.leave_one_out import Sketch
from sdkeras.linalg.operators import DenseOperator
from sdkeras.testing import CountingOperator

METHODS: tuple[Any, ...] = ("hutchinson", "xdiag")
VALUES = np.concatenate([np.geomspace(10, 0.1, 30), -np.geomspace(1, 0.1, 10)])
MATRIX = rotated(VALUES)


@pytest.mark.parametrize("method", METHODS)
def test_unbiased_with_a_standard_error_of_the_right_size(method: Any) -> None:
    """400 seeds: the mean of each of 40 entries within 5 standard errors, and the root mean square of the errors'
    standard errors within 30 % of the errors themselves, since those of xdiag are of estimates that hang together."""
    source = DenseOperator(MATRIX)
    estimates = [sdkeras.diagonal(source, method, num_products=20, seed=seed) for seed in range(400)]
    values, truth = np.array([each.values for each in estimates]), np.diagonal(MATRIX)
    spread = values.std(axis=0, ddof=1)
    assert np.all(np.abs(values.mean(axis=0) - truth) < 5 * spread / 20)
    stated = np.sqrt(np.mean([each.stderr**2 for each in estimates]))
    assert 0.7 < stated / np.sqrt(np.mean((values - truth) ** 2)) < 1.3


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products_are_counted_and_low_rank_is_exact(dtype: str) -> None:
    matrix = rotated(np.concatenate([np.geomspace(10, 1, 6), np.zeros(34)])).astype(dtype)
    source = CountingOperator(DenseOperator(matrix))
    found = sdkeras.diagonal(source, num_products=21)
    assert found.num_matvecs == source.count < 20  # ten of the probes, and the range that a few of them span
    assert np.allclose(found.values, np.diagonal(matrix), rtol=0, atol=100 * np.finfo(dtype).eps)
    assert not found.stderr.any()
    source = CountingOperator(DenseOperator(MATRIX))
    assert sdkeras.diagonal(source, num_products=21).num_matvecs == source.count == 20
    assert sdkeras.diagonal(DenseOperator(np.zeros((5, 5))), num_products=4).values.tolist() == [0.0] * 5
    source = CountingOperator(DenseOperator(MATRIX))
    assert np.allclose(sdkeras.diagonal(source, num_products=99).values, np.diagonal(MATRIX))
    assert source.count == 40


def test_xdiag_is_far_better_on_a_decaying_spectrum() -> None:
    matrix = rotated(0.7 ** np.arange(200))
    errors = {
        method: np.linalg.norm(
            sdkeras.diagonal(DenseOperator(matrix), method, num_products=60).values - np.diag(matrix)
        )
        for method in ("hutchinson", "xdiag")
    }
    assert errors["xdiag"] < 1e-3 * errors["hutchinson"]


def test_each_range_leaves_its_probe_out() -> None:
    """Q (I - s_i s_i') Q' is the projection on the other images, by their own QR decomposition."""
    probes = np.random.default_rng(0).standard_normal((5, 40))
    sketch = Sketch.of(DenseOperator(MATRIX), probes)
    assert sketch.directions is not None
    for k, direction in enumerate(sketch.directions.T):
        others, _ = np.linalg.qr((np.delete(probes, k, axis=0) @ MATRIX).T)
        left = sketch.basis.T @ (np.eye(5) - np.outer(direction, direction)) @ sketch.basis
        assert np.allclose(left, others @ others.T, rtol=0, atol=1e-11)


def test_wrong_arguments_are_named() -> None:
    source = DenseOperator(MATRIX)
    with pytest.raises(TypeError, match="takes a SymmetricOperator, got ndarray"):
        sdkeras.diagonal(MATRIX)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="method must be 'xdiag' or 'hutchinson', got 'exact'"):
        sdkeras.diagonal(source, "exact")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_products is 3; xdiag needs"):
        sdkeras.diagonal(source, num_products=3)


@pytest.mark.parametrize("method", ["xdiag", "hutchinson"])
def test_as_many_products_as_columns_give_the_diagonal(method: str) -> None:
    matrix = np.random.default_rng(0).standard_normal((9, 9))
    matrix += matrix.T
    found = sdkeras.diagonal(DenseOperator(matrix), method, num_products=9)
    np.testing.assert_allclose(found.values, np.diag(matrix), rtol=0, atol=1e-12)
    assert (found.num_matvecs, found.stderr.max()) == (9, 0.0)
