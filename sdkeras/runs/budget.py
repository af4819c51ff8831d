"""Budget of an analysis, and the reasons to stop: products, time, memory, threads and Ctrl-C in one object."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import attrs
import tensorflow as tf
from threadpoolctl import threadpool_limits

from sdkeras.dimension.sampling import Runner
from sdkeras.errors import BudgetError
from sdkeras.estimators.select import Watched
from sdkeras.linalg.memory import Scratch, free_on_disk, memory_limit, used_memory
from sdkeras.linalg.operators import SymmetricOperator
from sdkeras.operators.device import HOST, Devices
from sdkeras.operators.hessian import CurvatureOperator
from sdkeras.operators.linearized import HELD_SHARE
from sdkeras.results.arrays import Value
from sdkeras.results.estimates import Spectrum
from sdkeras.results.note import Note
from sdkeras.results.progress import INTERRUPT, PRODUCTS, TIME, Progress
from sdkeras.runs.journal import Journal

# Share of what verification leaves of a limited budget that is kept for the sharpness dimension and what follows it.
KEPT = 0.5
# Seconds beyond the time limit, or share of it, that are not worth a note.
_NEGLIGIBLE, _NEGLIGIBLE_SHARE = 0.05, 0.01
# What must have been measured before the time left is told.
_TELLING_SECONDS, _TELLING_PRODUCTS = 0.5, 50
# Vectors of n that a product and what goes on around it hold at once: the weights three times, pieces, tangents and
# results (measured with embeddings of 20 to 124 million parameters).
VECTORS = 12

Notes = tuple[Note, ...]
_T = TypeVar("_T")
_S = TypeVar("_S")


class _Keep(Protocol):
    def __call__(self, result: object, products: int = 0) -> None: ...


@attrs.frozen(slots=False)
class Resources:
    """Memory and threads, over runs, of an analysis of `size` parameters of `itemsize` bytes.

    `memory` has the bytes that bases and dense matrices may take: the limit less the vectors of the products and less
    `held`, which linearised batches may take. A run keeps one basis, or with singular values one for either side.
    """

    memory: float
    workers: int
    size: int
    itemsize: int
    bases: int = 1
    held: float = 0.0
    devices: Devices = HOST
    scratch: str | None = None

    def dense_bytes(self) -> int:
        return 8 * self.size**2

    def basis_bytes(self, steps: int) -> int:
        return steps * self.bases * self.size * self.itemsize

    @functools.cached_property
    def disk(self) -> float:
        """Bytes that bases may take on disk; 0 without a folder for them, and on a device, which cannot read them."""
        return 0.0 if self.scratch is None or self.devices.on_device else free_on_disk(self.scratch)

    @property
    def bases_on_disk(self) -> Scratch | None:
        """Where bases are kept that do not fit the memory, a worker's share of it."""
        return None if not self.disk or self.scratch is None else Scratch(self.scratch, self.memory / self.workers)

    def fits(self, steps: int) -> bool:
        """Whether the Lanczos bases of all workers fit the memory, or the disk."""
        return self.basis_bytes(steps) * self.workers <= max(self.memory, self.disk)

    def resident_bytes(self, steps: int) -> int:
        """Memory of a worker's bases: as far as they are not on disk, or with a few vectors in place of them."""
        whole, share = self.basis_bytes(steps), self.memory / self.workers
        return whole if whole <= share else self.basis_bytes(4)

    def eigen_steps(self, size: int) -> int:
        """Lanczos steps on an operator of this size whose basis takes a quarter of the memory, or of the disk."""
        return int(max(self.memory, self.disk) // (4 * size * self.itemsize))

    def workers_for(self, *, exact: bool) -> int:
        """Runs of an estimator that go on side by side; an exact one holds a dense matrix each."""
        return 1 if exact and self.dense_bytes() * self.workers > self.memory else self.workers

    @contextlib.contextmanager
    def mapper(self, *, exact: bool) -> Iterator[Callable[[Callable[[_S], _T], Iterable[_S]], Iterable[_T]]]:
        """Applies a function to several runs of an estimator, in order, side by side where there are threads."""
        workers = self.workers_for(exact=exact)
        if workers == 1:
            with contextlib.nullcontext() if exact else one_blas_thread():
                yield map
            return
        pool = self.devices.executor(workers)
        try:
            with one_blas_thread():
                yield pool.map
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class _OneBlasThread:
    """The limit, while any thread is in a scope; scopes nest."""

    def __init__(self) -> None:
        self._depth = 0
        self._lock = threading.Lock()
        self._limits: contextlib.AbstractContextManager[object] | None = None

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        with self._lock:
            if self._depth == 0:
                self._limits = threadpool_limits(1, user_api="blas")
            self._depth += 1
        try:
            yield
        finally:
            with self._lock:
                self._depth -= 1
                if self._depth == 0 and self._limits is not None:
                    self._limits.__exit__(None, None, None)


_ONE_BLAS_THREAD = _OneBlasThread()


def one_blas_thread() -> contextlib.AbstractContextManager[None]:
    """Keeps NumPy to one thread in a scope: what reads a Lanczos basis is bound by memory.

    A product with a basis of 20 vectors of 270,000 weights takes two threads as long as one, and while they wait for
    each other TensorFlow has no core: an analysis took twice as long.
    """
    return _ONE_BLAS_THREAD.scope()


def resources(
    size: int,
    itemsize: int,
    *,
    memory_gb: float | None,
    workers: int | None,
    devices: Devices = HOST,
    scratch: str | None = None,
) -> Resources:
    """The given limits, or a share of what is free now and a thread per core, where TensorFlow and memory allow.

    On accelerators, and where there are several devices, it is a thread for each; memory is that of the smallest.
    """
    limit, products = memory_limit(memory_gb, devices.memory()), VECTORS * size * itemsize
    if workers is None and (devices.on_device or len(devices.names) > 1):
        workers = len(devices.names)
    if workers is None:
        single = tf.config.threading.get_intra_op_parallelism_threads() == 1
        # Products side by side may take half of it at most: the other half is for bases.
        most = int(limit / 2 // products)
        workers = max(1, min(os.cpu_count() or 1, most)) if single else 1
    held = HELD_SHARE * limit
    left = limit - workers * products - held
    return Resources(max(left, 1.0), workers, size, itemsize, held=held, devices=devices, scratch=scratch)


def room_to_verify(memory_gb: float | None, devices: Devices) -> float:
    """Bytes that the process may have resident while products are verified, as `HessianOperator` takes them."""
    free = devices.memory()
    return memory_limit(memory_gb, free) + (0.0 if free is None else used_memory())


@attrs.define
class Pace:
    """Products that are planned in all, and how fast they were made: lately, or so far.

    Each is (time, products): `begun` at the start of the measurements; `since` at that of the present stage or a few
    seconds ago; `recent` what `since` will be next. `compiling` until the first products of the stage are done.
    """

    planned: int
    begun: tuple[float, int]
    since: tuple[float, int]
    recent: tuple[float, int]
    compiling: bool = True

    @classmethod
    def of(cls, planned: int, made: int) -> Pace:
        """At the start, after the products that were made before."""
        now = time.monotonic(), made
        return cls(planned, now, now, now)

    def begin_stage(self, made: int) -> None:
        """A stage begins, whose products may take another time and must be compiled."""
        self.since = self.recent = time.monotonic(), made
        self.compiling = True

    def leave_compilation_behind(self, made: int) -> None:
        """The first products of a stage are done, of which only the later ones tell."""
        if self.compiling:
            self.begin_stage(made)
            self.compiling = False

    def seconds_left(self, made: int, left: int, deadline: float | None) -> float | None:
        """Seconds for products that are left; None before enough were made to tell, or where none are planned."""
        now = time.monotonic()
        if self._tells(now, made, self.recent):
            self.since, self.recent = self.recent, (now, made)
        for start in (self.since, self.begun):
            if left > 0 and self._tells(now, made, start):
                estimate = left * (now - start[0]) / (made - start[1])
                return estimate if deadline is None else min(estimate, max(0.0, deadline - now))
        return None

    def _tells(self, now: float, made: int, start: tuple[float, int]) -> bool:
        return now - start[0] >= _TELLING_SECONDS and made - start[1] >= _TELLING_PRODUCTS


class Hosts(Protocol):
    """Other hosts that work for this one; see `sdkeras.runs.serve`."""

    def over_batches(self, hessian: CurvatureOperator) -> SymmetricOperator:
        """The operator, whose products with the batches of the data set are made by all hosts."""

    def runs_at_once(self, runs: object) -> int:
        """How many hosts make such runs."""

    def over_runs(self, name: str, runs: object, runner: Runner, budget: Budget) -> Runner:
        """The runs of this estimator by all hosts, of which the runner makes those of this one."""


@attrs.define(eq=False)
class Meter:
    """State that all parts of one budget share: what was spent so far, the limits of the whole, and the present stage.

    What the `journal` held is not made again: `replayed` has its products, which count as spent. `late` is whether the
    time limit of any part has passed. `pace` gives the time left, once there is a plan. `excess` has each required
    stage with the products and seconds by which it exceeded the limits; `handlers` the signals that were taken over,
    with what handled them; `hosts` the others of a cluster.
    """

    spent: Callable[[], int] = lambda: 0
    progress: Callable[[Progress], None] | None = None
    most: int | None = None
    deadline: float | None = None
    stage: str = ""
    journal: Journal = attrs.field(factory=Journal)
    replayed: int = 0
    late: bool = False
    pace: Pace | None = None
    interrupted: bool = False
    excess: list[tuple[str, int, float]] = attrs.field(factory=list)
    handlers: dict[signal.Signals, Any] = attrs.field(factory=dict)
    hosts: Hosts | None = None

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
        products = 0 if self.most is None else max(0, self.spent() + self.replayed - self.most)
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
        return self.meter.spent() + self.meter.replayed

    @property
    def left(self) -> int | None:
        """Products left, at least 0; None without a limit."""
        return None if self.most is None else max(0, self.most - self.spent)

    def stop(self, products: int = 0) -> str:
        """Why this many more products must not be made; "" where they may."""
        if self.interrupted:
            return INTERRUPT
        if self.deadline is not None and time.monotonic() >= self.deadline:
            self.meter.late = True
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

    def measured(self, what: str, stage: Callable[[], tuple[_T, Notes]], kind: Value = None) -> tuple[_T | None, Notes]:
        """A stage's record and notes; no record, and the reason in a note, where the budget has no room for it.

        With its `kind` it is kept in the journal, by its name; without it is made again, from runs that are kept.
        """
        try:
            if self.interrupted:
                return None, ()
            return stage() if kind is None else self.once(what, stage, kind)
        except BudgetError as error:
            return None, () if self.interrupted else (Note("not-measured", f"{what}: {error}"),)

    def once(self, name: str, make: Callable[[], _T], kind: type[_T]) -> _T:
        """The journal's result of this name, which counts as if it were made now; or a new one, kept if it is whole."""
        known = self._kept(name, kind)
        if known is None:
            with self._keeping(name) as keep:
                known = make()
                keep(known)
        return known

    def runs_once(self, name: str, run: Runner) -> Runner:
        """Makes the runs that the journal of these names does not hold yet; each is kept by its number."""

        def made(indices: Sequence[int], steps: int | None) -> Iterator[Spectrum]:
            keys = {
                index: f"{name}: run {index}" + ("" if steps is None else f" of {steps} steps") for index in indices
            }
            known = {
                index: spectrum for index in indices if (spectrum := self._kept(keys[index], Spectrum)) is not None
            }
            missing = [index for index in indices if index not in known]
            with self._keeping(*(keys[index] for index in missing)) as keep:
                new = iter(run(missing, steps) if missing else ())
                spectra = []
                for index in indices:
                    if index not in known:
                        spectra.append(next(new))
                    yield known[index] if index in known else spectra[-1]
                for spectrum in spectra:
                    keep(spectrum, spectrum.num_matvecs)

        return made

    def _kept(self, name: str, kind: type[_T]) -> _T | None:
        known = self.meter.journal.find(name, kind)
        if known is None:
            return None
        result, entry = known
        self.meter.replayed += entry.products
        self.meter.excess += entry.excess
        return result

    @contextlib.contextmanager
    def _keeping(self, *names: str) -> Iterator[_Keep]:
        """Keeps what is made in the scope with its cost, unless Ctrl-C or a time limit has cut it short.

        Of several results each but the last says what it has cost.
        """
        meter = self.meter
        before, excess, late = self.spent, len(meter.excess), meter.late
        results: list[tuple[object, int]] = []
        meter.late = False
        try:
            yield lambda result, products=0: results.append((result, products))
        finally:
            whole = not (meter.late or meter.interrupted)
            meter.late = meter.late or late
        if not results or not whole:
            return
        last = self.spent - before - sum(products for _, products in results[:-1])
        costs = [*(products for _, products in results[:-1]), last]
        beyond = [*[[]] * (len(results) - 1), meter.excess[excess:]]
        meter.journal.add_all(zip(names, (result for result, _ in results), costs, beyond, strict=True))

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

    def watched(self, hessian: CurvatureOperator) -> SymmetricOperator:
        """The operator within this budget, telling `progress` after each product."""
        within, hosts = hessian.within(self), self.meter.hosts
        return Watched(within if hosts is None else hosts.over_batches(within), self.tick)

    def hosts_for(self, runs: object) -> int:
        """How many hosts make such runs."""
        return 1 if self.meter.hosts is None else self.meter.hosts.runs_at_once(runs)

    def tell(self, stage: str) -> None:
        """Says what is being done from now on."""
        self.meter.stage = stage
        if self.meter.pace is not None:
            self.meter.pace.begin_stage(self.meter.spent())
        self.tick()

    def plan(self, products: int) -> None:
        """Plans this many products in all, for the time left."""
        self.meter.pace = Pace.of(products, self.meter.spent())

    def leave_compilation_behind(self) -> None:
        """The first products of the stage are done."""
        if self.meter.pace is not None:
            self.meter.pace.leave_compilation_behind(self.meter.spent())

    @contextlib.contextmanager
    def planned_as(self, cost: int) -> Iterator[None]:
        """A stage of this planned cost, whose real one takes its place in the plan when it is over."""
        pace, begun = self.meter.pace, self.spent
        planned = None if pace is None else pace.planned
        yield
        if pace is not None and planned is not None:
            pace.planned = planned - cost + self.spent - begun

    def expect(self, more: int) -> None:
        """Adds to the planned products what a stage has found that it takes."""
        if self.meter.pace is not None:
            self.meter.pace.planned += more

    def seconds_left(self, more: int = 0) -> float | None:
        """Seconds until the plan is done, and more products than it has; None while that is not known."""
        pace, deadline = self.meter.pace, self.meter.deadline
        if pace is None:
            return None
        left, most = pace.planned + more - self.spent, self.meter.most
        if most is not None:
            left = min(left, most - self.spent)
        return pace.seconds_left(self.meter.spent(), left, deadline)

    def tick(self, reading: str = "") -> None:
        """Says how far the work is, or what a measurement has found."""
        if self.meter.progress is not None:
            left = self.seconds_left()
            self.meter.progress(Progress(self.meter.stage, self.spent, reading=reading, seconds_left=left))

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
