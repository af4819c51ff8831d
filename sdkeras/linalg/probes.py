"""Random probe and start vectors, drawn from a seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from sdkeras import seeds
from sdkeras.linalg.orthogonal import thin_qr
from sdkeras.results.arrays import Array


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
