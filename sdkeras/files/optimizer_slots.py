"""The variables of an optimizer (moments, velocities, steps) as files of models and weights hold them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from warnings import WarningMessage

import keras

from sdkeras.files.keras_types import Array, Model, Optimizer, Variable
from sdkeras.files.model_file import ModelFile
from sdkeras.files.reading import compile_warnings
from sdkeras.files.user_code import last_line

# An optimizer that has made no step holds its iteration and learning rate only.
_NUM_SCALARS = 2


def restart(optimizer: Optimizer, model: Model) -> None:
    """Puts every variable of the optimizer at its start, so that nothing stale is read."""
    for variable, value in zip(optimizer.variables, _fresh(optimizer, model).variables, strict=True):
        variable.assign(value)


def _fresh(optimizer: Optimizer, model: Model = None) -> Optimizer:
    """An optimizer of the same settings that has made no step; with slots for a model's variables, if one is given."""
    start = type(optimizer).from_config(optimizer.get_config())
    if model is not None:
        start.build(model.trainable_variables)
    return start


def restore_slots(model: Model, file: ModelFile, messages: Sequence[WarningMessage], *, recompiled: bool) -> str | None:
    """Puts the optimizer's variables into a compiled model as far as Keras has not; says why if that fails.

    `messages` are Keras' warnings from loading it. If it was `recompiled` after that, its optimizer has no variables
    yet.
    """
    if getattr(model, "optimizer", None) is None:
        return None
    if file.is_of_keras_2:
        return _restore_from_keras_2(model, file)
    if file.is_h5:
        return _restore_from_h5(model, file)
    lost = None if recompiled else _lost_slots(messages)
    if not recompiled and lost is None:
        return None
    try:
        with file.weights() as weights:
            if recompiled:
                with compile_warnings() as messages:
                    model.load_weights(weights)
                lost = _lost_slots(messages)
            if lost is not None:
                _leave_out(model, _steps_in(weights) or 0)
            return lost
    except Exception as error:  # weights in another format, or what a class of the user's raises
        _leave_out(model, 0)
        return last_line(error)


def _lost_slots(messages: Sequence[WarningMessage]) -> str | None:
    """Keras' warning that an optimizer's variables do not match, unless the file holds none (at most two scalars)."""
    for message in messages:
        counts = re.search(
            r"it has (\d+) variables whereas the saved optimizer has (\d+) variables", str(message.message)
        )
        if counts is not None and int(counts[2]) > _NUM_SCALARS:
            return f"the file holds {counts[2]} variables, the optimizer has {counts[1]}"
    return None


def _leave_out(model: Model, iterations: int) -> None:
    """Puts in place of the optimizer one that knows its settings and steps, and has no slots."""
    optimizer = _fresh(model.optimizer)
    inner: Optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    inner.iterations.assign(iterations)
    model.optimizer = optimizer


def _steps_in(weights: str) -> int | None:
    """Steps of the optimizer in a file of weights, whose variables begin with them; None where there are none."""
    import h5py

    with h5py.File(weights, "r") as file:
        for group in ("optimizer/inner_optimizer/vars", "optimizer/vars"):
            first = file[group].get("0") if group in file else None
            if first is not None and first.shape == ():
                return int(first[()])
    return None


def _steps_among(names: Sequence[str], values: Sequence[Array]) -> int | None:
    """Steps taken, from the variables of an optimizer, which begin with `iteration` or `iter`; None without."""
    if names and "iter" in names[0].rpartition("/")[2] and getattr(values[0], "size", 0) == 1:
        return int(values[0])
    return None


def _restore_from_keras_2(model: Model, file: ModelFile) -> str | None:
    """Gives the optimizer its steps; says why it has no slots, where it needs any."""
    if file.is_h5:
        steps = _steps_among(*file.h5_slots())
    else:
        with file.weights() as weights:
            steps = _steps_in(weights)
    optimizer = _fresh(model.optimizer, model)
    if steps == 0 or len(optimizer.variables) == len(_fresh(optimizer).variables):  # nothing to lose
        optimizer.iterations.assign(steps or 0)
        model.optimizer = optimizer
        return None
    _leave_out(model, steps or 0)
    if steps is None:
        return f"Keras 2 (version {file.version}) left it out of the file, and its number of steps"
    return f"Keras 2 (version {file.version}) wrote it in a form that Keras 3 does not read"


def _restore_from_h5(model: Model, file: ModelFile) -> str | None:
    """Puts the optimizer's slots into a model from .h5; says why if that fails.

    Keras builds the optimizer for the variables that a container model owns itself, which are none, and keeps only
    the scalars.
    """
    names, values = file.h5_slots()
    if not values:
        return None
    optimizer = model.optimizer
    if len(values) != len(optimizer.variables):
        optimizer = _fresh(optimizer, model)
    lost = _mismatch(optimizer.variables, names, values)
    if lost and len(values) <= _NUM_SCALARS:
        return None
    if lost:
        _leave_out(model, _steps_among(names, values) or 0)
        return lost
    for slot, value in zip(optimizer.variables, values, strict=True):
        slot.assign(keras.ops.convert_to_tensor(value, dtype=slot.dtype))
    model.optimizer = optimizer
    return None


def _mismatch(slots: Sequence[Variable], names: Sequence[str], values: Sequence[Array]) -> str:
    if len(slots) != len(values):
        return f"the file holds {len(values)} variables, the optimizer has {len(slots)}"
    for slot, name, value in zip(slots, names, values, strict=True):
        # Keras names a slot by the path of its weight, with the model's name before it or without.
        if tuple(slot.shape) != value.shape or not name.endswith(slot.path.rpartition("/")[2]):
            return f"the file's {name} {value.shape} does not match {slot.path} {tuple(slot.shape)}"
    return ""
