"""The Hessian of an empirical loss as a symmetric operator: over the data set, or on one minibatch."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar, Self, TypeVar

import attrs
import numpy as np
import tensorflow as tf

from sdkeras.files.keras_types import Tensor
from sdkeras.linalg.operators import Limit, OperatorBatch, Reduction, SymmetricOperator
from sdkeras.linalg.probes import Space
from sdkeras.linalg.vectors import finite
from sdkeras.operators import lockstep, subspace, verification
from sdkeras.operators.batch_loss import Batch
from sdkeras.operators.engine import Engine
from sdkeras.operators.linearized import Linearizations
from sdkeras.operators.loss import EmpiricalLoss, evolved
from sdkeras.operators.modes import ProductMode
from sdkeras.results.arrays import Array, DType
from sdkeras.results.verification import Verification

_Group = TypeVar("_Group")
# Rows of one block product: more share the first pass no better, and longer ones than fit the cache eight at a time are
# multiplied as fast one by one (measured: a quarter of the time with 13k weights, no gain from 43k on).
_BLOCK, _FEWEST, _CACHE = 64, 8, 8e6
# What rows multiplied together may take.
BLOCK_BYTES = 5e8
# Products of an operator's blocks so far, below which the block product is not compiled, which takes 1 s for a net of
# two dense layers on digits, as long as some 500 products.
_FEW_PRODUCTS = 256


@attrs.frozen(init=False, eq=False, repr=False, slots=False)
class CurvatureOperator(SymmetricOperator):
    """A symmetric matrix of an `EmpiricalLoss`, the sum over its batches, known by the products of an engine.

    The base of `HessianOperator`, which describes arguments and attributes, and of others that differ from it in their
    engine.
    """

    engine_class: ClassVar[type[Engine]] = Engine

    loss: EmpiricalLoss
    engine: Engine
    batches: Sequence[Batch]
    verification: Verification
    _workers: int
    _budget: Limit | None
    _linearized: Linearizations  # shared by the views at one point on the same batches
    size: int
    dtype: DType
    space: Space | None

    def __init__(
        self,
        loss: EmpiricalLoss,
        *,
        product_mode: ProductMode = "auto",
        allow_unverified: bool = False,
        workers: int = 1,
        memory: float | None = None,
    ) -> None:
        engine = loss.engine(product_mode, self.engine_class)
        checked = verification.verified(loss, engine, allow_unverified, memory)
        self._set_up(loss, engine, loss.batches, checked, workers, memory)

    def _set_up(
        self,
        loss: EmpiricalLoss,
        engine: Engine,
        batches: Sequence[Batch],
        checked: Verification,
        workers: int,
        memory: float | None,
        *more: object,
    ) -> None:
        """Sets all fields, those of a subclass by `more`, once the engine's products have been checked."""
        checked = verification.linearized(loss, engine, checked, memory)
        workers, linearized = min(workers, len(batches)), Linearizations(engine, len(batches))
        space = engine.devices.space
        self.__attrs_init__(
            *(loss, engine, batches, checked, workers, None, linearized, loss.size, loss.dtype, space), *more
        )

    @functools.cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return self.engine.devices.executor(self._workers)

    @functools.cached_property
    def _shares(self) -> Sequence[Self]:
        """The operator as a sum over the devices, each with every so manieth of the batches; () on one device."""
        devices = self.engine.devices
        count = min(len(devices.names), len(self.batches))
        return [self._share(number, count) for number in range(count)] if count > 1 else ()

    def _share(self, number: int, count: int) -> Self:
        with self.engine.devices.scope(number):
            engine = self.engine.here()
            batches = [engine.placed(batch) for batch in self.batches[number::count]]
        linearized = Linearizations(engine, len(batches))
        return evolved(self, engine=engine, batches=batches, workers=1, linearized=linearized)

    @functools.cached_property
    def _asked(self) -> list[int]:
        """One entry, how many products were asked for in blocks."""
        return [0]

    @property
    def num_products(self) -> int:
        """Products on single batches that the shared engine has made so far, for whatever purpose."""
        return self.engine.num_products

    def at(self, loss: EmpiricalLoss) -> Self:
        """The operator of another view of the same loss (`loss.at`, `loss.now`), by the same compiled products.

        It is not verified again: the products are the same function of the weights.
        """
        return self._over(self.batches, loss=loss, engine=self.engine.at(loss.function))

    def _over(self, batches: Sequence[Batch], *, engine: Engine, **changes: object) -> Self:
        """The operator on other batches, or of another view of its engine."""
        return evolved(self, engine=engine, batches=batches, linearized=Linearizations(engine, len(batches)), **changes)

    def within(self, budget: Limit | None) -> Self:
        """The same operator, whose products raise BudgetError where the budget has no room for them."""
        return evolved(self, budget=budget)

    def require(self, products: int) -> None:
        """Raises BudgetError where its budget has no room for this many more products."""
        if self._budget is not None:
            self._budget.require(products)

    def on_draw(self, number: int) -> Self:
        """The operator of the loss of one of the draws, by the same compiled products."""
        loss = self.loss.of_draw(number)
        return self._over(loss.batches, loss=loss, engine=self.engine)

    def on_minibatch(self, index: int) -> Self:
        """The operator of training's minibatch number `index`, by the same compiled products."""
        return self.on_batch(self.loss.minibatch(index))

    def on_batch(self, batch: Batch) -> Self:
        """The operator of the loss on one given batch, by the same compiled products."""
        return self._over([batch], engine=self.engine.here(), workers=1)

    def part(self, number: int, count: int) -> Self | None:
        """What every `count`-th batch from this number on adds to it, without a budget; None where there is none."""
        batches = self.batches[number::count]
        linearized = Linearizations(self.engine, len(batches))
        return evolved(self, batches=batches, budget=None, linearized=linearized) if batches else None

    def rows_together(self, products: int, *, memory: float = BLOCK_BYTES, vectors: int = 2) -> int:
        """How many minibatches' products are best made together where this many are made in all; 1: one by one.

        `memory` and `vectors` are those of `lockstep.group_size`.
        """
        if self.loss.micro_batch is not None:
            return 1
        examples = self.loss.source.batch_size
        return lockstep.group_size(self.engine, examples, products, memory=memory, vectors=vectors)

    @functools.cached_property
    def _groups(self) -> list[Batch | lockstep.Rows]:
        """The batches in order, as many of one shape together as is best."""
        size = self.rows_together(lockstep.USUAL_PRODUCTS * len(self.batches), memory=BLOCK_BYTES / self._workers)
        if size == 1:
            return list(self.batches)
        groups: list[Batch | lockstep.Rows] = []
        for _, alike in itertools.groupby(self.batches, lambda batch: batch.tensors[0].shape[0]):
            batches = list(alike)
            number = self._workers * math.ceil(len(batches) / (size * self._workers))
            for part in (batches[k * len(batches) // number : (k + 1) * len(batches) // number] for k in range(number)):
                rows = lockstep.Rows.of(self.engine, part) if len(part) > 1 else None
                groups += part if rows is None else [rows]
        return groups

    @classmethod
    def batch(cls, operators: Sequence[Self]) -> OperatorBatch:
        """Operators of minibatches of one loss, multiplied together where TensorFlow can."""
        batches = [batch for operator in operators for batch in operator.batches]
        if operators[0].loss.micro_batch is not None:
            return OperatorBatch(operators)
        rows = lockstep.Rows.of(operators[0].engine, batches) if len(batches) == len(operators) else None
        return OperatorBatch(operators) if rows is None else lockstep.HessianBatch(operators, rows)

    def matvec(self, vector: Tensor) -> Tensor:
        """H v, shape [n] -> [n]; NumPy in, NumPy out; a tensor in gives a tensor out. Columns go to `matmat`."""
        if len(np.shape(vector)) == 2:
            return self.matmat(vector)
        if self._shares:
            return self._over_devices(vector, (self.size,))

        def product(vector: Tensor, group: Batch | lockstep.Rows) -> Tensor:
            if isinstance(group, Batch):
                return self._linearized.product(vector, group)
            rows = tf.repeat(vector[None], group.count, axis=0)
            return tf.reduce_sum(group.products(self.engine, rows), axis=0)

        return self._apply(vector, (self.size,), self._groups, product)

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
        number, count = int(np.shape(rows)[0]), int(min(_BLOCK, _CACHE // (self.size * self.dtype.itemsize)))
        if self._shares and number:
            return self._over_devices(rows, (number, self.size))
        # Long rows share no first pass; batches in lockstep do without one; a few products of short rows take less time
        # than compiling them together, and of unrolled recurrent layers (which takes as long as 6,000) any number.
        if number == 0:
            return tf.cast(rows, self.dtype) if tf.is_tensor(rows) else np.empty((0, self.size), self.dtype)
        self._asked[0] += number * len(self.batches)
        few = count < _FEWEST or (not self.engine.has_block_product and self._asked[0] < _FEW_PRODUCTS)
        if few or self.engine.fixed or any(isinstance(group, lockstep.Rows) for group in self._groups):
            parts = [self.matvec(rows[k])[None] for k in range(number)]
        else:
            blocks = (rows[start : start + count] for start in range(0, number, count))
            parts = [
                self._apply(block, (int(block.shape[0]), self.size), self.batches, self._products) for block in blocks
            ]
        if len(parts) == 1:
            return parts[0]
        return tf.concat(parts, axis=0) if tf.is_tensor(rows) else np.concatenate(parts)

    def _products(self, rows: Tensor, batch: Batch) -> Tensor:
        return self.engine.products(self.engine.point, rows, batch)

    def gradient(self) -> Array:
        """The gradient over the operator's batches, shape [n], float64."""
        self.require(0)
        return self.engine.total_gradient(self.engine.point, self.batches)

    def direction(self) -> Tensor:
        """The gradient as a tensor on the operator's device, in the precision of the products."""
        self.require(0)
        return tf.add_n([self.engine.gradient(self.engine.point, batch) for batch in self.batches])

    def _over_devices(self, array: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The sum of what the shares make of a vector or of rows, one thread for each device."""
        whole = self._tensor(array, shape)

        def part(share: Self) -> Tensor:
            with share.engine.devices.scope():
                there = tf.identity(whole)
                return share.matvec(there) if len(shape) == 1 else share.rows(there)

        with self.engine.devices.scope():
            total = functools.reduce(operator.add, self._devices_pool.map(part, self._shares))
        return total if tf.is_tensor(array) else finite(total.numpy(), "a Hessian-vector product")

    def _tensor(self, array: Tensor, shape: tuple[int, ...]) -> Tensor:
        """What is to be multiplied, which must have this shape, in the operator's precision."""
        if tuple(np.shape(array)) != shape:
            raise ValueError(f"the operator takes an array of shape {shape}, got {tuple(np.shape(array))}.")
        return tf.cast(array, self.dtype) if tf.is_tensor(array) else tf.constant(array, self.dtype)

    @functools.cached_property
    def _devices_pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(len(self._shares))

    def _apply(
        self,
        array: Tensor,
        shape: tuple[int, ...],
        groups: Sequence[_Group],
        product: Callable[[Tensor, _Group], Tensor],
    ) -> Tensor:
        vector = self._tensor(array, shape)
        self.require(len(self.batches) * (1 if len(shape) == 1 else shape[0]))
        total: Tensor = None
        # As many at a time as there are threads: the products of all of them at once may not fit the memory.
        for start in range(0, len(groups), self._workers):
            if start:
                self.require(0)  # one pass over the data may take long
            some = groups[start : start + self._workers]
            one = functools.partial(product, vector)
            for part in [one(some[0])] if len(some) == 1 else list(self._pool.map(one, some)):
                total = part if total is None else total + part
        return total if tf.is_tensor(array) else finite(total.numpy(), "a Hessian-vector product")

    def reduced(self) -> Reduction | None:
        """The operator on the data subspace of the first layer plus the eigenvalue of the rest, if it splits."""
        return subspace.reduction(self)


class HessianOperator(CurvatureOperator):
    """Hessian of an `EmpiricalLoss` at the model's weights, known by its products.

    H = sum over the loss's batches of the batch Hessians, weighted as in `EmpiricalLoss`; rows and columns
    follow `loss.layout`. Construction verifies the products on one batch (see `verification`).

    Args:
        loss: The function.
        product_mode: 'auto', 'linearized', 'reverse-over-reverse', 'forward-over-reverse' or 'finite-differences';
            `verification.product_mode` has what 'auto' took, by a quick timing where it matters.
        allow_unverified: Keep an operator that failed its verification (`verification.passed` is False).
        workers: Threads over batches; results are summed in order.
        memory: Bytes that the process may have resident while the products are verified; default what is free. A
            fifth of it may be held for batches that are linearised.

    Attributes:
        size: Number of parameters n.
        dtype: Dtype of the products.
        space: Where vectors are best made for it, on the loss's device; None for NumPy arrays.
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
        >>> np.round(H @ np.array([1.0, 1.0]), 12)
        array([1., 4.])
        >>> np.round(H.as_matrix(), 12)
        array([[1., 0.],
               [0., 4.]])
    """
