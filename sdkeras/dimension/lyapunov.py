"""D_s, the sharpness dimension of Lyapunov exponents, and which dimension of a trajectory is the sharpest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import attrs
import numpy as np
import scipy.special

from sdkeras.dimension.forks import ForkedLogs, of_dimension, unmixed
from sdkeras.results.arrays import FloatArray
from sdkeras.results.estimates import LyapunovExponents
from sdkeras.results.lyapunov import LyapunovDimension, MStepSharpness, SharpestDimension

_CONFIDENCE = 0.95
_TAIL = 0.5 + _CONFIDENCE / 2
# Blocks of the coarsest level at least: the standard error of 8 is itself known to 27 %, 1/sqrt(2 * 7).
_FEWEST_IN_A_LEVEL = 8
# Fewer block means do not know their spread: the standard error of 10 is itself known to 24 %, 1/sqrt(2 * 9).
FEWEST_BLOCKS = 10
# D_s is a point where the 95 % half-width of Lambda_j* is at most this part of |ell_(j*+1)|: it then is uncertain
# by about a quarter of a dimension.
_POINT = 0.25
# Dimensions that theory orders may break the order by so much: by roundoff, relative to d, and by the 0.02 that
# a singular value of a float32 Jacobian may be wrong by.
_ROUNDOFF, _SLACK = 1e-6, 0.02


def lyapunov_dimension(
    exponents: LyapunovExponents,
    size: int,
    *,
    log_det: float | None = None,
    log_det_stderr: float = 0.0,
    sharpness_dimension: float | None = None,
    forks: ForkedLogs | None = None,
) -> LyapunovDimension:
    """D_s: Definition 4.2 applied to the individual Lyapunov exponents ell_1 >= ell_2 >= ... of d.

    With Lambda_j = ell_1 + ... + ell_j: D_s = 0 if ell_1 < 0, d if Lambda_d >= 0, else j* + Lambda_j*/|ell_(j*+1)|,
    j* the last j with Lambda_j >= 0. It is a point only if j* + 1 of the exponents are known, undamaged by rounding,
    and the error of Lambda_j* is small beside |ell_(j*+1)|. The interval's ends are where Lambda_j minus and plus
    its 95 % half-width, drawn as straight lines between the j, turn negative.

    From the leading K < d exponents alone, with Lambda_K >= 0: D_s >= K, and if Lambda_d < 0 is known
    D_s >= K + Lambda_K (d - K)/(Lambda_K - Lambda_d), since the other exponents fall to that sum the fastest when
    they are equal. D_s <= K + Lambda_K/|ell_K| if ell_K < 0; if not, SD over the same steps is an upper bound.

    Args:
        exponents: The leading k exponents, with their history (without one, errors of sums are sums of errors).
        size: d >= k.
        log_det: Lambda_d, the mean of ln|det J| per step, if it is known from elsewhere; a full spectrum has its own.
        log_det_stderr: Its standard error.
        sharpness_dimension: SD over the same steps.
        forks: The steps of several trajectories, of which the exponents are the means: errors are then of their
            effective number of independent steps, and of the alignment of the frame.

    Returns:
        A point, a bracket, or 'undetermined' with the reason: the trajectory diverged, there is no standard error,
        the forks are not samples of one distribution, the interval of ell_1 contains 0, or ell_1 < 0 is too small for
        so few steps: D_s may then be 0 or anything.

    Raises:
        ValueError: More exponents than dimensions, or none.

    Reference: Tuci et al. (2026), arXiv 2604.19740, Def. 4.2 and eqs. 50-71.
    """
    k = len(exponents.values)
    if not 1 <= k <= size:
        raise ValueError(f"there are {k} exponents of a state of dimension {size}; give 1 to {size}.")
    if log_det is None and k == size:
        log_det = exponents.log_det
    unknown = LyapunovDimension(
        status="undetermined",
        value=None,
        interval=None,
        reason="",
        j_star=None,
        threshold_exponent=None,
        size=size,
        num_exponents=k,
        num_steps=exponents.num_steps,
    )
    reason = _unusable(exponents, is_forked=forks is not None)
    if reason:
        return attrs.evolve(unknown, reason=reason)
    sums = _sums(exponents, forks)
    reason = "" if forks is None else unmixed(forks, sums.ell, sums.j_star)
    reason = reason or _without_sign(sums, size, exponents.num_steps)
    if reason:
        return attrs.evolve(unknown, reason=reason)
    j_star = sums.j_star
    known = attrs.evolve(
        unknown,
        status="determined",
        value=0.0,
        interval=(0.0, 0.0),
        j_star=j_star,
        threshold_exponent=float(sums.ell[j_star]) if j_star < k else None,
    )
    if sums.values[0] < 0:
        return known
    resolved = k if exponents.num_resolved is None else exponents.num_resolved
    total = None if log_det is None else log_det - sums.quantile * log_det_stderr
    lower = _lower_end((sums.values - sums.half_widths)[:resolved], size, total)
    upper = _last_crossing(sums.values + sums.half_widths)
    end = _upper_end(sums, size, sharpness_dimension) if upper is None else upper
    known = attrs.evolve(known, interval=(lower, max(lower, end)))
    if lower == size:
        return attrs.evolve(known, value=float(size))
    reason = _no_point(sums, resolved, more_exist=k < size, ends_below=upper is not None)
    if reason:
        return attrs.evolve(known, status="bracketed", value=None, reason=reason)
    value = float(j_star + sums.values[j_star - 1] / abs(sums.ell[j_star]))
    if forks is not None:
        half = _half_width_over_forks(forks, sums)
        known = attrs.evolve(known, interval=(max(0.0, value - half), min(float(size), value + half)))
    return attrs.evolve(known, value=value)


def _half_width_over_forks(forks: ForkedLogs, sums: _Sums) -> float:
    """Half-width of the 95 % interval of D_s: sampling, alignment and rounding."""
    weights = of_dimension(sums.ell, sums.j_star)
    return float(forks.combined(weights).half_widths[0] + forks.rounding @ np.abs(weights[:, 0]))


@attrs.frozen(eq=False)
class _Sums:
    """Lambda_1 .. Lambda_k, the partial sums of the exponents ell, and how well they are known.

    Attributes:
        half_widths: Half-widths of their 95 % intervals: sampling, plus rounding.
        last: Half-width of ell_k.
        quantile: Student's or the normal one that half-widths are made with.
    """

    ell: FloatArray
    values: FloatArray
    half_widths: FloatArray
    last: float
    quantile: float

    @property
    def j_star(self) -> int:
        """The last j with Lambda_j >= 0, or 0."""
        reached = np.flatnonzero(self.values >= 0)
        return int(reached[-1]) + 1 if len(reached) else 0


def _sums(exponents: LyapunovExponents, forks: ForkedLogs | None = None) -> _Sums:
    means = exponents.block_means
    if forks is not None:
        quantile, size = float(scipy.special.ndtri(_TAIL)), len(exponents.values)
        half_widths = forks.combined(np.triu(np.ones((size, size)))).half_widths
        last = forks.combined(np.eye(size)[:, -1:]).half_widths[0]
    elif len(means):
        quantile = float(scipy.special.stdtrit(len(means) - 1, _TAIL))
        # Of the sums themselves, since directions go together.
        half_widths = half_width(np.cumsum(means, axis=1), exponents.block_size, exponents.num_steps)
        last = half_width(means[:, -1:], exponents.block_size, exponents.num_steps)[0]
    else:
        quantile = float(scipy.special.ndtri(_TAIL))
        half_widths, last = quantile * np.cumsum(exponents.stderr), quantile * exponents.stderr[-1]
    rounding = np.zeros(len(half_widths)) if exponents.rounding is None else exponents.rounding
    return _Sums(
        ell=exponents.values,
        values=np.cumsum(exponents.values),
        half_widths=half_widths + np.cumsum(rounding),
        last=float(last + rounding[-1]),
        quantile=quantile,
    )


def _unusable(exponents: LyapunovExponents, *, is_forked: bool) -> str:
    """Why the exponents say nothing, or ""."""
    if exponents.stopped_at is not None:
        return f"the trajectory diverged at step {exponents.stopped_at}"
    if exponents.history.size and len(exponents.history) < FEWEST_BLOCKS and not is_forked:
        return (
            f"{len(exponents.history)} blocks of whole epochs give no standard error; take "
            f"{FEWEST_BLOCKS * exponents.block_size:,} steps or more, or several forks"
        )
    return ""


def _without_sign(sums: _Sums, size: int, num_steps: int) -> str:
    """Why ell_1 may have either sign, or ""."""
    first, half = float(sums.values[0]), sums.half_widths[0]
    if abs(first) <= half:
        return f"the 95 % interval of ell_1, {first:.3g} +- {half:.2g}, contains 0"
    if abs(first * num_steps) < _turn(size):
        return (
            f"ell_1 = {first:.3g} adds up to {first * num_steps:.2g} over {num_steps:,} steps, no further than a frame "
            f"in {size:,} dimensions may rise or fall while it turns ({_turn(size):.2g}); take more steps"
        )
    return ""


def _no_point(sums: _Sums, resolved: int, *, more_exist: bool, ends_below: bool) -> str:
    """Why D_s is no point, or ""."""
    j_star, half_widths, values = sums.j_star, sums.half_widths, sums.values
    if not ends_below:
        advice = "compute more of them" if more_exist else "take more steps"
        return (
            f"the {len(values)} leading exponents sum to {values[-1]:.3g} +- {half_widths[-1]:.2g}, which may not be "
            f"below 0; {advice}"
        )
    if j_star >= resolved:
        return f"rounding hides ell_{j_star + 1}; work in float64, or with shorter products"
    if half_widths[j_star - 1] > _POINT * abs(sums.ell[j_star]):
        return (
            f"Lambda_{j_star} = {values[j_star - 1]:.3g} +- {half_widths[j_star - 1]:.2g} is not sharp beside "
            f"|ell_{j_star + 1}| = {abs(sums.ell[j_star]):.3g}; take more steps"
        )
    return ""


def _turn(size: int) -> float:
    """How far the logarithm of a random vector's length may move, at 95 %, while it turns to a neutral direction.

    Its component there is |z|/sqrt(d), z normal, and what is left in the end where directions are orthogonal, a fall.
    Where they are not, as those of weights and velocity, it may rise as far. A frame of one dimension has no turn.
    """
    least = float(scipy.special.ndtri(0.5 + (1 - _CONFIDENCE) / 2))
    return 0.5 * math.log(size) - math.log(least) if size > 1 else 0.0


def _lower_end(lower: FloatArray, size: int, total: float | None) -> float:
    """Where the lower bounds of Lambda_1 .. Lambda_K first turn negative, or the least D_s beyond K."""
    if len(lower) == 0:
        return 0.0
    below = np.flatnonzero(lower < 0)
    if len(below):
        return _zero_between(np.concatenate([[0.0], lower]), int(below[0]))
    count, sum_k = len(lower), float(lower[-1])
    if total is not None and total >= 0:
        return float(size)
    if total is None or count == size:
        return float(count)
    return count + sum_k * (size - count) / (sum_k - total)


def _upper_end(sums: _Sums, size: int, sharpness_dimension: float | None) -> float:
    """The largest D_s where Lambda_k may not be below 0: from ell_k, which bounds the rest, or SD."""
    slope = float(sums.ell[-1]) + sums.last
    if len(sums.ell) == size:
        return float(size)
    if slope < 0:
        beyond: float | None = len(sums.ell) + (sums.values[-1] + sums.half_widths[-1]) / -slope
    else:
        beyond = sharpness_dimension
    return float(size) if beyond is None else min(float(beyond), float(size))


def _last_crossing(upper: FloatArray) -> float | None:
    """Where the upper bounds of Lambda_1 .. Lambda_k turn negative for the last time; None if the last is not."""
    if upper[-1] >= 0:
        return None
    last = np.flatnonzero(np.concatenate([[0.0], upper]) >= 0)[-1]
    return _zero_between(np.concatenate([[0.0], upper]), int(last))


def _zero_between(curve: FloatArray, j: int) -> float:
    """The zero of the straight line from curve[j] >= 0 to curve[j + 1] < 0."""
    return float(j + curve[j] / (curve[j] - curve[j + 1]))


def sharpest_dimension(
    steps: Sequence[MStepSharpness] = (),
    lyapunov: LyapunovDimension | None = None,
    *,
    supremum: float | None = None,
) -> SharpestDimension | None:
    """The smallest determined dimension of one trajectory, for the bounds.

    Over the same T steps D_s <= SD^(m) for every m that divides T, SD^(m') <= SD^(m) where m divides m', and
    SD^(1) = SD. Between m and m' of which neither divides the other there is no order, and the smaller one is as
    good a bound. An SD with a maximum over snapshots is above D_s only. SD at one checkpoint has no order with any of
    these and does not belong here.

    Args:
        steps: SD^(m) of the trajectory, m = 1 (SD itself) among them if it is known.
        lyapunov: D_s over the same steps.
        supremum: SD with a maximum over snapshots.

    Returns:
        The sharpest, or None if nothing is determined. D_s needs bounded distortion (eq. 13) to bound the attractor's
        dimension, which one trajectory cannot show.

    Raises:
        ValueError: The dimensions are not of the same steps: of different T or d, or against the order above.
    """
    covered = {(entry.num_steps, entry.size) for entry in steps}
    if lyapunov is not None:
        covered.add((lyapunov.num_steps, lyapunov.size))
    if len(covered) > 1:
        raise ValueError(f"the dimensions are of different steps; (number of steps, size of the state) are {covered}.")
    _check_order(steps, lyapunov)
    known = list(_dimensions(steps, lyapunov, supremum))
    return min(known, key=lambda entry: entry.value) if known else None


def _dimensions(
    steps: Sequence[MStepSharpness], lyapunov: LyapunovDimension | None, supremum: float | None
) -> Iterator[SharpestDimension]:
    """D_s, or its upper bound, and those above it, the sharper ones first where they are equal."""
    without = ""
    if lyapunov is not None and lyapunov.value is not None:
        yield SharpestDimension("D_s", lyapunov.value, "the Lyapunov exponents determine it")
    elif lyapunov is not None and lyapunov.interval is not None:
        yield SharpestDimension("upper end of D_s", lyapunov.interval[1], lyapunov.reason)
    elif lyapunov is not None:
        without = "; D_s is undetermined"
    for entry in steps:
        if entry.dimension is not None:
            reason = f"an upper bound on D_s over the same steps{without}"
            yield SharpestDimension(entry.name, entry.dimension, reason)
    if supremum is not None:
        yield SharpestDimension("SD over snapshots", supremum, f"an upper bound on D_s{without}")


def _check_order(steps: Sequence[MStepSharpness], lyapunov: LyapunovDimension | None) -> None:
    known = [(entry.num_window_steps, entry.dimension) for entry in steps if entry.dimension is not None]
    least = None if lyapunov is None or lyapunov.interval is None else lyapunov.interval[0]
    for m, dimension in known:
        slack = _SLACK + _ROUNDOFF * steps[0].size
        if least is not None and least > dimension + slack:
            raise ValueError(f"D_s >= {least:.6g} is above SD^({m}) = {dimension:.6g}: they are not of the same steps.")
        for longer, other in known:
            if longer % m == 0 and other > dimension + slack:
                raise ValueError(
                    f"SD^({longer}) = {other:.6g} is above SD^({m}) = {dimension:.6g}: they are not of the same steps."
                )


def standard_error(means: FloatArray, block_size: int, num_steps: int) -> FloatArray:
    """Standard error of the mean over the steps, shape [k].

    Successive steps are correlated, and blocks shorter than the correlation time underestimate the error: of the
    standard errors from the blocks, from pairs of them, pairs of pairs and so on, down to 8, the largest is taken. For
    independent steps this is about 15 % too large.

    Args:
        means: Means of consecutive blocks, shape [blocks, k].
        block_size: Steps in a block.
        num_steps: Steps of the mean; those of the blocks, or some more.
    """
    if len(means) < 2:
        return np.zeros(means.shape[1])
    largest: FloatArray = np.max([error for error, _ in _levels(means, block_size, num_steps)], axis=0)
    return largest


def half_width(means: FloatArray, block_size: int, num_steps: int) -> FloatArray:
    """Half-width of the 95 % interval of the mean, by Student's t, the largest of the same levels, shape [k]."""
    levels = _levels(means, block_size, num_steps)
    widest: FloatArray = np.max([scipy.special.stdtrit(count - 1, _TAIL) * error for error, count in levels], axis=0)
    return widest


def _levels(means: FloatArray, block_size: int, num_steps: int) -> Iterator[tuple[FloatArray, int]]:
    """Standard error and number of blocks, of the blocks and of pairs, down to the fewest."""
    while True:
        yield np.std(means, axis=0, ddof=1) * math.sqrt(block_size / num_steps), len(means)
        if len(means) < 2 * _FEWEST_IN_A_LEVEL:
            return
        pairs = len(means) // 2
        means, block_size = means[: 2 * pairs].reshape(pairs, 2, -1).mean(axis=1), 2 * block_size
