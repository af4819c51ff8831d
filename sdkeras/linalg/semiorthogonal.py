"""How far a Lanczos basis is from orthonormal, by a recurrence of scalars: partial reorthogonalisation."""

from __future__ import annotations

import math

import numpy as np

from sdkeras.linalg.orthogonal import orthogonalize
from sdkeras.linalg.vectors import dot, norm, subtract
from sdkeras.results.arrays import Array, FloatArray

# Rounding of a product that shows between successive vectors may be so many times larger between two others.
_SAFETY = 4.0
# Rows whose loss is above this share of the limit are removed with those above it: they would be next.
_NEAR = 0.1
# Bytes of a basis that fits the cache: orthogonalising against all of it takes no longer than the recurrence. (With 40
# vectors of 13k weights, 2 MB, the recurrence took a quarter more.)
_IN_CACHE = 2**22


def next_loss(
    alpha: FloatArray, beta: FloatArray, current: FloatArray, before: FloatArray, noise: FloatArray
) -> FloatArray:
    """q_k' q_{j+1} for k <= j, from the inner products of the two vectors before it.

    A q_j = beta_{j-1} q_{j-1} + alpha_j q_j + beta_j q_{j+1} holds up to rounding. Multiplied by q_k', less the same
    with j and k exchanged, it gives

        beta_j w_{j+1,k} = beta_k w_{j,k+1} + (alpha_k - alpha_j) w_{j,k} + beta_{k-1} w_{j,k-1} - beta_{j-1} w_{j-1,k}

    plus noise, whose sign is taken such that |w| is largest. w_{j+1,j} is noise alone, since q_j is subtracted.

    Args:
        alpha: Diagonal of T, shape [..., j + 1]; leading axes are runs.
        beta: Its off-diagonal and, last, the norm of the residual, shape [..., j + 1], that last one positive.
        current: w_j, shape [..., j + 1], its last entry 1.
        before: w_{j-1}, shape [..., j], its last entry 1; empty in the first step.
        noise: Bounds of the rounding errors, shape [..., j + 1].

    Returns:
        w_{j+1}, shape [..., j + 1], float64.

    Reference: Simon (1984), The Lanczos algorithm with partial reorthogonalization, equation 2.7.
    """
    loss = np.zeros_like(current)
    if before.shape[-1]:
        loss[..., :-1] = beta[..., :-1] * current[..., 1:] - beta[..., -2:-1] * before
        loss[..., :-1] += (alpha[..., :-1] - alpha[..., -1:]) * current[..., :-1]
        loss[..., 1:-1] += beta[..., :-2] * current[..., :-2]
    return np.asarray((loss + np.copysign(noise, loss)) / beta[..., -1:])


class SemiOrthogonality:
    """Keeps the basis of a Lanczos run semiorthogonal, reading only the rows that this needs.

    Semiorthogonal, max |Q'Q - I| <= sqrt(eps / m), is enough for T to be the projection of A on the space of Q up to
    eps * |A|: Ritz values and weights are those of an orthonormal basis. Rounding grows along converged Ritz vectors,
    hence along the first rows, which they are made of. Where the recurrence sees the loss pass the limit, the vector
    is orthogonalised against those rows, and so is the next one, since the recurrence has two terms.

    The noise between q_j and q_k is `relative` * sqrt(|T q_j| |T q_k|): a product's error is relative to its
    entries, so that vectors outside the large eigenvectors see little of |A|. `relative` is eps or, times a safety
    factor, the largest q_{j-1}' A q_j - q_j' A q_{j-1} measured.

    Reference: Simon (1984), The Lanczos algorithm with partial reorthogonalization, Math. Comp. 42; Larsen (1998) for
    the choice of rows.
    """

    def __init__(self, num_steps: int, eps: float) -> None:
        self._eps = self._relative = eps
        self._limit = float(np.sqrt(eps / num_steps))
        # w_j and w_{j-1} in turn, and the square roots of the columns' sizes.
        self._loss = np.eye(2, num_steps + 1)
        self._roots = np.zeros(num_steps)
        self._again = slice(0)

    def restore(self, residual: Array, basis: Array, alpha: FloatArray, beta: FloatArray) -> tuple[Array, float]:
        """Orthogonalises the residual of step j as far as semiorthogonality needs it.

        Args:
            residual: A q_j - alpha_j q_j - beta_{j-1} q_{j-1}, shape [n]; may be overwritten.
            basis: q_0, ..., q_j, shape [j + 1, n].
            alpha: Diagonal of T, shape [j + 1].
            beta: Its off-diagonal, shape [j]; 0 before a vector that starts anew.

        Returns:
            What is left, and beta_j, its norm.
        """
        count, coupling = len(alpha), float(beta[-1]) if len(beta) else 0.0
        if basis.nbytes <= _IN_CACHE:
            residual, left = orthogonalize(residual, basis)
            self._roots[count - 1] = math.sqrt(abs(alpha[-1]) + left + coupling)
            self.restart(count)
            return residual, left
        asymmetry = 0.0
        if coupling > 0.0:
            # In float64: rounding of a float32 sum is as large as what it measures, and every row would be read.
            asymmetry = dot(basis[-2], residual)
            residual = subtract(residual, asymmetry, basis[-2])
        left = norm(residual)
        self._roots[count - 1] = math.sqrt(abs(alpha[-1]) + left + coupling)
        if left > 0.0:
            rows = self._lost(alpha, np.append(beta, left), asymmetry)
            if rows.stop:
                residual, left = orthogonalize(residual, basis[rows])
        return residual, left

    def restart(self, count: int) -> None:
        """The next vector is new, and orthogonal to the `count` rows so far."""
        self._loss[count % 2, :count] = self._eps
        self._loss[count % 2, count] = 1.0
        self._again = slice(0)

    def _lost(self, alpha: FloatArray, beta: FloatArray, asymmetry: float) -> slice:
        """The first rows, up to the last whose loss is too large; their loss counts as removed."""
        count, roots = len(alpha), self._roots
        last = count - 1
        if asymmetry:
            self._relative = max(self._relative, _SAFETY * abs(asymmetry) / (roots[last] * roots[last - 1]))
        loss = self._loss[count % 2]
        noise = self._relative * roots[last] * roots[:count]
        loss[:count] = next_loss(alpha, beta, self._loss[last % 2, :count], loss[:last], noise)
        loss[count] = 1.0
        size = np.abs(loss[:count])
        rows, self._again = self._again, slice(0)
        if size.max() > self._limit:
            lost = np.flatnonzero(size > _NEAR * self._limit)
            rows = self._again = slice(0, max(int(lost[-1]) + 1, rows.stop))
        loss[rows] = self._eps
        return rows
