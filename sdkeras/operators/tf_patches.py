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
    """Replacements by attribute, in each of the owners, while any thread is in a scope; scopes nest."""

    def __init__(self, *owners: object, **replacements: Callable[..., object]) -> None:
        self.originals: dict[str, Callable[..., object]] = {}  # while a scope is open
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


# For each root traced in a scope, how many of its arguments are exactly 0, and how many there are.
Counts = list[tuple[Tensor, Tensor]]


def _guarded(x: Tensor, root: Callable[[Tensor], Tensor]) -> Tensor:
    """root(x), unchanged in value; where x is exactly 0 it is a constant 0."""
    zero = tf.equal(x, tf.zeros([], x.dtype))
    if _ROOTS.value is not None:
        _ROOTS.value.append((tf.reduce_sum(tf.cast(zero, tf.int64)), tf.size(zero, tf.int64)))
    return tf.where(zero, tf.zeros_like(x), root(tf.where(zero, tf.ones_like(x), x)))


def _sqrt(x: Tensor, name: str | None = None) -> Tensor:
    x = tf.convert_to_tensor(x)
    original = _ROOTS.originals["sqrt"]
    return _guarded(x, original) if x.dtype.is_floating else original(x, name)


def _pow(x: Tensor, y: Tensor, name: str | None = None) -> Tensor:
    original = _ROOTS.originals["pow"]
    exponent = tf.get_static_value(y)
    base = tf.convert_to_tensor(x)
    if exponent is None or exponent.ndim or not 0 < exponent < 1 or not base.dtype.is_floating:
        return original(x, y, name)
    return _guarded(base, lambda safe: original(safe, y, name))


_ROOTS: Patch[Counts] = Patch(tf, tf.math, sqrt=_sqrt, pow=_pow)


def exact_roots(counts: Counts | None = None) -> contextlib.AbstractContextManager[None]:
    """While it lasts, `tf.sqrt` and `tf.pow` with an exponent between 0 and 1 have derivative 0 at exactly 0.

    The root of a second moment that is exactly 0 (a pixel that is the same in every image) has no derivative there;
    TensorFlow's forward mode makes it infinite times 0, NaN. Such a weight has gradient 0 along with it, so that the
    tangent that matters is 0 as well: Adam's step -a*m/(sqrt(v) + eps) has the derivative -a/eps in m, and the term
    from sqrt(v) is of second order in the gradient. This thread's roots are appended to `counts`.
    """
    return _ROOTS.scope(counts)
