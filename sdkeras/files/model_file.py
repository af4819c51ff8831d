"""Contents of a saved model's file, once it is known to be whole; read without Keras."""

from __future__ import annotations

import contextlib
import json
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import attrs
import numpy as np

from sdkeras.errors import ModelError
from sdkeras.files.atomic import check_is_file, shown
from sdkeras.files.keras_types import Array, Config
from sdkeras.files.user_code import last_line

_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_ZIP_MAGIC = b"PK"
# Bytes of a configuration: a thousand layers have a few million.
_LARGEST_CONFIG = 2**28


@attrs.frozen
class ModelFile:
    """What a whole `.keras` or `.h5` file says of its model, as far as it does.

    Attributes:
        policy: Name of the model's own dtype policy.
        compiled: Serialised loss, optimizer and metrics; {} if the model was not compiled.
        version: The Keras that wrote it.
        text: The model's configuration as it stands.
    """

    path: str
    policy: str
    compiled: dict[str, Config]
    version: str
    text: str

    @property
    def is_h5(self) -> bool:
        return not self.path.endswith(".keras")

    @property
    def is_of_keras_2(self) -> bool:
        """Or of Keras 1; those of tf.keras are "2.4.0" or "2.2.4-tf"."""
        return self.version.partition(".")[0] in ("1", "2")

    @contextlib.contextmanager
    def weights(self) -> Iterator[str]:
        """The file of weights in a `.keras` file, unpacked while the scope lasts."""
        with zipfile.ZipFile(self.path) as archive, tempfile.TemporaryDirectory() as folder:
            yield archive.extract("model.weights.h5", folder)

    def h5_slots(self) -> tuple[list[str], list[Array]]:
        """Names and values of the optimizer's variables in a `.h5` file."""
        import h5py

        with h5py.File(self.path, "r") as file:
            group = file.get("optimizer_weights")
            if group is None:
                return [], []
            # More names than fit into one attribute are in weight_names0, weight_names1, ...
            keys = [key for key in group.attrs if key.startswith("weight_names")]
            keys.sort(key=lambda key: int(key.removeprefix("weight_names") or 0))
            names = [_as_text(name) for key in keys for name in group.attrs[key]]
            return names, [np.asarray(group[name]) for name in names]


def read_model_file(path: str) -> ModelFile:
    """Checks a file of a saved model and reads what it says of itself.

    Raises:
        ModelError: The file is missing, unreadable or not a whole Keras model.
    """  # noqa: DOC501  # `damaged` makes a ModelError
    file = Path(path)
    try:
        missing = not file.exists()
    except (OSError, ValueError) as error:  # a name too long, a NUL in it
        raise ModelError(f"model file {path!r} cannot be opened: {last_line(error)}.") from error
    if missing:
        raise ModelError(f"model file {path!r} does not exist; check the path.")
    if file.is_dir():
        kind = "a SavedModel folder" if (file / "saved_model.pb").exists() else "a folder"
        raise ModelError(
            f"{path!r} is {kind}, which Keras 3 cannot load as a model; load it where it was made and save it with "
            "model.save('model.keras')."
        )
    check_is_file(path, ModelError, "give a .keras or .h5 file.")
    if file.suffix not in (".keras", ".h5", ".hdf5"):
        raise ModelError(
            f"model file {path!r} ends in '{file.suffix}'; sdkeras reads .keras and .h5 files. "
            "Save the whole model with model.save('model.keras')."
        )
    try:
        with file.open("rb") as stream:
            start = stream.read(8)
    except OSError as error:
        raise ModelError(f"model file {path!r} cannot be read: {last_line(error)}.") from error
    if not start:
        raise ModelError(f"model file {path!r} is empty (0 bytes); save the model again.")
    try:
        return _read_keras(path, start) if file.suffix == ".keras" else _read_h5(path, start)
    except ModelError:
        raise
    except Exception as error:
        raise damaged(path, file.suffix, last_line(error)) from error


def damaged(path: str, kind: str, why: str) -> ModelError:
    """The error for a file that cannot be read as one of its kind."""
    return ModelError(
        f"model file {path!r} is not a readable {kind} file ({why}); it is damaged, cut short or something else. "
        "Copy or save it again with model.save()."
    )


def _read_keras(path: str, start: bytes) -> ModelFile:
    if start == _HDF5_MAGIC:
        raise ModelError(f"model file {path!r} holds an HDF5 model under the name .keras; rename it to end in .h5.")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if "config.json" not in names:
            listed = ", ".join(map(shown, names[:5])) or "no files"
            raise ModelError(
                f"model file {path!r} is a zip archive without a model in it (no config.json among {listed}); save the "
                "whole model with model.save('model.keras')."
            )
        bad = archive.testzip()
        if bad is not None:
            raise damaged(path, ".keras", f"checksum of its part {bad!r} is wrong")
        if archive.getinfo("config.json").file_size > _LARGEST_CONFIG:
            raise damaged(path, ".keras", "its configuration is larger than that of any model")
        text = archive.read("config.json").decode()
        metadata = json.loads(archive.read("metadata.json")) if "metadata.json" in names else {}
    config = json.loads(text)
    return ModelFile(path, _policy(config), _entry(config, "compile_config"), _version(metadata), text)


def _read_h5(path: str, start: bytes) -> ModelFile:
    import h5py

    if start.startswith(_ZIP_MAGIC):
        raise ModelError(f"model file {path!r} holds a .keras model under another name; rename it to end in .keras.")
    with h5py.File(path, "r") as file:
        attributes = dict(file.attrs)
    if "model_config" not in attributes:
        raise ModelError(
            f"model file {path!r} holds no model, perhaps only weights (save_weights); save the whole model with "
            "model.save('model.keras')."
        )
    text = _as_text(attributes["model_config"])
    compiled = dict(json.loads(attributes.get("training_config", "{}")))
    return ModelFile(path, _policy(json.loads(text)), compiled, _version(attributes), text)


def _as_text(value: object) -> str:
    """An attribute of an HDF5 file, which may be bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)


def _version(metadata: object) -> str:
    return _as_text(metadata.get("keras_version", "")) if isinstance(metadata, dict) else ""


def _entry(config: object, name: str) -> dict[str, Config]:
    entry = config.get(name) if isinstance(config, dict) else None
    return entry if isinstance(entry, dict) else {}


def _policy(model: object) -> str:
    dtype = _entry(model, "config").get("dtype")
    return str(_entry(dtype, "config").get("name", "")) if isinstance(dtype, dict) else str(dtype or "")
