"""A matrix known by its products, made dense."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import DTypeLike

from sdkeras.errors import OperatorSizeError
from sdkeras.linalg.memory import available_memory
from sdkeras.linalg.vectors import finite
from sdkeras.results.arrays import Array, FloatArray


def require_memory(needed: int, memory_gb: float | None, what: str, remedy: str) -> None:
    """Refuses a dense matrix that needs more bytes than the limit, or than what is free without one.

    Raises:
        OperatorSizeError: See above; "`what` 3.1 GB, and 2.0 GB may be used; take `remedy`."
    """
    limit = available_memory() if memory_gb is None else int(memory_gb * 1e9)
    if needed > limit:
        raise OperatorSizeError(f"{what} {needed / 1e9:.1f} GB, and {limit / 1e9:.1f} GB may be used; take {remedy}.")


def transposed_matrix(multiply: Callable[[Array], Array], size: int, dtype: DTypeLike, chunk: int) -> FloatArray:
    """A' in float64 from products A V with blocks of unit vectors, shape [n, n].

    The transpose, since the columns that a product gives are then contiguous rows.

    Args:
        multiply: A V, [n, k] -> [n, k], finite.
        size: n.
        dtype: Dtype of the unit vectors.
        chunk: Unit vectors in a block.
    """
    matrix = np.empty((size, size))
    for start in range(0, size, chunk):
        stop = min(start + chunk, size)
        identity: Array = np.zeros((size, stop - start), dtype)
        identity[np.arange(start, stop), np.arange(stop - start)] = 1
        columns = finite(np.asarray(multiply(identity)), f"the product with unit vectors {start} to {stop - 1}")
        matrix[start:stop] = columns.T
    return matrix
