"""The analysis: joins loss, operators, estimators and dimension into one answer, or into a plan of it."""

from __future__ import annotations

import contextlib
import functools
import gc
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import attrs
import numpy as np

from sdkeras.dimension import stability
from sdkeras.dimension.bounds import Facts, bounds, facts_along, facts_over
from sdkeras.dimension.estimate import FEWEST_RUNS_FOR_AN_INTERVAL, Context
from sdkeras.dimension.exponents import Exponents
from sdkeras.dimension.sampling import AdaptiveSettings, Outcome, estimate_sharpness_dimension, pooled_spectrum
from sdkeras.errors import BudgetError, Interrupted, ModelError, SdkerasError, counted
from sdkeras.estimators.select import (
    Watched,
    capabilities,
    chosen,
    estimate,
    estimator_of_extremes,
    estimator_of_spectrum,
    for_analysis,
    held_to,
    settings_of,
    steps_of,
    with_steps,
)
from sdkeras.linalg.memory import memory_limit
from sdkeras.linalg.operators import DiagonallyScaledOperator, RestrictedOperator, SymmetricOperator
from sdkeras.operators.hessian import HessianOperator
from sdkeras.operators.loss import LossFn
from sdkeras.results.answers import Analysis, HessianSummary, LayerSharpness, SpectrumSummary
from sdkeras.results.arrays import Array
from sdkeras.results.bounds import Bound
from sdkeras.results.dimension import EdgeOfStability, SharpnessDimension, Supremum
from sdkeras.results.estimates import Eigenpairs, Spectrum, TraceEstimate
from sdkeras.results.lyapunov import LyapunovSummary
from sdkeras.results.measured import Measured
from sdkeras.results.note import Note
from sdkeras.results.plans import Plan
from sdkeras.results.progress import PRODUCTS, TIME, Progress
from sdkeras.runs import assumptions, full_map, lyapunov, problem
from sdkeras.runs import layers as layerwise
from sdkeras.runs.answers import compressed, model_info, without_a_rate
from sdkeras.runs.budget import KEPT, Budget, Resources, resources
from sdkeras.runs.edge import BatchSharpness, batch_sharpness, edge_of_stability, num_minibatches, target_error
from sdkeras.runs.full_map import FullMap, as_spectrum
from sdkeras.runs.lyapunov_settings import LyapunovSettings
from sdkeras.runs.notes import findings
from sdkeras.runs.options import DEFAULT_SAMPLES, DEFAULT_STEPS, DEFAULT_TRANSIENT, Options, check_options
from sdkeras.runs.plan import planned
from sdkeras.runs.problem import Subject
from sdkeras.runs.provenance import data_info, provenance
from sdkeras.runs.snapshots import SupremumOverSnapshots, about_step, follow
from sdkeras.seeds import seed_of_run
from sdkeras.training_step import settings as update
from sdkeras.training_step.map import UpdateMap

# What each of the two eigenvalue stages, and then the batch sharpness, may take of what is left before the sharpness
# dimension; the trace has the rest.
_EIGENVALUES = _BATCH_SHARPNESS = 0.5
# Seconds beyond the time limit, or share of it, that are not worth a note.
_NEGLIGIBLE, _NEGLIGIBLE_SHARE = 0.05, 0.01

# Lanczos steps: with three the coarser rule has two.
_FEWEST_STEPS = 3

_T = TypeVar("_T")


def analyze(
    model: Any,
    data: Any,
    *,
    batch_size: int | None = None,
    learning_rate: float | str | None = None,
    loss: Any = None,
    loss_fn: LossFn | None = None,
    class_weight: Mapping[int, float] | None = None,
    params: str | None = None,
    samples: int = DEFAULT_SAMPLES,
    mode: str = "train",
    map: str = "auto",
    dtype: str = "float32",
    product_mode: str = "auto",
    estimators: Sequence[str] = (),
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    exact: bool = False,
    exact_minibatches: int | None = None,
    runs: int | None = None,
    tolerance: float = 0.05,
    max_hvps: int | None = None,
    time_limit: float | None = None,
    memory_gb: float | None = None,
    seed: int = 0,
    allow_unverified: bool = False,
    per_layer: bool = False,
    lyapunov: int | None = None,
    lyapunov_steps: int = DEFAULT_STEPS,
    lyapunov_transient: int = DEFAULT_TRANSIENT,
    snapshots: int | None = None,
    every: int | None = None,
    bound_inputs: Mapping[str, float] | None = None,
    estimate_bound_inputs: bool = False,
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Analysis:
    """Hessian, edge of stability and sharpness dimension of a trained Keras model.

    Args:
        model: A `keras.Model`, compiled as it was trained.
        data: (x, y[, sample_weight]), a batched `tf.data.Dataset`, or a `keras.utils.PyDataset`.
        batch_size: That of training; default 32, or a dataset's own.
        learning_rate: In place of the optimizer's: a number; or, where it has a schedule, 'peak' or 'mean' over the
            steps so far, or 'step:N', the rate that step N used, counted from 0. Without a learning rate (0 at the end
            of a schedule, or several in a MultiOptimizer) threshold, ratio, exponents, sharpness dimension and bounds
            are None, and everything else is measured. The map 'full' takes the rates that the optimizer has.
        loss: Replaces the compiled one (needed for an uncompiled model): a name with arguments, 'huber:delta=0.1', a
            loss of Keras, or the name of a `loss_fn`, 'FILE.py:FUNCTION' or 'MODULE:FUNCTION'.
        loss_fn: Replaces the compiled loss by a function (model, batch) that runs the model itself, as a training step
            of one's own does; see `sdkeras.EmpiricalLoss`.
        class_weight: That of `fit`, which no file holds: weights by class, {0: 1.0, 1: 9.0}; others weigh 1.
        params: Regular expression of the trainable variables to analyse; all by default.
        samples: Random subset for the data-set Hessian. Minibatches are drawn from all the data.
        mode: 'train' or 'inference'.
        map: 'auto' takes the true step of the optimizer where it is known: SGD, with momentum on the state of weights
            and velocity; Adam, AdamW, Nadam and RMSprop with their second moments frozen as the step just taken left
            them (not training's own random dynamical system, in which they move). For every other optimizer, and where
            there are no second moments yet, it takes |1 - eta alpha|, and says so. 'hessian' takes
            |1 - eta alpha| always, as the paper does. 'full' takes the singular values of the real step's Jacobian on
            weights and slots, for any optimizer, in coordinates that the answer names and that its values depend on.
        dtype: 'float32' or 'float64'.
        product_mode: 'auto', 'reverse-over-reverse', 'forward-over-reverse' or 'finite-differences'.
        estimators: Names of estimators: spectrum ones (for the map 'full' singular_values ones) estimate SD, one
            after the other; an eigenpairs or trace one replaces the default for the data-set Hessian. Default: slq
            (golub-kahan), lanczos, randomized-trace.
        settings: Fields of estimators by name, for example {"slq": {"num_steps": 80}}.
        exact: Exact spectra of minibatches first (small models).
        exact_minibatches: How many of them; adaptive by default.
        runs: Runs (minibatch and probe) of each estimator that is not exact, in place of the tolerance.
        tolerance: Half-width of SD's interval wanted, relative to the codimension.
        max_hvps: Budget of Hessian-vector products for all that is measured, verification included; half of what
            verification leaves is kept for SD and what follows it. Tracing, verification and one run of SD are done
            even when it is exhausted, and a warning says by how much they exceeded it. A measurement for which it had
            no room is None, with the reason in a warning.
        time_limit: Budget of seconds from the start of `analyze`, likewise; a product under way is finished.
        memory_gb: Memory for bases and dense matrices.
        seed: Of everything random.
        allow_unverified: Go on with an operator that failed its verification.
        per_layer: Largest eigenvalue, trace and codimension of each layer's diagonal block as well.
        lyapunov: So many Lyapunov exponents along training from here as well (`sdkeras.lyapunov` has more settings).
            If they determine D_s, the bounds are taken at it.
        lyapunov_steps: Steps to average them over.
        lyapunov_transient: Steps made before, and discarded.
        snapshots: SD with the supremum of its definition as well, over so many states of training, this one the first;
            training goes on from here on a copy, with the real optimizer. The minibatches are those of the first
            estimate, so that both cost about so many times its products; with max_hvps or time_limit it is held to
            its share.
        every: Training steps between two snapshots.
        bound_inputs: Inputs of the generalization bounds by name, see `sdkeras.dimension.bounds.INPUTS`.
        estimate_bound_inputs: Estimate B and L, where they are not given, from single examples (lower ends).
        workers: Threads; default 1, or one per core where TensorFlow has one intra-op thread.
        progress: Called now and then.

    Returns:
        The answer. After Ctrl-C, what was measured until then, with `partial` set: the runs so far, or None where
        not even three runs are done.

    Raises:
        SdkerasError: Unusable model, data or options; see its subclasses.
    """
    started = time.monotonic()
    options = Options(
        batch_size=batch_size,
        learning_rate=learning_rate,
        loss=loss,
        loss_fn=loss_fn,
        class_weight=class_weight,
        params=params,
        samples=samples,
        mode=mode,
        map=map,
        dtype=dtype,
        product_mode=product_mode,
        estimators=tuple(estimators),
        settings=settings or {},
        exact=exact,
        exact_minibatches=exact_minibatches,
        runs=runs,
        tolerance=tolerance,
        max_hvps=max_hvps,
        time_limit=time_limit,
        memory_gb=memory_gb,
        seed=seed,
        allow_unverified=allow_unverified,
        per_layer=per_layer,
        lyapunov=lyapunov,
        lyapunov_steps=lyapunov_steps,
        lyapunov_transient=lyapunov_transient,
        snapshots=snapshots,
        every=every,
        bound_inputs=bound_inputs or {},
        estimate_bound_inputs=estimate_bound_inputs,
        workers=workers,
    )
    return _Analysis(model, data, options, progress, started).answer()


def plan(model: Any, data: Any, **options: Any) -> Plan:
    """What `analyze` would do with the same arguments, from one timed gradient; nothing else is computed."""
    options.pop("progress", None)
    options["estimators"] = tuple(options.get("estimators", ()))
    options["settings"] = options.get("settings") or {}
    options["bound_inputs"] = options.get("bound_inputs") or {}
    found = _Analysis(model, data, Options(**options), None, time.monotonic()).plan()
    gc.collect()  # compiled functions are cyclic; an analysis that follows needs their memory
    return found


@attrs.define
class _Found:
    """What an analysis has measured so far."""

    pairs: Eigenpairs | None = None
    edge: EdgeOfStability | None = None
    trace: TraceEstimate | None = None
    outcomes: list[Outcome] = attrs.field(factory=list)
    spectrum: SpectrumSummary | None = None
    supremum: Supremum | None = None
    facts: Facts | None = None
    bound_inputs: Mapping[str, float] = attrs.field(factory=dict)
    bounds: tuple[Bound, ...] = ()
    layers: list[LayerSharpness] = attrs.field(factory=list)
    lyapunov: LyapunovSummary | None = None
    partial: bool = False


class _Analysis:
    """One analysis from its inputs to its answer; methods in the order in which they run."""

    def __init__(
        self,
        model: Any,
        data: Any,
        options: Options,
        progress: Callable[[Progress], None] | None,
        started: float,
    ) -> None:
        self.options = options
        self.started = started
        self.progress = progress
        self.full: FullMap | None = None
        limit = options.time_limit
        self.budget = Budget(self._spent, options.max_hvps, None if limit is None else started + limit)
        self.exceeded: list[tuple[str, int, float]] = []
        self.estimators = chosen(options)
        check_options(options)
        self._tell("reading the model and the data")
        self.subject = Subject(model, data, options)
        self.loss, self.warnings = self.subject.loss, self.subject.warnings
        if self.subject.rate is None and options.learning_rate is not None:
            raise ModelError(self.subject.no_rate)
        for name in self.estimators.spectrum if self._maps_spectra else ():  # each must know the map
            estimator_of_spectrum(name, options.settings.get(name, {}), self.subject.exponents)
        # Once, since what memory is free falls as bases and matrices are made.
        self.resources = resources(
            self.loss.size, self.loss.dtype.itemsize, memory_gb=options.memory_gb, workers=options.workers
        )
        self.exceeded.append(("reading", *self.budget.beyond()))

    # The work

    def answer(self) -> Analysis:
        options = self.options
        with self._required("tracing and verification"):
            self._tell("compiling and verifying the Hessian-vector product")
            hessian = HessianOperator(
                self.loss,
                product_mode=options.product_mode,
                allow_unverified=options.allow_unverified,
                workers=self.resources.workers,
                memory=memory_limit(options.memory_gb),
            )
            self.hessian = hessian
            self.warnings += findings(self.subject, hessian)
            if self.subject.rate is None and options.map != "full":
                self._warn("no-learning-rate", without_a_rate(self.subject))
            # Before the work, so that an optimizer without a step is told at once.
            step = self._training_step()
            if step is not None and options.map == "full":
                self._tell("scaling of the optimizer's slots")
                self.full = FullMap(step)
        found = _Found()
        try:
            self._measure(found, step)
            if step is not None and options.lyapunov is not None:
                self._lyapunov(step, found)
        except KeyboardInterrupt:
            found.partial = True
        if options.snapshots is not None and found.supremum is None and self._maps_spectra:
            reason = "it was interrupted" if found.partial else "the budget ended"
            self._warn(
                "no-supremum", f"{reason} before one minibatch was done at every snapshot: there is no supremum."
            )
        first = found.outcomes[0] if found.outcomes else None
        for outcome in found.outcomes:
            own = "" if outcome is first else f"{outcome.sharpness_dimension.estimator}: "
            self._add(attrs.evolve(note, message=own + note.message) for note in outcome.warnings)
        self._tell_of_excess()
        return Analysis(
            provenance=provenance(
                self.subject.source,
                seed=options.seed,
                dtype=options.dtype,
                num_hvps=hessian.num_products,
                started=self.started,
            ),
            model=model_info(self.subject, self.options.product_mode),
            data=data_info(self.subject.source, self.loss.num_examples),
            optimizer=self.subject.optimizer_info(),
            verification=hessian.verification,
            hessian=_summary(found.pairs, found.trace),
            sharpness_dimension=None if first is None else first.sharpness_dimension,
            estimates=tuple(outcome.sharpness_dimension for outcome in found.outcomes),
            rds_sharpness=None if first is None else first.rds_sharpness,
            edge_of_stability=found.edge or edge_of_stability(self.subject, None, "interrupted before it was measured"),
            spectrum=found.spectrum if first is None else compressed(first.nodes, first.weights, self._operator()),
            bounds=found.bounds,
            layers=tuple(found.layers),
            lyapunov=found.lyapunov,
            supremum=found.supremum,
            warnings=tuple(self.warnings),
            partial=found.partial,
        )

    def _measure(self, found: _Found, step: UpdateMap | None) -> None:
        """Everything that takes time, in order of importance; what is found stays when Ctrl-C ends it."""
        before = self._before_dimension()
        found.pairs = self._measured(
            "largest and smallest eigenvalue of the data-set Hessian",
            lambda: self._extremes(before.part(_EIGENVALUES)),
        )
        found.edge = self._edge(before, found.pairs)
        found.trace = self._measured("trace of the data-set Hessian", lambda: self._trace(self.hessian.within(before)))
        if self.full is None and not self._maps_spectra:
            self._spectrum_alone(found)
        for name in self.estimators.spectrum if self.full is not None or self._maps_spectra else ():
            required = (
                not found.outcomes and not self.estimators.can(name).exact
            )  # whose runs may cost any number of products
            snapshots = 1 if found.outcomes else self.options.snapshots or 1
            part = self.budget.part(1 / (snapshots + self._num_later(name)))
            outcome = self._measured(
                f"sharpness dimension ({name})", functools.partial(self._dimension, name, part, required=required)
            )
            if outcome is None:
                continue
            found.outcomes.append(outcome)
            if len(found.outcomes) == 1:
                if self.full is not None:
                    self.warnings += self.full.warnings(outcome)
                found.facts, found.bound_inputs = self._facts(outcome), self._bound_inputs()
                found.bounds = self._bounds(found.facts, found.bound_inputs)
            if outcome.interrupted:
                raise KeyboardInterrupt
            if step is not None and self.options.snapshots is not None and len(found.outcomes) == 1:
                self._supremum(step, found, outcome)
        if self.options.per_layer:
            whole = found.outcomes[0].sharpness_dimension if found.outcomes else None
            for layer in self._layers(whole):
                found.layers.append(layer)
            self._tell_of_cut_layers(found.layers)

    def _training_step(self) -> UpdateMap | None:
        """The map of the optimizer's step, where Lyapunov exponents, its singular values or snapshots are asked for."""
        steps = self._training_steps()
        if not steps:
            return None
        self._tell("compiling and verifying the training step")
        self.stepper = self._stepper(steps)
        step = UpdateMap(
            self.loss,
            self.stepper,
            product_mode=self.options.product_mode,
            allow_unverified=self.options.allow_unverified,
        )
        self._trajectory().check_exponents(step.size, step.num_weights)
        return step

    def _training_steps(self) -> int:
        """How many steps of training the analysis takes or differentiates."""
        options = self.options
        snapshots = (options.snapshots or 1) - 1 if self._maps_spectra else 0
        steps = 1 if options.map == "full" else snapshots * (options.every or 0)
        if options.lyapunov is None:
            return steps
        return max(steps, options.lyapunov_transient + options.lyapunov_steps)

    def _stepper(self, steps: int) -> Any:
        """The optimizer of these steps.

        Raises:
            ModelError: None is known, or its learning rate is 0 at all of them.
        """
        stepper = problem.training_optimizer(
            self.subject.compiled_as,
            self.loss,
            self.options.learning_rate,
            changed=self.subject.model is not self.subject.compiled_as,
            warnings=self.warnings,
        )
        update.check_rates(stepper, steps)
        return stepper

    def _trajectory(self) -> LyapunovSettings:
        options = self.options
        return LyapunovSettings(
            num_exponents=options.lyapunov,
            num_steps=options.lyapunov_steps,
            transient=options.lyapunov_transient,
            seed=options.seed,
        )

    def _lyapunov(self, step: UpdateMap, found: _Found) -> None:
        try:
            followed = lyapunov.follow(
                step,
                self._trajectory(),
                about=lyapunov.identity(self.stepper, self.subject.model, self.subject.function_words),
                deadline=self.budget.deadline,
                max_products=self.budget.most,
                progress=self.progress,
            )
        except Interrupted as ended:
            code = lyapunov.limit_code(self.budget.over(self.options.lyapunov or 0))
            self._warn(code, f"there are no Lyapunov exponents: {ended}")
            return
        self._add(followed.warnings)
        found.lyapunov, found.partial = followed.summary, followed.interrupted
        if found.facts is not None:
            found.bounds = self._bounds(facts_along(found.facts, followed.summary.dimension), found.bound_inputs)

    def _supremum(self, step: UpdateMap, found: _Found, outcome: Outcome) -> None:
        """SD with the supremum over snapshots, from the minibatches of the first estimate; kept as far as it came."""
        options, name = self.options, outcome.sharpness_dimension.estimator
        count, every = int(options.snapshots or 0), int(options.every or 0)
        self._add(about_step(step))
        part = self._part(name, count - 1)
        trajectory = follow(
            step,
            self.hessian.within(part),
            self.subject,
            count=count,
            every=every,
            deadline=part.deadline,
            tell=self._tell,
        )
        estimator, num_steps = self._estimator(name, self.resources), outcome.sharpness_dimension.num_steps
        over = SupremumOverSnapshots(
            trajectory, outcome, self.subject, lambda source, i: self._spectrum(estimator, source, i, num_steps)
        )
        workers = self.resources.workers_for(exact=self.estimators.can(name).exact)
        pool = ThreadPoolExecutor(workers)
        try:
            over.measure(
                group=workers,
                mapper=pool.map if workers > 1 else map,
                affords=lambda products: not part.over(products),
                tell=self._tell,
            )
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            self.warnings += over.warnings()
            if over.runs and found.facts is not None:
                found.supremum = over.result(count, every)
                found.facts = attrs.evolve(
                    facts_over(found.facts, found.supremum), smallest_exponent=over.smallest_exponent
                )
                found.bounds = self._bounds(found.facts, found.bound_inputs)

    def _extremes(self, budget: Budget) -> Eigenpairs:
        self._tell("largest and smallest eigenvalue of the data-set Hessian")
        watched = Watched(self.hessian.within(budget), self._tick)
        found: Eigenpairs = estimate(self._eigen_estimator(watched.size), watched, self.options.seed)
        self._tell_if_cut("largest and smallest eigenvalue of the data-set Hessian", found, budget)
        return found

    def _eigen_estimator(self, size: int) -> Any:
        name = self.estimators.eigenpairs
        most = int(self.resources.memory // (4 * size * self.resources.itemsize))
        return estimator_of_extremes(name, self.options.settings.get(name, {}), most_steps=most)

    def _trace(self, hessian: HessianOperator) -> TraceEstimate:
        self._tell("trace of the data-set Hessian")
        name = self.estimators.trace
        estimator = for_analysis("trace", name, self.options.settings.get(name, {}))
        found: TraceEstimate = estimate(estimator, Watched(hessian, self._tick), self.options.seed)
        return found

    def _edge(self, budget: Budget, pairs: Eigenpairs | None) -> EdgeOfStability:
        subject = self.subject
        if subject.scaling is not None:
            pairs = self._measured(
                "largest eigenvalue of the preconditioned Hessian",
                functools.partial(self._scaled_extremes, budget.part(_EIGENVALUES), subject.scaling),
            )
        elif subject.unscaled:
            pairs = None
        batch = (
            self._measured(
                "batch sharpness", lambda: self._batch_sharpness(self.hessian.within(budget.part(_BATCH_SHARPNESS)))
            )
            or BatchSharpness()
        )
        reason = subject.unscaled or ("" if pairs is not None else "the budget left no room for it")
        edge = edge_of_stability(subject, None if pairs is None else float(pairs.values[0]), reason)
        if pairs is not None and not pairs.converged[0] and self.budget.is_limited:
            edge = attrs.evolve(edge, verdict=_verdict_of_lower_bound(edge, float(pairs.residuals[0])))
        return attrs.evolve(edge, **attrs.asdict(batch))

    def _scaled_extremes(self, budget: Budget, scaling: Array) -> Eigenpairs:
        self._tell("largest eigenvalue of the preconditioned Hessian")
        scaled = DiagonallyScaledOperator(Watched(self.hessian.within(budget), self._tick), scaling)
        found: Eigenpairs = estimate(self._eigen_estimator(scaled.size), scaled, self.options.seed)
        self._tell_if_cut("largest eigenvalue of the preconditioned Hessian", found, budget)
        return found

    def _batch_sharpness(self, hessian: HessianOperator) -> BatchSharpness:
        self._tell("batch sharpness")
        most, target = num_minibatches(self.options.max_hvps), target_error(self.options.tolerance)
        return batch_sharpness(hessian, most, target=target)

    def _dimension(
        self,
        name: str,
        part: Budget,
        block: slice | None = None,
        most_products: int | None = None,
        *,
        required: bool = False,
    ) -> Outcome:
        """SD by one spectrum estimator, of the whole operator or of a diagonal block.

        Raises:
            BudgetError: There is no room for one run, and none is required.
        """
        options, full, room, hessian = self.options, self.full, self.resources, self.hessian
        size = hessian.size if block is None else block.stop - block.start
        if full is not None:
            size = full.size
            room = attrs.evolve(room, size=size, bases=2)
        estimator = self._estimator(name, room)
        recorded = self._settings(name)
        num_steps, can = steps_of(estimator), capabilities(estimator)
        if num_steps is not None and num_steps < _FEWEST_STEPS < size:
            raise SdkerasError(
                f"{name}.num_steps is {num_steps}; fewer than {_FEWEST_STEPS} steps see little more than the mean "
                "eigenvalue, and nothing shows how far the answer is off. The default is 40."
            )
        workers = room.workers_for(exact=can.exact)

        def one_run(index: int, steps: int | None, budget: Budget | None) -> Spectrum:
            if full is not None:
                one = with_steps(estimator, steps, basis=steps is None or room.fits(steps))
                step = full.on_minibatch(index, budget)
                if budget is not None and can.exact:
                    budget.require(size * _runs_to_afford(index))
                return as_spectrum(estimate(one, step, seed_of_run(options.seed, index)))
            source = self.subject.on_minibatch(hessian.within(budget), index)
            if block is not None:
                source = RestrictedOperator(source, block)
            if budget is not None and budget.most is not None and can.exact:
                reduction = source.reduced()
                cost = size if reduction is None else reduction.operator.size
                budget.require(cost * _runs_to_afford(index))
            return self._spectrum(estimator, source, index, steps)

        first = iter([required])  # once: run 0 is made again where the loop starts again with more steps

        def run(index: int, steps: int | None) -> Spectrum:
            if index or not next(first, False):
                return one_run(index, steps, part)
            with self._required(f"the first run of {name}"):
                return one_run(index, steps, None)

        if can.needs_basis and num_steps is not None and not room.fits(num_steps):
            self._warn(
                "no-reorthogonalisation",
                f"{workers * room.bases} Lanczos bases of {num_steps} x {room.size} do not fit "
                f"{room.memory / 1e9:.1f} GB: the runs do without reorthogonalisation and without mass "
                "correction.",
            )
        limits = [limit for limit in (part.left, most_products) if limit is not None]
        settings = AdaptiveSettings(
            tolerance=options.tolerance,
            fixed_runs=options.exact_minibatches if can.exact else options.runs,
            max_hvps=min(limits) if limits else None,
            deadline=part.deadline,
            group=workers,
            required=required,
        )
        if full is not None:
            context = Context(
                size=size,
                exponents=full.exponents,
                unstable_above=None,
                ignored_decay=0.0,
                product_error=full.product_error,
                estimator=name,
                settings=recorded,
            )
        else:
            context = self.subject.context(hessian, name, size)
            context = attrs.evolve(context, settings=recorded, own_rate=can.own_rate)

        def report(step: Progress) -> None:
            if self.progress is not None:
                self.progress(attrs.evolve(step, num_hvps=hessian.num_products))

        pool = ThreadPoolExecutor(workers)
        try:
            outcome = estimate_sharpness_dimension(
                run,
                context,
                settings,
                num_steps=num_steps,
                mapper=pool.map if workers > 1 else _in_order,
                progress=report,
            )
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        runs, wanted = len(outcome.runs), settings.fixed_runs or FEWEST_RUNS_FOR_AN_INTERVAL
        if can.exact and runs < min(wanted, FEWEST_RUNS_FOR_AN_INTERVAL) and not outcome.interrupted:
            raise BudgetError(TIME if outcome.out_of_time else PRODUCTS)  # another estimator may have an interval
        return outcome

    def _spectrum_alone(self, found: _Found) -> None:
        """The pooled spectrum of the minibatches' Hessians, where without a learning rate nothing is made of it."""
        names = [name for name in self.estimators.spectrum if not self.estimators.can(name).own_rate]
        if not names:
            used = ", ".join(self.estimators.spectrum)
            self._warn("no-spectrum", f"there is no spectrum: {used} can only be run with a learning rate.")
            return
        options, room, name = self.options, self.resources, names[0]
        own = self._estimator(name, room)
        steps, exact = steps_of(own), capabilities(own).exact
        steps = None if steps is None else min(steps, self.hessian.size)
        workers = room.workers_for(exact=exact)
        part = self._part(self.estimators.spectrum[-1])
        self._tell(f"spectrum ({name})")

        def one_run(index: int) -> Spectrum:
            return self._spectrum(own, self.subject.on_minibatch(self.hessian, index), index, steps)

        def run(index: int) -> Spectrum:
            if index:
                return one_run(index)
            with self._required(f"the first run of {name}"):
                return one_run(index)

        pool = ThreadPoolExecutor(workers)
        try:
            pooled = pooled_spectrum(
                run,
                num_runs=(options.exact_minibatches if exact else options.runs) or AdaptiveSettings().min_runs,
                max_hvps=part.left,
                deadline=part.deadline,
                group=workers,
                mapper=pool.map if workers > 1 else map,
            )
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        found.spectrum = compressed(pooled.nodes, pooled.weights, self._operator())
        self._warn(
            "spectrum-alone",
            f"the spectrum is pooled over {counted(pooled.num_runs, 'run')} on Hessians of minibatches ({name}"
            + ("" if steps is None else f", {steps} steps")
            + "); no interval says how far it is known.",
        )
        if pooled.interrupted:
            raise KeyboardInterrupt

    def _part(self, name: str, parts: int = 1) -> Budget:
        """A stage's share of the budget left; what comes after this spectrum estimator gets as much, stage by stage."""
        return self.budget.part(parts / (parts + self._num_later(name)))

    def _before_dimension(self) -> Budget:
        """What the stages before the sharpness dimension may take: no part of its first run, if that has room."""
        part, names = (
            self.budget.part(1 - KEPT),
            [name for name in self.estimators.spectrum if not self.estimators.can(name).exact],
        )
        if part.most is None or self.budget.left is None or not names:
            return part
        size, bases = (self.loss.size, 1) if self.full is None else (self.full.size, 2)
        one_run = bases * min(steps_of(self._as_set(names[0])) or 0, size)
        return attrs.evolve(part, most=min(part.most, self._spent() + max(0, self.budget.left - one_run)))

    def _num_later(self, name: str) -> int:
        """Stages after a spectrum estimator of the whole: other estimators, the layers, the trajectory."""
        names, options = self.estimators.spectrum, self.options
        return len(names) - 1 - names.index(name) + options.per_layer + (options.lyapunov is not None)

    def _estimator(self, name: str, room: Resources) -> Any:
        """The spectrum estimator of this name with its settings, a dense one held to the memory."""
        return held_to(self._as_set(name), room.memory)

    def _settings(self, name: str) -> dict[str, Any]:
        """Its fields for the record."""
        return settings_of(self._as_set(name))

    def _as_set(self, name: str) -> Any:
        own = self.options.settings.get(name, {})
        if self._maps_spectra:
            return estimator_of_spectrum(name, own, self.subject.exponents)
        return for_analysis(self.estimators.kind, name, own)

    def _spectrum(self, estimator: Any, source: SymmetricOperator, index: int, steps: int | None) -> Spectrum:
        """Run number `index` of a spectrum estimator, with so many steps where it takes any."""
        one = with_steps(estimator, steps, basis=steps is None or self.resources.fits(steps))
        spectrum: Spectrum = estimate(one, source, seed_of_run(self.options.seed, index))
        return spectrum

    def _layers(self, whole: SharpnessDimension | None) -> Iterator[LayerSharpness]:
        """The blocks one after the other; their dimensions share as many products as the whole one has taken."""
        name, blocks = self.estimators.spectrum[-1], self.loss.layout.layers
        name = name if whole is None else whole.estimator
        budget = self._part(self.estimators.spectrum[-1]) if not self.options.lyapunov else self.budget.part(0.5)
        stages = 2 * len(blocks)  # left: an eigenvalue and a dimension of each

        def next_part() -> Budget:
            nonlocal stages
            stages -= 1
            return budget.part(1 / (stages + 1))

        def share(block: slice) -> int | None:
            if whole is None:
                return None
            if whole.num_steps is None:  # exact: as many minibatches as the whole
                return whole.num_runs * int(block.stop - block.start)
            return whole.num_hvps // len(blocks)

        def largest(block: slice) -> Eigenpairs:
            operator = RestrictedOperator(Watched(self.hessian.within(next_part()), self._tick), block)
            pairs: Eigenpairs = estimate(self._eigen_estimator(operator.size), operator, self.options.seed)
            return pairs

        def dimension(block: slice) -> Outcome | None:
            part = next_part()
            if self.full is None and not self._maps_spectra:
                return None
            outcome = self._dimension(name, part, block, share(block))
            if outcome.interrupted:
                raise KeyboardInterrupt
            return outcome

        return layerwise.by_layer(
            Watched(self.hessian.within(budget.part(1 / 3)), self._tick),
            blocks,
            largest=largest,
            dimension=dimension,
            seed=self.options.seed,
            tell=self._tell,
        )

    def _tell_of_cut_layers(self, layers: Sequence[LayerSharpness]) -> None:
        """Names what the budget left no room for in which layers."""
        measured = ("largest", "trace", "codimension") if self._maps_spectra else ("largest", "trace")
        for what in measured:
            names = [layer.name for layer in layers if getattr(layer, what) is None]
            if names:
                label = "largest eigenvalue" if what == "largest" else what
                self._warn(
                    "not-measured",
                    f"{label} of {len(names):,} of the {len(layers):,} layers ({', '.join(names[:4])}"
                    f"{', ...' if len(names) > 4 else ''}): the budget left no room for it.",
                )

    # The budget

    def _spent(self) -> int:
        return self.hessian.num_products if hasattr(self, "hessian") else 0

    def _measured(self, what: str, stage: Callable[[], _T]) -> _T | None:
        """What a stage measures; None, with the reason in a warning, where the budget has no room for it."""
        try:
            return stage()
        except BudgetError as error:
            self._warn("not-measured", f"{what}: {error}")
            return None

    def _tell_if_cut(self, what: str, pairs: Eigenpairs, budget: Budget) -> None:
        """Says that eigenvalues have not converged in their part of a limited budget."""
        if budget.is_limited and not pairs.converged.all():
            reached = f"{pairs.num_matvecs:,} steps, residual {float(np.max(pairs.residuals)):.2g}"
            self._warn("not-converged", f"{what}: the budget ended the iteration before it converged ({reached}).")

    @contextlib.contextmanager
    def _required(self, what: str) -> Iterator[None]:
        """A stage that is done whatever the budget; by how much it has exceeded it is kept for the note."""
        products, seconds = self.budget.beyond()
        try:
            yield
        finally:
            later = self.budget.beyond()
            self.exceeded.append((what, later[0] - products, later[1] - seconds))

    def _tell_of_excess(self) -> None:
        """Names what has exceeded the limits, and by how much."""
        products, seconds = self.budget.beyond()
        limit = self.options.time_limit or 0.0
        late = seconds > max(_NEGLIGIBLE, _NEGLIGIBLE_SHARE * limit)
        if products:
            took = [f"{what} took {more:,}" for what, more, _ in self.exceeded if more]
            self._warn(
                "limit-exceeded",
                f"{products:,} products beyond the limit of {self.options.max_hvps:,}: {_listed(took)}.",
            )
        if late:
            took = [f"{what} took {more:.2g} s" for what, _, more in self.exceeded if more > 0.1 * seconds]
            rest = seconds - sum(more for *_, more in self.exceeded)
            took += [f"products under way {rest:.2g} s"] if rest > 0.1 * seconds else []
            self._warn("limit-exceeded", f"{seconds:.2g} s beyond the time limit of {limit:g} s: {_listed(took)}.")

    def _bound_inputs(self) -> Mapping[str, float]:
        """Inputs of the bounds: those given, and estimates of others where they are asked for."""
        given = dict(self.options.bound_inputs)
        if not self.options.estimate_bound_inputs:
            return given
        late = self.budget.over()
        if late:
            self._warn("not-measured", f"inputs of the bounds: {BudgetError(late)}")
            return given
        self._tell("inputs of the bounds")
        return assumptions.inputs_at(assumptions.loss_of_single_examples(self.subject), given)

    def _facts(self, outcome: Outcome) -> Facts:
        return assumptions.facts_at(
            self.subject,
            outcome.sharpness_dimension,
            smallest_exponent=float(np.min(self._exponents()(outcome.nodes))),
            clipped=any(note.code == "clipping" for note in self.warnings),
        )

    def _bounds(self, facts: Facts, inputs: Mapping[str, float]) -> tuple[Bound, ...]:
        return bounds(facts, inputs, frozenset(inputs) - set(self.options.bound_inputs))

    def plan(self) -> Plan:
        if self._training_steps():
            self._stepper(self._training_steps())
        return planned(self.subject, self.estimators, self.resources)

    # Pieces

    @property
    def _maps_spectra(self) -> bool:
        """Whether exponents are made from eigenvalues: neither without a learning rate nor for the map full."""
        return self.subject.rate is not None and self.options.map != "full"

    def _exponents(self) -> Exponents:
        return self.subject.exponents if self.full is None else self.full.exponents

    def _operator(self) -> str:
        return self.subject.operator if self.full is None else full_map.OPERATOR

    def _tell(self, stage: str) -> None:
        self.stage = stage
        self._tick()

    def _tick(self) -> None:
        if self.progress is not None:
            self.progress(Progress(self.stage, self._spent()))

    def _add(self, notes: Iterable[Note]) -> None:
        """Those whose code is not there yet."""
        known = {note.code for note in self.warnings}
        self.warnings += [note for note in notes if note.code not in known]

    def _warn(self, code: str, message: str) -> None:
        note = Note(code, message)
        if note not in self.warnings:  # several estimators may say the same
            self.warnings.append(note)


def _listed(items: Sequence[str]) -> str:
    """ "a, b and c"."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _runs_to_afford(index: int) -> int:
    """Dense runs that there must be room for before run number `index`: fewer than three give no interval."""
    return max(1, FEWEST_RUNS_FOR_AN_INTERVAL - index)


def _verdict_of_lower_bound(edge: EdgeOfStability, residual: float) -> str:
    """The verdict on an eigenvalue whose iteration was cut short: what it has reached is a lower bound."""
    if edge.ratio is None or edge.ratio > stability.EDGE[1]:
        return edge.verdict
    return (
        f"No verdict within the limit: the sharpness is at least {edge.sharpness:.4g} (not converged, residual "
        f"{residual:.2g}), {edge.ratio:.2g} times the threshold {edge.threshold:.4g}."
    )


def _in_order(function: Callable[[int], Spectrum], indices: Iterable[int]) -> Iterable[Spectrum]:
    return (function(index) for index in indices)


def _summary(pairs: Eigenpairs | None, trace: TraceEstimate | None) -> HessianSummary:
    def measured(position: int) -> Measured | None:
        return (
            None
            if pairs is None
            else Measured(
                value=float(pairs.values[position]),
                converged=bool(pairs.converged[position]),
                residual=float(pairs.residuals[position]),
            )
        )

    largest, smallest = measured(0), measured(-1)
    absolute = largest
    if largest is not None and smallest is not None and -smallest.value > largest.value:
        absolute = attrs.evolve(smallest, value=-smallest.value)
    return HessianSummary(
        largest=largest,
        smallest=smallest,
        largest_absolute=absolute,
        trace=None
        if trace is None
        else Measured(trace.value, bool(trace.stderr <= 0.05 * abs(trace.value)), stderr=trace.stderr),
    )
