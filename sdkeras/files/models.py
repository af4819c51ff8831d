"""The only reader of user files: saved models here, data in `data_files`, the user's own code in `user_code`.

Everything wrong with a file is a `ModelError` or a `DataError` whose one message says what is wrong, what was
given and what to do. Nothing is ever unpickled. TensorFlow and Keras are imported when a function needs them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from sdkeras.errors import ModelError
from sdkeras.files import keras2
from sdkeras.files.atomic import check_is_file
from sdkeras.files.data_fit import check_data
from sdkeras.files.dataset import load_data, load_training_data
from sdkeras.files.user_code import is_name_of_keras, last_line, load_custom_objects

__all__ = [
    "check_data",
    "compile_problem",
    "load_custom_objects",
    "load_data",
    "load_model",
    "load_training_data",
    "load_weights",
    "read_of",
]

_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_ZIP_MAGIC = b"PK"
_READ = "_sdkeras_read"
# Bytes of a configuration: a thousand layers have a few million.
_LARGEST_CONFIG = 2**28

# Names that Keras 3 writes into .h5 files (compile(loss="mse")) and cannot read back from them.
_H5_LOSS_NAMES = ("mse", "mae", "mape", "msle", "bce", "kld", "MSE", "MAE", "MAPE", "MSLE", "BCE", "KLD")

# An optimizer that has made no step holds its iteration and learning rate only.
_NUM_SCALARS = 2

# How Keras says that it does not know a name; the second group is the name.
_UNKNOWN_NAME = re.compile(
    r"(?:Could not locate (class|function) |Unknown ([a-z ]+): |Could not interpret ([a-z ]+) identifier: )"
    r"'?([^'.\s]+(?:\.[^'.\s]+)*)'?"
)
# How Keras warns of compiled parts that it left out.
_OF_COMPILING = re.compile(r"Skipping variable loading for optimizer|`compile\(\)` was not called")
# Dimensions of outputs that hold one vector for each example.
_FLAT = 2
_UNSAFE = re.compile(r"safe_mode|unsafe.deserialization", re.IGNORECASE)
# What Keras refuses in safe mode that is no code in the file, but another file.
_OUTSIDE_WORDS = {
    "vocabulary file outside": "the vocabulary of a layer from a file outside of it",
    "external SavedModel": "a SavedModel outside of it (TFSMLayer)",
}
_OUTSIDE = re.compile("|".join(_OUTSIDE_WORDS))


def load_model(path: str, *, custom_objects: dict[str, Any] | None = None, safe_mode: bool = True) -> Any:
    """Reads a saved model and checks that it can be analysed.

    If only the compiled part (loss, optimizer, metrics) cannot be restored, the model comes back uncompiled and
    `compile_problem(model)` says why: its weights can still be analysed with a loss and a learning rate given.

    Args:
        path: A `.keras` or `.h5` (`.hdf5`) file.
        custom_objects: The user's own classes and functions, see `load_custom_objects`; known to Keras during
            this call only.
        safe_mode: Keras' own: False lets it run the Lambda code stored in the file.

    Returns:
        The `keras.Model`; reduced-precision policies (float16, bfloat16) are kept as they are.

    Raises:
        ModelError: The file is missing, unreadable or not a whole Keras model; it needs user code that was not
            given, or `safe_mode=False`; a weight is not finite; the model is quantised, was never built, or
            has no trainable parameters.
    """
    config = _read_config(path)
    model, read = _load(path, custom_objects or {}, safe_mode, config)
    _check_kind(path, model)
    _check_finite(path, model)
    setattr(model, _READ, read)
    return model


def compile_problem(model: Any) -> str | None:
    """Why loss and optimizer of a loaded model are missing or not as they were saved; None if nothing is wrong."""
    return getattr(model, _READ, Read()).problem


def read_of(model: Any) -> Read:
    """What to know of the file that the model was loaded from; nothing of a model that was not loaded."""
    read: Read = getattr(model, _READ, Read())
    return read


def load_weights(path: str, model: Any) -> str:
    """Reads a `.weights.h5` file into a model and its optimizer.

    Where the file holds no state of the optimizer, it is that of an optimizer that has made no step.

    Returns:
        What of the optimizer could not be read, or "".

    Raises:
        ModelError: Missing, damaged, of another architecture, or not finite.
    """
    optimizer = getattr(model, "optimizer", None)
    saved = _saved_slots(path)
    if optimizer is not None and not optimizer.built:
        optimizer.build(model.trainable_variables)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.load_weights(path)
    except Exception as error:  # another architecture fails in many ways
        raise ModelError(
            f"the weights in {path!r} do not fit the model: {_short(str(error)) or last_line(error)}; give the model "
            "they were saved from (`model`)."
        ) from error
    lost = "" if saved else "the file holds no state of the optimizer"
    if saved and optimizer is not None:
        unread = any("Skipping variable loading for optimizer" in str(warning.message) for warning in caught)
        if unread:
            lost = f"the file's optimizer has {saved} variables, the model's {len(optimizer.variables)}"
    if lost and optimizer is not None:
        _as_if_new(optimizer, model)
        lost += "; it is as if no step had been made."
    _check_finite(path, model)
    return lost if optimizer is not None else ""


def _saved_slots(path: str) -> int:
    """Variables of the optimizer in a file of weights."""
    import h5py

    try:
        if not Path(path).is_file():
            raise ModelError(f"there is no file {path!r}; check the path.")
        with h5py.File(path, "r") as file:
            if "layers" not in file and "vars" not in file:
                raise ModelError(
                    f"{path!r} holds no weights as Keras 3 saves them; write them with model.save_weights()."
                )
            return len(file["optimizer/vars"]) if "optimizer/vars" in file else 0
    except OSError as error:
        raise _damaged(path, "weights", last_line(error)) from error


def _as_if_new(optimizer: Any, model: Any) -> None:
    """Puts every variable of the optimizer at its start, so that nothing stale is read."""
    fresh = type(optimizer).from_config(optimizer.get_config())
    fresh.build(model.trainable_variables)
    for variable, value in zip(optimizer.variables, fresh.variables, strict=True):
        variable.assign(value)


@attrs.frozen
class StoredLoss:
    """The loss of a model as it was loaded, beside what the file has of it.

    Attributes:
        loss: The model's loss, as Keras made it from the file.
        config: What the file has of it.
        of_keras_2: Whether Keras 2 wrote the file.
        flat: Whether every output is a vector per example.
        arguments: Arguments of the class's own compile() that the file does not hold.
    """

    loss: Any
    config: Any
    of_keras_2: bool
    flat: bool
    arguments: tuple[str, ...]


@attrs.frozen
class Read:
    """What to know of a file that was read.

    Attributes:
        problem: Why loss and optimizer are missing or not as they were saved, or None.
        stored_loss: None where the loss could not be restored.
    """

    problem: str | None = None
    stored_loss: StoredLoss | None = None


@attrs.frozen
class _Config:
    """What the file says of itself.

    Attributes:
        policy: Name of the model's own dtype policy, or "".
        compiled: Serialised loss, optimizer and metrics; {} if the model was not compiled.
        version: Of the Keras that wrote it, or "".
        text: The model's configuration as it stands.
    """

    policy: str
    compiled: dict[str, Any]
    version: str
    text: str

    @property
    def keras_2(self) -> bool:
        return keras2.is_keras_2(self.version)


def _read_config(path: str) -> _Config:
    """The file's configuration, once the file has been seen to be whole."""
    file = Path(path)
    try:
        missing = not file.exists()
    except (OSError, ValueError) as error:  # a name too long, a NUL in it
        raise ModelError(f"model file {path!r} cannot be opened: {last_line(error)}.") from error
    if missing:
        raise ModelError(f"model file {path!r} does not exist; check the path.")
    if not file.is_dir():
        check_is_file(path, ModelError, "give a .keras or .h5 file.")
    else:
        kind = "a SavedModel folder" if (file / "saved_model.pb").exists() else "a folder"
        raise ModelError(
            f"{path!r} is {kind}, which Keras 3 cannot load as a model; load it where it was made and save it with "
            "model.save('model.keras')."
        )
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
    if file.suffix == ".keras":
        return _keras_config(path, start)
    return _h5_config(path, start)


def _damaged(path: str, kind: str, why: str) -> ModelError:
    return ModelError(
        f"model file {path!r} is not a readable {kind} file ({why}); it is damaged, cut short or something else. "
        "Copy or save it again with model.save()."
    )


def _keras_config(path: str, start: bytes) -> _Config:
    if start == _HDF5_MAGIC:
        raise ModelError(f"model file {path!r} holds an HDF5 model under the name .keras; rename it to end in .h5.")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if "config.json" not in names:
                raise ModelError(
                    f"model file {path!r} is a zip archive without a model in it (no config.json among "
                    f"{', '.join(names[:5]) or 'no files'}); save the whole model with model.save('model.keras')."
                )
            bad = archive.testzip()
            if bad is not None:
                raise _damaged(path, ".keras", f"checksum of its part {bad!r} is wrong")
            if archive.getinfo("config.json").file_size > _LARGEST_CONFIG:
                raise _damaged(path, ".keras", "its configuration is larger than that of any model")
            text = archive.read("config.json").decode()
            config = json.loads(text)
            metadata = json.loads(archive.read("metadata.json")) if "metadata.json" in names else {}
    except ModelError:
        raise
    except Exception as error:
        raise _damaged(path, ".keras", last_line(error)) from error
    return _Config(_policy(config), _part(config, "compile_config"), _version(metadata), text)


def _h5_config(path: str, start: bytes) -> _Config:
    import h5py

    if start.startswith(_ZIP_MAGIC):
        raise ModelError(f"model file {path!r} holds a .keras model under another name; rename it to end in .keras.")
    try:
        with h5py.File(path, "r") as file:
            attributes = dict(file.attrs)
    except Exception as error:
        raise _damaged(path, ".h5", last_line(error)) from error
    if "model_config" not in attributes:
        raise ModelError(
            f"model file {path!r} holds no model, perhaps only weights (save_weights); save the whole model with "
            "model.save('model.keras')."
        )
    try:
        text = _text(attributes["model_config"])
        compiled = dict(json.loads(attributes.get("training_config", "{}")))
        return _Config(_policy(json.loads(text)), compiled, _version(attributes), text)
    except Exception as error:
        raise _damaged(path, ".h5", last_line(error)) from error


def _version(metadata: Any) -> str:
    return _text(metadata.get("keras_version", "")) if isinstance(metadata, dict) else ""


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _part(config: Any, name: str) -> dict[str, Any]:
    part = config.get(name) if isinstance(config, dict) else None
    return part if isinstance(part, dict) else {}


def _policy(model: Any) -> str:
    dtype = _part(model, "config").get("dtype")
    return str(_part(dtype, "config").get("name", "")) if isinstance(dtype, dict) else str(dtype or "")


def _load(path: str, custom_objects: dict[str, Any], safe_mode: bool, config: _Config) -> tuple[Any, Read]:
    """The model, and what to know of its compiled part."""
    import keras

    is_h5 = not path.endswith(".keras")
    if is_h5:
        known = {name: keras.losses.get(name) for name in _H5_LOSS_NAMES}
        custom_objects = {**known, **custom_objects}
    options = {"custom_objects": custom_objects, "safe_mode": safe_mode}
    with contextlib.ExitStack() as stack:
        if custom_objects:
            stack.enter_context(keras.saving.custom_object_scope(custom_objects))
        # Keras gives a loaded model the policy of the session; under float32 it would drop the loss scaling of a
        # mixed_float16 optimizer and then, since the variables do not match, its slots.
        if config.policy == "mixed_float16":
            stack.callback(keras.config.set_dtype_policy, keras.config.dtype_policy())
            keras.config.set_dtype_policy(config.policy)
        caught = stack.enter_context(_keras_warnings())
        failure: Exception | None = None
        try:
            # Keras 3 gives optimizers of Keras 2 their default settings.
            model = keras.saving.load_model(path, compile=not config.keras_2, **options)
        except Exception as error:
            failure = error
            try:
                model = keras.saving.load_model(path, compile=False, **options)
            except Exception as again:
                raise ModelError(_why_not(path, again, safe_mode, config)) from again
        texts = [str(warning.message) for warning in caught]
        return model, _compiled_part(path, model, config, failure, texts, options)


def _compiled_part(
    path: str, model: Any, config: _Config, failure: Exception | None, caught: list[str], options: dict[str, Any]
) -> Read:
    """Sees to it that loss and optimizer are the file's, or that there are none, and says which."""
    is_h5 = not path.endswith(".keras")
    if not config.compiled:
        if not getattr(model, "compiled", False):
            return Read()
        _uncompile(model)
        return Read(
            f"{path!r} was saved without being compiled, and the class {type(model).__name__} compiles itself when it "
            "is made, with values of its own; say `loss` and `learning_rate`."
        )
    again = config.keras_2 or (_own_way(model, config) and not _is_as_stored(model, config, is_h5))
    if again:
        try:
            _compile_as_stored(model, config, is_h5, options["safe_mode"])
            failure = None
        except Exception as error:
            failure = error
    if failure is not None:
        _uncompile(model)
        return Read(_compile_message(path, failure, config, options["custom_objects"]))
    stored_loss = _stored_loss(model, config)
    named = "optimizer" in config.compiled or "loss" not in config.compiled  # neither: in the class's own words
    if not is_h5 and not named and not _restores_itself(model):
        # Keras' default (rmsprop) was put in its place.
        model.optimizer = None
        return Read(
            f"{path!r} does not name its optimizer (Keras leaves it out of a model that was saved as .h5 before); save "
            "the model as .keras right after training, or say `learning_rate`.",
            stored_loss,
        )
    lost = _slots_from_keras_2(path, model, config) if config.keras_2 else _restore_slots(path, model, again, caught)
    if lost is None:
        return Read(None, stored_loss)
    name = type(getattr(model.optimizer, "inner_optimizer", model.optimizer)).__name__
    return Read(
        f"the optimizer's state in {path!r} (moments or velocities of {name}) could not be restored: {lost}.",
        stored_loss,
    )


@contextlib.contextmanager
def _keras_warnings() -> Iterator[list[warnings.WarningMessage]]:
    """Collects what Keras says of compiled parts, which is said here in other words; other warnings pass."""
    log = logging.getLogger("absl")
    quiet = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield caught
    finally:
        log.setLevel(quiet)
    for warning in caught:
        if not _OF_COMPILING.search(str(warning.message)):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _own_way(model: Any, config: _Config) -> bool:
    """Whether its class has a say in how it is compiled."""
    import keras

    cls = type(model)
    names = ("compile", "compile_from_config", "get_compile_config")
    return any(getattr(cls, name) is not getattr(keras.Model, name) for name in names)


def _restores_itself(model: Any) -> bool:
    import keras

    return type(model).compile_from_config is not keras.Model.compile_from_config


def _is_as_stored(model: Any, config: _Config, is_h5: bool) -> bool:
    """Whether a class that restores its own compiled part has restored what its file holds."""
    if is_h5 or not _restores_itself(model) or not getattr(model, "compiled", False):
        return False
    now = model.get_compile_config()
    return isinstance(now, dict) and all(
        _agree(config.compiled[name], now.get(name))
        for name in config.compiled
        if name in ("optimizer", "loss", "loss_weights") or not {"optimizer", "loss"} & set(config.compiled)
    )


def _agree(stored: Any, now: Any) -> bool:
    """Whether everything stored is the same now; floats as float32 has them."""
    if isinstance(stored, dict):
        return isinstance(now, dict) and all(
            _agree(value, now.get(name)) for name, value in stored.items() if name != "shared_object_id"
        )
    if isinstance(stored, list):
        return isinstance(now, (list, tuple)) and len(stored) == len(now) and all(map(_agree, stored, now))
    if isinstance(stored, float) and isinstance(now, (int, float)):
        return bool(np.isclose(stored, now, rtol=1e-6, atol=0.0))
    return bool(stored == now)


def _compile_as_stored(model: Any, config: _Config, is_h5: bool, safe_mode: bool) -> None:
    """Compiles a model with the optimizer, loss, weights and metrics of its file; raises whatever Keras raises."""
    from sdkeras.files.compiling import compile_as

    stored = keras2.translated(config.compiled) if config.keras_2 else config.compiled
    arguments = _h5_arguments(stored) if is_h5 or config.keras_2 else _arguments(stored, safe_mode)
    if not {"optimizer", "loss"} & set(arguments):  # of get_compile_config() of its own, and its own compile() knows
        model.compile(**arguments)
    else:
        compile_as(model, arguments)
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and model.built and not is_h5:
        optimizer.build(model.trainable_variables)


def _arguments(stored: dict[str, Any], safe_mode: bool) -> dict[str, Any]:
    import keras

    read = keras.saving.deserialize_keras_object
    return {name: read(value, safe_mode=safe_mode) for name, value in stored.items()}


def _h5_arguments(stored: dict[str, Any]) -> dict[str, Any]:
    import keras

    def each(read: Callable[[Any], Any], part: Any) -> Any:
        if isinstance(part, dict) and "class_name" not in part:
            return {name: each(read, value) for name, value in part.items()}
        if isinstance(part, list):
            return [each(read, value) for value in part]
        return part if part is None else read(part)

    def metric(part: Any) -> Any:  # words such as "accuracy" are for compile()
        return part if isinstance(part, str) else keras.metrics.deserialize(part)

    return {
        "optimizer": keras.optimizers.get(stored["optimizer_config"]),
        "loss": each(keras.losses.get, stored.get("loss")),
        "loss_weights": stored.get("loss_weights"),
        "metrics": each(metric, stored.get("metrics")),
        "weighted_metrics": each(metric, stored.get("weighted_metrics")),
    }


def _uncompile(model: Any) -> None:
    """Takes from a model the loss and optimizer that its class has given it."""
    if getattr(model, "compiled", False):
        model.compiled = False
        model.optimizer, model.loss = None, None
        model._compile_loss, model._compile_metrics = None, None


def _stored_loss(model: Any, config: _Config) -> StoredLoss:
    from sdkeras.files.compiling import unstored_compile_arguments

    outputs = getattr(model, "outputs", None) or []
    return StoredLoss(
        loss=getattr(model, "loss", None),
        config=config.compiled.get("loss"),
        of_keras_2=config.keras_2,
        # A model that does not tell its outputs is taken to have one vector for each example, as nearly all have.
        flat=all(len(output.shape) <= _FLAT for output in outputs),
        arguments=() if _restores_itself(model) else tuple(unstored_compile_arguments(model, config.compiled)),
    )


def _restore_slots(path: str, model: Any, again: bool, caught: list[str]) -> str | None:
    """Puts the optimizer's variables into a model as far as Keras has not; says why if that fails."""
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        return None
    if not path.endswith(".keras"):
        return _lost_h5_slots(path, model)
    try:
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
            lost = next(filter(None, map(_lost_slots, [] if again else caught)), None)
            if not again and lost is None:
                return None
            weights = archive.extract("model.weights.h5", folder)
            if again:
                with _keras_warnings() as said:
                    model.load_weights(weights)
                    lost = next(filter(None, (_lost_slots(str(each.message)) for each in said)), None)
            if lost is not None:
                _without_slots(model, _steps_in(weights) or 0)
            return lost
    except Exception as error:  # weights in another format, or what a class of the user's raises
        _without_slots(model, 0)
        return last_line(error)


def _steps_in(weights: str) -> int | None:
    """Steps of the optimizer in a file of weights, whose variables begin with them; None where there are none."""
    import h5py

    with h5py.File(weights, "r") as file:
        for group in ("optimizer/inner_optimizer/vars", "optimizer/vars"):
            first = file[group].get("0") if group in file else None
            if first is not None and first.shape == ():
                return int(first[()])
    return None


def _without_slots(model: Any, iterations: int) -> None:
    """Puts in place of the optimizer one that knows its settings and steps, and has no slots."""
    fresh = type(model.optimizer).from_config(model.optimizer.get_config())
    getattr(fresh, "inner_optimizer", fresh).iterations.assign(iterations)
    model.optimizer = fresh


def _slots_from_keras_2(path: str, model: Any, config: _Config) -> str | None:
    """Gives the optimizer its steps; says why it has no slots, where it needs any."""
    import h5py

    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        return None
    if path.endswith(".keras"):
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
            steps = _steps_in(archive.extract("model.weights.h5", folder))
    else:
        with h5py.File(path, "r") as file:
            steps = keras2.iterations(*_h5_slots(file))
    fresh = type(optimizer).from_config(optimizer.get_config())
    few = len(fresh.variables)
    fresh.build(model.trainable_variables)
    if steps == 0 or len(fresh.variables) == few:  # nothing to lose
        fresh.iterations.assign(steps or 0)
        model.optimizer = fresh
        return None
    _without_slots(model, steps or 0)
    if steps is None:
        return f"Keras 2 (version {config.version}) left it out of the file, and its number of steps"
    return f"Keras 2 (version {config.version}) wrote it in a form that Keras 3 does not read"


def _lost_slots(warning: str) -> str | None:
    """Keras' warning that an optimizer's variables do not match, unless the file holds none (at most two scalars)."""
    found = re.search(r"it has (\d+) variables whereas the saved optimizer has (\d+) variables", warning)
    if found is None or int(found[2]) <= _NUM_SCALARS:
        return None
    return f"the file holds {found[2]} variables, the optimizer has {found[1]}"


def _lost_h5_slots(path: str, model: Any) -> str | None:
    """Puts the optimizer's slots into a model from .h5; says why if that fails.

    Keras builds the optimizer for the variables that a container model owns itself, which are none, and keeps only
    the scalars.
    """
    import h5py
    import keras

    optimizer = getattr(model, "optimizer", None)
    with h5py.File(path, "r") as file:
        names, values = _h5_slots(file)
    if optimizer is None or not values:
        return None
    fresh = optimizer
    if len(values) != len(fresh.variables):
        fresh = type(optimizer).from_config(optimizer.get_config())
        fresh.build(model.trainable_variables)
    slots = fresh.variables
    lost = ""
    if len(slots) != len(values):
        lost = f"the file holds {len(values)} variables, the optimizer has {len(slots)}"
    for slot, name, value in zip(slots, names, values, strict=False):
        # Keras names a slot by the path of its weight, with the model's name before it or without.
        tail = slot.path.rpartition("/")[2]
        if not lost and (tuple(slot.shape) != value.shape or not name.endswith(tail)):
            lost = f"the file's {name} {value.shape} does not match {slot.path} {tuple(slot.shape)}"
    if lost:
        if len(values) > _NUM_SCALARS:
            _without_slots(model, keras2.iterations(names, values) or 0)
            return lost
        return None
    for slot, value in zip(slots, values, strict=True):
        slot.assign(keras.ops.convert_to_tensor(value, dtype=slot.dtype))
    model.optimizer = fresh
    return None


def _h5_slots(file: Any) -> tuple[list[str], list[Any]]:
    """Names and values of the optimizer's variables in a .h5 file."""
    if "optimizer_weights" not in file:
        return [], []
    group = file["optimizer_weights"]
    # More names than fit into one attribute are in weight_names0, weight_names1, ...
    keys = [key for key in group.attrs if key.startswith("weight_names")]
    keys.sort(key=lambda key: int(key.removeprefix("weight_names") or 0))
    names = [_text(name) for key in keys for name in group.attrs[key]]
    return names, [np.asarray(group[name]) for name in names]


def _why_not(path: str, error: Exception, safe_mode: bool, config: _Config) -> str:
    text = str(error)
    unknown = _UNKNOWN_NAME.findall(text)
    if unknown:
        *kinds, name = unknown[-1]
        kind = next(kind for kind in kinds if kind)
        if config.keras_2 and keras2.is_class_of_keras_2(name):
            return keras2.cannot_load(path, config.version, config.text, f"it uses its {kind} '{name}'")
        if is_name_of_keras(name):
            return f"model file {path!r} cannot be loaded: {_homonym(name)}."
        return (
            f"model file {path!r} uses the {kind} '{name}', which Keras does not know; give the Python file that "
            "defines it with `custom_objects=FILE`."
        )
    if safe_mode and (outside := _OUTSIDE.search(text)) is not None:
        return (
            f"model file {path!r} reads {_OUTSIDE_WORDS[outside[0]]}, which sdkeras does not open for a model file; "
            "save the model again with all that it needs in one .keras file."
        )
    if safe_mode and _UNSAFE.search(text):
        return (
            f"model file {path!r} holds Python code, such as a Lambda layer, that Keras will not run in safe mode; if "
            "you trust the file, use `safe_mode=False`."
        )
    if config.keras_2:
        return keras2.cannot_load(path, config.version, config.text, _short(text) or type(error).__name__)
    return (
        f"model file {path!r} cannot be loaded: {_short(text) or type(error).__name__}; it is damaged, or was "
        "written by another Keras version or with user code that `custom_objects=FILE` must supply."
    )


def _compile_message(path: str, error: Exception, config: _Config, objects: dict[str, Any]) -> str:
    stored = config.compiled
    parts = [
        f"{label} {_names(stored[key])}"
        for label, key in (
            ("loss", "loss"),
            ("optimizer", "optimizer"),
            ("optimizer", "optimizer_config"),
            ("metrics", "metrics"),
            ("weighted metrics", "weighted_metrics"),
        )
        if stored.get(key)
    ]
    unknown = _UNKNOWN_NAME.findall(str(error))
    reason = _short(str(error))
    if unknown:
        reason = f"Keras does not know '{unknown[-1][-1]}'"
        if is_name_of_keras(unknown[-1][-1]):
            reason = _homonym(unknown[-1][-1])
    elif "string indices must be integers" in reason:  # how the .h5 reader fails on the name of an unknown function
        reason = "Keras does not know one of these names"
    advice = "Say `loss` and `learning_rate`, with values as the file has them."
    if "does not know" in reason and not any(unknown and unknown[-1][-1] in name for name in objects):
        advice = (
            "Give the Python file that defines its own parts with `custom_objects=FILE`, or say `loss` and "
            "`learning_rate`."
        )
    elif "argument" in reason:
        advice = "Say `loss` and `learning_rate`, or give the class a get_config() that holds it and save again."
    by = f", which was written by Keras 2 (version {config.version})," if config.keras_2 else ""
    return f"{path!r}{by} was loaded without its compiled part ({', '.join(parts) or 'unreadable'}): {reason}. {advice}"


def _homonym(name: str) -> str:
    return (
        f"it uses a function '{name}' of its author's own, and Keras has one of that name; give it another name, or "
        "register it (keras.saving.register_keras_serializable), and save again"
    )


def _names(config: Any) -> str:
    """Names in a serialised loss, optimizer or metric, or in a structure of them."""
    if isinstance(config, str):
        return f"'{config}'"
    if isinstance(config, dict) and "class_name" in config:
        function = config["class_name"] == "function"
        return f"'{config.get('config') if function else config['class_name']}'"
    if isinstance(config, dict):
        config = list(config.values())
    if isinstance(config, list):
        return "[" + ", ".join(_names(part) for part in config if part) + "]"
    return f"'{config}'"


def _short(text: str) -> str:
    """The last of Keras' nested reasons, without the configurations it prints, in one line."""
    text = text.rpartition("Exception encountered:")[2].partition("Full object config")[0].partition("config={")[0]
    text = " ".join(text.split()).rstrip(". ")
    return text if len(text) <= 300 else text[:297] + "..."


def _check_kind(path: str, model: Any) -> None:
    import keras

    if not isinstance(model, keras.Model):
        raise ModelError(f"model file {path!r} holds a {type(model).__name__}, not a keras.Model; save a model.")
    if not model.built:
        raise ModelError(
            f"the model in {path!r} was saved before it was built, so it has no weights; call it on some data (or "
            "train it), then save it again."
        )
    quantized = [layer.name for layer in model._flatten_layers() if getattr(layer, "quantization_mode", None)]
    if quantized:
        raise ModelError(
            f"the model in {path!r} is quantised (first layer '{quantized[0]}'): its kernels are no trainable "
            "numbers any more and have no Hessian; analyse the model as it was before quantize()."
        )
    if not model.trainable_variables:
        raise ModelError(
            f"the model in {path!r} has no trainable parameters ({len(model.variables)} variables, all frozen); "
            "set layer.trainable = True on what was trained and save it again."
        )


def _check_finite(path: str, model: Any) -> None:
    import keras

    optimizer = getattr(model, "optimizer", None)
    for owner, variables in (("model", model.variables), ("optimizer", getattr(optimizer, "variables", ()))):
        for variable in variables:
            if "float" not in keras.backend.standardize_dtype(variable.dtype):
                continue
            finite = np.isfinite(keras.ops.convert_to_numpy(variable))
            if not finite.all():
                raise ModelError(
                    f"{owner} variable '{variable.path}' in {path!r} holds NaN or infinity in "
                    f"{finite.size - int(finite.sum())} of {finite.size} entries; the training has diverged. Analyse "
                    "an earlier checkpoint."
                )
