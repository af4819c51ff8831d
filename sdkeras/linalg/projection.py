"""Random projections that keep distances between few points of many dimensions (Johnson and Lindenstrauss)."""

from __future__ import annotations

import math

import attrs
import numpy as np
import scipy.optimize

from sdkeras import seeds
from sdkeras.errors import SdkerasError
from sdkeras.linalg.probes import rademacher_probes
from sdkeras.results.arrays import Array

# Entries of the random matrix drawn at a time.
_BLOCK = 2**24
# Pairs whose distances are compared: drawn in each call (some twice), and kept in all, the last ones.
_PAIRS_PER_CALL, _MOST_PAIRS = 36, 48


@attrs.frozen
class Distortion:
    """The distortion of distances by a projection.

    Attributes:
        bound: eps such that with probability 1 - 1/N all distances of the N points lie between sqrt(1 - eps) and
            sqrt(1 + eps) of the true ones (Achlioptas 2003, Theorem 1.1, beta = 1); None where it promises nothing
            (eps would exceed 1).
        measured: Largest |projected/true - 1| over some pairs of points; None without a pair.
        num_pairs: Number of those pairs.
    """

    bound: float | None
    measured: float | None
    num_pairs: int


class Projection:
    """x -> S (x - x_0) / sqrt(k), with independent signs S and x_0 the first point of the first call.

    Differences are projected because float32 then rounds them, not the much longer x. S is drawn block by block in
    every call and never stored: pass many points at once.

    Args:
        size: n, dimension of the points.
        dimension: k, dimension of their projections.
        seed: Seed for the signs.

    Raises:
        SdkerasError: k is not below n.
    """

    def __init__(self, size: int, dimension: int, seed: int) -> None:
        check_dimension(size, dimension)
        self._size, self._dimension, self._seed = size, dimension, seed
        self._first: Array | None = None
        self._ratios: list[float] = []
        self._generator = seeds.generator(seed, seeds.Stream.PROJECTION)

    def __call__(self, points: Array) -> Array:
        """Projections of points, [b, n] -> [b, k], in their precision."""
        if self._first is None:
            self._first = points[0].copy()
        differences = points - self._first
        projected = np.zeros((len(points), self._dimension), points.dtype)
        width = max(1, _BLOCK // self._dimension)
        for stream, start in enumerate(range(0, self._size, width)):
            block = differences[:, start : start + width]
            signs = rademacher_probes(
                block.shape[1], self._dimension, seed=self._seed, dtype=points.dtype, stream=stream
            )
            projected += block @ signs.T
        projected /= math.sqrt(self._dimension)
        self._compare(differences, projected)
        return projected

    def distortion(self, num_points: int) -> Distortion:
        """The bound for this many points, and the measured distortion."""
        ratios = np.array(self._ratios)
        return Distortion(
            distortion_bound(num_points, self._dimension),
            float(np.max(np.abs(ratios - 1))) if len(ratios) else None,
            len(ratios),
        )

    def _compare(self, differences: Array, projected: Array) -> None:
        """Distances of some pairs of this call's points and x_0, before and after."""
        count = len(projected) + 1
        drawn = (self._generator.choice(count, 2, replace=False) for _ in range(_PAIRS_PER_CALL))
        for i, j in sorted({(int(min(pair)), int(max(pair))) for pair in drawn}):
            length = _apart(differences, i, j)
            if length > 0:
                self._ratios.append(_apart(projected, i, j) / length)
        del self._ratios[:-_MOST_PAIRS]


def check_dimension(size: int, dimension: int | None) -> None:
    """Refuses a projection that would not shorten the points; None means no projection.

    Raises:
        SdkerasError: The dimension is not below the size.
    """
    if dimension is not None and dimension >= size:
        raise SdkerasError(
            f"projection is {dimension:,}, and there are {size:,} weights; it must be below their number, or left out."
        )


def _apart(rows: Array, i: int, j: int) -> float:
    """Distance of two rows; the index after the last is the origin."""
    first, second = (rows[k] if k < len(rows) else 0.0 for k in (i, j))
    return float(np.linalg.norm(np.asarray(first - second, np.float64)))


def distortion_bound(num_points: int, dimension: int) -> float | None:
    """The smallest eps up to 1 with k >= 6 ln N / (eps^2/2 - eps^3/3), or None.

    With independent signs, all squared distances of N points in any dimension are then kept to 1 +- eps with
    probability at least 1 - 1/N.

    Reference: Achlioptas, "Database-friendly random projections" (2003), Theorem 1.1 with beta = 1.
    """
    needed = 6 * math.log(max(2, num_points)) / dimension
    if needed > 1 / 6:  # eps^2/2 - eps^3/3 at 1
        return None
    return float(scipy.optimize.brentq(lambda eps: eps**2 / 2 - eps**3 / 3 - needed, 0.0, 1.0))
