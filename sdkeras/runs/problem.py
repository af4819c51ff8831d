"""What an analysis is of: the model's loss on its data, the optimizer's settings, and the map of its step."""

from __future__ import annotations

import copy
from typing import Any

import attrs
import keras
import numpy as np

from sdkeras.dimension import stability
from sdkeras.dimension.estimate import Context
from sdkeras.dimension.exponents import ExponentMap, exponent_map
from sdkeras.errors import ModelError
from sdkeras.files import models
from sdkeras.linalg.operators import DiagonallyScaledOperator, DiagonallyShiftedOperator, SymmetricOperator
from sdkeras.operators import minibatches
from sdkeras.operators.hessian import HessianOperator
from sdkeras.operators.loss import EmpiricalLoss
from sdkeras.results.answers import OptimizerInfo
from sdkeras.results.arrays import Array
from sdkeras.results.note import Note
from sdkeras.runs import losses
from sdkeras.runs.options import Options, parse_learning_rate
from sdkeras.runs.provenance import optimizer_info, with_loss
from sdkeras.training_step import settings
from sdkeras.training_step import settings as update
from sdkeras.training_step.optimizer import is_function, loaded_clone, parts_of, replica
from sdkeras.training_step.settings import inner


class Subject:
    """Model, data and options read and checked; nothing is measured yet.

    Attributes:
        compiled_as: The model as it was given, with its optimizer.
        model: The same, or a copy compiled with the loss that was given.
        optimizer: Settings of its optimizer, or None.
        rate: Learning rate of the analysed step, or None where there is none, and `no_rate` says why.
        rate_source: Where it came from: 'file', 'given', or 'peak', 'mean' or 'step:N' of the schedule.
        stored_rate: The optimizer's own rate now, 0 included; NaN where it has none or several.
        decay: Weight decay.
        source: The data.
        loss: The loss over them at the model's weights.
        limits: The optimizer's stability thresholds, or None where they are unknown.
        preconditioned: Whether the threshold's own operator is P^-1/2 H P^-1/2.
        scaling: P^-1/2 of an adaptive optimizer, shape [n], float64; or None, and `unscaled` says why.
        excluded: Paths of the variables that weight decay leaves out.
        shift: The decay of each parameter, shape [n], where some are left out and the map can take it; or None.
        exponents: The map from eigenvalues to exponents; there is none without a learning rate.
        warnings: What the reader must know of all that.

    Raises:
        SdkerasError: Unusable model or data; see its subclasses.
    """

    def __init__(self, model: Any, data: Any, options: Options) -> None:
        self.options = options
        self.warnings: list[Note] = []
        self.compiled_as = model
        self.loss_fn = losses.own_function(options.loss, options.loss_fn)
        if self.loss_fn is not None and options.class_weight is not None:
            self.warn("class-weight", "the class weights are the third part of each batch that the loss function gets.")
        self.model = model if self.loss_fn is not None else with_loss(model, options.loss, options.dtype)
        given = options.loss is not None or self.loss_fn is not None
        self.warnings += losses.caveats(model, with_loss=not given)
        self._read_settings()
        if isinstance(data, (tuple, list)) and len(data) in (1, 2, 3):
            models.check_data(self.model, *data, own_loss=self.loss_fn is not None)
        self.source = (
            data
            if isinstance(data, minibatches.Source)
            else minibatches.as_source(
                data,
                batch_size=options.batch_size,
                default_batch_size=minibatches.DEFAULT_BATCH_SIZE,
                limit=options.samples,
                class_weight=options.class_weight,
            )
        )
        self.loss = EmpiricalLoss(
            self.model,
            self.source,
            mode=options.mode,
            params=options.params,
            dtype=options.dtype,
            num_samples=options.samples,
            seed=options.seed,
            loss_fn=self.loss_fn,
        )
        self._derive()

    def now(self) -> Subject:
        """The same subject as its model and optimizer are now, by the same compiled loss."""
        view = copy.copy(self)
        view.warnings, view.loss = [], self.loss.now()
        view._read_settings()
        view._derive()
        return view

    def _read_settings(self) -> None:
        """What the optimizer says of itself."""
        compiled = getattr(self.compiled_as, "optimizer", None)
        self.optimizer = settings.read_settings(compiled)
        stored = None if self.optimizer is None else self.optimizer.learning_rate
        self.stored_rate = float("nan") if stored is None else stored
        self.rate, self.rate_source, self.no_rate = _learning_rate(compiled, self.optimizer, self.options.learning_rate)
        self.decay = self.optimizer.weight_decay if self.optimizer else 0.0

    def _derive(self) -> None:
        """What follows from the settings and the slots: thresholds, scaling and map."""
        self.limits = self._limits()
        adaptive = self.optimizer is not None and self.optimizer.name in settings.ADAPTIVE
        self.preconditioned = adaptive if self.limits is None else self.limits.preconditioned
        self.scaling, self.unscaled = self._scaling()
        self.excluded = settings.excluded_from_decay(self.compiled_as, self.loss.layout) if self.decay else []
        self._exponents = None if self.rate is None else self._map(self.rate)
        self.shift: Array | None = None
        made = self._exponents
        if self.excluded and made is not None and made.weight_decay and made.branches == 1:
            # I - eta (A + W) with W of unequal entries: the decay goes into the operator. With momentum, A and W would
            # have to share eigenvectors for 2x2 blocks to exist.
            self.shift = self._decay_of_each()
            self._exponents = attrs.evolve(made, weight_decay=0.0)

    def warn(self, code: str, message: str) -> None:
        self.warnings.append(Note(code, message))

    def optimizer_info(self) -> OptimizerInfo:
        """The optimizer for a report."""
        rate = self.stored_rate if self.rate is None else self.rate
        return optimizer_info(self.optimizer, rate, self.rate_source, missing=self.no_rate)

    @property
    def exponents(self) -> ExponentMap:
        """The map from eigenvalues to exponents.

        Raises:
            ModelError: There is no learning rate.
        """
        if self._exponents is None:
            raise ModelError(self.no_rate)
        return self._exponents

    @property
    def loss_words(self) -> str:
        """The loss that is analysed, with its arguments."""
        return losses.words_of(self.model, self.options.loss, self.loss_fn)

    @property
    def function_words(self) -> str:
        """The same where it is a function of the user's, or ""."""
        return self.loss_words if self.loss_fn is not None else ""

    @property
    def operator(self) -> str:
        """Whose eigenvalues the map takes; without a learning rate the Hessian's are taken."""
        preconditioned = self._exponents is not None and self.exponents.preconditioned
        return operator_name(preconditioned) + ("" if self.shift is None else " + W")

    @property
    def ignored_decay(self) -> float:
        """Weight decay that the map leaves out."""
        return self.decay - self.exponents.weight_decay if self.shift is None else 0.0

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
        if scaling is not None and self._exponents is not None and self.exponents.preconditioned:
            view = DiagonallyScaledOperator(view, scaling)
        return view if self.shift is None else DiagonallyShiftedOperator(view, self.shift)

    def context(self, hessian: HessianOperator, estimator: str, size: int | None = None) -> Context:
        """What the estimation of SD must know, by a spectrum estimator on the whole operator or a block of it."""
        return Context(
            size=hessian.size if size is None else size,
            exponents=self.exponents,
            unstable_above=self.unstable_above(),
            ignored_decay=self.ignored_decay,
            product_error=hessian.verification.hvp_relative_error,
            estimator=estimator,
        )

    def _decay_of_each(self) -> Array:
        """Weight decay of each parameter, shape [n], float64."""
        layout, decay = self.loss.layout, np.full(self.loss.size, self.decay)
        for name, part in zip(layout.names, layout.slices, strict=True):
            if name in self.excluded:
                decay[part] = 0.0
        return decay

    def _scaling(self) -> tuple[Array | None, str]:
        """P^-1/2 of an adaptive optimizer; or None, and why an adaptive one has none."""
        if not self.preconditioned:
            return None, ""
        diagonal = settings.preconditioner(self.compiled_as, self.loss.layout)
        if diagonal is None:
            taken = self.optimizer is not None and self.optimizer.iterations > 0
            if taken:
                return None, "the second moments of the optimizer in the file could not be read"
            return None, "the optimizer in the file has taken no step, so it has no second moments"
        found = inverse_root(diagonal)
        return found, "" if found is not None else "the optimizer's second moments are not all positive and finite"

    def _map(self, rate: float) -> ExponentMap:
        optimizer = self.optimizer
        if self.options.map == "auto":
            name, reason = _own_map(optimizer)
            reason = reason or self.unscaled
            if optimizer is not None and not reason:
                momentum = optimizer.momentum or 0.0
                return exponent_map(name, rate, momentum=momentum, weight_decay=self.decay)
            self.warn(
                "hessian-map",
                f"{reason}; the map |1 - eta*alpha| of the Hessian was analysed, not the optimizer's own step.",
            )
        return exponent_map("hessian", rate)  # of the map full nothing asks for it

    def _limits(self) -> stability.Thresholds | None:
        if self.rate is None:
            return None
        if self.optimizer is None:
            self.warn("optimizer-unknown", "no optimizer is known; the threshold 2/eta of plain SGD was taken.")
            return stability.thresholds("SGD", self.rate)
        return stability.thresholds(
            self.optimizer.name,
            self.rate,
            momentum=self.optimizer.momentum,
            nesterov=self.optimizer.nesterov,
            weight_decay=self.decay,
        )


def inverse_root(diagonal: Array) -> Array | None:
    """P^-1/2, or None where P is not positive and finite."""
    return 1.0 / np.sqrt(diagonal) if np.all(np.isfinite(diagonal)) and np.all(diagonal > 0) else None


def operator_name(preconditioned: bool) -> str:
    return "P^-1/2 H P^-1/2" if preconditioned else "H"


def _learning_rate(
    compiled: Any, optimizer: settings.OptimizerSettings | None, given: float | str | None
) -> tuple[float | None, str, str]:
    """(rate, where it came from, ""), or (None, where, why there is none and what to do).

    Raises:
        SdkerasError: The given one is no learning rate, or of a schedule where there is none.
    """
    if given is not None:
        rate = parse_learning_rate(given)
        if not isinstance(rate, str):
            return rate, "given", ""
        if optimizer is None:
            raise ModelError(f"the learning rate is to be {rate} of a schedule, and no optimizer is known.")
        try:
            found, source = settings.scheduled_rate(compiled, rate), rate
        except settings.StepNotTaken as error:
            return None, rate, str(error)
    else:
        if optimizer is None:
            return None, "file", "no optimizer is known, and so no learning rate; give it (--learning-rate F)."
        if optimizer.learning_rate is None:
            return None, "file", _without_a_rate(optimizer)
        found, source = optimizer.learning_rate, "file"
    if np.isfinite(found) and found > 0:
        return found, source, ""
    schedule = settings.schedule_of(compiled)
    where = (
        f"the learning rate of {optimizer.name} is {found:g}"
        if schedule is None
        else f"the learning rate is {found:g}, which the schedule {type(schedule).__name__} has come to after "
        f"{optimizer.iterations:,} steps"
        if source == "file"
        else f"the {source} learning rate of the schedule {type(schedule).__name__} is {found:g}"
    )
    choices = "F" if schedule is None else "F, or peak, mean or step:N of the schedule"
    if schedule is not None and optimizer.iterations:
        last = f"step:{optimizer.iterations - 1}"
        choices += f"; the last step, {last}, used {settings.scheduled_rate(compiled, last):.4g}"
    return None, source, f"{where}; give another one (--learning-rate {choices})."


def _without_a_rate(optimizer: settings.OptimizerSettings) -> str:
    if not optimizer.rates:
        return f"the learning rate of {optimizer.name} cannot be read; give it (--learning-rate F)."
    rates = ", ".join(f"{name} {'unknown' if rate is None else f'{rate:g}'}" for name, rate in optimizer.rates)
    return (
        f"the optimizer {optimizer.name} has several learning rates ({rates}), and a threshold is of one; give one "
        "(--learning-rate F), or take the whole step with the rates it has (--map full, sdkeras lyapunov)."
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


# The optimizer


def training_optimizer(
    model: Any, loss: EmpiricalLoss, rate: float | str | None, *, changed: bool, warnings: list[Note]
) -> Any:
    """The model's optimizer, or a copy of it with another learning rate or for the copy of the model.

    The rate is a number or says which of the optimizer's schedule; None leaves it as it is.

    Raises:
        SdkerasError: There is no optimizer, the rate cannot be replaced, or is not one.
    """
    own = getattr(model, "optimizer", None)
    rate = None if rate is None else _as_number(own, rate)
    if own is None:
        if rate is None:
            raise ModelError("the learning rate is unknown; give it (--learning-rate F).")
        warnings.append(Note("plain-sgd", "no optimizer is known; steps of plain SGD were taken."))
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


def _as_number(optimizer: Any, rate: float | str) -> float:
    """The learning rate, computed from the optimizer's schedule where it says which of its."""
    known = parse_learning_rate(rate)
    if not isinstance(known, str):
        return known
    found = update.scheduled_rate(optimizer, known)
    if not found > 0:
        raise ModelError(f"the {known} learning rate of the schedule is {found:g}; give another one.")
    return found


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
