"""The trace from random probes: Hutchinson's estimator, and Hutch++."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from sdkeras.kinds import trace_estimator
from sdkeras.linalg.probes import rademacher_probes
from sdkeras.operators.base import SymmetricOperator
from sdkeras.records import TraceEstimate

METHODS = ("hutchinson", "hutch++")
_CHUNK = 16
# A standard error from fewer probes is itself too uncertain to stop by (25 % at 8).
_FEWEST_PROBES = 8


@trace_estimator("randomized-trace")
@attrs.frozen
class RandomizedTrace:
    """Trace of A from products with random signs z: E z'Az = trace(A).

    hutchinson: mean of z'Az over num_probes probes. hutch++: a third of the products finds the dominant range
    Q = orth(A S), whose trace is exact, and Hutchinson runs on what is left, (I - QQ')A(I - QQ').

    Attributes:
        num_probes: Products at most (hutch++: split in three).
        method: 'hutchinson' or 'hutch++'.
        tolerance: Stop once the standard error is at most tolerance * |value|; None takes all probes.

    Reference: Hutchinson (1990); Meyer, Musco, Musco, Woodruff (2021), Algorithm 1.
    """

    num_probes: int = attrs.field(default=64, validator=attrs.validators.ge(2))
    method: str = attrs.field(default="hutchinson", validator=attrs.validators.in_(METHODS))
    tolerance: float | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.gt(0.0)))

    def estimate(self, source: SymmetricOperator, *, seed: int) -> TraceEstimate:
        """The trace with the standard error of the mean over probes.

        Raises:
            NonFiniteError: A product holds NaN or infinity.
        """
        if self.method == "hutchinson":
            return self._hutchinson(source, self.num_probes, None, 0.0, 0, seed)
        third = max(1, self.num_probes // 3)
        sketch = min(third, source.size)
        signs = rademacher_probes(source.size, sketch, seed=seed + 1, dtype=source.dtype).T
        range_basis, _ = np.linalg.qr(np.asarray(source.matmat(signs), np.float64))
        known = range_basis.astype(source.dtype)
        image = np.asarray(source.matmat(known), np.float64)
        exact = float(np.sum(range_basis * image))
        if sketch == source.size:
            return TraceEstimate(exact, 0.0, 2 * sketch, seed, 0)
        rest = max(2, self.num_probes - 2 * sketch)
        return self._hutchinson(source, rest, known, exact, 2 * sketch, seed)

    def _hutchinson(
        self,
        source: SymmetricOperator,
        num_probes: int,
        known: NDArray[Any] | None,
        offset: float,
        spent: int,
        seed: int,
    ) -> TraceEstimate:
        """Mean of z'Az over probes (projected off `known`), plus an offset that is known exactly."""
        samples: list[float] = []
        while len(samples) < num_probes:
            count = min(_CHUNK, num_probes - len(samples))
            probes = rademacher_probes(source.size, count, seed=seed + 100 + len(samples), dtype=source.dtype).T
            if known is not None:
                probes = probes - known @ (known.T @ probes)
            products = np.asarray(source.matmat(probes))
            samples += list(np.einsum("nk,nk->k", probes, products, dtype=np.float64))
            value = offset + float(np.mean(samples))
            stderr = float(np.std(samples, ddof=1) / np.sqrt(len(samples))) if len(samples) > 1 else float("inf")
            if self.tolerance is not None and len(samples) >= _FEWEST_PROBES and stderr <= self.tolerance * abs(value):
                break
        return TraceEstimate(value, stderr, spent + len(samples), seed, len(samples))
