"""Eigenpairs by power iteration: slow, needs two vectors of memory, hard to fool."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from sdkeras.errors import NonFiniteError
from sdkeras.kinds import eigenpairs_estimator
from sdkeras.linalg.probes import start_vector
from sdkeras.operators.base import SymmetricOperator
from sdkeras.records import Eigenpairs
from sdkeras_plugins.lanczos import initial_vector

WHICH = ("magnitude", "largest", "smallest", "both")


@eigenpairs_estimator("power-iteration")
@attrs.frozen
class PowerIteration:
    """Power iteration with deflation; the ends of the spectrum by a shift.

    v <- A v / |A v| converges to the eigenvalue of largest magnitude, sigma. An end that is not the dominant
    one is found from A - sigma I, all of whose eigenvalues have one sign. The residual |A v - theta v| is
    computed, not estimated.

    Attributes:
        num_eigenpairs: How many (at each end for which='both').
        which: 'magnitude', 'largest', 'smallest' or 'both'.
        num_steps: Products at most for each pair.
        tolerance: Converged when the residual is at most tolerance * |sigma|.
        eigenvectors: Return unit eigenvectors.
        start: Start vector [n] or [n, k] for the first pair.
    """

    num_eigenpairs: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    which: str = attrs.field(default="magnitude", validator=attrs.validators.in_(WHICH))
    num_steps: int = attrs.field(default=200, validator=attrs.validators.ge(1))
    tolerance: float = attrs.field(default=1e-3, validator=attrs.validators.gt(0.0))
    eigenvectors: bool = False
    start: Any = attrs.field(default=None, eq=False, repr=False)

    def estimate(self, source: SymmetricOperator, *, seed: int) -> Eigenpairs:
        """Eigenpairs sorted by value, largest first.

        Raises:
            NonFiniteError: A product holds NaN or infinity.
        """
        count = min(self.num_eigenpairs, source.size)
        start = initial_vector(self.start, source, seed)
        first = self._iterate(source, start, 0.0, [], scale=0.0)
        scale = abs(first.value)
        found: list[_Pair] = []
        spent = first.num_matvecs
        for sign in {"magnitude": (0,), "largest": (1,), "smallest": (-1,), "both": (1, -1)}[self.which]:
            shift = 0.0 if sign == 0 else -sign * scale
            own: list[_Pair] = []
            while len(own) < count and len(found) + len(own) < source.size:
                known = [pair.vector for pair in found + own]
                dominant = not known and (sign == 0 or first.value * sign > 0)
                if dominant:
                    pair = first
                else:
                    vector = start_vector(source.size, seed=seed + 1 + len(known), dtype=source.dtype)
                    pair = self._iterate(source, vector, shift, known, scale=scale)
                    spent += pair.num_matvecs
                own.append(pair)
            found += own
        found.sort(key=lambda pair: -pair.value)
        values = [pair.value for pair in found]
        residuals = np.array([pair.residual for pair in found])
        return Eigenpairs(
            values=values,
            residuals=residuals,
            converged=residuals <= max(self.tolerance, float(np.finfo(source.dtype).eps)) * scale,
            num_matvecs=spent,
            seed=seed,
            vectors=np.stack([pair.vector for pair in found], axis=1) if self.eigenvectors else None,
        )

    def _iterate(
        self,
        source: SymmetricOperator,
        vector: NDArray[Any],
        shift: float,
        known: list[NDArray[Any]],
        *,
        scale: float,
    ) -> _Pair:
        """Power iteration on A - shift I, orthogonal to the known eigenvectors."""
        vector = _unit(_without(vector, known))
        value = residual = 0.0
        for step in range(1, self.num_steps + 1):
            product = np.asarray(source.matvec(vector))
            value = float(vector @ product)
            if not np.isfinite(value):
                raise NonFiniteError(
                    f"the product of power-iteration step {step} holds NaN or infinity; check the weights and the "
                    "data for extreme values, or work in float64."
                )
            error = _without(product - source.dtype.type(value) * vector, known)
            residual = float(np.linalg.norm(error))
            done = residual <= self.tolerance * max(scale, abs(value))
            moved = _without(product - source.dtype.type(shift) * vector, known)
            if done or step == self.num_steps or not np.any(moved):
                return _Pair(value, residual, vector, step)
            vector = _unit(moved)
        raise AssertionError("num_steps is at least 1")


@attrs.frozen(eq=False)
class _Pair:
    value: float
    residual: float
    vector: NDArray[Any]
    num_matvecs: int


def _without(vector: NDArray[Any], known: list[NDArray[Any]]) -> NDArray[Any]:
    for other in known:
        vector = vector - (other @ vector) * other
    return vector


def _unit(vector: NDArray[Any]) -> NDArray[Any]:
    norm = np.linalg.norm(vector)
    return (vector / norm).astype(vector.dtype) if norm > 0 else vector
