"""Topology of a set of points, such as the iterates of a training: how it fills the space that it is in.

E_alpha and the persistent homology dimension come from minimum spanning trees and so depend on the points through their
distances alone: Euclidean ones, or the "data-dependent" pseudo-metric of their losses. Distances between n points are
held once each, in SciPy's condensed order: d(0,1), d(0,2), ..., d(1,2). The box-counting dimension comes from the boxes
of grids that hold a point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import attrs
import numpy as np
import scipy.cluster.hierarchy
import scipy.spatial.distance
from numpy.typing import ArrayLike, NDArray

from sdkeras import seeds
from sdkeras._version import __version__
from sdkeras.errors import NonFiniteError, OperatorSizeError, SdkerasError, counted
from sdkeras.linalg.memory import memory_limit
from sdkeras.linalg.projection import Distortion
from sdkeras.linalg.vectors import finite
from sdkeras.reporting.report import Report
from sdkeras.results.answers import Simulation
from sdkeras.results.arrays import ARRAYS_EQUAL, Array, FloatArray
from sdkeras.results.document import SCHEMA_VERSION, Document
from sdkeras.results.note import Note
from sdkeras.runs.trajectory import Trajectory

DEFAULT_REPEATS = 10
# The condensed distances in float64 (4), those of a subsample (2.4) with its rows (2.4), and the blocks that make them.
_BYTES_PER_PAIR = 10
# Bytes of one block of points in float64.
_BLOCK_BYTES = 2**26
# |a - b|^2 = |a|^2 + |b|^2 - 2ab has an error of some eps (|a|^2 + |b|^2): pairs closer than this fraction of it are
# subtracted instead, which leaves the others a relative error of about 1e-11.
_CANCELLED = 1e-4
# Sizes of subsamples, geometric between n/10 and n, and the smallest allowed.
_NUM_SIZES = 10
_SMALLEST = 10
# Residuals of ln E_alpha about its line above this get a note: E_alpha of uniform points and of random walks stays
# within 0.01, and a line off by 0.05 at its ends moves a dimension of 2 by a tenth.
_CURVED = 0.05


@attrs.frozen(kw_only=True)
class PersistentHomologyDimension:
    """The persistent homology dimension of a set of points, with the regression it rests on.

    Attributes:
        value: alpha / (1 - slope); None where it is undetermined, for the `reason` that is "" otherwise.
        stderr: Standard error from the regression alone, propagated from that of the slope; None where the value is.
            It does not cover gaps at regular scales: Cantor dust of dimension 1.262 gave 1.376 +- 0.012.
        slope: s, of ln E_alpha against ln n; None with too few points.
        slope_stderr: Standard deviation, over the repeats, of the slope from one subsample of each size. Not divided
            by the root of their number, since all share the same points; measured with 1,000 points, it is 2 times the
            standard deviation of `slope` over fresh independent points, and 0.7 times over fresh random walks. It does
            not include the bias of small sets (their boundary): -0.15 of 3 dimensions with 1,000 points of a cube.
        residual: Root mean square distance of the means of ln E_alpha from the line; None with too few points.
        sizes: Subsample sizes, shape [k], ascending.
        log_e_alpha: Mean of ln E_alpha at each size, shape [k].
        num_points: Distinct points.
        num_merged: Points left out because they are at distance 0 from another.
        num_repeats: Random subsamples of each size, nested; the largest size is all points, once.
    """

    value: float | None = None
    stderr: float | None = None
    reason: str = ""
    alpha: float
    slope: float | None = None
    slope_stderr: float | None = None
    residual: float | None = None
    sizes: FloatArray = attrs.field(factory=lambda: np.zeros(0), eq=ARRAYS_EQUAL)
    log_e_alpha: FloatArray = attrs.field(factory=lambda: np.zeros(0), eq=ARRAYS_EQUAL)
    num_points: int
    num_merged: int
    num_repeats: int
    seed: int


@attrs.frozen
class TreeMeasures:
    """Measures from the minimum spanning trees of a set of points.

    Attributes:
        e_alpha: Sum over the edges of the tree of all points of |edge|^alpha. A property of these points, without
            sampling error; it grows with their number, so only trajectories of equally many iterates compare. NaN
            where float64 does not hold it, which a note then says.
        ph_dimension: alpha / (1 - slope) of ln E_alpha against ln n over subsamples, with the regression.
    """

    e_alpha: float
    ph_dimension: PersistentHomologyDimension


@attrs.frozen(eq=False, repr=False)
class TrajectoryMeasures(Document):
    """E_alpha and PH dimension of a trajectory.

    Attributes:
        euclidean: In the Euclidean distance of the weights (of their projections).
        data: In the data-dependent distance, the mean absolute difference of the losses of single examples; None
            without losses.
        first_iteration: The optimizer's iteration (in a simulation: step) of the first iterate.
        num_columns: Numbers kept of each iterate; fewer than weights if projected.
        num_examples: Examples whose losses define the data-dependent distance; 0 without.
        distortion: Distortion of the distances by the projection; None without one.
        simulation: The training that was simulated; None for a recorded trajectory.
    """

    DOCUMENT = "trajectory"
    WRITTEN_BY = ("trajectory.json", "sdkeras study trajectory")

    euclidean: TreeMeasures
    data: TreeMeasures | None
    alpha: float
    num_iterates: int
    first_iteration: int
    last_iteration: int
    num_parameters: int
    num_columns: int
    num_examples: int
    distortion: Distortion | None
    sdkeras: str
    simulation: Simulation | None = None
    warnings: tuple[Note, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def _report(self) -> Report:
        from sdkeras.study.trajectory_report import trajectory_report

        return trajectory_report(self)


def measure_trajectory(
    trajectory: Trajectory,
    alpha: float = 1.0,
    *,
    num_repeats: int = DEFAULT_REPEATS,
    seed: int = 0,
    memory_gb: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> TrajectoryMeasures:
    """E_alpha and PH dimension of the iterates and, where losses were kept, those of the data-dependent distance.

    Args:
        trajectory: Recorded or simulated.
        alpha: Power of the edges, positive and below the dimension.
        num_repeats: Subsamples of each size, at least 2.
        seed: Seed for the subsamples.
        memory_gb: Memory for the distances; default 60 % of what is free.
        progress: Called with the next stage, in words.

    Raises:
        TypeError: It is no trajectory.
        SdkerasError: Fewer than 2 iterates, or settings out of range.
        NonFiniteError: NaN or infinity among the iterates.
        OperatorSizeError: More distances than the memory holds.

    Reference: arXiv 2604.19740, Sec. 5.
    """
    if not isinstance(trajectory, Trajectory):
        raise TypeError(f"trajectory is of type {type(trajectory).__name__}; give a sdkeras.study.Trajectory.")
    iterates, losses = trajectory.iterates, trajectory.losses
    count = len(iterates)
    if count < 2:
        end = "" if trajectory.stopped_at is None else f"; it diverged at iteration {trajectory.stopped_at:,}"
        raise SdkerasError(f"the trajectory has {count} iterates, distances need at least 2{end}.")
    check_memory(distance_bytes(count), count, memory_gb)

    def in_metric(name: str, distances: Callable[[ArrayLike], FloatArray], points: ArrayLike) -> TreeMeasures:
        if progress is not None:
            progress(f"minimum spanning trees, {name}")
        try:
            condensed = distances(points)
        except NonFiniteError as error:
            raise NonFiniteError(f"the trajectory cannot be measured: {error}") from error
        dimension = ph_dimension(condensed, alpha, num_repeats=num_repeats, seed=seed)
        return TreeMeasures(power_sum(spanning_tree_edges(condensed), alpha), dimension)

    euclidean = in_metric("Euclidean", euclidean_distances, iterates)
    data = None if losses is None else in_metric("data-dependent", loss_distances, losses)
    return TrajectoryMeasures(
        euclidean=euclidean,
        data=data,
        alpha=alpha,
        num_iterates=count,
        first_iteration=int(trajectory.iterations[0]),
        last_iteration=int(trajectory.iterations[-1]),
        num_parameters=trajectory.num_parameters,
        num_columns=int(iterates.shape[1]),
        num_examples=0 if losses is None else int(losses.shape[1]),
        distortion=trajectory.distortion,
        sdkeras=__version__,
        warnings=tuple(_notes(trajectory, euclidean, data)),
    )


def _notes(trajectory: Trajectory, euclidean: TreeMeasures, data: TreeMeasures | None) -> Iterator[Note]:
    if trajectory.stopped_at is not None:
        yield Note(
            "diverged",
            f"weights or losses came out NaN or infinite at iteration {trajectory.stopped_at:,}; what is measured "
            "ends before it.",
        )
    if len(np.unique(np.diff(trajectory.iterations))) > 1:
        yield Note("uneven-steps", "the iterates are not the same number of iterations apart.")
    for metric, trees in (("Euclidean", euclidean), ("data-dependent", data)):
        if trees is not None:
            yield from _notes_on_trees(metric, trees)


def _notes_on_trees(metric: str, trees: TreeMeasures) -> Iterator[Note]:
    fit = trees.ph_dimension
    if math.isnan(trees.e_alpha):
        log = f" (its logarithm is {fit.log_e_alpha[-1]:.4g})" if len(fit.log_e_alpha) else ""
        yield Note(
            "e-alpha-range",
            f"{metric}: float64 does not hold E_alpha at alpha = {fit.alpha:g}{log}; take a smaller alpha.",
        )
    if fit.num_merged:
        yield Note("equal-iterates", f"{metric}: {fit.num_merged:,} iterates are at distance 0 from another.")
    if fit.residual is not None and fit.residual > _CURVED:
        yield Note(
            "no-power-law",
            f"{metric}: ln E_alpha is no straight line in ln n (root mean square distance {fit.residual:.2g}); the "
            "slope, and with it the dimension, depends on the sizes taken.",
        )


def distance_bytes(num_iterates: int) -> int:
    """Memory that the distances between the iterates take."""
    return _BYTES_PER_PAIR * num_iterates**2


def check_memory(needed: int, num_iterates: int, memory_gb: float | None) -> None:
    """Refuses iterates and distances that would not fit."""
    limit = memory_limit(memory_gb)
    if needed > limit:
        raise OperatorSizeError(
            f"{num_iterates:,} iterates and their distances need {needed / 1e9:.3g} GB, and {limit / 1e9:.3g} GB may "
            "be used; keep fewer iterates (every) or project them (projection), or allow more (`memory_gb`)."
        )


def euclidean_distances(points: ArrayLike) -> FloatArray:
    """Euclidean distances between the rows of a matrix [n, d], condensed, for a space of any dimension.

    By a float64 matrix product of the centred points, in blocks; pairs in which that would cancel are subtracted.
    """
    matrix = _matrix(points, "points")
    centre = matrix.mean(axis=0, dtype=np.float64)
    norms = np.concatenate([_squares(matrix[rows] - centre) for rows in _blocks(matrix)])

    def block(rows: slice, columns: slice) -> FloatArray:
        first, second = matrix[rows] - centre, matrix[columns] - centre
        scale = norms[rows, None] + norms[columns]
        squared: FloatArray = scale - 2 * first @ second.T
        near = np.nonzero(squared <= _CANCELLED * scale)
        for start in range(0, len(near[0]), len(first)):
            i, j = (index[start : start + len(first)] for index in near)
            squared[i, j] = _squares(first[i] - second[j])
        return np.sqrt(squared)

    return _in_blocks(matrix, block)


def loss_distances(losses: ArrayLike) -> FloatArray:
    """The data-dependent pseudo-metric rho(w, w') = mean over i of |l(w, z_i) - l(w', z_i)|, condensed.

    Losses of the same examples at each point have shape [n, examples].
    """
    matrix = _matrix(losses, "losses")

    def block(rows: slice, columns: slice) -> FloatArray:
        distances = scipy.spatial.distance.cdist(matrix[rows], matrix[columns], "cityblock")
        return np.asarray(distances / matrix.shape[1])

    return _in_blocks(matrix, block)


def spanning_tree_edges(distances: FloatArray, points: NDArray[np.int64] | None = None) -> FloatArray:
    """Edges of a minimum spanning tree of all points, or of some: the heights at which single linkage merges them.

    One length fewer than points, ascending. A length of 0 joins two points at the same place.
    """
    if points is not None and len(points) < _num_points(distances):
        starts, points = _row_starts(_num_points(distances)), np.sort(points)
        rows = [distances[starts[point] + points[k:]] for k, point in enumerate(points, 1)]
        distances = np.concatenate(rows)
    edges: FloatArray = scipy.cluster.hierarchy.linkage(distances, "single")[:, 2]
    return edges


def e_alpha(distances: ArrayLike, alpha: float = 1.0) -> float:
    """E_alpha = sum over the edges of a minimum spanning tree of |edge|^alpha; points at distance 0 count once.

    In the unit of the distances to the power alpha; 0 if all points coincide. The distances are condensed.

    Raises:
        SdkerasError: No condensed distances, alpha is not positive, or float64 does not hold E_alpha.

    Reference: arXiv 2604.19740, Sec. 5.
    """
    edges = spanning_tree_edges(_checked(distances, alpha))
    total = power_sum(edges, alpha)
    if math.isnan(total):
        raise SdkerasError(
            f"E_alpha at alpha = {alpha:g} is {log_power_sum(edges, alpha):.4g} in its logarithm, which float64 does "
            "not hold; take a smaller alpha."
        )
    return total


def power_sum(edges: FloatArray, alpha: float) -> float:
    """Sum of |edge|^alpha; NaN where it is beyond the range in which float64 has all its digits."""
    with np.errstate(over="ignore", under="ignore"):
        total = float(np.sum(edges**alpha))
    held = np.finfo(np.float64).tiny <= total < math.inf
    return total if held or not np.any(edges) else math.nan


def log_power_sum(edges: FloatArray, alpha: float) -> float:
    """Its logarithm, also where float64 does not hold the sum; edges are not all 0."""
    longest = float(edges.max())
    return alpha * math.log(longest) + math.log(power_sum(edges / longest, alpha))


def ph_dimension(
    distances: ArrayLike, alpha: float = 1.0, *, num_repeats: int = DEFAULT_REPEATS, seed: int = 0
) -> PersistentHomologyDimension:
    """The persistent homology dimension of degree 0: alpha / (1 - s), where E_alpha of n points grows as n^s.

    s is the slope of ln E_alpha against ln n over random subsamples, of sizes between a tenth of the points and all.
    Undetermined unless 0 < s < 1: with s <= 0 the dimension is not above alpha, where the formula does not hold.
    Points at distance 0 count once. The distances are condensed; each size is sampled `num_repeats` times, at least 2.

    Raises:
        SdkerasError: No condensed distances, or settings out of range.

    Reference: Birdal et al., "Intrinsic Dimension, Persistent Homology and Generalization in Neural Networks" (2021).
    """
    condensed, power = _checked(distances, alpha), float(alpha)
    if num_repeats < 2:
        raise SdkerasError(f"num_repeats is {num_repeats}; the standard error needs at least 2.")
    distinct, total = _distinct(condensed), _num_points(condensed)
    n = len(distinct)
    undetermined = PersistentHomologyDimension(
        alpha=power, num_points=n, num_merged=total - n, num_repeats=num_repeats, seed=seed
    )
    if n < 2 * _SMALLEST:
        reason = f"{n} distinct points of {total} are too few; {2 * _SMALLEST} are the least."
        return attrs.evolve(undetermined, reason=reason)
    sizes = np.unique(np.round(np.geomspace(max(_SMALLEST, n / 10), n, _NUM_SIZES)).astype(int))
    logs = np.full((num_repeats, len(sizes)), log_power_sum(spanning_tree_edges(condensed, distinct), power))
    for repeat in range(num_repeats):
        order = seeds.generator(seed, seeds.Stream.SUBSAMPLES, repeat).permutation(distinct)
        for k, size in enumerate(sizes[:-1]):
            logs[repeat, k] = log_power_sum(spanning_tree_edges(condensed, order[:size]), power)
    return _with_slope(undetermined, sizes, logs)


def _with_slope(
    undetermined: PersistentHomologyDimension, sizes: NDArray[np.int64], logs: FloatArray
) -> PersistentHomologyDimension:
    """The dimension from ln E_alpha of every repeat and size, by least squares."""
    power = undetermined.alpha
    x = np.log(sizes)
    x -= x.mean()
    with np.errstate(over="ignore", invalid="ignore"):
        slopes = logs @ x / (x @ x)
        mean = logs.mean(axis=0)
        slope = float(slopes.mean())
        residual = float(np.sqrt(np.mean((mean - mean.mean() - slope * x) ** 2)))
        error = float(np.std(slopes, ddof=1))
    if not np.all(np.isfinite([slope, residual, error])):
        reason = f"float64 does not hold ln E_alpha at alpha = {power:g}; use a smaller alpha."
        return attrs.evolve(undetermined, reason=reason)
    value, stderr, reason = None, None, ""
    if slope >= 1:
        reason = f"E_alpha grows as n^{slope:.3g}; the formula needs a slope below 1."
    elif slope <= 0:
        reason = (
            f"E_alpha does not grow (slope {slope:.3g}), so the dimension is not above alpha = {power:g}; "
            "use a smaller alpha."
        )
    else:
        value, stderr = power / (1 - slope), power / (1 - slope) ** 2 * error
    return attrs.evolve(
        undetermined,
        value=value,
        stderr=stderr,
        reason=reason,
        slope=slope,
        slope_stderr=error,
        residual=residual,
        sizes=sizes.astype(np.float64),
        log_e_alpha=mean,
    )


# Boxes

# Grids, each at another place.
_GRIDS = 4
# The coarsest boxes are a quarter of the extent. A scale counts while the points miss at most this share of the boxes,
# and a line takes some scales.
_COARSEST, _MOST_MISSED, _RARE, _FEWEST_SCALES = 2, 0.3, 0.05, 5


@attrs.frozen(kw_only=True)
class BoxCountingDimension:
    """The box-counting (Minkowski) dimension of a set of points, with the regression it rests on.

    Attributes:
        value: D in ln N = D ln(1/size) + a + b size, N the number of boxes that the set meets; None where it is
            undetermined, for the `reason` that is "" otherwise.
        interval: `value` minus and plus twice `stderr` and `model_error`; None where the value is.
        stderr: Of D, from its spread over the grids and from the residuals of the line.
        model_error: The largest difference that it makes to leave out b, or the correction for boxes not found.
        sizes: Sides of the boxes, shape [k], descending, in the unit of the points.
        log_counts: ln N, mean over the grids, shape [k].
        num_points: Points.
    """

    value: float | None = None
    interval: tuple[float, float] | None = None
    reason: str = ""
    stderr: float | None = None
    model_error: float | None = None
    sizes: FloatArray = attrs.field(factory=lambda: np.zeros(0), eq=ARRAYS_EQUAL)
    log_counts: FloatArray = attrs.field(factory=lambda: np.zeros(0), eq=ARRAYS_EQUAL)
    num_points: int
    seed: int


def box_counting_dimension(points: ArrayLike, *, seed: int = 0) -> BoxCountingDimension:
    """The box-counting dimension of a set, from points that sample it: N(size) grows as size^-dimension.

    Boxes are cubes of sides 1/4, 1/8, ... of the longest extent, in 4 grids at random places. Points miss some of the
    boxes that the set meets: how many is extrapolated from those that a quarter, a half and all of the points find
    (Aitken), and scales at which it is more than three tenths are left out. A term in the size stands for the boxes at
    the set's boundary. A point alone has dimension 0.

    The points should be spread over all of the set: of a part that hardly any of them visit nothing is known, nor of it
    is anything in the interval. 100,000 points of an orbit on the Henon attractor give 1.25; published is 1.26.

    Args:
        points: Shape [n, d]; a vector is n points on a line.
        seed: Of the grids' places and of the order of the points.

    Raises:
        SdkerasError: Fewer than two points, or NaN or infinity among them.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> line = rng.random((20_000, 1)) * [[1.0, 2.0, 3.0]]
        >>> round(box_counting_dimension(line).value, 1)
        1.0

    Reference: Falconer, "Fractal Geometry" (2014), Sec. 2.1.
    """
    values = np.asarray(points)
    rows = _matrix(values[:, None] if values.ndim == 1 else values, "points").astype(np.float64)
    extent = float(np.ptp(rows, axis=0).max())
    undetermined = BoxCountingDimension(num_points=len(rows), seed=seed)
    if extent == 0:
        return attrs.evolve(undetermined, value=0.0, interval=(0.0, 0.0), stderr=0.0, model_error=0.0)
    if len(rows) < 2 ** (_COARSEST + _FEWEST_SCALES):
        return attrs.evolve(undetermined, reason=_few_points(len(rows), 0))
    generator = seeds.generator(seed, seeds.Stream.GRIDS)
    unit = (generator.permutation(rows) - rows.min(axis=0)) / extent
    counts = np.array([_boxes(unit + generator.random(unit.shape[1])) for _ in range(_GRIDS)])
    missed = _missed(counts.mean(axis=0))
    usable = np.append(missed[_COARSEST:] <= _MOST_MISSED, False)
    last = _COARSEST + int(np.argmin(usable))
    if last - _COARSEST < _FEWEST_SCALES:
        reason = _few_points(len(rows), last - _COARSEST)
        return attrs.evolve(undetermined, reason=reason)
    scales = np.arange(_COARSEST, last)
    found = np.log(counts[:, 0, scales])
    logs = found - np.log1p(-missed[scales])
    slopes, errors = _lines(scales, logs)
    lines = slopes, _lines(scales, logs, with_boundary=False)[0], _lines(scales, found)[0]
    value, without_boundary, of_found = (max(0.0, float(each.mean())) for each in lines)
    stderr = math.hypot(slopes.std(ddof=1), errors.mean()) / math.sqrt(_GRIDS)
    model_error = max(abs(value - without_boundary), abs(value - of_found))
    half = 2 * stderr + model_error
    return attrs.evolve(
        undetermined,
        value=value,
        interval=(max(0.0, value - half), value + half),
        stderr=stderr,
        model_error=model_error,
        sizes=extent * 0.5 ** scales.astype(np.float64),
        log_counts=logs.mean(axis=0),
    )


def _few_points(count: int, scales: int) -> str:
    return (
        f"{counted(count, 'point')} find the boxes of {counted(scales, 'scale')}, and a line through their numbers "
        f"takes {_FEWEST_SCALES}; give more points."
    )


def _boxes(unit: FloatArray) -> NDArray[np.int64]:
    """How many boxes of side 2^-k all points, half and a quarter of them are in, for k = 0, 1, ...; shape [3, k]."""
    halvings = math.ceil(math.log2(len(unit))) + 1
    places = np.floor(np.ldexp(unit, halvings)).astype(np.int64)
    return np.array([_nested(places[: len(places) // part], halvings) for part in (1, 2, 4)])


def _nested(places: NDArray[np.int64], halvings: int) -> list[int]:
    """Numbers of distinct rows, coarser by a factor of 2 each time; the coarsest first."""
    counts = []
    for _ in range(halvings + 1):
        places = _unique_rows(places)
        counts.append(len(places))
        places = places >> 1
    return counts[::-1]


def _unique_rows(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The distinct rows, by one number for each, which takes a fraction of the time of `np.unique(axis=0)`."""
    keys = np.zeros(len(rows), np.int64)
    for column in rows.T:
        span = int(np.ptp(column)) + 1
        if (int(keys.max()) + 1) * span >= 2**62:
            keys = np.unique(keys, return_inverse=True)[1].astype(np.int64)
        keys = keys * span + (column - column.min())
    return rows[np.unique(keys, return_index=True)[1]]


def _missed(counts: FloatArray) -> FloatArray:
    """The share of the set's boxes that all points miss, from what they, a half and a quarter find; 1 if unknown."""
    all_of_them, more, before = counts[0], counts[0] - counts[1], counts[1] - counts[2]
    with np.errstate(divide="ignore", invalid="ignore"):
        beyond = np.where(before > more, more**2 / (before - more), np.inf)
    # Of coarse boxes a few are met late, which says nothing of a rate.
    beyond = np.where(more <= _RARE * all_of_them, np.minimum(more, beyond), beyond)
    return np.asarray(1 - all_of_them / (all_of_them + beyond))


def _lines(scales: NDArray[np.int64], logs: FloatArray, with_boundary: bool = True) -> tuple[FloatArray, FloatArray]:
    """Slopes of ln N against ln(1/size) beside a constant and a term in the size, and their errors, by grid."""
    columns = [scales * math.log(2), np.ones(len(scales)), 0.5**scales][: 3 if with_boundary else 2]
    design = np.column_stack(columns)
    inverse = np.linalg.pinv(design)
    residuals = logs - logs @ inverse.T @ design.T
    variances = (residuals**2).sum(axis=1) / (len(scales) - len(columns))
    return logs @ inverse[0], np.sqrt(variances * (inverse[0] @ inverse[0]))


def _row_starts(n: int) -> NDArray[np.int64]:
    """Position of d(i, j) in the condensed distances of n points, less j, for each i < j."""
    i = np.arange(n)
    return i * (2 * n - i - 1) // 2 - i - 1


def _num_points(distances: FloatArray) -> int:
    return int(scipy.spatial.distance.num_obs_y(distances))


def _distinct(distances: FloatArray) -> NDArray[np.int64]:
    """Indices of the points that are not at distance 0 from an earlier one."""
    n = _num_points(distances)
    distinct = np.ones(n, bool)
    for i, start in enumerate(_row_starts(n)):
        distinct[i + 1 :] &= distances[start + i + 1 : start + n] != 0
    return np.flatnonzero(distinct)


def _in_blocks(matrix: Array, block: Callable[[slice, slice], FloatArray]) -> FloatArray:
    """Condensed distances between the rows, from blocks of the upper triangle."""
    n, blocks = len(matrix), _blocks(matrix)
    condensed, starts = np.empty(n * (n - 1) // 2), _row_starts(n)
    for k, rows in enumerate(blocks):
        for columns in blocks[k:]:
            for row, distances in enumerate(block(rows, columns), rows.start):
                first = max(columns.start, row + 1)
                end = columns.start + len(distances)
                condensed[starts[row] + first : starts[row] + end] = distances[first - columns.start :]
    return condensed


def _blocks(matrix: Array) -> list[slice]:
    size = max(1, min(1024, _BLOCK_BYTES // (8 * matrix.shape[1])))
    return [slice(start, start + size) for start in range(0, len(matrix), size)]


def _squares(rows: Array) -> FloatArray:
    squares: FloatArray = np.einsum("ij,ij->i", rows, rows)
    return squares


def _matrix(values: ArrayLike, what: str) -> Array:
    """The values, refused unless they are a finite matrix of 2 rows or more."""
    array = np.asarray(values)
    if array.ndim != 2 or array.dtype.kind not in "biuf" or len(array) < 2 or not array.shape[1]:
        raise SdkerasError(
            f"{what} must be a matrix of numbers with a row for each of at least 2 points, got "
            f"{array.dtype} of shape {array.shape}."
        )
    return finite(array, what)


def _checked(distances: ArrayLike, alpha: float) -> FloatArray:
    """The distances in float64, refused unless they are condensed distances and alpha is positive and finite."""
    array = np.asarray(distances)
    advice = "compute them with euclidean_distances(points) or loss_distances(losses)."
    if array.ndim != 1 or array.dtype.kind not in "biuf" or not len(array):
        raise SdkerasError(
            f"distances must be condensed, d(0,1), d(0,2), ..., d(1,2), got {array.dtype} of shape {array.shape}; "
            f"{advice} scipy.spatial.distance.squareform condenses a matrix."
        )
    condensed = finite(array.astype(np.float64, copy=False), "distances")
    if not scipy.spatial.distance.is_valid_y(condensed) or condensed.min() < 0:
        raise SdkerasError(f"distances must be at least 0, one for each pair of points, got {len(array)}; {advice}")
    if not (np.isfinite(alpha) and alpha > 0):
        raise SdkerasError(f"alpha is {alpha!r}; it must be positive and finite.")
    return condensed
