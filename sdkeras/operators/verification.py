"""Is the operator the Hessian of its loss? Checks that do not rest on second derivatives.

Products are compared with central differences of the gradient (TensorFlow's first derivatives are right where
its second ones are not), in a float64 clone of the model where one can be made: there the differences agree to
1e-9, so that 1e-5 separates right from wrong. In float32 they are noisy, and the best of several steps counts.
"""

from __future__ import annotations

import gc
import warnings
from typing import TYPE_CHECKING

import attrs
import keras
import numpy as np
import tensorflow as tf

from sdkeras import seeds
from sdkeras.errors import ModelError, VerificationError
from sdkeras.files.keras_types import Layer, Model, Tensor, layers_of
from sdkeras.files.user_code import last_line
from sdkeras.linalg.memory import available_memory, used_memory
from sdkeras.linalg.vectors import dot, finite, norm
from sdkeras.operators import precision
from sdkeras.operators.engine import Engine
from sdkeras.operators.layout import HUGE_WEIGHT
from sdkeras.operators.tf_patches import exact_moments, indexed_pooling
from sdkeras.results.arrays import Array
from sdkeras.results.verification import Verification

if TYPE_CHECKING:
    from sdkeras.operators.batch_loss import Batch
    from sdkeras.operators.loss import EmpiricalLoss

_NUM_DIRECTIONS = 3
_BELOW = "below what"  # ... float32 or float64 resolves: said in the details, and read there
_ALLOWED = {"float64": 1e-5, "float32": 1e-2}
_CLEARLY = _ALLOWED["float32"] / 10  # no further step is tried
# Along a unit direction; the more parameters, the smaller the product beside the gradient's rounding, and the longer
# the best step: 0.1 for 8 million.
_STEPS = {"float64": (1e-4, 1e-5, 1e-6, 1e-7), "float32": (3e-2, 1e-2, 3e-3, 1e-3, 1e-1, 3e-1)}
# Weights larger than this (root mean square) are moved by as much more in further, first steps.
_LARGE = 10.0
# Rounding of a gradient beside what moving each weight by one rounding does to it (measured: 0.3 to 5).
_ROUNDINGS = 10.0
# Float64 numbers for each parameter that a float64 clone, its products and differences hold at once (measured).
_DOUBLES, _SMALL = 14, 1e8
# Under mixed precision the rounding of products is told, and only what is no product at all refused; bfloat16's eps.
_ALLOWED_MIXED, _BFLOAT16 = 0.5, 2.0**-8
# The products' own rounding is 3e-7..1e-6 in float32; scalar products of random vectors average it out.
_ALLOWED_ASYMMETRY = {"float64": 1e-9, "float32": 1e-4}
# Bit-equal on most devices; parallel reductions may reorder sums.
_ALLOWED_DRIFT = {"float64": 1e-12, "float32": 1e-5}


def verified(loss: EmpiricalLoss, engine: Engine, allow_unverified: bool, memory: float | None = None) -> Verification:
    """Checks the engine of a loss once (the result is kept with it) and refuses one that is wrong; see `refuse`.

    `memory` is how many bytes the process may have resident; None: what is free now.
    """

    def verify() -> Verification:
        outcome = _verify(loss, _subject(loss, engine), memory)
        if clone_bytes(engine.size) > _SMALL:
            gc.collect()  # Keras models and compiled functions are cyclic: a large clone would stay for long
        return outcome

    result = engine.verified_by(verify)
    if not result.passed:
        refuse(_failure(loss, engine, result), allow_unverified)
    return result


def linearized(loss: EmpiricalLoss, engine: Engine, checked: Verification, memory: float | None = None) -> Verification:
    """The outcome of the checks, after the engine's products are linearised once per batch where that is faster."""
    if not checked.passed or loss.micro_batch is not None:  # what is held is what parts of a batch are to save
        return checked
    left = available_memory() if memory is None else memory
    reason = engine.linearize(_subject(loss, engine).batch, checked.hvp_relative_error, left)
    details = "; ".join(filter(None, (checked.details, f"not linearised: {reason}" if reason else "")))
    return attrs.evolve(checked, details=details, linearized=engine.cut is not None)


def refuse(message: str, allow_unverified: bool) -> None:
    """Raises a VerificationError, or warns where unverified products are allowed."""
    if not allow_unverified:
        raise VerificationError(message)
    warnings.warn(message, stacklevel=4)


class _NoCloneError(Exception):
    """The products of the float64 clone cannot be made; the message says why."""


@attrs.frozen(eq=False)
class _Subject:
    """An engine and the batch on which its products are checked.

    A clone's products, in this `mode`, are compiled when they are asked for first, into `multiplying`.
    """

    engine: Engine
    batch: Batch
    mode: str = ""
    multiplying: list[Engine] = attrs.field(factory=list)

    @property
    def dtype(self) -> str:
        return self.engine.dtype.name

    @property
    def by_differences(self) -> bool:
        return self.engine.mode == "finite-differences"

    @property
    def eps(self) -> float:
        return float(np.finfo(self.engine.dtype).eps)

    @property
    def weight_size(self) -> float:
        return norm(np.asarray(self.engine.point))

    @property
    def steps(self) -> tuple[float, ...]:
        """Lengths of the steps to try, in order."""
        steps = _STEPS[self.dtype]
        size = self.weight_size / np.sqrt(self.engine.size)
        return (*(step * size for step in steps), *steps) if size > _LARGE else steps

    def direction(self, seed: int, number: int) -> Array:
        drawn: Array = seeds.generator(seed, seeds.Stream.CHECK_DIRECTIONS, number).standard_normal(self.engine.size)
        return drawn.astype(self.engine.dtype)

    # Loss, gradient and product with the weights multiplied by these factors.

    def loss(self, factors: Array | float = 1) -> float:
        return float(self.engine.evaluate(self.engine.point * factors, self.batch)[0])

    def gradient(self, factors: Array | float = 1) -> Array:
        gradient: Array = self.engine.gradient(self.engine.point * factors, self.batch).numpy()
        return gradient

    def product(self, direction: Array, factors: Array | float = 1) -> Array:
        vector = tf.constant(direction, self.engine.dtype)
        engine = self.engine
        if self.mode:
            if not self.multiplying:
                try:
                    self.multiplying.append(engine.with_products(self.mode, self.batch))
                except Exception as error:  # as in `_clone`
                    raise _NoCloneError(last_line(error)) from error
            engine = self.multiplying[0]
        product = engine.product(engine.point * factors, vector, self.batch).numpy()
        return finite(product, "a Hessian-vector product")

    def difference(self, direction: Array, step: float) -> Array:
        """Central difference of the gradient, or what the products derive, along it over a step of this length."""
        engine = self.engine
        vector = tf.constant(direction, engine.dtype)
        scale = tf.constant(step / norm(direction), engine.dtype)
        difference: Array = engine.slope(engine.point + scale * vector, self.batch).numpy()
        difference -= engine.slope(engine.point - scale * vector, self.batch).numpy()
        difference /= engine.dtype.type(2 * float(scale))
        return finite(difference, "a difference of gradients")

    def one_rounding(self, seed: int) -> Array:
        """Factors that move every weight by up to one rounding."""
        draws = seeds.generator(seed, seeds.Stream.CHECK_ROUNDING).uniform(-1, 1, self.engine.size)
        eps = _BFLOAT16 if self.engine.function.is_mixed else self.eps
        factors: Array = 1.0 + eps * draws
        return factors.astype(self.engine.dtype)

    def vanishes(self, product: Array, times: float) -> bool:
        """Whether rounding may take what little there is: probabilities of 1 - eps/2 are 1, and their curvature is 0.

        A loss of size 1 has the rounding eps, and so has what a change of the weights by their own size makes of it: by
        the gradient |w| |g|, by the Hessian |w|^2 |H|, with |H v| for |H| (they are about equal for a normal v).
        """
        rounding, size = times * self.eps, self.weight_size
        return bool(
            abs(self.loss()) < 10 * rounding
            and size * norm(self.gradient()) < 1e2 * rounding
            and size**2 * norm(product) < 1e4 * rounding
        )

    def is_rounding(self, direction: Array, allowed: float) -> bool:
        """Whether no step leaves differences that are better than allowed, whatever they say."""
        product = norm(self.product(direction))
        gradient = self.gradient()
        moved = self.gradient(self.one_rounding(self.engine.size))
        noise = _ROUNDINGS * max(norm(moved - gradient), self.eps * norm(gradient))
        scale = norm(direction)
        return not any(
            noise * scale / step <= allowed * max(product, norm(self.difference(direction, step)))
            for step in self.steps
        )


def _distance(first: Array, second: Array) -> float:
    """|a - b| / max(|a|, |b|); 0 if both vanish."""
    scale = max(norm(first), norm(second))
    return norm(first - second) / scale if scale > 0 else 0.0


@attrs.frozen(eq=False)
class _Evidence:
    """Checks of the products along three directions, of which the first is kept with its product."""

    error: float
    rounding: float
    asymmetry: float
    drift: float
    direction: Array
    product: Array
    clone: _Subject | None  # the float64 reference, if there is one


def _subject(loss: EmpiricalLoss, engine: Engine) -> _Subject:
    counted = (batch for batch in loss.batches if not batch.loss_weights or any(batch.loss_weights))
    first = next(counted, loss.batches[0])  # the first batch whose targets are not all masked
    first = first.parts[0] if first.parts else first
    return _Subject(engine, attrs.evolve(first, data_weight=1.0, extra_weight=1.0, loss_weights=()))


def _verify(loss: EmpiricalLoss, subject: _Subject, memory: float | None) -> Verification:
    clone, reason = _clone(loss, subject, memory)
    details = [f"{mode} was not available ({why})" for mode, why in subject.engine.refused.items()]
    details += [reason] if reason else []
    try:
        return _judged(loss, subject, clone, details)
    except _NoCloneError as error:
        return _judged(loss, subject, None, [*details, _no_clone(error)])


def _judged(loss: EmpiricalLoss, subject: _Subject, clone: _Subject | None, details: list[str]) -> Verification:
    engine = subject.engine
    evidence = _evidence(loss, subject, clone, details)
    close = "float32" if evidence.clone is None else subject.dtype if subject.by_differences else "float64"
    passed = (
        evidence.error < _ALLOWED[close]
        and evidence.asymmetry < _allowed_asymmetry(subject, evidence)
        and evidence.drift < _ALLOWED_DRIFT[subject.dtype]
        # The float64 clone may be right and the products that are used all the same wrong.
        and evidence.rounding < _allowed_rounding(subject)
    ) or _is_zero(subject, evidence)
    unresolved = _unresolved(subject, evidence, _ALLOWED[close], passed)
    # Without a clone nothing else shows that products below float32 are rounding.
    passed = passed and (not unresolved or evidence.clone is not None)
    if unresolved and not passed:
        details.append(f"loss and curvature are {_BELOW} {unresolved} resolves")
    return Verification(
        mode=engine.mode,
        finite_difference_error=evidence.error,
        finite_difference_dtype=subject.dtype if evidence.clone is None else "float64",
        hvp_relative_error=evidence.rounding,
        symmetry_error=evidence.asymmetry,
        repeatability_error=evidence.drift,
        passed=passed,
        details="; ".join(details),
        jit=engine.jit,
    )


def _evidence(loss: EmpiricalLoss, subject: _Subject, clone: _Subject | None, details: list[str]) -> _Evidence:
    errors, noise, roundings = [], [], []
    asymmetry = 0.0
    # One direction at a time: three with their products would be six vectors more.
    for number in range(_NUM_DIRECTIONS):
        direction = subject.direction(loss.seed, number)
        product = subject.product(direction)
        if number == 0:
            first, image = direction, product
        elif number == 1:
            scale = max(norm(first) * norm(product), float(np.finfo(np.float64).tiny))
            asymmetry = abs(dot(first, product) - dot(direction, image)) / scale
        if clone is None:
            errors.append(_closest(subject, direction, product, _CLEARLY)[0])
            continue
        if clone.mode and not loss.function.is_random and not subject.by_differences:
            # A product in float32 is mostly right to 1e-6, which is enough; another in float64 need not be compiled.
            error, _ = _closest(clone, direction, product, _ALLOWED["float64"])
            if error < _ALLOWED["float64"]:
                errors.append(error)
                roundings.append(error)
                continue
        exact = product if clone is subject else clone.product(direction)
        roundings.append(_distance(product, exact))
        if subject.by_differences:  # the float32 product is what is in question
            errors.append(_distance(product, clone.difference(direction, clone.steps[0])))
        else:
            error, apart = _closest(clone, direction, exact, _ALLOWED["float64"])
            errors.append(error)
            noise.append(apart)
        del exact
    error = float(np.median(errors))
    for each in [] if clone is None else clone.multiplying:
        subject.engine.count(each.num_products)
    # Differences that disagree among themselves as much as with the product say nothing (float32 inside a
    # custom layer, kinks everywhere).
    if noise and error >= _ALLOWED["float64"] and float(np.median(noise)) >= error / 3:
        clone = None
        details.append("finite differences are not smooth enough in float64, so float32 decided")
        directions = (subject.direction(loss.seed, number) for number in range(_NUM_DIRECTIONS))
        error = float(np.median([_closest(subject, each, subject.product(each), _CLEARLY)[0] for each in directions]))
    drift = _distance(image, subject.product(first))
    rounding = _rounding(loss, subject, first, image, [] if clone is None else roundings)
    return _Evidence(error, rounding, asymmetry, drift, first, image, clone)


def _unresolved(subject: _Subject, evidence: _Evidence, allowed: float, passed: bool) -> str:
    """The precision that does not resolve loss and curvature, or ''."""
    judge = evidence.clone or subject
    times = 1.0 if passed and evidence.clone is None else 100.0
    if subject.dtype == "float32" and subject.vanishes(evidence.product, times):
        return subject.dtype
    if passed:
        return ""
    if subject.loss() == 0 and not np.any(subject.gradient()):
        return subject.dtype  # probabilities of 1, whose curvature some processors round to that of 1 - eps/2
    # What float64 does not resolve, float32 does not either.
    if judge.vanishes(judge.product(evidence.direction), 100.0):
        return subject.dtype
    return subject.dtype if evidence.error >= allowed and judge.is_rounding(evidence.direction, allowed) else ""


def _is_zero(subject: _Subject, evidence: _Evidence) -> bool:
    """Whether the curvature is 0, as of a single class, and float32 products are the rounding of that.

    A reciprocal that the processor approximates makes the one probability 1 - eps/2.
    """
    clone = evidence.clone
    if clone is None or clone is subject or not subject.vanishes(evidence.product, 1.0):
        return False
    return not np.any(clone.product(evidence.direction))


def _allowed_rounding(subject: _Subject) -> float:
    return _ALLOWED_MIXED if subject.engine.function.is_mixed else _ALLOWED["float32"]


def _allowed_asymmetry(subject: _Subject, evidence: _Evidence) -> float:
    """Asymmetry that rounding may cause; differences in float64 carry their own error."""
    if subject.engine.function.is_mixed:
        return evidence.rounding
    if not subject.by_differences:
        return _ALLOWED_ASYMMETRY[subject.dtype]
    if subject.dtype == "float32":
        return _ALLOWED["float32"]
    difference = subject.difference(evidence.direction, _STEPS["float64"][0] / 3)
    noise = _distance(evidence.product, difference)
    return min(max(_ALLOWED["float64"], 3 * noise), _ALLOWED["float32"])


def _clone(loss: EmpiricalLoss, subject: _Subject, memory: float | None) -> tuple[_Subject | None, str]:
    """A float64 engine of the same loss with its batch, or why there is none."""
    engine, batch = subject.engine, subject.batch
    if subject.dtype == "float64":
        return subject, ""
    reason = no_room(engine.size, memory)
    if reason:
        return None, reason
    try:
        twin = loss.function.in_precision("float64")
        doubled = batch.mapped(lambda tensor: tf.cast(tensor, tf.float64) if tensor.dtype.is_floating else tensor)
        specs = [tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype) for tensor in doubled.tensors]
        mode = "auto" if subject.by_differences else engine.mode
        double = Engine.compiled(twin, specs, batch.num_examples, jit=engine.jit)
        clone = _Subject(type(engine).of(double), doubled, mode)
        single, exact = subject.loss(), clone.loss()
        # Dropout masks differ between precisions, so the values may.
        if not loss.function.is_random:
            moved = subject.loss(subject.one_rounding(engine.size))
            precision.require_same_loss(single, exact, "float64", abs(moved - single))
    except Exception as error:  # whatever a user's layer raises in float64 only costs the sharper check
        return None, _no_clone(error)
    return clone, ""


def _no_clone(error: Exception) -> str:
    return f"no float64 clone ({last_line(error)})"


def clone_bytes(size: int) -> int:
    """Memory of a check in a float64 clone with `size` parameters."""
    return 8 * _DOUBLES * size


def no_room(size: int, memory: float | None) -> str:
    """Why there is no memory for a float64 clone, or ''; a small one is made whatever the limit."""
    needed = clone_bytes(size)
    left = available_memory() if memory is None else max(0.0, memory - used_memory())
    if needed <= max(left, _SMALL):
        return ""
    return f"no float64 clone (it takes {needed / 1e9:.1f} GB, and {left / 1e9:.1f} GB are left)"


def _closest(subject: _Subject, direction: Array, product: Array, enough: float) -> tuple[float, float]:
    """The error of a product against the best difference, the first that is close enough, and how far others are apart.

    A network of ReLUs has kinks on the way: the fewer the shorter the step, and a wrong product matches at none.
    """
    last, errors, apart = None, [], [np.inf]
    for step in subject.steps:
        difference = subject.difference(direction, step)
        errors.append(_distance(product, difference))
        if errors[-1] < enough:
            break
        if last is not None:
            apart.append(_distance(difference, last))
        last = difference
    return min(errors), min(apart)


def _rounding(loss: EmpiricalLoss, subject: _Subject, direction: Array, product: Array, known: list[float]) -> float:
    """Rounding error of a product, relative to its norm; `known` are distances to float64 products, if any."""
    if subject.dtype == "float64":
        return subject.eps
    if known and not loss.function.is_random:
        return max(subject.eps, float(np.median(known)))
    # No float64 product of the same function: perturb every weight by one rounding instead, which is what
    # evaluating in float32 amounts to (backward error).
    moved = subject.product(direction, subject.one_rounding(loss.seed))
    return max(subject.eps, _distance(product, moved))


def _failure(loss: EmpiricalLoss, engine: Engine, result: Verification) -> str:
    """Message of a failed check: numbers, likely causes, remedies."""
    numbers = (
        f"{result.mode} {engine.words} by "
        f"{result.finite_difference_error:.2g} of their norm (in {result.finite_difference_dtype}), symmetry error "
        f"{result.symmetry_error:.2g}, repeatability error {result.repeatability_error:.2g}, rounding error "
        f"{result.hvp_relative_error:.2g}"
    )
    single = loss.dtype == np.float32
    if _BELOW in result.details:
        digits = "float32" if f"{_BELOW} float32" in result.details else "float64"
        advice = (
            "analyse in float64 (`dtype='float64'`)"
            if single
            else "take weights from before the loss vanished, or of another size"
        )
        return (
            f"the operator cannot be verified: loss and curvature are {_BELOW} {digits} resolves ({numbers}). No layer "
            f"is known to be at fault; {advice}, or allow an unverified operator (`allow_unverified=True`)."
        )
    by_differences = result.mode == "finite-differences"
    dtype = loss.dtype.name
    causes = (
        (
            by_differences and single,
            "Differences of float32 gradients are too noisy here; analyse in float64 (`dtype='float64'`)",
        ),
        (
            result.finite_difference_error >= _ALLOWED["float32" if by_differences else result.finite_difference_dtype],
            "",
        ),
        (
            result.symmetry_error >= max(_ALLOWED_ASYMMETRY[dtype], result.hvp_relative_error)
            and result.repeatability_error < _ALLOWED_DRIFT[dtype],
            "The products are the derivative of the gradient that TensorFlow computes, but that is not symmetric, so "
            "that it is no gradient of the loss: a layer stops or approximates gradients (as random rotations and "
            "zooms of hidden images do). There is no Hessian of this training; leave that layer out, or use it in "
            "inference mode or before the first weights only",
        ),
        (
            # The asymmetry of rounding is less than rounding itself.
            single and result.hvp_relative_error >= min(_ALLOWED["float32"], result.symmetry_error),
            "Products in float32 are far from those in float64: the curvature is below what float32 resolves; analyse "
            "in float64 (`dtype='float64'`)",
        ),
        (True, "Something in the model is random or changes between two products; try inference mode"),
    )
    why = next(text for applies, text in causes if applies) or _wrong_layers(loss)
    if result.jit:
        why += ", leave XLA off, whose own derivatives may be at fault (`jit='off'`)"
    return (
        f"the operator failed its verification: {numbers}. {why}, or allow an unverified operator "
        "(`allow_unverified=True`)."
    )


def _wrong_layers(loss: EmpiricalLoss) -> str:
    faults = suspects(loss.function.model)
    if faults:
        return (
            f"Layers at fault: {', '.join(faults)}; TensorFlow's second derivatives are wrong for them (or they stop "
            "gradients on purpose, and there is no Hessian). Use product mode finite-differences in float64 "
            "(`product_mode='finite-differences', dtype='float64'`)"
        )
    sizes = {name: size for name, size in loss.layout.magnitudes(loss.point).items() if size > 0}
    if not sizes:
        return (
            "No layer is known to be at fault: all weights are 0, where a ReLU has its kink, so that there is no "
            "Hessian; take weights that have been initialised"
        )
    largest, smallest = (pick(sizes, key=lambda each: sizes[each]) for pick in (max, min))
    if sizes[largest] > HUGE_WEIGHT:
        return (
            f"No layer is known to be at fault: the weights of {largest} reach {sizes[largest]:.2g}, those of "
            f"{smallest} {sizes[smallest]:.2g}, so that no step is short for both, and differences of gradients cannot "
            "check the products. Training that works makes no such weights; take a checkpoint from before"
        )
    return (
        "Either TensorFlow's second derivatives are wrong for this model, or a layer stops gradients on "
        "purpose, or its weights sit on a kink (a ReLU of exactly 0, as with all-zero weights); in the last two "
        "cases there is no Hessian. Try product mode finite-differences in float64, or other weights"
    )


def suspects(model: Model) -> list[str]:
    """Layers of a functional model, as 'Type (name)', whose second derivative is wrong on random input in float64."""
    try:
        clone = precision.in_precision(model, "float64")
    except ModelError:
        return []
    names = []
    for layer in layers_of(clone)[1:]:
        try:
            shape = [2 if side is None else int(side) for side in layer.input.shape]
            if _layer_is_wrong(layer, shape):
                names.append(f"{type(layer).__name__} ({layer.name})")
        except Exception:  # no single input, integer input, no second derivative: nothing to say of it
            continue
    return names


def _layer_is_wrong(layer: Layer, shape: list[int]) -> bool:
    generator = np.random.default_rng(0)
    x, v = (tf.constant(generator.standard_normal(shape)) for _ in range(2))
    target = tf.constant(generator.standard_normal(layer(x).shape))

    def gradient(at: Tensor) -> Tensor:
        with tf.GradientTape() as tape, keras.StatelessScope():
            tape.watch(at)
            value = tf.reduce_sum(tf.square(layer(at) - target))
        return tape.gradient(value, at)

    def product() -> Tensor:
        with tf.GradientTape() as tape:
            tape.watch(x)
            slope = gradient(x)
        zero = tf.UnconnectedGradients.ZERO
        return tape.gradient(slope, x, output_gradients=tf.sin(v), unconnected_gradients=zero)

    with exact_moments(), indexed_pooling():
        # Compiled, and along a direction that is computed and used once, as inside a model: TensorFlow may then reuse
        # its buffer.
        computed = tf.function(product, autograph=False)().numpy().ravel()
        along = tf.sin(v)
        step = _STEPS["float64"][0] / float(tf.norm(along))
        difference = (gradient(x + step * along) - gradient(x - step * along)).numpy().ravel() / (2 * step)
        rounding = _ROUNDINGS * np.finfo(np.float64).eps * float(tf.norm(gradient(x))) / step
    scale = max(norm(computed), norm(difference))
    return bool(norm(computed - difference) > _ALLOWED["float64"] * scale + rounding)
