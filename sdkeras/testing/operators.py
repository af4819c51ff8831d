"""Operators, maps and flows with known spectra, for trying estimators on."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from sdkeras import seeds
from sdkeras.linalg.operators import DenseOperator, SymmetricOperator
from sdkeras.linalg.orthogonal import thin_qr
from sdkeras.results.arrays import Array, FloatArray


def rotation(size: int, *, seed: int) -> FloatArray:
    """A random orthogonal matrix, uniform (Haar), shape [size, size]."""
    return thin_qr(seeds.generator(seed, seeds.Stream.ROTATIONS).standard_normal((size, size)))[0]


def dense_operator(eigenvalues: ArrayLike, *, seed: int = 0, dtype: DTypeLike = np.float64) -> DenseOperator:
    """Q diag(eigenvalues) Q' with a random rotation Q.

    The rotation matters: on a diagonal matrix random signs give the exact trace and the exact quadrature weights,
    and a test there would see no variance at all.

    Args:
        eigenvalues: Shape [n].
        seed: Seed for the rotation.
        dtype: Dtype of the matrix and so of the products.
    """
    values = np.asarray(eigenvalues, np.float64)
    q = rotation(len(values), seed=seed)
    matrix = (q * values) @ q.T
    return DenseOperator(((matrix + matrix.T) / 2).astype(dtype))


class CountingOperator(SymmetricOperator):
    """An operator that counts its products: `count` grows by one for each vector multiplied."""

    def __init__(self, operator: SymmetricOperator) -> None:
        self.operator = operator
        self.size = operator.size
        self.dtype = operator.dtype
        self.count = 0

    def matvec(self, vector: Array) -> Array:
        self.count += 1
        return self.operator.matvec(vector)

    def matmat(self, matrix: Array) -> Array:
        self.count += matrix.shape[1]
        return self.operator.matmat(matrix)


class MatrixMap:
    """The linear map of a square matrix [n, n]; `count` grows by one for each vector multiplied, from either side."""

    def __init__(self, matrix: Array) -> None:
        self.matrix = matrix
        self.size = len(matrix)
        self.dtype = matrix.dtype
        self.count = 0

    def jvp(self, vector: Array) -> Array:
        self.count += 1 if vector.ndim == 1 else vector.shape[1]
        product: Array = self.matrix @ vector
        return product

    def vjp(self, vector: Array) -> Array:
        self.count += 1 if vector.ndim == 1 else vector.shape[1]
        product: Array = self.matrix.T @ vector
        return product


class MatrixFlow:
    """The tangent flow that multiplies by the same matrix [n, n] in every step; its state is the step's number."""

    def __init__(self, matrix: Array) -> None:
        self.matrix = matrix
        self.size = len(matrix)
        self.dtype = matrix.dtype
        self.num_steps = 0

    def reset(self, seed: int) -> None:
        self.num_steps = 0

    def step(self, tangents: Array) -> Array:
        self.num_steps += 1
        product: Array = self.matrix @ tangents
        return product

    def state(self) -> int:
        return self.num_steps

    def restore(self, state: int) -> None:
        self.num_steps = state
