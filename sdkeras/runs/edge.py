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
from sdkeras.runs.problem import Problem, operator_name

# Tolerance of an analysis at which the batch sharpness aims at its usual error.
_USUAL_TOLERANCE = 0.05
_MOST_MINIBATCHES = 1000
# It takes at most this part of a limited number of products, and at least this many minibatches.
_PART_OF_PRODUCTS, _FEWEST_MINIBATCHES = 20, 3
# Relative standard deviation of the ratio over minibatches of 32 digits: 0.30 to 0.42 for MLPs early and late in
# training, 1.2 for a convolutional net with batch normalization.
_USUAL_ERROR = 0.375


def edge_of_stability(problem: Problem, sharpness: float | None, reason: str = "") -> EdgeOfStability:
    """The verdict on the largest eigenvalue of the threshold's own operator, before the batch sharpness is known.

    Args:
        problem: Problem to analyse.
        sharpness: The eigenvalue, or None where it is unknown.
        reason: Why it is unknown.
    """
    optimizer, limits = problem.optimizer, problem.limits
    threshold = None if limits is None else limits.upper
    verdict = (
        f"No verdict: {problem.no_rate}"
        if problem.rate is None
        else stability.verdict(
            sharpness,
            limits,
            optimizer="plain SGD" if optimizer is None else optimizer.name,
            learning_rate=problem.rate,
            rate_source="" if problem.rate_source == "file" else rate_source_in_words(problem.rate_source),
            reason=reason,
        )
    )
    return EdgeOfStability(
        operator=operator_name(problem.preconditioned),
        sharpness=sharpness,
        threshold=threshold,
        ratio=None if sharpness is None or threshold is None else sharpness / threshold,
        batch_sharpness=None,
        batch_sharpness_stderr=None,
        verdict=verdict,
    )


def verdict_of_lower_bound(edge: EdgeOfStability, residual: float) -> str:
    """The verdict on an eigenvalue whose iteration was cut short: what it has reached is a lower bound."""
    if edge.ratio is None or edge.ratio > stability.EDGE[1]:
        return edge.verdict
    return (
        f"No verdict within the limit: the sharpness is at least {edge.sharpness:.4g} (not converged, residual "
        f"{residual:.2g}), {edge.ratio:.2g} times the threshold {edge.threshold:.4g}."
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
    hessian: HessianOperator,
    most: int = _MOST_MINIBATCHES,
    *,
    target: float = BATCH_SHARPNESS_ERROR,
) -> BatchSharpness:
    """Mean over minibatches B of g'Hg/|g|^2, and the ratio of the means of g'Hg and |g|^2; g, H of the loss on B.

    Minibatches are training's, so that those of one epoch partition the data. They are taken in blocks of at least 24,
    of whole epochs where an epoch has fewer than 48, until the relative standard error of the mean is at most `target`.
    The standard errors are those of independent minibatches. Within an epoch minibatches are negatively dependent, so
    that the errors are rather too large. A minibatch whose gradient is 0 has no ratio and is skipped. Fixed batches
    without randomness are measured once each.

    Args:
        hessian: Hessian of the loss, for its minibatches.
        most: Minibatches at most.
        target: Relative standard error to aim at.

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
    count = 0
    while count < most and not (count and count % block == 0 and _known(rows, target)):
        try:
            rows.append(_along_the_gradient(hessian.on_minibatch(count)))
        except BudgetError:
            if not rows:
                raise
            break
        count += 1
    lengths, ratios = np.array(rows).reshape(-1, 2).T
    kept = lengths > 0
    return _summarised(lengths[kept], ratios[kept], count, exact=fixed and count == per_epoch == 1)


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


def _summarised(lengths: FloatArray, ratios: FloatArray, count: int, exact: bool) -> BatchSharpness:
    """Both forms with their standard errors, 0 where one minibatch is the whole population."""
    skipped = 1.0 - len(ratios) / count if count else 0.0
    if not len(ratios):
        return BatchSharpness(batch_sharpness_minibatches=count, batch_sharpness_skipped=skipped)
    squares = (lengths / lengths.max()) ** 2
    quotient = float(squares @ ratios / squares.sum())
    # Delta method: g'Hg - quotient * |g|^2 has mean 0, and its mean over the mean of |g|^2 is the error.
    departures = squares * (ratios - quotient) / squares.mean()
    several = len(ratios) > 1
    return BatchSharpness(
        batch_sharpness=float(ratios.mean()),
        batch_sharpness_stderr=_standard_error(ratios) if several else 0.0 if exact else None,
        batch_sharpness_ratio_of_means=quotient,
        batch_sharpness_ratio_of_means_stderr=_standard_error(departures) if several else 0.0 if exact else None,
        batch_sharpness_minibatches=count,
        batch_sharpness_skipped=skipped,
    )


def _standard_error(values: FloatArray) -> float:
    """Standard error of the mean of independent values."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))
