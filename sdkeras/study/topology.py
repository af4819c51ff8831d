"""How large a set of iterates is by its minimum spanning trees: E_alpha and the persistent homology dimension.

Both see the points through their distances only: Euclidean ones, or the "data-dependent" pseudo-metric of their
losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import numpy as np
import scipy.spatial.distance
from numpy.typing import ArrayLike, NDArray

from sdkeras import seeds
from sdkeras.errors import SdkerasError
from sdkeras.linalg.vectors import finite
from sdkeras.results.arrays import FloatArray

# Bytes of one block of points in float64.
_BLOCK_BYTES = 2**26
# |a - b|^2 = |a|^2 + |b|^2 - 2ab is wrong by some eps (|a|^2 + |b|^2): pairs closer than this part of it are
# subtracted instead, which leaves the others a relative error of 1e-11 or so.
_CANCELLED = 1e-4
# Sizes of subsamples, geometric between n/10 and n; at least so many points in the smallest.
_NUM_SIZES = 10
_SMALLEST = 10
# Distances that differ from their mirror image by more than this part of the largest are no distances.
_ASYMMETRY = 1e-6

_Block = Callable[[slice, slice], Any]
_ARRAYS_EQUAL = attrs.cmp_using(eq=np.array_equal)


@attrs.frozen
class PersistentHomologyDimension:
    """The persistent homology dimension of a set of points, with the regression it rests on.

    Attributes:
        value: alpha / (1 - slope), or None where it is undetermined.
        stderr: Standard error of it, that of the regression alone: from that of the slope; None where the value is.
            A set with gaps at regular scales is off by more: Cantor dust of dimension 1.262 gave 1.376 +- 0.012.
        reason: Why it is undetermined; empty if it is not.
        alpha: Power of the edges.
        slope: s, of ln E_alpha against ln n; None with too few points.
        slope_stderr: Standard deviation of the slope from one subsample of each size, over the repeats. Not divided by
            their root, since all share the same points; measured with 1,000 points, it is 2 times the standard
            deviation of `slope` over fresh independent points, and 0.7 times over fresh random walks. It does not
            hold the bias of small sets (their boundary): -0.15 of 3 dimensions with 1,000 points of a cube.
        residual: Root mean square distance of the means of ln E_alpha from the line; None with too few points.
        sizes: Subsample sizes, shape [k], ascending.
        log_e_alpha: Mean of ln E_alpha at each size, shape [k].
        num_points: Distinct points.
        num_merged: Points left out because they are at distance 0 from another.
        num_repeats: Random subsamples of each size, nested; the largest size is all points, once.
        seed: Of the subsamples.
    """

    value: float | None
    stderr: float | None
    reason: str
    alpha: float
    slope: float | None
    slope_stderr: float | None
    residual: float | None
    sizes: FloatArray = attrs.field(eq=_ARRAYS_EQUAL)
    log_e_alpha: FloatArray = attrs.field(eq=_ARRAYS_EQUAL)
    num_points: int
    num_merged: int
    num_repeats: int
    seed: int


def euclidean_distances(points: ArrayLike) -> FloatArray:
    """Euclidean distances between points, for a space of any dimension.

    By a matrix product of the centred points, in blocks; pairs in which that would cancel are subtracted.

    Args:
        points: Shape [n, d], in any floating-point precision; the work is in float64.

    Returns:
        Shape [n, n], symmetric with zeros on the diagonal.

    Raises:
        SdkerasError: Not a matrix of numbers, or fewer than 2 points.
        NonFiniteError: NaN or infinity.
    """
    given = _matrix(points, "points")
    centre = given.mean(axis=0, dtype=np.float64)
    norms = np.concatenate([_squares(given[part] - centre) for part in _blocks(given)])

    def block(rows: slice, columns: slice) -> Any:
        first, second = given[rows] - centre, given[columns] - centre
        scale = norms[rows, None] + norms[columns]
        squared = scale - 2 * first @ second.T
        near = np.nonzero(squared <= _CANCELLED * scale)
        for start in range(0, len(near[0]), len(first)):
            i, j = (index[start : start + len(first)] for index in near)
            squared[i, j] = _squares(first[i] - second[j])
        return np.sqrt(squared)

    return _symmetric(given, block)


def loss_distances(losses: ArrayLike) -> FloatArray:
    """The data-dependent pseudo-metric rho(w, w') = mean over i of |l(w, z_i) - l(w', z_i)|.

    Args:
        losses: Losses of the same examples at each point, shape [n, examples].

    Returns:
        Shape [n, n], symmetric with zeros on the diagonal, in units of the loss.

    Raises:
        SdkerasError: Not a matrix of numbers, or fewer than 2 points.
        NonFiniteError: NaN or infinity.
    """
    given = _matrix(losses, "losses")

    def block(rows: slice, columns: slice) -> Any:
        return scipy.spatial.distance.cdist(given[rows], given[columns], "cityblock") / given.shape[1]

    return _symmetric(given, block)


def spanning_tree_edges(distances: ArrayLike, chosen: Sequence[int] | NDArray[np.int64] | None = None) -> FloatArray:
    """Lengths of the edges of a minimum spanning tree.

    By the algorithm of Prim in its dense form: n^2 steps, and no memory beside the distances.

    Args:
        distances: Shape [n, n].
        chosen: Indices of the points to span; None for all.

    Returns:
        One length fewer than points, in the order in which the tree grows. A length of 0 joins two points at the same
        place.
    """
    matrix = _distance_matrix(distances)
    return _tree(matrix, np.arange(len(matrix)) if chosen is None else np.asarray(chosen, np.int64))


def e_alpha(distances: ArrayLike, alpha: float = 1.0) -> float:
    """E_alpha = sum over the edges of a minimum spanning tree of |edge|^alpha; points at distance 0 are one.

    Args:
        distances: Shape [n, n], as `euclidean_distances` or `loss_distances` makes them.
        alpha: Positive power.

    Returns:
        E_alpha, in the unit of the distances to the power alpha; 0 if all points are one.

    Raises:
        SdkerasError: Not a matrix of distances, alpha is not positive, or float64 does not hold E_alpha.

    Reference: arXiv 2604.19740, Sec. 5.
    """
    edges = spanning_tree_edges(distances)
    found = power_sum(edges, alpha)
    if math.isnan(found):
        raise SdkerasError(
            f"E_alpha at alpha = {alpha:g} is {log_power_sum(edges, alpha):.4g} in its logarithm, which float64 does "
            "not hold; take a smaller alpha."
        )
    return found


def power_sum(edges: FloatArray, alpha: float) -> float:
    """Sum of |edge|^alpha; NaN where it is beyond the range in which float64 has all its digits."""
    with np.errstate(over="ignore", under="ignore"):
        found = float(np.sum(edges ** _positive(alpha)))
    held = np.finfo(np.float64).tiny <= found < math.inf
    return found if held or not np.any(edges) else math.nan


def log_power_sum(edges: FloatArray, alpha: float) -> float:
    """Its logarithm, also where float64 does not hold the sum; edges are not all 0."""
    longest = float(edges.max())
    return alpha * math.log(longest) + math.log(power_sum(edges / longest, alpha))


def ph_dimension(
    distances: ArrayLike, alpha: float = 1.0, *, num_repeats: int = 10, seed: int = 0
) -> PersistentHomologyDimension:
    """The persistent homology dimension of degree 0: alpha / (1 - s), E_alpha of n points growing as n^s.

    s is the slope of ln E_alpha against ln n over random subsamples, of sizes between a tenth of the points and all.
    Undetermined unless 0 < s < 1: with s <= 0 the dimension is not above alpha, where the formula does not hold.

    Args:
        distances: Shape [n, n], as `euclidean_distances` or `loss_distances` makes them.
        alpha: Power of the edges, positive and below the dimension.
        num_repeats: Subsamples of each size, at least 2.
        seed: Of the subsamples.

    Returns:
        The dimension with its evidence. Points at distance 0 are one, and counted once.

    Raises:
        SdkerasError: Not a matrix of distances, or settings out of range.

    Reference: Birdal et al., "Intrinsic Dimension, Persistent Homology and Generalization in Neural Networks" (2021).
    """
    power = _positive(alpha)
    if num_repeats < 2:
        raise SdkerasError(f"num_repeats is {num_repeats}; the standard error needs at least 2.")
    matrix = _distance_matrix(distances)
    kept = _distinct(matrix)
    n = len(kept)
    made = PersistentHomologyDimension(
        value=None,
        stderr=None,
        reason="",
        alpha=power,
        slope=None,
        slope_stderr=None,
        residual=None,
        sizes=np.zeros(0),
        log_e_alpha=np.zeros(0),
        num_points=n,
        num_merged=len(matrix) - n,
        num_repeats=num_repeats,
        seed=seed,
    )
    if n < 2 * _SMALLEST:
        return attrs.evolve(
            made, reason=f"{n} distinct points of {len(matrix)} are too few; {2 * _SMALLEST} are the least."
        )
    sizes = np.unique(np.round(np.geomspace(max(_SMALLEST, n / 10), n, _NUM_SIZES)).astype(int))
    logs = np.full((num_repeats, len(sizes)), log_power_sum(_tree(matrix, kept), power))
    for repeat in range(num_repeats):
        order = seeds.generator(seed, seeds.Stream.SUBSAMPLES, repeat).permutation(kept)
        logs[repeat, :-1] = [log_power_sum(_tree(matrix, order[:size]), power) for size in sizes[:-1]]
    x = np.log(sizes)
    x -= x.mean()
    with np.errstate(over="ignore", invalid="ignore"):
        slopes = logs @ x / (x @ x)
        mean = logs.mean(axis=0)
        slope = float(slopes.mean())
        residual = float(np.sqrt(np.mean((mean - mean.mean() - slope * x) ** 2)))
        error = float(np.std(slopes, ddof=1))
    if not np.all(np.isfinite([slope, residual, error])):
        return attrs.evolve(made, reason=f"float64 does not hold ln E_alpha at alpha = {power:g}; use a smaller alpha.")
    made = attrs.evolve(
        made,
        slope=slope,
        slope_stderr=error,
        residual=residual,
        sizes=sizes.astype(np.float64),
        log_e_alpha=mean,
    )
    if slope >= 1:
        return attrs.evolve(made, reason=f"E_alpha grows as n^{slope:.3g}; the formula needs a slope below 1.")
    if slope <= 0:
        return attrs.evolve(
            made,
            reason=f"E_alpha does not grow (slope {slope:.3g}), so the dimension is not above alpha = {power:g}; "
            "use a smaller alpha.",
        )
    return attrs.evolve(made, value=power / (1 - slope), stderr=power / (1 - slope) ** 2 * error)


def _tree(matrix: FloatArray, points: NDArray[np.int64]) -> FloatArray:
    """Edges of the minimum spanning tree of some points."""
    rest = points[1:].copy()
    nearest = matrix[points[0], rest]
    edges = np.empty(len(rest))
    for k in range(len(edges)):
        position = int(np.argmin(nearest))
        edges[k], joined = nearest[position], rest[position]
        last = len(rest) - 1
        rest[position], nearest[position] = rest[last], nearest[last]
        rest, nearest = rest[:last], nearest[:last]
        np.minimum(nearest, matrix[joined, rest], out=nearest)
    return edges


def _distinct(matrix: FloatArray) -> NDArray[np.int64]:
    """Indices of points that no earlier one is at distance 0 from."""
    return np.array([k for k in range(len(matrix)) if np.all(matrix[k, :k] > 0)], np.int64)


def _symmetric(given: NDArray[Any], block: _Block) -> FloatArray:
    """All distances from blocks of the upper triangle."""
    made = np.empty((len(given), len(given)))
    parts = _blocks(given)
    for k, rows in enumerate(parts):
        for columns in parts[k:]:
            found = block(rows, columns)
            made[rows, columns] = found
            made[columns, rows] = found.T
    np.fill_diagonal(made, 0.0)
    return made


def _blocks(given: NDArray[Any]) -> list[slice]:
    size = max(1, min(1024, _BLOCK_BYTES // (8 * given.shape[1])))
    return [slice(start, start + size) for start in range(0, len(given), size)]


def _squares(rows: Any) -> Any:
    return np.einsum("ij,ij->i", rows, rows)


def _matrix(given: ArrayLike, what: str) -> NDArray[Any]:
    array = np.asarray(given)
    if array.ndim != 2 or array.dtype.kind not in "biuf" or len(array) < 2 or not array.shape[1]:
        raise SdkerasError(
            f"{what} must be a matrix of numbers with a row for each of at least 2 points, got "
            f"{array.dtype} of shape {array.shape}."
        )
    return finite(array, what)


def _distance_matrix(given: ArrayLike) -> FloatArray:
    """The matrix, checked.

    Raises:
        SdkerasError: It is none of distances.
    """
    matrix = np.asarray(_matrix(given, "distances"), np.float64)
    n = len(matrix)
    advice = "make them with euclidean_distances(points) or loss_distances(losses)."
    if matrix.shape != (n, n):
        raise SdkerasError(f"distances must have shape [n, n], got {matrix.shape}; {advice}")
    largest = float(matrix.max())
    if matrix.min() < 0 or np.any(np.diag(matrix)):
        raise SdkerasError(f"distances must be at least 0, and 0 from a point to itself; {advice}")
    for start in range(0, n, 1024):
        apart = np.abs(matrix[start : start + 1024] - matrix[:, start : start + 1024].T)
        if float(apart.max()) > _ASYMMETRY * largest:
            raise SdkerasError(f"distances must be symmetric; they differ by {float(apart.max()):.3g}; {advice}")
    return matrix


def _positive(alpha: float) -> float:
    if not (np.isfinite(alpha) and alpha > 0):
        raise SdkerasError(f"alpha is {alpha!r}; it must be positive and finite.")
    return float(alpha)
