"""The edge of stability: sharpness against the optimizer's own threshold, and the batch sharpness."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import attrs
import numpy as np

from sdkeras.dimension import stability
from sdkeras.dimension.controls import UNKNOWN, Fit, Population, Rows
from sdkeras.dimension.sampling import AdaptiveSettings
from sdkeras.dimension.stability import BATCH_SHARPNESS_ERROR
from sdkeras.errors import BudgetError
from sdkeras.files.keras_types import Tensor
from sdkeras.linalg.vectors import dot, norm, stacked
from sdkeras.operators import controls
from sdkeras.operators.hessian import HessianOperator
from sdkeras.operators.lockstep import USUAL_PRODUCTS
from sdkeras.operators.loss import EmpiricalLoss
from sdkeras.reporting.numbers import rate_source_in_words
from sdkeras.results.arrays import Array, FloatArray
from sdkeras.results.dimension import EdgeOfStability, GradientNoise, Plateau
from sdkeras.results.estimates import Eigenpairs
from sdkeras.results.measured import Measured
from sdkeras.runs import measure
from sdkeras.runs.budget import Budget, Notes
from sdkeras.runs.mean_square import is_asked_for
from sdkeras.runs.problem import Problem, operator_name

# Tolerance of an analysis at which the batch sharpness aims at its usual error.
_USUAL_TOLERANCE = 0.05
_MOST_MINIBATCHES = 1000
# Relative standard error at which a number of the gradients' noise counts as converged.
_PRECISE = 0.1
# It takes at most this part of a limited number of products, and at least this many minibatches.
_PART_OF_PRODUCTS, _FEWEST_MINIBATCHES = 20, 3


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
            measure.PRECONDITIONED,
            lambda: measure.extremes(problem, hessian, share, scaling),
            tuple[Eigenpairs, Notes],
        )
    elif problem.unscaled:
        pairs = None
    reason = "interrupted before it was measured" if budget.interrupted else "the budget left no room for it"
    reason = problem.unscaled or ("" if pairs is not None else reason)
    found = edge_of_stability(problem, None if pairs is None else measure.with_evidence(pairs, 0), reason)
    below = found.ratio is not None and found.ratio <= stability.EDGE[1]
    is_cut = budget.is_limited or budget.interrupted
    is_open = below and pairs is not None and not pairs.converged[0] and is_cut
    if is_open and pairs is not None:
        words = (
            f"No verdict within the limit: the sharpness is at least {found.sharpness:.4g} (not converged, residual "
            f"{float(pairs.residuals[0]):.2g}), {found.ratio:.2g} times the threshold {found.threshold:.4g}."
        )
        found = attrs.evolve(found, verdict=words)
    if not budget.interrupted:
        budget.tick(found.verdict)

    def sampled() -> tuple[BatchSharpness, Notes]:
        share, options = budget.part(measure.BATCH_SHARPNESS), problem.options
        share.tell("batch sharpness")
        most, target = num_minibatches(options.max_hvps), target_error(options.tolerance)
        known, planned = controls.population(hessian.loss), first_minibatches(hessian.loss, most)

        def expect(minibatches: int) -> None:
            nonlocal planned
            budget.expect(minibatches - planned)
            planned = minibatches

        within = hessian.within(share)
        noise = None
        if pairs is not None and pairs.vectors is not None and is_asked_for(problem):
            noise = _Noise.along(pairs, within, scaling)
        return batch_sharpness(within, most, target=target, population=known, expect=expect, noise=noise), ()

    batches, more = budget.measured("batch sharpness", sampled, tuple[BatchSharpness, Notes])
    found = attrs.evolve(found, **attrs.asdict(batches or BatchSharpness(), recurse=False))
    plateau = None if is_open else stability.settled_at(found)
    if plateau is not None:
        found = attrs.evolve(found, verdict=stability.verdict_by_plateau(found, plateau))
    return found, (*notes, *more)


def cost_of_edge(problem: Problem) -> int:
    """Products of `edge`, of which the batch sharpness may take more where its minibatches differ much."""
    batches = first_minibatches(problem.loss, num_minibatches(problem.options.max_hvps))
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
        plateaus=_plateaus(problem),
    )


def _plateaus(problem: Problem) -> tuple[Plateau, ...]:
    """Where the batch sharpness settles in minibatches of this size."""
    optimizer, source = problem.optimizer, problem.loss.source
    if problem.rate is None or source.batch_size >= source.num_samples:
        return ()
    if optimizer is None:
        return stability.plateaus("SGD", problem.rate)
    momentum, nesterov = optimizer.momentum, bool(optimizer.nesterov)
    return stability.plateaus(optimizer.name, problem.rate, momentum=momentum, nesterov=nesterov)


def num_minibatches(max_hvps: int | None) -> int:
    """The most minibatches of the batch sharpness, within a limit on the products of the whole analysis."""
    if max_hvps is None:
        return _MOST_MINIBATCHES
    return min(_MOST_MINIBATCHES, max(_FEWEST_MINIBATCHES, max_hvps // _PART_OF_PRODUCTS))


def target_error(tolerance: float) -> float:
    """Relative standard error to aim at, by the tolerance of the whole analysis: 2 %, more where that is loose."""
    return BATCH_SHARPNESS_ERROR * max(1.0, tolerance / _USUAL_TOLERANCE)


def first_minibatches(loss: EmpiricalLoss, most: int) -> int:
    """How many minibatches the batch sharpness takes at least, of `most`."""
    return min(_blocks(loss, most))


def _blocks(loss: EmpiricalLoss, most: int) -> tuple[int, int]:
    """Minibatches of a block, and the most in all."""
    per_epoch, block = loss.source.minibatches_per_epoch, AdaptiveSettings().min_runs
    if per_epoch < 2 * block:
        block = per_epoch * math.ceil(block / per_epoch)
        most = most if most < block else most - most % block
    return block, min(most, per_epoch) if _is_fixed(loss) else most


def _is_fixed(loss: EmpiricalLoss) -> bool:
    """Whether there are only the minibatches of one epoch."""
    source = loss.source
    return (source.batch_size == source.num_samples or source.batch_ranges is not None) and not loss.function.is_random


@attrs.frozen
class BatchSharpness:
    """The batch sharpness in both forms; names and meanings are those of `EdgeOfStability`."""

    batch_sharpness: float | None = None
    batch_sharpness_stderr: float | None = None
    batch_sharpness_ratio_of_means: float | None = None
    batch_sharpness_ratio_of_means_stderr: float | None = None
    batch_sharpness_minibatches: int = 0
    batch_sharpness_skipped: float = 0.0
    batch_sharpness_target: float | None = None
    gradient_noise: GradientNoise | None = None


@attrs.define(eq=False)
class _Noise:
    """Gradients g of the minibatches so far, in coordinates D g, seen along a unit vector u and about a center c.

    Attributes:
        along_u: u'Dg of each.
        squares: |Dg - c|^2 of each; c is about their mean, so that these are hardly correlated with the mean's error.
        total: Sum of the Dg - c.
    """

    u: Array
    center: Array
    scaling: Array | float
    total: Array
    along_u: list[float] = attrs.field(factory=list)
    squares: list[float] = attrs.field(factory=list)

    @classmethod
    def along(cls, pairs: Eigenpairs, hessian: HessianOperator, scaling: Array | None) -> _Noise:
        """None so far, along the first of the eigenvectors, about the gradient over the data set."""
        scale = 1.0 if scaling is None else scaling
        center = scale * hessian.gradient()
        return cls(np.asarray(pairs.vectors, np.float64)[:, 0], center, scale, np.zeros_like(center))

    def add(self, gradient: Tensor) -> None:
        """One more minibatch."""
        scaled = self.scaling * np.asarray(gradient, np.float64)
        self.along_u.append(float(self.u @ scaled))
        scaled -= self.center
        self.squares.append(float(scaled @ scaled))
        self.total += scaled

    def summary(self, population: Population, complete: bool) -> GradientNoise | None:
        """Mean, deviation and share in the noise, by the delta method; of all fixed batches without an error."""
        count = len(self.along_u)
        if count < 2:
            return None
        along, squares, mean = np.array(self.along_u), np.array(self.squares), self.total / count
        is_all = complete and count == population.num_batches
        bias = 1.0 if is_all else count / (count - 1)
        departures = (along - along.mean()) ** 2
        variance, trace = bias * departures.mean(), bias * (squares.mean() - float(mean @ mean))
        if not (variance > 0 and trace > 0):
            return None
        share, deviation = variance / trace, math.sqrt(variance)

        def measured(value: float, influences: FloatArray) -> Measured:
            error = 0.0 if is_all else float(np.std(influences, ddof=1)) / math.sqrt(count)
            return Measured(value, error <= _PRECISE * abs(value), stderr=error)

        return GradientNoise(
            mean=measured(float(along.mean()), along),
            deviation=measured(deviation, departures / (2 * deviation)),
            share=measured(share, bias * (departures - share * squares) / trace),
            num_minibatches=count,
        )


def batch_sharpness(
    hessian: HessianOperator,
    most: int = _MOST_MINIBATCHES,
    *,
    target: float = BATCH_SHARPNESS_ERROR,
    population: Population = UNKNOWN,
    expect: Callable[[int], None] = lambda _: None,
    noise: _Noise | None = None,
) -> BatchSharpness:
    """Mean over minibatches B of g'Hg/|g|^2, and the ratio of the means of g'Hg and |g|^2; g, H of the loss on B.

    Minibatches are those of the sharpness dimension. They are taken in blocks of at least 24, of whole epochs where an
    epoch has fewer than 48, until the relative standard error of the mean is at most `target`. Means are regressions on
    the minibatches' controls (see `sdkeras.dimension.controls`), and errors those of independent residuals; within an
    epoch minibatches are negatively dependent, so that they are rather too large. A minibatch whose gradient is 0 has
    no ratio and is skipped, and then there are no controls. Fixed batches without randomness are measured once each.
    After each block `expect` is told how many minibatches the error now asks for. `noise` is told their gradients.

    Raises:
        BudgetError: The budget has no room for one minibatch; where it ends later, there are fewer.

    Reference: Andreyev and Beneventano (2024), arXiv 2412.20553.
    """
    source = hessian.loss.source
    # Training sees a last smaller batch too, which is none of these.
    complete = _is_fixed(hessian.loss) and len(source.batch_ranges or ()) in (0, source.minibatches_per_epoch)
    block, most = _blocks(hessian.loss, most)
    rows: list[tuple[float, float]] = []  # |g| and g'Hg/|g|^2
    together = hessian.rows_together(USUAL_PRODUCTS * len(hessian.batches))
    while len(rows) < most:
        if rows and len(rows) % block == 0:
            share = _share_needed(rows, population, complete, target)
            if share <= 1:
                break
            expect(int(min(most, block * np.ceil(share * len(rows) / block))))
        count = min(together, most - len(rows), block - len(rows) % block)
        try:
            numbers = [controls.number(source, len(rows) + k) for k in range(count)]
            rows += _along_the_gradients([hessian.on_minibatch(number) for number in numbers], noise)
        except BudgetError:
            if count > 1:  # there may be room for fewer
                together = 1
                continue
            if not rows:
                raise
            break
    found = _summarised(rows, population, complete)
    seen = None if noise is None else noise.summary(population, complete)
    return attrs.evolve(found, batch_sharpness_target=target, gradient_noise=seen)


def _along_the_gradients(views: Sequence[HessianOperator], noise: _Noise | None = None) -> list[tuple[float, float]]:
    """|g| and g'Hg/|g|^2 of each minibatch; the ratio is 0 where g is."""
    on_host = getattr(views[0], "space", None) is None
    gradients = [view.gradient() if on_host else view.direction() for view in views]
    lengths = [norm(gradient) for gradient in gradients]
    unit = [g / length for g, length in zip(gradients, lengths, strict=True) if length > 0]
    if on_host:
        unit = [direction.astype(views[0].dtype) for direction in unit]
    moving = [view for view, length in zip(views, lengths, strict=True) if length > 0]
    if len(moving) > 1:
        products = list(type(moving[0]).batch(moving).matvecs(stacked(*unit)))
    else:
        products = [view.matvec(direction) for view, direction in zip(moving, unit, strict=True)]
    if noise is not None:  # once the budget had room for all of them
        for gradient in gradients:
            noise.add(gradient)
    ratios = iter([dot(direction, product) for direction, product in zip(unit, products, strict=True)])
    return [(length, next(ratios) if length > 0 else 0.0) for length in lengths]


def _fit(rows: list[tuple[float, float]], values: FloatArray, population: Population, fixed: bool) -> Fit:
    """The mean of values of those minibatches that have any."""
    known = population if len(values) == len(rows) else UNKNOWN
    return Rows.of(len(values), known).fit(values, noiseless=fixed)


def _share_needed(rows: list[tuple[float, float]], population: Population, fixed: bool, target: float) -> float:
    """How many times the rows the mean of the ratios needs for a relative standard error of `target`."""
    ratios = np.array([ratio for length, ratio in rows if length > 0])
    if len(ratios) < 2:
        return math.inf
    fit = _fit(rows, ratios, population, fixed)
    allowed = (target * fit.mean) ** 2
    return fit.squared_error / allowed if allowed > 0 else math.inf if fit.squared_error > 0 else 0.0


def _summarised(rows: list[tuple[float, float]], population: Population, fixed: bool) -> BatchSharpness:
    """Both forms with their standard errors, 0 where the minibatches are the whole population."""
    kept = np.array([row for row in rows if row[0] > 0]).reshape(-1, 2)
    lengths, ratios = np.ascontiguousarray(kept.T)  # sums of strided views round in another way
    skipped = 1.0 - len(ratios) / len(rows) if rows else 0.0
    if not len(ratios):
        return BatchSharpness(batch_sharpness_minibatches=len(rows), batch_sharpness_skipped=skipped)
    squares = (lengths / lengths.max()) ** 2
    quotient = float(squares @ ratios / squares.sum())
    # Delta method: g'Hg - quotient * |g|^2 over the mean of |g|^2 has as its expectation what the quotient is off.
    mean, departure = (
        _fit(rows, values, population, fixed) for values in (ratios, squares * (ratios - quotient) / squares.mean())
    )
    errors = [math.sqrt(fit.squared_error) if math.isfinite(fit.squared_error) else None for fit in (mean, departure)]
    return BatchSharpness(
        batch_sharpness=mean.mean,
        batch_sharpness_stderr=errors[0],
        batch_sharpness_ratio_of_means=quotient + departure.mean,
        batch_sharpness_ratio_of_means_stderr=errors[1],
        batch_sharpness_minibatches=len(rows),
        batch_sharpness_skipped=skipped,
    )
