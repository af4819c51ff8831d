"""Hessian-vector products of several minibatches in one compiled call: a vector, a batch and its masks per row.

A small net's product is mostly the dispatch of its few hundred operations, which rows share: eight rows of a net of
3,466 parameters cost a quarter of single products, 32 a sixth, 64 an eighth. From 270,000 parameters on nothing is
gained. Which rows are multiplied together changes their numbers by rounding only.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs
import numpy as np
import tensorflow as tf

from sdkeras.files.keras_types import Compiled, Tensor
from sdkeras.linalg.operators import OperatorBatch
from sdkeras.linalg.vectors import finite, norm
from sdkeras.operators.engine import Engine, quiet
from sdkeras.operators.linearized import Flat
from sdkeras.results.arrays import Array

if TYPE_CHECKING:
    from sdkeras.operators.batch_loss import Batch
    from sdkeras.operators.hessian import CurvatureOperator

# Bytes of a group's vectors that the cache holds; rows beyond which little is gained, and below which nothing is.
_CACHE, _MOST, _FEWEST = 8e6, 32, 8
# Tracing takes as long as about this many single products: fewer are made one by one. With unrolled recurrent layers
# it took as long as 2,600 (of a masked GRU and LSTM of 7 steps), and a row two fifths of a single product.
_WORTHWHILE, _WORTHWHILE_UNROLLED = 800, 3200
# Products with each batch of the data set that eigenvalues and trace take.
USUAL_PRODUCTS = 50
# Operations whose kernels take no second batch axis (a convolution's filters would have one), or whose loops would be
# traced for minutes.
_UNSUITED = ("Conv", "Depthwise", "While", "StatelessWhile", "PyFunc", "EagerPyFunc")
# A product's tensors beside the gradient's, which it goes through twice more.
_TENSORS = 3
_ROWS_CHECKED = 2

_log = logging.getLogger(__name__)


def group_size(engine: Engine, num_examples: int, products: int, *, memory: float, vectors: int) -> int:
    """Rows to multiply together, by cache and memory; 1 where it does not pay, or operations forbid it.

    Args:
        engine: The engine, with products or before there are any.
        num_examples: Examples of a row's batch.
        products: Products that will be made in all.
        memory: Bytes that all rows may take.
        vectors: Vectors that a row keeps, such as a Lanczos basis.
    """
    if products < (_WORTHWHILE_UNROLLED if engine.fixed else _WORTHWHILE):
        return 1
    if engine.mode not in ("", "reverse-over-reverse") or engine.has_operation(_UNSUITED):
        return 1
    vector = engine.size * engine.dtype.itemsize
    row = vectors * vector + _TENSORS * engine.gradient_bytes(num_examples)
    count = int(min(_MOST, _CACHE // vector, memory // row))
    return count if count >= _FEWEST else 1


@attrs.frozen(eq=False)
class Rows:
    """Batches of one shape as arguments of the compiled products, one per row.

    A row alone is multiplied twice: TensorFlow takes another path for batches of one, whose rounding differs.
    """

    count: int
    product: Compiled
    seeds: Tensor
    weights: Tensor
    tensors: tuple[Tensor, ...]

    @classmethod
    def of(cls, engine: Engine, batches: Sequence[Batch]) -> Rows | None:
        """The batches stacked, or None if their shapes differ or these products cannot be made or are wrong."""
        shapes = {tuple(tuple(tensor.shape) for tensor in batch.tensors) for batch in batches}
        if len(shapes) != 1:
            return None
        product = engine.row_product(shapes.pop(), lambda: _compiled(engine, batches))
        return None if product is None else cls(len(batches), product, *_stacked(engine, batches))

    def subset(self, places: Sequence[int]) -> Rows:
        """The rows at these places."""
        kept = list(places) * (2 if len(places) == 1 else 1)
        seeds, weights, *tensors = (tf.gather(each, kept) for each in (self.seeds, self.weights, *self.tensors))
        return Rows(len(places), self.product, seeds, weights, tuple(tensors))

    def products(self, engine: Engine, rows: Tensor) -> Tensor:
        """The weighted product of each batch with its row, shape [count, n] -> [count, n]."""
        engine.count(self.count)
        padded = rows if self.count > 1 else tf.repeat(rows, 2, axis=0)
        values = self.product(engine.point, padded, self.seeds, self.weights, *self.tensors, *engine.function.held)
        return values[: self.count]


def _stacked(engine: Engine, batches: Sequence[Batch]) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Seed states, weights and tensors; a single batch stands there twice."""
    padded = [*batches] * (2 if len(batches) == 1 else 1)
    arguments = [engine.arguments(batch)[: 2 + len(batch.tensors)] for batch in padded]
    seeds, weights, *tensors = (tf.stack(each) for each in zip(*arguments, strict=True))
    return seeds, weights, tuple(tensors)


def _compiled(engine: Engine, batches: Sequence[Batch]) -> Compiled | None:
    """The compiled products with batches of this shape, if they can be made and are right on the first of these."""
    few = [*batches, *batches][:_ROWS_CHECKED]
    batch, count = few[0], len(few[0].tensors)

    def graph(point: Tensor, rows: Tensor, seeds: Tensor, weights: Tensor, *rest: Tensor) -> Tensor:
        def one(row: tuple[Tensor, ...]) -> Tensor:
            vector, seeds_of_row, *others = row
            return engine.product_graph(point, vector, seeds_of_row, *others, *rest[count:])

        # Random bits have no vectorized form; a loop over rows draws those of dropout masks quickly enough.
        alone = engine.function.is_random
        return tf.vectorized_map(one, (rows, seeds, weights, *rest[:count]), fallback_to_while_loop=alone)

    arguments = engine.arguments(batch)
    stacked = [tf.TensorSpec([None, *each.shape], each.dtype) for each in (engine.vector, *arguments[: 2 + count])]
    held = [tf.TensorSpec(each.shape, each.dtype) for each in arguments[2 + count :]]
    with quiet():
        try:
            rows = Rows(
                _ROWS_CHECKED,
                Flat(engine.traced(graph, specs=(*stacked, *held))),
                *_stacked(engine, few),
            )
            reason = _difference(engine, few, rows)
        except tf.errors.ResourceExhaustedError:
            raise
        except Exception as error:  # no vectorized form of some operation; TensorFlow raises several types for it
            reason = f"{type(error).__name__}: {str(error).strip()[:200]}"
    if reason:
        _log.debug("products are made one by one (%s)", reason)
        return None
    return rows.product


def _difference(engine: Engine, batches: Sequence[Batch], rows: Rows) -> str:
    """How the rows differ from single products, or "": what is vectorized wrongly errs far more than rounding does."""
    vectors = np.random.default_rng(0).standard_normal((rows.count, engine.size)).astype(engine.dtype)
    together = rows.products(engine, tf.constant(vectors)).numpy()
    allowed, tiny = float(np.sqrt(np.finfo(engine.dtype).eps)), float(np.finfo(np.float64).tiny)
    pairs = zip(vectors, batches, strict=True)
    single = np.stack([engine.product(engine.point, tf.constant(vector), batch).numpy() for vector, batch in pairs])
    engine.count(-2 * rows.count)  # a trial of what was compiled is no measurement
    error = max(norm(one - other) / max(norm(other), tiny) for one, other in zip(together, single, strict=True))
    return "" if error <= allowed else f"a row differs from its single product by {error:.2g} of its norm"


class HessianBatch(OperatorBatch):
    """Operators of several minibatches, whose products are made together."""

    operators: tuple[CurvatureOperator, ...]

    def __init__(self, operators: Sequence[CurvatureOperator], rows: Rows) -> None:
        super().__init__(operators)
        self._rows = rows

    def matvecs(self, rows: Array) -> Array:
        """The product of each operator with its row.

        Raises:
            BudgetError: The budget has no room for all of them.
        """
        first = self.operators[0]
        first.require(self.count)
        products = self._rows.products(first.engine, rows if tf.is_tensor(rows) else tf.constant(rows, self.dtype))
        return products if tf.is_tensor(rows) else finite(products.numpy(), "a Hessian-vector product")

    def subset(self, places: Sequence[int]) -> HessianBatch:
        return HessianBatch([self.operators[place] for place in places], self._rows.subset(places))
