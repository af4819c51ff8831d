"""A matrix known by its products, made dense."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sdkeras.linalg.vectors import finite
from sdkeras.results.arrays import FloatArray


def transposed_matrix(
    multiply: Callable[[NDArray[Any]], NDArray[Any]], size: int, dtype: DTypeLike, chunk: int
) -> FloatArray:
    """A' in float64 from products A V with blocks of unit vectors, shape [n, n].

    The transpose, since the columns that a product gives are then contiguous rows.

    Args:
        multiply: A V, [n, k] -> [n, k].
        size: n.
        dtype: Of the unit vectors.
        chunk: Unit vectors in a block.

    Raises:
        NonFiniteError: A product holds NaN or infinity.
    """
    matrix = np.empty((size, size))
    for start in range(0, size, chunk):
        stop = min(start + chunk, size)
        identity: NDArray[Any] = np.zeros((size, stop - start), dtype)
        identity[np.arange(start, stop), np.arange(stop - start)] = 1
        columns = finite(np.asarray(multiply(identity)), f"the product with unit vectors {start} to {stop - 1}")
        matrix[start:stop] = columns.T
    return matrix
