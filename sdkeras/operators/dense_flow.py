"""A trajectory that keeps the dense Jacobians of its steps."""

from __future__ import annotations

from typing import Any

import numpy as np

from sdkeras.errors import SdkerasError
from sdkeras.operators.base import Array, TangentFlow
from sdkeras.operators.coordinates import Coordinates


class DenseFlow:
    """The tangents of another flow in coordinates y = C x, and C J_t C^-1 of each step after a transient.

    From the end of the transient on a step carries all N unit vectors, whatever the tangents; those are multiplied
    by the matrix that comes out. It is a `TangentFlow`.

    Args:
        flow: The trajectory.
        coordinates: C.
        transient: Steps made before the first that is kept.
        num_steps: Steps kept at most, T.

    Attributes:
        size, dtype: The flow's.
        jacobians: Memory for C J_t C^-1 of T steps, shape [T, N, N]; the first `num_kept` are filled.
        num_kept: How many.
    """

    def __init__(self, flow: TangentFlow, coordinates: Coordinates, *, transient: int, num_steps: int) -> None:
        self.flow = flow
        self.coordinates = coordinates
        self.transient = transient
        self.size = flow.size
        self.dtype = flow.dtype
        self.jacobians: Array = np.empty((num_steps, flow.size, flow.size), flow.dtype)
        self.num_kept = 0
        self._index = 0

    def reset(self, seed: int) -> None:
        self.flow.reset(seed)
        self.num_kept = self._index = 0

    def step(self, tangents: Array) -> Array:
        if not self.transient <= self._index < self.transient + len(self.jacobians):
            moved = self._pushed(tangents)
        else:
            jacobian = self._pushed(np.eye(self.size, dtype=self.dtype))
            self.jacobians[self.num_kept] = jacobian
            self.num_kept += 1
            moved = jacobian @ tangents
        self._index += 1
        return moved

    def _pushed(self, columns: Array) -> Array:
        return self.coordinates.forward(self.flow.step(self.coordinates.backward(columns)))

    def state(self) -> Any:
        return self.flow.state()

    def restore(self, state: Any) -> None:
        del state
        raise SdkerasError(
            "a trajectory that keeps its Jacobians cannot go back to a saved state, which has none of them; follow it "
            "without windows, or with an estimator that does not go back."
        )
