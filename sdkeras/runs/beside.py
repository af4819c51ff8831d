"""The Gauss-Newton and the Fisher matrix of the same loss, measured as the Hessian was and shown beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import attrs

from sdkeras.dimension.expansion import expansion_beside
from sdkeras.dimension.sampling import Outcome, PooledSpectrum
from sdkeras.errors import ModelError
from sdkeras.estimators.kinds import Estimator
from sdkeras.estimators.select import with_steps
from sdkeras.operators.fisher import FisherOperator
from sdkeras.operators.gauss_newton import GaussNewtonOperator
from sdkeras.operators.hessian import CurvatureOperator
from sdkeras.operators.likelihood import NoLikelihoodError
from sdkeras.operators.loss import evolved
from sdkeras.reporting.numbers import number
from sdkeras.results.answers import MATRICES, OperatorSpectrum
from sdkeras.results.arrays import Value
from sdkeras.results.codec import as_plain, from_plain
from sdkeras.results.estimates import Eigenpairs, Spectrum, TraceEstimate
from sdkeras.results.note import Note
from sdkeras.results.verification import Verification
from sdkeras.runs import measure
from sdkeras.runs.budget import KEPT, Budget, Notes
from sdkeras.runs.problem import Problem

_CLASSES: dict[str, type[GaussNewtonOperator]] = {"ggn": GaussNewtonOperator, "fisher": FisherOperator}
# Smallest eigenvalue beside the largest that rounding explains.
_NEGATIVE = 1e-3


def verified_operators(problem: Problem, budget: Budget, memory: float) -> dict[str, CurvatureOperator]:
    """The operators that were asked for, by kind, with verified products; a journal's have its outcome of the checks.

    Raises:
        ModelError: The loss has no such matrix.
        VerificationError: As of `HessianOperator`.
    """
    options, made = problem.options, dict[str, CurvatureOperator]()
    budget.meter.spent = lambda: sum(operator.num_products for operator in made.values())
    fixed: Mapping[str, Value] = budget.meter.journal.fixed.get("operators", {})
    for kind in options.operator:
        budget.tell(f"compiling and verifying the products of the {MATRICES[kind][0]}")
        known = from_plain(fixed[kind], Verification, str(budget.meter.journal.path)) if kind in fixed else None
        mode: Value = options.product_mode if known is None else known.product_mode
        try:
            made[kind] = _CLASSES[kind](
                problem.loss,
                product_mode=mode,
                allow_unverified=options.allow_unverified,
                workers=budget.resources.workers,
                memory=memory,
            )
        except NoLikelihoodError as error:
            raise ModelError(
                f"{error.why}, so that its Fisher matrix is not known; take its Gauss-Newton matrix (`operator='ggn'`)."
            ) from error
        except ModelError as error:
            raise ModelError(f"there is no {MATRICES[kind][0]} (`operator='{kind}'`): {error}") from error
        if known is not None:
            made[kind] = evolved(made[kind], verification=known)
    return made


def outcomes_of_checks(operators: Mapping[str, CurvatureOperator]) -> dict[str, Value]:
    """What a journal keeps of the operators."""
    return {kind: as_plain(operator.verification) for kind, operator in operators.items()}


def cost_of_eigenvalues(problem: Problem) -> int:
    """Products of the eigenvalues and the trace of one operator."""
    return measure.cost_of_extremes(problem) + measure.cost_of_trace(problem)


def beside(
    problem: Problem, kind: str, operator: CurvatureOperator, budget: Budget, outcome: Outcome | None
) -> tuple[OperatorSpectrum, Notes]:
    """Eigenvalues and trace over the data set, and minibatches' spectra, by the estimators and settings of the Hessian.

    The spectra are of the minibatches, with the probes and steps, of those of the Hessian's runs that E+ is of: all its
    runs, or where later ones have fewer steps those with all of them. Without a learning rate they are as the Hessian's
    are then, and there is no E+.
    """
    (name, symbol), begun = MATRICES[kind], budget.spent
    before = budget.part(1 - KEPT)
    what = f"largest and smallest eigenvalue of the data-set {name}"
    half = before.part(measure.EIGENVALUES)
    pairs, notes = budget.measured(
        what, lambda: measure.extremes(problem, operator, half, what=what), tuple[Eigenpairs, Notes]
    )
    of_trace = f"trace of the data-set {name}"
    trace, more = budget.measured(
        of_trace, lambda: measure.trace(problem, operator, before, what=of_trace), tuple[TraceEstimate, Notes]
    )
    notes += more
    how, runs = _sampling(problem, outcome), _RunsBeside(problem, operator, outcome, f" on the {name}")
    pooled: PooledSpectrum | None = None
    if how is not None:
        budget.tell(f"spectrum of the {name} ({how.name})")
        sampling = how
        pooled, more = budget.measured(
            f"spectrum of the {name}", lambda: (measure.pooled_runs(runs, sampling, budget, budget), ())
        )
        notes += more
    summary = measure.hessian_summary(pairs, trace)
    record = OperatorSpectrum(
        kind=kind,
        largest=summary.largest,
        smallest=summary.smallest,
        trace=summary.trace,
        spectrum=None
        if pooled is None
        else measure.compressed(pooled.nodes, pooled.weights, problem.operator.replace("H", symbol)),
        expansion=None
        if pooled is None or outcome is None or how is None
        else expansion_beside(outcome.finest, pooled.runs, runs.context(how.name), how.num_steps),
        verification=operator.verification,
        num_hvps=budget.spent - begun,
    )
    return record, (*notes, *_caveats(record, how, pooled, budget))


def _sampling(problem: Problem, outcome: Outcome | None) -> measure.Sampling | None:
    """How the runs are made; None where the Hessian has none that they could stand beside."""
    if outcome is None:
        alone = measure.of_spectrum_alone(problem) if problem.rate is None else None
        return None if alone is None else attrs.evolve(alone, required=False)
    estimate = outcome.sharpness_dimension
    how = measure.sampling(problem, estimate.estimator)
    estimator = with_steps(how.estimator, estimate.num_steps)
    return attrs.evolve(how, estimator=estimator, fixed_runs=len(outcome.finest_runs))


class _RunsBeside(measure.HessianRuns):
    """Runs on the minibatches, and with the probes, of the Hessian's runs with all steps, in their order."""

    def __init__(self, problem: Problem, operator: CurvatureOperator, outcome: Outcome | None, place: str) -> None:
        super().__init__(problem, operator)
        self.numbers, self.place = None if outcome is None else outcome.finest_runs, place

    def run(self, estimator: Estimator, index: int, budget: Budget, *, exact: bool) -> Spectrum:
        return super().run(estimator, self._number(index), budget, exact=exact)

    def run_many(self, estimator: Estimator, indices: Sequence[int], budget: Budget) -> Sequence[Spectrum]:
        return super().run_many(estimator, [self._number(index) for index in indices], budget)

    def _number(self, index: int) -> int:
        return index if self.numbers is None else self.numbers[index]


def _caveats(
    record: OperatorSpectrum, how: measure.Sampling | None, pooled: PooledSpectrum | None, budget: Budget
) -> Iterator[Note]:
    if not record.verification.passed:
        words = "the products FAILED their verification and were used anyway: do not trust these numbers."
        yield Note("unverified", f"{record.name}: {words}")
    smallest, largest = record.smallest, record.largest
    if smallest is not None and largest is not None:
        highest = smallest.value + (smallest.residual or 0.0)
        if highest < -_NEGATIVE * max(largest.value, -smallest.value):
            words = (
                f"the {record.name} has negative eigenvalues, down to {number(smallest.value)}: the loss is not convex "
                "in its outputs, or a regularizer is not. Negative curvature of the Hessian is then not that of the "
                "outputs alone."
            )
            yield Note("not-convex", words)
    wanted = None if how is None else how.fixed_runs
    if pooled is not None and wanted is not None and pooled.num_runs < wanted and not budget.interrupted:
        words = f"E+ with the {record.name} is over {pooled.num_runs} of the Hessian's {wanted} runs: {pooled.ended}."
        yield Note("budget-ended", words)
