"""Records the weights, and the losses of single examples, while Keras trains."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import attrs
import keras
import numpy as np
import tensorflow as tf

from sdkeras.errors import DataError, ModelError, OperatorSizeError, SdkerasError
from sdkeras.files.data_fit import check_data, words_of
from sdkeras.files.dataset import described
from sdkeras.files.keras_types import Data, Model, Tensor
from sdkeras.linalg.memory import available_memory
from sdkeras.linalg.projection import Projection, check_dimension
from sdkeras.operators import minibatches
from sdkeras.operators.batch_loss import keras_structure
from sdkeras.operators.layout import Layout
from sdkeras.operators.loss import check_model, tensor_dtype
from sdkeras.operators.modes import DTYPES, Dtype
from sdkeras.results.arrays import Array, is_number
from sdkeras.runs.declare import COUNT, NOT_NEGATIVE, must, one_of
from sdkeras.runs.trajectory import Trajectory
from sdkeras.study.forward_options import DEFAULT_ITERATES
from sdkeras.training_step.settings import steps_taken

# Bytes of iterates that wait to be projected together: one pass over the random matrix serves them all.
_WAITING_BYTES = 2**27
# Examples whose losses are taken at once.
_CHUNK = 1024


@attrs.frozen(kw_only=True)
class RecordingSettings:
    """Settings for recording a trajectory; see `TrajectoryRecorder`."""

    every: int = attrs.field(default=1, validator=COUNT)
    last: int = attrs.field(
        default=DEFAULT_ITERATES,
        validator=must("at least 2", lambda value: is_number(value, whole=True) and value >= 2),
    )
    dtype: Dtype = attrs.field(default="float32", validator=one_of(DTYPES))
    projection: int | None = attrs.field(default=None, validator=COUNT)
    seed: int = attrs.field(default=0, validator=NOT_NEGATIVE)
    losses_on: Data = None

    def __attrs_post_init__(self) -> None:
        pair = self.losses_on
        if pair is not None and not (isinstance(pair, (tuple, list)) and len(pair) == 2):
            raise SdkerasError(f"losses_on is {described(pair)}; give a pair (x, y) of examples and their targets.")


class TrajectoryRecorder(keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no types
    """Records the last iterates of the weights while `fit` trains, without changing the training.

    Implementing `on_train_batch_end` makes Keras wait for every step. With steps_per_execution k only every k-th
    iterate can be seen. A new `fit` starts a new trajectory.

    Args:
        every: Iterations of the optimizer between two iterates that are kept.
        last: Number of last iterates to keep.
        dtype: Precision of the iterates, 'float32' or 'float64'.
        projection: Dimension k of a random projection of the iterates, or None to keep all weights.
        seed: Seed for the projection.
        path: File (.npz) to write when training ends, or None. After Ctrl-C or an error `fit` does not notify callbacks
            of its end: call `save` then.
        losses_on: (x, y): also keep the loss of each of these examples at each iterate, for the data-dependent
            distance. Uses the model's own loss, in inference mode (no dropout, moving averages in batch
            normalization), without regularisers.

    Attributes:
        trajectory: The `Trajectory` recorded so far, a copy, whether training continues, has ended or was interrupted;
            None before it begins.

    Raises:
        SdkerasError: Settings out of range. Raised before the first step, or for a model without input shape at its
            first batch: a projection to no fewer numbers than weights, OperatorSizeError (what is to be kept does not
            fit into memory), and ModelError or DataError (the losses cannot be computed).

    Example:
        recorder = TrajectoryRecorder(last=1000, losses_on=(x[:500], y[:500]))
        model.fit(x, y, callbacks=[recorder])
        ph_dimension(euclidean_distances(recorder.trajectory.iterates))
    """

    def __init__(
        self,
        every: int = 1,
        last: int = DEFAULT_ITERATES,
        dtype: Dtype = "float32",
        projection: int | None = None,
        seed: int = 0,
        path: str | os.PathLike[str] | None = None,
        losses_on: tuple[Data, Data] | None = None,
    ) -> None:
        super().__init__()
        self.settings = RecordingSettings(
            every=every, last=last, dtype=dtype, projection=projection, seed=seed, losses_on=losses_on
        )
        self.path = path
        self._recording: Recording | None = None
        self._copy: Trajectory | None = None

    @property
    def trajectory(self) -> Trajectory | None:
        if self._copy is None and self._recording is not None:
            self._copy = self._recording.finished()
        return self._copy

    def save(self, path: str | os.PathLike[str] | None = None) -> None:
        """Writes what was recorded so far, all of it or nothing.

        Args:
            path: File (.npz); None for the recorder's own.

        Raises:
            SdkerasError: No training has begun, no path is known, or the file cannot be written.
        """
        place, trajectory = self.path if path is None else path, self.trajectory
        if trajectory is None:
            raise SdkerasError("nothing is recorded yet; give the recorder to fit (callbacks=[recorder]) first.")
        if place is None:
            raise SdkerasError("the recorder has no path; give one, save('trajectory.npz').")
        trajectory.save(place)

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        self._copy = None
        self._recording = Recording(self.model, self.settings) if self.model.built else None
        self._reached = steps_taken(self.model.optimizer)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        if self._recording is None:
            self._recording = Recording(self.model, self.settings)
        iteration = steps_taken(self.model.optimizer)
        if iteration // self.settings.every > self._reached // self.settings.every:
            self._recording.add(iteration, self.model.trainable_variables)
            self._copy = None
        self._reached = iteration

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        if self.trajectory is None:
            return
        self._recording = None
        if self.path is not None:
            self.save()


class Recording:
    """The last iterates of a trajectory under way, in ring buffers.

    A ring has a spare row, and an iterate counts once all of it is written: Ctrl-C may come anywhere in between.
    """

    def __init__(self, model: Model, settings: RecordingSettings) -> None:
        self._settings = settings
        self._layout = Layout.of(model.trainable_variables)
        size = self._layout.size
        check_dimension(size, settings.projection)
        self._losses_of = None if settings.losses_on is None else _tried_losses(model, *settings.losses_on)
        columns = settings.projection or size
        examples = 0 if self._losses_of is None else self._losses_of.num_examples
        needed = settings.last * (columns + examples) * np.dtype(settings.dtype).itemsize
        free = available_memory()
        if needed > free:
            raise OperatorSizeError(
                f"{settings.last:,} iterates of {columns + examples:,} numbers need {needed / 1e9:.3g} GB of memory, "
                f"{free / 1e9:.3g} GB are free; keep fewer (last), or project them (projection=1000)."
            )
        self._rows = settings.last + 1
        self._iterates = np.empty((self._rows, columns), settings.dtype)
        self._losses = np.empty((self._rows, examples), settings.dtype) if examples else None
        self._iterations = np.empty(self._rows, np.int64)
        self._count = 0
        self.stopped_at: int | None = None
        self._projection = None if settings.projection is None else Projection(size, columns, settings.seed)
        self._waiting: dict[int, Array] = {}

    def add(self, iteration: int, weights: Sequence[Tensor]) -> None:
        """Adds an iterate: the values of the trainable variables, in model order."""
        if self.stopped_at is not None:
            return
        vector = self._layout.flatten(weights, self._settings.dtype)
        losses = None if self._losses_of is None else self._losses_of(weights)
        if not np.all(np.isfinite(vector)) or (losses is not None and not np.all(np.isfinite(losses))):
            self.stopped_at = iteration
            return
        row = self._count % self._rows
        self._iterations[row] = iteration
        if self._losses is not None:
            self._losses[row] = losses
        if self._projection is None:
            self._iterates[row] = vector
        else:
            self._waiting[self._count] = vector
        self._count += 1
        if len(self._waiting) * vector.nbytes >= _WAITING_BYTES or len(self._waiting) == self._settings.last:
            self._project()

    def finished(self) -> Trajectory:
        """Recorded trajectory, oldest iterate first."""
        self._project()
        kept = np.arange(max(0, self._count - self._settings.last), self._count) % self._rows
        return Trajectory(
            iterates=self._iterates[kept],
            iterations=self._iterations[kept],
            losses=None if self._losses is None else self._losses[kept],
            num_parameters=self._layout.size,
            distortion=None if self._projection is None else self._projection.distortion(len(kept)),
            seed=self._settings.seed,
            stopped_at=self.stopped_at,
        )

    def _project(self) -> None:
        if self._projection is None or not self._waiting:
            return
        rows = np.array(list(self._waiting)) % self._rows
        self._iterates[rows] = self._projection(np.stack(list(self._waiting.values())))
        self._waiting = {}


def _tried_losses(model: Model, x: Tensor, y: Tensor) -> ExampleLosses:
    """Losses of these examples, computed once, so that errors come before the first step."""
    try:
        losses = ExampleLosses(model, x, y)
        check_data(model, *losses.data)
        losses(model.trainable_variables)
    except DataError as error:
        raise DataError(f"losses_on: {error}") from error
    except SdkerasError:
        raise
    except Exception as error:  # whatever the model's layers and its loss raise
        raise DataError(
            f"losses_on: the losses of these examples cannot be taken: {words_of(error)}. Give examples and targets "
            "as the model is trained on."
        ) from error
    return losses


class ExampleLosses:
    """Losses of fixed examples one by one, by the compiled loss, at any weights of the model.

    In inference mode, each example as a batch of one: with a loss that is a mean, the mean of these is the loss of them
    all. Without `model.losses` (regularisers, add_loss). x and y come in any structure that `fit` takes.
    """

    def __init__(self, model: Model, x: Tensor, y: Tensor) -> None:
        check_model(model, needs_loss=True)
        source = minibatches.as_source((x, y), batch_size=None, default_batch_size=None, limit=None)
        dtype = str(model.compute_dtype) if model.compute_dtype in DTYPES else "float32"
        self._examples = [tf.constant(array, tensor_dtype(array, dtype)) for array in source.arrays]
        self._variables = list(model.trainable_variables)
        self.num_examples, self.data = source.num_samples, source.structure

        def losses(weights: list[Tensor], examples: list[Tensor]) -> Tensor:
            x, y = keras_structure(tf.nest.pack_sequence_as(source.structure, examples))
            with keras.StatelessScope(list(zip(self._variables, weights, strict=True)), collect_losses=True):
                outputs = model(x, training=False)
                if any(getattr(leaf, "_keras_mask", None) is not None for leaf in tf.nest.flatten(outputs)):
                    raise ModelError("losses of single examples of a model with a mask in its outputs are not known.")
                extras = [tf.reduce_sum(loss) for loss in model.losses]

                def one(example: Tensor) -> Tensor:
                    target, output = tf.nest.map_structure(lambda leaf: leaf[None], example)
                    total = model._compute_loss(x=None, y=target, y_pred=output, training=False)
                    return tf.cast(total, dtype) - sum(tf.cast(extra, dtype) for extra in extras)

                return tf.vectorized_map(one, (y, outputs))

        self._losses = tf.function(losses)

    def __call__(self, weights: Sequence[Tensor]) -> Array:
        """Losses at these values of the trainable variables, shape [examples]; NaN and infinities as they come."""
        values = [tf.cast(np.asarray(w), v.dtype) for w, v in zip(weights, self._variables, strict=True)]
        losses = []
        for start in range(0, self.num_examples, _CHUNK):
            chunk = [array[start : start + _CHUNK] for array in self._examples]
            losses.append(self._losses(values, chunk).numpy())
        return np.concatenate(losses)
