"""The loss along directions: filter normalisation, quadratic models and how far they hold, worst cases in a ball."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import attrs
import numpy as np

from sdkeras.results.arrays import Array, FloatArray

# A quadratic model holds while it is off by at most this part of |slope s| + |curvature s^2|/2, beyond rounding.
HOLDS_WITHIN = 0.1
_ROUNDINGS = 4
# Entries of a Gram matrix are summed over this many weights at once.
_BLOCK = 2**20


def filter_normalized(direction: Sequence[Array], weights: Sequence[Array]) -> list[Array]:
    """Each filter of a direction at the length of the weights' own filter; biases and other vectors at 0.

    A filter is a slice along the last axis of a kernel: the incoming weights of a unit. A filter of length 0 becomes 0.

    Reference: Li et al. (2018), arXiv 1712.09913.
    """
    pieces = []
    for piece, weight in zip(direction, weights, strict=True):
        if weight.ndim < 2:
            pieces.append(np.zeros_like(piece))
            continue
        axes = tuple(range(weight.ndim - 1))
        lengths = np.sqrt(np.sum(np.square(piece, dtype=np.float64), axis=axes))
        wanted = np.sqrt(np.sum(np.square(weight, dtype=np.float64), axis=axes))
        factors = np.divide(wanted, lengths, out=np.zeros_like(wanted), where=lengths > 0)
        pieces.append((piece * factors).astype(piece.dtype))
    return pieces


def principal_components(iterates: Array, origin: FloatArray, count: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The leading principal components of a trajectory about its mean, by the Gram matrix of its iterates.

    Args:
        iterates: Shape [steps, n].
        origin: Point from which coordinates are taken, shape [n].
        count: How many components.

    Returns:
        Unit components [count, n]; the share of each in the variance [count]; coordinates of the iterates
        [count, steps].

    Raises:
        ValueError: The iterates span fewer dimensions.
    """
    steps, size = iterates.shape
    gram, about_origin, mean = np.zeros((steps, steps)), np.zeros((steps, steps)), np.empty(size)
    for start in range(0, size, _BLOCK):
        rows = np.asarray(iterates[:, start : start + _BLOCK], np.float64)
        mean[start : start + _BLOCK] = rows.mean(axis=0)
        centered = rows - mean[start : start + _BLOCK]
        gram += centered @ centered.T
        about_origin += (rows - origin[start : start + _BLOCK]) @ centered.T
    values, vectors = np.linalg.eigh(gram)
    values, vectors = values[::-1], vectors[:, ::-1]
    spanned = int(np.sum(values > steps * np.finfo(iterates.dtype).eps * max(values[0], 0.0)))
    if spanned < count:
        raise ValueError(f"the iterates span {spanned} dimensions, and {count} are asked for")
    scaled = vectors[:, :count] / np.sqrt(values[:count])
    components = np.empty((count, size))
    for start in range(0, size, _BLOCK):
        rows = np.asarray(iterates[:, start : start + _BLOCK], np.float64) - mean[start : start + _BLOCK]
        components[:, start : start + _BLOCK] = scaled.T @ rows
    return components, values[:count] / values.sum(), (about_origin @ scaled).T


def quadratic_change(slopes: FloatArray, curvature: FloatArray, at: FloatArray) -> tuple[FloatArray, FloatArray]:
    """s'g + s'Bs/2 at each row s of `at` [points, k], and |s'g| + |s'Bs|/2, what its error is measured by."""
    first = at @ slopes
    second = 0.5 * np.einsum("pi,ij,pj->p", at, curvature, at)
    return first + second, np.abs(first) + np.abs(second)


def holds_to(
    at: FloatArray, changes: FloatArray, slopes: FloatArray, curvature: FloatArray, *, rounding: float
) -> float:
    """The distance up to which the quadratic model holds at every point of a set: 0 if at none but the center.

    Args:
        at: Coordinates of the points, shape [points, k].
        changes: Loss there minus that at the center, shape [points]; NaN where unknown, which ends it.
        slopes: Of the model, shape [k].
        curvature: Of the model, shape [k, k].
        rounding: Absolute rounding of a loss.
    """
    model, scale = quadratic_change(slopes, curvature, at)
    distances = np.sqrt(np.sum(at**2, axis=1))
    order = np.argsort(distances, kind="stable")
    fits = np.abs(changes - model)[order] <= HOLDS_WITHIN * scale[order] + _ROUNDINGS * rounding
    first_failure = distances[order][~fits].min(initial=np.inf)
    return float(distances[distances < first_failure].max(initial=0.0))


def ball_maximum(gradient: FloatArray, hessian: FloatArray, radius: float) -> tuple[float, FloatArray]:
    """The maximum of g'e + e'He/2 over |e| <= radius, and where it is, from the eigenvalues of a small H.

    On the boundary (mu I - H) e = g with mu >= max(lambda_max, 0) and |e| = radius, the root of a secular equation in
    mu; in the hard case g has no part along the top eigenvector, which fills the length up.

    Reference: More and Sorensen (1983), SIAM J. Sci. Stat. Comput. 4, 553.
    """
    from scipy.optimize import brentq  # here: reports, which draw quadratic models, need not wait for it

    values, vectors = np.linalg.eigh(hessian)
    parts, top = vectors.T @ gradient, max(float(values[-1]), 0.0)
    scale = max(abs(values[0]), abs(values[-1]), float(np.linalg.norm(gradient)) / radius)
    if scale == 0:
        return 0.0, np.zeros_like(gradient)

    def step(mu: float) -> FloatArray:
        gaps = mu - values
        return np.divide(parts, gaps, out=np.zeros_like(parts), where=gaps > 0)

    def excess(mu: float) -> float:
        return 1 / radius - 1 / max(float(np.linalg.norm(step(mu))), 1e-300)

    low, high = top + 1e-14 * scale, top + float(np.linalg.norm(gradient)) / radius + scale
    if excess(low) <= 0:  # inside the ball, or the hard case
        small = step(low)
        if values[-1] > 0:
            small[-1] = np.copysign(np.sqrt(max(radius**2 - float(small[:-1] @ small[:-1]), 0.0)), parts[-1])
        where = vectors @ small
    else:
        where = vectors @ step(brentq(excess, low, high, xtol=1e-15 * scale, rtol=1e-14))
    return float(gradient @ where + 0.5 * where @ hessian @ where), where


@attrs.frozen
class Ascent:
    """The highest value that an ascent within a ball has found.

    Attributes:
        value: f there.
        distance: Length of the step from the center.
        first: f after the first step along the gradient, at the boundary: SAM's perturbation. NaN where it is infinite.
        num_values, num_gradients: Evaluations spent.
    """

    value: float
    distance: float
    first: float
    num_values: int
    num_gradients: int


def ascend(
    value: Callable[[FloatArray], float],
    gradient: Callable[[FloatArray], FloatArray],
    at_center: tuple[float, FloatArray],
    radius: float,
    starts: Sequence[FloatArray],
    steps: int,
    go_on: Callable[[], bool] = lambda: True,
) -> Ascent:
    """The best value of f over the ball |e| <= radius that projected ascent has found: a lower bound of the maximum.

    From the center along the gradient, and along each of the `starts`, first to the boundary. Then e -> P(e + g(e)/c),
    P the projection onto the ball: with c = 0 the next boundary point along the gradient, as the power method; where
    that does not ascend, c grows from |g|/radius on, fourfold each time.

    Args:
        value: f at a step from the center, shape [n].
        gradient: Its gradient there, shape [n].
        at_center: Both at the center.
        radius: Of the ball.
        starts: Directions, shape [n] each, that are tried as well.
        steps: Steps of each ascent.
        go_on: Asked before each step.
    """
    best, slope = at_center
    distance, first, values, gradients = 0.0, math.nan, 0, 0
    for number, direction in enumerate([slope, *starts]):
        if not np.any(direction) or not go_on():
            continue
        start = radius / float(np.linalg.norm(direction)) * direction
        here = value(start)
        first = here if number == 0 else first
        found, where, more, uphill = _climb(value, gradient, (here, start), radius, steps - 1, go_on)
        values, gradients = values + 1 + more, gradients + uphill
        if found > best:
            best, distance = found, float(np.linalg.norm(where))
    return Ascent(best, distance, first, values, gradients)


def _climb(
    value: Callable[[FloatArray], float],
    gradient: Callable[[FloatArray], FloatArray],
    start: tuple[float, FloatArray],
    radius: float,
    steps: int,
    go_on: Callable[[], bool],
) -> tuple[float, FloatArray, int, int]:
    """The highest value on the way, where it is, and the values and gradients spent."""
    (here, where), damping, values, gradients = start, 0.0, 0, 0
    uphill: FloatArray | None = None
    for _ in range(steps):
        if not (math.isfinite(here) and go_on()):
            break
        if uphill is None:
            uphill, gradients = gradient(where), gradients + 1
        length = float(np.linalg.norm(uphill))
        if not 0 < length < math.inf:
            break
        moved = damping * where + uphill
        outside = float(np.linalg.norm(moved)) / radius
        moved = moved / max(outside, damping)
        there, values = value(moved), values + 1
        if there > here:
            where, here, uphill = moved, there, None
        else:
            damping = max(4 * damping, length / radius)
    return here, where, values, gradients
