"""The loss that training minimises as one fixed function of the weights: which data, drawn and weighted how."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

import attrs
import keras
import numpy as np
import tensorflow as tf

from sdkeras import seeds
from sdkeras.errors import DataError, ModelError, NonFiniteError, SdkerasError, counted, with_checked_options
from sdkeras.files.keras_types import Data, Model, Tensor, Variable, layers_of
from sdkeras.files.user_code import last_line
from sdkeras.operators import minibatches, precision
from sdkeras.operators.batch_loss import Batch, BatchLoss, LossFn, keras_structure
from sdkeras.operators.device import Devices, devices
from sdkeras.operators.engine import Engine, by_xla, not_compiled
from sdkeras.operators.layout import HUGE_WEIGHT, Layout, select_variables
from sdkeras.operators.modes import JIT, MODES, PRECISIONS, Jit, Mode, Precision, ProductMode
from sdkeras.results.arrays import Array, DType, is_number

# Merged batches: examples of one, bytes of the layers' outputs on it, and the relative difference of gradients that
# tells of a coupling: rounding in float32 makes 1e-5, batch statistics 1e-2 and more.
_MERGED_EXAMPLES, _MERGED_BYTES, _COUPLED = 1024, 1.6e7, 1e-4
# Where functions are compiled for each size of batches, that of larger ones takes as long as eigenvalues and trace over
# about this many.
_FEW_BATCHES = 16
# Examples on which parts are compared with the whole; with activations in bfloat16 each is rounded to 4e-3.
_FEW_EXAMPLES, _COUPLED_MIXED = 8, 0.05
_OTHER_FUNCTION = "a batch in parts would be another function; leave out `micro_batch`"

T = TypeVar("T", bound=attrs.AttrsInstance)


def evolved(instance: T, **changes: object) -> T:
    """`attrs.evolve` for a class whose constructor computes its fields (`attrs.frozen(init=False)`)."""
    fields = {field.alias or field.name: getattr(instance, field.name) for field in attrs.fields(type(instance))}
    view = object.__new__(type(instance))
    view.__attrs_init__(**{**fields, **changes})  # type: ignore[attr-defined]
    return view


@attrs.frozen(init=False, eq=False, repr=False)
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
        dtype: 'float32' or 'float64', or 'mixed_bfloat16': layers compute in bfloat16, weights, gradients and sums are
            in float32, and products are rounded to some per cent, which `HessianOperator.verification` tells. A model
            in another precision is rebuilt from its configuration.
        num_samples: Analyse a random subset of this many samples (whole batches of a dataset).
        seed: Seed for the order, the subset and the dropout masks.
        loss_fn: Replaces the compiled loss: (model, (x, y[, sample_weight])) -> scalar or (sum, denominator), in
            TensorFlow or keras.ops. It runs the model itself, model(x, training=True) for training's dropout masks and
            batch statistics (`mode` does not reach it), and returns what training minimises on the batch: a scalar is
            a mean over its examples and counts by their number; (sum, denominator) is the loss sum / denominator and
            counts by its denominator (tokens, weights). Regularisers are in it where training adds them: loss +
            sum(model.losses) after the call, in a sum times the denominator.
        jit: 'on' compiles all functions of the loss by XLA: value, gradient, products, and the float64 clone's that
            these are verified against. 'auto' and 'off' do so on a TPU only. Dropout draws other masks under XLA.

        micro_batch: Compute batches in parts of at most this many examples, one after the other, which takes as much
            memory as a part does. The same function, but that dropout masks are drawn for each part.
        draws: Average over this many draws: of a `Source` of so many passes each of them, and in any case as many draws
            of the dropout masks, those of each batch other ones.
        device: Where products are made, and vectors live: 'auto', 'cpu', 'gpu', or 'gpu:0,gpu:1'; see
            `operators.device.devices`.

    Attributes:
        size: Number of parameters analysed.
        variables: The given model's own variables, which `layout` describes.
        layout: Their names and shapes.
        point: Their values when the loss was made, shape [size]; `now` and `at` are the loss at others.
        gradients: The compiled loss and gradient; `engine` adds products to it.

    Raises:
        ModelError: Not a built or compiled model, no parameters to analyse, or an operation that XLA does not know.
        DataError: Data that do not fit or are not finite.
        NonFiniteError: The loss at the weights is NaN or infinite.
    """

    source: minibatches.Source
    function: BatchLoss
    gradients: Engine
    batches: list[Batch]
    seed: int
    variables: list[Variable]
    notes: list[str]
    _model: Model
    _engines: dict[tuple[type[Engine], ProductMode], Engine]  # by kind and product mode, shared by all views
    _num_samples: int | None
    micro_batch: int | None
    draws: int

    @with_checked_options
    def __init__(  # noqa: PLR0913  # public: each argument is one that a user names
        self,
        model: Model,
        data: Data,
        batch_size: int | None = None,
        *,
        mode: Mode = "train",
        params: str | None = None,
        dtype: Precision = "float32",
        num_samples: int | None = None,
        seed: int = 0,
        loss_fn: LossFn | None = None,
        jit: Jit = "auto",
        device: str = "auto",
        micro_batch: int | None = None,
        draws: int = 1,
    ) -> None:
        check_model(model, needs_loss=loss_fn is None)
        _check_choice("mode", mode, MODES)
        _check_choice("dtype", dtype, PRECISIONS)
        _check_choice("jit", jit, JIT)
        seeds.checked(seed)
        source = (
            data
            if isinstance(data, minibatches.Source)
            else minibatches.as_source(data, batch_size=batch_size, default_batch_size=None, limit=num_samples)
        )
        if not model.built:
            _build(model, source)
        variables = select_variables(model.trainable_variables, params)
        chosen = {id(variable) for variable in variables}
        vectors_in = precision.of_vectors(dtype)
        function = BatchLoss(
            model if precision.is_pure(model, dtype) else precision.in_precision(model, dtype),
            source.structure,
            mode == "train",
            # Positions and names are the given model's: a copy in another precision may name its layers anew.
            tuple(k for k, variable in enumerate(model.trainable_variables) if id(variable) in chosen),
            Layout.of(variables),
            vectors_in,
            loss_fn,
        )
        notes, where = [source.note] if source.note else [], devices(device)
        _check_micro_batch(micro_batch, function)
        with _failures_explained(model, source, vectors_in), where.scope():
            gradients = Engine.compiled(
                function, _specs(source, vectors_in), source.batch_size, jit=by_xla(jit), devices=where
            )
            batches = _drawn(gradients, source, num_samples, seed, draws, micro_batch)
            if any(batch.parts for batch in batches):
                _require_sums(gradients, batches[0], micro_batch or 1, seed, _OTHER_FUNCTION)
            if gradients.jit:  # XLA compiles at the first call
                start = time.perf_counter()
                gradients.gradient(gradients.point, batches[0])
                gradients = attrs.evolve(gradients, seconds=gradients.seconds + time.perf_counter() - start)
            if len(batches) > 1 and function.in_doubt:
                notes += _coupling(function.of_model(function.model, training=False, dtype=vectors_in), batches[0])
            self.__attrs_init__(
                *(source, function, gradients, batches, seed, variables, notes, model, {}, num_samples, micro_batch),
                draws,
            )
            value = self.value()
            if vectors_in == "float64" and precision.is_pure(model, "float32"):
                _require_same_loss(function, model, batches[0])
        if not np.isfinite(value):
            raise NonFiniteError(
                f"the loss at the model's weights is {value}; {_why_not_finite(self.layout, self.point, model)}."
            )

    @property
    def layout(self) -> Layout:
        return self.function.layout

    def __repr__(self) -> str:
        data = f"{counted(self.num_examples, 'sample')} in {counted(len(self.batches), 'batch', 'batches')}"
        mode = "train" if self.function.training else "inference"
        return f"<EmpiricalLoss of {data}, {counted(self.size, 'parameter')}, {mode} mode, {self.dtype.name}>"

    @property
    def size(self) -> int:
        return self.function.layout.size

    @property
    def dtype(self) -> DType:
        return np.dtype(self.function.dtype)

    @property
    def point(self) -> Array:
        return self.function.point

    @property
    def num_examples(self) -> int:
        """Examples in the fixed batches."""
        return sum(batch.num_examples for batch in self.batches)

    @property
    def devices(self) -> Devices:
        """Where it is computed."""
        return self.gradients.devices

    def engine(self, product_mode: ProductMode = "auto", kind: type[Engine] = Engine) -> Engine:
        """The compiled gradient and products of this loss; made once per mode, shared by all batches and points."""
        key = kind, product_mode
        if key not in self._engines:
            self._engines[key] = kind.of(self.gradients).with_products(product_mode, self.batches[0])
        return self._engines[key].at(self.function)

    def at(self, point: Tensor) -> EmpiricalLoss:
        """The same function at other weights, shape [size], by the same compiled functions.

        Raises:
            ValueError: Another shape.
        """
        if np.shape(point) != (self.size,):
            raise ValueError(f"a point has shape ({self.size},), got {tuple(np.shape(point))}.")
        return self._moved(self.function.at(np.asarray(point)))

    def now(self, model: Model | None = None) -> EmpiricalLoss:
        """The same function at the weights that the model has now, and with its other variables as they are now.

        With a `model` of the same architecture at those of that one.
        """
        model, chosen = self._model if model is None else model, {id(variable) for variable in self.variables}
        pairs = zip(self._model.trainable_variables, model.trainable_variables, strict=True)
        point = self.layout.flatten([other for own, other in pairs if id(own) in chosen], self.dtype)
        return self._moved(self.function.at(point, model))

    def merged(self) -> EmpiricalLoss:
        """The same function in fewer and larger batches, whose products are faster, or itself where they are another.

        Batches are put together where no dropout masks, batch statistics or losses couple the examples of one, and as
        far as the outputs of all layers take 16 MB; a layer of the user's that couples them is told by the gradient.
        """
        count = min(_mergeable(self), len(self.batches) // self.draws)
        if count < 2:
            return self
        whole = _drawn(self.gradients, self.source, self._num_samples, self.seed, self.draws, merged=count)
        engine, few = self.gradients, self.batches[:count]
        separate = np.array([engine.gradient(engine.point, batch) for batch in few], np.float64)
        together = engine.gradient(engine.point, whole[0]).numpy().astype(np.float64)
        largest = np.linalg.norm(separate, axis=1).max()
        if np.linalg.norm(together - separate.sum(axis=0)) > _COUPLED * count * largest:
            return self
        return evolved(self, batches=whole)

    def require_separate_examples(self, consequence: str) -> None:
        """Refuses a loss in which something couples the examples of a batch; `consequence` ends the sentence.

        Raises:
            ModelError: Batch statistics do, or the gradient of a few examples is not the sum of that of two halves.
        """
        _require_no_batch_statistics(
            self.function, f"so that {consequence}, or analyse in inference mode (`mode='inference'`)"
        )
        if self.batches[0].num_examples > 1:
            _require_sums(self.gradients, self.batches[0], _FEW_EXAMPLES, self.seed, consequence)

    def of_draw(self, number: int) -> EmpiricalLoss:
        """The loss of one of the draws, of whose losses this one is the mean."""
        count = len(self.batches) // self.draws
        batches = [_times(each, self.draws) for each in self.batches[number * count : (number + 1) * count]]
        return evolved(self, batches=batches, draws=1)

    def _moved(self, function: BatchLoss) -> EmpiricalLoss:
        return evolved(self, function=function, gradients=self.gradients.at(function))

    def with_seed(self, seed: int) -> EmpiricalLoss:
        """The same function, whose `minibatch` draws from another seed."""
        return evolved(self, seed=seed)

    def minibatch(self, index: int) -> Batch:
        """Full-size minibatch number `index` of training, with its own dropout masks and weight 1."""
        return self.batch(self.source.minibatch(index, self.seed), index + 1_000_003)

    def batch(self, arrays: Sequence[Array], stream: int) -> Batch:
        """Arrays of the data as a batch of weight 1, whose dropout masks are drawn from this stream of the seed."""
        batch = _batch(self.function, arrays, self.seed, stream)
        return _cut(self.gradients, batch, self.micro_batch, self.seed, stream)

    def value(self, point: Tensor | None = None) -> float:
        """The loss at a flat parameter vector (default: the model's weights)."""
        return self.value_on(self.batches, point)

    def value_on(self, batches: Sequence[Batch], point: Tensor | None = None) -> float:
        """The weighted sum of the losses of these batches at a flat parameter vector, added in float64."""
        at = self._tensor(point)
        total = 0.0
        for batch in batches:
            loss, extra, _ = self.gradients.evaluate(at, batch)
            total += batch.weigh(float(loss), float(extra))
        return total

    def gradient(self, point: Tensor | None = None) -> Array:
        """The gradient at a flat parameter vector (default: the model's weights), shape [size], float64."""
        return self.gradients.total_gradient(self._tensor(point), self.batches)

    def _tensor(self, point: Tensor | None) -> Tensor:
        return self.gradients.point if point is None else tf.convert_to_tensor(point, self.function.dtype)


def _mergeable(loss: EmpiricalLoss) -> int:
    """How many batches may be one as far as the layers tell; 1 where one of them couples the examples of a batch."""
    function, source = loss.function, loss.source
    layers = layers_of(function.model)
    normalized = function.training and any(isinstance(layer, keras.layers.BatchNormalization) for layer in layers)
    weighted = any(batch.loss_weights for batch in loss.batches)  # random denominators, which a check of `fit` counts
    coupled = normalized or function.is_random or function.in_doubt or function.loss_fn is not None
    coupled = coupled or loss.gradients.fixed  # no coupling, but larger batches would have to be compiled
    if coupled or weighted or source.is_bucketed or loss.micro_batch is not None:
        return 1
    shapes: list[tuple[int | None, ...]] = []
    for layer in layers:
        # A layer that was called several times, or never by itself, has no one output.
        with contextlib.suppress(AttributeError, ValueError):
            shapes += [tuple(tensor.shape[1:]) for tensor in tf.nest.flatten(layer.output)]
    if not shapes or any(None in shape for shape in shapes):
        return 1
    per_example = loss.dtype.itemsize * sum(math.prod(side or 1 for side in shape) for shape in shapes)
    return int(min(_MERGED_EXAMPLES, _MERGED_BYTES // per_example) // source.batch_size)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ModelError(f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}.")


def _specs(source: minibatches.Source, dtype: str) -> list[tf.TensorSpec]:
    """Shapes and dtypes of a batch's tensors, the batch axis left open."""
    return [tf.TensorSpec([None, *array.shape[1:]], tensor_dtype(array, dtype)) for array in source.arrays]


def _batch(function: BatchLoss, arrays: Sequence[Array], seed: int, stream: int) -> Batch:
    with np.errstate(over="ignore"):  # what float32 does not hold makes the loss infinite, which is reported
        tensors = tuple(tf.constant(array, tensor_dtype(array, function.dtype)) for array in arrays)
    return Batch(tensors, _masks(function, seed, stream), 1.0, 1.0, int(arrays[0].shape[0]))


def _masks(function: BatchLoss, seed: int, *stream: int) -> Array:
    """State of each seed generator, shape [g, 2]."""
    generator = seeds.generator(seed, seeds.Stream.MASKS, *stream)
    return generator.integers(0, 2**31 - 1, size=(function.num_seeds, 2), dtype=np.int64)


def _cut(engine: Engine, batch: Batch, size: int | None, seed: int, stream: int) -> Batch:
    """The batch in parts of at most this many examples, whose losses add up to that of the whole."""
    if size is None or batch.num_examples <= size:
        return batch
    parts = []
    for number, start in enumerate(range(0, batch.num_examples, size)):
        tensors = tuple(tensor[start : start + size] for tensor in batch.tensors)
        masks = _masks(engine.function, seed, stream, number)
        parts.append(Batch(tensors, masks, 1.0, 1.0, int(tensors[0].shape[0])))
    return attrs.evolve(batch, parts=tuple(_weighted(engine, parts)))


def _check_micro_batch(size: int | None, function: BatchLoss) -> None:
    """Refuses parts of batches whose examples batch statistics couple."""
    if size is None:
        return
    if not is_number(size, whole=True) or size < 1:
        raise ModelError(f"micro_batch is {size!r}; it must be a whole number of examples, at least 1.")
    _require_no_batch_statistics(
        function,
        "and a batch in parts would be another function; leave out `micro_batch`, or analyse in inference mode "
        "(`mode='inference'`)",
    )


def _require_no_batch_statistics(function: BatchLoss, consequence: str) -> None:
    names = [layer.name for layer in layers_of(function.model) if isinstance(layer, keras.layers.BatchNormalization)]
    if names and function.training:
        raise ModelError(
            f"the batch normalization of {names[0]} couples the examples of a batch in training mode, {consequence}."
        )


@contextlib.contextmanager
def _failures_explained(model: Model, source: minibatches.Source, dtype: str) -> Iterator[None]:
    """Whatever a layer or a loss raises when it is called becomes an error that says what to do."""
    try:
        yield
    except (SdkerasError, MemoryError, tf.errors.ResourceExhaustedError):
        raise
    except Exception as error:
        if len(source.structure) == 1 and getattr(model, "loss", None) is not None:
            raise DataError(
                "the data have no targets y, and the model was compiled with a loss that compares its outputs with "
                "targets; give them too (an autoencoder's targets are its inputs)."
            ) from error
        if "No loss to compute" in str(error):
            raise ModelError(
                "the model was compiled without a loss and adds none of its own; give the loss it was trained with "
                "(`loss=NAME`)."
            ) from error
        refused = not_compiled(error)
        if refused:
            words = f"XLA cannot compile the loss and its gradient: {refused}"
            raise ModelError(f"{words}; leave XLA off (`jit='off'`).") from error
        raise ModelError(f"the loss and its gradient cannot be computed in {dtype}: {last_line(error)}") from error


def _require_same_loss(function: BatchLoss, model: Model, batch: Batch) -> None:
    """Refuses a float64 copy whose loss is not the float32 model's. In inference mode: dropout masks differ."""
    single = function.of_model(model, training=False, dtype="float32")
    double = function.of_model(function.model, training=False, dtype=function.dtype)
    value = single.eagerly(batch)
    rounding = abs(single.eagerly(batch, rounded=True) - value)
    precision.require_same_loss(value, double.eagerly(batch), function.dtype, rounding)


def _why_not_finite(layout: Layout, point: Array, model: Model) -> str:
    bad = int(np.count_nonzero(~np.isfinite(point)))
    if bad:
        where = [name for name, size in layout.magnitudes(point).items() if not np.isfinite(size)]
        others = f" and {counted(len(where) - 1, 'other variable')}" if len(where) > 1 else ""
        return (
            f"{bad:,} of the {point.size:,} weights are NaN or infinite (in {where[0]}{others}): take a checkpoint "
            "from before"
        )
    for variable in model.weights:  # those that are not analysed: moving averages, frozen layers
        values = np.asarray(variable)
        if not (np.issubdtype(values.dtype, np.number) and np.all(np.isfinite(values))):
            return f"{variable.path} holds NaN or infinity: take a checkpoint from before"
        if variable.name == "moving_variance" and np.any(values < 0):
            return f"{variable.path} is negative, and its root NaN: no training makes it so; correct the model"
    sizes = layout.magnitudes(point)
    name = max(sizes, key=lambda each: sizes[each])
    if sizes[name] > HUGE_WEIGHT:
        more = "" if point.dtype == np.float64 else " or analyse in float64 (`dtype='float64'`)"
        return (
            f"the largest weight is {sizes[name]:.2g} (in {name}), and {point.dtype.name} overflows; check the "
            f"training{more}"
        )
    return "check the data and the loss before analysing curvature"


def _drawn(
    engine: Engine,
    source: minibatches.Source,
    num_samples: int | None,
    seed: int,
    draws: int,
    micro_batch: int | None = None,
    merged: int = 1,
) -> list[Batch]:
    """The batches of one fixed pass, or of several draws of it, whose mean the loss is; each with masks of its own."""
    batches: list[Batch] = []
    for number in range(draws):
        once = source.of_pass(number % source.passes)
        parts = enumerate(once.epoch(num_samples, seed, merged), len(batches))
        cut = [
            _cut(engine, _batch(engine.function, each, seed, stream), micro_batch, seed, stream)
            for stream, each in parts
        ]
        batches += [_times(each, 1 / draws) for each in _weighted(engine, cut)]
    return batches


def _times(batch: Batch, factor: float) -> Batch:
    if factor == 1:
        return batch
    return attrs.evolve(batch, data_weight=factor * batch.data_weight, extra_weight=factor * batch.extra_weight)


def _weighted(engine: Engine, batches: list[Batch]) -> list[Batch]:
    """The batches with the weights that make their losses add up to the loss of the data."""
    if len(batches) == 1:
        return batches
    counts = np.array([engine.evaluate(engine.point, batch)[2].numpy() for batch in batches], dtype=np.float64)
    examples = np.array([batch.num_examples for batch in batches], dtype=np.float64)
    shares, relative = _shares(counts, examples, engine.function.reductions)
    return [
        attrs.evolve(batch, data_weight=float(share), extra_weight=float(share), loss_weights=factors)
        for batch, share, factors in zip(batches, shares, relative, strict=True)
    ]


def _shares(counts: Array, examples: Array, reductions: list[str]) -> tuple[Array, list[tuple[float, ...]]]:
    """Each batch's share of the examples, and the relative weights of its losses; `counts` is [batches, losses]."""
    shares = examples / examples.sum()
    total = counts.sum(axis=0)
    # Where all targets are masked there is nothing to divide, and the loss is 0.
    relative = np.divide(counts, total, out=np.zeros_like(counts), where=total != 0) / shares[:, None]
    relative[:, [reduction == "sum" for reduction in reductions]] = 1 / shares[:, None]
    # Counts are float32 sums: weights that differ from 1 by their rounding alone are 1.
    if np.all(np.abs(relative - 1) < 1e-6):
        return shares, [()] * len(shares)
    return shares, [tuple(map(float, row)) for row in relative]


def _require_sums(engine: Engine, batch: Batch, most: int, seed: int, consequence: str) -> None:
    """Refuses a model whose loss of a few examples is not that of two parts of them put together.

    The gradient tells, or where dropout masks differ between the parts, the loss in inference mode.

    Raises:
        ModelError: It is not.
    """
    function, size = engine.function, min(_FEW_EXAMPLES, max(2, most), batch.num_examples)
    few = attrs.evolve(batch, tensors=tuple(tensor[:size] for tensor in batch.tensors), num_examples=size, parts=())
    few = attrs.evolve(few, data_weight=1.0, extra_weight=1.0, loss_weights=())
    halves = _cut(engine, few, -(-size // 2), seed, 0).parts
    if function.is_random:
        calm = function.of_model(function.model, training=False, dtype=function.dtype)
        values = [np.array([_weighted_loss(calm, each)]) for each in (few, *halves)]
    else:
        values = [np.asarray(engine.gradient(engine.point, each), np.float64) for each in (few, *halves)]
    apart = float(np.linalg.norm(values[0] - np.sum(values[1:], axis=0)))
    scale = max(float(np.linalg.norm(value)) for value in values)
    if apart > (_COUPLED_MIXED if function.is_mixed else _COUPLED) * scale:
        raise ModelError(
            "something in the model or its loss couples the examples of a batch (the parts of a batch put together "
            f"differ by {apart / scale:.1g} from the whole): {consequence}."
        )


def _weighted_loss(function: BatchLoss, batch: Batch) -> float:
    """The loss of a batch by its weights at the model's own weights, not compiled."""
    parts = [tf.convert_to_tensor(variable) for variable in function.analysed]
    factors = tf.constant(batch.loss_weights, function.dtype) if batch.loss_weights else None
    total, extra, _ = function(parts, tf.constant(batch.seeds), [*batch.tensors, *function.held], factors)
    return float(batch.weigh(total, extra))


def _coupling(function: BatchLoss, batch: Batch) -> list[str]:
    """A note if the loss of a few examples of the batch is not that of their halves put together.

    The function is in inference mode: with batch statistics it never is.
    """
    size = min(8, batch.num_examples)
    if size < 2:
        return []
    cuts = (slice(0, size), slice(0, size // 2), slice(size // 2, size))
    parts = [tf.convert_to_tensor(variable) for variable in function.analysed]

    def evaluated(cut: slice, factors: Tensor | None = None) -> Array:
        tensors = [tensor[cut] for tensor in batch.tensors]
        total, extra, counts = function(parts, tf.constant(batch.seeds), [*tensors, *function.held], factors)
        return np.array([total - extra, *counts], np.float64)

    try:
        whole, *halves = (evaluated(cut) for cut in cuts)
        examples = np.array([size // 2, size - size // 2], np.float64)
        shares, relative = _shares(np.array([half[1:] for half in halves]), examples, function.reductions)
        with np.errstate(invalid="ignore"):  # an infinite loss is refused where it is the whole one
            joined = sum(
                share * evaluated(cut, tf.constant(factors, function.dtype) if factors else None)[0]
                for share, factors, cut in zip(shares, relative, cuts[1:], strict=True)
            )
    except Exception:  # a model or a loss that takes no part of a batch: nothing is known
        return []
    if not np.isfinite(joined) or abs(joined - whole[0]) <= np.sqrt(np.finfo(function.dtype).eps) * abs(whole[0]):
        return []
    return [
        f"the loss of a batch is not a mean over its examples ({', '.join(function.in_doubt)}), so that loss and "
        "Hessian over the data depend on the batch size: they are the means over the batches, weighted by examples"
    ]


def tensor_dtype(array: Array | minibatches.Pieces, dtype: str) -> str:
    """Floating-point data take the analysis precision; integers, booleans and text keep theirs."""
    kinds = {"f": dtype, "U": "string", "S": "string"}
    return kinds.get(array.dtype.kind) or str(array.dtype)


def check_model(model: Model, *, needs_loss: bool) -> None:
    """Refuses, by a ModelError, what is not a Keras model with something to analyse."""
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


def _build(model: Model, source: minibatches.Source) -> None:
    """Builds a subclassed model by one call on one sample."""
    sample = tf.nest.pack_sequence_as(source.structure, [tf.constant(array) for array in source.take(slice(0, 1))])
    try:
        model(keras_structure(sample[0]), training=False)
    except Exception as error:
        raise DataError(f"the model cannot be called on the data: {str(error).splitlines()[0]}") from error
