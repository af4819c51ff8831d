"""Means over minibatches by regression on control variates: quantities whose expectation is known over the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import attrs
import numpy as np
import scipy.stats

from sdkeras.results.arrays import FloatArray

CONFIDENCE = 0.95
# The largest R (A'A)^-1_00 that controls may cost, and the fewest minibatches that any are used with: at least eight
# for each.
_MOST_LEVERAGE = 1.5
_FEWEST_ROWS, _ROWS_PER_CONTROL = 20, 8
# A control whose sample variance is less than this share of the known one tells too little there.
_LEAST_VARIANCE = 0.2
_GROWTH = 1.25


def _itself(index: int) -> int:
    return index


@attrs.frozen(eq=False)
class Population:
    """The minibatches that runs are made on, as far as they are known.

    Attributes:
        per_epoch: Minibatches of one pass over the data, after which the next pass begins; None where they do not
            come in passes.
        num_batches: M where minibatches are M fixed ones, drawn without replacement, pass after pass; else None.
        batch: Number of a run's minibatch, from the run's: runs of the same minibatch are probes of it.
        controls: (run numbers) -> [R, p]: for each run's minibatch its controls, of mean 0 over the population and
            variance about 1, most important first; or None.
        error: Variance of the controls' mean over the data where that is known from a sample; 0 where it is exact.
        needs_epoch: Whether a few examples dominate the controls, so that fewer minibatches than a whole epoch may miss
            them all.
        reason: Why there are no controls, or "".
        is_random: Whether a minibatch is not the same twice, as with dropout masks.
    """

    per_epoch: int | None = None
    num_batches: int | None = None
    batch: Callable[[int], int] = _itself
    controls: Callable[[Sequence[int]], FloatArray] | None = None
    error: float = 0.0
    needs_epoch: bool = False
    reason: str = ""
    is_random: bool = True

    def pilot(self, fewest: int) -> int:
        """Runs before the first look: whole passes where one has fewer than twice as many minibatches."""
        if self.per_epoch is None or not 1 < self.per_epoch < 2 * fewest:
            return fewest
        return self.per_epoch * math.ceil(fewest / self.per_epoch)

    def next_look(self, runs: int, wanted: float) -> int:
        """Runs before the look after this one, if `wanted` were enough.

        Blocks of a quarter at most, since what is wanted is an estimate too; of fixed batches the first pass to its
        end, then whole passes.
        """
        target = max(runs + 8, math.ceil(min(wanted, _GROWTH * runs)))
        if self.num_batches is None:
            return target
        whole = self.num_batches * math.ceil(target / self.num_batches)
        return min(target, self.num_batches) if runs < self.num_batches else whole


UNKNOWN = Population()


@attrs.frozen(eq=False)
class Rows:
    """Minibatches so far, one row each, and the weights with which they count.

    With A = [1, controls], shape [R, p + 1], the mean of values psi is beta_0 = a'psi, a = e_0' (A'A)^-1 A': the least
    squares intercept, which is the expectation of psi as far as it is linear in the controls. Without controls it is
    the mean.

    Attributes:
        membership: Row of each run, shape [runs].
        probes: Runs of each row, shape [R].
        design: A.
        weights: a, shape [R], sum 1.
        leverage: (A'A)^-1_00; 1/R without controls.
        population: The population.
    """

    membership: np.ndarray[tuple[int], np.dtype[np.intp]]
    probes: FloatArray
    design: FloatArray
    weights: FloatArray
    leverage: float
    population: Population

    @classmethod
    def of(cls, num_runs: int, population: Population) -> Rows:
        """The rows of the first runs."""
        numbers = np.array([population.batch(index) for index in range(num_runs)])
        _, first, membership = np.unique(numbers, return_index=True, return_inverse=True)
        order = np.argsort(np.argsort(first))  # rows in the order of their first runs
        membership = order[membership]
        probes = np.bincount(membership).astype(np.float64)
        count = len(probes)
        most = count // _ROWS_PER_CONTROL if count >= _FEWEST_ROWS and population.controls is not None else 0
        if count == population.num_batches or (population.needs_epoch and count < (population.per_epoch or 0)):
            # Over the whole population their mean is 0; and a part of an epoch may hold none of the few that matter.
            most = 0
        design = np.ones((count, 1))
        if most and population.controls is not None:
            controls = population.controls(np.sort(first).tolist())[:, :most]
            design = np.column_stack([design, controls[:, controls.var(axis=0) >= _LEAST_VARIANCE]])
        while True:
            inverse = np.linalg.inv(design.T @ design) if _has_rank(design) else None
            if design.shape[1] == 1 or (inverse is not None and count * inverse[0, 0] <= _MOST_LEVERAGE):
                break
            design = design[:, :-1]
        if design.shape[1] == 1:
            return cls(membership, probes, design, np.full(count, 1.0 / count), 1.0 / count, population)
        assert inverse is not None
        return cls(membership, probes, design, (design @ inverse)[:, 0], float(inverse[0, 0]), population)

    @property
    def num_rows(self) -> int:
        return len(self.probes)

    @property
    def num_controls(self) -> int:
        return int(self.design.shape[1]) - 1

    @property
    def run_weights(self) -> FloatArray:
        """Weight of each run: its row's, shared among the row's probes; equal ones where a row's is negative."""
        weights = self.weights if np.all(self.weights >= 0) else np.full(self.num_rows, 1.0 / self.num_rows)
        shares: FloatArray = (weights / self.probes)[self.membership]
        return shares

    def fit(self, values: FloatArray, *, noiseless: bool = False) -> Fit:
        """The mean of one value for each run; `noiseless` where another probe of a minibatch would give the same."""
        means = np.bincount(self.membership, weights=values) / self.probes
        coefficients = np.linalg.lstsq(self.design, means, rcond=None)[0] if self.num_controls else means.mean()[None]
        residuals = means - self.design @ coefficients
        within = 0.0 if noiseless else None
        if np.any(self.probes > 1):
            spread = np.sum((values - means[self.membership]) ** 2)
            within = float(spread / max(1.0, np.sum(self.probes - 1)))
        return Fit(self, float(self.weights @ means), residuals, np.asarray(coefficients[1:]), means, within)


def _has_rank(design: FloatArray) -> bool:
    return bool(np.linalg.cond(design) < 1e6)


@attrs.frozen(eq=False)
class Fit:
    """A mean over minibatches.

    Attributes:
        rows: The rows.
        mean: beta_0.
        residuals: Of each row, shape [R].
        slopes: Of the controls, shape [p].
        means: Of each row over its probes, shape [R].
        within: Variance between probes of one minibatch, or None where no minibatch has two.
    """

    rows: Rows
    mean: float
    residuals: FloatArray
    slopes: FloatArray
    means: FloatArray
    within: float | None

    @property
    def _is_complete(self) -> bool:
        """Whether every minibatch of a fixed population has several probes, which alone are uncertain then."""
        rows = self.rows
        return rows.num_rows == rows.population.num_batches and bool(np.all(rows.probes > 1))

    @property
    def freedom(self) -> int:
        """Degrees of freedom of the error: R - p - 1, or between the probes of all the minibatches that there are."""
        rows = self.rows
        return int(np.sum(rows.probes - 1)) if self._is_complete else rows.num_rows - rows.num_controls - 1

    @property
    def variance(self) -> float:
        """s^2, of a row's residual; infinite where there are too few rows."""
        freedom = self.rows.num_rows - self.rows.num_controls - 1
        return float(self.residuals @ self.residuals) / freedom if freedom > 0 else math.inf

    @property
    def squared_error(self) -> float:
        """Squared standard error of the mean.

        s^2 (A'A)^-1_00, plus what an inexact mean of the controls adds. Of M fixed batches, drawn without replacement
        and each with K probes: ((1 - R/M) V_B + V_p / K) (A'A)^-1_00, V_p the variance between probes of a minibatch
        and V_B = max(0, s^2 - V_p / K) that between minibatches.
        """
        rows, known = self.rows, self.rows.population
        if self.within is None or known.num_batches is None:
            return self.variance * rows.leverage + known.error * float(self.slopes @ self.slopes)
        of_probes = self.within * float(np.mean(1.0 / rows.probes))
        share = 1.0 - rows.num_rows / known.num_batches
        between = max(0.0, self.variance - of_probes) if share > 0 else 0.0
        return (share * between + of_probes) * rows.leverage

    @property
    def quantile(self) -> float:
        """Student's t for the 95 % interval; infinite where there is none."""
        return float(scipy.stats.t.ppf(0.5 + CONFIDENCE / 2, self.freedom)) if self.freedom > 0 else math.inf

    @property
    def half_width(self) -> float:
        """Half-width of the 95 % confidence interval of the mean; infinite for a single row."""
        return self.quantile * math.sqrt(self.squared_error) if self.freedom > 0 else math.inf

    @property
    def skewness(self) -> float:
        """Of the residuals; 0 where they are all equal."""
        spread = float(np.mean(self.residuals**2))
        return 0.0 if spread <= 0 else float(np.mean(self.residuals**3) / spread**1.5)

    @property
    def largest_share(self) -> float:
        """Share of one row in the residual sum of squares."""
        total = float(self.residuals @ self.residuals)
        return float(np.max(self.residuals**2)) / total if total > 0 else 0.0


def whitened(controls: FloatArray, resolution: float = 1e-6) -> FloatArray:
    """The transform W, shape [k, p], that makes centred columns uncorrelated and of variance 1, largest shares first.

    Directions whose share of the correlation matrix is below the resolution are left out, as columns that do not vary.

    Args:
        controls: Centred columns over the whole population, shape [N, k].
        resolution: Smallest eigenvalue of the correlation matrix that counts.
    """
    deviations = np.sqrt(np.mean(controls**2, axis=0))
    largest = np.max(np.abs(controls), axis=0, initial=0.0)
    varies = deviations > 1e-12 * np.maximum(largest, 1e-300)
    scaled = controls[:, varies] / deviations[varies]
    if not scaled.shape[1]:
        return np.zeros((controls.shape[1], 0))
    values, vectors = np.linalg.eigh(scaled.T @ scaled / len(scaled))
    kept = [k for k in reversed(range(len(values))) if values[k] > resolution]
    transform = np.zeros((controls.shape[1], len(kept)))
    transform[varies] = vectors[:, kept] / np.sqrt(values[kept]) / deviations[varies][:, None]
    return transform
