"""The exact spectrum of a small operator: every row by products, eigenvalues by LAPACK."""

from __future__ import annotations

import attrs
import numpy as np

from sdkeras.errors import SdkerasError
from sdkeras.estimators.kinds import spectrum_estimator
from sdkeras.linalg.dense import BLOCK, require_memory, symmetric_eigenvalues, transposed_matrix
from sdkeras.linalg.operators import SymmetricOperator
from sdkeras.results.estimates import Spectrum

# Products in float32 are symmetric to about 1e-6 of the norm.
_ALLOWED_ASYMMETRY = 1e-3


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

        A matrix that would not fit the memory is refused before any product.

        Raises:
            SdkerasError: The products are not those of a symmetric matrix.
        """
        reduction = source.reduced() if self.reduce else None
        operator = source if reduction is None else reduction.operator
        require_memory(
            memory_needed(operator.size, self.chunk),
            self.memory_gb,
            f"an exact spectrum of {operator.size} dimensions (of {source.size} parameters) needs",
            "the slq estimator, fewer parameters (`params`), or more memory (`memory_gb`)",
        )
        # Columns of A written as rows: A' has the same symmetric part.
        matrix = transposed_matrix(operator, operator.matmat, self.chunk)
        values, asymmetry, scale = symmetric_eigenvalues(matrix)
        if asymmetry > _ALLOWED_ASYMMETRY * scale:
            raise SdkerasError(
                f"the operator is not symmetric: |A - A'| is {asymmetry:.2g}, |A| is {scale:.2g} (Frobenius norms); a "
                "Hessian is symmetric, so its products are wrong or not repeatable."
            )
        weights = np.ones(len(values))
        if reduction is not None and reduction.multiplicity > 0:
            place = int(np.searchsorted(values, reduction.eigenvalue))
            values = np.insert(values, place, reduction.eigenvalue)
            weights = np.insert(weights, place, float(reduction.multiplicity))
        spent = operator.size + (0 if reduction is None else reduction.num_matvecs)
        return Spectrum(nodes=values, weights=weights, num_matvecs=spent, seed=seed, exact=True)


def memory_needed(size: int, chunk: int = 64) -> int:
    """Bytes that an exact spectrum of this many dimensions takes at its peak, beside the operator's own.

    The float64 matrix, which is symmetrised and overwritten by LAPACK in place; one chunk of unit vectors and
    its products; four blocks while the matrix is symmetrised.
    """
    return 8 * size * (size + 2 * chunk + 4 * BLOCK)
