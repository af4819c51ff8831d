"""Compiling a model whose class has a compile() of its own."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable, Mapping

import keras

from sdkeras.files.keras_types import Model


def has_own_compile(model: Model) -> bool:
    """Whether the model's class overrides compile()."""
    return type(model).compile is not keras.Model.compile


def compile_as(model: Model, arguments: Mapping[str, object]) -> None:
    """Compiles a model with exactly these arguments of `keras.Model.compile`, whatever its class makes of them.

    A compile() of the class's own runs first, with the arguments that it takes, for the attributes that it sets beside
    Keras' own; optimizer, loss and metrics that it puts in the place of those given do not stay.

    Args:
        model: A built `keras.Model`.
        arguments: Arguments of `keras.Model.compile`; others reach the class's own only.
    """
    if has_own_compile(model):
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.compile(**_accepted(type(model).compile, arguments))
    keras.Model.compile(model, **_accepted(keras.Model.compile, arguments))


def unstored_compile_arguments(model: Model, arguments: Mapping[str, object]) -> list[str]:
    """Further arguments of a class's own compile() on which the loss may depend."""
    if not has_own_compile(model):
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
