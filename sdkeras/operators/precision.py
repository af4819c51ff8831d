"""Copies of a Keras model: in another floating-point precision, loss included, or with new weights."""

from __future__ import annotations

import contextlib
import random
import tempfile
import types
from collections.abc import Iterable, Iterator

import keras
import numpy as np
import tensorflow as tf

from sdkeras.errors import ModelError
from sdkeras.files.compiled_part import compile_as
from sdkeras.files.keras_types import Config, Loss, Model, Variable, layers_of
from sdkeras.files.user_code import last_line
from sdkeras.operators.modes import MIXED

_FLOATS = ("float16", "bfloat16", "float32", "float64", "mixed_float16", "mixed_bfloat16")


def of_vectors(dtype: str) -> str:
    """Precision of weights, gradients and losses: the layers' own unless that is mixed."""
    return "float32" if dtype == MIXED else dtype


def is_pure(model: Model, dtype: str) -> bool:
    """Whether every layer and the loss compute, and every trainable variable is stored, in this precision.

    A mixed one allows for layers in float32 beside it.
    """
    layers = [layer for layer in layers_of(model) if not isinstance(layer, keras.layers.InputLayer)]
    losses = [loss for loss in tf.nest.flatten(getattr(model, "loss", None)) if isinstance(loss, keras.losses.Loss)]
    compiled = getattr(model, "_compile_loss", None)
    policies = {layer.dtype_policy.name for layer in layers}
    dtypes = {
        *(keras.backend.standardize_dtype(variable.dtype) for variable in model.trainable_variables),
        *(loss.dtype for loss in (*losses, compiled) if loss is not None),
    }
    if dtype == MIXED:
        return MIXED in policies and policies <= {MIXED, "float32"} and dtypes <= {"float32"}
    return policies | dtypes <= {dtype}


def reduced_policies(model: Model) -> tuple[str, ...]:
    """Names of the 16-bit and mixed policies in which layers of the model compute."""
    names = {layer.dtype_policy.name for layer in layers_of(model) if hasattr(layer, "dtype_policy")}
    return tuple(sorted(name for name in names if name.endswith("16")))


def in_precision(model: Model, dtype: str) -> Model:
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
        clone = _rebuilt(model, dtype)
        with default_precision(dtype):
            if getattr(model, "compiled", False):
                settings = model._compile_config.config if model._compile_config else {}
                weights = settings.get("loss_weights")
                arguments = {
                    "optimizer": "sgd",
                    "loss": _loss_in(model.loss, of_vectors(dtype)),
                    "loss_weights": weights,
                }
                compile_as(clone, arguments)
    except Exception as error:  # user classes may raise anything when rebuilt
        raise ModelError(
            f"the model cannot be rebuilt in {dtype} from its configuration "
            f"({last_line(error)}); give its custom layers and losses a working get_config()."
        ) from error
    with default_precision(dtype):
        _copy_weights(model, clone)
        _copy_learned(model, clone)
    if not is_pure(clone, dtype):
        raise ModelError(f"some layers of the model stay in another precision than {dtype} when rebuilt.")
    return clone


def at_initialisation(model: Model, seed: int) -> Model:
    """An uncompiled copy of the model as it was before training, in float32.

    Trainable weights are drawn anew by their initializers, from the seed where these have none of their own, and the
    averages of batch normalization are fresh. Everything else stays: frozen layers, statistics of adapted ones.

    Raises:
        ModelError: The model has no working configuration.
    """
    state = random.getstate()  # from which Keras draws the seeds of initializers
    try:
        random.seed(seed)
        clone = _rebuilt(model, "float32")
    except Exception as error:  # user classes may raise anything when rebuilt
        raise ModelError(
            f"the model cannot be rebuilt from its configuration ({last_line(error)}); give its custom layers a "
            "working get_config()."
        ) from error
    finally:
        random.setstate(state)
    _check_alike(model, clone)
    averages = {
        id(variable)
        for layer in layers_of(clone)
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
        for variable in (layer.moving_mean, layer.moving_variance)
    }
    for variable, copied in zip(model.non_trainable_variables, clone.non_trainable_variables, strict=True):
        if id(copied) not in averages:
            copied.assign(np.asarray(variable))
    return clone


def _rebuilt(model: Model, dtype: str) -> Model:
    """The model from its configuration, built as far as that is known, with weights of its own."""
    custom = {type(layer).__name__: type(layer) for layer in layers_of(model)}
    with _named_functions(model) as functions, default_precision(dtype):
        config = keras.saving.serialize_keras_object(model)
        config.pop("compile_config", None)
        # Not in a scope, which would hide the classes of the scope around it.
        known = {**custom, **functions}
        clone = keras.saving.deserialize_keras_object(_rewritten(config, dtype), custom_objects=known)
        if not clone.built and model.built:
            clone.build(model.input_shape)
    return clone


@contextlib.contextmanager
def default_precision(dtype: str) -> Iterator[None]:
    """While it lasts, Keras makes new layers and losses in `dtype`; a compiled loss is made on its first call."""
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx(of_vectors(dtype))
    keras.config.set_dtype_policy(dtype)
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)


def require_same_loss(original: float, rebuilt: float, dtype: str, rounding: float = 0.0) -> None:
    """Refuses a model rebuilt in `dtype` whose loss of the same batch is another function, not the same one rounded.

    `rounding` is how much the original loss, in float32, changes if each weight is moved by one rounding: it may be a
    small difference of large outputs.

    Raises:
        ModelError: The losses differ by more than 1e-3 of their size.
    """
    if not np.isfinite(original):  # it overflows: there is nothing to compare
        return
    # 1e-5: a loss near zero is all rounding (and Keras clips probabilities at 1e-7). 30: products and sums round, too.
    if not abs(original - rebuilt) <= 1e-3 * max(abs(original), abs(rebuilt)) + 1e-5 + 30 * rounding:
        raise ModelError(
            f"the model rebuilt in {dtype} from its configuration has another loss ({rebuilt:.6g} instead of "
            f"{original:.6g}); some layer or loss leaves something out of its get_config()."
        )


def _rewritten(config: Config, dtype: str) -> Config:
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            return {**config, "config": {"name": dtype}}
        if config.get("class_name") in ("InputLayer", "__keras_tensor__"):  # what has a dtype and no policy
            dtype = of_vectors(dtype)
        return {
            key: dtype if key == "dtype" and value in _FLOATS else _rewritten(value, dtype)
            for key, value in config.items()
        }
    if isinstance(config, (list, tuple)):
        return type(config)(_rewritten(item, dtype) for item in config)
    return config


def _loss_in(loss: Loss, dtype: str) -> Config:
    if isinstance(loss, dict):
        return {name: _loss_in(each, dtype) for name, each in loss.items()}
    if isinstance(loss, (list, tuple)):
        return [_loss_in(each, dtype) for each in loss]
    if isinstance(loss, keras.losses.Loss):
        rebuilt = type(loss).from_config(loss.get_config())
        if keras.backend.standardize_dtype(rebuilt.dtype) != dtype:
            rebuilt = type(loss).from_config({**loss.get_config(), "dtype": dtype})
        if hasattr(loss, "_fn_kwargs"):  # Keras leaves options out of some configurations, as Huber's delta
            rebuilt._fn_kwargs = dict(loss._fn_kwargs)
        return rebuilt
    return loss


@contextlib.contextmanager
def _named_functions(model: Model) -> Iterator[dict[str, types.FunctionType]]:
    """The user's functions in a model, by the names under which Keras writes them into a configuration meanwhile.

    Keras writes the code of a lambda, which only unsafe loading reads, and finds no function by its name alone.
    """
    functions: dict[int, types.FunctionType] = {}
    _collect_functions(list(layers_of(model)), functions, {})
    names = {f"sdkeras_function_{number}": function for number, function in enumerate(functions.values())}
    before = {name: function.__name__ for name, function in names.items()}
    for name, function in names.items():
        function.__name__ = name
    try:
        yield names
    finally:
        for name, function in names.items():
            function.__name__ = before[name]


def _collect_functions(value: object, functions: dict[int, types.FunctionType], seen: dict[int, object]) -> None:
    """Functions of no package, in layers and in what these are made of (activations, initializers, cells)."""
    if id(value) in seen:
        return
    seen[id(value)] = value  # kept alive, so that no other object takes its id
    if isinstance(value, types.FunctionType):
        if not (value.__module__ or "").startswith(("keras.", "tensorflow.")):
            functions[id(value)] = value
        return
    items: Iterable[object] = ()
    if isinstance(value, (dict, list, tuple)):
        items = value.values() if isinstance(value, dict) else value
    elif hasattr(value, "get_config") and hasattr(value, "__dict__"):
        items = list(vars(value).values())
    for item in items:
        _collect_functions(item, functions, seen)


def _copy_learned(model: Model, clone: Model) -> None:
    """Copies what layers hold outside their variables, by the means with which Keras saves and loads it."""
    try:
        for layer, copied in zip(layers_of(model), layers_of(clone), strict=True):
            if type(layer) is not type(copied):
                raise ValueError(f"{type(copied).__name__} in place of {type(layer).__name__}")
            if hasattr(layer, "save_assets"):
                store: dict[str, object] = {}
                layer.save_own_variables(store)
                copied.load_own_variables(store)
                with tempfile.TemporaryDirectory(prefix="sdkeras-") as folder:
                    layer.save_assets(folder)
                    copied.load_assets(folder)
            elif hasattr(layer, "finalize_state") and layer.variables:
                copied.finalize_state()
    except Exception as error:  # user classes may raise anything
        raise ModelError(f"the state of the model's layers cannot be copied ({last_line(error)}).") from error


def _copy_weights(model: Model, clone: Model) -> None:
    for variable, copied in _check_alike(model, clone):
        copied.assign(np.asarray(variable))


def _check_alike(model: Model, clone: Model) -> list[tuple[Variable, Variable]]:
    """The variables of both, which must have the same shapes.

    Raises:
        ModelError: They have not.
    """
    variables, copies = ([*each.trainable_variables, *each.non_trainable_variables] for each in (model, clone))
    if [tuple(v.shape) for v in variables] != [tuple(v.shape) for v in copies]:
        raise ModelError("the model rebuilt from its configuration has other variables than the model itself.")
    return list(zip(variables, copies, strict=True))
