"""Modular addition, the task on which grokking is studied: generated, hence complete."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Examples: TypeAlias = tuple[NDArray[np.float32], NDArray[np.int64]]


def modular_addition(modulus: int = 97, train_fraction: float = 0.4, *, seed: int = 0) -> tuple[Examples, Examples]:
    """All pairs (a, b) with the label (a + b) mod p, split at random into training and test.

    Args:
        modulus: p.
        train_fraction: Part of the p^2 pairs for training.
        seed: Seed for the split.

    Returns:
        (training, test), each (x, y): x of shape (n, 2 p), the one-hot codes of a and b side by side; y of shape
        (n,), int64 in 0..p-1.

    Raises:
        ValueError: p below 2, or a part that leaves one side empty.

    Reference: Power et al. (2022), arXiv 2201.02177.
    """
    if modulus < 2:
        raise ValueError(f"modulus={modulus} must be at least 2.")
    first, second = (pairs.ravel() for pairs in np.meshgrid(np.arange(modulus), np.arange(modulus), indexing="ij"))
    count = round(train_fraction * len(first))
    if not 0 < count < len(first):
        raise ValueError(
            f"train_fraction={train_fraction} of {len(first)} pairs leaves training or test empty; take one between."
        )
    one_hot = np.eye(modulus, dtype=np.float32)
    x = np.concatenate([one_hot[first], one_hot[second]], axis=1)
    y = (first + second) % modulus
    order = np.random.default_rng(seed).permutation(len(y))
    return tuple((x[chosen], y[chosen]) for chosen in (order[:count], order[count:]))  # type: ignore[return-value]
