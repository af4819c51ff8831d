"""D_s, the sharpness dimension of Lyapunov exponents, and which dimension of a trajectory is the sharpest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import scipy.special

from sdkeras.dimension.blocks import half_width
from sdkeras.results.arrays import FloatArray
from sdkeras.results.estimates import LyapunovExponents
from sdkeras.results.lyapunov import LyapunovDimension, MStepSharpness, SharpestDimension

_CONFIDENCE = 0.95
# Fewer block means do not know their spread: the standard error of 10 is itself known to 24 %, 1/sqrt(2 * 9).
_FEWEST_BLOCKS = 10
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
) -> LyapunovDimension:
    """D_s: Definition 4.2 applied to the individual Lyapunov exponents ell_1 >= ell_2 >= ... of d.

    With Lambda_j = ell_1 + ... + ell_j: D_s = 0 if ell_1 < 0, d if Lambda_d >= 0, else j* + Lambda_j*/|ell_(j*+1)|,
    j* the last j with Lambda_j >= 0. It is a point only if j* + 1 of the exponents are known, undamaged by rounding,
    and the error of Lambda_j* is small beside |ell_(j*+1)|. The interval's ends are where Lambda_j minus and plus
    its 95 % half-width, drawn as straight lines between the j, turn negative.

    From the leading K < d exponents alone, with Lambda_K >= 0: D_s >= K, and if Lambda_d < 0 is known
    D_s >= K + Lambda_K (d - K)/(Lambda_K - Lambda_d), since the other exponents fall to that sum the fastest when
    they are equal. D_s <= K + Lambda_K/|ell_K| if ell_K < 0; if not, SD over the same steps is an upper end.

    Args:
        exponents: The leading k exponents, with their history (without one, errors of sums are sums of errors).
        size: d >= k.
        log_det: Lambda_d, the mean of ln|det J| per step, if it is known from elsewhere; a full spectrum has its own.
        log_det_stderr: Its standard error.
        sharpness_dimension: SD over the same steps.

    Returns:
        A point, a bracket, or 'undetermined' with the reason: the trajectory diverged, there is no standard error,
        the interval of ell_1 contains 0, or ell_1 < 0 is too small for so few steps: D_s may then be 0 or anything.

    Raises:
        ValueError: More exponents than dimensions, or none.

    Reference: Tuci et al. (2026), arXiv 2604.19740, Def. 4.2 and eqs. 50-71.
    """
    ell, k = exponents.values, len(exponents.values)
    if not 1 <= k <= size:
        raise ValueError(f"there are {k} exponents of a state of dimension {size}; give 1 to {size}.")
    if log_det is None and k == size:
        log_det = exponents.log_det

    def answer(
        status: str, interval: tuple[float, float] | None, reason: str = "", value: float | None = None
    ) -> LyapunovDimension:
        known = status != "undetermined"
        return LyapunovDimension(
            status=status,
            value=value,
            interval=interval,
            reason=reason,
            j_star=j_star if known else None,
            threshold_exponent=float(ell[j_star]) if known and j_star < k else None,
            size=size,
            num_exponents=k,
            num_steps=exponents.num_steps,
        )

    sums = np.cumsum(ell)
    reached = np.flatnonzero(sums >= 0)
    j_star = int(reached[-1]) + 1 if len(reached) else 0
    if exponents.stopped_at is not None:
        return answer("undetermined", None, f"the trajectory diverged at step {exponents.stopped_at}")
    if len(exponents.history) < _FEWEST_BLOCKS and exponents.history.size:
        return answer(
            "undetermined", None, f"{len(exponents.history)} blocks of steps give no standard error; make more steps"
        )
    quantile, half, last_half = _half_widths(exponents)
    if abs(sums[0]) <= half[0]:
        return answer("undetermined", None, f"the 95 % interval of ell_1, {ell[0]:.3g} +- {half[0]:.2g}, contains 0")
    moved = float(sums[0]) * exponents.num_steps
    if abs(moved) < _turn(size):
        return answer(
            "undetermined",
            None,
            f"ell_1 = {ell[0]:.3g} adds up to {moved:.2g} over {exponents.num_steps:,} steps, no further than a frame "
            f"in {size:,} dimensions may rise or fall while it turns ({_turn(size):.2g}); make more steps",
        )
    if sums[0] < 0:
        return answer("determined", (0.0, 0.0), value=0.0)

    resolved = k if exponents.num_resolved is None else exponents.num_resolved
    total = None if log_det is None else log_det - quantile * log_det_stderr
    lower = _lower_end(sums[:resolved] - half[:resolved], size, total)
    upper = _last_crossing(sums + half)
    within = upper is not None
    if upper is None and k == size:
        upper = float(size)
    if upper is None:
        slope = float(ell[-1]) + last_half
        beyond = k + (sums[-1] + half[-1]) / -slope if slope < 0 else sharpness_dimension
        upper = float(size) if beyond is None else min(float(beyond), float(size))
    interval = (lower, max(lower, upper))
    if lower == size:
        return answer("determined", interval, value=float(size))
    if not within:
        reason = f"the {k} leading exponents sum to {sums[-1]:.3g} +- {half[-1]:.2g}, which may not be below 0; " + (
            "make more steps" if k == size else "compute more of them"
        )
    elif j_star >= resolved:
        reason = f"rounding hides ell_{j_star + 1}; work in float64, or with shorter products"
    elif half[j_star - 1] > _POINT * abs(ell[j_star]):
        reason = (
            f"Lambda_{j_star} = {sums[j_star - 1]:.3g} +- {half[j_star - 1]:.2g} is not sharp beside "
            f"|ell_{j_star + 1}| = {abs(ell[j_star]):.3g}; make more steps"
        )
    else:
        return answer("determined", interval, value=float(j_star + sums[j_star - 1] / abs(ell[j_star])))
    return answer("bracketed", interval, reason)


def _turn(size: int) -> float:
    """How far the logarithm of a random vector's length may move, at 95 %, while it turns to a neutral direction.

    Its component there is |z|/sqrt(d), z normal, and what is left in the end where directions are orthogonal, a fall.
    Where they are not, as those of weights and velocity, it may rise as far. A frame of one dimension has no turn.
    """
    least = float(scipy.special.ndtri(0.5 + (1 - _CONFIDENCE) / 2))
    return 0.5 * math.log(size) - math.log(least) if size > 1 else 0.0


def _half_widths(exponents: LyapunovExponents) -> tuple[float, FloatArray, float]:
    """(quantile, half-widths of Lambda_1 .. Lambda_k, half-width of ell_k) at 95 %: sampling, and rounding on top."""
    tail = 0.5 + _CONFIDENCE / 2
    means = exponents.block_means
    if len(means):
        quantile = float(scipy.special.stdtrit(len(means) - 1, tail))
        # Of the sums themselves, since directions go together.
        sums = half_width(np.cumsum(means, axis=1), exponents.block_size, exponents.num_steps, _CONFIDENCE)
        last = half_width(means[:, -1:], exponents.block_size, exponents.num_steps, _CONFIDENCE)[0]
    else:
        quantile = float(scipy.special.ndtri(tail))
        sums, last = quantile * np.cumsum(exponents.stderr), quantile * exponents.stderr[-1]
    rounding = np.zeros(len(sums)) if exponents.rounding is None else exponents.rounding
    return quantile, sums + np.cumsum(rounding), float(last + rounding[-1])


def _lower_end(lower: FloatArray, size: int, total: float | None) -> float:
    """Where the lower ends of Lambda_1 .. Lambda_K first turn negative, or the least D_s beyond K."""
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


def _last_crossing(upper: FloatArray) -> float | None:
    """Where the upper ends of Lambda_1 .. Lambda_k turn negative for the last time; None if the last is not."""
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
    found: list[SharpestDimension] = []
    if lyapunov is not None and lyapunov.value is not None:
        found.append(SharpestDimension("D_s", lyapunov.value, "the Lyapunov exponents determine it"))
    elif lyapunov is not None and lyapunov.interval is not None:
        found.append(SharpestDimension("upper end of D_s", lyapunov.interval[1], lyapunov.reason))
    without = (
        "" if lyapunov is None or lyapunov.status != "undetermined" else f"; D_s is undetermined: {lyapunov.reason}"
    )
    for entry in steps:
        if entry.dimension is None:
            continue
        found.append(
            SharpestDimension(entry.name, entry.dimension, f"an upper end of D_s over the same steps{without}")
        )
    if supremum is not None:
        found.append(SharpestDimension("SD over snapshots", supremum, f"an upper end of D_s{without}"))
    _check_order(steps, lyapunov)
    return min(found, key=lambda entry: entry.value) if found else None


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
