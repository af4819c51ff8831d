"""Data as users keep them: NumPy files, folders of `tf.data.Dataset.save`, and functions of their own.

Arrays are checked here, wherever they come from: numbers or text, finite, of one length.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from sdkeras.errors import DataError
from sdkeras.files.atomic import check_is_file, shown
from sdkeras.files.keras_types import Array, Data
from sdkeras.files.reading import in_words
from sdkeras.files.user_code import call_user_function, last_line

FORMS = (
    "an .npz file (x, y or x_train, y_train), a pair X.npy,Y.npy, a folder written by tf.data.Dataset.save, or "
    "module:callable"
)
_CALLABLE = re.compile(r"[^/\\:,]+:[A-Za-z_][\w.]*")
_NPY_MAGIC = b"\x93NUMPY"
# The first bytes of a zip archive, with files in it or without.
_ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")
# Bytes of an array that are looked at at once: the array may be a file larger than the memory.
_BLOCK = 2**25
# What data that do not fit may be instead.
TWO_PAIRS = "If they are ((x_train, y_train), (x_test, y_test)), give one of the pairs."


def load_data(spec: str) -> Data:
    """Reads data from a file, a folder or the user's function; nothing is unpickled.

    `spec` is one of
        `FILE.npz`: arrays x and y, or x_train and y_train; optionally sample_weight. Several inputs or targets are
        arrays named `x/NAME`, `y/NAME` and become dictionaries;
        `X.npy,Y.npy` (or `X.npy,Y.npy,W.npy` with sample weights);
        a folder written by `tf.data.Dataset.save`;
        `module:callable`: returns (x, y[, sample_weight]), a dictionary with the keys of an .npz file, a
        `tf.data.Dataset` or a `keras.utils.PyDataset`.
    Arrays come back checked; the batches of a Dataset or PyDataset are checked where they are read.
    """
    return _returned(f"data of {spec!r}", call_user_function(spec)) if _names_function(spec) else _from_disk(spec)


def load_training_data(spec: str) -> tuple[Data, str]:
    """Data of training as `load_data` reads them, and what to know of them, or "".

    Where a function returns ((x_train, y_train), (x_test, y_test)), as the data of a study, they are the first pair.
    With as many samples in both pairs they cannot be told from two inputs and two targets, and stay these.
    """
    if not _names_function(spec):
        return _from_disk(spec), ""
    where, data = f"data of {spec!r}", call_user_function(spec)
    if not _is_both(data):
        return _returned(where, data), ""
    train, test = (len(pair[0]) for pair in data)
    note = (
        f"{where}: the callable returned two pairs of {train:,} and {test:,} samples; the first, as "
        "(x_train, y_train), is analysed."
    )
    return _returned(where, data[0]), note


def load_both(spec: str) -> tuple[Data, Data]:
    """Data of training and of the test, from one `module:callable` that returns ((x, y), (x_test, y_test)).

    Raises:
        DataError: As for `load_data`, or it does not return two parts.
    """
    if not is_function(spec):
        raise DataError(f"data {spec!r} are those of training only; give those of the test as well.")
    both = call_user_function(spec)
    if not (isinstance(both, (tuple, list)) and len(both) == 2):
        raise DataError(
            f"data of {spec!r}: the callable returned {described(both)}; without data of the test beside it must "
            "return ((x, y), (x_test, y_test))."
        )
    return _returned(f"data of {spec!r} (training)", both[0]), _returned(f"data of {spec!r} (test)", both[1])


def _is_both(data: Data) -> bool:
    """Whether it is ((x_train, y_train), (x_test, y_test)) for sure: of one length in each pair, of two in both."""
    if not (isinstance(data, (tuple, list)) and len(data) == 2 and all(map(is_pair, data))):
        return False
    (train, labels), (test, test_labels) = data
    return len(train) == len(labels) and len(test) == len(test_labels) and len(train) != len(test)


def is_function(spec: str) -> bool:
    """Whether it has the form of `module:callable`."""
    return _CALLABLE.fullmatch(spec) is not None


def _names_function(spec: str) -> bool:
    """Whether it is `module:callable`, not the name of a file that looks like it."""
    return is_function(spec) and not spec.endswith((".npz", ".npy")) and not _exists(spec)


def _exists(spec: str) -> bool:
    try:
        return Path(spec).exists()
    except (OSError, ValueError) as error:  # a name too long, a NUL in it
        raise DataError(f"data {spec!r} cannot be opened: {last_line(error)}.") from error


def _from_disk(spec: str) -> Data:
    exists, path = _exists(spec), Path(spec)
    if path.is_dir():
        return _from_folder(path)
    if path.suffix == ".npz":
        return _from_npz(spec)
    if path.suffix == ".npy":
        return _from_npy(spec)
    problem = "is not in a format that sdkeras reads" if exists else "does not exist"
    raise DataError(f"data {spec!r} {problem}; give {FORMS}.")


def _from_npz(path: str) -> tuple[Data, ...]:
    where = f"data {path!r}"
    with _open(path, ".npz") as stream:
        with _reading(repr(path)):
            archive = np.load(stream, allow_pickle=False)

        def stored(name: str) -> Data:
            with _reading(f"{path!r} ({name!r})"):
                return archive[name]

        return checked_arrays(where, _chosen(where, list(archive), stored))


def _from_npy(spec: str) -> tuple[Data, ...]:
    paths = spec.split(",")
    if len(paths) > 3 or not all(path.endswith(".npy") for path in paths):
        raise DataError(
            f"data {spec!r}: inputs and targets are two files, X.npy,Y.npy, joined by a comma (a third one holds "
            f"sample weights; X.npy alone is for a model that takes no targets); got {len(paths)}."
        )
    arrays = []
    for path in paths:
        with _open(path, ".npy"), _reading(repr(path)):
            # Mapped, since it may be larger than the memory.
            arrays.append(np.load(path, mmap_mode="r", allow_pickle=False))
    return checked_arrays(f"data {spec!r}", arrays)


@contextlib.contextmanager
def _open(path: str, kind: str) -> Iterator[BinaryIO]:
    """The file, at its start, once it has been seen to begin as one of this kind."""
    check_is_file(path, DataError, f"give data as {FORMS}.")
    try:
        stream = open(path, "rb")  # noqa: SIM115  # closed below
    except FileNotFoundError as error:
        raise DataError(f"data file {path!r} does not exist; check the path.") from error
    except (OSError, ValueError) as error:  # a NUL in the name
        raise DataError(f"data file {path!r} cannot be read: {last_line(error)}.") from error
    with stream:
        start = stream.read(6)
        if not start:
            raise DataError(f"data file {path!r} is empty (0 bytes); write it again.")
        if not start.startswith(_ZIP_MAGICS if kind == ".npz" else _NPY_MAGIC):
            why = f"it does not begin as an {kind} file does; if it is a pickle, data are never unpickled"
            raise _unreadable(repr(path), why)
        stream.seek(0)
        yield stream


@contextlib.contextmanager
def _reading(where: str) -> Iterator[None]:
    """Scope whose failures are those of the file that `where` names."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy's, of headers that are damaged
            yield
    except Exception as error:
        if "allow_pickle" in str(error) or "Python objects in dtype" in str(error):
            raise DataError(
                f"data file {where} holds Python objects, and data are never unpickled, since that could run code; "
                "store one numeric array per name (pad ragged rows, encode text as numbers)."
            ) from error
        raise _unreadable(where, in_words(error)) from error


def _unreadable(where: str, why: str) -> DataError:
    return DataError(
        f"data file {where} is not readable as NumPy data ({why}); write it again, "
        "numpy.savez(FILE, x=x, y=y) or numpy.save."
    )


def _chosen(where: str, names: Sequence[str], stored: Callable[[str], Data]) -> list[Data]:
    """x, y and, if there, sample_weight; each an array, or a dictionary from keys such as x/NAME."""

    def field(name: str) -> Data:
        inner = {key.removeprefix(f"{name}/"): stored(key) for key in names if key.startswith(f"{name}/")}
        return stored(name) if name in names else inner or None

    for x, y in (("x", "y"), ("x_train", "y_train")):
        inputs, targets, weights = map(field, (x, y, "sample_weight"))
        if inputs is not None and targets is not None:
            return [inputs, targets, weights]
        if inputs is not None and all(name == x or name.startswith(f"{x}/") for name in names):
            return [inputs]  # for a model that takes no targets
    listed = ", ".join(map(shown, sorted(names))) or "(none)"
    raise DataError(
        f"{where} holds the arrays {listed}, but x and y (or x_train and y_train) are needed, and sample_weight "
        "if there is one; several inputs are x/NAME. Rename the arrays."
    )


def _from_folder(path: Path) -> Data:
    import tensorflow as tf

    if not (path / "dataset_spec.pb").is_file():
        caches = [file.parent for file in (*path.glob("*/snapshot.metadata"), *path.glob("snapshot.metadata"))]
        if any(not (folder / "dataset_spec.pb").is_file() for folder in caches):
            raise DataError(
                f"folder {str(path)!r} is a cache of Dataset.snapshot(), which cannot be read back; write the "
                f"dataset with dataset.save('{path.resolve().name}-saved') and give that folder."
            )
        raise DataError(
            f"folder {str(path)!r} was not written by tf.data.Dataset.save (it has no dataset_spec.pb); write it with "
            "dataset.save(FOLDER)."
        )
    failure: Exception | None = None
    # The compression is not in the folder; reading the first element shows whether it was guessed right. The
    # specification is a protocol buffer, which names tensor types and holds no code.
    for compression in (None, "GZIP"):
        try:
            # Shards one after the other: the default interleaves as many as the machine has cores.
            dataset = tf.data.Dataset.load(
                str(path), compression=compression, reader_func=lambda shards: shards.flat_map(lambda shard: shard)
            )
            empty = next(iter(dataset), None) is None
        except Exception as error:
            failure = failure or error
            continue
        if empty:
            raise DataError(f"the dataset in folder {str(path)!r} has 0 elements; save it again with data in it.")
        return dataset
    # TensorFlow's message without its node names and stack.
    text = re.sub(r"\{\{.*?\}\}", "", str(failure)).strip().partition("\n")[0]
    reason = f"{type(failure).__name__}: {' '.join(text.split())[:300]}"
    raise DataError(
        f"folder {str(path)!r} cannot be read as a saved dataset: {reason}; it is damaged or incomplete. "
        "Write it again with dataset.save(FOLDER)."
    ) from failure


def _returned(where: str, data: Data) -> Data:
    """Check the value that a user's function returned."""
    import keras
    import tensorflow as tf

    if isinstance(data, (tf.data.Dataset, keras.utils.PyDataset)):
        return data
    if isinstance(data, Mapping):
        return checked_arrays(where, _chosen(where, list(map(str, data)), data.__getitem__))
    if isinstance(data, (np.ndarray, tf.Tensor)):
        data = (data,)
    if isinstance(data, (tuple, list)) and len(data) in (1, 2, 3) and data[0] is not None:
        return checked_arrays(where, data)
    raise DataError(
        f"{where}: the callable returned {described(data)}; it must return x, (x, y) or (x, y, sample_weight) "
        "arrays, a tf.data.Dataset or a keras.utils.PyDataset."
    )


def described(value: object) -> str:
    """Kind of a value, for messages."""
    if value is None:
        return "None"
    shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
    length = f" of length {len(value)}" if isinstance(value, (tuple, list)) else ""
    return f"a {type(value).__name__}{shape}{length}"


def checked_arrays(where: str, data: Sequence[Data], *, whole: bool = True) -> tuple[Data, ...]:
    """(x,), (x, y) or (x, y, sample_weight) with NumPy arrays for leaves and tuples for lists of them.

    None at the end of `data` is left out; `where` names them in messages. In a batch (not the `whole` data) all weights
    may be 0.

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
    if entry is None:
        raise DataError(f"{where}: {name} is None; give an array.")
    try:
        array = _numeric(entry)
    except DataError as error:
        raise DataError(f"{where}: {name}: {error}") from error
    except Exception as error:
        raise DataError(f"{where}: {name} is not an array ({last_line(error)}); give numbers.") from error
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


def _numeric(leaf: object) -> Array:
    """The array of numbers, booleans or text that a leaf of the data is; nothing ragged, sparse or of another kind."""
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
