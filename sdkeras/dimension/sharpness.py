"""The sharpness dimension of a list of log singular values: the definition itself."""

from __future__ import annotations

import attrs
import numpy as np
from numpy.typing import ArrayLike

from sdkeras.results.arrays import FloatArray


@attrs.frozen
class Crossing:
    """Where the cumulative sum of the sorted exponents turns negative.

    Attributes:
        value: The sharpness dimension.
        j_star: Mass of the exponents up to the last non-negative cumulative sum; 0 if there is none.
        threshold_exponent: t*, the first exponent beyond; None at value 0 or d.
        total: Sum of all exponents, weighted.
    """

    value: float
    j_star: float
    threshold_exponent: float | None
    total: float


def sharpness_dimension(z: ArrayLike, weights: ArrayLike | None = None) -> float:
    """The sharpness dimension of log singular values z.

    Sort z descending, U_j and L_j the cumulated weights and the cumulated weight * z, j* the last index with
    L_j >= 0. SD = U_j* + L_j* / |z_{j*+1}|; d = sum of the weights if the total is >= 0; 0 if z_1 < 0. With unit
    weights this is the Kaplan-Yorke form of Def. 4.2. Equivalently the minimum over tau >= 0 of
    sum w_i max(0, 1 + tau z_i).

    Args:
        z: Log singular values in any order, natural logarithm, shape [k].
        weights: How many singular values each stands for, >= 0, shape [k]; 1 each by default.

    Returns:
        SD, between 0 and the sum of the weights.

    Raises:
        ValueError: Empty, NaN or +infinity, different lengths, or a negative weight.

    Example:
        >>> sharpness_dimension([1.0, 0.5, -1.0, -2.0])
        3.25

    Reference: Tuci et al. (2026), arXiv 2604.19740, Definition 4.2.
    """
    exponents = np.asarray(z, dtype=np.float64).ravel()
    masses = np.ones_like(exponents) if weights is None else np.asarray(weights, dtype=np.float64).ravel()
    if exponents.size == 0:
        raise ValueError("z is empty; give at least one log singular value.")
    if masses.shape != exponents.shape:
        raise ValueError(f"weights has {masses.size} entries, z has {exponents.size}; they must be equally long.")
    if np.any(np.isnan(exponents)) or np.any(exponents == np.inf):
        raise ValueError("z holds NaN or infinity; log singular values are finite, or -inf for a zero one.")
    if not np.all(np.isfinite(masses)) or np.any(masses < 0):
        raise ValueError("weights must be finite and >= 0.")
    return crossing(exponents, masses).value


def crossing(z: FloatArray, weights: FloatArray, offset: float = 0.0) -> Crossing:
    """The crossing of the cumulative sum, started at `offset` <= 0 (0 for the definition)."""
    order = np.argsort(-z, kind="stable")
    order = order[weights[order] > 0]
    z, weights = z[order], weights[order]
    masses, sums = np.cumsum(weights), offset + np.cumsum(weights * z)
    size, total = (float(masses[-1]), float(sums[-1])) if len(z) else (0.0, offset)
    if total >= 0:
        return Crossing(size, size, None, total)
    reached = np.flatnonzero(sums >= 0)
    if len(reached) == 0:
        return Crossing(0.0, 0.0, None, total)
    last = int(reached[-1])
    t_star = float(z[last + 1])
    # The quotient may round to more than the next mass, beyond which the sum is negative.
    value = min(masses[last] + sums[last] / abs(t_star), masses[last + 1])
    return Crossing(float(value), float(masses[last]), t_star, total)
