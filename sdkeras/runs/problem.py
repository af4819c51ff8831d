"""Subject of an analysis: the model's loss on its data, the optimizer's settings, and the map of its step."""

from __future__ import annotations

import attrs
import keras
import numpy as np

from sdkeras.dimension import stability
from sdkeras.dimension.exponents import ExponentMap, exponent_map
from sdkeras.errors import DataError, ModelError, counted
from sdkeras.estimators.select import Chosen, chosen
from sdkeras.files.compiled_part import compile_as
from sdkeras.files.data_fit import check_data
from sdkeras.files.keras_types import Data, Loss, Model, Optimizer
from sdkeras.linalg.memory import memory_limit
from sdkeras.linalg.operators import DiagonallyScaledOperator, DiagonallyShiftedOperator, SymmetricOperator
from sdkeras.operators import minibatches, precision
from sdkeras.operators.batch_loss import LossFn
from sdkeras.operators.hessian import CurvatureOperator
from sdkeras.operators.loss import EmpiricalLoss, check_model
from sdkeras.operators.modes import MIXED, Jit, Mode
from sdkeras.results.answers import ModelInfo, OptimizerInfo
from sdkeras.results.arrays import Array
from sdkeras.results.note import Note
from sdkeras.runs import losses
from sdkeras.runs.budget import Notes
from sdkeras.runs.declare import parse_learning_rate
from sdkeras.runs.options import MOST_EXACT, Options, TrainingOptions
from sdkeras.runs.provenance import optimizer_info
from sdkeras.training_step import settings
from sdkeras.training_step.optimizer import is_function, loaded_clone, parts_of, replica
from sdkeras.training_step.settings import OptimizerSettings, inner


@attrs.frozen(kw_only=True, eq=False)
class Subject:
    """A model's loss on its data, read and checked: what an analysis and a trajectory are both of.

    Attributes:
        options: The options.
        compiled_as: The model as it was given, with its optimizer.
        model: The same model, or a copy compiled with the loss that was given.
        loss_fn: The user's loss function, or None.
        loss: The loss over the data at the model's weights.
        changes: Whether the data are a dataset that gives other samples at each reading.
    """

    options: TrainingOptions
    compiled_as: Model
    model: Model
    loss_fn: LossFn | None
    loss: EmpiricalLoss
    changes: bool = False

    @property
    def held_fixed(self) -> str:
        """What is random and was held fixed, so that the Hessian is of one function; "" where nothing is."""
        draws, masks = self.loss.draws, self.loss.function.is_random
        if not (masks or self.changes):
            return ""
        parts = []
        if self.changes:
            passes = "one pass of it is" if draws == 1 else f"{draws} passes of it are"
            parts.append(f"the dataset gives other samples at each reading, as augmentation does: {passes} used")
        if masks:
            what = "one draw a batch is" if draws == 1 else f"{draws} draws a batch are"
            parts.append(f"the model draws at random in training mode (dropout, augmentation layers): {what} used")
        whose = "this one function (`draws=N` averages over N)" if draws == 1 else "their mean"
        return f"{'; '.join(parts)} and held fixed. The Hessian is that of {whose}"

    @property
    def source(self) -> minibatches.Source:
        """The data."""
        return self.loss.source

    @property
    def loss_words(self) -> str:
        """The analysed loss: the user's own function as it was given, or the compiled one with its arguments."""
        if self.loss_fn is None:
            return losses.loss_words(self.model.loss)
        return self.options.loss if isinstance(self.options.loss, str) else losses.function_name(self.loss_fn)

    @property
    def function_words(self) -> str:
        """The same where it is a function of the user's, or ""."""
        return self.loss_words if self.loss_fn is not None else ""

    @property
    def has_own_step(self) -> bool:
        """Whether the model has a train_step of its own, of which the compiled loss tells nothing."""
        steps = (keras.Model.train_step, keras.Sequential.train_step)
        return self.loss_fn is None and type(self.compiled_as).train_step not in steps

    def model_info(self, unconnected: tuple[str, ...] = ()) -> ModelInfo:
        """The model and its loss for a report."""
        return ModelInfo(
            name=str(self.model.name),
            num_parameters=int(sum(np.prod(v.shape, dtype=np.int64) for v in self.model.trainable_variables)),
            num_trainable_analysed=self.loss.size,
            mode="train" if self.loss.function.training else "inference",
            loss=self.loss_words,
            unconnected=unconnected,
        )

    def training_optimizer(self) -> tuple[Optimizer, Notes]:
        """The optimizer of training's steps: the model's own, or a copy for another learning rate or model.

        Raises:
            ModelError: There is no optimizer, the rate cannot be replaced, or is not one.
        """
        compiled, rate = getattr(self.compiled_as, "optimizer", None), self.options.learning_rate
        number = None if rate is None else _as_number(compiled, rate)
        if compiled is None:
            if number is None:
                raise ModelError("the learning rate is unknown; give it (`learning_rate=F`).")
            note = Note("plain-sgd", "no optimizer is known; steps of plain SGD were taken.")
            return keras.optimizers.SGD(number), (note,)
        optimizer = inner(compiled)
        if number is None and self.model is self.compiled_as:
            return optimizer, ()
        if optimizer.built:
            optimizer = loaded_clone(optimizer, [replica(variable) for variable in self.loss.variables])
        else:
            optimizer = type(optimizer).from_config(optimizer.get_config())
        if number is not None:
            _set_rate(optimizer, number)
        return optimizer, ()


def read_subject(
    model: Model,
    data: Data,
    options: TrainingOptions,
    *,
    num_samples: int | None,
    mode: Mode = "train",
    params: str | None = None,
    jit: Jit = "auto",
    draws: int = 1,
) -> tuple[Subject, Notes]:
    """Reads and checks model and data; nothing is measured yet.

    Raises:
        SdkerasError: Unusable model or data; see its subclasses.
        DataError: Several draws are asked for, and nothing is random.
    """
    loss_fn, notes = losses.own_function(options.loss, options.loss_fn), []
    if loss_fn is not None and options.class_weight is not None:
        words = "the loss function gets the class weights as the third part of each batch."
        notes.append(Note("class-weight", words))
    fitted = model if loss_fn is not None else _with_loss(model, options.loss, options.dtype)
    notes += losses.caveats(model, with_loss=options.loss is None and loss_fn is None)
    in_arrays, given = isinstance(data, (tuple, list)), data
    if not isinstance(data, minibatches.Source):
        data = minibatches.as_source(
            data, batch_size=options.batch_size, limit=options.samples, class_weight=options.class_weight, draws=draws
        )
    changes = data.passes > 1 if draws > 1 else minibatches.changes(given, data, options.samples)
    if in_arrays:
        check_data(fitted, *data.structure, own_loss=loss_fn is not None)
    loss = EmpiricalLoss(
        fitted,
        data,
        mode=mode,
        params=params,
        dtype=options.dtype,
        num_samples=num_samples,
        seed=options.seed,
        loss_fn=loss_fn,
        jit=jit,
        device=options.device,
        micro_batch=options.micro_batch,
        draws=draws,
    )
    if draws > 1 and not (changes or loss.function.is_random):
        raise DataError(
            f"draws is {draws}, and nothing in data or model is random: the data are the same at each reading, and the "
            f"model draws nothing in {mode} mode; leave draws out (`draws`)."
        )
    smaller = len(data.batch_ranges or ()) - len(data.full_ranges)
    if smaller:
        words = (
            f"{counted(smaller, 'batch', 'batches')} of the dataset's {len(data.batch_ranges or ()):,} are not of size "
            f"{data.batch_size}: sharpness dimension and batch sharpness use the others only."
        )
        notes.append(Note("smaller-batches", words))
    subject = Subject(
        options=options, compiled_as=model, model=fitted, loss_fn=loss_fn, loss=loss.merged(), changes=changes
    )
    return subject, tuple(notes)


def _with_loss(model: Model, loss: Loss, dtype: str) -> Model:
    """The model, or where a loss is given a copy compiled with it."""
    check_model(model, needs_loss=loss is None)
    if loss is None:
        return model
    with precision.default_precision(dtype):
        chosen_loss = losses.from_spec(loss) if isinstance(loss, str) else loss
    copy = precision.in_precision(model, dtype)
    with precision.default_precision(dtype):
        compile_as(copy, {"optimizer": "sgd", "loss": chosen_loss})
    return copy


@attrs.frozen(kw_only=True, eq=False)
class Problem(Subject):
    """Model, data, optimizer and options, read and checked: what is measured, and the map of its training step.

    Attributes:
        optimizer: Settings of the optimizer, or None.
        rate: Learning rate of the analysed step, or None where there is none, and `no_rate` says why.
        rate_source: Origin of the rate: 'file', 'given', or 'peak', 'mean' or 'step:N' of the schedule.
        no_rate: Why there is none and what to do, or "".
        limits: The optimizer's stability thresholds, or None where they are unknown.
        preconditioned: Whether the threshold's own operator is P^-1/2 H P^-1/2.
        scaling: P^-1/2 of an adaptive optimizer, shape [n], float64; or None, and `unscaled` says why.
        unscaled: Why an adaptive optimizer has no P^-1/2, or "".
        excluded: Paths of the variables that weight decay leaves out.
        shift: The decay of each parameter, shape [n], where some are left out and the map can take it; or None.
        step_map: The map from eigenvalues to exponents, or None without a learning rate; `exponents` raises then.
    """

    options: Options
    optimizer: OptimizerSettings | None
    rate: float | None
    rate_source: str
    no_rate: str
    limits: stability.Thresholds | None
    preconditioned: bool
    scaling: Array | None
    unscaled: str
    excluded: list[str]
    shift: Array | None
    step_map: ExponentMap | None

    def now(self) -> tuple[Problem, Notes]:
        """The same problem as its model and optimizer are now, by the same compiled loss."""
        return _problem(self, self.options, self.loss.now())

    @property
    def estimators(self) -> Chosen:
        """Names of the estimators to use."""
        return chosen(self.options)

    @property
    def decay(self) -> float:
        """Weight decay."""
        return self.optimizer.weight_decay if self.optimizer else 0.0

    @property
    def stored_rate(self) -> float:
        """The optimizer's own rate now, 0 included; NaN where it has none or several."""
        stored = None if self.optimizer is None else self.optimizer.learning_rate
        return float("nan") if stored is None else stored

    @property
    def is_full(self) -> bool:
        """Whether the map is the whole step, whose singular values are taken."""
        return self.options.map == "full"

    @property
    def maps_spectra(self) -> bool:
        """Whether exponents are made from eigenvalues: neither without a learning rate nor for the map full."""
        return self.rate is not None and not self.is_full

    @property
    def exponents(self) -> ExponentMap:
        """The map from eigenvalues to exponents; a ModelError without a learning rate."""
        if self.step_map is None:
            raise ModelError(self.no_rate)
        return self.step_map

    @property
    def operator(self) -> str:
        """Whose eigenvalues the map takes; without a learning rate the Hessian's are taken."""
        return operator_name(self._maps_scaled) + ("" if self.shift is None else " + W")

    @property
    def ignored_decay(self) -> float:
        """Weight decay that the map leaves out."""
        return self.decay - self.exponents.weight_decay if self.shift is None else 0.0

    @property
    def _maps_scaled(self) -> bool:
        return self.step_map is not None and self.step_map.preconditioned

    def optimizer_info(self) -> OptimizerInfo:
        """The optimizer for a report."""
        rate = self.stored_rate if self.rate is None else self.rate
        peak = settings.peak_rate(getattr(self.compiled_as, "optimizer", None))
        return optimizer_info(self.optimizer, rate, self.rate_source, missing=self.no_rate, peak=peak)

    def unstable_above(self) -> float | None:
        """The upper threshold where it is one for the eigenvalues that the map takes."""
        if self.shift is not None:
            return 2.0 / self.exponents.learning_rate
        same = self.limits is not None and self.limits.preconditioned == self.exponents.preconditioned
        return self.limits.upper if self.limits is not None and same else None

    def on_minibatch(self, curvature: CurvatureOperator, index: int, scaling: Array | None = None) -> SymmetricOperator:
        """The operator whose eigenvalues the map takes: a minibatch's H or P^-1/2 H P^-1/2, plus W where it is.

        Of another curvature than the Hessian's it is the same with that.

        P is the checkpoint's unless another `scaling` = P^-1/2 is given.
        """
        view: SymmetricOperator = curvature.on_minibatch(index)
        scaling = self.scaling if scaling is None else scaling
        if scaling is not None and self._maps_scaled:
            view = DiagonallyScaledOperator(view, scaling)
        return view if self.shift is None else DiagonallyShiftedOperator(view, self.shift)


def read_problem(model: Model, data: Data, options: Options) -> tuple[Problem, Notes]:
    """Reads and checks model, data and options; nothing is measured yet.

    Raises:
        SdkerasError: Unusable model or data; see its subclasses.
    """
    chosen(options)  # an unknown estimator is reported before anything is read
    subject, notes = read_subject(
        model,
        data,
        options,
        num_samples=options.samples,
        mode=options.mode,
        params=options.params,
        jit=options.jit,
        draws=options.draws,
    )
    if subject.held_fixed:
        notes = (*notes, Note("held-fixed", f"{subject.held_fixed}."))
    if options.exact is None:
        options = attrs.evolve(options, exact=_is_small(subject.loss.size, options))
    problem, more = _problem(subject, options, subject.loss)
    return problem, (*notes, *more)


def _is_small(size: int, options: Options) -> bool:
    """Whether exact spectra make sense, take little time and fit the memory; the map full is of up to three times."""
    state = 3 * size if options.map == "full" else size
    return options.dtype != MIXED and state <= MOST_EXACT and 4 * 8 * state**2 <= memory_limit(options.memory_gb)


def _problem(subject: Subject, options: Options, loss: EmpiricalLoss) -> tuple[Problem, Notes]:
    """Complete the problem from the optimizer's settings and slots: rate, thresholds, scaling and map."""
    model, notes = subject.compiled_as, []
    optimizer = settings.read_settings(getattr(model, "optimizer", None))
    rate, source, no_rate = _learning_rate(model, optimizer, options.learning_rate)
    decay = optimizer.weight_decay if optimizer else 0.0
    limits = None if rate is None else _thresholds(optimizer, rate)
    if rate is not None and optimizer is None:
        notes.append(Note("optimizer-unknown", "no optimizer is known; the threshold 2/eta of plain SGD was taken."))
    adaptive = optimizer is not None and optimizer.name in settings.ADAPTIVE
    preconditioned = adaptive if limits is None else limits.preconditioned
    scaling, unscaled = _scaling(model, loss, optimizer) if preconditioned else (None, "")
    excluded = settings.excluded_from_decay(model, loss.layout) if decay else []
    step_map = shift = None
    if rate is not None:
        step_map, reason = _step_map(options, optimizer, rate, unscaled)
        if reason:
            words = f"{reason}; the map |1 - eta*alpha| of the Hessian was analysed, not the optimizer's own step."
            notes.append(Note("hessian-map", words))
        if excluded and step_map.weight_decay and step_map.branches == 1:
            # I - eta (A + W) with W of unequal entries: the decay goes into the operator. With momentum, A and W would
            # have to share eigenvectors for 2x2 blocks to exist.
            shift = np.full(loss.size, decay)
            for name, place in zip(loss.layout.names, loss.layout.slices, strict=True):
                if name in excluded:
                    shift[place] = 0.0
            step_map = attrs.evolve(step_map, weight_decay=0.0)
    problem = Problem(
        options=options,
        compiled_as=model,
        model=subject.model,
        loss_fn=subject.loss_fn,
        loss=loss,
        changes=subject.changes,
        optimizer=optimizer,
        rate=rate,
        rate_source=source,
        no_rate=no_rate,
        limits=limits,
        preconditioned=preconditioned,
        scaling=scaling,
        unscaled=unscaled,
        excluded=excluded,
        shift=shift,
        step_map=step_map,
    )
    return problem, tuple(notes)


def _scaling(model: Model, loss: EmpiricalLoss, optimizer: OptimizerSettings | None) -> tuple[Array | None, str]:
    """P^-1/2 of an adaptive optimizer; or None, and why it has none."""
    diagonal = settings.preconditioner(model, loss.layout)
    if diagonal is None:
        if optimizer is not None and optimizer.iterations > 0:
            return None, "the second moments of the optimizer in the file could not be read"
        return None, "the optimizer in the file has taken no step, so it has no second moments"
    root = inverse_root(diagonal)
    return root, "" if root is not None else "the optimizer's second moments are not all positive and finite"


def _step_map(
    options: Options, optimizer: OptimizerSettings | None, rate: float, unscaled: str
) -> tuple[ExponentMap, str]:
    """The map of the step, and why it is not the optimizer's own one where that was asked for."""
    hessian = exponent_map("hessian", rate)
    if options.map != "auto":
        return hessian, ""  # of the map full nothing asks for it
    if optimizer is None:
        return hessian, "no optimizer is known"
    momentum = optimizer.momentum or 0.0
    with_momentum = "nesterov" if optimizer.nesterov else "heavy-ball"
    sgd = with_momentum if momentum else "sgd"
    names = {"SGD": sgd, "Adam": "adam", "AdamW": "adam", "Nadam": "nadam", "RMSprop": "rmsprop"}
    if optimizer.name not in names:
        return hessian, f"the optimizer is {optimizer.name}"
    if not 0.0 <= momentum < 1.0:
        return hessian, f"the momentum {momentum:g} of {optimizer.name} is not between 0 and 1"
    if unscaled:
        return hessian, unscaled
    return exponent_map(names[optimizer.name], rate, momentum=momentum, weight_decay=optimizer.weight_decay), ""


def _thresholds(optimizer: OptimizerSettings | None, rate: float) -> stability.Thresholds | None:
    if optimizer is None:
        return stability.thresholds("SGD", rate)
    return stability.thresholds(
        optimizer.name,
        rate,
        momentum=optimizer.momentum,
        nesterov=optimizer.nesterov,
        weight_decay=optimizer.weight_decay,
    )


def inverse_root(diagonal: Array) -> Array | None:
    """P^-1/2, or None where P is not positive and finite."""
    return 1.0 / np.sqrt(diagonal) if np.all(np.isfinite(diagonal)) and np.all(diagonal > 0) else None


def operator_name(preconditioned: bool) -> str:
    return "P^-1/2 H P^-1/2" if preconditioned else "H"


def _learning_rate(
    model: Model, optimizer: OptimizerSettings | None, requested: float | str | None
) -> tuple[float | None, str, str]:
    """The rate that was asked for, or the optimizer's own, and its source; or None, and why there is none."""
    compiled = getattr(model, "optimizer", None)
    named = None if requested is None else parse_learning_rate(requested)
    if named is not None and not isinstance(named, str):
        return named, "given", ""
    if optimizer is None:
        if named is not None:
            raise ModelError(f"the learning rate is to be {named} of a schedule, and no optimizer is known.")
        return None, "file", "no optimizer is known, and so no learning rate; give it (`learning_rate=F`)."
    if named is None:
        rate, source = optimizer.learning_rate, "file"
        if rate is None:
            return None, source, _without_a_rate(optimizer)
    else:
        try:
            rate, source = settings.scheduled_rate(compiled, named), named
        except settings.StepNotTaken as error:
            return None, named, str(error)
    if np.isfinite(rate) and rate > 0:
        return rate, source, ""
    return None, source, _unusable_rate(compiled, optimizer, rate, source)


def _unusable_rate(compiled: Optimizer, optimizer: OptimizerSettings, rate: float, source: str) -> str:
    schedule = settings.schedule_of(compiled)
    if schedule is None:
        where, choices = f"the learning rate of {optimizer.name} is {rate:g}", ""
    else:
        name, choices = type(schedule).__name__, ", or peak, mean or step:N of the schedule"
        where = f"the {source} learning rate of the schedule {name} is {rate:g}"
        if source == "file":
            where = (
                f"the learning rate is {rate:g}, which the schedule {name} has reached after "
                f"{optimizer.iterations:,} steps"
            )
        if optimizer.iterations:
            last = f"step:{optimizer.iterations - 1}"
            choices += f"; the last step, {last}, used {settings.scheduled_rate(compiled, last):.4g}"
    return f"{where}; give another one (`learning_rate=F`{choices})."


def _without_a_rate(optimizer: OptimizerSettings) -> str:
    if not optimizer.rates:
        return f"the learning rate of {optimizer.name} cannot be read; give it (`learning_rate=F`)."
    rates = ", ".join(f"{name} {'unknown' if rate is None else f'{rate:g}'}" for name, rate in optimizer.rates)
    return (
        f"the optimizer {optimizer.name} has several learning rates ({rates}), and a threshold is of one; give one "
        "(`learning_rate=F`), or take the whole step with the rates it has (`map='full'`, sdkeras lyapunov)."
    )


def _as_number(optimizer: Optimizer, rate: float | str) -> float:
    """The learning rate, computed from the optimizer's schedule where it says which of its; never 0."""
    known = parse_learning_rate(rate)
    if not isinstance(known, str):
        return known
    scheduled = settings.scheduled_rate(optimizer, known)
    if not scheduled > 0:
        raise ModelError(f"the {known} learning rate of the schedule is {scheduled:g}; give another one.")
    return scheduled


def _set_rate(optimizer: Optimizer, rate: float) -> None:
    """Another learning rate for an optimizer of our own; one with several is refused."""
    if len(parts_of(optimizer)) > 1:
        raise ModelError(
            f"the optimizer {type(optimizer).__name__} has several learning rates; set them in the model and save it "
            "again, without `learning_rate`."
        )
    held = getattr(optimizer, "_learning_rate", None)
    if isinstance(held, keras.optimizers.schedules.LearningRateSchedule) or is_function(held):
        # A schedule that stays: 1 to any power is 1.
        optimizer.learning_rate = keras.optimizers.schedules.ExponentialDecay(rate, 1, 1.0)
    else:
        optimizer.learning_rate = rate
