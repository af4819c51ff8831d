"""The derivative dU of an optimizer's update at one state, ready for products from either side. NumPy in and out.

dU maps tangents of the state x = (w, s) and of the gradient G to one of the next state. Most optimizers treat each
weight by itself: dU is then a few diagonals, made once per state, and a product is as many multiplications; a clip by
norm in front of that has a closed form. Where weights meet (Lamb, Adafactor, Muon) the products are those of the
compiled update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import attrs
import numpy as np
import scipy.sparse

from sdkeras.results.arrays import Array

# A diagonal of dU: all zero, the same number everywhere, or one number per weight.
Diagonal: TypeAlias = "np.floating[Any] | Array | None"

# Entries worked on at a time: a dozen passes over them should stay in the cache.
_TILE = 32768


@attrs.frozen
class CompiledDerivative:
    """dU by compiled forward and backward products; tangents and cotangents are the rows of a matrix."""

    push: Callable[[Array, Array], Array]  # dU (t, h), h a tangent of G: [k, N] and [k, size of G] to [k, N]
    pull: Callable[[Array], tuple[Array, Array]]  # dU' u: [k, N] to [k, N] and [k, size of G]


@attrs.frozen
class NormClip:
    """C(g) = g min(1, limit / |g|), of each variable's gradient by itself or of the whole.

    Its derivative is symmetric: the identity where |g| <= limit, else (limit / |g|) (I - e e') with e = g / |g|.
    """

    limit: float  # positive
    is_global: bool  # whether the norm is that of the whole gradient

    def groups(self, places: Sequence[slice]) -> Sequence[slice]:
        """Slices of the gradient that are clipped together, for variables at these places."""
        return [slice(0, places[-1].stop)] if self.is_global else places


@attrs.frozen(eq=False)
class _ClipDerivative:
    """The derivative of a `NormClip` at one gradient; its own transpose."""

    active: list[tuple[slice, np.floating[Any], Array]]  # of each group beyond the limit: place, limit / |g| and e
    is_partial: bool  # whether a group is not beyond it

    @classmethod
    def of(cls, clip: NormClip, gradient: Array, places: Sequence[slice]) -> _ClipDerivative:
        active, groups, number = [], clip.groups(places), gradient.dtype.type
        for place in groups:
            norm = float(np.linalg.norm(gradient[place]))
            if norm > clip.limit:
                active.append((place, number(clip.limit / norm), gradient[place] / number(norm)))
        return cls(active, len(active) < len(groups))

    def rows(self, slopes: Array) -> Iterator[Array]:
        """Products with each row; one buffer serves all of them, so each lasts until the next."""
        if not self.active:
            yield from slopes
            return
        product = np.empty_like(slopes[0])
        for slope in slopes:
            if self.is_partial:
                product[...] = slope
            for place, scale, unit in self.active:
                along = np.dot(unit, slope[place])
                for start in range(place.start, place.stop, _TILE):
                    tile = slice(start, min(start + _TILE, place.stop))
                    np.multiply(unit[start - place.start : tile.stop - place.start], -along, out=product[tile])
                    np.add(product[tile], slope[tile], out=product[tile])
                    np.multiply(product[tile], scale, out=product[tile])
            yield product


@attrs.frozen(eq=False)
class VariableDiagonals:
    """dU of one variable whose entries move by themselves."""

    state: Sequence[slice]  # where the variable, and each of its slots, lie in the state
    gradient: slice  # where its gradient lies in G
    in_state: Sequence[Sequence[Diagonal]]  # [a][b]: derivative of part a of the next state in part b of the state
    in_gradient: Sequence[Diagonal]  # of part a in the gradient; if looked up, one number per entry of its rows
    rows: Array | None  # if looked up: which row of the variable each row of the gradient is of
    shape: tuple[int, ...]


class Diagonals:
    """dU of an update that treats each weight by itself, at a gradient G that is clipped by norm before or not.

    The variables together cover state and G.
    """

    def __init__(self, variables: Sequence[VariableDiagonals], clip: NormClip | None, gradient: Array) -> None:
        places = [variable.gradient for variable in variables]
        self._clip = None if clip is None else _ClipDerivative.of(clip, gradient, places)
        self._size = places[-1].stop
        self._tiles = [tile for variable in variables for tile in _tiles(variable)]
        self._lookups = [_Lookup.of(each, each.rows) for each in variables if each.rows is not None]

    def push(self, tangents: Array, slopes: Array) -> Array:
        out = np.empty_like(tangents)
        scratch = np.empty(_TILE, tangents.dtype)
        clipped: Iterable[Array] = slopes if self._clip is None else self._clip.rows(slopes)
        for tangent, slope, row in zip(tangents, clipped, out, strict=True):
            for state, gradient, rows, _ in self._tiles:
                inputs = [*(tangent[place] for place in state), *(slope[place] for place in gradient)]
                for place, diagonals in zip(state, rows, strict=True):
                    _combine(diagonals, inputs, row[place], scratch)
            for lookup in self._lookups:
                lookup.push(slope, row)
        return out

    def pull(self, cotangents: Array) -> tuple[Array, Array]:
        out = np.empty_like(cotangents)
        slopes = np.empty((len(cotangents), self._size), cotangents.dtype)
        scratch = np.empty(_TILE, cotangents.dtype)
        for cotangent, row, slope in zip(cotangents, out, slopes, strict=True):
            for state, gradient, _, columns in self._tiles:
                inputs = [cotangent[place] for place in state]
                targets = [*(row[place] for place in state), *(slope[place] for place in gradient)]
                for target, diagonals in zip(targets, columns, strict=True):
                    _combine(diagonals, inputs, target, scratch)
            for lookup in self._lookups:
                lookup.pull(cotangent, slope)
        if self._clip is not None:
            for slope, product in zip(slopes, self._clip.rows(slopes), strict=True):
                slope[...] = product
        return out, slopes


Derivative: TypeAlias = CompiledDerivative | Diagonals

# Places in the state, the place in G or none, and a matrix of diagonals by rows and by columns.
_Tile: TypeAlias = tuple[list[slice], list[slice], list[list[Diagonal]], list[tuple[Diagonal, ...]]]


def _tiles(variable: VariableDiagonals) -> Iterator[_Tile]:
    by_row = variable.rows is not None
    size = variable.state[0].stop - variable.state[0].start
    for low in range(0, size, _TILE):
        cut = slice(low, min(low + _TILE, size))
        state, gradient = (
            [slice(place.start + cut.start, place.start + cut.stop) for place in parts]
            for parts in (variable.state, [] if by_row else [variable.gradient])
        )
        diagonals = [
            [d[cut] if isinstance(d, np.ndarray) else d for d in (*row, *([] if by_row else [last]))]
            for row, last in zip(variable.in_state, variable.in_gradient, strict=True)
        ]
        yield state, gradient, diagonals, list(zip(*diagonals, strict=True))


@attrs.frozen(eq=False)
class _Lookup:
    """The part of dU in a gradient row by row: its products are summed into the rows they are of."""

    variable: VariableDiagonals
    sums: scipy.sparse.csr_matrix  # it sums rows, shape [rows of the variable, rows of the gradient]
    diagonals: list[Array]  # for each part of the state, shape [rows of the gradient, row size]

    @classmethod
    def of(cls, variable: VariableDiagonals, rows: Array) -> _Lookup:
        count, diagonals = len(rows), [np.asarray(each) for each in variable.in_gradient]
        entries = (np.ones(count, diagonals[0].dtype), (rows, np.arange(count)))
        sums = scipy.sparse.csr_matrix(entries, shape=(variable.shape[0], count))
        return cls(variable, sums, [each.reshape(count, -1) for each in diagonals])

    def push(self, slope: Array, out: Array) -> None:
        rows = slope[self.variable.gradient].reshape(self.diagonals[0].shape)
        for place, diagonal in zip(self.variable.state, self.diagonals, strict=True):
            out[place] += (self.sums @ (diagonal * rows)).ravel()

    def pull(self, cotangent: Array, slope: Array) -> None:
        total = np.zeros_like(self.diagonals[0])
        for place, diagonal in zip(self.variable.state, self.diagonals, strict=True):
            total += diagonal * cotangent[place].reshape(self.sums.shape[0], -1)[self.variable.rows]
        slope[self.variable.gradient] = total.ravel()


def _combine(terms: Sequence[Diagonal], inputs: Sequence[Array], out: Array, scratch: Array) -> None:
    """out = sum of diagonal times input."""
    pairs = [(vector, diagonal) for vector, diagonal in zip(inputs, terms, strict=True) if diagonal is not None]
    if not pairs:
        out[...] = 0
        return
    np.multiply(*pairs[0], out=out)
    for vector, diagonal in pairs[1:]:
        np.add(out, np.multiply(vector, diagonal, out=scratch[: len(out)]), out=out)


def compressed(diagonal: Array) -> Diagonal:
    """One number for a diagonal that is the same everywhere, None for zero."""
    if diagonal.size == 0 or not np.all(diagonal == diagonal.flat[0]):
        return diagonal
    return None if diagonal.flat[0] == 0 else diagonal.flat[0]
