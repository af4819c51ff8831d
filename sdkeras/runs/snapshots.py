"""The dimension at other weights than the checkpoint's: the supremum over snapshots, and the net at initialisation."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence

import attrs
import numpy as np

from sdkeras.dimension import pooling
from sdkeras.dimension.exponents import ExponentMap
from sdkeras.dimension.sampling import AdaptiveSettings, Outcome
from sdkeras.dimension.supremum import estimate_supremum
from sdkeras.errors import BudgetError, ModelError, NonFiniteError, counted
from sdkeras.estimators.select import DEFAULTS
from sdkeras.operators import controls, precision
from sdkeras.operators.hessian import HessianOperator
from sdkeras.results.answers import AtInit
from sdkeras.results.arrays import Array
from sdkeras.results.dimension import SharpnessDimension, Supremum
from sdkeras.results.estimates import Spectrum
from sdkeras.results.note import Note
from sdkeras.runs.budget import Budget, Notes
from sdkeras.runs.measure import (
    HessianRuns,
    cost_of_extremes,
    cost_of_run,
    dimension,
    eigenpairs,
    sampling,
    with_evidence,
)
from sdkeras.runs.options import PRESETS
from sdkeras.runs.problem import Problem, inverse_root
from sdkeras.training_step import settings
from sdkeras.training_step.flow import TrainingFlow
from sdkeras.training_step.map import UpdateMap

# Probes whose quantile functions are averaged at each snapshot before the maximum is taken.
NUM_PROBES = 4
# What `UpdateMap` notes and the analysis does not know already; the rest is about its Jacobian.
_NOTES = ("callable-learning-rate", "constraints")
_AT_INIT = "the same net at initialisation"


@attrs.frozen(eq=False)
class Snapshot:
    """One state of the trajectory, this many steps from the checkpoint.

    Attributes:
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
    """The snapshots of training that were reached, the checkpoint first.

    `stopped_at` is the step, counted from 1, at which it diverged, or None; `reason` says why there are fewer than were
    asked for, "" where there are not.
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
        ended = budget.stop(count * step.microbatches)  # here a gradient counts as a product
        if ended and count < total:
            reason = f"{ended} ended the training at step {count:,}"
            break
    return Trajectory(tuple(snapshots), stopped_at, reason)


def _snapshot(
    flow: TrainingFlow, step: UpdateMap, hessian: HessianOperator, problem: Problem
) -> tuple[Snapshot | None, str]:
    """The snapshot where the training is; or None, and why its exponents are undefined."""
    index, state, held = flow.index, np.asarray(flow.position), flow.held
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

    Minibatches come in the estimate's order: its pilot's, or as many as the budget has room for. Each has the same
    dropout masks and the same probes at every snapshot. A quadrature's errors differ between snapshots, and a maximum
    takes the highest: the quantile functions of several probes are averaged before.

    Returns:
        The supremum with the smallest exponent at any snapshot, or None where no minibatch was done at all of them.
    """
    trajectory = follow(step, hessian.within(budget), problem, budget)
    trajectory, runs, spent = _spectra(problem, budget, trajectory, outcome)
    notes = [*about_step(step)]
    if trajectory.reason:
        reached = len(trajectory.snapshots)
        words = f"the supremum is over {counted(reached, 'snapshot')}: {trajectory.reason}."
        notes.append(Note("snapshots", words))
    wanted = _num_minibatches(problem, outcome)
    if 0 < len(runs) < wanted:
        words = f"the supremum is over {len(runs)} of {wanted} minibatches: the budget ended, or Ctrl-C."
        notes.append(Note("supremum-cut-short", words))
    name = outcome.sharpness_dimension.estimator
    return _result(problem, trajectory, runs, name, spent) if runs else None, tuple(notes)


def at_init(
    problem: Problem, hessian: HessianOperator, budget: Budget, estimate: SharpnessDimension | None
) -> tuple[AtInit | None, Notes]:
    """The same net at initialisation, by the same compiled products on the same minibatches, beside the `estimate`.

    A model that cannot be rebuilt, or whose products overflow there, gives a note.

    Raises:
        BudgetError: The budget has no room for the eigenvalue; SD is None where it has none for that.
    """
    options = problem.options
    budget.tell(_AT_INIT)
    try:
        view = hessian.at(hessian.loss.now(precision.at_initialisation(problem.model, options.seed)))
        quick = attrs.evolve(options, preset="quick", **PRESETS["quick"])
        return _at_init(attrs.evolve(problem, loss=view.loss, options=quick), view, budget, estimate), ()
    except (ModelError, NonFiniteError) as error:
        return None, (Note("no-initialisation", f"{_AT_INIT} was not measured: {error}"),)


def _at_init(problem: Problem, hessian: HessianOperator, budget: Budget, estimate: SharpnessDimension | None) -> AtInit:
    before, share = budget.spent, budget.part(0.5)
    sharpness = with_evidence(eigenpairs(problem, share.watched(hessian), share), 0)
    threshold = None if problem.limits is None or problem.preconditioned else problem.limits.upper
    outcome, reason = None, _no_dimension_at_init(problem)
    if not reason and estimate is not None:
        runs, how = HessianRuns(problem, hessian), attrs.evolve(sampling(problem, DEFAULTS["spectrum"]), of=_AT_INIT)
        runs.place = " at initialisation"
        outcome, _ = budget.measured("", lambda: dimension(problem, runs, budget, how))
        reason = "" if outcome is not None else "the budget left no room for its dimension"
    return AtInit(
        sharpness=sharpness,
        ratio=None if threshold is None else sharpness.value / threshold,
        sharpness_dimension=None if outcome is None else outcome.sharpness_dimension,
        num_hvps=budget.spent - before,
        reason=reason,
    )


def _no_dimension_at_init(problem: Problem) -> str:
    """Why there is none in the map and coordinates of the analysis, or ""."""
    if problem.is_full:
        return "the map full is of a step of the optimizer, which has no slots yet"
    if problem.rate is not None and problem.exponents.preconditioned:
        name = problem.optimizer.name if problem.optimizer else "the optimizer"
        return f"{name} has no second moments before its first step; the paper's map needs none (`map='hessian'`)"
    return problem.no_rate


def cost_of_at_init(problem: Problem) -> int:
    """Products of `at_init` to start with."""
    cost = cost_of_extremes(problem)
    if not _no_dimension_at_init(problem):
        how = sampling(problem, DEFAULTS["spectrum"])
        cost += (how.fixed_runs or PRESETS["quick"]["min_runs"]) * cost_of_run(how, problem.loss.size)
    return int(cost)


def _num_minibatches(problem: Problem, outcome: Outcome) -> int:
    """Minibatches of the supremum: those of a pilot, whole epochs where these are short; all of exact spectra."""
    exact = all(run.exact for run in outcome.runs)
    pilot = controls.frame(problem.loss).pilot(AdaptiveSettings().min_runs)
    return len(outcome.runs) if exact else min(len(outcome.runs), pilot)


def _spectra(
    problem: Problem, budget: Budget, trajectory: Trajectory, outcome: Outcome
) -> tuple[Trajectory, list[list[list[Spectrum]]], int]:
    """One minibatch after the other at every snapshot, until all are done or the budget ends.

    Returns:
        The trajectory, without snapshots where products overflow; for each complete minibatch and each snapshot the
        spectra of all its probes; the products beyond those of the estimate at the checkpoint.
    """
    room, how = budget.resources, sampling(problem, outcome.sharpness_dimension.estimator)
    estimator = how.of_a_run(outcome.num_steps, room)
    wanted, group = _num_minibatches(problem, outcome), room.workers_for(exact=how.exact)
    dearest = max(run.num_matvecs for run in outcome.runs)
    probes = range(1 if how.exact else NUM_PROBES)
    runs: list[list[list[Spectrum]]] = []
    spent = 0

    def spectrum(task: tuple[int, int, int]) -> Spectrum | None:
        index, place, probe = task
        snapshot = trajectory.snapshots[place]
        of_snapshot = HessianRuns(problem, snapshot.hessian, scaling=snapshot.scaling)
        of_snapshot.probe = probe
        try:
            return of_snapshot.run(estimator, index, budget, exact=False)
        except NonFiniteError:
            return None

    with room.mapper(exact=how.exact) as mapper:

        def at_each(tasks: list[tuple[int, int, int]]) -> tuple[Spectrum | None, ...]:
            return tuple(mapper(spectrum, tasks))

        while len(runs) < wanted:
            places = range(len(trajectory.snapshots))
            each = [(place, probe) for place in places for probe in probes][1:]  # the first is the estimate's own run
            count = next((k for k in (group, 1) if not budget.stop(k * len(each) * dearest)), 0)
            if count == 0:
                break
            budget.tell(f"supremum over {len(places)} snapshots: minibatch {len(runs) + 1:,} of {wanted:,}")
            indices = range(len(runs), min(len(runs) + count, wanted))
            tasks = [(index, place, probe) for index in indices for place, probe in each]
            try:
                spectra = budget.once(
                    f"{how.name}: runs {indices[0]} to {indices[-1]} at snapshots 0 to {len(places) - 1}",
                    functools.partial(at_each, tasks),
                    tuple[Spectrum | None, ...],
                )
            except BudgetError:  # inside a run: what is complete stays
                break
            spent += sum(one.num_matvecs for one in spectra if one is not None)
            found = dict(zip(tasks, spectra, strict=True)) | {(index, 0, 0): outcome.runs[index] for index in indices}
            overflowed = [place for (_, place, _), one in found.items() if one is None]
            if overflowed:
                trajectory = trajectory.cut(min(overflowed))
                runs = [run[: min(overflowed)] for run in runs]
            runs += [_of_minibatch(found, index, len(trajectory.snapshots), probes) for index in indices]
    return trajectory, runs, spent


def _of_minibatch(
    found: Mapping[tuple[int, int, int], Spectrum | None], index: int, num_snapshots: int, probes: Sequence[int]
) -> list[list[Spectrum]]:
    """The spectra of one minibatch, by snapshot and probe."""
    each = [[found[index, place, probe] for probe in probes] for place in range(num_snapshots)]
    return [[one for one in spectra if one is not None] for spectra in each]


def _result(
    problem: Problem, trajectory: Trajectory, runs: list[list[list[Spectrum]]], estimator: str, spent: int
) -> tuple[Supremum, float]:
    """The supremum over the complete minibatches, at least one, and the smallest exponent."""
    snapshots, first = trajectory.snapshots, problem.exponents
    size = first.branches * problem.loss.size
    readings = [
        [
            [pooling.read(spectrum, snapshot.exponents) for spectrum in spectra]
            for snapshot, spectra in zip(snapshots, run, strict=True)
        ]
        for run in runs
    ]
    correct = all(
        pooling.repeated_eigenvalues([one for run in readings for one in run[place]]) is None
        for place in range(len(snapshots))
    )
    measures = [
        [[(one.z, one.corrected_masses if correct else one.raw_masses) for one in spectra] for spectra in run]
        for run in readings
    ]
    known, num_probes = controls.population(problem.loss), len(measures[0][0])
    estimated = estimate_supremum(measures, size, known)
    half = [[spectra[: num_probes // 2] for spectra in run] for run in measures] if num_probes > 1 else []
    record = Supremum(
        value=estimated.value,
        interval=estimated.interval,
        codimension=size - estimated.value,
        num_snapshots=len(snapshots),
        num_snapshots_asked=int(problem.options.snapshots or 1),
        every=int(problem.options.every or 0),
        steps=tuple(snapshot.step for snapshot in snapshots),
        learning_rates=tuple(snapshot.exponents.learning_rate for snapshot in snapshots),
        num_minibatches=len(runs),
        single_point_value=float(estimated.per_snapshot[0]),
        per_snapshot_values=estimated.per_snapshot,
        approximate=not all(one.exact for run in runs for spectra in run for one in spectra),
        num_probes=num_probes,
        probe_bias=estimate_supremum(half, size, known).value - estimated.value if half else None,
        estimator=estimator,
        num_hvps=spent,
        map=first.name,
        coordinates=first.coordinates,
        state_size=size,
        stopped_at=trajectory.stopped_at,
    )
    return record, min(float(np.min(z)) for run in measures for spectra in run for z, _ in spectra)


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
