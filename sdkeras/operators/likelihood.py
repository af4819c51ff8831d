"""Losses that are negative log-likelihoods of targets given the model's outputs, and targets drawn from these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import keras
import numpy as np
import scipy.special

from sdkeras.errors import ModelError
from sdkeras.files.keras_types import Loss, Tensor
from sdkeras.results.arrays import Array, FloatArray

# By the function that Keras computes the loss with.
_FAMILIES = {
    keras.losses.sparse_categorical_crossentropy: "softmax",
    keras.losses.categorical_crossentropy: "softmax",
    keras.losses.binary_crossentropy: "sigmoid",
    keras.losses.mean_squared_error: "gaussian",
}


class NoLikelihoodError(ModelError):
    """The loss is no negative log-likelihood that is known here; `why` is the sentence without the advice."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"{why} (categorical, sparse and binary cross-entropy are, of logits or on a softmax or sigmoid layer, and "
            "mean squared error), so that its Fisher matrix is not known; take its Gauss-Newton matrix "
            "(GaussNewtonOperator(loss)), or kind='empirical'."
        )
        self.why = why


@attrs.frozen
class Likelihood:
    """The distribution of the targets of one compiled loss.

    softmax: classes with probabilities softmax(z). sigmoid: each output is 1 with probability sigmoid(z). gaussian:
    targets of mean z and variance C/2 for C outputs, of which Keras' squared error, a mean over them, is the negative
    log-likelihood.

    Attributes:
        family: 'softmax', 'sigmoid' or 'gaussian'.
        sparse: Whether targets are class numbers.
        smoothing: Keras' label smoothing.
        ignored: Class of targets that do not count, or None.
        place: Place of the targets among a batch's tensors.
    """

    family: str
    sparse: bool
    smoothing: float
    ignored: int | None
    place: int

    def weight(self, outputs: Array) -> float:
        """Independent targets that one value of the loss averages over; the Gaussian's variance has taken them in."""
        return float(outputs.shape[-1]) if self.family == "sigmoid" else 1.0

    def drawn(self, outputs: Array, targets: Array, generator: np.random.Generator) -> Array:
        """Targets drawn given outputs z [..., C], in the shape and dtype of those that they replace.

        With label smoothing they are such that smoothed they are what was drawn: the loss is then minus the logarithm
        of its probability. Targets that do not count stay.

        Raises:
            ModelError: The targets' dtype holds no such values.
        """
        values = self._values(outputs.astype(np.float64), generator)
        if self.smoothing or self.family == "gaussian":
            self._require_floats(targets)
        if self.smoothing:
            classes = outputs.shape[-1] if self.family == "softmax" else 2
            values = (values - self.smoothing / classes) / (1 - self.smoothing)
        values = values.reshape(targets.shape).astype(targets.dtype)
        return values if self.ignored is None else np.where(targets == self.ignored, targets, values)

    def _values(self, z: FloatArray, generator: np.random.Generator) -> Array:
        values: Array
        if self.family == "gaussian":
            values = z + np.sqrt(z.shape[-1] / 2) * generator.standard_normal(z.shape)
        elif self.family == "sigmoid":
            values = (generator.uniform(size=z.shape) < scipy.special.expit(z)).astype(np.float64)
        else:
            classes = np.argmax(z + generator.gumbel(size=z.shape), axis=-1)  # each with its probability softmax(z)
            values = classes if self.sparse else np.eye(z.shape[-1])[classes]
        return values

    @staticmethod
    def _require_floats(targets: Array) -> None:
        if targets.dtype.kind != "f":
            raise ModelError(
                f"targets drawn from the model are fractions, and the data's are {targets.dtype}; give the targets as "
                "floating-point numbers (`y.astype('float32')`)."
            )


def likelihood_of(
    loss: Loss, y_true: Tensor, tensors: Sequence[Tensor], read: Mapping[str, Tensor]
) -> tuple[Likelihood, Tensor]:
    """The likelihood of a compiled loss, and the outputs z that it is given by.

    Args:
        loss: A loss of Keras.
        y_true: Its targets.
        tensors: Those of the batch, of which one is the targets.
        read: What the loss reads of the outputs: 'values' of the model, 'logits' that Keras keeps with them.

    Raises:
        NoLikelihoodError: The loss is none that is known here.
    """
    options = getattr(loss, "_fn_kwargs", {})
    function = getattr(loss, "fn", None)
    family = _FAMILIES.get(function, "") if type(loss).__module__.startswith("keras.") else ""
    if not family:
        raise NoLikelihoodError(f"the loss {loss.name} is no negative log-likelihood that sdkeras knows")
    name = "values" if family == "gaussian" or "logits" not in read else "logits"
    logits_known = family == "gaussian" or name == "logits" or bool(options.get("from_logits"))
    if list(read) != [name] or not logits_known:
        raise NoLikelihoodError(
            f"the loss {loss.name} reads probabilities that are not those of a softmax or sigmoid layer, and of logits "
            "alone it is known as a likelihood"
        )
    z, smoothing, ignored = read[name], float(options.get("label_smoothing") or 0.0), options.get("ignore_class")
    if options.get("axis", -1) not in (-1, z.shape.rank - 1):
        raise NoLikelihoodError(f"the classes of the loss {loss.name} are not along the last axis")
    place = next((k for k, tensor in enumerate(tensors) if tensor is y_true), None)
    if place is None:
        raise NoLikelihoodError(f"the targets of the loss {loss.name} are not an array of the data")
    sparse = function is keras.losses.sparse_categorical_crossentropy
    return Likelihood(family, sparse, smoothing, ignored, place), z
