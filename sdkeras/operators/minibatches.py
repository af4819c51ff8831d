"""Data in memory as fixed minibatches, by the rules of `Model.fit`.

Arrays are cut into batches here; a `tf.data.Dataset` or a `keras.utils.PyDataset` brings its own batches,
which are read once, in order, and kept.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import keras
import numpy as np
import tensorflow as tf

from sdkeras import seeds
from sdkeras.errors import DataError
from sdkeras.files import class_weights
from sdkeras.files.data_fit import blocks, check_kind, first_not_finite
from sdkeras.results.arrays import Array

DEFAULT_BATCH_SIZE = 32
# Samples after which a dataset that does not know its length is taken for one without an end.
_LONGEST = 10**7


class Pieces:
    """Arrays of batches that differ in shape beside the batch axis (bucketed sequences), as if they were joined.

    Attributes:
        shape: Of the joined array: None for an axis on which the batches differ.
        dtype: Theirs.
    """

    def __init__(self, parts: Sequence[Array]) -> None:
        self._parts = parts
        self._starts = np.cumsum([0, *(len(part) for part in parts)])
        sides = zip(*(part.shape[1:] for part in parts), strict=True)
        self.shape: tuple[Any, ...] = (
            int(self._starts[-1]),
            *(side[0] if len(set(side)) == 1 else None for side in sides),
        )
        self.dtype = np.result_type(*parts)

    def __getitem__(self, indices: slice) -> Array:
        """Samples of one batch."""
        start, stop, _ = indices.indices(self.shape[0])
        place = int(np.searchsorted(self._starts, start, side="right")) - 1
        first = int(self._starts[place])
        if stop > self._starts[place + 1]:
            raise DataError("samples of batches of different shapes cannot be put together; ask for one batch.")
        return self._parts[place][start - first : stop - first]

    def blocks(self) -> Iterator[Array]:
        """The batches one after the other."""
        return iter(self._parts)


@attrs.frozen(eq=False)
class Source:
    """All samples, as flat arrays with a common first axis, and how they fall into minibatches.

    Attributes:
        arrays: Flat list of arrays, first axis = samples; `Pieces` where batches differ in shape.
        structure: The nested (x, y, sample_weight) that `tf.nest.pack_sequence_as` rebuilds; (x,) without targets.
        batch_size: Size of a full minibatch.
        given: The data's own batches as index ranges, or None where batches are cut from permutations.
        note: What the reader should know of how the data were read, or "".
        batch_size_source: Where the batch size came from: 'given', 'dataset' or 'assumed'; "" for all in one batch.
        class_weight: Weights by class that the sample weights were made from, or None.
    """

    arrays: tuple[Any, ...]
    structure: Any
    batch_size: int
    given: tuple[tuple[int, int], ...] | None = None
    note: str = ""
    batch_size_source: str = ""
    class_weight: Mapping[int, float] | None = None

    @property
    def num_samples(self) -> int:
        return int(self.arrays[0].shape[0])

    def digest(self) -> str:
        """SHA-256 over dtypes, shapes and bytes, first 16 hex digits."""
        state = hashlib.sha256()
        for array in self.arrays:
            state.update(f"{array.dtype.str}{array.shape}".encode())
            for block in array.blocks() if isinstance(array, Pieces) else blocks(array):
                state.update(np.ascontiguousarray(block).tobytes())
        return state.hexdigest()[:16]

    def take(self, indices: Array | slice) -> tuple[Array, ...]:
        return tuple(array[indices] for array in self.arrays)

    @property
    def is_bucketed(self) -> bool:
        """Whether its batches differ in shape, so that samples of several cannot be put together."""
        return any(isinstance(array, Pieces) for array in self.arrays)

    @property
    def minibatches_per_epoch(self) -> int:
        """Full-size minibatches in one pass over the data; the ragged tail is dropped."""
        if self.given is not None:
            return len(self._full(self.given))
        return max(1, self.num_samples // self.batch_size)

    def _full(self, given: tuple[tuple[int, int], ...]) -> list[tuple[int, int]]:
        return [part for part in given if part[1] - part[0] == self.batch_size]

    def minibatch(self, index: int, seed: int) -> tuple[Array, ...]:
        """Minibatch number `index` of training: permute, cut, drop the tail, next epoch."""
        epoch, position = divmod(index, self.minibatches_per_epoch)
        generator = seeds.generator(seed, seeds.Stream.MINIBATCHES, epoch)
        if self.given is not None:
            parts = self._full(self.given)
            start, stop = parts[int(generator.permutation(len(parts))[position])]
            return self.take(slice(start, stop))
        order = generator.permutation(self.num_samples)
        return self.take(np.sort(order[position * self.batch_size : (position + 1) * self.batch_size]))

    def epoch(self, num_samples: int | None, seed: int) -> list[tuple[Array, ...]]:
        """One fixed pass in consecutive batches, the ragged last one included.

        Arrays are permuted once (not if they make a single batch); `num_samples` limits the pass to a
        random subset, of whole batches where the data brought their own.
        """
        count = self.num_samples if num_samples is None else min(num_samples, self.num_samples)
        generator = seeds.generator(seed, seeds.Stream.SUBSET)
        if self.given is not None:
            parts = list(self.given)
            if count < self.num_samples:
                kept, total = [], 0
                for position in generator.permutation(len(parts)):
                    if total >= count:
                        break
                    kept.append(int(position))
                    total += parts[position][1] - parts[position][0]
                parts = [parts[position] for position in sorted(kept)]
            return [self.take(slice(start, stop)) for start, stop in parts]
        if count == self.num_samples and count <= self.batch_size:
            return [self.take(slice(None))]
        order = generator.permutation(self.num_samples)[:count]
        return [
            self.take(np.sort(order[start : start + self.batch_size])) for start in range(0, count, self.batch_size)
        ]


def as_source(
    data: Any,
    *,
    batch_size: int | None,
    default_batch_size: int | None = DEFAULT_BATCH_SIZE,
    limit: int | None = None,
    class_weight: Mapping[int, float] | None = None,
) -> Source:
    """Reads data in any of the forms `Model.fit` takes.

    Args:
        data: (x, y) or (x, y, sample_weight), each an array or a nested structure of arrays; x or (x,) alone for a
            model that takes no targets; or a batched `tf.data.Dataset`; or a `keras.utils.PyDataset`. Arrays hold
            numbers, booleans or, for a model that encodes it, text. A dataset's batches may differ in shape.
        batch_size: The size the user asked for, or None.
        default_batch_size: Size when none was given; None means all samples in one batch.
        limit: How many samples to read of an endless dataset.
        class_weight: Weights by class, as `Model.fit` takes them; each sample gets the weight of its target's class.

    Raises:
        DataError: Empty, endless without a limit, of unequal lengths, not numeric, not finite, or smaller
            than the batch size that was given; or data that cannot be weighted by class.
    """
    source = _read(data, batch_size=batch_size, default_batch_size=default_batch_size, limit=limit)
    known = class_weights.checked(class_weight)
    return source if known is None else _weighted(source, known, isinstance(data, tf.data.Dataset))


def _weighted(source: Source, class_weight: Mapping[int, float], per_step: bool) -> Source:
    """The same data with the sample weights that `fit` would make of class weights."""
    if len(source.structure) == 3:
        raise DataError(
            "class_weight and sample weights in the data do not go together, in Keras' fit either; multiply them into "
            "the sample weights, or leave one of them out."
        )
    if len(source.structure) != 2 or len(tf.nest.flatten(source.structure[1])) != 1:
        raise DataError(
            "class_weight needs data with one array of targets, as in Keras' fit; for several outputs give sample "
            "weights in the data."
        )
    weights = class_weights.sample_weights(source.arrays[-1], class_weight, per_step=per_step)
    structure = (*source.structure, weights)
    return attrs.evolve(source, arrays=(*source.arrays, weights), structure=structure, class_weight=class_weight)


def _read(data: Any, *, batch_size: int | None, default_batch_size: int | None, limit: int | None) -> Source:
    """`as_source` without class weights."""
    if batch_size is not None and batch_size < 1:
        raise DataError(f"the batch size must be at least 1, got {batch_size}.")
    if isinstance(data, (tf.data.Dataset, keras.utils.PyDataset)):
        return _from_batches(data, batch_size, limit)
    if isinstance(data, (np.ndarray, tf.Tensor, dict)):
        data = (data,)
    if not isinstance(data, (tuple, list)) or len(data) not in (1, 2, 3):
        raise DataError(
            "data must be x, (x, y) or (x, y, sample_weight) arrays, a tf.data.Dataset or a keras.utils.PyDataset; "
            f"got {type(data).__name__}{f' of length {len(data)}' if isinstance(data, (tuple, list)) else ''}."
        )
    structure = _as_triple(tuple(data))
    arrays = _arrays(structure)
    _check(arrays)
    total = arrays[0].shape[0]
    if batch_size is not None and batch_size > total:
        raise DataError(
            f"the batch size {batch_size} is larger than the data, which have {total} samples; "
            f"use a batch size of at most {total}."
        )
    size = batch_size or min(default_batch_size or total, total)
    origin = "given" if batch_size else "assumed" if default_batch_size else ""
    return Source(tuple(arrays), structure, size, batch_size_source=origin)


def _as_triple(data: tuple[Any, ...]) -> tuple[Any, ...]:
    """(x,), (x, y) or (x, y, w), leaves kept; absent targets and weights are dropped from the structure."""
    parts = tuple(_tuples(part) for part in data)
    while len(parts) > 1 and parts[-1] is None:
        parts = parts[:-1]
    if len(parts) == 3 and parts[1] is None:
        raise DataError("the data have sample weights and no targets; Keras weights losses of targets only.")
    return parts


def _tuples(tree: Any) -> Any:
    """Lists of arrays as tuples, lists of numbers as arrays, so that tf.nest sees arrays as leaves."""
    if isinstance(tree, dict):
        return {key: _tuples(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        nested = any(isinstance(leaf, dict) or len(getattr(leaf, "shape", ())) > 0 for leaf in tree)
        return tuple(_tuples(leaf) for leaf in tree) if nested else np.asarray(tree)
    return tree


def _arrays(structure: Any) -> list[Array]:
    """The leaves as arrays of numbers, booleans or text."""
    arrays = [check_kind(leaf) for leaf in tf.nest.flatten(structure)]
    if any(array is None for array in arrays):
        raise DataError("the data hold None among their arrays; give an array in its place, or leave the part out.")
    return [array for array in arrays if array is not None]


def _check(arrays: Sequence[Array]) -> None:
    if not arrays:
        raise DataError("the data hold no arrays.")
    lengths = {array.shape[0] if array.ndim else -1 for array in arrays}
    if -1 in lengths:
        raise DataError("the data hold a single number where an array of samples was expected.")
    if len(lengths) > 1:
        raise DataError(
            f"the arrays of the data have different numbers of samples: {sorted(lengths)}; "
            "inputs, targets and sample weights need the same first axis."
        )
    if lengths == {0}:
        raise DataError("the data have 0 samples.")
    for array in arrays:
        bad = first_not_finite(array)
        if bad is not None:
            raise DataError(
                f"the data hold NaN or infinity (first in sample {bad[0]:,} of an array of shape {array.shape}); "
                "remove or replace such samples."
            )


def _from_batches(data: Any, batch_size: int | None, limit: int | None) -> Source:
    flat: list[list[Array]] = []
    structure: Any = None
    total = 0
    for batch in _iterate(data, limit):
        if not isinstance(batch, (tuple, list)):
            batch = (batch,)
        if len(batch) not in (1, 2, 3):
            raise DataError("each batch of the dataset must be x, (x, y) or (x, y, sample_weight).")
        structure = _as_triple(tuple(batch))
        arrays = _arrays(structure)
        try:
            _check(arrays)
        except DataError as error:
            raise DataError(f"batch {len(flat):,} of the dataset: {error}") from error
        flat.append(arrays)
        if len(arrays) != len(flat[0]):
            raise DataError(f"batch {len(flat) - 1:,} of the dataset has other parts than the first one.")
        total += arrays[0].shape[0]
        if limit is not None and total >= limit and _endless(data):
            break
        if total > _LONGEST and _unknown_length(data):
            raise DataError(
                f"the dataset does not know its length and has not ended after {total:,} samples; if it has no end, "
                "cut it with .take(n), else tell its length with tf.data.experimental.assert_cardinality(n)."
            )
    if not flat:
        raise DataError("the dataset is empty.")
    sizes = [arrays[0].shape[0] for arrays in flat]
    joined = tuple(_join([arrays[position] for arrays in flat]) for position in range(len(flat[0])))
    own_size = sizes[0]
    if batch_size is not None and batch_size != own_size:
        if any(isinstance(array, Pieces) for array in joined):
            raise DataError(
                f"the dataset's batches have different shapes and cannot be re-batched to {batch_size}; leave the "
                "batch size out, or pad all of them to one shape."
            )
        if batch_size > total:
            raise DataError(f"the batch size {batch_size} is larger than the data, which have {total} samples.")
        note = f"the dataset's batches of {own_size} were re-batched to {batch_size}"
        return Source(joined, structure, batch_size, None, note, "given")
    ends = np.cumsum(sizes)
    given = tuple((int(end) - size, int(end)) for end, size in zip(ends, sizes, strict=True))
    return Source(joined, structure, own_size, given, batch_size_source="dataset")


def _endless(data: Any) -> bool:
    if isinstance(data, tf.data.Dataset):
        return bool(data.cardinality() == tf.data.INFINITE_CARDINALITY)
    return data.num_batches is None


def _unknown_length(data: Any) -> bool:
    return isinstance(data, tf.data.Dataset) and bool(data.cardinality() == tf.data.UNKNOWN_CARDINALITY)


def _iterate(data: Any, limit: int | None) -> Any:
    if _endless(data) and limit is None:
        raise DataError("the dataset has no end; say how much of it to read with `samples=N`.")
    if isinstance(data, tf.data.Dataset):
        spec = tf.nest.flatten(data.element_spec)
        if any(leaf.shape.rank == 0 for leaf in spec):
            raise DataError("the dataset is not batched; call .batch(n) on it first.")
        return _guarded(data.as_numpy_iterator())
    count = data.num_batches
    return (data[index] for index in (itertools.count() if count is None else range(count)))


def _guarded(batches: Any) -> Any:
    """The same batches; whatever TensorFlow raises for a damaged or failing dataset is a DataError."""
    try:
        yield from batches
    except tf.errors.OpError as error:
        reason = str(error.message).strip().splitlines()[0][:200] if error.message else type(error).__name__
        raise DataError(f"the dataset cannot be read to its end: {reason}.") from error


def _join(parts: list[Array]) -> Any:
    """The batches of one array joined along samples; as `Pieces` where that would need padding, which is no data."""
    shapes = {part.shape[1:] for part in parts}
    if len({len(shape) for shape in shapes}) > 1:
        raise DataError(
            f"the dataset's batches have different numbers of axes: {sorted(shapes)} beside the batch axis."
        )
    return Pieces(parts) if len(shapes) > 1 else np.concatenate(parts)
