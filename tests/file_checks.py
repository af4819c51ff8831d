"""A tiny model with data, and what every refusal of a file or of data must be: one line that says what is wrong."""

import io
import json
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py
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


def saved(model: Any, path: Path) -> str:
    model.save(path)
    return str(path)


def rewritten(source: Path, target: Path, **members: Callable[[bytes], bytes]) -> Path:
    """The archive with members changed; names have '.' written as '_'."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            change = members.get(name.replace(".", "_"))
            new.writestr(name, old.read(name) if change is None else change(old.read(name)))
    return target


def with_config(source: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    def edit(text: bytes) -> bytes:
        config = json.loads(text)
        change(config)
        return json.dumps(config).encode()

    return rewritten(source, target, config_json=edit)


def with_weights(source: Path, target: Path, change: Callable[[h5py.File], None]) -> Path:
    def edit(content: bytes) -> bytes:
        buffer = io.BytesIO(content)
        with h5py.File(buffer, "r+") as file:
            change(file)
        return buffer.getvalue()

    return rewritten(source, target, model_weights_h5=edit)
