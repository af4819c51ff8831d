"""What each compiled loss divides a batch by, asked of Keras itself while the loss is computed.

A mean over a batch divides by its elements, by the valid tokens of a mask (of the outputs, or set by the loss itself
as with `ignore_class`), or by the sum of the sample weights. Keras reduces its losses in `Loss.__call__`: there the
same reduction is applied to ones.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

_lock = threading.Lock()
_depth = 0
_original: Any = None
_thread = threading.local()


class Recorder:
    """The losses called so far, in order.

    Attributes:
        reductions: Keras' name of each loss's reduction.
        counts: What each divides by, scalars; 1 for a sum, the batch's examples for a loss that Keras does not reduce.
        in_doubt: Names of the losses that may not be a sum over examples divided by the count.
    """

    def __init__(self, factors: Any, examples: Any) -> None:
        self.reductions: list[str] = []
        self.counts: list[Any] = []
        self.in_doubt: list[str] = []
        self._factors = factors
        self._examples = examples

    def record(self, loss: Any, y_true: Any, y_pred: Any, sample_weight: Any) -> Any:
        """The loss's value, times its factor."""
        values: list[Any] = []

        def call(y_true: Any, y_pred: Any) -> Any:
            values.append(loss.call(y_true, y_pred))
            return values[-1]

        total = tf.convert_to_tensor(_original(_with(loss, call, loss.reduction), y_true, y_pred, sample_weight))
        each = tf.convert_to_tensor(values[0])
        reduction, count = str(loss.reduction), self._examples
        if reduction == "sum":
            count = tf.ones_like(self._examples)
        elif each.shape.rank != 0:
            mask = getattr(values[0], "_keras_mask", None)

            def ones(y_true: Any, y_pred: Any) -> Any:
                one = tf.ones_like(each)
                if mask is not None:
                    one._keras_mask = mask
                return one

            weight = sample_weight if reduction == "mean_with_sample_weight" else None
            count = tf.cast(_original(_with(loss, ones, "sum"), y_true, y_pred, weight), self._examples.dtype)
        if each.shape.rank == 0 or not _adds_up(loss):
            self.in_doubt.append(str(loss.name))
        position = len(self.counts)
        self.reductions.append(reduction)
        self.counts.append(count)
        if self._factors is None:
            return total
        return total * tf.cast(self._factors[position], total.dtype)


def _with(loss: Any, call: Any, reduction: Any) -> Any:
    changed = object.__new__(type(loss))  # copy.copy would serialise it
    changed.__dict__.update(vars(loss))
    changed.call, changed.reduction = call, reduction
    return changed


def _adds_up(loss: Any) -> bool:
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


@contextlib.contextmanager
def recording(factors: Any, examples: Any) -> Iterator[Recorder]:
    """While it lasts, losses that this thread calls are recorded; other threads' are left alone.

    A loss that is called by another one is a part of it.

    Args:
        factors: The k-th loss is multiplied by the k-th of them; None for no factors.
        examples: Number of examples of the batch, a floating-point scalar.
    """
    global _depth, _original
    base: Any = keras.losses.Loss
    with _lock:
        if _depth == 0:
            _original = base.__call__
            base.__call__ = _recorded
        _depth += 1
    before = getattr(_thread, "recorder", None)
    _thread.recorder = recorder = Recorder(factors, examples)
    try:
        yield recorder
    finally:
        _thread.recorder = before
        with _lock:
            _depth -= 1
            if _depth == 0:
                base.__call__ = _original


def _recorded(self: Any, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
    recorder = getattr(_thread, "recorder", None)
    if recorder is None:
        return _original(self, y_true, y_pred, sample_weight)
    _thread.recorder = None
    try:
        return recorder.record(self, y_true, y_pred, sample_weight)
    finally:
        _thread.recorder = recorder
