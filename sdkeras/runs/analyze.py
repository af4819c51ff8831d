"""The analysis: one measurement after the other of a trained model, within one budget, joined into one answer."""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import attrs
import keras
import numpy as np
import tensorflow as tf

from sdkeras._version import __version__
from sdkeras.dimension.bounds import Facts, facts_along, facts_over
from sdkeras.dimension.next_steps import next_steps
from sdkeras.dimension.sampling import Outcome
from sdkeras.errors import BudgetError, Interrupted, ModelError, counted
from sdkeras.estimators.select import steps_of
from sdkeras.files.atomic import shown
from sdkeras.files.keras_types import Data, Model, Optimizer
from sdkeras.linalg.memory import large_arrays_in
from sdkeras.linalg.vectors import norm
from sdkeras.operators.hessian import CurvatureOperator, HessianOperator
from sdkeras.operators.loss import evolved
from sdkeras.reporting.numbers import headline, number, with_error
from sdkeras.reporting.trackers.reporter import reporting
from sdkeras.results.answers import Analysis, AtInit, Draws, LayerSharpness, OperatorSpectrum
from sdkeras.results.arrays import Value
from sdkeras.results.codec import as_plain, from_plain
from sdkeras.results.dimension import EdgeOfStability, MeanSquareStability, Supremum
from sdkeras.results.earlier import about_log, check_size, with_earlier
from sdkeras.results.estimates import Eigenpairs, TraceEstimate
from sdkeras.results.lyapunov import LyapunovSummary
from sdkeras.results.note import Note
from sdkeras.results.plans import Plan
from sdkeras.results.progress import INTERRUPT, STATUS, Progress
from sdkeras.results.verification import Verification
from sdkeras.runs import assumptions, beside, losses, lyapunov, mean_square, measure
from sdkeras.runs.assumptions import findings
from sdkeras.runs.budget import KEPT, Budget, Meter, Notes, resources, room_to_verify, whole_budget
from sdkeras.runs.cluster import Cluster, join
from sdkeras.runs.declare import takes_options
from sdkeras.runs.edge import cost_of_edge, edge, edge_of_stability
from sdkeras.runs.full_map import FullMap
from sdkeras.runs.journal import Journal, journal
from sdkeras.runs.layers import layers
from sdkeras.runs.lyapunov_options import LyapunovOptions
from sdkeras.runs.options import Options
from sdkeras.runs.plan import planned, products_planned
from sdkeras.runs.problem import Problem, read_problem
from sdkeras.runs.serve import Chief, serve, telling_failures
from sdkeras.runs.snapshots import at_init, supremum
from sdkeras.training_step import settings
from sdkeras.training_step.map import UpdateMap

_T = TypeVar("_T")

_SUPREMUM = tuple[tuple[Supremum, float] | None, Notes]
# Relative difference of two gradients' norms from rounding on another device, at most.
_SAME_GRADIENT = 1e-3
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
    cluster = None if options.cluster is None else join(options.cluster, options.cluster_timeout)
    if cluster is not None and not cluster.is_chief:
        return _served(cluster, model, data, options, started)
    with reporting(options.report_to) as reporter, journal(options.checkpoint) as kept:
        problem, notes, budget = _read(model, data, options, started, kept)
        if cluster is not None:
            cluster.agree(_agreed(problem))
        with contextlib.nullcontext() if cluster is None else telling_failures(cluster), problem.loss.devices.scope():
            with budget.required("tracing and verification"):
                analysis = _verified(problem, list(notes), budget)
            chief = None if cluster is None else Chief.of(cluster, analysis.hessian, budget.resources)
            if chief is not None:
                budget.meter.hosts = chief
                own = budget.meter.spent
                budget.meter.spent = lambda: own() + chief.products
            with budget.interruptible(), large_arrays_in(budget.resources.bases_on_disk):
                analysis.measure()
            answer = analysis.answer(started)
        if chief is not None and cluster is not None:
            where = f"{cluster.count} hosts, {answer.provenance.device}"
            answer = attrs.evolve(answer, provenance=attrs.evolve(answer.provenance, device=where))
            chief.end(answer)
        reporter.analysis(answer)
        return answer


def _served(cluster: Cluster, model: Model, data: Data, options: Options, started: float) -> Analysis:
    """The chief's answer, after this host has worked for it."""
    problem, _, budget = _read(model, data, options, started, Journal())
    cluster.agree(_agreed(problem))
    with problem.loss.devices.scope(), large_arrays_in(budget.resources.bases_on_disk):
        memory = room_to_verify(options.memory_gb, problem.loss.devices)
        return serve(cluster, problem, _hessian(problem, budget, memory), budget)


@takes_options(Options)
def plan(model: Model, data: Data, options: Options) -> Plan:
    """Steps and cost of `analyze` with the same arguments, from timed gradients; computes nothing else."""
    started = time.monotonic()
    problem, _, budget = _read(model, data, options, started, Journal())
    reading = time.monotonic() - started
    steps = _training_steps(problem)
    if steps:
        settings.check_rates(problem.training_optimizer()[0], steps)
    with problem.loss.devices.scope():
        planned_analysis = planned(problem, budget.resources, steps, reading)
    gc.collect()  # compiled functions are cyclic; an analysis that follows needs their memory
    return planned_analysis


def _read(model: Model, data: Data, options: Options, started: float, kept: Journal) -> tuple[Problem, Notes, Budget]:
    """The problem, and a budget that counts its products; both as they were in the process that began the journal.

    Raises:
        ModelError: The requested learning rate does not exist.
        SdkerasError: The journal is about something else, or the log of another model.
    """
    if options.tell is not None:
        options.tell(Progress("reading the model and the data", 0))
    problem, notes = read_problem(model, data, options)
    if problem.rate is None and options.learning_rate is not None:
        raise ModelError(problem.no_rate)
    for name in problem.estimators.spectrum if problem.maps_spectra else ():  # each must know the map
        measure.spectrum_estimator(problem, name)
    loss, limit = problem.loss, options.time_limit
    if options.log is not None:
        check_size(options.log, loss.size)
    # Once, since what memory is free falls as bases and matrices are made.
    room = resources(
        loss.size,
        loss.dtype.itemsize,
        memory_gb=options.memory_gb,
        workers=options.workers,
        devices=loss.devices,
        scratch=options.scratch,
    )
    if kept.path is not None:
        kept.claim(_about(problem))
    if kept.fixed:
        words = f"going on from {shown(str(kept.path))}: {counted(len(kept), 'part')} done before"
        if options.tell is not None:
            options.tell(Progress(words, 0, reading=words))
        room = attrs.evolve(room, memory=kept.fixed["memory"], workers=kept.fixed["workers"])
        problem = attrs.evolve(problem, options=attrs.evolve(problem.options, product_mode=kept.fixed["product_mode"]))
    deadline = None if limit is None else started + limit
    meter = Meter(progress=options.tell, most=options.max_hvps, deadline=deadline, journal=kept)
    budget = whole_budget(room, meter)
    budget.meter.excess.append(("reading", *budget.meter.beyond()))
    return problem, notes, budget


def _about(problem: Problem) -> dict[str, str]:
    """All that an analysis is of, by name, beside its loss: options, weights, optimizer, data, and what computes."""
    options = attrs.asdict(problem.options, recurse=False)
    words = {"loss": losses.loss_words, "loss_fn": losses.function_name}
    about = {name: str(words[name](value) if name in words and value else value) for name, value in options.items()}
    for name in (
        "progress",
        "checkpoint",
        "log",
        "time_limit",
        "product_mode",
        "device",
        "scratch",
        "cluster",
        "cluster_timeout",
        "report_to",
    ):
        del about[name]
    optimizer = getattr(problem.compiled_as, "optimizer", None)
    state = hashlib.sha256()
    for variable in (*problem.compiled_as.weights, *getattr(optimizer, "variables", ())):
        state.update(np.ascontiguousarray(variable).tobytes())
    return {
        **about,
        "product_mode": problem.options.product_mode,
        "jit": str(problem.loss.gradients.jit),
        "weights or optimizer's state": state.hexdigest()[:16],
        "optimizer": "" if optimizer is None else _optimizer_words(optimizer),
        "data": problem.source.digest(),
        "versions": f"sdkeras {__version__}, TensorFlow {tf.__version__}, Keras {keras.__version__}",
    }


def _agreed(problem: Problem) -> dict[str, str]:
    """What the hosts of a cluster must have in common: the analysis, and where probes are drawn."""
    where = "an accelerator" if problem.loss.devices.on_device else "the processor"
    return {**_about(problem), "device (probes are drawn there)": where}


def _optimizer_words(optimizer: Optimizer) -> str:
    """Its class and settings, but for the name, which counts the optimizers of a process."""
    inner = settings.inner(optimizer)
    config = {name: value for name, value in inner.get_config().items() if name != "name"}
    return f"{type(inner).__name__} {json.dumps(config, sort_keys=True, default=lambda value: type(value).__name__)}"


def _fix(hessian: HessianOperator, operators: Mapping[str, CurvatureOperator], budget: Budget, memory: float) -> None:
    """Keeps in the journal what the numbers depend on beside the runs: the outcome of the checks, and the memory.

    Raises:
        SdkerasError: The journal is of another loss or architecture, whose gradient is another one.
    """
    kept = budget.meter.journal
    if kept.path is None:
        return
    gradient = norm(hessian.on_minibatch(0).gradient())
    # A batch is linearised at its second product: here, for those of a stage must not depend on what was made before.
    for operator in (hessian, *operators.values()):
        for _ in range(2 if operator.verification.linearized else 0):
            operator.matvec(np.zeros(operator.size, operator.dtype))
    if not kept.fixed:
        kept.fixed = {
            "limit": memory,
            "memory": budget.resources.memory,
            "workers": budget.resources.workers,
            "product_mode": hessian.verification.product_mode,
            "verification": as_plain(hessian.verification),
            "operators": beside.outcomes_of_checks(operators),
            "gradient": gradient,
            "products": budget.meter.spent(),
        }
        kept.save()
    elif abs(kept.fixed["gradient"] - gradient) > _SAME_GRADIENT * gradient:
        kept.refuse("the loss or the model")
    budget.meter.replayed = kept.fixed["products"] - budget.meter.spent()


def _training_steps(problem: Problem) -> int:
    """How many steps of training the analysis takes or differentiates."""
    options = problem.options
    snapshots = (options.snapshots or 1) - 1 if problem.maps_spectra else 0
    steps = 1 if problem.is_full else snapshots * (options.every or 0)
    if options.lyapunov is None:
        return steps
    return max(steps, options.lyapunov_transient + options.lyapunov_steps)


def _checks(options: Options) -> dict[str, Value]:
    return {"product_mode": options.product_mode, "allow_unverified": options.allow_unverified}


def _hessian(problem: Problem, budget: Budget, memory: float) -> HessianOperator:
    """Traces and verifies the products."""
    options = problem.options
    budget.tell("compiling and verifying the Hessian-vector product")
    fixed = budget.meter.journal.fixed
    hessian = HessianOperator(problem.loss, workers=budget.resources.workers, memory=memory, **_checks(options))
    if fixed:
        verification = from_plain(fixed["verification"], Verification, str(budget.meter.journal.path))
        hessian = evolved(hessian, verification=verification)
    others = budget.meter.spent
    budget.meter.spent = lambda: others() + hessian.num_products
    return hessian


def _verified(problem: Problem, notes: list[Note], budget: Budget) -> _Analysis:
    """Traces and verifies the products, and the training step where it is needed."""
    options, steps = problem.options, _training_steps(problem)
    fixed = budget.meter.journal.fixed
    memory = fixed["limit"] if fixed else room_to_verify(options.memory_gb, problem.loss.devices)
    operators = beside.verified_operators(problem, budget, memory)
    hessian = _hessian(problem, budget, memory)
    notes += findings(problem, hessian)
    if problem.rate is None and not problem.is_full:
        notes.append(Note("no-learning-rate", measure.without_a_rate(problem)))
    analysis = _Analysis(problem, budget, notes, hessian, operators)
    if steps:  # before the work, so that an optimizer without a step is reported at once
        budget.tell("compiling and verifying the training step")
        optimizer, more = problem.training_optimizer()
        settings.check_rates(optimizer, steps)
        notes += more
        analysis.step = step = UpdateMap(problem.loss, optimizer, **_checks(options))
        _trajectory(options).check_exponents(step.size, step.num_weights)
        if problem.is_full:
            budget.tell("scaling of the optimizer's slots")
            analysis.full = FullMap(step, options.seed)
    _fix(hessian, operators, budget, memory)
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
    operators: Mapping[str, CurvatureOperator]
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
        self.budget.plan(products_planned(problem, self._size, self.step is not None))
        eigenvalues_share = before.part(measure.EIGENVALUES)
        pairs = self._take(
            measure.EXTREMES,
            lambda: measure.extremes(problem, hessian, eigenvalues_share),
            lambda pairs: f"largest eigenvalue {number(pairs.values[0])}, smallest {number(pairs.values[-1])}",
            tuple[Eigenpairs, Notes],
            cost=measure.cost_of_extremes(problem),
        )
        if options.draws > 1:
            self.found["draws"] = self._take(
                measure.DRAWS,
                lambda: measure.draws(problem, hessian, before),
                lambda found: f"largest eigenvalue of each draw {', '.join(map(number, found.largest))}",
                tuple[Draws, Notes],
                cost=measure.cost_of_extremes(problem),
            )
        verdict = self._take(
            "edge of stability",
            lambda: edge(problem, hessian, before, pairs),
            lambda found: f"batch sharpness {with_error(found.batch_sharpness, found.batch_sharpness_stderr)}",
            tuple[EdgeOfStability, Notes],
            cost=cost_of_edge(problem),
        )
        trace = self._take(
            measure.TRACE,
            lambda: measure.trace(problem, hessian, before),
            lambda found: f"trace {with_error(found.value, found.stderr)}",
            tuple[TraceEstimate, Notes],
            cost=measure.cost_of_trace(problem),
        )
        self.found["hessian"] = measure.hessian_summary(pairs, trace)
        verdict = verdict or edge_of_stability(problem, None, "interrupted before it was measured")
        if mean_square.is_asked_for(problem):
            stable = self._take(
                mean_square.WHAT,
                lambda: mean_square.mean_square_stability(problem, before, self.operators.get("ggn")),
                lambda found: "" if found.kappa is None else f"{mean_square.WHAT} {number(found.kappa.value, 3)}",
                tuple[MeanSquareStability, Notes],
                cost=mean_square.cost_of_mean_square(problem),
            )
            verdict = attrs.evolve(verdict, mean_square_stability=stable)
        self.found["edge_of_stability"] = verdict
        if problem.is_full or problem.maps_spectra:
            for name in problem.estimators.spectrum:
                self._dimension(name)
        else:
            share = self._part(problem.estimators.spectrum[-1])
            self.found["spectrum"] = self._take("spectrum", lambda: measure.spectrum_alone(problem, hessian, share))
        self._beside()
        if options.per_layer:
            whole = self.outcomes[0].sharpness_dimension if self.outcomes else None
            half = self.budget.part(0.5)
            self.found["layers"] = (
                self._take(
                    "layers",
                    lambda: layers(problem, hessian, half, whole),
                    kind=tuple[tuple[LayerSharpness, ...], Notes],
                )
                or ()
            )
        if options.at_init:
            whole = self.outcomes[0].sharpness_dimension if self.outcomes else None
            rest = self.budget.part(0.5 if options.lyapunov is not None else 1.0)
            self.found["at_init"] = self._take(
                "the same net at initialisation",
                lambda: at_init(problem, hessian, rest, whole),
                kind=tuple[AtInit | None, Notes],
            )
        if self.step is not None and options.lyapunov is not None and not self.budget.interrupted:
            self._lyapunov(self.step)

    def _take(
        self,
        what: str,
        stage: Callable[[], tuple[_T, Notes]],
        words: Callable[[_T], str] | None = None,
        kind: Value = None,
        cost: int | None = None,
    ) -> _T | None:
        """A stage's record, told in words, with its notes among ours; None where the budget had no room for it.

        It is written to the checkpoint, one with a `kind` as a whole. `cost` are the products that are planned for it.
        """
        with contextlib.nullcontext() if cost is None else self.budget.planned_as(cost):
            record, notes = self.budget.measured(what, stage, kind)
        self.budget.meter.journal.save()
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

    def _beside(self) -> None:
        """The other operators, from the minibatches of the first estimate."""
        options, found = self.problem.options, list[OperatorSpectrum]()
        later = options.per_layer + options.at_init + (options.lyapunov is not None)
        outcome = self.outcomes[0] if self.outcomes else None
        for place, (kind, operator) in enumerate(self.operators.items()):
            share = self.budget.part(1 / (len(self.operators) - place + later))
            record = self._take(
                kind,
                functools.partial(beside.beside, self.problem, kind, operator, share, outcome),
                lambda found: "" if found.largest is None else f"largest eigenvalue {number(found.largest.value)}",
                cost=beside.cost_of_eigenvalues(self.problem),
            )
            if record is not None:
                found.append(record)
        if found:
            self.found["operators"] = tuple(found)

    def _supremum(self, step: UpdateMap, outcome: Outcome, facts: Facts) -> None:
        """SD with the supremum over snapshots, from the minibatches of the first estimate; kept as far as it came."""
        name, later = outcome.sharpness_dimension.estimator, int(self.problem.options.snapshots or 1) - 1
        share = self._part(name, later)
        reached = self._take(
            "supremum", lambda: supremum(self.problem, step, self.hessian, share, outcome), kind=_SUPREMUM
        )
        if reached is not None:
            self.found["supremum"], smallest = reached
            self.facts = attrs.evolve(facts_over(facts, self.found["supremum"]), smallest_exponent=smallest)

    def _lyapunov(self, step: UpdateMap) -> None:
        options = self.problem.options
        about = {"optimizer": _optimizer_words(step.optimizer), "loss": self.problem.loss_words}
        kept = self.budget.meter.journal
        # A file of its own while it lasts: the state of a trajectory is large, and written as often as it asks for.
        place = None if kept.path is None else f"{kept.path}.lyapunov"
        settings = attrs.evolve(_trajectory(options), checkpoint=place)

        def trajectory() -> tuple[LyapunovSummary, Notes]:
            followed = lyapunov.follow(step, settings, about=about, budget=self.budget)
            return followed.summary, followed.warnings

        try:
            summary, notes = self.budget.once("Lyapunov exponents", trajectory, tuple[LyapunovSummary, Notes])
        except Interrupted as ended:
            if not self.budget.interrupted:
                code = lyapunov.limit_code(self.budget.stop(options.lyapunov or 0))
                self.notes.append(Note(code, f"there are no Lyapunov exponents: {ended}"))
            return
        kept.save()
        if place is not None and "Lyapunov exponents" in kept:
            Path(place).unlink(missing_ok=True)
        self._add(notes)
        self.found["lyapunov"] = summary
        if self.facts is not None:
            self.facts = facts_along(self.facts, summary.dimension)

    def answer(self, started: float) -> Analysis:
        """Build the answer: results with their caveats, and what to do next."""
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
        answer = measure.joined(
            problem,
            self.hessian,
            self.outcomes,
            (self.full or problem).exponents if self.outcomes else None,
            cost=(self.budget.spent, started),
            bounds=() if self.facts is None else measure.bounds(problem, self.facts, self.bound_inputs),
            warnings=tuple(dict.fromkeys(self.notes)),
            partial=interrupted,
            status=STATUS[INTERRUPT if interrupted else self.budget.limit() if limited else ""],
            **self.found,
        )
        if options.log is not None:
            answer = with_earlier(answer, options.log)
            answer = attrs.evolve(answer, warnings=(*answer.warnings, *about_log(answer, options.log)))
        return attrs.evolve(answer, next_steps=next_steps(answer))

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

    @property
    def _size(self) -> int:
        """Of what the spectrum estimators see."""
        return self.hessian.size if self.full is None else self.full.size

    # Shares of the budget

    def _part(self, name: str, parts: int = 1) -> Budget:
        """A stage's share of the budget left; what comes after this spectrum estimator gets as much, stage by stage."""
        return self.budget.part(parts / (parts + self._num_later(name)))

    def _num_later(self, name: str) -> int:
        """Stages after a spectrum estimator of the whole: other estimators, the layers, the trajectory."""
        names, options = self.problem.estimators.spectrum, self.problem.options
        later = len(options.operator) + options.per_layer + options.at_init + (options.lyapunov is not None)
        return len(names) - 1 - names.index(name) + later

    def _before_dimension(self) -> Budget:
        """Budget of the stages before the sharpness dimension: they leave its first run, if that has room."""
        share, chosen = self.budget.part(1 - KEPT), self.problem.estimators
        names = [name for name in chosen.spectrum if not chosen.can(name).exact]
        if share.most is None or self.budget.left is None or not names:
            return share
        size, bases = self._size, 1 if self.full is None else 2
        steps = steps_of(measure.spectrum_estimator(self.problem, names[0])) or 0
        left = max(0, self.budget.left - bases * min(steps, size))
        return attrs.evolve(share, most=min(share.most, self.budget.spent + left))
