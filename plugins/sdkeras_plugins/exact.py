"""The exact spectrum of a small operator: every row by products, eigenvalues by LAPACK."""

from __future__ import annotations

import attrs
import numpy as np
import scipy.linalg

from sdkeras.errors import SdkerasError
from sdkeras.estimators.kinds import spectrum_estimator
from sdkeras.linalg.dense import require_memory, transposed_matrix
from sdkeras.linalg.operators import SymmetricOperator
from sdkeras.results.arrays import FloatArray
from sdkeras.results.estimates import Spectrum

# Products in float32 are symmetric to about 1e-6 of the norm.
_ALLOWED_ASYMMETRY = 1e-3
# Rows symmetrised at once: keeps the temporaries small beside the matrix.
_BLOCK = 64


@spectrum_estimator("exact", exact=True)
@attrs.frozen
class Exact:
    """All eigenvalues of the operator, to the rounding of its products.

    Where the operator splits into a smaller one and a repeated eigenvalue (`SymmetricOperator.reduced`), only
    the smaller one is made dense. Rows come from block products, eigenvalues from LAPACK in float64.

    Attributes:
        memory_gb: Refuse beyond this much memory; None means what the machine has free.
        chunk: Rows made at once.
        reduce: Use the splitting.
    """

    memory_gb: float | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.gt(0.0)))
    chunk: int = attrs.field(default=64, validator=attrs.validators.ge(1))
    reduce: bool = True

    def estimate(self, source: SymmetricOperator, *, seed: int) -> Spectrum:
        """The eigenvalues as nodes of weight 1, a repeated one as a single node.

        Refuses, before any product, a matrix that would not fit the memory, and later products that are not symmetric.
        """
        reduction = source.reduced() if self.reduce else None
        operator = source if reduction is None else reduction.operator
        require_memory(
            memory_needed(operator.size, self.chunk),
            self.memory_gb,
            f"an exact spectrum of {operator.size} dimensions (of {source.size} parameters) needs",
            "the slq estimator, fewer parameters (`params`), or more memory (`memory_gb`)",
        )
        # The transpose of a C-ordered array is what LAPACK wants (no copy), and it reads the lower triangle of that.
        # All drivers take the same time for values alone (0.73 s at 2,464 dimensions on one core); 'evd' needs the
        # least work space.
        matrix = _dense(operator, self.chunk)
        values = scipy.linalg.eigvalsh(matrix.T, overwrite_a=True, check_finite=False, driver="evd")
        weights = np.ones(len(values))
        if reduction is not None and reduction.multiplicity > 0:
            place = int(np.searchsorted(values, reduction.eigenvalue))
            values = np.insert(values, place, reduction.eigenvalue)
            weights = np.insert(weights, place, float(reduction.multiplicity))
        return Spectrum(nodes=values, weights=weights, num_matvecs=operator.size, seed=seed, exact=True)


def memory_needed(size: int, chunk: int = 64) -> int:
    """Bytes that an exact spectrum of this many dimensions takes at its peak, beside the operator's own.

    The float64 matrix, which is symmetrised and overwritten by LAPACK in place; one chunk of unit vectors and
    its products; four blocks while the matrix is symmetrised.
    """
    return 8 * size * (size + 2 * chunk + 4 * _BLOCK)


def _dense(operator: SymmetricOperator, chunk: int) -> FloatArray:
    """The operator as a float64 matrix whose upper triangle is that of (A + A') / 2."""
    # Columns of A written as rows: A' has the same symmetric part.
    matrix = transposed_matrix(operator.matmat, operator.size, operator.dtype, chunk)
    asymmetry, scale = _symmetrize(matrix)
    if asymmetry > _ALLOWED_ASYMMETRY * scale:
        raise SdkerasError(
            f"the operator is not symmetric: |A - A'| is {asymmetry:.2g}, |A| is {scale:.2g} (Frobenius norms); a "
            "Hessian is symmetric, so its products are wrong or not repeatable."
        )
    return matrix


def _symmetrize(matrix: FloatArray) -> tuple[float, float]:
    """Puts (A + A') / 2 into the upper triangle, all that LAPACK reads; |A - A'| and |A| as they were (Frobenius)."""
    asymmetry = scale = 0.0
    for start in range(0, len(matrix), _BLOCK):
        rows = slice(start, start + _BLOCK)
        # The block's rows from the diagonal on, and their mirror image; the diagonal block counts once in each.
        upper, lower = matrix[rows, start:], matrix[start:, rows].T
        width = len(upper)
        scale += float(np.sum(upper**2) + np.sum(lower[:, width:] ** 2))
        difference = upper - lower
        asymmetry += float(2 * np.sum(difference**2) - np.sum(difference[:, :width] ** 2))
        difference *= 0.5
        upper -= difference
    return float(np.sqrt(asymmetry)), float(np.sqrt(scale))
