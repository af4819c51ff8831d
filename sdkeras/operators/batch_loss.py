"""The loss of a compiled Keras model on one batch as a pure function of its parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import attrs
import keras
import numpy as np
import tensorflow as tf

from sdkeras.errors import ModelError
from sdkeras.files.keras_types import Data, Model, Tensor, Variable, layers_of
from sdkeras.operators import denominators, precision
from sdkeras.operators.layout import Layout
from sdkeras.operators.modes import MIXED
from sdkeras.results.arrays import Array

LossFn = Callable[[Tensor, Tensor], Tensor]


@attrs.frozen(eq=False, slots=False)
class Batch:
    """One minibatch with everything that fixes the loss on it."""

    tensors: tuple[Tensor, ...]  # the flat arrays of (x, y, sample_weight)
    seeds: Array  # state of each of the model's seed generators, shape [g, 2]: it fixes the dropout masks
    data_weight: float  # of the compiled loss of this batch in the total
    extra_weight: float  # of `model.losses` (regularisers, add_loss) in the total
    num_examples: int
    # Weight of each compiled loss relative to `data_weight`, in the order in which Keras computes them; () for 1.
    loss_weights: tuple[float, ...] = ()
    # Batches whose sum this one is, but for its own weights, computed one after the other; () for the whole at once.
    parts: tuple[Batch, ...] = ()

    @functools.cached_property
    def pieces(self) -> tuple[Batch, ...]:
        """Batches to be computed one after the other, whose sum this one is."""
        return tuple(self._times(part, self.data_weight, self.extra_weight) for part in self.parts) or (self,)

    @property
    def unweighted_pieces(self) -> tuple[Batch, ...]:
        """The same with this batch's relative weights of the losses alone."""
        return tuple(self._times(part, 1.0, 1.0) for part in self.parts) or (self,)

    def _times(self, part: Batch, data: float, extra: float) -> Batch:
        ours, theirs = self.loss_weights, part.loss_weights
        both = tuple(a * b for a, b in zip(ours, theirs, strict=True)) if ours and theirs else ours or theirs
        return attrs.evolve(
            part, data_weight=data * part.data_weight, extra_weight=extra * part.extra_weight, loss_weights=both
        )

    def weigh(self, loss: Tensor, extra: Tensor) -> Tensor:
        """Its share of the total, from its loss and what of that comes from `model.losses`."""
        return self.data_weight * loss + (self.extra_weight - self.data_weight) * extra

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with a function of its tensors, and of those of its parts."""
        parts = tuple(part.mapped(function) for part in self.parts)
        return attrs.evolve(self, tensors=tuple(function(tensor) for tensor in self.tensors), parts=parts)


@attrs.frozen(eq=False)
class _Variables:
    """The model's variables by what they are for the loss; every other one is held where it is."""

    analysed: list[Variable]
    seed_states: list[Variable]
    held: list[Variable]
    held_positions: list[int]

    @classmethod
    def of(cls, model: Model, positions: tuple[int, ...]) -> _Variables:
        analysed = [model.trainable_variables[position] for position in positions]
        states = [generator.state for layer in layers_of(model) for generator in layer._seed_generators]
        mapped = {id(variable) for variable in [*analysed, *states]}
        held = {k: each for k, each in enumerate(_all_variables(model)) if id(each) not in mapped}
        return cls(analysed, states, list(held.values()), list(held))


def _all_variables(model: Model) -> list[Variable]:
    return [*model.trainable_variables, *model.non_trainable_variables]


@attrs.frozen(eq=False)
class BatchLoss:
    """Loss of a Keras model on one batch: (parameters, batch) -> scalar; the model is never touched.

    Everything but the analysed parameters is held at its value when this is made: other weights, batch-normalization
    averages; seed states belong to the batch.
    """

    model: Model  # in the precision of the analysis
    structure: Data  # the nested (x, y, sample_weight) of a batch
    training: bool  # whether the model runs as in training
    positions: tuple[int, ...]  # of the analysed parameters among the model's trainable variables
    layout: Layout  # of the analysed parameters
    dtype: str
    loss_fn: LossFn | None  # replaces the compiled loss, see `EmpiricalLoss`
    inspect: denominators.Inspect | None = None  # gets each compiled loss as it is computed
    roles: _Variables = attrs.field(default=attrs.Factory(lambda self: _Variables.of(self.model, self.positions), True))
    point: Array = attrs.field()  # the analysed parameters' values, shape [n]
    held: tuple[Tensor, ...] = attrs.field()  # values of the other variables, in the model's order
    # Known once the loss has been computed or traced: how Keras reduces each compiled loss ('sum',
    # 'sum_over_batch_size', ...), the names of those that may couple the examples of a batch, and for each seed whether
    # it was drawn from (a layer with a dropout rate of 0 never does).
    reductions: list[str] = attrs.field(factory=list)
    in_doubt: list[str] = attrs.field(factory=list)
    drawn: list[bool] = attrs.field(factory=list)

    @point.default
    def _values_of_analysed(self) -> Array:
        return self.layout.flatten(self.analysed, np.dtype(self.dtype))

    @held.default
    def _values_of_held(self) -> tuple[Tensor, ...]:
        return _values(self.roles.held, self.roles.held)

    @property
    def num_seeds(self) -> int:
        return len(self.roles.seed_states)

    @property
    def is_random(self) -> bool:
        """Whether seeds make a difference."""
        return any(self.drawn)

    @property
    def analysed(self) -> list[Variable]:
        return self.roles.analysed

    @property
    def is_mixed(self) -> bool:
        """Whether layers compute in bfloat16."""
        return precision.is_pure(self.model, MIXED)

    def at(self, point: Array, model: Model | None = None) -> BatchLoss:
        """The same function at another point; with a model of the same architecture, held values are that model's."""
        held = self.held
        if model is not None:
            variables = _all_variables(model)
            held = _values([variables[k] for k in self.roles.held_positions], self.roles.held)
        return attrs.evolve(self, point=np.asarray(point, self.dtype), held=held)

    def __call__(
        self,
        parts: Sequence[Tensor],
        seeds: Tensor,
        flat: Sequence[Tensor],
        factors: Tensor | None = None,
        cut: Callable[[Data], Data] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Total loss, its part from `model.losses`, and what each compiled loss divides by, shape [losses].

        `parts` are the parameters, `seeds` as in `Batch`, `flat` the tensors of the batch, then the held values; the
        compiled losses are multiplied by `factors`, and take what `cut` makes of the model's outputs.

        Raises:
            ModelError: The loss is no scalar, or it is to be cut and is no function of the outputs and the weights.
        """
        num_tensors = len(flat) - len(self.roles.held)
        batch = keras_structure(tf.nest.pack_sequence_as(self.structure, flat[:num_tensors]))
        examples = tf.shape(flat[0])[0]
        states = [tf.cast(seeds[k], state.dtype) for k, state in enumerate(self.roles.seed_states)]
        mapping = [
            *zip(self.roles.held, flat[num_tensors:], strict=True),
            *zip(self.analysed, parts, strict=True),
            *zip(self.roles.seed_states, states, strict=True),
        ]
        with precision.default_precision(self.dtype), keras.StatelessScope(mapping, collect_losses=True) as scope:
            if self.loss_fn is not None:
                if cut is not None:
                    raise ModelError(
                        "the loss is a function of the model and the batch, which hides where the outputs end and the "
                        "loss begins; compile the model with a loss of (y_true, y_pred)."
                    )
                total, extra, counts = self._users_loss(self.loss_fn, batch, examples, factors)
            else:
                total, extra, counts = self._compiled_loss(batch, tf.cast(examples, self.dtype), factors, cut)
        after = [scope.get_current_value(state) for state in self.roles.seed_states]
        self.drawn[:] = [value is not state for value, state in zip(after, states, strict=True)]
        if total.shape.rank != 0:
            raise ModelError(
                f"the loss of a batch has shape {tuple(total.shape)}, expected a scalar; compile the model with a "
                "loss whose reduction is not None."
            )
        return total, extra, counts

    def _users_loss(
        self, loss_fn: LossFn, batch: Data, examples: Tensor, factors: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        name = getattr(loss_fn, "__name__", "loss_fn")
        try:
            value, count = loss_fn(self.model, batch), examples
        except SystemExit as error:
            raise ModelError(f"the loss function {name} ends the program ({error!r}); return a loss.") from error
        if isinstance(value, (tuple, list)) and len(value) == 2:
            count = value[1]  # 0 where nothing in the batch counts
            value = tf.math.divide_no_nan(value[0], tf.cast(count, value[0].dtype))
        total = tf.convert_to_tensor(value)
        self.reductions[:], self.in_doubt[:] = ["mean"], [name]
        counts = tf.reshape(tf.cast(count, total.dtype), [1])
        return total if factors is None else total * factors[0], tf.zeros([], total.dtype), counts

    def _compiled_loss(
        self, batch: Data, examples: Tensor, factors: Tensor | None, cut: Callable[[Data], Data] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, y, sample_weight = (*batch, None, None)[:3]
        outputs = self.model(x, training=self.training)
        if cut is not None:
            regularized = [variable for variable in self.model.trainable_variables if variable.regularizer is not None]
            if len(self.model.losses) > len(regularized):
                raise ModelError(
                    "a layer adds a loss of its own (add_loss, an activity regularizer), which is not in the model's "
                    "outputs: there is no known split of the loss, and no Gauss-Newton matrix."
                )
            outputs = cut(outputs)
        with denominators.recording(factors, examples, self.inspect) as recorder:
            total = tf.convert_to_tensor(
                self.model._compute_loss(x=x, y=y, y_pred=outputs, sample_weight=sample_weight, training=self.training)
            )
        extras = [tf.reduce_sum(tf.cast(loss, total.dtype)) for loss in self.model.losses]
        extra = tf.add_n(extras) if extras else tf.zeros([], total.dtype)
        counts = tf.stack(recorder.counts) if recorder.counts else tf.zeros([0], self.dtype)
        self.reductions[:], self.in_doubt[:] = recorder.reductions, recorder.in_doubt
        return total, extra, counts

    def eagerly(self, batch: Batch, *, rounded: bool = False) -> float:
        """The loss of a batch at the model's weights (or one rounding away), without weights and not compiled."""
        flat = [tf.cast(x, self.dtype) if x.dtype.is_floating else x for x in batch.tensors]
        parts = [tf.convert_to_tensor(variable) for variable in self.analysed]
        if rounded:
            signs = np.random.default_rng(0)
            eps = float(np.finfo(self.dtype).eps)
            parts = [each * (1 + eps * tf.cast(signs.choice([-1, 1], each.shape), each.dtype)) for each in parts]
        return float(self(parts, tf.constant(batch.seeds), [*flat, *self.held])[0])

    def of_model(self, model: Model, *, training: bool, dtype: str) -> BatchLoss:
        """The same loss of another model of this architecture, at that model's weights."""
        return BatchLoss(model, self.structure, training, self.positions, self.layout, dtype, self.loss_fn)

    def in_precision(self, dtype: str) -> BatchLoss:
        """The same function in another precision, on a copy of the model."""
        copy = self.of_model(precision.in_precision(self.model, dtype), training=self.training, dtype=dtype)
        held = _values(self.held, copy.roles.held)
        return attrs.evolve(copy, point=self.point.astype(dtype), held=held)


def _values(values: Sequence[Variable], like: Sequence[Variable]) -> tuple[Tensor, ...]:
    """Values, of variables or tensors, in the precisions of other variables."""
    return tuple(tf.cast(np.asarray(value), each.dtype) for value, each in zip(values, like, strict=True))


def keras_structure(tree: Data) -> Data:
    """tf.nest's tuples as Keras takes them (lists of inputs), a single leaf as itself."""
    if isinstance(tree, dict):
        return {key: keras_structure(value) for key, value in tree.items()}
    return [keras_structure(value) for value in tree] if isinstance(tree, (list, tuple)) else tree
