"""From what an estimator finds to log singular values of a training step; and the RDS sharpness exponents."""

from __future__ import annotations

from typing import TypeAlias

import attrs
import numpy as np

from sdkeras.results.arrays import SMALLEST_FACTOR, FloatArray, Value
from sdkeras.results.dimension import RdsSharpness

_NUM_LEADING = 32
_NUM_LEVELS = 512
# A neutral exponent is known to the rounding of ln(|1 - x|) at x ~ 0.
FLOOR = 1e-12

PRECONDITIONED = ("adam", "nadam", "rmsprop")
_WITH_BETA_1 = ("adam", "nadam")
_WITH_NESTEROV = ("nesterov", "nadam")
_WITHOUT_MOMENTUM = ("sgd", "hessian")
MAPS = (*_WITHOUT_MOMENTUM, "heavy-ball", "nesterov", *PRECONDITIONED)


def _only_where_it_is(instance: ExponentMap, attribute: attrs.Attribute[Value], value: float) -> None:
    if not 0.0 <= value < 1.0 or (value and instance.name in _WITHOUT_MOMENTUM):
        raise ValueError(f"momentum is {value:g}, expected 0 <= momentum < 1, and 0 for the map {instance.name}.")


@attrs.frozen
class ExponentMap:
    """Eigenvalues alpha of a curvature matrix -> log singular values z of one training step.

    Along each eigenvector the step's Jacobian is a number, or a 2x2 block on (w, v) with v the velocity. With
    s = 1 - eta * weight_decay, a = eta * alpha and beta the momentum:

        sgd                        s - a
        heavy-ball                 [[s - a, beta], [-a, beta]]
        nesterov                   [[s - a (1 + beta), beta^2], [-a, beta]]
        adam                       heavy ball with a = eta (1 - beta) alpha
        nadam                      nesterov with a = eta (1 - beta) alpha
        rmsprop                    sgd, or heavy ball where there is momentum
        hessian                    1 - a, whatever the optimizer (the paper's map)

    alpha belongs to the Hessian H, for adam, nadam and rmsprop to P^-1/2 H P^-1/2 with the preconditioner P frozen.
    Singular values of a block depend on how v is scaled, so they are taken in balanced coordinates
    u = w + b^2/(1 - beta) * v and p = b/(1 - beta) * v with b = sqrt(beta) for heavy ball, beta for Nesterov: a step
    without curvature and decay is then exactly diag(1, beta).

    Attributes:
        name: One of MAPS.
        learning_rate: eta > 0.
        weight_decay: Decoupled decay in the map.
        momentum: beta, 0 <= beta < 1; beta_1 of Adam and Nadam. With 0 the velocity is no part of the state.
    """

    name: str = attrs.field(validator=attrs.validators.in_(MAPS))
    learning_rate: float = attrs.field(validator=attrs.validators.gt(0.0))
    weight_decay: float = 0.0
    momentum: float = attrs.field(default=0.0, validator=_only_where_it_is)

    @property
    def branches(self) -> int:
        """Exponents of an eigenvalue: 2 with momentum, else 1; the state has branches * n dimensions."""
        return 2 if self.momentum else 1

    @property
    def preconditioned(self) -> bool:
        """Whether alpha belongs to P^-1/2 H P^-1/2 and not to H."""
        return self.name in PRECONDITIONED

    @property
    def is_sgd_like(self) -> bool:
        """Whether z = ln|1 - eta * alpha|, without momentum and decay."""
        return not self.momentum and not self.weight_decay

    @property
    def coordinates(self) -> str:
        """Coordinates of the singular values; 'preconditioned' is P^1/2 w in place of w, and so for v."""
        return ("preconditioned " if self.preconditioned else "") + ("balanced" if self.momentum else "weights")

    @property
    def rate(self) -> float:
        """-dz/dalpha of the neutral exponent at alpha = 0 without decay: the step along a flat direction."""
        return self.learning_rate / (1.0 if self.name in _WITH_BETA_1 else 1.0 - self.momentum)

    def departure(self, alpha: FloatArray) -> FloatArray:
        """How far the neutral exponent of each eigenvalue is from 0, to first order, shape [k]."""
        return np.abs(self.rate * alpha)

    def spread(self, values: FloatArray) -> FloatArray:
        """One value for each exponent from one for each eigenvalue, [k] -> [branches * k]: masses, for example."""
        return np.tile(values, self.branches)

    def __call__(self, alpha: FloatArray) -> FloatArray:
        """Log singular values, floored at ln 1e-12: the larger of each eigenvalue, then the smaller of each.

        Args:
            alpha: Eigenvalues, shape [k].

        Returns:
            z, shape [branches * k], in the order of alpha twice.
        """
        if not self.momentum:
            factor = np.abs(1.0 - self.learning_rate * (self.weight_decay + alpha))
            exponents: FloatArray = np.log(np.maximum(factor, SMALLEST_FACTOR))
            return exponents
        return _floored(*_log_singular_values(*self._block(alpha)))

    def log_eigenvalues(self, alpha: FloatArray) -> FloatArray:
        """ln |mu| of the number's or block's eigenvalues mu, as `__call__`: free of coordinates.

        mu would be the multipliers of a Lyapunov spectrum if every step saw the same matrix ("frozen Lyapunov").
        """
        return _floored(*_log_eigenvalues(*self._block(alpha))) if self.momentum else self(alpha)

    def _block(self, alpha: FloatArray) -> tuple[FloatArray, float, float, float]:
        """(A, D, beta, q) of the balanced block [[1 - D - A, b (D + A)], [-b A, beta + q A]], b = sqrt(q).

        A = a/(1 - beta), D = eta * weight_decay, q = beta for heavy ball and beta^2 for Nesterov.
        """
        q = self.momentum**2 if self.name in _WITH_NESTEROV else self.momentum
        return self.rate * alpha, self.learning_rate * self.weight_decay, self.momentum, q


FULL = "full"


@attrs.frozen
class SingularValueMap:
    """Singular values sigma of a step's whole Jacobian -> z = ln sigma; has what `ExponentMap` has.

    For the map 'full', of any optimizer: nothing is known of a curvature that a singular value belongs to.

    Attributes:
        coordinates: Coordinates of the singular values.
    """

    coordinates: str
    name: str = attrs.field(default=FULL, init=False)
    branches: int = attrs.field(default=1, init=False)
    rate: float = attrs.field(default=1.0, init=False)  # |dz/dsigma| of a neutral direction, sigma = 1

    def departure(self, sigma: FloatArray) -> FloatArray:
        """How far each exponent is from 0, shape [k]."""
        return np.abs(self(sigma))

    def spread(self, values: FloatArray) -> FloatArray:
        """The values: each singular value has one exponent."""
        return values

    def __call__(self, sigma: FloatArray) -> FloatArray:
        """Log singular values, floored at ln 1e-12, shape [k] -> [k]."""
        exponents: FloatArray = np.log(np.maximum(sigma, SMALLEST_FACTOR))
        return exponents

    def log_eigenvalues(self, sigma: FloatArray) -> FloatArray:
        """Unknown: a singular value says nothing of eigenvalues.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("eigenvalues of a step do not follow from its singular values")


Exponents: TypeAlias = "ExponentMap | SingularValueMap"


def is_unresolved(exponents: Exponents, largest: float) -> bool:
    """Whether all exponents are rounding of factors |1 - eta*alpha| close to 1: their signs then mean nothing.

    Args:
        exponents: The map.
        largest: Largest |eigenvalue| seen.
    """
    return bool(0.0 < exponents.rate * largest < FLOOR)


def rounding(exponents: Exponents, largest: float, product_error: float) -> float:
    """How far exponents of neutral directions are off by rounding: z above 0 within it may be none.

    Args:
        exponents: The map.
        largest: Largest |eigenvalue| seen.
        product_error: Relative error of a product.
    """
    return FLOOR + exponents.rate * largest * product_error


def exponent_map(name: str, learning_rate: float, *, momentum: float = 0.0, weight_decay: float = 0.0) -> ExponentMap:
    """The map of this name, given all that the optimizer has; what the map does not use is left out."""
    decay = 0.0 if name == "hessian" else weight_decay
    return ExponentMap(name, learning_rate, decay, 0.0 if name in _WITHOUT_MOMENTUM else momentum)


def _floored(larger: FloatArray, smaller: FloatArray) -> FloatArray:
    exponents: FloatArray = np.maximum(np.concatenate([larger, smaller]), np.log(SMALLEST_FACTOR))
    return exponents


def _log_singular_values(step: FloatArray, decay: float, beta: float, q: float) -> tuple[FloatArray, FloatArray]:
    """ln of the larger and the smaller singular value of the balanced block, exactly (0, ln beta) at step = decay = 0.

    sigma_1 +- sigma_2 are the norms of (m11 +- m22, m12 -+ m21), in this order if det >= 0.
    """
    b, shift = np.sqrt(q), decay + step
    m11, m12, m21, m22 = 1.0 - shift, b * shift, -b * step, beta + q * step
    larger = 0.5 * (np.hypot(m11 + m22, m12 - m21) + np.hypot(m11 - m22, m12 + m21))
    det = _determinant(step, decay, beta, q)
    # (1 - sigma_1^2)(1 - sigma_2^2) = 1 - |M|^2 + det^2, expanded so that the ones cancel on paper.
    product = 2 * (1 - beta**2) * shift - (1 + q - beta**2) * shift**2 - q * step**2 - 2 * q * beta * step * shift
    log_larger = 0.5 * _log_of_larger(larger**2, (det / larger) ** 2, product)
    return log_larger, _log_abs(det) - log_larger


def _log_eigenvalues(step: FloatArray, decay: float, beta: float, q: float) -> tuple[FloatArray, FloatArray]:
    """ln of the larger and the smaller modulus of the block's eigenvalues; equal for a complex pair."""
    trace, det = 1.0 + beta - decay - (1.0 - q) * step, _determinant(step, decay, beta, q)
    discriminant = trace**2 - 4.0 * det
    log_det = _log_abs(det)
    larger = 0.5 * (np.abs(trace) + np.sqrt(np.maximum(discriminant, 0.0)))
    log_larger = np.where(discriminant < 0, 0.5 * log_det, _log_abs(larger))
    # With a positive trace the larger may be a neutral direction; (1 - mu_1)(1 - mu_2) = (1 - beta)(D + A).
    positive = (discriminant >= 0) & (trace > 0)
    product = (1.0 - beta) * (decay + step)[positive]
    log_larger[positive] = _log_of_larger(larger[positive], det[positive] / larger[positive], product)
    return log_larger, np.minimum(log_larger, log_det - log_larger)  # both may be 0, to the floor of their logarithms


def _determinant(step: FloatArray, decay: float, beta: float, q: float) -> FloatArray:
    """Determinant of the block: (1 - decay) beta for heavy ball, whatever the step."""
    determinant: FloatArray = (1.0 - decay) * beta + (q - beta) * step
    return determinant


def _log_abs(values: FloatArray) -> FloatArray:
    logarithms: FloatArray = np.log(np.maximum(np.abs(values), np.finfo(np.float64).tiny))
    return logarithms


def _log_of_larger(x: FloatArray, other: FloatArray, product: FloatArray) -> FloatArray:
    """ln x from (1 - x)(1 - other), which keeps the digits of x - 1 where x is the one close to 1."""
    from_product = np.abs(other - 1.0) > np.abs(x - 1.0)
    excess = np.where(from_product, product / np.where(from_product, other - 1.0, 1.0), x - 1.0)
    close = x > 0.5
    logarithms: FloatArray = np.where(close, np.log1p(np.where(close, excess, 0.0)), _log_abs(x))
    return logarithms


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
