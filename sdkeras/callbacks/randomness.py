"""The global random states, left as they were found."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np


@contextlib.contextmanager
def same_randomness() -> Iterator[None]:
    """Restores the global generators of Python and NumPy on leaving.

    Keras draws the seeds of layers from Python's when it rebuilds a model in another precision, and a model's data or
    layers may draw from either; training would continue with other numbers.
    """
    state, array_state = random.getstate(), np.random.get_state()  # noqa: NPY002  the global one is what is meant
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(array_state)  # noqa: NPY002
