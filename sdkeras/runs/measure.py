"""The measurements: each takes a problem, an operator and a budget, and returns a record and what to know of it.

Each raises BudgetError where the budget has no room for it, and states beside it what it costs; and the answer from
them, which is made alike whoever measured.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import attrs
import numpy as np

from sdkeras.dimension.bounds import Facts
from sdkeras.dimension.bounds import bounds as bounds_with
from sdkeras.dimension.controls import UNKNOWN, Population
from sdkeras.dimension.estimate import FEWEST_RUNS_FOR_AN_INTERVAL, Context
from sdkeras.dimension.exponents import Exponents
from sdkeras.dimension.sampling import (
    AdaptiveSettings,
    Outcome,
    PooledSpectrum,
    Runner,
    estimate_sharpness_dimension,
    pooled_spectrum,
)
from sdkeras.errors import BudgetError, SdkerasError, counted
from sdkeras.estimators.kinds import Estimator, Source
from sdkeras.estimators.select import (
    capabilities,
    estimate,
    estimate_many,
    estimator_of_extremes,
    estimator_of_spectrum,
    for_analysis,
    held_to,
    settings_of,
    steps_of,
    with_steps,
)
from sdkeras.linalg.operators import DiagonallyScaledOperator, RestrictedOperator, SymmetricOperator
from sdkeras.operators import controls
from sdkeras.operators.hessian import CurvatureOperator, HessianOperator
from sdkeras.results.answers import Analysis, Draws, HessianSummary, SpectrumSummary
from sdkeras.results.arrays import Array, Value
from sdkeras.results.bounds import Bound
from sdkeras.results.estimates import Eigenpairs, SingularValues, Spectrum, TraceEstimate
from sdkeras.results.measured import Measured
from sdkeras.results.note import Note
from sdkeras.results.progress import INTERRUPT, PRODUCTS, TIME, Progress
from sdkeras.runs import assumptions
from sdkeras.runs.budget import Budget, Notes, Resources, one_blas_thread
from sdkeras.runs.problem import Problem
from sdkeras.runs.provenance import data_info, provenance
from sdkeras.seeds import seed_of_run

EXTREMES = "largest and smallest eigenvalue of the data-set Hessian"
PRECONDITIONED = "largest eigenvalue of the preconditioned Hessian"
TRACE = "trace of the data-set Hessian"
DRAWS = "largest eigenvalue of each draw"
# What each of the two eigenvalue stages, and then the batch sharpness, may take of what is left before the sharpness
# dimension; the trace has the rest.
EIGENVALUES = BATCH_SHARPNESS = 0.5
# Lanczos steps until both ends of a spectrum have converged: 20 to 30 for small nets on digits, trained or not.
USUAL_STEPS = 25
# Weights up to which a checkpoint keeps eigenvectors, as text.
_KEPT = 100_000
# Lanczos steps: with three the coarser rule has two.
_FEWEST_STEPS = 3
_MAX_NODES = 2000
# Runs of the first group in lockstep.
_FIRST_ROWS = 8


# Eigenvalues and trace of the data-set Hessian


def eigenpairs(problem: Problem, operator: SymmetricOperator, budget: Budget) -> Eigenpairs:
    """Both ends of an operator's spectrum, with eigenvectors unless a checkpoint would have to keep long ones."""
    name, options = problem.estimators.eigenpairs, problem.options
    steps = budget.resources.eigen_steps(operator.size)
    estimator = estimator_of_extremes(name, options.settings.get(name, {}), most_steps=steps)
    with one_blas_thread():
        pairs: Eigenpairs = estimate(estimator, operator, options.seed)
    if budget.meter.journal.path is not None and operator.size > _KEPT:
        return attrs.evolve(pairs, vectors=None)
    return pairs


def extremes(
    problem: Problem,
    hessian: CurvatureOperator,
    budget: Budget,
    scaling: Array | None = None,
    *,
    what: str = EXTREMES,
) -> tuple[Eigenpairs, Notes]:
    """Largest and smallest eigenvalue over the data set, of H or with a `scaling` D of D H D; `what` they are."""
    what = what if scaling is None else PRECONDITIONED
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
    steps = steps_of(_configured(problem, "eigenpairs", problem.estimators.eigenpairs)) or USUAL_STEPS
    return min(USUAL_STEPS, steps, problem.loss.size) * len(problem.loss.batches)


def draws(problem: Problem, hessian: HessianOperator, budget: Budget) -> tuple[Draws, Notes]:
    """The largest eigenvalue of each draw's Hessian over the data set, and how much they differ."""
    budget.tell(DRAWS)
    count, largest = problem.options.draws, list[float]()
    for number in range(count):
        largest.append(float(eigenpairs(problem, budget.watched(hessian.on_draw(number)), budget).values[0]))
        if budget.interrupted:
            break
    spread = float(np.std(largest, ddof=1)) if len(largest) > 1 else None
    return Draws(count, "passes" if problem.changes else "masks", tuple(largest), spread), ()


def trace(
    problem: Problem, hessian: CurvatureOperator, budget: Budget, *, what: str = TRACE
) -> tuple[TraceEstimate, Notes]:
    """Trace over the data set; `what` it is."""
    budget.tell(what)
    estimator = _configured(problem, "trace", problem.estimators.trace)
    with one_blas_thread():
        measured: TraceEstimate = estimate(estimator, budget.watched(hessian), problem.options.seed)
    return measured, ()


def cost_of_trace(problem: Problem) -> int:
    """Products of `trace`: all its probes, since few traces are known to 2 % before."""
    return (steps_of(_configured(problem, "trace", problem.estimators.trace)) or 0) * len(problem.loss.batches)


def _configured(problem: Problem, kind: str, name: str) -> Estimator:
    return for_analysis(kind, name, problem.options.settings.get(name, {}))


def with_evidence(pairs: Eigenpairs, position: int) -> Measured:
    """One of the eigenvalues."""
    return Measured(
        value=float(pairs.values[position]),
        converged=bool(pairs.converged[position]),
        residual=float(pairs.residuals[position]),
    )


def trace_with_evidence(trace: float, stderr: float) -> Measured:
    """A trace, which has converged where its standard error is at most 5 % of it."""
    return Measured(trace, bool(stderr <= 0.05 * abs(trace)), stderr=stderr)


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
        trace=None if trace is None else trace_with_evidence(trace.value, trace.stderr),
    )


# The bounds


def facts(problem: Problem, outcome: Outcome, exponents: Exponents, notes: Iterable[Note]) -> Facts:
    """Evidence on the theorems' assumptions at the weights where SD was estimated; notes tell of clipped gradients."""
    return assumptions.facts_at(
        problem,
        outcome.sharpness_dimension,
        smallest_exponent=float(np.min(exponents(outcome.nodes))),
        clipped=any(note.code == "clipping" for note in notes),
    )


def bounds(problem: Problem, facts: Facts, inputs: Mapping[str, float]) -> tuple[Bound, ...]:
    """Both theorems; inputs that were not given are estimates."""
    return bounds_with(facts, inputs, frozenset(inputs) - set(problem.options.bound_inputs))


# The sharpness dimension


class Runs(abc.ABC):
    """Where the runs of a spectrum estimator come from: minibatches of the Hessian, or of the whole step.

    `bases` are those that a run keeps: one, or with singular values one for either side.
    """

    size: int
    seed: int
    bases = 1
    probe = 0  # which of a minibatch's probes runs have
    place = ""  # where in weight space, if not at the checkpoint
    block: slice | None = None  # of the operator that they are on, None for all of it

    @property
    def population(self) -> Population:
        """What is known of the minibatches."""
        return UNKNOWN

    @abc.abstractmethod
    def operator(self, index: int, budget: Budget) -> Source:
        """Operator of training's minibatch number `index`, within a budget."""

    @abc.abstractmethod
    def context(self, estimator: str) -> Context:
        """Setting for the estimate of SD."""

    def together(self, products: int, steps: int, room: Resources) -> int:
        """Runs that are best made in lockstep, in each thread, of the steps and products in all; 1: one by one."""
        return 1

    def run_many(self, estimator: Estimator, indices: Sequence[int], budget: Budget) -> Sequence[Spectrum]:
        """The runs of these numbers, in lockstep where they can be."""
        return [self.run(estimator, index, budget, exact=False) for index in indices]

    def run(self, estimator: Estimator, index: int, budget: Budget, *, exact: bool) -> Spectrum:
        """Run number `index`, of a minibatch and a probe of its own; an exact one if the budget affords its runs."""
        operator = self.operator(index, budget)
        if exact and budget.most is not None:
            reduction = operator.reduced() if isinstance(operator, SymmetricOperator) else None
            size = operator.size if reduction is None else reduction.operator.size
            budget.require(size * max(1, FEWEST_RUNS_FOR_AN_INTERVAL - index))  # fewer give no interval
        found = estimate(estimator, operator, seed_of_run(self.seed, index, self.probe))
        return found if isinstance(found, Spectrum) else as_spectrum(found)


def as_spectrum(rule: SingularValues) -> Spectrum:
    """The same rule with nodes sigma, ascending."""
    return Spectrum(
        nodes=np.exp(rule.log_values)[::-1],
        weights=rule.weights[::-1],
        num_matvecs=rule.num_matvecs,
        seed=rule.seed,
        residuals=None if rule.residuals is None else rule.residuals[::-1],
        nested=None if rule.nested is None else as_spectrum(rule.nested),
        exact=rule.exact,
    )


class HessianRuns(Runs):
    """Runs on the minibatches' Hessians, or another curvature of theirs, or with a `block` on a diagonal block of them.

    P is the checkpoint's unless another `scaling` = P^-1/2 is given.
    """

    def __init__(
        self, problem: Problem, hessian: CurvatureOperator, block: slice | None = None, scaling: Array | None = None
    ) -> None:
        self.problem, self.hessian, self.block, self.scaling = problem, hessian, block, scaling
        self.size = hessian.size if block is None else block.stop - block.start
        self.seed = problem.options.seed

    @property
    def population(self) -> Population:
        return controls.population(self.hessian.loss)

    def operator(self, index: int, budget: Budget) -> SymmetricOperator:
        operator = self.problem.on_minibatch(
            self.hessian.within(budget), controls.number(self.problem.source, index), self.scaling
        )
        return operator if self.block is None else RestrictedOperator(operator, self.block)

    def together(self, products: int, steps: int, room: Resources) -> int:
        return self.hessian.rows_together(products, memory=room.memory / room.workers, vectors=steps)

    def run_many(self, estimator: Estimator, indices: Sequence[int], budget: Budget) -> Sequence[Spectrum]:
        operators = [self.operator(index, budget) for index in indices]
        batch = type(operators[0]).batch(operators)
        return estimate_many(estimator, batch, [seed_of_run(self.seed, index) for index in indices])

    def context(self, estimator: str) -> Context:
        return Context(
            size=self.size,
            exponents=self.problem.exponents,
            unstable_above=self.problem.unstable_above(),
            ignored_decay=self.problem.ignored_decay,
            product_error=self.hessian.verification.hvp_relative_error,
            estimator=estimator,
        )


def spectrum_estimator(problem: Problem, name: str) -> Estimator:
    """The estimator of spectra, or of singular values for the map full, of this name, with its settings."""
    if problem.maps_spectra:
        return estimator_of_spectrum(name, problem.options.settings.get(name, {}), problem.exponents)
    return _configured(problem, problem.estimators.kind, name)


@attrs.frozen
class Sampling:
    """How the runs of the estimator of this name are made, which has its settings as recorded.

    The interval is first looked at after `min_runs`, or there are exactly `fixed_runs`. A `required` estimate makes one
    run even where there is no room for it. Beside the budget of its stage it may have one of its own, `most_products`.
    `of` names the part of the net that it is of, for those who watch.
    """

    name: str
    estimator: Estimator
    min_runs: int = AdaptiveSettings().min_runs
    fixed_runs: int | None = None
    required: bool = False
    most_products: int | None = None
    of: str = ""

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

    def group(self, runs: Runs, room: Resources) -> int:
        """Runs that are asked for at once: those of all threads."""
        return room.workers_for(exact=self.exact) * self._together(runs, self.num_steps, room)

    def _together(self, runs: Runs, steps: int | None, room: Resources) -> int:
        """Runs in lockstep in each thread, of an estimator that makes several at once."""
        if steps is None or not capabilities(self.estimator).many:
            return 1
        products = (self.fixed_runs or self.min_runs) * (self.num_steps or 0)
        return runs.together(products, min(steps, runs.size), room)

    @contextlib.contextmanager
    def on(self, runs: Runs, room: Resources, budget: Budget, later: Budget) -> Iterator[Runner]:
        """Makes runs by their numbers and steps; the first of a required estimate whatever the budget."""
        first = iter([self.required])  # once: run 0 is made again where the loop starts again with more steps

        def several(indices: Sequence[int], steps: int | None, within: Budget) -> Sequence[Spectrum]:
            estimator = self.of_a_run(steps, room)
            if together(steps) > 1:
                return runs.run_many(estimator, indices, within)
            return [runs.run(estimator, index, within, exact=self.exact) for index in indices]

        def runner(indices: Sequence[int], steps: int | None) -> Iterator[Spectrum]:
            if indices[0] == 0 and next(first, False) and budget.is_limited:
                with budget.required(f"the first run of {self.name}") as unlimited:
                    yield from several(indices[:1], steps, unlimited)
                indices = indices[1:]
            size = min(together(steps), math.ceil(len(indices) / workers)) or 1
            # What ends a group loses it: of the first runs a few stand before the others are begun.
            start = _FIRST_ROWS if indices and indices[0] < _FIRST_ROWS < size else 0
            groups = [indices[:start]] if start else []
            groups += [indices[k : k + size] for k in range(start, len(indices), size)]
            for spectra in mapper(lambda group: several(group, steps, later), groups):
                yield from spectra

        together = functools.cache(lambda steps: self._together(runs, steps, room))
        workers = room.workers_for(exact=self.exact)
        hosts = budget.meter.hosts
        with room.mapper(exact=self.exact) as mapper:
            yield runner if hosts is None else hosts.over_runs(self.name, runs, runner, later)


def sampling(problem: Problem, name: str, *, required: bool = False, most_products: int | None = None) -> Sampling:
    """How an analysis makes the runs of the spectrum estimator of this name."""
    options, estimator = problem.options, spectrum_estimator(problem, name)
    fixed_runs = options.exact_minibatches if capabilities(estimator).exact else options.runs
    return Sampling(name, estimator, options.min_runs, fixed_runs, required=required, most_products=most_products)


def cost_of_run(sampling: Sampling, size: int, bases: int = 1) -> int:
    """Products of one of the first runs on an operator of this size."""
    return size if sampling.num_steps is None else bases * min(sampling.num_steps, size)


def dimension(problem: Problem, runs: Runs, budget: Budget, sampling: Sampling) -> tuple[Outcome, Notes]:
    """SD by one spectrum estimator, from as many runs as its interval needs.

    Raises:
        BudgetError: There is no room for one run, and none is required.
        SdkerasError: Too few Lanczos steps.
    """
    name, steps, exact, can = sampling.name, sampling.num_steps, sampling.exact, capabilities(sampling.estimator)
    if steps is not None and steps < _FEWEST_STEPS < runs.size:
        raise SdkerasError(
            f"{name}.num_steps is {steps}; fewer than {_FEWEST_STEPS} steps see little more than the mean eigenvalue, "
            "and nothing shows how far the answer is off. The default is 40."
        )
    room = budget.resources
    if runs.bases > 1:
        room = attrs.evolve(room, size=runs.size, bases=runs.bases)

    stage = f"sharpness dimension ({name})"
    budget.tell(f"{sampling.of}, {stage}" if sampling.of else stage)
    pilot = sampling.fixed_runs or runs.population.pilot(sampling.min_runs)
    per_run = cost_of_run(sampling, runs.size, runs.bases)

    def report(step: Progress) -> None:
        if budget.meter.progress is not None:
            if step.num_runs < pilot:
                budget.leave_compilation_behind()
            planned = max(0, pilot - step.num_runs) * per_run
            left = None if step.hvps_left is None else budget.seconds_left(max(0, step.hvps_left - planned))
            budget.meter.progress(
                attrs.evolve(step, stage=budget.meter.stage, num_hvps=budget.spent, seconds_left=left)
            )

    settings = AdaptiveSettings(
        tolerance=problem.options.tolerance,
        min_runs=sampling.min_runs,
        fixed_runs=sampling.fixed_runs,
        max_hvps=min((limit for limit in (budget.left, sampling.most_products) if limit is not None), default=None),
        deadline=budget.deadline,
        stop=lambda: INTERRUPT if budget.interrupted else "",
        group=sampling.group(runs, room) * budget.hosts_for(runs),
        required=sampling.required,
    )
    context = attrs.evolve(runs.context(name), settings=settings_of(sampling.estimator), own_rate=can.own_rate)
    name_of_runs = name if runs.block is None else f"{name} on {runs.block.start} to {runs.block.stop}"
    name_of_runs += runs.place
    with sampling.on(runs, room, budget, budget) as make:
        run = budget.runs_once(name_of_runs, make)
        outcome = estimate_sharpness_dimension(
            run, context, settings, num_steps=steps, population=runs.population, progress=report
        )
    enough = min(sampling.fixed_runs or FEWEST_RUNS_FOR_AN_INTERVAL, FEWEST_RUNS_FOR_AN_INTERVAL)
    if exact and len(outcome.runs) < enough and not budget.interrupted:
        raise BudgetError(TIME if outcome.out_of_time else PRODUCTS)  # another estimator may have an interval
    return outcome, () if steps is None or not can.needs_basis else _about_bases(room, steps, exact=exact)


def _about_bases(room: Resources, steps: int, *, exact: bool) -> Notes:
    """Says where Lanczos bases are that do not fit the memory, or that there are none."""
    if room.basis_bytes(steps) * room.workers <= room.memory:
        return ()
    if room.fits(steps):
        words = f"Lanczos bases of {steps} x {room.size} do not fit in memory and are kept in {room.scratch!r}."
        return (Note("bases-on-disk", words),)
    if room.devices.on_device:
        advice = "Bases of an accelerator are not kept on disk."
    elif room.scratch is None:
        advice = "A folder for them on disk (`scratch`) makes room."
    else:
        advice = f"{room.scratch!r} has room for {room.disk / 1e9:.2g} GB of {room.basis_bytes(steps) / 1e9:.2g} each."
    bases = counted(room.workers_for(exact=exact) * room.bases, "Lanczos basis", "Lanczos bases")
    words = (
        f"there is no memory left for {bases} of {steps} x {room.size}: the runs do without reorthogonalisation and "
        f"without mass correction, so their spectra are less accurate. {advice}"
    )
    return (Note("no-reorthogonalisation", words),)


def spectrum_alone(problem: Problem, hessian: HessianOperator, budget: Budget) -> tuple[SpectrumSummary | None, Notes]:
    """The pooled spectrum of the minibatches' Hessians, where without a learning rate nothing is made of it."""
    how = of_spectrum_alone(problem)
    if how is None:
        used = ", ".join(problem.estimators.spectrum)
        return None, (Note("no-spectrum", f"there is no spectrum: {used} can only be run with a learning rate."),)
    budget.tell(f"spectrum ({how.name})")
    pooled = pooled_runs(HessianRuns(problem, hessian), how, budget, attrs.evolve(budget, most=None, deadline=None))
    steps = None if how.num_steps is None else min(how.num_steps, hessian.size)
    words = (
        f"the spectrum is pooled over {counted(pooled.num_runs, 'run')} on Hessians of minibatches ({how.name}"
        + ("" if steps is None else f", {steps} steps")
        + "); its uncertainty is unknown."
    )
    return compressed(pooled.nodes, pooled.weights, problem.operator), (Note("spectrum-alone", words),)


def of_spectrum_alone(problem: Problem) -> Sampling | None:
    """How the runs of a spectrum are made without a learning rate; None where every estimator needs one."""
    names = [name for name in problem.estimators.spectrum if not problem.estimators.can(name).own_rate]
    return sampling(problem, names[0], required=True) if names else None


def pooled_runs(runs: Runs, how: Sampling, budget: Budget, later: Budget) -> PooledSpectrum:
    """The fixed number of runs, or the fewest, as one spectrum: what the budget has room for.

    Raises:
        BudgetError: There is no room for one, and none is required; or Ctrl-C came before it.
    """
    room = budget.resources
    with how.on(runs, room, budget, later) as run:
        made = budget.runs_once(how.name + runs.place, run)

        def telling(indices: Sequence[int], steps: int | None) -> Iterator[Spectrum]:
            for spectrum in made(indices, steps):
                budget.tick()
                yield spectrum

        return pooled_spectrum(
            telling,
            num_runs=how.fixed_runs or how.min_runs,
            num_steps=None if how.num_steps is None else min(how.num_steps, runs.size),
            max_hvps=budget.left,
            deadline=budget.deadline,
            group=how.group(runs, room) * budget.hosts_for(runs),
            required=how.required,
        )


def compressed(nodes: Array, weights: Array, operator: str, exponents: Exponents | None = None) -> SpectrumSummary:
    """At most 2,000 nodes: neighbours of about equal mass share are merged into their mean; with their exponents."""
    if len(nodes) > _MAX_NODES:
        edges = np.unique(np.linspace(0, len(nodes), _MAX_NODES + 1).astype(int)[:-1])
        mass = np.add.reduceat(weights, edges)
        moment = np.add.reduceat(weights * nodes, edges)
        means = np.add.reduceat(nodes, edges) / np.diff(np.append(edges, len(nodes)))
        nodes = np.where(mass > 0, moment / np.where(mass > 0, mass, 1.0), means)
        weights = mass
    nodes, weights = np.asarray(nodes, np.float64), np.asarray(weights, np.float64)
    if exponents is None:
        return SpectrumSummary(nodes, weights, operator)
    moduli = exponents.log_eigenvalues(nodes) if exponents.branches == 2 else None
    return SpectrumSummary(nodes, weights, operator, exponents(nodes), moduli)


# The answer


def without_a_rate(problem: Problem) -> str:
    """Names the results that need a learning rate, and why they are missing."""
    supremum = " and its supremum" if problem.options.snapshots is not None else ""
    return (
        f"threshold, ratio, exponents, sharpness dimension{supremum} and bounds need a learning rate and are missing: "
        f"{problem.no_rate}"
    )


def joined(
    problem: Problem,
    operator: HessianOperator,
    outcomes: Sequence[Outcome],
    exponents: Exponents | None,
    *,
    cost: tuple[int, float],
    **measured: Value,
) -> Analysis:
    """One answer from estimates of SD, whose first has the map `exponents`, and fields that were measured beside them.

    `cost` is the number of products and the time of the start.
    """
    options, first = problem.options, outcomes[0] if outcomes else None
    measured.setdefault("spectrum", None)
    drawn = measured.pop("draws", None)
    if first is not None:
        name = "singular values of J" if problem.is_full else problem.operator
        measured["spectrum"] = compressed(first.nodes, first.weights, name, exponents)
    num_hvps, started = cost
    return Analysis(
        provenance=provenance(
            problem.loss, seed=options.seed, num_hvps=num_hvps, started=started, preset=options.preset
        ),
        model=problem.model_info(problem.loss.engine(options.product_mode).unconnected),
        data=attrs.evolve(data_info(problem.loss), draws=drawn),
        optimizer=problem.optimizer_info(),
        verification=operator.verification,
        sharpness_dimension=None if first is None else first.sharpness_dimension,
        estimates=tuple(outcome.sharpness_dimension for outcome in outcomes),
        rds_sharpness=None if first is None else first.rds_sharpness,
        **measured,
    )
