"""The compiled Keras optimizer as the file has it: settings, and the preconditioner of the adaptive ones."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import attrs
import keras
import numpy as np
import tensorflow as tf

from sdkeras.errors import ModelError
from sdkeras.files.keras_types import Model, Optimizer, Schedule, Tensor
from sdkeras.operators.layout import Layout
from sdkeras.results.arrays import Array

# Optimizers whose step with a frozen second moment is preconditioned gradient descent (with momentum).
ADAPTIVE = ("Adam", "AdamW", "Nadam", "RMSprop")
# Before this step Nadam's momentum schedule moves its stability threshold by more than a hundredth at beta_1 = 0.9.
_NADAM_SETTLED = 140

# Steps of a schedule that are evaluated one by one; to compile more takes as long as a few hundred.
_EAGER_STEPS = 200
# Evenly spread steps that show where a schedule has been: the first and the last among them.
_SPREAD = 2000


class StepNotTaken(ModelError):
    """Training has not reached the step whose learning rate was asked for."""


@attrs.frozen
class OptimizerSettings:
    """Settings of a Keras optimizer that a training step depends on."""

    name: str  # of its class: 'SGD', 'AdamW', ...
    learning_rate: float | None  # at the stored step, schedules evaluated; None if it could not be read
    momentum: float | None  # SGD's and RMSprop's momentum, Adam's and Nadam's beta_1
    nesterov: bool
    weight_decay: float  # decoupled; 0 where none is set
    iterations: int
    rates: tuple[tuple[str, float | None], ...] = ()  # of a MultiOptimizer's parts, by class name
    notes: tuple[tuple[str, str], ...] = ()  # differences between the real step and the analysed one, in words


def inner(optimizer: Optimizer) -> Optimizer:
    """The optimizer under a loss-scaling wrapper."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def steps_taken(optimizer: Optimizer) -> int:
    """Updates of the weights so far; 0 for no optimizer."""
    return 0 if optimizer is None else int(np.asarray(inner(optimizer).iterations))


def batches_per_update(optimizer: Optimizer) -> int:
    """Batches whose mean gradient makes one update: 1 without gradient accumulation."""
    return int(getattr(optimizer, "gradient_accumulation_steps", None) or 1)


def read_settings(optimizer: Optimizer) -> OptimizerSettings | None:
    """Settings of a Keras optimizer, or None for no optimizer."""
    if optimizer is None:
        return None
    optimizer = inner(optimizer)
    # All of them: Keras gives variables other paths after loading than while fitting, so that patterns may not match.
    name, parts = type(optimizer).__name__, list(getattr(optimizer, "_inner_optimizers", [])) or [optimizer]
    rates = tuple((type(each).__name__, _rate(each)) for each in parts) if parts != [optimizer] else ()
    different = {rate for _, rate in rates}
    rate = next(iter(different)) if len(different) == 1 else _rate(optimizer)
    momentum = getattr(optimizer, "momentum", getattr(optimizer, "beta_1", None))
    decay = getattr(optimizer, "weight_decay", None)
    return OptimizerSettings(
        name=name,
        learning_rate=rate,
        momentum=None if momentum is None else float(momentum),
        nesterov=bool(getattr(optimizer, "nesterov", False)),
        weight_decay=float(decay or 0.0),
        iterations=steps_taken(optimizer),
        rates=rates,
        notes=tuple(dict.fromkeys(note for each in parts for note in _notes(each))),
    )


def training_parts(optimizer: Optimizer) -> list[Optimizer]:
    """The optimizer itself, or those of a MultiOptimizer that train variables (all of them before the first step)."""
    parts = list(getattr(optimizer, "_inner_optimizers", []))
    return [each for each in parts if each.built] or parts or [optimizer]


def _rate(optimizer: Optimizer) -> float | None:
    try:
        return float(np.asarray(optimizer.learning_rate))
    except (AttributeError, TypeError, ValueError):
        return None


def check_rates(optimizer: Optimizer, steps: int) -> None:
    """Refuses, by a ModelError, an optimizer whose learning rates are all 0 over this many steps from now on."""
    optimizer = inner(optimizer)
    for each in training_parts(optimizer):
        schedule, first = schedule_of(each), int(np.asarray(each._iterations))
        k = batches_per_update(each)
        rates = [_rate(each)] if schedule is None else _rates_at(schedule, first + np.arange(steps * k))
        if any(rate is None or rate != 0 for rate in rates):
            return
    several = len(training_parts(optimizer)) > 1
    span = "now" if steps == 1 else f"over all {steps:,} steps from here"
    raise ModelError(
        f"{'all learning rates' if several else 'the learning rate'} of {type(optimizer).__name__} "
        f"{'are' if several else 'is'} 0 {span}, so that a training step is the identity, whatever the loss (but for "
        "what is left of a momentum); "
        + (
            "set them in the model and save it again."
            if several
            else "give another one (`learning_rate=F`, or peak, mean or step:N of a schedule)."
        )
    )


def schedule_of(optimizer: Optimizer) -> Schedule | None:
    """The learning-rate schedule of a Keras optimizer, or None."""
    rate = getattr(inner(optimizer), "_learning_rate", None)
    return rate if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule) else None


def scheduled_rate(optimizer: Optimizer, which: str) -> float:
    """A learning rate of the training so far by the optimizer's schedule: 'peak' or 'mean' of the steps, or 'step:N'.

    Step n of the training, counted from 0, used the schedule's value at iteration n; with gradient accumulation over k
    batches at n k + k - 1, where the update happens. Before the first step that step counts as the training so far.

    Raises:
        ModelError: There is no schedule.
        StepNotTaken: Training has not taken step N.
    """
    schedule, optimizer = schedule_of(optimizer), inner(optimizer)
    name, taken = type(optimizer).__name__, max(1, steps_taken(optimizer))
    if schedule is None:
        why = (
            "has several learning rates"
            if training_parts(optimizer) != [optimizer]
            else "has no learning-rate schedule"
        )
        raise ModelError(f"the learning rate is to be {which} of a schedule, and {name} {why}; give a number instead.")
    k = batches_per_update(optimizer)
    if which.startswith("step:"):
        step = int(which.partition(":")[2])
        if step >= taken:
            raise StepNotTaken(
                f"the learning rate is to be that of step {step:,}, and training has taken {taken:,} steps so far, 0 "
                f"to {taken - 1:,}; give one of these, peak, mean or a number."
            )
        return float(_rates_at(schedule, np.asarray([step * k + k - 1]))[0])
    rates = _rates_at(schedule, np.arange(taken) * k + k - 1)
    return float(np.max(rates) if which == "peak" else np.mean(rates))


def peak_rate(optimizer: Optimizer | None) -> float | None:
    """The peak of the training so far by the optimizer's schedule, over `_SPREAD` steps at most; None without one."""
    schedule = None if optimizer is None else schedule_of(optimizer)
    if schedule is None:
        return None
    taken = max(1, steps_taken(inner(optimizer)))
    steps = np.unique(np.linspace(0, taken - 1, min(taken, _SPREAD)).astype(np.int64))
    k = batches_per_update(inner(optimizer))
    return float(np.max(_rates_at(schedule, steps * k + k - 1)))


def _rates_at(schedule: Schedule, iterations: Array) -> Array:
    """The schedule's value at each iteration, float64."""

    def rate(iteration: Tensor) -> Tensor:
        return tf.cast(tf.convert_to_tensor(schedule(iteration)), tf.float64)

    def over(steps: Tensor) -> Tensor:
        return tf.map_fn(rate, steps, fn_output_signature=tf.float64)

    if len(iterations) > _EAGER_STEPS:  # 20 microseconds a step against 600
        with contextlib.suppress(Exception):  # a user's schedule that only runs eagerly may raise anything in a graph
            graph = tf.function(over, autograph=False).get_concrete_function(tf.TensorSpec([None], tf.int64))
            rates: Array = graph(tf.constant(iterations, tf.int64)).numpy()
            return rates
    return np.asarray([float(np.asarray(schedule(tf.constant(each, tf.int64)))) for each in iterations])


def _notes(optimizer: Optimizer) -> Iterator[tuple[str, str]]:
    for field in ("clipnorm", "clipvalue", "global_clipnorm"):
        if value := getattr(optimizer, field, None):
            yield (
                "clipping",
                f"the optimizer clips gradients ({field}={value:g}); the analysed step does not, so the answer holds "
                "where gradients are below the limit.",
            )
    if getattr(optimizer, "use_ema", False):
        yield (
            "averaged-weights",
            f"the optimizer averages weights (ema_momentum={optimizer.ema_momentum:g}); fit leaves averaged weights in "
            "the model, which are off the trajectory.",
        )
    if type(optimizer).__name__ == "Nadam" and steps_taken(optimizer) < _NADAM_SETTLED:
        beta, t = float(optimizer.beta_1), steps_taken(optimizer)
        yield (
            "nadam-schedule",
            f"Nadam's momentum rises to beta_1 = {beta:g} over its first {_NADAM_SETTLED} steps and is at "
            f"{beta * (1 - 0.5 * 0.96**t):.3g} after {t}; the analysed step and its threshold are those of later "
            "steps, and the threshold of this one is lower.",
        )
    if steps := getattr(optimizer, "gradient_accumulation_steps", None):
        yield (
            "gradient-accumulation",
            f"the optimizer accumulates {steps} batches for one update; give the effective batch size "
            "(`batch_size`) to analyse the update.",
        )


def _optimizer_of(model: Model) -> Optimizer:
    optimizer = getattr(model, "optimizer", None)
    return None if optimizer is None else inner(optimizer)


def excluded_from_decay(model: Model, layout: Layout) -> list[str]:
    """Paths of the analysed variables that the optimizer's weight decay leaves out."""
    optimizer = _optimizer_of(model)
    if not getattr(optimizer, "weight_decay", None):
        return []
    by_path = {str(variable.path): variable for variable in model.trainable_variables}
    return [name for name in layout.names if name in by_path and not optimizer._use_weight_decay(by_path[name])]


def preconditioner(model: Model, layout: Layout) -> Array | None:
    """The diagonal P of an adaptive optimizer at its stored slots, flat in the layout's order, float64.

    With P frozen one step is w - eta * P^-1 m. This is the P of the last step taken, t = iterations:
    Adam and AdamW (sqrt(v) + eps)(1 - beta1^t) / sqrt(1 - beta2^t) (amsgrad: v_hat); Nadam
    sqrt(v / (1 - beta2^t)) + eps; RMSprop sqrt(v + eps), centered: sqrt(v - gbar^2 + eps). The P of the next step
    differs early in training: Adam's is larger by (1 - beta1^(t+1)) / (1 - beta1^t) where gradients are steady, 1.9 at
    t = 1.

    Returns:
        P, or None for an optimizer without a preconditioner of this form, or one that has taken no step.

    Raises:
        ModelError: The slots do not fit the model's variables.
    """
    optimizer = _optimizer_of(model)
    t = steps_taken(optimizer)
    if type(optimizer).__name__ not in ADAPTIVE or not optimizer.built or t == 0:
        return None
    return diagonal(optimizer, t, lambda slots: _flat(optimizer, slots, layout))


def diagonal(optimizer: Optimizer, iterations: int, slot: Callable[[str], Array]) -> Array:
    """P (see `preconditioner`) after at least one step of an optimizer, with its slots by the names of their lists."""
    second, name = slot("_velocities"), type(optimizer).__name__
    if name == "RMSprop":
        centred = second - slot("_average_gradients") ** 2 if optimizer.centered else second
        return np.asarray(np.sqrt(np.maximum(centred, 0.0) + optimizer.epsilon))
    if name == "Nadam":
        return np.asarray(np.sqrt(second / (1.0 - optimizer.beta_2**iterations)) + optimizer.epsilon)
    second = slot("_velocity_hats") if optimizer.amsgrad else second
    correction = (1.0 - optimizer.beta_1**iterations) / np.sqrt(1.0 - optimizer.beta_2**iterations)
    return np.asarray((np.sqrt(second) + optimizer.epsilon) * correction)


def _flat(optimizer: Optimizer, slots: str, layout: Layout) -> Array:
    """One slot of each analysed variable, end to end."""
    variables = getattr(optimizer, slots, None)
    if not variables:
        raise ModelError(f"the optimizer {type(optimizer).__name__} has no slots {slots}.")
    owners = [str(variable.path) for variable in optimizer._trainable_variables]
    by_owner = dict(zip(owners, variables, strict=True))
    missing = [name for name in layout.names if name not in by_owner]
    if missing:
        raise ModelError(f"the optimizer in the file has no state for {missing[0]}; it was built for other variables.")
    parts = [np.asarray(by_owner[name], dtype=np.float64) for name in layout.names]
    if [slot.shape for slot in parts] != list(layout.shapes):
        raise ModelError("the optimizer's slots have other shapes than the model's variables.")
    return layout.flatten(parts, np.float64)
