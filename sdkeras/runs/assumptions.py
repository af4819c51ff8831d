"""Facts read off model, data and optimizer: caveats before any number, and the assumptions and inputs of the bounds."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

import attrs
import keras
import numpy as np
import tensorflow as tf

from sdkeras.dimension.bounds import THEOREMS, Facts, Training
from sdkeras.dimension.exponents import PRECONDITIONED
from sdkeras.files.keras_types import Loss, Model, Optimizer
from sdkeras.operators import precision
from sdkeras.operators.batch_loss import Batch
from sdkeras.operators.hessian import HessianOperator
from sdkeras.operators.loss import EmpiricalLoss
from sdkeras.operators.modes import MIXED
from sdkeras.results.dimension import SharpnessDimension
from sdkeras.results.note import Note
from sdkeras.runs.problem import Problem
from sdkeras.training_step.settings import OptimizerSettings, inner, schedule_of, training_parts

# Optimizers whose update is corrected for a start from moments of 0, and the share of the correction that is left when
# it counts as settled.
_CORRECTED = ("Adam", "AdamW", "Nadam", "Adamax", "Lamb")
_SETTLED = 1e-3
# Not twice continuously differentiable.
_KINKED_UPDATES = {"Lion": "sign", "Adamax": "maximum"}
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
# Single examples from which inputs of the bounds are estimated, and which inputs.
_EXAMPLES = 256
ESTIMATED = ("loss_bound", "lipschitz")


# Caveats


def findings(problem: Problem, hessian: HessianOperator) -> Iterator[Note]:
    """Caveats that come before any number."""
    check, options = hessian.verification, problem.options
    if not check.passed:
        yield Note(
            "unverified",
            f"the operator FAILED its verification (error {check.finite_difference_error:.2g} against finite "
            f"differences, symmetry error {check.symmetry_error:.2g}) and was used anyway: no number here "
            "can be trusted.",
        )
    if check.mode == "finite-differences" and options.dtype == "float32":
        yield Note(
            "finite-differences",
            f"Hessian-vector products are differences of float32 gradients, good to "
            f"{check.finite_difference_error:.1g}; analyse in float64 for better ones (`dtype='float64'`).",
        )
    clipped = None if problem.loss_fn is not None else _logits_as_probabilities(problem.loss)
    if clipped is not None:
        yield Note("logits-as-probabilities", clipped)
    reduced = precision.reduced_policies(problem.compiled_as)
    if options.dtype == MIXED:
        rounding = hessian.verification.hvp_relative_error
        yield Note(
            "mixed-precision",
            f"layers computed in bfloat16: Hessian-vector products are rounded to {rounding:.2g} of their norm, and no "
            "number from them is known better.",
        )
    elif reduced:
        yield Note(
            "reduced-precision",
            f"the model computes in {', '.join(reduced)}; it was analysed in {options.dtype} throughout, at "
            "the same weights: training itself rounds more coarsely than these products.",
        )
    for note in problem.loss.notes:
        yield Note("data", f"{note}.")
    unconnected = problem.loss.engine(options.product_mode).unconnected
    if unconnected:
        yield Note(
            "unconnected",
            f"the loss does not depend on {', '.join(unconnected)}; these parameters count as flat directions.",
        )
    if problem.has_own_step:
        yield Note(
            "train-step",
            "the model has its own train_step; compute_loss was analysed instead of it. If it trains another loss, "
            "give that as a loss_fn(model, batch) (`loss='FILE.py:FUNCTION'`).",
        )
    if problem.optimizer is not None and not problem.is_full:  # whose step is the optimizer's own, with its own notes
        yield from _about_the_step(problem, problem.optimizer)


def _about_the_step(problem: Problem, optimizer: OptimizerSettings) -> Iterator[Note]:
    """Caveats on the map of the step in place of the optimizer's own."""
    for code, message in optimizer.notes:
        yield Note(code, message)
    if problem.rate is None:
        return
    on_hessian, excluded = problem.exponents.name == "hessian", problem.excluded
    if problem.decay and on_hessian:
        yield Note(
            "weight-decay-ignored",
            f"the weight decay {problem.decay:g} of {optimizer.name} is not in the map |1 - eta*alpha|: "
            f"with it, neutral directions contract by {problem.rate * problem.decay:.2g} a step.",
        )
    if excluded and problem.shift is None and not on_hessian:
        yield Note(
            "weight-decay-exclusions",
            f"the optimizer excludes {len(excluded)} variables from weight decay ({', '.join(excluded[:4])}); "
            "the 2x2 blocks of momentum apply it to all.",
        )
    if problem.exponents.preconditioned:
        yield Note(
            "frozen-preconditioner",
            f"SD and its exponents are those of a step whose preconditioner P, made of the second moments of "
            f"{optimizer.name}, is frozen as the last step left it. Training keeps changing P, so they do not describe "
            "training's own random dynamical system: neither D_s <= SD nor the bounds apply to them "
            "(`map='full'` or `lyapunov` follow the whole step).",
        )


def _logits_as_probabilities(loss: EmpiricalLoss) -> str | None:
    """Says so if a cross-entropy that takes probabilities gets outputs that are none; None if all is well.

    Keras clips such outputs in silence: the loss is then flat almost everywhere and as steep as 1e7 elsewhere.
    """
    model = loss.function.model
    names = _losses(model)
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


# Assumptions of the bounds


def facts_at(problem: Problem, estimate: SharpnessDimension, *, smallest_exponent: float, clipped: bool) -> Facts:
    """Evidence on the theorems' assumptions at the weights where SD was estimated.

    `smallest_exponent` is the pooled spectrum's; `clipped` says whether the optimizer clips gradients.
    """
    model = problem.model
    optimizer, per_epoch = getattr(problem.compiled_as, "optimizer", None), problem.source.minibatches_per_epoch
    return Facts(
        dimension=estimate.value if estimate.definition_value is None else estimate.definition_value,
        state_size=estimate.state_size,
        num_samples=problem.source.samples_per_pass,
        kinks=kinks(model),
        clipped=clipped,
        unbounded_loss=unbounded_loss(model),
        smallest_exponent=smallest_exponent,
        training=training_facts(model, optimizer, estimate.map, per_epoch),
    )


def training_facts(model: Model, optimizer: Optimizer, map_name: str, minibatches_per_epoch: int) -> Training:
    """Facts about the map that training with a Keras optimizer iterates; SD was measured of the map `map_name`."""
    if optimizer is None:
        return Training(other_map="no optimizer is known")
    parts = training_parts(inner(optimizer))
    stationary = "the optimizer has no schedule (what a callback changes cannot be seen)"
    if minibatches_per_epoch > 1:
        stationary += (
            f"; an epoch draws its {minibatches_per_epoch:,} minibatches without replacement, so that training is "
            "stationary over whole epochs only"
        )
    return Training(
        other_map=_other_map(inner(optimizer), map_name),
        time_dependence=next(filter(None, map(_time_dependence, parts)), ""),
        stationary=stationary,
        absorbing=_absorbing(model, parts),
        kinks=tuple(kink for each in parts for kink in _kinks_of_update(each)),
    )


def _other_map(optimizer: Optimizer, map_name: str) -> str:
    """How the analysed map differs from training's, or ""."""
    name = type(optimizer).__name__
    if map_name in PRECONDITIONED:
        return (
            f"the map {map_name} holds the second moments of {name} as the last step left them, and training moves them"
        )
    extras = [word for word in ("momentum", "weight decay") if getattr(optimizer, word.replace(" ", "_"), None)]
    if map_name != "hessian" or (name == "SGD" and not extras):
        return ""
    with_extras = f" with {' and '.join(extras)}" if extras and name == "SGD" else ""
    return f"the map |1 - eta*alpha| is not the step of {name}{with_extras}"


def _time_dependence(optimizer: Optimizer) -> str:
    """What makes the step depend on time, or ""."""
    schedule, name = schedule_of(optimizer), type(optimizer).__name__
    if schedule is not None:
        return f"the learning rate follows {type(schedule).__name__}"
    t, beta = int(np.asarray(optimizer.iterations)), getattr(optimizer, "beta_2", None)
    if name in _CORRECTED and beta is not None and beta**t > _SETTLED:
        return f"the bias correction of {name} still moves: 1 - beta2^t is {1 - beta**t:.3g} after {t:,} steps"
    return ""


def _absorbing(model: Model, optimizers: list[Optimizer]) -> str:
    """Evidence on an absorbing set."""
    regularized = any(getattr(variable, "regularizer", None) is not None for variable in model.trainable_variables)
    if regularized or any(getattr(optimizer, "weight_decay", None) for optimizer in optimizers):
        return "weight decay or a regulariser pulls weights back, which shows none by itself"
    if any("crossentropy" in name for name in _losses(model)):
        return "with cross-entropy, no weight decay and data that the net separates there is none"
    return "nothing here shows one"


def _kinks_of_update(optimizer: Optimizer) -> Iterator[str]:
    name = type(optimizer).__name__
    if name in _KINKED_UPDATES:
        yield f"{_KINKED_UPDATES[name]} ({name})"
    if getattr(optimizer, "amsgrad", False):
        yield f"maximum (amsgrad of {name})"


def kinks(model: Model) -> tuple[str, ...]:
    """Layers, activations and losses that are not twice continuously differentiable, as 'type (layer)'."""
    names = []
    for layer in model._flatten_layers(include_self=False):
        kind = type(layer).__name__
        if _KINKED_LAYERS.fullmatch(kind):
            names.append(f"{kind} ({layer.name})")
            continue
        for field in ("activation", "recurrent_activation"):
            name = getattr(getattr(layer, field, None), "__name__", "")
            if _KINKED_ACTIVATIONS.fullmatch(name):
                names.append(f"{name} ({layer.name})")
    return (*dict.fromkeys(names), *(f"{name} (loss)" for name in _losses(model) if _KINKED_LOSSES.fullmatch(name)))


def unbounded_loss(model: Model) -> str | None:
    """The first compiled loss that has no upper bound, or None."""
    return next((name for name in _losses(model) if name and name not in _BOUNDED_LOSSES), None)


def _losses(model: Model) -> list[str]:
    """The compiled losses by Keras' name; "" for one of the user's own."""

    def name(loss: Loss) -> str:
        try:
            known = keras.losses.get(loss)
        except (ValueError, TypeError):
            return ""
        source = type(known) if isinstance(known, keras.losses.Loss) else known
        if not str(getattr(source, "__module__", "")).startswith("keras."):
            return ""
        return str(getattr(known, "name", None) or getattr(known, "__name__", ""))

    return [name(loss) for loss in keras.tree.flatten(getattr(model, "loss", None) or [])]


# Inputs of the bounds


def is_complete(names: Collection[str], estimate: bool) -> bool:
    """Whether every input of a theorem is given, or will be estimated."""
    known = {*names, *(ESTIMATED if estimate else ())}
    return any(known.issuperset(inputs) for inputs in THEOREMS.values())


def loss_of_single_examples(problem: Problem) -> EmpiricalLoss:
    """The loss that inputs of the bounds are estimated from; `now` moves it to later weights."""
    options = problem.options
    return EmpiricalLoss(
        problem.model,
        problem.source,
        mode="inference",  # batch statistics of one example mean nothing
        params=options.params,
        dtype=options.dtype,
        num_samples=options.samples,
        seed=options.seed,
        jit=options.jit,
    )


def inputs_at(singles: EmpiricalLoss | None, known: Mapping[str, float]) -> Mapping[str, float]:
    """Inputs of the bounds: those given, and estimates of others where there is a loss to estimate them from.

    Estimates are lower ends of B and L, the largest loss and the largest gradient norm of single examples at these
    weights: the supremum over all weights and all data that the theorems ask for can only be larger.
    """
    if singles is None:
        return dict(known)
    values, norms = [], []
    engine, left = singles.gradients, _EXAMPLES
    for batch in singles.batches:
        for position in range(min(left, batch.num_examples)):
            one = _example(batch, position)
            total, _, _ = engine.evaluate(engine.point, one)
            values.append(float(total))
            norms.append(float(np.linalg.norm(engine.gradient(engine.point, one).numpy().astype(np.float64))))
        left -= min(left, batch.num_examples)
    estimates = dict(zip(ESTIMATED, (max(values), max(norms)), strict=True))
    return {name: value for name, value in estimates.items() if np.isfinite(value) and value > 0} | dict(known)


def _example(batch: Batch, position: int) -> Batch:
    tensors = tuple(tensor[position : position + 1] for tensor in batch.tensors)
    return attrs.evolve(
        batch, tensors=tensors, data_weight=1.0, extra_weight=1.0, loss_weights=(), num_examples=1, parts=()
    )
