"""The first rate along a fixed update at which the loss after the step exceeds the loss before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import attrs
import numpy as np

from sdkeras.results.arrays import ARRAYS_EQUAL, FloatArray

# 'measured'; 'lower' and 'upper' where the search ended at its last doubling or halving, a bound; 'ascent' where the
# loss rises at once, so that the rate is 0; 'no step' where the update moves nothing, or the gradient is 0.
Outcome: TypeAlias = Literal["measured", "lower", "upper", "ascent", "no step"]

# Factors of 2 away from the rate in use at which the search ends.
MOST_DOUBLINGS = 30
# A loss is known to this many of its roundings.
_ROUNDINGS = 4


@attrs.frozen
class FirstRise:
    """A search along one update; a factor is a multiple of the update that the optimizer would make.

    Attributes:
        outcome: See `Outcome`.
        factor: The middle of the bracket, or the bound; 0 for 'ascent', NaN for 'no step'.
        bracket: Factors between which the loss first rises, widened by the rounding of the loss; None for a bound.
        is_rounded: Whether that rounding exceeds the tolerance.
        factors: Factors that were tried, ascending, shape [k].
        losses: The loss after the step at each, shape [k].
    """

    outcome: Outcome
    factor: float
    bracket: tuple[float, float] | None
    is_rounded: bool
    factors: FloatArray = attrs.field(eq=ARRAYS_EQUAL)
    losses: FloatArray = attrs.field(eq=ARRAYS_EQUAL)


def first_rise(
    loss_at: Callable[[float], float], before: float, slope: float, *, tolerance: float, rounding: float
) -> FirstRise:
    """Doubles or halves the update until the loss after it is above the loss before on one side only, then bisects.

    Among factors that are powers of 2 it is the first above 1 at which the loss has risen, or below 1 the last; a rise
    between two of them that is over again at the second is not seen. NaN and infinity count as a rise.

    Args:
        loss_at: The loss after a multiple of the update.
        before: The loss before it.
        slope: Derivative of `loss_at` at 0, the gradient times the update.
        tolerance: Width of the bracket, relative to its middle.
        rounding: Relative rounding of a loss.
    """
    tried: dict[float, float] = {}

    def rises(factor: float) -> bool:
        tried[factor] = loss_at(factor)
        return not tried[factor] <= before

    def found(outcome: Outcome, factor: float, bracket: tuple[float, float] | None = None) -> FirstRise:
        error = 0.0 if bracket is None else _ROUNDINGS * rounding * abs(before) / abs(slope)
        if bracket is not None:
            bracket = max(0.0, bracket[0] - error), bracket[1] + error
        factors = np.array(sorted(tried), np.float64)
        losses = np.array([tried[each] for each in factors], np.float64)
        return FirstRise(outcome, factor, bracket, error > tolerance * factor, factors, losses)

    if not slope < 0:
        return found("no step", math.nan) if slope == 0 else found("ascent", 0.0)
    factors = [0.5**k for k in range(1, MOST_DOUBLINGS + 1)]
    if rises(1.0):
        low = next((factor for factor in factors if not rises(factor)), 0.0)
        high = 2 * low or factors[-1]
    else:
        high = next((1 / factor for factor in factors if rises(1 / factor)), math.inf)
        low = min(high / 2, 1 / factors[-1])
    if low == 0 or high == math.inf:
        return found("upper", high) if low == 0 else found("lower", low)
    while high - low > tolerance * 0.5 * (low + high):
        middle = 0.5 * (low + high)
        if rises(middle):
            high = middle
        else:
            low = middle
    return found("measured", 0.5 * (low + high), (low, high))


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Interval of the median of independent values from their order statistics; None below six values.

    The k-th smallest and the k-th largest, with the largest k for which a binomial of n fair tosses lies below k with
    probability (1 - confidence) / 2 at most. No distribution is assumed.
    """
    count, ordered = len(values), sorted(values)
    tail, k = 0.5**count, 0
    while 2 * tail <= 1 - confidence and 2 * (k + 1) <= count:
        k += 1
        tail += math.comb(count, k) * 0.5**count
    return None if k == 0 else (ordered[k - 1], ordered[count - k])
