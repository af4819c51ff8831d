"""How well a mean along a trajectory is known, from the means of its blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import scipy.special

from sdkeras.results.arrays import FloatArray

# Fewer do not know their spread: the standard error of 8 is itself known to 27 %, 1/sqrt(2 * 7).
_FEWEST = 8


def standard_error(means: FloatArray, block_size: int, num_steps: int) -> FloatArray:
    """Standard error of the mean over the steps, shape [k].

    Steps hang together, and blocks shorter than the correlation time make it too small: of the standard errors from
    the blocks, from pairs of them, pairs of pairs and so on, down to 8, the largest is taken. For independent steps
    this is some 15 % too large.

    Args:
        means: Means of consecutive blocks, shape [blocks, k].
        block_size: Steps in a block.
        num_steps: Steps of the mean; those of the blocks, or some more.
    """
    if len(means) < 2:
        return np.zeros(means.shape[1])
    found: FloatArray = np.max([error for error, _ in _levels(means, block_size, num_steps)], axis=0)
    return found


def half_width(means: FloatArray, block_size: int, num_steps: int, confidence: float) -> FloatArray:
    """Half-width of the interval of the mean, by Student's t for as many blocks, the largest of the same levels."""
    tail = 0.5 + confidence / 2
    found: FloatArray = np.max(
        [scipy.special.stdtrit(count - 1, tail) * error for error, count in _levels(means, block_size, num_steps)],
        axis=0,
    )
    return found


def _levels(means: FloatArray, block_size: int, num_steps: int) -> Iterator[tuple[FloatArray, int]]:
    """Standard error and number of blocks, of the blocks and of pairs, down to the fewest."""
    while True:
        yield np.std(means, axis=0, ddof=1) * math.sqrt(block_size / num_steps), len(means)
        if len(means) < 2 * _FEWEST:
            return
        pairs = len(means) // 2
        means, block_size = means[: 2 * pairs].reshape(pairs, 2, -1).mean(axis=1), 2 * block_size
