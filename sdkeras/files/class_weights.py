"""Class weights by the rules of `Model.fit`: one weight per sample, looked up by the class of its target."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sdkeras.errors import DataError, SdkerasError
from sdkeras.files.keras_types import Array

# Keras multiplies losses by them in float32; a loss beside it needs room too.
_LARGEST = 1e30
_EXAMPLE = "for example `class_weight={0: 1.0, 1: 9.0}`"


def checked(class_weight: Mapping[int, float] | None) -> dict[int, float] | None:
    """The weights with plain numbers for keys and values, by ascending class; None for none.

    Raises:
        SdkerasError: It is no mapping of integer classes to finite weights >= 0, or is empty.
    """
    if class_weight is None:
        return None
    if not isinstance(class_weight, Mapping) or not class_weight:
        raise SdkerasError(f"class_weight is {class_weight!r}; it must map classes to weights, {_EXAMPLE}.")
    for label, weight in class_weight.items():
        if isinstance(label, bool) or not isinstance(label, (int, np.integer)) or label < 0:
            raise SdkerasError(f"class_weight has the class {label!r}; classes are integers >= 0, {_EXAMPLE}.")
        number = isinstance(weight, (int, float, np.number)) and not isinstance(weight, bool)
        advice = ""
        if not number or not 0 <= float(weight) < math.inf:
            advice = f"; weights are finite numbers >= 0, {_EXAMPLE}"
        elif float(weight) > _LARGEST:
            advice = ", which overflows float32; scale all of them down"
        if advice:
            raise SdkerasError(f"class_weight gives class {label} the weight {weight!r}{advice}.")
    return {int(label): float(class_weight[label]) for label in sorted(class_weight)}


def parsed(text: str) -> dict[int, float]:
    """The weights that a text like '0=1.0,1=9.0' stands for.

    Raises:
        SdkerasError: It is no such text, or names a class twice.
    """
    weights: dict[int, float] = {}
    for entry in text.split(","):
        label, _, weight = entry.partition("=")
        try:
            if int(label) in weights:
                raise SdkerasError(f"`class_weight` {text}: class {int(label)} is named twice; give each class once.")
            weights[int(label)] = float(weight)
        except ValueError:
            raise SdkerasError(
                f"`class_weight` {text}: {entry!r} is not CLASS=WEIGHT; give weights like 0=1.0,1=9.0."
            ) from None
    return checked(weights) or {}


def without_samples(targets: Array, class_weight: Mapping[int, float]) -> str:
    """A sentence about the classes that have a weight and no sample, or ""."""
    absent = sorted(set(class_weight) - set(np.unique(_classes(targets)).tolist()))
    if not absent:
        return ""
    some = ", ".join(map(str, absent[:5])) + (", ..." if len(absent) > 5 else "")
    return f"class_weight has weights of classes that no sample of the data has: {some}"


def _classes(targets: Array) -> NDArray[np.int64]:
    """The class of each target, as Keras looks it up."""
    labels = targets
    if targets.ndim > 1:
        labels = np.squeeze(targets, -1) if targets.shape[-1] == 1 else np.argmax(targets, axis=-1)
    return np.round(labels).astype(np.int64)


def sample_weights(targets: Array, class_weight: Mapping[int, float], *, per_step: bool) -> NDArray[np.float32]:
    """The weight of each sample, as Keras looks it up; classes without a weight weigh 1.

    Targets (of one output, first axis samples) of one axis, or with a last axis of 1, are classes (floats are rounded);
    otherwise the class is where the last axis is largest. `per_step`, targets with further axes give a weight for each
    entry of them: Keras does that for a `tf.data.Dataset` and fails for arrays.

    Raises:
        DataError: Targets with further axes that cannot be weighted, or no weight but 0.
    """
    labels = _classes(targets)
    if labels.ndim > 1 and not per_step:
        raise DataError(
            f"class_weight needs one class per sample, and the targets have the shape {targets.shape}, which Keras' "
            "fit cannot weight by class either; give sample weights in the data, or a tf.data.Dataset."
        )
    classes, places = np.unique(labels, return_inverse=True)
    weights = np.array([class_weight.get(int(label), 1.0) for label in classes], np.float32)
    if not weights.any():
        raise DataError(
            "class_weight gives every class in the data the weight 0, so the loss is undefined; weigh some classes."
        )
    return weights[places.reshape(labels.shape)]
