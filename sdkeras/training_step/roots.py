"""Square roots whose derivative at exactly 0 is 0, for as long as an optimizer's update is traced.

The root of a second moment that is exactly 0 (a pixel that is the same in every image) has no derivative there;
TensorFlow's forward mode makes it infinite times 0, NaN. Such a weight has gradient 0 along with it, so that the
tangent that matters is 0 as well: Adam's step -a*m/(sqrt(v) + eps) has the derivative -a/eps in m, and the term from
sqrt(v) is of second order in the gradient.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import tensorflow as tf

from sdkeras.files.keras_types import Tensor
from sdkeras.operators.tf_patches import Patch

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

    Scopes nest and are safe across threads; values never change.

    Args:
        counts: Takes, for each root traced by this thread, how many of its arguments are exactly 0 and how
            many there are (two scalar tensors).
    """
    return _ROOTS.scope(counts)
