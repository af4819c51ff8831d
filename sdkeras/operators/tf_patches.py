"""Functions of TensorFlow and Keras that are replaced for a while: one counted, locked way to do it.

Both libraries reach these functions by attribute, so that what is called or traced inside a scope gets the
replacements; a graph traced outside keeps what it has.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import keras.src.backend
import numpy as np
import tensorflow as tf

from sdkeras.files.keras_types import Tensor
from sdkeras.results.arrays import Value

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


# Data formats of max pooling in one and two dimensions, by the rank of its input.
_POOLED = {3: "NWC", 4: "NHWC"}


def _max_pool(
    input: Tensor,  # noqa: A002  the name that TensorFlow gives it
    ksize: Value,
    strides: Value,
    padding: object,
    data_format: str | None = None,
    name: str | None = None,
) -> Tensor:
    x, original = tf.convert_to_tensor(input), _POOLS.originals["max_pool"]
    known = x.shape.rank in _POOLED and data_format in (None, _POOLED.get(x.shape.rank)) and isinstance(padding, str)
    if _POOLS.value is None or not known:
        return original(input, ksize, strides, padding, data_format, name)
    window, step = _sides(ksize), _sides(strides)
    fixed = tf.stop_gradient(x)
    if x.shape.rank == 3:
        fixed = fixed[:, :, None]
        window, step = ([each[len(each) // 2], 1] for each in (window, step))
    if _POOLS.value == "sliced":
        images = x if x.shape.rank == 4 else x[:, :, None]
        if None in images.shape[1:3]:
            return original(input, ksize, strides, padding, data_format, name)
        windows = _windows(images, window, step, str(padding).upper())
        first = tf.one_hot(tf.argmax(tf.stop_gradient(windows), -1), windows.shape[-1], True, False, dtype=tf.bool)
        chosen = tf.reduce_sum(tf.where(first, windows, tf.zeros_like(windows)), -1)
        return chosen if x.shape.rank == 4 else tf.squeeze(chosen, 2)
    pooled, places = tf.nn.max_pool_with_argmax(fixed, window, step, padding, include_batch_in_index=True)
    chosen = tf.reshape(tf.gather(tf.reshape(x, [-1]), tf.reshape(places, [-1])), tf.shape(pooled))
    if tf.config.list_physical_devices("GPU"):  # whose kernel finds no place in a window of the lowest number alone
        chosen = tf.where(places < 0, pooled, chosen)
    return chosen if x.shape.rank == 4 else tf.squeeze(chosen, 2)


def _windows(x: Tensor, window: list[int], step: list[int], padding: str) -> Tensor:
    """The entries of each window of images [b, h, w, c], shape [b, rows, columns, c, entries]; -inf beyond the edge."""
    # One number, two, or one for each of the four axes.
    sides, steps = (each[1:3] if len(each) == 4 else [each[0], each[-1]] for each in (window, step))
    pads, cuts = [(0, 0)], []
    for size, side, far in zip(x.shape[1:3], sides, steps, strict=True):
        count = -(-size // far) if padding == "SAME" else (size - side) // far + 1
        missing = max((count - 1) * far + side - size, 0)
        pads.append((missing // 2, missing - missing // 2))
        cuts.append([slice(place, place + (count - 1) * far + 1, far) for place in range(side)])
    padded = tf.pad(x, [*pads, (0, 0)], constant_values=-np.inf)
    return tf.stack([padded[:, rows, columns] for rows in cuts[0] for columns in cuts[1]], -1)


def _sides(sizes: Value) -> list[int]:
    """Of a window or a step: one number, or one for each axis between those of examples and channels or for all."""
    given = sizes.as_list() if isinstance(sizes, tf.TensorShape) else sizes
    return [int(each) for each in np.ravel(given)]


_POOLS: Patch[str] = Patch(tf.nn, max_pool=_max_pool)


def indexed_pooling(jit: bool = False) -> contextlib.AbstractContextManager[None]:
    """While it lasts, this thread traces max pooling in one and two dimensions as a lookup at the places of the maxima.

    The function is the same. Its derivatives are lookups and sums, where TensorFlow's compare every entry with every
    maximum anew: of 128 images of 26 x 26 x 16 both take 3 ms in place of 14, half of a small net's product. With
    strides 1 and same padding TensorFlow's second one is wrong besides: it writes over its own input.

    XLA has no lookup of places, and compares in bfloat16 to find the maxima in its second derivative, so that close
    entries are taken for each other: with `jit` the windows are laid side by side, and the first maximum of each is
    taken out.
    """
    return _POOLS.scope("sliced" if jit else "indexed")


# Steps up to which recurrent layers are unrolled. Measured with a masked GRU and an LSTM of 4 units, CPU seconds to
# trace a product and to call it first, for both: 14 as loops of any length, 1.9 for each 3 steps unrolled; a product
# takes 21 ms as loops and 4.6 unrolled, for 7 steps.
MOST_STEPS = 16


def _rnn(step_function: Callable[..., object], inputs: Tensor, initial_states: Tensor, **options: object) -> Tensor:
    shape = tf.nest.flatten(inputs)[0].shape
    steps = shape[0 if options.get("time_major") else 1]
    if _LOOPS.value is not None and steps is not None and steps <= MOST_STEPS:
        options["unroll"] = True
        _LOOPS.value.append(steps)
    return _LOOPS.originals["rnn"](step_function, inputs, initial_states, **options)


_LOOPS: Patch[list[int]] = Patch(keras.src.backend, rnn=_rnn)


def _cudnn_ok(*arguments: object, **options: object) -> object:
    return _CUDNN.value is None and _CUDNN.originals["cudnn_ok"](*arguments, **options)


# The module, which has the name of a function of its package.
_CUDNN: Patch[bool] = Patch(importlib.import_module("keras.src.backend.tensorflow.rnn"), cudnn_ok=_cudnn_ok)


@contextlib.contextmanager
def unrolled_loops(steps: list[int]) -> Iterator[None]:
    """While it lasts, this thread traces recurrent layers over at most `MOST_STEPS` steps without a loop.

    The function is the same, masks and dropout included; the layers are not changed. A cell that draws random numbers
    of its own draws them anew at each step, as in training, where Keras' loop without a state would repeat the first.
    The numbers of steps are appended to `steps`. On a GPU LSTM and GRU do without cuDNN, which has no second
    derivatives.
    """
    with _CUDNN.scope(True), _LOOPS.scope(steps):
        yield


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
