"""The trace from random probes: Hutchinson's estimator, Hutch++ and XTrace."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import attrs
import numpy as np

from sdkeras.errors import BudgetError
from sdkeras.estimators.kinds import trace_estimator
from sdkeras.linalg.leave_one_out import SPANNED, Sketch
from sdkeras.linalg.operators import SymmetricOperator
from sdkeras.linalg.orthogonal import orthogonalize
from sdkeras.linalg.probes import probes_of, start_of
from sdkeras.linalg.vectors import components, dot, finite, norm, stacked, subtract_rows
from sdkeras.results.arrays import Array
from sdkeras.results.estimates import TraceEstimate

METHODS = ("hutchinson", "hutch++", "xtrace")
# Probes multiplied at once. The tolerance is looked at after each chunk: a standard error from 16 probes is itself
# known to 18 % (1 / sqrt(2 * 15)), good enough to stop by.
_CHUNK = 16
# Fewer where they would take more than this.
_CHUNK_BYTES = 5e8
# Of hutch++ one product each for the sketch and its image, and two probes for a standard error; of xtrace two for each
# of two estimates.
_FEWEST_WITH_A_SKETCH = 4
# Fewer give no standard error.
_FEWEST_PROBES = 2


@trace_estimator("randomized-trace", in_analysis={"tolerance": 0.02})
@attrs.frozen
class RandomizedTrace:
    """Trace of A from products with random signs z: E z'Az = trace(A).

    hutchinson: mean of z'Az over num_probes probes. hutch++: a third of the products finds the dominant range
    Q = orth(A S), another third gives its exact trace(Q'AQ), and Hutchinson runs on what is left,
    (I - QQ')A(I - QQ'). xtrace: half of the products finds the range and the other half its trace, and each probe, a
    random direction, corrects the range without it; the mean of these has the best use of each product where
    eigenvalues decay. Where a third of the products (of xtrace half) would do for the whole space the trace is exact.

    Attributes:
        num_probes: Maximum number of products.
        method: 'hutchinson', 'hutch++' or 'xtrace'.
        tolerance: Stop once the standard error is at most tolerance * |value|, checked every 16 probes; None
            takes all of them, as xtrace does in any case.

    Reference: Hutchinson (1990); Meyer, Musco, Musco, Woodruff (2021), Algorithm 1; Epperly, Tropp, Webber (2024).
    """

    num_probes: int = attrs.field(default=64, validator=attrs.validators.ge(2))
    method: str = attrs.field(default="hutchinson", validator=attrs.validators.in_(METHODS))
    tolerance: float | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.gt(0.0)))

    def __attrs_post_init__(self) -> None:
        if self.method != "hutchinson" and self.num_probes < _FEWEST_WITH_A_SKETCH:
            raise ValueError(f"num_probes={self.num_probes} is too few for {self.method}, which needs at least 4.")

    def estimate(self, source: SymmetricOperator, *, seed: int) -> TraceEstimate:
        """The trace with the standard error of the mean over probes; over fewer where the budget ends them.

        The budget must have room for two probes, and for the sketch.
        """
        if self.method == "hutchinson":
            return self._hutchinson(source, self.num_probes, seed)
        third = self.num_probes // 3
        if (self.num_probes // 2 if self.method == "xtrace" else third) >= source.size:
            exact = _trace_within(source, list(np.eye(source.size, dtype=source.dtype)))
            return TraceEstimate(exact, 0.0, num_matvecs=source.size, seed=seed, num_probes=0)
        if self.method == "xtrace":
            return _xtrace(source, self.num_probes // 2, seed)
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


def _xtrace(source: SymmetricOperator, count: int, seed: int) -> TraceEstimate:
    """The mean over probes w of trace(Q_i'A Q_i) + (n - count + 1) u'Au, u the direction of (I - Q_i Q_i') w.

    u is uniform on the sphere of the n - count + 1 dimensions that Q_i leaves. With w = Q W + ..., A w = Q R and
    H = Q'A Q all of it is known from small matrices: (I - Q_i Q_i') w = w - Q m, m = (I - s s') W.
    """
    probes = _directions(source, count, seed)
    sketch = Sketch.of(source, probes)
    h = sketch.coordinates(sketch.images)
    h = (h + h.T) / 2
    if sketch.directions is None:
        return TraceEstimate(float(np.trace(h)), 0.0, num_matvecs=sketch.num_matvecs, seed=seed, num_probes=0)
    s, r, w = sketch.directions, sketch.factor, sketch.coordinates(probes)
    m = w - s * np.sum(s * w, axis=0)
    rest = np.sum(w * r - 2 * m * r + m * (h @ m), axis=0)
    squares = source.size - np.sum(m * m, axis=0)
    values = np.trace(h) - np.sum(s * (h @ s), axis=0) + (source.size - count + 1) * rest / squares
    return TraceEstimate(
        value=float(np.mean(values)),
        stderr=float(np.std(values, ddof=1) / np.sqrt(count)),
        num_matvecs=sketch.num_matvecs,
        seed=seed,
        num_probes=count,
    )


def _directions(source: SymmetricOperator, count: int, seed: int) -> Array:
    """Random directions of length n^1/2 as rows, where the source's vectors live."""
    drawn = (start_of(source, seed=seed, stream=stream) for stream in range(count))
    return stacked(*(each * (source.size**0.5 / norm(each)) for each in drawn))


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
            if length > SPANNED * float(np.finfo(source.dtype).eps) * before:
                basis.append(left / length)
    return basis
