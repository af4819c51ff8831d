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
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import tensorflow as tf

from sdkeras import seeds
from sdkeras.errors import ModelError, VerificationError
from sdkeras.linalg.vectors import finite
from sdkeras.operators import precision, verification
from sdkeras.operators.layout import Layout
from sdkeras.results.arrays import Array
from sdkeras.results.verification import Verification
from sdkeras.training_step.rule import UpdateRule, loaded_clone, replica, scheduled_parts
from sdkeras.training_step.slopes import Gradient, Summed, parted

if TYPE_CHECKING:
    from sdkeras.training_step.map import UpdateMap


_NUM_DIRECTIONS = 3
# Relative to the length of the step, beyond what rounding of the state itself makes (`_ROUNDINGS` of its entries).
_ALLOWED_STEP = 1e-9
_ROUNDINGS = 16
# Of a schedule's rate, relative to its first or its present one: some roundings of float32.
_ALLOWED_RATE = 4 * float(np.finfo(np.float32).eps)
# Central differences in float64 agree to 1e-8 or so where the map is smooth; the longest step of these that is
# short enough depends on the smallest second moment, so each entry takes its best.
_ALLOWED_DIFFERENCE = 1e-5
_STEPS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
_ALLOWED_ADJOINT = {"float64": 1e-9, "float32": 1e-3}
_ALLOWED_ROUNDING = 1e-2


@attrs.frozen
class UpdateVerification:
    """What the checks of an `UpdateMap` found.

    Attributes:
        hessian: The checks of the Hessian's products.
        step_error: The map's step against one real `apply` of a loaded clone, in float64: largest relative error
            over the variables, relative to how far each moved; NaN if no clone could be made.
        finite_difference_error: J v against central differences in float64, largest relative error over the state's
            variables (median of three random directions).
        checked: What the differences were of: 'map', or 'update' (a float32 map; `hessian` checks the rest).
        jvp_relative_error: What rounding costs a product: the map's J v against float64.
        adjoint_error: |u'(J v) - (J'u)'v| / max(|u| |J v|, |J'u| |v|), each variable in its own units.
        zero_roots: Square roots of exactly 0 in the update (second moments), whose derivative is taken as 0.
        num_roots: Square roots in the update.
        unresponsive: Weights whose next value has derivative 0 with respect to the gradient; all of them for
            updates by signs (Lion).
        degenerate: Whether that is every weight, so that J holds no curvature at all.
        passed: Whether every check met its tolerance.
        details: What else to know, in words.
        zero_signs: Weights whose gradient and slots are exactly 0 in an update by signs; the derivative of sign(0) is
            taken as 0, and the checks do not move them.
        lookup_error: The part of `step_error` from gradients of lookups (embeddings) that come row by row, as training
            gives them, on minibatch 0; 0 where there are none.
    """

    hessian: Verification
    step_error: float
    finite_difference_error: float
    checked: str
    jvp_relative_error: float
    adjoint_error: float
    zero_roots: int
    num_roots: int
    unresponsive: int
    degenerate: bool
    passed: bool
    details: str = ""
    lookup_error: float = 0.0
    zero_signs: int = 0


def verified(step: UpdateMap, optimizer: Any, allow_unverified: bool) -> UpdateVerification:
    """Checks a new map and refuses one that is wrong.

    Raises:
        VerificationError: A check failed and `allow_unverified` is False.
    """
    hessian = verification.verified(step.loss, step._engine, allow_unverified)
    result = _verify(step, optimizer, hessian)
    if not result.passed:
        message = _failure(result)
        if not allow_unverified:
            raise VerificationError(message)
        warnings.warn(message, stacklevel=3)
    return result


def _verify(step: UpdateMap, optimizer: Any, hessian: Verification) -> UpdateVerification:
    details = []
    rule = step._rule
    double = rule
    if rule.dtype != "float64":
        double = UpdateRule(optimizer, step.loss.layout, rule.missing, "float64", rule.looked_up)
    state = step.state.astype(np.float64)
    try:
        gradient = _in_double(step._gradient())
        step_error = _step_error(double, optimizer, state, gradient, _parted(double, gradient), step.dtype)
        lookup_error = _lookup_error(step, double, optimizer, state)
        step_error = max(step_error, lookup_error)
    except ModelError as reason:
        step_error, lookup_error = float("nan"), 0.0
        details.append(str(reason))
    zeros, roots = rule.zero_roots(step._state, step._gradient(), step._held)

    where = step
    if any(not np.any(step.state[part]) for part in rule.layout.slices[len(step.loss.layout.names) :]):
        # A slot that is all zero (before the first step) hides derivatives; one step on they show.
        where = step.at(step.apply())
        state = where.state.astype(np.float64)
        details.append("derivatives were checked one step on, since a slot is all zero")
    generator = seeds.generator(step.loss.seed, seeds.Stream.STEP_DIRECTIONS)
    directions = [_direction(state, rule, generator) for _ in range(_NUM_DIRECTIONS)]
    whole = rule.dtype == "float64"
    errors, rounding = [], []
    for direction in directions:
        product = where.jvp(direction.astype(rule.dtype)).astype(np.float64)
        reference, difference = _differences(where, double, direction, whole)
        rounding_of_steps = _rounding(state, direction, where) if whole else np.zeros(where.size)
        errors.append(_distance(reference, difference, rule.layout, rounding_of_steps))
        rounding.append(_apart(product, reference, rule.layout))
    unresponsive = _unresponsive(double, where, generator)
    error = max(float(np.median(errors)), 0.0 if whole else _row_error(where, directions[0]))
    drift = max(float(np.median(rounding)), float(np.finfo(rule.dtype).eps))
    adjoint = _adjoint_error(where, directions[0], state, generator)
    by_differences = step._engine.mode == "finite-differences"
    passed = (
        hessian.passed
        and step_error < _ALLOWED_STEP
        and error < (_ALLOWED_DIFFERENCE if not by_differences else _ALLOWED_ROUNDING)
        and drift < _ALLOWED_ROUNDING
        and adjoint < (_ALLOWED_ROUNDING if by_differences else _ALLOWED_ADJOINT[rule.dtype])
    )
    return UpdateVerification(
        hessian=hessian,
        step_error=step_error,
        finite_difference_error=error,
        checked="map" if whole else "update",
        jvp_relative_error=drift,
        adjoint_error=adjoint,
        zero_roots=zeros,
        num_roots=roots,
        unresponsive=unresponsive,
        degenerate=unresponsive == step.num_weights,
        passed=bool(passed),
        details="; ".join(details),
        lookup_error=lookup_error,
        zero_signs=rule.unmoved(step.state, step._gradient()) if rule.has_signs else 0,
    )


def _in_double(gradient: Gradient) -> Gradient:
    return attrs.evolve(gradient, values=tf.cast(gradient.values, tf.float64))


def _parted(rule: UpdateRule, gradient: Gradient) -> list[Any]:
    """A gradient as training gives it to the optimizer, one for each variable."""
    names, shapes = rule.layout.names[: len(rule.missing)], rule.layout.shapes[: len(rule.missing)]
    return parted(gradient.values, gradient.rows, rule.looked_up, Layout(names, shapes))


def _lookup_error(step: UpdateMap, rule: UpdateRule, optimizer: Any, state: Array) -> float:
    """The error of a map that sums gradients of lookups, where the optimizer gets them row by row as in training.

    With accumulation over several batches Keras sums them first.
    """
    if not step._engine.looked_up or rule.looked_up or rule.microbatches > 1:
        return 0.0
    raw = step._engine.raw_gradients(step._point, step.loss.minibatch(0))
    zeros = _parted(rule, Gradient(tf.zeros([rule.num_weights], tf.float64)))
    gradients = [zero if found is None else tf.cast(found, tf.float64) for found, zero in zip(raw, zeros, strict=True)]
    total = tf.concat([tf.reshape(tf.convert_to_tensor(gradient), [-1]) for gradient in gradients], axis=0)
    return _step_error(rule, optimizer, state, Gradient(total), gradients, step.dtype)


def _step_error(
    rule: UpdateRule,
    optimizer: Any,
    state: Array,
    gradient: Gradient,
    gradients: Sequence[Any],
    dtype: np.dtype[Any],
) -> float:
    """One step of the rule against `apply` of a loaded clone, relative to how far each variable moved.

    The rule gets `gradient`, the clone `gradients`, both in float64. The clone's slots are rounded to `dtype`, as the
    map's are.
    """
    given = list(optimizer._trainable_variables)
    names = len(given)
    weights = [replica(variable, "float64") for variable in given]
    for variable, part in zip(weights, rule.layout.slices, strict=False):
        variable.assign(state[part].reshape(variable.shape))
    clone = loaded_clone(optimizer, weights)
    positions = rule.positions()
    for k in positions[0]:
        clone.variables[k].assign(np.asarray(clone.variables[k]).astype(dtype))
    gradients = [None if lost else own for lost, own in zip(rule.missing, gradients, strict=True)]
    if rule.microbatches > 1:
        clone._iterations.assign(rule.held[rule.iteration_name] - (rule.microbatches - 1))
        for accumulator in clone._accumulated_gradients:
            accumulator.assign(tf.zeros_like(accumulator))
    if not _with_rates_of(rule, clone):
        return float("inf")
    before = [np.asarray(variable).copy() for variable in clone.variables]
    with precision.default_precision("float64"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Gradients do not exist")
        for _ in range(rule.microbatches):
            clone.apply(gradients, weights)
    if rule.microbatches > 1:  # the held iteration is that of the next update
        clone._iterations.assign(clone._iterations + (rule.microbatches - 1))
    new, advanced = rule.update(tf.constant(state), gradient, rule.constants(rule.held))
    new = new.numpy()
    real = [np.asarray(variable) for variable in clone.variables]
    pairs = [
        (new[part], np.asarray(w).ravel(), state[part]) for part, w in zip(rule.layout.slices, weights, strict=False)
    ]
    for k, part in zip(positions[0], rule.layout.slices[names:], strict=True):
        pairs.append((new[part], real[k].ravel(), state[part]))
    for place, value in zip(positions[1], advanced, strict=True):
        if place is not None:
            pairs.append((value.numpy().ravel(), real[place].ravel(), before[place].ravel()))
    return max(_step_distance(*(np.asarray(part, np.float64) for part in pair)) for pair in pairs)


def _with_rates_of(rule: UpdateRule, clone: Any) -> bool:
    """Gives the clone the rates of the rule where they follow schedules; False if they are not the schedules' own.

    Keras computes a schedule in float32, with another rounding in a graph than without one. The steps are compared at
    one rate, and the rates apart from them: near the end of a decay they are small differences of larger numbers.
    """
    iteration = rule.held[rule.iteration_name]
    for part, mine in zip(scheduled_parts(clone), rule.rates(rule.constants(rule.held)), strict=True):
        schedule = part._learning_rate
        own, first = (float(np.asarray(schedule(tf.constant(at)))) for at in (iteration, np.zeros_like(iteration)))
        if not abs(mine - own) <= _ALLOWED_RATE * max(abs(own), abs(first)):
            return False
        part._learning_rate = functools.partial(tf.constant, mine, tf.float32)
    return True


def _step_distance(mine: Array, real: Array, before: Array) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return _relative_distance(mine, real, before)


def _relative_distance(mine: Array, real: Array, before: Array) -> float:
    apart = np.abs(mine - real) - _ROUNDINGS * np.finfo(np.float64).eps * np.maximum(np.abs(real), np.abs(before))
    error = float(np.linalg.norm(np.maximum(apart, 0.0)))
    if not np.isfinite(apart).all():
        return float("inf")
    moved = float(np.linalg.norm(real - before))
    return error / moved if moved > 0 else (0.0 if error == 0 else float("inf"))


def _direction(state: Array, rule: UpdateRule, generator: Any) -> Array:
    """A random tangent in each variable's own units.

    What is never negative (second moments) moves in proportion, and so do all slots of an update by signs: what is
    exactly 0 stays so, where a sign would jump.
    """
    found = generator.standard_normal(state.size)
    for part in rule.layout.slices:
        own = state[part]
        if part.start < rule.num_weights:
            continue
        if rule.has_signs or np.all(own >= 0):
            found[part] *= own
        else:
            found[part] *= np.sqrt(np.mean(own**2))
    return np.asarray(found)


def _differences(where: UpdateMap, rule: UpdateRule, direction: Array, whole: bool) -> tuple[Array, list[Array]]:
    """J v in float64, and its central differences over each of the steps."""
    cut = where.num_weights
    state = where.state.astype(np.float64)
    scale = 1.0 / max(1.0, float(np.linalg.norm(direction[:cut])))
    if whole:
        ends = [[where.apply(state + sign * h * scale * direction) for sign in (1, -1)] for h in _STEPS]
        product = where.jvp(direction)
    else:
        gradient = _in_double(where._gradient())
        tangent = direction[None, :cut].astype(where.dtype)
        turn = where._slopes.along(where._point, tangent, where._batches).astype(np.float64)
        held = rule.constants(where.held)

        def moved(h: float) -> Array:
            at, ahead = tf.constant(state + h * direction), attrs.evolve(gradient, values=gradient.values + h * turn[0])
            new: Array = rule.update(at, ahead, held)[0].numpy()
            return new

        ends = [[moved(sign * h * scale) for sign in (1, -1)] for h in _STEPS]
        product = rule.linearize(tf.constant(state), gradient, held)[2].push(direction[None], turn)[0]
    finite(product, "a product with the step's Jacobian")
    return product, [(ahead - behind) / (2 * h * scale) for (ahead, behind), h in zip(ends, _STEPS, strict=True)]


def _rounding(state: Array, direction: Array, where: UpdateMap) -> Array:
    """What rounding alone may make of a central difference over the longest step, by entry of the state.

    Of the largest of the same kind (weights, momenta, ...): a gradient that is 0 but for rounding, as at the biases of
    the keys of attention, is rounded as the others are.
    """
    step = max(_STEPS) / max(1.0, float(np.linalg.norm(direction[: where.num_weights])))
    found, largest = np.zeros(where.size), dict[str, float]()
    kinds = [_kind(where, name, part) for name, part in zip(where.layout.names, where.layout.slices, strict=True)]
    for kind, part in zip(kinds, where.layout.slices, strict=True):
        largest[kind] = max(largest.get(kind, 0.0), float(np.max(np.abs(state[part]))))
    for kind, part in zip(kinds, where.layout.slices, strict=True):
        found[part] = _ROUNDINGS * np.finfo(np.float64).eps * largest[kind] / step
    return found


def _kind(where: UpdateMap, name: str, part: slice) -> str:
    return "weight" if part.start < where.num_weights else name.rpartition("_")[2]


def _distance(product: Array, differences: list[Array], layout: Layout, rounding: Array) -> float:
    """Largest over the variables of |J v - difference| / |J v|, each entry at its best step, beyond rounding."""
    apart = np.min([np.abs(product - difference) for difference in differences], axis=0)
    return _largest(np.maximum(apart - rounding, 0.0), product, layout)


def _apart(first: Array, second: Array, layout: Layout) -> float:
    return _largest(np.abs(first - second), second, layout)


def _largest(apart: Array, scale: Array, layout: Layout) -> float:
    errors = [0.0]
    for part in layout.slices:
        size, error = float(np.linalg.norm(scale[part])), float(np.linalg.norm(apart[part]))
        if error > 0:
            errors.append(error / size if size > 0 else float("inf"))
    return max(errors)


def _row_error(where: UpdateMap, direction: Array) -> float:
    """The derivative of a gradient row by row, summed over lookups, against the Hessian's product that was checked.

    0 where rounding explains it.
    """
    rule, tangent = where._rule, direction[None, : where.num_weights].astype(where.dtype)
    if not rule.looked_up:
        return 0.0
    turn = where._slopes.along(where._point, tangent, where._batches)[0]
    rows = attrs.evolve(where._gradient(), values=tf.constant(turn))
    total = np.concatenate([np.ravel(tf.convert_to_tensor(part)) for part in _parted(rule, rows)])
    product = Summed(where._engine).along(where._point, tangent, where._batches)[0]
    apart, size = float(np.linalg.norm(total - product)), float(np.linalg.norm(product))
    return apart / max(size, 1e-30) if apart > _ALLOWED_ROUNDING * size else 0.0


def _unresponsive(rule: UpdateRule, where: UpdateMap, generator: Any) -> int:
    """Weights whose next value does not move, to first order, when the gradient does."""
    cut, gradient = where.num_weights, _in_double(where._gradient())
    size = int(gradient.values.shape[0])
    slopes = generator.uniform(0.5, 1.5, size) * generator.choice([-1.0, 1.0], size)
    state, held = tf.cast(where._state, tf.float64), rule.constants(where.held)
    pushed = rule.linearize(state, gradient, held)[2].push(np.zeros((1, rule.size)), slopes[None])[0]
    return int(np.sum(pushed[:cut] == 0))


def _adjoint_error(where: UpdateMap, direction: Array, state: Array, generator: Any) -> float:
    """|u'(J v) - (J'u)'v| with u in the inverse units of v, so that each kind of slot counts.

    The unit of a slot is its size, but not below a tenth of the largest of its kind (momentum, velocity, ...): where no
    gradient arrives but rounding, as at biases before batch normalization, products are rounding as well.
    """
    units, largest = np.ones(where.size), dict[str, float]()
    slots = [
        (_kind(where, name, part), part, float(np.sqrt(np.mean(state[part] ** 2))))
        for name, part in zip(where.layout.names, where.layout.slices, strict=True)
        if part.start >= where.num_weights
    ]
    for kind, _, size in slots:
        largest[kind] = max(size, largest.get(kind, 0.0))
    for kind, part, size in slots:
        units[part] = max(size, 0.1 * largest[kind]) or 1.0
    v = direction.astype(where.dtype)
    u = (generator.standard_normal(where.size) / units).astype(where.dtype)
    pushed, pulled = where.jvp(v).astype(np.float64), where.vjp(u).astype(np.float64)
    u, v = u.astype(np.float64), v.astype(np.float64)
    scale = max(np.linalg.norm(u * units) * np.linalg.norm(pushed / units), np.linalg.norm(pulled * v))
    return float(abs(u @ pushed - pulled @ v) / max(scale, np.finfo(np.float64).tiny))


def _failure(result: UpdateVerification) -> str:
    numbers = (
        f"its step differs from the optimizer's own by {result.step_error:.2g} of the step, its products from finite "
        f"differences by {result.finite_difference_error:.2g} and from float64 by {result.jvp_relative_error:.2g}, "
        f"adjoint error {result.adjoint_error:.2g}"
    )
    if _ALLOWED_STEP <= result.lookup_error == result.step_error:
        why = (
            "Training gives the optimizer the gradient of an embedding row by row (tf.IndexedSlices), and Keras clips "
            "and squares a row that a batch looks up twice as two rows; the map has their sum, since products row by "
            "row need the product mode reverse-over-reverse and this is "
            f"{result.hessian.mode}. Train with SGD without clipping, or with gradient accumulation, which sums first"
        )
    elif not result.step_error < _ALLOWED_STEP:
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
        "(allow_unverified=True, --allow-unverified)."
    )
