"""The marginal likelihood of a Laplace posterior, and the prior precision and noise variance that maximise it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import attrs
import scipy.optimize

from sdkeras.errors import DataError, ModelError, NonFiniteError
from sdkeras.linalg.woodbury import DiagonalPlusLowRank, shrinkage
from sdkeras.results.arrays import Array, FloatArray

# Logarithms of prior precisions and noise variances are looked for in steps of this length, and so far from the first.
_STRIDE, _FARTHEST = 2.0, 80.0


@attrs.frozen(eq=False, slots=False)
class Evidence:
    """The net on its data: the sums that the marginal likelihood is made of.

    Attributes:
        factor: V of the mean loss's curvature V'V + diag(rest), shape [k, d].
        rest: Shape [d], not negative.
        scale: What makes the mean loss minus the log-likelihood; for squared error that of sigma^2 = 1.
        negative: Minus the log-likelihood without its constant; for squared error half the sum of squares.
        targets: Number of Gaussian targets, weighted; None for classes.
        square: |w*|^2.
    """

    factor: Array
    rest: FloatArray
    scale: float
    negative: float
    targets: float | None
    square: float

    def determined(self, shift: float) -> float:
        """tr(A (A + shift I)^-1) of A = scale (V'V + diag(rest))."""
        return shrinkage(self.scale * self.rest, self._scaled, shift)

    @functools.cached_property
    def _scaled(self) -> Array:
        factor: Array = self.factor * self.factor.dtype.type(math.sqrt(self.scale))
        return factor

    def chosen(self, prior: float | None, noise: float | None) -> tuple[float, float]:
        """Prior precision and noise variance (1 for classes): those given, and those that maximise log Z.

        Each derivative in a logarithm, or that in delta sigma^2 with the best sigma^2 for it, decreases from above 0 to
        below.

        Raises:
            ModelError: All weights are 0, or the data determine none.
            DataError: The net goes through all targets, so that the noise variance would be 0.
        """
        if self.targets is not None and noise is None and not self.negative > 0:
            raise DataError(
                "every target is met exactly, so that the most probable noise variance is 0; give it "
                "(`noise_variance=F`)."
            )
        if prior is None and not self.square > 0:
            raise ModelError(
                "all weights are 0, so that the most probable prior precision is infinite; give it "
                "(`prior_precision=F`), or train the model."
            )
        residual, square = 2 * self.negative, self.square
        if self.targets is None or noise is not None:
            held = 1.0 if noise is None else noise
            if prior is None:
                prior = _crossing(lambda x: self.determined(held * x) - x * square, len(self.rest) / square)
            return prior, held
        known, targets = prior, self.targets
        if known is not None:
            return known, _crossing(lambda x: residual / x - targets + self.determined(known * x), residual / targets)
        ratio = _crossing(
            lambda x: self.determined(x) - x * square * targets / (residual + x * square), residual / square / targets
        )
        noise = (residual + ratio * square) / targets
        return ratio / noise, noise

    def log_likelihood(self, noise: float) -> float:
        """log p(D | w*)."""
        if self.targets is None:
            return -self.negative
        return -self.negative / noise - self.targets / 2 * math.log(2 * math.pi * noise)

    def log_marginal(self, prior: float, precision: DiagonalPlusLowRank, noise: float) -> float:
        """log Z, with P = `self.precision(prior, noise)`.

        Raises:
            NonFiniteError: It is not finite.
        """
        occam = len(self.rest) / 2 * math.log(prior) - precision.log_det() / 2
        marginal = self.log_likelihood(noise) - prior * self.square / 2 + occam
        if not math.isfinite(marginal):
            raise NonFiniteError(f"the log marginal likelihood is {marginal}; work in float64 (`dtype='float64'`).")
        return marginal

    def precision(self, prior: float, noise: float) -> DiagonalPlusLowRank:
        """P."""
        factor = self._scaled / self._scaled.dtype.type(math.sqrt(noise))
        return DiagonalPlusLowRank(self.scale / noise * self.rest + prior, factor)


def _crossing(slope: Callable[[float], float], start: float) -> float:
    """Where a function of a positive number that decreases crosses 0.

    Raises:
        ModelError: Nowhere.
    """

    def of_log(x: float) -> float:
        return slope(math.exp(x))

    low = high = math.log(start)
    while of_log(low) <= 0 and low > math.log(start) - _FARTHEST:
        low -= _STRIDE
    while of_log(high) >= 0 and high < math.log(start) + _FARTHEST:
        high += _STRIDE
    if not of_log(low) > 0 > of_log(high):
        raise ModelError(
            "the marginal likelihood has no maximum: the data determine no direction of the weights, or as many as "
            "there are targets; give prior and noise (`prior_precision=F`, `noise_variance=F`)."
        )
    return math.exp(scipy.optimize.brentq(of_log, low, high, xtol=1e-12))
