"""Mean-square stability of plain SGD on the Gauss-Newton matrices of its minibatches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import attrs
import numpy as np

from sdkeras.dimension.controls import Rows
from sdkeras.dimension.mean_square import kappa, leading_factor, quotient_terms, worst_second_moment
from sdkeras.errors import BudgetError, ModelError, VerificationError
from sdkeras.linalg.lanczos import lanczos
from sdkeras.linalg.probes import start_vector
from sdkeras.linalg.tridiagonal import ritz
from sdkeras.operators import controls
from sdkeras.operators.gauss_newton import GaussNewtonOperator
from sdkeras.operators.hessian import CurvatureOperator
from sdkeras.results.arrays import Array, FloatArray
from sdkeras.results.dimension import MeanSquareStability
from sdkeras.results.measured import Measured
from sdkeras.runs.budget import Budget, Notes, room_to_verify
from sdkeras.runs.problem import Problem
from sdkeras.training_step import settings

WHAT = "mean-square stability"
# Presets whose analyses measure it.
_PRESETS = ("standard", "thorough")
# Directions from one Lanczos run of so many steps, and those that enrich them.
_DIRECTIONS, _STEPS, _MORE = 16, 40, 8
# Leading directions of C that span the enrichment, and that the interval is of. Measured on digits: with one 60 % of
# kappa, with two 91 %, four 94 %, twelve 99 %; and a third of the products of twelve is three times the minibatches.
_RANK = 4
# Minibatches that C is chosen on, those of a first look at the interval, and at most; and its relative standard error.
_CHOSEN_ON, _BLOCK, _MOST, _TARGET = 24, 24, 240, 0.1
# Products of the verification.
_CHECKS = 10
# What negative curvature of a minibatch rounding explains, relative to its largest.
_NEGATIVE = 1e-3
# Directions of the enrichment with less than this share of the largest square are rounding.
_NEGLIGIBLE = 1e-10


def not_measured(problem: Problem) -> str:
    """Why there is no mean-square stability of this problem, or ''."""
    optimizer = problem.optimizer
    if problem.rate is None:
        return problem.no_rate
    if optimizer is not None and (optimizer.name != "SGD" or optimizer.momentum):
        name = f"{optimizer.name} with momentum" if optimizer.name == "SGD" else optimizer.name
        return f"it is known in this form for plain SGD, and the optimizer is {name}"
    if settings.batches_per_update(getattr(problem.compiled_as, "optimizer", None)) > 1:
        return "gradients are accumulated over several batches, and it is of steps of one"
    if problem.loss_fn is not None:
        return "the loss is a function of the model and the batch, which has no Gauss-Newton matrix"
    return ""


def is_asked_for(problem: Problem) -> bool:
    """Whether the preset measures it, and the noise of the gradients."""
    return problem.options.preset in _PRESETS


def cost_of_mean_square(problem: Problem) -> int:
    """Products of `mean_square_stability` to its first look at the interval."""
    if not is_asked_for(problem) or not_measured(problem):
        return 0
    size, batches = problem.loss.size, len(problem.loss.batches)
    first, second = _minibatches(problem)
    directions = min(_DIRECTIONS, size)
    enriching = min(_MORE, size - directions)
    chosen = directions + (min(_RANK, directions) + enriching if enriching else 0)
    rank = 0 if first == second else min(_RANK, directions)
    return (
        _CHECKS * ("ggn" not in problem.options.operator)  # whose products are verified already
        + min(_STEPS, size) * batches
        + len(first) * chosen
        + min(len(second), _epochs(_BLOCK, _per_epoch(problem))) * rank
    )


def _minibatches(problem: Problem) -> tuple[Sequence[int], Sequence[int]]:
    """Runs, whose minibatches are `controls.number`'s, that C is chosen on, and those of the interval at most.

    They are disjoint; of few fixed batches all are in both, and nothing is left to chance.
    """
    source = problem.source
    per_epoch = source.minibatches_per_epoch
    is_fixed = source.batch_ranges is not None or source.batch_size == source.num_samples
    if is_fixed and not problem.loss.function.is_random:
        if per_epoch <= _CHOSEN_ON + _BLOCK:
            return range(per_epoch), range(per_epoch)
        return range(per_epoch - _CHOSEN_ON, per_epoch), range(min(_MOST, per_epoch - _CHOSEN_ON))
    first = _epochs(_CHOSEN_ON, per_epoch)
    begin = per_epoch * math.ceil(10_000 / per_epoch)  # of another epoch
    return range(begin, begin + first), range(_epochs(_MOST, per_epoch))


def _epochs(count: int, per_epoch: int) -> int:
    """So many minibatches, or whole epochs where one has fewer."""
    return per_epoch * math.ceil(count / per_epoch) if per_epoch < count else count


def mean_square_stability(
    problem: Problem, budget: Budget, operator: CurvatureOperator | None = None
) -> tuple[MeanSquareStability, Notes]:
    """kappa of plain SGD, of which 1 is the edge of stability in mean square; see `sdkeras.dimension.mean_square`.

    The span is that of the top 16 Ritz vectors of the data set's Gauss-Newton matrix K, from one Lanczos run, and of
    the 8 leading directions in which minibatches map the first C. C is chosen on 24 minibatches, or whole epochs, and
    the interval is from up to 240 others, until its standard error is 10 %, for the four
    leading directions of C. Of at most 48 fixed batches all are both. Where it cannot be measured the record has the
    reason. `operator` is the Gauss-Newton operator of the loss where there is one, whose products are counted already.
    """
    reason = not_measured(problem)
    if reason:
        return MeanSquareStability(None, None, reason=reason), ()
    if budget.resources.eigen_steps(problem.loss.size) < min(_STEPS, problem.loss.size):
        return MeanSquareStability(None, None, reason="its directions do not fit the memory"), ()
    late = budget.stop(cost_of_mean_square(problem))
    if late:  # nothing is begun that has no room
        return MeanSquareStability(None, None, reason=str(BudgetError(late))), ()
    budget.tell(WHAT)
    begun = 0 if operator is None else operator.num_products
    if operator is None or not operator.verification.passed:
        options, others = problem.options, budget.meter.spent
        memory = room_to_verify(options.memory_gb, problem.loss.devices)
        try:
            made = GaussNewtonOperator(
                problem.loss, product_mode=options.product_mode, workers=budget.resources.workers, memory=memory
            )
        except (ModelError, VerificationError) as error:
            return MeanSquareStability(None, None, reason=str(error)), ()
        operator = made
        budget.meter.spent = lambda: others() + made.num_products
    try:
        found = _measured(problem, operator.within(budget), budget)
    except BudgetError as error:
        found = MeanSquareStability(None, None, reason=str(error))
    return attrs.evolve(found, num_hvps=operator.num_products - begun), ()


def _measured(problem: Problem, operator: CurvatureOperator, budget: Budget) -> MeanSquareStability:
    assert problem.rate is not None
    first, second = _minibatches(problem)
    minibatches = _Minibatches(problem, operator, budget)
    basis = _ritz_vectors(minibatches, problem.options.seed)
    s = np.array([basis.T @ image for image in minibatches.images(first, basis)])
    moment = worst_second_moment(s)
    enriching = min(_MORE, operator.size - basis.shape[1])
    if enriching and moment.any():
        more = _mapped_to(minibatches, first, basis, leading_factor(moment, _RANK), enriching)
        images = minibatches.images(first, more)
        s = np.array([_bordered(old, basis.T @ image, more.T @ image) for old, image in zip(s, images, strict=True)])
        basis = np.hstack([basis, more])
        moment = worst_second_moment(s)
    ends = np.linalg.eigvalsh(s)
    reason = ""
    if not moment.any():
        reason = "the Gauss-Newton matrix is 0: the loss has no curvature in its outputs"
    elif ends[:, 0].min() < -_NEGATIVE * ends[:, -1].max():
        reason = "the loss is not convex in its outputs: a minibatch's Gauss-Newton matrix has negative eigenvalues"
    if reason:
        return MeanSquareStability(None, None, reason=reason)
    factor = leading_factor(moment, _RANK if first != second else basis.shape[1])
    gram, span = factor.T @ factor, basis @ factor
    if first == second:
        terms = quotient_terms(factor.T @ s @ factor, gram)
        rows = Rows.of(len(terms), controls.frame(problem.loss))
        found = kappa(terms, rows, problem.rate, target=_TARGET, noiseless=True)
        return _record(found, problem.rate, len(terms), basis.shape[1])
    known, terms, block = controls.population(problem.loss), np.zeros((0, 2)), _epochs(_BLOCK, _per_epoch(problem))
    while True:
        some = second[len(terms) : len(terms) + block]
        try:
            projected = [span.T @ image for image in minibatches.images(some, span)]
        except BudgetError:
            if not len(terms):
                raise
            break
        terms = np.vstack([terms, quotient_terms(np.array(projected), gram)])
        found = kappa(terms, Rows.of(len(terms), known), problem.rate, target=_TARGET)
        if found.converged or len(terms) == len(second):
            break
        budget.expect(min(block, len(second) - len(terms)) * span.shape[1])
    return _record(found, problem.rate, len(first) + len(terms), basis.shape[1])


def _record(found: Measured, rate: float, minibatches: int, directions: int) -> MeanSquareStability:
    return MeanSquareStability(
        kappa=found,
        max_learning_rate=rate / found.value,
        num_minibatches=minibatches,
        num_directions=directions,
    )


@attrs.frozen(eq=False)
class _Minibatches:
    """Curvatures K_B of the minibatches of runs and that of the data set, each with the weight decay W."""

    problem: Problem
    operator: CurvatureOperator
    budget: Budget

    @property
    def decay(self) -> Array | float:
        return self.problem.decay if self.problem.shift is None else self.problem.shift

    def images(self, runs: Sequence[int], columns: FloatArray) -> Iterator[FloatArray]:
        """K_B times the columns, [n, k], for each of the runs in order."""
        source, decay = self.problem.source, np.broadcast_to(self.decay, self.operator.size)[:, None]
        for run in runs:
            view = self.operator.on_minibatch(controls.number(source, run))
            product = view.matmat(columns.astype(self.operator.dtype))
            yield np.asarray(product, np.float64) + decay * columns
            self.budget.tick()

    def mean_product(self, vector: Array) -> Array:
        """K v over the data set."""
        product: Array = self.operator.matvec(vector) + (self.decay * vector).astype(vector.dtype)
        self.budget.tick()
        return product


def _ritz_vectors(minibatches: _Minibatches, seed: int) -> FloatArray:
    """The top Ritz vectors of K from one Lanczos run, orthonormal columns [n, k]."""
    operator = minibatches.operator
    start = start_vector(operator.size, seed=seed, dtype=operator.dtype)
    run = lanczos(minibatches.mean_product, start, _STEPS, fewest=_DIRECTIONS)
    _, vectors = ritz(run.alpha, run.beta[:-1])
    assert run.basis is not None
    # The basis is orthonormal to half the digits only.
    return np.asarray(np.linalg.qr(run.basis.T.astype(np.float64) @ vectors[:, -_DIRECTIONS:])[0])


def _mapped_to(
    minibatches: _Minibatches, runs: Sequence[int], basis: FloatArray, factor: FloatArray, count: int
) -> FloatArray:
    """Leading left singular vectors of the K_B U side by side, orthogonal to the basis, U = basis F; [n, count]."""
    columns = np.zeros((len(basis), 0))
    for image in minibatches.images(runs, basis @ factor):
        outside = image - basis @ (basis.T @ image)
        columns = np.hstack([columns, outside - basis @ (basis.T @ outside)])
        values, vectors = np.linalg.eigh(columns.T @ columns)
        kept = vectors[:, -count:][:, values[-count:] > _NEGLIGIBLE * values[-1]]
        columns = columns @ kept
    q, _ = np.linalg.qr(np.hstack([basis, columns]))
    return np.asarray(q[:, basis.shape[1] :])


def _bordered(inner: FloatArray, side: FloatArray, corner: FloatArray) -> FloatArray:
    """[[A, B], [B', C]], its corners made symmetric."""
    whole = np.block([[inner, side], [side.T, corner]])
    return np.asarray((whole + whole.T) / 2)


def _per_epoch(problem: Problem) -> int:
    return problem.source.minibatches_per_epoch
