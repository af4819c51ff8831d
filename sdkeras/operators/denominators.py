"""Denominators by which the compiled losses divide a batch, taken from Keras while the loss is computed.

A mean over a batch divides by its elements, by the valid tokens of a mask (of the outputs, or set by the loss itself
as with `ignore_class`), or by the sum of the sample weights. Keras reduces its losses in `Loss.__call__`: there the
same reduction is applied to ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeAlias

import keras
import tensorflow as tf

from sdkeras.files.keras_types import Loss, Tensor
from sdkeras.operators.tf_patches import Patch

# What is made of each compiled loss: (loss, y_true, y_pred, sample_weight, its values before they are reduced).
Inspect: TypeAlias = Callable[[Loss, Tensor, Tensor, Tensor | None, Tensor], None]


class Recorder:
    """The losses called so far, in order."""

    def __init__(self, factors: Tensor | None, examples: Tensor, inspect: Inspect | None = None) -> None:
        self.reductions: list[str] = []  # by Keras' names
        self.counts: list[Tensor] = []  # denominators; 1 for a sum, the batch's examples where Keras does not reduce
        self.in_doubt: list[str] = []  # names of the losses that may not be a sum over examples divided by the count
        self._factors = factors
        self._examples = examples
        self._inspect = inspect

    def record(self, loss: Loss, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None) -> Tensor:
        """The loss's value, times its factor."""
        original = _CALLS.originals["__call__"]
        values: list[Tensor] = []

        def call(y_true: Tensor, y_pred: Tensor) -> Tensor:
            values.append(loss.call(y_true, y_pred))
            return values[-1]

        total = tf.convert_to_tensor(original(_with(loss, call, loss.reduction), y_true, y_pred, sample_weight))
        each = tf.convert_to_tensor(values[0])
        reduction, count = str(loss.reduction), self._examples
        if reduction == "sum":
            count = tf.ones_like(self._examples)
        elif each.shape.rank != 0:
            mask = getattr(values[0], "_keras_mask", None)

            def ones(y_true: Tensor, y_pred: Tensor) -> Tensor:
                one = tf.ones_like(each)
                if mask is not None:
                    one._keras_mask = mask  # where Keras looks for it
                return one

            weight = sample_weight if reduction == "mean_with_sample_weight" else None
            count = tf.cast(original(_with(loss, ones, "sum"), y_true, y_pred, weight), self._examples.dtype)
        if self._inspect is not None:
            self._inspect(loss, y_true, y_pred, sample_weight, values[0])
        if each.shape.rank == 0 or not _adds_up(loss):
            self.in_doubt.append(str(loss.name))
        self.reductions.append(reduction)
        self.counts.append(count)
        return total if self._factors is None else total * tf.cast(self._factors[len(self.counts) - 1], total.dtype)


def by_example(loss: Loss, call: tuple[Tensor, Tensor, Tensor | None], values: Tensor, like: Tensor) -> Tensor:
    """Each example's sum of values times the weights that Keras gives them, shape [examples].

    `values` are one for each place of the loss; `like` are the loss's own, which may carry a mask; `call` has its
    y_true, y_pred and sample weights. A loss reduces its values to the sum of these over what `by_example` gives for
    ones, without weights unless its reduction divides by them.
    """
    values = tf.identity(values)
    mask = getattr(like, "_keras_mask", None)
    if mask is not None:
        values._keras_mask = mask  # where Keras looks for it
    weighted = _CALLS.originals["__call__"](_with(loss, lambda *_: values, "none"), *call)
    return tf.reduce_sum(tf.reshape(weighted, [tf.shape(values)[0], -1]), axis=1)


def _with(loss: Loss, call: Callable[[Tensor, Tensor], Tensor], reduction: str) -> Loss:
    changed = object.__new__(type(loss))  # copy.copy would serialise it
    changed.__dict__.update(vars(loss))
    changed.call, changed.reduction = call, reduction
    return changed


def _adds_up(loss: Loss) -> bool:
    """Whether this is a loss of Keras that is known to treat the examples of a batch one by one."""
    options = getattr(loss, "_fn_kwargs", {})
    axes = tf.nest.flatten(options.get("axis", -1))
    function = getattr(loss, "fn", loss.call)
    return (
        type(loss).__module__.startswith("keras.")
        and str(getattr(function, "__module__", "")).startswith("keras.")
        and not isinstance(loss, keras.losses.Circle)  # similarities between examples
        and 0 not in axes
    )


def _recorded(self: Loss, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None) -> Tensor:
    recorder = _CALLS.value
    if recorder is None:
        return _CALLS.originals["__call__"](self, y_true, y_pred, sample_weight)
    with _CALLS.scope(None):  # a loss that is called by another one is a part of it
        return recorder.record(self, y_true, y_pred, sample_weight)


_CALLS: Patch[Recorder] = Patch(keras.losses.Loss, __call__=_recorded)


@contextlib.contextmanager
def recording(factors: Tensor | None, examples: Tensor, inspect: Inspect | None = None) -> Iterator[Recorder]:
    """While it lasts, losses that this thread calls are recorded, the k-th times the k-th factor, other threads' not.

    `examples` is the number of examples of the batch, a floating-point scalar. Each loss is also given to `inspect`.
    """
    recorder = Recorder(factors, examples, inspect)
    with _CALLS.scope(recorder):
        yield recorder
