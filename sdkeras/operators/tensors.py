"""Vectors on a device: the operations of `linalg.vectors` for tensors, and probes that are drawn where they are used.

Importing this module teaches the algorithms of `linalg` tensors. Only numbers come back to the host: inner products,
norms and small matrices, in float64; nothing of a vector's length.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator

import attrs
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.ops import EagerTensor

from sdkeras import seeds
from sdkeras.errors import ArgumentTypeError, NonFiniteError
from sdkeras.files.keras_types import Compiled, Tensor
from sdkeras.linalg import dense, orthogonal, vectors
from sdkeras.results.arrays import Array, DType, FloatArray

# Rows of a basis that one matrix holds.
_ROWS = 16


class TensorSpace:
    """A `Space` of tensors: draws by counters (Philox), which every CPU and GPU make alike."""

    def signs(self, count: int, size: int, *, seed: int, stream: int, dtype: DType) -> Tensor:
        # Here, since it takes a second: an analysis on the host does without.
        import tensorflow_probability as tfp

        key = _key(seeds.Stream.PROBES, seed, stream)
        return tfp.random.rademacher([count, size], dtype=tf.as_dtype(dtype), seed=key)

    def direction(self, size: int, *, seed: int, stream: int, dtype: DType) -> Tensor:
        return _normal([size], seed, stream, dtype)

    def frame(self, size: int, num_vectors: int, *, seed: int, dtype: DType) -> Tensor:
        return _thin_qr(_normal([size, num_vectors], seed, 0, dtype))[0]

    def units(self, start: int, stop: int, size: int, *, dtype: DType) -> Tensor:
        return tf.one_hot(tf.range(start, stop), size, dtype=tf.as_dtype(dtype))

    def moved(self, values: Tensor) -> Tensor:
        return tf.constant(values)


SPACE = TensorSpace()


def _normal(shape: list[int], seed: int, stream: int, dtype: DType) -> Tensor:
    key = _key(seeds.Stream.START_VECTOR, seed, stream)
    return tf.random.stateless_normal(shape, key, dtype=tf.as_dtype(dtype), alg="philox")


def _key(stream_name: seeds.Stream, seed: int, stream: int) -> Tensor:
    bits = seeds.generator(seed, stream_name, stream).integers(-(2**31), 2**31 - 1, size=2)
    return tf.constant(bits, tf.int32)


@attrs.define(eq=False)
class Rows:
    """Vectors on a device as the rows of a matrix that grows: `_ROWS` whole ones are one tensor.

    Slices from the first row on and single rows are read as from an array [m, n]; nothing is copied but the last few.
    """

    size: int
    itemsize: int
    _blocks: list[Tensor] = attrs.field(factory=list)
    _last: list[Tensor] = attrs.field(factory=list)

    def __len__(self) -> int:
        return _ROWS * len(self._blocks) + len(self._last)

    @property
    def nbytes(self) -> int:
        return len(self) * self.size * self.itemsize

    def put(self, vector: Tensor, index: int) -> None:
        """A row in place of an earlier one among the last, or after them."""
        place = index - _ROWS * len(self._blocks)
        self._last[place : place + 1] = [vector]
        if len(self._last) == _ROWS:
            self._blocks.append(tf.stack(self._last))
            self._last = []

    def __getitem__(self, place: int | slice) -> Tensor:
        """One row, or the rows up to one as `Rows`."""
        if isinstance(place, slice):
            stop = len(range(len(self))[place])
            whole, rest = divmod(stop, _ROWS)
            last = [self[whole * _ROWS + k] for k in range(rest)]
            return Rows(self.size, self.itemsize, self._blocks[:whole], last)
        block, row = divmod(range(len(self))[place], _ROWS)
        return self._blocks[block][row] if block < len(self._blocks) else self._last[row]

    def matrices(self) -> list[Tensor]:
        """The rows as matrices, one below the other."""
        return [*self._blocks, *([tf.stack(self._last)] if self._last else [])]


def _sums(first: Tensor, second: Tensor) -> Tensor:
    count = tf.size(first) - tf.size(first) % vectors.SHORT_BLOCK
    blocks = tf.reduce_sum(tf.reshape(first[:count] * second[:count], [-1, vectors.SHORT_BLOCK]), axis=1)
    rest = tf.cast(first[count:], tf.float64) * tf.cast(second[count:], tf.float64)
    return tf.reduce_sum(tf.cast(blocks, tf.float64)) + tf.reduce_sum(rest)


_sum_of_products: Compiled = tf.function(_sums, autograph=False, reduce_retracing=True)


@vectors.dot.register(EagerTensor)
def _dot(first: Tensor, second: Tensor) -> float:
    total = float(_sum_of_products(first, second))
    if vectors.VANISHING < abs(total) < np.inf or first.dtype == tf.float64:
        return total
    return float(_sum_of_products(tf.cast(first, tf.float64), tf.cast(second, tf.float64)))


@vectors.norm.register(EagerTensor)
def _norm(vector: Tensor) -> float:
    return float(np.sqrt(_dot(vector, vector)))


@vectors.finite.register(EagerTensor)
def _finite(tensor: Tensor, what: str) -> Tensor:
    if not bool(tf.reduce_all(tf.math.is_finite(tensor))):
        raise NonFiniteError(vectors.not_finite(what))
    return tensor


def real(array: Array | Tensor, dtype: DType, what: str) -> Array | Tensor:
    """An array or tensor from outside in an operator's precision.

    Raises:
        ArgumentTypeError: It is complex.
        NonFiniteError: An array holds NaN or infinity. Tensors are not looked into: each look waits for their device.
    """
    if not tf.is_tensor(array):
        array = np.asarray(array)
    if tf.as_dtype(array.dtype).is_complex:
        raise ArgumentTypeError(f"{what} is complex; take its real and its imaginary part one after the other.")
    if tf.is_tensor(array):
        return tf.cast(array, dtype)
    with np.errstate(over="ignore"):
        array = array.astype(dtype, copy=False)
    if not vectors.is_finite(array):
        raise NonFiniteError(f"{what} holds NaN or infinity, or numbers too large for {dtype}; give finite ones.")
    return array


@vectors.subtract.register(EagerTensor)
def _subtract(vector: Tensor, factor: float, other: Tensor) -> Tensor:
    return vector - tf.cast(factor, vector.dtype) * other


@vectors.components.register(EagerTensor)
def _components(vector: Tensor, rows: Rows | Tensor) -> FloatArray:
    products = tf.concat([tf.linalg.matvec(matrix, vector) for matrix in _matrices(rows)], axis=0)
    return np.asarray(products.numpy(), np.float64)


@vectors.subtract_rows.register(EagerTensor)
def _subtract_rows(vector: Tensor, factors: FloatArray, rows: Rows | Tensor) -> Tensor:
    for matrix, part in _with_factors(rows, factors):
        vector -= tf.linalg.matvec(matrix, part, transpose_a=True)
    return vector


def _with_factors(rows: Rows | Tensor, factors: FloatArray) -> Iterator[tuple[Tensor, Tensor]]:
    """The matrices of a basis, each with its rows' factors."""
    start = 0
    for matrix in _matrices(rows):
        stop = start + int(matrix.shape[0])
        yield matrix, tf.constant(factors[start:stop], matrix.dtype)
        start = stop


def _matrices(rows: Rows | Tensor) -> list[Tensor]:
    return rows.matrices() if isinstance(rows, Rows) else [rows]


@vectors.new_rows.register(EagerTensor)
def _new_rows(like: Tensor, num_rows: int) -> Rows:
    del num_rows  # it grows
    return Rows(len(like), like.dtype.size)


@vectors.put.register(EagerTensor)
def _put(vector: Tensor, factor: float, rows: Rows, index: int) -> None:
    rows.put(tf.cast(factor, vector.dtype) * vector, index)


@vectors.combined.register(Rows)
def _combined(rows: Rows, factors: FloatArray) -> FloatArray:  # type: ignore[misc]
    parts = (tf.matmul(matrix, part, transpose_a=True) for matrix, part in _with_factors(rows, factors))
    return np.array(functools.reduce(operator.add, parts))  # one part beside the sum


@vectors.stacked.register(EagerTensor)
def _stacked(first: Tensor, *others: Tensor) -> Tensor:
    return tf.stack([first, *others])


@vectors.joined_rows.register(EagerTensor)
def _joined_rows(first: Tensor, *others: Tensor) -> Tensor:
    return tf.concat([first, *others], axis=0)


@vectors.transposed.register(EagerTensor)
def _transposed(matrix: Tensor) -> Tensor:
    return tf.transpose(matrix)


@vectors.owned.register(EagerTensor)
def _owned(like: Tensor, values: Tensor) -> Tensor:
    return tf.cast(values, like.dtype)


@vectors.padded.register(EagerTensor)
def _padded(tensors: Tensor, start: int, size: int) -> Tensor:
    around = [start, size - start - int(tensors.shape[-1])]
    return tf.pad(tensors, [*([[0, 0]] * (tensors.shape.rank - 1)), around])


@vectors.unit_start.register(EagerTensor)
def _unit_start(start: Tensor) -> Tensor:
    return start / tf.cast(vectors.checked_length(start), start.dtype)


@vectors.stored.register(EagerTensor)
def _stored(out: Tensor, product: Tensor, what: str) -> Tensor:
    tensor = tf.convert_to_tensor(product, out.dtype)
    vectors.check_shape(tensor.shape, out.shape, what)
    return tensor


@orthogonal.thin_qr.register(EagerTensor)
def _thin_qr(matrix: Tensor) -> tuple[Tensor, FloatArray]:
    q, r = tf.linalg.qr(matrix)
    small = r.numpy()
    signs = np.where(np.diagonal(small) < 0, -1, 1).astype(small.dtype)
    return q * signs, signs[:, None] * small


@dense.symmetric_eigenvalues.register(EagerTensor)
def _symmetric_eigenvalues(matrix: Tensor) -> tuple[FloatArray, float, float]:
    wide = tf.cast(matrix, tf.float64)
    asymmetry, scale = float(tf.norm(wide - tf.transpose(wide))), float(tf.norm(wide))
    values = tf.linalg.eigvalsh((wide + tf.transpose(wide)) / 2)
    return np.array(values), asymmetry, scale


@dense.singular_values.register(EagerTensor)
def _singular_values(matrix: Tensor) -> FloatArray:
    return np.array(tf.linalg.svd(tf.cast(matrix, tf.float64), compute_uv=False))
