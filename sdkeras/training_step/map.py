"""One training step of a compiled Keras model as a map of its state, with products of its Jacobian (`jacobian`).

Learning rate, iteration, schedules and other scalars that evolve by themselves are held: constants of the
Jacobian, advanced along training by `UpdateMap.advance`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence

import attrs
import numpy as np
import tensorflow as tf

from sdkeras.errors import instance
from sdkeras.files.keras_types import Optimizer, Tensor
from sdkeras.linalg.operators import SquareMatrix
from sdkeras.linalg.probes import Space
from sdkeras.linalg.vectors import finite, joined_rows, transposed
from sdkeras.operators.batch_loss import Batch
from sdkeras.operators.layout import Layout
from sdkeras.operators.loss import EmpiricalLoss
from sdkeras.operators.modes import ProductMode
from sdkeras.operators.tensors import real
from sdkeras.results.arrays import Array, DType
from sdkeras.training_step import verification
from sdkeras.training_step.jacobian import StepJacobian, rule_and_gradients
from sdkeras.training_step.optimizer import is_function, parts_of, with_slots
from sdkeras.training_step.rule import update_rule
from sdkeras.training_step.settings import schedule_of
from sdkeras.training_step.update import training_batches
from sdkeras.training_step.verification import UpdateVerification

# Tangents pushed at once: more share the first pass no better, and memory grows with them.
_BLOCK = 64


class UpdateMap(SquareMatrix):
    """One step of the optimizer on given batches, x -> x', and its Jacobian at the stored state.

    The optimizer's own code runs: clipping, decoupled weight decay with its exclusions, schedules, constraints.
    With gradient accumulation over k batches the map is one update with their mean gradient. A loss scale and
    averaging of the weights (use_ema) are left out. Neither model nor optimizer is ever changed.

    The map made here steps along the gradient of the whole `loss`; `on_minibatch(i)` is training's step i.

    Args:
        loss: The loss of the optimizer's model, over all of its trainable variables; its precision is the map's.
        optimizer: The model's Keras optimizer, with its slots.
        initial_slots: For an optimizer that has not trained yet: take the slots it would start with.
        product_mode: See `HessianOperator`.
        allow_unverified: Keep a map that failed its verification (`verification.passed` is False).

    Attributes:
        loss: The loss.
        optimizer: The optimizer, or the stand-in with its first slots; not to be changed.
        verification: Outcome of the checks.
        notes: Pairs (code, words): what is held or left out, clipping, zero second moments, signs of 0,
            updates without derivative.

    Raises:
        ModelError: The optimizer has no slots yet, or was built for other variables.
        VerificationError: The map's step differs from the optimizer's, or its products from finite
            differences, and `allow_unverified` is False.

    Example:
        step = sdkeras.UpdateMap(loss, model.optimizer)
        step.on_minibatch(0).jvp(np.ones(step.size))  # or: step.on_minibatch(0) @ np.ones(step.size)
    """

    def __init__(
        self,
        loss: EmpiricalLoss,
        optimizer: Optimizer,
        *,
        initial_slots: bool = False,
        product_mode: ProductMode = "auto",
        allow_unverified: bool = False,
    ) -> None:
        self.loss = instance(loss, "loss", EmpiricalLoss)
        self._engine = loss.engine(product_mode)
        self.optimizer = with_slots(loss, optimizer, initial_slots)
        rule, gradients = rule_and_gradients(self.optimizer, self._engine)
        self._rule = rule
        state = tf.constant(rule.state, rule.dtype)
        self._step = StepJacobian(rule, gradients, loss.batches, state, rule.constants(rule.held))
        self.verification: UpdateVerification = verification.verified(
            self._step, loss, self._engine, self.optimizer, allow_unverified
        )
        self.notes: tuple[tuple[str, str], ...] = tuple(_notes(self._step, loss, self.optimizer, self.verification))

    @property
    def size(self) -> int:
        """Length N of the state."""
        return self._rule.size

    @property
    def dtype(self) -> DType:
        """Dtype of the products."""
        return self.loss.dtype

    @property
    def space(self) -> Space | None:
        """Where its vectors live: None where they are NumPy arrays."""
        return self._engine.devices.space

    @property
    def num_weights(self) -> int:
        """Length n of the state's first part, the weights."""
        return self._rule.num_weights

    @property
    def layout(self) -> Layout:
        """Names and shapes of the state's variables."""
        return self._rule.layout

    @property
    def slot_positions(self) -> list[int]:
        """Where each of the state's slots stands in the optimizer's `variables`."""
        return self._rule.positions()[0]

    @property
    def microbatches(self) -> int:
        """Batches whose mean gradient makes one update: 1 without gradient accumulation."""
        return self._rule.optimizer.microbatches

    @property
    def state(self) -> Array:
        """The state at which the Jacobian is taken, shape [N], a copy."""
        state: Array = self._step.state.numpy()
        return state.copy()

    @property
    def held(self) -> dict[str, Array]:
        """Values that the step reads beside the state (iteration, learning rate, ...), by variable path; a copy."""
        return {name: value.copy() for name, value in self._rule.named(self._step.held).items()}

    @property
    def num_products(self) -> int:
        """Hessian products on single batches that the shared engine has made so far, for whatever purpose."""
        return int(self._engine.num_products)

    # What the optimizer reads, at any state along training

    def slot(self, name: str, state: Array) -> Array:
        """One slot of all weights in a state, end to end, shape [N] -> [n], float64, by its list ('_velocities').

        Those that are no part of the state, since no gradient reaches their weights, have the optimizer's own values.
        """
        variables = self.optimizer.variables
        slots = zip(self.slot_positions, self._rule.slot_places, strict=True)
        places = {id(variables[position]): place for position, place in slots}
        values = [state[places[id(v)]] if id(v) in places else v for v in getattr(self.optimizer, name)]
        return np.concatenate([np.ravel(np.asarray(value, np.float64)) for value in values])

    def iterations(self, held: Mapping[str, Array]) -> int:
        """Updates made when these are the held values."""
        return int(held[self._rule.iteration_name]) // self.microbatches

    def learning_rate(self, held: Mapping[str, Array]) -> float | None:
        """The rate of the step from these held values where it follows a schedule; None where it does not move."""
        schedule = schedule_of(self.optimizer)
        return None if schedule is None else float(np.asarray(schedule(held[self._rule.iteration_name])))

    # Views: other batches, another state; the compiled functions are shared

    def training_batches(self, index: int) -> list[Batch]:
        """The batches of update number `index`: one, or k of weight 1/k with accumulation over k."""
        return training_batches(self.loss, self.microbatches, index)

    def on_minibatch(self, index: int) -> UpdateMap:
        """The map of training's update number `index`, by the same compiled functions."""
        return self.on_batches(self.training_batches(index))

    def on_batches(self, batches: Batch | Sequence[Batch]) -> UpdateMap:
        """The map whose gradient is the weighted sum over these batches."""
        return self._view(attrs.evolve(self._step, batches=_as_batches(batches)))

    def at(self, state: Array | Tensor, held: Mapping[str, Array] | None = None) -> UpdateMap:
        """The map with its Jacobian at another state, shape [N], and other held values."""
        constants = self._step.held if held is None else self._rule.constants(held)
        return self._view(attrs.evolve(self._step, state=self._tensor(state), held=constants))

    def with_seed(self, seed: int) -> UpdateMap:
        """The map with training's minibatches and dropout masks drawn from this seed."""
        view = self._view(self._step)
        view.loss = self.loss.with_seed(seed)
        return view

    def _view(self, step: StepJacobian) -> UpdateMap:
        view: UpdateMap = copy.copy(self)
        view._step = step
        return view

    # The step and its Jacobian

    def apply(self, state: Array | Tensor | None = None) -> Array | Tensor:
        """The next state, shape [N] -> [N], from the view's own state unless one is given; held values do not move."""
        step = self._step if state is None else attrs.evolve(self._step, state=self._tensor(state))
        return step.next_state() if tf.is_tensor(state) else finite(step.next_state().numpy(), "the next state")

    def jvp(self, vector: Array | Tensor) -> Array | Tensor:
        """J v, [N] -> [N], or J V, [N, k] -> [N, k] over one shared first pass; a tensor in gives a tensor out."""
        return self._by_blocks(self._step.push, vector)

    def vjp(self, vector: Array | Tensor) -> Array | Tensor:
        """J' u, [N] -> [N], or J' U, [N, k] -> [N, k] over one shared first pass; a tensor in gives a tensor out."""
        return self._by_blocks(self._step.pull, vector)

    def matvec(self, vector: Array | Tensor) -> Array | Tensor:
        """J v, as NumPy and SciPy call it: `jvp`."""
        return self.jvp(vector)

    def matmat(self, matrix: Array | Tensor) -> Array | Tensor:
        """J V, as NumPy and SciPy call it: `jvp`."""
        return self.jvp(matrix)

    def rmatvec(self, vector: Array | Tensor) -> Array | Tensor:
        """J' u, as NumPy and SciPy call it: `vjp`."""
        return self.vjp(vector)

    def advance(
        self,
        state: Array | Tensor,
        held: Mapping[str, Array],
        batches: Batch | Sequence[Batch],
        tangents: Array | Tensor | None = None,
    ) -> tuple[Array | Tensor, dict[str, Array], Array | Tensor]:
        """One real step of training on copies, and the tangents it carries along: (x, h, V) -> (x', h', J V).

        Gradient and products share one pass. Held values advance (iteration, and with it schedules; Nadam's
        product); random seeds belong to the batch. Everything that goes in and out is an array, so that a run
        can be saved and goes on bit-equal:

            x, h, V = step.state, step.held, Q
            for t in range(steps):
                x, h, V = step.advance(x, h, step.training_batches(t), V)

        Args:
            state: Shape [N].
            held: Values as in `held`.
            batches: Batches of one update, from `training_batches`.
            tangents: Shape [N], [N, k], or None for none.

        Returns:
            Next state, next held values, and J at (state, held) times the tangents (None without); arrays, or
            tensors where tensors went in.

        Raises:
            ModelError: Held values are missing.
            NonFiniteError: The step or a tangent came out NaN or infinite.
        """
        at, constants, batches = self._tensor(state), self._rule.constants(held), _as_batches(batches)
        gradients, point, pushed, blocks = self._step.gradients, at[: self.num_weights], None, []
        if tangents is None:
            new, advanced = self._rule.update(at, gradients.gradient(point, batches), constants)
        else:
            of_tensors = tf.is_tensor(tangents)
            for block in self._blocks(tangents):
                weights = tf.convert_to_tensor(block[:, : self.num_weights])
                gradient, slopes = gradients.gradient_and_push(point, weights, batches)
                new, advanced, derivative = self._rule.linearize(at, gradient, constants, of_tensors=of_tensors)
                blocks.append(derivative.push(block, slopes if of_tensors else slopes.numpy()))
            pushed = _like(tangents, blocks, "a tangent of the step")
        moved = finite(new if tf.is_tensor(state) else new.numpy(), "the next state")
        return moved, self._rule.named(advanced), pushed

    # Arrays as the caller has them, and as the Jacobian takes them

    def _tensor(self, state: Array | Tensor) -> Tensor:
        _check_shape(state, (self.size,), "a state")
        return tf.convert_to_tensor(real(state, self.dtype, "the state"))

    def _blocks(self, vectors: Array | Tensor) -> Iterator[Array | Tensor]:
        """A vector or the columns of a matrix as rows in the map's precision, some at a time."""
        is_tensor = tf.is_tensor(vectors)
        columns = real(vectors, self.dtype, "the vector")
        _check_shape(columns, (self.size, *columns.shape[1:2]), "tangents and cotangents")
        if len(columns.shape) == 1:
            rows = columns[None] if is_tensor else np.ascontiguousarray(columns)[None]
        else:
            rows = tf.transpose(columns) if is_tensor else _transposed(columns)
        return (rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK))

    def _by_blocks(
        self, product: Callable[[Array | Tensor], Array | Tensor], vectors: Array | Tensor
    ) -> Array | Tensor:
        return _like(vectors, [product(block) for block in self._blocks(vectors)], "a product with the step's Jacobian")


def state_size(loss: EmpiricalLoss, optimizer: Optimizer, *, initial_slots: bool = False) -> int:
    """Length N of the state of a step, from the graph of one update; nothing is multiplied or verified."""
    missing = [name in loss.gradients.unconnected for name in loss.layout.names]
    return update_rule(with_slots(loss, optimizer, initial_slots), loss.layout, missing, loss.function.dtype).size


def _transposed(matrix: Array) -> Array:
    """The transpose of a tall matrix as contiguous rows; a part at a time stays in the cache, ten times faster."""
    rows = np.empty(matrix.shape[::-1], matrix.dtype)
    for start in range(0, len(matrix), 2048):
        rows[:, start : start + 2048] = matrix[start : start + 2048].T
    return rows


def _like(vectors: Array | Tensor, blocks: Sequence[Array | Tensor], what: str) -> Array | Tensor:
    """Rows in the form of `vectors`: a vector or columns, finite."""
    rows = joined_rows(*blocks) if len(blocks) > 1 else blocks[0]
    return finite(transposed(rows) if len(np.shape(vectors)) == 2 else rows[0], what)


def _check_shape(array: Array | Tensor, shape: tuple[int, ...], what: str) -> None:
    if tuple(np.shape(array)) != shape or not shape or 0 in shape:
        raise ValueError(f"{what}: expected shape ({shape[0]},) or ({shape[0]}, k), got {tuple(np.shape(array))}.")


def _as_batches(batches: Batch | Sequence[Batch]) -> Sequence[Batch]:
    return [batches] if isinstance(batches, Batch) else list(batches)


def _notes(
    step: StepJacobian, loss: EmpiricalLoss, optimizer: Optimizer, checked: UpdateVerification
) -> Iterator[tuple[str, str]]:
    """Values that the map holds, effects that it leaves out, and places where it has no derivative."""
    names = ", ".join(step.rule.held) or "nothing but the state"
    yield "held", f"constants in the step's Jacobian, which training moves all the same: {names}."
    for each in parts_of(optimizer):
        yield from _notes_on_part(each, step)
    if (k := step.rule.optimizer.microbatches) > 1:
        yield (
            "gradient-accumulation",
            f"the map is one update with the mean gradient of {k} batches; a sum that was half-way when the model was "
            "saved is left out.",
        )
    if any(variable.constraint is not None for variable in loss.variables):
        yield "constraints", "variables with constraints are projected after the step: J is singular where one is met."
    if checked.zero_roots:
        yield (
            "zero-second-moments",
            f"{checked.zero_roots:,} of {checked.num_roots:,} square roots in the update are of exactly 0 (second "
            "moments of weights that never had a gradient); their derivative is taken as 0.",
        )
    if checked.zero_signs:
        yield (
            "zero-signs",
            f"{checked.zero_signs:,} of {step.num_weights:,} weights have a gradient and slots of exactly 0 in an "
            "update by signs (inputs that are always 0); the derivative of sign(0) is taken as 0, and the checks "
            "of the derivative leave their slots where they are.",
        )
    if checked.unresponsive:
        who = (
            "no weight's step responds to a small change of the gradient (an update by signs)"
            if checked.degenerate
            else f"the step of {checked.unresponsive:,} of {step.num_weights:,} weights does not respond to a "
            "small change of their gradient (signs, clipping, or no gradient at all)"
        )
        yield "degenerate", f"{who}; there J holds no curvature, and exponents made from it say nothing of the loss."


def _notes_on_part(optimizer: Optimizer, step: StepJacobian) -> Iterator[tuple[str, str]]:
    if is_function(getattr(optimizer, "_learning_rate", None)):
        yield "callable-learning-rate", "the learning rate is a Python function, held at the value it has now."
    for field, over in (("clipnorm", "variable's"), ("global_clipnorm", "whole"), ("clipvalue", "entries of the")):
        if limit := getattr(optimizer, field, None):
            gradient = step.gradient.values.numpy()
            yield (
                "clipping",
                f"the step clips gradients ({field}={limit:g}, of each {over} gradient; the gradient here has "
                f"norm {float(np.linalg.norm(gradient)):.3g} and largest entry {float(np.max(np.abs(gradient))):.3g}); "
                "the map has kinks at the limit.",
            )
    if getattr(optimizer, "use_ema", False):
        yield (
            "averaged-weights",
            f"the optimizer averages weights (ema_momentum={optimizer.ema_momentum:g}); the map is the step without "
            "the average, and weights that fit has overwritten with it are off the trajectory.",
        )
