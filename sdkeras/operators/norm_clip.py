"""Clipping of gradients by norm and its derivative, in closed form. NumPy in and out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sdkeras.operators.base import Array
from sdkeras.operators.linearized import TILE, Linearized


class NormClip:
    """C(g) = g min(1, limit / |g|), of each group of entries by itself.

    Its derivative is symmetric: the identity where |g| <= limit, else (limit / |g|) (I - e e') with e = g / |g|.

    Args:
        limit: Largest norm, positive.
        groups: Where each group lies in the gradient; together they cover it.
    """

    def __init__(self, limit: float, groups: Sequence[slice]) -> None:
        self.limit = limit
        self.groups = tuple(groups)

    def derivative(self, gradient: Array) -> NormClipDerivative:
        """The derivative at a gradient, shape [n]."""
        return NormClipDerivative(self, gradient)


class NormClipDerivative:
    """The derivative of a `NormClip` at one gradient; its own transpose."""

    def __init__(self, clip: NormClip, gradient: Array) -> None:
        self._active: list[tuple[slice, Any, Array]] = []
        for part in clip.groups:
            norm = float(np.linalg.norm(gradient[part]))
            if norm > clip.limit:
                scale, unit = gradient.dtype.type(clip.limit / norm), gradient[part] / gradient.dtype.type(norm)
                self._active.append((part, scale, unit))
        self._partly = len(self._active) < len(clip.groups)

    def __call__(self, slopes: Array) -> Array:
        """Products with the rows of a matrix, [k, n] to [k, n]; the rows themselves where nothing is clipped."""
        if not self._active:
            return slopes
        found = slopes.copy() if self._partly else np.empty_like(slopes)
        for row, given in zip(found, slopes, strict=True):
            for part, scale, unit in self._active:
                along = np.dot(unit, given[part])
                for start in range(part.start, part.stop, TILE):
                    own = slice(start, min(start + TILE, part.stop))
                    np.multiply(unit[start - part.start : own.stop - part.start], -along, out=row[own])
                    np.add(row[own], given[own], out=row[own])
                    np.multiply(row[own], scale, out=row[own])
        return found


class Clipped:
    """dU of an update that clips the gradient by norm and goes on with the clipped one alone."""

    def __init__(self, clip: NormClipDerivative, rest: Linearized) -> None:
        self._clip = clip
        self._rest = rest

    def push(self, tangents: Array, slopes: Array) -> Array:
        return self._rest.push(tangents, self._clip(slopes))

    def pull(self, cotangents: Array) -> tuple[Array, Array]:
        pulled, slopes = self._rest.pull(cotangents)
        return pulled, self._clip(slopes)
