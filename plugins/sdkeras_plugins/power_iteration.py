"""Eigenpairs by power iteration: slow, but two vectors of memory for each pair are all it needs."""

from __future__ import annotations

import functools
import operator

import attrs
import numpy as np
from numpy.typing import ArrayLike

from sdkeras.estimators.kinds import eigenpairs_estimator
from sdkeras.linalg.operators import SymmetricOperator
from sdkeras.linalg.probes import start_of
from sdkeras.linalg.vectors import dot, finite, norm
from sdkeras.results.arrays import Array, FloatArray
from sdkeras.results.estimates import Eigenpairs
from sdkeras_plugins.lanczos import initial_vector

WHICH = ("magnitude", "largest", "smallest", "both")


@eigenpairs_estimator("power-iteration", steps="num_steps", in_analysis={"which": "both"})
@attrs.frozen
class PowerIteration:
    """Power iteration with deflation; the ends of the spectrum by a shift.

    v <- A v / |A v| converges to the eigenvalue of largest magnitude, sigma; where sigma and -sigma both are
    eigenvalues it does not converge, and says so. An end that is not the dominant one is found from
    A + |sigma| I or A - |sigma| I, all of whose eigenvalues have one sign. Later pairs are sought orthogonal to
    the earlier ones, and a Rayleigh-Ritz step over all of them ends the run. The residual |A v - theta v| is
    computed, not estimated.

    Attributes:
        num_eigenpairs: Number of pairs (at each end for which='both').
        which: 'magnitude', 'largest', 'smallest' or 'both'.
        num_steps: Maximum number of products for each pair.
        tolerance: Converged when the residual is at most tolerance * |sigma|; rounding, eps * |sigma|, is the
            smallest possible.
        eigenvectors: Return unit eigenvectors.
        start: Start vector [n] for the first pair, or vectors [n, k] whose sum is used.

    Reference: Golub and Van Loan, Matrix Computations (4th ed.), sections 8.2.1 and 8.1.4 (Rayleigh-Ritz).
    """

    num_eigenpairs: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    which: str = attrs.field(default="magnitude", validator=attrs.validators.in_(WHICH))
    num_steps: int = attrs.field(default=200, validator=attrs.validators.ge(1))
    tolerance: float = attrs.field(default=1e-3, validator=attrs.validators.gt(0.0))
    eigenvectors: bool = False
    start: ArrayLike | None = attrs.field(default=None, eq=False, repr=False)

    def estimate(self, source: SymmetricOperator, *, seed: int) -> Eigenpairs:
        """Eigenpairs sorted by value, largest first."""
        # The Rayleigh-Ritz step mixes k residuals, to at most sqrt(k) times the largest of them.
        tolerance = self.tolerance / np.sqrt(self.num_eigenpairs * (2 if self.which == "both" else 1))
        dominant = self._iterate(source, initial_vector(self.start, source, seed), 0.0, [], tolerance)
        sigma = dominant.value
        pairs = [dominant] if self._is_wanted(sigma) else []
        spent = dominant.num_matvecs
        for shift, wanted in self._shifts(sigma, source.size):
            while len(pairs) < wanted:
                vector = start_of(source, seed=seed, stream=len(pairs) + 1)
                known = [pair.vector for pair in pairs]
                pairs.append(self._iterate(source, vector, shift, known, tolerance, abs(sigma)))
                spent += pairs[-1].num_matvecs
        values, residuals, vectors = _rayleigh_ritz(pairs)
        allowed = max(self.tolerance, float(np.finfo(source.dtype).eps)) * float(np.max(np.abs([sigma, *values])))
        return Eigenpairs(
            values=values,
            residuals=residuals,
            converged=residuals <= allowed,
            num_matvecs=spent,
            seed=seed,
            vectors=np.stack([np.asarray(each) for each in vectors], axis=1) if self.eigenvectors else None,
        )

    def _is_wanted(self, sigma: float) -> bool:
        """Whether the eigenvalue of largest magnitude is one of those asked for."""
        return self.which in ("magnitude", "both") or (sigma >= 0.0) == (self.which == "largest")

    def _shifts(self, sigma: float, size: int) -> list[tuple[float, int]]:
        """(shift, pairs there should then be): the end where sigma is comes first, since it is found already."""
        count = min(self.num_eigenpairs, size)
        if self.which == "magnitude":
            return [(0.0, count)]
        upper, lower = -abs(sigma), abs(sigma)
        if self.which != "both":
            return [(upper if self.which == "largest" else lower, count)]
        first, second = (upper, lower) if sigma >= 0.0 else (lower, upper)
        return [(first, count), (second, min(2 * count, size))]

    def _iterate(
        self,
        source: SymmetricOperator,
        vector: Array,
        shift: float,
        known: list[Array],
        tolerance: float,
        scale: float = 0.0,
    ) -> _Pair:
        """Power iteration on A - shift I, orthogonal to the known eigenvectors."""
        vector = _unit(_without(vector, known))
        for step in range(1, self.num_steps + 1):
            product = finite(source.matvec(vector), f"the product of power-iteration step {step}")
            value = dot(vector, product)
            error = norm(_without(product - value * vector, known))
            if error <= tolerance * max(scale, abs(value)):
                break
            moved = _without(product - shift * vector, known)
            if step == self.num_steps or norm(moved) == 0.0:
                break
            vector = _unit(moved)
        return _Pair(value, vector, product, step)


@attrs.frozen(eq=False)
class _Pair:
    """An approximate eigenpair (value, vector) and A times the vector."""

    value: float
    vector: Array
    product: Array
    num_matvecs: int


def _rayleigh_ritz(pairs: list[_Pair]) -> tuple[FloatArray, FloatArray, list[Array]]:
    """Eigenpairs of A restricted to the span of the vectors, largest first, with true residuals; no products."""
    vectors, products = [pair.vector for pair in pairs], [pair.product for pair in pairs]
    small = np.array([[dot(vector, product) for product in products] for vector in vectors])
    values, mixing = np.linalg.eigh((small + small.T) / 2)
    values, mixing = values[::-1], mixing[:, ::-1]
    vectors, products = _mixed(vectors, mixing), _mixed(products, mixing)
    triples = zip(values, vectors, products, strict=True)
    return values, np.array([norm(product - float(value) * vector) for value, vector, product in triples]), vectors


def _mixed(vectors: list[Array], mixing: FloatArray) -> list[Array]:
    """Linear combinations of vectors, one for each column of the coefficients."""
    return [
        functools.reduce(operator.add, [float(each) * vector for each, vector in zip(column, vectors, strict=True)])
        for column in mixing.T
    ]


def _without(vector: Array, known: list[Array]) -> Array:
    for other in known:
        vector = vector - dot(other, vector) * other
    return vector


def _unit(vector: Array) -> Array:
    unit: Array = vector / norm(vector)
    return unit
