"""Random probe and start vectors, drawn from a seed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


def rademacher_probes(size: int, num_probes: int, *, seed: int, dtype: DTypeLike) -> NDArray[Any]:
    """Independent entries +1 or -1 with equal chance, shape [num_probes, size].

    z'Az has mean trace(A) and the smallest variance among probes with independent entries
    (Hutchinson 1990).
    """
    bits = np.random.default_rng([seed, 10]).integers(0, 2, size=(num_probes, size), dtype=np.int8)
    return (2 * bits - 1).astype(dtype)


def start_vector(size: int, *, seed: int, dtype: DTypeLike) -> NDArray[Any]:
    """A vector uniform on the unit sphere, shape [size]."""
    vector = np.random.default_rng([seed, 11]).standard_normal(size)
    return (vector / np.linalg.norm(vector)).astype(dtype)
