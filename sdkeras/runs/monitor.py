"""The numbers of a training under way: built once for a model, measured again at whatever weights it has then."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import keras
import numpy as np
import tensorflow as tf

from sdkeras._version import __version__
from sdkeras.dimension.bounds import bounds as bounds_with
from sdkeras.dimension.sampling import AdaptiveSettings, Outcome, estimate_sharpness_dimension
from sdkeras.errors import SdkerasError
from sdkeras.estimators.select import DEFAULTS, estimate, estimator_of_largest, for_analysis, with_steps
from sdkeras.linalg.operators import DiagonallyScaledOperator, SymmetricOperator
from sdkeras.linalg.probes import warm_start
from sdkeras.operators.hessian import HessianOperator
from sdkeras.reporting.numbers import root_ratio
from sdkeras.results.answers import Analysis
from sdkeras.results.arrays import Array
from sdkeras.results.bounds import Bound
from sdkeras.results.estimates import Eigenpairs, Spectrum, TraceEstimate
from sdkeras.results.log import Header, Measurement, Reading
from sdkeras.runs import assumptions
from sdkeras.runs.answers import Measured, answer_of
from sdkeras.runs.budget import resources
from sdkeras.runs.edge import edge_of_stability
from sdkeras.runs.options import Options, check_options
from sdkeras.runs.problem import Subject
from sdkeras.runs.provenance import data_info, utc_now
from sdkeras.seeds import seed_of_run
from sdkeras.training_step.settings import steps_taken

DIMENSION = ("rds_sharpness", "sharpness_dimension", "sharpness_codimension")
MEASURES = ("sharpness", "sharpness_ratio", *DIMENSION, "hessian_trace")
# Keys that come with a measure: numerator and denominator of the ratio.
_BESIDE = {"sharpness_ratio": ("sharpness_preconditioned", "sharpness_threshold")}
# What follows from SD and the bounds' inputs, beside the measures.
BOUND_SCALE, TOTAL_BOUND = "bound_scale", "generalization_bound"
DEFAULT_SAMPLES = 1024
DEFAULT_TOLERANCE = 0.2
# Three times what the least number of runs takes at 40 steps.
DEFAULT_MAX_HVPS = 1000
# An eigenvalue's error is the residual squared over its gap to the next: with 1e-2 of itself, well below 1 %.
_EIGEN_TOLERANCE = 1e-2
_TRACE_PROBES = 16
_RUNS = 8
# To begin with; where the nested check asks for more, later measurements begin with those.
_STEPS = 20
# Cautions that every measurement would repeat: its intervals say the same.
_USUAL = ("interval-scope", "wide-interval")


def check_measures(measures: Sequence[str]) -> tuple[str, ...]:
    """The measures in the order of `MEASURES`.

    Raises:
        SdkerasError: None, or an unknown one.
    """
    given = (measures,) if isinstance(measures, str) else tuple(measures or ())
    unknown = [name for name in given if name not in MEASURES]
    if unknown or not given:
        what = f"{unknown[0]!r} is no measure" if unknown else "no measure was asked for"
        raise SdkerasError(f"{what}; there are: {', '.join(MEASURES)}.")
    return tuple(name for name in MEASURES if name in given)


def keys_of(measures: Sequence[str]) -> tuple[str, ...]:
    """The measures, each after the keys that come with it."""
    return tuple(key for name in measures for key in (*_BESIDE.get(name, ()), name))


def log_keys(measures: Sequence[str], bound_inputs: Mapping[str, float] | None, estimate: bool) -> tuple[str, ...]:
    """The keys of every measurement, a failed one included: those of the measures, and those of the bounds.

    `bound_scale` is there where SD is measured, `generalization_bound` where a theorem has every input as well.

    Raises:
        SdkerasError: Bounds are asked for, and SD is not measured.
    """
    if not set(DIMENSION) & set(measures):
        if bound_inputs or estimate:
            raise SdkerasError(
                f"the bounds need the sharpness dimension, and the measures are {', '.join(measures)}; add "
                "sharpness_dimension to them, or leave out the inputs of the bounds."
            )
        return keys_of(measures)
    complete = assumptions.is_complete(bound_inputs or {}, estimate)
    return (*keys_of(measures), BOUND_SCALE, *([TOTAL_BOUND] if complete else []))


class Monitor:
    """Measures a model as it is now, with functions compiled once.

    Minibatches, probes and dropout masks are the same at every measurement, so that differences between two are the
    weights'. The largest eigenvalue is sought from the last one's eigenvector on.

    Args:
        model: A compiled `keras.Model`.
        data: As in `sdkeras.analyze`.
        measures: Which numbers, of `MEASURES`.
        samples: Random subset for the data-set Hessian.
        tolerance: Half-width of SD's interval wanted, relative to the codimension.
        max_hvps: Products of a measurement's exponents and dimension at most.
        **options: More of `sdkeras.analyze`: batch_size, learning_rate, loss, class_weight, params, mode, dtype,
            memory_gb, seed, bound_inputs, estimate_bound_inputs.

    Attributes:
        out_of_time: Whether the last measurement's exponents and dimension would have taken longer than it was given.

    Raises:
        SdkerasError: Unusable model, data or options; products that fail their verification.
    """

    def __init__(
        self,
        model: Any,
        data: Any,
        *,
        measures: Sequence[str] = MEASURES,
        samples: int = DEFAULT_SAMPLES,
        tolerance: float = DEFAULT_TOLERANCE,
        max_hvps: int = DEFAULT_MAX_HVPS,
        **options: Any,
    ) -> None:
        options["bound_inputs"] = options.get("bound_inputs") or {}
        chosen = Options(samples=samples, tolerance=tolerance, max_hvps=max_hvps, **options)
        check_options(chosen)
        self.measures = check_measures(measures)
        self.keys = log_keys(self.measures, chosen.bound_inputs, chosen.estimate_bound_inputs)
        self.subject = Subject(model, data, chosen)
        loss = self.subject.loss
        self.resources = resources(loss.size, loss.dtype.itemsize, memory_gb=chosen.memory_gb, workers=None)
        self.hessian = HessianOperator(loss, workers=self.resources.workers)
        if "hessian_trace" in self.measures:  # compiled here, so that the first measurement takes as long as the others
            self.hessian.on_batch(loss.batches[0]).rows(np.zeros((2, loss.size), loss.dtype))
        self._singles = assumptions.loss_of_single_examples(self.subject) if chosen.estimate_bound_inputs else None
        if self._singles is not None:  # compiled here as well
            self._singles.gradients.gradient(self._singles.gradients.point, self._singles.batches[0])
        self._last: Measured | None = None
        self.out_of_time = False
        self._vectors: dict[str, Array] = {}
        self._num_steps = _STEPS

    def header(self) -> Header:
        """What a log says of this monitor."""
        source, optimizer = self.subject.source, self.subject.optimizer
        return Header(
            sdkeras=__version__,
            tensorflow=str(tf.__version__),
            keras=str(keras.__version__),
            model=str(self.subject.model.name),
            num_parameters=self.hessian.size,
            optimizer="unknown" if optimizer is None else optimizer.name,
            num_samples=source.num_samples,
            num_samples_hessian=self.subject.loss.num_examples,
            batch_size=source.batch_size,
            data_digest=source.digest(),
            seed=self.subject.options.seed,
            measures=self.measures,
            batch_size_source=source.batch_size_source,
            class_weight=data_info(source, 0).class_weight,
        )

    def state(self) -> dict[str, Any]:
        """What a measurement leaves for the next: nested values for `sdkeras.files.archive`."""
        return {"vectors": dict(self._vectors), "num_steps": self._num_steps}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` returned."""
        self._vectors, self._num_steps = dict(state["vectors"]), int(state["num_steps"])

    def take(self, model: Any) -> None:
        """Puts another model's weights and optimizer variables into this one's, which must have the same."""
        own = self.subject.compiled_as
        pairs = list(zip(own.variables, model.variables, strict=True))
        if self.subject.model is not own:  # a copy that is compiled with another loss
            pairs += zip(self.subject.model.variables, model.variables, strict=True)
        for optimizer, other in [(own.optimizer, model.optimizer)] if own.optimizer is not None else []:
            pairs += zip(optimizer.variables, other.variables, strict=True)
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
            source: Where the weights are from, for the log.
            epoch: Epochs finished.
            metrics: Losses and metrics of the training, for the log.
            seconds: Time after which no more runs are begun for the exponents and the dimension, which have not
                converged then; None for no limit.

        Raises:
            SdkerasError: A product is NaN or infinite.
            KeyboardInterrupt: Ctrl-C.
        """
        started, before, notes = time.perf_counter(), self.hessian.num_products, []
        deadline = None if seconds is None else time.monotonic() + seconds
        self.out_of_time = False
        values: dict[str, Reading] = {}
        hessian = self.hessian.at(self.subject.loss.now())
        subject = self.subject.now()
        if subject.rate is None and set(self.measures) & {"sharpness_ratio", *DIMENSION}:
            notes.append(subject.no_rate)
        edge = edge_of_stability(subject, None)
        if "sharpness" in self.measures:
            values["sharpness"] = self._largest(hessian, "H")
        if "sharpness_ratio" in self.measures:
            values |= self._ratio(subject, hessian, values.get("sharpness"), notes)
        trace = self._trace(hessian) if "hessian_trace" in self.measures else None
        outcome = None
        if set(DIMENSION) & set(self.measures):
            if subject.rate is not None:
                outcome = self._dimension(subject, hessian, deadline)
                notes += [each.message for each in (*subject.warnings, *outcome.warnings) if each.code not in _USUAL]
            known = _readings(outcome, self.subject.options.tolerance)
            values |= {name: value for name, value in known.items() if name in self.measures}
        bounds = () if outcome is None else self._bounds(subject, outcome)
        if trace is not None:
            values["hessian_trace"] = trace
        values |= self._of_bounds(outcome, bounds)
        measurement = Measurement(
            source=source,
            step=steps_taken(self.subject.compiled_as.optimizer),
            epoch=epoch,
            time=utc_now(),
            seconds=time.perf_counter() - started,
            num_hvps=self.hessian.num_products - before,
            learning_rate=subject.stored_rate if subject.rate is None else subject.rate,
            threshold=edge.threshold,
            operator=edge.operator,
            map="" if outcome is None else outcome.sharpness_dimension.map,
            state_size=0 if outcome is None else outcome.sharpness_dimension.state_size,
            values=values,
            metrics=dict(metrics or {}),
            notes=tuple(dict.fromkeys(notes)),
            bounds=bounds,
        )
        self._last = Measured(measurement, subject, hessian, outcome)
        return measurement

    def answer(self, about: str) -> Analysis | None:
        """The last measurement as `analyze` would have it; null what was not measured, None before the first.

        Args:
            about: When it was measured, for the reader.
        """
        return None if self._last is None else answer_of(self._last, about)

    def training_loss(self) -> tuple[float, float | None]:
        """The loss at the model's weights as `fit` logs it, a mean over batches, and its standard error.

        The error is of the choice of batches and masks: 0 for all the data in one batch, None for one batch of more.
        """
        now = self.subject.loss.now()
        plain = [attrs.evolve(batch, loss_weights=()) for batch in now.batches]  # each as if it were all the data
        losses = [float(now.gradients.evaluate(now.gradients.point, batch)[0]) for batch in plain]
        sizes = [batch.num_examples for batch in now.batches]
        if len(losses) > 1:
            error: float | None = float(np.std(losses, ddof=1) / np.sqrt(len(losses)))
        else:
            error = 0.0 if sum(sizes) == self.subject.source.num_samples else None
        return float(np.average(losses, weights=sizes)), error

    def _bounds(self, subject: Subject, outcome: Outcome) -> tuple[Bound, ...]:
        """Both theorems at this SD, with what is given and estimated of their inputs."""
        optimizer, given = subject.optimizer, subject.options.bound_inputs
        facts = assumptions.facts_at(
            subject,
            outcome.sharpness_dimension,
            smallest_exponent=float(np.min(subject.exponents(outcome.nodes))),
            clipped=optimizer is not None and any(code == "clipping" for code, _ in optimizer.notes),
        )
        inputs = assumptions.inputs_at(None if self._singles is None else self._singles.now(), given)
        return bounds_with(facts, inputs, frozenset(inputs) - set(given))

    def _of_bounds(self, outcome: Outcome | None, bounds: Sequence[Bound]) -> dict[str, Reading]:
        """sqrt(SD/n), and the total of the first theorem that has one; NaN where they are not known."""
        known: dict[str, Reading] = {}
        if outcome is not None:
            n, reading = (
                self.subject.source.num_samples,
                _readings(outcome, self.subject.options.tolerance)[DIMENSION[1]],
            )
            low, high = reading.interval or (math.nan, math.nan)
            ends = tuple(root_ratio(end, n) for end in (low, high))
            known[BOUND_SCALE] = Reading(
                _or_nan(root_ratio(reading.value, n)),
                reading.converged,
                interval=None if ends[0] is None or ends[1] is None else (ends[0], ends[1]),
            )
            totals = [bound.total for bound in bounds if bound.total is not None]
            known[TOTAL_BOUND] = Reading(_or_nan(totals[0] if totals else None), reading.converged)
        return {key: known.get(key, _UNKNOWN) for key in self.keys if key in (BOUND_SCALE, TOTAL_BOUND)}

    def _largest(self, operator: SymmetricOperator, name: str) -> Reading:
        """The largest eigenvalue, from the last eigenvector of the operator of this name."""
        seed, known = self.subject.options.seed, self._vectors.get(name)
        start = None if known is None else warm_start(known, seed=seed, dtype=operator.dtype)
        most = int(self.resources.memory // (4 * operator.size * self.resources.itemsize))
        estimator = estimator_of_largest(start, tolerance=_EIGEN_TOLERANCE, most_steps=most)
        found: Eigenpairs = estimate(estimator, operator, seed)
        if found.vectors is not None:
            self._vectors[name] = found.vectors
        return Reading(float(found.values[0]), bool(found.converged[0]), residual=float(found.residuals[0]))

    def _ratio(
        self, subject: Subject, hessian: HessianOperator, sharpness: Reading | None, notes: list[str]
    ) -> dict[str, Reading]:
        """The largest eigenvalue of the threshold's own operator, the threshold, and their ratio.

        The operator is P^-1/2 H P^-1/2 for an adaptive optimizer; for every other one it is H, and the first value is
        the sharpness. What needs a learning rate is NaN without one.
        """
        if subject.scaling is not None:
            numerator = self._largest(DiagonallyScaledOperator(hessian, subject.scaling), "P^-1/2 H P^-1/2")
        elif subject.unscaled:
            numerator = _UNKNOWN
        else:
            numerator = self._largest(hessian, "H") if sharpness is None else sharpness
        threshold, ratio = _UNKNOWN, _UNKNOWN
        if subject.limits is not None:
            upper = subject.limits.upper
            residual = None if numerator.residual is None else numerator.residual / upper
            threshold = Reading(upper, True)
            ratio = Reading(numerator.value / upper, numerator.converged, residual=residual)
        if subject.rate is not None and (subject.limits is None or subject.unscaled):
            notes.append(edge_of_stability(subject, None, subject.unscaled).verdict)
        return dict(zip(keys_of(["sharpness_ratio"]), (numerator, threshold, ratio), strict=True))

    def _trace(self, hessian: HessianOperator) -> Reading:
        estimator = for_analysis("trace", DEFAULTS["trace"], {"num_probes": _TRACE_PROBES})
        found: TraceEstimate = estimate(estimator, hessian, self.subject.options.seed)
        return Reading(found.value, bool(found.stderr <= 0.05 * abs(found.value)), stderr=found.stderr)

    def _dimension(self, subject: Subject, hessian: HessianOperator, deadline: float | None) -> Outcome:
        seed = subject.options.seed
        slq = for_analysis("spectrum", DEFAULTS["spectrum"], {})

        def run(index: int, steps: int | None) -> Spectrum:
            one = with_steps(slq, steps, basis=steps is None or self.resources.fits(steps))
            spectrum: Spectrum = estimate(one, subject.on_minibatch(hessian, index), seed_of_run(seed, index))
            return spectrum

        outcome = estimate_sharpness_dimension(
            run,
            subject.context(hessian, DEFAULTS["spectrum"]),
            AdaptiveSettings(
                tolerance=subject.options.tolerance,
                min_runs=_RUNS,
                max_hvps=subject.options.max_hvps,
                deadline=deadline,
            ),
            num_steps=self._num_steps,
        )
        if outcome.interrupted:
            raise KeyboardInterrupt
        self.out_of_time = outcome.out_of_time
        self._num_steps = outcome.sharpness_dimension.num_steps or self._num_steps
        return outcome


_UNKNOWN = Reading(float("nan"), False)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _readings(outcome: Outcome | None, tolerance: float) -> dict[str, Reading]:
    """The leading exponent, SD and the codimension."""
    if outcome is None:
        return dict.fromkeys(DIMENSION, _UNKNOWN)
    found = outcome.sharpness_dimension
    converged = "budget-ended" not in {warning.code for warning in outcome.warnings}
    if found.threshold_exponent is None and found.interval is not None:  # at 0 or d the runs end whatever the interval
        converged = found.interval[1] - found.interval[0] <= 2 * tolerance * max(found.codimension, 1.0)
    return {
        "rds_sharpness": Reading(float(outcome.rds_sharpness.leading[0]), converged),
        "sharpness_dimension": Reading(found.value, converged, interval=found.interval),
        "sharpness_codimension": Reading(found.codimension, converged, interval=found.codimension_interval),
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
    """NaN for every key, see `log_keys`, and why."""
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
