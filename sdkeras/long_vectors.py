"""Inner products of long vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Entries turned into float64 at a time: they stay in the cache, and OpenBLAS starts no threads for so few.
_BLOCK = 8192


def dot(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Inner product of two vectors [n] in float64, without a float64 copy of either.

    In float32 the squares of a saturated network's products (entries of 1e-20) would vanish.
    """
    total = 0.0
    for start in range(0, len(first), _BLOCK):
        part = first[start : start + _BLOCK].astype(np.float64, copy=False)
        other = part if second is first else second[start : start + _BLOCK].astype(np.float64, copy=False)
        total += float(np.dot(part, other))
    return total


def norm(vector: NDArray[Any]) -> float:
    """Euclidean norm of a vector [n], accumulated in float64."""
    return float(np.sqrt(dot(vector, vector)))
