"""Square roots whose derivative at exactly 0 is 0, for as long as an optimizer's update is traced.

The root of a second moment that is exactly 0 (a pixel that is the same in every image) has no derivative there;
TensorFlow's forward mode makes it infinite times 0, NaN. Such a weight has gradient 0 along with it, so that the
tangent that matters is 0 as well: Adam's step -a*m/(sqrt(v) + eps) has the derivative -a/eps in m, and the term from
sqrt(v) is of second order in the gradient.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

_lock = threading.Lock()
_depth = 0
_originals: dict[str, Any] = {}
_local = threading.local()


def _guarded(x: Any, root: Any) -> Any:
    """root(x), unchanged in value; where x is exactly 0 it is a constant 0."""
    zero = tf.equal(x, tf.zeros([], x.dtype))
    counts = getattr(_local, "counts", None)
    if counts is not None:
        counts.append((tf.reduce_sum(tf.cast(zero, tf.int64)), tf.size(zero, tf.int64)))
    return tf.where(zero, tf.zeros_like(x), root(tf.where(zero, tf.ones_like(x), x)))


def _sqrt(x: Any, name: str | None = None) -> Any:
    x = tf.convert_to_tensor(x)
    original = _originals["sqrt"]
    if not x.dtype.is_floating:
        return original(x, name)
    return _guarded(x, original)


def _pow(x: Any, y: Any, name: str | None = None) -> Any:
    original = _originals["pow"]
    exponent = tf.get_static_value(y)
    base = tf.convert_to_tensor(x)
    if exponent is None or exponent.ndim or not 0 < exponent < 1 or not base.dtype.is_floating:
        return original(x, y, name)
    return _guarded(base, lambda safe: original(safe, y, name))


@contextlib.contextmanager
def exact_roots(counts: list[tuple[Any, Any]] | None = None) -> Iterator[None]:
    """While it lasts, `tf.sqrt` and `tf.pow` with an exponent between 0 and 1 have derivative 0 at exactly 0.

    Keras reaches both by attribute. Scopes nest and are safe across threads; values never change.

    Args:
        counts: Takes, for each root traced by this thread, how many of its arguments are exactly 0 and how
            many there are (two scalar tensors).
    """
    global _depth
    with _lock:
        if _depth == 0:
            _originals.update(sqrt=tf.math.sqrt, pow=tf.math.pow)
            tf.sqrt = tf.math.sqrt = _sqrt
            tf.pow = tf.math.pow = _pow
        _depth += 1
    before = getattr(_local, "counts", None)
    _local.counts = counts
    try:
        yield
    finally:
        _local.counts = before
        with _lock:
            _depth -= 1
            if _depth == 0:
                tf.sqrt = tf.math.sqrt = _originals["sqrt"]
                tf.pow = tf.math.pow = _originals["pow"]
