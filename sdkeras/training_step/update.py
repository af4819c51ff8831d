"""The update that an optimizer makes from its stored slots, as a direction in the space of the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import numpy as np
import tensorflow as tf

from sdkeras.files.keras_types import Optimizer, Tensor
from sdkeras.linalg.vectors import dot, finite, norm
from sdkeras.operators import verification as checks
from sdkeras.operators.batch_loss import Batch
from sdkeras.operators.engine import Engine
from sdkeras.operators.loss import EmpiricalLoss
from sdkeras.training_step import verification
from sdkeras.training_step.jacobian import StepJacobian, rule_and_gradients
from sdkeras.training_step.optimizer import with_slots
from sdkeras.training_step.rule import UpdateRule


@attrs.frozen
class Direction:
    """An update of the weights on given batches.

    Attributes:
        update: Weights after the step minus weights before, shape [n].
        slope: The batches' gradient times the update: what the step would change the loss by if that were linear.
        rounding: What the rounding of the weights after the step may be off, relative to the update; infinite where it
            is all that is left of an update.
    """

    update: Tensor
    slope: float
    rounding: float


@attrs.frozen(eq=False)
class Update:
    """The optimizer's own step from its slots on whatever batches; made by `stored_update`.

    Attributes:
        step_error: Distance from one step of the optimizer itself, relative to the step; None where it was not taken,
            and `unchecked` says why.
    """

    step: StepJacobian
    engine: Engine
    step_error: float | None
    unchecked: str

    @property
    def verified(self) -> bool:
        """Whether the steps agree, as far as they were compared."""
        return self.step_error is None or self.step_error < verification.ALLOWED_STEP

    @property
    def rule(self) -> UpdateRule:
        return self.step.rule

    def on_minibatch(self, loss: EmpiricalLoss, index: int) -> list[Batch]:
        """The batches of training's update number `index`."""
        return training_batches(loss, self.rule.optimizer.microbatches, index)

    def along(self, batches: Sequence[Batch]) -> Direction:
        """The update along the gradient of the weighted sum of these batches.

        Raises:
            NonFiniteError: It is NaN or infinite.
        """
        step = attrs.evolve(self.step, batches=batches)
        gradient = step.gradient
        update = finite(step.next_state()[: step.num_weights] - step.point, "the update")
        slopes = [gradient.values]
        if gradient.rows:  # row by row, for the optimizer alone
            slopes = [self.engine.gradient(step.point, batch) for batch in batches]
        length, error = norm(update), 0.5 * float(np.finfo(step.point.dtype.as_numpy_dtype).eps) * norm(step.point)
        rounding = error / length if length else (math.inf if any(map(norm, slopes)) else 0.0)
        return Direction(update, sum(dot(each, update) for each in slopes), rounding)


def training_batches(loss: EmpiricalLoss, microbatches: int, index: int) -> list[Batch]:
    """The batches of training's update number `index`: one, or k of weight 1/k with accumulation over k."""
    batches = [loss.minibatch(microbatches * index + offset) for offset in range(microbatches)]
    return [attrs.evolve(batch, data_weight=1 / microbatches, extra_weight=1 / microbatches) for batch in batches]


def stored_update(
    loss: EmpiricalLoss,
    optimizer: Optimizer,
    *,
    initial_slots: bool = False,
    allow_unverified: bool = False,
    memory: float | None = None,
) -> Update:
    """The update of an optimizer at the loss's weights, checked against the optimizer's own step where memory allows.

    Args:
        loss: The loss over all trainable variables of the optimizer's model.
        optimizer: The Keras optimizer with its slots.
        initial_slots: For one that has not trained yet: take the slots it would start with.
        allow_unverified: Warn where the steps differ, in place of an error.
        memory: Bytes that the process may take for the check, in float64.

    Raises:
        ModelError: The optimizer has no slots yet, or was built for other variables.
        VerificationError: The steps differ.
    """
    optimizer = with_slots(loss, optimizer, initial_slots)
    rule, gradients = rule_and_gradients(optimizer, loss.gradients)
    state = tf.constant(rule.state, rule.dtype)
    step = StepJacobian(rule, gradients, loss.batches[:1], state, rule.constants(rule.held))
    error, reason = None, checks.no_room(rule.size, memory)
    if not reason:
        error, reason = verification.step_error(step, loss, loss.gradients, optimizer)
    update = Update(step, loss.gradients, error, reason)
    if not update.verified:
        words = f"the update differs from one step of the optimizer itself by {error:.2g} of the step"
        checks.refuse(f"{words}; allow an unverified one (`allow_unverified=True`) to use it anyway.", allow_unverified)
    return update
