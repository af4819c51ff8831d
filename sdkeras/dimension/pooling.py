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


@attrs.frozen(eq=False)
class Reading:
    """A rule as a map sees it.

    Attributes:
        rule: The rule.
        accepted: Which of its nodes count as simple eigenvalues, shape [k].
        z: Its exponents, shape [branches * k].
        raw: Nodes and weights as they are.
        corrected: With mass 1 on every accepted node and the rest rescaled to what remains of n.
        raw_masses: Of the exponents, with raw weights.
        corrected_masses: With corrected ones.
    """

    rule: Spectrum
    accepted: np.ndarray[tuple[int], np.dtype[np.bool_]]
    z: FloatArray
    raw: Atoms
    corrected: Atoms
    raw_masses: FloatArray
    corrected_masses: FloatArray


def read(rule: Spectrum, exponents: Exponents) -> Reading:
    """The rule under this map."""
    accepted, raw = _accepted(rule, exponents), rule.weights
    count, unaccepted = int(accepted.sum()), float(raw[~accepted].sum())
    remaining, corrected = rule.size - count, raw
    if count and unaccepted > 0 and remaining > 0:
        corrected = np.where(accepted, 1.0, raw * (remaining / unaccepted))
    spread = exponents.spread
    atoms = Atoms(rule.nodes, raw), Atoms(rule.nodes, corrected)
    return Reading(rule, accepted, exponents(rule.nodes), *atoms, spread(raw), spread(corrected))


def repeated_eigenvalues(runs: Sequence[Reading]) -> float | None:
    """Excess of the accepted masses over 1 each, in standard deviations of chi^2_1 sums, if it gives them away.

    A repeated eigenvalue shows as one Ritz value with the mass of all its copies; the correction would lose
    them. All accepted masses are tested together, and those at each place from either end by themselves.

    Args:
        runs: The runs.

    Returns:
        The largest excess that says that eigenvalues are repeated, or None.
    """
    accepted = [run.rule.weights[run.accepted] for run in runs]
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


def has_ended(run: Spectrum) -> bool:
    """Whether more steps would give the same rule: all eigenvalues, or a Krylov space that is invariant."""
    return run.exact or (run.residuals is not None and not np.any(run.residuals))


def rule(run: Spectrum, depth: int) -> Spectrum:
    """The rule this many times nested in a run's own, or the coarsest one that it has."""
    for _ in range(depth):
        run = run if run.nested is None else run.nested
    return run


def depths(runs: Sequence[Spectrum]) -> int:
    """How many rules are nested in each other in the runs that have any."""

    def count(run: Spectrum) -> int:
        return 0 if run.nested is None else 1 + count(run.nested)

    return max(map(count, runs))


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


def quantile_average(runs: Sequence[Measure], size: float, shares: FloatArray | None = None) -> QuantileAverage:
    """Averages the runs' quantile functions; for exact spectra this is the average of order statistics.

    Args:
        runs: Exponents and masses of each run; masses sum to `size`.
        size: d.
        shares: Weights of the runs, >= 0, sum 1; equal ones by default.
    """
    steps, widths, middles = _common_steps(runs, size)
    total = np.zeros(len(middles))
    for share, step in zip(np.full(len(runs), 1.0 / len(runs)) if shares is None else shares, steps, strict=True):
        total += share * _at(step, middles)
    return QuantileAverage(total, widths, steps)


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
