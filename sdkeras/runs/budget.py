"""Budget of an analysis, and the reasons to stop: products, time, memory, threads and Ctrl-C in one object."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import attrs
import tensorflow as tf

from sdkeras.errors import BudgetError
from sdkeras.estimators.select import Watched
from sdkeras.linalg.memory import memory_limit
from sdkeras.linalg.operators import SymmetricOperator
from sdkeras.operators.hessian import HessianOperator
from sdkeras.results.note import Note
from sdkeras.results.progress import INTERRUPT, PRODUCTS, TIME, Progress

# Share of what verification leaves of a limited budget that is kept for the sharpness dimension and what follows it.
KEPT = 0.5
# Seconds beyond the time limit, or share of it, that are not worth a note.
_NEGLIGIBLE, _NEGLIGIBLE_SHARE = 0.05, 0.01
# Vectors of n that a product and what goes on around it hold at once: the weights three times, pieces, tangents and
# results (measured with embeddings of 20 to 124 million parameters).
VECTORS = 12

Notes = tuple[Note, ...]
_T = TypeVar("_T")
_S = TypeVar("_S")


@attrs.frozen
class Resources:
    """Memory and threads, over runs, of an analysis of `size` parameters of `itemsize` bytes.

    `memory` has the bytes that bases and dense matrices may take: the limit less the vectors of the products. A run
    keeps one basis, or with singular values one for either side.
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

    def eigen_steps(self, size: int) -> int:
        """Lanczos steps on an operator of this size whose basis takes a quarter of the memory."""
        return int(self.memory // (4 * size * self.itemsize))

    def workers_for(self, *, exact: bool) -> int:
        """Runs of an estimator that go on side by side; an exact one holds a dense matrix each."""
        return 1 if exact and self.dense_bytes() * self.workers > self.memory else self.workers

    @contextlib.contextmanager
    def mapper(self, *, exact: bool) -> Iterator[Callable[[Callable[[_S], _T], Iterable[_S]], Iterable[_T]]]:
        """Applies a function to several runs of an estimator, in order, side by side where there are threads."""
        workers = self.workers_for(exact=exact)
        if workers == 1:
            yield map
            return
        pool = ThreadPoolExecutor(workers)
        try:
            yield pool.map
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def resources(size: int, itemsize: int, *, memory_gb: float | None, workers: int | None) -> Resources:
    """The given limits, or a share of what is free now and a thread per core, where TensorFlow and memory allow."""
    limit, products = memory_limit(memory_gb), VECTORS * size * itemsize
    if workers is None:
        single = tf.config.threading.get_intra_op_parallelism_threads() == 1
        # Products side by side may take half of it at most: the other half is for bases.
        most = int(limit / 2 // products)
        workers = max(1, min(os.cpu_count() or 1, most)) if single else 1
    left = limit - workers * products
    return Resources(max(left, 1.0), workers, size, itemsize)


@attrs.define(eq=False)
class Meter:
    """State that all parts of one budget share: what was spent so far, the limits of the whole, and the present stage.

    `excess` has each required stage with the products and seconds by which it exceeded the limits; `handlers` the
    signals that were taken over, with what handled them.
    """

    spent: Callable[[], int] = lambda: 0
    progress: Callable[[Progress], None] | None = None
    most: int | None = None
    deadline: float | None = None
    stage: str = ""
    interrupted: bool = False
    excess: list[tuple[str, int, float]] = attrs.field(factory=list)
    handlers: dict[signal.Signals, Any] = attrs.field(factory=dict)

    def interrupt(self, *_: object) -> None:
        """Handles the first Ctrl-C."""
        self.interrupted = True
        self.give_back()

    def give_back(self) -> None:
        """Leaves the signals to those who handled them."""
        while self.handlers:
            signal.signal(*self.handlers.popitem())

    def beyond(self) -> tuple[int, float]:
        """Products and seconds spent beyond the limits of the whole, (0, 0) within them."""
        products = 0 if self.most is None else max(0, self.spent() - self.most)
        seconds = 0.0 if self.deadline is None else max(0.0, time.monotonic() - self.deadline)
        return products, seconds


@attrs.frozen(eq=False)
class Budget:
    """Hessian-vector products and seconds that may still be spent, memory and threads, and whether Ctrl-C came.

    `most` is the count of products at which to stop, `deadline` the `time.monotonic()`.
    """

    resources: Resources
    meter: Meter
    most: int | None = None
    deadline: float | None = None

    @property
    def is_limited(self) -> bool:
        return self.most is not None or self.deadline is not None

    @property
    def interrupted(self) -> bool:
        return self.meter.interrupted

    @property
    def spent(self) -> int:
        return self.meter.spent()

    @property
    def left(self) -> int | None:
        """Products left, at least 0; None without a limit."""
        return None if self.most is None else max(0, self.most - self.spent)

    def stop(self, products: int = 0) -> str:
        """Why this many more products must not be made; "" where they may."""
        if self.interrupted:
            return INTERRUPT
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return TIME
        return PRODUCTS if self.most is not None and self.spent + products > self.most else ""

    def limit(self) -> str:
        """The limit on the whole that has left something out: the time limit if it has passed or is the only one."""
        passed = self.deadline is not None and time.monotonic() >= self.deadline
        return TIME if passed or self.most is None else PRODUCTS

    def require(self, products: int = 0) -> None:
        """Checks that this many more products may be made.

        Raises:
            BudgetError: They may not.
        """
        reason = self.stop(products)
        if reason:
            raise BudgetError(reason)

    def part(self, share: float) -> Budget:
        """A budget of this share of what is left now."""
        now = time.monotonic()
        most = None if self.left is None else self.spent + int(share * self.left)
        deadline = None if self.deadline is None else now + share * max(0.0, self.deadline - now)
        return attrs.evolve(self, most=most, deadline=deadline)

    # Stages

    def measured(self, what: str, stage: Callable[[], tuple[_T, Notes]]) -> tuple[_T | None, Notes]:
        """A stage's record and notes; no record, and the reason in a note, where the budget has no room for it."""
        try:
            if self.interrupted:
                return None, ()
            return stage()
        except BudgetError as error:
            return None, () if self.interrupted else (Note("not-measured", f"{what}: {error}"),)

    @contextlib.contextmanager
    def required(self, what: str) -> Iterator[Budget]:
        """Scope of a stage that is done whatever the limits: its budget, which Ctrl-C alone ends.

        By how much it exceeded the limits is kept for `note_of_excess`.
        """
        products, seconds = self.meter.beyond()
        try:
            yield attrs.evolve(self, most=None, deadline=None)
        finally:
            later = self.meter.beyond()
            self.meter.excess.append((what, later[0] - products, later[1] - seconds))

    def notes_of_excess(self, time_limit: float | None) -> Iterator[Note]:
        """Which required stages exceeded the limits of the whole, and by how much."""
        products, seconds = self.meter.beyond()
        if products:
            took = [f"{what} took {more:,}" for what, more, _ in self.meter.excess if more]
            words = f"{products:,} Hessian-vector products beyond the limit of {self.meter.most:,}: {_listed(took)}."
            yield Note("limit-exceeded", words)
        limit = time_limit or 0.0
        if seconds > max(_NEGLIGIBLE, _NEGLIGIBLE_SHARE * limit):
            took = [f"{what} took {more:.2g} s" for what, _, more in self.meter.excess if more > 0.1 * seconds]
            under_way = seconds - sum(more for *_, more in self.meter.excess)
            took += [f"products under way {under_way:.2g} s"] if under_way > 0.1 * seconds else []
            words = f"{seconds:.2g} s beyond the time limit of {limit:g} s: {_listed(took)}."
            yield Note("limit-exceeded", words)

    def watched(self, hessian: HessianOperator) -> SymmetricOperator:
        """The operator within this budget, telling `progress` after each product."""
        return Watched(hessian.within(self), self.tick)

    def tell(self, stage: str) -> None:
        """Says what is being done from now on."""
        self.meter.stage = stage
        self.tick()

    def tick(self, reading: str = "") -> None:
        """Says how far the work is, or what a measurement has found."""
        if self.meter.progress is not None:
            self.meter.progress(Progress(self.meter.stage, self.spent, reading=reading))

    # Ctrl-C

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """While it lasts the first Ctrl-C is a reason to stop before the next product; the second acts at once.

        A signal that has the same handler, as the command line gives SIGTERM, is taken likewise.
        """
        handler = signal.getsignal(signal.SIGINT)
        in_main_thread = threading.current_thread() is threading.main_thread()
        if not in_main_thread or not callable(handler) or handler == self.meter.interrupt:
            yield  # where signals cannot be taken over, are ignored, or are ours already
            return
        numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) == handler]
        self.meter.handlers = dict.fromkeys(numbers, handler)
        for number in numbers:
            signal.signal(number, self.meter.interrupt)
        try:
            yield
        finally:
            self.meter.give_back()


def whole_budget(resources: Resources, meter: Meter) -> Budget:
    """The budget of everything that a meter counts."""
    return Budget(resources, meter, meter.most, meter.deadline)


def _listed(items: list[str]) -> str:
    """ "a, b and c"."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)
