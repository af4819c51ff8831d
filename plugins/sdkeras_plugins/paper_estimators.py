"""The estimators of the sharpness dimension's paper: histogram, kernel density and equal-mass pseudo-eigenvalues.

Each changes the measure of one Lanczos run as the paper changes the average of all runs. All work on the map
|1 - eta * alpha| of plain SGD: on z = ln(|1 - eta * theta| + offset) of the run's Ritz values theta, eq. 89. What they
return are eigenvalues again, placed so that ln|1 - eta * node| is the z they found, on the side of 1/eta where theta
was, so that negative curvature and steps that overshoot stay apart.

Reference: Tuci et al. (2026), arXiv 2604.19740, appendix (eqs. 81-92).
"""

from __future__ import annotations

import attrs
import numpy as np
from numpy.typing import NDArray

from sdkeras.estimators.kinds import spectrum_estimator
from sdkeras.files.keras_types import Distribution
from sdkeras.linalg.operators import SymmetricOperator
from sdkeras.results.arrays import FloatArray
from sdkeras.results.estimates import Spectrum
from sdkeras_plugins.quadrature import StochasticLanczosQuadrature

# A Gaussian is cut into cells of a quarter of its bandwidth h, all of it beyond 6 h into the outermost (2e-9 of the
# mass). Cells sit at multiples of their width, so its mean is exact to rounding, and an integral of a function with a
# kink, like (1 + z/|t*|)_+, is off by less than a 300th of h times the mass within h of the kink.
_CELLS_PER_BANDWIDTH = 4
_REACH = 6

_positive = attrs.validators.and_(attrs.validators.gt(0.0), attrs.validators.lt(float("inf")))


@attrs.frozen
class _PaperEstimator:
    """Shared base of the three: the Lanczos run, and the way from eigenvalues to z and back."""

    num_steps: int = attrs.field(default=100, validator=attrs.validators.ge(1))
    reorthogonalize: bool = True
    learning_rate: float = attrs.field(default=1.0, validator=_positive)
    offset: float = attrs.field(default=1e-6, validator=_positive)

    def estimate(self, source: SymmetricOperator, *, seed: int) -> Spectrum:
        """One probe's measure, changed; weights sum to the operator's size."""
        run = StochasticLanczosQuadrature(self.num_steps, self.reorthogonalize).estimate(source, seed=seed)
        nodes, weights = self._changed(run.nodes, run.weights)
        order = np.argsort(nodes, kind="stable")
        nodes, weights = nodes[order], weights[order]
        return Spectrum(
            nodes=nodes,
            weights=weights * (run.size / weights.sum()),  # to rounding they have this sum already
            num_matvecs=run.num_matvecs,
            seed=seed,
            reach=max(0.0, float(run.nodes[0] - nodes[0]), float(nodes[-1] - run.nodes[-1])),
        )

    def _changed(self, theta: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Nodes in any order and their masses, from Ritz values and theirs. Here: on either side of 1/eta by itself."""
        factors = 1.0 - self.learning_rate * theta
        parts = []
        for sign in (1.0, -1.0):
            here = np.where(factors < 0, -1.0, 1.0) == sign
            z, masses = self._changed_exponents(self._exponents(factors[here]), weights[here])
            parts.append((self._eigenvalues(z, sign), masses))
        return np.concatenate([nodes for nodes, _ in parts]), np.concatenate([masses for _, masses in parts])

    def _changed_exponents(self, z: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        raise NotImplementedError

    def _exponents(self, factors: FloatArray) -> FloatArray:
        """eq. 89."""
        exponents: FloatArray = np.log(np.abs(factors) + self.offset)
        return exponents

    def _eigenvalues(self, z: FloatArray, sign: FloatArray | float) -> FloatArray:
        """The alpha with 1 - eta * alpha = sign * exp(z); keeps the digits of small z where the sign is +."""
        factors_minus_one = np.where(np.asarray(sign) > 0, np.expm1(z), -np.exp(z) - 1.0)
        return -factors_minus_one / self.learning_rate


@spectrum_estimator("sd-slq", steps="num_steps", needs_basis=True, own_rate=True)
@attrs.frozen
class HistogramSlq(_PaperEstimator):
    """SD-SLQ: a histogram of the exponents (eq. 87), each bin's mass at its middle.

    The bins are the same in every run, so that the pooled histogram of the runs is the histogram of the pooled runs.
    A bin that holds the neutral directions moves all of them by up to half its width: with as many as a net has, that
    can make SD anything from 0 to d. Where 0 lies in its bin is chance in the paper; here it is an edge.

    Attributes:
        num_steps: Lanczos steps m (at most the operator's size); the paper's 100.
        reorthogonalize: Keep the basis and orthogonalise against it.
        learning_rate: eta of the map |1 - eta * alpha|; the analysis fills it with its own.
        offset: eps of ln(|1 - eta * alpha| + eps), the paper's 1e-6; it moves every neutral direction up by as much.
        bin_width: Width of a bin of z; 0.015 makes 1,000 bins, the paper's number, from ln(1e-6) to 1.18.
        bin_edge: A z at which bins meet.

    Reference: Tuci et al. (2026), eqs. 87 and 89.
    """

    bin_width: float = attrs.field(default=0.015, validator=_positive)
    bin_edge: float = 0.0

    def _changed_exponents(self, z: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        bins, which = np.unique(np.floor((z - self.bin_edge) / self.bin_width), return_inverse=True)
        middles = self.bin_edge + (bins + 0.5) * self.bin_width
        return middles, _summed(which, weights, len(bins))


@spectrum_estimator("sd-kde", steps="num_steps", needs_basis=True, own_rate=True)
@attrs.frozen
class KernelDensity(_PaperEstimator):
    """SD-KDE: the exponents smoothed by a Gaussian (eq. 88), given as masses of cells a quarter of it wide.

    A kernel spreads neutral directions to both sides of 0 alike: what it adds to the sum of positive exponents E+ it
    takes from the rest, and SD hardly moves while the bandwidth is small beside |t*|. E+ and the number of neutral
    directions are those of the smoothed measure.

    Attributes:
        num_steps: Lanczos steps m (at most the operator's size); the paper's 100.
        reorthogonalize: Keep the basis and orthogonalise against it.
        learning_rate: eta of the map |1 - eta * alpha|; the analysis fills it with its own.
        offset: eps of ln(|1 - eta * alpha| + eps), the paper's 1e-6; it moves every neutral direction up by as much.
        bandwidth: Standard deviation h of the kernel, in z.

    Reference: Tuci et al. (2026), eqs. 88 and 89.
    """

    bandwidth: float = attrs.field(default=1e-3, validator=_positive)

    def _changed_exponents(self, z: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        return _smoothed(z, weights, self.bandwidth)


@spectrum_estimator("sd-ps", steps="num_steps", needs_basis=True, own_rate=True)
@attrs.frozen
class PseudoSpectrum(_PaperEstimator):
    """SD-PS: M pseudo-eigenvalues of equal mass n/M, the quantiles (r + 1/2)/M of the smoothed spectrum (eqs. 90-92).

    The paper takes the quantiles of the density averaged over runs, which no single run knows; here each run's own
    density is cut, and the pseudo-eigenvalues of all runs are pooled. An eigenvalue at an end of the spectrum is lost
    where its mass is below half of n/M.

    Attributes:
        num_steps: Lanczos steps m (at most the operator's size); the paper's 100.
        reorthogonalize: Keep the basis and orthogonalise against it.
        learning_rate: eta of the map |1 - eta * alpha|; the analysis fills it with its own.
        offset: eps of ln(|1 - eta * alpha| + eps), the paper's 1e-6; it moves every neutral direction up by as much.
        num_quantiles: M; at M below n each stands for several directions.
        bandwidth: Standard deviation of the kernel in eta * alpha; in eigenvalues it is bandwidth/eta.

    Reference: Tuci et al. (2026), eqs. 89 to 92.
    """

    num_quantiles: int = attrs.field(default=1000, validator=attrs.validators.ge(1))
    bandwidth: float = attrs.field(default=1e-3, validator=_positive)

    def _changed(self, theta: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        steps, masses = _smoothed(self.learning_rate * theta, weights, self.bandwidth)
        factors = 1.0 - _quantiles(steps, masses, self.bandwidth / _CELLS_PER_BANDWIDTH, self.num_quantiles)
        nodes = self._eigenvalues(self._exponents(factors), np.where(factors < 0, -1.0, 1.0))
        return nodes, np.full(self.num_quantiles, weights.sum() / self.num_quantiles)


def density(points: FloatArray, masses: FloatArray, bandwidth: float) -> Distribution:
    """The smoothed measure as a mixture of Gaussians, a `MixtureSameFamily` of TensorFlow Probability (eq. 88).

    Args:
        points: Means, shape [k].
        masses: Their masses, of any sum, shape [k].
        bandwidth: Standard deviation of each.
    """
    # On use: TensorFlow Probability imports TensorFlow.
    from tensorflow_probability.substrates import numpy as tfp

    kernels = tfp.distributions.Normal(points, np.float64(bandwidth))
    shares = masses / max(float(masses.sum()), float(np.finfo(np.float64).tiny))
    return tfp.distributions.MixtureSameFamily(tfp.distributions.Categorical(probs=shares), kernels)


def _smoothed(points: FloatArray, masses: FloatArray, bandwidth: float) -> tuple[FloatArray, FloatArray]:
    """Each point's mass as a Gaussian, summed over cells: (middles, ascending, and masses with the same sum)."""
    width = bandwidth / _CELLS_PER_BANDWIDTH
    most = _REACH * _CELLS_PER_BANDWIDTH
    cells = np.round(points / width)[:, None] + np.arange(-most, most + 1)
    # Of each kernel near its own point alone: the mixture's own CDF at all edges takes some 200 times as long.
    kernels = density(points, masses, bandwidth).components_distribution
    below = kernels.cdf(((cells[:, :-1] + 0.5) * width).T).T
    cumulated = np.pad(below, ((0, 0), (1, 1)), constant_values=((0, 0), (0.0, 1.0)))
    occupied, which = np.unique(cells, return_inverse=True)
    shares = masses[:, None] * np.diff(cumulated, axis=1)
    return occupied * width, _summed(which.ravel(), shares.ravel(), len(occupied))


def _summed(which: NDArray[np.intp], masses: FloatArray, count: int) -> FloatArray:
    """The masses of each of `count` places."""
    return np.bincount(which, weights=masses, minlength=count).astype(np.float64)


def _quantiles(middles: FloatArray, masses: FloatArray, width: float, count: int) -> FloatArray:
    """The points below which (r + 1/2)/count of the mass lies, r = 0 .. count - 1; mass is even within a cell."""
    above = np.cumsum(masses)
    levels = (np.arange(count) + 0.5) * (above[-1] / count)
    which = np.minimum(np.searchsorted(above, levels), len(masses) - 1)
    share = (levels - (above[which] - masses[which])) / masses[which]
    points: FloatArray = middles[which] + (np.clip(share, 0.0, 1.0) - 0.5) * width
    return points
