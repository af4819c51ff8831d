"""The trajectory that training would take from a checkpoint on, simulated and measured."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import numpy as np
import tensorflow as tf

from sdkeras import seeds
from sdkeras.errors import NonFiniteError, SdkerasError
from sdkeras.linalg.memory import peak_memory
from sdkeras.linalg.projection import check_dimension
from sdkeras.operators import minibatches
from sdkeras.operators.loss import EmpiricalLoss
from sdkeras.results.answers import ModelInfo, Simulation
from sdkeras.results.note import Note
from sdkeras.results.progress import Progress
from sdkeras.runs.lyapunov import Training, read_training
from sdkeras.runs.plan import timed_gradient
from sdkeras.runs.provenance import data_info, provenance
from sdkeras.study.recorder import DEFAULT_LAST, ExampleLosses, Recording, RecordingSettings
from sdkeras.study.topology import TrajectoryMeasures, check_memory, distance_bytes, measure_trajectory
from sdkeras.study.trajectory import Trajectory
from sdkeras.training_step.flow import TrainingFlow
from sdkeras.training_step.map import UpdateMap

DEFAULT_EXAMPLES = 1000
# Seconds of the distances and trees of one metric for a pair of iterates (0.5 and 0.6 microseconds measured), and
# for a pair and an example.
_SECONDS_PER_PAIR, _SECONDS_PER_LOSS_PAIR = 6e-7, 2e-10
# What a simulated step takes beside its gradient, in seconds: the optimizer's rule and the way to NumPy and back.
_SECONDS_PER_STEP = 1e-3


@attrs.frozen(kw_only=True)
class ForwardSettings:
    """What is simulated and kept; see `forward`."""

    steps: int = DEFAULT_LAST
    every: int = 1
    projection: int | None = None
    losses_on: int = DEFAULT_EXAMPLES
    seed: int = 0
    memory_gb: float | None = None

    def __attrs_post_init__(self) -> None:
        if self.losses_on < 0:
            raise SdkerasError(f"losses_on is {self.losses_on}; it must be a number of examples, or 0 for none.")
        self.recording(None)
        if self.steps < 2 * self.every:
            raise SdkerasError(f"steps is {self.steps}; a trajectory of 2 iterates needs at least {2 * self.every}.")

    @property
    def num_iterates(self) -> int:
        return self.steps // self.every

    def recording(self, losses_on: tuple[Any, Any] | None) -> RecordingSettings:
        """What of the trajectory is kept."""
        return RecordingSettings(
            every=self.every,
            last=max(2, self.steps // max(1, self.every)),
            projection=self.projection,
            seed=self.seed,
            losses_on=losses_on,
        )


@attrs.frozen
class ForwardPlan:
    """What a simulation would do and cost.

    Attributes:
        num_parameters: Weights.
        num_columns: Numbers kept of each iterate.
        num_steps: Steps.
        num_iterates: Iterates kept.
        num_examples: Examples whose losses are kept.
        peak_memory: Bytes.
        seconds: Estimated from one timed gradient.
        seconds_per_gradient: That gradient.
    """

    num_parameters: int
    num_columns: int
    num_steps: int
    num_iterates: int
    num_examples: int
    peak_memory: int
    seconds: float
    seconds_per_gradient: float


def forward(
    model: Any,
    data: Any,
    *,
    steps: int = DEFAULT_LAST,
    every: int = 1,
    alpha: float = 1.0,
    projection: int | None = None,
    losses_on: int = DEFAULT_EXAMPLES,
    batch_size: int | None = None,
    learning_rate: float | str | None = None,
    loss: Any = None,
    samples: int | None = None,
    seed: int = 0,
    initial_slots: bool = False,
    allow_unverified: bool = False,
    memory_gb: float | None = None,
    save: str | os.PathLike[str] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> TrajectoryMeasures:
    """E_alpha and PH dimension of the steps that training would make from the model's state on.

    Real steps of the compiled optimizer on real minibatches, on copies, in float32.

    Args:
        model: A `keras.Model`, compiled. It is not changed.
        data: (x, y[, sample_weight]), a batched `tf.data.Dataset`, or a `keras.utils.PyDataset`.
        steps: Training steps.
        every: Steps between two iterates that are kept.
        alpha: Power of the edges.
        projection: Dimension of a random projection of the iterates, or None.
        losses_on: Examples, drawn at random, whose losses make the data-dependent distance; 0 for none.
        batch_size: That of training; default 32, or a dataset's own.
        learning_rate: In place of the optimizer's, or of its schedule.
        loss: Replaces the compiled one, as in `sdkeras.analyze`.
        samples: How much of an endless data set to read.
        seed: Of minibatches, dropout masks, examples, projection and subsamples.
        initial_slots: For an optimizer that has not trained yet: start with the slots it would start with.
        allow_unverified: Go on with a step that failed its verification.
        memory_gb: Memory for iterates and distances; default 60 % of what is free.
        save: File (.npz) to keep the trajectory in, or None.
        progress: Called after every step.

    Raises:
        NonFiniteError: The training diverges. What came before is in `save`.
        SdkerasError: Unusable model, data or settings; see its subclasses.
    """
    started = time.monotonic()
    settings = ForwardSettings(
        steps=steps, every=every, projection=projection, losses_on=losses_on, seed=seed, memory_gb=memory_gb
    )

    def tell(stage: str) -> None:
        if progress is not None:
            progress(Progress(stage, 0))

    tell("reading the model and the data")
    training = _read(model, data, batch_size, learning_rate, loss, samples, settings)
    examples = _examples(training, settings)
    check_memory(_bytes(training, settings), settings.num_iterates, memory_gb)
    tell("compiling and verifying the training step")
    step = UpdateMap(
        training.function, training.optimizer, initial_slots=initial_slots, allow_unverified=allow_unverified
    )
    trajectory = record(
        step,
        training.model,
        settings.recording(examples),
        steps,
        lambda count: tell(f"step {count:,} of {steps:,}"),
    )
    if save is not None:
        trajectory.save(save)
    if trajectory.stopped_at is not None:
        kept = "" if save is None else f" The {len(trajectory.iterates):,} iterates before are in {os.fspath(save)}."
        raise NonFiniteError(
            f"the simulated training diverged: weights or losses came out NaN or infinite at step "
            f"{trajectory.stopped_at:,} of {steps:,}; take a smaller learning rate or fewer steps.{kept}"
        )
    found = measure_trajectory(trajectory, alpha, seed=seed, memory_gb=memory_gb, progress=tell)
    return attrs.evolve(
        found,
        simulation=_simulation(training, step, steps, seed, learning_rate, started),
        warnings=(*_few(training, losses_on), *found.warnings),
    )


def plan(
    model: Any,
    data: Any,
    *,
    batch_size: int | None = None,
    learning_rate: float | str | None = None,
    loss: Any = None,
    samples: int | None = None,
    settings: ForwardSettings,
) -> ForwardPlan:
    """What `forward` would do, from one timed gradient; nothing else is computed."""
    training = _read(model, data, batch_size, learning_rate, loss, samples, settings)
    function, count = training.function, settings.num_iterates
    examples = min(settings.losses_on, function.source.num_samples)
    gradient, activations = timed_gradient(function)
    # A third of a gradient's work is its forward pass.
    losses = count * gradient * examples / function.source.batch_size / 3
    metrics = 2 if examples else 1
    trees = count**2 * (metrics * _SECONDS_PER_PAIR + examples * _SECONDS_PER_LOSS_PAIR)
    return ForwardPlan(
        num_parameters=function.size,
        num_columns=settings.projection or function.size,
        num_steps=settings.steps,
        num_iterates=count,
        num_examples=examples,
        peak_memory=int(peak_memory() + 3 * activations + _bytes(training, settings)),
        seconds=settings.steps * (gradient + _SECONDS_PER_STEP) + losses + trees,
        seconds_per_gradient=gradient,
    )


def _read(
    model: Any,
    data: Any,
    batch_size: int | None,
    learning_rate: float | str | None,
    loss: Any,
    samples: int | None,
    settings: ForwardSettings,
) -> Training:
    training = read_training(
        model,
        data,
        batch_size=batch_size,
        learning_rate=learning_rate,
        loss=loss,
        samples=samples,
        dtype="float32",
        seed=settings.seed,
    )
    if training.function_words and settings.losses_on:
        raise SdkerasError(
            f"losses of single examples are of a compiled loss, and the loss is {training.function_words}; ask for "
            "none (`losses_on=0`)."
        )
    check_dimension(training.function.size, settings.projection)
    return training


def _few(training: Training, asked: int) -> tuple[Note, ...]:
    """Says where more examples were asked for than there are; the default is up to so many."""
    there = training.function.source.num_samples
    if asked <= there or asked == DEFAULT_EXAMPLES:
        return ()
    message = f"losses of {asked:,} examples were asked for, and the data have {there:,}; those of all were taken."
    return (Note("losses-on", message),)


def _examples(training: Training, settings: ForwardSettings) -> tuple[Any, Any] | None:
    """Examples of the training data, at random; checked here, before the first step."""
    source = training.function.source
    count = min(settings.losses_on, source.num_samples)
    if not count:
        return None
    chosen = np.sort(
        seeds.generator(settings.seed, seeds.Stream.EXAMPLES).choice(source.num_samples, count, replace=False)
    )
    x, y = tf.nest.pack_sequence_as(source.structure, source.take(chosen))[:2]
    ExampleLosses(training.model, x, y)
    return x, y


def _bytes(training: Training, settings: ForwardSettings) -> int:
    """Memory of iterates, losses and distances."""
    examples = min(settings.losses_on, training.function.source.num_samples)
    columns = (settings.projection or training.function.size) + examples
    return 4 * settings.num_iterates * columns + distance_bytes(settings.num_iterates)


def _simulation(
    training: Training, step: UpdateMap, steps: int, seed: int, learning_rate: float | str | None, started: float
) -> Simulation:
    function = training.function
    return Simulation(
        provenance=provenance(function.source, seed=seed, dtype="float32", num_hvps=step.num_products, started=started),
        model=ModelInfo(
            name=str(training.model.name),
            num_parameters=function.size,
            num_trainable_analysed=function.size,
            mode="train",
            loss=training.loss_words,
        ),
        data=data_info(function.source, function.num_examples),
        optimizer=training.optimizer_info(learning_rate),
        num_steps=steps,
        step_error=step.verification.step_error,
        verified=step.verification.passed,
        warnings=tuple(training.notes),
    )


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
    class_weight: Mapping[int, float] | None = None,
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
        class_weight: That of `fit`: weights by class, {0: 1.0, 1: 9.0}; others weigh 1.
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
    source = minibatches.as_source(
        data,
        batch_size=batch_size,
        default_batch_size=minibatches.DEFAULT_BATCH_SIZE,
        limit=None,
        class_weight=class_weight,
    )
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
    recording = Recording(model, settings)
    flow = TrainingFlow(step)
    parts = list(zip(step.loss.layout.slices, step.loss.layout.shapes, strict=True))
    for count in range(1, steps + 1):
        try:
            flow.advance()
        except NonFiniteError:
            recording.stopped_at = count
        if recording.stopped_at is not None:
            break
        if count % settings.every == 0:
            recording.add(count, [flow.position[part].reshape(shape) for part, shape in parts])
        if progress is not None:
            progress(count)
    return recording.finished()
