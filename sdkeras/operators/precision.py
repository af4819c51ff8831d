"""The same Keras model, loss included, in another floating-point precision."""

from __future__ import annotations

import contextlib
import re
import tempfile
import types
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from sdkeras.errors import ModelError
from sdkeras.files.compiling import compile_as

_FLOATS = ("float16", "bfloat16", "float32", "float64", "mixed_float16", "mixed_bfloat16")


def reason(error: BaseException) -> str:
    """Type and text of an exception in one line; Keras and TensorFlow write several, some in bold."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    line = " ".join(f"{type(error).__name__}: {text}".split())
    return line if len(line) <= 300 else f"{line[:297]}..."


def is_pure(model: Any, dtype: str) -> bool:
    """Whether every layer and the loss compute, and every trainable variable is stored, in this precision."""
    loss = getattr(model, "_compile_loss", None)
    parts = [part for part in tf.nest.flatten(getattr(model, "loss", None)) if isinstance(part, keras.losses.Loss)]
    return (
        all(
            layer.dtype_policy.name == dtype
            for layer in model._flatten_layers()
            if not isinstance(layer, keras.layers.InputLayer)
        )
        and all(keras.backend.standardize_dtype(variable.dtype) == dtype for variable in model.trainable_variables)
        and (loss is None or loss.dtype == dtype)
        and all(part.dtype == dtype for part in parts)
    )


def reduced_policies(model: Any) -> tuple[str, ...]:
    """Names of the 16-bit and mixed policies in which layers of the model compute."""
    names = {layer.dtype_policy.name for layer in model._flatten_layers() if hasattr(layer, "dtype_policy")}
    return tuple(sorted(name for name in names if name.endswith("16")))


def in_precision(model: Any, dtype: str) -> Any:
    """A compiled copy of the model with every layer and loss in `dtype` and the same weights.

    Layers and losses are rebuilt from their configurations: a loss object loaded from a file keeps float32
    and would round a float64 gradient to 6e-8 otherwise. Functions that layers hold are shared with the copy, never
    rebuilt from code in a configuration, which could be anybody's. Keras lets the copies of some layers (lookups,
    `Normalization`) hold what they learned outside their variables; that is copied as well.

    Raises:
        ModelError: The model or its loss has no working configuration, or something stays in another
            precision.
    """
    try:
        custom = {type(layer).__name__: type(layer) for layer in model._flatten_layers()}
        with _named_functions(model) as functions, default_precision(dtype):
            config = keras.saving.serialize_keras_object(model)
            config.pop("compile_config", None)
            # Not in a scope, which would hide the classes of the scope around it.
            known = {**custom, **functions}
            clone = keras.saving.deserialize_keras_object(_rewritten(config, dtype), custom_objects=known)
            if not clone.built and model.built:
                clone.build(model.input_shape)
        with default_precision(dtype):
            if getattr(model, "compiled", False):
                weights = model._compile_config.config.get("loss_weights") if model._compile_config else None
                arguments = {"optimizer": "sgd", "loss": _loss_in(model.loss, dtype), "loss_weights": weights}
                compile_as(clone, arguments)
    except Exception as error:  # user classes may raise anything when rebuilt
        raise ModelError(
            f"the model cannot be rebuilt in {dtype} from its configuration "
            f"({reason(error)}); give its custom layers and losses a working get_config()."
        ) from error
    with default_precision(dtype):
        _copy_weights(model, clone)
        _copy_learned(model, clone)
    if not is_pure(clone, dtype):
        raise ModelError(f"some layers of the model stay in another precision than {dtype} when rebuilt.")
    return clone


@contextlib.contextmanager
def default_precision(dtype: str) -> Iterator[None]:
    """While it lasts, Keras makes new layers and losses in `dtype`; a compiled loss is made on its first call."""
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)


def require_same_loss(original: float, rebuilt: float, dtype: str, rounding: float = 0.0) -> None:
    """Refuses a rebuilt model whose loss is another function, not the same one up to rounding.

    Args:
        original: Loss of a batch in float32; if it overflows, there is nothing to compare.
        rebuilt: Loss of the same batch by the rebuilt model.
        dtype: Of the rebuilt model.
        rounding: How much the original loss changes if each weight is moved by one rounding: the loss may be a small
            difference of large outputs.

    Raises:
        ModelError: The losses of the same batch differ by more than 1e-3 of their size.
    """
    if not np.isfinite(original):
        return
    # 1e-5: a loss near zero is all rounding (and Keras clips probabilities at 1e-7). 30: products and sums round, too.
    if not abs(original - rebuilt) <= 1e-3 * max(abs(original), abs(rebuilt)) + 1e-5 + 30 * rounding:
        raise ModelError(
            f"the model rebuilt in {dtype} from its configuration has another loss ({rebuilt:.6g} instead of "
            f"{original:.6g}); some layer or loss leaves something out of its get_config()."
        )


def _rewritten(config: Any, dtype: str) -> Any:
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            return {**config, "config": {"name": dtype}}
        return {
            key: dtype if key == "dtype" and value in _FLOATS else _rewritten(value, dtype)
            for key, value in config.items()
        }
    if isinstance(config, (list, tuple)):
        return type(config)(_rewritten(item, dtype) for item in config)
    return config


def _loss_in(loss: Any, dtype: str) -> Any:
    if isinstance(loss, dict):
        return {name: _loss_in(part, dtype) for name, part in loss.items()}
    if isinstance(loss, (list, tuple)):
        return [_loss_in(part, dtype) for part in loss]
    if isinstance(loss, keras.losses.Loss):
        rebuilt = type(loss).from_config(loss.get_config())
        if keras.backend.standardize_dtype(rebuilt.dtype) != dtype:
            rebuilt = type(loss).from_config({**loss.get_config(), "dtype": dtype})
        if hasattr(loss, "_fn_kwargs"):  # Keras leaves options out of some configurations, as Huber's delta
            rebuilt._fn_kwargs = dict(loss._fn_kwargs)
        return rebuilt
    return loss


@contextlib.contextmanager
def _named_functions(model: Any) -> Iterator[dict[str, Any]]:
    """The user's functions in a model, by the names under which Keras writes them into a configuration meanwhile.

    Keras writes the code of a lambda, which only unsafe loading reads, and finds no function by its name alone.
    """
    functions: dict[int, Any] = {}
    _collect_functions(list(model._flatten_layers()), functions, {})
    names = {f"sdkeras_function_{number}": function for number, function in enumerate(functions.values())}
    before = {name: function.__name__ for name, function in names.items()}
    for name, function in names.items():
        function.__name__ = name
    try:
        yield names
    finally:
        for name, function in names.items():
            function.__name__ = before[name]


def _collect_functions(value: Any, functions: dict[int, Any], seen: dict[int, Any]) -> None:
    """Functions of no package, in layers and in what these are made of (activations, initializers, cells)."""
    if id(value) in seen:
        return
    seen[id(value)] = value  # kept alive, so that no other object takes its id
    if isinstance(value, types.FunctionType):
        if not (value.__module__ or "").startswith(("keras.", "tensorflow.")):
            functions[id(value)] = value
        return
    if isinstance(value, dict):
        items = list(value.values())
    elif isinstance(value, (list, tuple)):
        items = list(value)
    else:
        items = list(vars(value).values()) if hasattr(value, "get_config") and hasattr(value, "__dict__") else []
    for item in items:
        _collect_functions(item, functions, seen)


def _copy_learned(model: Any, clone: Any) -> None:
    """Copies what layers hold outside their variables, by the means with which Keras saves and loads it.

    Raises:
        ModelError: The copy has other layers.
    """
    layers, copies = model._flatten_layers(), clone._flatten_layers()
    try:
        for layer, copied in zip(layers, copies, strict=True):
            if type(layer) is not type(copied):
                raise ValueError(f"{type(copied).__name__} in place of {type(layer).__name__}")
            if hasattr(layer, "save_assets"):
                store: dict[str, Any] = {}
                layer.save_own_variables(store)
                copied.load_own_variables(store)
                with tempfile.TemporaryDirectory(prefix="sdkeras-") as folder:
                    layer.save_assets(folder)
                    copied.load_assets(folder)
            elif hasattr(layer, "finalize_state") and layer.variables:
                copied.finalize_state()
    except Exception as error:  # user classes may raise anything
        raise ModelError(f"the state of the model's layers cannot be copied ({reason(error)}).") from error


def _copy_weights(model: Any, clone: Any) -> None:
    own, copied = _state(model), _state(clone)
    if [tuple(v.shape) for v in own] != [tuple(v.shape) for v in copied]:
        raise ModelError("the model rebuilt from its configuration has other variables than the model itself.")
    for variable, copy in zip(own, copied, strict=True):
        copy.assign(np.asarray(variable))


def _state(model: Any) -> list[Any]:
    return [*model.trainable_variables, *model.non_trainable_variables]
