"""Long vectors where they live: the few operations of which all algorithms on them are made, and checks.

They are given here for NumPy arrays, in place where that is possible, and in `operators.tensors` for tensors, so that
an algorithm is written once and follows its vectors. A function whose result has the length of its first argument may
overwrite that argument: use what it returns.
"""

from __future__ import annotations

import functools

import numpy as np
import scipy.linalg.blas
from numpy.typing import ArrayLike

from sdkeras.errors import NonFiniteError
from sdkeras.linalg.memory import allocated
from sdkeras.results.arrays import Array, DType, FloatArray


@functools.singledispatch
def finite(array: Array, what: str) -> Array:
    """The array or tensor itself.

    Raises:
        NonFiniteError: It holds NaN or infinity.
    """
    if not is_finite(array):
        raise NonFiniteError(not_finite(what))
    return array


def is_finite(array: Array) -> bool:
    """Whether a NumPy array holds neither NaN nor infinity."""
    # One pass without a temporary; the sum may overflow while every entry is finite, hence the second look.
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.sum(array)
    return bool(np.isfinite(total) or np.all(np.isfinite(array)))


def not_finite(what: str) -> str:
    """The message about an array or tensor that `finite` refuses."""
    return f"{what} holds NaN or infinity; check the weights and the data for extreme values, or work in float64."


# Entries summed before the sums are added in float64: they stay in the cache, and OpenBLAS starts no threads for them.
_BLOCK = 8192
SHORT_BLOCK = 512
# Below this a sum's products of float32 entries may have vanished.
VANISHING = 1e-30


def precision(vector: Array) -> DType:
    """Its dtype as NumPy has it."""
    return np.dtype(getattr(vector.dtype, "as_numpy_dtype", vector.dtype))


@functools.singledispatch
def dot(first: Array, second: Array) -> float:
    """Inner product of two vectors [n], without a float64 copy of either.

    Entries are turned into float64 a block at a time. Long float32 vectors are multiplied in float32, a quarter of the
    time, and their sums of some hundred products added in float64: the rounding, a few eps |x| |y| where single entries
    dominate, averages out to a hundredth of that otherwise. Products that vanish (a saturated network's entries are
    1e-20) or overflow are taken in float64.
    """
    if first.dtype == np.float32 and len(first) > _BLOCK:
        total = _by_blocks(first, second, SHORT_BLOCK)
        if VANISHING < abs(total) < np.inf:
            return total
    total = 0.0
    for start in range(0, len(first), _BLOCK):
        block = first[start : start + _BLOCK].astype(np.float64, copy=False)
        other = block if second is first else second[start : start + _BLOCK].astype(np.float64, copy=False)
        total += float(np.dot(block, other))
    return total


@functools.singledispatch
def norm(vector: Array) -> float:
    """Euclidean norm of a vector [n], from sums of some thousand squares that are added in float64.

    The sums of a float32 vector are float32, with a relative error of a few eps at most, since squares do not cancel.
    Where they vanish or overflow, `dot` takes them in float64.
    """
    total = _by_blocks(vector, vector, _BLOCK)
    return float(np.sqrt(total if VANISHING < total < np.inf else dot(vector, vector)))


def _by_blocks(first: Array, second: Array, size: int) -> float:
    """The inner product from those of blocks, in the vectors' own precision, which are added in float64."""
    count = len(first) - len(first) % size
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        blocks = (np.ascontiguousarray(each[:count]).reshape(-1, size) for each in (first, second))
        return float(np.sum(np.vecdot(*blocks), dtype=np.float64)) + float(np.dot(first[count:], second[count:]))


# BLAS works in place, without a temporary of the vector's length.
_AXPY = {np.dtype(np.float32): scipy.linalg.blas.saxpy, np.dtype(np.float64): scipy.linalg.blas.daxpy}


@functools.singledispatch
def subtract(vector: Array, factor: float, other: Array) -> Array:
    """vector - factor * other, in place; contiguous vectors [n] of one dtype, float32 or float64."""
    _AXPY[vector.dtype](other, vector, a=-factor)
    return vector


@functools.singledispatch
def components(vector: Array, rows: Array) -> FloatArray:
    """Inner products with the rows [m, n], shape [m]; by `np.dot`, which unlike `@` lets other threads go on."""
    products: FloatArray = np.dot(rows, vector)
    return products


@functools.singledispatch
def subtract_rows(vector: Array, factors: FloatArray, rows: Array) -> Array:
    """vector - factors' rows, in place; `rows` is C-contiguous [m, n] and all are of one dtype."""
    vector -= np.dot(factors, rows)
    return vector


@functools.singledispatch
def new_rows(like: Array, num_rows: int) -> Array:
    """Room for so many vectors like this one, which `put` fills; slices and `len` are those of an array [m, n].

    Beyond the memory they are on disk, see `memory.allocated`.
    """
    return allocated((num_rows, len(like)), like.dtype)


@functools.singledispatch
def put(vector: Array, factor: float, rows: Array, index: int) -> None:
    """rows[index] <- factor * vector; rows are filled in order, or anew."""
    np.multiply(vector, vector.dtype.type(factor), out=rows[index])


@functools.singledispatch
def combined(rows: Array, factors: FloatArray) -> Array:
    """rows' factors: k linear combinations of rows [m, n] as columns [n, k]; a NumPy array wherever the rows are."""
    columns: Array = rows.T @ factors.astype(rows.dtype)
    return columns


@functools.singledispatch
def stacked(first: Array, *others: Array) -> Array:
    """Vectors as the rows of a matrix."""
    return np.stack([first, *others])


@functools.singledispatch
def joined_rows(first: Array, *others: Array) -> Array:
    """Matrices one below the other."""
    return np.concatenate([first, *others])


@functools.singledispatch
def transposed(matrix: Array) -> Array:
    """M', of an array without a copy."""
    return matrix.T


@functools.singledispatch
def owned(like: Array, values: ArrayLike) -> Array:
    """Values in memory of their own, in the precision of `like`: contiguous, and nobody else's to overwrite."""
    return np.array(values, dtype=like.dtype, order="C")


@functools.singledispatch
def padded(vectors: Array, start: int, size: int) -> Array:
    """Vectors, in the last axis, with zeros around them: from `start` on in ones of this size."""
    whole = np.zeros((*vectors.shape[:-1], size), vectors.dtype)
    whole[..., start : start + vectors.shape[-1]] = vectors
    return whole


@functools.singledispatch
def unit_start(start: Array) -> Array:
    """A start vector [n] at unit length.

    Raises:
        ValueError: It is zero or not finite.
    """
    unit: Array = start / start.dtype.type(checked_length(start))
    return unit


def checked_length(start: Array) -> float:
    """Norm of a start vector.

    Raises:
        ValueError: It is zero or not finite.
    """
    length = norm(start)
    if not 0.0 < length < np.inf:
        raise ValueError(f"the start vector has norm {length:g}; give a finite vector that is not zero.")
    return length


@functools.singledispatch
def stored(out: Array, product: ArrayLike, what: str) -> Array:
    """A product, of an operator or a map, as a vector that may be overwritten: copied into one that is left over.

    Raises:
        ValueError: It has another shape.
    """
    values = np.asarray(product)
    check_shape(values.shape, out.shape, what)
    np.copyto(out, values, casting="same_kind")
    return out


def check_shape(shape: tuple[int, ...], expected: tuple[int, ...], what: str) -> None:
    """Refuses a product of another shape.

    Raises:
        ValueError: It has one.
    """
    if tuple(shape) != tuple(expected):
        raise ValueError(f"the {what}'s product has shape {tuple(shape)}, expected {tuple(expected)}.")
