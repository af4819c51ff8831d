"""Fixtures of the tests of operators."""

from collections.abc import Iterator

import keras
import pytest

from sdkeras.operators import precision


@pytest.fixture
def double_precision() -> Iterator[None]:
    """Everything real in float64, so that Keras' own steps have 16 digits as well."""
    keras.utils.set_random_seed(0)
    with precision.default_precision("float64"):
        yield
