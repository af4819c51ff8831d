"""Memory and threads of an analysis: which bases and dense matrices fit, and how many runs go side by side."""

from __future__ import annotations

import os

import attrs
import tensorflow as tf

from sdkeras.estimators import DENSE
from sdkeras.memory import memory_limit

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

    def workers_for(self, name: str) -> int:
        """Runs of an estimator that go on side by side; an exact one holds a dense matrix each."""
        return 1 if name in DENSE and self.dense_bytes() * self.workers > self.memory else self.workers


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
