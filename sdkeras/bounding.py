"""The generalization bounds of a subject: what is known of their assumptions and inputs, whoever measured SD."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sdkeras.dimension.bounds import THEOREMS, Facts
from sdkeras.dimension.records import SharpnessDimension
from sdkeras.operators import assumptions
from sdkeras.operators.loss import EmpiricalLoss
from sdkeras.subject import Subject


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
        training=assumptions.training(
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
