"""The supremum over snapshots: joins the trajectory of training, its spectra and the dimension."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import attrs
import numpy as np

from sdkeras.dimension import pooling
from sdkeras.dimension.exponents import ExponentMap
from sdkeras.dimension.sampling import Outcome
from sdkeras.dimension.supremum import estimate_supremum
from sdkeras.errors import BudgetError, NonFiniteError
from sdkeras.linalg.operators import SymmetricOperator
from sdkeras.operators.hessian import HessianOperator
from sdkeras.results.arrays import Array
from sdkeras.results.dimension import Supremum
from sdkeras.results.estimates import Spectrum
from sdkeras.results.note import Note
from sdkeras.runs.problem import Subject, inverse_root
from sdkeras.training_step import settings
from sdkeras.training_step.flow import TrainingFlow
from sdkeras.training_step.map import UpdateMap

# What `UpdateMap` notes and the analysis does not know already; the rest is about its Jacobian.
_NOTES = ("callable-learning-rate", "constraints")

Mapper = Callable[[Callable[[tuple[int, int]], Spectrum | None], list[tuple[int, int]]], "Iterator[Spectrum | None]"]


@attrs.frozen(eq=False)
class Snapshot:
    """One state of the trajectory.

    Attributes:
        step: Steps from the checkpoint.
        hessian: The Hessian at its weights, by the compiled products of the checkpoint's.
        exponents: The map, with the learning rate of the step from here.
        scaling: P^-1/2 of an adaptive optimizer here, or None.
    """

    step: int
    hessian: HessianOperator
    exponents: ExponentMap
    scaling: Array | None


@attrs.define(eq=False)
class Trajectory:
    """Snapshots of training, the checkpoint first.

    Attributes:
        snapshots: As many as were reached.
        stopped_at: Step, counted from 1, at which it diverged, or None.
        reason: Why there are fewer than were asked for; "" where there are not.
    """

    snapshots: list[Snapshot]
    stopped_at: int | None = None
    reason: str = ""


def follow(
    step: UpdateMap,
    hessian: HessianOperator,
    subject: Subject,
    *,
    count: int,
    every: int,
    deadline: float | None = None,
    tell: Callable[[str], None] = lambda stage: None,
) -> Trajectory:
    """Trains on from the checkpoint on arrays, and stops every so many steps: neither model nor optimizer changes.

    Step t is made on training's minibatch number t, with accumulation over k on t k .. t k + k - 1, as `TrainingFlow`
    does. A trajectory ends early where the state is NaN or infinite, the learning rate comes down to 0, or the
    deadline passes; what was reached stays.

    Args:
        step: The map of the optimizer's step.
        hessian: At the checkpoint.
        subject: What is analysed.
        count: Snapshots wanted, the checkpoint included.
        every: Steps between two.
        deadline: `time.monotonic()` at which to stop.
        tell: Told what is done.
    """
    made = Trajectory([Snapshot(0, hessian, subject.exponents, subject.scaling)])
    flow = TrainingFlow(step)
    total = (count - 1) * every
    for index in range(total):
        tell(f"training step {index + 1:,} of {total:,} to the next snapshots")
        try:
            flow.advance()
        except NonFiniteError:
            made.stopped_at = index + 1
            made.reason = f"the trajectory diverged at step {index + 1:,}: NaN or infinity"
            return made
        if (index + 1) % every == 0:
            snapshot, made.reason = _snapshot(index + 1, step, flow.position, flow.held, hessian, subject)
            if snapshot is None:
                return made
            made.snapshots.append(snapshot)
        if deadline is not None and time.monotonic() > deadline and index + 1 < total:
            made.reason = f"the time limit was reached at step {index + 1:,}"
            return made
    return made


def _snapshot(
    index: int, step: UpdateMap, state: Array, held: dict[str, Array], hessian: HessianOperator, subject: Subject
) -> tuple[Snapshot | None, str]:
    """The snapshot after so many steps; or None, and why its exponents are undefined."""
    rate = step.learning_rate(held)
    rate = subject.exponents.learning_rate if rate is None else rate
    if not (np.isfinite(rate) and rate > 0):
        return None, f"the schedule's learning rate is {rate:g} after step {index:,}"
    scaling = None
    if subject.exponents.preconditioned:
        scaling = inverse_root(
            settings.diagonal(step.optimizer, step.iterations(held), lambda name: step.slot(name, state))
        )
        if scaling is None:
            return None, f"the second moments are not all positive and finite after step {index:,}"
    view = hessian.at(hessian.loss.at(state[: step.num_weights]))
    return Snapshot(index, view, attrs.evolve(subject.exponents, learning_rate=rate), scaling), ""


class SupremumOverSnapshots:
    """The supremum from the minibatches of a single-point estimate, whose runs are those of snapshot 0.

    Minibatches come in the estimate's order: all of them, or as many as the budget has room for. Run i has the same
    minibatch, dropout masks and probe at every snapshot.

    Args:
        trajectory: The snapshots.
        outcome: The single-point estimate.
        subject: What is analysed.
        spectrum: (operator, i) -> the spectrum of run i.

    Attributes:
        runs: Of each complete minibatch the spectrum at every snapshot.
        smallest_exponent: The smallest exponent seen at any snapshot, once `result` is made.
    """

    def __init__(
        self,
        trajectory: Trajectory,
        outcome: Outcome,
        subject: Subject,
        spectrum: Callable[[SymmetricOperator, int], Spectrum],
    ) -> None:
        self.trajectory = trajectory
        self.outcome = outcome
        self.subject = subject
        self.spectrum = spectrum
        self.runs: list[list[Spectrum]] = []
        self.spent = 0

    @property
    def num_wanted(self) -> int:
        return len(self.outcome.runs)

    @property
    def products_per_minibatch(self) -> int:
        return (len(self.trajectory.snapshots) - 1) * max(run.num_matvecs for run in self.outcome.runs)

    def measure(
        self, *, group: int, mapper: Mapper, affords: Callable[[int], bool], tell: Callable[[str], None]
    ) -> None:
        """One minibatch after the other at every snapshot, until all are done or the budget ends.

        Args:
            group: Minibatches done side by side.
            mapper: Applies a function to tasks, in order; a thread pool's map, for example.
            affords: Whether there is room for so many products more.
            tell: Told what is done.
        """
        while len(self.runs) < self.num_wanted:
            count = next((k for k in (group, 1) if affords(k * self.products_per_minibatch)), 0)
            if count == 0:
                return
            tell(
                f"supremum over {len(self.trajectory.snapshots)} snapshots: minibatch {len(self.runs) + 1:,} of "
                f"{self.num_wanted:,}"
            )
            try:
                self._extend(count, mapper)
            except BudgetError:  # inside a run: what is complete stays
                return

    def _extend(self, count: int, mapper: Mapper) -> None:
        first = len(self.runs)
        last = min(first + count, self.num_wanted)
        later = range(1, len(self.trajectory.snapshots))
        tasks = [(index, place) for index in range(first, last) for place in later]
        found = dict(zip(tasks, mapper(self._one, tasks), strict=True))
        self.spent += sum(spectrum.num_matvecs for spectrum in found.values() if spectrum is not None)
        bad = [place for (_, place), spectrum in found.items() if spectrum is None]
        if bad:
            self._cut(min(bad))
        for index in range(first, last):
            after = (found[index, place] for place in range(1, len(self.trajectory.snapshots)))
            self.runs.append([self.outcome.runs[index], *(spectrum for spectrum in after if spectrum is not None)])

    def _one(self, task: tuple[int, int]) -> Spectrum | None:
        """The spectrum of a minibatch at a snapshot; None where a product overflows."""
        index, place = task
        snapshot = self.trajectory.snapshots[place]
        try:
            return self.spectrum(self.subject.on_minibatch(snapshot.hessian, index, snapshot.scaling), index)
        except NonFiniteError:
            return None

    def _cut(self, place: int) -> None:
        """Leaves out a snapshot where training has diverged so far that products overflow, and all after it."""
        step = self.trajectory.snapshots[place].step
        self.trajectory.snapshots = self.trajectory.snapshots[:place]
        self.trajectory.stopped_at = step
        self.trajectory.reason = f"the trajectory has diverged at step {step:,}: products there are NaN or infinite"
        self.runs = [run[:place] for run in self.runs]

    def result(self, count: int, every: int) -> Supremum:
        """The supremum over the complete minibatches, at least one."""
        snapshots, first = self.trajectory.snapshots, self.subject.exponents
        size = first.branches * self.subject.loss.size
        pairs = list(enumerate(snapshot.exponents for snapshot in snapshots))
        repeated = (
            pooling.repeated_eigenvalues([run[place] for run in self.runs], exponents) for place, exponents in pairs
        )
        correct = all(excess is None for excess in repeated)
        measures = []
        for run in self.runs:
            atoms = [(exponents, pooling.as_atoms(run[place], exponents, correct)) for place, exponents in pairs]
            measures.append([(exponents(one.nodes), exponents.spread(one.weights)) for exponents, one in atoms])
        found = estimate_supremum(measures, size)
        self.smallest_exponent = min(float(np.min(z)) for run in measures for z, _ in run)
        return Supremum(
            value=found.value,
            interval=found.interval,
            codimension=size - found.value,
            num_snapshots=len(snapshots),
            num_snapshots_asked=count,
            every=every,
            steps=tuple(snapshot.step for snapshot in snapshots),
            learning_rates=tuple(snapshot.exponents.learning_rate for snapshot in snapshots),
            num_minibatches=len(self.runs),
            single_point_value=float(found.per_snapshot[0]),
            per_snapshot_values=found.per_snapshot,
            approximate=not all(spectrum.exact for run in self.runs for spectrum in run),
            estimator=self.outcome.sharpness_dimension.estimator,
            num_hvps=self.spent,
            map=first.name,
            coordinates=first.coordinates,
            state_size=size,
            stopped_at=self.trajectory.stopped_at,
        )

    def warnings(self) -> Iterator[Note]:
        """What the reader must know of how far it came."""
        if self.trajectory.reason:
            reached = len(self.trajectory.snapshots)
            yield Note(
                "snapshots", f"the supremum is over {reached} snapshot{'s' * (reached > 1)}: {self.trajectory.reason}."
            )
        if 0 < len(self.runs) < self.num_wanted:
            yield Note(
                "supremum-cut-short",
                f"the supremum is over {len(self.runs)} of the {self.num_wanted} minibatches of the single-point "
                "estimate: the budget ended, or Ctrl-C.",
            )


def about_step(step: UpdateMap) -> Iterator[Note]:
    """What the reader must know of the steps between the snapshots."""
    check = step.verification
    if not check.passed:
        yield Note(
            "unverified",
            f"the training step FAILED its verification (step error {check.step_error:.2g}) and was used all the same: "
            "the snapshots may not be where training goes.",
        )
    yield from (Note(code, words) for code, words in step.notes if code in _NOTES)
