"""Orthogonalisation of long vectors."""

from __future__ import annotations

import functools

import numpy as np

from sdkeras.linalg.vectors import components, norm, subtract_rows
from sdkeras.results.arrays import Array

# A pass leaves components of about eps * |before| along the basis, hence eps * |before| / |after| of what remains.
# Above this share that is 2 eps at most; below it a second pass is made, and two are always enough
# (Parlett 1980, section 6-9; Giraud et al. 2005 for the bound).
_CANCELLATION = 0.5


def orthogonalize(vector: Array, basis: Array) -> tuple[Array, float]:
    """Removes from a vector its components along an orthonormal basis.

    Classical Gram-Schmidt: v <- v - Q'(Q v), with a second pass only after heavy cancellation. A pass reads the
    basis twice, which is nearly all that it costs.

    Args:
        vector: v, shape [n]; may be overwritten.
        basis: Orthonormal rows Q, shape [m, n], C-contiguous.

    Returns:
        What is left, and its norm.
    """
    left = 0.0
    for _ in range(2):
        along = components(vector, basis)
        vector = subtract_rows(vector, along, basis)
        left = norm(vector)
        # |before|^2 = |left|^2 + |along|^2 needs no pass over the vector.
        if left > _CANCELLATION * np.hypot(left, norm(along)):
            break
    return vector, left


@functools.singledispatch
def thin_qr(matrix: Array) -> tuple[Array, Array]:
    """M = Q R with orthonormal columns in Q and a non-negative diagonal in R, which makes R unique.

    Args:
        matrix: M, shape [n, k] with k <= n.

    Returns:
        (Q, R), shapes [n, k] and [k, k]; R is a NumPy array wherever Q is.
    """
    q, r = np.linalg.qr(matrix)
    signs = np.where(np.diagonal(r) < 0, -1, 1).astype(r.dtype)
    return q * signs, signs[:, None] * r
