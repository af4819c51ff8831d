"""Several operators at once: each row of a batch is its operator, each run of a group the single run."""

import numpy as np
import pytest

from oracles import rotated
from sdkeras.errors import BudgetError
from sdkeras.linalg.lanczos import lanczos, lanczos_many
from sdkeras.linalg.operators import (
    DenseOperator,
    DiagonallyScaledOperator,
    DiagonallyShiftedOperator,
    FunctionOperator,
    OperatorBatch,
    RestrictedOperator,
)
from sdkeras.testing import CountingOperator

SIZE = 24
# Krylov spaces of 24, 3, 1 and 2 dimensions.
SPECTRA = [np.linspace(-1, 4, SIZE), np.repeat([0.0, 1.0, 5.0], 8), np.full(SIZE, 2.0), np.repeat([-3.0, 1.0], 12)]


def operators(dtype=np.float64):
    return [DenseOperator(rotated(values).astype(dtype)) for values in SPECTRA]


def rows(dtype=np.float64, count=4, size=SIZE):
    return np.random.default_rng(1).standard_normal((count, size)).astype(dtype)


@pytest.mark.parametrize("reorthogonalize", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_group_makes_the_single_runs_and_each_ends_at_its_own_step(dtype, reorthogonalize):
    counting = [CountingOperator(each) for each in operators(dtype)]
    starts = rows(dtype)
    runs = lanczos_many(OperatorBatch(counting), starts, 10, reorthogonalize=reorthogonalize)
    for run, operator, start in zip(runs, counting, starts, strict=True):
        single = lanczos(operator.operator.matvec, start, 10, reorthogonalize=reorthogonalize)
        np.testing.assert_array_equal(run.alpha, single.alpha)
        np.testing.assert_array_equal(run.beta, single.beta)
        assert run.invariant == single.invariant
        assert operator.count == run.num_steps  # none after the end
    assert len({run.num_steps for run in runs}) > 2


def test_a_group_whose_budget_ends_says_so():
    def refuse(vector):
        raise BudgetError("the budget")

    batch = OperatorBatch([*operators(), FunctionOperator(SIZE, refuse)])
    with pytest.raises(BudgetError, match="the budget"):
        lanczos_many(batch, rows(count=5), 10)


WRAPPED = [
    lambda operator, diagonal: DiagonallyScaledOperator(operator, diagonal),
    lambda operator, diagonal: DiagonallyShiftedOperator(operator, diagonal),
    lambda operator, diagonal: RestrictedOperator(operator, slice(3, 11)),
    lambda operator, diagonal: DiagonallyShiftedOperator(DiagonallyScaledOperator(operator, diagonal), diagonal),
]


@pytest.mark.parametrize("wrap", WRAPPED)
def test_wrapped_operators_are_multiplied_as_the_matrices_that_they_stand_for(wrap):
    diagonals = 1 + np.random.default_rng(2).random((len(SPECTRA), SIZE))
    wrapped = [wrap(operator, diagonal) for operator, diagonal in zip(operators(), diagonals, strict=True)]
    matrices = []
    for operator, diagonal in zip(operators(), diagonals, strict=True):
        scaled, shift = diagonal[:, None] * operator.matrix * diagonal, np.diag(diagonal)
        block = operator.matrix[3:11, 3:11]
        matrices.append([scaled, operator.matrix + shift, block, scaled + shift][WRAPPED.index(wrap)])
    vectors = rows(size=len(matrices[0]))
    expected = np.stack([matrix @ vector for matrix, vector in zip(matrices, vectors, strict=True)])
    batch = type(wrapped[0]).batch(wrapped)
    np.testing.assert_allclose(batch.matvecs(vectors), expected, atol=1e-12)
    np.testing.assert_allclose(batch.subset([3, 1]).matvecs(vectors[[3, 1]]), expected[[3, 1]], atol=1e-12)
    np.testing.assert_allclose(wrapped[1].matvec(vectors[1]), expected[1], atol=1e-12)
    np.testing.assert_allclose(wrapped[1].matmat(vectors.T), matrices[1] @ vectors.T, atol=1e-12)


def test_operators_of_two_sizes_are_no_batch():
    with pytest.raises(ValueError, match="one size"):
        OperatorBatch([DenseOperator(np.eye(2)), DenseOperator(np.eye(3))])
    with pytest.raises(ValueError, match="at least one"):
        OperatorBatch([])
