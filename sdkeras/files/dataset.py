"""Data as users keep them: NumPy files, folders of `tf.data.Dataset.save`, and functions of their own."""

from __future__ import annotations

import contextlib
import functools
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from sdkeras.errors import DataError
from sdkeras.files.arrays import checked_arrays, is_pair
from sdkeras.files.atomic import check_is_file
from sdkeras.files.keras_types import Data
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


def load_data(spec: str) -> Data:
    """Reads data from a file, a folder or the user's function; nothing is unpickled.

    Args:
        spec: One of
            `FILE.npz`: arrays x and y, or x_train and y_train; optionally sample_weight. Several inputs or
            targets are arrays named `x/NAME`, `y/NAME` and become dictionaries;
            `X.npy,Y.npy` (or `X.npy,Y.npy,W.npy` with sample weights);
            a folder written by `tf.data.Dataset.save`;
            `module:callable`, see `sdkeras.files.user_code`: returns (x, y[, sample_weight]), a dictionary with the
            keys of an .npz file, a `tf.data.Dataset` or a `keras.utils.PyDataset`.

    Returns:
        (x, y) or (x, y, sample_weight) of arrays (or structures of them), or the Dataset or PyDataset itself.

    Raises:
        DataError: Missing or unreadable, without the arrays expected, of unequal lengths, empty, not numeric,
            or not finite. Batches of a Dataset are checked where they are read.
    """
    return _load(spec, _returned)


def load_training_data(spec: str) -> tuple[Data, str]:
    """Data of training as `load_data` reads them, and what to know of them, or "".

    Where a function returns ((x_train, y_train), (x_test, y_test)), as the data of a study, they are the first pair.
    With as many samples in both pairs they cannot be told from two inputs and two targets, and stay these.

    Raises:
        DataError: As for `load_data`.
    """
    notes = []

    def returned(where: str, data: Data) -> Data:
        if not _is_both(data):
            return _returned(where, data)
        train, test = (len(pair[0]) for pair in data)
        notes.append(
            f"{where}: the callable returned two pairs of {train:,} and {test:,} samples; the first, as "
            "(x_train, y_train), is analysed."
        )
        return _returned(where, data[0])

    data = _load(spec, returned)
    return data, " ".join(notes)


def _is_both(data: Data) -> bool:
    """Whether it is ((x_train, y_train), (x_test, y_test)) for sure: of one length in each pair, of two in both."""
    if not (isinstance(data, (tuple, list)) and len(data) == 2 and all(map(is_pair, data))):
        return False
    (train, labels), (test, test_labels) = data
    return len(train) == len(labels) and len(test) == len(test_labels) and len(train) != len(test)


def _load(spec: str, returned: Callable[[str, Data], Data]) -> Data:
    """Load the data that `spec` names; `returned` checks the value of a user's function."""
    try:
        path = Path(spec)
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:  # a name too long, a NUL in it
        raise DataError(f"data {spec!r} cannot be opened: {last_line(error)}.") from error
    if is_folder:
        return _from_folder(path)
    if path.suffix == ".npz":
        return _from_npz(spec)
    if path.suffix == ".npy":
        return _from_npy(spec)
    if is_function(spec) and not exists:
        return returned(f"data of {spec!r}", call_user_function(spec))
    if not exists:
        raise DataError(f"data {spec!r} does not exist; give {FORMS}.")
    raise DataError(f"data {spec!r} is not in a format that sdkeras reads; give {FORMS}.")


def is_function(spec: str) -> bool:
    """Whether it has the form of `module:callable`."""
    return _CALLABLE.fullmatch(spec) is not None


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


def _from_npz(path: str) -> tuple[Data, ...]:
    with _open(path, ".npz") as stream:
        # NumPy would leave open what it fails to read.
        with _read(repr(path), lambda: np.load(stream, allow_pickle=False)) as archive:
            return checked_arrays(f"data {path!r}", _chosen(f"data {path!r}", _Archive(path, archive)))


class _Archive(Mapping[str, Data]):
    """The arrays of an .npz file, read one by one when asked for."""

    def __init__(self, path: str, archive: Mapping[str, Data]) -> None:
        self._path = path
        self._archive = archive

    def __getitem__(self, name: str) -> Data:
        return _read(f"{self._path!r} ({name!r})", lambda: self._archive[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._archive)

    def __len__(self) -> int:
        return len(self._archive)


def _from_npy(spec: str) -> tuple[Data, ...]:
    paths = spec.split(",")
    if len(paths) > 3 or not all(path.endswith(".npy") for path in paths):
        raise DataError(
            f"data {spec!r}: inputs and targets are two files, X.npy,Y.npy, joined by a comma (a third one holds "
            f"sample weights; X.npy alone is for a model that takes no targets); got {len(paths)}."
        )
    arrays = []
    for path in paths:
        with _open(path, ".npy"):
            # Mapped, since it may be larger than the memory.
            arrays.append(_read(repr(path), functools.partial(np.load, path, mmap_mode="r", allow_pickle=False)))
    return checked_arrays(f"data {spec!r}", arrays)


@contextlib.contextmanager
def _open(path: str, kind: str) -> Iterator[BinaryIO]:
    """The file, at its start, once it has been seen to begin as one of this kind."""
    check_is_file(path, DataError, f"give data as {FORMS}.")
    if not Path(path).exists():
        raise DataError(f"data file {path!r} does not exist; check the path.")
    try:
        stream = open(path, "rb")  # noqa: SIM115  # closed below
    except OSError as error:
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


def _read(where: str, read: Callable[[], Data]) -> Data:
    """Call `read` and report its failures as those of the file that `where` names."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy's, of headers that are damaged
            return read()
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


def _chosen(where: str, stored: Mapping[str, Data]) -> list[Data]:
    """x, y and, if there, sample_weight; each an array, or a dictionary from keys such as x/NAME."""
    names = [str(name) for name in stored]

    def field(name: str) -> Data:
        inner = {key.removeprefix(f"{name}/"): stored[key] for key in names if key.startswith(f"{name}/")}
        return stored[name] if name in names else inner or None

    for x, y in (("x", "y"), ("x_train", "y_train")):
        inputs, targets, weights = map(field, (x, y, "sample_weight"))
        if inputs is not None and targets is not None:
            return [inputs, targets, weights]
        if inputs is not None and all(name == x or name.startswith(f"{x}/") for name in names):
            return [inputs]  # for a model that takes no targets
    raise DataError(
        f"{where} holds the arrays {', '.join(sorted(names)) or '(none)'}, but x and y (or x_train and y_train) "
        "are needed, and sample_weight if there is one; several inputs are x/NAME. Rename the arrays."
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
        return checked_arrays(where, _chosen(where, data))
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
