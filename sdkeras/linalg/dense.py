"""A matrix known by its products, made dense."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import scipy.linalg

from sdkeras.errors import OperatorSizeError
from sdkeras.linalg.memory import available_memory
from sdkeras.linalg.probes import Drawn, space_of
from sdkeras.linalg.vectors import finite, joined_rows, transposed
from sdkeras.results.arrays import Array, FloatArray

# Rows symmetrised at once: keeps the temporaries small beside the matrix.
BLOCK = 64


def require_memory(needed: int, memory_gb: float | None, what: str, remedy: str) -> None:
    """Refuses a dense matrix that needs more bytes than the limit, or than what is free without one.

    Raises:
        OperatorSizeError: See above; "`what` 3.1 GB, and 2.0 GB may be used; take `remedy`."
    """
    limit = available_memory() if memory_gb is None else int(memory_gb * 1e9)
    if needed > limit:
        raise OperatorSizeError(f"{what} {needed / 1e9:.1f} GB, and {limit / 1e9:.1f} GB may be used; take {remedy}.")


def transposed_matrix(source: Drawn, multiply: Callable[[Array], Array], chunk: int) -> Array:
    """A' from products A V with blocks of unit vectors, shape [n, n], where the source's vectors live.

    The transpose, since the columns that a product gives are then contiguous rows. A NumPy array is in float64, which
    LAPACK may overwrite.

    Args:
        source: The operator or map A.
        multiply: A V, [n, k] -> [n, k], finite.
        chunk: Unit vectors in a block.
    """
    size, space = source.size, space_of(source)
    matrix: Array | None = None
    blocks: list[Array] = []
    for start in range(0, size, chunk):
        stop = min(start + chunk, size)
        identity = transposed(space.units(start, stop, size, dtype=source.dtype))
        columns = finite(multiply(identity), f"the product with unit vectors {start} to {stop - 1}")
        if isinstance(columns, np.ndarray):  # widened block by block, without a copy of the whole
            matrix = np.empty((size, size)) if matrix is None else matrix
            matrix[start:stop] = columns.T
        else:
            blocks.append(transposed(columns))
    return joined_rows(*blocks) if matrix is None else matrix


@functools.singledispatch
def symmetric_eigenvalues(matrix: FloatArray) -> tuple[FloatArray, float, float]:
    """Eigenvalues of (A + A') / 2, ascending, in float64, and |A - A'| and |A| (Frobenius); A is overwritten."""
    asymmetry, scale = _symmetrize(matrix)
    # The transpose of a C-ordered array is what LAPACK wants (no copy), and it reads the lower triangle of that.
    # All drivers take the same time for values alone (0.73 s at 2,464 dimensions on one core); 'evd' needs the
    # least work space.
    values = scipy.linalg.eigvalsh(matrix.T, overwrite_a=True, check_finite=False, driver="evd")
    return np.asarray(values), asymmetry, scale


@functools.singledispatch
def singular_values(matrix: FloatArray) -> FloatArray:
    """Singular values, descending, in float64; the matrix is overwritten."""
    # The transpose of a C-ordered array is what LAPACK wants (no copy).
    return np.asarray(scipy.linalg.svdvals(matrix.T, overwrite_a=True, check_finite=False))


def _symmetrize(matrix: FloatArray) -> tuple[float, float]:
    """Puts (A + A') / 2 into the upper triangle, all that LAPACK reads; |A - A'| and |A| as they were (Frobenius)."""
    asymmetry = scale = 0.0
    for start in range(0, len(matrix), BLOCK):
        rows = slice(start, start + BLOCK)
        # The block's rows from the diagonal on, and their mirror image; the diagonal block counts once in each.
        upper, lower = matrix[rows, start:], matrix[start:, rows].T
        width = len(upper)
        scale += float(np.sum(upper**2) + np.sum(lower[:, width:] ** 2))
        difference = upper - lower
        asymmetry += float(2 * np.sum(difference**2) - np.sum(difference[:, :width] ** 2))
        difference *= 0.5
        upper -= difference
    return float(np.sqrt(asymmetry)), float(np.sqrt(scale))
