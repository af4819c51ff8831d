"""The supremum over snapshots: joins the trajectory of training, its spectra and the dimension."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import attrs
import numpy as np

from sdkeras.dimension import pooling
from sdkeras.dimension.exponents import ExponentMap
from sdkeras.dimension.sampling import Outcome
from sdkeras.dimension.supremum import estimate_supremum
from sdkeras.errors import BudgetError, NonFiniteError, counted
from sdkeras.estimators.select import estimate
from sdkeras.operators.hessian import HessianOperator
from sdkeras.results.arrays import Array
from sdkeras.results.dimension import Supremum
from sdkeras.results.estimates import Spectrum
from sdkeras.results.note import Note
from sdkeras.runs.budget import Budget, Notes
from sdkeras.runs.measure import sampling
from sdkeras.runs.problem import Problem, inverse_root
from sdkeras.seeds import seed_of_run
from sdkeras.training_step import settings
from sdkeras.training_step.flow import TrainingFlow
from sdkeras.training_step.map import UpdateMap

# What `UpdateMap` notes and the analysis does not know already; the rest is about its Jacobian.
_NOTES = ("callable-learning-rate", "constraints")

_Task = tuple[int, int]  # minibatch and snapshot
Mapper = Callable[[Callable[[_Task], Spectrum | None], list[_Task]], Iterable[Spectrum | None]]


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


@attrs.frozen(eq=False)
class Trajectory:
    """Snapshots of training, the checkpoint first.

    Attributes:
        snapshots: Snapshots that were reached.
        stopped_at: Step, counted from 1, at which it diverged, or None.
        reason: Why there are fewer than were asked for; "" where there are not.
    """

    snapshots: tuple[Snapshot, ...]
    stopped_at: int | None = None
    reason: str = ""

    def cut(self, place: int) -> Trajectory:
        """Without a snapshot where training has diverged so far that products overflow, and all after it."""
        step = self.snapshots[place].step
        reason = f"the trajectory has diverged at step {step:,}: Hessian-vector products there are NaN or infinite"
        return Trajectory(self.snapshots[:place], step, reason)


def follow(step: UpdateMap, hessian: HessianOperator, problem: Problem, budget: Budget) -> Trajectory:
    """Trains on from the checkpoint on arrays, and stops at fixed intervals: neither model nor optimizer changes.

    Step t is made on training's minibatch number t, with accumulation over k on t k .. t k + k - 1, as `TrainingFlow`
    does. A trajectory ends early where the state is NaN or infinite, the learning rate comes down to 0, the deadline
    passes or Ctrl-C comes; what was reached stays.

    Args:
        step: The map of the optimizer's step.
        hessian: At the checkpoint.
        problem: Problem to analyse; its options hold the number of snapshots and the steps between them.
        budget: When to stop.
    """
    every = int(problem.options.every or 0)
    total = (int(problem.options.snapshots or 1) - 1) * every
    snapshots = [Snapshot(0, hessian, problem.exponents, problem.scaling)]
    flow, stopped_at, reason = TrainingFlow(step), None, ""
    for count in range(1, total + 1):
        budget.tell(f"training step {count:,} of {total:,} to the next snapshots")
        try:
            flow.advance()
        except NonFiniteError:
            stopped_at, reason = count, f"the trajectory diverged at step {count:,}: NaN or infinity"
            break
        if count % every == 0:
            snapshot, reason = _snapshot(flow, step, hessian, problem)
            if snapshot is None:
                break
            snapshots.append(snapshot)
        ended = budget.stop()
        if ended and count < total:
            reason = f"{ended} ended the training at step {count:,}"
            break
    return Trajectory(tuple(snapshots), stopped_at, reason)


def _snapshot(
    flow: TrainingFlow, step: UpdateMap, hessian: HessianOperator, problem: Problem
) -> tuple[Snapshot | None, str]:
    """The snapshot where the training is; or None, and why its exponents are undefined."""
    index, state, held = flow.index, flow.position, flow.held
    rate = step.learning_rate(held)
    rate = problem.exponents.learning_rate if rate is None else rate
    if not (np.isfinite(rate) and rate > 0):
        return None, f"the schedule's learning rate is {rate:g} after step {index:,}"
    scaling = None
    if problem.exponents.preconditioned:
        scaling = inverse_root(
            settings.diagonal(step.optimizer, step.iterations(held), lambda name: step.slot(name, state))
        )
        if scaling is None:
            return None, f"the second moments are not all positive and finite after step {index:,}"
    view = hessian.at(hessian.loss.at(state[: step.num_weights]))
    return Snapshot(index, view, attrs.evolve(problem.exponents, learning_rate=rate), scaling), ""


def supremum(
    problem: Problem, step: UpdateMap, hessian: HessianOperator, budget: Budget, outcome: Outcome
) -> tuple[tuple[Supremum, float] | None, Notes]:
    """The supremum from the minibatches of a single-point estimate, whose runs are those of snapshot 0.

    Minibatches come in the estimate's order: all of them, or as many as the budget has room for. Run i has the same
    minibatch, dropout masks and probe at every snapshot.

    Returns:
        The supremum with the smallest exponent at any snapshot, or None where no minibatch was done at all of them.
    """
    trajectory = follow(step, hessian.within(budget), problem, budget)
    over = _Minibatches(problem, budget, trajectory, outcome)
    over.measure()
    notes = [*about_step(step)]
    if over.trajectory.reason:
        reached = len(over.trajectory.snapshots)
        words = f"the supremum is over {counted(reached, 'snapshot')}: {over.trajectory.reason}."
        notes.append(Note("snapshots", words))
    if 0 < len(over.runs) < len(outcome.runs):
        words = (
            f"the supremum is over {len(over.runs)} of the {len(outcome.runs)} minibatches of the single-point "
            "estimate: the budget ended, or Ctrl-C."
        )
        notes.append(Note("supremum-cut-short", words))
    return over.result() if over.runs else None, tuple(notes)


@attrs.define(eq=False)
class _Minibatches:
    """One minibatch after the other at every snapshot, until all are done or the budget ends.

    Attributes:
        runs: For each complete minibatch, the spectrum at every snapshot.
        spent: Products beyond those of the estimate at the checkpoint.
    """

    problem: Problem
    budget: Budget
    trajectory: Trajectory
    outcome: Outcome
    runs: list[list[Spectrum]] = attrs.field(factory=list)
    spent: int = 0

    def measure(self) -> None:
        how = sampling(self.problem, self.outcome.sharpness_dimension.estimator)
        wanted, group = len(self.outcome.runs), self.budget.resources.workers_for(exact=how.exact)
        dearest = max(run.num_matvecs for run in self.outcome.runs)
        with self.budget.resources.mapper(exact=how.exact) as mapper:
            while len(self.runs) < wanted:
                snapshots = len(self.trajectory.snapshots)
                cost = (snapshots - 1) * dearest
                count = next((k for k in (group, 1) if not self.budget.stop(k * cost)), 0)
                if count == 0:
                    return
                self.budget.tell(f"supremum over {snapshots} snapshots: minibatch {len(self.runs) + 1:,} of {wanted:,}")
                try:
                    self._extend(min(count, wanted - len(self.runs)), mapper)
                except BudgetError:  # inside a run: what is complete stays
                    return

    def _extend(self, count: int, mapper: Mapper) -> None:
        minibatches = range(len(self.runs), len(self.runs) + count)
        later = range(1, len(self.trajectory.snapshots))
        tasks = [(index, place) for index in minibatches for place in later]
        spectra = dict(zip(tasks, mapper(self._spectrum, tasks), strict=True))
        self.spent += sum(spectrum.num_matvecs for spectrum in spectra.values() if spectrum is not None)
        overflowed = [place for (_, place), spectrum in spectra.items() if spectrum is None]
        if overflowed:
            place = min(overflowed)
            self.trajectory = self.trajectory.cut(place)
            self.runs = [run[:place] for run in self.runs]
        for index in minibatches:
            after = (spectra[index, place] for place in range(1, len(self.trajectory.snapshots)))
            self.runs.append([self.outcome.runs[index], *(spectrum for spectrum in after if spectrum is not None)])

    def _spectrum(self, task: tuple[int, int]) -> Spectrum | None:
        """The spectrum of a minibatch at a snapshot; None where a product overflows."""
        index, place = task
        snapshot, estimate_of_sd = self.trajectory.snapshots[place], self.outcome.sharpness_dimension
        how = sampling(self.problem, estimate_of_sd.estimator)
        operator = self.problem.on_minibatch(snapshot.hessian, index, snapshot.scaling)
        try:
            one = how.of_a_run(estimate_of_sd.num_steps, self.budget.resources)
            spectrum: Spectrum = estimate(one, operator, seed_of_run(self.problem.options.seed, index))
        except NonFiniteError:
            return None
        return spectrum

    def result(self) -> tuple[Supremum, float]:
        """The supremum over the complete minibatches, at least one, and the smallest exponent."""
        snapshots, first = self.trajectory.snapshots, self.problem.exponents
        size = first.branches * self.problem.loss.size
        maps = list(enumerate(snapshot.exponents for snapshot in snapshots))
        repeated = (
            pooling.repeated_eigenvalues([run[place] for run in self.runs], exponents) for place, exponents in maps
        )
        correct = all(excess is None for excess in repeated)
        measures = []
        for run in self.runs:
            atoms = [(exponents, pooling.as_atoms(run[place], exponents, correct)) for place, exponents in maps]
            measures.append([(exponents(one.nodes), exponents.spread(one.weights)) for exponents, one in atoms])
        estimated = estimate_supremum(measures, size)
        record = Supremum(
            value=estimated.value,
            interval=estimated.interval,
            codimension=size - estimated.value,
            num_snapshots=len(snapshots),
            num_snapshots_asked=int(self.problem.options.snapshots or 1),
            every=int(self.problem.options.every or 0),
            steps=tuple(snapshot.step for snapshot in snapshots),
            learning_rates=tuple(snapshot.exponents.learning_rate for snapshot in snapshots),
            num_minibatches=len(self.runs),
            single_point_value=float(estimated.per_snapshot[0]),
            per_snapshot_values=estimated.per_snapshot,
            approximate=not all(spectrum.exact for run in self.runs for spectrum in run),
            estimator=self.outcome.sharpness_dimension.estimator,
            num_hvps=self.spent,
            map=first.name,
            coordinates=first.coordinates,
            state_size=size,
            stopped_at=self.trajectory.stopped_at,
        )
        return record, min(float(np.min(z)) for run in measures for z, _ in run)


def about_step(step: UpdateMap) -> Iterator[Note]:
    """Caveats on the steps between the snapshots."""
    check = step.verification
    if not check.passed:
        yield Note(
            "unverified",
            f"the training step FAILED its verification (step error {check.step_error:.2g}) and was used anyway: "
            "the snapshots may not be where training goes.",
        )
    yield from (Note(code, words) for code, words in step.notes if code in _NOTES)
