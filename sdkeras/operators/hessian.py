"""The Hessian of an empirical loss as a symmetric operator: over the data set, or on one minibatch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import attrs
import numpy as np
import tensorflow as tf

from sdkeras.files.keras_types import Tensor
from sdkeras.linalg.operators import Limit, Reduction, SymmetricOperator
from sdkeras.linalg.vectors import finite
from sdkeras.operators import subspace, verification
from sdkeras.operators.batch_loss import Batch
from sdkeras.operators.engine import Engine
from sdkeras.operators.loss import EmpiricalLoss, evolved
from sdkeras.results.arrays import Array, DType
from sdkeras.results.verification import Verification

# Rows of one block product. More share the first pass no better, and memory grows with them; long ones are so few that
# they take no more than this, or one by one.
_BLOCK, _BLOCK_BYTES = 64, 5e8


@attrs.frozen(init=False, eq=False, slots=False)
class HessianOperator(SymmetricOperator):
    """Hessian of an `EmpiricalLoss` at the model's weights, known by its products.

    H = sum over the loss's batches of the batch Hessians, weighted as in `EmpiricalLoss`; rows and columns
    follow `loss.layout`. Construction verifies the products on one batch (see `verification`).

    Args:
        loss: The function.
        product_mode: 'auto', 'reverse-over-reverse', 'forward-over-reverse' or 'finite-differences'.
        allow_unverified: Keep an operator that failed its verification (`verification.passed` is False).
        workers: Threads over batches; results are summed in order.
        memory: Bytes that the process may have resident while the products are verified; default what is free.

    Attributes:
        size: Number of parameters n.
        dtype: Dtype of the products.
        verification: Outcome of the checks.

    Raises:
        VerificationError: The products disagree with finite differences of the gradient, are not
            symmetric or not repeatable, and `allow_unverified` is False.

    Example:
        A linear model's mean squared error has the Hessian 2 X'X / n:

        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
        >>> model.compile("sgd", "mse")
        >>> x, y = np.array([[1.0, 0.0], [0.0, 2.0]]), np.zeros((2, 1))
        >>> H = HessianOperator(EmpiricalLoss(model, (x, y), dtype="float64"))
        >>> np.round(H.matvec(np.array([1.0, 1.0])), 12)
        array([1., 4.])
    """

    loss: EmpiricalLoss
    engine: Engine
    batches: Sequence[Batch]
    verification: Verification
    _workers: int
    _budget: Limit | None
    size: int
    dtype: DType

    def __init__(
        self,
        loss: EmpiricalLoss,
        *,
        product_mode: str = "auto",
        allow_unverified: bool = False,
        workers: int = 1,
        memory: float | None = None,
    ) -> None:
        engine = loss.engine(product_mode)
        checked = verification.verified(loss, engine, allow_unverified, memory)
        workers = min(workers, len(loss.batches))
        self.__attrs_init__(loss, engine, loss.batches, checked, workers, None, loss.size, loss.dtype)

    @functools.cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._workers)

    @property
    def num_products(self) -> int:
        """Products on single batches that the shared engine has made so far, for whatever purpose."""
        return self.engine.num_products

    def at(self, loss: EmpiricalLoss) -> HessianOperator:
        """The Hessian of another view of the same loss (`loss.at`, `loss.now`), by the same compiled products.

        It is not verified again: the products are the same function of the weights.
        """
        return evolved(self, loss=loss, engine=self.engine.at(loss.function))

    def within(self, budget: Limit | None) -> HessianOperator:
        """The same operator, whose products raise BudgetError where the budget has no room for them."""
        return evolved(self, budget=budget)

    def _require(self, products: int) -> None:
        if self._budget is not None:
            self._budget.require(products)

    def on_minibatch(self, index: int) -> HessianOperator:
        """Hessian of training's minibatch number `index`, by the same compiled products."""
        return self.on_batch(self.loss.minibatch(index))

    def on_batch(self, batch: Batch) -> HessianOperator:
        """Hessian of the loss on one given batch, by the same compiled products."""
        return evolved(self, batches=[batch], workers=1)

    def matvec(self, vector: Tensor) -> Tensor:
        """H v, shape [n] -> [n]; NumPy in, NumPy out; a tensor in gives a tensor out."""
        return self._apply(vector, (self.size,), self.engine.product)

    def matmat(self, matrix: Tensor) -> Tensor:
        """H V, shape [n, k] -> [n, k], over one shared first pass per batch where TensorFlow can.

        Raises:
            ValueError: The matrix has another shape.
        """
        if len(np.shape(matrix)) != 2 or np.shape(matrix)[0] != self.size:
            raise ValueError(f"matmat takes a matrix of shape ({self.size}, k), got {tuple(np.shape(matrix))}.")
        if tf.is_tensor(matrix):
            return tf.transpose(self.rows(tf.transpose(matrix)))
        return self.rows(np.ascontiguousarray(np.asarray(matrix).T)).T

    def rows(self, rows: Tensor) -> Tensor:
        """H r for each row r, shape [k, n] -> [k, n]; a block of rows at a time, since all of them share memory."""
        number, count = int(np.shape(rows)[0]), int(min(_BLOCK, _BLOCK_BYTES // (self.size * self.dtype.itemsize)))
        if count <= 1:  # no block shares its first pass, and the compiled products with several are not needed
            parts = [self.matvec(rows[k])[None] for k in range(number)]
        else:
            blocks = (rows[start : start + count] for start in range(0, number, count))
            parts = [self._apply(block, (len(block), self.size), self.engine.products) for block in blocks]
        if len(parts) == 1:
            return parts[0]
        return tf.concat(parts, axis=0) if tf.is_tensor(rows) else np.concatenate(parts)

    def gradient(self) -> Array:
        """The gradient over the operator's batches, shape [n], float64."""
        self._require(0)
        return self.engine.total_gradient(self.engine.point, self.batches)

    def _apply(self, array: Tensor, shape: tuple[int, ...], product: Callable[..., Tensor]) -> Tensor:
        is_tensor = tf.is_tensor(array)
        if tuple(np.shape(array)) != shape:
            raise ValueError(f"the operator takes an array of shape {shape}, got {tuple(np.shape(array))}.")
        vector = tf.cast(array, self.dtype) if is_tensor else tf.constant(array, self.dtype)

        def one(batch: Batch) -> Tensor:
            return product(self.engine.point, vector, batch)

        self._require(len(self.batches) * (1 if len(shape) == 1 else shape[0]))
        total: Tensor = None
        # A group of batches at a time: the products of all of them at once may not fit the memory.
        for start in range(0, len(self.batches), self._workers):
            if start:
                self._require(0)  # one pass over the data may take long
            group = self.batches[start : start + self._workers]
            parts = [one(group[0])] if len(group) == 1 else list(self._pool.map(one, group))
            for product_of_batch in parts:
                total = product_of_batch if total is None else total + product_of_batch
        return total if is_tensor else finite(total.numpy(), "a Hessian-vector product")

    def reduced(self) -> Reduction | None:
        """The Hessian on the data subspace of the first layer plus the eigenvalue of the rest, if it splits."""
        return subspace.reduction(self)
