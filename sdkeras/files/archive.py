"""Files that a long run goes on from: nested values of arrays and numbers, in NumPy's own format, without pickle."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from typing import Any, TypeAlias

import numpy as np

from sdkeras.errors import SdkerasError
from sdkeras.files.atomic import check_is_file, shown, write_whole
from sdkeras.files.keras_types import Array
from sdkeras.files.reading import blamed_on

# None, numbers, text and arrays, in lists, tuples and dicts with str keys.
Nested: TypeAlias = Any
# Booleans, integers, floats, complex numbers, bytes and text: what .npy holds without pickle.
_KINDS = "biufcSU"
LAYOUT = "layout"


def save_checkpoint(path: str | os.PathLike[str], value: Nested) -> None:
    """Writes nested values to a file, all of it or nothing.

    The value may be None, a bool, int (of any size), float or str, a NumPy array or scalar, or a list, tuple or dict
    with str keys of such values. It is stored as a .npz: the arrays, and a JSON text that says where each stands.

    Raises:
        SdkerasError: The value holds something else, or the file cannot be written.
    """
    layout, arrays = _packed(value)
    write_whole(path, lambda file: np.savez(file, allow_pickle=False, **{LAYOUT: np.array(layout)}, **arrays))


def load_checkpoint(path: str | os.PathLike[str]) -> Nested:
    """Reads the value that `save_checkpoint` wrote, with the same types and the same bits."""
    advice = "delete it to start again, or name another."
    check_is_file(path, SdkerasError, advice)
    with blamed_on(f"{shown(path)} cannot be read as a checkpoint", advice):
        # NumPy leaves a file open that it fails to read, unless it got it open.
        if not zipfile.is_zipfile(path):  # NumPy would take it for a pickle
            raise ValueError("it is no .npz file")
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return _unpacked(json.loads(str(arrays[LAYOUT])), arrays)


def fingerprint(value: Nested) -> str:
    """SHA-256 of nested values, first 16 hex digits: equal bits, equal text."""
    layout, arrays = _packed(value)
    digest = hashlib.sha256(layout.encode())
    for array in arrays.values():
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def _packed(value: Nested) -> tuple[str, dict[str, Array]]:
    """A JSON text in which arrays are names, and the arrays by name."""
    arrays: dict[str, Array] = {}

    def pack(entry: Nested, where: str) -> Nested:
        if entry is None or type(entry) in (bool, int, float, str):
            return entry
        if isinstance(entry, (np.ndarray, np.generic)) and np.asarray(entry).dtype.kind in _KINDS:
            name = f"array{len(arrays)}"
            arrays[name] = np.asarray(entry)
            return {"array" if isinstance(entry, np.ndarray) else "scalar": name}
        if type(entry) in (list, tuple):
            packed = [pack(inner, f"{where}[{k}]") for k, inner in enumerate(entry)]
            return packed if isinstance(entry, list) else {"tuple": packed}
        if type(entry) is dict and all(isinstance(key, str) for key in entry):
            return {"dict": {key: pack(inner, f"{where}[{key!r}]") for key, inner in entry.items()}}
        raise SdkerasError(
            f"a checkpoint cannot hold {where}, a {type(entry).__name__}; it takes NumPy arrays of numbers or text, "
            "numbers, str, None, and lists, tuples or dicts with str keys of them."
        )

    return json.dumps(pack(value, "the value")), arrays


def _unpacked(layout: Nested, arrays: dict[str, Array]) -> Nested:
    if isinstance(layout, list):
        return [_unpacked(entry, arrays) for entry in layout]
    if not isinstance(layout, dict):
        return layout
    ((tag, content),) = layout.items()
    if tag == "array":
        return arrays[content]
    if tag == "scalar":
        return arrays[content][()]
    if tag == "tuple":
        return tuple(_unpacked(entry, arrays) for entry in content)
    return {key: _unpacked(entry, arrays) for key, entry in content.items()}
