"""The variables of an optimizer (moments, velocities, steps) as files of models and weights hold them."""

from __future__ import annotations

import re
import tempfile
import zipfile
from collections.abc import Sequence
from warnings import WarningMessage

import numpy as np

from sdkeras.files import keras2
from sdkeras.files.arrays import Array
from sdkeras.files.keras_messages import compile_warnings
from sdkeras.files.keras_types import Model, Optimizer, Variable
from sdkeras.files.model_file import ModelFile, as_text
from sdkeras.files.user_code import last_line

# An optimizer that has made no step holds its iteration and learning rate only.
_NUM_SCALARS = 2


def fresh(optimizer: Optimizer) -> Optimizer:
    """An optimizer of the same settings that has made no step."""
    return type(optimizer).from_config(optimizer.get_config())


def restart(optimizer: Optimizer, model: Model) -> None:
    """Puts every variable of the optimizer at its start, so that nothing stale is read."""
    start = fresh(optimizer)
    start.build(model.trainable_variables)
    for variable, value in zip(optimizer.variables, start.variables, strict=True):
        variable.assign(value)


def restore_slots(model: Model, file: ModelFile, messages: Sequence[WarningMessage], *, recompiled: bool) -> str | None:
    """Puts the optimizer's variables into a model as far as Keras has not; says why if that fails.

    Args:
        model: The model, compiled.
        file: Its file.
        messages: Keras' warnings from loading the model.
        recompiled: Whether the model was compiled after that, so that its optimizer has no variables yet.
    """
    if getattr(model, "optimizer", None) is None:
        return None
    if file.is_of_keras_2:
        return _restore_from_keras_2(model, file)
    if file.is_h5:
        return _restore_from_h5(model, file.path)
    lost = None if recompiled else _lost_slots(messages)
    if not recompiled and lost is None:
        return None
    try:
        with zipfile.ZipFile(file.path) as archive, tempfile.TemporaryDirectory() as folder:
            weights = archive.extract("model.weights.h5", folder)
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
    optimizer = fresh(model.optimizer)
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


def _restore_from_keras_2(model: Model, file: ModelFile) -> str | None:
    """Gives the optimizer its steps; says why it has no slots, where it needs any."""
    if file.is_h5:
        steps = keras2.iterations(*_h5_slots(file.path))
    else:
        with zipfile.ZipFile(file.path) as archive, tempfile.TemporaryDirectory() as folder:
            steps = _steps_in(archive.extract("model.weights.h5", folder))
    optimizer = fresh(model.optimizer)
    num_scalars = len(optimizer.variables)
    optimizer.build(model.trainable_variables)
    if steps == 0 or len(optimizer.variables) == num_scalars:  # nothing to lose
        optimizer.iterations.assign(steps or 0)
        model.optimizer = optimizer
        return None
    _leave_out(model, steps or 0)
    if steps is None:
        return f"Keras 2 (version {file.version}) left it out of the file, and its number of steps"
    return f"Keras 2 (version {file.version}) wrote it in a form that Keras 3 does not read"


def _restore_from_h5(model: Model, path: str) -> str | None:
    """Puts the optimizer's slots into a model from .h5; says why if that fails.

    Keras builds the optimizer for the variables that a container model owns itself, which are none, and keeps only
    the scalars.
    """
    import keras

    names, values = _h5_slots(path)
    if not values:
        return None
    optimizer = model.optimizer
    if len(values) != len(optimizer.variables):
        optimizer = fresh(optimizer)
        optimizer.build(model.trainable_variables)
    lost = _mismatch(optimizer.variables, names, values)
    if lost and len(values) > _NUM_SCALARS:
        _leave_out(model, keras2.iterations(names, values) or 0)
    if lost:
        return lost if len(values) > _NUM_SCALARS else None
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


def _h5_slots(path: str) -> tuple[list[str], list[Array]]:
    """Names and values of the optimizer's variables in a .h5 file."""
    import h5py

    with h5py.File(path, "r") as file:
        group = file.get("optimizer_weights")
        if group is None:
            return [], []
        # More names than fit into one attribute are in weight_names0, weight_names1, ...
        keys = [key for key in group.attrs if key.startswith("weight_names")]
        keys.sort(key=lambda key: int(key.removeprefix("weight_names") or 0))
        names = [as_text(name) for key in keys for name in group.attrs[key]]
        return names, [np.asarray(group[name]) for name in names]
