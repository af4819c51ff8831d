"""What can be read off a model about the assumptions of the bounds, and estimates of their inputs."""

from __future__ import annotations

from typing import Any

import attrs
import keras
import numpy as np
import tensorflow as tf

from sdkeras.operators.loss import Batch, EmpiricalLoss

# Not twice continuously differentiable.
_KINKED_ACTIVATIONS = frozenset(
    {
        "relu",
        "relu6",
        "leaky_relu",
        "elu",
        "selu",
        "celu",
        "hard_sigmoid",
        "hard_silu",
        "hard_swish",
        "hard_tanh",
        "hard_shrink",
        "soft_shrink",
        "threshold",
        "softsign",
        "sparse_plus",
        "sparse_sigmoid",
        "sparsemax",
    }
)
_KINKED_LAYERS = frozenset(
    {
        "ReLU",
        "LeakyReLU",
        "PReLU",
        "ELU",
        "ThresholdedReLU",
        "Maximum",
        "Minimum",
        "MaxPooling1D",
        "MaxPooling2D",
        "MaxPooling3D",
        "GlobalMaxPooling1D",
        "GlobalMaxPooling2D",
        "GlobalMaxPooling3D",
        "AdaptiveMaxPooling1D",
        "AdaptiveMaxPooling2D",
        "AdaptiveMaxPooling3D",
    }
)
_KINKED_LOSSES = frozenset(
    {
        "mean_absolute_error",
        "mean_absolute_percentage_error",
        "hinge",
        "squared_hinge",
        "categorical_hinge",
        "huber",
        "huber_loss",
    }
)
_BOUNDED_LOSSES = frozenset(
    {
        "cosine_similarity",
        "dice",
        "tversky",
    }
)
_OF_PROBABILITIES = frozenset(
    {
        "sparse_categorical_crossentropy",
        "categorical_crossentropy",
        "categorical_focal_crossentropy",
        "binary_crossentropy",
        "binary_focal_crossentropy",
    }
)
# Sums of a float16 softmax.
_PROBABILITY_SLACK = 1e-3
_EXAMPLES = 256
# Inputs of the bounds that can be estimated.
ESTIMATED = ("loss_bound", "lipschitz")


def kinks(model: Any) -> tuple[str, ...]:
    """Layers, activations and losses that are not twice continuously differentiable, as 'type (layer)'."""
    found = []
    for layer in model._flatten_layers(include_self=False):
        kind = type(layer).__name__
        if kind in _KINKED_LAYERS:
            found.append(f"{kind} ({layer.name})")
        for field in ("activation", "recurrent_activation"):
            name = getattr(getattr(layer, field, None), "__name__", "")
            if name in _KINKED_ACTIVATIONS and kind not in _KINKED_LAYERS:
                found.append(f"{name} ({layer.name})")
    return (*dict.fromkeys(found), *(f"{name} (loss)" for name in losses(model) if name in _KINKED_LOSSES))


def losses(model: Any) -> tuple[str, ...]:
    """The compiled losses by Keras' name; '' for one of the user's own."""
    names = []
    for loss in _leaves(getattr(model, "loss", None)):
        try:
            known = keras.losses.get(loss)
        except (ValueError, TypeError):
            known = None
        own = type(known) if isinstance(known, keras.losses.Loss) else known
        theirs = str(getattr(own, "__module__", "")).startswith("keras.")
        names.append(str(getattr(known, "name", None) or getattr(known, "__name__", "")) if theirs else "")
    return tuple(names)


def unbounded_loss(model: Any) -> str | None:
    """The first compiled loss that has no upper bound, or None."""
    return next((name for name in losses(model) if name and name not in _BOUNDED_LOSSES), None)


def logits_as_probabilities(loss: EmpiricalLoss) -> str | None:
    """Says so if a cross-entropy that takes probabilities gets outputs that are none; None if all is well.

    Keras clips such outputs in silence: the loss is then flat almost everywhere and as steep as 1e7 elsewhere.
    """
    model = loss.function.model
    names = losses(model)
    if len(names) != 1 or names[0] not in _OF_PROBABILITIES:
        return None
    if getattr(model.loss, "_fn_kwargs", {}).get("from_logits", False):
        return None
    few = tf.nest.pack_sequence_as(loss.source.structure, [part[:64] for part in loss.batches[0].tensors])
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
        "clips them in silence; if they are logits, the loss must say so (from_logits=True when compiling, --loss "
        f"{names[0]}:from_logits here)."
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
    found = dict(zip(ESTIMATED, (max(values), max(norms)), strict=True))
    return {name: value for name, value in found.items() if np.isfinite(value) and value > 0}


def _example(batch: Batch, position: int) -> Batch:
    tensors = tuple(part[position : position + 1] for part in batch.tensors)
    return attrs.evolve(batch, tensors=tensors, data_weight=1.0, extra_weight=1.0, loss_weights=(), num_examples=1)


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for part in tree.values() for leaf in _leaves(part)]
    if isinstance(tree, (list, tuple)):
        return [leaf for part in tree for leaf in _leaves(part)]
    return [] if tree is None else [tree]
