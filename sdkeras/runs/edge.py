"""The edge of stability: sharpness against the optimizer's own threshold, and the batch sharpness."""

from __future__ import annotations

import math

import attrs
import numpy as np

from sdkeras.dimension import stability
from sdkeras.dimension.sampling import AdaptiveSettings
from sdkeras.dimension.stability import BATCH_SHARPNESS_ERROR
from sdkeras.errors import BudgetError
from sdkeras.linalg.vectors import dot, norm
from sdkeras.operators.hessian import HessianOperator
from sdkeras.reporting.numbers import rate_source_in_words
from sdkeras.results.arrays import FloatArray
from sdkeras.results.dimension import EdgeOfStability
from sdkeras.results.estimates import Eigenpairs
from sdkeras.results.measured import Measured
from sdkeras.runs import measure
from sdkeras.runs.budget import Budget, Notes
from sdkeras.runs.problem import Problem, operator_name

# Tolerance of an analysis at which the batch sharpness aims at its usual error.
_USUAL_TOLERANCE = 0.05
_MOST_MINIBATCHES = 1000
# It takes at most this part of a limited number of products, and at least this many minibatches.
_PART_OF_PRODUCTS, _FEWEST_MINIBATCHES = 20, 3
# Relative standard deviation of the ratio over minibatches of 32 digits: 0.30 to 0.42 for MLPs early and late in
# training, 1.2 for a convolutional net with batch normalization.
_USUAL_ERROR = 0.375


def edge(
    problem: Problem, hessian: HessianOperator, budget: Budget, pairs: Eigenpairs | None
) -> tuple[EdgeOfStability, Notes]:
    """The largest eigenvalue of the threshold's own operator, the verdict on it, and the batch sharpness.

    `pairs` are the extreme eigenvalues of H, or None where they were not measured.
    """
    notes: Notes = ()
    scaling = problem.scaling
    if scaling is not None:
        share = budget.part(measure.EIGENVALUES)
        pairs, notes = budget.measured(
            measure.PRECONDITIONED, lambda: measure.extremes(problem, hessian, share, scaling)
        )
    elif problem.unscaled:
        pairs = None

    def sampled() -> tuple[BatchSharpness, Notes]:
        share, options = budget.part(measure.BATCH_SHARPNESS), problem.options
        share.tell("batch sharpness")
        most, target = num_minibatches(options.max_hvps), target_error(options.tolerance)
        return batch_sharpness(hessian.within(share), most, target=target), ()

    batches, more = budget.measured("batch sharpness", sampled)
    reason = "interrupted before it was measured" if budget.interrupted else "the budget left no room for it"
    reason = problem.unscaled or ("" if pairs is not None else reason)
    found = edge_of_stability(problem, None if pairs is None else measure.with_evidence(pairs, 0), reason)
    below = found.ratio is not None and found.ratio <= stability.EDGE[1]
    if below and pairs is not None and not pairs.converged[0] and (budget.is_limited or budget.interrupted):
        words = (
            f"No verdict within the limit: the sharpness is at least {found.sharpness:.4g} (not converged, residual "
            f"{float(pairs.residuals[0]):.2g}), {found.ratio:.2g} times the threshold {found.threshold:.4g}."
        )
        found = attrs.evolve(found, verdict=words)
    return attrs.evolve(found, **attrs.asdict(batches or BatchSharpness())), (*notes, *more)


def cost_of_edge(problem: Problem) -> int:
    """Products of `edge`."""
    batches = expected_minibatches(problem.options.max_hvps, problem.options.tolerance)
    return batches + (0 if problem.scaling is None else measure.cost_of_extremes(problem))


def edge_of_stability(problem: Problem, largest: Measured | None, reason: str = "") -> EdgeOfStability:
    """The verdict on the largest eigenvalue of the threshold's own operator, before the batch sharpness is known.

    The `largest` is None where it is unknown, and the reason says why.
    """
    optimizer, limits = problem.optimizer, problem.limits
    sharpness = None if largest is None else largest.value
    threshold = None if limits is None else limits.upper
    if problem.rate is None:
        verdict = f"No verdict: {problem.no_rate}"
    else:
        verdict = stability.verdict(
            sharpness,
            limits,
            optimizer="plain SGD" if optimizer is None else optimizer.name,
            learning_rate=problem.rate,
            rate_source="" if problem.rate_source == "file" else rate_source_in_words(problem.rate_source),
            reason=reason,
        )
    return EdgeOfStability(
        operator=operator_name(problem.preconditioned),
        sharpness=sharpness,
        threshold=threshold,
        ratio=None if sharpness is None or threshold is None else sharpness / threshold,
        batch_sharpness=None,
        batch_sharpness_stderr=None,
        verdict=verdict,
        sharpness_residual=None if largest is None else largest.residual,
        sharpness_converged=largest is None or largest.converged,
    )


def num_minibatches(max_hvps: int | None) -> int:
    """The most minibatches of the batch sharpness, within a limit on the products of the whole analysis."""
    if max_hvps is None:
        return _MOST_MINIBATCHES
    return min(_MOST_MINIBATCHES, max(_FEWEST_MINIBATCHES, max_hvps // _PART_OF_PRODUCTS))


def target_error(tolerance: float) -> float:
    """Relative standard error to aim at, by the tolerance of the whole analysis: 2 %, more where that is loose."""
    return BATCH_SHARPNESS_ERROR * max(1.0, tolerance / _USUAL_TOLERANCE)


def expected_minibatches(max_hvps: int | None, tolerance: float) -> int:
    """How many minibatches the batch sharpness may take, for a plan."""
    needed = math.ceil((_USUAL_ERROR / target_error(tolerance)) ** 2)
    return min(num_minibatches(max_hvps), max(AdaptiveSettings().min_runs, needed))


@attrs.frozen
class BatchSharpness:
    """The batch sharpness in both forms; names and meanings are those of `EdgeOfStability`."""

    batch_sharpness: float | None = None
    batch_sharpness_stderr: float | None = None
    batch_sharpness_ratio_of_means: float | None = None
    batch_sharpness_ratio_of_means_stderr: float | None = None
    batch_sharpness_minibatches: int = 0
    batch_sharpness_skipped: float = 0.0


def batch_sharpness(
    hessian: HessianOperator, most: int = _MOST_MINIBATCHES, *, target: float = BATCH_SHARPNESS_ERROR
) -> BatchSharpness:
    """Mean over minibatches B of g'Hg/|g|^2, and the ratio of the means of g'Hg and |g|^2; g, H of the loss on B.

    Minibatches are training's, so that those of one epoch partition the data. They are taken in blocks of at least 24,
    of whole epochs where an epoch has fewer than 48, until the relative standard error of the mean is at most `target`.
    The standard errors are those of independent minibatches. Within an epoch minibatches are negatively dependent, so
    that the errors are rather too large. A minibatch whose gradient is 0 has no ratio and is skipped. Fixed batches
    without randomness are measured once each.

    Raises:
        BudgetError: The budget has no room for one minibatch; where it ends later, there are fewer.

    Reference: Andreyev and Beneventano (2024), arXiv 2412.20553.
    """
    source = hessian.loss.source
    per_epoch = source.minibatches_per_epoch
    whole = source.batch_size == source.num_samples
    fixed = (whole or source.batch_ranges is not None) and hessian.loss.function.num_seeds == 0
    fewest = AdaptiveSettings().min_runs
    block = fewest
    if per_epoch < 2 * fewest:
        block = per_epoch * math.ceil(fewest / per_epoch)
        most = most if most < block else most - most % block
    most = min(most, per_epoch) if fixed else most
    rows: list[tuple[float, float]] = []  # |g| and g'Hg/|g|^2
    while len(rows) < most and not (rows and len(rows) % block == 0 and _known(rows, target)):
        try:
            rows.append(_along_the_gradient(hessian.on_minibatch(len(rows))))
        except BudgetError:
            if not rows:
                raise
            break
    return _summarised(rows, exact=fixed and len(rows) == per_epoch == 1)


def _along_the_gradient(view: HessianOperator) -> tuple[float, float]:
    """|g| and g'Hg/|g|^2 of one minibatch; the ratio is 0 where g is."""
    gradient = view.gradient()
    length = norm(gradient)
    if length == 0:
        return 0.0, 0.0
    direction = (gradient / length).astype(view.dtype)
    del gradient
    return length, dot(direction, view.matvec(direction))


def _known(rows: list[tuple[float, float]], target: float) -> bool:
    """Whether the mean of the ratios is known to a relative standard error of `target`."""
    ratios = np.array([ratio for length, ratio in rows if length > 0])
    return len(ratios) > 1 and bool(_standard_error(ratios) <= target * abs(ratios.mean()))


def _summarised(rows: list[tuple[float, float]], exact: bool) -> BatchSharpness:
    """Both forms with their standard errors, 0 where one minibatch is the whole population."""
    kept = np.array([row for row in rows if row[0] > 0]).reshape(-1, 2)
    lengths, ratios = np.ascontiguousarray(kept.T)  # sums of strided views round in another way
    skipped = 1.0 - len(ratios) / len(rows) if rows else 0.0
    if not len(ratios):
        return BatchSharpness(batch_sharpness_minibatches=len(rows), batch_sharpness_skipped=skipped)
    squares = (lengths / lengths.max()) ** 2
    quotient = float(squares @ ratios / squares.sum())
    # Delta method: g'Hg - quotient * |g|^2 has mean 0, and its mean over the mean of |g|^2 is the error.
    departures = squares * (ratios - quotient) / squares.mean()
    several, alone = len(ratios) > 1, 0.0 if exact else None
    return BatchSharpness(
        batch_sharpness=float(ratios.mean()),
        batch_sharpness_stderr=_standard_error(ratios) if several else alone,
        batch_sharpness_ratio_of_means=quotient,
        batch_sharpness_ratio_of_means_stderr=_standard_error(departures) if several else alone,
        batch_sharpness_minibatches=len(rows),
        batch_sharpness_skipped=skipped,
    )


def _standard_error(values: FloatArray) -> float:
    """Standard error of the mean of independent values."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))
