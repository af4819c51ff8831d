"""Many runs as one measure: exact-mass correction, pooling, and the average of quantile functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import attrs
import numpy as np

from sdkeras.dimension.exponents import Exponents
from sdkeras.results.arrays import FloatArray
from sdkeras.results.estimates import Spectrum

# Exponents z, and how many directions each stands for.
Measure: TypeAlias = tuple[FloatArray, FloatArray]

# Acceptance of a Ritz value as a simple, converged eigenvalue of mass 1: its residual is small beside the gap
# to its neighbours, its weight below the 1 - 6e-7 quantile of chi^2_1, and it is not a neutral direction.
_RESIDUAL_OVER_GAP = 1e-4
_LARGEST_WEIGHT = 25.0
_SMALLEST_STEP = 1e-6
# If all accepted are simple, N accepted weights sum to about N + sqrt(2N) * normal. A Ritz value converges
# sooner when its weight is large, so that what is accepted late exceeds 1 by some per cent: with many runs 4
# standard deviations alone would cry wolf, and the excess must matter as well.
_GUARD = 4.0
_EXCESS_OVERALL = 1.1
# At one place from an end of the spectrum a repeated eigenvalue has mean weight 2 or more in every run.
_EXCESS_AT_A_PLACE = 1.5
_NUM_PLACES = 64


@attrs.frozen(eq=False)
class Atoms:
    """One run's measure: nodes with masses that sum to n."""

    nodes: FloatArray
    weights: FloatArray


def _accepted(spectrum: Spectrum, exponents: Exponents) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which nodes count as simple eigenvalues: contiguous from either end."""
    nodes, count = spectrum.nodes, len(spectrum.nodes)
    if spectrum.residuals is None or spectrum.exact or count < 2:
        return np.zeros(count, dtype=np.bool_)
    gaps = np.diff(nodes)
    gap = np.minimum(np.append(gaps, np.inf), np.insert(gaps, 0, np.inf))
    good = (
        (spectrum.residuals < _RESIDUAL_OVER_GAP * gap)
        & (spectrum.weights < _LARGEST_WEIGHT)
        & (exponents.departure(nodes) > _SMALLEST_STEP)
    )
    from_left = np.logical_and.accumulate(good)
    from_right = np.logical_and.accumulate(good[::-1])[::-1]
    accepted: np.ndarray[tuple[int], np.dtype[np.bool_]] = from_left | from_right
    return accepted


def _corrected(spectrum: Spectrum, exponents: Exponents) -> FloatArray:
    """Weights with mass 1 on every accepted node and the rest rescaled to what remains of n."""
    accepted = _accepted(spectrum, exponents)
    count = int(accepted.sum())
    unaccepted = float(spectrum.weights[~accepted].sum())
    remaining = spectrum.size - count
    if count == 0 or unaccepted <= 0 or remaining <= 0:
        return spectrum.weights
    return np.where(accepted, 1.0, spectrum.weights * (remaining / unaccepted))


def repeated_eigenvalues(runs: Sequence[Spectrum], exponents: Exponents) -> float | None:
    """Excess of the accepted masses over 1 each, in standard deviations of chi^2_1 sums, if it gives them away.

    A repeated eigenvalue shows as one Ritz value with the mass of all its copies; the correction would lose
    them. All accepted masses are tested together, and those at each place from either end by themselves.

    Args:
        runs: The runs' spectra.
        exponents: The map; tells neutral directions.

    Returns:
        The largest excess that says that eigenvalues are repeated, or None.
    """
    accepted = [run.weights[_accepted(run, exponents)] for run in runs]
    excesses = [_excess(np.concatenate(accepted), _EXCESS_OVERALL)]
    for place in range(min(_NUM_PLACES, max(len(masses) for masses in accepted))):
        for index in (place, -1 - place):
            here = np.array([masses[index] for masses in accepted if len(masses) > place])
            excesses.append(_excess(here, _EXCESS_AT_A_PLACE))
    given_away = [excess for excess in excesses if excess is not None]
    return max(given_away) if given_away else None


def _excess(masses: FloatArray, least_mean: float) -> float | None:
    """Standard deviations above 1 each, if beyond the guard and the mean exceeds `least_mean`."""
    count = len(masses)
    if count == 0:
        return None
    excess = float((masses.sum() - count) / np.sqrt(2 * count))
    return excess if excess > _GUARD and masses.mean() > least_mean else None


def as_atoms(run: Spectrum, exponents: Exponents, correct: bool) -> Atoms:
    """One run's atoms, its exact masses corrected if asked."""
    return Atoms(run.nodes, _corrected(run, exponents) if correct else run.weights)


def has_ended(run: Spectrum) -> bool:
    """Whether more steps would give the same rule: all eigenvalues, or a Krylov space that is invariant."""
    return run.exact or (run.residuals is not None and not np.any(run.residuals))


def coarser_rules(runs: Sequence[Spectrum]) -> list[Spectrum] | None:
    """The coarser rule of each run, to compare with its own: both with raw weights.

    The exact-mass correction would set the nodes that one of them accepts and the other does not to mass 1 in one
    alone: over a run this moves SD by some dimensions, hundreds of times the error of the quadrature.

    Returns:
        One rule for each run, its own where it has no coarser one since its Krylov space ended; None where no run
        has one.
    """
    if all(run.nested is None for run in runs):
        return None
    return [run if run.nested is None else run.nested for run in runs]


@attrs.frozen(eq=False)
class QuantileAverage:
    """The average over runs of the quantile functions z_r(u), 0 < u <= d, z descending in u.

    Attributes:
        z: Values of the averaged step function, descending, shape [k].
        widths: Mass of each step, shape [k].
    """

    z: FloatArray
    widths: FloatArray
    _runs: Sequence[Measure]

    def integrals(self, upper: float) -> FloatArray:
        """Per run, the integral of z_r(u) over 0 < u <= upper, shape [runs]."""
        values = []
        for z, mass in self._runs:
            edges = np.concatenate([[0.0], mass])
            sums = np.concatenate([[0.0], np.cumsum(np.diff(edges) * z)])
            values.append(float(np.interp(upper, edges, sums)))
        return np.array(values)


def quantile_average(runs: Sequence[Measure], size: float) -> QuantileAverage:
    """Averages the runs' quantile functions; for exact spectra this is the average of order statistics.

    Args:
        runs: Exponents and masses of each run; masses sum to `size`.
        size: d.
    """
    steps, widths, middles = _common_steps(runs, size)
    total = np.zeros(len(middles))
    for step in steps:
        total += _at(step, middles)
    return QuantileAverage(total / len(steps), widths, steps)


def quantile_functions(runs: Sequence[Measure], size: float) -> tuple[FloatArray, FloatArray]:
    """The runs' quantile functions as step functions with the same steps.

    Args:
        runs: Exponents and masses of each run; masses sum to `size`.
        size: d.

    Returns:
        (z, widths): values, each row descending, shape [runs, k]; and the mass of each step, shape [k].
    """
    steps, widths, middles = _common_steps(runs, size)
    return np.stack([_at(step, middles) for step in steps]), widths


def _common_steps(runs: Sequence[Measure], size: float) -> tuple[list[Measure], FloatArray, FloatArray]:
    """(z descending, mass up to there) of each run; widths and middles of the steps that all of them have together."""
    steps = []
    for z, weights in runs:
        order = np.argsort(-z, kind="stable")
        mass = np.cumsum(weights[order])
        steps.append((z[order], mass * (size / mass[-1])))
    edges = np.unique(np.round(np.concatenate([[0.0], *(mass for _, mass in steps)]), 9))
    return steps, np.diff(edges), 0.5 * (edges[1:] + edges[:-1])


def _at(step: Measure, masses: FloatArray) -> FloatArray:
    z, mass = step
    return z[np.minimum(np.searchsorted(mass, masses), len(z) - 1)]
