"""Simulates the trajectory that training would take from a checkpoint on, and measures it."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping
from typing import cast

import attrs
import numpy as np
import tensorflow as tf

from sdkeras import seeds
from sdkeras.errors import NonFiniteError, SdkerasError
from sdkeras.files.keras_types import Data, Model, Optimizer
from sdkeras.linalg.memory import peak_memory
from sdkeras.linalg.projection import check_dimension
from sdkeras.operators import minibatches
from sdkeras.operators.loss import EmpiricalLoss
from sdkeras.operators.modes import Dtype
from sdkeras.results.answers import Simulation
from sdkeras.results.arrays import Value
from sdkeras.results.note import Note
from sdkeras.results.progress import Progress
from sdkeras.runs.declare import takes_options
from sdkeras.runs.lyapunov import Training, read_training
from sdkeras.runs.plan import timed_gradient
from sdkeras.runs.provenance import data_info, provenance
from sdkeras.runs.trajectory import Trajectory
from sdkeras.study.forward_options import DEFAULT_EXAMPLES, DEFAULT_ITERATES, ForwardOptions, check_steps
from sdkeras.study.recorder import Recording, RecordingSettings
from sdkeras.study.topology import TrajectoryMeasures, check_memory, distance_bytes, measure_trajectory
from sdkeras.training_step.flow import TrainingFlow
from sdkeras.training_step.map import UpdateMap
from sdkeras.training_step.verification import check_step

# Seconds of the distances and trees of one metric per pair of iterates (0.5 and 0.6 microseconds measured), and per
# pair and example.
_SECONDS_PER_PAIR, _SECONDS_PER_LOSS_PAIR = 6e-7, 2e-10
# Seconds of a simulated step beside its gradient: the optimizer's rule and the way to NumPy and back.
_SECONDS_PER_STEP = 1e-3


def simulate(
    model: Model,
    data: Data,
    *,
    steps: int = DEFAULT_ITERATES,
    batch_size: int | None = None,
    class_weight: Mapping[int, float] | None = None,
    initial_slots: bool = False,
    allow_unverified: bool = False,
    **settings: Value,
) -> Trajectory:
    """Simulates the trajectory that training would take from here: real steps of the compiled optimizer, on copies.

    Moving averages of batch normalization stay as they are; they enter losses of `losses_on` only. A learning rate of 0
    and divergence are no errors, see `Trajectory.stopped_at`. Options are those of `forward`; `settings` are fields of
    `RecordingSettings`; by default all iterates are kept.

    Raises:
        SdkerasError: Unusable model, data or settings.
    """
    every = settings.get("every", 1)
    record = RecordingSettings(**{"last": max(2, steps // max(1, every)), **settings})
    check_steps(steps, every)
    recording = Recording(model, record)  # refuses what cannot be recorded, before the step is compiled
    source = minibatches.as_source(data, batch_size=batch_size, class_weight=class_weight)
    num_samples = max(source.batch_size, 1024)
    loss = EmpiricalLoss(model, source, dtype=record.dtype, num_samples=num_samples, seed=record.seed)
    step, _ = _checked_step(loss, model.optimizer, initial_slots, allow_unverified)
    return _walk(step, recording, every, steps)


def _checked_step(
    loss: EmpiricalLoss, optimizer: Optimizer, initial_slots: bool, allow_unverified: bool
) -> tuple[UpdateMap, bool]:
    """The training step, and whether it is the optimizer's own; its derivatives play no part in a trajectory."""
    with warnings.catch_warnings(action="ignore"):
        step = UpdateMap(loss, optimizer, initial_slots=initial_slots, allow_unverified=True)
    return step, check_step(step.verification, allow_unverified)


def _walk(
    step: UpdateMap, recording: Recording, every: int, steps: int, progress: Callable[[int], None] = lambda _: None
) -> Trajectory:
    """The trajectory of a map's steps from its own state on; `progress` is called with their number after each."""
    flow, layout = TrainingFlow(step), step.loss.layout
    slices = list(zip(layout.slices, layout.shapes, strict=True))
    for count in range(1, steps + 1):
        try:
            flow.advance()
        except NonFiniteError:
            recording.stopped_at = count
        if recording.stopped_at is not None:
            break
        if count % every == 0:
            position = np.asarray(flow.position)
            recording.add(count, [position[entries].reshape(shape) for entries, shape in slices])
        progress(count)
    return recording.finished()


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


@takes_options(ForwardOptions)
def forward(model: Model, data: Data, options: ForwardOptions) -> TrajectoryMeasures:
    """E_alpha and PH dimension of the steps that training would make from the model's state.

    Real steps of the compiled optimizer on real minibatches, on copies.

    Args:
        model: A `keras.Model`, compiled. It is not changed.
        data: (x, y[, sample_weight]), a batched `tf.data.Dataset`, or a `keras.utils.PyDataset`.
        options: {options}

    Raises:
        NonFiniteError: The training diverges. The iterates before are in `save`.
        SdkerasError: Unusable model, data or options; see its subclasses.
    """
    started = time.monotonic()

    def tell(stage: str) -> None:
        if options.tell is not None:
            options.tell(Progress(stage, 0))

    tell("reading the model and the data")
    training = _read(model, data, options)
    check_memory(_bytes(training, options), options.num_iterates, options.memory_gb)
    settings = RecordingSettings(
        every=options.every,
        last=options.num_iterates,
        dtype=cast(Dtype, options.dtype),  # which refuses the mixed one
        projection=options.projection,
        seed=options.seed,
        losses_on=_examples(training, options),
    )
    recording = Recording(training.model, settings)
    tell("compiling and verifying the training step")
    step, verified = _checked_step(training.loss, training.optimizer, options.initial_slots, options.allow_unverified)
    steps = options.steps
    trajectory = _walk(step, recording, options.every, steps, lambda count: tell(f"step {count:,} of {steps:,}"))
    if options.save is not None:
        trajectory.save(options.save)
    if trajectory.stopped_at is not None:
        place = None if options.save is None else os.fspath(options.save)
        kept = "" if place is None else f" The {len(trajectory.iterates):,} iterates before are in {place}."
        raise NonFiniteError(
            f"the simulated training diverged: weights or losses came out NaN or infinite at step "
            f"{trajectory.stopped_at:,} of {steps:,}; take a smaller learning rate or fewer steps.{kept}"
        )
    measures = measure_trajectory(
        trajectory, options.alpha, seed=options.seed, memory_gb=options.memory_gb, progress=tell
    )
    return attrs.evolve(
        measures,
        simulation=_simulation(training, step, verified, options, started),
        warnings=(*_few(training, options), *measures.warnings),
    )


@takes_options(ForwardOptions)
def plan(model: Model, data: Data, options: ForwardOptions) -> ForwardPlan:
    """Size and cost of `forward` with the same arguments, from one timed gradient; computes nothing else."""
    training = _read(model, data, options)
    function, count, examples = training.loss, options.num_iterates, _num_examples(training, options)
    gradient, activations, _ = timed_gradient(function, function.minibatch(0))
    # A third of a gradient's work is its forward pass.
    losses = count * gradient * examples / function.source.batch_size / 3
    metrics = 2 if examples else 1
    trees = count**2 * (metrics * _SECONDS_PER_PAIR + examples * _SECONDS_PER_LOSS_PAIR)
    return ForwardPlan(
        num_parameters=function.size,
        num_columns=options.projection or function.size,
        num_steps=options.steps,
        num_iterates=count,
        num_examples=examples,
        peak_memory=int(peak_memory() + 3 * activations + _bytes(training, options)),
        seconds=options.steps * (gradient + _SECONDS_PER_STEP) + losses + trees,
        seconds_per_gradient=gradient,
    )


def _read(model: Model, data: Data, options: ForwardOptions) -> Training:
    training = read_training(model, data, options)
    if training.function_words and options.losses_on:
        raise SdkerasError(
            f"losses of single examples are of a compiled loss, and the loss is {training.function_words}; ask for "
            "none (`losses_on=0`)."
        )
    check_dimension(training.loss.size, options.projection)
    return training


def _num_examples(training: Training, options: ForwardOptions) -> int:
    return min(options.losses_on, training.loss.source.num_samples)


def _few(training: Training, options: ForwardOptions) -> tuple[Note, ...]:
    """Says where fewer examples exist than were asked for; the default is an upper limit."""
    asked, existing = options.losses_on, training.loss.source.num_samples
    if asked <= existing or asked == DEFAULT_EXAMPLES:
        return ()
    message = f"losses of {asked:,} examples were asked for, and the data have {existing:,}; those of all were taken."
    return (Note("losses-on", message),)


def _examples(training: Training, options: ForwardOptions) -> tuple[Data, Data] | None:
    """Examples of the training data, at random."""
    source, count = training.loss.source, _num_examples(training, options)
    if not count:
        return None
    generator = seeds.generator(options.seed, seeds.Stream.EXAMPLES)
    chosen = np.sort(generator.choice(source.num_samples, count, replace=False))
    x, y = tf.nest.pack_sequence_as(source.structure, source.take(chosen))[:2]
    return x, y


def _bytes(training: Training, options: ForwardOptions) -> int:
    """Memory of iterates, losses and distances."""
    columns = (options.projection or training.loss.size) + _num_examples(training, options)
    return np.dtype(options.dtype).itemsize * options.num_iterates * columns + distance_bytes(options.num_iterates)


def _simulation(
    training: Training, step: UpdateMap, verified: bool, options: ForwardOptions, started: float
) -> Simulation:
    function = training.loss
    return Simulation(
        provenance=provenance(function, seed=options.seed, num_hvps=step.num_products, started=started),
        model=training.model_info(),
        data=data_info(function),
        optimizer=training.optimizer_info(),
        num_steps=options.steps,
        step_error=step.verification.step_error,
        verified=verified,
        warnings=training.notes,
    )
