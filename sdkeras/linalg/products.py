"""Singular values of a product of many square matrices, the small ones too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.linalg
import scipy.linalg.lapack

from sdkeras.results.arrays import Array, FloatArray

# float64 reaches from e^-708 to e^709, LAPACK's Jacobi method uses the roots of both ends: a ratio of e^600 fits.
_LOG_RANGE = 600.0


def log_singular_values(factors: Sequence[Array]) -> FloatArray:
    """ln of the singular values of J_m ... J_2 J_1, each to about the relative precision that a single factor has.

    The explicit product loses every singular value below eps times the largest. Here it is kept as Q D T, Q
    orthogonal, D diagonal and held as logarithms, T well-conditioned: each factor is multiplied to Q D, whose graded
    columns a QR decomposition with column pivoting takes apart again without mixing large and small. The singular
    values of T' D then come from one-sided Jacobi rotations (LAPACK's gejsv), which are right to a few
    eps * cond(T) however far D reaches.

    Args:
        factors: J_1, ..., J_m in the order in which they act, each [d, d].

    Returns:
        Natural logarithms, descending, shape [d]; -inf for those that are zero or below e^-600 times the largest.

    Raises:
        ValueError: There is no factor, or one holds NaN or infinity.

    Reference: Bai, Lee, Li, Xu (2011), "Stable solutions of linear systems involving long chain of matrix
    multiplications", for Q D T; Drmac and Veselic (2008) for the Jacobi method.
    """
    if len(factors) == 0:
        raise ValueError("a product needs at least one factor.")
    size = len(factors[0])
    q, logs, t = np.eye(size), np.zeros(size), np.eye(size)
    for factor in factors:
        top = float(np.max(logs))
        if top == -np.inf:
            break
        graded = (np.asarray(factor, np.float64) @ q) * np.exp(logs - top)
        q, r, order = scipy.linalg.qr(graded, pivoting=True)
        diagonal = np.abs(np.diagonal(r))
        alive = diagonal > 0
        with np.errstate(divide="ignore"):
            logs = np.where(alive, np.log(diagonal), -np.inf) + top
        t = np.where(alive[:, None], r / np.where(alive, diagonal, 1.0)[:, None], 0.0) @ t[order]
    top = float(np.max(logs))
    if top == -np.inf:
        return np.full(size, -np.inf)
    scaled, _, _, work, _, info = scipy.linalg.lapack.dgejsv(
        np.asfortranarray(t.T * np.exp(logs - top)), joba=0, jobu=3, jobv=3, jobr=1, jobt=0, jobp=0
    )
    if info != 0:
        raise ValueError(f"the singular values of a product of {len(factors)} factors did not converge (info {info}).")
    with np.errstate(divide="ignore"):
        values = np.sort(np.log(scaled) + np.log(work[0] / work[1]))[::-1]
    return np.where(values < values[0] - _LOG_RANGE, -np.inf, values + top)
