"""Saved models, read and checked. Nothing is ever unpickled.

Everything wrong with a file is a `ModelError` whose one message says what is wrong, what was given and what to do.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np

from sdkeras.errors import ModelError
from sdkeras.files import keras2
from sdkeras.files.compiled_part import CompiledPart, restore_compiled_part
from sdkeras.files.keras_types import Model, layers_of
from sdkeras.files.model_file import ModelFile, damaged, read_model_file
from sdkeras.files.optimizer_slots import restart
from sdkeras.files.reading import compile_warnings, homonym, innermost_reason, unknown_name
from sdkeras.files.user_code import is_name_of_keras, last_line

_COMPILED_PART = "_sdkeras_compiled_part"
# Names that Keras 3 writes into .h5 files (compile(loss="mse")) and cannot read back from them.
_H5_LOSS_NAMES = ("mse", "mae", "mape", "msle", "bce", "kld", "MSE", "MAE", "MAPE", "MSLE", "BCE", "KLD")
_UNSAFE = re.compile(r"safe_mode|unsafe.deserialization", re.IGNORECASE)
# What Keras refuses in safe mode that is no code in the file, but another file.
_OUTSIDE_WORDS = {
    "vocabulary file outside": "the vocabulary of a layer from a file outside of it",
    "external SavedModel": "a SavedModel outside of it (TFSMLayer)",
}
_OUTSIDE = re.compile("|".join(_OUTSIDE_WORDS))


def load_model(path: str, *, custom_objects: Mapping[str, object] | None = None, safe_mode: bool = True) -> Model:
    """Reads a saved model and checks that it can be analysed.

    If only the compiled part (loss, optimizer, metrics) cannot be restored, the model comes back uncompiled and
    `compile_problem(model)` says why: its weights can still be analysed with a loss and a learning rate given.
    The user's own classes and functions (`load_custom_objects`) are known to Keras during this call only;
    `safe_mode=False` lets it run the Lambda code stored in the file. Reduced-precision policies (float16, bfloat16) are
    kept as they are.

    Raises:
        ModelError: The file is missing, unreadable or not a whole Keras model; it needs user code that was not
            given, or `safe_mode=False`; a weight is not finite; the model is quantised, was never built, or
            has no trainable parameters.
    """
    file = read_model_file(path)
    model, compiled_part = _load(file, custom_objects or {}, safe_mode)
    _check_kind(path, model)
    _check_finite(path, model)
    setattr(model, _COMPILED_PART, compiled_part)
    return model


def compile_problem(model: Model) -> str | None:
    """Why loss and optimizer of a loaded model are missing or not as they were saved; None if nothing is wrong."""
    return compiled_part_of(model).problem


def compiled_part_of(model: Model) -> CompiledPart:
    """State of a loaded model's compiled part; empty for a model that was not loaded."""
    compiled_part: CompiledPart = getattr(model, _COMPILED_PART, CompiledPart())
    return compiled_part


def load_weights(path: str, model: Model) -> str:
    """Reads a `.weights.h5` file into a model and its optimizer.

    Where the file holds no state of the optimizer, it is that of an optimizer that has made no step.

    Returns:
        What of the optimizer could not be read, or "".

    Raises:
        ModelError: Missing, damaged, of another architecture, or not finite.
    """
    optimizer = getattr(model, "optimizer", None)
    num_saved = _num_saved_slots(path)
    if optimizer is not None and not optimizer.built:
        optimizer.build(model.trainable_variables)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.load_weights(path)
    except Exception as error:  # another architecture fails in many ways
        raise ModelError(
            f"the weights in {path!r} do not fit the model: {innermost_reason(error) or last_line(error)}; give the "
            "model they were saved from (`model`)."
        ) from error
    lost = ""
    if optimizer is not None:
        if not num_saved:
            lost = "the file holds no state of the optimizer"
        elif any("Skipping variable loading for optimizer" in str(warning.message) for warning in caught):
            lost = f"the file's optimizer has {num_saved} variables, the model's {len(optimizer.variables)}"
    if lost:
        restart(optimizer, model)
        lost += "; it is as if no step had been made."
    _check_finite(path, model)
    return lost


def _num_saved_slots(path: str) -> int:
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
        raise damaged(path, "weights", last_line(error)) from error


def _load(file: ModelFile, custom_objects: Mapping[str, object], safe_mode: bool) -> tuple[Model, CompiledPart]:
    if file.is_h5:
        custom_objects = {**{name: keras.losses.get(name) for name in _H5_LOSS_NAMES}, **custom_objects}
    options = {"custom_objects": custom_objects, "safe_mode": safe_mode}
    with contextlib.ExitStack() as stack:
        stack.enter_context(keras.saving.custom_object_scope(custom_objects))
        # Keras gives a loaded model the policy of the session; under float32 it would drop the loss scaling of a
        # mixed_float16 optimizer and then, since the variables do not match, its slots.
        if file.policy == "mixed_float16":
            stack.callback(keras.config.set_dtype_policy, keras.config.dtype_policy())
            keras.config.set_dtype_policy(file.policy)
        messages = stack.enter_context(compile_warnings())
        failure: Exception | None = None
        try:
            # Keras 3 gives optimizers of Keras 2 their default settings.
            model = keras.saving.load_model(file.path, compile=not file.is_of_keras_2, **options)
        except Exception as error:
            failure = error
            try:
                model = keras.saving.load_model(file.path, compile=False, **options)
            except Exception as again:
                raise ModelError(_why_not_loaded(file, again, safe_mode)) from again
        return model, restore_compiled_part(model, file, failure, messages, custom_objects, safe_mode)


def _why_not_loaded(file: ModelFile, error: Exception, safe_mode: bool) -> str:
    path, text = file.path, str(error)
    kind, name = unknown_name(error) or ("", "")
    if name:
        if file.is_of_keras_2 and name in keras2.CLASSES:
            return keras2.cannot_load(file, f"it uses its {kind} '{name}'")
        if is_name_of_keras(name):
            return f"model file {path!r} cannot be loaded: {homonym(name)}."
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
    reason = innermost_reason(error) or type(error).__name__
    if file.is_of_keras_2:
        return keras2.cannot_load(file, reason)
    return (
        f"model file {path!r} cannot be loaded: {reason}; it is damaged, or was written by another Keras version or "
        "with user code that `custom_objects=FILE` must supply."
    )


def _check_kind(path: str, model: Model) -> None:
    if not isinstance(model, keras.Model):
        raise ModelError(f"model file {path!r} holds a {type(model).__name__}, not a keras.Model; save a model.")
    if not model.built:
        raise ModelError(
            f"the model in {path!r} was saved before it was built, so it has no weights; call it on some data (or "
            "train it), then save it again."
        )
    quantized = [layer.name for layer in layers_of(model) if getattr(layer, "quantization_mode", None)]
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


def _check_finite(path: str, model: Model) -> None:
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
