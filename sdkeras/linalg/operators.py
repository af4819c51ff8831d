"""Linear operators as estimators see them: a size, a dtype and products. NumPy only.

Everything here is independent of TensorFlow; the Hessian of a Keras model is in `hessian.py`.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Protocol

import attrs
import numpy as np
from numpy.typing import DTypeLike

from sdkeras.files.archive import Nested
from sdkeras.results.arrays import Array, DType


class Limit(Protocol):
    """Limit that an operator asks before it makes products."""

    def require(self, products: int = 0) -> None:
        """Raises BudgetError where there is no room for this many more products."""


class SymmetricOperator(abc.ABC):
    """A real symmetric matrix known only by its products.

    Attributes:
        size: Dimension n.
        dtype: NumPy dtype of the products, float32 or float64.
    """

    size: int
    dtype: DType

    @abc.abstractmethod
    def matvec(self, vector: Array) -> Array:
        """The product A v, shape [n] -> [n]."""

    def matmat(self, matrix: Array) -> Array:
        """The products A V, shape [n, k] -> [n, k]."""
        return np.stack([self.matvec(column) for column in np.asarray(matrix).T], axis=1)

    def reduced(self) -> Reduction | None:
        """The same operator on a subspace plus one repeated eigenvalue, or None if it has no such form."""
        return None


@attrs.frozen
class Reduction:
    """An exact splitting of a symmetric operator: A is similar to diag(operator, eigenvalue * I).

    Attributes:
        operator: A restricted to an invariant subspace.
        eigenvalue: The one eigenvalue on the orthogonal complement.
        multiplicity: Dimension of that complement; operator.size + multiplicity = size of A.
        scaled: For a diagonal D, shape [n], an operator of the smaller size that has, beside `multiplicity` zeros, the
            eigenvalues of D A D if `eigenvalue` is 0; or None where it is not known.
    """

    operator: SymmetricOperator
    eigenvalue: float
    multiplicity: int
    scaled: Callable[[Array], SymmetricOperator] | None = None


class LinearMap(Protocol):
    """A square matrix known by its products from either side: with vectors [n], or with the columns of [n, k]."""

    @property
    def size(self) -> int: ...
    @property
    def dtype(self) -> DType: ...
    def jvp(self, vector: Array) -> Array: ...
    def vjp(self, vector: Array) -> Array: ...


class TangentFlow(Protocol):
    """A trajectory that carries tangent vectors along: one call, one step.

    `reset` puts it at its start, with the randomness of the seed. `step` multiplies tangents [n, k] by the Jacobian
    of the next step and makes that step. `state` gives all that the later steps depend on, in values that
    `sdkeras.files.archive.save_checkpoint` can write (NumPy arrays, numbers, text, and lists, tuples or dicts of them),
    and `restore` goes back there, in another process too. A trajectory that has diverged gives tangents of NaN or
    infinity, or raises NonFiniteError. One that was asked to stop raises Interrupted in place of the next step.
    """

    @property
    def size(self) -> int: ...
    @property
    def dtype(self) -> DType: ...
    def reset(self, seed: int) -> None: ...
    def step(self, tangents: Array) -> Array: ...
    def state(self) -> Nested: ...
    def restore(self, state: Nested) -> None: ...


class DenseOperator(SymmetricOperator):
    """A symmetric matrix given as an array, shape [n, n]."""

    def __init__(self, matrix: Array) -> None:
        matrix = np.asarray(matrix)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"DenseOperator needs a square matrix, got shape {matrix.shape}.")
        scale = float(np.max(np.abs(matrix), initial=0.0))
        if not np.allclose(matrix, matrix.T, rtol=0.0, atol=1e-6 * scale):
            raise ValueError("DenseOperator needs a symmetric matrix; symmetrise it: (A + A.T) / 2.")
        self.matrix = matrix
        self.size = matrix.shape[0]
        self.dtype = matrix.dtype

    def matvec(self, vector: Array) -> Array:
        product: Array = self.matrix @ vector
        return product

    def matmat(self, matrix: Array) -> Array:
        product: Array = self.matrix @ matrix
        return product


class FunctionOperator(SymmetricOperator):
    """A symmetric operator given by its product function [n] -> [n]."""

    def __init__(self, size: int, matvec: Callable[[Array], Array], dtype: DTypeLike = np.float64) -> None:
        self.size = size
        self.dtype = np.dtype(dtype)
        self._matvec = matvec

    def matvec(self, vector: Array) -> Array:
        return self._matvec(vector)


class DiagonallyScaledOperator(SymmetricOperator):
    """D A D for a diagonal D > 0: for D = P^-1/2 the preconditioned Hessian of an adaptive optimizer.

    Similar to P^-1 A, hence with its eigenvalues.
    """

    def __init__(self, operator: SymmetricOperator, diagonal: Array) -> None:
        diagonal = np.asarray(diagonal)
        if diagonal.shape != (operator.size,):
            raise ValueError(f"the diagonal has shape {diagonal.shape}, expected ({operator.size},).")
        if not np.all(np.isfinite(diagonal)) or np.any(diagonal <= 0):
            raise ValueError("the diagonal must be positive and finite.")
        self.operator = operator
        self.diagonal = diagonal.astype(operator.dtype)
        self.size = operator.size
        self.dtype = operator.dtype

    def matvec(self, vector: Array) -> Array:
        product: Array = self.diagonal * np.asarray(self.operator.matvec(self.diagonal * vector))
        return product

    def matmat(self, matrix: Array) -> Array:
        scaled = self.diagonal[:, None] * matrix
        product: Array = self.diagonal[:, None] * np.asarray(self.operator.matmat(scaled))
        return product

    def reduced(self) -> Reduction | None:
        """Split off the zeros of A; the other eigenvalues stay in an operator of smaller size."""
        reduction = self.operator.reduced()
        if reduction is None or reduction.scaled is None or reduction.eigenvalue != 0:
            return None
        return Reduction(reduction.scaled(self.diagonal), 0.0, reduction.multiplicity)


class DiagonallyShiftedOperator(SymmetricOperator):
    """A + W for a diagonal W: weight decay of its own for each variable, beside the Hessian."""

    def __init__(self, operator: SymmetricOperator, diagonal: Array) -> None:
        diagonal = np.asarray(diagonal)
        if diagonal.shape != (operator.size,) or not np.all(np.isfinite(diagonal)):
            raise ValueError(f"the diagonal must be finite and of shape ({operator.size},), got {diagonal.shape}.")
        self.operator = operator
        self.diagonal = diagonal.astype(operator.dtype)
        self.size = operator.size
        self.dtype = operator.dtype

    def matvec(self, vector: Array) -> Array:
        product: Array = np.asarray(self.operator.matvec(vector)) + self.diagonal * vector
        return product

    def matmat(self, matrix: Array) -> Array:
        product: Array = np.asarray(self.operator.matmat(matrix)) + self.diagonal[:, None] * matrix
        return product


class RestrictedOperator(SymmetricOperator):
    """The diagonal block of an operator on a range of coordinates; a product costs one of the whole operator."""

    def __init__(self, operator: SymmetricOperator, block: slice) -> None:
        start, stop, step = block.indices(operator.size)
        if step != 1 or stop <= start:
            raise ValueError(f"the block {block} is not a range of the {operator.size} coordinates.")
        self.operator = operator
        self.block = slice(start, stop)
        self.size = stop - start
        self.dtype = operator.dtype

    def matvec(self, vector: Array) -> Array:
        whole = np.zeros(self.operator.size, self.dtype)
        whole[self.block] = vector
        product: Array = np.asarray(self.operator.matvec(whole))[self.block]
        return product

    def matmat(self, matrix: Array) -> Array:
        whole = np.zeros((self.operator.size, np.shape(matrix)[1]), self.dtype)
        whole[self.block] = matrix
        product: Array = np.asarray(self.operator.matmat(whole))[self.block]
        return product
