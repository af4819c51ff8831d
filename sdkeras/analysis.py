"""The analysis: joins loss, operators, estimators and dimension into one answer, or into a plan of it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import numpy as np

from sdkeras import full_map, layerwise, lyapunov_run, registry
from sdkeras.dimension.adaptive import AdaptiveSettings, Context, Outcome, estimate_sharpness_dimension
from sdkeras.dimension.bounds import Facts, bounds, check_inputs, facts_along, facts_over
from sdkeras.dimension.exponents import Exponents
from sdkeras.dimension.records import Bound, EdgeOfStability, SharpnessDimension, Supremum, Warning
from sdkeras.dimension.spectral_density import pooled_spectrum
from sdkeras.edge import batch_sharpness, edge_of_stability, num_minibatches
from sdkeras.errors import Interrupted, ModelError
from sdkeras.estimators import (
    DENSE,
    Watched,
    chosen,
    configured,
    estimate,
    estimator_of_extremes,
    estimator_of_spectrum,
    estimator_of_trace,
    has_own_rate,
    seed_of_run,
    settings_of,
)
from sdkeras.findings import findings
from sdkeras.full_map import FullMap, as_spectrum
from sdkeras.lyapunov_settings import LyapunovSettings
from sdkeras.memory import memory_limit
from sdkeras.operators import assumptions, update
from sdkeras.operators.base import Array, DiagonallyScaledOperator, RestrictedOperator, SymmetricOperator
from sdkeras.operators.hessian import HessianOperator
from sdkeras.operators.loss import EmpiricalLoss
from sdkeras.operators.update_map import UpdateMap
from sdkeras.options import DEFAULT_SAMPLES, DEFAULT_STEPS, DEFAULT_TRANSIENT, Options, check_options
from sdkeras.planning import planned
from sdkeras.provenance import data_info, loss_name, provenance
from sdkeras.records import Eigenpairs, Progress, Spectrum, TraceEstimate
from sdkeras.reporting.numbers import counted
from sdkeras.reporting.schema import (
    Analysis,
    HessianSummary,
    LayerSharpness,
    LyapunovSummary,
    Measured,
    ModelInfo,
    Plan,
    SpectrumSummary,
)
from sdkeras.resources import Resources, resources
from sdkeras.snapshots import SupremumOverSnapshots, about_step, follow
from sdkeras.subject import Subject

_MAX_NODES = 2000


def analyze(
    model: Any,
    data: Any,
    *,
    batch_size: int | None = None,
    learning_rate: float | str | None = None,
    loss: Any = None,
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
        loss: In place of the compiled one (needed for an uncompiled model).
        params: Regular expression of the trainable variables to analyse; all by default.
        samples: Random subset for the data-set Hessian. Minibatches are drawn from all the data.
        mode: 'train' or 'inference'.
        map: 'auto' takes the true step of the optimizer where it is known: SGD, with momentum on the state of weights
            and velocity; Adam, AdamW and RMSprop with their second moments frozen. For every other optimizer, and
            where there are no second moments yet, it takes |1 - eta alpha|, and says so. 'hessian' takes
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
        max_hvps: Products at most in all, verification included; what must be done is done all the same.
        time_limit: Seconds at most, likewise.
        memory_gb: Memory for bases and dense matrices.
        seed: Of everything random.
        allow_unverified: Go on with an operator that failed its verification.
        per_layer: Largest eigenvalue, trace and codimension of each layer's diagonal block as well.
        lyapunov: So many Lyapunov exponents along training from here as well (`sdkeras.lyapunov` has more settings);
            max_hvps does not cut them short. If they determine D_s, the bounds are taken at it.
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
        self.estimators = chosen(options)
        check_options(options)
        check_inputs(options.bound_inputs)
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

    # The work

    def answer(self) -> Analysis:
        options = self.options
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
            self._warn(
                "no-learning-rate",
                "threshold, ratio, exponents, sharpness dimension"
                + (" and its supremum" if options.snapshots is not None else "")
                + f" and bounds need a learning rate and are missing: {self.subject.no_rate}",
            )
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
            self._add(outcome.warnings)
        return Analysis(
            provenance=provenance(
                self.subject.source,
                seed=options.seed,
                dtype=options.dtype,
                num_hvps=hessian.num_products,
                started=self.started,
            ),
            model=self._model_info(),
            data=data_info(self.loss),
            optimizer=self.subject.optimizer_info(),
            verification=hessian.verification,
            hessian=_summary(found.pairs, found.trace),
            sharpness_dimension=None if first is None else first.sharpness_dimension,
            estimates=tuple(outcome.sharpness_dimension for outcome in found.outcomes),
            rds_sharpness=None if first is None else first.rds_sharpness,
            edge_of_stability=found.edge or edge_of_stability(self.subject, None, "interrupted before it was measured"),
            spectrum=found.spectrum if first is None else _compressed(first.nodes, first.weights, self._operator()),
            bounds=found.bounds,
            layers=tuple(found.layers),
            lyapunov=found.lyapunov,
            supremum=found.supremum,
            warnings=tuple(self.warnings),
            partial=found.partial,
        )

    def _measure(self, found: _Found, step: UpdateMap | None) -> None:
        """Everything that takes time, in order of importance; what is found stays when Ctrl-C ends it."""
        found.pairs = self._extremes(self.hessian)
        found.edge = self._edge(self.hessian, found.pairs)
        found.trace = self._trace(self.hessian)
        if self.full is None and not self._maps_spectra:
            self._spectrum_alone(found)
        for name in self.estimators.spectrum if self.full is not None or self._maps_spectra else ():
            outcome = self._dimension(self.hessian, name)
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
            for layer in self._layers(self.hessian, whole):
                found.layers.append(layer)

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
        stepper = lyapunov_run.training_optimizer(
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
        limit = self.options.time_limit
        try:
            followed = lyapunov_run.follow(
                step,
                self._trajectory(),
                about=lyapunov_run.identity(self.stepper, self.subject.model),
                deadline=None if limit is None else self.started + limit,
                progress=self.progress,
            )
        except Interrupted as ended:
            self._warn("time-limit", f"there are no Lyapunov exponents: {ended}")
            return
        self._add(followed.warnings)
        found.lyapunov, found.partial = followed.summary, followed.interrupted
        if found.facts is not None:
            found.bounds = self._bounds(facts_along(found.facts, followed.summary.dimension), found.bound_inputs)

    def _supremum(self, step: UpdateMap, found: _Found, outcome: Outcome) -> None:
        """SD with the supremum over snapshots, from the minibatches of the first estimate; kept as far as it came."""
        options, name = self.options, self.estimators.spectrum[0]
        count, every = int(options.snapshots or 0), int(options.every or 0)
        self._add(about_step(step))
        trajectory = follow(
            step, self.hessian, self.subject, count=count, every=every, deadline=self._deadline(), tell=self._tell
        )
        estimator, num_steps = self._estimator(name, self.resources), outcome.sharpness_dimension.num_steps
        over = SupremumOverSnapshots(
            trajectory, outcome, self.subject, lambda source, i: self._spectrum(estimator, source, i, num_steps)
        )
        workers = self.resources.workers_for(name)
        pool = ThreadPoolExecutor(workers)
        try:
            over.measure(group=workers, mapper=pool.map if workers > 1 else map, affords=self._affords, tell=self._tell)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            self.warnings += over.warnings()
            if over.runs and found.facts is not None:
                found.supremum = over.result(count, every)
                found.facts = attrs.evolve(
                    facts_over(found.facts, found.supremum), smallest_exponent=over.smallest_exponent
                )
                found.bounds = self._bounds(found.facts, found.bound_inputs)

    def _extremes(self, hessian: HessianOperator) -> Eigenpairs:
        self._tell("largest and smallest eigenvalue of the data-set Hessian")
        watched = Watched(hessian, self._tick)
        found: Eigenpairs = estimate(self._eigen_estimator(hessian.size), watched, self.options.seed)
        return found

    def _eigen_estimator(self, size: int) -> Any:
        name = self.estimators.eigenpairs
        most = int(self.resources.memory // (4 * size * self.resources.itemsize))
        return estimator_of_extremes(name, self.options.settings.get(name, {}), most_steps=most)

    def _trace(self, hessian: HessianOperator) -> TraceEstimate:
        self._tell("trace of the data-set Hessian")
        name = self.estimators.trace
        estimator = estimator_of_trace(name, self.options.settings.get(name, {}))
        found: TraceEstimate = estimate(estimator, Watched(hessian, self._tick), self.options.seed)
        return found

    def _edge(self, hessian: HessianOperator, pairs: Eigenpairs) -> EdgeOfStability:
        subject = self.subject
        sharpness: float | None = float(pairs.values[0])
        if subject.scaling is not None:
            self._tell("largest eigenvalue of the preconditioned Hessian")
            scaled = DiagonallyScaledOperator(Watched(hessian, self._tick), subject.scaling)
            found = estimate(self._eigen_estimator(scaled.size), scaled, self.options.seed)
            sharpness = float(found.values[0])
        elif subject.unscaled:
            sharpness = None
        self._tell("batch sharpness")
        batch, stderr = batch_sharpness(hessian, num_minibatches(self.options.max_hvps))
        edge = edge_of_stability(subject, sharpness, subject.unscaled)
        return attrs.evolve(edge, batch_sharpness=batch, batch_sharpness_stderr=stderr)

    def _dimension(
        self, hessian: HessianOperator, name: str, block: slice | None = None, most_products: int | None = None
    ) -> Outcome:
        """SD by one spectrum estimator, of the whole operator or of a diagonal block."""
        options, full, room = self.options, self.full, self.resources
        size = hessian.size if block is None else block.stop - block.start
        if full is not None:
            size = full.size
            room = attrs.evolve(room, size=size, bases=2)
        estimator = self._estimator(name, room)
        recorded = self._settings(name)
        num_steps = getattr(estimator, "num_steps", None)
        workers = room.workers_for(name)

        def run(index: int, steps: int | None) -> Spectrum:
            if full is not None:
                one = _with_steps(estimator, steps, room)
                return as_spectrum(estimate(one, full.on_minibatch(index), seed_of_run(options.seed, index)))
            source = self.subject.on_minibatch(hessian, index)
            return self._spectrum(
                estimator, source if block is None else RestrictedOperator(source, block), index, steps
            )

        if _can_skip(estimator) and num_steps is not None and not room.fits(num_steps):
            self._warn(
                "no-reorthogonalisation",
                f"{workers * room.bases} Lanczos bases of {num_steps} x {room.size} do not fit "
                f"{room.memory / 1e9:.1f} GB: the runs do without reorthogonalisation and without mass "
                "correction.",
            )
        share = 1 if block is not None else self._share(name)
        limits = [] if options.max_hvps is None else [max(0, options.max_hvps - hessian.num_products) // share]
        limits += [] if most_products is None else [most_products]
        deadline = self._deadline()
        if deadline is not None:  # the supremum sees the same minibatches at every snapshot
            deadline -= max(0.0, deadline - time.monotonic()) * (1 - 1 / share)
        settings = AdaptiveSettings(
            tolerance=options.tolerance,
            fixed_runs=options.exact_minibatches if name in DENSE else options.runs,
            max_hvps=min(limits) if limits else None,
            deadline=deadline,
            group=workers,
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
            context = attrs.evolve(self.subject.context(hessian, name, size), settings=recorded)

        def report(step: Progress) -> None:
            if self.progress is not None:
                self.progress(attrs.evolve(step, num_hvps=hessian.num_products))

        pool = ThreadPoolExecutor(workers)
        try:
            return estimate_sharpness_dimension(
                run,
                context,
                settings,
                num_steps=num_steps,
                mapper=pool.map if workers > 1 else _in_order,
                progress=report,
            )
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _spectrum_alone(self, found: _Found) -> None:
        """The pooled spectrum of the minibatches' Hessians, where without a learning rate nothing is made of it."""
        names = [name for name in self.estimators.spectrum if not has_own_rate(name)]
        if not names:
            used = ", ".join(self.estimators.spectrum)
            self._warn("no-spectrum", f"there is no spectrum: {used} can only be run with a learning rate.")
            return
        options, room, name = self.options, self.resources, names[0]
        own = configured(registry.get_estimator("spectrum", name), options.settings.get(name, {}))
        if name in DENSE and own.memory_gb is None:
            own = attrs.evolve(own, memory_gb=room.memory / 1e9)
        steps = getattr(own, "num_steps", None)
        steps = None if steps is None else min(steps, self.hessian.size)
        workers = room.workers_for(name)
        self._tell(f"spectrum ({name})")

        def run(index: int) -> Spectrum:
            return self._spectrum(own, self.subject.on_minibatch(self.hessian, index), index, steps)

        pool = ThreadPoolExecutor(workers)
        try:
            pooled = pooled_spectrum(
                run,
                num_runs=(options.exact_minibatches if name in DENSE else options.runs) or AdaptiveSettings().min_runs,
                max_hvps=None if options.max_hvps is None else max(0, options.max_hvps - self.hessian.num_products),
                deadline=self._deadline(),
                group=workers,
                mapper=pool.map if workers > 1 else map,
            )
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        found.spectrum = _compressed(pooled.nodes, pooled.weights, self._operator())
        self._warn(
            "spectrum-alone",
            f"the spectrum is pooled over {counted(pooled.num_runs, 'run')} on Hessians of minibatches ({name}"
            + ("" if steps is None else f", {steps} steps")
            + "); no interval says how far it is known.",
        )
        if pooled.interrupted:
            raise KeyboardInterrupt

    def _share(self, name: str) -> int:
        """Into how many parts the budget left is divided, one of them for this estimator of the whole.

        Those after it get as much, and so does each snapshot after the first.
        """
        names = self.estimators.spectrum
        after = len(names) - 1 - names.index(name)
        return after + ((self.options.snapshots or 1) if name == names[0] else 1)

    def _estimator(self, name: str, room: Resources) -> Any:
        """The spectrum estimator of this name with its settings, a dense one held to the memory."""
        estimator = self._as_set(name)
        if name in DENSE and estimator.memory_gb is None:
            return attrs.evolve(estimator, memory_gb=room.memory / 1e9)
        return estimator

    def _settings(self, name: str) -> dict[str, Any]:
        """Its fields for the record."""
        return settings_of(self._as_set(name))

    def _as_set(self, name: str) -> Any:
        own = self.options.settings.get(name, {})
        if self.full is None:
            return estimator_of_spectrum(name, own, self.subject.exponents)
        return configured(registry.get_estimator(self.estimators.kind, name), own)

    def _spectrum(self, estimator: Any, source: SymmetricOperator, index: int, steps: int | None) -> Spectrum:
        """Run number `index` of a spectrum estimator, with so many steps where it takes any."""
        one = _with_steps(estimator, steps, self.resources)
        spectrum: Spectrum = estimate(one, source, seed_of_run(self.options.seed, index))
        return spectrum

    def _layers(self, hessian: HessianOperator, whole: SharpnessDimension | None) -> Iterator[LayerSharpness]:
        """The blocks one after the other; their dimensions share as many products as the whole one has taken."""
        name = self.estimators.spectrum[0]

        def share(block: slice, whole: SharpnessDimension) -> int:
            if whole.num_steps is None:  # exact: as many minibatches as the whole
                return whole.num_runs * int(block.stop - block.start)
            return whole.num_hvps // len(self.loss.layout.layers)

        def dimension(block: slice) -> Outcome | None:
            if whole is None or self._budget_ended():
                return None
            outcome = self._dimension(hessian, name, block, share(block, whole))
            if outcome.interrupted:
                raise KeyboardInterrupt
            return outcome

        return layerwise.by_layer(
            Watched(hessian, self._tick),
            self.loss.layout.layers,
            largest=lambda block: estimate(self._eigen_estimator(block.size), block, self.options.seed),
            dimension=dimension,
            seed=self.options.seed,
            tell=self._tell,
        )

    def _deadline(self) -> float | None:
        return None if self.options.time_limit is None else self.started + self.options.time_limit

    def _budget_ended(self) -> bool:
        products, seconds = self.options.max_hvps, self.options.time_limit
        return (products is not None and self.hessian.num_products >= products) or (
            seconds is not None and time.monotonic() - self.started >= seconds
        )

    def _affords(self, products: int) -> bool:
        """Whether the budget has room for so many products more."""
        limit = self.options.max_hvps
        return not self._budget_ended() and (limit is None or self.hessian.num_products + products <= limit)

    def _bound_inputs(self) -> Mapping[str, float]:
        """Inputs of the bounds: those given, and estimates of others where they are asked for."""
        given = dict(self.options.bound_inputs)
        if not self.options.estimate_bound_inputs:
            return given
        self._tell("inputs of the bounds")
        singles = EmpiricalLoss(
            self.subject.model,
            self.subject.source,
            mode="inference",
            params=self.options.params,
            dtype=self.options.dtype,
            num_samples=self.options.samples,
            seed=self.options.seed,
        )
        return assumptions.estimated_inputs(singles) | given

    def _facts(self, outcome: Outcome) -> Facts:
        estimate = outcome.sharpness_dimension
        return Facts(
            dimension=estimate.value if estimate.definition_value is None else estimate.definition_value,
            state_size=estimate.state_size,
            num_samples=self.subject.source.num_samples,
            kinks=assumptions.kinks(self.subject.model),
            clipped=any(note.code == "clipping" for note in self.warnings),
            unbounded_loss=assumptions.unbounded_loss(self.subject.model),
            smallest_exponent=float(np.min(self._exponents()(outcome.nodes))),
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
            spent = self.hessian.num_products if hasattr(self, "hessian") else 0
            self.progress(Progress(self.stage, spent))

    def _add(self, notes: Iterable[Warning]) -> None:
        """Those whose code is not there yet."""
        known = {note.code for note in self.warnings}
        self.warnings += [note for note in notes if note.code not in known]

    def _warn(self, code: str, message: str) -> None:
        note = Warning(code, message)
        if note not in self.warnings:  # several estimators may say the same
            self.warnings.append(note)

    def _model_info(self) -> ModelInfo:
        trainable = self.subject.model.trainable_variables
        return ModelInfo(
            name=str(self.subject.model.name),
            num_parameters=int(sum(np.prod(v.shape, dtype=np.int64) for v in trainable)),
            num_trainable_analysed=self.loss.size,
            mode=self.options.mode,
            loss=loss_name(self.subject.model.loss),
            unconnected=self.loss.engine(self.options.product_mode).unconnected,
        )


def _with_steps(estimator: Any, steps: int | None, room: Resources) -> Any:
    """The estimator with so many steps, without reorthogonalisation where its bases do not fit the memory."""
    if steps is None:
        return estimator
    own = {"reorthogonalize": False} if _can_skip(estimator) and not room.fits(steps) else {}
    return attrs.evolve(estimator, num_steps=steps, **own)


def _can_skip(estimator: Any) -> bool:
    """Whether it can do without reorthogonalisation, and so without a basis in memory."""
    return "reorthogonalize" in attrs.fields_dict(type(estimator))


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

    return HessianSummary(
        largest=measured(0),
        smallest=measured(-1),
        trace=None
        if trace is None
        else Measured(trace.value, bool(trace.stderr <= 0.05 * abs(trace.value)), stderr=trace.stderr),
    )


def _compressed(nodes: Array, weights: Array, operator: str) -> SpectrumSummary:
    """At most 2,000 nodes: neighbours of about equal mass share are merged into their mean."""
    if len(nodes) > _MAX_NODES:
        edges = np.unique(np.linspace(0, len(nodes), _MAX_NODES + 1).astype(int)[:-1])
        mass = np.add.reduceat(weights, edges)
        moment = np.add.reduceat(weights * nodes, edges)
        plain = np.add.reduceat(nodes, edges) / np.diff(np.append(edges, len(nodes)))
        nodes = np.where(mass > 0, moment / np.where(mass > 0, mass, 1.0), plain)
        weights = mass
    return SpectrumSummary(np.asarray(nodes, np.float64), np.asarray(weights, np.float64), operator)
