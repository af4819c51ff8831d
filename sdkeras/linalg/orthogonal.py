"""Inner products and orthogonalisation of long vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Entries turned into float64 at a time: 128 KiB, which stays in the cache.
_BLOCK = 16_384

# A pass leaves components of about eps * |before| along the basis, hence eps * |before| / |after| of what remains.
# Above this share that is 2 eps at most; below it a second pass is made, and two are always enough
# (Parlett 1980, section 6-9; Giraud et al. 2005 for the bound).
_CANCELLATION = 0.5


def dot(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Inner product of two vectors [n], accumulated in float64 without a float64 copy of either."""
    if first.dtype == np.float64:
        return float(np.dot(first, second))
    blocks = range(0, len(first), _BLOCK)
    return float(sum(np.dot(first[k : k + _BLOCK].astype(np.float64), second[k : k + _BLOCK]) for k in blocks))


def norm(vector: NDArray[Any]) -> float:
    """Euclidean norm of a vector [n], accumulated in float64."""
    return float(np.sqrt(dot(vector, vector)))


def orthogonalize(vector: NDArray[Any], basis: NDArray[Any]) -> float:
    """Removes from a vector, in place, its components along an orthonormal basis.

    Classical Gram-Schmidt: v <- v - Q'(Q v), with a second pass only after heavy cancellation. Each pass reads
    the basis twice, which is what it costs; no temporary is larger than the vector.

    Args:
        vector: Shape [n]; overwritten.
        basis: Orthonormal rows Q, shape [m, n].

    Returns:
        The norm of what is left.
    """
    after = norm(vector)
    for _ in range(2):
        before = after
        vector -= (basis @ vector) @ basis
        after = norm(vector)
        if after > _CANCELLATION * before:
            break
    return after


def thin_qr(matrix: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """M = Q R with orthonormal columns in Q and a non-negative diagonal in R, which makes R unique.

    Args:
        matrix: M, shape [n, k] with k <= n.

    Returns:
        (Q, R), shapes [n, k] and [k, k].
    """
    q, r = np.linalg.qr(matrix)
    signs = np.where(np.diagonal(r) < 0, -1, 1).astype(r.dtype)
    return q * signs, signs[:, None] * r
