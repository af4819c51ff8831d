"""The projected problem of Lanczos: small, on the host, in float64."""

from __future__ import annotations

import numpy as np
import scipy.linalg

from sdkeras.results.arrays import FloatArray

# A coarser rule has 7/10 of the steps (free: T_m contains it); below this many steps one would say nothing, and below
# the second number the rule nested in a nested one.
_FEWEST_STEPS_FOR_NESTED = 4
_FEWEST_NESTED_STEPS = 8


def nested_steps(num_steps: int) -> list[int]:
    """Steps of the rules nested in one of this many steps, each in the one before; none where they are too few."""
    if num_steps < _FEWEST_STEPS_FOR_NESTED:
        return []
    steps = [num_steps * 7 // 10]
    while steps[-1] * 7 // 10 >= _FEWEST_NESTED_STEPS:
        steps.append(steps[-1] * 7 // 10)
    return steps


def ritz(alpha: FloatArray, beta: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Eigenvalues and eigenvectors of T = tridiag(beta, alpha, beta).

    Args:
        alpha: Diagonal, shape [m].
        beta: Off-diagonal, shape [m - 1].

    Returns:
        (theta, Y): Ritz values ascending, shape [m], and the eigenvectors of T as columns, shape [m, m].
    """
    if len(alpha) == 1:
        return alpha.astype(np.float64), np.ones((1, 1))
    theta, vectors = scipy.linalg.eigh_tridiagonal(alpha, beta)
    return theta, vectors


def quadrature(alpha: FloatArray, beta: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Gauss quadrature of the spectral measure that one Lanczos run saw.

    T = Y diag(theta) Y': node j is theta[j], its weight Y[0, j]^2. The residual of Ritz pair j is
    beta_m |Y[m - 1, j]|, beta_m the last entry of `beta`.

    Args:
        alpha: Diagonal of T, shape [m].
        beta: Norms of the residuals, shape [m]; beta[m - 1] is the one after the last step.

    Returns:
        (nodes, weights, residuals), each of shape [m]; nodes ascending, weights with sum 1.

    Example:
        The eigenvalues 1 and 3 of [[2, 1], [1, 2]], seen from the first unit vector:

        >>> nodes, weights, _ = quadrature(np.array([2.0, 2.0]), np.array([1.0, 0.0]))
        >>> np.round(nodes, 12), np.round(weights, 12)
        (array([1., 3.]), array([0.5, 0.5]))

    Reference: Golub and Welsch (1969); Paige (1971) for the residuals.
    """
    theta, vectors = ritz(alpha, beta[:-1])
    weights = vectors[0] ** 2
    return theta, weights / weights.sum(), beta[-1] * np.abs(vectors[-1])
