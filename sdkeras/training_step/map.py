"""One training step of a compiled Keras model as a map of its state, with products of its Jacobian.

The state is x = (w, s): the trainable variables in model order, then the optimizer's slots. A step is
x' = U(w, g, s) with g the gradient of the batch's loss at w, so that with H its Hessian

    J t   = dU (t_w, H t_w, t_s)             one Hessian product and the derivative of the update, both ways;
    J' u  = (c_w + H c_g, c_s), (c_w, c_g, c_s) = dU' u.

Where an optimizer squares or clips the gradient of each lookup of an embedding by itself, g is row by row (`slopes`).
Learning rate, iteration, schedules and other scalars that evolve by themselves are held: constants of the
Jacobian, advanced along training by `UpdateMap.advance`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import keras
import numpy as np
import tensorflow as tf

from sdkeras.errors import ModelError
from sdkeras.linalg.vectors import finite
from sdkeras.operators.engine import Engine
from sdkeras.operators.layout import Layout
from sdkeras.operators.loss import Batch, EmpiricalLoss
from sdkeras.results.arrays import Array
from sdkeras.training_step import verification
from sdkeras.training_step.linearized import Linearized
from sdkeras.training_step.rule import UpdateRule, inner, is_function, loaded_clone, parts_of, replica
from sdkeras.training_step.slopes import Gradient, RowByRow, Slopes, Summed
from sdkeras.training_step.verification import UpdateVerification

# Tangents pushed at once: more share the first pass no better, and memory grows with them.
_BLOCK = 64


class UpdateMap:
    """One step of the optimizer on given batches, x -> x', and its Jacobian at the stored state.

    The optimizer's own code runs: clipping, decoupled weight decay with its exclusions, schedules, constraints.
    With gradient accumulation over k batches the map is one update with their mean gradient. A loss scale and
    averaging of the weights (use_ema) are left out. Neither model nor optimizer is ever changed.

    The map made here steps along the gradient of the whole `loss`; `on_minibatch(i)` is training's step i.

    Args:
        loss: The loss of the optimizer's model, over all of its trainable variables, in the precision the map
            shall have.
        optimizer: The model's Keras optimizer, with its slots.
        initial_slots: For an optimizer that has not trained yet: take the slots it would start with.
        product_mode: As for `HessianOperator`.
        allow_unverified: Keep a map that failed its verification (`verification.passed` is False).

    Attributes:
        size: Length N of the state.
        dtype: Of the products.
        num_weights: Length n of its first part, the weights.
        layout: Names and shapes of the state's variables.
        optimizer: The optimizer, or the stand-in with its first slots; not to be changed.
        verification: What the checks found.
        notes: Pairs (code, words): what is held or left out, clipping, zero second moments, signs of 0,
            updates without derivative.

    Raises:
        ModelError: The optimizer has no slots yet, or was built for other variables.
        VerificationError: The map's step differs from the optimizer's, or its products from finite
            differences, and `allow_unverified` is False.

    Example:
        step = sdkeras.UpdateMap(loss, model.optimizer)
        step.on_minibatch(0).jvp(np.ones(step.size))
    """

    def __init__(
        self,
        loss: EmpiricalLoss,
        optimizer: Any,
        *,
        initial_slots: bool = False,
        product_mode: str = "auto",
        allow_unverified: bool = False,
    ) -> None:
        self.loss = loss
        self._engine = loss.engine(product_mode)
        own = _with_slots(loss, optimizer, initial_slots)
        self._rule, self._slopes = _rule_and_slopes(own, loss.layout, self._engine)
        self.optimizer = own
        self._batches: Sequence[Batch] = loss.batches
        self._place(self._rule.state, self._rule.held)
        self.verification: UpdateVerification = verification.verified(self, own, allow_unverified)
        self.notes: tuple[tuple[str, str], ...] = _notes(self, own)

    @property
    def size(self) -> int:
        return self._rule.size

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.loss.dtype

    @property
    def num_weights(self) -> int:
        return self._rule.num_weights

    @property
    def layout(self) -> Layout:
        return self._rule.layout

    @property
    def slot_positions(self) -> list[int]:
        """Where each of the state's slots stands in the optimizer's `variables`."""
        return self._rule.positions()[0]

    @property
    def microbatches(self) -> int:
        """Batches whose mean gradient makes one update: 1 without gradient accumulation."""
        return self._rule.microbatches

    @property
    def state(self) -> Array:
        """The state at which the Jacobian is taken, shape [N], a copy."""
        state: Array = self._state.numpy()
        return state.copy()

    @property
    def held(self) -> dict[str, Array]:
        """What the step reads beside the state (iteration, learning rate, ...), by the variables' paths, a copy."""
        return {name: value.copy() for name, value in self._rule.named(self._held).items()}

    @property
    def num_products(self) -> int:
        """Hessian products on single batches that the shared engine has made so far, for whatever purpose."""
        return int(self._engine.num_products)

    # What the optimizer reads, at any state along training

    def slot(self, name: str, state: Array) -> Array:
        """One slot of all weights in a state, end to end, shape [N] -> [n], float64.

        Args:
            name: The optimizer's list of them, for example '_velocities'. Those that are no part of the state, since
                no gradient reaches their weights, have the optimizer's own values.
            state: Shape [N].
        """
        slices = self.layout.slices[len(self.loss.layout.names) :]
        places = dict(zip(self.slot_positions, slices, strict=True))
        positions = {id(variable): position for position, variable in enumerate(self.optimizer.variables)}
        found = [(variable, places.get(positions[id(variable)])) for variable in getattr(self.optimizer, name)]
        return np.concatenate(
            [np.ravel(np.asarray(v, np.float64) if place is None else state[place]) for v, place in found]
        ).astype(np.float64)

    def iterations(self, held: Mapping[str, Any]) -> int:
        """Updates made when these are the held values."""
        return int(held[self._rule.iteration_name]) // self.microbatches

    def learning_rate(self, held: Mapping[str, Any]) -> float | None:
        """The rate of the step from these held values where it follows a schedule; None where it does not move."""
        rate = getattr(self.optimizer, "_learning_rate", None)
        if not isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            return None
        return float(np.asarray(rate(held[self._rule.iteration_name])))

    # Views: other batches, another state; the compiled functions are shared

    def training_batches(self, index: int) -> list[Batch]:
        """The batches of update number `index`: one, or k of weight 1/k with accumulation over k."""
        k = self.microbatches
        made = [self.loss.minibatch(k * index + part) for part in range(k)]
        return [attrs.evolve(batch, data_weight=1.0 / k, extra_weight=1.0 / k) for batch in made] if k > 1 else made

    def on_minibatch(self, index: int) -> UpdateMap:
        """The map of training's update number `index`, by the same compiled functions."""
        return self.on_batches(self.training_batches(index))

    def on_batches(self, batches: Batch | Sequence[Batch]) -> UpdateMap:
        """The map whose gradient is the weighted sum over these batches."""
        view = copy.copy(self)
        view._batches = _as_batches(batches)
        view._found, view._linear = None, None
        return view

    def at(self, state: Any, held: Mapping[str, Any] | None = None) -> UpdateMap:
        """The map with its Jacobian at another state, shape [N], and other held values."""
        view = copy.copy(self)
        view._place(_checked(state, (self.size,), "a state"), self._rule.named(self._held) if held is None else held)
        return view

    def _place(self, state: Any, held: Mapping[str, Any]) -> None:
        self._state = tf.constant(np.asarray(state), self.dtype)
        self._point = self._state[: self.num_weights]
        self._held = self._rule.constants(dict(held))
        self._found: Gradient | None = None
        self._linear: Linearized | None = None

    # The step and its Jacobian

    def apply(self, state: Any = None) -> Any:
        """The next state, shape [N] -> [N], from the view's own state unless one is given; held values do not move."""
        is_tensor = tf.is_tensor(state)
        if state is None:
            at, slope = self._state, self._gradient()
        else:
            at = self._tensor(_checked(state, (self.size,), "a state"))
            slope = self._slopes.gradient(at[: self.num_weights], self._batches)
        new, _ = self._rule.update(at, slope, self._held)
        return new if is_tensor else finite(new.numpy(), "the next state")

    def jvp(self, vector: Any) -> Any:
        """J v, [N] -> [N], or J V, [N, k] -> [N, k] over one shared first pass; a tensor in gives a tensor out."""
        return self._by_rows(vector, self._push)

    def vjp(self, vector: Any) -> Any:
        """J' u, [N] -> [N], or J' U, [N, k] -> [N, k] over one shared first pass; a tensor in gives a tensor out."""
        return self._by_rows(vector, self._pull)

    def advance(
        self,
        state: Any,
        held: Mapping[str, Any],
        batches: Batch | Sequence[Batch],
        tangents: Any = None,
    ) -> tuple[Any, dict[str, Array], Any]:
        """One real step of training on copies, and the tangents it carries along: (x, h, V) -> (x', h', J V).

        Gradient and products share one pass. Held values advance (iteration, and with it schedules; Nadam's
        product); random seeds belong to the batch. Everything that goes in and out is an array, so that a run
        can be saved and goes on bit-equal:

            x, h, V = step.state, step.held, Q
            for t in range(steps):
                x, h, V = step.advance(x, h, step.training_batches(t), V)

        Args:
            state: Shape [N].
            held: As `held` has it.
            batches: Of one update, as `training_batches` makes them.
            tangents: Shape [N], [N, k], or None for none.

        Returns:
            Next state, next held values, and J at (state, held) times the tangents (None without); arrays, or
            tensors where tensors went in.

        Raises:
            ModelError: Held values are missing.
            NonFiniteError: The step or a tangent came out NaN or infinite.
        """
        at = self._tensor(_checked(state, (self.size,), "a state"))
        constants = self._rule.constants(dict(held))
        batches = _as_batches(batches)
        point = at[: self.num_weights]
        if tangents is None:
            slope = self._slopes.gradient(point, batches)
            new, advanced = self._rule.update(at, slope, constants)
            pushed = None
        else:
            rows = self._rows(tangents)
            parts = []
            for start in range(0, len(rows), _BLOCK):
                block = rows[start : start + _BLOCK]
                slope, slopes = self._slopes.both(point, block[:, : self.num_weights], batches)
                new, advanced, linear = self._rule.linearize(at, slope, constants)
                parts.append(linear.push(block, slopes))
            pushed = _as_given(np.concatenate(parts) if len(parts) > 1 else parts[0], tangents, "a tangent of the step")
        return _as_given(new.numpy(), state, "the next state"), self._rule.named(advanced), pushed

    # Parts

    def _tensor(self, array: Any) -> Any:
        return tf.cast(array, self.dtype) if tf.is_tensor(array) else tf.constant(np.asarray(array), self.dtype)

    def _rows(self, array: Any) -> Array:
        """A vector or the columns of a matrix, as rows in the map's precision, shape [k, N]."""
        given = np.asarray(array, self.dtype)
        _checked(given, (self.size, *given.shape[1:2]), "tangents and cotangents")
        return _transposed(given) if given.ndim == 2 else np.ascontiguousarray(given)[None]

    def _gradient(self) -> Gradient:
        if self._found is None:
            self._found = self._slopes.gradient(self._point, self._batches)
        return self._found

    def _linearized(self) -> Linearized:
        if self._linear is None:
            self._linear = self._rule.linearize(self._state, self._gradient(), self._held)[2]
        return self._linear

    def _push(self, rows: Array) -> Array:
        slopes = self._slopes.along(self._point, np.ascontiguousarray(rows[:, : self.num_weights]), self._batches)
        return self._linearized().push(rows, slopes)

    def _pull(self, rows: Array) -> Array:
        pulled, slopes = self._linearized().pull(rows)
        pulled[:, : self.num_weights] += self._slopes.back(self._point, self._gradient(), slopes, self._batches)
        return pulled

    def _by_rows(self, array: Any, function: Callable[[Array], Array]) -> Any:
        rows = self._rows(array)
        parts = [function(rows[start : start + _BLOCK]) for start in range(0, len(rows), _BLOCK)]
        found = np.concatenate(parts) if len(parts) > 1 else parts[0]
        return _as_given(found, array, "a product with the step's Jacobian")


def state_size(loss: EmpiricalLoss, optimizer: Any, *, initial_slots: bool = False) -> int:
    """Length N of the state of a step, from the graph of one update; nothing is multiplied or verified.

    Raises:
        ModelError: As for `UpdateMap`.
    """
    own = _with_slots(loss, optimizer, initial_slots)
    lost = [name in loss.gradients.unconnected for name in loss.layout.names]
    return UpdateRule(own, loss.layout, lost, loss.function.dtype).size


def _rule_and_slopes(optimizer: Any, layout: Layout, engine: Engine) -> tuple[UpdateRule, Slopes]:
    """The update and its gradients: summed over lookups, or row by row where the step is not a function of the sums."""
    lost = [name in engine.unconnected for name in layout.names]
    rule = UpdateRule(optimizer, layout, lost, engine.function.dtype)
    looked_up = [k for k, name in enumerate(layout.names) if name in engine.looked_up]
    # Accumulators of several batches sum first; dG' c of rows is a reverse pass over a reverse pass.
    if looked_up and rule.microbatches == 1 and engine.mode == "reverse-over-reverse":
        apart = UpdateRule(optimizer, layout, lost, engine.function.dtype, looked_up)
        if not apart.sums_rows():
            return apart, RowByRow(engine)
    return rule, Summed(engine)


def _transposed(matrix: Array) -> Array:
    """The transpose of a tall matrix as contiguous rows; a part at a time stays in the cache, ten times faster."""
    rows = np.empty(matrix.shape[::-1], matrix.dtype)
    for start in range(0, len(matrix), 2048):
        rows[:, start : start + 2048] = matrix[start : start + 2048].T
    return rows


def _as_given(found: Array, given: Any, what: str) -> Any:
    """Rows as the caller had them: a vector or columns, an array (which must be finite) or a tensor."""
    if len(np.shape(given)) == 2:
        found = found.T
    elif found.ndim == 2:
        found = found[0]
    return tf.constant(found) if tf.is_tensor(given) else finite(found, what)


def _checked(array: Any, shape: tuple[int, ...], what: str) -> Any:
    if tuple(np.shape(array)) != shape or not shape or 0 in shape:
        raise ValueError(f"{what}: expected shape ({shape[0]},) or ({shape[0]}, k), got {tuple(np.shape(array))}.")
    return array


def _as_batches(batches: Batch | Sequence[Batch]) -> Sequence[Batch]:
    return [batches] if isinstance(batches, Batch) else list(batches)


def _with_slots(loss: EmpiricalLoss, optimizer: Any, initial_slots: bool) -> Any:
    """The optimizer if it fits the loss and has its slots; otherwise a stand-in with those it would start with.

    Raises:
        ModelError: See above.
    """
    own = inner(optimizer)
    if not hasattr(own, "update_step") or not hasattr(own, "_trainable_variables"):
        raise ModelError(
            f"expected the model's Keras optimizer, got {type(optimizer).__name__}; give model.optimizer of a "
            "compiled model."
        )
    if not np.array_equal(loss.layout.flatten(loss.variables, loss.dtype), loss.point):
        raise ModelError("the model's weights have changed since the loss was made; make the loss again.")
    if own.built:
        given = list(own._trainable_variables)
        shapes = [tuple(variable.shape) for variable in given]
        if [str(v.path) for v in given] != list(loss.layout.names) or shapes != list(loss.layout.shapes):
            raise ModelError(
                f"the optimizer {type(own).__name__} was built for {len(given)} variables "
                f"({', '.join(str(v.path) for v in given[:4])}, ...) and the loss is a function of "
                f"{len(loss.layout.names)} ({', '.join(loss.layout.names[:4])}, ...); a step needs both to be the "
                "trainable variables of one model, so make the loss without params and take that model's optimizer."
            )
        return own
    made = loaded_clone(own, [replica(variable) for variable in loss.variables])
    if len(_slots(made)) and not initial_slots:
        raise ModelError(
            f"the optimizer {type(own).__name__} {_why_no_slots(own)} and the state of training is not defined; train "
            "at least one step first (model.fit), or ask for the slots it would start with (initial_slots=True)."
        )
    return made


def _why_no_slots(optimizer: Any) -> str:
    if int(np.asarray(optimizer.iterations)):
        return "has no slots (moments, velocities) here, since they could not be read from its file,"
    return "has taken no step, so it has no slots (moments, velocities) yet"


def _slots(optimizer: Any) -> list[Any]:
    """The optimizer's variables beside its counters and rates."""
    plain = {id(part._iterations) for part in parts_of(optimizer)}
    plain |= {id(part._learning_rate) for part in parts_of(optimizer)}
    return [variable for variable in optimizer.variables if id(variable) not in plain]


def _notes(step: UpdateMap, optimizer: Any) -> tuple[tuple[str, str], ...]:
    """What the map holds or leaves out, and where it has no derivative."""
    notes = [
        (
            "held",
            "held for the Jacobian, advanced along training: "
            + (", ".join(step._rule.held_names) or "nothing beside the state")
            + ".",
        )
    ]
    checked = step.verification
    for part in parts_of(optimizer):
        if is_function(getattr(part, "_learning_rate", None)):
            notes.append(
                ("callable-learning-rate", "the learning rate is a Python function, held at the value it has now.")
            )
        for field, over in (("clipnorm", "variable's"), ("global_clipnorm", "whole"), ("clipvalue", "entries of the")):
            limit = getattr(part, field, None)
            if limit:
                notes.append(
                    (
                        "clipping",
                        f"the step clips gradients ({field}={limit:g}, of each {over} gradient; the gradient here has "
                        f"norm {float(np.linalg.norm(step._gradient().values)):.3g} and largest entry "
                        f"{float(np.max(np.abs(step._gradient().values))):.3g}); the map has kinks at the limit.",
                    )
                )
        if getattr(part, "use_ema", False):
            notes.append(
                (
                    "averaged-weights",
                    f"the optimizer averages weights (ema_momentum={part.ema_momentum:g}); the map is the step without "
                    "the average, and weights that fit has overwritten with it are off the trajectory.",
                )
            )
    if step.microbatches > 1:
        notes.append(
            (
                "gradient-accumulation",
                f"the map is one update with the mean gradient of {step.microbatches} batches; a sum that was "
                "half-way when the model was saved is left out.",
            )
        )
    if any(variable.constraint is not None for variable in step.loss.variables):
        notes.append(
            ("constraints", "variables with constraints are projected after the step: J is singular where one is met.")
        )
    if checked.zero_roots:
        notes.append(
            (
                "zero-second-moments",
                f"{checked.zero_roots:,} of {checked.num_roots:,} square roots in the update are of exactly 0 (second "
                "moments of weights that never had a gradient); their derivative is taken as 0.",
            )
        )
    if checked.zero_signs:
        notes.append(
            (
                "zero-signs",
                f"{checked.zero_signs:,} of {step.num_weights:,} weights have a gradient and slots of exactly 0 in an "
                "update by signs (inputs that are always 0); the derivative of sign(0) is taken as 0, and the checks "
                "of the derivative leave their slots where they are.",
            )
        )
    if checked.unresponsive:
        whole = checked.unresponsive == step.num_weights
        notes.append(
            (
                "degenerate",
                (
                    "no weight's step responds to a small change of the gradient (an update by signs)"
                    if whole
                    else f"the step of {checked.unresponsive:,} of {step.num_weights:,} weights does not respond to a "
                    "small change of their gradient (signs, clipping, or no gradient at all)"
                )
                + "; there J holds no curvature, and exponents made from it say nothing of the loss.",
            )
        )
    return tuple(notes)
