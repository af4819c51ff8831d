"""Long vectors: their checks, inner products and norms."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from sdkeras.errors import NonFiniteError
from sdkeras.results.arrays import Array


def finite(array: Array, what: str) -> Array:
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


def dot(first: Array, second: Array) -> float:
    """Inner product of two vectors [n] in float64, without a float64 copy of either.

    In float32 the squares of a saturated network's products (entries of 1e-20) would vanish.
    """
    total = 0.0
    for start in range(0, len(first), _BLOCK):
        block = first[start : start + _BLOCK].astype(np.float64, copy=False)
        other = block if second is first else second[start : start + _BLOCK].astype(np.float64, copy=False)
        total += float(np.dot(block, other))
    return total


def norm(vector: Array) -> float:
    """Euclidean norm of a vector [n], accumulated in float64."""
    return float(np.sqrt(dot(vector, vector)))


def unit_start(start: Array) -> Array:
    """A start vector [n] at unit length.

    Raises:
        ValueError: It is zero or not finite.
    """
    length = norm(start)
    if not 0.0 < length < np.inf:
        raise ValueError(f"the start vector has norm {length:g}; give a finite vector that is not zero.")
    unit: Array = start / start.dtype.type(length)
    return unit


def store(product: ArrayLike, out: Array, what: str) -> None:
    """Copies a product, of an operator or a map, into a vector.

    Raises:
        ValueError: It has another shape.
    """
    values = np.asarray(product)
    if values.shape != out.shape:
        raise ValueError(f"the {what}'s product has shape {values.shape}, expected {out.shape}.")
    np.copyto(out, values, casting="same_kind")
