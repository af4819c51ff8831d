"""Linear operators as estimators see them: a size, a dtype and products.

Everything here is independent of TensorFlow; the Hessian of a Keras model is in `operators.hessian`. An operator with a
`space` takes and gives vectors that live there, beside NumPy arrays.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Protocol, Self

import attrs
import numpy as np
from numpy.typing import DTypeLike

from sdkeras.files.archive import Nested
from sdkeras.linalg import dense
from sdkeras.linalg.probes import Drawn, Space, space_of
from sdkeras.linalg.vectors import padded, stacked, transposed
from sdkeras.results.arrays import Array, DType, FloatArray


class Limit(Protocol):
    """Limit that an operator asks before it makes products."""

    def require(self, products: int = 0) -> None:
        """Raises BudgetError where there is no room for this many more products."""


class _Multiplied(Drawn, Protocol):
    """A square matrix known by its products with a vector and with columns."""

    def matvec(self, vector: Array) -> Array: ...
    def matmat(self, matrix: Array) -> Array: ...


class SquareMatrix:
    """A matrix known by its products, for those who expect an array: `A @ v`, `A.shape`, `A.as_matrix()`.

    A subclass has `size`, `dtype`, `matvec` and `matmat`. With a `matvec` that takes a column [n, 1] too, and a
    `rmatvec`, it is what `scipy.sparse.linalg.aslinearoperator` takes.
    """

    # NumPy leaves `array @ A` to A, in place of trying it with A as a scalar.
    __array_ufunc__ = None

    @property
    def shape(self: Drawn) -> tuple[int, int]:
        """(n, n)."""
        return self.size, self.size

    def __repr__(self: Drawn) -> str:
        return f"<{type(self).__name__} {self.size:,} x {self.size:,}, {np.dtype(self.dtype).name}>"

    def __matmul__(self: _Multiplied, other: Array) -> Array:
        """A v, shape [n] -> [n], or A V, shape [n, k] -> [n, k]."""
        return self.matvec(other) if np.ndim(other) == 1 else self.matmat(other)

    def as_matrix(self: _Multiplied) -> FloatArray:
        """The matrix itself, shape [n, n], float64 with the rounding of the products, from n of them.

        Raises:
            OperatorSizeError: It needs more memory than is free.
        """
        needed = 8 * self.size * (self.size + 2 * dense.BLOCK)
        dense.require_memory(
            needed, None, f"a matrix of {self.size:,} x {self.size:,} numbers needs", "products (`A @ v`) in its place"
        )
        return np.asarray(dense.transposed_matrix(self, self.matmat, dense.BLOCK), np.float64).T


class SymmetricOperator(SquareMatrix, abc.ABC):
    """A real symmetric matrix known only by its products.

    Attributes:
        size: Dimension n.
        dtype: NumPy dtype of the products, float32 or float64.
        space: Where probes and bases are best made for it; None for NumPy arrays.
    """

    size: int
    dtype: DType
    space: Space | None = None

    @abc.abstractmethod
    def matvec(self, vector: Array) -> Array:
        """The product A v, shape [n] -> [n]."""

    def rmatvec(self, vector: Array) -> Array:
        """The product A' v, which is A v."""
        return self.matvec(vector)

    def __rmatmul__(self, other: Array) -> Array:
        """v' A, shape [n] -> [n], or V A, shape [k, n] -> [k, n]."""
        return self.matvec(other) if np.ndim(other) == 1 else self.rows(other)

    def matmat(self, matrix: Array) -> Array:
        """The products A V, shape [n, k] -> [n, k]."""
        return np.stack([self.matvec(column) for column in np.asarray(matrix).T], axis=1)

    def rows(self, rows: Array) -> Array:
        """A r for each row r, shape [k, n] -> [k, n]; from `matmat`, or outside of NumPy from `matvec`."""
        if isinstance(rows, np.ndarray):
            return np.asarray(self.matmat(rows.T)).T
        return stacked(*(self.matvec(row) for row in rows))

    def reduced(self) -> Reduction | None:
        """The same operator on a subspace plus one repeated eigenvalue, or None if it has no such form."""
        return None

    @classmethod
    def batch(cls, operators: Sequence[Self]) -> OperatorBatch:
        """Operators of this class, all of one size, as a batch."""
        return OperatorBatch(operators)


class RowsOperator(SymmetricOperator):
    """An operator that multiplies rows together: a vector is one of them, and columns are transposed."""

    @abc.abstractmethod
    def rows(self, rows: Array) -> Array:
        """A r for each row r, shape [k, n] -> [k, n]."""

    def matvec(self, vector: Array) -> Array:
        product: Array = self.rows(vector[None])[0]
        return product

    def matmat(self, matrix: Array) -> Array:
        return transposed(self.rows(transposed(matrix)))


class OperatorBatch:
    """Symmetric operators of one size, multiplied together: one operator per row.

    Here one after the other; a subclass may know better.

    Attributes:
        operators: The operators.
        size: Dimension n of each.
        count: Number of operators.
        dtype: NumPy dtype of the products.
        space: As in `SymmetricOperator`.
    """

    def __init__(self, operators: Sequence[SymmetricOperator]) -> None:
        if not operators or len({(operator.size, operator.dtype) for operator in operators}) > 1:
            raise ValueError("an OperatorBatch needs operators of one size and dtype, and at least one.")
        self.operators = tuple(operators)
        self.size = operators[0].size
        self.count = len(operators)
        self.dtype = operators[0].dtype
        self.space = operators[0].space

    def matvecs(self, rows: Array) -> Array:
        """The product of each operator with its row, shape [count, n] -> [count, n]."""
        return stacked(*(operator.matvec(row) for operator, row in zip(self.operators, rows, strict=True)))

    def subset(self, places: Sequence[int]) -> OperatorBatch:
        """The batch of the operators at these places."""
        return OperatorBatch([self.operators[place] for place in places])


@attrs.frozen
class Reduction:
    """An exact splitting of a symmetric operator: A is similar to diag(operator, eigenvalue * I).

    Attributes:
        operator: A restricted to an invariant subspace.
        eigenvalue: The one eigenvalue on the orthogonal complement.
        multiplicity: Dimension of that complement; operator.size + multiplicity = size of A.
        scaled: For a diagonal D, shape [n], an operator of the smaller size that has, beside `multiplicity` zeros, the
            eigenvalues of D A D if `eigenvalue` is 0; or None where it is not known.
        num_matvecs: Products that it took to find the subspace.
    """

    operator: SymmetricOperator
    eigenvalue: float
    multiplicity: int
    scaled: Callable[[Array], SymmetricOperator] | None = None
    num_matvecs: int = 0


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


class WrappedOperator(SymmetricOperator):
    """An operator made of another one: v -> `after`(A `before`(v), v), with vectors in the last axis."""

    def __init__(self, operator: SymmetricOperator, size: int) -> None:
        self.operator = operator
        self.size = size
        self.dtype = operator.dtype
        self.space = operator.space

    @abc.abstractmethod
    def before(self, vectors: Array) -> Array:
        """What the operator inside is multiplied with."""

    @abc.abstractmethod
    def after(self, products: Array, vectors: Array) -> Array:
        """The products from those of the operator inside."""

    def matvec(self, vector: Array) -> Array:
        if np.ndim(vector) == 2:
            return self.matmat(vector)
        return self.after(self.operator.matvec(self.before(vector)), vector)

    def matmat(self, matrix: Array) -> Array:
        rows = np.asarray(matrix).T
        return self.after(np.asarray(self.operator.matmat(self.before(rows).T)).T, rows).T

    def rows(self, rows: Array) -> Array:
        return self.after(self.operator.rows(self.before(rows)), rows)

    @classmethod
    def batch(cls, operators: Sequence[Self]) -> OperatorBatch:
        return _WrappedBatch(operators)


class _WrappedBatch(OperatorBatch):
    """The batch of the operators inside, wrapped row by row."""

    operators: tuple[WrappedOperator, ...]

    def __init__(self, operators: Sequence[WrappedOperator], inner: OperatorBatch | None = None) -> None:
        super().__init__(operators)
        inside = [operator.operator for operator in operators]
        self._inner = type(inside[0]).batch(inside) if inner is None else inner

    def matvecs(self, rows: Array) -> Array:
        products = self._inner.matvecs(
            stacked(*(one.before(row) for one, row in zip(self.operators, rows, strict=True)))
        )
        return stacked(*(one.after(*pair) for one, *pair in zip(self.operators, products, rows, strict=True)))

    def subset(self, places: Sequence[int]) -> OperatorBatch:
        return _WrappedBatch([self.operators[place] for place in places], self._inner.subset(places))


class _Diagonal:
    """A diagonal beside NumPy vectors, and once more where the operator's vectors live."""

    def __init__(self, values: Array, operator: SymmetricOperator) -> None:
        self.values = values.astype(operator.dtype, copy=False)
        self._there = space_of(operator).moved(self.values)

    def times(self, vectors: Array) -> Array:
        product: Array = (self.values if isinstance(vectors, np.ndarray) else self._there) * vectors
        return product


class DiagonallyScaledOperator(WrappedOperator):
    """D A D for a diagonal D > 0: for D = P^-1/2 the preconditioned Hessian of an adaptive optimizer.

    Similar to P^-1 A, hence with its eigenvalues.
    """

    def __init__(self, operator: SymmetricOperator, diagonal: Array) -> None:
        super().__init__(operator, operator.size)
        diagonal = np.asarray(diagonal)
        if diagonal.shape != (operator.size,):
            raise ValueError(f"the diagonal has shape {diagonal.shape}, expected ({operator.size},).")
        if not np.all(np.isfinite(diagonal)) or np.any(diagonal <= 0):
            raise ValueError("the diagonal must be positive and finite.")
        self._scaling = _Diagonal(diagonal, operator)

    def before(self, vectors: Array) -> Array:
        return self._scaling.times(vectors)

    def after(self, products: Array, vectors: Array) -> Array:
        return self._scaling.times(products)

    def reduced(self) -> Reduction | None:
        """Split off the zeros of A; the other eigenvalues stay in an operator of smaller size."""
        reduction = self.operator.reduced()
        if reduction is None or reduction.scaled is None or reduction.eigenvalue != 0:
            return None
        small = reduction.scaled(self._scaling.values)
        return Reduction(small, 0.0, reduction.multiplicity, num_matvecs=reduction.num_matvecs)


class DiagonallyShiftedOperator(WrappedOperator):
    """A + W for a diagonal W: weight decay of its own for each variable, beside the Hessian."""

    def __init__(self, operator: SymmetricOperator, diagonal: Array) -> None:
        super().__init__(operator, operator.size)
        diagonal = np.asarray(diagonal)
        if diagonal.shape != (operator.size,) or not np.all(np.isfinite(diagonal)):
            raise ValueError(f"the diagonal must be finite and of shape ({operator.size},), got {diagonal.shape}.")
        self._shift = _Diagonal(diagonal, operator)

    def before(self, vectors: Array) -> Array:
        return vectors

    def after(self, products: Array, vectors: Array) -> Array:
        shifted: Array = products + self._shift.times(vectors)
        return shifted


class RestrictedOperator(WrappedOperator):
    """The diagonal block of an operator on a range of coordinates; a product costs one of the whole operator."""

    def __init__(self, operator: SymmetricOperator, block: slice) -> None:
        start, stop, step = block.indices(operator.size)
        if step != 1 or stop <= start:
            raise ValueError(f"the block {block} is not a range of the {operator.size} coordinates.")
        super().__init__(operator, stop - start)
        self.block = slice(start, stop)

    def before(self, vectors: Array) -> Array:
        return padded(vectors, self.block.start, self.operator.size)

    def after(self, products: Array, vectors: Array) -> Array:
        return products[..., self.block]
