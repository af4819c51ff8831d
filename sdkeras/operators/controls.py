"""Control variates of minibatches: bounded numbers of each example, from one forward pass over the data.

Of each compiled loss, in inference mode and with the weights and masks that Keras applies: the loss itself; how far the
prediction is off; and how curved the loss is in the outputs. Whatever they are, their mean over the data is known, and
so is its expectation over minibatches.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator, Sequence

import attrs
import keras
import numpy as np
import tensorflow as tf

from sdkeras import seeds
from sdkeras.dimension.controls import Population, whitened
from sdkeras.files.keras_types import Loss, Tensor
from sdkeras.operators.batch_loss import BatchLoss
from sdkeras.operators.denominators import by_example
from sdkeras.operators.loss import EmpiricalLoss, tensor_dtype
from sdkeras.operators.minibatches import Pieces, Source
from sdkeras.results.arrays import Array, FloatArray

# Numbers of an example, each cut off at this quantile, so that none is without bounds. Lower, at 0.99, the few hard
# examples of a trained net are alike, and with them goes what the controls explain: half of the variance on digits.
_KINDS, _QUANTILE = 3, 0.999
# Examples of one pass at most: so many, or this many minibatches, which takes a tenth of the time of 24 runs of 40
# products. Models of fewer weights take several minibatches in one call.
_MOST_EXAMPLES, _FEWEST_EXAMPLES, _MINIBATCHES = 100_000, 20_000, 720
_CHUNK, _SMALL = 256, 1_000_000
# With fewer minibatches in an epoch each comes from a permutation of its own.
_FEW = 8
# Outputs up to which the second derivative's diagonal is computed one by one, and random signs beyond.
_OUTPUTS, _SIGNS = 16, 8


def number(source: Source, index: int) -> int:
    """Number of the minibatch of training that run `index` is made on.

    It is the same, unless an epoch has so few minibatches that those of one epoch are far from independent: then each
    is the first of an epoch of its own.
    """
    few = source.batch_ranges is None and 1 < source.minibatches_per_epoch < _FEW
    return index * source.minibatches_per_epoch if few else index


def frame(loss: EmpiricalLoss) -> Population:
    """The minibatches that `number` counts, without controls."""
    source, seed, per_epoch = loss.source, loss.seed, loss.source.minibatches_per_epoch
    if source.is_cut:
        return Population(reason="the dataset has no end, and nothing is known of what was not read")
    if per_epoch == 1 and (source.batch_ranges is not None or source.batch_size == source.num_samples):
        return Population(1, 1, lambda _: 0, reason="one minibatch is all the data", is_random=loss.function.is_random)
    if source.batch_ranges is None:
        known = Population(per_epoch=per_epoch if per_epoch >= _FEW else None)
    else:
        known = Population(per_epoch, per_epoch, lambda index: source.fixed_batch(index, seed))
    known = attrs.evolve(known, is_random=loss.function.is_random)
    if loss.function.loss_fn is not None:
        return attrs.evolve(known, reason="a loss function of the user's is not known example by example")
    return known


def population(loss: EmpiricalLoss) -> Population:
    """The minibatches that `number` counts, with controls where their mean is known: one pass over the data a loss."""
    if loss not in _KNOWN:
        _KNOWN[loss] = _population(loss)
    return _KNOWN[loss]


_KNOWN: weakref.WeakKeyDictionary[EmpiricalLoss, Population] = weakref.WeakKeyDictionary()


def _population(loss: EmpiricalLoss) -> Population:
    known = frame(loss)
    if known.reason:
        return known
    try:
        examples = _Examples.of(loss)
    except Exception as error:  # the user's layers and losses may raise anything, and the estimate does without
        return attrs.evolve(known, reason=f"the loss of single examples cannot be taken ({type(error).__name__})")
    return _with_controls(known, examples, loss.seed)


def _with_controls(known: Population, examples: _Examples, seed: int) -> Population:
    """The population with the controls that these examples make."""
    source = examples.source
    if known.num_batches is None:
        units, scale = examples.centred, np.sqrt(source.batch_size)
        size, drawn = source.num_samples, len(examples.centred)
    else:  # of the fixed batches, each of weight 1
        ranges = source.full_ranges
        units, scale = np.array([examples.mean(slice(*ends)) for ends in ranges]), 1.0
        size = drawn = len(ranges)
    middle = units.mean(axis=0)
    transform = whitened(units - middle) * scale
    if not transform.shape[1]:
        return attrs.evolve(known, reason="all minibatches have the same controls")

    @functools.cache  # runs are looked at again and again
    def of_run(index: int) -> FloatArray:
        which = source.examples(number(source, index), seed)
        return np.asarray((examples.mean(which) - middle) @ transform)

    def of_runs(indices: Sequence[int]) -> FloatArray:
        return np.array([of_run(index) for index in indices])

    squares = np.sort((examples.centred @ transform) ** 2, axis=0)
    shares = squares[-source.batch_size :].sum(axis=0) / squares.sum(axis=0)
    return attrs.evolve(
        known,
        controls=of_runs,
        error=0.0 if drawn == size else scale**2 / drawn * (1 - drawn / size),
        needs_epoch=bool(np.any(shares > 0.5)),
    )


@attrs.frozen(eq=False)
class _Examples:
    """The controls of the examples, or of a sample of them.

    With N the weighted sum of an example's numbers and D its share of the loss's denominator, rho = sum N / sum D:
    c = (N - rho D) / mean D, summed over the losses with their weights. Its mean over the data is 0, whatever the
    denominators are.
    """

    source: Source
    function: BatchLoss
    seed: int
    limits: FloatArray  # at which each number is cut off, [losses, kinds]
    ratios: FloatArray  # rho, [losses, kinds]
    denominators: FloatArray  # mean D, [losses]
    weights: FloatArray  # of the losses
    centred: FloatArray  # c of the examples, or of those of the sample, [examples, kinds]
    is_sample: bool

    @classmethod
    def of(cls, loss: EmpiricalLoss) -> _Examples:
        """From one pass over the data, or over a random sample of large ones."""
        source = loss.source
        function = loss.function.of_model(loss.function.model, training=False, dtype=loss.function.dtype)
        function = attrs.evolve(function, point=loss.function.point, held=loss.function.held)
        most = min(_MOST_EXAMPLES, max(_FEWEST_EXAMPLES, _MINIBATCHES * source.batch_size))
        is_sample = source.batch_ranges is None and source.num_samples > most
        order, size = np.arange(source.num_samples), source.batch_size
        size = max(size, _CHUNK) if loss.size < _SMALL else size
        if is_sample:
            generator = seeds.generator(loss.seed, seeds.Stream.SUBSET, 1)
            order = np.sort(generator.choice(source.num_samples, most, replace=False))
        parts = [_numbers(function, arrays, loss.seed) for arrays in _chunks(source, order, size)]
        sums = np.concatenate([sums for sums, _ in parts])
        shares = np.concatenate([shares for _, shares in parts])
        if not (np.all(np.isfinite(sums)) and np.all(np.isfinite(shares)) and np.all(shares.sum(axis=0) > 0)):
            raise ValueError("numbers of examples are not finite")
        limits = np.quantile(sums, _QUANTILE, axis=0, method="higher")
        sums = np.minimum(sums, limits)
        ratios = sums.sum(axis=0) / shares.sum(axis=0)[:, None]
        first = source.take(slice(0, source.batch_size))
        examples = cls(
            source,
            function,
            loss.seed,
            limits,
            ratios,
            shares.mean(axis=0),
            _loss_weights(function, first),
            sums[0],
            is_sample,
        )
        return attrs.evolve(examples, centred=examples._centre(sums, shares))

    def _centre(self, sums: FloatArray, shares: FloatArray) -> FloatArray:
        departures = (sums - shares[:, :, None] * self.ratios) / self.denominators[:, None]
        return np.asarray(np.einsum("k,nkj->nj", self.weights, departures))

    def mean(self, which: Array | slice) -> FloatArray:
        """Mean of c over examples, [kinds]."""
        if not self.is_sample:
            return np.asarray(self.centred[which].mean(axis=0))
        sums, shares = _numbers(self.function, self.source.take(which), self.seed)
        return np.asarray(self._centre(np.minimum(sums, self.limits), shares).mean(axis=0))


def _chunks(source: Source, order: Array, size: int) -> Iterator[tuple[Array, ...]]:
    """The samples a part at a time: the data's own batches, or equal parts."""
    if any(isinstance(array, Pieces) for array in source.arrays):
        yield from (source.take(slice(*ends)) for ends in source.batch_ranges or ())
        return
    for start in range(0, len(order), size):
        yield source.take(order[start : start + size])


def _tensors(function: BatchLoss, arrays: Sequence[Array]) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """Parameters, seeds and tensors with which the function is called."""
    parts = function.layout.split(tf.constant(function.point))
    flat = [tf.constant(array, tensor_dtype(array, function.dtype)) for array in arrays]
    return parts, tf.zeros([function.num_seeds, 2], tf.int64), [*flat, *function.held]


def _numbers(function: BatchLoss, arrays: Sequence[Array], seed: int) -> tuple[FloatArray, FloatArray]:
    """N and D of each example, shapes [examples, losses, kinds] and [examples, losses]."""
    sums: list[Array] = []
    shares: list[Array] = []

    def inspect(loss: Loss, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None, values: Tensor) -> None:
        kinds = [values, *_of_outputs(loss, y_true, y_pred, values, seed)]
        kinds += [tf.zeros_like(values)] * (_KINDS - len(kinds))
        call = (y_true, y_pred, sample_weight)
        sums.append(np.stack([by_example(loss, call, each, values).numpy() for each in kinds], axis=1))
        ones, reduction = tf.ones_like(values), str(loss.reduction)
        weight = sample_weight if reduction == "mean_with_sample_weight" else None
        share = by_example(loss, (y_true, y_pred, weight), ones, values).numpy()
        shares.append(np.ones_like(share) if reduction == "sum" else share)

    attrs.evolve(function, inspect=inspect)(*_tensors(function, arrays))
    return np.stack(sums, axis=1).astype(np.float64), np.stack(shares, axis=1).astype(np.float64)


def _of_outputs(loss: Loss, y_true: Tensor, y_pred: Tensor, values: Tensor, seed: int) -> list[Tensor]:
    """How far off the outputs are and how curved the loss is in them, at each place of the loss's values.

    For cross-entropies 1 - p_y, or half the distance of p from soft labels, and the sum of p (1 - p); for other losses
    the norm of the first derivative and the trace of the second.
    """
    function = getattr(loss, "fn", None)
    logits = bool(getattr(loss, "_fn_kwargs", {}).get("from_logits", False))
    softmax = (keras.losses.categorical_crossentropy, keras.losses.sparse_categorical_crossentropy)
    if function in softmax:
        p, y = tf.nn.softmax(y_pred) if logits else tf.convert_to_tensor(y_pred), tf.convert_to_tensor(y_true)
        if function is keras.losses.categorical_crossentropy:
            distance = 0.5 * tf.reduce_sum(tf.abs(tf.cast(y, p.dtype) - p), axis=-1)
        else:  # a class that is ignored may be no class
            label = tf.clip_by_value(tf.cast(tf.reshape(y, tf.shape(p)[:-1]), tf.int32), 0, p.shape[-1] - 1)
            distance = 1 - tf.gather(p, label, axis=-1, batch_dims=p.shape.rank - 1)
        return [distance, tf.reduce_sum(p * (1 - p), axis=-1)]
    if function is keras.losses.binary_crossentropy:
        p = tf.nn.sigmoid(y_pred) if logits else tf.convert_to_tensor(y_pred)
        y = tf.cast(tf.reshape(y_true, tf.shape(p)), p.dtype)
        return [tf.reduce_mean(tf.abs(y - p), axis=-1), tf.reduce_mean(p * (1 - p), axis=-1)]
    outputs = tf.convert_to_tensor(y_pred)
    with tf.GradientTape(persistent=True) as second:
        second.watch(outputs)
        with tf.GradientTape() as first:
            first.watch(outputs)
            total = tf.reduce_sum(loss.call(y_true, outputs))
        slope = first.gradient(total, outputs)
        projections = [(direction, tf.reduce_sum(slope * direction)) for direction in _directions(outputs, seed)]
    curvature = tf.zeros_like(outputs)
    for direction, projection in projections:
        curved = second.gradient(projection, outputs)
        if curved is not None:
            curvature += direction * curved
    numbers = [tf.norm(slope, axis=-1), tf.reduce_sum(curvature, axis=-1)]
    return numbers if numbers[0].shape.as_list() == values.shape.as_list() else []


def _directions(outputs: Tensor, seed: int) -> list[Tensor]:
    """Unit vectors of the last axis, whose sum of v v' is 1; or random signs, whose expectation is."""
    width = int(outputs.shape[-1])
    if width <= _OUTPUTS:
        return [tf.one_hot(k, width, dtype=outputs.dtype) for k in range(width)]
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(_SIGNS, width)) / np.sqrt(_SIGNS)
    return [tf.constant(row, outputs.dtype) for row in signs]


def _loss_weights(function: BatchLoss, arrays: Sequence[Array]) -> FloatArray:
    """The weights that the model gives its losses: each one's part of the total over its value."""
    parts, seed_states, flat = _tensors(function, arrays)
    function(parts, seed_states, flat)
    count = len(function.reductions)
    if count == 1:
        return np.ones(1)
    totals: list[float] = []
    for k in range(count):
        factors = tf.one_hot(k, count, dtype=function.dtype)
        total, extra, _ = function(parts, seed_states, flat, factors)
        totals.append(float(total - extra))
    sums, shares = _numbers(function, arrays, 0)
    values = sums[:, :, 0].sum(axis=0) / shares.sum(axis=0)
    return np.asarray(np.divide(totals, values, out=np.ones(count), where=values != 0))
