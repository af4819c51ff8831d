"""Checks on arrays of data, wherever they come from: numbers or text, finite, of one length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdkeras.errors import DataError
from sdkeras.files.keras_types import Data
from sdkeras.files.user_code import last_line

Array = NDArray[Any]
# Bytes of an array that are looked at at once: the array may be a file larger than the memory.
_BLOCK = 2**25
# What data that do not fit may be instead.
TWO_PAIRS = "If they are ((x_train, y_train), (x_test, y_test)), give one of the pairs."


def checked_arrays(where: str, data: Sequence[Data], *, whole: bool = True) -> tuple[Data, ...]:
    """(x,), (x, y) or (x, y, sample_weight) with NumPy arrays for leaves and tuples for lists of them.

    Args:
        where: The data, as messages name them.
        data: Two or three of x, y and sample_weight, each an array or a structure of arrays; or x alone. None at the
            end is left out.
        whole: Whether these are all the data, not a batch, whose weights may all be 0.

    Raises:
        DataError: An array is not numeric, not finite or of another length; there are no samples, or weights alone.
    """
    parts = list(data)
    while len(parts) > 1 and parts[-1] is None:
        parts.pop()
    if len(parts) == 3 and parts[1] is None:
        raise DataError(f"{where}: there are sample weights and no targets; Keras weights losses of targets only.")
    lengths: dict[str, int] = {}
    names = ("x", "y", "sample_weight")
    structure = tuple(_checked(where, name, entry, lengths) for name, entry in zip(names, parts, strict=False))
    if not lengths:
        raise DataError(f"{where}: there are no arrays.")
    if len(set(lengths.values())) > 1:
        sizes = ", ".join(f"{name} {length}" for name, length in lengths.items())
        instead = f" {TWO_PAIRS}" if len(parts) == 2 and all(map(is_pair, parts)) else ""
        raise DataError(
            f"{where}: the arrays have different numbers of samples ({sizes}); their first axes must be equal.{instead}"
        )
    if 0 in lengths.values():
        raise DataError(f"{where}: 0 samples; at least one is needed.")
    if whole and len(parts) == 3 and isinstance(structure[2], np.ndarray) and not structure[2].any():
        raise DataError(f"{where}: every sample_weight is 0, so the loss is undefined; weigh some samples.")
    return structure


def _checked(where: str, name: str, entry: Data, lengths: dict[str, int]) -> Data:
    """One of x, y, sample_weight; its leaves' lengths are entered in `lengths`."""
    if isinstance(entry, Mapping):
        return {key: _checked(where, f"{name}/{key}", value, lengths) for key, value in entry.items()}
    if isinstance(entry, (tuple, list)) and any(
        isinstance(leaf, Mapping) or len(getattr(leaf, "shape", ())) > 0 for leaf in entry
    ):
        return tuple(_checked(where, f"{name}[{i}]", value, lengths) for i, value in enumerate(entry))
    try:
        array = numeric(entry)
    except DataError as error:
        raise DataError(f"{where}: {name}: {error}") from error
    except Exception as error:
        raise DataError(f"{where}: {name} is not an array ({last_line(error)}); give numbers.") from error
    if array is None:
        raise DataError(f"{where}: {name} is None; give an array.")
    if array.ndim == 0:
        raise DataError(f"{where}: {name} is a single number; its first axis must be the samples.")
    lengths[name] = len(array)
    bad = _first_not_finite(array)
    if bad is not None:
        raise DataError(
            f"{where}: {name} is {array[bad]} at index {list(bad)}, the first entry that is not finite; remove or "
            "replace such samples."
        )
    return array


def numeric(leaf: object) -> Array | None:
    """The array of numbers, booleans or text that a leaf of the data is; None for None.

    Raises:
        DataError: It is a ragged or sparse tensor, or of another kind (dates, objects, complex numbers).
    """
    if leaf is None:
        return None
    if hasattr(leaf, "nested_row_splits") or hasattr(leaf, "dense_shape"):
        raise DataError(
            f"the data hold a {type(leaf).__name__}; make it dense, for example with .to_tensor() or padded_batch. "
            "Batches of a dataset may have different lengths."
        )
    array = np.asarray(leaf)
    if array.dtype == object:
        entries = set(map(type, array.flat))
        if entries and entries <= {str, np.str_}:
            array = array.astype(np.str_)
        elif entries == {bytes}:
            array = array.astype(np.bytes_)
    if array.dtype.kind in "US" or (array.dtype.kind in "biuf" and array.dtype.itemsize <= 8):
        return array
    raise DataError(
        f"the data hold an array of dtype {array.dtype}; only booleans, integers and floats of up to 64 bits can be "
        "analysed, and text where the model encodes it. Encode dates and categories as numbers, split complex numbers "
        "into two."
    )


def blocks(array: Array) -> Iterator[Array]:
    """The samples in order, a few at a time."""
    rows = max(1, _BLOCK * len(array) // max(array.nbytes, 1))
    for start in range(0, len(array), rows):
        yield array[start : start + rows]


def _first_not_finite(array: Array) -> tuple[int, ...] | None:
    """Index of the first NaN or infinity, None where there is none."""
    if array.dtype.kind != "f":
        return None
    before = 0
    for block in blocks(array):
        finite = np.isfinite(block)
        if not finite.all():
            first, *inner = np.unravel_index(int(np.argmin(finite)), block.shape)
            return (before + int(first), *map(int, inner))
        before += len(block)
    return None


def is_pair(value: object) -> bool:
    """Whether it is two arrays: two inputs or two targets, or the (x, y) of training or of the test."""
    return (
        isinstance(value, (tuple, list))
        and len(value) == 2
        and all(len(getattr(array, "shape", ())) > 0 for array in value)
    )
