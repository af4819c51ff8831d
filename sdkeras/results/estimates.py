"""Results of estimators: NumPy arrays in float64 with their evidence, whose invariants are checked on construction."""

from __future__ import annotations

import attrs
import numpy as np

from sdkeras.results.arrays import (
    ARRAYS_EQUAL,
    BoolArray,
    FloatArray,
    Value,
    bool_array,
    check_same_length,
    finite,
    float_array,
    vector,
)

_VECTOR: dict[str, Value] = {"validator": [vector, finite], "eq": ARRAYS_EQUAL}
_NOT_NEGATIVE = attrs.validators.ge(0)


@attrs.frozen
class Eigenpairs:
    """Some eigenvalues of a symmetric operator, largest first.

    Attributes:
        values: Eigenvalues (Ritz values), descending, shape [k].
        residuals: |A v - theta v| for unit v, shape [k]; an eigenvalue lies within it of each value.
        converged: Whether each residual met the estimator's tolerance, shape [k].
        vectors: Unit eigenvectors as columns, shape [n, k], or None when they were not asked for.
        num_matvecs: Products spent.
        seed: Seed for the start vector.
    """

    values: FloatArray = attrs.field(converter=float_array, **_VECTOR)
    residuals: FloatArray = attrs.field(converter=float_array, **_VECTOR)
    converged: BoolArray = attrs.field(converter=bool_array, eq=ARRAYS_EQUAL)
    num_matvecs: int = attrs.field(validator=_NOT_NEGATIVE)
    seed: int
    vectors: Value = attrs.field(default=None, eq=ARRAYS_EQUAL, repr=False)

    def __attrs_post_init__(self) -> None:
        check_same_length(self, "values", "residuals", "converged")
        _check_descending(self, "values")
        if self.vectors is not None and (np.ndim(self.vectors) != 2 or np.shape(self.vectors)[1] != len(self.values)):
            raise ValueError(
                f"Eigenpairs.vectors has shape {np.shape(self.vectors)}, expected [n, {len(self.values)}]."
            )


@attrs.frozen
class Spectrum:
    """A discrete measure that stands for the spectrum: sum of weights[j] * delta(nodes[j]).

    Attributes:
        nodes: Eigenvalues or quadrature nodes, ascending, shape [m].
        weights: Number of eigenvalues each node stands for, >= 0, sum = the operator's size, shape [m].
        num_matvecs: Products spent.
        seed: Seed for the probe.
        residuals: Residual |A v - theta v| of each node as a Ritz value, shape [m], or None if unknown.
        nested: The same run's coarser rule (fewer steps), its own where its Krylov space ended before; None without
            one. It costs no products of its own, and may have a coarser one nested in it, and so on.
        density: A smoothed density on a grid, for plots: pair (points, values), or None.
        exact: True if the nodes are the eigenvalues themselves (to roundoff) and not a quadrature rule.
        reach: Distance beyond the extreme eigenvalues that bins or smoothing may have moved a node; 0 for nodes
            that were not moved.
    """

    nodes: FloatArray = attrs.field(converter=float_array, **_VECTOR)
    weights: FloatArray = attrs.field(converter=float_array, **_VECTOR)
    num_matvecs: int = attrs.field(validator=_NOT_NEGATIVE)
    seed: int
    residuals: FloatArray | None = attrs.field(
        default=None, converter=attrs.converters.optional(float_array), **_VECTOR
    )
    nested: Spectrum | None = None
    density: tuple[FloatArray, FloatArray] | None = attrs.field(default=None, eq=ARRAYS_EQUAL, repr=False)
    exact: bool = False
    reach: float = attrs.field(default=0.0, validator=[finite, attrs.validators.ge(0.0)])

    def __attrs_post_init__(self) -> None:
        _check_weighted(self, "nodes", "a spectrum has at least one node")
        if np.any(np.diff(self.nodes) < 0):
            raise ValueError("Spectrum.nodes must be ascending.")

    @property
    def size(self) -> float:
        """Sum of the weights: the dimension of the operator."""
        return float(self.weights.sum())


@attrs.frozen
class TraceEstimate:
    """An estimate of the trace with its standard error.

    Attributes:
        value: The estimate.
        stderr: Standard error of the mean over probes; 0 when the trace is exact.
        num_matvecs: Products spent.
        seed: Seed for the probes.
        num_probes: Random probes the standard error rests on.
    """

    value: float = attrs.field(converter=float, validator=finite)
    stderr: float = attrs.field(converter=float, validator=[finite, attrs.validators.ge(0.0)])
    num_matvecs: int = attrs.field(validator=_NOT_NEGATIVE)
    seed: int
    num_probes: int = attrs.field(default=1, validator=_NOT_NEGATIVE)


@attrs.frozen
class DiagonalEstimate:
    """An estimate of a symmetric operator's diagonal.

    Attributes:
        values: The estimates, shape [n].
        stderr: Their standard errors, shape [n]; 0 where the diagonal is exact.
        num_matvecs: Products spent.
        seed: Seed for the probes.
    """

    values: FloatArray = attrs.field(converter=float_array, **_VECTOR)
    stderr: FloatArray = attrs.field(converter=float_array, **_VECTOR)
    num_matvecs: int = attrs.field(validator=_NOT_NEGATIVE)
    seed: int

    def __attrs_post_init__(self) -> None:
        check_same_length(self, "values", "stderr")


@attrs.frozen
class SingularValues:
    """Log singular values of a linear map with their multiplicities, largest first.

    Attributes:
        log_values: ln(sigma), descending, shape [k]; finite, so that a singular value of 0 stands at a floor.
        weights: Number of singular values each entry stands for, >= 0, sum = the map's size, shape [k].
        num_matvecs: Products spent (JVPs and VJPs together).
        seed: Seed for the start vector.
        residuals: |J'y - sigma x| of each entry with J x = sigma y, |x| = |y| = 1, in units of sigma, shape [k]; a
            singular value lies within it. None if unknown.
        nested: The same run's coarser rule (fewer steps), its own where its Krylov space ended before; None without
            one. It costs no products of its own.
        exact: True if the entries are the singular values themselves (to roundoff) and not a quadrature rule.
    """

    log_values: FloatArray = attrs.field(converter=float_array, **_VECTOR)
    weights: FloatArray = attrs.field(converter=float_array, **_VECTOR)
    num_matvecs: int = attrs.field(validator=_NOT_NEGATIVE)
    seed: int
    residuals: FloatArray | None = attrs.field(
        default=None, converter=attrs.converters.optional(float_array), **_VECTOR
    )
    nested: SingularValues | None = None
    exact: bool = False

    def __attrs_post_init__(self) -> None:
        _check_weighted(self, "log_values", "a map has at least one singular value")
        _check_descending(self, "log_values")

    @property
    def size(self) -> float:
        """Sum of the weights: the size of the map."""
        return float(self.weights.sum())


@attrs.frozen
class LyapunovExponents:
    """Leading Lyapunov exponents per step, largest first, with block standard errors.

    The steps after the transient are cut into consecutive blocks of equal length; `history` has the running means at
    their ends. Steps after the last whole block count in `values` and not in `stderr`.

    Attributes:
        values: Exponents, natural logarithm per step, descending, shape [k].
        stderr: Standard errors, shape [k]: spread of the block means. 0 says nothing where there are fewer than
            two blocks.
        num_steps: Steps averaged over, after the transient.
        seed: Seed for the start frame and the trajectory.
        history: Running means of the same directions, one row after each block, shape [number of blocks, k]; empty
            if it was not kept.
        block_size: Steps in a block.
        transient: Steps discarded before them.
        num_tangents: Tangent vectors carried through a step, the transient's included: k for each step.
        stopped_at: Step, counted from 1 with the transient, whose product held NaN or infinity and ended the run
            early: the trajectory diverged. None if it did not.
        log_det: Mean of ln|det J| per step where the exponents are all there are (k = the flow's size), which is
            their sum; else None.
        rounding: Bound on the error from rounding of each exponent, per step, shape [k]; None if it was not followed.
        num_resolved: The leading exponents that rounding has left intact. Those after them were at some step below
            what the dtype resolves beside the largest, and their values are upper bounds: the Jacobian may be
            singular there, the exponent -infinity. None: all of them.
    """

    values: FloatArray = attrs.field(converter=float_array, **_VECTOR)
    stderr: FloatArray = attrs.field(converter=float_array, **_VECTOR)
    num_steps: int = attrs.field(validator=attrs.validators.ge(1))
    seed: int
    history: FloatArray = attrs.field(
        factory=lambda: np.zeros((0, 0)), converter=float_array, validator=finite, eq=ARRAYS_EQUAL, repr=False
    )
    block_size: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    transient: int = attrs.field(default=0, validator=_NOT_NEGATIVE)
    num_tangents: int | None = None
    stopped_at: int | None = None
    log_det: float | None = attrs.field(default=None, validator=finite)
    rounding: FloatArray | None = attrs.field(default=None, converter=attrs.converters.optional(float_array), **_VECTOR)
    num_resolved: int | None = None

    def __attrs_post_init__(self) -> None:
        check_same_length(self, "values", "stderr", "rounding")
        if self.history.size and (self.history.ndim != 2 or self.history.shape[1] != len(self.values)):
            raise ValueError(
                f"LyapunovExponents.history has shape {self.history.shape}, expected [blocks, {len(self.values)}]."
            )
        if self.history.size and len(self.history) * self.block_size > self.num_steps:
            raise ValueError(
                f"LyapunovExponents.history has {len(self.history)} blocks of {self.block_size} steps, "
                f"more than the {self.num_steps} steps of the run."
            )
        if self.num_resolved is not None and not 0 <= self.num_resolved <= len(self.values):
            raise ValueError(
                f"LyapunovExponents.num_resolved is {self.num_resolved}, expected 0 to {len(self.values)}."
            )

    @property
    def block_means(self) -> FloatArray:
        """Mean of each block, shape [number of blocks, k]; (0, 0) without a history."""
        counts = np.arange(1.0, len(self.history) + 1)[:, None]
        return np.diff(counts * self.history, axis=0, prepend=0.0) if self.history.size else self.history


def _check_weighted(record: Spectrum | SingularValues, name: str, at_least: str) -> None:
    check_same_length(record, name, "weights", "residuals")
    kind = type(record).__name__
    if len(record.weights) == 0:
        raise ValueError(f"{kind}.{name} is empty; {at_least}.")
    if np.any(record.weights < 0):
        raise ValueError(f"{kind}.weights must be >= 0, smallest is {record.weights.min():.3g}.")


def _check_descending(record: Eigenpairs | SingularValues, name: str) -> None:
    if np.any(np.diff(getattr(record, name)) > 0):
        raise ValueError(f"{type(record).__name__}.{name} must be sorted, largest first.")
