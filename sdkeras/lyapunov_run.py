"""Lyapunov exponents of training: joins the step's map, its trajectory and the estimator into one answer."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import keras
import numpy as np

from sdkeras import loading, registry
from sdkeras.dimension.lyapunov import lyapunov_dimension
from sdkeras.dimension.records import Warning
from sdkeras.errors import Interrupted, ModelError, SdkerasError
from sdkeras.operators import batches, update
from sdkeras.operators.base import Array
from sdkeras.operators.loss import EmpiricalLoss
from sdkeras.operators.training_flow import TrainingFlow
from sdkeras.operators.update_map import UpdateMap
from sdkeras.operators.update_rule import inner, is_function, loaded_clone, parts_of, replica
from sdkeras.provenance import loss_name, optimizer_info, provenance, with_loss
from sdkeras.records import LyapunovExponents, Progress
from sdkeras.reporting.schema import DataInfo, LyapunovRun, LyapunovSummary, ModelInfo, StepVerification

DEFAULT_EXPONENTS = 10
DEFAULT_STEPS = 1000
DEFAULT_TRANSIENT = 100
# Samples of the loss that the map is checked on; the trajectory draws from all of them.
_CHECKED_SAMPLES = 4096

# Halves of the run further apart than so many standard errors are told of: once in 16,000 runs by chance.
_DRIFT = 4.0
_FEWEST_BLOCKS = 8


@attrs.frozen(kw_only=True)
class LyapunovSettings:
    """How a trajectory is followed; see `lyapunov`."""

    num_exponents: int | None = None
    num_steps: int = DEFAULT_STEPS
    transient: int = DEFAULT_TRANSIENT
    seed: int = 0
    checkpoint: str | None = None
    checkpoint_interval: int = 100

    def __attrs_post_init__(self) -> None:
        least = {"num_exponents": 1, "num_steps": 1, "transient": 0, "seed": 0, "checkpoint_interval": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise SdkerasError(f"{name} is {value}; it must be at least {low}.")
        if self.checkpoint is not None:
            _check_folder(self.checkpoint)


def lyapunov(
    model: Any,
    data: Any,
    *,
    batch_size: int | None = None,
    num_exponents: int | None = None,
    num_steps: int = DEFAULT_STEPS,
    transient: int = DEFAULT_TRANSIENT,
    learning_rate: float | None = None,
    loss: Any = None,
    samples: int | None = None,
    dtype: str = "float32",
    product_mode: str = "auto",
    seed: int = 0,
    initial_slots: bool = False,
    allow_unverified: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_interval: int = 100,
    progress: Callable[[Progress], None] | None = None,
) -> LyapunovRun:
    """Leading Lyapunov exponents and D_s along real training steps from the model's state on.

    Training goes on, on copies, with the compiled optimizer; tangent vectors go along with it.

    Args:
        model: A `keras.Model`, compiled and trained for at least one step. It is not changed.
        data: (x, y[, sample_weight]), a batched `tf.data.Dataset`, or a `keras.utils.PyDataset`.
        batch_size: That of training; default 32, or a dataset's own.
        num_exponents: Exponents to compute; default 10, or all where the state has fewer.
        num_steps: Steps to average over.
        transient: Steps made before, and discarded.
        learning_rate: In place of the optimizer's, or of its schedule.
        loss: In place of the compiled one.
        samples: How much of an endless data set to read.
        dtype: 'float32' or 'float64'.
        product_mode: 'auto', 'reverse-over-reverse', 'forward-over-reverse' or 'finite-differences'.
        seed: Of minibatches, dropout masks and the first tangents.
        initial_slots: For an optimizer that has not trained yet: start with the slots it would start with.
        allow_unverified: Go on with a map that failed its verification.
        checkpoint: File to keep the run in and to go on from, bit for bit; the same file takes a finished run
            further with a larger num_steps.
        checkpoint_interval: Steps between two writings of it.
        progress: Called after every step.

    Returns:
        The answer. Ctrl-C finishes the step under way; the answer then holds the steps so far, with `partial` set.

    Raises:
        KeyboardInterrupt: Ctrl-C before anything was measured (the checkpoint is written).
        SdkerasError: Unusable model, data, options or checkpoint; see its subclasses.
    """
    started = time.monotonic()
    settings = LyapunovSettings(
        num_exponents=num_exponents,
        num_steps=num_steps,
        transient=transient,
        seed=seed,
        checkpoint=None if checkpoint is None else os.fspath(checkpoint),
        checkpoint_interval=checkpoint_interval,
    )
    if learning_rate is not None and not (np.isfinite(learning_rate) and learning_rate > 0):
        raise SdkerasError(f"learning_rate is {learning_rate!r}; it must be positive and finite.")
    if progress is not None:
        progress(Progress("reading the model and the data", 0))
    fitted = with_loss(model, loss, dtype)
    if isinstance(data, (tuple, list)) and len(data) in (2, 3):
        loading.check_data(fitted, *data)
    source = batches.as_source(
        data, batch_size=batch_size, default_batch_size=batches.DEFAULT_BATCH_SIZE, limit=samples
    )
    function = EmpiricalLoss(fitted, source, dtype=dtype, num_samples=_CHECKED_SAMPLES, seed=seed)
    notes = [Warning("data", f"{note}.") for note in function.notes]
    optimizer = training_optimizer(model, function, learning_rate, changed=fitted is not model, warnings=notes)
    used = update.read_settings(optimizer)
    if type(model).train_step not in (keras.Model.train_step, keras.Sequential.train_step):
        notes.append(
            Warning("train-step", "the model has its own train_step; the optimizer's step on compute_loss was taken.")
        )
    if used is not None and not used.iterations:
        notes.append(
            Warning(
                "initial-slots",
                f"the optimizer {used.name} has taken no step; the trajectory is the beginning of training, from the "
                "slots it starts with.",
            )
        )
    if progress is not None:
        progress(Progress("compiling and verifying the training step", 0))
    step = UpdateMap(
        function,
        optimizer,
        initial_slots=initial_slots,
        product_mode=product_mode,
        allow_unverified=allow_unverified,
    )
    followed = follow(step, settings, about=identity(optimizer, fitted), progress=progress)
    unconnected = function.engine(product_mode).unconnected
    return LyapunovRun(
        provenance=provenance(source, seed=seed, dtype=dtype, num_hvps=step.num_products, started=started),
        model=ModelInfo(
            name=str(model.name),
            num_parameters=function.size,
            num_trainable_analysed=function.size,
            mode="train",
            loss=loss_name(fitted.loss),
            unconnected=unconnected,
        ),
        data=DataInfo(source.num_samples, source.batch_size, function.num_examples),
        optimizer=optimizer_info(
            used,
            float("nan") if used is None or used.learning_rate is None else used.learning_rate,
            "file" if learning_rate is None else "given",
        ),
        verification=step.verification.hessian,
        lyapunov=followed.summary,
        warnings=(*notes, *followed.warnings),
        partial=followed.interrupted,
    )


@attrs.frozen
class Followed:
    """A trajectory's summary, what to know of it, and whether Ctrl-C ended it."""

    summary: LyapunovSummary
    warnings: tuple[Warning, ...]
    interrupted: bool


def follow(
    step: UpdateMap,
    settings: LyapunovSettings,
    *,
    about: Mapping[str, str],
    progress: Callable[[Progress], None] | None = None,
) -> Followed:
    """Exponents and D_s along the steps of a map from its own state on.

    Raises:
        KeyboardInterrupt: Ctrl-C before anything was measured.
        SdkerasError: More exponents than the state has, or a checkpoint of another run.
    """
    wanted = settings.num_exponents
    check_count(wanted, step)
    estimator = registry.get_estimator("lyapunov", "lyapunov-qr")(
        num_exponents=min(DEFAULT_EXPONENTS, step.size) if wanted is None else wanted,
        num_steps=settings.num_steps,
        transient=settings.transient,
        checkpoint=settings.checkpoint,
        checkpoint_interval=settings.checkpoint_interval,
    )
    flow = _Watched(TrainingFlow(step, about), step, settings, progress)
    with _deferred_interrupt(flow):
        try:
            exponents: LyapunovExponents = estimator.estimate(flow, seed=settings.seed)
        except Interrupted:
            raise KeyboardInterrupt from None
    unfinished = exponents.num_steps < settings.num_steps and exponents.stopped_at is None
    summary = _summary(exponents, step, settings)
    return Followed(summary, tuple(_warnings(summary, step)), flow.stopping and unfinished)


def check_count(wanted: int | None, step: UpdateMap) -> None:
    """Refuses more exponents than there are.

    Raises:
        SdkerasError: See above.
    """
    if wanted is not None and wanted > step.size:
        raise SdkerasError(
            f"num_exponents={wanted} exceeds the size of the state, {step.size} ({step.num_weights} weights and "
            f"{step.size - step.num_weights} slots); use num_exponents <= {step.size} ({step.size} gives all of them)."
        )


class _Watched:
    """A trajectory that tells after each step, and stops before the next when asked to: a `TangentFlow`."""

    def __init__(
        self,
        flow: TrainingFlow,
        step: UpdateMap,
        settings: LyapunovSettings,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.flow = flow
        self.map = step
        self.total = settings.transient + settings.num_steps
        self.progress = progress
        self.stopping = False
        self.size = flow.size
        self.dtype = flow.dtype

    def reset(self, seed: int) -> None:
        self.flow.reset(seed)

    def step(self, tangents: Array) -> Array:
        if self.stopping:
            raise Interrupted(f"interrupted after step {self.flow.index} of the trajectory.")
        moved = self.flow.step(tangents)
        if self.progress is not None:
            stage = f"training step {self.flow.index:,} of {self.total:,}"
            self.progress(Progress(stage, self.map.num_products))
        return moved

    def state(self) -> Any:
        return self.flow.state()

    def restore(self, state: Any) -> None:
        self.flow.restore(state)


@contextlib.contextmanager
def _deferred_interrupt(flow: _Watched) -> Iterator[None]:
    """While it lasts the first Ctrl-C stops the flow before its next step; the second acts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # where signals cannot be taken over
        return
    before = signal.getsignal(signal.SIGINT)

    def stop(*_: Any) -> None:
        flow.stopping = True
        signal.signal(signal.SIGINT, before)

    if before is None:  # not set from Python
        yield
        return
    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _summary(exponents: LyapunovExponents, step: UpdateMap, settings: LyapunovSettings) -> LyapunovSummary:
    checked = step.verification
    empty = np.zeros((0, len(exponents.values)))
    return LyapunovSummary(
        values=exponents.values,
        stderr=exponents.stderr,
        rounding=exponents.rounding,
        num_resolved=exponents.num_resolved,
        history=tuple(np.ascontiguousarray((exponents.history if exponents.history.size else empty).T)),
        block_size=exponents.block_size,
        num_steps=exponents.num_steps,
        num_steps_asked=settings.num_steps,
        transient=exponents.transient,
        stopped_at=exponents.stopped_at,
        log_det=exponents.log_det,
        dimension=lyapunov_dimension(exponents, step.size),
        num_weights=step.num_weights,
        verification=StepVerification(
            step_error=checked.step_error,
            finite_difference_error=checked.finite_difference_error,
            checked=checked.checked,
            jvp_relative_error=checked.jvp_relative_error,
            adjoint_error=checked.adjoint_error,
            passed=checked.passed,
            details=checked.details,
        ),
    )


def _warnings(found: LyapunovSummary, step: UpdateMap) -> Iterator[Warning]:
    check = step.verification
    if not check.passed:
        yield Warning(
            "unverified",
            f"the training step FAILED its verification (step error {check.step_error:.2g}, error "
            f"{check.finite_difference_error:.2g} against finite differences) and was used all the same: no exponent "
            "here can be trusted.",
        )
    if found.stopped_at is not None:
        yield Warning(
            "diverged",
            f"the trajectory diverged at step {found.stopped_at:,}: NaN or infinity. The exponents are means over the "
            f"{found.num_steps:,} steps before it and describe no attractor.",
        )
    if found.num_resolved is not None and found.num_resolved < len(found.values):
        yield Warning(
            "rounding",
            f"exponents {found.num_resolved + 1} to {len(found.values)} are upper ends: at some step their growth was "
            "below what the precision resolves beside the largest (--dtype float64 resolves more).",
        )
    drift = _drift(found)
    if drift is not None:
        yield Warning(
            "drifting",
            f"ell_1 was {drift[0]:.3g} over the first half of the steps and {drift[1]:.3g} over the second, further "
            "apart than their standard errors explain: training has not come to its attractor. Discard a longer "
            "transient.",
        )
    yield from (Warning(code, words) for code, words in step.notes)


def _drift(found: LyapunovSummary) -> tuple[float, float] | None:
    """Means of ell_1 over both halves of the steps where they differ, else None."""
    counts = np.arange(1.0, len(found.history[0]) + 1)
    blocks = np.diff(counts * found.history[0], prepend=0.0)
    half = len(blocks) // 2
    if half < _FEWEST_BLOCKS:
        return None
    first, second = blocks[:half], blocks[half:]
    variance = np.var(first, ddof=1) / len(first) + np.var(second, ddof=1) / len(second)
    apart = float(abs(first.mean() - second.mean()))
    if apart <= _DRIFT * float(np.sqrt(variance)) + 1e-6 * float(abs(found.values[0])):
        return None
    return float(first.mean()), float(second.mean())


# The optimizer


def training_optimizer(
    model: Any, loss: EmpiricalLoss, rate: float | None, *, changed: bool, warnings: list[Warning]
) -> Any:
    """The model's optimizer, or a copy of it with another learning rate or for the copy of the model.

    Raises:
        ModelError: There is none, or the rate cannot be replaced.
    """
    own = getattr(model, "optimizer", None)
    if own is None:
        if rate is None:
            raise ModelError("the learning rate is unknown; give it (--learning-rate F).")
        warnings.append(Warning("plain-sgd", "no optimizer is known; steps of plain SGD were taken."))
        return keras.optimizers.SGD(rate)
    own = inner(own)
    if rate is None and not changed:
        return own
    if own.built:
        own = loaded_clone(own, [replica(variable) for variable in loss.variables])
    else:
        own = type(own).from_config(own.get_config())
    if rate is not None:
        _set_rate(own, rate)
    return own


def _set_rate(optimizer: Any, rate: float) -> None:
    """Another learning rate for an optimizer of our own.

    Raises:
        ModelError: It has several.
    """
    if len(parts_of(optimizer)) > 1:
        raise ModelError(
            f"the optimizer {type(optimizer).__name__} has several learning rates; set them in the model and save it "
            "again, without --learning-rate."
        )
    held = getattr(optimizer, "_learning_rate", None)
    if isinstance(held, keras.optimizers.schedules.LearningRateSchedule) or is_function(held):
        # A schedule that stays: 1 to any power is 1.
        optimizer.learning_rate = keras.optimizers.schedules.ExponentialDecay(rate, 1, 1.0)
    else:
        optimizer.learning_rate = rate


def identity(optimizer: Any, model: Any) -> dict[str, str]:
    """What two runs must share, beside state and data, to be of one trajectory."""
    own = inner(optimizer)
    settings = json.dumps(own.get_config(), sort_keys=True, default=lambda value: type(value).__name__)
    return {"loss": loss_name(model.loss), "optimizer": f"{type(own).__name__} {settings}"}


def _check_folder(checkpoint: str) -> None:
    """Refuses a checkpoint that could not be written, before the work.

    Raises:
        SdkerasError: See above.
    """
    target = Path(checkpoint)
    if not checkpoint or target.is_dir() or not target.parent.is_dir() or not os.access(target.parent, os.W_OK):
        raise SdkerasError(
            f"the checkpoint {checkpoint!r} cannot be written there; give the name of a file in a folder that exists."
        )
