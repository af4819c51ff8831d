"""The data of a study: read once, checked against the grid, cut into shuffled batches."""

from __future__ import annotations

import math

import attrs
import keras
import numpy as np
import tensorflow as tf

from sdkeras.errors import DataError
from sdkeras.files.class_weights import sample_weights
from sdkeras.files.dataset import load_both, load_data, load_training_data
from sdkeras.files.keras_types import Data, Tensor
from sdkeras.study.definition import Study
from sdkeras.study.measures import columns


@attrs.frozen
class StudyData:
    """Data of training and of the test, each (x, y[, sample_weight]) or a data set in batches."""

    train: Data
    test: Data

    @classmethod
    def of(cls, study: Study) -> StudyData:
        """Reads the data of a study; relative paths and modules refer to the current folder.

        Raises:
            DataError: They cannot be read, or do not fit the study.
        """
        # A function that draws at random draws the same in every worker.
        keras.utils.set_random_seed(0)
        if study.test_data is None:
            train, test = load_both(study.data)
        else:
            train, note = load_training_data(study.data)
            if note:
                raise DataError(
                    f"[study] test_data is given, and there is a test pair already ({note.rstrip('.')}); leave it out."
                )
            test = load_data(study.test_data)
        if isinstance(train, tuple):
            _check_sizes(study, len(tf.nest.flatten(train[1])[0]))
            with_class_weights(study, train)
        else:
            _check_batched(study)
        return cls(train, test)

    def examples(self, count: int) -> tuple[Data, Data]:
        """(x, y) of this many examples of training (or all), the same ones for all runs."""
        x, y = self.train[:2]
        total = len(tf.nest.flatten(y)[0])
        chosen = np.sort(np.random.default_rng(0).permutation(total)[:count])
        x, y = tf.nest.map_structure(lambda leaf: leaf[chosen], (x, y))
        return x, y


def with_class_weights(study: Study, data: tuple[Data, ...]) -> tuple[Data, ...]:
    """Arrays with the sample weights that `fit` makes of the study's class weights.

    Raises:
        DataError: There are sample weights already, or several arrays of targets.
    """
    if study.weights_by_class is None:
        return data
    if len(data) != 2 or tf.nest.is_nested(data[1]):
        raise DataError(
            "[study] class_weight needs data (x, y) with one array of targets and without sample weights, as Keras' "
            "fit does; multiply the class weights into sample weights, and leave class_weight out."
        )
    return (*data, sample_weights(np.asarray(data[1]), study.weights_by_class, per_step=False))


def _check_batched(study: Study) -> None:
    needs = {
        "batch sizes": "batch_size" in study.grid,
        "the distance of losses (metric data)": any(name.endswith("-data") for name in columns(study.measures)),
    }
    for what, needed in needs.items():
        if needed:
            raise DataError(f"data {study.data!r} come in batches of their own, and {what} need arrays x, y.")


def _check_sizes(study: Study, total: int) -> None:
    """Refuses batches larger than the data, and recorded trajectories that would not be as long in all runs."""
    most = max(study.grid.get("batch_size", (1,)))
    if most > total:
        raise DataError(
            f"[grid] batch_size has the value {most}, and training has {total:,} samples; take smaller batches."
        )
    for batch_size in study.grid.get("batch_size", (32,)) if study.records else ():
        trained = study.steps or (study.epochs or 0) * math.ceil(total / batch_size)
        if trained < study.trajectory.steps:
            raise DataError(
                f"[trajectory] steps is {study.trajectory.steps:,}, and runs of batch size {batch_size} train "
                f"{trained:,} steps: trajectories would not be as long in all runs, and E_alpha grows with their "
                "length; take fewer."
            )


def shuffled(data: tuple[Data, ...], batch_size: int, seed: int) -> tuple[tf.data.Dataset, int]:
    """Endless batches of arrays, in a new order every epoch, and the number of batches per epoch.

    After `keras.utils.set_random_seed` Keras' own shuffling of arrays gives every epoch of a `fit` the same order.
    """
    arrays = tf.nest.map_structure(_as_keras_reads, data)
    total = len(tf.nest.flatten(arrays)[0])

    def batches_of(epoch: Tensor) -> tf.data.Dataset:
        draws = tf.random.stateless_uniform([total], tf.stack([tf.cast(seed, tf.int64), epoch]))
        return tf.data.Dataset.from_tensor_slices(tf.argsort(draws)).batch(batch_size)

    def gathered(places: Tensor) -> Tensor:
        return tf.nest.map_structure(lambda array: tf.gather(array, places), arrays)

    endless = tf.data.Dataset.range(np.iinfo(np.int64).max).flat_map(batches_of).map(gathered)
    return endless.prefetch(1), math.ceil(total / batch_size)


def _as_keras_reads(values: object) -> Tensor:
    array = np.asarray(values)
    return tf.convert_to_tensor(array.astype(keras.config.floatx()) if array.dtype.kind == "f" else array)
