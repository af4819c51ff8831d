"""Is the operator the Hessian of its loss? Checks that do not rest on second derivatives.

Products are compared with central differences of the gradient (TensorFlow's first derivatives are right where
its second ones are not), in a float64 clone of the model where one can be made: there the differences agree to
1e-9, so that 1e-5 separates right from wrong. In float32 they are noisy, and the best of several steps counts.
"""

from __future__ import annotations

import gc
import warnings
from typing import TYPE_CHECKING, Any

import attrs
import keras
import numpy as np
import tensorflow as tf

from sdkeras import seeds
from sdkeras.errors import ModelError, VerificationError
from sdkeras.linalg.memory import available_memory, used_memory
from sdkeras.linalg.vectors import dot, finite, norm
from sdkeras.operators import engine as autodiff
from sdkeras.operators import precision
from sdkeras.results.arrays import Array
from sdkeras.results.verification import Verification

if TYPE_CHECKING:
    from sdkeras.operators.loss import Batch, EmpiricalLoss

_NUM_DIRECTIONS = 3
_BELOW = "below what"  # ... float32 or float64 resolves: said in the details, and read there
_ALLOWED = {"float64": 1e-5, "float32": 1e-2}
# Along a unit direction; the more parameters, the smaller the product beside the gradient's rounding, and the longer
# the best step: 0.1 for 8 million.
_STEPS = {"float64": (1e-4, 1e-5, 1e-6, 1e-7), "float32": (3e-2, 1e-2, 3e-3, 1e-3, 1e-1, 3e-1)}
# Weights larger than this (root mean square) are moved by as much more in further, first steps.
_LARGE = 10.0
# Rounding of a gradient beside what moving each weight by one rounding does to it (measured: 0.3 to 5).
_ROUNDINGS = 10.0
# Float64 numbers for each parameter that a float64 clone, its products and differences hold at once (measured).
_DOUBLES, _SMALL = 14, 1e8
# The products' own rounding is 3e-7..1e-6 in float32; scalar products of random vectors average it out.
_ALLOWED_ASYMMETRY = {"float64": 1e-9, "float32": 1e-4}
# Bit-equal on most devices; parallel reductions may reorder sums.
_ALLOWED_DRIFT = {"float64": 1e-12, "float32": 1e-5}


def verified(loss: EmpiricalLoss, engine: Any, allow_unverified: bool, memory: float | None = None) -> Verification:
    """Checks the engine once (the result is kept with it) and refuses one that is wrong.

    Args:
        loss: Whose engine it is.
        engine: With products.
        allow_unverified: See below.
        memory: Bytes that the process may have resident; None: what is free now.

    Raises:
        VerificationError: A check failed and `allow_unverified` is False.
    """
    if engine.verification is None:
        engine.verification = _verify(loss, engine, memory)
        if clone_bytes(engine.size) > _SMALL:
            gc.collect()  # Keras models and compiled functions are cyclic: a large clone would stay for long
    result: Verification = engine.verification
    if not result.passed:
        message = _failure(loss, result)
        if not allow_unverified:
            raise VerificationError(message)
        warnings.warn(message, stacklevel=3)
    return result


def _verify(loss: EmpiricalLoss, engine: Any, memory: float | None) -> Verification:
    batch = attrs.evolve(_first_counted(loss), data_weight=1.0, extra_weight=1.0, loss_weights=())
    details = [f"{mode} was not available ({reason})" for mode, reason in engine.refused.items()]
    reference, reference_batch, reason = _reference(loss, engine, batch, memory)
    if reason:
        details.append(reason)
    by_differences = engine.mode == "finite-differences"
    errors, noise, roundings = [], [], []
    asymmetry = 0.0
    # One direction at a time: three with their products would be six vectors more.
    for number in range(_NUM_DIRECTIONS):
        direction = _direction(loss, engine, number)
        product = _product(engine, direction, batch)
        if number == 0:
            first, image = direction, product
        elif number == 1:
            asymmetry = _asymmetry(first, image, direction, product)
        if reference is None:
            errors.append(_closest(engine, direction, product, batch))
            continue
        exact = product if reference is engine else _product(reference, direction, reference_batch)
        roundings.append(_distance(product, exact))
        if by_differences:  # the float32 product is what is in question
            step = _steps(reference)[0]
            errors.append(_distance(product, _difference(reference, direction, reference_batch, step)))
        else:
            error, apart = _in_float64(reference, direction, exact, reference_batch)
            errors.append(error)
            noise.append(apart)
        del exact

    error, dtype = float(np.median(errors)), engine.dtype.name if reference is None else "float64"
    close = engine.dtype.name if by_differences else dtype
    if reference is not None and reference is not engine:
        engine.num_products += reference.num_products
    # Differences that disagree among themselves as much as with the product say nothing (float32 inside a
    # custom layer, kinks everywhere).
    if noise and error >= _ALLOWED["float64"] and float(np.median(noise)) >= error / 3:
        reference = None
        details.append("finite differences are not smooth enough in float64, so float32 decided")
        error, dtype = _float32_error(loss, engine, batch), engine.dtype.name
    if reference is None:
        close = "float32"
    drift = _distance(image, _product(engine, first, batch))
    rounding = _rounding_error(loss, engine, first, image, batch, [] if reference is None else roundings)
    own = engine.dtype.name
    passed = (
        error < _ALLOWED[close]
        and asymmetry < _allowed_asymmetry(engine, first, image, batch)
        and drift < _ALLOWED_DRIFT[own]
        # The float64 clone may be right and the products that are used all the same wrong.
        and rounding < _ALLOWED["float32"]
    )
    judge, its_batch = (engine, batch) if reference is None else (reference, reference_batch)
    if own == "float32" and _vanishes(engine, image, batch, 1.0 if passed and reference is None else 100.0):
        # Without a clone nothing else shows that such products are rounding.
        below, passed = own, passed and reference is not None
    elif not passed and (
        _vanishes(judge, _product(judge, first, its_batch), its_batch, 100.0)
        or (error >= _ALLOWED[close] and _is_rounding(judge, first, its_batch, _ALLOWED[close]))
    ):
        below = judge.dtype.name
    else:
        below = ""
    if below and not passed:
        details.append(f"loss and curvature are {_BELOW} {below} resolves")
    return Verification(
        mode=engine.mode,
        finite_difference_error=error,
        finite_difference_dtype=dtype,
        hvp_relative_error=rounding,
        symmetry_error=asymmetry,
        repeatability_error=drift,
        passed=bool(passed),
        details="; ".join(details),
    )


def _first_counted(loss: EmpiricalLoss) -> Batch:
    """The first batch whose targets are not all masked."""
    counted = (batch for batch in loss.batches if not batch.loss_weights or any(batch.loss_weights))
    return next(counted, loss.batches[0])


def _direction(loss: EmpiricalLoss, engine: Any, number: int) -> Array:
    drawn: Array = seeds.generator(loss.seed, seeds.Stream.CHECK_DIRECTIONS, number).standard_normal(engine.size)
    return drawn.astype(engine.dtype)


def _asymmetry(first: Array, image: Array, other: Array, product: Array) -> float:
    """|u'Hv - v'Hu| / (|u| |Hv|), u the first direction, v the other."""
    scale = max(norm(first) * norm(product), float(np.finfo(np.float64).tiny))
    return abs(dot(first, product) - dot(other, image)) / scale


def _allowed_asymmetry(engine: Any, direction: Array, product: Array, batch: Batch) -> float:
    """What rounding may leave of symmetry; differences in float64 say themselves how good they are."""
    if engine.mode != "finite-differences":
        return _ALLOWED_ASYMMETRY[engine.dtype.name]
    if engine.dtype == np.float32:
        return _ALLOWED["float32"]
    noise = _distance(product, _difference(engine, direction, batch, _STEPS["float64"][0] / 3))
    return min(max(_ALLOWED["float64"], 3 * noise), _ALLOWED["float32"])


def _product(engine: Any, direction: Array, batch: Batch) -> Array:
    product = engine.product(engine.point, tf.constant(direction, engine.dtype), batch).numpy()
    return finite(product, "a Hessian-vector product")


def _difference(engine: Any, direction: Array, batch: Batch, step: float) -> Array:
    """Central difference of the gradient along the direction, over a step of this length."""
    vector = tf.constant(direction, engine.dtype)
    scale = tf.constant(step / norm(direction), engine.dtype)
    difference: Array = engine.gradient(engine.point + scale * vector, batch).numpy()
    difference -= engine.gradient(engine.point - scale * vector, batch).numpy()
    difference /= engine.dtype.type(2 * float(scale))
    return finite(difference, "a difference of gradients")


def _steps(engine: Any) -> tuple[float, ...]:
    """Lengths of the steps to try, in order."""
    steps = _STEPS[engine.dtype.name]
    size = norm(np.asarray(engine.point)) / np.sqrt(engine.size)
    return (*(step * size for step in steps), *steps) if size > _LARGE else steps


def _is_rounding(engine: Any, direction: Array, batch: Batch, allowed: float) -> bool:
    """Whether no step leaves differences that are better than allowed, whatever they say."""
    product = norm(_product(engine, direction, batch))
    gradient = engine.gradient(engine.point, batch).numpy()
    moved = engine.gradient(engine.point * _one_rounding(engine), batch).numpy()
    noise = _ROUNDINGS * max(norm(moved - gradient), float(np.finfo(engine.dtype).eps) * norm(gradient))
    scale = norm(direction)
    return not any(
        noise * scale / step <= allowed * max(product, norm(_difference(engine, direction, batch, step)))
        for step in _steps(engine)
    )


def _vanishes(engine: Any, product: Array, batch: Batch, times: float) -> bool:
    """Whether rounding may take what little there is: probabilities of 1 - eps/2 are 1, and their curvature is 0.

    A loss of size 1 has the rounding eps, and so has what a change of the weights by their own size makes of it: by
    the gradient |w| |g|, by the Hessian |w|^2 |H|, with |H v| for |H| (they are about equal for a normal v).
    """
    rounding = times * float(np.finfo(engine.dtype).eps)
    size = norm(np.asarray(engine.point))
    return bool(
        abs(float(engine.evaluate(engine.point, batch)[0])) < 10 * rounding
        and size * norm(engine.gradient(engine.point, batch).numpy()) < 1e2 * rounding
        and size**2 * norm(product) < 1e4 * rounding
    )


def _one_rounding(engine: Any) -> Array:
    """Factors that move every weight by up to one rounding."""
    eps = np.finfo(engine.dtype).eps
    factors: Array = 1.0 + eps * seeds.generator(engine.size, seeds.Stream.CHECK_ROUNDING).uniform(-1, 1, engine.size)
    return factors.astype(engine.dtype)


def _distance(first: Array, second: Array) -> float:
    """|a - b| / max(|a|, |b|); 0 if both vanish."""
    scale = max(norm(first), norm(second))
    return norm(first - second) / scale if scale > 0 else 0.0


def _reference(loss: EmpiricalLoss, engine: Any, batch: Batch, memory: float | None) -> tuple[Any, Batch, str]:
    """A float64 engine of the same loss, its batch, and why there is none."""
    if engine.dtype == np.float64:
        return engine, batch, ""
    reason = no_room(engine.size, memory)
    if reason:
        return None, batch, reason
    function = loss.function
    try:
        twin = function.in_precision("float64")
        tensors = tuple(tf.cast(part, tf.float64) if part.dtype.is_floating else part for part in batch.tensors)
        doubled = attrs.evolve(batch, tensors=tensors)
        specs = [tf.TensorSpec([None, *part.shape[1:]], part.dtype) for part in tensors]
        mode = "auto" if engine.mode == "finite-differences" else engine.mode
        reference = autodiff.Engine(twin, specs).with_products(mode, doubled)
        single, double = (float(e.evaluate(e.point, b)[0]) for e, b in ((engine, batch), (reference, doubled)))
        # Dropout masks differ between precisions, so the values may.
        if not _random(function):
            moved = float(engine.evaluate(engine.point * _one_rounding(engine), batch)[0])
            precision.require_same_loss(single, double, "float64", abs(moved - single))
    except Exception as error:  # whatever a user's layer raises in float64 only costs the sharper check
        return None, batch, f"no float64 clone ({precision.reason(error)})"
    return reference, doubled, ""


def clone_bytes(size: int) -> int:
    """What a check in a float64 clone takes for so many parameters."""
    return 8 * _DOUBLES * size


def no_room(size: int, memory: float | None) -> str:
    """Why there is no memory for a float64 clone, or ''; a small one is made whatever the limit."""
    needed = clone_bytes(size)
    left = available_memory() if memory is None else max(0.0, memory - used_memory())
    if needed <= max(left, _SMALL):
        return ""
    return f"no float64 clone (it takes {needed / 1e9:.1f} GB, and {left / 1e9:.1f} GB are left)"


def _random(function: Any) -> bool:
    return bool(function.training and function.num_seeds)


def _in_float64(reference: Any, direction: Array, product: Array, batch: Batch) -> tuple[float, float]:
    """The error of a float64 product against differences, and how far these are apart where it does not match.

    A network of ReLUs has kinks on the way: the fewer the shorter the step, and a wrong product matches at none.
    """
    last, errors, apart = None, [], [np.inf]
    for step in _steps(reference):
        difference = _difference(reference, direction, batch, step)
        errors.append(_distance(product, difference))
        if errors[-1] < _ALLOWED["float64"]:
            break
        if last is not None:
            apart.append(_distance(difference, last))
        last = difference
    return min(errors), min(apart)


def _float32_error(loss: EmpiricalLoss, engine: Any, batch: Batch) -> float:
    """The best step's error per direction; the median, so that 2 of 3 directions must pass."""
    directions = (_direction(loss, engine, number) for number in range(_NUM_DIRECTIONS))
    return float(np.median([_closest(engine, one, _product(engine, one, batch), batch) for one in directions]))


def _closest(engine: Any, direction: Array, product: Array, batch: Batch) -> float:
    """The error of the best step, the first that is clearly good enough."""
    errors = []
    for step in _steps(engine):
        errors.append(_distance(product, _difference(engine, direction, batch, step)))
        if errors[-1] < _ALLOWED["float32"] / 10:
            break
    return min(errors)


def _rounding_error(
    loss: EmpiricalLoss, engine: Any, direction: Array, product: Array, batch: Batch, known: list[float]
) -> float:
    """What rounding costs a product, relative to its norm; `known` are distances to float64 products, if any."""
    eps = float(np.finfo(engine.dtype).eps)
    if engine.dtype == np.float64:
        return eps
    if known and not _random(loss.function):
        return max(eps, float(np.median(known)))
    # No float64 product of the same function: perturb every weight by one rounding instead, which is what
    # evaluating in float32 amounts to (backward error).
    noise = 1.0 + eps * seeds.generator(loss.seed, seeds.Stream.CHECK_ROUNDING).uniform(-1, 1, engine.size).astype(
        np.float32
    )
    moved = engine.product(engine.point * noise, tf.constant(direction, engine.dtype), batch).numpy()
    return max(eps, _distance(product, moved))


def _failure(loss: EmpiricalLoss, result: Verification) -> str:
    """What failed, what may be the cause, and what to do."""
    numbers = (
        f"{result.mode} products differ from finite differences of the gradient by "
        f"{result.finite_difference_error:.2g} of their norm (in {result.finite_difference_dtype}), symmetry error "
        f"{result.symmetry_error:.2g}, repeatability error {result.repeatability_error:.2g}, rounding error "
        f"{result.hvp_relative_error:.2g}"
    )
    by_differences = result.mode == "finite-differences"
    if _BELOW in result.details:
        digits = "float32" if f"{_BELOW} float32" in result.details else "float64"
        advice = (
            "analyse in float64 (`dtype='float64'`)"
            if loss.dtype == np.float32
            else "take weights from before the loss vanished, or of another size"
        )
        return (
            f"the operator cannot be verified: loss and curvature are {_BELOW} {digits} resolves ({numbers}). No layer "
            f"is known to be at fault; {advice}, or allow an unverified operator (`allow_unverified=True`)."
        )
    close = "float32" if by_differences else result.finite_difference_dtype
    if by_differences and loss.dtype == np.float32:
        why = "Differences of float32 gradients are too noisy here; analyse in float64 (`dtype='float64'`)"
    elif result.finite_difference_error >= _ALLOWED[close]:
        faults = suspects(loss.function.model)
        why = (
            f"Layers at fault: {', '.join(faults)}; TensorFlow's second derivatives are wrong for them (or they stop "
            "gradients on purpose, and there is no Hessian). Use product mode finite-differences in float64 "
            "(`product_mode='finite-differences', dtype='float64'`)"
            if faults
            else "Either TensorFlow's second derivatives are wrong for this model, or a layer stops gradients on "
            "purpose, or its weights sit on a kink (a ReLU of exactly 0, as with all-zero weights); in the last two "
            "cases there is no Hessian. Try product mode finite-differences in float64, or other weights"
        )
    elif (
        result.symmetry_error >= _ALLOWED_ASYMMETRY[loss.dtype.name]
        and result.repeatability_error < _ALLOWED_DRIFT[loss.dtype.name]
    ):
        why = (
            "The products are the derivative of the gradient that TensorFlow computes, but that is not symmetric, so "
            "that it is no gradient of the loss: a layer stops or approximates gradients (as random rotations and "
            "zooms of hidden images do). There is no Hessian of this training; leave that layer out, or use it in "
            "inference mode or before the first weights only"
        )
    elif result.hvp_relative_error >= _ALLOWED["float32"]:
        why = (
            "Products in float32 are far from those in float64: the curvature is below what float32 resolves; analyse "
            "in float64 (`dtype='float64'`)"
        )
    else:
        why = "Something in the model is random or changes between two products; try inference mode"
    return (
        f"the operator failed its verification: {numbers}. {why}, or allow an unverified operator "
        "(`allow_unverified=True`)."
    )


def suspects(model: Any) -> list[str]:
    """Layers whose own second derivative disagrees with finite differences, as 'Type (name)'.

    Each layer of a functional model is tried alone on random input, in float64.
    """
    try:
        clone = precision.in_precision(model, "float64")
    except ModelError:
        return []
    found = []
    for layer in clone._flatten_layers(include_self=False):
        try:
            shape = [2 if side is None else int(side) for side in layer.input.shape]
            if _layer_is_wrong(layer, shape):
                found.append(f"{type(layer).__name__} ({layer.name})")
        except Exception:  # no single input, integer input, no second derivative: nothing to say of it
            continue
    return found


def _layer_is_wrong(layer: Any, shape: list[int]) -> bool:
    generator = np.random.default_rng(0)
    x = tf.constant(generator.standard_normal(shape))
    v = tf.constant(generator.standard_normal(shape))
    target = tf.constant(generator.standard_normal(layer(x).shape))

    def gradient(at: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(at)
            with keras.StatelessScope():
                value = tf.reduce_sum(tf.square(layer(at) - target))
        return tape.gradient(value, at)

    def product() -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            slope = gradient(x)
        none = tf.UnconnectedGradients.ZERO
        return tape.gradient(slope, x, output_gradients=tf.sin(v), unconnected_gradients=none)

    with autodiff.exact_moments():
        # Compiled, and along a direction that is computed and used once, as inside a model: TensorFlow then reuses
        # its buffer, which makes max pooling with strides 1 and same padding wrong.
        found = tf.function(product, autograph=False)().numpy()
        along = tf.sin(v)
        step = _STEPS["float64"][0] / float(tf.norm(along))
        difference = (gradient(x + step * along) - gradient(x - step * along)).numpy() / (2 * step)
        rounding = _ROUNDINGS * np.finfo(np.float64).eps * float(tf.norm(gradient(x))) / step
    apart, scale = norm((found - difference).ravel()), max(norm(found.ravel()), norm(difference.ravel()))
    return bool(apart > _ALLOWED["float64"] * scale + rounding)
