"""The critical learning rate: how far along the optimizer's own update the loss first rises, by forward passes."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import attrs
import numpy as np

from sdkeras.dimension.critical import FirstRise, first_rise, median_interval
from sdkeras.errors import ModelError, counted
from sdkeras.files.keras_types import Data, Model
from sdkeras.linalg.memory import peak_memory
from sdkeras.operators.batch_loss import Batch
from sdkeras.operators.loss import EmpiricalLoss
from sdkeras.results.answers import CriticalRun
from sdkeras.results.critical import CriticalStep
from sdkeras.results.measured import Measured
from sdkeras.results.note import Note
from sdkeras.results.plans import LossPlan
from sdkeras.results.progress import INTERRUPT, STATUS, Progress
from sdkeras.runs.budget import Meter, Notes, resources, room_to_verify, whole_budget
from sdkeras.runs.declare import takes_options
from sdkeras.runs.loss_options import CriticalOptions
from sdkeras.runs.lyapunov import Training, read_training
from sdkeras.runs.plan import timed_gradient
from sdkeras.runs.provenance import data_info, provenance
from sdkeras.training_step.map import state_size
from sdkeras.training_step.update import Update, stored_update

# Losses that a search takes about: one before, some doublings, and bisections of a bracket as wide as its lower end.
_DOUBLINGS = 4
# A forward pass in gradients.
_FORWARD = 0.4
# Share of an update, by its length, that may be the rounding of the weights.
_LOST = 0.3
# Relative rounding of activations in bfloat16.
_BFLOAT16 = 2.0**-8


@attrs.frozen
class _Rise:
    """A search and the loss and slope that it starts from."""

    found: FirstRise
    loss: float
    slope: float


@takes_options(CriticalOptions)
def critical(model: Model, data: Data, options: CriticalOptions) -> CriticalRun:
    """Critical learning rate eta_c and critical sharpness 2/eta_c along the optimizer's own next update.

    eta_c is the smallest rate at which the loss after the step exceeds the loss before it. The step is the update that
    the optimizer takes from its stored slots, with clipping and weight decay, as a whole times rate/(rate in use): a
    velocity or a second moment stays as it is. About ten forward passes (more where the rate in use is far off, one for
    each factor of 2) and one gradient, no second derivatives. In memory are three copies of weights and slots while the
    update is made, and then the weights, the update and their sum. Masks of dropout and batch statistics are those of
    the batch, the same before and after.

    - Plain SGD on a quadratic: 2/eta_c = g'Hg/g'g, the curvature along the gradient, at most the largest eigenvalue.
      At the edge of stability, where gradient and top eigenvector align, it comes close to it.
    - Momentum: the update u mixes earlier gradients, and 2/eta_c = u'Hu/(-g'u) * 1/rate. A ratio above 1 says that
      this step raises the loss, as oscillating momentum does now and then within its threshold 2 (1+beta)/eta.
    - Adam and its kin: the same quotient with their preconditioned update, to be compared with eigenvalues of
      P^-1 H, not of H.
    - Weight decay apart from the loss is in the update: where it outweighs the gradient the loss rises at any rate.

    The search doubles or halves the update from the one in use until the loss after it has risen on one side only, and
    bisects; the bracket is the error bar, widened by what the loss is rounded to. A rise and fall between two powers
    of 2 times the rate in use is not seen. NaN and infinity count as a rise.

    Args:
        model: A `keras.Model`, compiled and trained for at least one step. It is not changed.
        data: (x, y[, sample_weight]), a batched `tf.data.Dataset`, or a `keras.utils.PyDataset`.
        options: {options}

    Returns:
        The answer. Ctrl-C finishes the minibatch under way; the answer then holds the minibatches so far.

    Raises:
        KeyboardInterrupt: Ctrl-C before anything was measured.
        SdkerasError: Unusable model, data or options; see its subclasses.

    Reference: Kalra et al. (2026), arXiv 2601.16979.
    """
    started = time.monotonic()
    tell = options.tell or (lambda _: None)
    tell(Progress("reading the model and the data", 0))
    training = read_training(model, data, options, num_samples=options.samples)
    loss, rate = training.loss, training.optimizer_info().learning_rate
    with loss.devices.scope():
        update = stored_update(
            loss,
            training.optimizer,
            initial_slots=options.initial_slots,
            allow_unverified=options.allow_unverified,
            memory=room_to_verify(options.memory_gb, loss.devices),
        )
        budget = whole_budget(resources(loss.size, loss.dtype.itemsize, memory_gb=None, workers=1), Meter())
        with budget.interruptible():
            rises: list[_Rise] = []
            for index in range(options.minibatches or 1):
                if budget.interrupted:
                    break
                of = "all the data" if options.minibatches is None else f"minibatch {index + 1:,}"
                tell(Progress(f"critical learning rate, {of}", 0))
                batches = loss.batches if options.minibatches is None else update.on_minibatch(loss, index)
                rises.append(_searched(update, loss, batches, options.tolerance, rate))
        if not rises:
            raise KeyboardInterrupt
    partial = options.minibatches is not None and len(rises) < options.minibatches
    summary = _summary(rises, rate if rate > 0 else math.nan, options, update)
    return CriticalRun(
        provenance=provenance(loss, seed=options.seed, num_hvps=0, started=started),
        model=training.model_info(loss.gradients.unconnected),
        data=data_info(loss),
        optimizer=training.optimizer_info(),
        critical=summary,
        warnings=(*training.notes, *_caveats(rises, summary, update, training)),
        partial=partial,
        status=STATUS[INTERRUPT if partial else ""],
    )


@takes_options(CriticalOptions)
def plan(model: Model, data: Data, options: CriticalOptions) -> LossPlan:
    """Cost of `critical` with the same arguments, from one timed gradient; computes nothing else."""
    training = read_training(model, data, options, num_samples=options.samples)
    loss = training.loss
    first = loss.batches[0] if options.minibatches is None else loss.minibatch(0)
    gradient, activations, _ = timed_gradient(loss, first)
    passes = 1 if options.minibatches is None else options.minibatches
    batches = len(loss.batches) if options.minibatches is None else 1
    losses = 2 + _DOUBLINGS + math.ceil(-math.log2(options.tolerance))
    state = state_size(loss, training.optimizer, initial_slots=options.initial_slots)
    return LossPlan(
        num_parameters=loss.size,
        state_size=state,
        num_hvps=0,
        peak_memory=int(peak_memory() + activations + (3 * state + 3 * loss.size) * loss.dtype.itemsize),
        seconds=passes * batches * gradient * (1 + _FORWARD * losses),
        seconds_per_gradient=gradient,
        optimizer=training.optimizer_info(),
        data=data_info(loss),
        num_evaluations=passes * losses,
        num_batches=batches,
        num_gradients=passes,
        what="the critical learning rate"
        + ("" if options.minibatches is None else f" of {options.minibatches:,} minibatches"),
    )


def _searched(update: Update, loss: EmpiricalLoss, batches: Sequence[Batch], tolerance: float, rate: float) -> _Rise:
    direction, point = update.along(batches), update.step.point
    if direction.rounding > _LOST:
        raise ModelError(
            f"at the learning rate {rate:.3g} the optimizer's update is lost in the rounding of the weights to "
            f"{loss.dtype}; take `dtype='float64'` or a larger `learning_rate`."
        )
    before = loss.value_on(batches, point)
    rounding = float(np.finfo(loss.dtype).eps)
    if loss.function.is_mixed:
        rounding = max(rounding, _BFLOAT16)  # that of the weights is the same for all examples

    def loss_at(factor: float) -> float:
        return loss.value_on(batches, point + factor * direction.update)

    found = first_rise(loss_at, before, direction.slope, tolerance=tolerance, rounding=rounding)
    return _Rise(found, before, direction.slope)


def _summary(rises: Sequence[_Rise], rate: float, options: CriticalOptions, update: Update) -> CriticalStep:
    """The answer of one search, or the median of those over minibatches that moved."""
    moved = sorted((rise.found for rise in rises if rise.found.outcome != "no step"), key=lambda each: each.factor)
    outcome, factor, bracket, tolerance = "no step", math.nan, None, options.tolerance
    if moved:
        middle = moved[(len(moved) - 1) // 2 : len(moved) // 2 + 1]
        factor = float(np.mean([each.factor for each in middle]))
        outcome = next((each.outcome for each in middle if each.outcome != "measured"), "measured")
        bracket = moved[0].bracket
    if options.minibatches is not None:
        bracket = median_interval([each.factor for each in moved])
    exact = outcome == "measured" and not (options.minibatches is None and moved[0].is_rounded)
    ratios = np.array([1 / rise.found.factor if rise.found.factor > 0 else math.nan for rise in rises])
    quartiles = None
    if options.minibatches is not None and len(moved) >= 4:
        upside_down = np.quantile([each.factor for each in moved], (0.75, 0.25))
        quartiles = tuple(1 / each if each > 0 else math.inf for each in upside_down)

    def measured(value: float, ends: tuple[float, float] | None) -> Measured | None:
        if not math.isfinite(value):
            return None
        return Measured(value, exact, interval=None if ends is None or not np.all(np.isfinite(ends)) else ends)

    def inverse(scale: float) -> Measured | None:
        if not factor > 0:
            return None
        ends = None if bracket is None or not bracket[0] > 0 else (scale / bracket[1], scale / bracket[0])
        return measured(scale / factor, ends)

    return CriticalStep(
        learning_rate=measured(factor * rate, None if bracket is None else (bracket[0] * rate, bracket[1] * rate)),
        sharpness=inverse(2 / rate),
        ratio=inverse(1.0),
        outcome=outcome,
        loss=float(np.mean([rise.loss for rise in rises])),
        slope=float(np.mean([rise.slope for rise in rises])),
        tolerance=tolerance,
        num_evaluations=sum(1 + len(rise.found.factors) for rise in rises),
        num_minibatches=None if options.minibatches is None else len(rises),
        ratios=None if options.minibatches is None else ratios,
        quartiles=quartiles,
        num_ascents=sum(rise.found.outcome == "ascent" for rise in rises),
        factors=rises[0].found.factors,
        losses=rises[0].found.losses,
        step_error=update.step_error,
        verified=update.verified,
    )


def _caveats(rises: Sequence[_Rise], summary: CriticalStep, update: Update, training: Training) -> Notes:
    notes = []
    if update.step_error is None:
        words = f"the update was not compared with one step of the optimizer itself: {update.unchecked}."
        notes.append(Note("unchecked-step", words))
    rounded = sum(rise.found.is_rounded for rise in rises)
    if rounded:
        words = (
            "the loss after the step is rounded more coarsely than the tolerance asks for; the bracket is widened by it"
        )
        words += "" if training.loss.dtype == np.float64 else " (`dtype='float64'` resolves more)"
        notes.append(Note("rounding", f"{words}."))
    still = sum(rise.found.outcome == "no step" for rise in rises)
    if still and len(rises) > 1:
        notes.append(Note("no-step", f"{still:,} of {len(rises):,} minibatches move nothing and are left out."))
    if training.loss.function.is_random:
        words = "the model draws at random in training mode: the same draw of each batch before and after the step."
        notes.append(Note("held-fixed", words))
    if summary.num_minibatches is not None and summary.num_minibatches < 6:
        few = counted(summary.num_minibatches, "minibatch", "minibatches")
        words = f"{few}: the median has no interval, which needs six."
        notes.append(Note("few-minibatches", words))
    return tuple(notes)
