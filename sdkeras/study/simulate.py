"""Simulates the trajectory that training would take from a checkpoint on, and measures it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

import attrs
import numpy as np
import tensorflow as tf

from sdkeras import seeds
from sdkeras.errors import NonFiniteError, SdkerasError
from sdkeras.files.keras_types import Data, Loss, Model
from sdkeras.linalg.memory import peak_memory
from sdkeras.linalg.projection import check_dimension
from sdkeras.operators import minibatches
from sdkeras.operators.loss import EmpiricalLoss
from sdkeras.results.answers import ModelInfo, Simulation
from sdkeras.results.arrays import Value
from sdkeras.results.note import Note
from sdkeras.results.progress import Progress
from sdkeras.runs.lyapunov import Training, read_training
from sdkeras.runs.lyapunov_options import TrainingOptions
from sdkeras.runs.plan import timed_gradient
from sdkeras.runs.provenance import data_info, provenance
from sdkeras.study.recorder import DEFAULT_LAST, ExampleLosses, Recording, RecordingSettings
from sdkeras.study.topology import TrajectoryMeasures, check_memory, distance_bytes, measure_trajectory
from sdkeras.study.trajectory import Trajectory
from sdkeras.training_step.flow import TrainingFlow
from sdkeras.training_step.map import UpdateMap

DEFAULT_EXAMPLES = 1000
# Seconds of the distances and trees of one metric per pair of iterates (0.5 and 0.6 microseconds measured), and per
# pair and example.
_SECONDS_PER_PAIR, _SECONDS_PER_LOSS_PAIR = 6e-7, 2e-10
# Seconds of a simulated step beside its gradient: the optimizer's rule and the way to NumPy and back.
_SECONDS_PER_STEP = 1e-3


def simulate(
    model: Model,
    data: Data,
    *,
    steps: int = DEFAULT_LAST,
    batch_size: int | None = None,
    class_weight: Mapping[int, float] | None = None,
    initial_slots: bool = False,
    allow_unverified: bool = False,
    progress: Callable[[int], None] | None = None,
    **recording: Value,
) -> Trajectory:
    """Simulates the trajectory that training would take from here: real steps of the compiled optimizer, on copies.

    Moving averages of batch normalization stay as they are; they enter losses of `losses_on` only.

    Args:
        model: A `keras.Model`, compiled. It is not changed.
        data: (x, y[, sample_weight]), a batched `tf.data.Dataset`, or a `keras.utils.PyDataset`.
        steps: Training steps.
        batch_size: Batch size of training; default 32, or a dataset's own.
        class_weight: Weights by class as in `fit`, {0: 1.0, 1: 9.0}; others weigh 1.
        initial_slots: For an optimizer that has not trained yet: start with its initial slots.
        allow_unverified: Continue with a step that failed its verification.
        progress: Called with the number of steps made after each.
        recording: Fields of `RecordingSettings`; by default all iterates are kept.

    Raises:
        SdkerasError: Unusable model, data or settings. Divergence is not an error: see `Trajectory.stopped_at`.
    """
    every = recording.get("every", 1)
    settings = RecordingSettings(**{"last": max(2, steps // max(1, every)), **recording})
    _check_steps(steps, every)
    source = minibatches.as_source(data, batch_size=batch_size, class_weight=class_weight)
    num_samples = max(source.batch_size, 1024)
    loss = EmpiricalLoss(model, source, dtype=settings.dtype, num_samples=num_samples, seed=settings.seed)
    step = UpdateMap(loss, model.optimizer, initial_slots=initial_slots, allow_unverified=allow_unverified)
    return _walk(step, model, settings, steps, progress)


def _walk(
    step: UpdateMap,
    model: Model,
    settings: RecordingSettings,
    steps: int,
    progress: Callable[[int], None] | None,
) -> Trajectory:
    """The trajectory of a map's steps from its own state on; `model` takes the losses."""
    recording, flow = Recording(model, settings), TrainingFlow(step)
    slices = list(zip(step.loss.layout.slices, step.loss.layout.shapes, strict=True))
    for count in range(1, steps + 1):
        try:
            flow.advance()
        except NonFiniteError:
            recording.stopped_at = count
        if recording.stopped_at is not None:
            break
        if count % settings.every == 0:
            recording.add(count, [flow.position[entries].reshape(shape) for entries, shape in slices])
        if progress is not None:
            progress(count)
    return recording.finished()


def _check_steps(steps: int, every: int) -> None:
    if steps < 2 * every:
        raise SdkerasError(f"steps is {steps}; a trajectory of 2 iterates needs at least {2 * every}.")


@attrs.frozen(kw_only=True)
class ForwardSettings:
    """Settings of a `forward` simulation.

    Attributes:
        steps: Training steps.
        every: Steps between two iterates that are kept.
        alpha: Power of the edges.
        projection: Dimension of a random projection of the iterates, or None.
        losses_on: Examples, drawn at random, whose losses define the data-dependent distance; 0 for none.
        batch_size: Batch size of training; default 32, or a dataset's own.
        learning_rate: Replaces the rate of the optimizer, or of its schedule.
        loss: Replaces the compiled one, as in `sdkeras.analyze`.
        samples: Number of samples to read of an endless data set.
        seed: Seed for minibatches, dropout masks, examples, projection and subsamples.
        initial_slots: For an optimizer that has not trained yet: start with its initial slots.
        allow_unverified: Continue with a step that failed its verification.
        memory_gb: Memory for iterates and distances; default 60 % of what is free.
    """

    steps: int = DEFAULT_LAST
    every: int = 1
    alpha: float = 1.0
    projection: int | None = None
    losses_on: int = DEFAULT_EXAMPLES
    batch_size: int | None = None
    learning_rate: float | str | None = None
    loss: Loss = None
    samples: int | None = None
    seed: int = 0
    initial_slots: bool = False
    allow_unverified: bool = False
    memory_gb: float | None = None

    def __attrs_post_init__(self) -> None:
        if self.losses_on < 0:
            raise SdkerasError(f"losses_on is {self.losses_on}; it must be a number of examples, or 0 for none.")
        self.recording(None)
        _check_steps(self.steps, self.every)

    @property
    def num_iterates(self) -> int:
        return self.steps // self.every

    def recording(self, losses_on: tuple[Data, Data] | None) -> RecordingSettings:
        return RecordingSettings(
            every=self.every,
            last=max(2, self.steps // max(1, self.every)),
            projection=self.projection,
            seed=self.seed,
            losses_on=losses_on,
        )


@attrs.frozen
class ForwardPlan:
    """Size and cost of a simulation: `num_columns` numbers of each iterate, memory in bytes."""

    num_parameters: int
    num_columns: int
    num_steps: int
    num_iterates: int
    num_examples: int
    peak_memory: int
    seconds: float
    seconds_per_gradient: float


def forward(
    model: Model,
    data: Data,
    *,
    save: str | os.PathLike[str] | None = None,
    progress: Callable[[Progress], None] | None = None,
    **options: Value,
) -> TrajectoryMeasures:
    """E_alpha and PH dimension of the steps that training would make from the model's state.

    Real steps of the compiled optimizer on real minibatches, on copies, in float32.

    Args:
        model: A `keras.Model`, compiled. It is not changed.
        data: (x, y[, sample_weight]), a batched `tf.data.Dataset`, or a `keras.utils.PyDataset`.
        save: File (.npz) to keep the trajectory in, or None.
        progress: Called after every step.
        options: Fields of `ForwardSettings`.

    Raises:
        NonFiniteError: The training diverges. The iterates before are in `save`.
        SdkerasError: Unusable model, data or settings; see its subclasses.
    """
    started, settings = time.monotonic(), ForwardSettings(**options)

    def tell(stage: str) -> None:
        if progress is not None:
            progress(Progress(stage, 0))

    tell("reading the model and the data")
    training = _read(model, data, settings)
    examples = _examples(training, settings)
    check_memory(_bytes(training, settings), settings.num_iterates, settings.memory_gb)
    tell("compiling and verifying the training step")
    step = UpdateMap(
        training.function,
        training.optimizer,
        initial_slots=settings.initial_slots,
        allow_unverified=settings.allow_unverified,
    )
    trajectory = _walk(
        step,
        training.model,
        settings.recording(examples),
        settings.steps,
        lambda count: tell(f"step {count:,} of {settings.steps:,}"),
    )
    if save is not None:
        trajectory.save(save)
    if trajectory.stopped_at is not None:
        kept = "" if save is None else f" The {len(trajectory.iterates):,} iterates before are in {os.fspath(save)}."
        raise NonFiniteError(
            f"the simulated training diverged: weights or losses came out NaN or infinite at step "
            f"{trajectory.stopped_at:,} of {settings.steps:,}; take a smaller learning rate or fewer steps.{kept}"
        )
    measures = measure_trajectory(
        trajectory, settings.alpha, seed=settings.seed, memory_gb=settings.memory_gb, progress=tell
    )
    return attrs.evolve(
        measures,
        simulation=_simulation(training, step, settings, started),
        warnings=(*_few(training, settings), *measures.warnings),
    )


def plan(model: Model, data: Data, **options: Value) -> ForwardPlan:
    """Size and cost of `forward` with the same arguments, from one timed gradient; computes nothing else."""
    settings = ForwardSettings(**options)
    training = _read(model, data, settings)
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


def _read(model: Model, data: Data, settings: ForwardSettings) -> Training:
    options = TrainingOptions(
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        loss=settings.loss,
        samples=settings.samples,
        seed=settings.seed,
    )
    training = read_training(model, data, options)
    if training.function_words and settings.losses_on:
        raise SdkerasError(
            f"losses of single examples are of a compiled loss, and the loss is {training.function_words}; ask for "
            "none (`losses_on=0`)."
        )
    check_dimension(training.function.size, settings.projection)
    return training


def _few(training: Training, settings: ForwardSettings) -> tuple[Note, ...]:
    """Says where fewer examples exist than were asked for; the default is an upper limit."""
    asked, existing = settings.losses_on, training.function.source.num_samples
    if asked <= existing or asked == DEFAULT_EXAMPLES:
        return ()
    message = f"losses of {asked:,} examples were asked for, and the data have {existing:,}; those of all were taken."
    return (Note("losses-on", message),)


def _examples(training: Training, settings: ForwardSettings) -> tuple[Data, Data] | None:
    """Examples of the training data, at random; checked here, before the first step."""
    source = training.function.source
    count = min(settings.losses_on, source.num_samples)
    if not count:
        return None
    generator = seeds.generator(settings.seed, seeds.Stream.EXAMPLES)
    chosen = np.sort(generator.choice(source.num_samples, count, replace=False))
    x, y = tf.nest.pack_sequence_as(source.structure, source.take(chosen))[:2]
    ExampleLosses(training.model, x, y)
    return x, y


def _bytes(training: Training, settings: ForwardSettings) -> int:
    """Memory of iterates, losses and distances."""
    examples = min(settings.losses_on, training.function.source.num_samples)
    columns = (settings.projection or training.function.size) + examples
    return 4 * settings.num_iterates * columns + distance_bytes(settings.num_iterates)


def _simulation(training: Training, step: UpdateMap, settings: ForwardSettings, started: float) -> Simulation:
    function = training.function
    return Simulation(
        provenance=provenance(
            function.source, seed=settings.seed, dtype="float32", num_hvps=step.num_products, started=started
        ),
        model=ModelInfo(
            name=str(training.model.name),
            num_parameters=function.size,
            num_trainable_analysed=function.size,
            mode="train",
            loss=training.loss_words,
        ),
        data=data_info(function.source, function.num_examples),
        optimizer=training.optimizer_info(settings.learning_rate),
        num_steps=settings.steps,
        step_error=step.verification.step_error,
        verified=step.verification.passed,
        warnings=tuple(training.notes),
    )
