"""Subject of an analysis: the model's loss on its data, the optimizer's settings, and the map of its step."""

from __future__ import annotations

import attrs
import keras
import numpy as np

from sdkeras.dimension import stability
from sdkeras.dimension.exponents import ExponentMap, exponent_map
from sdkeras.errors import ModelError
from sdkeras.estimators.select import Chosen, chosen
from sdkeras.files.data_fit import check_data
from sdkeras.files.keras_types import Data, Model, Optimizer
from sdkeras.linalg.operators import DiagonallyScaledOperator, DiagonallyShiftedOperator, SymmetricOperator
from sdkeras.operators import minibatches
from sdkeras.operators.batch_loss import LossFn
from sdkeras.operators.hessian import HessianOperator
from sdkeras.operators.loss import EmpiricalLoss
from sdkeras.results.answers import OptimizerInfo
from sdkeras.results.arrays import Array
from sdkeras.results.note import Note
from sdkeras.runs import losses
from sdkeras.runs.budget import Notes
from sdkeras.runs.options import Options, parse_learning_rate
from sdkeras.runs.provenance import optimizer_info, with_loss
from sdkeras.training_step import settings
from sdkeras.training_step.optimizer import is_function, loaded_clone, parts_of, replica
from sdkeras.training_step.settings import inner


@attrs.frozen(kw_only=True, eq=False)
class Problem:
    """Model, data, optimizer and options, read and checked: what is measured, and the map of its training step.

    Attributes:
        options: The options.
        compiled_as: The model as it was given, with its optimizer.
        model: The same model, or a copy compiled with the loss that was given.
        loss_fn: The user's loss function, or None.
        loss: The loss over the data at the model's weights.
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
    compiled_as: Model
    model: Model
    loss_fn: LossFn | None
    loss: EmpiricalLoss
    optimizer: settings.OptimizerSettings | None
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
        rate = _learning_rate(self.compiled_as, self.options.learning_rate)
        return _problem(self.options, (self.compiled_as, self.model), self.loss_fn, self.loss.now(), rate)

    @property
    def estimators(self) -> Chosen:
        """Names of the estimators to use."""
        return chosen(self.options)

    @property
    def source(self) -> minibatches.Source:
        """The data."""
        return self.loss.source

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
        """The map from eigenvalues to exponents.

        Raises:
            ModelError: There is no learning rate.
        """
        if self.step_map is None:
            raise ModelError(self.no_rate)
        return self.step_map

    @property
    def loss_words(self) -> str:
        """The loss that is analysed, with its arguments."""
        return losses.words_of(self.model, self.options.loss, self.loss_fn)

    @property
    def function_words(self) -> str:
        """The same where it is a function of the user's, or ""."""
        return self.loss_words if self.loss_fn is not None else ""

    @property
    def scaled(self) -> bool:
        """Whether the map takes the eigenvalues of P^-1/2 H P^-1/2."""
        return self.step_map is not None and self.step_map.preconditioned

    @property
    def operator(self) -> str:
        """Whose eigenvalues the map takes; without a learning rate the Hessian's are taken."""
        return operator_name(self.scaled) + ("" if self.shift is None else " + W")

    @property
    def ignored_decay(self) -> float:
        """Weight decay that the map leaves out."""
        return self.decay - self.exponents.weight_decay if self.shift is None else 0.0

    def optimizer_info(self) -> OptimizerInfo:
        """The optimizer for a report."""
        rate = self.stored_rate if self.rate is None else self.rate
        return optimizer_info(self.optimizer, rate, self.rate_source, missing=self.no_rate)

    def unstable_above(self) -> float | None:
        """The upper threshold where it is one for the eigenvalues that the map takes."""
        if self.shift is not None:
            return 2.0 / self.exponents.learning_rate
        same = self.limits is not None and self.limits.preconditioned == self.exponents.preconditioned
        return self.limits.upper if self.limits is not None and same else None

    def on_minibatch(self, hessian: HessianOperator, index: int, scaling: Array | None = None) -> SymmetricOperator:
        """The operator whose eigenvalues the map takes: a minibatch's H or P^-1/2 H P^-1/2, plus W where it is.

        P is the checkpoint's unless another `scaling` = P^-1/2 is given.
        """
        view: SymmetricOperator = hessian.on_minibatch(index)
        scaling = self.scaling if scaling is None else scaling
        if scaling is not None and self.scaled:
            view = DiagonallyScaledOperator(view, scaling)
        return view if self.shift is None else DiagonallyShiftedOperator(view, self.shift)

    def training_optimizer(self) -> tuple[Optimizer, Notes]:
        """The optimizer of training's steps from here, see `training_optimizer`."""
        changed = self.model is not self.compiled_as
        return training_optimizer(self.compiled_as, self.loss, self.options.learning_rate, changed=changed)


def read_problem(model: Model, data: Data, options: Options) -> tuple[Problem, Notes]:
    """Reads and checks model, data and options; nothing is measured yet.

    Raises:
        SdkerasError: Unusable model or data; see its subclasses.
    """
    chosen(options)  # an unknown estimator is reported before anything is read
    loss_fn = losses.own_function(options.loss, options.loss_fn)
    notes = []
    if loss_fn is not None and options.class_weight is not None:
        words = "the class weights are the third part of each batch that the loss function gets."
        notes.append(Note("class-weight", words))
    fitted = model if loss_fn is not None else with_loss(model, options.loss, options.dtype)
    notes += losses.caveats(model, with_loss=options.loss is None and loss_fn is None)
    rate = _learning_rate(model, options.learning_rate)
    in_arrays = isinstance(data, (tuple, list))
    if not isinstance(data, minibatches.Source):
        data = minibatches.as_source(
            data,
            batch_size=options.batch_size,
            default_batch_size=minibatches.DEFAULT_BATCH_SIZE,
            limit=options.samples,
            class_weight=options.class_weight,
        )
    if in_arrays:
        check_data(fitted, *data.structure, own_loss=loss_fn is not None)
    loss = EmpiricalLoss(
        fitted,
        data,
        mode=options.mode,
        params=options.params,
        dtype=options.dtype,
        num_samples=options.samples,
        seed=options.seed,
        loss_fn=loss_fn,
    )
    problem, more = _problem(options, (model, fitted), loss_fn, loss, rate)
    return problem, (*notes, *more)


def _problem(
    options: Options, pair: tuple[Model, Model], loss_fn: LossFn | None, loss: EmpiricalLoss, rate: Rate
) -> tuple[Problem, Notes]:
    """Complete the problem from the optimizer's settings and slots: thresholds, scaling and map."""
    compiled_as, model = pair
    optimizer, notes = rate.optimizer, []
    decay = optimizer.weight_decay if optimizer else 0.0
    limits = None if rate.value is None else _thresholds(optimizer, rate.value)
    if rate.value is not None and optimizer is None:
        notes.append(Note("optimizer-unknown", "no optimizer is known; the threshold 2/eta of plain SGD was taken."))
    adaptive = optimizer is not None and optimizer.name in settings.ADAPTIVE
    preconditioned = adaptive if limits is None else limits.preconditioned
    scaling, unscaled = _scaling(compiled_as, loss, optimizer) if preconditioned else (None, "")
    excluded = settings.excluded_from_decay(compiled_as, loss.layout) if decay else []
    step_map = shift = None
    if rate.value is not None:
        step_map, reason = _step_map(options, optimizer, rate.value, unscaled)
        if reason:
            words = f"{reason}; the map |1 - eta*alpha| of the Hessian was analysed, not the optimizer's own step."
            notes.append(Note("hessian-map", words))
        if excluded and step_map.weight_decay and step_map.branches == 1:
            # I - eta (A + W) with W of unequal entries: the decay goes into the operator. With momentum, A and W would
            # have to share eigenvectors for 2x2 blocks to exist.
            shift = _decay_of_each(loss, decay, excluded)
            step_map = attrs.evolve(step_map, weight_decay=0.0)
    problem = Problem(
        options=options,
        compiled_as=compiled_as,
        model=model,
        loss_fn=loss_fn,
        loss=loss,
        optimizer=optimizer,
        rate=rate.value,
        rate_source=rate.source,
        no_rate=rate.missing,
        limits=limits,
        preconditioned=preconditioned,
        scaling=scaling,
        unscaled=unscaled,
        excluded=excluded,
        shift=shift,
        step_map=step_map,
    )
    return problem, tuple(notes)


def _decay_of_each(loss: EmpiricalLoss, decay: float, excluded: list[str]) -> Array:
    """Weight decay of each parameter, shape [n], float64."""
    decays = np.full(loss.size, decay)
    for name, place in zip(loss.layout.names, loss.layout.slices, strict=True):
        if name in excluded:
            decays[place] = 0.0
    return decays


def _scaling(
    model: Model, loss: EmpiricalLoss, optimizer: settings.OptimizerSettings | None
) -> tuple[Array | None, str]:
    """P^-1/2 of an adaptive optimizer; or None, and why it has none."""
    diagonal = settings.preconditioner(model, loss.layout)
    if diagonal is None:
        if optimizer is not None and optimizer.iterations > 0:
            return None, "the second moments of the optimizer in the file could not be read"
        return None, "the optimizer in the file has taken no step, so it has no second moments"
    root = inverse_root(diagonal)
    return root, "" if root is not None else "the optimizer's second moments are not all positive and finite"


def _step_map(
    options: Options, optimizer: settings.OptimizerSettings | None, rate: float, unscaled: str
) -> tuple[ExponentMap, str]:
    """The map of the step, and why it is not the optimizer's own one where that was asked for."""
    if options.map != "auto":
        return exponent_map("hessian", rate), ""  # of the map full nothing asks for it
    name, reason = _own_map(optimizer)
    reason = reason or unscaled
    if optimizer is None or reason:
        return exponent_map("hessian", rate), reason
    momentum = optimizer.momentum or 0.0
    return exponent_map(name, rate, momentum=momentum, weight_decay=optimizer.weight_decay), ""


def _thresholds(optimizer: settings.OptimizerSettings | None, rate: float) -> stability.Thresholds | None:
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


@attrs.frozen
class Rate:
    """The optimizer's settings and the learning rate of the analysed step, or why it has none and what to do."""

    optimizer: settings.OptimizerSettings | None
    value: float | None
    source: str
    missing: str = ""


def _learning_rate(model: Model, requested: float | str | None) -> Rate:
    """The learning rate that was asked for, or the optimizer's own.

    Raises:
        ModelError: The given one is of a schedule, and there is no optimizer.
    """
    compiled = getattr(model, "optimizer", None)
    optimizer = settings.read_settings(compiled)
    named = None if requested is None else parse_learning_rate(requested)
    if named is not None and not isinstance(named, str):
        return Rate(optimizer, named, "given")
    if optimizer is None:
        if named is not None:
            raise ModelError(f"the learning rate is to be {named} of a schedule, and no optimizer is known.")
        return Rate(None, None, "file", "no optimizer is known, and so no learning rate; give it (`learning_rate=F`).")
    if named is None:
        rate, source = optimizer.learning_rate, "file"
        if rate is None:
            return Rate(optimizer, None, source, _without_a_rate(optimizer))
    else:
        try:
            rate, source = settings.scheduled_rate(compiled, named), named
        except settings.StepNotTaken as error:
            return Rate(optimizer, None, named, str(error))
    if np.isfinite(rate) and rate > 0:
        return Rate(optimizer, rate, source)
    return Rate(optimizer, None, source, _unusable_rate(compiled, optimizer, rate, source))


def _unusable_rate(compiled: Optimizer, optimizer: settings.OptimizerSettings, rate: float, source: str) -> str:
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


def _without_a_rate(optimizer: settings.OptimizerSettings) -> str:
    if not optimizer.rates:
        return f"the learning rate of {optimizer.name} cannot be read; give it (`learning_rate=F`)."
    rates = ", ".join(f"{name} {'unknown' if rate is None else f'{rate:g}'}" for name, rate in optimizer.rates)
    return (
        f"the optimizer {optimizer.name} has several learning rates ({rates}), and a threshold is of one; give one "
        "(`learning_rate=F`), or take the whole step with the rates it has (`map='full'`, sdkeras lyapunov)."
    )


def _own_map(optimizer: settings.OptimizerSettings | None) -> tuple[str, str]:
    """Name of the optimizer's own map, or why there is none."""
    if optimizer is None:
        return "", "no optimizer is known"
    momentum = optimizer.momentum or 0.0
    with_momentum = "nesterov" if optimizer.nesterov else "heavy-ball"
    names = {
        "SGD": with_momentum if momentum else "sgd",
        "Adam": "adam",
        "AdamW": "adam",
        "Nadam": "nadam",
        "RMSprop": "rmsprop",
    }
    if optimizer.name not in names:
        return "", f"the optimizer is {optimizer.name}"
    if not 0.0 <= momentum < 1.0:
        return "", f"the momentum {momentum:g} of {optimizer.name} is not between 0 and 1"
    return names[optimizer.name], ""


def training_optimizer(
    model: Model, loss: EmpiricalLoss, rate: float | str | None, *, changed: bool
) -> tuple[Optimizer, Notes]:
    """The model's optimizer, or a copy of it with another learning rate or for the copy of the model.

    The rate is a number or says which of the optimizer's schedule; None leaves it as it is.

    Raises:
        ModelError: There is no optimizer, the rate cannot be replaced, or is not one.
    """
    compiled = getattr(model, "optimizer", None)
    rate = None if rate is None else _as_number(compiled, rate)
    if compiled is None:
        if rate is None:
            raise ModelError("the learning rate is unknown; give it (`learning_rate=F`).")
        note = Note("plain-sgd", "no optimizer is known; steps of plain SGD were taken.")
        return keras.optimizers.SGD(rate), (note,)
    optimizer = inner(compiled)
    if rate is None and not changed:
        return optimizer, ()
    if optimizer.built:
        optimizer = loaded_clone(optimizer, [replica(variable) for variable in loss.variables])
    else:
        optimizer = type(optimizer).from_config(optimizer.get_config())
    if rate is not None:
        _set_rate(optimizer, rate)
    return optimizer, ()


def _as_number(optimizer: Optimizer, rate: float | str) -> float:
    """The learning rate, computed from the optimizer's schedule where it says which of its.

    Raises:
        ModelError: It is 0.
    """
    known = parse_learning_rate(rate)
    if not isinstance(known, str):
        return known
    scheduled = settings.scheduled_rate(optimizer, known)
    if not scheduled > 0:
        raise ModelError(f"the {known} learning rate of the schedule is {scheduled:g}; give another one.")
    return scheduled


def _set_rate(optimizer: Optimizer, rate: float) -> None:
    """Another learning rate for an optimizer of our own.

    Raises:
        ModelError: It has several.
    """
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
