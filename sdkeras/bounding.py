"""The generalization bounds of a subject: what is known of their assumptions and inputs, whoever measured SD."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from sdkeras.dimension.bounds import THEOREMS, Facts, Training
from sdkeras.dimension.exponents import PRECONDITIONED
from sdkeras.dimension.records import SharpnessDimension
from sdkeras.operators import assumptions
from sdkeras.operators.loss import EmpiricalLoss
from sdkeras.operators.update import parts_of, schedule_of
from sdkeras.subject import Subject

# Optimizers whose update is corrected for a start from moments of 0, and the share of the correction that is left when
# it counts as settled.
_CORRECTED = ("Adam", "AdamW", "Nadam", "Adamax", "Lamb")
_SETTLED = 1e-3
_KINKED_UPDATES = {"Lion": "sign", "Adamax": "maximum"}


def facts_at(subject: Subject, estimate: SharpnessDimension, *, smallest_exponent: float, clipped: bool) -> Facts:
    """What is known of the theorems' assumptions at the weights where SD was estimated.

    Args:
        subject: Model, data and optimizer.
        estimate: SD; the value by its definition where there is one.
        smallest_exponent: Smallest exponent of the pooled spectrum.
        clipped: Whether the optimizer clips gradients.
    """
    return Facts(
        dimension=estimate.value if estimate.definition_value is None else estimate.definition_value,
        state_size=estimate.state_size,
        num_samples=subject.source.num_samples,
        kinks=assumptions.kinks(subject.model),
        clipped=clipped,
        unbounded_loss=assumptions.unbounded_loss(subject.model),
        smallest_exponent=smallest_exponent,
        training=training_facts(
            subject.model,
            getattr(subject.compiled_as, "optimizer", None),
            estimate.map,
            subject.source.minibatches_per_epoch,
        ),
    )


def loss_of_single_examples(subject: Subject) -> EmpiricalLoss:
    """The loss that inputs of the bounds are estimated from; `now` moves it to later weights."""
    options = subject.options
    return EmpiricalLoss(
        subject.model,
        subject.source,
        mode="inference",
        params=options.params,
        dtype=options.dtype,
        num_samples=options.samples,
        seed=options.seed,
    )


def inputs_at(singles: EmpiricalLoss | None, given: Mapping[str, float]) -> Mapping[str, float]:
    """Inputs of the bounds: those given, and estimates of others where there is a loss to estimate them from."""
    return dict(given) if singles is None else assumptions.estimated_inputs(singles) | dict(given)


def is_complete(given: Collection[str], estimate: bool) -> bool:
    """Whether every input of a theorem is given, or will be estimated."""
    known = {*given, *(assumptions.ESTIMATED if estimate else ())}
    return any(known.issuperset(inputs) for inputs in THEOREMS.values())


def training_facts(model: Any, optimizer: Any, map_name: str, minibatches_per_epoch: int) -> Training:
    """What is known of the map that training iterates.

    Args:
        model: With its compiled loss.
        optimizer: Of the training, or None.
        map_name: The map whose SD was measured.
        minibatches_per_epoch: Of the training.
    """
    if optimizer is None:
        return Training(other_map="no optimizer is known")
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    parts = parts_of(optimizer)
    stationary = "the optimizer has no schedule (what a callback changes cannot be seen)"
    if minibatches_per_epoch > 1:
        stationary += (
            f"; an epoch draws its {minibatches_per_epoch:,} minibatches without replacement, so that training is "
            "stationary over whole epochs only"
        )
    return Training(
        other_map=_other_map(optimizer, map_name),
        time_dependence=next(filter(None, map(_time_dependence, parts)), ""),
        stationary=stationary,
        absorbing=_absorbing(model, parts),
        kinks=tuple(kink for part in parts for kink in _kinks_of_update(part)),
    )


def _kinks_of_update(optimizer: Any) -> Iterator[str]:
    name = type(optimizer).__name__
    if name in _KINKED_UPDATES:
        yield f"{_KINKED_UPDATES[name]} ({name})"
    if getattr(optimizer, "amsgrad", False):
        yield f"maximum (amsgrad of {name})"


def _other_map(optimizer: Any, map_name: str) -> str:
    name = type(optimizer).__name__
    if map_name in PRECONDITIONED:
        return (
            f"the map {map_name} holds the second moments of {name} as the last step left them, and training moves them"
        )
    decay, momentum = getattr(optimizer, "weight_decay", None), getattr(optimizer, "momentum", None)
    if map_name == "hessian" and (name != "SGD" or decay or momentum):
        extras = [word for word, held in (("momentum", momentum), ("weight decay", decay)) if held and name == "SGD"]
        return f"the map |1 - eta*alpha| is not the step of {name}" + (
            f" with {' and '.join(extras)}" if extras else ""
        )
    return ""


def _time_dependence(optimizer: Any) -> str:
    schedule, name = schedule_of(optimizer), type(optimizer).__name__
    if schedule is not None:
        return f"the learning rate follows {type(schedule).__name__}"
    t, beta = int(np.asarray(optimizer.iterations)), getattr(optimizer, "beta_2", None)
    if name in _CORRECTED and beta is not None and beta**t > _SETTLED:
        return f"the bias correction of {name} still moves: 1 - beta2^t is {1 - beta**t:.3g} after {t:,} steps"
    return ""


def _absorbing(model: Any, optimizers: list[Any]) -> str:
    regularized = any(getattr(variable, "regularizer", None) is not None for variable in model.trainable_variables)
    if regularized or any(getattr(optimizer, "weight_decay", None) for optimizer in optimizers):
        return "weight decay or a regulariser pulls weights back, which shows none by itself"
    if any("crossentropy" in name for name in assumptions.losses(model)):
        return "with cross-entropy, no weight decay and data that the net separates there is none"
    return "nothing here shows one"
