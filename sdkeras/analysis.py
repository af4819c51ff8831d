"""The analysis: joins loss, operators, estimators and dimension into one answer, or into a plan of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import keras
import numpy as np
import tensorflow as tf

from sdkeras import layerwise, loading, lyapunov_run, registry
from sdkeras.dimension import stability
from sdkeras.dimension.adaptive import AdaptiveSettings, Context, Outcome, estimate_sharpness_dimension
from sdkeras.dimension.bounds import Facts, bounds, check_inputs
from sdkeras.dimension.exponents import ExponentMap, exponent_map
from sdkeras.dimension.records import Bound, EdgeOfStability, SharpnessDimension, Warning
from sdkeras.errors import ModelError, PluginError, SdkerasError
from sdkeras.memory import available_memory, peak_memory
from sdkeras.operators import assumptions, batches, precision, update
from sdkeras.operators.base import Array, DiagonallyScaledOperator, RestrictedOperator, SymmetricOperator
from sdkeras.operators.hessian import HessianOperator
from sdkeras.operators.loss import EmpiricalLoss
from sdkeras.operators.update_map import UpdateMap
from sdkeras.provenance import loss_name, optimizer_info, provenance, with_loss
from sdkeras.records import Eigenpairs, Progress, Spectrum, TraceEstimate
from sdkeras.reporting.schema import (
    Analysis,
    DataInfo,
    HessianSummary,
    LayerSharpness,
    LyapunovSummary,
    Measured,
    ModelInfo,
    Plan,
    SpectrumSummary,
)
from sdkeras.user_code import USER_ERRORS, last_line

DEFAULT_SAMPLES = 4096
MAPS = ("auto", "hessian")
_DEFAULT_ESTIMATOR = "slq"
_MIN_RUNS = 24
# A Hessian-vector product takes about this many gradients (1.5-2.8 measured); plans only.
_GRADIENTS_PER_PRODUCT = 2.5
# Share of the machine's memory that Lanczos bases may take when no limit is given.
_MEMORY_SHARE = 0.6
_EIGEN_STEPS = 100
# Fewer Lanczos steps than this do not resolve the ends of a spectrum; power iteration takes over.
_FEWEST_EIGEN_STEPS = 16
_MAX_NODES = 2000


@attrs.frozen(kw_only=True)
class Options:
    """Everything `analyze` can be told; see there."""

    batch_size: int | None = None
    learning_rate: float | None = None
    loss: Any = None
    params: str | None = None
    samples: int = DEFAULT_SAMPLES
    mode: str = "train"
    map: str = "auto"
    dtype: str = "float32"
    product_mode: str = "auto"
    estimators: tuple[str, ...] = ()
    settings: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    exact: bool = False
    exact_minibatches: int | None = None
    tolerance: float = 0.05
    max_hvps: int | None = None
    time_limit: float | None = None
    memory_gb: float | None = None
    seed: int = 0
    allow_unverified: bool = False
    per_layer: bool = False
    lyapunov: int | None = None
    bound_inputs: Mapping[str, float] = attrs.field(factory=dict)
    estimate_bound_inputs: bool = False
    workers: int | None = None


def analyze(
    model: Any,
    data: Any,
    *,
    batch_size: int | None = None,
    learning_rate: float | None = None,
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
    tolerance: float = 0.05,
    max_hvps: int | None = None,
    time_limit: float | None = None,
    memory_gb: float | None = None,
    seed: int = 0,
    allow_unverified: bool = False,
    per_layer: bool = False,
    lyapunov: int | None = None,
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
        learning_rate: In place of the optimizer's.
        loss: In place of the compiled one (needed for an uncompiled model).
        params: Regular expression of the trainable variables to analyse; all by default.
        samples: Random subset for the data-set Hessian. Minibatches are drawn from all the data.
        mode: 'train' or 'inference'.
        map: 'auto' takes the true step of the optimizer where it is known: SGD, with momentum on the state of weights
            and velocity; Adam, AdamW and RMSprop with their second moments frozen. For every other optimizer, and
            where there are no second moments yet, it takes |1 - eta alpha|, and says so. 'hessian' takes
            |1 - eta alpha| always, as the paper does.
        dtype: 'float32' or 'float64'.
        product_mode: 'auto', 'reverse-over-reverse', 'forward-over-reverse' or 'finite-differences'.
        estimators: Names of estimators: spectrum ones estimate SD, one after the other; an eigenpairs or
            trace one replaces the default for the data-set Hessian. Default: slq, lanczos, randomized-trace.
        settings: Fields of estimators by name, for example {"slq": {"num_steps": 80}}.
        exact: Exact spectra of minibatches first (small models).
        exact_minibatches: How many of them; adaptive by default.
        tolerance: Half-width of SD's interval wanted, relative to the codimension.
        max_hvps: Products at most in all, verification included; what must be done is done all the same.
        time_limit: Seconds at most, likewise.
        memory_gb: Memory for bases and dense matrices.
        seed: Of everything random.
        allow_unverified: Go on with an operator that failed its verification.
        per_layer: Largest eigenvalue, trace and codimension of each layer's diagonal block as well.
        lyapunov: So many Lyapunov exponents along training from here as well, over 1,000 steps (`sdkeras.lyapunov` has
            the settings); neither max_hvps nor time_limit cuts them short.
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
        tolerance=tolerance,
        max_hvps=max_hvps,
        time_limit=time_limit,
        memory_gb=memory_gb,
        seed=seed,
        allow_unverified=allow_unverified,
        per_layer=per_layer,
        lyapunov=lyapunov,
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
    return _Analysis(model, data, Options(**options), None, time.monotonic()).plan()


@attrs.define
class _Found:
    """What an analysis has measured so far."""

    pairs: Eigenpairs | None = None
    edge: EdgeOfStability | None = None
    trace: TraceEstimate | None = None
    outcomes: list[Outcome] = attrs.field(factory=list)
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
        self.warnings: list[Warning] = []
        self.estimators = _by_kind(options)
        _check_options(options)
        check_inputs(options.bound_inputs)
        self.optimizer = update.read_settings(getattr(model, "optimizer", None))
        self.compiled_as = model
        self.model = with_loss(model, options.loss, options.dtype)
        self.rate, self.rate_source = self._learning_rate()
        if isinstance(data, (tuple, list)) and len(data) in (2, 3):
            loading.check_data(self.model, *data)
        self.source = batches.as_source(
            data,
            batch_size=options.batch_size,
            default_batch_size=batches.DEFAULT_BATCH_SIZE,
            limit=options.samples,
        )
        self._tell("reading the model and the data")
        self.loss = EmpiricalLoss(
            self.model,
            self.source,
            mode=options.mode,
            params=options.params,
            dtype=options.dtype,
            num_samples=options.samples,
            seed=options.seed,
        )
        self.workers = _num_workers(options.workers)
        # Bytes that bases and dense matrices may take; read once, since what is free falls as they are made.
        self.memory = _MEMORY_SHARE * available_memory() if options.memory_gb is None else options.memory_gb * 1e9
        self.decay = self.optimizer.weight_decay if self.optimizer else 0.0
        self.limits = self._limits()
        self.scaling, self.unscaled = self._scaling()
        self.exponents = self._map()

    # What is analysed

    def _learning_rate(self) -> tuple[float, str]:
        given = self.options.learning_rate
        rate = given if given is not None else (self.optimizer.learning_rate if self.optimizer else None)
        if rate is None:
            raise ModelError("the learning rate is unknown; give it (--learning-rate F).")
        if not (np.isfinite(rate) and rate > 0):
            where = "given" if given is not None else "stored in the model (a schedule that has decayed?)"
            raise ModelError(
                f"the learning rate {where} is {rate:g}; a training step needs one that is positive and finite "
                "(--learning-rate F)."
            )
        return float(rate), "given" if given is not None else "file"

    def _scaling(self) -> tuple[Array | None, str]:
        """P^-1/2 of an adaptive optimizer, shape [n], float64; or None, and why an adaptive one has none."""
        if self.limits is None or not self.limits.preconditioned:
            return None, ""
        diagonal = update.preconditioner(self.compiled_as, self.loss.layout)
        if diagonal is None:
            return None, "the optimizer in the file has taken no step, so it has no second moments"
        if not (np.all(np.isfinite(diagonal)) and np.all(diagonal > 0)):
            return None, "the optimizer's second moments are not all positive and finite"
        return 1.0 / np.sqrt(diagonal), ""

    def _map(self) -> ExponentMap:
        optimizer = self.optimizer
        if self.options.map == "auto":
            name, reason = _own_map(optimizer)
            reason = reason or self.unscaled
            if optimizer is not None and not reason:
                momentum = optimizer.momentum or 0.0
                return exponent_map(name, self.rate, momentum=momentum, weight_decay=self.decay)
            self._warn(
                "hessian-map",
                f"{reason}; the map |1 - eta*alpha| of the Hessian was analysed, not the optimizer's own step.",
            )
        return exponent_map("hessian", self.rate)

    def _limits(self) -> stability.Thresholds | None:
        if self.optimizer is None:
            self._warn("optimizer-unknown", "no optimizer is known; the threshold 2/eta of plain SGD was taken.")
            return stability.thresholds("SGD", self.rate)
        return stability.thresholds(
            self.optimizer.name,
            self.rate,
            momentum=self.optimizer.momentum,
            nesterov=self.optimizer.nesterov,
            weight_decay=self.decay,
        )

    # The work

    def answer(self) -> Analysis:
        options = self.options
        self._tell("compiling and verifying the Hessian-vector product")
        hessian = HessianOperator(
            self.loss,
            product_mode=options.product_mode,
            allow_unverified=options.allow_unverified,
            workers=self.workers,
        )
        self.hessian = hessian
        self._note_findings()
        # Before the work, so that an optimizer without a step is told at once.
        step = self._training_step()
        found = _Found()
        try:
            self._measure(found)
            if step is not None:
                self._lyapunov(step, found)
        except KeyboardInterrupt:
            found.partial = True
        first = found.outcomes[0] if found.outcomes else None
        for outcome in found.outcomes:
            known = {note.code for note in self.warnings}
            self.warnings += [note for note in outcome.warnings if note.code not in known]
        return Analysis(
            provenance=provenance(
                self.source,
                seed=options.seed,
                dtype=options.dtype,
                num_hvps=hessian.num_products,
                started=self.started,
            ),
            model=self._model_info(),
            data=DataInfo(self.source.num_samples, self.source.batch_size, self.loss.num_examples),
            optimizer=optimizer_info(self.optimizer, self.rate, self.rate_source),
            verification=hessian.verification,
            hessian=_summary(found.pairs, found.trace),
            sharpness_dimension=None if first is None else first.sharpness_dimension,
            estimates=tuple(outcome.sharpness_dimension for outcome in found.outcomes),
            rds_sharpness=None if first is None else first.rds_sharpness,
            edge_of_stability=found.edge or self._edge_of(None, reason="interrupted before it was measured"),
            spectrum=None
            if first is None
            else _compressed(first.nodes, first.weights, _operator(self.exponents.preconditioned)),
            bounds=found.bounds,
            layers=tuple(found.layers),
            lyapunov=found.lyapunov,
            warnings=tuple(self.warnings),
            partial=found.partial,
        )

    def _measure(self, found: _Found) -> None:
        """Everything that takes time, in order of importance; what is found stays when Ctrl-C ends it."""
        found.pairs = self._extremes(self.hessian)
        found.edge = self._edge(self.hessian, found.pairs)
        found.trace = self._trace(self.hessian)
        for name in self.estimators["spectrum"]:
            outcome = self._dimension(self.hessian, name)
            found.outcomes.append(outcome)
            if len(found.outcomes) == 1:
                found.bounds = self._bounds(outcome)
            if outcome.interrupted:
                raise KeyboardInterrupt
        if self.options.per_layer:
            for layer in self._layers(self.hessian, found.outcomes[0].sharpness_dimension):
                found.layers.append(layer)

    def _training_step(self) -> UpdateMap | None:
        """The map of the optimizer's step, where Lyapunov exponents are asked for."""
        wanted = self.options.lyapunov
        if wanted is None:
            return None
        self._tell("compiling and verifying the training step")
        self.stepper = lyapunov_run.training_optimizer(
            self.compiled_as,
            self.loss,
            self.options.learning_rate,
            changed=self.model is not self.compiled_as,
            warnings=self.warnings,
        )
        step = UpdateMap(
            self.loss,
            self.stepper,
            product_mode=self.options.product_mode,
            allow_unverified=self.options.allow_unverified,
        )
        lyapunov_run.check_count(wanted, step)
        return step

    def _lyapunov(self, step: UpdateMap, found: _Found) -> None:
        followed = lyapunov_run.follow(
            step,
            lyapunov_run.LyapunovSettings(num_exponents=self.options.lyapunov, seed=self.options.seed),
            about=lyapunov_run.identity(self.stepper, self.model),
            progress=self.progress,
        )
        known = {note.code for note in self.warnings}
        self.warnings += [note for note in followed.warnings if note.code not in known]
        found.lyapunov, found.partial = followed.summary, followed.interrupted

    def _note_findings(self) -> None:
        """Warnings about the model, the data and the optimizer that the numbers rest on."""
        check = self.hessian.verification
        if not check.passed:
            self._warn(
                "unverified",
                f"the operator FAILED its verification (error {check.finite_difference_error:.2g} against finite "
                f"differences, symmetry error {check.symmetry_error:.2g}) and was used all the same: no number here "
                "can be trusted.",
            )
        if check.mode == "finite-differences" and self.options.dtype == "float32":
            self._warn(
                "finite-differences",
                f"products are differences of float32 gradients, good to {check.finite_difference_error:.1g}; "
                "analyse in float64 for better ones (--dtype float64).",
            )
        clipped = assumptions.logits_as_probabilities(self.loss)
        if clipped is not None:
            self._warn("logits-as-probabilities", clipped)
        reduced = precision.reduced_policies(self.compiled_as)
        if reduced:
            self._warn(
                "reduced-precision",
                f"the model computes in {', '.join(reduced)}; it was analysed in {self.options.dtype} throughout, at "
                "the same weights: training itself rounds more coarsely than these products.",
            )
        for note in self.loss.notes:
            self._warn("data", f"{note}.")
        unconnected = self.loss.engine(self.options.product_mode).unconnected
        if unconnected:
            self._warn(
                "unconnected",
                f"the loss does not depend on {', '.join(unconnected)}; these parameters count as flat directions.",
            )
        if type(self.model).train_step not in (keras.Model.train_step, keras.Sequential.train_step):
            self._warn("train-step", "the model has its own train_step; compute_loss was analysed instead of it.")
        if self.optimizer is not None:
            self.warnings += [Warning(code, message) for code, message in self.optimizer.notes]
            if self.decay and self.exponents.name == "hessian":
                self._warn(
                    "weight-decay-ignored",
                    f"the weight decay {self.decay:g} of {self.optimizer.name} is not in the map |1 - eta*alpha|: "
                    f"with it, neutral directions contract by {self.rate * self.decay:.2g} a step.",
                )
            excluded = update.excluded_from_decay(self.compiled_as, self.loss.layout)
            if self.decay and excluded:
                self._warn(
                    "weight-decay-exclusions",
                    f"the optimizer excludes {len(excluded)} variables from weight decay ({', '.join(excluded[:4])}); "
                    "the analysis applies it to all.",
                )

    def _extremes(self, hessian: HessianOperator) -> Eigenpairs:
        self._tell("largest and smallest eigenvalue of the data-set Hessian")
        watched = _Watched(hessian, self._tick)
        estimate: Eigenpairs = _estimate(self._eigen_estimator(hessian.size), watched, self.options.seed)
        return estimate

    def _eigen_estimator(self, size: int) -> Any:
        name = self.estimators["eigenpairs"]
        own = dict(self.options.settings.get(name, {}))
        steps = int(self.memory // (4 * size * self.loss.dtype.itemsize))
        if name == "lanczos" and steps < _FEWEST_EIGEN_STEPS:
            return registry.get_estimator("eigenpairs", "power-iteration")(which="both", num_steps=50)
        if name == "lanczos":
            own.setdefault("num_steps", min(_EIGEN_STEPS, steps))
        if name == "power-iteration":
            own.setdefault("which", "both")
        return _configured(registry.get_estimator("eigenpairs", name), own)

    def _trace(self, hessian: HessianOperator) -> TraceEstimate:
        self._tell("trace of the data-set Hessian")
        name = self.estimators["trace"]
        own = dict(self.options.settings.get(name, {}))
        if name == "randomized-trace":
            own.setdefault("tolerance", 0.02)
        estimator = _configured(registry.get_estimator("trace", name), own)
        estimate: TraceEstimate = _estimate(estimator, _Watched(hessian, self._tick), self.options.seed)
        return estimate

    def _edge(self, hessian: HessianOperator, pairs: Eigenpairs) -> EdgeOfStability:
        sharpness: float | None = float(pairs.values[0])
        if self.scaling is not None:
            self._tell("largest eigenvalue of the preconditioned Hessian")
            scaled = DiagonallyScaledOperator(_Watched(hessian, self._tick), self.scaling)
            found = _estimate(self._eigen_estimator(scaled.size), scaled, self.options.seed)
            sharpness = float(found.values[0])
        elif self.unscaled:
            sharpness = None
        batch, stderr = self._batch_sharpness(hessian)
        edge = self._edge_of(sharpness, self.unscaled)
        return attrs.evolve(edge, batch_sharpness=batch, batch_sharpness_stderr=stderr)

    def _edge_of(self, sharpness: float | None, reason: str = "") -> EdgeOfStability:
        """The verdict on a sharpness, before the batch sharpness is known."""
        optimizer, limits = self.optimizer, self.limits
        threshold = None if limits is None else limits.upper
        return EdgeOfStability(
            operator=_operator(limits is not None and limits.preconditioned),
            sharpness=sharpness,
            threshold=threshold,
            ratio=None if sharpness is None or threshold is None else sharpness / threshold,
            batch_sharpness=None,
            batch_sharpness_stderr=None,
            verdict=stability.verdict(
                sharpness,
                limits,
                optimizer="plain SGD" if optimizer is None else optimizer.name,
                learning_rate=self.rate,
                reason=reason,
            ),
        )

    def _batch_sharpness(self, hessian: HessianOperator) -> tuple[float | None, float | None]:
        """Mean over minibatches of g'Hg/|g|^2 (mean of ratios) and its standard error."""
        self._tell("batch sharpness")
        ratios = []
        for index in range(_MIN_RUNS):
            view = hessian.on_minibatch(index)
            gradient = view.gradient()
            norm = float(np.linalg.norm(gradient))
            if norm > 0:
                direction = (gradient / norm).astype(view.dtype)
                ratios.append(float(direction.astype(np.float64) @ view.matvec(direction)))
        if not ratios:
            return None, None
        error = float(np.std(ratios, ddof=1) / np.sqrt(len(ratios))) if len(ratios) > 1 else None
        return float(np.mean(ratios)), error

    def _dimension(
        self, hessian: HessianOperator, name: str, block: slice | None = None, most_products: int | None = None
    ) -> Outcome:
        """SD by one spectrum estimator, of the whole operator or of a diagonal block."""
        options = self.options
        size = hessian.size if block is None else block.stop - block.start
        own = dict(options.settings.get(name, {}))
        cls = registry.get_estimator("spectrum", name)
        if name == "exact":
            own.setdefault("memory_gb", self.memory / 1e9)
        estimator = _configured(cls, own)
        num_steps = getattr(estimator, "num_steps", None)
        workers = self._workers_for(name)
        can_skip = "reorthogonalize" in attrs.fields_dict(cls)

        def run(index: int, steps: int | None) -> Spectrum:
            chosen = estimator if steps is None else attrs.evolve(estimator, num_steps=steps)
            if can_skip and steps is not None and not self._fits(steps):
                chosen = attrs.evolve(chosen, reorthogonalize=False)
            seed = int(np.random.SeedSequence([options.seed, index]).generate_state(1)[0])
            source = self._on_minibatch(hessian, index)
            if block is not None:
                source = RestrictedOperator(source, block)
            spectrum: Spectrum = _estimate(chosen, source, seed)
            return spectrum

        if can_skip and num_steps is not None and not self._fits(num_steps):
            self._warn(
                "no-reorthogonalisation",
                f"{workers} Lanczos bases of {num_steps} x {hessian.size} do not fit {self.memory / 1e9:.1f} GB: "
                "the runs do without reorthogonalisation and without mass correction.",
            )
        limits = [] if options.max_hvps is None else [max(0, options.max_hvps - hessian.num_products)]
        limits += [] if most_products is None else [most_products]
        settings = AdaptiveSettings(
            tolerance=options.tolerance,
            min_runs=_MIN_RUNS,
            fixed_runs=options.exact_minibatches if name == "exact" else None,
            max_hvps=min(limits) if limits else None,
            deadline=None if options.time_limit is None else self.started + options.time_limit,
            group=workers,
        )
        context = Context(
            size=size,
            exponents=self.exponents,
            unstable_above=self._unstable_above(),
            ignored_decay=self.decay - self.exponents.weight_decay,
            product_error=hessian.verification.hvp_relative_error,
            estimator=name,
        )

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

    def _on_minibatch(self, hessian: HessianOperator, index: int) -> SymmetricOperator:
        """The operator whose eigenvalues the map takes: a minibatch's Hessian, or P^-1/2 H P^-1/2.

        The scaled one has no `reduced` form: directions that the first kernel does not feel are no longer orthogonal
        to those it feels.
        """
        view = hessian.on_minibatch(index)
        if self.scaling is None or not self.exponents.preconditioned:
            return view
        return DiagonallyScaledOperator(view, self.scaling)

    def _layers(self, hessian: HessianOperator, whole: SharpnessDimension) -> Iterator[LayerSharpness]:
        """The blocks one after the other; their dimensions share as many products as the whole one has taken."""
        name = self.estimators["spectrum"][0]

        def share(block: slice) -> int:
            if whole.num_steps is None:  # exact: as many minibatches as the whole
                return whole.num_runs * int(block.stop - block.start)
            return whole.num_hvps // len(self.loss.layout.layers)

        def dimension(block: slice) -> Outcome | None:
            if self._budget_ended():
                return None
            outcome = self._dimension(hessian, name, block, share(block))
            if outcome.interrupted:
                raise KeyboardInterrupt
            return outcome

        return layerwise.by_layer(
            _Watched(hessian, self._tick),
            self.loss.layout.layers,
            largest=lambda block: _estimate(self._eigen_estimator(block.size), block, self.options.seed),
            dimension=dimension,
            seed=self.options.seed,
            tell=self._tell,
        )

    def _budget_ended(self) -> bool:
        products, seconds = self.options.max_hvps, self.options.time_limit
        return (products is not None and self.hessian.num_products >= products) or (
            seconds is not None and time.monotonic() - self.started >= seconds
        )

    def _bounds(self, outcome: Outcome) -> tuple[Bound, ...]:
        estimate, given = outcome.sharpness_dimension, dict(self.options.bound_inputs)
        guessed: dict[str, float] = {}
        if self.options.estimate_bound_inputs:
            self._tell("inputs of the bounds")
            singles = EmpiricalLoss(
                self.model,
                self.source,
                mode="inference",
                params=self.options.params,
                dtype=self.options.dtype,
                num_samples=self.options.samples,
                seed=self.options.seed,
            )
            found = assumptions.estimated_inputs(singles)
            guessed = {name: value for name, value in found.items() if name not in given}
        facts = Facts(
            dimension=estimate.value if estimate.definition_value is None else estimate.definition_value,
            state_size=estimate.state_size,
            num_samples=self.source.num_samples,
            kinks=assumptions.kinks(self.model),
            clipped=self.optimizer is not None and any(code == "clipping" for code, _ in self.optimizer.notes),
            unbounded_loss=assumptions.unbounded_loss(self.model),
            smallest_exponent=float(np.min(self.exponents(outcome.nodes))),
        )
        return bounds(facts, guessed | given, frozenset(guessed))

    def _unstable_above(self) -> float | None:
        """The upper threshold where it is one for the eigenvalues that the map takes."""
        same = self.limits is not None and self.limits.preconditioned == self.exponents.preconditioned
        return self.limits.upper if self.limits is not None and same else None

    # The plan

    def plan(self) -> Plan:
        engine = self.loss.gradients
        batch = self.loss.minibatch(0)
        before = peak_memory()
        engine.gradient(engine.point, batch).numpy()
        times = []
        for _ in range(3):
            start = time.perf_counter()
            engine.gradient(engine.point, batch).numpy()
            times.append(time.perf_counter() - start)
        gradient = min(times)
        activations = max(0, peak_memory() - before)
        name = self.estimators["spectrum"][0]
        num_batches, size = len(self.loss.batches), self.loss.size
        steps: int | None = None
        fields = attrs.fields_dict(registry.get_estimator("spectrum", name))
        if "num_steps" in fields:
            own = self.options.settings.get(name, {})
            steps = min(int(own.get("num_steps", fields["num_steps"].default)), size)
        runs = (self.options.exact_minibatches or _MIN_RUNS) if name == "exact" else _MIN_RUNS
        per_run = size if steps is None else steps
        # Verification makes about ten products; eigenpairs and trace take about 40 + 32 on every batch.
        products = 10 + 72 * num_batches + _MIN_RUNS + runs * per_run
        if self.scaling is not None:
            products += 40 * num_batches
        if self.options.per_layer:
            layers = self.loss.layout.layers.values()
            products += 32 * num_batches
            products += sum(40 * num_batches + runs * min(per_run, part.stop - part.start) for part in layers)
        if self.options.lyapunov is not None:
            settings = lyapunov_run.LyapunovSettings()
            products += self.options.lyapunov * (settings.num_steps + settings.transient)
        if steps is None:
            basis = self._dense_bytes() * self._workers_for(name)
        else:
            basis = self._basis_bytes(steps if self._fits(steps) else 4) * self.workers
        memory = peak_memory() + basis + self.workers * (3 * activations + 8 * size * self.loss.dtype.itemsize)
        return Plan(
            num_parameters=size,
            state_size=self.exponents.branches * size,
            map=self.exponents.name,
            num_batches=num_batches,
            num_runs=runs,
            num_steps=steps,
            num_hvps=products,
            peak_memory=int(memory),
            seconds=products * gradient * _GRADIENTS_PER_PRODUCT / max(1, self.workers),
            seconds_per_gradient=gradient,
        )

    # Pieces

    def _tell(self, stage: str) -> None:
        self.stage = stage
        self._tick()

    def _tick(self) -> None:
        if self.progress is not None:
            spent = self.hessian.num_products if hasattr(self, "hessian") else 0
            self.progress(Progress(self.stage, spent))

    def _warn(self, code: str, message: str) -> None:
        self.warnings.append(Warning(code, message))

    def _workers_for(self, name: str) -> int:
        """Runs of a spectrum estimator that go on side by side; an exact one holds a dense matrix each."""
        return 1 if name == "exact" and self._dense_bytes() * self.workers > self.memory else self.workers

    def _dense_bytes(self) -> int:
        return 8 * self.loss.size**2

    def _fits(self, steps: int) -> bool:
        """Whether the Lanczos bases of all workers fit the memory."""
        return self._basis_bytes(steps) * self.workers <= self.memory

    def _basis_bytes(self, steps: int) -> int:
        return steps * self.loss.size * self.loss.dtype.itemsize

    def _model_info(self) -> ModelInfo:
        trainable = self.model.trainable_variables
        return ModelInfo(
            name=str(self.model.name),
            num_parameters=int(sum(np.prod(v.shape, dtype=np.int64) for v in trainable)),
            num_trainable_analysed=self.loss.size,
            mode=self.options.mode,
            loss=loss_name(self.model.loss),
            unconnected=self.loss.engine(self.options.product_mode).unconnected,
        )


class _Watched(SymmetricOperator):
    """An operator that tells after each product, for the progress line."""

    def __init__(self, operator: SymmetricOperator, tell: Callable[[], None]) -> None:
        self.operator = operator
        self.tell = tell
        self.size = operator.size
        self.dtype = operator.dtype

    def matvec(self, vector: Array) -> Array:
        product = self.operator.matvec(vector)
        self.tell()
        return product

    def matmat(self, matrix: Array) -> Array:
        product = self.operator.matmat(matrix)
        self.tell()
        return product


def _in_order(function: Callable[[int], Spectrum], indices: Iterable[int]) -> Iterable[Spectrum]:
    return (function(index) for index in indices)


def _own_map(optimizer: update.OptimizerSettings | None) -> tuple[str, str]:
    """Name of the optimizer's own map, or why there is none."""
    if optimizer is None:
        return "", "no optimizer is known"
    momentum = optimizer.momentum or 0.0
    with_momentum = "nesterov" if optimizer.nesterov else "heavy-ball"
    names = {"SGD": with_momentum if momentum else "sgd", "Adam": "adam", "AdamW": "adam", "RMSprop": "rmsprop"}
    if optimizer.name not in names:
        return "", f"the optimizer is {optimizer.name}"
    if not 0.0 <= momentum < 1.0:
        return "", f"the momentum {momentum:g} of {optimizer.name} is not between 0 and 1"
    return names[optimizer.name], ""


def _operator(preconditioned: bool) -> str:
    return "P^-1/2 H P^-1/2" if preconditioned else "H"


def _check_options(options: Options) -> None:
    def refuse(what: str, value: Any, expected: str) -> None:
        raise SdkerasError(f"{what} is {value!r}; it must be {expected}.")

    for name in ("samples", "exact_minibatches", "max_hvps", "time_limit", "memory_gb", "workers", "lyapunov"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            refuse(name, value, "positive")
    if not 0 < options.tolerance < 1:
        refuse("tolerance", options.tolerance, "between 0 and 1")
    if options.map not in MAPS:
        refuse("map", options.map, f"one of {', '.join(MAPS)}")
    if options.seed < 0:
        refuse("seed", options.seed, "0 or more")
    if options.lyapunov is not None and (options.params is not None or options.mode != "train"):
        raise SdkerasError(
            "Lyapunov exponents are of training as it is, of all variables and in training mode; leave out params and "
            "mode, or the exponents (--lyapunov)."
        )


def _by_kind(options: Options) -> dict[str, Any]:
    """The estimators to use: spectrum ones in order (exact first when asked for), one of each other kind."""
    chosen: dict[str, Any] = {"spectrum": [], "eigenpairs": "lanczos", "trace": "randomized-trace"}
    for name in options.estimators:
        kind = registry.kind_of(name, registry.ANALYSIS_KINDS)
        registry.get_estimator(kind, name)
        if kind == "spectrum":
            chosen["spectrum"].append(name)
        else:
            chosen[kind] = name
    spectrum = [name for name in chosen["spectrum"] if name != "exact"]
    exact = options.exact or options.exact_minibatches is not None or "exact" in chosen["spectrum"]
    if not spectrum and "exact" not in chosen["spectrum"]:
        spectrum = [_DEFAULT_ESTIMATOR]
    chosen["spectrum"] = [*(["exact"] if exact else []), *spectrum]
    used = {*chosen["spectrum"], chosen["eigenpairs"], chosen["trace"]}
    for name, settings in options.settings.items():
        if name not in used:
            raise SdkerasError(
                f"settings were given for '{name}', which is not used here; used are: {', '.join(sorted(used))}."
            )
        kind = registry.kind_of(name, registry.ANALYSIS_KINDS)
        _configured(registry.get_estimator(kind, name), settings)
    return chosen


def _configured(cls: type[Any], settings: Mapping[str, Any]) -> Any:
    """An estimator with the given fields.

    Raises:
        SdkerasError: An unknown field, or a value its validator refuses.
    """
    try:
        return cls(**settings)
    except (TypeError, ValueError) as error:
        fields = ", ".join(field.name for field in attrs.fields(cls)) or "none"
        reason = error.args[0] if error.args else type(error).__name__
        raise SdkerasError(f"settings of {cls.__name__}: {reason}; its fields are: {fields}.") from error


def _estimate(estimator: Any, source: SymmetricOperator, seed: int) -> Any:
    """One run of an estimator, anybody's: what it raises is told as its failure, not as a bug of the analysis.

    Raises:
        PluginError: It raised something that is neither ours nor a shortage of memory.
    """
    try:
        return estimator.estimate(source, seed=seed)
    except (SdkerasError, MemoryError):
        raise
    except USER_ERRORS as error:  # SystemExit too: a plugin must not end the command as if all were well
        declared = type(estimator).__sdkeras__
        raise PluginError(
            f"{declared.kind} estimator '{declared.name}' ({type(estimator).__module__}) failed on an operator of "
            f"{source.size:,} dimensions: {last_line(error).rstrip('.')}; try other settings of it or another one."
        ) from error


def _num_workers(asked: int | None) -> int:
    if asked is not None:
        return asked
    return (os.cpu_count() or 1) if tf.config.threading.get_intra_op_parallelism_threads() == 1 else 1


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
