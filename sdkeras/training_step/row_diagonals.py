"""dU of an update that treats each weight by itself, along gradients that come row by row. NumPy in and out.

A weight that a batch looks up several times moves by several entries of the gradient G; the derivative in G is one
number for each of them and each kind of state, and their products are summed into the row they are of.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import attrs
import numpy as np
import scipy.sparse

from sdkeras.results.arrays import Array
from sdkeras.training_step.linearized import Diagonals


@attrs.frozen
class Lookups:
    """One variable's gradient row by row.

    Attributes:
        given: Where it lies in G.
        kinds: Where the variable, and each of its slots, lie in the state.
        rows: Which row each row of the gradient is of, shape [l].
        diagonals: For each kind, derivative of its next value in the gradient, shape [l, row size].
        sums: The matrix that sums rows, shape [rows of the variable, l].
    """

    given: slice
    kinds: Sequence[slice]
    rows: Array
    diagonals: Sequence[Array]
    sums: Any

    @classmethod
    def of(
        cls, given: slice, kinds: Sequence[slice], rows: Array, diagonals: Sequence[Array], shape: tuple[int, ...]
    ) -> Lookups:
        ones = np.ones(len(rows), diagonals[0].dtype)
        sums = scipy.sparse.csr_matrix((ones, (rows, np.arange(len(rows)))), shape=(shape[0], len(rows)))
        return cls(given, kinds, rows, [own.reshape(len(rows), -1) for own in diagonals], sums)

    def add(self, slope: Array, out: Array) -> None:
        """To a tangent of the next state, [N], what the tangent of G makes."""
        own = slope[self.given].reshape(len(self.rows), -1)
        for part, diagonal in zip(self.kinds, self.diagonals, strict=True):
            out[part] += (self.sums @ (diagonal * own)).ravel()

    def pull(self, cotangent: Array, slope: Array) -> None:
        """From a cotangent of the next state, [N], this part of one of G."""
        slope[self.given] = 0
        for part, diagonal in zip(self.kinds, self.diagonals, strict=True):
            own = cotangent[part].reshape(self.sums.shape[0], -1)[self.rows]
            slope[self.given] += (diagonal * own).ravel()


class RowDiagonals:
    """dU by diagonals, of which those in the gradient of what was looked up are by row of the gradient.

    Args:
        rest: All but these, with the gradient [n] of the variables end to end.
        plain: For each variable not looked up, where it lies in that gradient and in G.
        lookups: The others.
    """

    def __init__(self, rest: Diagonals, plain: Sequence[tuple[slice, slice]], lookups: Sequence[Lookups]) -> None:
        self._rest = rest
        self._plain = plain
        self._lookups = lookups
        self._size = max(part.stop for part in [*(own for own, _ in plain), *(own.kinds[0] for own in lookups)])
        self._given = max(part.stop for part in [*(given for _, given in plain), *(own.given for own in lookups)])

    def push(self, tangents: Array, slopes: Iterable[Array]) -> Array:
        out = np.empty_like(tangents)
        summed = np.zeros((1, self._size), tangents.dtype)
        for tangent, slope, row in zip(tangents, slopes, out, strict=True):
            for own, given in self._plain:
                summed[0, own] = slope[given]
            row[...] = self._rest.push(tangent[None], summed)[0]
            for lookup in self._lookups:
                lookup.add(slope, row)
        return out

    def pull(self, cotangents: Array) -> tuple[Array, Array]:
        pulled, summed = self._rest.pull(cotangents)
        slopes = np.empty((len(cotangents), self._given), cotangents.dtype)
        for own, given in self._plain:
            slopes[:, given] = summed[:, own]
        for cotangent, slope in zip(cotangents, slopes, strict=True):
            for lookup in self._lookups:
                lookup.pull(cotangent, slope)
        return pulled, slopes
