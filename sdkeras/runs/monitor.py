"""The numbers of a training under way: built once for a model, measured again at whatever weights it has then."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence

import attrs
import keras
import numpy as np
import tensorflow as tf

from sdkeras._version import __version__
from sdkeras.dimension.next_steps import next_steps
from sdkeras.dimension.sampling import Outcome
from sdkeras.errors import SdkerasError
from sdkeras.estimators.select import DEFAULTS, estimate, estimator_of_largest, for_analysis, with_steps
from sdkeras.files.archive import Nested
from sdkeras.files.keras_types import Data, Model
from sdkeras.linalg.operators import DiagonallyScaledOperator, SymmetricOperator
from sdkeras.linalg.probes import warm_start
from sdkeras.operators.hessian import HessianOperator
from sdkeras.reporting.numbers import root_ratio
from sdkeras.results.answers import Analysis, HessianSummary
from sdkeras.results.arrays import Array, Value
from sdkeras.results.bounds import Bound
from sdkeras.results.estimates import Eigenpairs, TraceEstimate
from sdkeras.results.log import Header, Measurement
from sdkeras.results.measured import Measured
from sdkeras.results.note import Note
from sdkeras.runs import assumptions, measure
from sdkeras.runs.assumptions import findings
from sdkeras.runs.budget import Meter, Notes, resources, whole_budget
from sdkeras.runs.edge import edge_of_stability
from sdkeras.runs.options import DEFAULT_PRESET, Preset, measurement_options
from sdkeras.runs.problem import Problem, operator_name, read_problem
from sdkeras.runs.provenance import data_info, utc_now
from sdkeras.training_step.settings import steps_taken

DIMENSION = ("rds_sharpness", "sharpness_dimension", "sharpness_codimension")
MEASURES = ("sharpness", "sharpness_ratio", *DIMENSION, "hessian_trace")
# Keys that come with a measure: numerator and denominator of the ratio.
_BESIDE = {"sharpness_ratio": ("sharpness_preconditioned", "sharpness_threshold")}
# What follows from SD and the bounds' inputs, beside the measures.
BOUND_SCALE, TOTAL_BOUND = "bound_scale", "generalization_bound"
# An eigenvalue's error is the residual squared over its gap to the next: with 1e-2 of itself, well below 1 %.
_EIGEN_TOLERANCE = 1e-2
_TRACE_PROBES = 16
# To begin with; where the nested check asks for more, later measurements begin with those.
_STEPS = 20
# Cautions that every measurement would repeat: its intervals say the same.
_USUAL = ("interval-scope", "wide-interval")
_UNKNOWN = Measured(math.nan, False)


def check_measures(
    measures: Sequence[str], bound_inputs: Mapping[str, float] | None = None, estimate_inputs: bool = False
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The measures in the order of `MEASURES`, and the keys of every measurement, a failed one included.

    `bound_scale` is there where SD is measured, `generalization_bound` where a theorem has every input as well.

    Raises:
        SdkerasError: No or an unknown measure, or bounds are requested without SD.
    """
    names = (measures,) if isinstance(measures, str) else tuple(measures or ())
    unknown = [name for name in names if name not in MEASURES]
    if unknown or not names:
        what = f"{unknown[0]!r} is not a measure" if unknown else "no measure was requested"
        raise SdkerasError(f"{what}; there are: {', '.join(MEASURES)}.")
    names = tuple(name for name in MEASURES if name in names)
    keys = [key for name in names for key in (*_BESIDE.get(name, ()), name)]
    if set(DIMENSION) & set(names):
        complete = assumptions.is_complete(bound_inputs or {}, estimate_inputs)
        keys += [BOUND_SCALE, *([TOTAL_BOUND] if complete else [])]
    elif bound_inputs or estimate_inputs:
        raise SdkerasError(
            f"the bounds need the sharpness dimension, and the measures are {', '.join(names)}; add "
            "sharpness_dimension to them, or leave out the inputs of the bounds."
        )
    return names, tuple(keys)


class Monitor:
    """Measures a model in its present state, with functions compiled once.

    Minibatches, probes and dropout masks are the same at every measurement, so that differences are due to the
    weights. The search for the largest eigenvalue starts from the previous eigenvector.

    Args:
        model: A compiled `keras.Model`.
        data: See `sdkeras.analyze`.
        measures: Names of measures, from `MEASURES`.
        preset: Values of the options that are left out, as in `sdkeras.analyze`; all runs are of the default estimator.
        **options: Options of `sdkeras.analyze`: samples, tolerance, batch_size, learning_rate, loss, class_weight,
            params, mode, map (auto or hessian), dtype, memory_gb, seed, bound_inputs, estimate_bound_inputs; and
            max_hvps, here of a measurement's exponents and dimension.

    Attributes:
        out_of_time: Whether the last measurement's exponents and dimension would have taken longer than it was given.

    Raises:
        SdkerasError: Unusable model, data or options; products that fail their verification.
    """

    def __init__(
        self,
        model: Model,
        data: Data,
        *,
        measures: Sequence[str] = MEASURES,
        preset: Preset = DEFAULT_PRESET,
        **options: Value,
    ) -> None:
        chosen = measurement_options(preset, options)
        if chosen.map == "full":
            raise SdkerasError(
                "measurements of a training are of spectra of the Hessian, and the map full is of the whole step; take "
                "the map auto or hessian here, and `sdkeras.analyze` for the map full."
            )
        self.measures, self.keys = check_measures(measures, chosen.bound_inputs, chosen.estimate_bound_inputs)
        self.problem, _ = read_problem(model, data, chosen)
        loss = self.problem.loss
        room = resources(loss.size, loss.dtype.itemsize, memory_gb=chosen.memory_gb, workers=None, devices=loss.devices)
        self.hessian = HessianOperator(loss, workers=room.workers)
        # One run of a measurement at a time.
        self.budget = whole_budget(attrs.evolve(room, workers=1), Meter(lambda: self.hessian.num_products))
        if "hessian_trace" in self.measures:  # compiled here, so that the first measurement takes as long as the others
            self.hessian.on_batch(loss.batches[0]).rows(np.zeros((2, loss.size), loss.dtype))
        self._singles = assumptions.loss_of_single_examples(self.problem) if chosen.estimate_bound_inputs else None
        if self._singles is not None:  # compiled here as well
            self._singles.gradients.gradient(self._singles.gradients.point, self._singles.batches[0])
        self._answer: Callable[[str], Analysis] | None = None  # of the last measurement
        self.out_of_time = False
        self._vectors: dict[str, Array] = {}
        self._num_steps = _STEPS

    def header(self) -> Header:
        """Header of this monitor's log."""
        source, optimizer = self.problem.source, self.problem.optimizer
        return Header(
            sdkeras=__version__,
            tensorflow=str(tf.__version__),
            keras=str(keras.__version__),
            model=str(self.problem.model.name),
            num_parameters=self.hessian.size,
            optimizer="unknown" if optimizer is None else optimizer.name,
            num_samples=source.num_samples,
            num_samples_hessian=self.problem.loss.num_examples,
            batch_size=source.batch_size,
            data_digest=source.digest(),
            seed=self.problem.options.seed,
            measures=self.measures,
            batch_size_source=source.batch_size_source,
            class_weight=data_info(self.problem.loss).class_weight,
            preset=self.problem.options.preset,
        )

    def state(self) -> Nested:
        """State that a measurement leaves for the next: nested values for `sdkeras.files.archive`."""
        return {"vectors": dict(self._vectors), "num_steps": self._num_steps}

    def restore(self, state: Nested) -> None:
        """Continues from a value of `state`."""
        self._vectors, self._num_steps = dict(state["vectors"]), int(state["num_steps"])

    def take(self, model: Model) -> None:
        """Puts another model's weights and optimizer variables into this one's, which must have the same."""
        target = self.problem.compiled_as
        pairs = list(zip(target.variables, model.variables, strict=True))
        if self.problem.model is not target:  # a copy that is compiled with another loss
            pairs += zip(self.problem.model.variables, model.variables, strict=True)
        if target.optimizer is not None:
            pairs += zip(target.optimizer.variables, model.optimizer.variables, strict=True)
        for variable, value in pairs:
            variable.assign(value)

    def measure(
        self,
        *,
        source: str = "fit",
        epoch: int | None = None,
        metrics: Mapping[str, float] | None = None,
        seconds: float | None = None,
    ) -> Measurement:
        """The model as it is now.

        Without a learning rate to take a step with (0, or several), threshold, ratio, exponents and dimension are NaN.

        Args:
            source: Origin of the weights, for the log.
            epoch: Epochs finished.
            metrics: Losses and metrics of the training, for the log.
            seconds: Time after which no more runs are begun for the exponents and the dimension, which have not
                converged then; None for no limit.

        Raises:
            SdkerasError: A product is NaN or infinite.
            KeyboardInterrupt: Ctrl-C.
        """
        with self.problem.loss.devices.scope():
            return self._measurement(source, epoch, metrics, seconds)

    def _measurement(
        self, source: str, epoch: int | None, metrics: Mapping[str, float] | None, seconds: float | None
    ) -> Measurement:
        started, before = time.perf_counter(), self.hessian.num_products
        deadline = None if seconds is None else time.monotonic() + seconds
        hessian = self.hessian.at(self.problem.loss.now())
        problem, about_map = self.problem.now()
        mapped, of_ratio = bool(set(DIMENSION) & set(self.measures)), "sharpness_ratio" in self.measures
        notes, known, outcome = [], {}, None
        bounds: tuple[Bound, ...] = ()
        self.out_of_time = False
        if "sharpness" in self.measures:
            known["sharpness"] = self._largest(hessian, "H")
        if of_ratio:
            known |= self._ratio(problem, hessian, known.get("sharpness"))
        if "hessian_trace" in self.measures:
            estimator = with_steps(for_analysis("trace", DEFAULTS["trace"], {}), _TRACE_PROBES)
            trace: TraceEstimate = estimate(estimator, hessian, self.problem.options.seed)
            known["hessian_trace"] = measure.trace_with_evidence(trace.value, trace.stderr)
        if problem.rate is None and (mapped or of_ratio):
            notes.append(problem.no_rate)
        elif of_ratio and (problem.limits is None or problem.unscaled):
            notes.append(edge_of_stability(problem, None, problem.unscaled).verdict)
        if mapped and problem.rate is not None:
            outcome = self._dimension(problem, hessian, deadline)
            notes += [note.message for note in (*about_map, *outcome.warnings) if note.code not in _USUAL]
            known |= _readings(outcome, problem.options.tolerance)
            bounds = self._bounds(problem, outcome)
            known |= _of_bounds(known["sharpness_dimension"], problem.source.num_samples, bounds)
        estimate_of_sd = None if outcome is None else outcome.sharpness_dimension
        measurement = Measurement(
            source=source,
            step=steps_taken(problem.compiled_as.optimizer),
            epoch=epoch,
            time=utc_now(),
            seconds=time.perf_counter() - started,
            num_hvps=self.hessian.num_products - before,
            learning_rate=problem.stored_rate if problem.rate is None else problem.rate,
            threshold=None if problem.limits is None else problem.limits.upper,
            operator=operator_name(problem.preconditioned),
            map="" if estimate_of_sd is None else estimate_of_sd.map,
            state_size=0 if estimate_of_sd is None else estimate_of_sd.state_size,
            values={key: known.get(key, _UNKNOWN) for key in self.keys},
            metrics=dict(metrics or {}),
            notes=tuple(dict.fromkeys(notes)),
            bounds=bounds,
        )
        self._answer = functools.partial(_answer, measurement, problem, about_map, hessian, outcome)
        return measurement

    def answer(self, about: str) -> Analysis | None:
        """The last measurement as an answer of `analyze`, null where nothing was measured; None before the first.

        `about` is the time of the measurement, in words.
        """
        return None if self._answer is None else self._answer(about)

    def training_loss(self) -> tuple[float, float | None]:
        """The loss at the model's weights as `fit` logs it, a mean over batches, and its standard error.

        The error is of the choice of batches and masks: 0 for all the data in one batch, None for one batch of more.
        """
        now = self.problem.loss.now()
        separate = [attrs.evolve(batch, loss_weights=()) for batch in now.batches]  # each as if it were all the data
        losses = [float(now.gradients.evaluate(now.gradients.point, batch)[0]) for batch in separate]
        sizes = [batch.num_examples for batch in now.batches]
        if len(losses) > 1:
            error: float | None = float(np.std(losses, ddof=1) / np.sqrt(len(losses)))
        else:
            error = 0.0 if sum(sizes) == self.problem.source.num_samples else None
        return float(np.average(losses, weights=sizes)), error

    def _bounds(self, problem: Problem, outcome: Outcome) -> tuple[Bound, ...]:
        """Both theorems at this SD, with what is known and estimated of their inputs."""
        notes = () if problem.optimizer is None else [Note(*each) for each in problem.optimizer.notes]
        singles = None if self._singles is None else self._singles.now()
        inputs = assumptions.inputs_at(singles, problem.options.bound_inputs)
        return measure.bounds(problem, measure.facts(problem, outcome, problem.exponents, notes), inputs)

    def _largest(self, operator: SymmetricOperator, name: str) -> Measured:
        """The largest eigenvalue, from the last eigenvector of the operator of this name."""
        seed, known = self.problem.options.seed, self._vectors.get(name)
        start = None if known is None else warm_start(known, seed=seed, dtype=operator.dtype)
        steps = self.budget.resources.eigen_steps(operator.size)
        estimator = estimator_of_largest(start, tolerance=_EIGEN_TOLERANCE, most_steps=steps)
        pairs: Eigenpairs = estimate(estimator, operator, seed)
        if pairs.vectors is not None:
            self._vectors[name] = pairs.vectors
        return measure.with_evidence(pairs, 0)

    def _ratio(self, problem: Problem, hessian: HessianOperator, sharpness: Measured | None) -> dict[str, Measured]:
        """The largest eigenvalue of the threshold's own operator, the threshold, and their ratio, as far as known.

        The operator is P^-1/2 H P^-1/2 for an adaptive optimizer; for every other one it is H, and the first value is
        the sharpness.
        """
        if problem.scaling is not None:
            numerator = self._largest(DiagonallyScaledOperator(hessian, problem.scaling), "P^-1/2 H P^-1/2")
        elif problem.unscaled:
            numerator = _UNKNOWN
        else:
            numerator = self._largest(hessian, "H") if sharpness is None else sharpness
        if problem.limits is None:
            return {"sharpness_preconditioned": numerator}
        upper = problem.limits.upper
        residual = None if numerator.residual is None else numerator.residual / upper
        return {
            "sharpness_preconditioned": numerator,
            "sharpness_threshold": Measured(upper, True),
            "sharpness_ratio": Measured(numerator.value / upper, numerator.converged, residual=residual),
        }

    def _dimension(self, problem: Problem, hessian: HessianOperator, deadline: float | None) -> Outcome:
        name, most = DEFAULTS["spectrum"], problem.options.max_hvps
        share = attrs.evolve(self.budget, most=None if most is None else self.budget.spent + most, deadline=deadline)
        estimator = with_steps(for_analysis("spectrum", name, {}), self._num_steps)
        how = measure.Sampling(name, estimator, min_runs=problem.options.min_runs, required=True)
        outcome, _ = measure.dimension(problem, measure.HessianRuns(problem, hessian), share, how)
        self.out_of_time = outcome.out_of_time
        self._num_steps = outcome.sharpness_dimension.num_steps or self._num_steps
        return outcome


def _answer(
    measurement: Measurement,
    problem: Problem,
    about_map: Notes,
    hessian: HessianOperator,
    outcome: Outcome | None,
    about: str,
) -> Analysis:
    known = {key: each for key, each in measurement.values.items() if math.isfinite(each.value)}
    # The verdict is on the sharpness that the ratio is of; on H's where that is the threshold's own operator.
    numerator = known.get("sharpness_preconditioned", None if problem.preconditioned else known.get("sharpness"))
    reason = problem.unscaled or ("" if numerator is not None else "its sharpness was not measured")
    notes = [*findings(problem, hessian), *about_map, *(() if outcome is None else outcome.warnings)]
    if problem.rate is None:
        notes.append(Note("no-learning-rate", measure.without_a_rate(problem)))
    answer = measure.joined(
        problem,
        hessian,
        [] if outcome is None else [outcome],
        None if outcome is None else problem.exponents,
        cost=(measurement.num_hvps, time.monotonic() - measurement.seconds),
        hessian=HessianSummary(largest=known.get("sharpness"), smallest=None, trace=known.get("hessian_trace")),
        edge_of_stability=edge_of_stability(problem, numerator, reason),
        bounds=measurement.bounds,
        warnings=(*dict.fromkeys(notes), Note("while-training", about)),
    )
    return attrs.evolve(answer, next_steps=next_steps(answer))


def _readings(outcome: Outcome, tolerance: float) -> dict[str, Measured]:
    """The leading exponent, SD and the codimension."""
    sd = outcome.sharpness_dimension
    converged = "budget-ended" not in {warning.code for warning in outcome.warnings}
    if sd.threshold_exponent is None and sd.interval is not None:  # at 0 or d the runs end whatever the interval
        converged = sd.interval[1] - sd.interval[0] <= 2 * tolerance * max(sd.codimension, 1.0)
    return {
        "rds_sharpness": Measured(float(outcome.rds_sharpness.leading[0]), converged),
        "sharpness_dimension": Measured(sd.value, converged, interval=sd.interval),
        "sharpness_codimension": Measured(sd.codimension, converged, interval=sd.codimension_interval),
    }


def _of_bounds(sd: Measured, num_samples: int, bounds: Sequence[Bound]) -> dict[str, Measured]:
    """sqrt(SD/n), and the total of the first theorem that has one."""
    low, high = (root_ratio(end, num_samples) for end in sd.interval or (math.nan, math.nan))
    scale, total = root_ratio(sd.value, num_samples), next((b.total for b in bounds if b.total is not None), None)
    interval = None if low is None or high is None else (low, high)
    return {
        BOUND_SCALE: Measured(math.nan if scale is None else scale, sd.converged, interval=interval),
        TOTAL_BOUND: Measured(math.nan if total is None else total, sd.converged),
    }


def failed_measurement(
    keys: Sequence[str],
    reason: str,
    *,
    source: str = "fit",
    step: int = 0,
    epoch: int | None = None,
    metrics: Mapping[str, float] | None = None,
) -> Measurement:
    """NaN for every key, see `check_measures`, with the reason."""
    return Measurement(
        source=source,
        step=step,
        epoch=epoch,
        time=utc_now(),
        seconds=0.0,
        num_hvps=0,
        learning_rate=None,
        threshold=None,
        operator="",
        map="",
        state_size=0,
        values=dict.fromkeys(keys, _UNKNOWN),
        metrics=dict(metrics or {}),
        notes=(f"the measurement failed: {reason}",),
    )
