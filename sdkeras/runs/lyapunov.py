"""Lyapunov exponents of training: joins the step's map, its trajectory and the estimator into one answer."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence

import attrs
import numpy as np

from sdkeras import seeds
from sdkeras.dimension import forks
from sdkeras.dimension.lyapunov import lyapunov_dimension
from sdkeras.dimension.same_steps import SameSteps, over_same_steps
from sdkeras.errors import Interrupted, SdkerasError
from sdkeras.estimators.select import estimate
from sdkeras.files.archive import Nested
from sdkeras.files.keras_types import Data, Model, Optimizer
from sdkeras.operators.loss import EmpiricalLoss
from sdkeras.operators.modes import Jit
from sdkeras.results.answers import LyapunovRun, OptimizerInfo
from sdkeras.results.arrays import Array, FloatArray, Value
from sdkeras.results.estimates import LyapunovExponents
from sdkeras.results.lyapunov import LyapunovDimension, LyapunovSummary
from sdkeras.results.note import Note
from sdkeras.results.plans import LyapunovPlan
from sdkeras.results.progress import INTERRUPT, PRODUCTS, STATUS, TIME, Progress
from sdkeras.results.verification import StepVerification
from sdkeras.runs import losses
from sdkeras.runs.budget import Budget, Meter, Notes, resources, whole_budget
from sdkeras.runs.declare import parse_learning_rate, takes_options
from sdkeras.runs.lyapunov_options import LyapunovOptions
from sdkeras.runs.options import TrainingOptions
from sdkeras.runs.plan import planned_trajectory
from sdkeras.runs.problem import Subject, read_subject
from sdkeras.runs.provenance import data_info, optimizer_info, provenance
from sdkeras.training_step import settings as update
from sdkeras.training_step.coordinates import training_coordinates
from sdkeras.training_step.flow import DenseFlow, TrainingFlow
from sdkeras.training_step.map import UpdateMap, state_size

# Samples of the loss that the map is checked on; the trajectory draws from all of them.
_CHECKED_SAMPLES = 4096

# Halves of the run further apart than this many standard errors are reported: once in 16,000 runs by chance.
_DRIFT = 4.0
_FEWEST_BLOCKS = 8


@takes_options(LyapunovOptions)
def lyapunov(model: Model, data: Data, options: LyapunovOptions) -> LyapunovRun:
    """Leading Lyapunov exponents and D_s along real training steps from the model's state.

    Training continues, on copies, with the compiled optimizer; tangent vectors are carried along.

    With `windows` the dense Jacobians of the num_steps steps are kept, and SD, SD^(m) for each m and D_s come from the
    same steps, in the same coordinates: D_s <= SD^(m) <= SD.

    With `forks` several trajectories start there, each with minibatches of its own, and the exponents are means over
    all of them: split R-hat tells whether they are samples of one distribution, their effective number of steps the
    standard errors, and a second start frame over the steps of the first the error of alignment.

    Args:
        model: A `keras.Model`, compiled and trained for at least one step. It is not changed.
        data: (x, y[, sample_weight]), a batched `tf.data.Dataset`, or a `keras.utils.PyDataset`.
        options: {options}

    Returns:
        The answer. Ctrl-C finishes the step under way; the answer then holds the steps so far, with `partial` set.

    Raises:
        KeyboardInterrupt: Ctrl-C before anything was measured (the checkpoint is written).
        Interrupted: The time limit ended it before anything was measured.
        SdkerasError: Unusable model, data, options or checkpoint; see its subclasses.
    """
    started = time.monotonic()
    if options.tell is not None:
        options.tell(Progress("reading the model and the data", 0))
    training = read_training(model, data, options, num_steps=options.transient + options.num_steps, jit=options.jit)
    with training.loss.devices.scope():
        return _lyapunov(training, options, started)


def _lyapunov(training: Training, options: LyapunovOptions, started: float) -> LyapunovRun:
    loss, tell = training.loss, options.tell or (lambda _: None)
    _check_forks(loss, options)
    if options.windows:
        _checked_size(training, options)
    tell(Progress("compiling and verifying the training step", 0))
    step = UpdateMap(
        loss,
        training.optimizer,
        initial_slots=options.initial_slots,
        product_mode=options.product_mode,
        allow_unverified=options.allow_unverified,
    )
    about = identity(training.optimizer, training.model, training.function_words)
    deadline = None if options.time_limit is None else started + options.time_limit
    budget = budget_of(step, Meter(lambda: step.num_products, options.tell, deadline=deadline))
    try:
        followed = follow(step, options, about=about, budget=budget)
    except Interrupted:
        if budget.interrupted:
            raise KeyboardInterrupt from None
        raise
    return LyapunovRun(
        provenance=provenance(loss, seed=options.seed, num_hvps=budget.spent, started=started),
        model=training.model_info(loss.engine(options.product_mode).unconnected),
        data=data_info(loss),
        optimizer=training.optimizer_info(),
        verification=step.verification.hessian,
        lyapunov=followed.summary,
        warnings=(*training.notes, *followed.warnings),
        partial=followed.interrupted or followed.timed_out,
        status=STATUS[INTERRUPT if followed.interrupted else budget.limit() if followed.timed_out else ""],
    )


@takes_options(LyapunovOptions)
def plan(model: Model, data: Data, options: LyapunovOptions) -> LyapunovPlan:
    """Steps and cost of `lyapunov` with the same arguments, from one timed gradient; computes nothing else."""
    training = read_training(model, data, options, num_steps=options.transient + options.num_steps, jit=options.jit)
    _check_forks(training.loss, options)
    return attrs.evolve(
        planned_trajectory(training.loss, _checked_size(training, options), options),
        optimizer=training.optimizer_info(),
        data=data_info(training.loss),
    )


@attrs.frozen(kw_only=True, eq=False)
class Training(Subject):
    """The training to follow: its loss, the optimizer as its steps use it and its settings, with caveats."""

    optimizer: Optimizer
    used: update.OptimizerSettings | None
    notes: Notes

    def optimizer_info(self) -> OptimizerInfo:
        """The optimizer for a report."""
        rate = None if self.used is None else self.used.learning_rate
        asked = self.options.learning_rate
        source = "file" if asked is None else parse_learning_rate(asked)
        return optimizer_info(
            self.used, float("nan") if rate is None else rate, source if isinstance(source, str) else "given"
        )


def read_training(
    model: Model,
    data: Data,
    options: TrainingOptions,
    *,
    num_steps: int = 1,
    jit: Jit = "auto",
    num_samples: int | None = _CHECKED_SAMPLES,
) -> Training:
    """Reads and checks model, data and optimizer; makes no product yet. The loss is of `num_samples`, or of all data.

    Raises:
        SdkerasError: They are unusable, or the learning rate is 0 at all of the steps; see its subclasses.
    """
    subject, about_file = read_subject(model, data, options, num_samples=num_samples, jit=jit)
    optimizer, about_optimizer = subject.training_optimizer()
    notes = [*about_file, *(Note("data", f"{note}.") for note in subject.loss.notes), *about_optimizer]
    update.check_rates(optimizer, num_steps)
    used = update.read_settings(optimizer)
    if subject.has_own_step:
        notes.append(
            Note("train-step", "the model has its own train_step; the optimizer's step on compute_loss was taken.")
        )
    if used is not None and not used.iterations:
        notes.append(
            Note(
                "initial-slots",
                f"the optimizer {used.name} has taken no step; its steps here are the beginning of training, from the "
                "slots it starts with.",
            )
        )
    return Training(**attrs.asdict(subject, recurse=False), optimizer=optimizer, used=used, notes=tuple(notes))


def _checked_size(training: Training, options: LyapunovOptions) -> int:
    """The state's size; refused where windows over dense Jacobians of it cannot be had."""
    size = state_size(training.loss, training.optimizer, initial_slots=options.initial_slots)
    options.check_dense(size, training.loss.dtype.itemsize)
    return size


def _check_forks(loss: EmpiricalLoss, options: LyapunovOptions) -> None:
    """Refuses forks of a training that has nothing random in it: they would be one trajectory."""
    source = loss.source
    only_one = source.num_samples == source.batch_size or source.batch_ranges is not None
    if options.forks > 1 and source.minibatches_per_epoch == 1 and only_one and not loss.function.is_random:
        raise SdkerasError(
            f"forks is {options.forks}, but every step is on the same {source.batch_size:,} samples, with nothing "
            "random: all would be the same trajectory. Leave forks out, or give the batch size of the training."
        )


@attrs.frozen
class Followed:
    """A trajectory's summary, its caveats, and whether Ctrl-C or the time limit ended it."""

    summary: LyapunovSummary
    warnings: Notes
    interrupted: bool
    timed_out: bool


def follow(step: UpdateMap, settings: LyapunovOptions, *, about: Mapping[str, str], budget: Budget) -> Followed:
    """Exponents and D_s along the steps of a map, from its own state.

    Args:
        step: The map.
        settings: Options of the trajectory.
        about: Identity of the trajectory, see `TrainingFlow`.
        budget: No step begins without room for it; updated after every step.

    Raises:
        Interrupted: The budget ended before anything was measured.
        SdkerasError: More exponents than the state has, Jacobians that do not fit the memory, or a checkpoint of
            another run.
    """
    settings.check_exponents(step.size, step.num_weights)
    settings.check_dense(step.size, step.dtype.itemsize)
    count = settings.exponents_of(step.size)
    if settings.forks > 1:
        with budget.interruptible():
            return _follow_forks(step, settings, about, budget, count)
    estimator = settings.configured_estimator(count, _steps_per_epoch(step))
    flow, dense = _Watched(step, about, settings.transient + settings.num_steps, count, budget), None
    if settings.windows:
        coordinates = training_coordinates(step)
        dense = DenseFlow(flow, coordinates, transient=settings.transient, num_steps=settings.num_steps)
    with budget.interruptible():
        try:
            exponents: LyapunovExponents = estimate(estimator, dense or flow, settings.seed)
        except Interrupted:
            raise Interrupted(_too_early(flow, settings)) from None
    same = None
    if dense is not None:
        same = _over_same_steps(dense, exponents, settings, budget)
    summary = _summary(exponents, step, settings, same, None if dense is None else dense.coordinates.name)
    cut = dense is not None and same is None
    unfinished = exponents.num_steps < settings.num_steps and exponents.stopped_at is None
    limit = flow.reason if unfinished and flow.reason in (TIME, PRODUCTS) else ""
    return Followed(
        summary,
        tuple(_caveats(summary, step, settings, cut=cut, limit=limit)),
        interrupted=cut or (flow.reason == INTERRUPT and unfinished),
        timed_out=bool(limit),
    )


def _steps_per_epoch(step: UpdateMap) -> int:
    """Steps after which training has seen every minibatch equally often: with accumulation of several epochs."""
    minibatches = step.loss.source.minibatches_per_epoch
    return minibatches // math.gcd(minibatches, step.microbatches)


def _too_early(flow: _Watched, settings: LyapunovOptions) -> str:
    more = "seconds (`time_limit`)" if flow.reason == TIME else "Hessian-vector products (`max_hvps`)"
    discarded, shorter = "", ""
    if settings.transient:
        discarded, shorter = f" (the first {settings.transient:,} are discarded)", ", or a shorter transient"
    return (
        f"{flow.reason} ended it after step {flow.index:,}, before a step was measured{discarded}; give more "
        f"{more}{shorter}."
    )


def _follow_forks(
    step: UpdateMap, settings: LyapunovOptions, about: Mapping[str, str], budget: Budget, count: int
) -> Followed:
    """Exponents and D_s over several trajectories; see `_walked`.

    Raises:
        Interrupted: The budget ended before a step of the first was measured.
    """
    runs: list[LyapunovExponents] = []
    second_frame, limit = None, ""
    for index in range(settings.num_followed):
        share = budget.part(1 / (settings.num_followed - index))
        exponents, reason = _walked(index, step, settings, about, share, count)
        if exponents is None and not runs:
            raise Interrupted(reason)
        limit = limit or (reason if reason in (TIME, PRODUCTS) else "")
        if index == settings.forks:
            second_frame = exponents
        elif exponents is not None:
            runs.append(exponents)
        if budget.interrupted:
            break
    pooled = forks.forked(runs, second_frame)
    exponents, logs = (runs[0], None) if pooled is None else pooled
    summary = _summary(exponents, step, settings, None, None, logs)
    notes = (*_caveats(summary, step, settings, cut=False, limit=limit), *_missing_forks(runs, logs, settings.forks))
    return Followed(summary, notes, interrupted=budget.interrupted, timed_out=bool(limit))


def _walked(
    index: int, step: UpdateMap, settings: LyapunovOptions, about: Mapping[str, str], budget: Budget, count: int
) -> tuple[LyapunovExponents | None, str]:
    """One of the trajectories with its checkpoint, and why it ended early: the first has the seed of a run without
    forks, the last is the first once more, with another start frame.

    Without a measured step there are no exponents, and the first says in a sentence why.
    """
    is_frame = index == settings.forks
    name = f"fork {index + 1} of {settings.forks}" if not is_frame else "second frame of fork 1"
    place, seed = settings.checkpoint, settings.seed
    if index > 0:
        seed = seeds.seed_of_run(settings.seed, 0 if is_frame else index, probe=int(is_frame))
        place = None if place is None else f"{place}.{'frame2' if is_frame else f'fork{index + 1}'}"
    num_steps = settings.transient + settings.num_steps
    steps_of = settings.seed if is_frame else None
    flow = _Watched(step, about, num_steps, count, budget, name=f"{name}, ", seed=steps_of)
    try:
        estimator = attrs.evolve(settings, checkpoint=place).configured_estimator(count, _steps_per_epoch(step))
        exponents: LyapunovExponents = estimate(estimator, flow, seed)
    except Interrupted:
        return None, flow.reason if index else _too_early(flow, settings)
    is_whole = exponents.num_steps >= settings.num_steps or exponents.stopped_at is not None
    return exponents, "" if is_whole else flow.reason


def _missing_forks(runs: Sequence[LyapunovExponents], logs: forks.ForkedLogs | None, asked: int) -> Iterator[Note]:
    """Caveats on forks that ended early."""
    if logs is None:
        yield Note(
            "too-few-forks",
            f"{len(runs)} of {asked} forks have steps, and {forks.FEWEST_FORKS} with several are needed: the exponents "
            "are those of the first, with errors from its blocks, and nothing is known of R-hat.",
        )
    elif len(logs.logs) < asked:
        yield Note("forks-left-out", f"the numbers are of {len(logs.logs)} of {asked} forks: the others ended early.")
    if logs is not None and logs.frames is None:
        yield Note("no-second-frame", "there was no room for a second start frame: errors have no part for alignment.")


def budget_of(step: UpdateMap, meter: Meter) -> Budget:
    """The budget of a trajectory on its own."""
    return whole_budget(resources(step.size, step.dtype.itemsize, memory_gb=None, workers=1), meter)


def limit_code(limit: str) -> str:
    """Code of the warning about the limit that ended a trajectory."""
    return "time-limit" if limit == TIME else "limit-on-products"


def _over_same_steps(
    dense: DenseFlow, exponents: LyapunovExponents, settings: LyapunovOptions, budget: Budget
) -> SameSteps | None:
    """Dimensions of the kept steps; None if Ctrl-C came meanwhile: one that ended the trajectory does not count."""
    comparable = _comparable(exponents, settings) and exponents.num_steps <= dense.num_kept
    count = exponents.num_steps if comparable else dense.num_kept
    watched = attrs.evolve(budget, meter=Meter())
    with watched.interruptible():
        try:
            budget.tell("singular values of the steps and of their products")
            jacobians = _UntilInterrupted(dense.jacobians[:count], watched)
            return over_same_steps(jacobians, exponents, settings.windows, comparable=comparable)
        except Interrupted:
            return None


@attrs.frozen(eq=False)
class _UntilInterrupted(Sequence[Array]):
    """Jacobians that cannot be read after Ctrl-C: Interrupted is raised instead."""

    jacobians: Array
    budget: Budget

    def __len__(self) -> int:
        return len(self.jacobians)

    def __getitem__(self, index: Value) -> Value:
        if self.budget.interrupted:
            raise Interrupted("interrupted among the singular values.")
        return self.jacobians[index]


def _comparable(measured: LyapunovExponents | LyapunovSummary, settings: LyapunovOptions) -> bool:
    """Whether the exponents are over the steps after the transient, as the kept Jacobians are."""
    return measured.transient == settings.transient and measured.num_steps <= settings.num_steps


class _Watched(TrainingFlow):
    """Training's flow, which tells after each step, and stops before the next where the budget has no room.

    `reason` says why it stopped, "" while it goes on. Where it goes on from a saved state, the products until there
    count as spent. `name` comes before what it tells; with a `seed` of its own the steps are those of that seed,
    whatever the estimator's.
    """

    def __init__(
        self,
        step: UpdateMap,
        about: Mapping[str, str],
        num_steps: int,
        num_tangents: int,
        budget: Budget,
        *,
        name: str = "",
        seed: int | None = None,
    ) -> None:
        self.name, self.seed = name, seed
        super().__init__(step, about)
        self.products, self.num_steps, self.num_tangents = step.microbatches, num_steps, num_tangents
        self.budget, self.reason = budget, ""

    def reset(self, seed: int) -> None:
        super().reset(seed if self.seed is None else self.seed)

    def restore(self, state: Nested) -> None:
        super().restore(state)
        self.budget.meter.replayed += self.index * self.num_tangents * self.products

    def step(self, tangents: Array) -> Array:
        self.reason = self.reason or self.budget.stop(tangents.shape[1] * self.products)
        if self.reason:
            raise Interrupted(f"interrupted after step {self.index} of the trajectory.")
        moved = super().step(tangents)
        self.budget.tell(f"{self.name}training step {self.index:,} of {self.num_steps:,}")
        return moved


def _summary(
    exponents: LyapunovExponents,
    step: UpdateMap,
    settings: LyapunovOptions,
    same: SameSteps | None,
    coordinates: str | None,
    logs: forks.ForkedLogs | None = None,
) -> LyapunovSummary:
    dimension: LyapunovDimension = (
        lyapunov_dimension(exponents, step.size, forks=logs) if same is None else same.lyapunov
    )
    history = exponents.history if exponents.history.size else np.zeros((0, len(exponents.values)))
    return LyapunovSummary(
        values=exponents.values,
        stderr=exponents.stderr,
        rounding=exponents.rounding,
        num_resolved=exponents.num_resolved,
        history=tuple(np.ascontiguousarray(history.T)),
        block_size=exponents.block_size,
        num_steps=exponents.num_steps,
        num_steps_asked=settings.num_steps,
        transient=exponents.transient,
        stopped_at=exponents.stopped_at,
        log_det=exponents.log_det if same is None or same.log_det is None else same.log_det,
        log_det_stderr=None if same is None else same.log_det_stderr,
        dimension=dimension,
        num_weights=step.num_weights,
        verification=StepVerification(
            **{field.name: getattr(step.verification, field.name) for field in attrs.fields(StepVerification)}
        ),
        windows=() if same is None else same.windows,
        sharpest=None if same is None else same.sharpest,
        coordinates=coordinates,
        estimator=settings.estimator,
        effective_samples=effective_samples(exponents) if logs is None else None,
        forks=None if logs is None else forks.evidence(logs, dimension),
    )


def effective_samples(exponents: LyapunovExponents) -> FloatArray | None:
    """Effective number of independent blocks of steps behind each exponent, shape [k]; None below 8 blocks.

    NaN where the means do not vary. With blocks of one step it counts steps. It exceeds the number of blocks where
    successive ones are anti-correlated; see `sdkeras.dimension.forks.effective_size`.
    """
    means = exponents.block_means
    return None if len(means) < _FEWEST_BLOCKS else forks.effective_size(means)


def _caveats(
    summary: LyapunovSummary, step: UpdateMap, settings: LyapunovOptions, *, cut: bool, limit: str
) -> Iterator[Note]:
    """Caveats on the exponents, then on the windows, which Ctrl-C may have `cut`, then on the `limit` that ended it."""
    check = step.verification
    if not check.passed:
        yield Note(
            "unverified",
            f"the training step FAILED its verification (step error {check.step_error:.2g}, error "
            f"{check.finite_difference_error:.2g} against finite differences) and was used anyway: no exponent "
            "here can be trusted.",
        )
    if summary.stopped_at is not None:
        yield Note(
            "diverged",
            f"the trajectory diverged at step {summary.stopped_at:,}: NaN or infinity. The exponents are means over "
            f"the {summary.num_steps:,} steps before it and describe no attractor.",
        )
    if summary.num_resolved is not None and summary.num_resolved < len(summary.values):
        yield Note(
            "rounding",
            f"exponents {summary.num_resolved + 1} to {len(summary.values)} are upper bounds: at some step their "
            "growth was below what the precision resolves beside the largest (`dtype='float64'` resolves more).",
        )
    yield from _drifting(summary)
    for code, words in step.notes:
        yield Note(code, words)
    if summary.coordinates not in (None, "weights", "balanced"):
        yield Note(
            "mixed-units",
            f"the state is {summary.num_weights:,} weights and {summary.dimension.size - summary.num_weights:,} slots "
            f"of the optimizer in units of their own; SD and SD^(m) are of this state in the coordinates "
            f"'{summary.coordinates}' and depend on them.",
        )
    if cut:
        yield Note("windows-interrupted", "Interrupted while the windows were evaluated: there is no SD^(m).")
    if settings.windows and not _comparable(summary, settings):
        yield Note(
            "other-steps",
            f"the estimator '{settings.estimator}' measured {summary.num_steps:,} steps after "
            f"{summary.transient:,}, the windows are over {settings.num_steps:,} after {settings.transient:,}: D_s "
            "and SD^(m) are not comparable.",
        )
    if limit:
        words = f"{summary.num_steps:,} of {settings.num_steps:,} steps were measured."
        yield Note(limit_code(limit), f"{limit} ended the trajectory: {words}")


def _drifting(summary: LyapunovSummary) -> Iterator[Note]:
    """Caveats on steps that are not of one distribution."""
    if summary.forks is not None:
        worst = int(np.argmax(summary.forks.r_hat))
        if summary.forks.r_hat[worst] > forks.MOST_R_HAT:
            yield Note(
                "not-mixed",
                f"split R-hat reaches {summary.forks.r_hat[worst]:.3f} (ell_{worst + 1}) over {summary.forks.count} "
                f"forks, above {forks.MOST_R_HAT}: the steps are not stationary or the forks not mixed, and standard "
                "errors are too small. Discard a longer transient, or take more steps.",
            )
    drift = _drift(summary)
    if drift is not None:
        yield Note(
            "drifting",
            f"ell_1 was {drift[0]:.3g} over the first half of the steps and {drift[1]:.3g} over the second, further "
            "apart than their standard errors explain: training has not reached its attractor. Discard a longer "
            "transient.",
        )


def _drift(summary: LyapunovSummary) -> tuple[float, float] | None:
    """Means of ell_1 over both halves of the steps where they differ, else None."""
    counts = np.arange(1.0, len(summary.history[0]) + 1)
    blocks = np.diff(counts * summary.history[0], prepend=0.0)
    half = len(blocks) // 2
    if half < _FEWEST_BLOCKS:
        return None
    first, second = blocks[:half], blocks[half:]
    variance = np.var(first, ddof=1) / len(first) + np.var(second, ddof=1) / len(second)
    apart = float(abs(first.mean() - second.mean()))
    if apart <= _DRIFT * float(np.sqrt(variance)) + 1e-6 * float(abs(summary.values[0])):
        return None
    return float(first.mean()), float(second.mean())


def identity(optimizer: Optimizer, model: Model, loss: str = "") -> dict[str, str]:
    """Settings that two runs of one trajectory share, beside state and data."""
    wrapped = update.inner(optimizer)
    settings = json.dumps(wrapped.get_config(), sort_keys=True, default=lambda value: type(value).__name__)
    return {"loss": loss or losses.loss_name(model.loss), "optimizer": f"{type(wrapped).__name__} {settings}"}
