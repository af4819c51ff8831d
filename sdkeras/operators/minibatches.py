"""Data in memory as fixed minibatches, by the rules of `Model.fit`.

Arrays are cut into batches here; a `tf.data.Dataset` or a `keras.utils.PyDataset` brings its own batches,
which are read once, in order, and kept.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence

import attrs
import keras
import numpy as np
import tensorflow as tf

from sdkeras import seeds
from sdkeras.errors import DataError, counted
from sdkeras.files import class_weights
from sdkeras.files.dataset import blocks, checked_arrays
from sdkeras.files.keras_types import Data
from sdkeras.files.user_code import USER_ERRORS, last_line
from sdkeras.results.arrays import Array, is_number

DEFAULT_BATCH_SIZE = 32
# Samples after which a dataset that does not know its length is taken for one without an end.
_LONGEST = 10**7


class Pieces:
    """Arrays of batches that differ in shape beside the batch axis (bucketed sequences), as if they were joined.

    The shape has None for an axis on which the batches differ.
    """

    def __init__(self, parts: Sequence[Array]) -> None:
        self._parts = parts
        self._starts = np.cumsum([0, *(len(batch) for batch in parts)])
        sides = zip(*(batch.shape[1:] for batch in parts), strict=True)
        self.shape: tuple[int | None, ...] = (
            int(self._starts[-1]),
            *(side[0] if len(set(side)) == 1 else None for side in sides),
        )
        self.dtype = np.result_type(*parts)

    def __getitem__(self, indices: slice) -> Array:
        """Samples of one batch."""
        start, stop, _ = indices.indices(int(self._starts[-1]))
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
    """All samples, as flat arrays with a common first axis, and how they fall into minibatches."""

    arrays: tuple[Data, ...]  # first axis = samples; `Pieces` where batches differ in shape
    structure: Data  # the nested (x, y, sample_weight) that `tf.nest.pack_sequence_as` rebuilds; (x,) without targets
    batch_size: int  # of a full minibatch
    # The data's own batches as index ranges, or None where batches are cut from permutations.
    batch_ranges: tuple[tuple[int, int], ...] | None = None
    note: str = ""  # caveat on how the data were read
    batch_size_source: str = ""  # 'given', 'dataset' or 'assumed'; "" for all in one batch
    class_weight: Mapping[int, float] | None = None  # by class, where the sample weights were made from it
    is_cut: bool = False  # whether the data have no end and these are what was read of them
    passes: int = 1  # how often the data were read, each time anew: all passes, one after the other

    @property
    def num_samples(self) -> int:
        return int(self.arrays[0].shape[0])

    @property
    def samples_per_pass(self) -> int:
        return self.num_samples // self.passes

    def of_pass(self, number: int) -> Source:
        """One of the passes alone."""
        count, start = self.samples_per_pass, number * self.samples_per_pass
        arrays = tuple(array[start : start + count] for array in self.arrays) if self.passes > 1 else self.arrays
        ranges = self.batch_ranges and self.batch_ranges[: len(self.batch_ranges) // self.passes]
        return attrs.evolve(self, arrays=arrays, batch_ranges=ranges, passes=1)

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
        if self.batch_ranges is not None:
            return len(self.full_ranges)
        return max(1, self.num_samples // self.batch_size)

    @property
    def full_ranges(self) -> list[tuple[int, int]]:
        """The data's own batches of full size."""
        return [(start, stop) for start, stop in self.batch_ranges or () if stop - start == self.batch_size]

    def minibatch(self, index: int, seed: int) -> tuple[Array, ...]:
        """Minibatch number `index` of training: permute, cut, drop the tail, next epoch."""
        return self.take(self.examples(index, seed))

    def examples(self, index: int, seed: int) -> Array | slice:
        """Which samples minibatch number `index` has."""
        if self.batch_ranges is not None:
            return slice(*self.full_ranges[self.fixed_batch(index, seed)])
        epoch, position = divmod(index, self.minibatches_per_epoch)
        order = _permutation(seed, epoch, self.num_samples)
        examples: Array = np.sort(order[position * self.batch_size : (position + 1) * self.batch_size])
        return examples

    def fixed_batch(self, index: int, seed: int) -> int:
        """Which of the data's own full-size batches minibatch number `index` is."""
        epoch, position = divmod(index, self.minibatches_per_epoch)
        return int(_permutation(seed, epoch, self.minibatches_per_epoch)[position])

    def epoch(self, num_samples: int | None, seed: int, merged: int = 1) -> list[tuple[Array, ...]]:
        """One fixed pass in consecutive batches, the ragged last one included; or so many of them put together.

        Arrays are permuted once (not if they make a single batch); `num_samples` limits the pass to a
        random subset, of whole batches where the data brought their own.
        """
        count = self.num_samples if num_samples is None else min(num_samples, self.num_samples)
        generator = seeds.generator(seed, seeds.Stream.SUBSET)
        if self.batch_ranges is not None:
            ranges = list(self.batch_ranges)
            if count < self.num_samples:
                order = generator.permutation(len(ranges))
                samples = np.cumsum([ranges[position][1] - ranges[position][0] for position in order])
                kept = order[: int(np.searchsorted(samples, count)) + 1]  # the first that hold this many samples
                ranges = [ranges[position] for position in sorted(kept)]
            if merged == 1:
                return [self.take(slice(start, stop)) for start, stop in ranges]
            groups = [ranges[start : start + merged] for start in range(0, len(ranges), merged)]
            return [self.take(np.concatenate([np.arange(*ends) for ends in group])) for group in groups]
        if count == self.num_samples and count <= self.batch_size:
            return [self.take(slice(None))]
        order = generator.permutation(self.num_samples)[:count]
        size = merged * self.batch_size
        return [self.take(np.sort(order[start : start + size])) for start in range(0, count, size)]


@functools.lru_cache(maxsize=2)  # of many millions of samples one takes a second
def _permutation(seed: int, epoch: int, count: int) -> Array:
    order: Array = seeds.generator(seed, seeds.Stream.MINIBATCHES, epoch).permutation(count)
    order.flags.writeable = False
    return order


def as_source(
    data: Data,
    *,
    batch_size: int | None,
    default_batch_size: int | None = DEFAULT_BATCH_SIZE,
    limit: int | None = None,
    class_weight: Mapping[int, float] | None = None,
    draws: int = 1,
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
        draws: How often a dataset is read, if it changes from one reading to the next; all readings are the data.

    Raises:
        DataError: Empty, endless without a limit, of unequal lengths, not numeric, not finite, or smaller
            than the batch size that was given; data that cannot be weighted by class; or a dataset that cannot be read
            as often as `draws` says, or has other batches then.
    """
    if batch_size is not None and not (is_number(batch_size, whole=True) and batch_size >= 1):
        raise DataError(f"the batch size must be a whole number of at least 1, got {batch_size!r}.")
    if isinstance(data, (tf.data.Dataset, keras.utils.PyDataset)):
        source = _joined(list(_passes(data, batch_size, limit, draws)))
    else:
        source = _from_arrays(data, batch_size, default_batch_size)
    weights = class_weights.checked(class_weight)
    return source if weights is None else _weighted(source, weights, isinstance(data, tf.data.Dataset))


def _weighted(source: Source, class_weight: Mapping[int, float], per_step: bool) -> Source:
    """The same data with the sample weights that `fit` would make of class weights."""
    if len(source.structure) == 3:
        raise DataError(
            "class_weight and sample weights in the data cannot be combined, in Keras' fit either; multiply them into "
            "the sample weights, or leave one of them out."
        )
    if len(source.structure) != 2 or len(tf.nest.flatten(source.structure[1])) != 1:
        raise DataError(
            "class_weight needs data with one array of targets, as in Keras' fit; for several outputs give sample "
            "weights in the data."
        )
    weights = class_weights.sample_weights(source.arrays[-1], class_weight, per_step=per_step)
    structure = (*source.structure, weights)
    absent = class_weights.without_samples(source.arrays[-1], class_weight)
    note = "; ".join(filter(None, (source.note, absent)))
    arrays = (*source.arrays, weights)
    return attrs.evolve(source, arrays=arrays, structure=structure, class_weight=class_weight, note=note)


def _from_arrays(data: Data, batch_size: int | None, default_batch_size: int | None) -> Source:
    if isinstance(data, (np.ndarray, tf.Tensor, dict)):
        data = (data,)
    if not isinstance(data, (tuple, list)) or len(data) not in (1, 2, 3):
        raise DataError(
            "data must be x, (x, y) or (x, y, sample_weight) arrays, a tf.data.Dataset or a keras.utils.PyDataset; "
            f"got {type(data).__name__}{f' of length {len(data)}' if isinstance(data, (tuple, list)) else ''}."
        )
    structure = checked_arrays("the data", data)
    arrays = tuple(tf.nest.flatten(structure))
    total = len(arrays[0])
    if batch_size is not None:
        _require_at_most(total, batch_size)
    size = batch_size or min(default_batch_size or total, total)
    origin = "given" if batch_size else "assumed" if default_batch_size else ""
    return Source(arrays, structure, size, batch_size_source=origin)


def _require_at_most(total: int, batch_size: int) -> None:
    if batch_size > total:
        raise DataError(
            f"the batch size {batch_size} is larger than the data, which have {total} samples; "
            f"use a batch size of at most {total}."
        )


def _from_batches(data: Data, batch_size: int | None, limit: int | None) -> Source:
    batches: list[list[Array]] = []
    structure: Data = None
    total = 0
    for batch in _iterate(data, limit):
        number = len(batches)
        if not isinstance(batch, (tuple, list)):
            batch = (batch,)
        if len(batch) not in (1, 2, 3):
            raise DataError("each batch of the dataset must be x, (x, y) or (x, y, sample_weight).")
        structure = checked_arrays(f"batch {number:,} of the dataset", batch, whole=False)
        batches.append(tf.nest.flatten(structure))
        if len(batches[0]) != len(batches[-1]):
            raise DataError(f"batch {number:,} of the dataset has other parts than the first one.")
        total += len(batches[-1][0])
        if limit is not None and total >= limit and _endless(data):
            break
        if total > _LONGEST and isinstance(data, tf.data.Dataset) and data.cardinality() == tf.data.UNKNOWN_CARDINALITY:
            raise DataError(
                f"the dataset does not know its length and has not ended after {total:,} samples; if it has no end, "
                "cut it with .take(n), otherwise state its length with tf.data.experimental.assert_cardinality(n)."
            )
    if not batches:
        raise DataError("the dataset is empty.")
    sizes = [len(arrays[0]) for arrays in batches]
    joined = tuple(_join(parts) for parts in zip(*batches, strict=True))
    if batch_size is None or batch_size == sizes[0]:
        ends = np.cumsum(sizes)
        ranges = tuple((int(end) - size, int(end)) for end, size in zip(ends, sizes, strict=True))
        return Source(joined, structure, sizes[0], ranges, batch_size_source="dataset", is_cut=_endless(data))
    if any(isinstance(array, Pieces) for array in joined):
        raise DataError(
            f"the dataset's batches have different shapes and cannot be re-batched to {batch_size}; leave the "
            "batch size out, or pad all of them to one shape."
        )
    _require_at_most(total, batch_size)
    note = f"the dataset's batches of {sizes[0]} were re-batched to {batch_size}"
    return Source(joined, structure, batch_size, None, note, "given", is_cut=_endless(data))


def _passes(data: Data, batch_size: int | None, limit: int | None, draws: int) -> Iterator[Source]:
    """As many readings of a dataset; one alone where the second has the same samples.

    Raises:
        DataError: One cannot be read, or has batches of another number or shape than the first.
    """
    first = _from_batches(data, batch_size, limit)
    yield first
    for number in range(2, draws + 1):
        try:
            again = _from_batches(data, batch_size, limit)
        except DataError as error:
            raise DataError(
                f"draws is {draws}, and reading {number} of the dataset failed, after one that did not: {error} Make "
                "one that can be read again, or leave draws out (`draws`)."
            ) from error
        different = _difference(first, again)
        if different:
            raise DataError(
                f"draws is {draws}, and reading {number} of the dataset has {different}; make one that has the same "
                "batches each time but for their values, or leave draws out (`draws`)."
            )
        if number == 2 and _samples(again, len(first.arrays)) == _samples(first, len(first.arrays)):
            return
        yield again


def _difference(first: Source, again: Source) -> str:
    """How another reading's arrays and batches differ from the first one's, in words; "" where they are alike."""
    shapes = [[array.shape[1:] for array in each.arrays if not isinstance(array, Pieces)] for each in (again, first)]
    if shapes[0] != shapes[1]:
        return f"samples of shape {shapes[0]} in place of {shapes[1]}"
    if again.num_samples != first.num_samples:
        return f"{counted(again.num_samples, 'sample')} in place of {first.num_samples:,}"
    return "" if again.batch_ranges == first.batch_ranges else "batches of other sizes"


def _joined(passes: Sequence[Source]) -> Source:
    """Several readings as one source.

    Raises:
        DataError: Their batches differ in shape.
    """
    first = passes[0]
    if len(passes) == 1:
        return first
    if first.is_bucketed:
        raise DataError(
            "the dataset has batches of different shapes, which `draws` cannot join with those of another reading; "
            "leave `draws` out, or pad the batches to one shape."
        )
    size = first.num_samples
    ranges = first.batch_ranges and tuple(
        (number * size + start, number * size + stop)
        for number in range(len(passes))
        for start, stop in first.batch_ranges
    )
    arrays = tuple(np.concatenate(parts) for parts in zip(*(each.arrays for each in passes), strict=True))
    return attrs.evolve(first, arrays=arrays, batch_ranges=ranges, passes=len(passes))


def changes(data: Data, source: Source, limit: int | None = None) -> bool:
    """Whether another reading of a dataset gives other samples than the source's, as with random augmentation.

    Its first batch is read again, and all the others where that differs, since another order of the same samples is
    no change. A dataset that cannot be read again is taken as fixed: nothing asks for another reading.
    """
    if not isinstance(data, (tf.data.Dataset, keras.utils.PyDataset)):
        return False
    try:
        first = tf.nest.flatten(next(iter(_iterate(data, limit))))
        count = len(np.asarray(first[0]))
        pairs = zip(first, source.arrays, strict=False)  # weights by class are of the source alone
        if count <= source.num_samples and all(np.array_equal(one, other[slice(0, count)]) for one, other in pairs):
            return False
        return _samples(_from_batches(data, None, limit), len(first)) != _samples(source, len(first))
    except (DataError, StopIteration):
        return False


def _samples(source: Source, parts: int) -> list[bytes]:
    """The samples of the first arrays as digests, in an order of their own."""
    digests = [hashlib.sha256() for _ in range(source.num_samples)]
    for array in source.arrays[:parts]:
        samples = itertools.chain.from_iterable(array.blocks() if isinstance(array, Pieces) else blocks(array))
        for digest, sample in zip(digests, samples, strict=True):
            digest.update(np.ascontiguousarray(sample).tobytes())
    return sorted(digest.digest() for digest in digests)


def _endless(data: Data) -> bool:
    if isinstance(data, tf.data.Dataset):
        return bool(data.cardinality() == tf.data.INFINITE_CARDINALITY)
    with _of_the_user(f"the length of the {type(data).__name__}"):
        return data.num_batches is None


@contextlib.contextmanager
def _of_the_user(what: str) -> Iterator[None]:
    """Reports what the user's own code raises as its failure."""
    try:
        yield
    except USER_ERRORS as error:
        raise DataError(f"{what} failed: {last_line(error)}; correct the user code.") from error


def _iterate(data: Data, limit: int | None) -> Iterator[Data]:
    if _endless(data) and limit is None:
        raise DataError("the dataset has no end; limit it with `samples=N`.")
    if not isinstance(data, tf.data.Dataset):
        count = data.num_batches
        for index in itertools.count() if count is None else range(count):
            with _of_the_user(f"batch {index:,} of the {type(data).__name__}"):
                batch = data[index]
            yield batch
        return
    if any(leaf.shape.rank == 0 for leaf in tf.nest.flatten(data.element_spec)):
        raise DataError("the dataset is not batched; call .batch(n) on it first.")
    try:
        yield from data.as_numpy_iterator()
    except tf.errors.OpError as error:  # whatever TensorFlow raises for a damaged or failing dataset
        reason = last_line(error).partition(" Traceback ")[0]
        raise DataError(f"the dataset cannot be read to its end: {reason}.") from error


def _join(parts: Sequence[Array]) -> Array | Pieces:
    """The batches of one array joined along samples; as `Pieces` where that would need padding, which is no data."""
    shapes = {batch.shape[1:] for batch in parts}
    if len({len(shape) for shape in shapes}) > 1:
        raise DataError(
            f"the dataset's batches have different numbers of axes: {sorted(shapes)} beside the batch axis."
        )
    return Pieces(parts) if len(shapes) > 1 else np.concatenate(parts)
