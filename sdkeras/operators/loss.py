"""The loss that training minimises as one fixed function of the weights.

`BatchLoss` is the loss of a compiled Keras model on one batch as a pure function of its parameters;
`EmpiricalLoss` adds the data and decides how batches are drawn and weighted.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import attrs
import keras
import numpy as np
import tensorflow as tf

from sdkeras import seeds
from sdkeras.errors import DataError, ModelError, NonFiniteError, SdkerasError
from sdkeras.operators import denominators, minibatches, precision
from sdkeras.operators.engine import Engine
from sdkeras.operators.layout import Layout, select_variables
from sdkeras.results.arrays import Array

MODES = ("train", "inference")
LossFn = Callable[[Any, Any], Any]


@attrs.frozen(eq=False)
class Batch:
    """One minibatch with everything that fixes the loss on it.

    Attributes:
        tensors: The flat arrays of (x, y, sample_weight).
        seeds: State of each of the model's seed generators, shape [g, 2]: it fixes the dropout masks.
        data_weight: Weight of the compiled loss of this batch in the total.
        extra_weight: Weight of `model.losses` (regularisers, add_loss) in the total.
        num_examples: Examples in the batch.
        loss_weights: Weight of each compiled loss relative to `data_weight`, in the order in which Keras computes
            them; () for 1.
    """

    tensors: tuple[Any, ...]
    seeds: Array
    data_weight: float
    extra_weight: float
    num_examples: int
    loss_weights: tuple[float, ...] = ()


class BatchLoss:
    """Loss of a Keras model on one batch: (parameters, batch) -> scalar; the model is never touched.

    Everything but the analysed parameters is held at its value when this is made: other weights, batch-normalization
    averages; seed states belong to the batch.

    Attributes:
        layout: Names and shapes of the analysed parameters.
        positions: Where they stand among the model's trainable variables.
        analysed: The variables themselves.
        point: Their values, one flat vector, shape [n].
        held: Values of the other variables, in the model's order.
        reductions: How Keras reduces each compiled loss ('sum', 'sum_over_batch_size', ...), known once the loss has
            been computed or traced.
        in_doubt: Names of the losses that may couple the examples of a batch, known then as well.
    """

    def __init__(
        self,
        model: Any,
        structure: Any,
        *,
        training: bool,
        positions: tuple[int, ...],
        layout: Layout,
        dtype: str,
        loss_fn: LossFn | None,
    ) -> None:
        self.model = model
        self.structure = structure
        self.training = training
        self.positions = positions
        self.layout = layout
        self.dtype = dtype
        self.loss_fn = loss_fn
        self.analysed = [model.trainable_variables[position] for position in positions]
        generators = [generator for layer in model._flatten_layers() for generator in layer._seed_generators]
        self._seed_states = [generator.state for generator in generators]
        mapped = {id(variable) for variable in [*self.analysed, *self._seed_states]}
        variables = [*model.trainable_variables, *model.non_trainable_variables]
        self._held_positions = [k for k, variable in enumerate(variables) if id(variable) not in mapped]
        self._held_variables = [variables[k] for k in self._held_positions]
        self._num_tensors = len(tf.nest.flatten(structure))
        self.reductions: list[str] = []
        self.in_doubt: list[str] = []
        self.point: Array = self.layout.flatten(self.analysed, np.dtype(dtype))
        self.held: tuple[Any, ...] = _values(self._held_variables, self._held_variables)

    @property
    def num_seeds(self) -> int:
        return len(self._seed_states)

    def at(self, point: Array, model: Any = None) -> BatchLoss:
        """The same function at another point; with a model of the same architecture, held values are that model's."""
        view = copy.copy(self)
        view.point = np.asarray(point, self.dtype)
        if model is not None:
            variables = [*model.trainable_variables, *model.non_trainable_variables]
            view.held = _values([variables[k] for k in self._held_positions], self._held_variables)
        return view

    def __call__(self, parts: list[Any], seeds: Any, flat: list[Any], factors: Any = None) -> tuple[Any, Any, Any]:
        """Total loss, its part from `model.losses`, and what each compiled loss divides by, shape [losses].

        Args:
            parts: The parameters.
            seeds: State of each seed generator, shape [g, 2].
            flat: Tensors of the batch, then the held values.
            factors: The compiled losses are multiplied by them; None for 1.
        """
        held, flat = flat[self._num_tensors :], flat[: self._num_tensors]
        batch = tf.nest.pack_sequence_as(self.structure, flat)
        x, y = plain(batch[0]), plain(batch[1]) if len(batch) > 1 else None
        sample_weight = plain(batch[2]) if len(batch) == 3 else None
        mapping = [*zip(self._held_variables, held, strict=True), *zip(self.analysed, parts, strict=True)]
        mapping += [(state, tf.cast(seeds[position], state.dtype)) for position, state in enumerate(self._seed_states)]
        with precision.default_precision(self.dtype), keras.StatelessScope(mapping, collect_losses=True):
            if self.loss_fn is not None:
                try:
                    value, count = self.loss_fn(self.model, plain(batch)), tf.shape(flat[0])[0]
                except SystemExit as error:
                    name = getattr(self.loss_fn, "__name__", "loss_fn")
                    raise ModelError(
                        f"the loss function {name} ends the program ({error!r}); return a loss."
                    ) from error
                if isinstance(value, (tuple, list)) and len(value) == 2:
                    count = value[1]  # 0 where nothing in the batch counts
                    value = tf.math.divide_no_nan(value[0], tf.cast(count, value[0].dtype))
                total = tf.convert_to_tensor(value)
                total = total if factors is None else total * factors[0]
                extra = tf.zeros([], total.dtype)
                counts = tf.reshape(tf.cast(count, total.dtype), [1])
                self.reductions[:], self.in_doubt[:] = ["mean"], [getattr(self.loss_fn, "__name__", "loss_fn")]
            else:
                outputs = self.model(x, training=self.training)
                with denominators.recording(factors, tf.cast(tf.shape(flat[0])[0], self.dtype)) as recorder:
                    total = tf.convert_to_tensor(
                        self.model._compute_loss(
                            x=x, y=y, y_pred=outputs, sample_weight=sample_weight, training=self.training
                        )
                    )
                extras = [tf.reduce_sum(tf.cast(loss, total.dtype)) for loss in self.model.losses]
                extra = tf.add_n(extras) if extras else tf.zeros([], total.dtype)
                counts = tf.stack(recorder.counts) if recorder.counts else tf.zeros([0], self.dtype)
                self.reductions[:], self.in_doubt[:] = recorder.reductions, recorder.in_doubt
        if total.shape.rank != 0:
            raise ModelError(
                f"the loss of a batch has shape {tuple(total.shape)}, expected a scalar; compile the model with a "
                "loss whose reduction is not None."
            )
        return total, extra, counts

    def eagerly(self, batch: Batch, *, rounded: bool = False) -> float:
        """The loss of a batch at the model's weights (or one rounding away), without weights and not compiled."""
        flat = [tf.cast(part, self.dtype) if part.dtype.is_floating else part for part in batch.tensors]
        parts = [tf.convert_to_tensor(variable) for variable in self.analysed]
        if rounded:
            signs = np.random.default_rng(0)
            eps = float(np.finfo(self.dtype).eps)
            parts = [part * (1 + eps * tf.cast(signs.choice([-1, 1], part.shape), part.dtype)) for part in parts]
        return float(self(parts, tf.constant(batch.seeds), [*flat, *self.held])[0])

    def in_precision(self, dtype: str) -> BatchLoss:
        """The same function in another precision, on a copy of the model.

        Raises:
            ModelError: The model cannot be rebuilt in it.
        """
        made = BatchLoss(
            precision.in_precision(self.model, dtype),
            self.structure,
            training=self.training,
            positions=self.positions,
            layout=self.layout,
            dtype=dtype,
            loss_fn=self.loss_fn,
        )
        made.point = self.point.astype(dtype)
        made.held = _values(list(self.held), made._held_variables)
        return made


def _values(values: list[Any], like: list[Any]) -> tuple[Any, ...]:
    """Values, of variables or tensors, in the precisions of other variables."""
    return tuple(tf.cast(np.asarray(value), own.dtype) for value, own in zip(values, like, strict=True))


def plain(tree: Any) -> Any:
    """tf.nest's tuples as Keras takes them (lists of inputs), a single leaf as itself."""
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    return [plain(value) for value in tree] if isinstance(tree, (list, tuple)) else tree


class EmpiricalLoss:
    """One fixed function of the weights: the loss of a compiled Keras model over given data.

    L(w) = sum over compiled losses k and batches b of share_kb * (loss k of b) + (regularisers and add_loss, once).
    For a mean share_kb is batch b's share of what loss k divides by (examples, valid tokens of a mask or beside
    `ignore_class`, sum of sample weights); for reduction="sum" it is 1. L is thus the loss of all the data in one
    batch, whatever the batch size, unless batch statistics, dropout masks, the model or a loss itself couple the
    examples of a batch: `Circle`, `Dice` and `Tversky` without axes that leave the batch out, and functions of the
    user's that are no mean over examples do, and a note says so. For those L is the mean of the batches' losses,
    weighted by their examples. Mode, order, dropout masks (one per batch) and every other weight are fixed.

    Args:
        model: A built `keras.Model` (Keras 3 on TensorFlow), compiled unless `loss_fn` is given.
        data: (x, y) or (x, y, sample_weight) arrays in any structure `fit` takes, a batched
            `tf.data.Dataset`, or a `keras.utils.PyDataset`.
        batch_size: Examples per batch; None puts all the data in one batch. A dataset keeps its own
            batches unless another size is given.
        mode: 'train' (dropout masks, batch statistics) or 'inference'.
        params: Regular expression; only trainable variables whose path it finds are analysed.
        dtype: 'float32' or 'float64'. A model in another precision is rebuilt from its configuration.
        num_samples: Analyse a random subset of this many samples (whole batches of a dataset).
        seed: Seed of the order, the subset and the dropout masks.
        loss_fn: Replaces the compiled loss: (model, (x, y[, sample_weight])) -> scalar or (sum, denominator), in
            TensorFlow or keras.ops. It runs the model itself, model(x, training=True) for training's dropout masks and
            batch statistics (`mode` does not reach it), and returns what training minimises on the batch: a scalar is
            a mean over its examples and counts by their number; (sum, denominator) is the loss sum / denominator and
            counts by its denominator (tokens, weights). Regularisers are in it where training adds them: loss +
            sum(model.losses) after the call, in a sum times the denominator.

    Attributes:
        size: Number of parameters analysed.
        variables: The given model's own variables, which `layout` describes.
        layout: Their names and shapes.
        point: Their values when the loss was made, shape [size]; `now` and `at` are the loss at others.
        gradients: The compiled loss and gradient; `engine` adds products to it.

    Raises:
        ModelError: Not a built or compiled model, or no parameters to analyse.
        DataError: Data that do not fit or are not finite.
        NonFiniteError: The loss at the weights is NaN or infinite.
    """

    def __init__(
        self,
        model: Any,
        data: Any,
        batch_size: int | None = None,
        *,
        mode: str = "train",
        params: str | None = None,
        dtype: str = "float32",
        num_samples: int | None = None,
        seed: int = 0,
        loss_fn: LossFn | None = None,
    ) -> None:
        check_model(model, needs_loss=loss_fn is None)
        if mode not in MODES:
            raise ModelError(f"mode must be 'train' or 'inference', got {mode!r}.")
        if dtype not in ("float32", "float64"):
            raise ModelError(f"dtype must be 'float32' or 'float64', got {dtype!r}.")
        self.source = (
            data
            if isinstance(data, minibatches.Source)
            else minibatches.as_source(data, batch_size=batch_size, default_batch_size=None, limit=num_samples)
        )
        self.seed = seed
        self.notes: list[str] = [self.source.note] if self.source.note else []
        if not model.built:
            _build(model, self.source)
        analysed = model if precision.is_pure(model, dtype) else precision.in_precision(model, dtype)
        self._given = model
        self.variables = select_variables(model.trainable_variables, params)
        chosen = {id(variable) for variable in self.variables}
        # Positions and names are the given model's: a copy in another precision may name its layers anew.
        positions = tuple(k for k, variable in enumerate(model.trainable_variables) if id(variable) in chosen)
        layout = Layout.of([model.trainable_variables[position] for position in positions])

        def function(of: Any, training: bool, dtype: str) -> BatchLoss:
            return BatchLoss(
                of,
                self.source.structure,
                training=training,
                positions=positions,
                layout=layout,
                dtype=dtype,
                loss_fn=loss_fn,
            )

        self.function = function(analysed, mode == "train", dtype)
        self._engines: dict[str, Engine] = {}  # shared by all views
        try:
            self.gradients = Engine(self.function, self.specs())
            self.batches = self._weighted(self.source.epoch(num_samples, seed))
            if len(self.batches) > 1 and self.function.in_doubt:
                self.notes += _coupling(function(analysed, False, dtype), self.batches[0])
            value = self.value()
            if dtype == "float64" and precision.is_pure(model, "float32"):
                # In inference mode: dropout masks differ between precisions.
                own, double = (function(model, False, "float32"), function(analysed, False, dtype))
                single, rounded, twin = (
                    own.eagerly(self.batches[0]),
                    own.eagerly(self.batches[0], rounded=True),
                    double.eagerly(self.batches[0]),
                )
                precision.require_same_loss(single, twin, dtype, abs(rounded - single))
        except (SdkerasError, MemoryError, tf.errors.ResourceExhaustedError):
            raise
        except Exception as error:  # whatever a layer or a loss raises when it is called
            if len(self.source.structure) == 1 and getattr(model, "loss", None) is not None:
                raise DataError(
                    "the data have no targets y, and the model was compiled with a loss that compares its outputs with "
                    "targets; give them too (an autoencoder's targets are its inputs)."
                ) from error
            if "No loss to compute" in str(error):
                raise ModelError(
                    "the model was compiled without a loss and adds none of its own; give the loss it was trained with "
                    "(`loss=NAME`)."
                ) from error
            raise ModelError(
                f"the loss and its gradient cannot be computed in {dtype}: {precision.reason(error)}"
            ) from error
        if not np.isfinite(value):
            raise NonFiniteError(f"the loss at the model's weights is {value}; {self._why_not_finite()}.")

    def _why_not_finite(self) -> str:
        point = np.asarray(self.point, np.float64)
        bad = int(np.count_nonzero(~np.isfinite(point)))
        if bad:
            return f"{bad} of the {point.size} weights are NaN or infinite: take a checkpoint from before"
        largest = float(np.max(np.abs(point), initial=0.0))
        if largest > 1e6:
            more = "" if self.dtype == np.float64 else " or analyse in float64 (`dtype='float64'`)"
            return f"the largest weight is {largest:.2g}, and {self.dtype.name} overflows; check the training{more}"
        return "check the data and the loss before analysing curvature"

    @property
    def layout(self) -> Layout:
        return self.function.layout

    @property
    def size(self) -> int:
        return self.function.layout.size

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.function.dtype)

    @property
    def point(self) -> Array:
        return self.function.point

    @property
    def num_examples(self) -> int:
        """Examples in the fixed batches."""
        return sum(batch.num_examples for batch in self.batches)

    def engine(self, product_mode: str = "auto") -> Engine:
        """The compiled gradient and products of this loss; made once per mode, shared by all batches and points."""
        if product_mode not in self._engines:
            self._engines[product_mode] = self.gradients.with_products(product_mode, self.batches[0])
        return self._engines[product_mode].at(self.function)

    def at(self, point: Any) -> EmpiricalLoss:
        """The same function at other weights, shape [size], by the same compiled functions.

        Raises:
            ValueError: Another shape.
        """
        if np.shape(point) != (self.size,):
            raise ValueError(f"a point has shape ({self.size},), got {tuple(np.shape(point))}.")
        return self._moved(self.function.at(np.asarray(point)))

    def now(self) -> EmpiricalLoss:
        """The same function at the weights that the model has now, and with its other variables as they are now."""
        point = self.layout.flatten(self.variables, self.dtype)
        return self._moved(self.function.at(point, self._given))

    def _moved(self, function: BatchLoss) -> EmpiricalLoss:
        view = copy.copy(self)
        view.function, view.gradients = function, self.gradients.at(function)
        return view

    def specs(self) -> list[Any]:
        """Shapes and dtypes of a batch's tensors, the batch axis left open."""
        dtype = self.function.dtype
        return [tf.TensorSpec([None, *array.shape[1:]], tensor_dtype(array, dtype)) for array in self.source.arrays]

    def minibatch(self, index: int) -> Batch:
        """Full-size minibatch number `index` of training, with its own dropout masks and weight 1."""
        return self._batch(self.source.minibatch(index, self.seed), index + 1_000_003)

    def value(self, point: Any = None) -> float:
        """The loss at a flat parameter vector (default: the model's weights)."""
        engine = self.gradients
        at = engine.point if point is None else tf.convert_to_tensor(point, self.function.dtype)
        total = 0.0
        for batch in self.batches:
            loss, extra, _ = engine.evaluate(at, batch)
            total += batch.data_weight * float(loss) + (batch.extra_weight - batch.data_weight) * float(extra)
        return total

    def gradient(self, point: Any = None) -> Array:
        """The gradient at a flat parameter vector (default: the model's weights), shape [size], float64."""
        engine = self.gradients
        at = engine.point if point is None else tf.convert_to_tensor(point, self.function.dtype)
        return engine.total_gradient(at, self.batches)

    def _batch(self, arrays: tuple[Array, ...], stream: int) -> Batch:
        dtype = self.function.dtype
        with np.errstate(over="ignore"):  # what float32 does not hold makes the loss infinite, which is told
            tensors = tuple(tf.constant(part, tensor_dtype(part, dtype)) for part in arrays)
        generator = seeds.generator(self.seed, seeds.Stream.MASKS, stream)
        masks = generator.integers(0, 2**31 - 1, size=(self.function.num_seeds, 2), dtype=np.int64)
        return Batch(tensors, masks, 1.0, 1.0, int(arrays[0].shape[0]))

    def _weighted(self, parts: list[tuple[Array, ...]]) -> list[Batch]:
        made = [self._batch(part, stream) for stream, part in enumerate(parts)]
        if len(made) == 1:
            return made
        engine = self.gradients
        counts = np.array([engine.evaluate(engine.point, batch)[2].numpy() for batch in made], dtype=np.float64)
        examples = np.array([batch.num_examples for batch in made], dtype=np.float64)
        shares, relative = _shares(counts, examples, self.function.reductions)
        return [
            attrs.evolve(batch, data_weight=float(share), extra_weight=float(share), loss_weights=factors)
            for batch, share, factors in zip(made, shares, relative, strict=True)
        ]


def _shares(counts: Array, examples: Array, reductions: list[str]) -> tuple[Array, list[tuple[float, ...]]]:
    """Each batch's share of the examples, and beside it the relative weights of its losses.

    Args:
        counts: What each loss divides a batch by, shape [batches, losses].
        examples: Of each batch, shape [batches].
        reductions: Of each loss.
    """
    shares = examples / examples.sum()
    total = counts.sum(axis=0)
    # Where all targets are masked there is nothing to divide, and the loss is 0.
    relative = np.divide(counts, total, out=np.zeros_like(counts), where=total != 0) / shares[:, None]
    relative[:, [reduction == "sum" for reduction in reductions]] = 1 / shares[:, None]
    # Counts are float32 sums: weights that differ from 1 by their rounding alone are 1.
    if np.all(np.abs(relative - 1) < 1e-6):
        return shares, [()] * len(shares)
    return shares, [tuple(map(float, row)) for row in relative]


def _coupling(function: BatchLoss, batch: Batch) -> list[str]:
    """A note if the loss of a few examples is not that of their halves put together.

    Args:
        function: In inference mode: with batch statistics it never is.
        batch: The examples are its first ones.
    """
    size = min(8, batch.num_examples)
    cuts = (slice(0, size), slice(0, size // 2), slice(size // 2, size))
    parts = [tf.convert_to_tensor(variable) for variable in function.analysed]

    def evaluated(cut: slice, factors: Any = None) -> Array:
        tensors = [part[cut] for part in batch.tensors]
        total, extra, counts = function(parts, tf.constant(batch.seeds), [*tensors, *function.held], factors)
        return np.array([total - extra, *counts], np.float64)

    if size < 2:
        return []
    try:
        whole, *halves = (evaluated(cut) for cut in cuts)
        examples = np.array([size // 2, size - size // 2], np.float64)
        shares, relative = _shares(np.array([half[1:] for half in halves]), examples, function.reductions)
        joined = sum(
            share * evaluated(cut, tf.constant(factors, function.dtype) if factors else None)[0]
            for share, factors, cut in zip(shares, relative, cuts[1:], strict=True)
        )
    except Exception:  # a model or a loss that takes no part of a batch: nothing is known
        return []
    if abs(joined - whole[0]) <= np.sqrt(np.finfo(function.dtype).eps) * abs(whole[0]):
        return []
    return [
        f"the loss of a batch is not a mean over its examples ({', '.join(function.in_doubt)}), so that loss and "
        "Hessian over the data depend on the batch size: they are the means over the batches, weighted by examples"
    ]


def tensor_dtype(array: Any, dtype: str) -> str:
    """Floating-point data take the analysis precision; integers, booleans and text keep theirs."""
    kinds = {"f": dtype, "U": "string", "S": "string"}
    return kinds.get(array.dtype.kind) or str(array.dtype)


def check_model(model: Any, *, needs_loss: bool) -> None:
    """Refuses what is not a Keras model with something to analyse.

    Raises:
        ModelError: See above.
    """
    if not isinstance(model, keras.Model):
        raise ModelError(f"expected a keras.Model (Keras 3), got {type(model).__module__}.{type(model).__name__}.")
    if keras.backend.backend() != "tensorflow":
        raise ModelError(
            f"Keras runs on {keras.backend.backend()}; sdkeras needs the TensorFlow backend (KERAS_BACKEND=tensorflow)."
        )
    if needs_loss and not getattr(model, "compiled", False):
        raise ModelError(
            "the model is not compiled, so its loss is unknown; compile it before saving, or give a loss and a "
            "learning rate (`loss=NAME, learning_rate=F`)."
        )


def _build(model: Any, source: minibatches.Source) -> None:
    """Builds a subclassed model by one call on one sample."""
    sample = tf.nest.pack_sequence_as(source.structure, [tf.constant(part) for part in source.take(slice(0, 1))])
    try:
        model(plain(sample[0]), training=False)
    except Exception as error:
        raise DataError(f"the model cannot be called on the data: {str(error).splitlines()[0]}") from error
