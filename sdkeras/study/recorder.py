"""Trajectories of the weights: recorded while Keras trains, or simulated from a checkpoint on."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import keras
import numpy as np
import tensorflow as tf

from sdkeras.errors import ModelError, NonFiniteError, OperatorSizeError, SdkerasError
from sdkeras.memory import available_memory
from sdkeras.operators import batches
from sdkeras.operators.base import Array
from sdkeras.operators.layout import Layout
from sdkeras.operators.loss import EmpiricalLoss, check_model, plain, tensor_dtype
from sdkeras.operators.update_map import UpdateMap
from sdkeras.operators.update_rule import inner
from sdkeras.study.projection import Projection
from sdkeras.study.trajectory import Trajectory

DEFAULT_LAST = 5000
# Bytes of iterates that wait to be projected together: one pass over the random matrix serves them all.
_WAITING_BYTES = 2**27
# Examples whose losses are taken at once.
_CHUNK = 1024
_DTYPES = ("float32", "float64")


@attrs.frozen(kw_only=True)
class RecordingSettings:
    """What of a trajectory is kept; see `TrajectoryRecorder`."""

    every: int = 1
    last: int = DEFAULT_LAST
    dtype: str = "float32"
    projection: int | None = None
    seed: int = 0
    losses_on: Any = None

    def __attrs_post_init__(self) -> None:
        for name, low in {"every": 1, "last": 2, "projection": 1, "seed": 0}.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise SdkerasError(f"{name} is {value}; it must be at least {low}.")
        if self.dtype not in _DTYPES:
            raise SdkerasError(f"dtype must be 'float32' or 'float64', got {self.dtype!r}.")
        given = self.losses_on
        if given is not None and not (isinstance(given, (tuple, list)) and len(given) == 2):
            shape = f" of shape {tuple(given.shape)}" if hasattr(given, "shape") else ""
            length = f" of length {len(given)}" if isinstance(given, (tuple, list)) else ""
            raise SdkerasError(
                f"losses_on is a {type(given).__name__}{shape}{length}; give a pair (x, y) of examples and their targets."
            )


class TrajectoryRecorder(keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no types
    """Keeps the last iterates of the weights while `fit` trains; training is not touched.

    Implementing `on_train_batch_end` makes Keras wait for every step. With steps_per_execution k only every k-th
    iterate can be seen. A new `fit` starts a new trajectory.

    Args:
        every: Iterations of the optimizer between two iterates that are kept.
        last: How many are kept, the last ones.
        dtype: Of what is kept, 'float32' or 'float64'.
        projection: Dimension k of a random projection of the iterates, or None to keep all weights.
        seed: Of the projection.
        path: File (.npz) to write when training ends, or None.
        losses_on: (x, y): also keep the loss of each of these examples at each iterate, for the data-dependent
            distance. By the model's own loss, in inference mode (no dropout, moving averages in batch
            normalization), without regularisers.

    Attributes:
        trajectory: The `Trajectory` after training; None before.

    Raises:
        SdkerasError: Settings out of range; when training starts also OperatorSizeError (what is to be kept does not
            fit into memory), and ModelError or DataError for losses that cannot be taken.

    Example:
        recorder = TrajectoryRecorder(last=1000, losses_on=(x[:500], y[:500]))
        model.fit(x, y, callbacks=[recorder])
        ph_dimension(euclidean_distances(recorder.trajectory.iterates))
    """

    def __init__(
        self,
        every: int = 1,
        last: int = DEFAULT_LAST,
        dtype: str = "float32",
        projection: int | None = None,
        seed: int = 0,
        path: str | os.PathLike[str] | None = None,
        losses_on: tuple[Any, Any] | None = None,
    ) -> None:
        super().__init__()
        self.settings = RecordingSettings(
            every=every, last=last, dtype=dtype, projection=projection, seed=seed, losses_on=losses_on
        )
        self.path = path
        self.trajectory: Trajectory | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        self.trajectory = None
        self._recording: _Recording | None = None
        self._reached = self._iteration()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        # The model of a Sequential without input shape is built by the first batch.
        if self._recording is None:
            self._recording = _Recording(self.model, self.settings)
        iteration = self._iteration()
        if iteration // self.settings.every > self._reached // self.settings.every:
            self._recording.add(iteration, self.model.trainable_variables)
        self._reached = iteration

    def _iteration(self) -> int:
        return int(inner(self.model.optimizer).iterations.numpy())

    def on_train_end(self, logs: Any = None) -> None:
        if self._recording is None:
            return
        self.trajectory = self._recording.finished()
        self._recording = None
        if self.path is not None:
            self.trajectory.save(self.path)


def simulate(
    model: Any,
    data: Any,
    *,
    steps: int = DEFAULT_LAST,
    batch_size: int | None = None,
    every: int = 1,
    last: int | None = None,
    dtype: str = "float32",
    projection: int | None = None,
    seed: int = 0,
    losses_on: tuple[Any, Any] | None = None,
    initial_slots: bool = False,
    allow_unverified: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Trajectory:
    """The trajectory that training would take from here on: real steps of the compiled optimizer, on copies.

    Moving averages of batch normalization stay as they are; they enter losses of `losses_on` only.

    Args:
        model: A `keras.Model`, compiled. It is not changed.
        data: (x, y[, sample_weight]), a batched `tf.data.Dataset`, or a `keras.utils.PyDataset`.
        steps: Training steps.
        batch_size: That of training; default 32, or a dataset's own.
        every: Steps between two iterates that are kept.
        last: How many are kept; None for all.
        dtype: Of the steps and of what is kept.
        projection: As for `TrajectoryRecorder`.
        seed: Of minibatches, dropout masks and the projection.
        losses_on: As for `TrajectoryRecorder`.
        initial_slots: For an optimizer that has not trained yet: start with the slots it would start with.
        allow_unverified: Go on with a step that failed its verification.
        progress: Called with the number of steps made after each.

    Raises:
        SdkerasError: Unusable model, data or settings. A trajectory that diverges is no error: see
            `Trajectory.stopped_at`.
    """
    settings = RecordingSettings(
        every=every,
        last=max(2, steps // max(1, every)) if last is None else last,
        dtype=dtype,
        projection=projection,
        seed=seed,
        losses_on=losses_on,
    )
    if steps < 2 * every:
        raise SdkerasError(f"steps is {steps}; a trajectory of 2 iterates needs at least {2 * every}.")
    source = batches.as_source(data, batch_size=batch_size, default_batch_size=batches.DEFAULT_BATCH_SIZE, limit=None)
    loss = EmpiricalLoss(model, source, dtype=dtype, num_samples=max(source.batch_size, 1024), seed=seed)
    step = UpdateMap(loss, model.optimizer, initial_slots=initial_slots, allow_unverified=allow_unverified)
    return record(step, model, settings, steps, progress)


def record(
    step: UpdateMap,
    model: Any,
    settings: RecordingSettings,
    steps: int,
    progress: Callable[[int], None] | None = None,
) -> Trajectory:
    """The trajectory of so many steps of a map from its own state on; `model` takes the losses."""
    recording = _Recording(model, settings)
    state, held = step.state, step.held
    parts = list(zip(step.loss.layout.slices, step.loss.layout.shapes, strict=True))
    for count in range(1, steps + 1):
        try:
            state, held, _ = step.advance(state, held, step.training_batches(count - 1))
        except NonFiniteError:
            recording.stopped_at = count
        if recording.stopped_at is not None:
            break
        if count % settings.every == 0:
            recording.add(count, [state[part].reshape(shape) for part, shape in parts])
        if progress is not None:
            progress(count)
    return recording.finished()


class _Recording:
    """The last iterates of a trajectory under way, in rings."""

    def __init__(self, model: Any, settings: RecordingSettings) -> None:
        self._settings = settings
        self._layout = Layout.of(model.trainable_variables)
        self._losses_of = None if settings.losses_on is None else ExampleLosses(model, *settings.losses_on)
        size = self._layout.size if settings.projection is None else settings.projection
        examples = 0 if self._losses_of is None else self._losses_of.num_examples
        _check_memory(size + examples, settings)
        self._iterates = np.empty((settings.last, size), settings.dtype)
        self._losses = np.empty((settings.last, examples), settings.dtype) if examples else None
        self._iterations = np.empty(settings.last, np.int64)
        self._count = 0
        self.stopped_at: int | None = None
        self._projection = (
            None if settings.projection is None else Projection(self._layout.size, settings.projection, settings.seed)
        )
        self._waiting: list[Array] = []

    def add(self, iteration: int, weights: Sequence[Any]) -> None:
        """One more iterate: the values of the trainable variables, in model order."""
        if self.stopped_at is not None:
            return
        vector = self._layout.flatten(weights, self._settings.dtype)
        losses = None if self._losses_of is None else self._losses_of(weights)
        if not np.all(np.isfinite(vector)) or (losses is not None and not np.all(np.isfinite(losses))):
            self.stopped_at = iteration
            return
        row = self._count % self._settings.last
        self._iterations[row] = iteration
        if self._losses is not None:
            self._losses[row] = losses
        self._count += 1
        if self._projection is None:
            self._iterates[row] = vector
            return
        self._waiting.append(vector)
        if len(self._waiting) * vector.nbytes >= _WAITING_BYTES or len(self._waiting) == self._settings.last:
            self._project()

    def finished(self) -> Trajectory:
        """What is kept, oldest first."""
        self._project()
        kept = np.arange(max(0, self._count - self._settings.last), self._count) % self._settings.last
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
        rows = np.arange(self._count - len(self._waiting), self._count) % self._settings.last
        self._iterates[rows] = self._projection(np.stack(self._waiting))
        self._waiting = []


class ExampleLosses:
    """Losses of fixed examples one by one, by the compiled loss, at any weights of the model.

    In inference mode, each example as a batch of one: with a loss that is a mean, the mean of these is the loss of them
    all. Without `model.losses` (regularisers, add_loss).

    Args:
        model: A compiled model. It is not changed.
        x: Inputs, in any structure that `fit` takes, first axis examples.
        y: Targets.

    Raises:
        ModelError: Not compiled, or with a mask in its outputs.
        DataError: x and y do not fit.
    """

    def __init__(self, model: Any, x: Any, y: Any) -> None:
        check_model(model, needs_loss=True)
        source = batches.as_source((x, y), batch_size=None, default_batch_size=None, limit=None)
        dtype = str(model.compute_dtype) if model.compute_dtype in _DTYPES else "float32"
        self._examples = [tf.constant(part, tensor_dtype(part, dtype)) for part in source.arrays]
        self._variables = list(model.trainable_variables)
        self.num_examples = source.num_samples

        def losses(weights: list[Any], examples: list[Any]) -> Any:
            x, y = plain(tf.nest.pack_sequence_as(source.structure, examples))
            with keras.StatelessScope(list(zip(self._variables, weights, strict=True)), collect_losses=True):
                outputs = model(x, training=False)
                if any(getattr(leaf, "_keras_mask", None) is not None for leaf in tf.nest.flatten(outputs)):
                    raise ModelError("losses of single examples of a model with a mask in its outputs are not known.")
                extras = [tf.reduce_sum(loss) for loss in model.losses]

                def one(example: Any) -> Any:
                    target, output = tf.nest.map_structure(lambda part: part[None], example)
                    total = model._compute_loss(x=None, y=target, y_pred=output, training=False)
                    return tf.cast(total, dtype) - sum(tf.cast(extra, dtype) for extra in extras)

                return tf.vectorized_map(one, (y, outputs))

        self._losses = tf.function(losses)

    def __call__(self, weights: Sequence[Any]) -> Array:
        """Losses at these values of the trainable variables, shape [examples]; NaN and infinities as they come."""
        values = [tf.cast(np.asarray(w), v.dtype) for w, v in zip(weights, self._variables, strict=True)]
        parts = []
        for start in range(0, self.num_examples, _CHUNK):
            chunk = [part[start : start + _CHUNK] for part in self._examples]
            parts.append(self._losses(values, chunk).numpy())
        return np.concatenate(parts)


def _check_memory(columns: int, settings: RecordingSettings) -> None:
    """Refuses what would not fit.

    Raises:
        OperatorSizeError: See above.
    """
    needed = settings.last * columns * np.dtype(settings.dtype).itemsize
    free = available_memory()
    if needed > free:
        raise OperatorSizeError(
            f"{settings.last:,} iterates of {columns:,} numbers need {needed / 1e9:.3g} GB of memory, {free / 1e9:.3g} "
            "GB are free; keep fewer (last), or project them (projection=1000)."
        )
