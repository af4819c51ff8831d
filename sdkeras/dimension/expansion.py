"""E+, the sum of the positive exponents, with another matrix in the place of the Hessian, run by run beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sdkeras.dimension.controls import UNKNOWN, Fit, Rows
from sdkeras.dimension.estimate import FEWEST_RUNS_FOR_AN_INTERVAL, Context, Pooled, Sample, summarise
from sdkeras.dimension.exponents import rounding
from sdkeras.results.answers import Expansion
from sdkeras.results.arrays import FloatArray
from sdkeras.results.estimates import Spectrum


def expansion_beside(hessian: Pooled, runs: Sequence[Spectrum], context: Context, num_steps: int | None) -> Expansion:
    """E+ of the runs on another matrix, beside that of the Hessian's runs on the same minibatches with the same probes.

    The two differ less from minibatch to minibatch than each of them, so that the difference has an interval of its
    own: that of the mean of the differences.

    Args:
        hessian: The Hessian's runs, in order.
        runs: As many on the other matrix, or fewer: the first ones.
        context: Their setting, which has the map.
        num_steps: Steps of each, or None.
    """
    other, count = summarise(Sample.of(runs), context).pooled, len(runs)
    rows = hessian.sample.rows if count == len(hessian.runs) else Rows.of(count, UNKNOWN)
    noiseless = hessian.exact and not rows.population.is_random
    everywhere = (-math.inf, math.inf)
    own, of_hessian = _gains(other, everywhere), _gains(hessian, everywhere)[:count]

    def mean(values: FloatArray) -> float:
        return float(rows.run_weights @ values)

    def interval(values: FloatArray, least: float) -> tuple[float, float] | None:
        fit: Fit = rows.fit(values, noiseless=noiseless)
        if count < FEWEST_RUNS_FOR_AN_INTERVAL or not math.isfinite(fit.half_width):
            return None
        return max(least, mean(values) - fit.half_width), mean(values) + fit.half_width

    above = context.unstable_above
    return Expansion(
        value=mean(own),
        interval=interval(own, 0.0),
        negative_curvature=mean(_gains(other, (-math.inf, 0.0))),
        unstable=0.0 if above is None else mean(_gains(other, (above, math.inf))),
        hessian=mean(of_hessian),
        hessian_interval=interval(of_hessian, 0.0),
        difference=mean(of_hessian - own),
        difference_interval=interval(of_hessian - own, -math.inf),
        num_runs=count,
        num_steps=None if other.exact else num_steps,
        rounding=other.size * rounding(context.exponents, other.largest, context.product_error),
    )


def _gains(pooled: Pooled, between: tuple[float, float]) -> FloatArray:
    """The part of each run's E+ from eigenvalues strictly between these two."""
    gains = []
    for atoms, (z, masses) in zip(pooled.atoms, pooled.measures, strict=True):
        origins = pooled.context.exponents.spread(atoms.nodes)
        inside = (origins > between[0]) & (origins < between[1])
        gains.append(float(masses[inside] @ np.maximum(z[inside], 0.0)))
    return np.array(gains)
