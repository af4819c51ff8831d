"""The check that a product holds numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdkeras.errors import NonFiniteError


def finite(array: NDArray[Any], what: str) -> NDArray[Any]:
    """The array itself.

    Raises:
        NonFiniteError: It holds NaN or infinity.
    """
    # One pass without a temporary; the sum may overflow while every entry is finite, hence the second look.
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.sum(array)
    if not np.isfinite(total) and not np.all(np.isfinite(array)):
        raise NonFiniteError(
            f"{what} holds NaN or infinity; check the weights and the data for extreme values, or work in float64."
        )
    return array


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
