"""One training step on fixed batches and its Jacobian at one state; vectors are rows of matrices.

The state is x = (w, s): the trainable variables in model order, then the optimizer's slots. A step is
x' = U(w, g, s) with g the gradient of the batch's loss at w, so that with H its Hessian

    J t   = dU (t_w, H t_w, t_s)             one Hessian product and the derivative of the update, both ways;
    J' u  = (c_w + H c_g, c_s), (c_w, c_g, c_s) = dU' u.

Where an optimizer squares or clips the gradient of each lookup of an embedding by itself, g is row by row
(`gradients`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TypeAlias

import attrs
import tensorflow as tf

from sdkeras.files.keras_types import Optimizer, Tensor
from sdkeras.operators.batch_loss import Batch
from sdkeras.operators.engine import Engine
from sdkeras.results.arrays import Array
from sdkeras.training_step.derivative import Derivative
from sdkeras.training_step.gradients import Gradient, Gradients, RowGradients
from sdkeras.training_step.rule import UpdateRule, update_rule

Rows: TypeAlias = Array | Tensor


@attrs.frozen(eq=False, slots=False)
class StepJacobian:
    """A step from `state` along the gradient of a weighted sum of batches."""

    rule: UpdateRule
    gradients: Gradients  # in the form that the rule takes
    batches: Sequence[Batch]
    state: Tensor  # of shape [N]
    held: Sequence[Tensor]  # values that the update reads beside the state, in the rule's order

    @property
    def num_weights(self) -> int:
        return self.rule.num_weights

    @functools.cached_property
    def point(self) -> Tensor:
        """The weights, a tensor of shape [n]."""
        return self.state[: self.num_weights]

    @functools.cached_property
    def gradient(self) -> Gradient:
        return self.gradients.gradient(self.point, self.batches)

    @property
    def gradient_in_double(self) -> Gradient:
        return attrs.evolve(self.gradient, values=tf.cast(self.gradient.values, tf.float64))

    @functools.cached_property
    def derivative(self) -> Derivative:
        """dU at the state, of NumPy arrays."""
        return self.rule.linearize(self.state, self.gradient, self.held)[2]

    @functools.cached_property
    def derivative_of_tensors(self) -> Derivative:
        """The same of tensors."""
        return self.rule.linearize(self.state, self.gradient, self.held, of_tensors=True)[2]

    def next_state(self) -> Tensor:
        """The state after the step, a tensor of shape [N]."""
        return self.rule.update(self.state, self.gradient, self.held)[0]

    def push(self, tangents: Rows) -> Rows:
        """J t: [k, N] to [k, N], arrays or tensors."""
        weights = tf.convert_to_tensor(tangents[:, : self.num_weights])
        slopes = self.gradients.push(self.point, weights, self.batches)
        if tf.is_tensor(tangents):
            return self.derivative_of_tensors.push(tangents, slopes)
        return self.derivative.push(tangents, slopes.numpy())

    def pull(self, cotangents: Rows) -> Rows:
        """J' u: [k, N] to [k, N], arrays or tensors."""
        of_tensors = tf.is_tensor(cotangents)
        pulled, slopes = (self.derivative_of_tensors if of_tensors else self.derivative).pull(cotangents)
        more = self.gradients.pull(self.point, self.gradient, tf.convert_to_tensor(slopes), self.batches)
        if of_tensors:
            return tf.concat([pulled[:, : self.num_weights] + more, pulled[:, self.num_weights :]], axis=1)
        pulled[:, : self.num_weights] += more.numpy()
        return pulled


def rule_and_gradients(optimizer: Optimizer, engine: Engine) -> tuple[UpdateRule, Gradients]:
    """The update and its gradients: summed over lookups, or row by row where the step is not a function of the sums."""
    layout = engine.function.layout
    rule = update_rule(optimizer, layout, [name in engine.unconnected for name in layout.names], engine.function.dtype)
    # Accumulators of several batches sum first; dG' c of rows, which an engine without products makes none of, is a
    # reverse pass over a reverse pass.
    if engine.looked_up and rule.optimizer.microbatches == 1 and engine.mode in ("", "reverse-over-reverse"):
        gradients = RowGradients(engine)
        by_rows = rule.by_rows(gradients.layout.looked_up)
        if not by_rows.sums_rows():
            return by_rows, gradients
    return rule, Gradients(engine)
