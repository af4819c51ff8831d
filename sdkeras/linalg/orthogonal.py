"""Orthogonalisation of long vectors."""

from __future__ import annotations

import numpy as np

from sdkeras.linalg.vectors import norm
from sdkeras.results.arrays import Array

# A pass leaves components of about eps * |before| along the basis, hence eps * |before| / |after| of what remains.
# Above this share that is 2 eps at most; below it a second pass is made, and two are always enough
# (Parlett 1980, section 6-9; Giraud et al. 2005 for the bound).
_CANCELLATION = 0.5


def orthogonalize(vector: Array, basis: Array, work: Array) -> float:
    """Removes from a vector, in place, its components along an orthonormal basis.

    Classical Gram-Schmidt: v <- v - Q'(Q v), with a second pass only after heavy cancellation. A pass reads the
    basis twice, which is nearly all that it costs.

    Args:
        vector: v, shape [n]; overwritten.
        basis: Orthonormal rows Q, shape [m, n].
        work: Overwritten, shape [n]; a new array of this size for each pass would cost as much as an inner product.

    Returns:
        The norm of what is left.
    """
    left = 0.0
    for _ in range(2):
        components = basis @ vector
        np.dot(components, basis, out=work)
        vector -= work
        left = norm(vector)
        # |before|^2 = |left|^2 + |components|^2 needs no pass over the vector.
        if left > _CANCELLATION * np.hypot(left, norm(components)):
            break
    return left


def thin_qr(matrix: Array) -> tuple[Array, Array]:
    """M = Q R with orthonormal columns in Q and a non-negative diagonal in R, which makes R unique.

    Args:
        matrix: M, shape [n, k] with k <= n.

    Returns:
        (Q, R), shapes [n, k] and [k, k].
    """
    q, r = np.linalg.qr(matrix)
    signs = np.where(np.diagonal(r) < 0, -1, 1).astype(r.dtype)
    return q * signs, signs[:, None] * r
