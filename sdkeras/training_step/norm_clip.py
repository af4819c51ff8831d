"""Clipping of gradients by norm and its derivative, in closed form. NumPy in and out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import numpy as np

from sdkeras.results.arrays import Array
from sdkeras.training_step.linearized import TILE, Diagonals
from sdkeras.training_step.row_diagonals import RowDiagonals


@attrs.frozen
class NormClip:
    """C(g) = g min(1, limit / |g|), of each group of entries by itself.

    Its derivative is symmetric: the identity where |g| <= limit, else (limit / |g|) (I - e e') with e = g / |g|.

    Attributes:
        limit: Largest norm, positive.
        groups: Where each group lies in the gradient; together they cover it.
    """

    limit: float
    groups: tuple[slice, ...]

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

    def rows(self, slopes: Array) -> Iterator[Array]:
        """Products with each row, shape [n]; one buffer serves all of them, so each lasts until the next."""
        if not self._active:
            yield from slopes
            return
        found = np.empty_like(slopes[0])
        for given in slopes:
            if self._partly:
                found[...] = given
            for part, scale, unit in self._active:
                along = np.dot(unit, given[part])
                for start in range(part.start, part.stop, TILE):
                    own = slice(start, min(start + TILE, part.stop))
                    np.multiply(unit[start - part.start : own.stop - part.start], -along, out=found[own])
                    np.add(found[own], given[own], out=found[own])
                    np.multiply(found[own], scale, out=found[own])
            yield found


class Clipped:
    """dU of an update that clips the gradient by norm and treats each weight by itself from there on."""

    def __init__(self, clip: NormClipDerivative, rest: Diagonals | RowDiagonals) -> None:
        self._clip = clip
        self._rest = rest

    def push(self, tangents: Array, slopes: Array) -> Array:
        return self._rest.push(tangents, self._clip.rows(slopes))

    def pull(self, cotangents: Array) -> tuple[Array, Array]:
        pulled, slopes = self._rest.pull(cotangents)
        for row, product in zip(slopes, self._clip.rows(slopes), strict=True):
            row[...] = product
        return pulled, slopes
