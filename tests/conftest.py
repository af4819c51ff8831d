"""Fixtures that several packages' tests share; every test starts with TensorFlow quiet."""

import os
from collections.abc import Iterator

import hypothesis
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
# The workers of a run share the cores; BLAS' own threads on small matrices would wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# On a busy machine any example may take long; and the same examples every time, so that luck decides no verdict. For
# others: pytest --hypothesis-profile searching
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.register_profile("searching", deadline=None, max_examples=2000)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture
def double_precision() -> Iterator[None]:
    """Everything real in float64, so that Keras' own steps have 16 digits as well."""
    import keras

    from sdkeras.operators import precision

    keras.utils.set_random_seed(0)
    with precision.default_precision("float64"):
        yield
