"""The loss along directions in the space of the weights, and the worst of it within a ball."""

from __future__ import annotations

import attrs
import numpy as np

from sdkeras.results.arrays import ARRAYS_EQUAL, FloatArray
from sdkeras.results.measured import Measured


@attrs.frozen
class Axis:
    """One direction, as a vector of some length, and points along it.

    Attributes:
        name: 'eigenvector 1', 'random direction 1', 'the update', 'principal component 1'.
        length: Length of the vector in the space of the weights; coordinates are multiples of it.
        slope: Derivative of the loss along it at the weights.
        curvature: Second derivative, by a Hessian-vector product: of a unit eigenvector its eigenvalue.
        eigenvalue: Of an eigenvector, with its residual; None of other directions.
        share: Of a principal component, its share in the variance of the trajectory; None of others.
        coordinates: Points along it, ascending, shape [points].
    """

    name: str
    length: float
    slope: float
    curvature: float
    eigenvalue: Measured | None
    share: float | None
    coordinates: FloatArray = attrs.field(eq=ARRAYS_EQUAL)


@attrs.frozen
class Landscape:
    """The loss on a line or in a plane through the weights, beside its quadratic model there.

    Attributes:
        directions: 'eigenvectors', 'random', 'step' or 'trajectory'.
        filter_normalized: Whether each filter of the directions has the length of the weights' own.
        axes: One or two.
        mixed_curvature: u'Hv of the two; None on a line.
        loss: At the weights.
        losses: At the points: for each of the second axis (on a line one) those along the first, shape [points]; NaN
            where it was not taken, infinity is null too.
        quadratic_to: Distance, in units of the directions, up to which the quadratic model holds within a tenth: on a
            line to the left and to the right; in a plane twice the same, sqrt(a^2 + b^2) of coordinates a and b, which
            reaches beyond the span of one axis in the corners.
        path: Coordinates of the trajectory's iterates along each axis; None without one.
    """

    directions: str
    filter_normalized: bool
    axes: tuple[Axis, ...]
    mixed_curvature: float | None
    loss: float
    losses: tuple[FloatArray, ...] = attrs.field(eq=ARRAYS_EQUAL, repr=False)
    quadratic_to: tuple[float, float]
    path: tuple[FloatArray, ...] | None = attrs.field(default=None, eq=ARRAYS_EQUAL, repr=False)

    def __attrs_post_init__(self) -> None:
        rows = 1 if len(self.axes) == 1 else len(self.axes[-1].coordinates)
        if len(self.axes) not in (1, 2) or len(self.losses) != rows:
            raise ValueError(f"Landscape has {len(self.axes)} axes and {len(self.losses)} rows of losses.")
        if any(len(row) != len(self.axes[0].coordinates) for row in self.losses):
            raise ValueError("Landscape.losses has a row that is not as long as the first axis.")

    @property
    def slopes(self) -> FloatArray:
        """Of the quadratic model, shape [axes]."""
        return np.array([axis.slope for axis in self.axes])

    @property
    def curvature(self) -> FloatArray:
        """Of the quadratic model, shape [axes, axes]."""
        matrix = np.diag([axis.curvature for axis in self.axes])
        if self.mixed_curvature is not None:
            matrix[0, 1] = matrix[1, 0] = self.mixed_curvature
        return matrix


@attrs.frozen
class WorstCase:
    """The worst loss within a ball around the weights, as far as steps of projected ascent have found it.

    Attributes:
        kind: 'plain', |e| <= rho; or 'adaptive', |e_i / w_i| as a vector <= rho.
        rho: Radius of the ball.
        increase: The worst loss found minus the loss at the weights: a LOWER bound of the maximum.
        first_step: The same at SAM's own point, rho along the gradient (of the scaled weights).
        first_order: rho * |gradient|: what a linear loss would increase by.
        second_order: The maximum of the quadratic model over the ball's part in the plane of gradient and top
            eigenvector: a LOWER bound of its maximum over the ball. None where the eigenvalue was not measured.
        eigenvalue: The largest eigenvalue of H, or of |w| H |w| for 'adaptive', with its residual; None if unknown.
        distance: How far from the center it was found, in the ball's own units.
        num_losses, num_gradients: Spent over all the data, those at the weights not counted.
    """

    kind: str = attrs.field(validator=attrs.validators.in_(("plain", "adaptive")))
    rho: float
    increase: float
    first_step: float
    first_order: float
    second_order: float | None
    eigenvalue: Measured | None
    distance: float
    num_losses: int
    num_gradients: int
