"""E_alpha and the persistent homology dimension of a trajectory of the weights, in both distances."""

from __future__ import annotations

import math
from collections.abc import Callable

import attrs
import numpy as np
from numpy.typing import ArrayLike

from sdkeras._version import __version__
from sdkeras.errors import NonFiniteError, OperatorSizeError, SdkerasError
from sdkeras.linalg.memory import memory_limit
from sdkeras.results.answers import Simulation
from sdkeras.results.arrays import FloatArray
from sdkeras.results.document import SCHEMA_VERSION, Document
from sdkeras.results.note import Note
from sdkeras.study.projection import Distortion
from sdkeras.study.topology import (
    PersistentHomologyDimension,
    euclidean_distances,
    loss_distances,
    ph_dimension,
    power_sum,
    spanning_tree_edges,
)
from sdkeras.study.trajectory import Trajectory

DEFAULT_REPEATS = 10
# The matrix of distances in float64, and the blocks that make and check it.
_BYTES_PER_PAIR = 10
# Residuals of ln E_alpha about its line above this are told of: E_alpha of uniform points and of random walks stays
# within 0.01, and a line off by 0.05 at its ends moves a dimension of 2 by a tenth.
_CURVED = 0.05


@attrs.frozen
class TreeMeasures:
    """What minimum spanning trees say of a set of points.

    Attributes:
        e_alpha: Sum over the edges of the tree of all points of |edge|^alpha. A number of these points, without
            sampling error; it grows with their number, so that only trajectories of as many iterates compare. NaN
            where float64 does not hold it: a warning then says so.
        ph_dimension: alpha / (1 - slope) of ln E_alpha against ln n over subsamples, with the regression.
    """

    e_alpha: float
    ph_dimension: PersistentHomologyDimension


@attrs.frozen(eq=False)
class TrajectoryMeasures(Document):
    """E_alpha and PH dimension of a trajectory.

    Attributes:
        euclidean: In the Euclidean distance of the weights (of their projections).
        data: In the data-dependent distance, the mean absolute difference of the losses of single examples; None
            without losses.
        alpha: Power of the edges.
        num_iterates: Points.
        first_iteration: Optimizer's iteration (of a simulation: step) of the first.
        last_iteration: Of the last.
        num_parameters: Weights.
        num_columns: Numbers kept of each iterate; fewer than weights if projected.
        num_examples: Whose losses the data-dependent distance is of; 0 without.
        distortion: What the projection does to distances; None without one.
        sdkeras: Version.
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

    def __str__(self) -> str:
        from sdkeras.reporting.terminal import as_text
        from sdkeras.study.trajectory_report import trajectory_report

        return as_text(trajectory_report(self))


def measure(
    trajectory: Trajectory,
    alpha: float = 1.0,
    *,
    num_repeats: int = DEFAULT_REPEATS,
    seed: int = 0,
    memory_gb: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> TrajectoryMeasures:
    """E_alpha and PH dimension of the iterates, and with losses those of the data-dependent distance.

    Args:
        trajectory: Recorded or simulated.
        alpha: Power of the edges, positive and below the dimension.
        num_repeats: Subsamples of each size, at least 2.
        seed: Of the subsamples.
        memory_gb: Memory for the distances; default 60 % of what is free.
        progress: Called with what is done next, in words.

    Raises:
        SdkerasError: Fewer than 2 iterates, NaN or infinity among them, or settings out of range; OperatorSizeError:
            more distances than the memory holds.

    Reference: arXiv 2604.19740, Sec. 5.
    """
    count = len(trajectory.iterates)
    if count < 2:
        end = "" if trajectory.stopped_at is None else f"; it diverged at iteration {trajectory.stopped_at:,}"
        raise SdkerasError(f"the trajectory has {count} iterates, distances need at least 2{end}.")
    check_memory(distance_bytes(count), count, memory_gb)

    def of(points: ArrayLike, what: str, distances: Callable[[ArrayLike], FloatArray]) -> TreeMeasures:
        if progress is not None:
            progress(f"minimum spanning trees, {what}")
        try:
            matrix = distances(points)
            return TreeMeasures(
                power_sum(spanning_tree_edges(matrix), alpha),
                ph_dimension(matrix, alpha, num_repeats=num_repeats, seed=seed),
            )
        except NonFiniteError as error:
            raise NonFiniteError(f"the trajectory cannot be measured: {error}") from error

    columns = int(trajectory.iterates.shape[1])
    euclidean = of(trajectory.iterates, "Euclidean", euclidean_distances)
    data = None if trajectory.losses is None else of(trajectory.losses, "data-dependent", loss_distances)
    return TrajectoryMeasures(
        euclidean=euclidean,
        data=data,
        alpha=alpha,
        num_iterates=count,
        first_iteration=int(trajectory.iterations[0]),
        last_iteration=int(trajectory.iterations[-1]),
        num_parameters=trajectory.num_parameters,
        num_columns=columns,
        num_examples=0 if trajectory.losses is None else int(trajectory.losses.shape[1]),
        distortion=trajectory.distortion,
        sdkeras=__version__,
        warnings=tuple(_warnings(trajectory, {"Euclidean": euclidean, "data-dependent": data})),
    )


def distance_bytes(num_iterates: int) -> int:
    """Memory that the distances between so many iterates take."""
    return _BYTES_PER_PAIR * num_iterates**2


def check_memory(needed: int, num_iterates: int, memory_gb: float | None) -> None:
    """Refuses iterates and distances that would not fit.

    Raises:
        OperatorSizeError: See above, with the numbers.
    """
    limit = memory_limit(memory_gb)
    if needed > limit:
        raise OperatorSizeError(
            f"{num_iterates:,} iterates and their distances need {needed / 1e9:.3g} GB, and {limit / 1e9:.3g} GB may "
            "be used; keep fewer iterates (every) or project them (projection), or allow more (--memory)."
        )


def _warnings(trajectory: Trajectory, found: dict[str, TreeMeasures | None]) -> list[Note]:
    notes = []
    if trajectory.stopped_at is not None:
        notes.append(
            Note(
                "diverged",
                f"weights or losses came out NaN or infinite at iteration {trajectory.stopped_at:,}; what is measured "
                "ends before it.",
            )
        )
    if len(np.unique(np.diff(trajectory.iterations))) > 1:
        notes.append(Note("uneven-steps", "the iterates are not the same number of iterations apart."))
    for name, measured in found.items():
        fit = None if measured is None else measured.ph_dimension
        if measured is not None and fit is not None and math.isnan(measured.e_alpha):
            log = f" (its logarithm is {fit.log_e_alpha[-1]:.4g})" if len(fit.log_e_alpha) else ""
            notes.append(
                Note(
                    "e-alpha-range",
                    f"{name}: float64 does not hold E_alpha at alpha = {fit.alpha:g}{log}; take a smaller alpha.",
                )
            )
        if fit is not None and fit.num_merged:
            notes.append(Note("equal-iterates", f"{name}: {fit.num_merged:,} iterates are at distance 0 from another."))
        if fit is not None and fit.residual is not None and fit.residual > _CURVED:
            notes.append(
                Note(
                    "no-power-law",
                    f"{name}: ln E_alpha is no straight line in ln n (root mean square distance "
                    f"{fit.residual:.2g}); the slope, and with it the dimension, depends on the sizes taken.",
                )
            )
    return notes
