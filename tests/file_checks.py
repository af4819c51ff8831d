"""A tiny model with data, and what every refusal of a file or of data must be: one line that says what is wrong."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from sdkeras.errors import DataError, ModelError

X = np.linspace(-1, 1, 24, dtype=np.float32).reshape(8, 3)
Y = np.arange(8) % 4


def tiny(layer=keras.layers.Dense, loss="sparse_categorical_crossentropy", optimizer="adam", **options):
    model = keras.Sequential([keras.Input((3,)), layer(5, **options), keras.layers.Dense(4)])
    if loss is not None:
        model.compile(optimizer=optimizer, loss=loss)
    return model


def refused(call: Callable[..., Any], *arguments: Any, says: Iterable[object] = (), **options: Any) -> str:
    """The message of the one error that a call raises, with all these parts in it; paths are passed as text."""
    with pytest.raises((ModelError, DataError)) as error:
        call(*(str(each) if isinstance(each, Path) else each for each in arguments), **options)
    message = str(error.value)
    about_models = call.__name__ in ("load_model", "load_weights", "load_custom_objects")
    assert error.type is (ModelError if about_models else DataError)
    assert "\n" not in message
    for part in says:
        assert str(part) in message, f"'{part}' is not in: {message}"
    return message
