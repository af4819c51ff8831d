"""What an analysis is of: the model's loss on its data, the optimizer's settings, and the map of its step."""

from __future__ import annotations

from typing import Any

import numpy as np

from sdkeras import loading
from sdkeras.dimension import stability
from sdkeras.dimension.exponents import ExponentMap, exponent_map
from sdkeras.dimension.records import Warning
from sdkeras.errors import ModelError
from sdkeras.operators import batches, update
from sdkeras.operators.base import Array, DiagonallyScaledOperator, SymmetricOperator
from sdkeras.operators.hessian import HessianOperator
from sdkeras.operators.loss import EmpiricalLoss
from sdkeras.options import Options
from sdkeras.provenance import with_loss


class Subject:
    """Model, data and options read and checked; nothing is measured yet.

    Attributes:
        compiled_as: The model as it was given, with its optimizer.
        model: The same, or a copy compiled with the loss that was given.
        optimizer: Settings of its optimizer, or None.
        rate: Learning rate of the analysed step, and `rate_source`, where it came from.
        decay: Weight decay.
        source: The data.
        loss: The loss over them at the model's weights.
        limits: The optimizer's stability thresholds, or None where they are unknown.
        scaling: P^-1/2 of an adaptive optimizer, shape [n], float64; or None, and `unscaled` says why.
        exponents: The map from eigenvalues to exponents.
        warnings: What the reader must know of all that.

    Raises:
        SdkerasError: Unusable model or data; see its subclasses.
    """

    def __init__(self, model: Any, data: Any, options: Options) -> None:
        self.options = options
        self.warnings: list[Warning] = []
        self.optimizer = update.read_settings(getattr(model, "optimizer", None))
        self.compiled_as = model
        self.model = with_loss(model, options.loss, options.dtype)
        self.rate, self.rate_source = _learning_rate(self.optimizer, options.learning_rate)
        self.decay = self.optimizer.weight_decay if self.optimizer else 0.0
        if isinstance(data, (tuple, list)) and len(data) in (2, 3):
            loading.check_data(self.model, *data)
        self.source = batches.as_source(
            data,
            batch_size=options.batch_size,
            default_batch_size=batches.DEFAULT_BATCH_SIZE,
            limit=options.samples,
        )
        self.loss = EmpiricalLoss(
            self.model,
            self.source,
            mode=options.mode,
            params=options.params,
            dtype=options.dtype,
            num_samples=options.samples,
            seed=options.seed,
        )
        self.limits = self._limits()
        self.scaling, self.unscaled = self._scaling()
        self.exponents = self._map()

    def warn(self, code: str, message: str) -> None:
        self.warnings.append(Warning(code, message))

    @property
    def operator(self) -> str:
        """Whose eigenvalues the map takes."""
        return operator_name(self.exponents.preconditioned)

    def unstable_above(self) -> float | None:
        """The upper threshold where it is one for the eigenvalues that the map takes."""
        same = self.limits is not None and self.limits.preconditioned == self.exponents.preconditioned
        return self.limits.upper if self.limits is not None and same else None

    def on_minibatch(self, hessian: HessianOperator, index: int, scaling: Array | None = None) -> SymmetricOperator:
        """The operator whose eigenvalues the map takes: a minibatch's Hessian, or P^-1/2 H P^-1/2.

        P is the checkpoint's unless another `scaling` = P^-1/2 is given. The scaled operator has no `reduced` form:
        directions that the first kernel does not feel are no longer orthogonal to those it feels.
        """
        view = hessian.on_minibatch(index)
        scaling = self.scaling if scaling is None else scaling
        if scaling is None or not self.exponents.preconditioned:
            return view
        return DiagonallyScaledOperator(view, scaling)

    def _scaling(self) -> tuple[Array | None, str]:
        """P^-1/2 of an adaptive optimizer; or None, and why an adaptive one has none."""
        if self.limits is None or not self.limits.preconditioned:
            return None, ""
        diagonal = update.preconditioner(self.compiled_as, self.loss.layout)
        if diagonal is None:
            return None, "the optimizer in the file has taken no step, so it has no second moments"
        found = inverse_root(diagonal)
        return found, "" if found is not None else "the optimizer's second moments are not all positive and finite"

    def _map(self) -> ExponentMap:
        optimizer = self.optimizer
        if self.options.map == "auto":
            name, reason = _own_map(optimizer)
            reason = reason or self.unscaled
            if optimizer is not None and not reason:
                momentum = optimizer.momentum or 0.0
                return exponent_map(name, self.rate, momentum=momentum, weight_decay=self.decay)
            self.warn(
                "hessian-map",
                f"{reason}; the map |1 - eta*alpha| of the Hessian was analysed, not the optimizer's own step.",
            )
        return exponent_map("hessian", self.rate)

    def _limits(self) -> stability.Thresholds | None:
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


def _learning_rate(optimizer: update.OptimizerSettings | None, given: float | None) -> tuple[float, str]:
    rate = given if given is not None else (optimizer.learning_rate if optimizer else None)
    if rate is None:
        raise ModelError("the learning rate is unknown; give it (--learning-rate F).")
    if not (np.isfinite(rate) and rate > 0):
        where = "given" if given is not None else "stored in the model (a schedule that has decayed?)"
        raise ModelError(
            f"the learning rate {where} is {rate:g}; a training step needs one that is positive and finite "
            "(--learning-rate F)."
        )
    return float(rate), "given" if given is not None else "file"


def _own_map(optimizer: update.OptimizerSettings | None) -> tuple[str, str]:
    """Name of the optimizer's own map, or why there is none."""
    if optimizer is None:
        return "", "no optimizer is known"
    momentum = optimizer.momentum or 0.0
    with_momentum = "nesterov" if optimizer.nesterov else "heavy-ball"
    names = {"SGD": with_momentum if momentum else "sgd", "Adam": "adam", "AdamW": "adam", "RMSprop": "rmsprop"}
    if optimizer.name not in names:
        return "", f"the optimizer is {optimizer.name}"
    if not 0.0 <= momentum < 1.0:
        return "", f"the momentum {momentum:g} of {optimizer.name} is not between 0 and 1"
    return names[optimizer.name], ""
