"""Is the map the optimizer's step, and are its products those of its Jacobian? Checks that rest on neither.

- The step: one real `apply` on a second optimizer, rebuilt from the first's configuration and loaded with its state,
  both in float64. A map of the wrong optimizer (without its slots, say) passes every test of its derivatives.
- The derivative: J v against central differences of the map in float64. A float32 map is checked in its two parts,
  the Hessian's products (as for `HessianOperator`) and the update's derivative, and its own product against theirs.
- The transpose: u'(J v) = (J'u)'v in the map's own precision.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence

import attrs
import numpy as np
import tensorflow as tf

from sdkeras import seeds
from sdkeras.errors import ModelError
from sdkeras.files.keras_types import Optimizer, Tensor, Variable
from sdkeras.linalg.vectors import finite
from sdkeras.operators import precision, verification
from sdkeras.operators.engine import Engine
from sdkeras.operators.layout import Layout, joined
from sdkeras.operators.loss import EmpiricalLoss
from sdkeras.results.arrays import Array, DType
from sdkeras.results.verification import StepVerification, Verification
from sdkeras.training_step.gradients import Gradient, Gradients, RowGradients
from sdkeras.training_step.jacobian import StepJacobian
from sdkeras.training_step.optimizer import loaded_clone, replica, scheduled_parts
from sdkeras.training_step.rule import UpdateRule, update_rule

_NUM_DIRECTIONS = 3
# Relative to the length of the step, beyond what rounding of the state itself makes (`_ROUNDINGS` of its entries).
ALLOWED_STEP = 1e-9
_ROUNDINGS = 16
# Of a schedule's rate, relative to its first or its present one: some roundings of float32.
_ALLOWED_RATE = 4 * float(np.finfo(np.float32).eps)
# Central differences in float64 agree to 1e-8 or so where the map is smooth; the longest step of these that is
# short enough depends on the smallest second moment, so each entry takes its best.
_ALLOWED_DIFFERENCE = 1e-5
_STEPS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
_ALLOWED_ADJOINT = {"float64": 1e-9, "float32": 1e-3}
_ALLOWED_ROUNDING = 1e-2
_PRODUCT = "a product with the step's Jacobian"


@attrs.frozen(kw_only=True)
class UpdateVerification(StepVerification):
    """Outcome of the checks of an `UpdateMap`.

    `step_error` is the largest of the variables, and so is `finite_difference_error` (median of three directions). A
    float32 map is 'checked' as an 'update': `hessian` checks the rest.
    """

    hessian: Verification
    zero_roots: int  # square roots of exactly 0 in the update (second moments), whose derivative is taken as 0
    num_roots: int
    # Weights whose next value has derivative 0 with respect to the gradient: all of them for updates by signs (Lion),
    # where J holds no curvature at all (`degenerate`).
    unresponsive: int
    degenerate: bool
    # The part of `step_error` from gradients of lookups (embeddings) that come row by row, as training gives them, on
    # minibatch 0; 0 where there are none.
    lookup_error: float
    # Weights whose gradient and slots are exactly 0 in an update by signs; the derivative of sign(0) is taken as 0, and
    # the checks do not move them.
    zero_signs: int


def verified(
    step: StepJacobian, loss: EmpiricalLoss, engine: Engine, optimizer: Optimizer, allow_unverified: bool
) -> UpdateVerification:
    """Checks a new map and refuses one that is wrong, by a VerificationError or with `allow_unverified` a warning."""
    hessian = verification.verified(loss, engine, allow_unverified)
    result = _verify(step, loss, engine, optimizer, hessian)
    if not result.passed:
        verification.refuse(_failure(result), allow_unverified)
    return result


def check_step(result: UpdateVerification, allow_unverified: bool) -> bool:
    """Whether the step is the optimizer's own, whatever its derivatives are; refuses another one, as `verified` does.

    For trajectories: where float32 does not resolve the curvature of a fitted minibatch, a step is right all the same.
    """
    right = result.step_error < ALLOWED_STEP
    if not right:
        verification.refuse(_failure(result), allow_unverified)
    return right


def _verify(
    step: StepJacobian, loss: EmpiricalLoss, engine: Engine, optimizer: Optimizer, hessian: Verification
) -> UpdateVerification:
    rule, details = step.rule, []
    double = _in_double(rule, optimizer)
    try:
        step_error, lookup_error = _step_errors(step, double, loss, engine, optimizer)
    except ModelError as reason:
        step_error, lookup_error = float("nan"), 0.0
        details.append(str(reason))
    zeros, roots = rule.zero_roots(step.state, step.gradient, step.held)
    zero_signs = rule.unmoved(step.state.numpy(), step.gradient) if rule.graph.has_signs else 0
    if any(not np.any(step.state.numpy()[place]) for place in rule.slot_places):
        # A slot that is all zero (before the first step) hides derivatives; one step on they show.
        step = attrs.evolve(step, state=tf.constant(finite(step.next_state().numpy(), "the next state")))
        details.append("derivatives were checked one step on, since a slot is all zero")
    generator = seeds.generator(loss.seed, seeds.Stream.STEP_DIRECTIONS)
    directions = [_direction(step, generator) for _ in range(_NUM_DIRECTIONS)]
    errors, rounding = zip(*(_derivative_errors(step, double, direction) for direction in directions), strict=True)
    unresponsive = _unresponsive(step, double, generator)
    result = UpdateVerification(
        hessian=hessian,
        step_error=step_error,
        finite_difference_error=max(
            float(np.median(errors)), 0.0 if double is rule else _row_error(step, engine, directions[0])
        ),
        checked="map" if double is rule else "update",
        jvp_relative_error=max(float(np.median(rounding)), float(np.finfo(rule.dtype).eps)),
        adjoint_error=_adjoint_error(step, directions[0], generator),
        zero_roots=zeros,
        num_roots=roots,
        unresponsive=unresponsive,
        degenerate=unresponsive == rule.num_weights,
        passed=False,
        details="; ".join(details),
        lookup_error=lookup_error,
        zero_signs=zero_signs,
    )
    return attrs.evolve(result, passed=_meets_tolerances(result, engine.mode == "finite-differences", rule.dtype))


def _meets_tolerances(result: UpdateVerification, by_differences: bool, dtype: str) -> bool:
    return (
        result.hessian.passed
        and result.step_error < ALLOWED_STEP
        and result.finite_difference_error < (_ALLOWED_ROUNDING if by_differences else _ALLOWED_DIFFERENCE)
        and result.jvp_relative_error < _ALLOWED_ROUNDING
        and result.adjoint_error < (_ALLOWED_ROUNDING if by_differences else _ALLOWED_ADJOINT[dtype])
    )


def _in_double(rule: UpdateRule, optimizer: Optimizer) -> UpdateRule:
    if rule.dtype == "float64":
        return rule
    double = update_rule(optimizer, rule.gradients.weights, rule.optimizer.missing, "float64")
    return double.by_rows(rule.gradients.looked_up) if rule.gradients.looked_up else double


# The step


def step_error(
    step: StepJacobian, loss: EmpiricalLoss, engine: Engine, optimizer: Optimizer
) -> tuple[float | None, str]:
    """The largest error of the step alone, without products; or None, and why the optimizer has none to compare."""
    try:
        return _step_errors(step, _in_double(step.rule, optimizer), loss, engine, optimizer)[0], ""
    except ModelError as reason:
        return None, str(reason)


def _step_errors(
    step: StepJacobian, rule: UpdateRule, loss: EmpiricalLoss, engine: Engine, optimizer: Optimizer
) -> tuple[float, float]:
    """The largest error of the step, and the part of it from gradients of lookups that training gives row by row.

    With gradient accumulation over several batches Keras sums these first.
    """
    state, dtype = step.state.numpy().astype(np.float64), np.dtype(step.rule.dtype)
    gradient = step.gradient_in_double
    parts = rule.gradients.parted(gradient.values, gradient.rows)
    error = _step_error(rule, optimizer, state, gradient, parts, dtype)
    if not engine.looked_up or rule.gradients.looked_up or rule.optimizer.microbatches > 1:
        return error, 0.0
    rows = RowGradients(engine)
    by_row = rows.gradient(step.point, [loss.minibatch(0)])
    raw = rows.layout.parted(tf.cast(by_row.values, tf.float64), by_row.rows)
    total = joined([tf.convert_to_tensor(each) for each in raw])
    lookup_error = _step_error(rule, optimizer, state, Gradient(total), raw, dtype)
    return max(error, lookup_error), lookup_error


def _step_error(
    rule: UpdateRule, optimizer: Optimizer, state: Array, gradient: Gradient, gradients: Sequence[Tensor], dtype: DType
) -> float:
    """One step of the rule against `apply` of a loaded clone, relative to how far each variable moved.

    The rule gets `gradient`, the clone `gradients`, both in float64. The clone's slots are rounded to `dtype`, as the
    map's are.
    """
    weights = [replica(variable, "float64") for variable in optimizer._trainable_variables]
    for variable, place in zip(weights, rule.layout.slices, strict=False):
        variable.assign(state[place].reshape(variable.shape))
    clone = loaded_clone(optimizer, weights)
    slots, held = rule.positions()
    for k in slots:
        clone.variables[k].assign(np.asarray(clone.variables[k]).astype(dtype))
    if not _with_rates_of(rule, clone):
        return float("inf")
    before = [np.asarray(variable).copy() for variable in clone.variables]
    missing = rule.optimizer.missing
    _take_step(clone, weights, [None if lost else g for lost, g in zip(missing, gradients, strict=True)], rule)
    new, advanced = rule.update(tf.constant(state), gradient, rule.constants(rule.held))
    new, real = new.numpy(), [np.asarray(variable) for variable in clone.variables]
    truths = [*(np.asarray(w) for w in weights), *(real[k] for k in slots)]
    triples = [(new[p], t.ravel(), state[p]) for p, t in zip(rule.layout.slices, truths, strict=True)]
    triples += [(value.numpy(), real[k], before[k]) for k, value in zip(held, advanced, strict=True) if k is not None]
    return max(_step_distance(*(np.ravel(np.asarray(each, np.float64)) for each in triple)) for triple in triples)


def _take_step(clone: Optimizer, weights: Sequence[Variable], gradients: Sequence[Tensor], rule: UpdateRule) -> None:
    """One real update of a clone, or its accumulation over as many batches as make one."""
    k = rule.optimizer.microbatches
    if k > 1:
        clone._iterations.assign(rule.held[rule.iteration_name] - (k - 1))
        for accumulator in clone._accumulated_gradients:
            accumulator.assign(tf.zeros_like(accumulator))
    with precision.default_precision("float64"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Gradients do not exist")
        for _ in range(k):
            clone.apply(gradients, weights)
    clone._iterations.assign(clone._iterations + (k - 1))  # the held iteration is that of the next update


def _with_rates_of(rule: UpdateRule, clone: Optimizer) -> bool:
    """Gives the clone the rates of the rule where they follow schedules; False if they are not the schedules' own.

    Keras computes a schedule in float32, with another rounding in a graph than without one. The steps are compared at
    one rate, and the rates apart from them: near the end of a decay they are small differences of larger numbers.
    """
    iteration = rule.held[rule.iteration_name]
    for each, rate in zip(scheduled_parts(clone), rule.rates(rule.constants(rule.held)), strict=True):
        schedule = each._learning_rate
        real, first = (float(np.asarray(schedule(tf.constant(at)))) for at in (iteration, np.zeros_like(iteration)))
        if not abs(rate - real) <= _ALLOWED_RATE * max(abs(real), abs(first)):
            return False
        each._learning_rate = functools.partial(tf.constant, rate, tf.float32)
    return True


def _step_distance(new: Array, real: Array, before: Array) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        apart = np.abs(new - real) - _ROUNDINGS * np.finfo(np.float64).eps * np.maximum(np.abs(real), np.abs(before))
        if not np.isfinite(apart).all():
            return float("inf")
        error, moved = float(np.linalg.norm(np.maximum(apart, 0.0))), float(np.linalg.norm(real - before))
    return error / moved if moved > 0 else (0.0 if error == 0 else float("inf"))


# The derivative


def _direction(step: StepJacobian, generator: np.random.Generator) -> Array:
    """A random tangent in each variable's own units.

    What is never negative (second moments) moves in proportion, and so do all slots of an update by signs: what is
    exactly 0 stays so, where a sign would jump.
    """
    rule, state = step.rule, step.state.numpy().astype(np.float64)
    direction = generator.standard_normal(state.size)
    for place in rule.slot_places:
        slot = state[place]
        in_proportion = rule.graph.has_signs or np.all(slot >= 0)
        direction[place] *= slot if in_proportion else np.sqrt(np.mean(slot**2))
    return np.asarray(direction)


def _derivative_errors(step: StepJacobian, double: UpdateRule, direction: Array) -> tuple[float, float]:
    """J v in float64 against central differences, and the map's own J v against that.

    The differences are of the whole map in float64, or of the update in float64 along the gradient's derivative.
    """
    layout, state = step.rule.layout, step.state.numpy().astype(np.float64)
    held = double.constants(step.rule.named(step.held))
    scale = 1.0 / max(1.0, float(np.linalg.norm(direction[: step.num_weights])))
    product = step.push(direction[None].astype(step.rule.dtype))[0].astype(np.float64)
    rounding = np.zeros(state.size)
    if double is step.rule:
        exact = product

        def moved(h: float) -> Array:
            new = attrs.evolve(step, state=tf.constant(state + h * direction)).next_state().numpy()
            return finite(new, "the next state")

        # A gradient that is 0 but for rounding, as at the biases of the keys of attention, is rounded as the others
        # are: a difference's rounding is that of the largest of the same kind.
        largest = _largest_of_kind(step.rule, [float(np.max(np.abs(state[place]))) for place in layout.slices])
        for size, place in zip(largest, layout.slices, strict=True):
            rounding[place] = _ROUNDINGS * np.finfo(np.float64).eps * size / (max(_STEPS) * scale)
    else:
        gradient = step.gradient_in_double
        weights = tf.constant(direction[None, : step.num_weights], step.rule.dtype)
        slopes = step.gradients.push(step.point, weights, step.batches).numpy().astype(np.float64)
        exact = double.linearize(tf.constant(state), gradient, held)[2].push(direction[None], slopes)[0]

        def moved(h: float) -> Array:
            ahead = attrs.evolve(gradient, values=gradient.values + h * slopes[0])
            new: Array = double.update(tf.constant(state + h * direction), ahead, held)[0].numpy()
            return new

    finite(exact, _PRODUCT), finite(product, _PRODUCT)
    steps = [h * scale for h in _STEPS]
    apart = np.min([np.abs(exact - (moved(h) - moved(-h)) / (2 * h)) for h in steps], axis=0)
    return (
        _largest_ratio(np.maximum(apart - rounding, 0.0), exact, layout),
        _largest_ratio(np.abs(product - exact), exact, layout),
    )


def _largest_of_kind(rule: UpdateRule, sizes: Sequence[float]) -> list[float]:
    """For each variable of the state the largest of these sizes among its kind: weights, momenta, velocities, ..."""
    largest: dict[str, float] = {}
    count = len(rule.gradients.weights.names)
    kinds = ["weight" if k < count else name.rpartition("_")[2] for k, name in enumerate(rule.layout.names)]
    for kind, size in zip(kinds, sizes, strict=True):
        largest[kind] = max(size, largest.get(kind, 0.0))
    return [largest[kind] for kind in kinds]


def _largest_ratio(apart: Array, scale: Array, layout: Layout) -> float:
    """The largest over the variables of |apart| / |scale|; 0 / 0 is 0."""
    pairs = [(float(np.linalg.norm(apart[place])), float(np.linalg.norm(scale[place]))) for place in layout.slices]
    return max(error / size if size > 0 else float("inf") if error > 0 else 0.0 for error, size in pairs)


def _row_error(step: StepJacobian, engine: Engine, direction: Array) -> float:
    """The derivative of a gradient row by row, summed over lookups, against the Hessian's product that was checked.

    0 where rounding explains it.
    """
    layout, tangent = step.rule.gradients, tf.constant(direction[None, : step.num_weights], step.rule.dtype)
    if not layout.looked_up:
        return 0.0
    slopes = step.gradients.push(step.point, tangent, step.batches)[0]
    total = joined([tf.convert_to_tensor(part) for part in layout.parted(slopes, step.gradient.rows)]).numpy()
    product = Gradients(engine).push(step.point, tangent, step.batches)[0].numpy()
    apart, size = float(np.linalg.norm(total - product)), float(np.linalg.norm(product))
    return apart / max(size, 1e-30) if apart > _ALLOWED_ROUNDING * size else 0.0


def _unresponsive(step: StepJacobian, double: UpdateRule, generator: np.random.Generator) -> int:
    """Weights whose next value does not move, to first order, when the gradient does."""
    gradient, held = step.gradient_in_double, double.constants(step.rule.named(step.held))
    size = int(gradient.values.shape[0])
    slopes = generator.uniform(0.5, 1.5, size) * generator.choice([-1.0, 1.0], size)
    derivative = double.linearize(tf.cast(step.state, tf.float64), gradient, held)[2]
    pushed = derivative.push(np.zeros((1, double.size)), slopes[None])[0]
    return int(np.sum(pushed[: step.num_weights] == 0))


def _adjoint_error(step: StepJacobian, direction: Array, generator: np.random.Generator) -> float:
    """|u'(J v) - (J'u)'v| with u in the inverse units of v, so that each kind of slot counts.

    The unit of a slot is its size, but not below a tenth of the largest of its kind (momentum, velocity, ...): where no
    gradient arrives but rounding, as at biases before batch normalization, products are rounding as well.
    """
    rule, state = step.rule, step.state.numpy().astype(np.float64)
    sizes = [float(np.sqrt(np.mean(state[place] ** 2))) for place in rule.layout.slices]
    units = np.ones(state.size)
    for place, size, largest in zip(rule.layout.slices, sizes, _largest_of_kind(rule, sizes), strict=True):
        if place.start >= step.num_weights:
            units[place] = max(size, 0.1 * largest) or 1.0
    v = direction.astype(rule.dtype)
    u = (generator.standard_normal(state.size) / units).astype(rule.dtype)
    pushed, pulled = step.push(v[None])[0].astype(np.float64), step.pull(u[None])[0].astype(np.float64)
    finite(pushed, _PRODUCT), finite(pulled, _PRODUCT)
    u, v = u.astype(np.float64), v.astype(np.float64)
    scale = max(np.linalg.norm(u * units) * np.linalg.norm(pushed / units), np.linalg.norm(pulled * v))
    return float(abs(u @ pushed - pulled @ v) / max(scale, np.finfo(np.float64).tiny))


def _failure(result: UpdateVerification) -> str:
    numbers = (
        f"its step differs from the optimizer's own by {result.step_error:.2g} of the step, its products from finite "
        f"differences by {result.finite_difference_error:.2g} and from float64 by {result.jvp_relative_error:.2g}, "
        f"adjoint error {result.adjoint_error:.2g}"
    )
    if ALLOWED_STEP <= result.lookup_error == result.step_error:
        why = (
            "Training gives the optimizer the gradient of an embedding row by row (tf.IndexedSlices), and Keras clips "
            "and squares a row that a batch looks up twice as two rows; the map has their sum, since products row by "
            "row need the product mode reverse-over-reverse and this is "
            f"{result.hessian.mode}. Train with SGD without clipping, or with gradient accumulation, which sums first"
        )
    elif not result.step_error < ALLOWED_STEP:
        why = (
            "The optimizer's update is not a function of its Keras variables and its configuration (an attribute "
            "changed after construction, a get_config() that leaves something out, state elsewhere, or the .value of "
            "a variable kept and read after an assignment to it, as ScheduleFreeAdamW of Keras does: TensorFlow then "
            "reads the new value); rebuild it so that type(optimizer).from_config(optimizer.get_config()) takes the "
            "same step"
        )
    elif not result.jvp_relative_error < _ALLOWED_ROUNDING:
        why = "Products in float32 are far from those in float64; analyse in float64 (dtype='float64')"
    else:
        why = "The update has a wrong or no derivative here (a kink, or an operation TensorFlow differentiates wrongly)"
    details = f" ({result.details})" if result.details else ""
    return (
        f"the training step's map failed its verification: {numbers}{details}. {why}, or allow an unverified map "
        "(`allow_unverified=True`)."
    )
