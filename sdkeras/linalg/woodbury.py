"""Positive definite matrices of a diagonal plus low rank: inverse, determinant and square root by small matrices."""

from __future__ import annotations

import functools

import attrs
import numpy as np
import scipy.linalg

from sdkeras.results.arrays import Array, FloatArray

# Columns widened to float64 at once.
_BLOCK = 2**16


@attrs.frozen(eq=False, slots=False)
class DiagonalPlusLowRank:
    """P = diag(d) + V'V, d > 0.

    With D = diag(d) and D^(-1/2) V' = Q S R' (thin SVD), P = D^(1/2) (I + Q S^2 Q') D^(1/2): its inverse, determinant
    and root are those of I + Q S^2 Q', whose eigenvalues are 1 + s^2 along Q and 1 elsewhere.

    Attributes:
        diagonal: d, shape [n], float64.
        factor: V, shape [k, n], k <= n.
    """

    diagonal: FloatArray
    factor: Array

    @functools.cached_property
    def _root(self) -> FloatArray:
        """d^(1/2), shape [n]."""
        root: FloatArray = np.sqrt(self.diagonal)
        return root

    @functools.cached_property
    def _svd(self) -> tuple[FloatArray, FloatArray]:
        left, values, _ = scipy.linalg.svd((self.factor / self._root).T, full_matrices=False, check_finite=False)
        return np.asarray(left, np.float64), np.asarray(values, np.float64)

    @property
    def directions(self) -> FloatArray:
        """Q, shape [n, k]."""
        return self._svd[0]

    @property
    def stretch(self) -> FloatArray:
        """Eigenvalues 1 + s^2 of D^(-1/2) P D^(-1/2) along Q, shape [k]."""
        stretch: FloatArray = 1 + self._svd[1] ** 2
        return stretch

    def log_det(self) -> float:
        """ln det P."""
        return float(np.sum(np.log(self.diagonal)) + np.sum(np.log(self.stretch)))

    def inverse_diagonal(self) -> FloatArray:
        """The diagonal of P^-1, shape [n]."""
        within = np.einsum("nk,nk,k->n", self.directions, self.directions, 1 - 1 / self.stretch)
        inverse: FloatArray = (1 - within) / self.diagonal
        return inverse

    def inverse_quadratic(self, rows: Array) -> FloatArray:
        """A P^-1 A' of each of several matrices A with rows of length n, shape [..., m, n] -> [..., m, m]."""
        scaled = np.asarray(rows, np.float64) / self._root
        within = scaled @ self.directions
        left = within * (1 - 1 / self.stretch)
        product: FloatArray = scaled @ np.swapaxes(scaled, -1, -2) - left @ np.swapaxes(within, -1, -2)
        return (product + np.swapaxes(product, -1, -2)) / 2


def shrinkage(diagonal: FloatArray, factor: Array, shift: float) -> float:
    """tr(A (A + shift I)^-1) for A = diag(r) + V'V: how many directions A determines beside the shift.

    Each eigenvalue a of A counts as a / (a + shift). With T = diag(r) + shift I and M = V T^-1 V' it is
    sum(r / T) + shift tr((I + M)^-1 V T^-2 V'), in which nothing cancels.

    Args:
        diagonal: r >= 0, shape [n].
        factor: V, shape [k, n].
        shift: Positive.
    """
    total = diagonal + shift
    within = scipy.linalg.cho_factor(np.eye(len(factor)) + _gram(factor, 1 / total), check_finite=False)
    outside = scipy.linalg.cho_solve(within, shift * _gram(factor, 1 / total**2), check_finite=False)
    return float(np.sum(diagonal / total) + np.trace(outside))


def _gram(rows: Array, weights: FloatArray) -> FloatArray:
    """V diag(w) V' of rows V [k, n] in float64, shape [k, k]."""
    total = np.zeros((len(rows), len(rows)))
    for start in range(0, rows.shape[1], _BLOCK):
        block = rows[:, start : start + _BLOCK].astype(np.float64)
        total += (block * weights[start : start + _BLOCK]) @ block.T
    return total
