"""Operators of known rank: restricted to their range, which random vectors find."""

from __future__ import annotations

import functools

import numpy as np

from sdkeras import seeds
from sdkeras.linalg.operators import DiagonallyScaledOperator, Reduction, RowsOperator, SymmetricOperator
from sdkeras.linalg.probes import space_of
from sdkeras.linalg.vectors import transposed
from sdkeras.results.arrays import Array, FloatArray

# Random vectors more than the rank: their images then span the range with a modest condition number (Halko,
# Martinsson, Tropp 2011, section 4.2 has 5 to 10).
_MORE = 8
# What a product may differ from that of the restriction: rounding of both, beside the size of a typical product. A
# direction that was missed shows at order 1.
_TOLERANCE = {"float32": 1e-4, "float64": 1e-9}


class RestrictionToSpan(RowsOperator):
    """Q' A Q for orthonormal columns Q, shape [n, r]."""

    def __init__(self, operator: SymmetricOperator, basis: FloatArray) -> None:
        self.operator = operator
        self.size = basis.shape[1]
        self.dtype = operator.dtype
        self.space = operator.space
        self.basis = basis
        self._columns = basis.astype(self.dtype)
        self._there = space_of(operator).moved(self._columns)

    def rows(self, rows: Array) -> Array:
        columns = self._columns if isinstance(rows, np.ndarray) else self._there
        product: Array = self.operator.rows(rows @ transposed(columns)) @ columns
        return product


def is_worth_reducing(size: int, rank: int) -> bool:
    """Whether range and restriction take fewer products than the whole matrix."""
    return 2 * rank + _MORE < size


def range_reduction(operator: SymmetricOperator, rank: int, *, seed: int = 0) -> Reduction | None:
    """An operator of at most this rank as its restriction to its range, and zeros; None if its rank is larger.

    A product with a random vector decides whether it is. For J' H J with J of as many rows as the rank the restriction
    has the eigenvalues of the Gram matrix H^1/2 J J' H^1/2, its nonzero ones being those of J' H J.

    Args:
        operator: A.
        rank: Bound of its rank r; r + 9 products find the range.
        seed: Seed for the random vectors.

    Reference: Halko, Martinsson, Tropp (2011), "Finding structure with randomness", algorithm 4.1.
    """
    count = min(rank + _MORE, operator.size)
    drawn = seeds.generator(seed, seeds.Stream.RANGE).standard_normal((count + 1, operator.size))
    images = np.asarray(operator.rows(drawn.astype(operator.dtype)), np.float64)
    left, values, _ = np.linalg.svd(images[:-1].T, full_matrices=False)
    largest = float(values[0]) if count else 0.0
    eps = float(np.finfo(operator.dtype).eps)
    basis = left[:, : min(rank, int(np.sum(values > eps * largest)))]
    left_out = images[-1] - basis @ (basis.T @ images[-1])
    if not basis.shape[1] or np.linalg.norm(left_out) > _TOLERANCE[operator.dtype.name] * np.linalg.norm(images[-1]):
        return None
    restricted = RestrictionToSpan(operator, basis)
    scaled = functools.partial(_scaled, operator, basis)
    return Reduction(restricted, 0.0, operator.size - restricted.size, scaled, num_matvecs=count + 1)


def _scaled(operator: SymmetricOperator, basis: FloatArray, diagonal: Array) -> RestrictionToSpan:
    """D A D restricted to its range, which is D times that of A."""
    q, _ = np.linalg.qr(np.asarray(diagonal, np.float64)[:, None] * basis)
    return RestrictionToSpan(DiagonallyScaledOperator(operator, diagonal), np.asarray(q))
