"""The generalization bounds of a problem: what is known of their assumptions and inputs, whoever measured SD."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

import attrs
import keras
import numpy as np
import tensorflow as tf

from sdkeras.dimension.bounds import THEOREMS, Facts, Training
from sdkeras.dimension.exponents import PRECONDITIONED
from sdkeras.files.keras_types import Model, Optimizer
from sdkeras.operators.batch_loss import Batch
from sdkeras.operators.loss import EmpiricalLoss
from sdkeras.results.dimension import SharpnessDimension
from sdkeras.runs.problem import Problem
from sdkeras.training_step.settings import parts_of, schedule_of

# Optimizers whose update is corrected for a start from moments of 0, and the share of the correction that is left when
# it counts as settled.
_CORRECTED = ("Adam", "AdamW", "Nadam", "Adamax", "Lamb")
_SETTLED = 1e-3
_KINKED_UPDATES = {"Lion": "sign", "Adamax": "maximum"}


def facts_at(problem: Problem, estimate: SharpnessDimension, *, smallest_exponent: float, clipped: bool) -> Facts:
    """Evidence on the theorems' assumptions at the weights where SD was estimated.

    Args:
        problem: Model, data and optimizer.
        estimate: SD; the value by its definition where there is one.
        smallest_exponent: Smallest exponent of the pooled spectrum.
        clipped: Whether the optimizer clips gradients.
    """
    return Facts(
        dimension=estimate.value if estimate.definition_value is None else estimate.definition_value,
        state_size=estimate.state_size,
        num_samples=problem.source.num_samples,
        kinks=kinks(problem.model),
        clipped=clipped,
        unbounded_loss=unbounded_loss(problem.model),
        smallest_exponent=smallest_exponent,
        training=training_facts(
            problem.model,
            getattr(problem.compiled_as, "optimizer", None),
            estimate.map,
            problem.source.minibatches_per_epoch,
        ),
    )


def loss_of_single_examples(problem: Problem) -> EmpiricalLoss:
    """The loss that inputs of the bounds are estimated from; `now` moves it to later weights."""
    options = problem.options
    return EmpiricalLoss(
        problem.model,
        problem.source,
        mode="inference",
        params=options.params,
        dtype=options.dtype,
        num_samples=options.samples,
        seed=options.seed,
    )


def inputs_at(singles: EmpiricalLoss | None, known: Mapping[str, float]) -> Mapping[str, float]:
    """Inputs of the bounds: those given, and estimates of others where there is a loss to estimate them from."""
    return dict(known) if singles is None else estimated_inputs(singles) | dict(known)


def is_complete(names: Collection[str], estimate: bool) -> bool:
    """Whether every input of a theorem is given, or will be estimated."""
    known = {*names, *(ESTIMATED if estimate else ())}
    return any(known.issuperset(inputs) for inputs in THEOREMS.values())


def training_facts(model: Model, optimizer: Optimizer, map_name: str, minibatches_per_epoch: int) -> Training:
    """Facts about the map that training iterates.

    Args:
        model: With its compiled loss.
        optimizer: The training's optimizer, or None.
        map_name: The map whose SD was measured.
        minibatches_per_epoch: Minibatches in an epoch of the training.
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
        kinks=tuple(kink for each in parts for kink in _kinks_of_update(each)),
    )


def _kinks_of_update(optimizer: Optimizer) -> Iterator[str]:
    name = type(optimizer).__name__
    if name in _KINKED_UPDATES:
        yield f"{_KINKED_UPDATES[name]} ({name})"
    if getattr(optimizer, "amsgrad", False):
        yield f"maximum (amsgrad of {name})"


def _other_map(optimizer: Optimizer, map_name: str) -> str:
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


def _time_dependence(optimizer: Optimizer) -> str:
    schedule, name = schedule_of(optimizer), type(optimizer).__name__
    if schedule is not None:
        return f"the learning rate follows {type(schedule).__name__}"
    t, beta = int(np.asarray(optimizer.iterations)), getattr(optimizer, "beta_2", None)
    if name in _CORRECTED and beta is not None and beta**t > _SETTLED:
        return f"the bias correction of {name} still moves: 1 - beta2^t is {1 - beta**t:.3g} after {t:,} steps"
    return ""


def _absorbing(model: Model, optimizers: list[Optimizer]) -> str:
    regularized = any(getattr(variable, "regularizer", None) is not None for variable in model.trainable_variables)
    if regularized or any(getattr(optimizer, "weight_decay", None) for optimizer in optimizers):
        return "weight decay or a regulariser pulls weights back, which shows none by itself"
    if any("crossentropy" in name for name in losses(model)):
        return "with cross-entropy, no weight decay and data that the net separates there is none"
    return "nothing here shows one"


# Not twice continuously differentiable.
_KINKED_ACTIVATIONS = re.compile(
    "relu6?|leaky_relu|[cs]?elu|hard_(sigmoid|silu|swish|tanh|shrink)|soft_shrink|softsign|threshold|"
    "sparse_(plus|sigmoid)|sparsemax"
)
_KINKED_LAYERS = re.compile("(Leaky|P|Thresholded)?ReLU|ELU|Maximum|Minimum|(Global|Adaptive)?MaxPooling[123]D")
_KINKED_LOSSES = re.compile("mean_absolute(_percentage)?_error|(squared_|categorical_)?hinge|huber(_loss)?")
_BOUNDED_LOSSES = ("cosine_similarity", "dice", "tversky")
_OF_PROBABILITIES = re.compile("sparse_categorical_crossentropy|(binary|categorical)(_focal)?_crossentropy")
# Sums of a float16 softmax.
_PROBABILITY_SLACK = 1e-3
_EXAMPLES = 256
# Inputs of the bounds that can be estimated.
ESTIMATED = ("loss_bound", "lipschitz")


def kinks(model: Model) -> tuple[str, ...]:
    """Layers, activations and losses that are not twice continuously differentiable, as 'type (layer)'."""
    names = []
    for layer in model._flatten_layers(include_self=False):
        kind = type(layer).__name__
        if _KINKED_LAYERS.fullmatch(kind):
            names.append(f"{kind} ({layer.name})")
        for field in ("activation", "recurrent_activation"):
            name = getattr(getattr(layer, field, None), "__name__", "")
            if _KINKED_ACTIVATIONS.fullmatch(name) and not _KINKED_LAYERS.fullmatch(kind):
                names.append(f"{name} ({layer.name})")
    return (*dict.fromkeys(names), *(f"{name} (loss)" for name in losses(model) if _KINKED_LOSSES.fullmatch(name)))


def losses(model: Model) -> tuple[str, ...]:
    """The compiled losses by Keras' name; '' for one of the user's own."""
    names = []
    for loss in keras.tree.flatten(getattr(model, "loss", None) or []):
        try:
            known = keras.losses.get(loss)
        except (ValueError, TypeError):
            known = None
        loss_class = type(known) if isinstance(known, keras.losses.Loss) else known
        theirs = str(getattr(loss_class, "__module__", "")).startswith("keras.")
        names.append(str(getattr(known, "name", None) or getattr(known, "__name__", "")) if theirs else "")
    return tuple(names)


def unbounded_loss(model: Model) -> str | None:
    """The first compiled loss that has no upper bound, or None."""
    return next((name for name in losses(model) if name and name not in _BOUNDED_LOSSES), None)


def logits_as_probabilities(loss: EmpiricalLoss) -> str | None:
    """Says so if a cross-entropy that takes probabilities gets outputs that are none; None if all is well.

    Keras clips such outputs in silence: the loss is then flat almost everywhere and as steep as 1e7 elsewhere.
    """
    model = loss.function.model
    names = losses(model)
    if len(names) != 1 or not _OF_PROBABILITIES.fullmatch(names[0]):
        return None
    if getattr(model.loss, "_fn_kwargs", {}).get("from_logits", False):
        return None
    few = tf.nest.pack_sequence_as(loss.source.structure, [tensor[:64] for tensor in loss.batches[0].tensors])
    try:
        with keras.StatelessScope():
            outputs = np.asarray(model(few[0], training=False), np.float64)
    except Exception:  # several outputs, or a model that is called in its own train_step only
        return None
    low, high = float(outputs.min()), float(outputs.max())
    if low >= -_PROBABILITY_SLACK and high <= 1 + _PROBABILITY_SLACK:
        return None
    return (
        f"the loss {names[0]} takes probabilities, but the model's outputs run from {low:.3g} to {high:.3g}, and Keras "
        "clips them in silence; if they are logits, the loss must say so (from_logits=True when compiling, "
        f"`loss='{names[0]}:from_logits'` here)."
    )


def estimated_inputs(loss: EmpiricalLoss) -> dict[str, float]:
    """Lower ends of B and L: the largest loss and the largest gradient norm of single examples, at these weights.

    The supremum over all weights and all data that the theorems ask for can only be larger.

    Args:
        loss: In inference mode: batch statistics of one example mean nothing.
    """
    values, norms = [], []
    engine, left = loss.gradients, _EXAMPLES
    for batch in loss.batches:
        for position in range(min(left, batch.num_examples)):
            one = _example(batch, position)
            total, _, _ = engine.evaluate(engine.point, one)
            values.append(float(total))
            norms.append(float(np.linalg.norm(engine.gradient(engine.point, one).numpy().astype(np.float64))))
        left -= min(left, batch.num_examples)
    estimates = dict(zip(ESTIMATED, (max(values), max(norms)), strict=True))
    return {name: value for name, value in estimates.items() if np.isfinite(value) and value > 0}


def _example(batch: Batch, position: int) -> Batch:
    tensors = tuple(tensor[position : position + 1] for tensor in batch.tensors)
    return attrs.evolve(batch, tensors=tensors, data_weight=1.0, extra_weight=1.0, loss_weights=(), num_examples=1)
