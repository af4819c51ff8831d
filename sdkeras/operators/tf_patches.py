"""Functions of TensorFlow and Keras that are replaced for a while: one counted, locked way to do it.

Both libraries reach these functions by attribute, so that what is called or traced inside a scope gets the
replacements; a graph traced outside keeps what it has.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import tensorflow as tf

from sdkeras.files.keras_types import Tensor

T = TypeVar("T")


class Patch(Generic[T]):
    """Replacements that are in place while any thread is in a scope; scopes nest.

    Args:
        owners: Modules or classes that have the functions, the same ones in each.
        replacements: Function by the attribute whose place it takes.

    Attributes:
        originals: The functions replaced, by attribute, while a scope is open.
    """

    def __init__(self, *owners: object, **replacements: Callable[..., object]) -> None:
        self.originals: dict[str, Callable[..., object]] = {}
        self._owners = owners
        self._replacements = replacements
        self._depth = 0
        self._lock = threading.Lock()
        self._thread = threading.local()

    @property
    def value(self) -> T | None:
        """The value of this thread's innermost scope; None outside."""
        return getattr(self._thread, "value", None)

    @contextlib.contextmanager
    def scope(self, value: T | None = None) -> Iterator[None]:
        """The replacements are in place for all threads; `value` is what they find in this one."""
        with self._lock:
            if self._depth == 0:
                self.originals = {name: getattr(self._owners[0], name) for name in self._replacements}
                self._put(self._replacements)
            self._depth += 1
        before, self._thread.value = self.value, value
        try:
            yield
        finally:
            self._thread.value = before
            with self._lock:
                self._depth -= 1
                if self._depth == 0:
                    self._put(self.originals)

    def _put(self, functions: dict[str, Callable[..., object]]) -> None:
        for owner in self._owners:
            for name, function in functions.items():
                setattr(owner, name, function)


def _moments(
    x: Tensor, axes: Sequence[int], shift: object = None, keepdims: bool = False, name: str | None = None
) -> tuple[Tensor, Tensor]:
    del shift
    with tf.name_scope(name or "moments"):
        mean = tf.reduce_mean(x, axes, keepdims=True)
        variance = tf.reduce_mean(tf.square(x - mean), axes, keepdims=keepdims)
        return (mean if keepdims else tf.squeeze(mean, axes)), variance


_MOMENTS: Patch[None] = Patch(tf.nn, moments=_moments)


def exact_moments() -> contextlib.AbstractContextManager[None]:
    """While it lasts, the variance of `tf.nn.moments` has the right second derivative.

    TensorFlow stops the gradient of the mean inside the variance: exact to first order (the sum of x - mean is 0),
    wrong to second.
    """
    return _MOMENTS.scope()
