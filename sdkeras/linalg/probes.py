"""Random probe and start vectors, drawn from a seed: as NumPy arrays, or in the space of an operator that names one."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import DTypeLike

from sdkeras import seeds
from sdkeras.linalg.orthogonal import thin_qr
from sdkeras.results.arrays import Array, DType


class Space(Protocol):
    """Where vectors live: makes them there. A device draws others than NumPy does from the same seed."""

    def signs(self, count: int, size: int, *, seed: int, stream: int, dtype: DType) -> Array:
        """Independent +1 or -1, shape [count, size]."""

    def direction(self, size: int, *, seed: int, stream: int, dtype: DType) -> Array:
        """A vector of any length, uniform in direction, shape [size]."""

    def frame(self, size: int, num_vectors: int, *, seed: int, dtype: DType) -> Array:
        """Orthonormal columns, uniform (Haar), shape [size, num_vectors]."""

    def units(self, start: int, stop: int, size: int, *, dtype: DType) -> Array:
        """Rows `start` to `stop` - 1 of the identity, shape [stop - start, size]."""

    def moved(self, values: Array) -> Array:
        """An array, there."""


class Drawn(Protocol):
    """What probes are drawn for: an operator or a map, perhaps with a `space` that is not None."""

    @property
    def size(self) -> int: ...
    @property
    def dtype(self) -> DType: ...


def space_of(source: object) -> Space:
    """Where a source's vectors live."""
    space: Space | None = getattr(source, "space", None)
    return _HOST if space is None else space


def probes_of(source: Drawn, num_probes: int, *, seed: int, stream: int = 0) -> Array:
    """`rademacher_probes` for a source, where its vectors live: rows [num_probes, n]."""
    return space_of(source).signs(num_probes, source.size, seed=seed, stream=stream, dtype=source.dtype)


def start_of(source: Drawn, *, seed: int, stream: int = 0) -> Array:
    """`start_vector` for a source, where its vectors live: a random direction [n], of any length."""
    return space_of(source).direction(source.size, seed=seed, stream=stream, dtype=source.dtype)


def frame_of(source: Drawn, num_vectors: int, *, seed: int) -> Array:
    """`start_frame` for a source, where its vectors live: orthonormal columns [n, num_vectors]."""
    return space_of(source).frame(source.size, num_vectors, seed=seed, dtype=source.dtype)


def rademacher_probes(size: int, num_probes: int, *, seed: int, dtype: DTypeLike, stream: int = 0) -> Array:
    """Independent entries +1 or -1 with equal chance.

    z'Az has mean trace(A) and the smallest variance among probes with independent entries (Hutchinson 1990).

    Args:
        size: Dimension n.
        num_probes: How many.
        seed: Same seed, same probes.
        dtype: Dtype of the probes.
        stream: Independent draws for one seed: 0, 1, ... (a seed + 1 would share its draws with another run's).

    Returns:
        The probes as rows, shape [num_probes, n].
    """
    bits = seeds.generator(seed, seeds.Stream.PROBES, stream).integers(0, 2, size=(num_probes, size), dtype=np.int8)
    bits *= 2
    bits -= 1
    return bits.astype(dtype)


def start_vector(size: int, *, seed: int, dtype: DTypeLike, stream: int = 0) -> Array:
    """A unit vector, uniform on the sphere, shape [size]; for streams see `rademacher_probes`."""
    vector = seeds.generator(seed, seeds.Stream.START_VECTOR, stream).standard_normal(size)
    vector /= np.linalg.norm(vector)
    return vector.astype(dtype)


def warm_start(vectors: Array, *, seed: int, dtype: DTypeLike) -> Array:
    """A unit vector near earlier eigenvectors that can still find others, shape [size].

    The sum of the vectors and a random one, of equal length: from the vectors alone a Krylov space would see an
    eigenvalue that has grown outside their span only by rounding.

    Args:
        vectors: Columns, shape [size, k].
        seed: Seed for the random columns.
        dtype: Dtype of the result.
    """
    known = np.asarray(vectors, np.float64).sum(axis=1)
    start = known / np.linalg.norm(known) + start_vector(len(known), seed=seed, dtype=np.float64)
    unit: Array = (start / np.linalg.norm(start)).astype(dtype)
    return unit


def start_frame(size: int, num_vectors: int, *, seed: int, dtype: DTypeLike) -> Array:
    """Orthonormal columns, uniform (Haar), shape [size, num_vectors]."""
    matrix = seeds.generator(seed, seeds.Stream.START_FRAME).standard_normal((size, num_vectors))
    return thin_qr(matrix)[0].astype(dtype)


class _HostSpace:
    """The `Space` of NumPy arrays."""

    def signs(self, count: int, size: int, *, seed: int, stream: int, dtype: DType) -> Array:
        return rademacher_probes(size, count, seed=seed, dtype=dtype, stream=stream)

    def direction(self, size: int, *, seed: int, stream: int, dtype: DType) -> Array:
        return start_vector(size, seed=seed, dtype=dtype, stream=stream)

    def frame(self, size: int, num_vectors: int, *, seed: int, dtype: DType) -> Array:
        return start_frame(size, num_vectors, seed=seed, dtype=dtype)

    def units(self, start: int, stop: int, size: int, *, dtype: DType) -> Array:
        rows: Array = np.zeros((stop - start, size), dtype)
        rows[np.arange(stop - start), np.arange(start, stop)] = 1
        return rows

    def moved(self, values: Array) -> Array:
        return values


_HOST = _HostSpace()
