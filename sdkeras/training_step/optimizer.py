"""Keras optimizers: the wrapped and the delegated ones, second ones with the same state, and updates as pure functions.

An optimizer's own methods run on a copy that assigns inside a `keras.StatelessScope`, where no variable changes.
(Keras' `stateless_apply` refuses the TensorFlow backend, and `copy.copy(optimizer)` returns one without its state.)
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence

import attrs
import keras
import numpy as np
import tensorflow as tf

from sdkeras.errors import ModelError
from sdkeras.files.keras_types import Optimizer, Tensor, Variable
from sdkeras.operators import precision
from sdkeras.operators.loss import EmpiricalLoss
from sdkeras.results.arrays import Array
from sdkeras.training_step.settings import batches_per_update, inner, schedule_of

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


# The update as a pure function


class _Functional(keras.optimizers.Optimizer):  # type: ignore[misc]
    """Assignments of Keras' TensorFlow optimizers, made to Keras variables in place of resources.

    Stands between an optimizer class and Keras' base class, so that an optimizer's own overrides still win.
    """

    def assign(self, variable: Variable, value: Tensor) -> None:
        variable.assign(_summed(value, variable.dtype))

    def assign_add(self, variable: Variable, value: Tensor) -> None:
        variable.assign(variable.value + _summed(value, variable.dtype))

    def assign_sub(self, variable: Variable, value: Tensor) -> None:
        variable.assign(variable.value - _summed(value, variable.dtype))

    def _var_key(self, variable: Variable) -> Hashable:
        key: Hashable = super()._var_key(stored(variable))
        return key

    def _apply_weight_decay(self, variables: Sequence[Variable]) -> None:
        if self.weight_decay is None:
            return
        for variable in variables:
            if self._use_weight_decay(variable):
                decay, rate = (tf.cast(x, variable.dtype) for x in (self.weight_decay, self.learning_rate))
                variable.assign(variable.value - variable.value * decay * rate)

    def keras_clip(self, grads: Sequence[Tensor]) -> list[Tensor]:
        clipped: list[Tensor] = super()._clip_gradients(grads)
        return clipped

    def _clip_gradients(self, grads: Sequence[Tensor]) -> list[Tensor]:
        stand_in = vars(self).get("_stand_in")
        return self.keras_clip(grads) if stand_in is None else stand_in(grads)

    def _backend_update_step(
        self, grads: Sequence[Tensor], trainable_variables: Sequence[Variable], learning_rate: Tensor
    ) -> None:
        for gradient, variable in zip(grads, trainable_variables, strict=True):
            self.update_step(gradient, variable, learning_rate)

    def _backend_apply_gradients(self, grads: Sequence[Tensor], trainable_variables: Sequence[Variable]) -> None:
        # One update with the averaged gradient: neither accumulators nor averages of the weights.
        self._apply_weight_decay(trainable_variables)
        self._backend_update_step(self._clip_gradients(grads), trainable_variables, self.learning_rate)

    def apply(self, grads: Sequence[Tensor], trainable_variables: Sequence[Variable] | None = None) -> None:
        super().apply(grads, trainable_variables)
        if self.gradient_accumulation_steps:
            self._iterations.assign(self._iterations + (self.gradient_accumulation_steps - 1))


class RecordingScope(keras.StatelessScope):  # type: ignore[misc]
    """Remembers variables that were used without a value given to them."""

    def __init__(self, mapping: Sequence[tuple[Variable, Tensor]]) -> None:
        super().__init__(mapping)
        self.unknown: list[Variable] = []

    def get_current_value(self, variable: Variable) -> Tensor:
        value = super().get_current_value(variable)
        if value is None and all(variable is not other for other in self.unknown):
            self.unknown.append(variable)
        return value


@attrs.frozen(eq=False)
class FunctionalOptimizer:
    """An optimizer whose update changes nothing."""

    optimizer: keras.optimizers.Optimizer  # the functional copy
    trainable: tuple[Variable, ...]
    missing: tuple[bool, ...]  # trainable variables that the loss leaves without a gradient; Keras skips those
    dtype: str  # of the arithmetic

    @property
    def microbatches(self) -> int:
        return batches_per_update(self.optimizer)

    def apply(
        self,
        variables: Sequence[Variable],
        values: Sequence[Tensor],
        gradients: Sequence[Tensor],
        clipped: Sequence[Tensor] | None = None,
    ) -> RecordingScope:
        """The scope after one apply of the optimizer's own code, from values of all variables that the update reads.

        `clipped` takes the place of what Keras' clipping makes of the gradients.
        """
        arriving = self._present(gradients)
        stand_in = None
        if clipped is not None:
            replacement = self._present(clipped)

            def stand_in(grads: Sequence[Tensor]) -> list[Tensor]:
                same = len(grads) == len(arriving) and all(a is b for a, b in zip(grads, arriving, strict=True))
                return replacement if same else self.optimizer.keras_clip(grads)

        vars(self.optimizer)["_stand_in"] = stand_in
        try:
            with precision.default_precision(self.dtype), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Gradients do not exist")
                scope = RecordingScope(list(zip(variables, values, strict=True)))
                with scope:
                    none = [None if lost else g for lost, g in zip(self.missing, gradients, strict=True)]
                    self.optimizer.apply(none, self.trainable)
        finally:
            vars(self.optimizer)["_stand_in"] = None
        return scope

    def clip(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Gradients as Keras clips them; those that the loss leaves out stay as they are."""
        with precision.default_precision(gradients[0].dtype.name):
            clipped = iter(self.optimizer.keras_clip(self._present(gradients)))
        return [g if lost else next(clipped) for lost, g in zip(self.missing, gradients, strict=True)]

    def _present(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        return [gradient for lost, gradient in zip(self.missing, gradients, strict=True) if not lost]


def functional(optimizer: Optimizer, missing: Sequence[bool], dtype: str) -> FunctionalOptimizer:
    """The functional form of a built Keras optimizer (not of a loss-scaling wrapper), which is not touched.

    Its variables stand for themselves where they have the wanted precision, else a replica does.

    Raises:
        ModelError: Its step is no map: gradients overwrite weights, or parts of it accumulate gradients apart.
    """
    stand_ins = _StandIns(dtype)
    trainable = tuple(stand_ins.variable(variable) for variable in optimizer._trainable_variables)
    if any(getattr(variable, "overwrite_with_gradient", False) for variable in trainable):
        raise ModelError(
            "the model has variables that training overwrites with gradients (float8 scales), so that its step is "
            "no map of weights and slots; analyse a model without float8 quantization."
        )
    if any(getattr(each, "gradient_accumulation_steps", None) for each in parts_of(optimizer)[1:]):
        raise ModelError(
            "optimizers inside a MultiOptimizer that accumulate gradients update at different times; set "
            "gradient_accumulation_steps to None and use the effective batch size."
        )
    return FunctionalOptimizer(_functional_copy(optimizer, stand_ins), trainable, tuple(missing), dtype)


class _StandIns:
    """Variables of the wanted precision that stand for an optimizer's own; the same ones where they fit."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self._replicas: dict[int, Variable] = {}  # by the id of a variable that the optimizer keeps alive

    def variable(self, variable: Variable) -> Variable:
        if not is_float(variable) or variable.dtype == self.dtype:
            return variable
        if id(variable) not in self._replicas:
            self._replicas[id(variable)] = replica(variable, self.dtype)
        return self._replicas[id(variable)]

    def tree(self, value: object, keys: Mapping[Hashable, Hashable]) -> object:
        """Containers rebuilt with stand-ins for variables, and their keys for the variables' keys."""
        if isinstance(value, keras.Variable):
            return self.variable(value)
        if isinstance(value, dict):
            return {keys.get(key, key): self.tree(item, keys) for key, item in value.items()}
        if isinstance(value, set):
            return {keys.get(key, key) for key in value}
        if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
            return [self.tree(item, keys) for item in value]
        return value


def _functional_copy(optimizer: Optimizer, stand_ins: _StandIns) -> Optimizer:
    """A copy of the optimizer whose updates are functions; it shares nothing that an update could change."""
    name = f"Functional{type(optimizer).__name__}"
    copy: keras.optimizers.Optimizer = object.__new__(type(name, (type(optimizer), _Functional), {}))
    trained = list(optimizer._trainable_variables)
    keys = {optimizer._var_key(v): _Functional._var_key(copy, stand_ins.variable(v)) for v in trained}
    inherited = {field: v for field, v in vars(optimizer).items() if field not in ("_tracker", "_inner_optimizers")}
    vars(copy).update({field: stand_ins.tree(value, keys) for field, value in inherited.items()})
    # The gradient comes unscaled.
    scale = "_loss_scale_factor" if "_loss_scale_factor" in inherited else "loss_scale_factor"
    vars(copy).update({scale: None, "_self_setattr_tracking": False})
    if hasattr(optimizer, "_inner_optimizers"):
        vars(copy)["_inner_optimizers"] = [_functional_copy(each, stand_ins) for each in optimizer._inner_optimizers]
    return copy


def _summed(value: Tensor, dtype: object) -> Tensor:
    """A tensor; rows of a sparse gradient are summed, as assignments to a resource sum them."""
    return tf.convert_to_tensor(tf.cast(value, dtype))
