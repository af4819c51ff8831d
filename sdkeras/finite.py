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
