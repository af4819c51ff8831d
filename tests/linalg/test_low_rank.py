"""Operators of known rank: the restriction to the range has the nonzero eigenvalues, or there is none."""

import numpy as np
import pytest

from oracles import rotated
from sdkeras.linalg.low_rank import is_worth_reducing, range_reduction
from sdkeras.linalg.operators import DenseOperator, DiagonallyScaledOperator
from sdkeras.testing import CountingOperator

# Of either sign and over four orders of magnitude.
VALUES = np.concatenate([-np.geomspace(1e-3, 2, 6), np.geomspace(1e-3, 20, 9)])
MATRIX = rotated(np.concatenate([VALUES, np.zeros(85)]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rank", [15, 20])
def test_the_range_has_the_nonzero_eigenvalues(dtype: str, rank: int) -> None:
    source = CountingOperator(DenseOperator(MATRIX.astype(dtype)))
    split = range_reduction(source, rank)
    assert split is not None
    assert split.operator.size + split.multiplicity == 100
    assert split.operator.size <= rank
    assert source.count == split.num_matvecs == rank + 9
    small = np.linalg.eigvalsh(split.operator.as_matrix())
    whole = np.sort(np.concatenate([small, np.zeros(split.multiplicity)]))
    expected = np.sort(np.concatenate([VALUES, np.zeros(85)]))
    assert np.allclose(whole, expected, rtol=0, atol=100 * np.finfo(dtype).eps * 20)


def test_scaled_by_a_diagonal() -> None:
    split = range_reduction(DenseOperator(MATRIX), 15)
    assert split is not None
    assert split.scaled is not None
    diagonal = np.exp(np.random.default_rng(0).standard_normal(100))
    small = np.linalg.eigvalsh(split.scaled(diagonal).as_matrix())
    whole = np.linalg.eigvalsh(DiagonallyScaledOperator(DenseOperator(MATRIX), diagonal).as_matrix())
    expected = np.sort(np.concatenate([small, np.zeros(85)]))
    assert np.allclose(whole, expected, rtol=0, atol=1e-12 * np.abs(whole).max())


def test_a_larger_rank_than_promised_and_nothing_at_all_have_no_reduction() -> None:
    assert range_reduction(DenseOperator(MATRIX), 14) is None
    assert range_reduction(DenseOperator(np.zeros((5, 5))), 2) is None


def test_it_is_worth_while_only_below_half_the_size() -> None:
    assert is_worth_reducing(100, 45)
    assert not is_worth_reducing(100, 46)
