"""The trace from random probes: Hutchinson's estimator, and Hutch++."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import attrs
import numpy as np

from sdkeras.errors import BudgetError
from sdkeras.estimators.kinds import trace_estimator
from sdkeras.linalg.operators import SymmetricOperator
from sdkeras.linalg.orthogonal import orthogonalize
from sdkeras.linalg.probes import probes_of
from sdkeras.linalg.vectors import components, dot, finite, norm, stacked, subtract_rows
from sdkeras.results.arrays import Array
from sdkeras.results.estimates import TraceEstimate

METHODS = ("hutchinson", "hutch++")
# Probes multiplied at once. The tolerance is looked at after each chunk: a standard error from 16 probes is itself
# known to 18 % (1 / sqrt(2 * 15)), good enough to stop by.
_CHUNK = 16
# Fewer where they would take more than this.
_CHUNK_BYTES = 5e8
# One product each for the sketch and its image, and two probes for a standard error.
_FEWEST_FOR_HUTCH_PLUS_PLUS = 4
# What is left of a product counts as spanned by those before below this many eps of it.
_SPANNED = 30.0
# Fewer give no standard error.
_FEWEST_PROBES = 2


@trace_estimator("randomized-trace", in_analysis={"tolerance": 0.02})
@attrs.frozen
class RandomizedTrace:
    """Trace of A from products with random signs z: E z'Az = trace(A).

    hutchinson: mean of z'Az over num_probes probes. hutch++: a third of the products finds the dominant range
    Q = orth(A S), another third gives its exact trace(Q'AQ), and Hutchinson runs on what is left,
    (I - QQ')A(I - QQ'). Where a third of the products would do for the whole space the trace is exact.

    Attributes:
        num_probes: Maximum number of products.
        method: 'hutchinson' or 'hutch++'.
        tolerance: Stop once the standard error is at most tolerance * |value|, checked every 16 probes; None
            takes all of them.

    Reference: Hutchinson (1990); Meyer, Musco, Musco, Woodruff (2021), Algorithm 1.
    """

    num_probes: int = attrs.field(default=64, validator=attrs.validators.ge(2))
    method: str = attrs.field(default="hutchinson", validator=attrs.validators.in_(METHODS))
    tolerance: float | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.gt(0.0)))

    def __attrs_post_init__(self) -> None:
        if self.method == "hutch++" and self.num_probes < _FEWEST_FOR_HUTCH_PLUS_PLUS:
            raise ValueError(f"num_probes={self.num_probes} is too few for hutch++, which needs at least 4.")

    def estimate(self, source: SymmetricOperator, *, seed: int) -> TraceEstimate:
        """The trace with the standard error of the mean over probes; over fewer where the budget ends them.

        The budget must have room for two probes, and for the sketch.
        """
        if self.method == "hutchinson":
            return self._hutchinson(source, self.num_probes, seed)
        third = self.num_probes // 3
        if third >= source.size:
            exact = _trace_within(source, list(np.eye(source.size, dtype=source.dtype)))
            return TraceEstimate(exact, 0.0, num_matvecs=source.size, seed=seed, num_probes=0)
        known = _range(source, probes_of(source, third, seed=seed))
        within = _trace_within(source, known)
        remainder = self._hutchinson(source, self.num_probes - 2 * third, seed, known, within)
        return attrs.evolve(remainder, num_matvecs=remainder.num_matvecs + third + len(known))

    def _hutchinson(
        self,
        source: SymmetricOperator,
        num_probes: int,
        seed: int,
        known: Sequence[Array] = (),
        offset: float = 0.0,
    ) -> TraceEstimate:
        """Mean of z'Az over probes (projected off the orthonormal `known`), plus an offset that is exact."""
        samples: list[float] = []
        most = int(min(_CHUNK, max(1, _CHUNK_BYTES // (source.size * source.dtype.itemsize))))
        stream = 0  # the sketch's
        while len(samples) < num_probes:
            count = min(most, num_probes - len(samples), _CHUNK - len(samples) % _CHUNK)
            stream += 1
            probes = probes_of(source, count, seed=seed, stream=stream)
            if len(known):
                rows = stacked(*known)
                probes = stacked(*(subtract_rows(z, components(z, rows), rows) for z in probes))
            try:
                samples += _forms(source, probes)
            except BudgetError:
                samples += _one_by_one(source, probes)
                if len(samples) < _FEWEST_PROBES:
                    raise
                num_probes = len(samples)
            if len(samples) % _CHUNK and len(samples) < num_probes:
                continue
            value = offset + float(np.mean(samples))
            stderr = float(np.std(samples, ddof=1) / np.sqrt(len(samples)))
            if self.tolerance is not None and stderr <= self.tolerance * abs(value):
                break
        return TraceEstimate(
            value=value,
            stderr=stderr,
            num_matvecs=len(samples),
            seed=seed,
            num_probes=len(samples),
        )


def _one_by_one(source: SymmetricOperator, probes: Array) -> list[float]:
    """z'Az of the leading probes for which the budget has room."""
    samples: list[float] = []
    with contextlib.suppress(BudgetError):
        for probe in probes:
            samples += _forms(source, stacked(probe))
    return samples


def _chunks(vectors: Sequence[Array]) -> Iterator[Array]:
    return (stacked(*vectors[start : start + _CHUNK]) for start in range(0, len(vectors), _CHUNK))


def _trace_within(source: SymmetricOperator, basis: Sequence[Array]) -> float:
    """trace(Q'AQ) for orthonormal vectors."""
    return sum(form for rows in _chunks(basis) for form in _forms(source, rows))


def _forms(source: SymmetricOperator, rows: Array) -> list[float]:
    """z'Az of each row z."""
    products = finite(source.rows(rows), "a product with random probes")
    return [dot(row, product) for row, product in zip(rows, products, strict=True)]


def _range(source: SymmetricOperator, rows: Array) -> list[Array]:
    """An orthonormal basis of the products with the rows; what they do not span to rounding is left out."""
    basis: list[Array] = []
    for chunk in _chunks(list(rows)):
        for product in finite(source.rows(chunk), "a product with random probes"):
            before = norm(product)
            left, length = orthogonalize(product, stacked(*basis)) if basis else (product, before)
            if length > _SPANNED * float(np.finfo(source.dtype).eps) * before:
                basis.append(left / length)
    return basis
