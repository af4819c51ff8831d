"""All singular values of a small map: every column by products, the rest by LAPACK."""

from __future__ import annotations

import attrs
import numpy as np

from sdkeras.estimators.kinds import singular_values_estimator
from sdkeras.linalg.dense import require_memory, singular_values, transposed_matrix
from sdkeras.linalg.operators import LinearMap
from sdkeras.results.arrays import SMALLEST_FACTOR
from sdkeras.results.estimates import SingularValues


@singular_values_estimator("dense-svd", exact=True)
@attrs.frozen
class DenseSvd:
    """All singular values of the map, to the rounding of its products: eps * sigma_1, in the products' dtype.

    Columns come from block products J I, singular values from LAPACK in float64. Values below 1e-12 count as 1e-12.

    Attributes:
        memory_gb: Refuse beyond this much memory; None means what the machine has free.
        chunk: Columns made at once.
    """

    memory_gb: float | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.gt(0.0)))
    chunk: int = attrs.field(default=64, validator=attrs.validators.ge(1))

    def estimate(self, source: LinearMap, *, seed: int) -> SingularValues:
        """Each singular value with weight 1; a matrix that would not fit the memory is refused before any product."""
        require_memory(
            memory_needed(source.size, self.chunk),
            self.memory_gb,
            f"the singular values of {source.size} dimensions need",
            "the golub-kahan estimator, or more memory (`memory_gb`)",
        )
        values = singular_values(transposed_matrix(source, source.jvp, self.chunk))
        return SingularValues(
            log_values=np.log(np.maximum(values, SMALLEST_FACTOR)),
            weights=np.ones(source.size),
            num_matvecs=source.size,
            seed=seed,
            exact=True,
        )


def memory_needed(size: int, chunk: int = 64) -> int:
    """Bytes at the peak, beside the map's own: the float64 matrix, LAPACK's work space, a chunk and its products."""
    return 8 * size * (size + 2 * chunk + 64)
