"""A limit on products and on time, for a whole analysis or for a part of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import attrs
import tensorflow as tf

from sdkeras.errors import BudgetError
from sdkeras.linalg.memory import memory_limit
from sdkeras.results.progress import PRODUCTS, TIME

# Part of what verification leaves of a limited budget that is kept for the sharpness dimension and what follows it.
KEPT = 0.5


@attrs.frozen
class Budget:
    """Hessian-vector products and seconds that may still be spent.

    Attributes:
        spent: Counts the products made so far, for whatever purpose.
        most: Count at which to stop, or None.
        deadline: `time.monotonic()` at which to stop, or None.
    """

    spent: Callable[[], int]
    most: int | None = None
    deadline: float | None = None

    @property
    def is_limited(self) -> bool:
        return self.most is not None or self.deadline is not None

    @property
    def left(self) -> int | None:
        """Products left, at least 0; None without a limit."""
        return None if self.most is None else max(0, self.most - self.spent())

    def over(self, products: int = 0) -> str:
        """Which limit has no room for this many more products; "" where both have."""
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return TIME
        return PRODUCTS if self.most is not None and self.spent() + products > self.most else ""

    def require(self, products: int = 0) -> None:
        """Checks that there is room for this many more products.

        Raises:
            BudgetError: There is not.
        """
        reason = self.over(products)
        if reason:
            raise BudgetError(reason)

    def part(self, share: float) -> Budget:
        """A budget of this share of what is left now."""
        now = time.monotonic()
        return Budget(
            self.spent,
            None if self.left is None else self.spent() + int(share * self.left),
            None if self.deadline is None else now + share * max(0.0, self.deadline - now),
        )

    def beyond(self) -> tuple[int, float]:
        """Products and seconds spent beyond the limits, (0, 0) within them."""
        products = 0 if self.most is None else max(0, self.spent() - self.most)
        seconds = 0.0 if self.deadline is None else max(0.0, time.monotonic() - self.deadline)
        return products, seconds


# Vectors of n that a product and what goes on around it hold at once: the weights three times, pieces, tangents and
# results (measured with embeddings of 20 to 124 million parameters).
VECTORS = 12


@attrs.frozen
class Resources:
    """What an analysis of n parameters may use.

    Attributes:
        memory: Bytes that bases and dense matrices may take: the limit less the vectors of the products.
        workers: Threads over runs.
        size: n.
        itemsize: Bytes of a number.
        bases: That a run keeps: one, or with singular values one for either side.
    """

    memory: float
    workers: int
    size: int
    itemsize: int
    bases: int = 1

    def dense_bytes(self) -> int:
        return 8 * self.size**2

    def basis_bytes(self, steps: int) -> int:
        return steps * self.bases * self.size * self.itemsize

    def fits(self, steps: int) -> bool:
        """Whether the Lanczos bases of all workers fit the memory."""
        return self.basis_bytes(steps) * self.workers <= self.memory

    def workers_for(self, *, exact: bool) -> int:
        """Runs of an estimator that go on side by side; an exact one holds a dense matrix each."""
        return 1 if exact and self.dense_bytes() * self.workers > self.memory else self.workers


def resources(size: int, itemsize: int, *, memory_gb: float | None, workers: int | None) -> Resources:
    """What is given, or a share of what is free now and a thread per core, where TensorFlow and the memory allow."""
    limit, products = memory_limit(memory_gb), VECTORS * size * itemsize
    if workers is None:
        single = tf.config.threading.get_intra_op_parallelism_threads() == 1
        # Products side by side may take half of it at most: the other half is for bases.
        most = int(limit / 2 // products)
        workers = max(1, min(os.cpu_count() or 1, most)) if single else 1
    left = limit - workers * products
    return Resources(max(left, 1.0), workers, size, itemsize)
