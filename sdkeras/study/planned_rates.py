"""Which measures of a study will lack a learning rate at the end of its trainings, told before the first one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from sdkeras.errors import SdkerasError, counted
from sdkeras.study.grid import Study
from sdkeras.study.measures import OF_ANALYSES, columns, needing_a_rate
from sdkeras.study.training import StudyData, made_model
from sdkeras.training_step.optimizer import parts_of
from sdkeras.training_step.settings import inner, read_settings, scheduled_rate

# Seconds after which no more models are built for this check.
_PATIENCE = 20.0


def check_rates(
    study: Study, points: Sequence[Mapping[str, Any]], make: Callable[..., Any], data: StudyData
) -> tuple[str, ...]:
    """Builds the model of each grid point and reads its learning rate after the last planned step.

    Args:
        study: The study.
        points: The settings of its runs; those that differ in the seed alone are read once.
        make: The factory.
        data: The study's.

    Returns:
        A sentence for each reason why measures will have no value, or ().

    Raises:
        SdkerasError: None of the measures could be taken of any run.
    """
    needing, given = needing_a_rate(study.measures, study.analysis), study.analysis.get("learning_rate")
    lost = OF_ANALYSES if given is not None else needing
    distinct = {tuple((name, value) for name, value in each.items() if name != "seed"): each for each in points}
    counts: dict[str, int] = {}
    started, num_read = time.monotonic(), 0
    for settings in distinct.values():
        if time.monotonic() - started > _PATIENCE:
            break
        steps = _planned_steps(study, settings, data)
        try:
            keras.utils.clear_session()
            keras.utils.set_random_seed(settings["seed"])
            reason = "" if steps is None else _no_rate(made_model(study, settings, make), steps, given)
        except SdkerasError:  # the factory's failure is told of the run
            reason = ""
        num_read += 1
        counts[reason] = counts.get(reason, 0) + 1
    fine = counts.pop("", 0)
    if not counts:
        return ()
    taken = [name for name in columns(study.measures).values() if name not in lost]
    names = ", ".join(name for name in study.measures if name in lost)
    sentences = tuple(
        f"{names} {'needs' if ',' not in names else 'need'} a learning rate, and in {counted(count, 'setting')} of "
        f"{num_read:,} {reason}"
        for reason, count in counts.items()
    )
    if not fine and not taken and not study.stop and num_read == len(distinct):
        raise SdkerasError(f"no measure can be taken of any run: {sentences[0]}")
    return sentences


def _planned_steps(study: Study, settings: Mapping[str, Any], data: StudyData) -> int | None:
    """Steps of a whole training, or None where the number of batches is not known."""
    if study.steps is not None:
        return study.steps
    per_epoch: int
    if isinstance(data.train, tuple):
        per_epoch = math.ceil(len(tf.nest.flatten(data.train[1])[0]) / settings.get("batch_size", 32))
    else:
        try:
            per_epoch = len(data.train)
        except TypeError:
            return None
    return (study.epochs or 0) * per_epoch


def _no_rate(model: Any, steps: int, given: float | str | None) -> str:
    """Why there is no learning rate after this many steps, and what to do; "" where there is one."""
    optimizer = inner(model.optimizer)
    if isinstance(given, float | int):
        return ""
    if model.built:  # which optimizers of several train variables is known then
        model.optimizer.build(model.trainable_variables)
    for each in parts_of(optimizer):
        each._iterations.assign(steps)
    choices = "'peak', 'mean', 'step:N' or a number"
    if given is not None:
        try:
            rate: float | None = scheduled_rate(optimizer, given)
        except SdkerasError as error:
            return f"[analysis] learning_rate is {given!r}: {error}"
        where = f"the schedule's {given} is {rate:g}"
    else:
        rate = read_settings(optimizer).learning_rate  # type: ignore[union-attr]  # there is an optimizer
        if rate is None:
            return f"{type(optimizer).__name__} has no single one; add learning_rate = NUMBER under [analysis]."
        schedule = type(getattr(optimizer, "_learning_rate", None)).__name__
        where = f"the schedule {schedule} ends at {rate:g} after {steps:,} steps"
    if rate is not None and 0 < rate < math.inf:
        return ""
    return f"{where}; add learning_rate = 'peak' under [analysis] ({choices})."
