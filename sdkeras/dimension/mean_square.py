"""Mean-square stability: whether the noise of the minibatches makes plain SGD unstable on a quadratic.

A step w <- (I - eta K_B) w with independent minibatches B and curvatures K_B >= 0 of mean K maps the second moment C of
w to T(C) = E (I - eta K_B) C (I - eta K_B), a positive map that is symmetric in <C, D> = tr C D. Its spectral radius is
therefore its largest Rayleigh quotient, and it exceeds 1 iff

    kappa = (eta / 2) max over C of E tr(C K_B C K_B) / tr(C^2 K)

does. The maximum is attained at a C >= 0: with |C| in place of C the denominator stays and the numerator does not fall,
since tr(P K_B N K_B) >= 0 for the parts C = P - N. Over the C = Q c Q' in the span of a few directions Q it is a
generalised eigenproblem in the projected curvatures S_B = Q' K_B Q, and a lower bound that grows with the span.
"""

from __future__ import annotations

import math

import numpy as np

from sdkeras.dimension.controls import Fit, Rows
from sdkeras.results.arrays import FloatArray
from sdkeras.results.measured import Measured

# Directions whose mean curvature is below this share of the largest are flat: there 0/0 is maximised.
_FLAT = 1e-8
# Upper half-width at which kappa has converged, over the target of its standard error; and skewness over the root of
# the number of values, below which they count as symmetric.
_UPPER, _SYMMETRIC = 2.5, 1e-6


def worst_second_moment(curvatures: FloatArray) -> FloatArray:
    """The C >= 0 that maximises mean tr(C S_B C S_B) / tr(C^2 S), S the mean of the S_B, with trace 1.

    Args:
        curvatures: S_B, shape [N, k, k], symmetric, positive semidefinite up to rounding.

    Returns:
        C, shape [k, k]; zeros where no direction has curvature.
    """
    values, vectors = np.linalg.eigh(curvatures.mean(axis=0))
    curved = values > _FLAT * max(float(values[-1]), 0.0)
    if values[-1] <= 0 or not curved.any():
        return np.zeros(curvatures.shape[1:])
    values, vectors = values[curved], vectors[:, curved]
    s = vectors.T @ curvatures @ vectors
    # In the basis E_ij of symmetric matrices, i <= j, the denominator is diagonal: (s_i + s_j)/2.
    i, j = np.triu_indices(len(values))
    scale = np.where(i == j, 0.5, math.sqrt(0.5)) / np.sqrt((values[i] + values[j]) / 2)
    numerator = np.zeros((len(i), len(i)))
    for each in s:
        numerator += each[np.ix_(i, i)] * each[np.ix_(j, j)] + each[np.ix_(i, j)] * each[np.ix_(j, i)]
    numerator *= 2 * np.outer(scale, scale) / len(s)
    leading = np.linalg.eigh(numerator)[1][:, -1] * scale
    c = np.zeros((len(values), len(values)))
    c[i, j] = leading
    c += c.T  # which doubles the diagonal, as E_ii with its 1/2 has it
    sizes, axes = np.linalg.eigh(c)
    axes = vectors @ axes
    c = (axes * np.abs(sizes)) @ axes.T
    return np.asarray(c / np.trace(c))


def leading_factor(moment: FloatArray, most: int) -> FloatArray:
    """F with F F' = C but for all except its leading directions, at most so many, [k, r].

    Any C >= 0 gives a lower bound of kappa, and one of few directions takes few products.
    """
    values, vectors = np.linalg.eigh(moment)
    leading = [k for k in reversed(range(len(values))) if values[k] > 0][:most]
    return np.asarray(vectors[:, leading] * np.sqrt(values[leading]))


def quotient_terms(curvatures: FloatArray, gram: FloatArray) -> FloatArray:
    """Each minibatch's tr(C K_B C K_B) and tr(C^2 K_B) for C = U U', shape [N, 2].

    Args:
        curvatures: U' K_B U, shape [N, r, r].
        gram: U'U, shape [r, r].
    """
    squares = np.sum(curvatures**2, axis=(1, 2))
    return np.column_stack([squares, np.einsum("ij,nji->n", gram, curvatures)])


def _departure(terms: FloatArray, rows: Rows, noiseless: bool) -> tuple[float, Fit]:
    """The quotient of the terms' means, and by the regression what it is off: y_B / E tr(C^2 K)."""
    quotient = float(terms[:, 0].mean() / terms[:, 1].mean())
    return quotient, rows.fit((terms[:, 0] - quotient * terms[:, 1]) / terms[:, 1].mean(), noiseless=noiseless)


def kappa(terms: FloatArray, rows: Rows, learning_rate: float, *, target: float, noiseless: bool = False) -> Measured:
    """kappa of one C, from minibatches that C was not chosen on.

    With y_B = tr(C K_B C K_B) - (2 kappa / eta) tr(C^2 K_B), of mean 0 at the true kappa, regressed on the minibatches'
    controls (delta method). The interval is widened for skewed y_B. It still misses more often than in 5 % where
    minibatches are single examples with heavy-tailed gradients: of 200 seeds with 240 minibatches at most, in 4 % for
    normal gradients, 12 % with mostly dead units, and 17 % for Student's t with 5 degrees of freedom; without the
    widening in 20, 30 and 47 %.

    Args:
        terms: Those of `quotient_terms`, one row for each run of `rows`, shape [N, 2].
        rows: The minibatches and their controls.
        learning_rate: eta.
        target: Relative standard error at which it has converged, if the upper half-width is at most 2.5 times that.
        noiseless: Whether another look at a minibatch would give the same.
    """
    quotient, fit = _departure(terms, rows, noiseless)
    value, half = learning_rate / 2 * (quotient + fit.mean), learning_rate / 2
    if not math.isfinite(fit.squared_error) or math.isinf(fit.half_width):
        exact = fit.squared_error == 0  # all the minibatches that there are
        return Measured(value, exact, stderr=0.0 if exact else None, interval=(value, value) if exact else None)
    error, width = half * math.sqrt(fit.squared_error), half * fit.half_width
    below, above = (width * factor for factor in _widened(fit.residuals, width / error if error else 0.0))
    converged = error <= target * value and above <= _UPPER * target * value
    return Measured(value, converged, stderr=error, interval=(max(0.0, value - below), value + above))


def _widened(residuals: FloatArray, quantile: float) -> tuple[float, float]:
    """How much longer than `quantile` standard errors each side of an interval is for skewed values; 1 at least.

    Terms are fourth powers of gradients where minibatches have rank one: few of them carry the mean, and an interval
    from draws without these is too short at its upper end. Hall's transformation of Student's t takes the skewness
    out; the longer side is taken, since a skewness from few draws is itself too small.

    Reference: Hall (1992), J. R. Stat. Soc. B 54, 221.
    """
    spread = float(residuals.std())
    if not (spread > 0 and quantile > 0):
        return 1.0, 1.0
    skewness = max(0.0, float(np.mean((residuals - residuals.mean()) ** 3)) / spread**3) / math.sqrt(len(residuals))
    if skewness < _SYMMETRIC:
        return 1.0, 1.0
    ends = [3 / skewness * (math.cbrt(1 + skewness * (t - skewness / 6)) - 1) for t in (quantile, -quantile)]
    return max(1.0, ends[0] / quantile), max(1.0, -ends[1] / quantile)
