"""The analysis: one measurement after the other of a trained model, within one budget, joined into one answer."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import attrs

from sdkeras.dimension.bounds import Facts, facts_along, facts_over
from sdkeras.dimension.sampling import Outcome
from sdkeras.errors import BudgetError, Interrupted, ModelError
from sdkeras.estimators.select import steps_of
from sdkeras.files.keras_types import Data, Model
from sdkeras.linalg.memory import memory_limit
from sdkeras.operators.hessian import HessianOperator
from sdkeras.reporting.numbers import headline, number, with_stderr
from sdkeras.results.answers import Analysis
from sdkeras.results.arrays import Value
from sdkeras.results.note import Note
from sdkeras.results.plans import Plan
from sdkeras.results.progress import INTERRUPT, STATUS, Progress
from sdkeras.runs import assumptions, lyapunov, measure
from sdkeras.runs.assumptions import findings
from sdkeras.runs.budget import KEPT, Budget, Meter, Notes, resources, whole_budget
from sdkeras.runs.edge import edge, edge_of_stability
from sdkeras.runs.full_map import FullMap
from sdkeras.runs.layers import layers
from sdkeras.runs.options import LyapunovOptions, Options, takes_options
from sdkeras.runs.plan import planned
from sdkeras.runs.problem import Problem, read_problem
from sdkeras.runs.snapshots import supremum
from sdkeras.training_step import settings
from sdkeras.training_step.map import UpdateMap

_T = TypeVar("_T")

# Codes of the notes about what a limit has left out or ended.
_LIMITED = ("not-measured", "budget-ended", "no-supremum", "time-limit", "limit-on-products")


@takes_options(Options)
def analyze(model: Model, data: Data, options: Options) -> Analysis:
    """Hessian, edge of stability and sharpness dimension of a trained Keras model.

    Args:
        model: A `keras.Model`, compiled as it was trained.
        data: (x, y[, sample_weight]), a batched `tf.data.Dataset`, or a `keras.utils.PyDataset`.
        options: {options}

    Returns:
        The answer. After Ctrl-C it holds what was measured until then, with `partial` set: the runs so far, or None
        where fewer than three runs are done.

    Raises:
        SdkerasError: Unusable model, data or options; see its subclasses.
    """
    started = time.monotonic()
    problem, notes, budget = _read(model, data, options, started)
    with budget.required("tracing and verification"):
        analysis = _verified(problem, list(notes), budget)
    with budget.interruptible():
        analysis.measure()
    return analysis.answer(started)


@takes_options(Options)
def plan(model: Model, data: Data, options: Options) -> Plan:
    """Steps and cost of `analyze` with the same arguments, from one timed gradient; computes nothing else."""
    problem, _, budget = _read(model, data, options, time.monotonic())
    steps = _training_steps(problem)
    if steps:
        settings.check_rates(problem.training_optimizer()[0], steps)
    planned_analysis = planned(problem, budget.resources, steps)
    gc.collect()  # compiled functions are cyclic; an analysis that follows needs their memory
    return planned_analysis


def _read(model: Model, data: Data, options: Options, started: float) -> tuple[Problem, Notes, Budget]:
    """The problem, and a budget that counts its products.

    Raises:
        ModelError: The requested learning rate does not exist.
    """
    if options.progress is not None:
        options.progress(Progress("reading the model and the data", 0))
    problem, notes = read_problem(model, data, options)
    if problem.rate is None and options.learning_rate is not None:
        raise ModelError(problem.no_rate)
    for name in problem.estimators.spectrum if problem.maps_spectra else ():  # each must know the map
        measure.spectrum_estimator(problem, name)
    loss, limit = problem.loss, options.time_limit
    # Once, since what memory is free falls as bases and matrices are made.
    room = resources(loss.size, loss.dtype.itemsize, memory_gb=options.memory_gb, workers=options.workers)
    deadline = None if limit is None else started + limit
    budget = whole_budget(room, Meter(progress=options.progress, most=options.max_hvps, deadline=deadline))
    budget.meter.excess.append(("reading", *budget.meter.beyond()))
    return problem, notes, budget


def _training_steps(problem: Problem) -> int:
    """How many steps of training the analysis takes or differentiates."""
    options = problem.options
    snapshots = (options.snapshots or 1) - 1 if problem.maps_spectra else 0
    steps = 1 if problem.is_full else snapshots * (options.every or 0)
    if options.lyapunov is None:
        return steps
    return max(steps, options.lyapunov_transient + options.lyapunov_steps)


def _verified(problem: Problem, notes: list[Note], budget: Budget) -> _Analysis:
    """Traces and verifies the products, and the training step where it is needed."""
    options, steps = problem.options, _training_steps(problem)
    checks: dict[str, Value] = {"product_mode": options.product_mode, "allow_unverified": options.allow_unverified}
    budget.tell("compiling and verifying the Hessian-vector product")
    memory = memory_limit(options.memory_gb)
    hessian = HessianOperator(problem.loss, workers=budget.resources.workers, memory=memory, **checks)
    budget.meter.spent = lambda: hessian.num_products
    notes += findings(problem, hessian)
    if problem.rate is None and not problem.is_full:
        notes.append(Note("no-learning-rate", measure.without_a_rate(problem)))
    analysis = _Analysis(problem, budget, notes, hessian)
    if steps:  # before the work, so that an optimizer without a step is reported at once
        budget.tell("compiling and verifying the training step")
        optimizer, more = problem.training_optimizer()
        settings.check_rates(optimizer, steps)
        notes += more
        analysis.step = step = UpdateMap(problem.loss, optimizer, **checks)
        _trajectory(options).check_exponents(step.size, step.num_weights)
        if problem.is_full:
            budget.tell("scaling of the optimizer's slots")
            analysis.full = FullMap(step, options.seed)
    return analysis


def _trajectory(options: Options) -> LyapunovOptions:
    return LyapunovOptions(
        num_exponents=options.lyapunov,
        num_steps=options.lyapunov_steps,
        transient=options.lyapunov_transient,
        seed=options.seed,
    )


@attrs.define(eq=False)
class _Analysis:
    """An analysis so far: its estimates of SD, and by name the fields of the answer that are measured beside them."""

    problem: Problem
    budget: Budget
    notes: list[Note]
    hessian: HessianOperator
    step: UpdateMap | None = None
    full: FullMap | None = None
    outcomes: list[Outcome] = attrs.field(factory=list)
    found: dict[str, Value] = attrs.field(factory=dict)
    facts: Facts | None = None
    bound_inputs: Mapping[str, float] = attrs.field(factory=dict)

    def measure(self) -> None:
        """Takes all measurements, in order of importance; Ctrl-C keeps the finished ones."""
        problem, hessian, options = self.problem, self.hessian, self.problem.options
        before = self._before_dimension()
        eigenvalues_share = before.part(measure.EIGENVALUES)
        pairs = self._take(
            measure.EXTREMES,
            lambda: measure.extremes(problem, hessian, eigenvalues_share),
            lambda pairs: f"largest eigenvalue {number(pairs.values[0])}, smallest {number(pairs.values[-1])}",
        )
        verdict = self._take(
            "edge of stability", lambda: edge(problem, hessian, before, pairs), lambda found: found.verdict
        )
        trace = self._take(
            measure.TRACE,
            lambda: measure.trace(problem, hessian, before),
            lambda found: f"trace {with_stderr(found.value, found.stderr)}",
        )
        self.found["hessian"] = measure.hessian_summary(pairs, trace)
        self.found["edge_of_stability"] = verdict or edge_of_stability(
            problem, None, "interrupted before it was measured"
        )
        if problem.is_full or problem.maps_spectra:
            for name in problem.estimators.spectrum:
                self._dimension(name)
        else:
            share = self._part(problem.estimators.spectrum[-1])
            self.found["spectrum"] = self._take("spectrum", lambda: measure.spectrum_alone(problem, hessian, share))
        if options.per_layer:
            whole = self.outcomes[0].sharpness_dimension if self.outcomes else None
            half = self.budget.part(0.5)
            self.found["layers"] = self._take("layers", lambda: layers(problem, hessian, half, whole)) or ()
        if self.step is not None and options.lyapunov is not None and not self.budget.interrupted:
            self._lyapunov(self.step)

    def _take(
        self, what: str, stage: Callable[[], tuple[_T, Notes]], words: Callable[[_T], str] | None = None
    ) -> _T | None:
        """A stage's record, told in words, with its notes among ours; None where the budget had no room for it."""
        record, notes = self.budget.measured(what, stage)
        self.notes += notes
        if record is not None and words is not None and not self.budget.interrupted:
            self.budget.tick(words(record))
        return record

    def _dimension(self, name: str) -> None:
        """SD by one spectrum estimator; after the first also the bounds and the supremum over snapshots."""
        problem, first = self.problem, not self.outcomes
        snapshots = problem.options.snapshots or 1 if first else 1
        share = self.budget.part(1 / (snapshots + self._num_later(name)))
        # The runs of an exact one may cost any number of products.
        how = measure.sampling(problem, name, required=first and not problem.estimators.can(name).exact)
        runs = self.full or measure.HessianRuns(problem, self.hessian)
        outcome = self._take(
            f"sharpness dimension ({name})",
            lambda: measure.dimension(problem, runs, share, how),
            lambda outcome: headline(outcome.sharpness_dimension),
        )
        if outcome is None:
            return
        self.outcomes.append(outcome)
        if not first:
            return
        if self.full is not None:
            self.notes += self.full.notes(outcome)
        self.facts = measure.facts(problem, outcome, runs.context(name).exponents, self.notes)
        self.bound_inputs = self._bound_inputs()
        if self.step is not None and problem.options.snapshots is not None and not self.budget.interrupted:
            self._supremum(self.step, outcome, self.facts)

    def _supremum(self, step: UpdateMap, outcome: Outcome, facts: Facts) -> None:
        """SD with the supremum over snapshots, from the minibatches of the first estimate; kept as far as it came."""
        name, later = outcome.sharpness_dimension.estimator, int(self.problem.options.snapshots or 1) - 1
        share = self._part(name, later)
        reached = self._take("supremum", lambda: supremum(self.problem, step, self.hessian, share, outcome))
        if reached is not None:
            self.found["supremum"], smallest = reached
            self.facts = attrs.evolve(facts_over(facts, self.found["supremum"]), smallest_exponent=smallest)

    def _lyapunov(self, step: UpdateMap) -> None:
        options = self.problem.options
        about = lyapunov.identity(step.optimizer, self.problem.model, self.problem.function_words)
        try:
            followed = lyapunov.follow(step, _trajectory(options), about=about, budget=self.budget)
        except Interrupted as ended:
            if not self.budget.interrupted:
                code = lyapunov.limit_code(self.budget.stop(options.lyapunov or 0))
                self.notes.append(Note(code, f"there are no Lyapunov exponents: {ended}"))
            return
        self._add(followed.warnings)
        self.found["lyapunov"] = followed.summary
        if self.facts is not None:
            self.facts = facts_along(self.facts, followed.summary.dimension)

    def answer(self, started: float) -> Analysis:
        """Build the answer: results with their caveats."""
        problem, options, interrupted = self.problem, self.problem.options, self.budget.interrupted
        if options.snapshots is not None and "supremum" not in self.found and problem.maps_spectra:
            reason = "it was interrupted" if interrupted else "the budget ended"
            words = f"{reason} before one minibatch was done at every snapshot: there is no supremum."
            self.notes.append(Note("no-supremum", words))
        for place, outcome in enumerate(self.outcomes):
            prefix = f"{outcome.sharpness_dimension.estimator}: " if place else ""
            self._add(tuple(attrs.evolve(note, message=prefix + note.message) for note in outcome.warnings))
        self.notes += self.budget.notes_of_excess(options.time_limit)
        limited = any(note.code in _LIMITED for note in self.notes)
        return measure.joined(
            problem,
            self.hessian,
            self.outcomes,
            (self.full or problem).exponents if self.outcomes else None,
            cost=(self.hessian.num_products, started),
            bounds=() if self.facts is None else measure.bounds(problem, self.facts, self.bound_inputs),
            warnings=tuple(dict.fromkeys(self.notes)),
            partial=interrupted,
            status=STATUS[INTERRUPT if interrupted else self.budget.limit() if limited else ""],
            **self.found,
        )

    def _bound_inputs(self) -> Mapping[str, float]:
        """Inputs of the bounds: those known, and estimates of others where they are asked for."""
        options, singles = self.problem.options, None
        if options.estimate_bound_inputs:
            late = self.budget.stop()
            if late:
                self.notes.append(Note("not-measured", f"inputs of the bounds: {BudgetError(late)}"))
            else:
                self.budget.tell("inputs of the bounds")
                singles = assumptions.loss_of_single_examples(self.problem)
        return assumptions.inputs_at(singles, options.bound_inputs)

    def _add(self, notes: Notes) -> None:
        """Add the notes whose code is not there yet."""
        known = {note.code for note in self.notes}
        self.notes += [note for note in notes if note.code not in known]

    # Shares of the budget

    def _part(self, name: str, parts: int = 1) -> Budget:
        """A stage's share of the budget left; what comes after this spectrum estimator gets as much, stage by stage."""
        return self.budget.part(parts / (parts + self._num_later(name)))

    def _num_later(self, name: str) -> int:
        """Stages after a spectrum estimator of the whole: other estimators, the layers, the trajectory."""
        names, options = self.problem.estimators.spectrum, self.problem.options
        return len(names) - 1 - names.index(name) + options.per_layer + (options.lyapunov is not None)

    def _before_dimension(self) -> Budget:
        """Budget of the stages before the sharpness dimension: they leave its first run, if that has room."""
        share, chosen = self.budget.part(1 - KEPT), self.problem.estimators
        names = [name for name in chosen.spectrum if not chosen.can(name).exact]
        if share.most is None or self.budget.left is None or not names:
            return share
        size, bases = (self.problem.loss.size, 1) if self.full is None else (self.full.size, 2)
        steps = steps_of(measure.spectrum_estimator(self.problem, names[0])) or 0
        left = max(0, self.budget.left - bases * min(steps, size))
        return attrs.evolve(share, most=min(share.most, self.budget.spent + left))
