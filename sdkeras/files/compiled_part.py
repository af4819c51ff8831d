"""Loss, optimizer and metrics of a saved model: restored as its file holds them, or left out with the reason."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from warnings import WarningMessage

import attrs
import keras
import numpy as np

from sdkeras.files import keras2
from sdkeras.files.keras_types import Config, Loss, Model
from sdkeras.files.model_file import ModelFile
from sdkeras.files.optimizer_slots import restore_slots
from sdkeras.files.reading import homonym, innermost_reason, unknown_name
from sdkeras.files.user_code import is_name_of_keras

# By which a class has a say in how it is compiled.
_COMPILING = ("compile", "compile_from_config", "get_compile_config")
# Dimensions of outputs that hold one vector for each example.
_FLAT = 2
_LABELS = {
    "loss": "loss",
    "optimizer": "optimizer",
    "optimizer_config": "optimizer",
    "metrics": "metrics",
    "weighted_metrics": "weighted metrics",
}


@attrs.frozen
class StoredLoss:
    """The loss of a model as Keras made it from the file, beside its configuration there.

    Attributes:
        flat: Whether every output is a vector per example.
        arguments: Arguments of the class's own compile() that the file does not hold.
    """

    loss: Loss
    config: Config
    of_keras_2: bool
    flat: bool
    arguments: tuple[str, ...]


@attrs.frozen
class CompiledPart:
    """Why a loaded model's loss and optimizer are missing or not as they were saved, if so; the loss if restored."""

    problem: str | None = None
    stored_loss: StoredLoss | None = None


def restore_compiled_part(
    model: Model,
    file: ModelFile,
    failure: Exception | None,
    messages: Sequence[WarningMessage],
    custom_objects: Mapping[str, object],
    safe_mode: bool,
) -> CompiledPart:
    """Sees to it that loss and optimizer are the file's, or that there are none, and says which.

    Keras has loaded the model from the file with these custom objects and `safe_mode`, with these warnings and, if it
    could not restore the compiled part, with this exception.
    """
    path = file.path
    if not file.compiled:
        if not getattr(model, "compiled", False):
            return CompiledPart()
        _uncompile(model)
        return CompiledPart(
            f"{path!r} was saved without being compiled, and the class {type(model).__name__} compiles itself when it "
            "is made, with values of its own; give `loss` and `learning_rate`."
        )
    recompiled = file.is_of_keras_2 or (_overrides(model, *_COMPILING) and not _is_as_stored(model, file))
    if recompiled:
        failure = None
        try:
            _compile_as_stored(model, file, safe_mode)
        except Exception as error:
            failure = error
    if failure is not None:
        _uncompile(model)
        return CompiledPart(_why_not_compiled(file, failure, custom_objects))
    stored_loss = _stored_loss(model, file)
    names_optimizer = "optimizer" in file.compiled or "loss" not in file.compiled  # neither: in the class's own words
    if not file.is_h5 and not names_optimizer and not _overrides(model, "compile_from_config"):
        # Keras' default (rmsprop) was put in its place.
        model.optimizer = None
        return CompiledPart(
            f"{path!r} does not name its optimizer (Keras leaves it out of a model that was saved as .h5 before); save "
            "the model as .keras right after training, or give `learning_rate`.",
            stored_loss,
        )
    lost = restore_slots(model, file, messages, recompiled=recompiled)
    if lost is None:
        return CompiledPart(None, stored_loss)
    name = type(getattr(model.optimizer, "inner_optimizer", model.optimizer)).__name__
    problem = f"the optimizer's state in {path!r} (moments or velocities of {name}) could not be restored: {lost}."
    return CompiledPart(problem, stored_loss)


def _overrides(model: Model, *methods: str) -> bool:
    """Whether the model's class has one of these methods of its own."""
    return any(getattr(type(model), name) is not getattr(keras.Model, name) for name in methods)


def _is_as_stored(model: Model, file: ModelFile) -> bool:
    """Whether a class that restores its own compiled part has restored what its file holds."""
    if file.is_h5 or not _overrides(model, "compile_from_config") or not getattr(model, "compiled", False):
        return False
    now = model.get_compile_config()
    has_keras_parts = bool({"optimizer", "loss"} & set(file.compiled))
    return isinstance(now, dict) and all(
        _agree(stored, now.get(name))
        for name, stored in file.compiled.items()
        if name in ("optimizer", "loss", "loss_weights") or not has_keras_parts
    )


def _agree(stored: Config, now: Config) -> bool:
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


def _compile_as_stored(model: Model, file: ModelFile, safe_mode: bool) -> None:
    """Compiles a model with the optimizer, loss, weights and metrics of its file; raises whatever Keras raises."""
    stored = keras2.translated(file.compiled) if file.is_of_keras_2 else file.compiled
    if file.is_h5 or file.is_of_keras_2:
        arguments = _h5_arguments(stored)
    else:
        read = keras.saving.deserialize_keras_object
        arguments = {name: read(value, safe_mode=safe_mode) for name, value in stored.items()}
    if not {"optimizer", "loss"} & set(arguments):  # of get_compile_config() of its own, and its own compile() knows
        model.compile(**arguments)
    else:
        compile_as(model, arguments)
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and model.built and not file.is_h5:
        optimizer.build(model.trainable_variables)


def _h5_arguments(stored: Mapping[str, Config]) -> dict[str, object]:
    def each(read: Callable[[Config], Config], config: Config) -> Config:
        if isinstance(config, dict) and "class_name" not in config:
            return {name: each(read, value) for name, value in config.items()}
        if isinstance(config, list):
            return [each(read, value) for value in config]
        return config if config is None else read(config)

    def metric(config: Config) -> Config:  # words such as "accuracy" are for compile()
        return config if isinstance(config, str) else keras.metrics.deserialize(config)

    return {
        "optimizer": keras.optimizers.get(stored["optimizer_config"]),
        "loss": each(keras.losses.get, stored.get("loss")),
        "loss_weights": stored.get("loss_weights"),
        "metrics": each(metric, stored.get("metrics")),
        "weighted_metrics": each(metric, stored.get("weighted_metrics")),
    }


def _uncompile(model: Model) -> None:
    """Takes from a model the loss and optimizer that its class has given it."""
    if getattr(model, "compiled", False):
        model.compiled = False
        model.optimizer, model.loss = None, None
        model._compile_loss, model._compile_metrics = None, None


def _stored_loss(model: Model, file: ModelFile) -> StoredLoss:
    outputs = getattr(model, "outputs", None) or []
    return StoredLoss(
        loss=getattr(model, "loss", None),
        config=file.compiled.get("loss"),
        of_keras_2=file.is_of_keras_2,
        # A model that does not tell its outputs is taken to have one vector for each example, as nearly all have.
        flat=all(len(output.shape) <= _FLAT for output in outputs),
        arguments=() if _overrides(model, "compile_from_config") else tuple(_unstored_arguments(model, file.compiled)),
    )


def _why_not_compiled(file: ModelFile, error: Exception, custom_objects: Mapping[str, object]) -> str:
    stored = file.compiled
    parts = [f"{label} {_names(stored[key])}" for key, label in _LABELS.items() if stored.get(key)]
    reason = innermost_reason(error)
    advice = "Give `loss` and `learning_rate`, with values as the file has them."
    _, unknown = unknown_name(error) or ("", "")
    if unknown and is_name_of_keras(unknown):
        reason = homonym(unknown)
    elif unknown or "string indices must be integers" in reason:  # how the .h5 reader fails on an unknown function
        reason = f"Keras does not know '{unknown}'" if unknown else "Keras does not know one of these names"
        if not any(unknown and unknown in name for name in custom_objects):
            advice = (
                "Give the Python file that defines its own parts with `custom_objects=FILE`, or say `loss` and "
                "`learning_rate`."
            )
    elif "argument" in reason:
        advice = "Give `loss` and `learning_rate`, or give the class a get_config() that holds it and save again."
    by = f", which was written by Keras 2 (version {file.version})," if file.is_of_keras_2 else ""
    return (
        f"{file.path!r}{by} was loaded without its compiled part ({', '.join(parts) or 'unreadable'}): {reason}. "
        f"{advice}"
    )


def _names(config: Config) -> str:
    """Names in a serialised loss, optimizer or metric, or in a structure of them."""
    if isinstance(config, dict) and "class_name" in config:
        function = config["class_name"] == "function"
        return f"'{config.get('config') if function else config['class_name']}'"
    if isinstance(config, (dict, list)):
        configs = config.values() if isinstance(config, dict) else config
        return "[" + ", ".join(_names(each) for each in configs if each) + "]"
    return f"'{config}'"


def compile_as(model: Model, arguments: Mapping[str, object]) -> None:
    """Compiles a built model with exactly these arguments of `keras.Model.compile`, whatever its class makes of them.

    A compile() of the class's own runs first, with the arguments that it takes (others than Keras' too), for the
    attributes that it sets beside Keras' own; optimizer, loss and metrics that it puts in the place of those given do
    not stay.
    """
    if _overrides(model, "compile"):
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.compile(**_accepted(type(model).compile, arguments))
    keras.Model.compile(model, **_accepted(keras.Model.compile, arguments))


def _unstored_arguments(model: Model, arguments: Mapping[str, object]) -> list[str]:
    """Further arguments of a class's own compile() on which the loss may depend."""
    if not _overrides(model, "compile"):
        return []
    cls = type(model)
    computes = ("compute_loss", "_compute_loss", "train_step")
    if all(getattr(cls, name) in (getattr(keras.Model, name), getattr(keras.Sequential, name)) for name in computes):
        return []
    standard = inspect.signature(keras.Model.compile).parameters
    return [name for name in _named(cls.compile) if name not in standard and name not in arguments]


def _named(function: Callable[..., object]) -> list[str]:
    parameters = list(inspect.signature(function).parameters.values())[1:]
    return [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]


def _accepted(function: Callable[..., object], arguments: Mapping[str, object]) -> dict[str, object]:
    """Arguments that a function takes by name."""
    if any(each.kind is each.VAR_KEYWORD for each in inspect.signature(function).parameters.values()):
        return dict(arguments)
    return {name: arguments[name] for name in _named(function) if name in arguments}
