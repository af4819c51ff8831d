"""Keras optimizers seen from outside: the wrapped and the delegated ones, and second ones with the same state."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from sdkeras.errors import ModelError
from sdkeras.files.keras_types import Optimizer, Tensor, Variable
from sdkeras.operators import precision
from sdkeras.operators.loss import EmpiricalLoss
from sdkeras.results.arrays import Array
from sdkeras.training_step.settings import inner, schedule_of

_EXCLUSIONS = ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern")


def parts_of(optimizer: Optimizer) -> list[Optimizer]:
    """The optimizer, followed by those it delegates to."""
    return [optimizer, *getattr(optimizer, "_inner_optimizers", [])]


def scheduled_parts(optimizer: Optimizer) -> list[Optimizer]:
    """Optimizers of `parts_of` whose learning rate follows a schedule. A `MultiOptimizer` itself has no rate."""
    return [each for each in parts_of(optimizer) if schedule_of(each) is not None]


def is_function(rate: object) -> bool:
    """Whether a learning rate is a plain Python function, neither a number nor a schedule."""
    return callable(rate) and not isinstance(rate, (keras.Variable, keras.optimizers.schedules.LearningRateSchedule))


def is_float(variable: Variable) -> bool:
    return bool(tf.as_dtype(variable.dtype).is_floating)


def stored(variable: Variable) -> Tensor:
    """The resource behind a Keras variable, whatever scope is on."""
    return variable._value if isinstance(variable, keras.Variable) else variable  # noqa: SLF001  # `value` is the scope's


def value_of(variable: Variable) -> Array:
    """The stored value, whatever scope is on."""
    return np.asarray(stored(variable))


def replica(variable: Variable, dtype: str | None = None) -> Variable:
    """A new variable with the same value, path and constraint; in another precision if it is a floating-point one."""
    dtype = (dtype if is_float(variable) else None) or variable.dtype
    copy = keras.Variable(value_of(variable), dtype=dtype, trainable=variable.trainable, name=variable.name)
    copy._path = variable.path  # noqa: SLF001  # `path` has no setter
    copy.constraint = variable.constraint
    return copy


def loaded_clone(optimizer: Optimizer, variables: Sequence[Variable]) -> Optimizer:
    """A second real optimizer for these variables, made from the first's configuration and loaded with its state.

    The variables stand for those that the first trains, in its order, in any precision. A clone of an optimizer that
    was never built has the slots it starts training with.

    Raises:
        ModelError: It cannot be rebuilt from its configuration.
    """
    optimizer = inner(optimizer)
    name = type(optimizer).__name__
    try:
        with precision.default_precision(str(variables[0].dtype)):
            clone = _rebuilt(optimizer)
            _copy_exclusions(optimizer, clone, variables)
            clone.build(list(variables))
    except Exception as error:  # a user's class may raise anything
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
        raise ModelError(
            f"the optimizer {name} cannot be rebuilt from its configuration "
            f"({type(error).__name__}: {reason}); give it a working get_config()."
        ) from error
    if optimizer.built:
        if [tuple(v.shape) for v in optimizer.variables] != [tuple(v.shape) for v in clone.variables]:
            raise ModelError(
                f"the optimizer {name} rebuilt from its configuration has other variables than the original; its "
                "get_config() leaves something out."
            )
        for source, target in zip(optimizer.variables, clone.variables, strict=True):
            target.assign(value_of(source))
    return clone


def _rebuilt(optimizer: Optimizer) -> Optimizer:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*includes a `lambda`")
        config = dict(optimizer.get_config())
    if is_function(getattr(optimizer, "_learning_rate", None)):
        config["learning_rate"] = optimizer._learning_rate  # nothing Keras would rebuild
    config.update({name: None for name in ("loss_scale_factor", "ema_overwrite_frequency") if name in config})
    with keras.saving.custom_object_scope({type(optimizer).__name__: type(optimizer)}):
        return type(optimizer).from_config(config)


def _copy_exclusions(optimizer: Optimizer, clone: Optimizer, variables: Sequence[Variable]) -> None:
    """Excludes from weight decay what the original excludes; no configuration holds it."""
    originals = list(optimizer._trainable_variables) or list(variables)
    for each, other in zip(parts_of(optimizer), parts_of(clone), strict=True):
        keys = {each._var_key(a): each._var_key(b) for a, b in zip(originals, variables, strict=True)}
        for name in set(_EXCLUSIONS) & vars(each).keys():
            excluded = vars(each)[name]
            vars(other)[name] = {keys.get(key, key) for key in excluded} if isinstance(excluded, set) else excluded


def with_slots(loss: EmpiricalLoss, optimizer: Optimizer, initial_slots: bool) -> Optimizer:
    """The optimizer if it fits the loss and has its slots, otherwise a stand-in with those it would start with.

    Raises:
        ModelError: It is no Keras optimizer, was built for other variables than the loss's, or has no slots and
            `initial_slots` is False; or the weights have changed since the loss was made.
    """
    optimizer = inner(optimizer)
    if not hasattr(optimizer, "update_step") or not hasattr(optimizer, "_trainable_variables"):
        raise ModelError(
            f"expected the model's Keras optimizer, got {type(optimizer).__name__}; give model.optimizer of a "
            "compiled model."
        )
    if not np.array_equal(loss.layout.flatten(loss.variables, loss.dtype), loss.point):
        raise ModelError("the model's weights have changed since the loss was made; make the loss again.")
    if optimizer.built:
        trained = list(optimizer._trainable_variables)
        shapes = [tuple(variable.shape) for variable in trained]
        if [str(v.path) for v in trained] != list(loss.layout.names) or shapes != list(loss.layout.shapes):
            raise ModelError(
                f"the optimizer {type(optimizer).__name__} was built for {len(trained)} variables "
                f"({', '.join(str(v.path) for v in trained[:4])}, ...) and the loss is a function of "
                f"{len(loss.layout.names)} ({', '.join(loss.layout.names[:4])}, ...); a step needs both to be the "
                "trainable variables of one model, so make the loss without params and take that model's optimizer."
            )
        return optimizer
    clone = loaded_clone(optimizer, [replica(variable) for variable in loss.variables])
    counters = {id(variable) for each in parts_of(clone) for variable in (each._iterations, each._learning_rate)}
    if not initial_slots and any(id(variable) not in counters for variable in clone.variables):
        why = "has taken no step, so it has no slots (moments, velocities) yet"
        if int(np.asarray(optimizer.iterations)):
            why = "has no slots (moments, velocities) here, since they could not be read from its file,"
        raise ModelError(
            f"the optimizer {type(optimizer).__name__} {why} and the state of training is not defined; train at least "
            "one step first (model.fit), or ask for the slots it would start with (initial_slots=True)."
        )
    return clone
