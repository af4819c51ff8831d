"""Coordinates of an optimizer's state: what the singular values of a step's Jacobian refer to."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import keras
import numpy as np

from sdkeras.operators.base import Array
from sdkeras.operators.update_map import UpdateMap


@attrs.frozen
class Coordinates:
    """Fixed linear coordinates y = C x of the state; in them a step's Jacobian is C J C^-1.

    Exponents in the long run, determinants and eigenvalues are the same in all coordinates; singular values, and with
    them every SD, are not.

    Attributes:
        name: 'weights' (no slots), 'balanced' (momentum), or 'raw' (the state as it is, units mixed).
        forward: X -> C X for columns X, shape [N, k], in new memory.
        backward: Y -> C^-1 Y, likewise.
    """

    name: str
    forward: Callable[[Array], Array]
    backward: Callable[[Array], Array]


def training_coordinates(step: UpdateMap) -> Coordinates:
    """The coordinates of an optimizer's step in which singular values are taken.

    Weights alone stay as they are. For SGD with momentum beta, v Keras' velocity, they are the balanced ones,
    u = w + b^2/(1 - beta) v and p = b/(1 - beta) v with b = sqrt(beta) for heavy ball and beta for Nesterov: a step
    without curvature and decay is then exactly diag(1, beta). Any other state is left raw.
    """
    if step.size == step.num_weights:
        return Coordinates("weights", np.array, np.array)
    pairs = _velocities(step)
    if pairs is None:
        return Coordinates("raw", np.array, np.array)
    return balanced(float(step.optimizer.momentum), bool(step.optimizer.nesterov), pairs)


def balanced(beta: float, nesterov: bool, pairs: list[tuple[slice, slice]]) -> Coordinates:
    """Balanced coordinates of momentum; see `training_coordinates`.

    Args:
        beta: Momentum, 0 < beta < 1.
        nesterov: Whether it is Nesterov's.
        pairs: Where each variable and its velocity stand in the state.
    """
    root = beta if nesterov else float(np.sqrt(beta))
    scale = root / (1.0 - beta)

    def forward(columns: Array) -> Array:
        found = np.array(columns)
        for weights, velocity in pairs:
            found[velocity] *= scale
            found[weights] += root * found[velocity]
        return found

    def backward(columns: Array) -> Array:
        found = np.array(columns)
        for weights, velocity in pairs:
            found[weights] -= root * found[velocity]
            found[velocity] /= scale
        return found

    return Coordinates("balanced", forward, backward)


def _velocities(step: UpdateMap) -> list[tuple[slice, slice]] | None:
    """Where each weight and its velocity stand, if the slots are the velocities of SGD and nothing else."""
    optimizer = step.optimizer
    if type(optimizer) is not keras.optimizers.SGD or not optimizer.momentum:
        return None
    weights = step.layout.slices[: len(step.loss.layout.names)]
    slots = step.layout.slices[len(weights) :]
    owners = {id(velocity): part for velocity, part in zip(optimizer.momentums, weights, strict=True)}
    variables = optimizer.variables
    places = step.slot_positions
    if len(places) != len(slots) or any(id(variables[place]) not in owners for place in places):
        return None
    return [(owners[id(variables[place])], part) for place, part in zip(places, slots, strict=True)]
