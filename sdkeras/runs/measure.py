"""The measurements: each takes a problem, an operator and a budget, and returns a record and what to know of it.

Each raises BudgetError where the budget has no room for it, and states beside it what it costs.
"""

from __future__ import annotations

import contextlib
from typing import Protocol

import attrs

from sdkeras.dimension.estimate import FEWEST_RUNS_FOR_AN_INTERVAL, Context
from sdkeras.dimension.sampling import AdaptiveSettings, Outcome, estimate_sharpness_dimension, pooled_spectrum
from sdkeras.errors import BudgetError, SdkerasError, counted
from sdkeras.estimators.kinds import Estimator
from sdkeras.estimators.select import (
    capabilities,
    estimate,
    estimator_of_extremes,
    estimator_of_spectrum,
    for_analysis,
    held_to,
    settings_of,
    steps_of,
    with_steps,
)
from sdkeras.linalg.operators import DiagonallyScaledOperator, RestrictedOperator, SymmetricOperator
from sdkeras.operators.hessian import HessianOperator
from sdkeras.results.answers import HessianSummary, SpectrumSummary
from sdkeras.results.arrays import Array
from sdkeras.results.dimension import EdgeOfStability
from sdkeras.results.estimates import Eigenpairs, Spectrum, TraceEstimate
from sdkeras.results.measured import Measured
from sdkeras.results.note import Note
from sdkeras.results.progress import PRODUCTS, TIME, Progress
from sdkeras.runs.answers import compressed
from sdkeras.runs.budget import Budget, Notes, Resources
from sdkeras.runs.edge import (
    BatchSharpness,
    batch_sharpness,
    edge_of_stability,
    expected_minibatches,
    num_minibatches,
    target_error,
    verdict_of_lower_bound,
)
from sdkeras.runs.problem import Problem
from sdkeras.seeds import seed_of_run

EXTREMES = "largest and smallest eigenvalue of the data-set Hessian"
PRECONDITIONED = "largest eigenvalue of the preconditioned Hessian"
TRACE = "trace of the data-set Hessian"
# What each of the two eigenvalue stages, and then the batch sharpness, may take of what is left before the sharpness
# dimension; the trace has the rest.
EIGENVALUES = _BATCH_SHARPNESS = 0.5
# Lanczos steps until both ends of a spectrum have converged: 20 to 30 for small nets on digits, trained or not.
USUAL_STEPS = 25
# Lanczos steps: with three the coarser rule has two.
_FEWEST_STEPS = 3


# Eigenvalues and trace of the data-set Hessian


def eigenpairs(problem: Problem, operator: SymmetricOperator, budget: Budget) -> Eigenpairs:
    """Both ends of an operator's spectrum."""
    name, options = problem.estimators.eigenpairs, problem.options
    steps = budget.resources.eigen_steps(operator.size)
    estimator = estimator_of_extremes(name, options.settings.get(name, {}), most_steps=steps)
    pairs: Eigenpairs = estimate(estimator, operator, options.seed)
    return pairs


def extremes(
    problem: Problem, hessian: HessianOperator, budget: Budget, scaling: Array | None = None
) -> tuple[Eigenpairs, Notes]:
    """Largest and smallest eigenvalue over the data set, of H or with a `scaling` D of D H D."""
    what = EXTREMES if scaling is None else PRECONDITIONED
    budget.tell(what)
    operator = budget.watched(hessian)
    pairs = eigenpairs(problem, operator if scaling is None else DiagonallyScaledOperator(operator, scaling), budget)
    if not budget.is_limited or budget.interrupted or pairs.converged.all():
        return pairs, ()
    reached = f"{pairs.num_matvecs:,} steps, residual {float(max(pairs.residuals)):.2g}"
    words = f"{what}: the budget ended the iteration before it converged ({reached})."
    return pairs, (Note("not-converged", words),)


def cost_of_extremes(problem: Problem) -> int:
    """Products of `extremes`, or of the eigenvalues of the preconditioned Hessian."""
    name = problem.estimators.eigenpairs
    steps = steps_of(for_analysis("eigenpairs", name, problem.options.settings.get(name, {}))) or USUAL_STEPS
    return min(USUAL_STEPS, steps, problem.loss.size) * len(problem.loss.batches)


def trace(problem: Problem, hessian: HessianOperator, budget: Budget) -> tuple[TraceEstimate, Notes]:
    """Trace over the data set."""
    budget.tell(TRACE)
    measured: TraceEstimate = estimate(_trace_estimator(problem), budget.watched(hessian), problem.options.seed)
    return measured, ()


def cost_of_trace(problem: Problem) -> int:
    """Products of `trace`: all its probes, since few traces are known to 2 % before."""
    return (steps_of(_trace_estimator(problem)) or 0) * len(problem.loss.batches)


def _trace_estimator(problem: Problem) -> Estimator:
    name = problem.estimators.trace
    return for_analysis("trace", name, problem.options.settings.get(name, {}))


def with_evidence(pairs: Eigenpairs, position: int) -> Measured:
    """One of the eigenvalues."""
    return Measured(
        value=float(pairs.values[position]),
        converged=bool(pairs.converged[position]),
        residual=float(pairs.residuals[position]),
    )


def trace_with_evidence(trace: TraceEstimate) -> Measured:
    """A trace, which has converged where its standard error is at most 5 % of it."""
    return Measured(trace.value, bool(trace.stderr <= 0.05 * abs(trace.value)), stderr=trace.stderr)


def hessian_summary(pairs: Eigenpairs | None, trace: TraceEstimate | None) -> HessianSummary:
    """Summary of the data-set Hessian."""
    largest, smallest = (None, None) if pairs is None else (with_evidence(pairs, 0), with_evidence(pairs, -1))
    absolute = largest
    if largest is not None and smallest is not None and -smallest.value > largest.value:
        absolute = attrs.evolve(smallest, value=-smallest.value)
    return HessianSummary(
        largest=largest,
        smallest=smallest,
        largest_absolute=absolute,
        trace=None if trace is None else trace_with_evidence(trace),
    )


# The edge of stability


def edge(
    problem: Problem, hessian: HessianOperator, budget: Budget, pairs: Eigenpairs | None
) -> tuple[EdgeOfStability, Notes]:
    """The largest eigenvalue of the threshold's own operator, the verdict on it, and the batch sharpness.

    Args:
        problem: Problem to analyse.
        hessian: Its Hessian.
        budget: For both, beside others.
        pairs: Extreme eigenvalues of H, or None where they were not measured.
    """
    notes: Notes = ()
    if problem.scaling is not None:
        share = budget.part(EIGENVALUES)
        pairs, notes = budget.measured(PRECONDITIONED, lambda: extremes(problem, hessian, share, problem.scaling))
    elif problem.unscaled:
        pairs = None
    batches, more = budget.measured(
        "batch sharpness", lambda: _sampled_sharpness(problem, hessian, budget.part(_BATCH_SHARPNESS))
    )
    reason = "interrupted before it was measured" if budget.interrupted else "the budget left no room for it"
    reason = problem.unscaled or ("" if pairs is not None else reason)
    measured = edge_of_stability(problem, None if pairs is None else float(pairs.values[0]), reason)
    if pairs is not None and not pairs.converged[0] and (budget.is_limited or budget.interrupted):
        verdict = verdict_of_lower_bound(measured, float(pairs.residuals[0]))
        measured = attrs.evolve(measured, verdict=verdict)
    return attrs.evolve(measured, **attrs.asdict(batches or BatchSharpness())), (*notes, *more)


def cost_of_edge(problem: Problem) -> int:
    """Products of `edge`."""
    batches = expected_minibatches(problem.options.max_hvps, problem.options.tolerance)
    return batches + (0 if problem.scaling is None else cost_of_extremes(problem))


def _sampled_sharpness(problem: Problem, hessian: HessianOperator, budget: Budget) -> tuple[BatchSharpness, Notes]:
    budget.tell("batch sharpness")
    most, target = num_minibatches(problem.options.max_hvps), target_error(problem.options.tolerance)
    return batch_sharpness(hessian.within(budget), most, target=target), ()


# The sharpness dimension


class Runs(Protocol):
    """Where the runs of a spectrum estimator come from: minibatches of the Hessian, or of the whole step."""

    @property
    def size(self) -> int: ...
    def resources(self, resources: Resources) -> Resources:
        """The same, for what one run holds."""

    def run(self, estimator: Estimator, index: int, budget: Budget, *, exact: bool) -> Spectrum:
        """Run number `index`, of a minibatch and a probe of its own; an exact one if the budget affords its runs."""

    def context(self, estimator: str) -> Context:
        """Setting for the estimate of SD."""


@attrs.frozen(eq=False)
class HessianRuns:
    """Runs on the minibatches' Hessians, or with a `block` on a diagonal block of them."""

    problem: Problem
    hessian: HessianOperator
    block: slice | None = None

    @property
    def size(self) -> int:
        return self.hessian.size if self.block is None else self.block.stop - self.block.start

    def resources(self, resources: Resources) -> Resources:
        return resources

    def run(self, estimator: Estimator, index: int, budget: Budget, *, exact: bool) -> Spectrum:
        operator = self.problem.on_minibatch(self.hessian.within(budget), index)
        if self.block is not None:
            operator = RestrictedOperator(operator, self.block)
        if exact and budget.most is not None:
            reduction = operator.reduced()
            budget.require((self.size if reduction is None else reduction.operator.size) * runs_to_afford(index))
        spectrum: Spectrum = estimate(estimator, operator, seed_of_run(self.problem.options.seed, index))
        return spectrum

    def context(self, estimator: str) -> Context:
        return Context(
            size=self.size,
            exponents=self.problem.exponents,
            unstable_above=self.problem.unstable_above(),
            ignored_decay=self.problem.ignored_decay,
            product_error=self.hessian.verification.hvp_relative_error,
            estimator=estimator,
        )


def runs_to_afford(index: int) -> int:
    """Dense runs that there must be room for before run number `index`: fewer than three give no interval."""
    return max(1, FEWEST_RUNS_FOR_AN_INTERVAL - index)


def spectrum_estimator(problem: Problem, name: str) -> Estimator:
    """The estimator of spectra, or of singular values for the map full, of this name, with its settings."""
    fields = problem.options.settings.get(name, {})
    if problem.maps_spectra:
        return estimator_of_spectrum(name, fields, problem.exponents)
    return for_analysis(problem.estimators.kind, name, fields)


@attrs.frozen
class Sampling:
    """How the runs of one estimator are made.

    Attributes:
        name: Name of the estimator.
        estimator: The estimator with its settings, as recorded.
        min_runs: Runs before the first look at the interval.
        fixed_runs: Exactly this many instead, or None.
        required: One run is made even where there is no room for it.
        most_products: Budget of this estimate beside that of its stage, or None.
    """

    name: str
    estimator: Estimator
    min_runs: int = AdaptiveSettings().min_runs
    fixed_runs: int | None = None
    required: bool = False
    most_products: int | None = None

    @property
    def exact(self) -> bool:
        """Whether a run gives the values themselves, from a dense matrix."""
        return capabilities(self.estimator).exact

    @property
    def num_steps(self) -> int | None:
        """Steps of a run to start with; None where the estimator has no such number."""
        return steps_of(self.estimator)

    def of_a_run(self, steps: int | None, room: Resources) -> Estimator:
        """The estimator of one run within the memory: an exact one held to it, another without a basis if need be."""
        return with_steps(held_to(self.estimator, room.memory), steps, basis=steps is None or room.fits(steps))


def sampling(problem: Problem, name: str, *, required: bool = False, most_products: int | None = None) -> Sampling:
    """How an analysis makes the runs of the spectrum estimator of this name."""
    options, estimator = problem.options, spectrum_estimator(problem, name)
    return Sampling(
        name,
        estimator,
        fixed_runs=options.exact_minibatches if capabilities(estimator).exact else options.runs,
        required=required,
        most_products=most_products,
    )


def cost_of_run(sampling: Sampling, size: int, bases: int = 1) -> int:
    """Products of one of the first runs on an operator of this size."""
    return size if sampling.num_steps is None else bases * min(sampling.num_steps, size)


def dimension(problem: Problem, runs: Runs, budget: Budget, sampling: Sampling) -> tuple[Outcome, Notes]:
    """SD by one spectrum estimator, from as many runs as its interval needs.

    Raises:
        BudgetError: There is no room for one run, and none is required.
        SdkerasError: Too few Lanczos steps.
    """
    name, steps, room = sampling.name, sampling.num_steps, runs.resources(budget.resources)
    if steps is not None and steps < _FEWEST_STEPS < runs.size:
        raise SdkerasError(
            f"{name}.num_steps is {steps}; fewer than {_FEWEST_STEPS} steps see little more than the mean eigenvalue, "
            "and nothing shows how far the answer is off. The default is 40."
        )
    first = iter([sampling.required])  # once: run 0 is made again where the loop starts again with more steps

    def run(index: int, steps: int | None) -> Spectrum:
        one = sampling.of_a_run(steps, room)
        if index or not next(first, False):
            return runs.run(one, index, budget, exact=sampling.exact)
        with budget.required(f"the first run of {name}") as unlimited:
            return runs.run(one, index, unlimited, exact=sampling.exact)

    def report(step: Progress) -> None:
        if budget.meter.progress is not None:
            budget.meter.progress(attrs.evolve(step, num_hvps=budget.spent))

    limits = [limit for limit in (budget.left, sampling.most_products) if limit is not None]
    settings = AdaptiveSettings(
        tolerance=problem.options.tolerance,
        min_runs=sampling.min_runs,
        fixed_runs=sampling.fixed_runs,
        max_hvps=min(limits) if limits else None,
        deadline=budget.deadline,
        stop=budget.interruption,
        group=room.workers_for(exact=sampling.exact),
        required=sampling.required,
    )
    can = capabilities(sampling.estimator)
    context = attrs.evolve(runs.context(name), settings=settings_of(sampling.estimator), own_rate=can.own_rate)
    with room.mapper(exact=sampling.exact) as mapper:
        outcome = estimate_sharpness_dimension(run, context, settings, num_steps=steps, mapper=mapper, progress=report)
    enough = min(sampling.fixed_runs or FEWEST_RUNS_FOR_AN_INTERVAL, FEWEST_RUNS_FOR_AN_INTERVAL)
    if sampling.exact and len(outcome.runs) < enough and not budget.interrupted:
        raise BudgetError(TIME if outcome.out_of_time else PRODUCTS)  # another estimator may have an interval
    if steps is None or room.fits(steps) or not can.needs_basis:
        return outcome, ()
    words = (
        f"{room.workers_for(exact=sampling.exact) * room.bases} Lanczos bases of {steps} x {room.size} do not fit "
        f"{room.memory / 1e9:.1f} GB: the runs do without reorthogonalisation and without mass correction."
    )
    return outcome, (Note("no-reorthogonalisation", words),)


def spectrum_alone(problem: Problem, hessian: HessianOperator, budget: Budget) -> tuple[SpectrumSummary | None, Notes]:
    """The pooled spectrum of the minibatches' Hessians, where without a learning rate nothing is made of it."""
    names = [name for name in problem.estimators.spectrum if not problem.estimators.can(name).own_rate]
    if not names:
        used = ", ".join(problem.estimators.spectrum)
        words = f"there is no spectrum: {used} can only be run with a learning rate."
        return None, (Note("no-spectrum", words),)
    runs, how, room = HessianRuns(problem, hessian), sampling(problem, names[0]), budget.resources
    steps = None if how.num_steps is None else min(how.num_steps, hessian.size)
    budget.tell(f"spectrum ({how.name})")
    unlimited = attrs.evolve(budget, most=None, deadline=None)

    def run(index: int) -> Spectrum:
        scope = contextlib.nullcontext() if index else budget.required(f"the first run of {how.name}")
        with scope:
            return runs.run(how.of_a_run(steps, room), index, unlimited, exact=how.exact)

    with room.mapper(exact=how.exact) as mapper:
        pooled = pooled_spectrum(
            run,
            num_runs=how.fixed_runs or how.min_runs,
            max_hvps=budget.left,
            deadline=budget.deadline,
            group=room.workers_for(exact=how.exact),
            mapper=mapper,
        )
    words = (
        f"the spectrum is pooled over {counted(pooled.num_runs, 'run')} on Hessians of minibatches ({how.name}"
        + ("" if steps is None else f", {steps} steps")
        + "); its uncertainty is unknown."
    )
    return compressed(pooled.nodes, pooled.weights, problem.operator), (Note("spectrum-alone", words),)
