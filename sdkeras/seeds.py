"""Every random stream by name: from one seed of the user's, streams that do not touch each other."""

from __future__ import annotations

import enum

import numpy as np


class Stream(enum.IntEnum):
    """Random streams, by purpose. A number is never used again: seeded results depend on it."""

    MINIBATCHES = 1  # by epoch
    SUBSET = 2
    MASKS = 3  # of dropout and augmentation, by minibatch
    CHECK_DIRECTIONS = 4
    CHECK_ROUNDING = 5
    STEP_DIRECTIONS = 6
    BLOCK_NORMS = 7  # by block of the state
    PROBES = 10
    START_VECTOR = 11
    START_FRAME = 12
    SUBSAMPLES = 20  # of iterates, by repeat
    ROTATIONS = 20  # of the test operators
    RESAMPLED_RUNS = 21
    RESAMPLED_GROUPS = 22  # by setting
    PROJECTION = 23
    EXAMPLES = 24
    LANDSCAPE = 25  # by direction
    RANGE = 26  # of an operator of low rank
    TARGETS = 27  # drawn from a model's predictions, by data, draw and output
    GRIDS = 28
    PREDICTIONS = 30  # draws of a model's outputs, by block of examples


def checked(seed: int) -> int:
    """The seed, which must be a whole number of at least 0.

    Raises:
        ValueError: It is not.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"seed is {seed!r}; it must be a whole number, at least 0.")
    return int(seed)


def generator(seed: int, stream: Stream, *indices: int) -> np.random.Generator:
    """The generator of one stream, and of one of its parts where it has several."""
    return np.random.default_rng([checked(seed), int(stream), *indices])


def seed_of_run(seed: int, index: int, probe: int = 0) -> int:
    """The seed of an estimator's run, by its index alone: a resumed analysis repeats only unfinished runs.

    Further probes of a run's minibatch have seeds of their own.
    """
    return int(np.random.SeedSequence([seed, index, *([probe] if probe else [])]).generate_state(1)[0])
