"""From eigenvalues of the Hessian to log singular values of a training step, and the RDS sharpness exponents."""

from __future__ import annotations

import attrs
import numpy as np

from sdkeras.dimension.records import RdsSharpness
from sdkeras.records import FloatArray

# A singular step would have z = -inf; the floor keeps sums finite without shifting neutral directions, which
# an additive epsilon would (+0.8 dimensions at 1e-6).
_SMALLEST_FACTOR = 1e-12
_NUM_LEADING = 32
_NUM_LEVELS = 512


@attrs.frozen
class ExponentMap:
    """alpha -> z = ln max(|s - eta * alpha|, 1e-12), s = 1 - eta * weight_decay.

    The Jacobian of a plain SGD step with decoupled decay is s I - eta H; with weight_decay 0 it is the
    paper's I - eta H.

    Attributes:
        name: 'sgd' for the true Jacobian of plain SGD, 'hessian' for I - eta H beside another optimizer.
        learning_rate: eta > 0.
        weight_decay: Decoupled decay in the map.
    """

    name: str
    learning_rate: float = attrs.field(validator=attrs.validators.gt(0.0))
    weight_decay: float = 0.0

    @property
    def coordinates(self) -> str:
        return "weights"

    def __call__(self, alpha: FloatArray) -> FloatArray:
        """Log singular values of the step, in the order of alpha."""
        factor = np.abs(1.0 - self.learning_rate * (self.weight_decay + alpha))
        exponents: FloatArray = np.log(np.maximum(factor, _SMALLEST_FACTOR))
        return exponents


def rds_sharpness(z: FloatArray, widths: FloatArray) -> RdsSharpness:
    """RDS sharpness exponents from an averaged quantile function.

    lambda_k = integral of the quantile function over the mass (k - 1, k]; for exact spectra this is the mean
    over minibatches of the k-th largest log singular value (Def. 4.1).

    Args:
        z: Values of the step function, descending.
        widths: Mass of each step; sum d.
    """
    mass = np.concatenate([[0.0], np.cumsum(widths)])
    integral = np.concatenate([[0.0], np.cumsum(widths * z)])
    size = max(1, round(float(mass[-1])))

    def exponent(k: FloatArray) -> FloatArray:
        upper, lower = np.interp(k, mass, integral), np.interp(k - 1, mass, integral)
        return np.asarray(upper - lower, dtype=np.float64)

    levels = np.unique(np.round(np.linspace(1, size, min(size, _NUM_LEVELS))))
    return RdsSharpness(
        leading=exponent(np.arange(1.0, min(size, _NUM_LEADING) + 1)),
        levels=levels / size,
        values=exponent(levels),
    )
